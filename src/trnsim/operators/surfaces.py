"""Where surfaces come from: those that are shipped, those in a store, else samples that are simulated now.

The surfaces of a chip that a user changed have the knots of those of the chip as it is, whose loops begin and end at
the same places, and its error; their samples are times of their own, of traces that are in the store already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from trnsim.hardware import load_chip
from trnsim.operators import building, surface
from trnsim.operators.decides import surface_key
from trnsim.operators.packing import pack, unpack
from trnsim.operators.samples import Sampler
from trnsim.operators.shipped import Entry, shipped

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.operators.store import Store


class Surfaces:
    """Surfaces on one chip, on logical cores of ``cores`` cores.

    ``made`` counts those that were neither shipped nor in the store.
    """

    def __init__(self, chip: str, cores: int, store: Store | None = None, *, use_shipped: bool = True) -> None:
        self.name, self.chip, self.cores, self.store = chip, load_chip(chip), cores, store
        self.sampler = Sampler(chip, store)
        self.made = 0
        plain = chip.partition("[")[0]
        self._plain = Surfaces(plain, cores, store, use_shipped=use_shipped) if self.chip.changes else None
        self._use_shipped = use_shipped
        self._shipped: dict[str, list[Entry]] = {}

    def of(self, contract: Contract, problem: Problem, key: str) -> surface.Surface:
        """The surface of the regime of ``problem``, with the samples that are known.

        Args:
            contract: of the operator.
            problem: a use.
            key: equal for the uses that have this surface.

        Raises:
            TrnsimError: as the simulation of a sample.
        """
        found = self.known(contract, key)
        if found is None:
            self.made += 1
            if self._plain is not None:
                like = self._plain.of(contract, problem, key)
                found = surface.Surface(like.knots, {}, like.checks, like.support, like.reason, like.refined)
            else:
                found = building.build(contract, problem, self.sampler_of(contract))
            self.keep(contract, problem, key, found)
        return found

    def within_reach(self, contract: Contract, key: str) -> bool:
        """Whether there is a surface, or of the chip as it is, so that only samples are missing."""
        if self._plain is not None and self._plain.within_reach(contract, key):
            return True
        return self.known(contract, key) is not None

    def unchanged(self, contract: Contract, problem: Problem, key: str) -> surface.Surface | None:
        """The surface of the chip as it is; None: this is it."""
        return None if self._plain is None else self._plain.of(contract, problem, key)

    def sampler_of(self, contract: Contract) -> Callable[[Problem], tuple[NDArray[np.float64], str, str]]:
        """What takes samples of a kernel."""
        return lambda use: self.sampler(contract, use)

    def labelled(self, support: str, reason: str) -> tuple[str, str]:
        """Support and reason of a time on this chip, from those without what a user set."""
        if not self.chip.changes:
            return support, reason
        return "what-if", f"set by the user: {self.chip.changed}; otherwise {support}: {reason}"

    def known(self, contract: Contract, key: str) -> surface.Surface | None:
        """The surface that is shipped or in the store."""
        known = [e.surface for e in self.entries(contract) if e.key == key]
        if self.store is not None:
            rows = self.store.surfaces(self._where(contract, key))
            known += [msgspec.msgpack.decode(data, type=Entry).surface for data in rows]
        found: surface.Surface | None = None
        for data in known:
            one: surface.Surface = unpack(data)
            # The store has samples and checks beyond those that are shipped, or of more knots.
            found = one if found is None else _together(found, one)
        return found

    def keep(self, contract: Contract, problem: Problem, key: str, found: surface.Surface) -> None:
        """Put a surface that is new, or has new samples, into the store."""
        if self.store is not None:
            data = msgspec.msgpack.encode(entry_of(found, problem, key))
            self.store.add_surface(self._where(contract, key), "", data)

    def _where(self, contract: Contract, key: str) -> str:
        plain = self.chip if self._plain is None else self._plain.chip
        return f"{surface_key(contract, self.chip, plain)} {self.cores} {key}"

    def entries(self, contract: Contract) -> list[Entry]:
        """The shipped entries of an operator."""
        found = self._shipped.get(contract.name)
        if found is None:
            there = shipped() if self._use_shipped else None
            entries = there.entries(contract, self.chip) if there is not None else []
            found = self._shipped[contract.name] = [e for e in entries if e.cores == self.cores]
        return found


def _together(first: surface.Surface, other: surface.Surface) -> surface.Surface:
    """Samples of both; knots of the one that is refined, and its checks with those of the same knots."""
    if other.refined and not first.refined:
        first, other = other, first
    first.samples.update({at: values for at, values in other.samples.items() if at not in first.samples})
    more = [check for check in other.checks if check.own or other.knots == first.knots]
    known = {(check.own, check.point) for check in first.checks}
    first.checks = (*first.checks, *(check for check in more if (check.own, check.point) not in known))
    first.support, first.reason = max(
        (first.support, first.reason), (other.support, other.reason), key=lambda one: building.SUPPORT.index(one[0])
    )
    return first


def entry_of(made: surface.Surface, problem: Problem, key: str) -> Entry:
    """A surface as it is kept."""
    return Entry(key, problem.cores, problem.dtype, dict(problem.options), dict(problem.sizes), msgspec.Raw(pack(made)))
