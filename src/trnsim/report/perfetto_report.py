"""The timeline for ui.perfetto.dev: a process a core, a track an engine and DMA ring, counters, arrows.

Perfetto counts nanoseconds; starts and ends are rounded down to them, the exact picoseconds stand in the arguments.
Calls follow one another in time.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError
from trnsim.report.files import write_bytes_atomic
from trnsim.report.intervals import lanes, rate
from trnsim.report.summary import ENGINE_NAMES
from trnsim.report.view import View

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from trnsim.report.call import KernelCall

MAX_FLOWS = 20_000  # arrows of the longest waits; more would make the trace slow to open
BANDWIDTH_BINS = 2000
SEQUENCE = 1


def write_perfetto(calls: Sequence[KernelCall], path: str | os.PathLike[str]) -> None:
    """Write ``calls`` as a Perfetto trace to ``path``, whole or not at all.

    Raises InputError when the ``perfetto`` package is not installed.
    """
    write_bytes_atomic(path, perfetto_bytes(calls))


def perfetto_bytes(calls: Sequence[KernelCall]) -> bytes:
    """The trace as bytes."""
    stream = io.BytesIO()
    writer = trace_writer(stream)
    offset = 0
    for number, call in enumerate(calls):
        view = View.of(call)
        _CallWriter(writer, view, number, offset).write()
        offset += view.total // 1000 + 1000
    return stream.getvalue()


def trace_writer(stream: io.BytesIO) -> TraceWriter:
    """What writes packets of a new trace to ``stream``; InputError when the ``perfetto`` package is not installed."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
    except ImportError as error:
        raise InputError("a Perfetto trace needs the perfetto package: pip install 'trnsim[perfetto]'") from error
    return TraceWriter(StreamingTraceProtoBuilder(stream), protos)


class TraceWriter:
    """Packets of one sequence, with names interned."""

    def __init__(self, builder: Any, protos: Any) -> None:
        self._builder = builder
        self.event = protos.TrackEvent
        self.unit = protos.CounterDescriptor
        self._names: dict[tuple[str, str], int] = {}
        self._cleared = protos.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        self._needs = protos.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        self._uuid = 0

    def _packet(self) -> Any:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        packet.sequence_flags = self._needs if self._names else self._cleared | self._needs
        return packet

    def _name(self, packet: Any, table: str, name: str) -> int:
        key = (table, name)
        if key not in self._names:
            self._names[key] = len(self._names) + 1
            entry = getattr(packet.interned_data, table).add()
            entry.iid, entry.name = self._names[key], name
        return self._names[key]

    def track(self, name: str, parent: int = 0, *, pid: int = 0, counter: str = "", order: int = 0) -> int:
        """A new track, under ``parent``; a process when it has a ``pid``; returns its number."""
        self._uuid += 1
        packet = self._packet()
        # Descriptors need no interned state, and nothing is interned by them.
        packet.ClearField("sequence_flags")
        descriptor = packet.track_descriptor
        descriptor.uuid = self._uuid
        if pid:
            descriptor.process.pid = pid
            descriptor.process.process_name = name
        else:
            descriptor.name = name
            descriptor.sibling_order_rank = order
        descriptor.child_ordering = descriptor.EXPLICIT
        if parent:
            descriptor.parent_uuid = parent
        if counter == "bytes":
            descriptor.counter.unit = self.unit.UNIT_SIZE_BYTES
        elif counter:
            descriptor.counter.unit_name = counter
        self._builder.write_packet(packet)
        return self._uuid

    def begin(
        self,
        track: int,
        time: int,
        name: str,
        *,
        category: str,
        arguments: Mapping[str, str | int],
        flows: Iterable[int] = (),
        ended_flows: Iterable[int] = (),
    ) -> None:
        packet = self._packet()
        packet.timestamp = time
        event = packet.track_event
        event.type, event.track_uuid = self.event.TYPE_SLICE_BEGIN, track
        event.name_iid = self._name(packet, "event_names", name)
        event.category_iids.append(self._name(packet, "event_categories", category))
        for key, value in arguments.items():
            annotation = event.debug_annotations.add()
            annotation.name_iid = self._name(packet, "debug_annotation_names", key)
            if isinstance(value, str):
                annotation.string_value = value
            else:
                annotation.int_value = value
        event.flow_ids.extend(flows)
        event.terminating_flow_ids.extend(ended_flows)
        self._builder.write_packet(packet)

    def end(self, track: int, time: int) -> None:
        packet = self._packet()
        packet.timestamp = time
        packet.track_event.type, packet.track_event.track_uuid = self.event.TYPE_SLICE_END, track
        self._builder.write_packet(packet)

    def counter(self, track: int, time: int, value: float) -> None:
        packet = self._packet()
        packet.timestamp = time
        packet.track_event.type, packet.track_event.track_uuid = self.event.TYPE_COUNTER, track
        packet.track_event.double_counter_value = value
        self._builder.write_packet(packet)


