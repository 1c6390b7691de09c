"""From a run of the machine to the timeline: events, waits with their reasons, memory over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.machine.trace import MEMORIES
from trnsim.timing import timeline as tl
from trnsim.timing.dependences import EXPLICIT, PSUM_SPACE, SBUF_SPACE, SPILL
from trnsim.timing.machine import BANK, LOAD, MEETING, PORT, PREPARE, RING
from trnsim.timing.tables import ENGINES, NO_DMA, QUEUE_COUNT, SCALAR, STATIC_IN, STATIC_OUT
from trnsim.timing.timeline import DMA, ENGINE, Events, MemoryUse, Track, Waits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.errors import Location
    from trnsim.hardware.model import Core
    from trnsim.timing.compile import CoreProgram
    from trnsim.timing.link import Linked
    from trnsim.timing.machine import Nodes, Run
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.signedinteger[Any]]

_RING_NAMES = {2: "dma scalar 0", 3: "dma gpsimd 0", 4: "dma sync 0", STATIC_IN: "dma in 0", STATIC_OUT: "dma out 0"}
_RESOURCES = {
    LOAD: tl.WAIT_LOAD,
    PORT: tl.WAIT_PORT,
    BANK: tl.WAIT_BANK,
    RING: tl.WAIT_RING,
    MEETING: tl.WAIT_MEETING,
    PREPARE: tl.WAIT_DESCRIPTORS,
}
_KINDS = {SBUF_SPACE: tl.WAIT_SBUF, PSUM_SPACE: tl.WAIT_PSUM, SPILL: tl.WAIT_SPILL, EXPLICIT: tl.WAIT_ORDER}


def draw_events(linked: Linked, run: Run, tables: ClassTables) -> tuple[list[Track], Events, list[str], Column, Column]:
    """Tracks, events and opcodes; and for each node the event on its engine (-1) and of its transfer (-1)."""
    nodes = linked.nodes
    dge = tables.column("dge")[nodes.variant]
    kind = nodes.queue % QUEUE_COUNT
    tracks = [
        Track(c * len(ENGINES) + e, c, name, ENGINE) for c in range(nodes.cores) for e, name in enumerate(ENGINES)
    ]
    ring_track = np.full(nodes.cores * QUEUE_COUNT, -1, np.int64)
    for queue in np.unique(nodes.queue[dge != NO_DMA]).tolist():
        ring_track[queue] = len(tracks)
        tracks.append(Track(len(tracks), queue // QUEUE_COUNT, _RING_NAMES[queue % QUEUE_COUNT], DMA))
    engine_track = linked.core * len(ENGINES) + kind
    opcodes = [*tables.opcodes, "DMA_TRIGGER", "ACT_TABLE_LOAD"]
    trigger, table_load = len(opcodes) - 2, len(opcodes) - 1
    opcode = tables.column("opcode")[nodes.variant]
    on_engine = np.flatnonzero(kind < len(ENGINES))
    transfers = np.flatnonzero(dge != NO_DMA)
    tables_loaded = np.flatnonzero(run.table_start >= 0)
    start, end = own_time(nodes, run)
    zero = np.zeros(len(on_engine) + len(tables_loaded), np.int64)
    columns = {
        "track": np.concatenate(
            (
                engine_track[on_engine],
                linked.core[tables_loaded] * len(ENGINES) + SCALAR,
                ring_track[nodes.queue[transfers]],
            )
        ),
        "opcode": np.concatenate(
            (
                np.where(dge[on_engine] == NO_DMA, opcode[on_engine], trigger),
                np.full(len(tables_loaded), table_load),
                opcode[transfers],
            )
        ),
        "instruction": np.concatenate((linked.row[on_engine], linked.row[tables_loaded], linked.row[transfers])),
        "start": np.concatenate((start[on_engine], run.table_start[tables_loaded], run.transfer_start[transfers])),
        "end": np.concatenate((end[on_engine], run.idle_from[tables_loaded], run.done[transfers])),
        "done": np.concatenate(
            (
                np.where(dge[on_engine] == NO_DMA, run.done[on_engine], end[on_engine]),
                run.idle_from[tables_loaded],
                run.done[transfers],
            )
        ),
        "bytes": np.concatenate((zero, tables.column("bytes")[nodes.variant[transfers]])),
    }
    for name in ("track", "opcode", "instruction"):
        columns[name] = columns[name].astype(np.int32)
    order = np.lexsort((columns["track"], columns["start"])).astype(np.int32)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    engine_event, transfer_event = (np.full(len(nodes.queue), -1, np.int32) for _ in range(2))
    engine_event[on_engine] = place[: len(on_engine)]
    transfer_event[transfers] = place[len(on_engine) + len(tables_loaded) :]
    # A column at a time: there are many.
    return tracks, Events(**{k: columns.pop(k)[order] for k in list(columns)}), opcodes, engine_event, transfer_event


def own_time(nodes: Nodes, run: Run) -> tuple[Column, Column]:
    """From when to when each node has its engine's track: a trigger that runs ahead only what is left of it after what
    the engine was doing.
    """
    start, end = run.start.copy(), run.end.copy()
    for queue in range(len(nodes.queue_first) - 1):
        mine = nodes.queue_nodes[nodes.queue_first[queue] : nodes.queue_first[queue + 1]]
        if len(mine) > 1:
            reached = np.maximum.accumulate(run.end[mine])[:-1]
            start[mine[1:]] = np.maximum(start[mine[1:]], reached)
            end[mine[1:]] = np.maximum(end[mine[1:]], reached)
    return start, end


def draw_waits(
    linked: Linked, run: Run, tables: ClassTables, tracks: Sequence[Track], engine_event: Column, transfer_event: Column
) -> Waits:
    """Every idle interval of every engine. A wait for data ends in the semaphore's latency, then come resources."""
    nodes = linked.nodes
    kind = nodes.queue % QUEUE_COUNT
    on_engine = np.flatnonzero((kind < len(ENGINES)) & (run.start > run.idle_from))
    begin, start = run.idle_from[on_engine], run.start[on_engine]
    cause = run.cause[on_engine]
    known = cause >= 0
    producer = np.maximum(cause, 0)
    is_dma = tables.column("dge")[nodes.variant[producer]] != NO_DMA
    ready = np.clip(np.where(known, run.ready[on_engine], 0), begin, start)
    # What a DMA takes to signal is part of waiting for its data; between engines the semaphore is told apart.
    done = np.where(is_dma & known, ready, np.clip(np.where(known, run.done[producer], 0), begin, ready))
    data = np.where(is_dma, tl.DATA_DMA, tl.DATA_TENSOR + kind[producer])
    for edge, reason in _KINDS.items():
        data = np.where(run.cause_kind[on_engine] == edge, reason, data)
    source = np.where(known, np.where(is_dma, transfer_event[producer], engine_event[producer]), -1)
    resource: NDArray[np.int64] = np.full(len(on_engine), tl.STARTUP)
    for why, reason in _RESOURCES.items():
        resource = np.where(run.reason[on_engine] == why, reason, resource)
    holder = run.by[on_engine]
    holder_event = np.where(
        holder >= 0, np.where(run.reason[on_engine] == RING, transfer_event[holder], engine_event[holder]), -1
    )
    track, before = linked.core[on_engine] * len(ENGINES) + kind[on_engine], engine_event[on_engine]
    parts = [
        (track, begin, done, data, before, source),
        (track, done, ready, np.full(len(track), tl.SEMAPHORE), before, source),
        (track, ready, start, resource, before, holder_event),
    ]
    last = np.zeros(len(tracks), np.int64)
    engines = np.flatnonzero(kind < len(ENGINES))
    np.maximum.at(last, linked.core[engines] * len(ENGINES) + kind[engines], run.end[engines])
    idle = np.array([t.index for t in tracks if t.kind == ENGINE and last[t.index] < run.total], np.int64)
    never = np.full(len(idle), -1, np.int64)
    parts.append((idle, last[idle], np.full(len(idle), run.total), np.full(len(idle), tl.NO_MORE_WORK), never, never))
    # What has no length goes first: most waits are one part of three.
    kept = [np.flatnonzero(p[2] > p[1]) for p in parts]
    columns: list[Column] = []
    for i in range(6):
        column = np.concatenate([p[i][k] for p, k in zip(parts, kept, strict=True)])
        columns.append(column if i in (1, 2) else column.astype(np.int32))
    order = np.lexsort((columns[0], columns[1]))
    found: list[Column] = [c[order] for c in columns]
    return Waits(*found)


