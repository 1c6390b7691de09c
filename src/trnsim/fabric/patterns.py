"""The patterns that algorithms are made of: who sends which chunk to whom at which step, for any number of members.

A pattern is five columns, ``(step, source, target, chunk, reduce)``. Members and chunks are numbered 0 to ``n - 1``; a
reduce-scatter ends with chunk ``i`` complete at member ``i``, an all-gather begins with it there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Columns of equal length."""

    step: Ints
    source: Ints
    target: Ints
    chunk: Ints
    reduce: NDArray[np.bool_]

    @property
    def steps(self) -> int:
        return int(self.step.max()) + 1 if len(self.step) else 0


def _pattern(rows: list[tuple[Ints | int, ...]]) -> Pattern:
    """Of blocks of rows; the columns of a block broadcast against each other."""
    columns: list[list[Ints]] = [[], [], [], [], []]
    for row in rows:
        for column, part in zip(columns, np.broadcast_arrays(*row), strict=True):
            column.append(np.asarray(part, np.int64).reshape(-1))
    joined = [np.concatenate(c) if c else np.zeros(0, np.int64) for c in columns]
    return Pattern(joined[0], joined[1], joined[2], joined[3], joined[4].astype(bool))


def ring(n: int, *, gather: bool) -> Pattern:
    """``n - 1`` steps; each member sends one chunk to the next.

    Reduce-scatter: member ``i`` sends chunk ``i - 1`` first, then what it received last with its own added.
    """
    k, i = np.arange(n - 1)[:, None], np.arange(n)[None, :]
    chunk = (i - k) % n if gather else (i - 1 - k) % n
    return _pattern([(k, i, (i + 1) % n, chunk, 0 if gather else 1)])


def mesh(n: int, *, gather: bool) -> Pattern:
    """One step: each member sends to each other directly."""
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    i, j = i[i != j], j[i != j]
    return _pattern([(0, i, j, i if gather else j, 0 if gather else 1)])


def recursive(n: int, *, gather: bool) -> Pattern:
    """Recursive halving (reduce-scatter) or doubling (all-gather).

    The exchange is among the largest power of two of members. Of the first ``2 (n - p)`` members each second one hands
    its part to the one before it first, and gets its result last.
    """
    p = 1 << (n.bit_length() - 1)
    extra = n - p
    active = np.where(np.arange(p) < extra, 2 * np.arange(p), np.arange(p) + extra)
    low = np.append(active, n)  # active member a stands for chunks low[a] to low[a + 1] - 1
    heads, tails = 2 * np.arange(extra), 2 * np.arange(extra) + 1
    everything = np.arange(n)[None, :]
    rows: list[tuple[Ints | int, ...]] = []
    step = 0
    if extra:
        rows.append((0, tails, heads, tails, 0) if gather else (0, tails[:, None], heads[:, None], everything, 1))
        step = 1
    halves = [1 << e for e in range(p.bit_length() - 1)]
    for d in halves if gather else reversed(halves):
        a = np.arange(p)
        partner = a ^ d
        # Doubling sends the block of d members around a; halving the block of d around its partner.
        first = (a if gather else partner) // d * d
        begin, end = low[first], low[first + d]
        count = end - begin
        member = np.repeat(a, count)
        chunk = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(begin, count)
        rows.append((step, active[member], active[member ^ d], chunk, 0 if gather else 1))
        step += 1
    if extra:
        if gather:
            h, c = (x.reshape(-1) for x in np.meshgrid(np.arange(extra), np.arange(n), indexing="ij"))
            keep = c != tails[h]
            rows.append((step, heads[h[keep]], tails[h[keep]], c[keep], 0))
        else:
            rows.append((step, heads, tails, tails, 0))
    return _pattern(rows)


