"""From compiled programs to what the machine executes: nodes in queues, and the semaphores between them.

An edge between instructions becomes a semaphore with its latency, unless both run on one in-order engine and only the
order matters. A tile that takes over bytes waits for the last users of what held them before. Spills become transfers
of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.machine.trace import MEMORIES
from trnsim.timing.compiled import run
from trnsim.timing.dependences import ORDER, PSUM_SPACE, RAW, SBUF_SPACE, SPILL, Edges
from trnsim.timing.grouping import bucket
from trnsim.timing.machine import BANKS, Nodes
from trnsim.timing.placement import RELOADED, SPILLED
from trnsim.timing.space import first_writers, space_edges
from trnsim.timing.tables import (
    ENGINES,
    HARDWARE,
    NO_DMA,
    QUEUE_COUNT,
    READS,
    SCALAR,
    STATIC,
    STATIC_IN,
    STATIC_OUT,
    SYNC,
    TENSOR,
    ClassTables,
    Variant,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.hardware.model import Core
    from trnsim.hardware.timing_constants import Timing
    from trnsim.timing.compile import CoreProgram, Uses

    Column = NDArray[np.signedinteger[Any]]


@dataclass
class Linked:
    """The nodes, and which instruction each belongs to."""

    nodes: Nodes
    core: Column
    row: Column
    """Row of the core's trace, -1 for a spill."""
    order: list[Column]
    """Of each core, its nodes in scheduled order: ``CoreProgram.order`` with spills and chains."""
    first_node: list[Column]
    """Of each core and instruction, its first and last node; spills are numbered after the instructions."""
    last_node: list[Column]
    spills: int
    spill_bytes: int


@dataclass
class _Items:
    """One core's instructions and spills in order, with all edges between them."""

    order: Column
    variant: Column
    producer: Column
    consumer: Column
    kind: Column
    count: int
    spills: int
    spill_bytes: int


def link(programs: Sequence[CoreProgram], tables: ClassTables, core: Core, timing: Timing, compiled: bool) -> Linked:
    """Join the programs of all cores."""
    items = [_items(p, tables, timing, compiled) for p in programs]
    queue_of, chain_of, dge_of = tables.column("queue"), tables.column("chain"), tables.column("dge")
    node_variant: list[Column] = []
    node_core: list[Column] = []
    node_row: list[Column] = []
    orders, firsts, lasts = [], [], []
    producers, consumers, kinds = [], [], []
    base = 0
    for program, item in zip(programs, items, strict=True):
        variants, owner, first, last = _expand(item, chain_of)
        rows = np.full(item.count, -1, np.int32)
        rows[: len(program.rows)] = program.rows
        node_variant.append(variants)
        node_core.append(np.full(len(variants), program.core, np.int32))
        node_row.append(rows[owner])
        chunk: NDArray[np.int32] = np.arange(base, base + len(variants), dtype=np.int32)
        orders.append(chunk)
        firsts.append(first + base)
        lasts.append(last + base)
        producers.append(last[item.producer] + base)
        consumers.append(first[item.consumer] + base)
        kinds.append(item.kind)
        chained = np.flatnonzero(chain_of[variants] >= 0)
        producers.append(chained + base)
        consumers.append(chained + 1 + base)
        kinds.append(np.full(len(chained), RAW, np.int8))
        base += len(variants)
    variant = np.concatenate(node_variant).astype(np.int32)
    cores = np.concatenate(node_core)
    rows = np.concatenate(node_row)
    queue = (cores * QUEUE_COUNT + queue_of[variant]).astype(np.int32)
    edges = Edges(np.concatenate(producers), np.concatenate(consumers), np.concatenate(kinds))
    edges, latency = _semaphores(edges, queue, dge_of[variant], timing, compiled)
    group, group_size = _groups(programs, firsts, base)
    total_queues = len(programs) * QUEUE_COUNT
    by_queue, queue_first = bucket(queue, total_queues, compiled)
    by_producer, successor_first = bucket(edges.producer, base, compiled)
    nodes = Nodes(
        queue=queue,
        variant=variant,
        group=group,
        banks=_banks(programs, firsts, base, core, compiled),
        queue_first=queue_first,
        queue_nodes=by_queue,
        pending=np.bincount(edges.consumer, minlength=base).astype(np.int32),
        successor_first=successor_first,
        successor=edges.consumer[by_producer],
        successor_latency=latency[by_producer],
        successor_kind=edges.kind[by_producer],
        group_size=group_size,
        cores=len(programs),
    )
    return Linked(
        nodes, cores, rows, orders, firsts, lasts, sum(i.spills for i in items), sum(i.spill_bytes for i in items)
    )


