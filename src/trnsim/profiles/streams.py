"""From a measured profile to what the machine executes: the engines' streams in measured order, with their semaphores.

What is taken from the profile: which instructions ran on which engine in which order, what they touch, which semaphores
they wait for and raise, what their DMAs move, when each engine entered the kernel and the phase of the throttle's
windows. What is ours: every duration and interval, semaphore latencies, the time of DMAs, contention and the throttle.

LoadStationary is part of the multiply that it is for, as in the timing of kernels. Instructions of the sequencer alone
(waits, drains) run ahead of the engine: they become part of the semaphore that they wait for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError, UnsupportedError
from trnsim.profiles import costs
from trnsim.profiles.operands import Operands, dma_sides, parse
from trnsim.profiles.profile import ENGINES, Profile
from trnsim.timing.machine import BANKS, Nodes
from trnsim.timing.tables import NO_DMA, QUEUE_COUNT, ClassTables, Variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.timing_constants import Timing

    Column = NDArray[np.int64]

ENTRY = "SET_ORDERING_MODE"
"""The runtime's last instruction on each engine before the kernel."""

# Instructions that the sequencer carries out itself.
SEQUENCER = ("EVENT_SEMAPHORE", "NOP", "DRAIN", "NOTIFY")
_EDGE_KIND = 0  # of no importance here: waits are not drawn by kind


@dataclass
class _Node:
    queue: int
    variant: int
    row: int
    load_row: int = -1
    waits: list[tuple[int, int, int]] = field(default_factory=list)
    """(semaphore, value, picoseconds that the sequencer takes after it)"""
    updates: tuple[tuple[int, int], ...] = ()
    banks: int = 0


@dataclass
class Streams:
    """What the machine executes, and the rows of the profile behind it. ``begin_ps`` is the machine's time 0."""

    nodes: Nodes
    tables: ClassTables
    row: Column
    load_row: Column
    """Of each node: its row in the profile, and that of the LoadStationary that belongs to it (-1)."""
    begin_ps: int
    entry_ps: dict[int, int]
    phase_ps: int
    sequencer: list[tuple[int, int]]
    """(row, node that follows it or -1) of the sequencer's instructions."""


def build(profile: Profile, timing: Timing) -> Streams:
    """The streams of ``profile``'s kernel.

    Raises:
        InputError: the profile has no times, or its semaphores never reach a value that is waited for.
        UnsupportedError: an instruction has no counterpart here, or several cores run a kernel.
    """
    if not profile.timed:
        raise InputError(
            f"{profile.path}: {profile.kind} has no instructions with times, so there is nothing to replay"
        )
    rows = profile.body
    found = profile.instructions
    idle = {ENTRY, *SEQUENCER}
    cores = sorted({int(found.core[r]) for r in rows if profile.opcode_of(r) not in idle})
    if len(cores) != 1:
        raise UnsupportedError(f"{profile.path}: replaying {len(cores)} cores", value=cores, limit="one core")
    rows = rows[found.core[rows] == cores[0]]
    tables = ClassTables()
    entry = {
        int(found.engine[r]): int(found.start_ps[r] + found.duration_ps[r])
        for r in rows
        if profile.opcode_of(r) == ENTRY
    }
    rows = np.array([r for r in rows if profile.opcode_of(r) != ENTRY], np.int64)
    begin = min(int(found.start_ps[rows].min()), *entry.values()) if entry else int(found.start_ps[rows].min())
    nodes: list[_Node] = []
    sequencer: list[tuple[int, int]] = []
    for engine in range(len(ENGINES)):
        mine = _in_order(profile, rows[found.engine[rows] == engine])
        if not len(mine):
            continue
        if engine in entry:
            nodes.append(_entry_node(tables, engine, entry[engine] - begin))
        nodes += _engine_nodes(profile, mine, engine, tables, timing, sequencer, len(nodes))
    return _link(profile, nodes, tables, timing, begin, entry, sequencer)


def kernel_packets(profile: Profile) -> Column:
    """Packets of the kernel's DMAs: not those that fetch instructions."""
    packets = profile.packets
    kinds = np.array([k != "instruction" for k in profile.packet_kinds] or [True])
    kernel = kinds[packets.kind] & (packets.start_ps >= profile.instructions.start_ps[profile.body].min())
    return np.flatnonzero(kernel)


