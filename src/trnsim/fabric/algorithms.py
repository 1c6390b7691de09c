"""Schedules of collectives by algorithm: ring, KangaRing, mesh, recursive halving and doubling, trees, hierarchical.

Documented for Neuron in the pages on collectives within and between nodes (neuron-runtime/explore): an all-reduce is a
reduce-scatter and an all-gather; ring in ``n - 1`` steps each; KangaRing a ring of pairs; mesh in one step each, or one
in all (``single_step_mesh``: everyone sends its whole buffer to all); RDH; hierarchical: reduce-scatter inside,
all-reduce between, all-gather inside. NCCL's tree is a double binary tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError

from . import patterns
from .patterns import Pattern
from .schedule import COLLECTIVES, Ints, Schedule, build, split, whole_elements

Halves = Callable[..., Pattern]
_HALVES: dict[str, Halves] = {
    "ring": patterns.ring,
    "kangaring": patterns.kangaring,
    "mesh": patterns.mesh,
    "rdh": patterns.recursive,
}
_NAMES: dict[str, tuple[str, ...]] = {
    "all_reduce": (*_HALVES, "single_step_mesh", "tree", "hierarchical"),
    "all_gather": (*_HALVES, "hierarchical"),
    "reduce_scatter": (*_HALVES, "hierarchical"),
    "all_to_all": ("mesh", "ring", "hierarchical"),
    "broadcast": ("mesh", "ring", "tree"),
    "permute": ("mesh",),
}


def algorithms(collective: str) -> tuple[str, ...]:
    """The algorithms of a collective.

    Raises:
        InputError: no such collective.
    """
    if collective not in _NAMES:
        raise InputError(f"no such collective: {collective!r}", value=collective, limit=", ".join(COLLECTIVES))
    return _NAMES[collective]


def schedule(
    collective: str,
    algorithm: str,
    ranks: int,
    nbytes: int,
    *,
    itemsize: int = 1,
    orders: Sequence[Sequence[int]] | NDArray[np.int64] | None = None,
    inner: int | None = None,
    inner_algorithm: str = "ring",
    outer_algorithm: str = "ring",
    outer_orders: Sequence[Sequence[int]] | NDArray[np.int64] | None = None,
    counts: Sequence[int] | Sequence[Sequence[int]] | NDArray[np.int64] | None = None,
    root: int = 0,
    pairs: Sequence[tuple[int, int]] | None = None,
    pieces: int = 8,
) -> Schedule:
    """The schedule of a collective.

    Args:
        collective: one of ``COLLECTIVES``.
        algorithm: one of ``algorithms(collective)``.
        ranks: of the group; any number.
        nbytes: its size, counted as ``schedule.py`` says; any number of whole elements.
        itemsize: bytes of an element.
        orders: for ring, KangaRing, mesh and RDH of reductions and gathers: the ranks in the order of the pattern, one
            list a channel; channels share the data evenly and run at the same time.
        inner: hierarchical: how many consecutive ranks are inside one server (or chip).
        inner_algorithm: hierarchical: the algorithm within, ``outer_algorithm`` the one between.
        outer_orders: hierarchical: for each place within, the order in which the pattern between takes the servers.
        counts: bytes of each rank's share (all_gather, reduce_scatter), or from each to each (all_to_all); default:
            even.
        root: broadcast: the rank that has the data.
        pairs: permute: (source, target), no rank twice on one side. One pair is a point-to-point transfer.
        pieces: trees and broadcast rings: into how many pieces that follow each other the data is cut.

    Raises:
        InputError: no such collective or algorithm, or one of these arguments is wrong.
    """
    if algorithm not in algorithms(collective):
        raise InputError(f"{collective} has no algorithm {algorithm!r}", operand="algorithm", value=algorithm,
                         limit=", ".join(algorithms(collective)))  # fmt: skip
    if not isinstance(ranks, int) or ranks < 1:
        raise InputError("a collective has at least one rank", operand="ranks", value=ranks, limit=1)
    if pieces < 1:
        raise InputError("data is cut into at least one piece", operand="pieces", value=pieces, limit=1)
    if not 0 <= root < ranks:
        raise InputError("the root is not in the group", operand="root", value=root, limit=f"0 to {ranks - 1}")
    elements = whole_elements(nbytes, itemsize, f"{collective} of {nbytes} bytes")
    common = {
        "collective": collective, "algorithm": algorithm, "ranks": ranks, "nbytes": nbytes, "itemsize": itemsize,
    }  # fmt: skip
    if collective == "all_to_all":
        return _all_to_all(algorithm, ranks, nbytes, itemsize, counts, inner, common)
    if collective == "permute":
        return _permute(ranks, nbytes, pairs, common)
    if collective == "broadcast":
        return _broadcast(algorithm, ranks, elements, itemsize, root, pieces, common)
    if collective == "all_reduce" and algorithm in ("tree", "single_step_mesh"):
        return _whole_reduce(algorithm, ranks, elements, itemsize, pieces, common)
    shares = _shares(collective, ranks, elements, itemsize, counts)
    if algorithm == "hierarchical":
        stages, ids = _hierarchical(collective, ranks, inner, inner_algorithm, outer_algorithm, outer_orders), 1
    else:
        order = _orders(orders, ranks, algorithm)
        ids = len(order)
        chunk = (order * ids + np.arange(ids)[:, None])[:, :, None]
        stages = [(p, order, chunk) for p in _halves(collective, algorithm, ranks)]
        if algorithm == "kangaring" and orders is None and ranks > 1:
            # Leaders and aides change roles in the second channel, as documented.
            order, ids = np.tile(order, (2, 1)), 2
            chunk = (order * 2 + np.arange(2)[:, None])[:, :, None]
            stages = [
                (p, order[role : role + 1], chunk[role : role + 1])
                for role in (0, 1)
                for p in _halves(collective, algorithm, ranks, role=role)
            ]
    offsets, sizes = _channels(shares, ids, itemsize)
    return build(
        _expand(stages, offsets, sizes, parallel=algorithm == "kangaring" and ids == 2 and orders is None),
        buffer_bytes=int(shares[1].sum()),
        shares=None if collective == "all_reduce" else shares,
        **common,  # type: ignore[arg-type]
    )


def _halves(collective: str, algorithm: str, n: int, **options: int) -> list[Pattern]:
    """The patterns, one after the other."""
    make = _HALVES[algorithm]
    if algorithm == "kangaring" and n > 1 and n % 2:
        raise InputError("KangaRing pairs its ranks: their number must be even", operand="ranks", value=n)
    if n == 1:
        return []
    found = []
    if collective in ("all_reduce", "reduce_scatter"):
        found.append(make(n, gather=False, **options))
    if collective in ("all_reduce", "all_gather"):
        found.append(make(n, gather=True, **options))
    return found


def _shares(collective: str, ranks: int, elements: int, itemsize: int, counts: object) -> tuple[Ints, Ints]:
    if counts is None:
        return split(elements, ranks, itemsize)
    sizes = np.asarray(counts, np.int64)
    if collective == "all_reduce":
        raise InputError("an all_reduce has no counts", operand="counts")
    if sizes.shape != (ranks,) or (sizes < 0).any() or (sizes % itemsize).any():
        raise InputError(f"counts needs a number of bytes for each of {ranks} ranks, in whole elements",
                         operand="counts", value=sizes.shape)  # fmt: skip
    if sizes.sum() != elements * itemsize:
        raise InputError("counts do not add up to the size", operand="counts", value=int(sizes.sum()),
                         limit=elements * itemsize)  # fmt: skip
    return np.cumsum(sizes) - sizes, sizes


def _orders(orders: object, ranks: int, algorithm: str) -> Ints:
    found = np.arange(ranks)[None, :] if orders is None else np.atleast_2d(np.asarray(orders, np.int64))
    if found.shape[1:] != (ranks,) or (np.sort(found, axis=1) != np.arange(ranks)).any():
        raise InputError(f"each order of {algorithm} names all {ranks} ranks once", operand="orders")
    return found


def _channels(shares: tuple[Ints, Ints], channels: int, itemsize: int) -> tuple[Ints, Ints]:
    """Offset and size of part ``share * channels + channel``."""
    offsets, sizes = shares
    elements = sizes // itemsize
    part = elements[:, None] // channels + (np.arange(channels) < (elements % channels)[:, None])
    begin = np.cumsum(part, axis=1) - part
    return (offsets[:, None] + begin * itemsize).reshape(-1), (part * itemsize).reshape(-1)


Stage = tuple[Pattern, Ints, Ints]
"""A pattern, its members ``(groups, n)`` and the parts each of its chunks stands for, ``(groups, n, parts)``."""


def _expand(stages: Sequence[Stage], offsets: Ints, sizes: Ints, *, parallel: bool = False) -> tuple[Ints, ...]:
    """Rows of stages that follow each other; ``parallel``: two runs of them at the same time."""
    columns: list[list[Ints]] = [[], [], [], [], []]
    begin = 0
    for i, (pattern, members, parts) in enumerate(stages):
        if parallel and i == len(stages) // 2:
            begin = 0
        part = parts[:, pattern.chunk, :]
        wide = [
            np.broadcast_to(x, part.shape).reshape(-1)
            for x in (
                (pattern.step + begin)[None, :, None],
                members[:, pattern.source][:, :, None],
                members[:, pattern.target][:, :, None],
                pattern.reduce[None, :, None],
            )
        ]
        for column, values in zip(columns, (*wide, part.reshape(-1)), strict=True):
            column.append(np.asarray(values, np.int64))
        begin += pattern.steps
    step, source, target, reduce, chunk = (np.concatenate(c) if c else np.zeros(0, np.int64) for c in columns)
    return step, source, target, offsets[chunk], offsets[chunk], sizes[chunk], reduce


def _inner(ranks: int, inner: int | None) -> tuple[int, int]:
    if inner is None or inner < 1 or ranks % inner:
        raise InputError(f"a hierarchical collective needs the ranks of one server, a divisor of {ranks}",
                         operand="inner", value=inner)  # fmt: skip
    return inner, ranks // inner


def _hierarchical(
    collective: str, ranks: int, inner: int | None, within: str, between: str, outer_orders: object
) -> list[Stage]:
    for name in (within, between):
        if name not in _HALVES:
            raise InputError(f"a hierarchical {collective} is not made of {name!r}", value=name,
                             limit=", ".join(_HALVES))  # fmt: skip
    i, o = _inner(ranks, inner)
    grid = np.arange(ranks).reshape(o, i)
    # Inside, chunk c of a server stands for the shares of the ranks at place c of all servers.
    inside_parts = np.broadcast_to(grid.T[None, :, :], (o, i, o))
    columns = grid.T if outer_orders is None else np.take_along_axis(grid.T, outer_order_table(outer_orders, i, o), 1)
    between_parts = columns[:, :, None]
    scatter: list[Stage] = [(p, grid, inside_parts) for p in _halves("reduce_scatter", within, i)]
    scatter += [(p, columns, between_parts) for p in _halves("reduce_scatter", between, o)]
    gather: list[Stage] = [(p, columns, between_parts) for p in _halves("all_gather", between, o)]
    gather += [(p, grid, inside_parts) for p in _halves("all_gather", within, i)]
    return {"reduce_scatter": scatter, "all_gather": gather, "all_reduce": scatter + gather}[collective]


def outer_order_table(orders: object, inner: int, outer: int) -> Ints:
    """Orders of the servers, one for each place within.

    Raises:
        InputError: not ``inner`` orders of all ``outer`` servers.
    """
    found = np.atleast_2d(np.asarray(orders, np.int64))
    if found.shape != (inner, outer) or (np.sort(found, axis=1) != np.arange(outer)).any():
        raise InputError(f"a hierarchical collective needs {inner} orders that name all {outer} servers once",
                         operand="outer_orders", value=found.shape)  # fmt: skip
    return found


def _whole_reduce(
    algorithm: str, ranks: int, elements: int, itemsize: int, pieces: int, common: dict[str, object]
) -> Schedule:
    if algorithm == "single_step_mesh":
        pattern = patterns.mesh(ranks, gather=True)
        offsets, sizes = np.zeros(ranks, np.int64), np.full(ranks, elements * itemsize, np.int64)
        reduce = np.ones(len(pattern.step), bool)
    else:
        pattern = patterns.tree(ranks, pieces) if ranks > 1 else patterns.chain(1, 0, 1)
        offsets, sizes = split(elements, 2 * pieces, itemsize)
        reduce = pattern.reduce
    at = offsets[pattern.chunk]
    rows = (pattern.step, pattern.source, pattern.target, at, at, sizes[pattern.chunk], reduce)
    return build(rows, buffer_bytes=elements * itemsize, **common)  # type: ignore[arg-type]


def _broadcast(
    algorithm: str, ranks: int, elements: int, itemsize: int, root: int, pieces: int, common: dict[str, object]
) -> Schedule:
    if algorithm == "ring":
        pattern = patterns.chain(ranks, root, pieces)
        offsets, sizes = split(elements, pieces, itemsize)
    else:
        pattern = patterns.binomial(ranks, root)
        if algorithm == "mesh":
            to = np.flatnonzero(np.arange(ranks) != root)
            zero = np.zeros(len(to), np.int64)
            pattern = Pattern(zero, zero + root, to, zero, zero.astype(bool))
        offsets, sizes = split(elements, 1, itemsize)
    at = offsets[pattern.chunk]
    rows = (pattern.step, pattern.source, pattern.target, at, at, sizes[pattern.chunk], pattern.reduce)
    return build(rows, buffer_bytes=elements * itemsize, root=root, **common)  # type: ignore[arg-type]


def _permute(ranks: int, nbytes: int, pairs: Sequence[tuple[int, int]] | None, common: dict[str, object]) -> Schedule:
    if not pairs:
        raise InputError("a permute needs pairs of source and target", operand="pairs", value=pairs)
    table = np.asarray([(int(s), int(t)) for s, t in pairs], np.int64)
    if table.min() < 0 or table.max() >= ranks:
        raise InputError("a pair names a rank outside the group", operand="pairs", value=list(pairs),
                         limit=f"0 to {ranks - 1}")  # fmt: skip
    for side, column in (("source", table[:, 0]), ("target", table[:, 1])):
        if len(np.unique(column)) != len(column):
            raise InputError(f"a rank is {side} twice", operand="pairs", value=list(pairs))
    zero = np.zeros(len(table), np.int64)
    rows = (zero, table[:, 0], table[:, 1], zero, zero + nbytes, zero + nbytes, zero)
    named = tuple((int(s), int(t)) for s, t in table)
    return build(rows, buffer_bytes=2 * nbytes, pairs=named, **common)  # type: ignore[arg-type]


def _all_to_all(
    algorithm: str, ranks: int, nbytes: int, itemsize: int, counts: object, inner: int | None, common: dict[str, object]
) -> Schedule:
    if counts is None:
        table = np.broadcast_to(split(nbytes // itemsize, ranks, itemsize)[1], (ranks, ranks))
    else:
        table = np.asarray(counts, np.int64)
        if table.shape != (ranks, ranks) or (table < 0).any() or (table % itemsize).any():
            raise InputError(f"counts needs {ranks} by {ranks} numbers of bytes, in whole elements", operand="counts",
                             value=table.shape)  # fmt: skip
        if int(table.sum(axis=1).max()) != nbytes:
            raise InputError("the size of an all_to_all is what its busiest rank sends", operand="counts",
                             value=int(table.sum(axis=1).max()), limit=nbytes)  # fmt: skip
    sent, received = int(table.sum(axis=1).max()), int(table.sum(axis=0).max())
    at = np.cumsum(table, axis=1) - table
    to = sent + np.cumsum(table, axis=0) - table
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(ranks), np.arange(ranks), indexing="ij"))
    zero = np.zeros(len(i), np.int64)
    passed = 0
    if algorithm == "hierarchical":
        inside, servers = _inner(ranks, inner)
        # What (o, i) sends to (p, j) goes to (o, j) first, where it waits sorted by p, then i.
        four = table.reshape(servers, inside, servers, inside).transpose(0, 3, 2, 1).reshape(ranks, -1)
        passed = int(four.sum(axis=1).max())
        wait = (np.cumsum(four, axis=1) - four).reshape(servers, inside, servers, inside)
        o, r, p, c = i // inside, i % inside, j // inside, j % inside
        via, place = o * inside + c, sent + received + wait[o, c, p, r]
        size = table[i, j]
        columns = ((zero, i, via, at[i, j], place, size, zero), (zero + 1, via, j, place, to[i, j], size, zero))
        rows = tuple(np.concatenate(pair) for pair in zip(*columns, strict=True))
    else:
        step = (j - i) % ranks if algorithm == "ring" else zero
        rows = (step, i, j, at[i, j], to[i, j], table[i, j], zero)
    return build(rows, buffer_bytes=sent + received + passed, counts=table, **common)  # type: ignore[arg-type]