def _expand(item: _Items, chain: Column) -> tuple[Column, Column, Column, Column]:
    """Nodes of the instructions in order: their variants and owners; first and last node of each owner."""
    variants = item.variant[item.order]
    first, last = np.zeros(item.count, np.int32), np.zeros(item.count, np.int32)
    if not (chain[variants] >= 0).any():
        first[item.order] = np.arange(len(item.order))
        return variants, item.order, first, first.copy()
    nodes: list[int] = []
    owner: list[int] = []
    for i, v in zip(item.order.tolist(), variants.tolist(), strict=True):
        first[i] = len(nodes)
        at = v
        while at >= 0:
            nodes.append(at)
            owner.append(i)
            at = int(chain[at])
        last[i] = len(nodes) - 1
    return np.array(nodes, np.int64), np.array(owner, np.int64), first, last


def _items(program: CoreProgram, tables: ClassTables, timing: Timing, compiled: bool) -> _Items:
    edges = program.edges
    parts = [edges]
    extra: list[tuple[int, int]] = []  # (place in the order, variant) of spills and reloads
    moved = 0
    for uses in program.uses:
        parts.append(space_edges(program, uses, tables, compiled))
        if len(uses.placement.spills) or len(uses.pieces):
            added, found, size = _spill_edges(program, uses, tables, timing, len(program.rows) + len(extra), compiled)
            extra.extend(added)
            parts.append(found)
            moved += size
    joined = Edges(
        np.concatenate([p.producer for p in parts]),
        np.concatenate([p.consumer for p in parts]),
        np.concatenate([p.kind for p in parts]),
    )
    order, variant = program.order, program.variant
    if extra:
        variant = np.concatenate([variant, np.array([v for _, v in extra], np.int64)])
        # Before an instruction what makes room for it, then what it needs again.
        positions = np.concatenate([np.arange(len(order)) * 3 + 2, np.array([p for p, _ in extra], np.int64)])
        numbers = np.concatenate([order, np.arange(len(program.rows), len(program.rows) + len(extra))])
        order = numbers[np.argsort(positions, kind="stable")]
    return _Items(
        order, variant, joined.producer, joined.consumer, joined.kind, len(program.rows) + len(extra), len(extra), moved
    )


def _spill_edges(
    program: CoreProgram, uses: Uses, tables: ClassTables, timing: Timing, number: int, compiled: bool
) -> tuple[list[tuple[int, int]], Edges, int]:
    """Transfers for the spills and pieces of one memory, numbered from ``number``, and all space edges that touch
    them.
    """
    infos = program.trace.storages
    edges: list[tuple[int, int, int]] = []
    added: list[tuple[int, int]] = []
    moved = 0
    by_storage: dict[int, list[tuple[int, int]]] = {}
    for position, storage, what in uses.placement.spills.tolist():
        by_storage.setdefault(storage, []).append((position, what))
    # Of each storage (position, transfer) of its spills and of its loads after the first; -1: dropped, no transfer.
    left_by: dict[int, list[tuple[int, int]]] = {}
    loaded_by: dict[int, list[tuple[int, int]]] = {}
    for storage, moves in by_storage.items():
        info = infos[int(uses.storage[storage])]
        positions = uses.by_storage[uses.start[storage] : uses.start[storage + 1]]
        since, out = 0, -1
        for n, (position, what) in enumerate(moves):
            item = number + len(added)
            if what == RELOADED:
                load = int(uses.load[storage]) if out < 0 else -1
                variant = (
                    program.variant[load]
                    if load >= 0
                    else _spill_variant(tables, timing, info.partitions, reload=True, row_bytes=info.row_bytes)
                )
                until = moves[n + 1][0] if n + 1 < len(moves) else 1 << 60
                edges += [(out, item, SPILL)] if out >= 0 else []
                edges += [(item, int(program.order[p]), SPILL) for p in positions.tolist() if position <= p < until]
                loaded_by.setdefault(storage, []).append((position, item))
                since = position
            elif what == SPILLED:
                changed = _changed(program, uses, storage, since, position)
                variant = _spill_variant(tables, timing, info.partitions, reload=False, row_bytes=changed)
                edges += [(int(program.order[p]), item, SPILL) for p in positions.tolist() if since <= p < position]
                edges += [(i, item, SPILL) for _, i in loaded_by.get(storage, ())[-1:]]
                left_by.setdefault(storage, []).append((position, item))
                out = item
            else:
                out = -1
                left_by.setdefault(storage, []).append((position, -1))
                continue
            added.append((3 * position + int(what == RELOADED), int(variant)))
            moved += tables.variants[int(variant)].bytes
    before, after = _piece_transfers(program, uses, tables, timing, number, added, edges)
    moved += sum(tables.variants[v].bytes for _, v in added[len(added) - len(before) - len(after) :])
    kind = SBUF_SPACE if uses.memory == "sbuf" else PSUM_SPACE
    tiles, pieces = len(uses.storage), uses.pieces

    def touching(piece: int) -> list[int]:
        return [int(program.order[p]) for p in pieces.positions(piece - tiles)]

    writers, writer_start = first_writers(program, uses, compiled)
    writers = program.accesses.instruction[writers]
    for storage, holder, position in uses.placement.taken_over.tolist():
        if storage not in by_storage and holder not in by_storage and max(storage, holder) < tiles:
            continue
        reloads = [item for p, item in loaded_by.get(storage, ()) if p == position]
        if storage >= tiles:
            loads = before.get(storage)
            consumers = touching(storage)[:1] if loads is None else [loads]
        else:
            consumers = reloads or writers[writer_start[storage] : writer_start[storage + 1]].tolist()
        gone = [(p, item) for p, item in left_by.get(holder, ()) if p <= position][-1:]
        since, item = max(((p, i) for p, i in loaded_by.get(holder, ()) if p < position), default=(0, -1))
        if holder >= tiles:
            producers = touching(holder) + ([after[holder]] if holder in after else [])
        elif gone and gone[0][1] >= 0 and gone[0][0] >= since:
            producers = [gone[0][1]]
        else:
            positions = uses.by_storage[uses.start[holder] : uses.start[holder + 1]]
            producers = [int(program.order[p]) for p in positions.tolist() if since <= p < position]
            producers += [item] if item >= 0 else []
        edges += [(p, c, kind) for p in producers for c in consumers if p != c]
    columns = np.array(edges, np.int64).reshape(-1, 3)
    return added, Edges(columns[:, 0], columns[:, 1], columns[:, 2]), moved


