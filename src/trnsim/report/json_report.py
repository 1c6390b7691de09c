"""The JSON report: for programs that judge kernels. Its types are in ``schema``."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.report.classes import class_costs
from trnsim.report.files import write_text_atomic
from trnsim.report.schema import (
    SCHEMA,
    CallReport,
    ClassReport,
    EngineReport,
    FindingReport,
    HolderReport,
    LineReport,
    MemoryReport,
    Report,
    TrackReport,
)
from trnsim.report.summary import summarize

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from trnsim.errors import Finding
    from trnsim.report.call import KernelCall
    from trnsim.report.classes import ClassCost
    from trnsim.report.summary import EngineUse, LineCost, MemoryPeak, Summary, TrackUse

VERSIONED = ("trnsim", "numpy", "ml_dtypes", "numba")


def report_json(calls: Sequence[KernelCall]) -> dict[str, Any]:
    """The report as plain dicts and lists, as documented in docs/reference/report-schema.md."""
    result: dict[str, Any] = msgspec.to_builtins(build_report(calls))
    return result


def write_json(calls: Sequence[KernelCall], path: str | os.PathLike[str]) -> None:
    """Write the report to ``path``, whole or not at all; ``-`` is standard output."""
    text = msgspec.json.format(msgspec.json.encode(build_report(calls)), indent=2).decode() + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text_atomic(path, text)


def build_report(calls: Sequence[KernelCall]) -> Report:
    """The report as types."""
    return Report(schema=SCHEMA, versions=versions(), calls=[call_report(summarize(call)) for call in calls])


def versions() -> dict[str, str]:
    """Versions of what results may depend on; a package that is not installed is left out."""
    result = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return result


def _us(ps: float) -> float:
    """Microseconds. Six decimals are a picosecond, so no rounding is needed."""
    return ps / 1e6


def call_report(summary: Summary) -> CallReport:
    """One call of the report."""
    call = summary.call
    totals = call.timeline.totals
    return CallReport(
        kernel=call.kernel,
        chip=call.chip,
        generation=call.generation,
        cores=call.cores,
        arguments=list(call.arguments),
        schedule=call.schedule,
        clock=call.clock,
        time_us=_us(summary.total_ps),
        spread_us=_us(int(call.timeline.spread_ps)),
        support=call.support,
        support_reason=call.support_reason,
        error_percent=call.error_percent,
        bound_by=summary.bound.by,
        bound_by_text=summary.bound.text,
        engines={e.name: _engine(e, summary.total_ps) for e in summary.engines},
        tracks=[_track(t) for t in summary.tracks],
        instructions=int(totals.instructions),
        flops=summary.flops,
        mfu=summary.mfu,
        hbm_read_bytes=summary.hbm_read_bytes,
        hbm_write_bytes=summary.hbm_write_bytes,
        hbm_bytes_per_second=summary.hbm_bytes_per_second,
        hbm_utilization=summary.hbm_utilization,
        sbuf_peak_bytes=summary.peak("sbuf") * call.memory_partitions,
        psum_peak_bytes=summary.peak("psum") * call.memory_partitions,
        memory=[_memory(m) for m in summary.memory],
        spills=int(totals.spills),
        lines=[_line(c, summary.total_ps) for c in summary.lines],
        instruction_classes=[_class(c) for c in class_costs(call)],
        findings=[_finding(f) for f in call.findings],
        numeric=call.numeric,
        seed=call.seed,
        nki_version=call.nki_version,
        nki_version_source=call.nki_version_source,
        wall_seconds=call.wall_seconds,
    )


def _waiting(waiting: Mapping[str, int]) -> dict[str, float]:
    return {reason: _us(time) for reason, time in waiting.items()}


def _engine(use: EngineUse, total: int) -> EngineReport:
    fraction = use.busy_ps / total if total else 0.0
    return EngineReport(_us(use.busy_ps), _waiting(use.waiting_ps), fraction, use.tracks)


def _track(use: TrackUse) -> TrackReport:
    kind = "dma" if use.kind == "dma" else "engine"
    return TrackReport(use.core, use.name, kind, _us(use.busy_ps), _waiting(use.waiting_ps), use.events)  # type: ignore[arg-type]


def _line(cost: LineCost, total: int) -> LineReport:
    return LineReport(
        file=cost.line.file,
        line=cost.line.line,
        function=cost.line.function,
        text=cost.line.text,
        active_us=_us(cost.active_ps),
        fraction=cost.active_ps / total if total else 0.0,
        busy_us=_us(cost.busy_ps),
        caused_waiting_us=_us(cost.caused_ps),
        instructions=cost.instructions,
        events=cost.events,
        engines=list(cost.engines),
    )


def _class(cost: ClassCost) -> ClassReport:
    return ClassReport(
        cost.core, cost.engine, cost.opcode, cost.line, cost.count, _us(cost.busy_ps), _us(cost.waiting_ps), cost.bytes
    )


def _memory(peak: MemoryPeak) -> MemoryReport:
    holders = [HolderReport(name, size, line) for name, size, line in peak.holders]
    return MemoryReport(peak.core, peak.memory, peak.peak, peak.capacity, holders)


def _finding(finding: Finding) -> FindingReport:
    where = finding.location
    return FindingReport(
        kind=finding.kind,
        severity=finding.severity,
        message=finding.message,
        count=finding.count,
        file=where.file if where else None,
        line=where.line if where else None,
        details={str(key): _plain(value) for key, value in finding.details.items()},
    )


def _plain(value: Any) -> Any:
    """``value`` if JSON has it, else its text."""
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return value
