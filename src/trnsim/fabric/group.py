"""Which ranks take part in a collective, and where they sit.

A group is a list of places (logical cores of a topology), in the order of its ranks. What selection rules and closed
forms need is its spread: how many ranks share a chip, how many of its chips share a server, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trnsim.errors import InputError

from .routing import meeting_level
from .topology import Ints, Topology, topology


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a regular group lies on the levels: the product is its size."""

    ranks: int
    """On each chip that it uses."""
    chips: int
    """In each server."""
    servers: int
    """In each UltraServer (1 for systems of one server)."""
    systems: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return (self.ranks, self.chips, self.servers, self.systems)


@dataclass(frozen=True, eq=False)
class Group:
    """Ranks that communicate. ``copies`` groups of the same form do so at the same time, on other ranks."""

    topology: Topology
    places: Ints
    copies: int = 1
    stride: int = 1
    """Between places: copies fill the ranks between them first, then those after the last."""

    @property
    def size(self) -> int:
        return len(self.places)

    @property
    def offsets(self) -> Ints:
        """What is added to the places for each copy."""
        number = np.arange(self.copies)
        return np.asarray(number % self.stride + number // self.stride * self.stride * self.size, np.int64)

    @cached_property
    def level(self) -> int:
        """Index of the widest level the group spans (0: one chip)."""
        if self.size < 2:
            return 0
        first = np.full(self.size, self.places[0])
        return int(meeting_level(self.topology, first, self.places).max())

    @cached_property
    def spread(self) -> Spread | None:
        """None if its containers of some level hold different numbers of its ranks."""
        members, counts = self.places, []
        for name in ("chip", "server", "ultraserver"):
            index = next((i for i, one in enumerate(self.topology.levels) if one.name == name), None)
            if index is None:
                counts.append(1)
                continue
            below = self.topology.size(index - 1) if index else 1
            held = np.unique(np.unique(members // below) * below // self.topology.size(index), return_counts=True)[1]
            if held.min() != held.max():
                return None
            counts.append(int(held[0]))
        whole = counts[0] * counts[1] * counts[2]
        return None if self.size % whole else Spread(ranks=counts[0], chips=counts[1], servers=counts[2],
                                                     systems=self.size // whole)  # fmt: skip


def group(
    system: Topology | str,
    ranks: int | Sequence[int],
    *,
    stride: int = 1,
    first: int = 0,
    copies: int = 1,
    systems: int | None = None,
    lnc: int | None = None,
) -> Group:
    """A group of a topology.

    Args:
        system: a topology, or the name of a system (with ``systems`` of them, by default as many as are needed).
        ranks: how many, placed ``stride`` apart from ``first`` on; or the places themselves (logical cores).
        copies: groups of this form that communicate at the same time.

    Raises:
        InputError: the topology cannot hold that many ranks, or one place is given twice.
    """
    places = first + stride * np.arange(ranks) if isinstance(ranks, int) else np.asarray(ranks, np.int64)
    if not len(places):
        raise InputError("a group has at least one rank", operand="ranks", value=ranks, limit=1)
    if isinstance(system, str):
        one = topology(system, lnc=lnc)
        needed = -(-int(places.max() + 1) // one.rank_count)
        if systems is None and needed > 1 and one.system.scale_out.bytes_per_second is None:
            systems = 1
        system = topology(system, systems=systems or max(needed, 1), lnc=lnc)
    if places.min() < 0 or places.max() >= system.rank_count:
        raise InputError(
            f"{system.name} cannot hold these ranks: it has {system.rank_count} ({system.ranks_per_chip} a chip)",
            operand="ranks", value=len(places) if places.min() >= 0 else int(places.min()), limit=system.rank_count,
        )  # fmt: skip
    if len(np.unique(places)) != len(places):
        raise InputError("a group has each place once", operand="ranks", value=list(places))
    if copies < 1:
        raise InputError("there is at least one group", operand="copies", value=copies, limit=1)
    if copies > 1 and (not isinstance(ranks, int) or first):
        raise InputError("copies are laid out for groups of evenly spaced ranks from the first on", operand="copies",
                         value=copies)  # fmt: skip
    found = Group(system, places.astype(np.int64), copies, stride if isinstance(ranks, int) else 1)
    last = int(places.max() + found.offsets.max())
    if last >= system.rank_count:
        raise InputError(f"{system.name} cannot hold {copies} such groups", operand="copies", value=copies,
                         limit=f"{system.rank_count} ranks")  # fmt: skip
    return found