def draw_memory(programs: Sequence[CoreProgram], linked: Linked, run: Run, core: Core) -> list[MemoryUse]:
    """Live bytes of SBUF and PSUM over time, and who held them at the peak."""
    found = []
    for number, program in enumerate(programs):
        infos = program.trace.storages
        begin, finish = lives(program, number, linked, run)
        for memory in ("sbuf", "psum"):
            members, starts, ends = members_of(program, memory, begin, finish)
            capacity = core.psum.bytes_per_partition if memory == "psum" else core.sbuf.usable_bytes_per_partition
            sizes = program.trace.storage_columns["row_bytes"][members]
            times, live, peak, holders = live_bytes(starts, ends, sizes)
            named = [(infos[members[h]].name, int(sizes[h]), _line(program, infos[members[h]].line)) for h in holders]
            found.append(MemoryUse(program.core, memory, times, live, capacity, peak, named))
    return found


def lives(program: CoreProgram, number: int, linked: Linked, run: Run) -> tuple[Column, Column]:
    """From when to when each storage of core ``number`` is in use; -1 as end: never."""
    first, last = linked.first_node[number], linked.last_node[number]
    accesses, count = program.accesses, max(1, len(program.trace.storages))
    begin = np.full(count, np.iinfo(np.int64).max)
    finish = np.full(count, -1, np.int64)
    np.minimum.at(begin, accesses.storage, run.start[first[accesses.instruction]])
    np.maximum.at(finish, accesses.storage, run.done[last[accesses.instruction]])
    return begin, finish