class _CallWriter:
    """One call's processes, tracks and events, ``offset`` nanoseconds into the trace."""

    def __init__(self, writer: TraceWriter, view: View, number: int, offset: int) -> None:
        self.writer = writer
        self.view = view
        self.offset = offset
        self.number = number
        self.flows, self.ended_flows = self._choose_flows()
        waits = view.waits
        self.wait_of = {int(event): i for i, event in enumerate(waits.before.tolist()) if event >= 0}

    def write(self) -> None:
        view, call = self.view, self.view.call
        cores = sorted({t.core for t in view.tracks})
        processes = {
            core: self.writer.track(f"{call.kernel} core {core}", pid=self.number * 1000 + core + 1) for core in cores
        }
        order = np.lexsort((view.events.start, view.events.track))
        edges = np.searchsorted(view.events.track[order], np.arange(len(view.tracks) + 1))
        wait_order = np.lexsort((view.waits.start, view.waits.track))
        wait_edges = np.searchsorted(view.waits.track[wait_order], np.arange(len(view.tracks) + 1))
        for i, track in enumerate(view.tracks):
            events = order[edges[i] : edges[i + 1]]
            if not len(events):
                continue
            name = track.name if track.kind == "dma" else ENGINE_NAMES.get(track.name, track.name)
            self._track(name, processes[track.core], i, events, wait_order[wait_edges[i] : wait_edges[i + 1]])
        self._counters(processes)

    def _choose_flows(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """Flow numbers that begin and end at each event, for the longest waits that have both."""
        waits = self.view.waits
        known = np.flatnonzero((waits.before >= 0) & (waits.released_by >= 0))
        longest = known[np.argsort(-(waits.end - waits.start)[known], kind="stable")[:MAX_FLOWS]]
        begun: dict[int, list[int]] = {}
        ended: dict[int, list[int]] = {}
        for flow, wait in enumerate(longest.tolist(), start=self.number * 1_000_000 + 1):
            begun.setdefault(int(waits.released_by[wait]), []).append(flow)
            ended.setdefault(int(waits.before[wait]), []).append(flow)
        return begun, ended

    def _ns(self, ps: int) -> int:
        return self.offset + int(ps) // 1000

    def _track(self, name: str, process: int, order: int, events: Any, waits: Any) -> None:
        """Slices of one engine or ring; where they overlap (transfers of a ring), on several tracks of one name."""
        columns = self.view.events
        lane = lanes(columns.start[events], columns.end[events])
        for number in range(int(np.max(lane)) + 1):
            uuid = self.writer.track(name, process, order=order)
            mine = events[lane == number].tolist()
            slices = [(int(columns.start[e]), e, -1) for e in mine]
            if not lane.any():
                slices += [(int(self.view.waits.start[w]), -1, w) for w in waits.tolist()]
            for _, event, wait in sorted(slices):
                if event >= 0:
                    self._event(uuid, event)
                else:
                    self._wait(uuid, wait)

    def _event(self, uuid: int, event: int) -> None:
        columns, view = self.view.events, self.view
        name = view.call.timeline.opcodes[int(columns.opcode[event])]
        begun, ended = self.flows.get(event, ()), self.ended_flows.get(event, ())
        self.writer.begin(
            uuid,
            self._ns(columns.start[event]),
            name,
            category="instruction",
            arguments=self._arguments(event),
            flows=begun,
            ended_flows=ended,
        )
        self.writer.end(uuid, self._ns(columns.end[event]))

    def _arguments(self, event: int) -> dict[str, str | int]:
        view, columns = self.view, self.view.events
        arguments: dict[str, str | int] = {
            "start_ps": int(columns.start[event]),
            "busy_ps": int(columns.end[event] - columns.start[event]),
            "visible_ps": int(columns.done[event]),
        }
        if columns.bytes[event]:
            arguments["bytes"] = int(columns.bytes[event])
        instruction = view.instruction_name(event)
        if instruction:
            arguments["instruction"] = f"{instruction} #{int(columns.instruction[event])}"
        if view.line[event] >= 0:
            line = view.lines[int(view.line[event])]
            arguments["source"] = f"{line.file}:{line.line}"
            if line.text:
                arguments["text"] = line.text
        for operand in view.operands(event):
            arguments[f"{operand.name} ({operand.role})"] = str(operand)
        wait = self.wait_of.get(event)
        return arguments if wait is None else {**arguments, **self._waited(wait)}

    def _waited(self, wait: int) -> dict[str, str | int]:
        view, waits = self.view, self.view.waits
        result: dict[str, str | int] = {
            "waited_for": view.call.wait_reasons[int(waits.reason[wait])],
            "waited_ps": int(waits.end[wait] - waits.start[wait]),
        }
        by = int(waits.released_by[wait])
        if by >= 0:
            track = view.tracks[int(view.events.track[by])]
            where = f", {view.lines[int(view.line[by])].short}" if view.line[by] >= 0 else ""
            opcode = view.call.timeline.opcodes[int(view.events.opcode[by])]
            result["released_by"] = f"{opcode} on core {track.core} {track.name}{where}"
        return result

    def _wait(self, uuid: int, wait: int) -> None:
        waits = self.view.waits
        if waits.before[wait] < 0:
            return  # nothing is left to do: the empty track says so
        reason = self.view.call.wait_reasons[int(waits.reason[wait])]
        self.writer.begin(
            uuid, self._ns(waits.start[wait]), f"wait: {reason}", category="wait", arguments=self._waited(wait)
        )
        self.writer.end(uuid, self._ns(waits.end[wait]))

    def _counters(self, processes: Mapping[int, int]) -> None:
        view = self.view
        for use in view.call.timeline.memory:
            name = f"{use.memory.upper()} bytes a partition"
            uuid = self.writer.track(name, processes.get(use.core, 0), counter="bytes", order=1000)
            for time, size in zip(np.asarray(use.times).tolist(), np.asarray(use.bytes).tolist(), strict=True):
                self.writer.counter(uuid, self._ns(time), size)
        moving = view.touches_hbm()
        if not moving.any():
            return
        for core, process in processes.items():
            mine = np.flatnonzero(moving & (view.core == core))
            if not len(mine):
                continue
            events = view.events
            times, amounts = rate(events.start[mine], events.end[mine], events.bytes[mine], view.total, BANDWIDTH_BINS)
            seconds = view.total * 1e-12 / BANDWIDTH_BINS
            uuid = self.writer.track("HBM bandwidth", process, counter="GB/s", order=1001)
            for time, amount in zip(times.tolist(), amounts.tolist(), strict=True):
                self.writer.counter(uuid, self._ns(int(time)), amount / seconds / 1e9)
            self.writer.counter(uuid, self._ns(view.total), 0.0)
