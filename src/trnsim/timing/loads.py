"""Repeated loads: the compiler of NKI 0.2 and later loads a box of HBM once where it is wanted again soon.

Public measurements: in the tutorial's tiled matmul at 2048^3 half of the repeated loads that lie 50 instructions
apart were removed (each second one: what was loaded is used once more, then loaded again), and none that lie 200
apart; at K256 M512 N1024 every repeat, at most 48 apart, was removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trnsim.timing.tables import READS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.timing.accesses import Accesses

    Column = NDArray[np.int64]

# Instructions from the load that is kept to the one that is removed, at most: more than 50 and fewer than 100 fit the
# facts.
REPEAT_WINDOW = 64


def find_repeated_loads(
    accesses: Accesses, is_load: Column, row_bytes: Column, partitions: Column, window: int = REPEAT_WINDOW
) -> tuple[Column, Column]:
    """Loads to leave out, and for each the storage that already holds the data.

    ``is_load`` is 1 for each instruction that copies from HBM to SBUF. A load is repeated if the same box of HBM, not
    written since, went whole into a tile of the same form, at most ``window`` instructions before, and neither tile is
    written by anything else.

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
    removed: list[int] = []
    kept_row = kept_tile = -1
    for repeated, row, held in zip(same.tolist(), rows.tolist(), tiles.tolist(), strict=True):
        if repeated and row - kept_row <= window:
            removed.append(row)
            alias[held] = kept_tile
        else:
            kept_row, kept_tile = row, held
    return np.array(removed, np.int64), alias
