"""The compiler stage: from the recorded program of a core to ordered queues, dependences and addresses.

It sees estimated costs and never waits. Its freedoms are the passes of ``TimingOptions``; where it has none, each
queue keeps program order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, Finding, HardwareError
from trnsim.machine.trace import MEMORIES, SKIP_MIDDLE_END
from trnsim.timing.accesses import Accesses, find_accesses
from trnsim.timing.compiled import run
from trnsim.timing.dependences import EXPLICIT, ORDER, WAR, WAW, Edges, find_dependences
from trnsim.timing.fills import find_overwritten_fills
from trnsim.timing.grouping import bucket, distinct
from trnsim.timing.loads import REPEAT_WINDOW, find_repeated_loads
from trnsim.timing.options import (
    BALANCE_ENGINES,
    KEEP_LOADS,
    MIDDLE_END,
    ONE_RING,
    REMOVE_FILLS,
    REMOVE_REPEATED_LOADS,
    REORDER,
)
from trnsim.timing.placement import NEVER, RELOADED, SLACK, Placement, place
from trnsim.timing.reloads import CHANGED, defer_loads, fills, only_loads, outgrows
from trnsim.timing.schedule import (
    LOOK_AHEAD,
    LOOK_AHEAD_TENSORIZER,
    balance_by_time,
    balance_in_order,
    by_first_use,
    choose_variants,
    earliest_loads,
    estimates,
    list_schedule,
)
from trnsim.timing.spilling import NO_PIECES, Pieces, Tiles, spill
from trnsim.timing.tables import SOFTWARE
from trnsim.units import format_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.model import Core
    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.trace import Trace
    from trnsim.timing.options import TimingOptions
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.signedinteger[Any]]

PLACED = ("sbuf", "psum")
_NO_ROWS: NDArray[np.int64] = np.zeros((0, 3), np.int64)


@dataclass
class Uses:
    """Which automatic storages of one memory are used when: positions in scheduled order."""

    memory: str
    storage: Column
    """Storage of each local number."""
    sizes: Column
    position: Column
    local: Column
    """(position, local storage) of each use, sorted by position."""
    by_storage: Column
    start: Column
    placement: Placement
    load: Column
    """Of each storage the one instruction that loads it from a tensor in HBM that nothing writes, else -1."""
    accesses: Column
    access_position: Column
    access_start: Column
    """Rows of the accesses of each storage, one after another, their positions, and where those of each begin."""
    pieces: Pieces
    """What is touched of tiles that live in HBM. ``placement`` numbers them after the storages."""
    overfull: int
    """The first position at which live tiles outgrow the memory; -1: they do not."""


@dataclass
class CoreProgram:
    """One core's program after the compiler stage. Instructions are numbered without the removed ones."""

    trace: Trace
    core: int
    rows: Column
    """Row in the trace of each instruction."""
    removed: Column
    klass: Column
    """Class in the tables of each instruction."""
    variant: Column
    order: Column
    edges: Edges
    accesses: Accesses
    initial: Column
    uses: list[Uses]
    findings: list[Finding] = field(default_factory=list)

    def forget(self) -> None:
        """Let go of what only linking needs; a large program holds a lot of it."""
        nothing: NDArray[np.int64] = np.zeros(0, np.int64)
        self.edges = Edges(nothing, nothing, nothing)
        self.initial = nothing
        self.uses = []
        self.accesses.forget_boxes()


