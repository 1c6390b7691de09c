"""Where surfaces come from: those that are shipped, those in a store, else samples that are simulated now.

A chip that a user changed takes the surfaces of the chip as it is, with the same samples timed again: their traces are
what they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.hardware import load_chip
from trnsim.hardware.whatif import unchanged
from trnsim.operators import surface
from trnsim.operators.decides import surface_key
from trnsim.operators.packing import pack, unpack
from trnsim.operators.samples import Sampler
from trnsim.operators.shipped import Entry, shipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.operators.store import Store

    Covers = Callable[[surface.Surface], bool]


class Surfaces:
    """Surfaces on one chip, on logical cores of ``cores`` cores.

    ``made`` counts those that were neither shipped nor in the store.
    """

    def __init__(self, chip: str, cores: int, store: Store | None = None, *, use_shipped: bool = True) -> None:
        self.name, self.chip, self.cores, self.store = chip, load_chip(chip), cores, store
        self.sampler = Sampler(chip, store)
        self.made = 0
        self._use_shipped = use_shipped
        self._shipped: dict[str, dict[str, list[Entry]]] = {}
        self._base: Surfaces | None = None

    def of(self, contract: Contract, problem: Problem, key: str, covers: Covers) -> tuple[surface.Surface, str]:
        """A surface for ``problem``, and where it is from: ``shipped``, ``stored`` or ``made``.

        Args:
            contract: of the operator.
            problem: the use that is asked for.
            key: equal for the uses that may have the same surface.
            covers: whether a surface of that key is for this use.

        Raises:
            TrnsimError: as the simulation of a sample.
        """
        for entry in self._entries(contract).get(key, ()):
            found = unpack(entry.surface)
            if covers(found):
                return found, "shipped"
        where = f"{surface_key(contract, self.chip)} {self.cores} {contract.name} {key}"
        for data in self.store.surfaces(where) if self.store is not None else ():
            found = unpack(msgspec.msgpack.decode(data, type=Entry).surface)
            if covers(found):
                return found, "stored"
        made = self._make(contract, problem, key, covers)
        self.made += 1
        if self.store is not None:
            entry = entry_of(made, problem, key)
            self.store.add_surface(where, repr(sorted(problem.sizes.items())), msgspec.msgpack.encode(entry))
        return made, "made"

    def _make(self, contract: Contract, problem: Problem, key: str, covers: Covers) -> surface.Surface:
        def sample(use: Problem) -> Any:
            return self.sampler(contract, use)

        if not self.chip.changes:
            return surface.build(contract, problem, sample)
        if self._base is None:
            self._base = Surfaces(unchanged(self.chip), self.cores, self.store, use_shipped=self._use_shipped)
        base, _ = self._base.of(contract, problem, key, covers)
        return surface.timed_again(base, contract, problem, sample)

    def _entries(self, contract: Contract) -> dict[str, list[Entry]]:
        """The shipped entries of an operator, by key."""
        found = self._shipped.get(contract.name)
        if found is None:
            found = self._shipped[contract.name] = {}
            there = shipped() if self._use_shipped else None
            for entry in there.entries(contract, self.chip) if there is not None else ():
                if entry.cores == self.cores:
                    found.setdefault(entry.key, []).append(entry)
        return found


def entry_of(made: surface.Surface, problem: Problem, key: str) -> Entry:
    """A surface as it is kept."""
    return Entry(key, problem.cores, problem.dtype, dict(problem.options), dict(problem.sizes), msgspec.Raw(pack(made)))
