"""Loads that may be repeated: tiles that only loads of a tensor in HBM write, where nothing writes the tensor.

Such a load may wait until just before its tile is used, and such a tile may be dropped and loaded again; see
``placement``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trnsim.machine.trace import MEMORIES
from trnsim.timing.dependences import EXPLICIT, ORDER, Edges
from trnsim.timing.tables import READS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.trace import Trace
    from trnsim.timing.accesses import Accesses
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.int64]

SEVERAL, CHANGED = -2, -3


def only_loads(
    trace: Trace, accesses: Accesses, klass: Column, tables: ClassTables
) -> tuple[Column, tuple[Column, Column]]:
    """Of each storage the instruction that loads it from an HBM tensor that nothing writes, ``SEVERAL`` if there are
    several such loads, ``CHANGED`` if anything else writes it; and (instruction, storage) of all on-chip writes.
    """
    count = max(1, len(trace.storages))
    in_hbm = np.zeros(count, bool)
    in_hbm[: len(trace.storages)] = trace.storage_columns["memory"] == MEMORIES.index("hbm")
    writes = accesses.role != READS
    changed = np.zeros(count, bool)
    changed[accesses.storage[writes & in_hbm[accesses.storage]]] = True
    is_load = np.array([*tables.is_load, False])[klass]
    is_load[accesses.instruction[~writes & changed[accesses.storage]]] = False
    rows = np.flatnonzero(writes & ~in_hbm[accesses.storage])
    instruction, storage = accesses.instruction[rows], accesses.storage[rows]
    load: Column = np.full(count, CHANGED, np.int64)
    load[storage] = instruction
    load[np.bincount(storage, minlength=count) > 1] = SEVERAL
    load[storage[~is_load[instruction]]] = CHANGED
    return load, (instruction, storage)


def outgrows(order: Column, pairs: tuple[Column, Column], sizes: Column, capacity: int) -> bool:
    """Whether tiles that are live at once, from first to last use in ``order``, need more than ``capacity``."""
    first, last = _lives(order, pairs, len(sizes))
    used = last >= 0
    change = np.bincount(first[used], sizes[used], len(order) + 1)
    change -= np.bincount(last[used] + 1, sizes[used], len(order) + 1)
    return bool(len(order)) and int(np.cumsum(change).max()) > capacity


def _lives(order: Column, pairs: tuple[Column, Column], count: int) -> tuple[Column, Column]:
    """Positions of the first and last use of each storage; -1 as last if there is none."""
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    first: Column = np.full(count, len(order), np.int64)
    last: Column = np.full(count, -1, np.int64)
    np.minimum.at(first, pairs[1], position[pairs[0]])
    np.maximum.at(last, pairs[1], position[pairs[0]])
    return first, last


def fills(accesses: Accesses, order: Column, pairs: tuple[Column, Column], count: int) -> Column:
    """Of each storage the instruction that fills it first and reads nothing, such as a memset, else -1.

    ``pairs`` are (instruction, storage) of every use; ``count`` is how many storages there are.
    """
    reads = np.zeros(len(order), bool)
    reads[accesses.instruction[accesses.role == READS]] = True
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    first: Column = np.full(count, len(order), np.int64)
    np.minimum.at(first, pairs[1], position[pairs[0]])
    found: Column = np.full(count, -1, np.int64)
    used = first < len(order)
    found[used] = order[first[used]]
    only = np.bincount(pairs[0], minlength=len(order)) == 1
    found[used & ~(only & ~reads)[found]] = -1
    return found


def defer_loads(
    order: Column, pairs: tuple[Column, Column], sizes: Column, load: Column, edges: Edges, room: int
) -> Column:
    """``order`` with loads that find ``room`` taken moved to before the first use of what they load.

    ``pairs`` are (instruction, storage) of every use of a tile in this memory, sorted; ``sizes`` of all storages;
    ``load`` is of each storage the instruction that may wait, negative if there is none.
    """
    _, last = _lives(order, pairs, len(sizes))
    bound = np.zeros(len(order), bool)
    fixed = (edges.kind == EXPLICIT) | (edges.kind == ORDER)
    bound[edges.producer[fixed]] = True
    bound[edges.consumer[fixed]] = True
    loads = {int(i): s for s, i in enumerate(load.tolist()) if i >= 0 and last[s] >= 0 and not bound[i]}
    offsets = np.searchsorted(pairs[0], np.arange(len(order) + 1)).tolist()
    touched, left = pairs[1].tolist(), np.bincount(pairs[1], minlength=len(sizes)).tolist()
    size = sizes.tolist()
    live = 0
    alive = [False] * len(size)
    waiting: dict[int, int] = {}
    found: list[int] = []

    def emit(i: int) -> None:
        nonlocal live
        found.append(i)
        for s in touched[offsets[i] : offsets[i + 1]]:
            if not alive[s]:
                alive[s] = True
                live += size[s]
            left[s] -= 1
            if left[s] == 0:
                live -= size[s]

    for i in order.tolist():
        s = loads.get(i, -1)
        if s >= 0 and not alive[s] and live + size[s] > room:
            waiting[s] = i
            continue
        for t in touched[offsets[i] : offsets[i + 1]]:
            if t in waiting:
                emit(waiting.pop(t))
        emit(i)
    for i in waiting.values():
        emit(i)
    return np.array(found, np.int64)