def _in_order(profile: Profile, rows: Column) -> Column:
    """An engine's rows in the order of its queue: by program counter where none repeats, else by start.

    Starts alone would put an instruction of the sequencer before the multiplies that it ran ahead of.
    """
    pc = profile.instructions.pc[rows]
    if len(np.unique(pc)) == len(pc):
        return rows[np.argsort(pc, kind="stable")]
    return rows[np.lexsort((pc, profile.instructions.start_ps[rows]))]


def _entry_node(tables: ClassTables, engine: int, offset: int) -> _Node:
    tables.variants.append(Variant(engine, _opcode(tables, ENTRY), busy=offset, latency=offset))
    return _Node(engine, len(tables.variants) - 1, -1)


def _opcode(tables: ClassTables, name: str) -> int:
    if name not in tables.opcodes:
        tables.opcodes.append(name)
    return tables.opcodes.index(name)


def _engine_nodes(
    profile: Profile,
    rows: Column,
    engine: int,
    tables: ClassTables,
    timing: Timing,
    sequencer: list[tuple[int, int]],
    base: int,
) -> list[_Node]:
    """Nodes of one engine. Waits of the sequencer's instructions and of loads go to the node that follows."""
    nodes: list[_Node] = []
    known: dict[object, int] = {}
    waits: list[tuple[int, int, int]] = []
    ahead: list[int] = []
    load: tuple[int, Operands] | None = None
    for row in rows.tolist():
        opcode, operands = profile.opcode_of(row), parse(profile.operands_of(row))
        step = timing.sequencer_ps(ENGINES[engine])
        if opcode in SEQUENCER:
            if operands.updates:
                raise UnsupportedError(
                    f"{profile.path}: {opcode} that raises a semaphore", value=profile.operands_of(row)
                )
            # Each passes its own time on to what was waited for before it.
            waits = [(s, v, late + step) for s, v, late in waits]
            waits += [(w.semaphore, w.value, step) for w in operands.waits]
            ahead.append(row)
            continue
        waits += [(w.semaphore, w.value, 0) for w in operands.waits]
        if opcode == costs.LOAD:
            if load is not None:
                raise UnsupportedError(
                    f"{profile.path}: two LDWEIGHTS without a MATMUL between them", instruction=opcode
                )
            load = (row, operands)
            continue
        variant = _variant(profile, row, opcode, operands, load, engine, tables, timing, known)
        node = _Node(engine, variant, row, load[0] if load else -1, waits, updates=_updates(operands))
        node.banks = _banks(operands)
        nodes.append(node)
        sequencer += [(r, base + len(nodes) - 1) for r in ahead]
        waits, ahead, load = [], [], None
    sequencer += [(r, -1) for r in ahead]
    return nodes


def _updates(operands: Operands) -> tuple[tuple[int, int], ...]:
    return tuple((u.semaphore, u.amount) for u in operands.updates)


def _banks(operands: Operands) -> int:
    """PSUM banks that the instruction touches, a bit a bank."""
    mask = 0
    for tensor in operands.tensors:
        if tensor.memory == "psum" and 0 <= tensor.bank() < BANKS:
            mask |= 1 << tensor.bank()
    return mask


def _variant(
    profile: Profile, row: int, opcode: str, operands: Operands, load: tuple[int, Operands] | None, engine: int,
    tables: ClassTables, timing: Timing, known: dict[object, int],
) -> int:  # fmt: skip
    shape = costs.shape_of(ENGINES[engine], opcode, operands, dma_sides(profile.operands_of(row)))
    if opcode == costs.MULTIPLY:
        first = costs.shape_of(ENGINES[engine], costs.LOAD, load[1], None) if load else shape
        shape = replace(shape, sources=(*first.sources, *shape.sources), transpose=first.transpose)
    key = (shape, load is None)
    if key not in known:
        try:
            found = costs.costed(timing, shape)
        except UnsupportedError as error:
            where = profile.instructions.start_ps[row] // 1000
            raise UnsupportedError(
                f"{profile.path}: {opcode} at {where} ns: {error.message}", value=error.value
            ) from error
        pieces = found.pieces[1:] if opcode == costs.MULTIPLY and load is None else found.pieces
        known[key] = tables.add_pieces(found.klass, pieces, ENGINES[engine], engine, timing)
    return known[key]


