"""The ``kernel`` implementation: costs of operators from our own kernels, by surfaces made when first needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.operators.cost import ENGINES, OperatorCost
from trnsim.operators.samples import QUANTITIES
from trnsim.operators.surfaces import Surfaces, entry_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.operators.shipped import Entry
    from trnsim.operators.store import Store
    from trnsim.operators.surface import Surface

_MODULES = ("matmul",)
# Costs that are remembered as they are.
_KNOWN = 100_000
_BUSY = QUANTITIES.index(f"busy {ENGINES[0]}")


def contracts() -> dict[str, Contract]:
    """The operators that have a kernel, by name."""
    found = [importlib.import_module(f"trnsim.kernels.{name}").CONTRACT for name in _MODULES]
    return {contract.name: contract for contract in found}


class KernelCosts:
    """Costs on one chip, on logical cores of ``cores`` cores.

    ``chip``: as ``load_chip`` takes it, changes included. ``store`` keeps what is simulated, and is asked before;
    ``use_shipped``: so are the surfaces that come with the package.
    """

    def __init__(self, chip: str, cores: int = 1, store: Store | None = None, *, use_shipped: bool = True) -> None:
        core = load_chip(chip).core
        if core is None:
            raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip)
        if cores not in (1, 2) or (cores == 2 and core.version == "v2"):
            limit = 1 if core.version == "v2" else (1, 2)
            raise InputError(f"{chip} has no logical cores of {cores}", operand="cores", value=cores, limit=limit)
        self.chip, self.cores, self.store = chip, cores, store
        self._contracts = contracts()
        self._known: dict[tuple[Any, ...], OperatorCost] = {}
        self._surfaces: dict[tuple[Any, ...], list[Surface]] = {}
        self.source = Surfaces(chip, cores, store, use_shipped=use_shipped)

    def cost(self, operator: str, dtype: str, **given: int) -> OperatorCost:
        """What one use costs. ``given``: sizes and options of the operator's contract.

        Raises:
            InputError: no such operator, or one that its contract forbids.
            UnsupportedError: too large to be simulated and not to be extrapolated.
        """
        contract = self._contracts.get(operator)
        if contract is None:
            raise InputError(f"no kernel for {operator!r}", operand="operator", limit=sorted(self._contracts))
        use = (operator, dtype, *given.items())
        known = self._known.get(use)
        if known is not None:
            return known
        problem = contract.problem(dtype, self.cores, given)
        found = self._surface(contract, problem)
        quantities = found.evaluate(problem)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[use] = OperatorCost(
            operator=operator,
            implementation="kernel",
            time_ps=quantities[0],
            hbm_bytes=round(quantities[1]),
            flops=contract.flops(problem),
            sbuf_bytes=round(quantities[-1]),
            support=found.support,
            reason=found.reason,
            how="surface" if found.blocks else "simulated",
            busy_ps=dict(zip(ENGINES, quantities[_BUSY : _BUSY + len(ENGINES)], strict=True)),
        )
        return self._known[use]

    def has(self, contract: Contract, dtype: str) -> bool:
        """Whether an operator has this number format here."""
        return dtype in contract.dtypes

    def problem(self, contract: Contract, dtype: str, given: Mapping[str, Any]) -> Problem:
        """A use, checked. Raises InputError: one that the contract forbids."""
        return contract.problem(dtype, self.cores, given)

    def key(self, contract: Contract, problem: Problem) -> str:
        """Equal for the uses of an operator that may have the same surface."""
        return repr((problem.dtype, contract.regime(problem), *problem.options.values()))

    def entry(self, contract: Contract, problem: Problem) -> Entry:
        """The surface for a use, as it is kept."""
        return entry_of(self._surface(contract, problem), problem, self.key(contract, problem))

    def _surface(self, contract: Contract, problem: Problem) -> Surface:
        key = (contract.name, problem.dtype, contract.regime(problem), *problem.options.values())
        held = self._surfaces.setdefault(key, [])
        for found in held:
            if found.covers(problem):
                return found
        made, _ = self.source.of(contract, problem, self.key(contract, problem), lambda s: s.covers(problem))
        held.append(made)
        return made
