"""The compiler stage: from the recorded program of a core to ordered queues, dependences and addresses.

It sees estimated costs and never waits. Its freedoms are the passes of ``TimingOptions``; where it has none, each
queue keeps program order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import CompilerError, Finding, HardwareError
from trnsim.timing.accesses import Accesses, find_accesses
from trnsim.timing.dependences import EXPLICIT, ORDER, WAR, WAW, Edges, find_dependences
from trnsim.timing.loads import find_repeated_loads
from trnsim.timing.options import BALANCE_ENGINES, REMOVE_REPEATED_LOADS, REORDER
from trnsim.timing.placement import Placement, place
from trnsim.timing.schedule import choose_variants, estimates, list_schedule
from trnsim.units import format_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.model import Core
    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.trace import Trace
    from trnsim.timing.options import TimingOptions
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.int64]

MEMORIES = ("sbuf", "psum")
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


@dataclass
class CoreProgram:
    """One core's program after the compiler stage. Instructions are numbered without the removed ones."""

    trace: Trace
    core: int
    rows: Column
    """Row in the trace of each instruction."""
    removed: Column
    variant: Column
    order: Column
    edges: Edges
    accesses: Accesses
    initial: Column
    uses: list[Uses]
    findings: list[Finding] = field(default_factory=list)


def compile_core(
    trace: Trace, number: int, core: Core, tables: ClassTables, timing: Timing, options: TimingOptions, compiled: bool
) -> CoreProgram:
    """Compile one trace.

    Raises:
        HardwareError: one storage is larger than its memory, or, with ``strict_capacity``, live storages are.
        CompilerError: explicit dependences contradict each other or the program order.
    """
    passes = options.active_passes
    klass_rows = trace.instructions["klass"]
    used, inverse = np.unique(klass_rows, return_inverse=True)
    numbers = np.array([tables.add(trace.classes[int(c)], timing) for c in used], np.int64)
    klass = numbers[inverse] if len(used) else klass_rows
    accesses = find_accesses(trace, klass, tables)
    _check_sizes(trace, core)
    removed: NDArray[np.int64] = np.zeros(0, np.int64)
    if REMOVE_REPEATED_LOADS in passes and len(klass):
        accesses, removed = _without_repeated_loads(trace, accesses, klass, tables)
    keep = np.ones(len(klass), bool)
    keep[removed] = False
    rows = np.flatnonzero(keep)
    renumber = np.cumsum(keep) - 1
    accesses.instruction = renumber[accesses.instruction]
    klass = klass[rows]
    data, initial = find_dependences(accesses, compiled)
    if options.fresh_tiles:
        data = data.take(np.flatnonzero((data.kind != WAR) & (data.kind != WAW)))
    edges = Edges.join([data, *_explicit_edges(trace, keep, renumber, rows), *_state_edges(trace, rows)])
    variant = choose_variants(klass, tables, BALANCE_ENGINES in passes, compiled)
    order: NDArray[np.int64] = np.arange(len(rows), dtype=np.int64)
    if REORDER in passes:
        order = _reorder(trace, core, accesses, variant, edges, tables, timing, options, compiled)
    elif (edges.producer > edges.consumer).any():
        raise CompilerError("an explicit dependence contradicts program order, which this schedule keeps")
    program = CoreProgram(trace, number, rows, removed, variant, order, edges, accesses, initial, [])
    for memory in MEMORIES:
        uses = _place(program, memory, core, compiled)
        if options.fresh_tiles:
            uses.placement = replace(uses.placement, taken_over=_NO_ROWS, spills=_NO_ROWS)
        program.uses.append(uses)
        if len(uses.placement.spills):
            program.findings.append(_over_capacity(program, uses, core, options))
    return program