def _piece_transfers(
    program: CoreProgram,
    uses: Uses,
    tables: ClassTables,
    timing: Timing,
    number: int,
    added: list[tuple[int, int]],
    edges: list[tuple[int, int, int]],
) -> tuple[dict[int, int], dict[int, int]]:
    """Add the transfers of the pieces and their edges; of each piece the load before and the store after it."""
    pieces = uses.pieces
    stores: dict[int, list[tuple[int, int, int]]] = {}
    before: dict[int, int] = {}
    after: dict[int, int] = {}
    columns = (pieces.storage, pieces.low, pieces.high, pieces.end - pieces.start)
    rows = zip(*(c.tolist() for c in columns), pieces.read.tolist(), pieces.written.tolist(), strict=True)
    for index, (storage, low, high, partitions, read, written) in enumerate(rows):
        piece, positions = len(uses.storage) + index, pieces.positions(index)
        instructions = [int(program.order[p]) for p in positions]
        held = stores.setdefault(storage, [])
        known = [item for begin, end, item in held if begin < high and low < end]
        if read and known:
            before[piece] = item = number + len(added)
            variant = _spill_variant(tables, timing, partitions, reload=True, row_bytes=high - low)
            added.append((3 * positions[0] + 1, variant))
            edges += [(store, item, SPILL) for store in known]
            edges += [(item, i, SPILL) for i in instructions]
        if written:
            after[piece] = item = number + len(added)
            variant = _spill_variant(tables, timing, partitions, reload=False, row_bytes=high - low)
            writes = pieces.writes[pieces.begin[index] : pieces.begin[index + 1]].tolist()
            added.append((3 * positions[-1] + 3, variant))
            edges += [(i, item, SPILL) for i, w in zip(instructions, writes, strict=True) if w]
            held[:] = [one for one in held if not (low <= one[0] and one[1] <= high)]
            held.append((low, high, item))
    return before, after


def _changed(program: CoreProgram, uses: Uses, storage: int, since: int, position: int) -> int:
    """Bytes of a partition, first to last, that were written at positions from ``since`` to before ``position``."""
    accesses = program.accesses
    rows = uses.accesses[uses.access_start[storage] : uses.access_start[storage + 1]]
    at = uses.access_position[uses.access_start[storage] : uses.access_start[storage + 1]]
    rows = rows[(at >= since) & (at < position) & (accesses.role[rows] != READS)]
    return int(accesses.high[rows].max() - accesses.low[rows].min()) if len(rows) else 0


