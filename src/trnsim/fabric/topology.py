"""Chips, cores, switches and adapters as a graph with directed links, built from the hardware catalogue.

A topology is its levels (``levels.py``) and what has failed. Its links are laid out by formula and made into arrays
only when they are asked for, so half a million chips are described at once. Ranks, chips and servers are numbered
from the nearest level up: rank ``r`` is logical core ``r % n`` of chip ``r // n``.

Links, in this order: for each rank up and down its chip's star; for each grid level and chip, in each dimension, the
link to the next and to the previous chip; for each star level and chip, up and down; of the network: chip to adapter,
adapter to chip, adapter to network, network to adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware import load_system
from trnsim.hardware.model import System

from .levels import LEVELS, Level, levels_of

Ints = NDArray[np.int64]
GRAPH_LIMIT = 1 << 17
"""Chips up to which links are made into arrays; above, cost is told from one representative server."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """The directed links as columns; nodes are ranks, chips, switches, adapters and the network, in this order."""

    source: Ints
    target: Ints
    bytes_per_second: NDArray[np.float64]
    level: NDArray[np.int8]
    """Index into ``Topology.levels``."""

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A run of links of one level: ``first + member * stride`` is the first link of a member."""

    level: int
    first: int
    stride: int
    members: int

    @property
    def end(self) -> int:
        return self.first + self.stride * self.members


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Systems of one kind and the links between everything in them."""

    system: System
    systems: int
    levels: tuple[Level, ...]
    failed_links: frozenset[int] = frozenset()
    failed_chips: frozenset[int] = frozenset()
    slowed: tuple[tuple[int, float], ...] = ()
    """Links with the share of their rate that is left."""
    name: str = field(default="")

    # -- counts --------------------------------------------------------------------------------------------------------

    @property
    def ranks_per_chip(self) -> int:
        return self.levels[0].members

    @property
    def chip_count(self) -> int:
        return self.systems * self.system.chip_count

    @property
    def rank_count(self) -> int:
        return self.chip_count * self.ranks_per_chip

    @property
    def server_count(self) -> int:
        return self.systems * self.system.server_count

    def size(self, level: int) -> int:
        """Ranks in one container of a level (by index)."""
        size = 1
        for one in self.levels[: level + 1]:
            size *= one.members
        return size

    def level(self, name: str) -> Level | None:
        """The level of this name, if there is one."""
        return next((one for one in self.levels if one.name == name), None)

    @cached_property
    def collective_cores_per_rank(self) -> int | None:
        """CC-cores that orchestrate one rank's collectives: as many may run at once. None: no such limit is known."""
        cores = self.system.chip.collective_cores
        return None if cores is None else max(1, cores // self.ranks_per_chip)

    # -- the graph -----------------------------------------------------------------------------------------------------

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The runs of links, in the order of the module's first lines; the network has four."""
        found: list[Section] = []
        first = 0
        for index, level in enumerate(self.levels):
            chips = self.chip_count
            if level.kind == "none":
                continue
            if level.name == "chip":
                parts = [(2, self.rank_count)]
            elif level.kind == "grid":
                parts = [(2 * len(level.shape), chips)]
            elif level.name == "cluster":
                parts = [(2, chips), (2, self.systems * level.adapters)]
            else:
                parts = [(2, chips)]
            for stride, members in parts:
                found.append(Section(level=index, first=first, stride=stride, members=members))
                first = found[-1].end
        return tuple(found)

    @property
    def link_count(self) -> int:
        return self.sections[-1].end if self.sections else 0

    @cached_property
    def nodes(self) -> tuple[tuple[str, int, int], ...]:
        """``(kind, first node, count)``: ranks (if a chip has several), chips, switches by level, adapters, network."""
        found: list[tuple[str, int, int]] = []
        first = 0

        def add(kind: str, count: int) -> None:
            nonlocal first
            found.append((kind, first, count))
            first += count

        add("rank", self.rank_count if self.levels[0].kind == "star" else 0)
        add("chip", self.chip_count)
        for index, level in enumerate(self.levels):
            if level.kind == "star" and level.name not in ("chip", "cluster"):
                add(f"{level.name} switch", self.rank_count // self.size(index))
            if level.name == "cluster":
                add("adapter", self.systems * level.adapters)
                add("network", 1)
        return tuple(found)

    def first_node(self, kind: str) -> int:
        return next(first for name, first, _ in self.nodes if name == kind)

    @property
    def node_count(self) -> int:
        return self.nodes[-1][1] + self.nodes[-1][2]

    def node_name(self, node: int) -> str:
        """``chip 3``, ``rank 12``, ``server switch 0``, ``network``."""
        for kind, first, count in self.nodes:
            if first <= node < first + count:
                return kind if kind == "network" else f"{kind} {node - first}"
        raise InputError("no such node", value=node, limit=self.node_count)

    @cached_property
    def links(self) -> Links:
        """The links as columns.

        Raises:
            UnsupportedError: the cluster is larger than ``GRAPH_LIMIT`` chips.
        """
        if self.chip_count > GRAPH_LIMIT:
            raise UnsupportedError(
                f"the links of {self.chip_count} chips are not laid out one by one; their times are folded",
                value=self.chip_count, limit=GRAPH_LIMIT,
            )  # fmt: skip
        columns: list[tuple[Ints, Ints, float, int]] = []
        for section in self.sections:
            columns += self._section_links(section)
        if not columns:
            empty = np.zeros(0, np.int64)
            return Links(source=empty, target=empty, bytes_per_second=empty.astype(float), level=empty.astype(np.int8))
        rate = np.concatenate([np.full(len(a), r) for a, _, r, _ in columns])
        for link, share in self.slowed:
            rate[link] *= share
        return Links(
            source=np.concatenate([a for a, _, _, _ in columns]),
            target=np.concatenate([b for _, b, _, _ in columns]),
            bytes_per_second=rate,
            level=np.concatenate([np.full(len(a), i, np.int8) for a, _, _, i in columns]),
        )

    def _section_links(self, section: Section) -> list[tuple[Ints, Ints, float, int]]:
        level, index = self.levels[section.level], section.level
        chips = np.arange(self.chip_count) + self.first_node("chip")
        if level.kind == "grid":
            place = np.arange(self.chip_count)
            to = np.stack([self.neighbour(index, place, d, s) for d in range(len(level.shape)) for s in (1, -1)], 1)
            to = np.where(to < 0, place[:, None], to) + chips[0]  # the ends of a chain: a link to itself, never used
            return [(np.repeat(chips, section.stride), to.reshape(-1), level.bytes_per_second, index)]
        if level.name == "chip":
            low, high = np.arange(self.rank_count), chips[np.arange(self.rank_count) // level.members]
        elif level.name == "cluster":
            adapters = np.arange(self.systems * level.adapters) + self.first_node("adapter")
            if section.members == self.chip_count and section is next(
                s for s in self.sections if s.level == section.level
            ):
                low, high = chips, adapters[np.arange(self.chip_count) * level.adapters // self.system.chip_count]
            else:
                low, high = adapters, np.full(len(adapters), self.first_node("network"))
        else:
            size = self.size(index) // self.ranks_per_chip
            low, high = chips, self.first_node(f"{level.name} switch") + np.arange(self.chip_count) // size
        pairs = (np.stack([low, high], 1).reshape(-1), np.stack([high, low], 1).reshape(-1))
        return [(*pairs, level.bytes_per_second, index)]

    def coordinates(self, index: int, chips: Ints) -> list[Ints]:
        """Where chips stand in a grid level, one array a dimension, the last counting fastest."""
        level = self.levels[index]
        place = self._place(index, chips)
        found = []
        for n in reversed(level.shape):
            found.append(place % n)
            place = place // n
        return found[::-1]

    def _place(self, index: int, chips: Ints) -> Ints:
        below = self.size(index - 1) // self.ranks_per_chip  # chips of one member
        return chips // below % self.levels[index].members

    def neighbour(self, index: int, chips: Ints, dimension: int, step: int) -> Ints:
        """The next (``step`` 1) or previous (-1) chips in a dimension of a grid; -1 beyond the end of a chain."""
        level = self.levels[index]
        below = self.size(index - 1) // self.ranks_per_chip
        stride = below * int(np.prod(level.shape[dimension + 1 :], dtype=np.int64))
        n = level.shape[dimension]
        at = chips // stride % n
        to = chips + ((at + step) % n - at) * stride
        return to if level.wraps else np.where((at + step >= 0) & (at + step < n), to, -1)

    # -- what failed ---------------------------------------------------------------------------------------------------

    def without(self, *, links: tuple[int, ...] = (), chips: tuple[int, ...] = ()) -> Topology:
        """The same without these links and chips: routes go round them where they can."""
        for what, numbers, count in (("link", links, self.link_count), ("chip", chips, self.chip_count)):
            for number in numbers:
                if not 0 <= number < count:
                    raise InputError(f"no such {what}", value=number, limit=f"0 to {count - 1}")
        return replace(
            self,
            failed_links=self.failed_links | frozenset(links),
            failed_chips=self.failed_chips | frozenset(chips),
        )

    def slowed_to(self, share: float, links: tuple[int, ...]) -> Topology:
        """The same with a share of the rate of these links.

        Raises:
            InputError: a link of zero bandwidth: a dead link is ``without`` it.
        """
        if not 0 < share <= 1:
            raise InputError(
                "a link keeps more than none and at most all of its rate; take a dead one out", value=share
            )
        return replace(self, slowed=self.slowed + tuple((link, share) for link in links))

    def link_between(self, a: int, b: int) -> tuple[int, ...]:
        """The links both ways between two neighbouring chips (by number).

        Raises:
            InputError: they have no link of their own.
        """
        first = self.first_node("chip")
        s, t = self.links.source - first, self.links.target - first
        found = np.flatnonzero(((s == a) & (t == b)) | ((s == b) & (t == a)))
        if a == b or not len(found):
            raise InputError(f"{self.name}: no link between chip {a} and chip {b}", value=(a, b))
        return tuple(int(i) for i in found)


def topology(system: str | System, systems: int = 1, lnc: int | None = None) -> Topology:
    """The topology of one or more systems of the catalogue that share a network.

    Args:
        system: name, alias or TOML file of an instance, UltraServer or rack.
        systems: how many of them; more than one are joined by their adapters (EFA, InfiniBand).
        lnc: physical cores of a rank; default: the chip's.

    Raises:
        InputError: unknown system, no systems, or no such setting of LNC.
        UnsupportedError: the catalogue has no source for its links.
    """
    found = system if isinstance(system, System) else load_system(system)
    if not isinstance(systems, int) or systems < 1:
        raise InputError("a topology has at least one system", operand="systems", value=systems, limit=1)
    levels = levels_of(found, systems, lnc)
    for level in levels:
        if level.kind != "none" and not level.bytes_per_second > 0:
            raise InputError(f"{found.name}: a link of zero bandwidth ({level.name} level)",
                             value=level.bytes_per_second)  # fmt: skip
    name = found.name if systems == 1 else f"{systems} x {found.name}"
    return Topology(system=found, systems=systems, levels=levels, name=name)


assert LEVELS[0] == "chip"
