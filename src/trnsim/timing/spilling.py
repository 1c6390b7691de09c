"""Tiles that do not fit in SBUF live in HBM: what an instruction reads of one is loaded before it, what it writes is
stored after it.

That is how allocators by graph colouring spill (Chaitin 1982, Briggs 1994); the vendor's compiler has one, by the logs
that its users publish. A spilled tile holds no bytes of its own. Each instruction that touches it gets a *piece*, a
tile of just the bytes that it touches, in the lowest free bytes under the schedule ``nki``. Pieces that follow each
other get the same bytes, so a load waits until the piece before it is stored. Instructions at most ``NEAR`` apart that
touch the same bytes share a piece, and what nothing reads any more is not stored.

Two published matmuls agree. Version 5 of the how-to matmul moved 339 MB more than its loads and stores: nine of its 64
accumulators, loaded and stored nine times each in every block of columns, are 340 MB. KernelTune's 4/24/1 has 32
accumulators of 48 KiB, of which instructions touch 2 KiB each: 1.1 GB, moved piece after piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.grouping import bucket
from trnsim.timing.placement import SPILLED
from trnsim.timing.tables import READS, UPDATES, WRITES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trnsim.timing.accesses import Accesses
    from trnsim.timing.placement import Placement

    Column = NDArray[np.signedinteger[Any]]

NEAR = 48
"""How many instructions apart two may be that share a piece: as far as the scheduler looks. A profile of bmm_softmax on
trn1 (zhang677/AccelOpt) stored 754 MB and loaded 757 MB of 1.07 GB that are written, read at once, and read again much
later: without sharing it would load them twice."""


SHORT = 512
"""Bytes below which a row of a DMA takes as long as one of this size (nki-dma-bandwidth-guide.rst)."""


@dataclass(frozen=True)
class Pieces:
    """What instructions touch of spilled tiles, in scheduled order of the first that touches each piece.

    ``storage`` of the trace, bytes ``low`` to ``high`` of partitions ``start`` to ``end``, whether a piece is ``read``
    before it is written, and whether what is written is read later from HBM. ``position[begin[p]:begin[p + 1]]`` are
    the positions of the instructions that touch piece ``p``, ``writes`` those of them that write.
    """

    position: Column
    writes: NDArray[np.bool_]
    begin: Column
    storage: Column
    low: Column
    high: Column
    start: Column
    end: Column
    read: NDArray[np.bool_]
    written: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.storage)

    def positions(self, piece: int) -> list[int]:
        """Where instructions touch ``piece``."""
        found: list[int] = self.position[self.begin[piece] : self.begin[piece + 1]].tolist()
        return found


_NONE: NDArray[np.int64] = np.zeros(0, np.int64)
_NEITHER: NDArray[np.bool_] = np.zeros(0, bool)
_FIRST: NDArray[np.int64] = np.zeros(1, np.int64)
NO_PIECES = Pieces(_NONE, _NEITHER, _FIRST, _NONE, _NONE, _NONE, _NONE, _NONE, _NEITHER, _NEITHER)


@dataclass(frozen=True)
class Tiles:
    """The tiles of one memory: of each its storage in the trace, bytes of a partition, and positions that use it."""

    storage: Column
    sizes: Column
    by_storage: Column
    start: Column
    position: Column
    local: Column
    """(position, tile) of each use, sorted by position."""

    def with_pieces(self, spilled: NDArray[np.bool_], pieces: Pieces, compiled: bool) -> Tiles:
        """Without the uses of tiles that are ``spilled``, and with ``pieces`` as further tiles."""
        kept = ~spilled[self.local]
        order = np.argsort(np.concatenate((self.position[kept], pieces.position)), kind="stable")
        position = np.concatenate((self.position[kept], pieces.position)).astype(np.int32)[order]
        numbers = len(self.storage) + np.repeat(np.arange(len(pieces)), np.diff(pieces.begin))
        local = np.concatenate((self.local[kept], numbers)).astype(np.int32)[order]
        grouped, start = bucket(local, len(self.storage) + len(pieces), compiled)
        storage = np.concatenate((self.storage, pieces.storage))
        sizes = np.concatenate((self.sizes, pieces.high - pieces.low))
        return Tiles(storage, sizes, position[grouped], start, position, local)


def spill(
    tiles: Tiles,
    placement: Placement,
    fixed: NDArray[np.bool_],
    accesses: Accesses,
    when: Column,
    room: int,
    place: Callable[[Tiles], Placement],
    compiled: bool,
) -> tuple[Placement, Pieces]:
    """Spill tiles until the others fit; what ``place`` then gives, and the pieces.

    ``placement`` is that of ``tiles``. Those that are ``fixed`` can be loaded again instead. ``when`` is the position
    of each instruction, ``room`` the bytes of a partition.
    """
    overfull = placement.spills[placement.spills[:, 2] == SPILLED]
    if not len(overfull):
        return placement, NO_PIECES
    first, last = tiles.by_storage[tiles.start[:-1]], tiles.by_storage[tiles.start[1:] - 1]
    weight = _moved(accesses, tiles.storage) / (tiles.sizes * (last - first + 1.0))
    spilled = np.zeros(len(tiles.storage), bool)
    pieces, near = NO_PIECES, NEAR
    while True:
        new = False
        while _spill_peaks(first, last, tiles.sizes, weight, fixed, room, spilled, pieces):
            pieces, new = _pieces(tiles, accesses, when, spilled, near), True
        if new:
            placement = place(tiles.with_pieces(spilled, pieces, compiled))
            overfull = placement.spills[placement.spills[:, 2] == SPILLED]
        if not len(overfull):
            return placement, pieces
        until = -1
        for position, victim, _ in overfull.tolist():
            # One makes room as long as it lives.
            if position <= until:
                continue
            there = np.flatnonzero(~spilled & ~fixed & (first < position) & (last > position))
            if not len(there) and victim >= len(spilled):
                near = 0  # what is left are pieces, which then are those of one instruction
                break
            chosen = int(there[np.argmin(weight[there])]) if len(there) else victim
            spilled[chosen] = True
            until = int(last[chosen])
        pieces = _pieces(tiles, accesses, when, spilled, near)
        placement = place(tiles.with_pieces(spilled, pieces, compiled))
        overfull = placement.spills[placement.spills[:, 2] == SPILLED]


def _spill_peaks(
    first: Column,
    last: Column,
    sizes: Column,
    weight: NDArray[np.floating[Any]],
    fixed: NDArray[np.bool_],
    room: int,
    spilled: NDArray[np.bool_],
    pieces: Pieces,
) -> bool:
    """Mark as ``spilled`` what has to be, beside ``pieces`` and even if all that is ``fixed`` were gone: the least
    weight at every peak; whether that was anything.
    """
    any_more = False
    beside = np.zeros(int(last.max(initial=0)) + 2, np.int64)
    if len(pieces):
        np.add.at(beside, pieces.position[pieces.begin[:-1]], pieces.high - pieces.low)
        np.subtract.at(beside, pieces.position[pieces.begin[1:] - 1] + 1, pieces.high - pieces.low)
    while True:
        held = np.flatnonzero(~spilled & ~fixed)
        change = beside + np.bincount(first[held], sizes[held], len(beside)).astype(np.int64)
        change -= np.bincount(last[held] + 1, sizes[held], len(beside)).astype(np.int64)
        live = np.cumsum(change)
        peak = int(np.argmax(live))
        there = held[(first[held] <= peak) & (last[held] >= peak)]
        if live[peak] <= room or not len(there):
            return any_more
        there = there[np.argsort(weight[there], kind="stable")]
        enough = np.searchsorted(np.cumsum(sizes[there]), live[peak] - room) + 1
        spilled[there[:enough]] = True
        any_more = True


def _moved(accesses: Accesses, storage: Column) -> NDArray[np.floating[Any]]:
    """Bytes of a partition that move if a storage is spilled: all that instructions read and write of it, and no less
    for each than keeps a DMA engine busy.
    """
    moved = np.maximum(accesses.high - accesses.low, SHORT) * (1.0 + (accesses.role == UPDATES))
    return np.bincount(accesses.storage, moved, int(storage.max()) + 1)[storage].astype(np.float64)


def _pieces(tiles: Tiles, accesses: Accesses, when: Column, spilled: NDArray[np.bool_], near: int) -> Pieces:
    wanted = np.zeros(max(int(tiles.storage.max()), int(accesses.storage.max())) + 1, bool)
    wanted[tiles.storage[spilled]] = True
    rows = np.flatnonzero(wanted[accesses.storage])
    position, storage = when[accesses.instruction[rows]], accesses.storage[rows].astype(np.int64)
    order = np.lexsort((storage, position))
    rows, position, storage = rows[order], position[order], storage[order]
    begins = np.ones(len(rows), bool)
    begins[1:] = (position[1:] != position[:-1]) | (storage[1:] != storage[:-1])
    first = np.flatnonzero(begins)
    role = accesses.role[rows]
    position, storage = position[first], storage[first]
    low, start = (np.minimum.reduceat(c[rows], first).astype(np.int64) for c in (accesses.low, accesses.start))
    high, end = (np.maximum.reduceat(c[rows], first).astype(np.int64) for c in (accesses.high, accesses.end))
    # What is written with gaps is read first, for its bytes are stored as one.
    read = np.logical_or.reduceat((role != WRITES) | (accesses.step[rows] != 0), first)
    written = np.logical_or.reduceat(role != READS, first)
    return _shared(position, storage, low, high, start, end, read, written, near)


def _shared(
    position: Column,
    storage: Column,
    low: Column,
    high: Column,
    start: Column,
    end: Column,
    read: NDArray[np.bool_],
    written: NDArray[np.bool_],
    near: int,
) -> Pieces:
    """Pieces of rows, one an instruction and tile: those of the same bytes that follow each other closely are one."""
    order = np.lexsort((position, storage))
    position, storage, low, high, start, end = (c[order] for c in (position, storage, low, high, start, end))
    read, written = read[order], written[order]
    new = np.ones(len(order), bool)
    same = storage[1:] == storage[:-1]
    for column in (low, high, start, end):
        same &= column[1:] == column[:-1]
    new[1:] = ~same | (position[1:] - position[:-1] > near)
    first = np.flatnonzero(new)
    stored = np.logical_or.reduceat(written, first)
    storage, low, high, start, end = (c[first] for c in (storage, low, high, start, end))
    stored &= _read_later(storage, low, high, read[first])
    # In the order in which they are touched first.
    by_position = np.argsort(position[first], kind="stable")
    length = np.diff(np.append(first, len(order)))[by_position]
    begin: Column = np.concatenate((_FIRST, np.cumsum(length)))
    members = np.repeat(first[by_position] - begin[:-1], length) + np.arange(len(order))
    return Pieces(
        position[members],
        written[members],
        begin,
        storage[by_position],
        low[by_position],
        high[by_position],
        start[by_position],
        end[by_position],
        read[first][by_position],
        stored[by_position],
    )


def _read_later(storage: Column, low: Column, high: Column, read: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of each piece, sorted by tile and then by time, whether a later one of its tile reads some of its bytes."""
    found: NDArray[np.bool_] = np.zeros(len(storage), bool)
    reads: list[tuple[int, int]] = []
    rows = list(zip(storage.tolist(), low.tolist(), high.tolist(), read.tolist(), strict=True))
    for piece in range(len(rows) - 1, -1, -1):
        mine, begin, end, loads = rows[piece]
        if piece + 1 == len(rows) or rows[piece + 1][0] != mine:
            reads = []
        found[piece] = any(b < end and begin < e for b, e in reads)
        if loads and (begin, end) not in reads:
            reads.append((begin, end))
    return found