def _without_repeated_loads(
    trace: Trace, accesses: Accesses, klass: Column, tables: ClassTables
) -> tuple[Accesses, Column]:
    is_load = np.array(tables.is_load, np.int64)[klass]
    row_bytes = np.array([s.row_bytes for s in trace.storages], np.int64)
    partitions = np.array([s.partitions for s in trace.storages], np.int64)
    removed, alias = find_repeated_loads(accesses, is_load, row_bytes, partitions)
    if not len(removed):
        return accesses, removed
    gone = np.zeros(len(klass), bool)
    gone[removed] = True
    accesses = accesses.take(np.flatnonzero(~gone[accesses.instruction]))
    accesses.storage = alias[accesses.storage]
    automatic = accesses.key < len(alias)
    accesses.key = np.where(automatic, alias[np.minimum(accesses.key, len(alias) - 1)], accesses.key)
    return accesses, removed


def _explicit_edges(trace: Trace, keep: NDArray[np.bool_], renumber: Column, rows: Column) -> list[Edges]:
    """Edges of ``depends_on`` and ``with_schedule``, and the order within ``no_reorder`` regions."""
    found = []
    pairs: NDArray[np.int64] = np.array(trace.edges, np.int64).reshape(-1, 2)
    pairs = pairs[keep[pairs[:, 0]] & keep[pairs[:, 1]]] if len(pairs) else pairs
    if len(pairs):
        consumer, producer = renumber[pairs[:, 0]], renumber[pairs[:, 1]]
        found.append(Edges(producer, consumer, np.full(len(pairs), EXPLICIT, np.int64)))
    region = trace.instructions["region"][rows]
    inside = np.flatnonzero(region > 0)
    inside = inside[np.argsort(region[inside], kind="stable")]
    linked = region[inside][1:] == region[inside][:-1]
    if linked.any():
        producer, consumer = inside[:-1][linked], inside[1:][linked]
        found.append(Edges(producer, consumer, np.full(len(producer), ORDER, np.int64)))
    return found


def _state_edges(trace: Trace, rows: Column) -> list[Edges]:
    """Instructions that change the same state of an engine (accumulators, random generators) keep their order."""
    classes = trace.instructions["klass"][rows]
    by_state: dict[str, list[int]] = {}
    for number in np.unique(classes).tolist():
        for state in trace.classes[number].state:
            by_state.setdefault(state, []).append(number)
    found = []
    for numbers in by_state.values():
        users = np.flatnonzero(np.isin(classes, numbers))
        found.append(Edges(users[:-1], users[1:], np.full(max(0, len(users) - 1), ORDER, np.int64)))
    return found


def _reorder(
    trace: Trace,
    core: Core,
    accesses: Accesses,
    variant: Column,
    edges: Edges,
    tables: ClassTables,
    timing: Timing,
    options: TimingOptions,
    compiled: bool,
) -> Column:
    dma = timing.dma
    first_packet = np.array(
        [0, dma.hardware_first_packet_ps, dma.software_first_packet_ps, dma.static_first_packet_ps], np.int64
    )
    busy, done, transfer = estimates(tables, first_packet, dma.completion_ps)
    automatic, memory, sizes = _automatic(trace)
    wanted = automatic[accesses.storage]
    pairs = unique_pairs(accesses.instruction[wanted], accesses.storage[wanted], len(sizes))
    offsets = np.searchsorted(pairs[0], np.arange(len(variant) + 1)).astype(np.int64)
    capacity = np.array([core.sbuf.usable_bytes_per_partition, core.psum.bytes_per_partition], np.int64)
    if options.fresh_tiles:
        capacity[:] = 1 << 60
    return list_schedule(
        variant, edges, tables.column("queue")[variant], busy[variant], done[variant], transfer[variant],
        (offsets, pairs[1]), sizes, memory, capacity, compiled, options.look_ahead,
    )  # fmt: skip


def unique_pairs(first: Column, second: Column, size: int) -> tuple[Column, Column]:
    """Distinct pairs, sorted by ``first``, then ``second``, which is below ``size``."""
    both = np.unique(first * size + second)
    return both // size, both % size


