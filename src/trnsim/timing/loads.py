"""Repeated loads: the compiler of NKI 0.2 and later loads a box of HBM once where it is wanted again soon.

Public measurements: in the tutorial's tiled matmul at 2048^3 half of the repeated loads that lie 50 instructions
apart were removed (each second one: what was loaded is used once more, then loaded again), and none that lie 200
apart; at K256 M512 N1024 every repeat, at most 48 apart, was removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.compiled import run
from trnsim.timing.tables import READS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.timing.accesses import Accesses

    Column = NDArray[np.signedinteger[Any]]

# Instructions from the load that is kept to the one that is removed, at most: more than 50 and fewer than 100 fit the
# facts.
REPEAT_WINDOW = 64


def find_repeated_loads(
    accesses: Accesses,
    is_load: Column,
    row_bytes: Column,
    partitions: Column,
    line: Column,
    compiled: bool,
    window: int = REPEAT_WINDOW,
    capacity: int = 0,
) -> tuple[Column, Column]:
    """Loads to leave out, and for each the storage that already holds the data.

    ``is_load`` is 1 for each instruction that copies from HBM to SBUF. A load is repeated if the same box of HBM, not
    written since, went whole into a tile of the same form, at most ``window`` instructions before, and neither tile is
    written by anything else.

    ``window`` is the largest distance in instructions to the load that is kept. With a ``capacity`` (bytes a partition
    of SBUF) all repeated loads of a source line go, however far apart, if all that it loads fits in SBUF together; the
    lines are taken by how little that is. What a line loads for one pass of an outer loop alone is loaded again in
    each: public matmuls take the time of that (autocomp on trn1; NKIBench's reads 9.1 GB).

    Returns ``removed`` (instruction rows) and ``alias``: for each storage, the storage that stands for it.
    """
    alias = np.arange(len(row_bytes), dtype=np.int64)
    loads = is_load[accesses.instruction].astype(bool)
    source = np.flatnonzero(loads & (accesses.role == READS))
    target = np.flatnonzero(loads & (accesses.role != READS))
    if len(source) < 2 or len(source) != len(target):
        return np.zeros(0, np.int64), alias
    written = accesses.role != READS
    writes = np.bincount(accesses.storage[written], minlength=len(row_bytes))
    tile = accesses.storage[target]
    whole = (
        (writes[tile] == 1)
        & (accesses.step[target] == 0)
        & (accesses.low[target] == 0)
        & (accesses.high[target] == row_bytes[tile])
        & (accesses.start[target] == 0)
        & (accesses.end[target] == partitions[tile])
        & (accesses.key[target] == tile)
    )
    source, target = source[whole], target[whole]
    # Only sources that nothing writes: inputs, and intermediates once they are finished are left alone.
    unwritten = writes[accesses.storage[source]] == 0
    source, target = source[unwritten], target[unwritten]
    if capacity and len(source):
        return _removed_in_order(accesses, source, target, row_bytes, line, window, capacity, alias)
    size = 1 << (2 * len(source)).bit_length()
    removed = np.zeros(len(source), np.int64)
    count = run(
        _repeats,
        compiled,
        accesses.instruction[source], tile[whole][unwritten], accesses.form[target], accesses.form[source],
        accesses.low[source], accesses.start[source], accesses.key[source], window,
        np.full(size, -1, np.int64), removed, alias,
    )  # fmt: skip
    return removed[:count], alias


def _removed_in_order(
    accesses: Accesses, source: Column, target: Column, row_bytes: Column, line: Column, window: int, capacity: int,
    alias: Column,
) -> tuple[Column, Column]:  # fmt: skip
    """As ``find_repeated_loads``, for loads that may be kept however far apart."""
    columns = (
        accesses.instruction[source], accesses.form[target], accesses.form[source], accesses.low[source],
        accesses.start[source], accesses.key[source],
    )  # fmt: skip
    order = np.lexsort(columns)
    same = np.ones(len(order), bool)
    same[:1] = False
    for column in columns[1:]:
        same[1:] &= column[order][1:] == column[order][:-1]
    rows, tiles = accesses.instruction[source][order], accesses.storage[target][order]
    far = _keepable(rows, same, row_bytes[tiles], line, capacity)
    removed: list[int] = []
    kept_row = kept_tile = -1
    for repeated, kept, row, held in zip(same.tolist(), far.tolist(), rows.tolist(), tiles.tolist(), strict=True):
        if repeated and (kept or row - kept_row <= window):
            removed.append(row)
            alias[held] = kept_tile
        else:
            kept_row, kept_tile = row, held
    return np.array(removed, np.int64), alias


def _keepable(rows: Column, same: NDArray[np.bool_], size: Column, line: Column, capacity: int) -> NDArray[np.bool_]:
    """For each load, sorted by box and row: may its tile stay in SBUF from the first load of the box to the last?"""
    first = np.flatnonzero(~same)
    last = np.append(first[1:], len(rows)) - 1
    begin, end, held = rows[first], rows[last], size[first]
    where = line[begin]
    repeated = end > begin
    lines = np.unique(where[repeated]).tolist()
    wanted = [(int(held[repeated & (where == number)].sum()), number) for number in lines]
    kept: set[int] = set()
    for whole, number in sorted(wanted):
        if whole > capacity:
            break
        capacity -= whole
        kept.add(number)
    chosen = np.isin(where, sorted(kept))
    return np.repeat(chosen, last - first + 1)


def _repeats(
    row: Any, tile: Any, target: Any, source: Any, low: Any, start: Any, key: Any, window: int, newest: Any,
    removed: Any, alias: Any,
) -> int:  # fmt: skip
    """Fill ``removed`` and ``alias``; how many were removed. ``newest``: a hash table, the last load kept of a box."""
    count = 0
    mask = len(newest) - 1
    for i in range(len(row)):
        slot = (((target[i] * 31 + source[i]) * 131 + low[i] * 7) * 31 + start[i]) * 127 + key[i]
        slot = (slot ^ (slot >> 15)) & mask
        while True:
            j = newest[slot]
            if j < 0:
                newest[slot] = i
                break
            if (
                target[j] == target[i]
                and source[j] == source[i]
                and low[j] == low[i]
                and start[j] == start[i]
                and key[j] == key[i]
            ):
                if row[i] - row[j] <= window:
                    removed[count] = row[i]
                    count += 1
                    alias[tile[i]] = tile[j]
                else:
                    newest[slot] = i
                break
            slot = (slot + 1) & mask
    return count