def kangaring(n: int, *, gather: bool, team: int = 2, role: int = 0) -> Pattern:
    """A ring of teams: one leader of each ``team`` neighbours moves and reduces the data of all of them.

    ``role`` is the place of the leaders in their teams. ``n`` is a multiple of ``team``.
    """
    teams = n // team
    i = np.arange(teams)
    leader = i * team + role
    others = np.array([m for m in range(team) if m != role], np.int64)
    part = np.arange(team)
    rows: list[tuple[Ints | int, ...]] = []
    k = np.arange(max(teams - 1, 0))
    aid = (i[:, None] * team + others).reshape(-1)  # the others, and the leader of each
    head = np.repeat(leader, len(others))
    if gather:
        rows.append((0, aid, head, aid, 0))
        block = ((i[None, :] - k[:, None]) % teams)[:, :, None] * team + part
        rows.append((1 + k[:, None, None], leader[None, :, None], leader[(i + 1) % teams][None, :, None], block, 0))
        step, member = (x.reshape(-1) for x in np.meshgrid(np.arange(teams), np.arange(len(aid)), indexing="ij"))
        block = ((aid[member] // team - step) % teams)[:, None] * team + part
        foreign = (block != aid[member][:, None]).reshape(-1)
        wide = np.repeat(member, team)[foreign]
        rows.append((1 + np.repeat(step, team)[foreign], head[wide], aid[wide], block.reshape(-1)[foreign], 0))
        return _pattern(rows)
    rows.append((0, aid[:, None], head[:, None], ((aid // team - 1) % teams)[:, None] * team + part, 1))
    block = ((i[None, :] - 1 - k[:, None]) % teams)[:, :, None] * team + part
    rows.append((1 + k[:, None, None], leader[None, :, None], leader[(i + 1) % teams][None, :, None], block, 1))
    block = ((aid[None, :] // team - 2 - k[:, None]) % teams)[:, :, None] * team + part
    rows.append((1 + k[:, None, None], aid[None, :, None], head[None, :, None], block, 1))
    rows.append((teams, head, aid, aid, 0))
    return _pattern(rows)


def binary_trees(n: int) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
    """Parent (-1: root) and depth of each member in two binary trees; who has children in one has none in the other.

    As NCCL builds them: the parent of a member flips its lowest set bit and sets the next; the second tree is the first
    one mirrored (even ``n``) or moved on by one.
    """
    i = np.arange(n)
    bit = i & -i
    up = (i ^ bit) | (bit << 1)
    parent = np.where(up >= n, i ^ bit, up)
    parent[0] = -1
    depth, at = np.zeros(n, np.int64), i.copy()
    while (at > 0).any():
        depth += at > 0
        at = np.where(at > 0, parent[at], at)
    if n % 2 == 0:
        mirrored = np.where(parent < 0, -1, n - 1 - parent)[::-1]
        return (parent, depth), (mirrored, depth[::-1])
    moved = np.roll(np.where(parent < 0, -1, (parent + 1) % n), 1)
    return (parent, depth), (moved, np.roll(depth, 1))


def tree(n: int, pieces: int) -> Pattern:
    """All-reduce in two binary trees: up with the sum, down with the result, in ``pieces`` that follow each other.

    Chunks 0 to ``pieces - 1`` go through the first tree, the rest through the second.
    """
    rows: list[tuple[Ints | int, ...]] = []
    piece = np.arange(pieces)[:, None]
    for number, (parent, depth) in enumerate(binary_trees(n)):
        member = np.flatnonzero(parent >= 0)[None, :]
        deepest = int(depth.max())
        up, level = parent[member], depth[member]
        chunk = piece + number * pieces
        rows.append((deepest - level + piece, member, up, chunk, 1))
        rows.append((deepest + level - 1 + piece, up, member, chunk, 0))
    return _pattern(rows)


def binomial(n: int, root: int) -> Pattern:
    """Broadcast: at each step all who have the data send it on to as many again."""
    rows: list[tuple[Ints | int, ...]] = []
    have, step = 1, 0
    while have < n:
        to = np.arange(have, min(2 * have, n))
        rows.append((step, (to - have + root) % n, (to + root) % n, 0, 0))
        have, step = 2 * have, step + 1
    return _pattern(rows)


def chain(n: int, root: int, pieces: int) -> Pattern:
    """Broadcast from each to the next, in ``pieces`` that follow each other."""
    piece, i = np.arange(pieces)[:, None], np.arange(n - 1)[None, :]
    return _pattern([(i + piece, (i + root) % n, (i + 1 + root) % n, piece, 0)])
