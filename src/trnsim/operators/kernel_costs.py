"""The ``kernel`` implementation: costs of operators from our own kernels, by surfaces made when first needed."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.operators import surface
from trnsim.operators.cost import ENGINES, OperatorCost, OperatorCosts
from trnsim.operators.neighbours import gather
from trnsim.operators.samples import QUANTITIES
from trnsim.operators.surfaces import Surfaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.operators.neighbours import Neighbours
    from trnsim.operators.store import Store
    from trnsim.operators.surface import Surface

_MODULES = (
    "matmul", "matmul_fp8", "matmul_mx", "attention_contracts", "rmsnorm", "layernorm", "rope", "mlp", "router",
    "grouped_matmul", "embedding", "softmax", "cross_entropy", "adam", "reductions", "elementwise", "quantization",
)  # fmt: skip
# Costs that are remembered as they are.
_KNOWN = 100_000
_INSTRUCTIONS = QUANTITIES.index("instructions")
# Operations and bytes of a use that takes a second or so to simulate: 32,000 products, 16,000 tiles of 128 x 2,048.
_AT_ONCE, _AT_ONCE_BYTES = 32_000 * 2 * 128 * 128 * 512, 16_000 * 2 * 128 * 2048
# Uses of fewer instructions are simulated in about as long as a sample takes: a surface must be this good to stand in.
# What happens once is much of their time, and is not a polynomial of sizes.
_SMALL, _SMALL_ERROR = 2000, 0.01
# Uses of so many are a sample of their own where a surface does not tell their time.
_LARGE = 20_000
_BUSY = QUANTITIES.index(f"busy {ENGINES[0]}")


def contracts() -> dict[str, Contract]:
    """The operators that have a kernel, by name."""
    found: dict[str, Contract] = {}
    for name in _MODULES:
        for contract in importlib.import_module(f"trnsim.kernels.{name}").CONTRACTS:
            found[contract.name] = contract
    return found


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
        self.chip, self.cores, self.store, self.generation = chip, cores, store, core.version
        self._contracts = contracts()
        self._known: dict[tuple[Any, ...], OperatorCost] = {}
        self._surfaces: dict[tuple[Any, ...], Surface] = {}
        self._neighbours: dict[tuple[Any, ...], Neighbours | None] = {}
        self.source = Surfaces(chip, cores, store, use_shipped=use_shipped)

    def cost(self, operator: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs. ``given``: sizes and options of the operator's contract.

        Raises:
            InputError: no such operator, or one that its contract forbids.
            UnsupportedError: too large to be simulated and not to be extrapolated.
        """
        use = (operator, dtype, *given.items())
        known = self._known.get(use)
        if known is not None:
            return known
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        found, point = self.surface(contract, problem)
        exact = found.samples.get(point)
        values, error = None if exact is None else exact.tolist(), 0.0
        if values is None and found.knots and found.covers(point):
            values = found.evaluate(point).tolist()
            # Not a number: samples are missing.
            if values[0] != values[0] and _may_stand(found, _at_most(found, point)):
                self._fill(found, contract, problem, [point])
                values = found.evaluate(point).tolist()
            error = found.error(values[_INSTRUCTIONS])
            if not _may_stand(found, values[_INSTRUCTIONS]):
                values = None
        how = "surface"
        if values is None:
            surface.refuse_if_large(contract, problem)
            quantities, support, reason = self.source.sampler(contract, problem)
            values, how, found = quantities.tolist(), "simulated", surface.Surface((), {}, (), support, reason)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[use] = self._cost(contract, problem, values, found, how, error)
        return self._known[use]

    def once(self, operator: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs, as soon as may be: simulated whole where there is no surface yet and it is not large.

        Raises:
            InputError: no such operator, or one that its contract forbids.
            UnsupportedError: too large to be simulated and not to be extrapolated.
        """
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        key = self.key(contract, problem)
        large = contract.flops(problem) > _AT_ONCE or contract.bytes(problem) > _AT_ONCE_BYTES
        if large or key in self._surfaces or self.source.within_reach(contract, repr(key)):
            return self.cost(operator, dtype, **given)
        return self.simulated(operator, dtype, **given)

    def known(self, operator: str, dtype: str, **given: Any) -> OperatorCost | None:
        """What one use costs where a surface is shipped or in the store and has its samples; None: it is not known.

        Nothing is simulated.

        Raises:
            InputError: no such operator, or a use that its contract forbids.
        """
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        key = self.key(contract, problem)
        if key not in self._surfaces:
            found = self.source.known(contract, repr(key))
            if found is None:
                return None
            self._surfaces[key] = found
        held, point = self.surface(contract, problem)
        exact = held.samples.get(point)
        if exact is not None:
            return self._cost(contract, problem, exact.tolist(), held, "surface", 0.0)
        if not held.knots or not held.covers(point):
            return None
        values = held.evaluate(point).tolist()
        # Not a number: samples are missing.
        if values[0] != values[0] or not _may_stand(held, values[_INSTRUCTIONS]):
            return None
        return self._cost(contract, problem, values, held, "surface", held.error(values[_INSTRUCTIONS]))

    def neighbours(self, contract: Contract, problem: Problem) -> Neighbours | None:
        """The simulated sizes of an operator in a format, by which others may be told; None: there are none."""
        key = (contract.name, problem.dtype, *problem.options.values())
        if key not in self._neighbours:
            entries = self.source.entries(contract)
            self._neighbours[key] = gather(self.chip, self.cores, contract, problem, entries)
        return self._neighbours[key]

    def forget(self) -> None:
        """Costs that were asked for; surfaces stay."""
        self._known.clear()

    def simulated(self, operator: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs, simulated whole.

        Raises:
            InputError: no such operator, or one that its contract forbids.
            UnsupportedError: too large to be simulated.
        """
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        surface.refuse_if_large(contract, problem)
        quantities, support, reason = self.source.sampler(contract, problem)
        return self._cost(
            contract, problem, quantities.tolist(), surface.Surface((), {}, (), support, reason), "simulated", 0.0
        )

    def sample(self, contract: Contract, problem: Problem) -> NDArray[np.float64]:
        """The quantities of a use that is simulated."""
        return self.source.sampler(contract, problem)[0]

    def costs(self, operator: str, dtype: str, **given: Any) -> OperatorCosts:
        """What many uses cost: as ``cost``, where sizes are arrays of one length, or numbers for all of them.

        Raises:
            InputError: no such operator, or one use that its contract forbids.
            UnsupportedError: a use is too large to be simulated and not to be extrapolated.
        """
        contract = self.contract(operator, dtype)
        sizes = {
            n: given[n] if n in given else contract.defaults[n]
            for n in contract.sizes
            if n in given or n in contract.defaults
        }
        arrays = dict(zip(sizes, np.broadcast_arrays(*(np.asarray(v, np.int64) for v in sizes.values())), strict=True))
        arrays = {name: np.ascontiguousarray(array.ravel()) for name, array in arrays.items()}
        problem = contract.problem(dtype, self.cores, {**given, **arrays}, self.generation)
        count = len(next(iter(arrays.values())))
        quantities = np.empty((count, len(QUANTITIES)))
        for chosen in _groups(contract, problem, count):
            one = problem.resized({name: int(array[chosen[0]]) for name, array in arrays.items()})
            some = problem.resized({name: array[chosen] for name, array in arrays.items()})
            quantities[chosen] = self._many(contract, one, some, len(chosen))
        flops = np.broadcast_to(np.asarray(contract.flops(problem), np.float64), (count,))
        return OperatorCosts(
            operator=operator,
            implementation="kernel",
            time_ps=quantities[:, 0],
            hbm_bytes=np.rint(quantities[:, 1]),
            flops=flops,
            sbuf_bytes=np.rint(quantities[:, -1]),
            busy_ps={name: quantities[:, _BUSY + number] for number, name in enumerate(ENGINES)},
        )

    def contract(self, operator: str, dtype: str = "") -> Contract:
        """That of an operator; ``matmul`` in a format of its own is ``matmul_fp8`` or ``matmul_mx``.

        Raises:
            InputError: there is none.
        """
        contract = self._contracts.get(operator)
        if contract is None:
            near = difflib.get_close_matches(operator, self._contracts, 1)
            nearest = f"; nearest: {near[0]}" if near else ""
            raise InputError(f"no kernel for {operator!r}{nearest}", operand="operator", limit=sorted(self._contracts))
        if dtype and dtype not in {format_ for formats in contract.dtypes.values() for format_ in formats}:
            for name, other in self._contracts.items():
                if name.startswith(f"{operator}_") and any(dtype in formats for formats in other.dtypes.values()):
                    return other
        return contract

    def prepare(self, contract: Contract, problems: Sequence[Problem]) -> Surface:
        """The surface that uses of one regime have in common, with the samples that they need."""
        found, _ = self.surface(contract, problems[0])
        points = [self.surface(contract, problem)[1] for problem in problems] if found.knots else []
        lacking = [point for point in dict.fromkeys(points) if found.covers(point) and point not in found.samples]
        # On a chip that a user changed, instructions and errors are those of the chip as it is.
        told = self.source.unchanged(contract, problems[0], repr(self.key(contract, problems[0]))) or found
        around = [p for p in lacking if found.missing(p) and _may_stand(told, _instructions(told, p))]
        if around:
            self._fill(found, contract, problems[0], around)
        counts = {p: _instructions(told, p) for p in lacking}
        alone = [p for p, count in counts.items() if count <= _LARGE and not _may_stand(told, count)]
        if alone:
            surface.fill(found, contract, problems[0], alone, self.source.sampler_of(contract))
            self.source.keep(contract, problems[0], repr(self.key(contract, problems[0])), found)
        return found

    def key(self, contract: Contract, problem: Problem) -> tuple[Any, ...]:
        """Equal for the uses that have a surface in common."""
        key = (contract.name, problem.dtype, *problem.options.values(), contract.regime(problem))
        return (*key, *(problem.sizes[name] for name in contract.fixed))

    def surface(self, contract: Contract, problem: Problem) -> tuple[Surface, tuple[int, ...]]:
        """The surface of a use's regime, and its coordinates there."""
        key = self.key(contract, problem)
        found = self._surfaces.get(key)
        if found is None:
            found = self._surfaces[key] = self.source.of(contract, problem, repr(key))
        coordinates = contract.coordinates(problem)
        return found, tuple([coordinates[knots.axis.name] for knots in found.knots])

    def _cost(
        self, contract: Contract, problem: Problem, values: list[float], found: Surface, how: str, error: float
    ) -> OperatorCost:
        support, reason = self.source.labelled(found.support, found.reason)
        return OperatorCost(
            operator=contract.name,
            implementation="kernel",
            time_ps=values[0],
            hbm_bytes=round(values[1]),
            flops=contract.flops(problem),
            sbuf_bytes=round(values[-1]),
            support=support,
            reason=reason,
            how=how,
            error_percent=100 * error if how == "surface" and found.checks else None,
            busy_ps=dict(zip(ENGINES, values[_BUSY : _BUSY + len(ENGINES)], strict=True)),
        )

    def _many(self, contract: Contract, one: Problem, some: Problem, count: int) -> NDArray[np.float64]:
        found, _ = self.surface(contract, one)
        coordinates = contract.coordinates(some)
        columns = [np.broadcast_to(coordinates[axis.name], (count,)) for axis in found.axes]
        points = np.stack(columns, axis=1) if columns else np.empty((count, 0), np.int64)
        quantities = np.full((count, len(QUANTITIES)), np.nan)
        inside = np.array([found.covers(point) for point in points.tolist()]) if found.knots else np.zeros(count, bool)
        if inside.any():
            quantities[inside] = found.evaluate_many(points[inside])
            missing = inside & np.isnan(quantities[:, 0])
            if missing.any():
                lacking = [tuple(p) for p in np.unique(points[missing], axis=0).tolist()]
                self._fill(found, contract, one, [p for p in lacking if _may_stand(found, _at_most(found, p))])
                quantities[missing] = found.evaluate_many(points[missing])
        counts, places = np.unique(np.where(inside, quantities[:, _INSTRUCTIONS], 0), return_inverse=True)
        wrong = np.array([not _may_stand(found, number) for number in counts.tolist()])
        whole = ~inside | wrong[places]
        for number in np.flatnonzero(whole & inside).tolist():
            exact = found.samples.get(tuple(points[number].tolist()))
            if exact is not None:
                quantities[number], whole[number] = exact, False
        if whole.any():
            uses = some.resized({name: np.broadcast_to(size, (count,))[whole] for name, size in some.sizes.items()})
            quantities[whole] = self._simulated(contract, uses, int(whole.sum()))
        return quantities

    def _simulated(self, contract: Contract, some: Problem, count: int) -> NDArray[np.float64]:
        names = list(some.sizes)
        rows = np.stack([np.broadcast_to(some.sizes[name], (count,)) for name in names], axis=1)
        unique, places = np.unique(rows, axis=0, return_inverse=True)
        found = []
        for row in unique.tolist():
            use = some.resized(dict(zip(names, row, strict=True)))
            surface.refuse_if_large(contract, use)
            found.append(self.source.sampler(contract, use)[0])
        return np.stack(found)[places]

    def _fill(self, found: Surface, contract: Contract, problem: Problem, points: Iterable[tuple[int, ...]]) -> None:
        """Take the samples that some coordinates lack, and keep the surface with them."""
        for point in points:
            surface.fill(found, contract, problem, found.missing(point), self.source.sampler_of(contract))
        self.source.keep(contract, problem, repr(self.key(contract, problem)), found)


def _may_stand(found: Surface, instructions: float) -> bool:
    """Whether a surface tells the time of a use of so many instructions well enough; not where that is unknown."""
    if not instructions >= 0:
        return False
    return found.error(instructions) <= (_SMALL_ERROR if instructions < _SMALL else surface.LARGEST_ERROR)


def _instructions(found: Surface, point: tuple[int, ...]) -> float:
    """Instructions of a use, or more where samples are missing."""
    known = float(found.evaluate(point)[_INSTRUCTIONS])
    return _at_most(found, point) if np.isnan(known) else known


def _at_most(found: Surface, point: Sequence[int]) -> float:
    """Instructions of the smallest sample that is as large along every axis, which no use at ``point`` has more of."""
    larger = (
        values[_INSTRUCTIONS]
        for other, values in found.samples.items()
        if all(a >= b for a, b in zip(other, point, strict=True))
    )
    return float(min(larger, default=float("inf")))


def _groups(contract: Contract, problem: Problem, count: int) -> list[NDArray[np.int64]]:
    """Which uses have a surface in common."""
    deciding = [*contract.regime(problem), *(problem.sizes[name] for name in contract.fixed)]
    columns = [np.broadcast_to(np.asarray(part, np.int64), (count,)) for part in deciding]
    if not columns:
        return [np.arange(count)]
    _, group = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