def compile_core(
    trace: Trace, number: int, core: Core, tables: ClassTables, timing: Timing, options: TimingOptions, compiled: bool
) -> CoreProgram:
    """Compile one trace.

    Raises:
        HardwareError: one storage is larger than its memory, or, with ``strict_capacity``, live storages are.
        CompilerError: explicit dependences contradict each other or the program order.
    """
    passes = options.active_passes
    if SKIP_MIDDLE_END in trace.directives:
        passes -= MIDDLE_END
    klass_rows = trace.column("klass")
    used, inverse = distinct(klass_rows, len(trace.classes))
    numbers = np.array([tables.add(trace.classes[int(c)], timing) for c in used], np.int64)
    klass = numbers[inverse] if len(used) else klass_rows
    accesses = find_accesses(trace, klass, tables, compiled)
    _check_sizes(trace, core)
    removed: NDArray[np.int64] = np.zeros(0, np.int64)
    if (REMOVE_REPEATED_LOADS in passes or KEEP_LOADS in passes) and len(klass):
        removed = _without_repeated_loads(trace, core, accesses, klass, tables, passes, compiled)
    if REMOVE_FILLS in passes and len(klass):
        removed = np.concatenate((removed, _without_fills(accesses, klass, tables, compiled)))
    keep = np.ones(len(klass), bool)
    keep[removed] = False
    rows = np.flatnonzero(keep)
    renumber = np.cumsum(keep) - 1
    accesses.instruction = renumber.astype(np.int32)[accesses.instruction]
    klass = klass[rows]
    data, initial = find_dependences(accesses, compiled)
    if options.fresh_tiles:
        data = data.take(np.flatnonzero((data.kind != WAR) & (data.kind != WAW)))
    edges = Edges.join([data, *_explicit_edges(trace, keep, renumber, rows), *_state_edges(trace, rows)])
    variant = choose_variants(klass, tables, BALANCE_ENGINES in passes, compiled, options.schedule == "nki")
    touches = _touched(trace, accesses, len(rows), compiled)
    # What is ordered, though nothing waits for it.
    ordered = Edges.join([edges, _meetings(trace, rows)])
    order: NDArray[np.int64] = np.arange(len(rows), dtype=np.int64)
    spare = _kept_free(trace, core, touches, options)
    if REORDER in passes:
        order = _reorder(trace, core, touches, variant, ordered, tables, timing, options, compiled, spare)
        if options.schedule == "tensorizer" and BALANCE_ENGINES in passes and len(klass):
            if core.nc_version == 2:
                variant = balance_by_time(klass, order, ordered, tables, timing.dma.completion_ps, compiled)
            else:
                variant = balance_in_order(klass, order, tables, timing.scalar.table_load_ps, compiled)
            order = _reorder(trace, core, touches, variant, ordered, tables, timing, options, compiled, spare)
        if not options.fresh_tiles:
            fills_too = options.schedule != "tensorizer"
            order = _defer_loads(trace, core, accesses, klass, order, edges, tables, touches, fills_too)
    elif (edges.producer > edges.consumer).any():
        raise CompilerError("an explicit dependence contradicts program order, which this schedule keeps")
    program = CoreProgram(trace, number, rows, removed, klass, variant, order, edges, accesses, initial, [])
    loads_lowest = options.schedule == "nki" and REORDER in passes and ONE_RING not in passes
    for memory in PLACED:
        left = spare if memory == "sbuf" else 0
        uses = _place(program, memory, core, tables, touches, loads_lowest, compiled, options.schedule, left)
        if options.fresh_tiles:
            uses.placement = replace(uses.placement, taken_over=_NO_ROWS, spills=_NO_ROWS)
            uses.pieces, uses.overfull = NO_PIECES, -1
        program.uses.append(uses)
        if uses.overfull >= 0:
            program.findings.append(_over_capacity(program, uses, core, options))
    return program


def _kept_free(trace: Trace, core: Core, touches: tuple[Column, Column], options: TimingOptions) -> int:
    """Bytes a partition of SBUF that ``tensorizer`` leaves free, if the tiles fit in what is left in program order."""
    if options.schedule != "tensorizer" or options.fresh_tiles:
        return 0
    columns, capacity = trace.storage_columns, _capacity(core, "sbuf")
    spare = capacity // SLACK
    order: NDArray[np.int64] = np.arange(len(touches[0]) - 1, dtype=np.int64)
    return 0 if outgrows(order, _in_sbuf(columns, touches), columns["row_bytes"], capacity - spare) else spare


def _in_sbuf(columns: dict[str, Column], touches: tuple[Column, Column]) -> tuple[Column, Column]:
    """(instruction, storage) of each touch of a tile of SBUF."""
    offsets, storage = touches
    wanted = np.flatnonzero(columns["memory"][storage] == MEMORIES.index("sbuf"))
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[wanted], storage[wanted]