def _link(
    profile: Profile, nodes: list[_Node], tables: ClassTables, timing: Timing, begin: int, entry: dict[int, int],
    sequencer: list[tuple[int, int]],
) -> Streams:  # fmt: skip
    count = len(nodes)
    queue = np.array([n.queue for n in nodes], np.int64)
    variant = np.array([n.variant for n in nodes], np.int64)
    dge = tables.column("dge")[variant]
    edges = _edges(profile, nodes, timing, dge)
    producer, consumer, latency = (np.array([e[i] for e in edges], np.int64) for i in range(3))
    by_queue, by_producer = np.argsort(queue, kind="stable"), np.argsort(producer, kind="stable")
    machine = Nodes(
        queue=queue,
        variant=variant,
        group=np.full(count, -1, np.int64),
        banks=np.array([n.banks for n in nodes], np.int64),
        queue_first=np.searchsorted(queue[by_queue], np.arange(QUEUE_COUNT + 1)).astype(np.int64),
        queue_nodes=by_queue.astype(np.int64),
        pending=np.bincount(consumer, minlength=count).astype(np.int64),
        successor_first=np.searchsorted(producer[by_producer], np.arange(count + 1)).astype(np.int64),
        successor=consumer[by_producer],
        successor_latency=latency[by_producer],
        successor_kind=np.full(len(edges), _EDGE_KIND, np.int64),
        group_size=np.zeros(0, np.int64),
        cores=1,
    )
    row = np.array([n.row for n in nodes], np.int64)
    load_row = np.array([n.load_row for n in nodes], np.int64)
    return Streams(machine, tables, row, load_row, begin, entry, _phase(profile, timing, begin), sequencer)


def _edges(profile: Profile, nodes: list[_Node], timing: Timing, dge: Column) -> list[tuple[int, int, int]]:
    """Semaphores as edges: a wait for a value waits for those whose updates make it, in the order they were
    measured.
    """
    raised: dict[int, list[tuple[int, int, int]]] = {}
    found = profile.instructions
    ends = _dma_ends(profile, nodes, dge)
    for number, node in enumerate(nodes):
        for semaphore, amount in node.updates:
            end = ends.get(number, int(found.start_ps[node.row] + found.duration_ps[node.row]))
            raised.setdefault(semaphore, []).append((end, number, amount))
    reached: dict[int, tuple[Column, list[int]]] = {}
    for semaphore, events in raised.items():
        events.sort()
        reached[semaphore] = np.cumsum([a for _, _, a in events]), [n for _, n, _ in events]
    edges: dict[tuple[int, int], int] = {}
    for number, node in enumerate(nodes):
        arrival = timing.engine(ENGINES[node.queue]).semaphore_ps
        for semaphore, value, late in node.waits:
            values, producers = reached.get(semaphore, (np.zeros(0, np.int64), []))
            last = int(np.searchsorted(values, value))
            if last == len(producers):
                top = int(values[-1]) if len(values) else 0
                raise InputError(
                    f"{profile.path}: {profile.opcode_of(node.row)} waits for semaphore {semaphore} >= {value}, which "
                    f"only reaches {top}",
                    value=profile.operands_of(node.row),
                )
            # The last update of each queue: the earlier ones of a queue come before it.
            latest: dict[int, int] = {}
            for producer in producers[: last + 1]:
                latest[nodes[producer].queue if dge[producer] == NO_DMA else -1 - producer] = producer
            for producer in latest.values():
                way = timing.dma.completion_ps if dge[producer] != NO_DMA else arrival
                if producer != number:
                    edges[producer, number] = max(edges.get((producer, number), 0), way + late)
    return [(p, c, latency) for (p, c), latency in edges.items()]


def _dma_ends(profile: Profile, nodes: list[_Node], dge: Column) -> dict[int, int]:
    """DMAs that raise one semaphore do so in the order of their triggers: the trigger's start stands for the end."""
    return {
        number: int(profile.instructions.start_ps[node.row])
        for number, node in enumerate(nodes)
        if dge[number] != NO_DMA and node.row >= 0
    }


def _phase(profile: Profile, timing: Timing, begin: int) -> int:
    """Where the throttle's first window ends after ``begin``: its changes stand on the edges of windows."""
    window = timing.tensor.throttle_window_ps
    changes = [t for c, t, _ in profile.throttle]
    return int((changes[0] - begin) % window) if changes else 0
