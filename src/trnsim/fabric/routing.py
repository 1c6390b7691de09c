"""Routes between ranks: which links a transfer crosses.

In a grid a transfer goes dimension by dimension, the shorter way round; half of the pairs that are as far both ways go
each way (by the parity of the source), so that symmetric traffic loads all links alike. A pair that meets at a star
goes up and down. With failed links or chips the routes are the shortest that remain (fewest links, then the lowest
numbers) on the levels up to the one where the pair meets; only if there is none on wider ones; else an error names what
cannot be reached.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError

from .topology import Ints, Topology


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Routes of many pairs: ``links`` has one row a pair, padded with -1; ``level`` is the widest level each crosses.

    A pair of a rank with itself has no links and level 0.
    """

    links: Ints
    level: Ints

    @property
    def hops(self) -> Ints:
        """Links between chips, switches and adapters that each crosses."""
        return np.asarray((self.links >= 0).sum(axis=1), np.int64)


def routes(topology: Topology, a: Ints | int, b: Ints | int) -> Routes:
    """The routes from ranks ``a`` to ranks ``b`` (numbers of logical cores).

    Raises:
        InputError: no such rank, or a failed chip or link leaves no way.
    """
    a, b = (np.atleast_1d(np.asarray(x, np.int64)) for x in (a, b))
    a, b = np.broadcast_arrays(a, b)
    for ends in (a, b):
        if len(ends) and (ends.min() < 0 or ends.max() >= topology.rank_count):
            wrong = int(ends.max()) if ends.max() >= topology.rank_count else int(ends.min())
            raise InputError(f"{topology.name} has no such rank", value=wrong, limit=f"0 to {topology.rank_count - 1}")
    if topology.failed_chips or topology.failed_links:
        return _around(topology, a, b)
    return _direct(topology, a, b)


# Routes that were asked for, by what decides them.
_KNOWN: dict[tuple[object, ...], Routes] = {}
_MOST = 4096


def known_routes(topology: Topology, a: Ints, b: Ints) -> Routes:
    """As ``routes``, remembered: plans ask for the same pairs at many sizes. Not to be changed.

    Raises:
        InputError: as ``routes``.
    """
    if topology.failed_chips or topology.failed_links:
        return routes(topology, a, b)
    key = (topology.levels, topology.chip_count, a.tobytes(), b.tobytes())
    found = _KNOWN.get(key)
    if found is None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        found = _KNOWN[key] = routes(topology, a, b)
    return found


def meeting_level(topology: Topology, a: Ints, b: Ints) -> Ints:
    """Index of the level at which the pairs meet: the nearest container of both that has links (0: the same chip)."""
    found = np.zeros(len(a), np.int64)
    for index in range(1, len(topology.levels)):
        apart = a // topology.size(index - 1) != b // topology.size(index - 1)
        found[apart] = index
    for index, level in enumerate(topology.levels[:-1]):
        if level.kind == "none" and index:
            found[found == index] = index + 1
    return found