def _without_repeated_loads(
    trace: Trace,
    core: Core,
    accesses: Accesses,
    klass: Column,
    tables: ClassTables,
    passes: frozenset[str],
    compiled: bool,
) -> Column:
    """Take the accesses of repeated loads out of ``accesses``; the rows of these loads."""
    is_load = np.array(tables.is_load, np.int64)[klass]
    columns = trace.storage_columns
    window = REPEAT_WINDOW if REMOVE_REPEATED_LOADS in passes else 0
    capacity = core.sbuf.usable_bytes_per_partition if KEEP_LOADS in passes else 0
    removed, alias = find_repeated_loads(
        accesses, is_load, columns["row_bytes"], columns["partitions"], trace.column("line"), compiled, window, capacity
    )
    if not len(removed):
        return removed
    gone = np.zeros(len(klass), bool)
    gone[removed] = True
    accesses.keep(np.flatnonzero(~gone[accesses.instruction]))
    alias = alias.astype(np.int32)
    accesses.storage = alias[accesses.storage]
    automatic = accesses.key < len(alias)
    accesses.key = np.where(automatic, alias[np.minimum(accesses.key, len(alias) - 1)], accesses.key)
    return removed


def _without_fills(accesses: Accesses, klass: Column, tables: ClassTables, compiled: bool) -> Column:
    """Take the accesses of fills that nothing sees out of ``accesses``; the rows of these fills."""
    is_fill, is_product = (np.array(c, np.int64)[klass] for c in (tables.is_fill, tables.is_product))
    found = find_overwritten_fills(accesses, is_fill, is_product, compiled)
    if len(found):
        gone = np.zeros(len(klass), bool)
        gone[found] = True
        accesses.keep(np.flatnonzero(~gone[accesses.instruction]))
    return found


def _explicit_edges(trace: Trace, keep: NDArray[np.bool_], renumber: Column, rows: Column) -> list[Edges]:
    """Edges of ``depends_on`` and ``with_schedule``, and the order within ``no_reorder`` regions."""
    found = []
    pairs: NDArray[np.int64] = np.array(trace.edges, np.int64).reshape(-1, 2)
    pairs = pairs[keep[pairs[:, 0]] & keep[pairs[:, 1]]] if len(pairs) else pairs
    if len(pairs):
        consumer, producer = renumber[pairs[:, 0]], renumber[pairs[:, 1]]
        found.append(Edges(producer, consumer, np.full(len(pairs), EXPLICIT, np.int64)))
    region = trace.column("region")[rows]
    inside = np.flatnonzero(region > 0)
    inside = inside[np.argsort(region[inside], kind="stable")]
    linked = region[inside][1:] == region[inside][:-1]
    if linked.any():
        producer, consumer = inside[:-1][linked], inside[1:][linked]
        found.append(Edges(producer, consumer, np.full(len(producer), ORDER, np.int64)))
    return found


def _state_edges(trace: Trace, rows: Column) -> list[Edges]:
    """Instructions that change the same state of an engine (accumulators, random generators) keep their order."""
    classes = trace.column("klass")[rows]
    by_state: dict[str, list[int]] = {}
    for number in distinct(classes, len(trace.classes))[0].tolist():
        for state in trace.classes[number].state:
            by_state.setdefault(state, []).append(number)
    found = []
    for numbers in by_state.values():
        users = np.flatnonzero(np.isin(classes, numbers))
        found.append(Edges(users[:-1], users[1:], np.full(max(0, len(users) - 1), ORDER, np.int64)))
    return found


def _meetings(trace: Trace, rows: Column) -> Edges:
    """Instructions that meet one of another core keep their order, as those of the other core do: they would wait for
    each other for ever.
    """
    meeting = np.flatnonzero(trace.column("rendezvous")[rows] >= 0)
    return Edges(meeting[:-1], meeting[1:], np.full(max(0, len(meeting) - 1), ORDER, np.int64))


