"""Tiles that do not fit in SBUF live in HBM: what an instruction reads of one is loaded before it, what it writes is
stored after it.

That is how allocators by graph colouring spill (Chaitin 1982, Briggs 1994); the vendor's compiler has one, by the logs
that its users publish. A spilled tile holds no bytes of its own. Each instruction that touches it gets a *piece*, a
tile of just the bytes that it touches, in the lowest free bytes under the schedule ``nki``. Pieces that follow each
other get the same bytes, so a load waits until the piece before it is stored.

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


@dataclass(frozen=True)
class Pieces:
    """What instructions touch of spilled tiles, a row an instruction and tile, in scheduled order.

    ``position`` in that order, ``storage`` of the trace, bytes ``low`` to ``high`` of partitions ``start`` to ``end``,
    and whether they are read and written.
    """

    position: Column
    storage: Column
    low: Column
    high: Column
    start: Column
    end: Column
    read: NDArray[np.bool_]
    written: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.position)


_NONE: NDArray[np.int64] = np.zeros(0, np.int64)
_NEITHER: NDArray[np.bool_] = np.zeros(0, bool)
NO_PIECES = Pieces(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NEITHER, _NEITHER)


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
        numbers = len(self.storage) + np.arange(len(pieces))
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
    _spill_peaks(first, last, tiles.sizes, weight, fixed, room, spilled)
    pieces = NO_PIECES
    while len(overfull):
        until = -1 if len(pieces) or not spilled.any() else int(last.max())
        for position, victim, _ in overfull.tolist():
            # One makes room as long as it lives.
            if position > until:
                there = np.flatnonzero(~spilled & ~fixed & (first < position) & (last > position))
                chosen = int(there[np.argmin(weight[there])]) if len(there) else victim
                spilled[chosen] = True
                until = int(last[chosen])
        pieces = _pieces(tiles, accesses, when, spilled)
        placement = place(tiles.with_pieces(spilled, pieces, compiled))
        overfull = placement.spills[placement.spills[:, 2] == SPILLED]
    return placement, pieces


def _spill_peaks(
    first: Column,
    last: Column,
    sizes: Column,
    weight: NDArray[np.floating[Any]],
    fixed: NDArray[np.bool_],
    room: int,
    spilled: NDArray[np.bool_],
) -> None:
    """Mark as ``spilled`` what has to be, even if all that is ``fixed`` were gone: the least weight at every peak."""
    while True:
        held = np.flatnonzero(~spilled & ~fixed)
        change = np.bincount(first[held], sizes[held], int(last.max(initial=0)) + 2)
        change -= np.bincount(last[held] + 1, sizes[held], len(change))
        live = np.cumsum(change)
        peak = int(np.argmax(live))
        if live[peak] <= room:
            return
        there = held[(first[held] <= peak) & (last[held] >= peak)]
        there = there[np.argsort(weight[there], kind="stable")]
        enough = np.searchsorted(np.cumsum(sizes[there]), live[peak] - room) + 1
        spilled[there[:enough]] = True


def _moved(accesses: Accesses, storage: Column) -> NDArray[np.floating[Any]]:
    """Bytes of a partition that move if a storage is spilled: all that instructions read and write of it."""
    moved = (accesses.high - accesses.low) * (1.0 + (accesses.role == UPDATES))
    return np.bincount(accesses.storage, moved, int(storage.max()) + 1)[storage].astype(np.float64)


def _pieces(tiles: Tiles, accesses: Accesses, when: Column, spilled: NDArray[np.bool_]) -> Pieces:
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
    return Pieces(
        position[first],
        storage[first],
        np.minimum.reduceat(accesses.low[rows], first).astype(np.int64),
        np.maximum.reduceat(accesses.high[rows], first).astype(np.int64),
        np.minimum.reduceat(accesses.start[rows], first).astype(np.int64),
        np.maximum.reduceat(accesses.end[rows], first).astype(np.int64),
        # What is written with gaps is read first, for its bytes are stored as one.
        np.logical_or.reduceat((role != WRITES) | (accesses.step[rows] != 0), first),
        np.logical_or.reduceat(role != READS, first),
    )
