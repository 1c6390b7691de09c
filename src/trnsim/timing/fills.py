"""Fills of PSUM that nothing sees: a product that does not accumulate overwrites them, and compilers leave them out.

Kernels that clear an accumulator before the first product of a sum (nki-autotune's matmuls on trn2) take the time of
kernels that do not: with the fill, the next sum in the same bank would begin 0.7 us later than measured ones do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.compiled import run
from trnsim.timing.grouping import bucket
from trnsim.timing.tables import WRITES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.timing.accesses import Accesses

    Column = NDArray[np.signedinteger[Any]]

_BOXES = 32  # products that overwrite one fill, at most


def find_overwritten_fills(accesses: Accesses, is_fill: Column, is_product: Column, compiled: bool) -> Column:
    """Rows of instructions among ``is_fill`` all of whose bytes products overwrite before anything reads them.

    ``is_fill`` and ``is_product`` are 1 for each instruction that fills a tile of PSUM with a number, and for each
    that multiplies.
    """
    count = len(accesses)
    fills = np.flatnonzero((is_fill[accesses.instruction] == 1) & (accesses.role == WRITES) & (accesses.step == 0))
    if not len(fills):
        return np.zeros(0, np.int64)
    by_key, first = bucket(accesses.key, accesses.keys, compiled)
    place = np.empty(count, np.int64)
    place[by_key] = np.arange(count)
    dead = np.zeros(len(fills), np.int64)
    box_start, box_end, box_low, box_high = (np.zeros(_BOXES, np.int64) for _ in range(4))
    run(
        _overwritten, compiled, fills, by_key, first, place,
        accesses.key, accesses.role, accesses.instruction, is_product,
        accesses.start, accesses.end, accesses.low, accesses.high, accesses.step,
        box_start, box_end, box_low, box_high, dead,
    )  # fmt: skip
    found: Column = accesses.instruction[fills[dead == 1]].astype(np.int64)
    return found


def _overwritten(
    fills: Any, by_key: Any, first: Any, place: Any, key: Any, role: Any, instruction: Any, is_product: Any,
    start: Any, end: Any, low: Any, high: Any, step: Any,
    box_start: Any, box_end: Any, box_low: Any, box_high: Any, dead: Any,
) -> int:  # fmt: skip
    for f in range(len(fills)):
        a = fills[f]
        left = (end[a] - start[a]) * (high[a] - low[a])
        held = 0
        for at in range(place[a] + 1, first[key[a] + 1]):
            r = by_key[at]
            s, e, x, y = start[r], end[r], low[r], high[r]
            if s >= end[a] or e <= start[a] or x >= high[a] or y <= low[a]:
                continue
            inside = False
            apart = True
            for b in range(held):
                if s >= box_start[b] and e <= box_end[b] and x >= box_low[b] and y <= box_high[b]:
                    inside = True
                if s < box_end[b] and e > box_start[b] and x < box_high[b] and y > box_low[b]:
                    apart = False
            if inside:
                continue
            new = role[r] == WRITES and is_product[instruction[r]] == 1 and step[r] == 0
            within = s >= start[a] and e <= end[a] and x >= low[a] and y <= high[a]
            if not (new and within and apart) or held == len(box_start):
                break
            box_start[held], box_end[held], box_low[held], box_high[held] = s, e, x, y
            held += 1
            left -= (e - s) * (y - x)
            if left == 0:
                dead[f] = 1
                break
    return 0
