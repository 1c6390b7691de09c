"""Diameter and bisection bandwidth of a topology.

The *diameter* is the most links between two chips on the way that transfers take (to a switch and from it are two). The
*bisection bandwidth* is the least that the links carry one way between two halves of the chips, over the cuts that a
regular machine has: across each dimension of a grid, between the members of a star. Where a level has an odd number of
members the halves differ by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trnsim.errors import InputError

from .levels import Level
from .routing import dead_links, meeting_level, reached_from
from .topology import Ints, Topology


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The weakest cut into halves."""

    bytes_per_second: float
    """One way."""
    across: str
    """What it divides: ``server dimension 0``, ``cluster``."""


def diameter(topology: Topology) -> int:
    """Most links between two chips.

    Raises:
        InputError: failed links or chips leave one that cannot be reached.
    """
    if topology.failed_chips or topology.failed_links:
        return _diameter_of_graph(topology)
    apart = 0
    for level in topology.levels[1:]:
        if level.kind == "grid":
            apart += sum(n // 2 if level.wraps else n - 1 for n in level.shape)
        elif level.kind == "star" and level.members > 1:
            # Chips that meet at this level go up and down; through the network also by their adapters.
            apart = max(apart, 4 if level.name == "cluster" else 2)
    return apart


def _diameter_of_graph(topology: Topology) -> int:
    first = topology.first_node("chip")
    alive = [c for c in range(topology.chip_count) if c not in topology.failed_chips]
    others = np.array(alive)
    ranks = others * topology.ranks_per_chip
    longest = 0
    for chip in alive:
        meeting = meeting_level(topology, np.full(len(ranks), chip * topology.ranks_per_chip), ranks)
        found = np.full(len(ranks), -1)
        for top in range(len(topology.levels)):
            open_ = (found < 0) & (meeting <= top)
            if open_.any():
                found[open_] = np.array(reached_from(topology, first + chip, top))[first + others[open_]]
        if (found < 0).any():
            other = int(others[found < 0][0])
            raise InputError(
                f"{topology.name}: chip {other} cannot be reached from chip {chip}: failed links or chips leave no way",
                value=(chip, other),
            )
        longest = max(longest, int(found.max()))
    return longest


def bisection(topology: Topology) -> Cut | None:
    """The weakest cut into halves; None for a single chip."""
    if topology.failed_chips or topology.failed_links or topology.slowed:
        found = [Cut(bytes_per_second=cut_of_graph(topology, side), across=name) for name, side in cuts(topology)]
    else:
        found = list(_regular_cuts(topology))
    return min(found, key=lambda cut: cut.bytes_per_second, default=None)


def _regular_cuts(topology: Topology) -> Iterator[Cut]:
    chips = topology.chip_count
    for index, level in enumerate(topology.levels):
        if index == 0 or level.members < 2:
            continue
        half = level.members // 2
        above = sum(_star(topology, one, chips // 2) for one in topology.levels[index + 1 :] if one.kind == "star")
        if level.kind == "grid":
            for dimension, n in enumerate(level.shape):
                if n > 1:
                    crossing = (2 if level.wraps else 1) * chips // n
                    yield Cut(
                        bytes_per_second=crossing * level.bytes_per_second + above,
                        across=f"{level.name} dimension {dimension}",
                    )
        elif level.kind == "star":
            across = _star(topology, level, chips // level.members * half)
            yield Cut(bytes_per_second=across + above, across=level.name)


def _star(topology: Topology, level: Level, chips: int) -> float:
    """What ``chips`` chips together send into a star."""
    if level.name == "cluster":
        return chips * level.adapters * level.bytes_per_second / topology.system.chip_count
    return chips * level.bytes_per_second


def cuts(topology: Topology) -> Iterator[tuple[str, Ints]]:
    """The cuts of a topology: their name and the side (0 or 1) of each chip."""
    chips = np.arange(topology.chip_count)
    for index, level in enumerate(topology.levels):
        if index == 0 or level.members < 2 or level.kind == "none":
            continue
        below = topology.size(index - 1) // topology.ranks_per_chip
        if level.kind == "star":
            yield level.name, (chips // below % level.members < level.members // 2).astype(np.int64)
            continue
        for dimension, (n, place) in enumerate(zip(level.shape, topology.coordinates(index, chips), strict=True)):
            for turn in range(n if level.wraps else 1):
                if n > 1:
                    side = ((place + turn) % n < n // 2).astype(np.int64)
                    yield f"{level.name} dimension {dimension}", side


def cut_of_graph(topology: Topology, side: Ints) -> float:
    """Bytes a second, one way, over the live links between the chips of side 0 and those of side 1."""
    links = topology.links
    alive = ~dead_links(topology)
    first = topology.first_node("chip")
    total = 0.0
    for index, level in enumerate(topology.levels):
        if index == 0 or level.kind == "none":
            continue
        here = alive & (links.level == index)
        source, target = links.source[here] - first, links.target[here] - first
        rate = links.bytes_per_second[here]
        if level.kind == "grid":
            total += max(float(rate[(side[source] == s) & (side[target] != s)].sum()) for s in (0, 1))
            continue
        # Of a star the weaker side limits: what its chips (or its adapters, by the chips they serve) send up.
        if level.name == "cluster":
            total += _cluster_cut(topology, level, side, alive)
            continue
        up = (source >= 0) & (source < topology.chip_count)
        for switch in np.unique(target[up]):
            mine = up & (target == switch)
            total += min(float(rate[mine & (side[np.where(mine, source, 0)] == s)].sum()) for s in (0, 1))
    return total


def _cluster_cut(
    topology: Topology, level: Level, side: Ints, alive: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> float:
    chips = np.arange(topology.chip_count)
    adapter = chips * level.adapters // topology.system.chip_count
    served = np.bincount(adapter, minlength=topology.systems * level.adapters)
    section = [s for s in topology.sections if s.level == len(topology.levels) - 1][1]
    rate = np.where(alive, topology.links.bytes_per_second, 0)[section.first : section.end : 2]
    share = (rate / served)[adapter]
    return min(float(share[side == s].sum()) for s in (0, 1))
