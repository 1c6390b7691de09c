"""The machine: engines and DMA rings that work through their queues strictly in order.

An instruction starts when its engine is free, all it depends on is done and the semaphore has arrived, and no
resource stands in its way: SBUF or PSUM ports shared with another engine (NeuronCore-v2), a PSUM bank in use by
another engine (v3 and later), a full DMA ring, the other core of a rendezvous. TensorE loads the next stationary
matrix behind the current multiply and is throttled by its own activity in windows of fixed length. A DMA is triggered
by its engine's sequencer, which may be ahead of the engine, dealt out over the DMA engines of the core, and is done
when the last of them is; the DMA engines serve transfers in the order of their triggers (measured ones take packets of
their rings in turn). GpSimdE makes software descriptors before a trigger, engine by engine.

The loop always takes the queue whose first instruction can start earliest, so resources are granted in order of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import DeadlockError
from trnsim.timing.compiled import run
from trnsim.timing.tables import QUEUE_COUNT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.timing_constants import Timing
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.signedinteger[Any]]

BANKS = 16
NEVER = 1 << 62

# Why an instruction that could start as far as its data goes did not.
NOTHING, LOAD, PORT, BANK, RING, MEETING, PREPARE = range(7)


@dataclass
class Nodes:
    """What the machine executes: one row a piece of work, the queues of all cores, and what waits for what."""

    queue: Column
    variant: Column
    group: Column
    banks: Column
    queue_first: Column
    queue_nodes: Column
    pending: Column
    successor_first: Column
    successor: Column
    successor_latency: Column
    successor_kind: Column
    group_size: Column
    cores: int


@dataclass
class Run:
    """When everything happened, one row a node."""

    start: Column
    end: Column
    done: Column
    idle_from: Column
    """When the queue became free for this node."""
    ready: Column
    """When the last semaphore that it waits for arrived (0: none)."""
    cause: Column
    """The node that sent it; -1."""
    cause_kind: Column
    reason: Column
    by: Column
    table_start: Column
    transfer_start: Column
    arrival: Column
    """When the DMA engines had the descriptors of a transfer."""
    lane_by: Column
    """The transfer that kept the last of its DMA engines busy until then; -1: none did."""
    total: int


def execute(nodes: Nodes, tables: ClassTables, timing: Timing, hbm_stretch: float, phase: int, compiled: bool) -> Run:
    """Run all queues. ``phase`` is where the throttle's first window ends; ``hbm_stretch`` lengthens DMA packets.

    Raises:
        DeadlockError: cores wait for each other.
    """
    count = len(nodes.queue)
    dma, tensor = timing.dma, timing.tensor
    window = tensor.throttle_window_ps
    constants = np.array(
        [
            0, dma.hardware_interval_ps, 0, 0,  # 0: not used
            0, dma.ring_descriptors, timing.scalar.table_load_ps, window,
            round(tensor.throttle_rise * window), round(tensor.throttle_fall * window), tensor.throttle_slowdown,
            int(timing.exclusive_ports), int(timing.bank_conflicts), tensor.throttled, dma.engines,
            tensor.throttle_burst_ps, dma.software_prepare_ps, timing.sequencer.depth, tensor.tail_streamed_ps,
            dma.software_issue_pending_ps,
        ],
        np.int64,
    )  # fmt: skip
    lanes = [np.rint(tables.column(name) * hbm_stretch).astype(np.int64) for name in ("lane_low", "lane_high")]
    start, end, done, idle, ready = (np.zeros(count, np.int64) for _ in range(5))
    table_start, transfer, arrival = (np.full(count, -1, np.int64) for _ in range(3))
    cause, by, lane_by, ring_next = (np.full(count, -1, np.int32) for _ in range(4))
    kind, reason = np.full(count, -1, np.int8), np.zeros(count, np.int8)
    throttle = np.tile(np.array([phase, 0, 0, tensor.throttle_burst_ps, 0], np.int64), nodes.cores)
    queues = nodes.cores * QUEUE_COUNT
    core_state = np.tile(np.array([0, 0, -NEVER // 2, -NEVER // 2], np.int64), nodes.cores)
    finished = run(
        _execute,
        compiled,
        nodes.queue, nodes.variant, nodes.group, nodes.banks, nodes.queue_first, nodes.queue_nodes,
        nodes.pending.copy(), nodes.successor_first, nodes.successor, nodes.successor_latency, nodes.successor_kind,
        nodes.group_size, np.zeros(len(nodes.group_size), np.int64), np.zeros(len(nodes.group_size), np.int64),
        tables.column("busy"), tables.column("issue"), tables.column("latency"), tables.column("load"),
        tables.column("table"),
        tables.column("dge"), *lanes, tables.column("lanes_high"), tables.column("descriptors"),
        tables.column("interval"), tables.column("service"), tables.column("first"), tables.column("lead"),
        tables.column("ports"), tables.column("hold"), constants, throttle,
        nodes.queue_first[:-1].copy(), *(np.zeros(queues, np.int64) for _ in range(3)),
        np.full(queues, NEVER, np.int64), np.zeros(queues, np.int64), np.zeros(queues, np.int64), np.full(queues, -1,
        np.int64), np.full(queues, -1, np.int64), np.zeros(queues, np.int64), ring_next,
        np.full(queues, -1, np.int64), np.zeros(nodes.cores * dma.engines, np.int64),
        np.full(nodes.cores * dma.engines, -1, np.int64), core_state,
        np.zeros(nodes.cores * 4, np.int64), np.zeros(nodes.cores * 2, np.int64),
        np.full(nodes.cores * 2, -1, np.int64), np.zeros(nodes.cores * BANKS, np.int64),
        np.full(nodes.cores * BANKS, -1, np.int64), start, end, done, idle, ready, cause, kind, reason, by,
        table_start, transfer, arrival, lane_by, helpers=(_stretch, _candidate, _opens),
    )  # fmt: skip
    if finished < count:
        raise DeadlockError(f"{count - finished} of {count} instructions wait for each other for ever")
    total = int(max(np.max(done), np.max(end))) if count else 0
    return Run(start, end, done, idle, ready, cause, kind, reason, by, table_start, transfer, arrival, lane_by, total)


def _stretch(at: int, start: int, work: int, throttle: Any, constants: Any) -> int:
    """When ``work`` picoseconds of TensorE at full rate end, with the throttle's state at ``throttle[at:at + 5]``.

    The state is the end of the current window, how long TensorE was busy in it, whether it runs at full rate, the work
    it may do beyond the low limit's share (won back while it is idle), and when it was last busy.
    """
    window = constants[7]
    edge = throttle[at]
    busy = throttle[at + 1]
    full = throttle[at + 2]
    if start >= edge:
        full = (1 if busy >= constants[9] else 0) if full == 1 else (1 if busy >= constants[8] else 0)
        empty = (start - edge) // window
        if empty > 0:
            full = 0
        edge += (empty + 1) * window
        busy = 0
    burst = min(constants[15], throttle[at + 3] + (start - throttle[at + 4]) // constants[10])
    time = start
    left = work
    while left > 0:
        room = edge - time
        need = left if full == 1 else max(left, (left - burst) * constants[10])
        if need <= room:
            burst = burst if full == 1 else max(0, burst - left + need // constants[10])
            time += need
            busy += need
            left = 0
        else:
            busy += room
            share = room if full == 1 else min(room, room // constants[10] + burst)
            burst = burst if full == 1 else max(0, burst - share + room // constants[10])
            left -= share
            time = edge
            full = (1 if busy >= constants[9] else 0) if full == 1 else (1 if busy >= constants[8] else 0)
            busy = 0
            edge += window
    throttle[at] = edge
    throttle[at + 1] = busy
    throttle[at + 2] = full
    throttle[at + 3] = burst
    throttle[at + 4] = time
    return int(time)


def _opens(
    q: int, queue_nodes: Any, first: int, last: int, head: Any, variant: Any, dge: Any, free: Any, dispatched: Any,
    start: Any, constants: Any,
) -> int:  # fmt: skip
    """When queue ``q`` may start its next instruction, as far as the queue itself goes.

    The engine's sequencer dispatches in order, up to some instructions ahead of the engine. It triggers DMAs itself: a
    trigger waits for what is dispatched before it, not for its end. GpSimdE begins to prepare a software DMA while it
    prepares the one before.
    """
    depth = constants[17]
    at = head[q]
    kind = dge[variant[queue_nodes[at]]] if at < last else 0
    if kind == 2 and at > first and dge[variant[queue_nodes[at - 1]]] == 2:
        return int(max(0, start[queue_nodes[at - 1]] + constants[4] - constants[16]))
    if kind != 1:
        return int(max(free[q], dispatched[q]))
    time = dispatched[q]
    if at - depth >= first:
        time = max(time, start[queue_nodes[at - depth]])
    return int(time)


def _candidate(
    q: int, queue_nodes: Any, last: int, head: Any, pending: Any, free: Any, ready: Any, group: Any, group_size: Any,
    arrived: Any, group_time: Any, registered: Any,
) -> int:  # fmt: skip
    """Earliest start of the first instruction of queue ``q`` as far as is known; NEVER if it must wait for an event."""
    if head[q] >= last:
        return 1 << 62
    i = queue_nodes[head[q]]
    if pending[i] > 0:
        return 1 << 62
    time = max(free[q], ready[i])
    g = group[i]
    if g >= 0:
        if registered[q] != i:
            registered[q] = i
            arrived[g] += 1
            group_time[g] = max(group_time[g], time)
        if arrived[g] < group_size[g]:
            return 1 << 62
        time = max(time, group_time[g])
    return int(time)


def _execute(
    queue: Any, variant: Any, group: Any, banks: Any, queue_first: Any, queue_nodes: Any, pending: Any,
    successor_first: Any, successor: Any, successor_latency: Any, successor_kind: Any, group_size: Any,
    arrived: Any, group_time: Any,
    busy: Any, issue: Any, latency: Any, load: Any, table: Any, dge: Any, lane_low: Any, lane_high: Any,
    lanes_high: Any,
    descriptors: Any, interval: Any, service: Any, first_packet: Any, lead: Any, ports: Any,
    hold: Any,
    constants: Any, throttle: Any,
    head: Any, free: Any, opens: Any, dispatched: Any, candidate: Any, previous_start: Any, visible: Any,
    ring_oldest: Any, ring_newest: Any,
    ring_used: Any, ring_next: Any, registered: Any,
    lane_free: Any, lane_owner: Any, core_state: Any, software_done: Any, port_free: Any, port_owner: Any,
    bank_free: Any, bank_owner: Any,
    start: Any, end: Any, done: Any, idle_from: Any, ready: Any, cause: Any, cause_kind: Any, reason: Any, by: Any,
    table_start: Any, transfer_start: Any, arrived_at: Any, lane_by: Any,
) -> int:  # fmt: skip
    """Fill the times; how many nodes ran. ``core_state`` is (function table, lane cursor, last software trigger, its
    descriptors) a core, ``software_done`` when its last four software DMAs are done.
    """
    queues = len(head)
    for q in range(queues):
        opens[q] = _opens(
            q, queue_nodes, queue_first[q], queue_first[q + 1], head, variant, dge, free, dispatched, start, constants
        )
        candidate[q] = _candidate(
            q, queue_nodes, queue_first[q + 1], head, pending, opens, ready, group, group_size, arrived, group_time,
            registered,
        )  # fmt: skip
    finished = 0
    while True:
        if len(group_size) > 0:
            # A queue that waits for a rendezvous is not told when the last partner arrives: look.
            for other in range(queues):
                if candidate[other] >= (1 << 62):
                    candidate[other] = _candidate(
                        other, queue_nodes, queue_first[other + 1], head, pending, opens, ready, group, group_size,
                        arrived, group_time, registered,
                    )  # fmt: skip
        q = 0
        for other in range(1, queues):
            if candidate[other] < candidate[q]:
                q = other
        if candidate[q] >= (1 << 62):
            return finished
        i = queue_nodes[head[q]]
        v = variant[i]
        core = q // 7
        kind = q % 7
        idle = opens[q]
        time = max(idle, ready[i])
        why = 0
        who = -1
        if group[i] >= 0 and group_time[group[i]] > time:
            time = group_time[group[i]]
            why = 5
        exposed = 0
        table_from = -1
        if table[v] > 0 and core_state[4 * core] != table[v]:
            table_from = idle
            idle += constants[6]
            time = max(time, idle)
        if load[v] > 0:
            loaded = max(ready[i], previous_start[q]) + load[v]
            if loaded > time:
                exposed = loaded - time
                time = loaded
                why = 1
        if constants[11] == 1 and ports[v] > 0:
            for p in range(2):
                if (ports[v] >> p) & 1 == 1 and port_owner[2 * core + p] >= 0:
                    owner = port_owner[2 * core + p]
                    if queue[owner] != q and port_free[2 * core + p] > time:
                        time = port_free[2 * core + p]
                        why = 2
                        who = owner
        if constants[12] == 1 and banks[i] > 0 and dge[v] == 0:
            left = banks[i]
            b = -1
            while left > 0:
                b += 1
                touched = left & 1
                left >>= 1
                if touched == 1 and bank_owner[16 * core + b] >= 0:
                    owner = bank_owner[16 * core + b]
                    if queue[owner] != q and bank_free[16 * core + b] > time:
                        time = bank_free[16 * core + b]
                        why = 3
                        who = owner
        if dge[v] == 2:
            time = max(time + constants[16], core_state[4 * core + 2] + interval[v])
            why = 6
        if dge[v] == 1:
            if ring_newest[q] >= 0 and start[ring_newest[q]] + constants[1] > time:
                time = start[ring_newest[q]] + constants[1]
                why = 4
                who = ring_newest[q]
            while ring_oldest[q] >= 0 and done[ring_oldest[q]] <= time:
                ring_used[q] -= descriptors[variant[ring_oldest[q]]]
                ring_oldest[q] = ring_next[ring_oldest[q]]
            while ring_oldest[q] >= 0 and ring_used[q] + descriptors[v] > constants[5]:
                oldest = ring_oldest[q]
                if done[oldest] > time:
                    time = done[oldest]
                    why = 4
                    who = oldest
                ring_used[q] -= descriptors[variant[oldest]]
                ring_oldest[q] = ring_next[oldest]
        if time > candidate[q]:
            # Another queue may start before; come back at this time, remembering why.
            candidate[q] = time
            reason[i] = why
            by[i] = who
            continue
        time = candidate[q]
        if why == 0:
            why = reason[i]
            who = by[i]
        if dge[v] == 2:
            core_state[4 * core + 2] = time
        if kind == 0 and constants[13] == 1 and exposed > 0 and why == 1:
            time = _stretch(5 * core, time - exposed, exposed, throttle, constants)
        # It starts.
        finished += 1
        start[i] = time
        # A trigger that runs ahead of its engine leaves no pause before it.
        idle_from[i] = min(time, max(idle, free[q]))
        reason[i] = why
        by[i] = who
        table_start[i] = table_from
        if table_from >= 0:
            core_state[4 * core] = table[v]
        length = busy[v]
        if dge[v] == 2:
            for slot in range(4):
                if software_done[4 * core + slot] > time:
                    length += constants[19]
        if kind == 0 and constants[13] == 1:
            # Issuing the next multiply is hidden behind one that is throttled, which also fills and drains slower.
            end[i] = max(time + length, _stretch(5 * core, time, length - issue[v], throttle, constants))
            done[i] = end[i] + latency[v] - length
            if throttle[5 * core + 2] == 0 and issue[v] > 0:
                done[i] += constants[18] * (constants[10] - 1)
        else:
            end[i] = time + length
            done[i] = end[i] + latency[v] - length
        if dge[v] == 0:
            # An engine's pipeline is in order: results do not overtake those of the instruction before.
            done[i] = max(done[i], visible[q])
            visible[q] = done[i]
        if dge[v] > 0:
            arrival = time + first_packet[v]
            backlog = 0
            if dge[v] == 2:
                # Software writes the descriptors engine by engine, behind those of the transfer before.
                backlog = max(0, core_state[4 * core + 3] + service[v] - arrival)
                core_state[4 * core + 3] = arrival + backlog
            arrived_at[i] = arrival
            first = 1 << 62
            last = arrival
            cursor = core_state[4 * core + 1]
            for lane in range(constants[14]):
                share = lane_high[v] if lane < lanes_high[v] else lane_low[v]
                if share > 0:
                    at = constants[14] * core + (cursor + lane) % constants[14]
                    # The first packet stands from the arrival of its descriptor to that of its data.
                    written = arrival + backlog * (lane + 1) // constants[14]
                    first = min(first, max(lane_free[at], written))
                    held = lane_free[at] > written + lead[v]
                    lane_free[at] = max(lane_free[at], written + lead[v]) + share
                    if lane_free[at] > last:
                        last = lane_free[at]
                        lane_by[i] = lane_owner[at] if held else -1
                    lane_owner[at] = i
            core_state[4 * core + 1] = (cursor + lanes_high[v]) % constants[14]
            transfer_start[i] = min(first, last)
            done[i] = last
            if dge[v] == 2:
                for slot in range(3, 0, -1):
                    software_done[4 * core + slot] = software_done[4 * core + slot - 1]
                software_done[4 * core] = last
            if dge[v] == 1:
                if ring_oldest[q] < 0:
                    ring_oldest[q] = i
                else:
                    ring_next[ring_newest[q]] = i
                ring_newest[q] = i
                ring_next[i] = -1
                ring_used[q] += descriptors[v]
        else:
            for p in range(2):
                if (ports[v] >> p) & 1 == 1:
                    port_free[2 * core + p] = start[i] + hold[v]
                    port_owner[2 * core + p] = i
            left = banks[i]
            b = -1
            while left > 0:
                b += 1
                touched = left & 1
                left >>= 1
                if touched == 1:
                    bank_free[16 * core + b] = end[i]
                    bank_owner[16 * core + b] = i
        free[q] = max(free[q], end[i])
        dispatched[q] = end[i] if dge[v] == 1 else max(dispatched[q], ready[i])
        previous_start[q] = time
        head[q] += 1
        opens[q] = _opens(
            q, queue_nodes, queue_first[q], queue_first[q + 1], head, variant, dge, free, dispatched, start, constants
        )
        for e in range(successor_first[i], successor_first[i + 1]):
            c = successor[e]
            pending[c] -= 1
            arrival = done[i] + successor_latency[e]
            if arrival > ready[c]:
                ready[c] = arrival
                cause[c] = i
                cause_kind[c] = successor_kind[e]
            other = queue[c]
            if (
                pending[c] == 0
                and other != q
                and head[other] < queue_first[other + 1]
                and queue_nodes[head[other]] == c
            ):
                candidate[other] = _candidate(
                    other, queue_nodes, queue_first[other + 1], head, pending, opens, ready, group, group_size, arrived,
                    group_time, registered,
                )  # fmt: skip
        candidate[q] = _candidate(
            q, queue_nodes, queue_first[q + 1], head, pending, opens, ready, group, group_size, arrived, group_time,
            registered,
        )  # fmt: skip