def members_of(program: CoreProgram, memory: str, begin: Column, finish: Column) -> tuple[list[int], Column, Column]:
    """Used storages of a memory, from when to when they live; those of one explicit address and size count as one."""
    columns = program.trace.storage_columns
    used = finish[: len(program.trace.storages)] >= 0
    mine = np.flatnonzero(used & (columns["memory"] == MEMORIES.index(memory)))
    alone = np.ones(len(mine), bool)
    shared: dict[tuple[int, int, int], int] = {}
    for place in np.flatnonzero(columns["start"][mine] >= 0).tolist():
        number = int(mine[place])
        start, low, size = (int(columns[n][number]) for n in ("start", "low", "row_bytes"))
        first = shared.setdefault((start, low, size), number)
        if first != number:
            begin[first], finish[first] = min(begin[first], begin[number]), max(finish[first], finish[number])
            alone[place] = False
    members = mine[alone]
    return members.tolist(), begin[members].astype(np.int64), finish[members].astype(np.int64)


def live_bytes(starts: Column, ends: Column, sizes: Column) -> tuple[Column, Column, int, list[int]]:
    """Times of change, live bytes from then on, the peak, and who is live at it, the largest first."""
    times = np.concatenate((starts, ends))
    change = np.concatenate((sizes, -sizes))
    order = np.lexsort((change, times))
    total = np.cumsum(change[order])
    times = times[order]
    final = np.flatnonzero(np.append(times[1:] != times[:-1], True)) if len(times) else np.zeros(0, np.int64)
    times, total = times[final], total[final]
    if not len(total):
        return times, total, 0, []
    at = int(np.argmax(total))
    live = np.flatnonzero((starts <= times[at]) & (ends > times[at]))
    return times, total, int(total[at]), live[np.argsort(-sizes[live], kind="stable")].tolist()


def _line(program: CoreProgram, line: int) -> Location | None:
    return program.trace.lines[line] if 0 <= line < len(program.trace.lines) else None
