"""In which order a ring visits the ranks of a group, one order a channel.

A 4x4 torus has two Hamiltonian cycles that share no link (the documentation of KangaRing says so of trn2; Bae and Bose,
2003, give them for every square torus); both ways round they are four rings that use all its links. Through several
servers a channel visits each server whole; channels begin at different chips, so that each enters and leaves by
another adapter.
"""

from __future__ import annotations

import numpy as np

from .group import Group
from .topology import Ints


def ring_orders(group: Group) -> Ints:
    """Orders of the members of ``group``, shape ``(channels, size)``, for ``schedule(..., orders=...)``.

    A group that does not fill its servers, or on a chain, has one channel in the order of its members.
    """
    spread, topology = group.spread, group.topology
    server = topology.level("server")
    plain = np.arange(group.size)[None, :]
    if spread is None or server is None or spread.chips != server.members or spread.chips == 1:
        return plain
    ordered = np.argsort(group.places, kind="stable").reshape(-1, spread.chips, spread.ranks)
    if server.kind == "grid" and len(server.shape) == 2 and len(set(server.shape)) == 1 and server.shape[0] > 2:
        cycles = _two_cycles(server.shape[0])
        chips = np.concatenate([cycles, cycles[:, ::-1]])
    elif server.kind == "grid":
        if not server.wraps or len(server.shape) > 1:
            return plain
        onward = np.arange(spread.chips)[None, :]
        chips = np.concatenate([onward, onward[:, ::-1]])
    else:
        chips = np.arange(spread.chips)[None, :]
    servers = len(ordered)
    if servers == 1:
        return _walk(ordered, np.broadcast_to(chips[:, None, :], (len(chips), 1, spread.chips)))
    rows = [np.roll(chips[c], -int(np.flatnonzero(chips[c] == k)[0])) for k, c in enumerate(_entries(chips))]
    return _walk(ordered, np.broadcast_to(np.stack(rows)[:, None, :], (len(rows), servers, spread.chips)))


def _entries(cycles: Ints) -> list[int]:
    """The cycle of the channel that enters a server at each chip, as many on each cycle.

    A channel leaves by the chip before the one it enters at: no two may leave by the same.
    """
    count = cycles.shape[1]
    before = np.empty_like(cycles)
    for row, cycle in zip(before, cycles, strict=True):
        row[cycle] = np.roll(cycle, 1)
    room = -(-count // len(cycles))
    found: list[int] = []
    used = [0] * len(cycles)
    left: set[int] = set()

    def place(chip: int) -> bool:
        if chip == count:
            return True
        for c in sorted(range(len(cycles)), key=lambda c: used[c]):
            out = int(before[c, chip])
            if used[c] < room and out not in left:
                found.append(c)
                used[c] += 1
                left.add(out)
                if place(chip + 1):
                    return True
                found.pop()
                used[c] -= 1
                left.remove(out)
        return False

    return found if place(0) else [0] * count


def hypercube_orders(group: Group) -> Ints | None:
    """For each place within a chip, an order of the group's chips whose numbers differ by one bit between neighbours.

    A ring of four chips is a square, a 4x4 torus a hypercube of four axes, each of which is a link of its own (the
    documentation of recursive halving and doubling). The places of a chip begin with different axes, so that they use
    different links at the same time. None: the chips are not whole rings of two or four.
    """
    spread, topology = group.spread, group.topology
    if spread is None or spread.systems > 1 or spread.ranks < 2:
        return None
    grids = [i for i, level in enumerate(topology.levels) if level.kind == "grid"]
    sizes = [n for i in grids for n in topology.levels[i].shape]
    chips = group.places[:: spread.ranks] // topology.ranks_per_chip
    whole = len(chips) == topology.chip_count and all(topology.levels[i].wraps for i in grids)
    if not whole or not sizes or any(n not in (2, 4) for n in sizes):
        return None
    at = np.stack([c for i in grids for c in topology.coordinates(i, chips)])
    bits = []
    for n, where in zip(sizes, at, strict=True):
        code = where ^ (where >> 1)  # of neighbours on a ring of four, one bit differs
        bits += [code >> b & 1 for b in range(n.bit_length() - 1)]
    axes = len(bits)
    rows = []
    for place in range(spread.ranks):
        label = sum(bits[(j + place * max(axes // spread.ranks, 1)) % axes] << j for j in range(axes))
        rows.append(np.argsort(label))
    return np.stack(rows)


def _walk(ordered: Ints, chips: Ints) -> Ints:
    """Members in the order of the chips of each server: ``chips`` has shape (channels, servers, chips)."""
    servers = np.arange(len(ordered))[None, :, None]
    return np.asarray(ordered[servers, chips].reshape(len(chips), -1), np.int64)


def _two_cycles(n: int) -> Ints:
    """Two Hamiltonian cycles of an ``n`` by ``n`` torus that share no link; chip ``(x, y)`` has number ``n x + y``."""
    high, low = np.divmod(np.arange(n * n), n)
    across = (low - high) % n
    return np.stack([high * n + across, across * n + high])