def _direct(topology: Topology, a: Ints, b: Ints) -> Routes:
    level = meeting_level(topology, a, b)
    per = topology.ranks_per_chip
    source, target = a // per, b // per
    columns: list[Ints] = []
    last: list[Ints] = []
    moved = a != b
    by_level: dict[int, list[int]] = {}
    for i, section in enumerate(topology.sections):
        by_level.setdefault(section.level, []).append(i)
    for index, numbers in by_level.items():
        section = topology.sections[numbers[0]]
        one = topology.levels[index]
        if one.name == "chip":
            columns.append(_where(moved, section.first + 2 * a))
            last.append(_where(moved, section.first + 2 * b + 1))
        elif one.kind == "grid":
            columns += _grid(
                topology, index, section.first, source, target, (level >= index) & ~_by_star(topology, level)
            )
        elif one.name == "cluster":
            out = level == index
            adapters = topology.sections[numbers[1]].first
            mine = [c * one.adapters // topology.system.chip_count for c in (source, target)]
            columns += [
                _where(out, section.first + 2 * source),
                _where(out, adapters + 2 * mine[0]),
                _where(out, adapters + 2 * mine[1] + 1),
                _where(out, section.first + 2 * target + 1),
            ]
        else:
            here = level == index
            columns += [_where(here, section.first + 2 * source), _where(here, section.first + 2 * target + 1)]
    columns += last
    if not columns:
        return Routes(links=np.full((len(a), 0), -1, np.int64), level=level)
    return Routes(links=np.stack(columns, axis=1), level=level)


def _by_star(topology: Topology, level: Ints) -> NDArray[np.bool_]:
    """Whether the pairs meet at a star above the chips: they then cross no grid."""
    stars = [i for i, one in enumerate(topology.levels) if i and one.kind == "star"]
    return np.isin(level, stars)


def _where(condition: NDArray[np.bool_], links: Ints) -> Ints:
    return np.where(condition, links, -1)


def _grid(
    topology: Topology, index: int, first: int, source: Ints, target: Ints, here: NDArray[np.bool_]
) -> list[Ints]:
    """The links of a grid level, at most half of each dimension in a row.

    Dimension order over all grid levels: the position in the server is reached before the server.
    """
    level = topology.levels[index]
    stride = 2 * len(level.shape)
    below = topology.size(index - 1) // topology.ranks_per_chip
    block = below * level.members
    # Levels below have brought the transfer to its position there; levels above come after.
    at = source - source % below + target % below
    columns: list[Ints] = []
    goals = topology.coordinates(index, target)
    parity = np.zeros(len(source), np.int64)
    for one in topology.coordinates(index, source):
        parity += one
    parity += source // block
    for dimension, n in enumerate(level.shape):
        here_at = topology.coordinates(index, at)[dimension]
        ahead = goals[dimension] - here_at
        if level.wraps:
            ahead %= n
            back = ahead > n / 2
            back |= (2 * ahead == n) & (parity % 2 == 1)
            distance = np.where(back, n - ahead, ahead)
        else:
            back, distance = ahead < 0, np.abs(ahead)
        distance = np.where(here, distance, 0)
        for hop in range(n // 2 if level.wraps else n - 1):
            going = distance > hop
            columns.append(_where(going, first + at * stride + 2 * dimension + back))
            onward = np.where(
                back, topology.neighbour(index, at, dimension, -1), topology.neighbour(index, at, dimension, 1)
            )
            at = np.where(going, onward, at)
    return columns


# -- round what failed -------------------------------------------------------------------------------------------------


def _around(topology: Topology, a: Ints, b: Ints) -> Routes:
    direct = _direct(topology, a, b)
    per = topology.ranks_per_chip
    for rank in np.unique(np.concatenate([a, b])):
        if int(rank) // per in topology.failed_chips:
            raise InputError(f"{topology.name}: rank {rank} cannot be reached: chip {int(rank) // per} has failed",
                             value=int(rank))  # fmt: skip
    dead = dead_links(topology)
    hit = dead[direct.links].astype(bool) & (direct.links >= 0)
    rows = [[int(link) for link in links[links >= 0]] for links in direct.links]
    for row in np.flatnonzero(hit.any(axis=1)):
        rows[row] = _detour(topology, int(a[row]), int(b[row]))
    width = max((len(row) for row in rows), default=0)
    links = np.full((len(rows), width), -1, np.int64)
    for i, found in enumerate(rows):
        links[i, : len(found)] = found
    crossed = np.where(links >= 0, topology.links.level[links].astype(np.int64), 0)
    level = crossed.max(axis=1, initial=0) if width else direct.level
    return Routes(links=links, level=np.maximum(level, direct.level))


@lru_cache(maxsize=8)
def dead_links(topology: Topology) -> NDArray[np.bool_]:
    """Which links no route may use: failed ones, and those of failed chips."""
    links = topology.links
    first = topology.first_node("chip")
    gone = np.array(sorted(topology.failed_chips), np.int64) + first
    dead = np.isin(links.source, gone) | np.isin(links.target, gone)
    dead[list(topology.failed_links)] = True
    dead |= links.source == links.target
    return np.asarray(dead)


@lru_cache(maxsize=8)
def _outgoing(topology: Topology) -> tuple[Ints, Ints]:
    """Live links sorted by source node, and where each node's begin."""
    alive = np.flatnonzero(~dead_links(topology))
    order = alive[np.argsort(topology.links.source[alive], kind="stable")]
    starts = np.searchsorted(topology.links.source[order], np.arange(topology.node_count + 1))
    return order, starts


@lru_cache(maxsize=4096)
def _tree(topology: Topology, source: int, top: int) -> tuple[int, ...]:
    """The link by which each node is reached from ``source`` over the fewest links of levels up to ``top``; -1: none.

    A rank's own links lead only to its chip, so no route runs through another rank.
    """
    order, starts = _outgoing(topology)
    target, level = topology.links.target, topology.links.level
    reached = [-1] * topology.node_count
    seen = {source}
    queue = deque([source])
    while queue:
        node = queue.popleft()
        for link in order[starts[node] : starts[node + 1]]:
            to = int(target[link])
            if to not in seen and level[link] <= top:
                seen.add(to)
                reached[to] = int(link)
                queue.append(to)
    return tuple(reached)


def reached_from(topology: Topology, source: int, top: int) -> list[int]:
    """Fewest live links from a node to each other one on levels up to ``top``; -1: no way."""
    reached = _tree(topology, source, top)
    found = [-1] * topology.node_count
    found[source] = 0
    for node in range(topology.node_count):
        path = []
        at = node
        while found[at] < 0 and reached[at] >= 0:
            path.append(at)
            at = int(topology.links.source[reached[at]])
        if found[at] >= 0:
            for step, one in enumerate(reversed(path), start=1):
                found[one] = found[at] + step
    return found


def _detour(topology: Topology, a: int, b: int) -> list[int]:
    kind = "rank" if topology.levels[0].kind == "star" else "chip"
    first = topology.first_node(kind)
    meeting = int(meeting_level(topology, np.array([a]), np.array([b]))[0])
    for top in range(meeting, len(topology.levels)):
        reached = _tree(topology, first + a, top)
        if reached[first + b] >= 0:
            break
    node, found = first + b, []
    while node != first + a:
        link = reached[node]
        if link < 0:
            per = topology.ranks_per_chip
            raise InputError(
                f"{topology.name}: rank {b} (chip {b // per}) cannot be reached from rank {a} (chip {a // per}): "
                "failed links or chips leave no way",
                value=(a, b),
            )
        found.append(link)
        node = int(topology.links.source[link])
    return found[::-1]