def _spill_variant(tables: ClassTables, timing: Timing, partitions: int, *, reload: bool, row_bytes: int) -> int:
    """A transfer of ``row_bytes`` of each partition of a tile between SBUF or PSUM and HBM."""
    dma = timing.dma
    static = dma.default_dge == "static"
    low, high = divmod(partitions, dma.engines)
    packet, size = dma.packet(row_bytes), partitions * row_bytes
    name = "RELOAD" if reload else "SPILL"
    if name not in tables.opcodes:
        tables.opcodes.append(name)
    issue = 0 if static else dma.hardware_issue(partitions)
    wanted = Variant(
        (STATIC_IN if reload else STATIC_OUT) if static else (SYNC if reload else SCALAR),
        tables.opcodes.index(name),
        busy=issue,
        latency=issue,
        dge=STATIC if static else HARDWARE,
        bytes=size,
        lane_low=dma.transfer(low * packet, low * row_bytes, static=static) if low else 0,
        lane_high=dma.transfer((low + 1) * packet, (low + 1) * row_bytes, static=static),
        lanes_high=high,
        descriptors=dma.ring_use(partitions, store=not reload),
        first=dma.first_packet("static" if static else "hwdge", issue, from_hbm=reload),
        lead=dma.read_start(row_bytes) if reload else 0,
        hbm_read=size if reload else 0,
        hbm_write=0 if reload else size,
    )
    if wanted in tables.variants:
        return tables.variants.index(wanted)
    tables.variants.append(wanted)
    return len(tables.variants) - 1


def _semaphores(edges: Edges, queue: Column, dge: Column, timing: Timing, compiled: bool) -> tuple[Edges, Column]:
    """Edges that need a semaphore, and how long it takes from the producer being done to the consumer seeing it.

    One in-order engine needs none to keep order, and TensorE none to accumulate in PSUM.
    """
    into = np.zeros(QUEUE_COUNT, np.int64)
    for number, name in enumerate(ENGINES):
        into[number] = timing.engine(name).semaphore_ps
    size = len(edges)
    found = Edges(np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int8))
    latency = np.zeros(len(edges), np.int32)
    count = run(
        _needed,
        compiled,
        edges.producer, edges.consumer, edges.kind, queue, dge, into, timing.dma.completion_ps,
        found.producer, found.consumer, found.kind, latency,
    )  # fmt: skip
    return Edges(found.producer[:count], found.consumer[:count], found.kind[:count]), latency[:count]


def _needed(
    producer: Any, consumer: Any, kind: Any, queue: Any, dge: Any, into: Any, completion: int,
    out_producer: Any, out_consumer: Any, out_kind: Any, latency: Any,
) -> int:  # fmt: skip
    count = 0
    for e in range(len(producer)):
        p = producer[e]
        c = consumer[e]
        if kind[e] == ORDER or p == c:
            continue
        in_order = dge[p] == NO_DMA and dge[c] == NO_DMA and queue[p] == queue[c]
        if in_order and (kind[e] != RAW or queue[p] % QUEUE_COUNT == TENSOR):
            continue
        out_producer[count] = p
        out_consumer[count] = c
        out_kind[count] = kind[e]
        latency[count] = into[queue[c] % QUEUE_COUNT] if dge[p] == NO_DMA else completion
        count += 1
    return count


def _groups(programs: Sequence[CoreProgram], firsts: list[Column], count: int) -> tuple[Column, Column]:
    """Rendezvous: nodes of several cores that start together. A key that only one core has needs no partner."""
    group = np.full(count, -1, np.int32)
    members: dict[tuple[object, ...], list[int]] = {}
    for program, first in zip(programs, firsts, strict=True):
        meeting = program.trace.column("rendezvous")[program.rows]
        for instruction in np.flatnonzero(meeting >= 0).tolist():
            key = program.trace.rendezvous[int(meeting[instruction])]
            members.setdefault(tuple(key), []).append(int(first[instruction]))
    sizes: list[int] = []
    for found in members.values():
        if len(found) > 1:
            group[found] = len(sizes)
            sizes.append(len(found))
    return group, np.array(sizes, np.int64)


def _banks(programs: Sequence[CoreProgram], firsts: list[Column], count: int, core: Core, compiled: bool) -> Column:
    """PSUM banks that each node touches, a bit a bank."""
    banks = np.zeros(count, np.int32)
    for program, first in zip(programs, firsts, strict=True):
        accesses, columns = program.accesses, program.trace.storage_columns
        base = np.full(max(1, len(columns["memory"])), -1, np.int64)
        uses = program.uses[1]
        base[uses.storage] = uses.placement.address
        # Of explicit addresses low and high count from the start of PSUM already.
        base[: len(columns["memory"])][(columns["memory"] == MEMORIES.index("psum")) & (columns["start"] >= 0)] = 0
        run(
            _touched_banks, compiled, base, accesses.storage, accesses.low, accesses.high, accesses.instruction, first,
            core.psum.bytes_per_bank, BANKS, banks,
        )  # fmt: skip
    return banks


def _touched_banks(
    base: Any, storage: Any, low: Any, high: Any, instruction: Any, first: Any, size: int, count: int, banks: Any
) -> int:
    for a in range(len(storage)):
        at = base[storage[a]]
        if at >= 0:
            begin = min((at + low[a]) // size, count - 1)
            end = min((at + high[a] - 1) // size, count - 1)
            banks[first[instruction[a]]] |= (2 << end) - (1 << begin)
    return 0
