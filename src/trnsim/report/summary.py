"""What all reports say about a kernel call, worked out once from its timeline and traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trnsim.report.intervals import sum_by_group, union_by_group
from trnsim.report.view import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trnsim.report.call import KernelCall
    from trnsim.report.view import SourceLine

ENGINE_NAMES = {
    "tensor": "TensorE",
    "vector": "VectorE",
    "scalar": "ScalarE",
    "gpsimd": "GpSimdE",
    "sync": "SyncE",
    "dma": "DMA",
}
NOTHING_IN_FLIGHT = "no transfer in flight"
BOUND_FRACTION = 0.5  # below this no engine is said to bound the kernel


@dataclass(frozen=True)
class TrackUse:
    """How one engine or DMA ring spent the time of the call."""

    core: int
    name: str
    kind: str
    busy_ps: int
    waiting_ps: Mapping[str, int]
    events: int


@dataclass(frozen=True)
class EngineUse:
    """An engine (mean over the cores), or all DMA rings together (``dma``: time with a transfer in flight)."""

    name: str
    busy_ps: int
    waiting_ps: Mapping[str, int]
    tracks: int

    @property
    def display(self) -> str:
        return ENGINE_NAMES.get(self.name, self.name)


@dataclass(frozen=True)
class LineCost:
    """What a source line cost.

    ``active_ps``: time in which at least one of its instructions ran; ``busy_ps``: the same summed over engines and
    rings; ``caused_ps``: engine time spent waiting for its instructions.
    """

    number: int  # in View.lines
    line: SourceLine
    active_ps: int
    busy_ps: int
    caused_ps: int
    events: int
    instructions: int
    engines: tuple[str, ...]


@dataclass(frozen=True)
class MemoryPeak:
    core: int
    memory: str
    peak: int
    capacity: int
    holders: Sequence[tuple[str, int, str]]


@dataclass(frozen=True)
class Bound:
    """``by``: an engine's name, ``dma``, ``latency`` (nothing is busy half of the time) or ``nothing``."""

    by: str
    text: str


@dataclass(frozen=True)
class Summary:
    call: KernelCall
    total_ps: int
    tracks: Sequence[TrackUse]
    engines: Sequence[EngineUse]
    lines: Sequence[LineCost]
    memory: Sequence[MemoryPeak]
    bound: Bound
    mfu: float | None
    hbm_read_bytes: int
    hbm_write_bytes: int
    hbm_bytes_per_second: float
    hbm_utilization: float | None
    flops: int
    view: View = field(repr=False)

    def peak(self, memory: str) -> int:
        """Largest peak of ``memory`` over the cores, bytes of one partition."""
        return max((m.peak for m in self.memory if m.memory == memory), default=0)


def summarize(call: KernelCall) -> Summary:
    """Work out everything that the reports share. Takes about a second for a million events."""
    view = View.of(call)
    total = view.total
    totals = call.timeline.totals
    flops = call.flops or int(totals.flops)
    seconds = total * 1e-12
    moved = int(totals.hbm_read_bytes) + int(totals.hbm_write_bytes)
    bandwidth = moved / seconds if seconds else 0.0
    tracks = _tracks(view)
    engines = _engines(view, tracks)
    return Summary(
        call=call,
        total_ps=total,
        tracks=tracks,
        engines=engines,
        lines=_line_costs(view),
        memory=_memory(call),
        bound=_bound(view, engines, bandwidth),
        mfu=flops / (call.peak_flops * seconds) if call.peak_flops and seconds and flops else None,
        hbm_read_bytes=int(totals.hbm_read_bytes),
        hbm_write_bytes=int(totals.hbm_write_bytes),
        hbm_bytes_per_second=bandwidth,
        hbm_utilization=bandwidth / call.hbm_bytes_per_second if call.hbm_bytes_per_second else None,
        flops=flops,
        view=view,
    )


def _tracks(view: View) -> list[TrackUse]:
    count, names = len(view.tracks), view.call.wait_reasons
    events, waits = view.events, view.waits
    busy = union_by_group(events.track, events.start, events.end, count)
    numbers = np.bincount(events.track, minlength=count)
    key = waits.track * len(names) + waits.reason
    waiting = sum_by_group(key, waits.end - waits.start, count * len(names)).reshape(count, len(names))
    return [
        TrackUse(
            core=track.core,
            name=track.name,
            kind=track.kind,
            busy_ps=int(busy[i]),
            waiting_ps=_largest_first({name: int(time) for name, time in zip(names, waiting[i], strict=True) if time}),
            events=int(numbers[i]),
        )
        for i, track in enumerate(view.tracks)
    ]


def _largest_first(waiting: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(waiting.items(), key=lambda item: -item[1]))


def _in_order(names: Iterable[str]) -> list[str]:
    """Engines in the documentation's order, then ``dma``."""
    order = list(ENGINE_NAMES)
    return sorted(set(names), key=lambda n: (order.index(n) if n in order else len(order), n))


