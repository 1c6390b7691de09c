"""A model's run for ui.perfetto.dev: steps, modules inside each other, regions, engines; HBM by kind as counters."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from trnsim.frameworks.torch.reporting.tables import ENGINE_NAMES, ENGINES, operator_of
from trnsim.report.files import write_bytes_atomic
from trnsim.report.perfetto_report import TraceWriter, trace_writer

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from trnsim.frameworks.torch.report import RegionCost, Report, StepTime

MAX_REGIONS = 60_000  # a trace with more is slow to write and to open; steps beyond are drawn without their regions
PROCESS = 1


def write_perfetto(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the run as a Perfetto trace to ``path``, whole or not at all.

    Raises InputError when the ``perfetto`` package is not installed.
    """
    write_bytes_atomic(path, perfetto_bytes(report))


def perfetto_bytes(report: Report) -> bytes:
    """The trace as bytes. Perfetto counts nanoseconds; the exact picoseconds stand in the arguments."""
    stream = io.BytesIO()
    writer = trace_writer(stream)
    process = writer.track(f"{report.chip} {report.format}", pid=PROCESS)
    tracks = {"steps": writer.track("steps", process, order=0), "modules": writer.track("modules", process, order=1)}
    busy = report.times("engine")
    for order, engine in enumerate([e for e in ENGINES if e in busy], start=2):
        tracks[engine] = writer.track(ENGINE_NAMES.get(engine, engine), process, order=order)
    left = MAX_REGIONS
    drawn = []
    for step in report.steps:
        regions = report.regions[step.graph]
        drawn.append(len(regions) <= left)
        left -= len(regions) if drawn[-1] else 0
    for number, (step, whole) in enumerate(zip(report.steps, drawn, strict=True)):
        _step(writer, tracks["steps"], report, step, number, whole=whole)
    for step in (s for s, whole in zip(report.steps, drawn, strict=True) if whole):
        _modules(writer, tracks["modules"], report.regions[step.graph], step.start_ps)
    for engine in (e for e in ENGINES if e in tracks):
        for step in (s for s, whole in zip(report.steps, drawn, strict=True) if whole):
            _engine(writer, tracks[engine], engine, report.regions[step.graph], step.start_ps)
    _memory(writer, process, report)
    return stream.getvalue()


def _ns(ps: float) -> int:
    return int(ps) // 1000


def _step(writer: TraceWriter, track: int, report: Report, step: StepTime, number: int, *, whole: bool) -> None:
    arguments: dict[str, str | int] = {"step": number, "time_ps": int(step.time_ps), "graph": step.graph}
    if not whole:
        arguments["regions"] = f"{len(report.regions[step.graph]):,}, not drawn: the trace has {MAX_REGIONS:,} already"
    writer.begin(track, _ns(step.start_ps), step.name, category="step", arguments=arguments)
    writer.end(track, _ns(step.start_ps + step.time_ps))


def _modules(writer: TraceWriter, track: int, regions: Sequence[RegionCost], offset: float) -> None:
    """Slices for phases, the modules in them, and the regions in those; a module stays open from region to region."""
    open_names: list[str] = []
    end = offset
    for region in sorted(regions, key=lambda r: r.start_ps):
        names = [region.phase, *filter(None, region.module.split("."))]
        shared = 0
        while shared < min(len(open_names), len(names)) and open_names[shared] == names[shared]:
            shared += 1
        for _ in open_names[shared:]:
            writer.end(track, _ns(end))
        start = offset + region.start_ps
        for name in names[shared:]:
            writer.begin(track, _ns(start), name, category="module", arguments={})
        open_names = names
        arguments: dict[str, str | int] = {
            "time_ps": int(region.time_ps),
            "unfused_ps": int(region.unfused_ps),
            "hbm_bytes": region.hbm_bytes,
            "flops": region.flops,
            "aten": ", ".join(region.aten),
            "priced as": ", ".join(region.operators),
            "bound by": region.bound,
            "support": region.support + (f": {region.reason}" if region.reason else ""),
            "line": region.line,
        }
        end = start + region.time_ps
        writer.begin(track, _ns(start), operator_of(region), category="region", arguments=arguments)
        writer.end(track, _ns(end))
    for _ in open_names:
        writer.end(track, _ns(end))


def _engine(writer: TraceWriter, track: int, engine: str, regions: Sequence[RegionCost], offset: float) -> None:
    """How long an engine works for each region; within the region it is drawn from its start."""
    for region in sorted(regions, key=lambda r: r.start_ps):
        busy = min(region.busy_ps.get(engine, 0.0), region.time_ps)
        if busy >= 1000:
            start = offset + region.start_ps
            share = round(100 * busy / region.time_ps)
            writer.begin(track, _ns(start), operator_of(region), category="engine",
                         arguments={"busy_ps": int(busy), "percent of the region": share})  # fmt: skip
            writer.end(track, _ns(start + busy))


def _memory(writer: TraceWriter, process: int, report: Report) -> None:
    memory = report.memory
    series = {kind: np.asarray(sizes, np.int64) for kind, sizes in memory.bytes.items()}
    if not series:
        return
    series = {"all": np.sum(list(series.values()), axis=0), **series}
    for order, (kind, sizes) in enumerate(series.items()):
        track = writer.track(f"HBM {kind}", process, counter="bytes", order=1000 + order)
        changed = np.flatnonzero(np.diff(sizes, prepend=sizes[:1] - 1))
        for i in changed.tolist():
            writer.counter(track, _ns(memory.times_ps[i]), int(sizes[i]))