def _reorder(
    trace: Trace,
    core: Core,
    touches: tuple[Column, Column],
    variant: Column,
    edges: Edges,
    tables: ClassTables,
    timing: Timing,
    options: TimingOptions,
    compiled: bool,
    spare: int,
) -> Column:
    busy, done, transfer = estimates(tables, timing.dma.completion_ps)
    columns = trace.storage_columns
    capacity = np.array([core.sbuf.usable_bytes_per_partition, core.psum.bytes_per_partition], np.int64)
    capacity[0] -= spare
    if options.fresh_tiles:
        capacity[:] = 1 << 60
    queue, dge = tables.column("queue")[variant], tables.column("dge")[variant]
    loads = tables.column("hbm_read")[variant] > 0
    entered: Column = np.arange(len(variant), dtype=np.int64)
    by_use = options.schedule != "tensorizer" and options.look_ahead is None
    if by_use and (
        options.fresh_tiles or not outgrows(entered, _in_sbuf(columns, touches), columns["row_bytes"], int(capacity[0]))
    ):
        entered = by_first_use(edges, queue, loads, compiled)
        moved = np.empty(len(entered), np.int64)
        moved[entered] = np.arange(len(entered))
        edges = Edges(moved[edges.producer], moved[edges.consumer], edges.kind)
        variant, queue, dge, loads = variant[entered], queue[entered], dge[entered], loads[entered]
        touches = _in_order(touches, entered)
    costs = busy[variant], done[variant], transfer[variant]
    earliest: Column = np.zeros(len(variant), np.int64)
    addressed: Column = np.zeros(len(variant), np.int64)
    rows: Column = np.zeros(0, np.int64)
    if by_use:
        # Software makes descriptors of one DMA after the other.
        by_software = (dge == SOFTWARE) * timing.dma.software_prepare_ps
        kept = np.maximum(costs[2], tables.column("service")[variant])
        earliest = earliest_loads(edges, queue, costs[0], costs[1] + by_software, kept, loads, compiled)
        addressed = (np.diff(touches[0]) == 0).astype(np.int64)
        earliest[addressed == 1] = 0
        rows = np.flatnonzero(loads)
    order = list_schedule(
        variant, edges, queue, *costs, touches, columns["row_bytes"], columns["memory"], capacity, compiled,
        options.look_ahead or (LOOK_AHEAD_TENSORIZER if options.schedule == "tensorizer" else LOOK_AHEAD), earliest,
        rows, addressed[rows],
    )  # fmt: skip
    return entered[order]


def _in_order(touches: tuple[Column, Column], order: Column) -> tuple[Column, Column]:
    """(offsets, storages) of ``touches`` with its instructions in ``order``."""
    offsets, storage = touches
    counts = np.diff(offsets)[order]
    new = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts))).astype(offsets.dtype)
    rows = np.repeat(offsets[:-1][order] - new[:-1], counts) + np.arange(int(new[-1]))
    return new, storage[rows]


def _touched(trace: Trace, accesses: Accesses, count: int, compiled: bool) -> tuple[Column, Column]:
    """The storages on chip without an address that each of ``count`` instructions touches: offsets, storages."""
    columns = trace.storage_columns
    automatic = ((columns["memory"] != MEMORIES.index("hbm")) & (columns["start"] < 0)).astype(np.int64)
    offsets, storage = np.zeros(count + 1, np.int64), np.zeros(len(accesses), np.int32)
    total = run(_touches, compiled, accesses.instruction, accesses.storage, automatic, offsets, storage)
    return offsets, storage[:total].copy()


def _touches(instruction: Any, storage: Any, automatic: Any, offsets: Any, touched: Any) -> int:
    count = 0
    first = 0
    last = -1
    for a in range(len(instruction)):
        if instruction[a] != last:
            first = count
            for i in range(last + 1, instruction[a] + 1):
                offsets[i] = count
            last = instruction[a]
        s = storage[a]
        known = automatic[s] == 0
        for t in range(first, count):
            if touched[t] == s:
                known = True
        if not known:
            touched[count] = s
            count += 1
    for i in range(last + 1, len(offsets)):
        offsets[i] = count
    return count


