"""Space: whoever writes first into bytes that another tile held must wait for the last users of just those bytes.

So a large tile that is loaded piece by piece moves in piece by piece behind the last reads of the one before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.compiled import run
from trnsim.timing.dependences import PSUM_SPACE, SBUF_SPACE, Edges
from trnsim.timing.grouping import bucket
from trnsim.timing.tables import QUEUE_COUNT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.timing.compile import CoreProgram, Uses
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.signedinteger[Any]]


def space_edges(program: CoreProgram, uses: Uses, tables: ClassTables, compiled: bool) -> Edges:
    """Edges from the last users of bytes to the first writers of the tile that takes them over (no spilled ones)."""
    taken = uses.placement.taken_over
    if len(uses.placement.spills):
        spilled = np.unique(uses.placement.spills[:, 1])
        taken = taken[~np.isin(taken[:, 0], spilled) & ~np.isin(taken[:, 1], spilled)]
    taken = taken[(taken[:, :2] < len(uses.storage)).all(axis=1)]
    if not len(taken):
        empty = np.zeros(0, np.int64)
        return Edges(empty, empty, empty)
    accesses = program.accesses
    position = np.empty(len(program.order), np.int64)
    position[program.order] = np.arange(len(program.order))
    local = _local(program, uses)[accesses.storage]
    rows = np.flatnonzero(local >= 0)
    grouped, row_start = bucket(local[rows], len(uses.storage), compiled)
    rows = rows[grouped]
    writers, writer_start = first_writers(program, uses, compiled)
    room = int((writer_start[taken[:, 0] + 1] - writer_start[taken[:, 0]]).sum()) * QUEUE_COUNT
    producer, consumer = np.zeros(room, np.int64), np.zeros(room, np.int64)
    found = run(
        _space,
        compiled,
        taken[:, 0].copy(), taken[:, 1].copy(), uses.placement.address, rows, row_start, writers, writer_start,
        accesses.start, accesses.end, accesses.low, accesses.high, accesses.instruction, position,
        tables.column("queue")[program.variant], np.zeros(QUEUE_COUNT, np.int64), producer, consumer,
    )  # fmt: skip
    kind = SBUF_SPACE if uses.memory == "sbuf" else PSUM_SPACE
    return Edges(producer[:found], consumer[:found], np.full(found, kind, np.int64))


def first_writers(program: CoreProgram, uses: Uses, compiled: bool) -> tuple[Column, Column]:
    """Accesses that write a storage of ``uses`` before anything else touched the same bytes, by local storage."""
    accesses = program.accesses
    local = _local(program, uses)[accesses.storage]
    mine = np.flatnonzero(local >= 0)
    # A tile that is read before it is written: its first user stands in.
    first = np.full(len(uses.storage), len(local), np.int64)
    first[local[mine[::-1]]] = mine[::-1]
    chosen = (program.initial == 1) & (local >= 0)
    written = np.zeros(len(uses.storage), bool)
    written[local[chosen]] = True
    chosen[first[~written]] = True
    rows = np.flatnonzero(chosen)
    grouped, start = bucket(local[rows], len(uses.storage), compiled)
    return rows[grouped], start


def _local(program: CoreProgram, uses: Uses) -> Column:
    """Number within ``uses`` of each storage of the trace, -1 for others."""
    local = np.full(max(1, len(program.trace.storages)), -1, np.int64)
    local[uses.storage] = np.arange(len(uses.storage))
    return local


def _space(
    newcomer: Any,
    holder: Any,
    address: Any,
    rows: Any,
    row_start: Any,
    writers: Any,
    writer_start: Any,
    start: Any,
    end: Any,
    low: Any,
    high: Any,
    instruction: Any,
    position: Any,
    queue: Any,
    last: Any,
    producer: Any,
    consumer: Any,
) -> int:
    """Fill ``producer`` and ``consumer`` with the last user on each queue of the bytes that each first writer needs."""
    edges = 0
    for t in range(len(newcomer)):
        s = newcomer[t]
        h = holder[t]
        # Tiles in several pieces have no one address: then all bytes may meet.
        known = address[s] >= 0 and address[h] >= 0
        shift = address[s] - address[h]
        for n in range(writer_start[s], writer_start[s + 1]):
            w = writers[n]
            low_here = low[w] + shift
            high_here = high[w] + shift
            for q in range(len(last)):
                last[q] = -1
            for r in range(row_start[h], row_start[h + 1]):
                a = rows[r]
                if known and (low_here >= high[a] or low[a] >= high_here):
                    continue
                if start[w] >= end[a] or start[a] >= end[w]:
                    continue
                i = instruction[a]
                if last[queue[i]] < 0 or position[i] > position[last[queue[i]]]:
                    last[queue[i]] = i
            for q in range(len(last)):
                if last[q] >= 0 and last[q] != instruction[w]:
                    producer[edges] = last[q]
                    consumer[edges] = instruction[w]
                    edges += 1
    return edges