def _automatic(trace: Trace) -> tuple[NDArray[np.bool_], Column, Column]:
    """For each storage: is it placed by the compiler, in SBUF (0) or PSUM (1), and its bytes a partition."""
    infos = trace.storages
    automatic = np.array([s.memory in MEMORIES and s.address is None for s in infos] or [False])
    memory = np.array([int(s.memory == "psum") for s in infos] or [0], np.int64)
    sizes = np.array([s.row_bytes for s in infos] or [0], np.int64)
    return automatic, memory, sizes


def _place(program: CoreProgram, memory: str, core: Core, compiled: bool) -> Uses:
    """Addresses of the automatic storages of ``memory``."""
    trace, accesses = program.trace, program.accesses
    automatic, number, sizes = _automatic(trace)
    wanted = (automatic & (number == MEMORIES.index(memory)))[accesses.storage]
    position = np.empty(len(program.order), np.int64)
    position[program.order] = np.arange(len(program.order))
    pairs = unique_pairs(position[accesses.instruction[wanted]], accesses.storage[wanted], len(sizes))
    storage, local = np.unique(pairs[1], return_inverse=True)
    local = local.ravel().astype(np.int64)
    grouped = np.argsort(local, kind="stable")
    start = np.searchsorted(local[grouped], np.arange(len(storage) + 1)).astype(np.int64)
    reserved = [
        (s.address[1], s.address[1] + s.row_bytes)
        for s in trace.storages
        if s.memory == memory and s.address is not None
    ]
    banks = core.psum.bytes_per_bank if memory == "psum" else 0
    placement = place(
        _capacity(core, memory), banks, reserved, sizes[storage], pairs[0][grouped], start, (pairs[0], local), compiled
    )
    return Uses(memory, storage, sizes[storage], pairs[0], local, pairs[0][grouped], start, placement)


def _capacity(core: Core, memory: str) -> int:
    return core.psum.bytes_per_partition if memory == "psum" else core.sbuf.usable_bytes_per_partition


def _check_sizes(trace: Trace, core: Core) -> None:
    for info in trace.storages:
        if info.memory not in MEMORIES:
            continue
        limit = _capacity(core, info.memory) if info.address is None else (
            core.psum.bytes_per_partition if info.memory == "psum" else core.sbuf.bytes_per_partition
        )  # fmt: skip
        end = info.row_bytes + (info.address[1] if info.address is not None else 0)
        if end > limit:
            raise HardwareError(
                f"{info.name} needs bytes beyond {info.memory.upper()}",
                value=end,
                limit=limit,
                generation=core.version,
                location=trace.lines[info.line] if info.line < len(trace.lines) else None,
            )


def _over_capacity(program: CoreProgram, uses: Uses, core: Core, options: TimingOptions) -> Finding:
    """The finding for live storages over capacity: who holds the memory where it first overflows."""
    position = int(uses.placement.spills[0, 0])
    first, last = uses.by_storage[uses.start[:-1]], uses.by_storage[uses.start[1:] - 1]
    live = np.flatnonzero((first <= position) & (last >= position))
    live = live[np.argsort(-uses.sizes[live], kind="stable")]
    infos = program.trace.storages
    holders = [(infos[int(uses.storage[i])].name, int(uses.sizes[i])) for i in live.tolist()]
    limit, need = _capacity(core, uses.memory), int(uses.sizes[live].sum())
    row = int(program.rows[program.order[position]])
    line = int(program.trace.instructions["line"][row])
    location = program.trace.lines[line] if line < len(program.trace.lines) else None
    names = ", ".join(f"{name} {format_bytes(size)}" for name, size in holders[:5])
    spilled = int((uses.placement.spills[:, 2] == 0).sum())
    message = (
        f"live tiles need {format_bytes(need)} a partition of {uses.memory.upper()}, which has {format_bytes(limit)}: "
        f"{spilled} spills. The largest: {names}"
    )
    if options.strict_capacity:
        raise HardwareError(message, value=need, limit=limit, generation=core.version, location=location)
    return Finding("capacity", message, location=location, count=spilled, details={"holders": holders, "need": need})