def _place(
    program: CoreProgram,
    memory: str,
    core: Core,
    tables: ClassTables,
    touches: tuple[Column, Column],
    loads_lowest: bool,
    compiled: bool,
    schedule: str,
    spare: int,
) -> Uses:
    """Addresses of the automatic storages of ``memory``."""
    trace, columns = program.trace, program.trace.storage_columns
    number = MEMORIES.index(memory)
    sequence, used = np.zeros(len(touches[1]), np.int32), np.zeros(len(touches[1]), np.int32)
    total = run(_uses, compiled, program.order, *touches, columns["memory"], number, sequence, used)
    position, used = sequence[:total].copy(), used[:total].copy()
    storage, local = distinct(used, len(trace.storages))
    grouped, start = bucket(local, len(storage), compiled)
    by_storage = position[grouped]
    fixed = np.flatnonzero((columns["memory"] == number) & (columns["start"] >= 0))
    begin = columns["low"][fixed]
    reserved = sorted(set(zip(begin.tolist(), (begin + columns["row_bytes"][fixed]).tolist(), strict=True)))
    banks = core.psum.bytes_per_bank if memory == "psum" else 0
    sizes = columns["row_bytes"][storage]
    lowest: Column | None = None

    tiles = Tiles(storage, sizes, by_storage, start, position, local)

    def placed(tiles: Tiles, loaded: Column, spare: int = 0) -> Placement:
        # Pieces are never loaded again, and lie where loads do.
        more = len(tiles.storage) - len(storage)
        known = np.concatenate((loaded, np.full(more, NEVER, np.int64)))
        low = None if lowest is None else np.concatenate((lowest, np.ones(more, np.int64)))
        return place(
            _capacity(core, memory) - spare, banks, reserved, tiles.sizes, tiles.by_storage, tiles.start,
            (tiles.position, tiles.local), known, compiled, lowest=low,
        )  # fmt: skip

    if loads_lowest and memory == "sbuf":
        loads, _ = only_loads(trace, program.accesses, program.klass, tables)
        lowest = (loads[storage] != CHANGED).astype(np.int64)
    none: NDArray[np.int64] = np.zeros(0, np.int64)
    placement = placed(tiles, np.full(len(storage), NEVER, np.int64), spare)
    if spare and len(placement.spills):
        placement = placed(tiles, np.full(len(storage), NEVER, np.int64))
    if not len(placement.spills):
        never: NDArray[np.int64] = np.full(len(storage), -1, np.int64)
        empty: NDArray[np.int64] = np.zeros(len(storage) + 1, np.int64)
        return Uses(
            memory, storage, sizes, position, local, by_storage, start, placement, never, none, none, empty, NO_PIECES,
            -1,
        )  # fmt: skip
    # What may be loaded again matters only where tiles outgrow the memory.
    overfull = int(placement.spills[0, 0])
    accesses = program.accesses
    when = np.empty(len(program.order), np.int64)
    when[program.order] = np.arange(len(program.order))
    loaded, load = _loaded(program, tables, when)
    placement, pieces = placed(tiles, loaded[storage]), NO_PIECES
    if memory == "sbuf":
        room = _capacity(core, memory) - sum(high - low for low, high in reserved)
        if schedule == "tensorizer":
            room -= room // SLACK
        placement, pieces = spill(
            tiles, placement, loaded[storage] < NEVER, accesses, when, room,
            lambda changed: placed(changed, loaded[storage]), compiled,
        )  # fmt: skip
    wanted = (columns["memory"] == number) & (columns["start"] < 0)
    rows = np.flatnonzero(wanted[accesses.storage])
    rows = rows[np.argsort(accesses.storage[rows], kind="stable")]
    access_start = np.searchsorted(accesses.storage[rows], np.append(storage, len(wanted))).astype(np.int64)
    return Uses(
        memory, storage, sizes, position, local, by_storage, start, placement, load[storage], rows,
        when[accesses.instruction[rows]], access_start, pieces, overfull,
    )  # fmt: skip


def _loaded(program: CoreProgram, tables: ClassTables, position: Column) -> tuple[Column, Column]:
    """Of each storage the position of its last load if only loads of unwritten HBM tensors write it, else ``NEVER``;
    and that load if it is the only one, else -1.
    """
    load, writers = only_loads(program.trace, program.accesses, program.klass, tables)
    loaded: Column = np.full(len(load), -1, np.int64)
    np.maximum.at(loaded, writers[1], position[writers[0]])
    loaded[(load == CHANGED) | (loaded < 0)] = NEVER
    return loaded, np.where(load >= 0, load, -1)