def _engines(view: View, tracks: Sequence[TrackUse]) -> list[EngineUse]:
    """Times are means over cores, so that busy and waiting add up to the total."""
    result = []
    for name in _in_order(t.name for t in tracks if t.kind != "dma"):
        mine = [t for t in tracks if t.name == name and t.kind != "dma"]
        waiting: dict[str, int] = {}
        for use in mine:
            for reason, time in use.waiting_ps.items():
                waiting[reason] = waiting.get(reason, 0) + time
        mean = _largest_first({reason: time // len(mine) for reason, time in waiting.items()})
        result.append(EngineUse(name, sum(t.busy_ps for t in mine) // len(mine), mean, len(mine)))
    rings = np.array([t.kind == "dma" for t in view.tracks], bool)
    if rings.any():
        events = view.events
        moving = rings[events.track]
        cores = max(t.core for t in view.tracks) + 1
        busy = union_by_group(view.core[moving], events.start[moving], events.end[moving], cores)
        with_rings = len({t.core for t in view.tracks if t.kind == "dma"})
        mean_busy = int(busy.sum()) // with_rings
        idle = view.total - mean_busy
        result.append(EngineUse("dma", mean_busy, {NOTHING_IN_FLIGHT: idle} if idle else {}, int(rings.sum())))
    return result


def _line_costs(view: View) -> list[LineCost]:
    count = len(view.lines)
    known = np.flatnonzero(view.line >= 0)
    line, track = view.line[known], view.events.track[known]
    start, end = view.events.start[known], view.events.end[known]
    active = union_by_group(line, start, end, count)
    busy = sum_by_group(line, end - start, count)
    events = np.bincount(line, minlength=count)
    instructions = np.zeros(count, np.int64)
    for trace in view.traces:
        instructions += np.bincount(trace.line[trace.line >= 0], minlength=count)
    waits = view.waits
    engine = np.array([t.kind != "dma" for t in view.tracks], bool)
    blamed = np.flatnonzero((waits.released_by >= 0) & engine[waits.track])
    to = view.line[waits.released_by[blamed]]
    caused = sum_by_group(to[to >= 0], (waits.end - waits.start)[blamed][to >= 0], count)
    names = ["dma" if t.kind == "dma" else t.name for t in view.tracks]
    engines: dict[int, set[str]] = {}
    for i, j in np.unique(np.stack((line, track)), axis=1).T.tolist():
        engines.setdefault(i, set()).add(names[j])
    costs = [
        LineCost(
            number=i,
            line=view.lines[i],
            active_ps=int(active[i]),
            busy_ps=int(busy[i]),
            caused_ps=int(caused[i]),
            events=int(events[i]),
            instructions=int(instructions[i]),
            engines=tuple(_in_order(engines.get(i, ()))),
        )
        for i in range(count)
        if instructions[i]
    ]
    return sorted(costs, key=lambda c: (-c.active_ps, -c.caused_ps, c.line.file, c.line.line))


def _memory(call: KernelCall) -> list[MemoryPeak]:
    return [
        MemoryPeak(
            core=use.core,
            memory=use.memory,
            peak=int(use.peak),
            capacity=int(use.capacity),
            holders=[(str(name), int(size), str(line)) for name, size, line in use.holders],
        )
        for use in call.timeline.memory
    ]


def _bound(view: View, engines: Sequence[EngineUse], bandwidth: float) -> Bound:
    if not view.total or not any(e.busy_ps for e in engines):
        return Bound("nothing", "no instruction took time")
    top = max(engines, key=lambda e: e.busy_ps)
    percent = 100 * top.busy_ps / view.total
    latency = percent < 100 * BOUND_FRACTION
    text = f"latency: {top.display} is busiest, {percent:.0f} %" if latency else f"{top.display}: {percent:.0f} % busy"
    peak = view.call.hbm_bytes_per_second
    if top.name == "dma" and peak:
        text += f", at {100 * bandwidth / peak:.0f} % of HBM bandwidth"
    compute = [e for e in engines if e.name != "dma" and e.busy_ps]
    if compute:
        wait = _largest_wait(view, max(compute, key=lambda e: e.busy_ps))
        text += f"; {wait}" if wait else ""
    return Bound("latency" if latency else top.name, text)


def _largest_wait(view: View, engine: EngineUse) -> str:
    """``TensorE waits 17 % for DMA (rhs, matmul.py:64)``: the worst reason, and the line most to blame for it."""
    waits, names = view.waits, view.call.wait_reasons
    tracks = [i for i, t in enumerate(view.tracks) if t.name == engine.name and t.kind != "dma"]
    length = waits.end - waits.start
    # What an engine does after its last instruction is not waiting for anything.
    mine = np.isin(waits.track, tracks) & (waits.before >= 0)
    by_reason = sum_by_group(waits.reason[mine], length[mine], len(names))
    if not by_reason.any():
        return ""
    worst = int(np.argmax(by_reason))
    percent = 100 * by_reason[worst] / (view.total * len(tracks))
    text = f"{engine.display} waits {percent:.0f} % for {names[worst]}"
    rows = np.flatnonzero(mine & (waits.reason == worst) & (waits.released_by >= 0))
    event = waits.released_by[rows]
    line = view.line[event]
    if not (line >= 0).any():
        return text
    by_line = sum_by_group(line[line >= 0], length[rows][line >= 0], len(view.lines))
    blamed = int(np.argmax(by_line))
    written = view.written_storage(int(event[np.flatnonzero(line == blamed)[0]]))
    where = view.lines[blamed].short
    return f"{text} ({written}, {where})" if written else f"{text} ({where})"
