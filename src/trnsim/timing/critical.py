"""The critical path: the chain of work and latencies that leads from the start of a run to its end without a gap.

From what ended last it goes back to what let each piece start when it did: the semaphore that arrived last, the
instruction before it on an in-order engine, the holder of a port, bank or ring, the partner of a rendezvous, or for a
transfer the one that kept the DMA engines busy. Shortening anything that is not on the path changes nothing at first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InternalError
from trnsim.timing.dependences import EXPLICIT, PSUM_SPACE, RAW, SBUF_SPACE, SPILL, WAR, WAW
from trnsim.timing.machine import BANK, LOAD, MEETING, PORT, PREPARE, RING
from trnsim.timing.tables import NO_DMA, QUEUE_COUNT, SOFTWARE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.timing.machine import Run
    from trnsim.timing.simulate import Stages

    Column = NDArray[np.signedinteger[Any]]

WHAT = (
    "running",
    "throttled",
    "fill and drain",
    "semaphore",
    "stationary load",
    "function table load",
    "DMA trigger",
    "descriptor generation",
    "first packet",
    "transfer",
    "DMA completion",
)
(RUNNING, THROTTLED, DRAIN, SEMAPHORE, LOADING, TABLE, TRIGGER, DESCRIPTORS, FIRST_PACKET, TRANSFER, COMPLETION) = (
    range(len(WHAT))
)

LINKS = (
    "start",
    "data",
    "engine in order",
    "dma engines busy",
    "tile in use",
    "sbuf space",
    "psum space",
    "spill",
    "explicit order",
    "port conflict",
    "psum bank conflict",
    "dma ring full",
    "rendezvous",
)
(START, DATA, IN_ORDER, DMA_BUSY, REUSE, SBUF, PSUM, SPILLED, ORDERED, PORTS, BANKS, RINGS, MEETINGS) = range(
    len(LINKS)
)
RESULT, END, BEGIN = range(3)  # what of a node the path goes on from: its result, its engine being free, its start
_KINDS = {RAW: DATA, WAR: REUSE, WAW: REUSE, SBUF_SPACE: SBUF, PSUM_SPACE: PSUM, SPILL: SPILLED, EXPLICIT: ORDERED}
_HOLDERS = {PORT: PORTS, BANK: BANKS, RING: RINGS}


@dataclass(frozen=True)
class CriticalPath:
    """Pieces of the path, the last first; together they cover the run from 0 to ``total_ps`` without gap or overlap.

    Columns: ``node`` (of the machine), ``core``, ``queue`` (of the core), ``row`` (of the core's trace; -1: a spill),
    ``opcode``, ``what`` (of ``WHAT``), ``start``, ``end``, and ``link`` (of ``LINKS``): why it follows what comes
    before it in time; within the same instruction that is ``data``.
    """

    total_ps: int
    node: Column
    core: Column
    queue: Column
    row: Column
    opcode: Column
    what: Column
    link: Column
    start: Column
    end: Column

    def __len__(self) -> int:
        return len(self.node)


def critical_path(stages: Stages) -> CriticalPath:
    """The path of the run nearest to the mean over the throttle's phases."""
    walk = _Walk(stages, stages.typical)
    walk.go()
    pieces = np.array(walk.pieces, np.int64).reshape(-1, 5)
    node = pieces[:, 0]
    nodes, linked = stages.linked.nodes, stages.linked
    return CriticalPath(
        total_ps=stages.typical.total,
        node=node,
        core=linked.core[node],
        queue=nodes.queue[node] % QUEUE_COUNT,
        row=linked.row[node],
        opcode=stages.tables.column("opcode")[nodes.variant[node]],
        what=pieces[:, 1],
        link=pieces[:, 4],
        start=pieces[:, 2],
        end=pieces[:, 3],
    )


class _Walk:
    """Going back from the end. ``time`` is what the path is known from, ``pieces`` are found the last first."""

    def __init__(self, stages: Stages, run: Run) -> None:
        nodes, tables = stages.linked.nodes, stages.tables
        self.run, self.constants = run, stages.timing
        self.pieces: list[tuple[int, int, int, int, int]] = []
        variant = nodes.variant
        self.dge = tables.column("dge")[variant]
        self.interval = tables.column("interval")[variant]
        self.busy = tables.column("busy")[variant]
        lanes = np.maximum(tables.column("lane_low"), tables.column("lane_high"))
        self.share = np.rint(lanes * stages.stretch).astype(np.int64)[variant]
        self.group = nodes.group
        self.before = np.full(len(variant), -1, np.int64)
        first = np.zeros(len(nodes.queue_nodes), bool)
        first[nodes.queue_first[:-1][nodes.queue_first[:-1] < len(first)]] = True
        later = np.flatnonzero(~first)
        self.before[nodes.queue_nodes[later]] = nodes.queue_nodes[later - 1]

    def go(self) -> None:
        run = self.run
        if not run.total:
            return
        last = np.maximum(run.end, run.done)
        node, time = int(np.argmax(last)), run.total
        since = RESULT if int(run.done[node]) >= time else END
        while time > 0:
            if since == RESULT and self.dge[node] != NO_DMA:
                node, time = self._transfer(node, time)
            elif since != BEGIN:
                if since == RESULT:
                    time = self._add(node, DRAIN, int(run.end[node]), time)
                time = self._running(node, time)
            node, time, since = self._cause(node, time)

    def _add(self, node: int, what: int, start: int, end: int, link: int = DATA) -> int:
        """One piece, where it has a length; its start."""
        if end > start:
            self.pieces.append((node, what, start, end, link))
        return min(start, end)

    def _link(self, link: int) -> None:
        """Why the earliest piece so far could not start before."""
        if self.pieces:
            self.pieces[-1] = (*self.pieces[-1][:4], link)

    def _running(self, node: int, time: int) -> int:
        """Back from where the engine was free for the next one."""
        start = int(self.run.start[node])
        if self.dge[node] != NO_DMA:
            return self._add(node, TRIGGER, start, time)
        full_rate = max(start, time - int(self.busy[node]))
        return self._add(node, THROTTLED, start, self._add(node, RUNNING, full_rate, time))

    def _transfer(self, node: int, time: int) -> tuple[int, int]:
        """Back over a transfer, and over those that kept the DMA engines busy before it, to a trigger's start."""
        run, dma = self.run, self.constants.dma
        while run.lane_by[node] >= 0 and time - self.share[node] > run.arrival[node]:
            time = self._add(node, TRANSFER, time - int(self.share[node]), time)
            self._link(DMA_BUSY)
            node = int(run.lane_by[node])
        arrival, start = int(run.arrival[node]), int(run.start[node])
        time = self._add(node, TRANSFER, min(arrival, time), time)
        if self.dge[node] == SOFTWARE:
            time = self._add(node, FIRST_PACKET, max(start, time - dma.software_first_packet_ps), time)
            return node, self._add(node, DESCRIPTORS, start, time)
        return node, self._add(node, FIRST_PACKET, start, time)

    def _cause(self, node: int, time: int) -> tuple[int, int, int]:
        """What let ``node`` start at ``time``: the node to go on with, from when, and from what of it."""
        run, reason = self.run, int(self.run.reason[node])
        if reason == LOAD:
            previous = int(self.before[node])
            begun = int(run.start[previous]) if previous >= 0 else 0
            if previous < 0 or (run.cause[node] >= 0 and run.ready[node] >= begun):
                return self._data(node, self._add(node, LOADING, int(run.ready[node]), time))
            time = self._add(node, LOADING, begun, time)
            self._link(IN_ORDER)
            return previous, time, BEGIN  # loaded behind the one before, from when that started
        if reason == PREPARE:
            earlier = self._software_before(node)
            begun = int(run.start[earlier]) if earlier >= 0 else -1
            if earlier >= 0 and begun + int(self.interval[node]) >= time:
                self._add(node, DESCRIPTORS, begun, time)
                self._link(IN_ORDER)
                return earlier, begun, BEGIN
            time = self._add(node, DESCRIPTORS, max(0, time - self.constants.dma.software_prepare_ps), time)
        if reason in _HOLDERS and run.by[node] >= 0:
            holder = int(run.by[node])
            if reason == RING and run.done[holder] > time:  # triggers of one ring keep their distance
                time = self._add(node, DESCRIPTORS, int(run.start[holder]), time)
                self._link(RINGS)
                return holder, time, BEGIN
            self._link(_HOLDERS[reason])
            return holder, time, RESULT if reason == RING else END
        if reason == MEETING:
            partners = np.flatnonzero(self.group == self.group[node])
            late = int(partners[np.argmax(np.maximum(run.idle_from[partners], run.ready[partners]))])
            if late != node:
                self._link(MEETINGS)
                node = late
        if run.cause[node] >= 0 and run.ready[node] >= time:
            return self._data(node, time)
        if run.table_start[node] >= 0 and run.idle_from[node] >= time:
            time = self._add(node, TABLE, int(run.table_start[node]), time)
        previous = int(self.before[node])
        if previous < 0:
            return self._begun(node, time)
        self._link(IN_ORDER)
        return previous, time, END

    def _software_before(self, node: int) -> int:
        """The software DMA that this engine triggered before ``node``; -1."""
        found = int(self.before[node])
        while found >= 0 and self.dge[found] != SOFTWARE:
            found = int(self.before[found])
        return found

    def _data(self, node: int, time: int) -> tuple[int, int, int]:
        cause = int(self.run.cause[node])
        if cause < 0:
            return self._begun(node, time)
        what = SEMAPHORE if self.dge[cause] == NO_DMA else COMPLETION
        time = self._add(cause, what, int(self.run.done[cause]), time)
        self._link(_KINDS.get(int(self.run.cause_kind[node]), DATA))
        return cause, time, RESULT

    def _begun(self, node: int, time: int) -> tuple[int, int, int]:
        if time > 0:
            raise InternalError(
                f"the critical path ends {time} ps after the start, where nothing is known to be awaited"
            )
        self._link(START)
        return node, 0, BEGIN