def _defer_loads(
    trace: Trace,
    core: Core,
    accesses: Accesses,
    klass: Column,
    order: Column,
    edges: Edges,
    tables: ClassTables,
    touches: tuple[Column, Column],
    fills_too: bool,
) -> Column:
    """Where live tiles outgrow SBUF, loads and fills wait for room."""
    columns = trace.storage_columns
    pairs = _in_sbuf(columns, touches)
    sizes, capacity = columns["row_bytes"], _capacity(core, "sbuf")
    if not outgrows(order, pairs, sizes, capacity):
        return order
    load, _ = only_loads(trace, accesses, klass, tables)
    if fills_too:
        load = np.where(load >= 0, load, fills(accesses, order, pairs, len(load)))
    return defer_loads(order, pairs, sizes, load, edges, capacity - capacity // SLACK)


def _uses(order: Any, offsets: Any, touched: Any, memory: Any, wanted: int, position: Any, storage: Any) -> int:
    """Fill ``position`` and ``storage`` with the uses of storages of one memory in scheduled order."""
    count = 0
    for p in range(len(order)):
        for t in range(offsets[order[p]], offsets[order[p] + 1]):
            if memory[touched[t]] == wanted:
                position[count] = p
                storage[count] = touched[t]
                count += 1
    return count


def _capacity(core: Core, memory: str) -> int:
    return core.psum.bytes_per_partition if memory == "psum" else core.sbuf.usable_bytes_per_partition


def _check_sizes(trace: Trace, core: Core) -> None:
    columns = trace.storage_columns
    whole = {"psum": core.psum.bytes_per_partition, "sbuf": core.sbuf.bytes_per_partition}
    limit = np.full(len(trace.storages), np.iinfo(np.int64).max)
    fixed = columns["start"] >= 0
    for memory in PLACED:
        mine = columns["memory"] == MEMORIES.index(memory)
        limit[mine & fixed], limit[mine & ~fixed] = whole[memory], _capacity(core, memory)
    end = columns["row_bytes"] + np.where(fixed, columns["low"], 0)
    for number in np.flatnonzero(end > limit)[:1].tolist():
        info = trace.storages[number]
        raise HardwareError(
            f"{info.name} needs bytes beyond {info.memory.upper()}",
            value=int(end[number]),
            limit=int(limit[number]),
            generation=core.version,
            location=trace.lines[info.line] if info.line < len(trace.lines) else None,
        )


def _over_capacity(program: CoreProgram, uses: Uses, core: Core, options: TimingOptions) -> Finding:
    """The finding for live storages over capacity: who holds the memory where it first overflows."""
    position = uses.overfull
    first, last = uses.by_storage[uses.start[:-1]], uses.by_storage[uses.start[1:] - 1]
    live = np.flatnonzero((first <= position) & (last >= position))
    live = live[np.argsort(-uses.sizes[live], kind="stable")]
    infos = program.trace.storages
    holders = [(infos[int(uses.storage[i])].name, int(uses.sizes[i])) for i in live.tolist()]
    limit, need = _capacity(core, uses.memory), int(uses.sizes[live].sum())
    row = int(program.rows[program.order[position]])
    line = int(program.trace.column("line")[row])
    location = program.trace.lines[line] if line < len(program.trace.lines) else None
    names = ", ".join(f"{name} {format_bytes(size)}" for name, size in holders[:5])
    moved = int((uses.placement.spills[:, 2] != RELOADED).sum() + uses.pieces.written.sum())
    message = (
        f"live tiles need {format_bytes(need)} a partition of {uses.memory.upper()}, which has {format_bytes(limit)}: "
        f"{moved} spills and repeated loads. The largest: {names}"
    )
    if options.strict_capacity:
        raise HardwareError(message, value=need, limit=limit, generation=core.version, location=location)
    return Finding("capacity", message, location=location, count=moved, details={"holders": holders, "need": need})
