"""Traces in, timeline out: a pure function."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError
from trnsim.hardware.timing_constants import load_timing
from trnsim.timing.compile import compile_core
from trnsim.timing.compiled import use_compiled
from trnsim.timing.draw import draw_events, draw_memory, draw_waits
from trnsim.timing.link import link
from trnsim.timing.machine import execute
from trnsim.timing.options import ONE_RING, RENAME_TILES, TimingOptions
from trnsim.timing.tables import QUEUE_COUNT, TENSOR, ClassTables
from trnsim.timing.tensorizer import renamed, tensorize
from trnsim.timing.timeline import Timeline, Totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.hardware.model import Chip
    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.trace import Trace
    from trnsim.timing.compile import CoreProgram
    from trnsim.timing.link import Linked
    from trnsim.timing.machine import Run


# Nodes from which the phases of the throttle are worth a thread each.
THREADS_FROM = 20_000
# Nodes from which only the typical run is kept: a run has 80 bytes a node.
KEEP_RUNS = 3_000_000


@dataclass
class Stages:
    """What both stages made of the traces: programs, what the machine ran, and a run for each phase of the throttle."""

    traces: Sequence[Trace]
    """What was timed: the recorded traces, or what the compiler stage made of them."""
    programs: list[CoreProgram]
    tables: ClassTables
    linked: Linked
    totals: list[int]
    """The time of the run of each phase."""
    typical: Run
    """The run whose time is nearest to the mean."""
    timing: Timing
    stretch: float
    """How much longer DMA packets take than their cost says."""

    @property
    def mean_ps(self) -> int:
        """The predicted time: the mean over the phases."""
        return _mean(self.totals)


def _mean(totals: Sequence[int]) -> int:
    return round(sum(totals) / len(totals))


def run_stages(
    traces: Sequence[Trace],
    chip: Chip,
    options: TimingOptions | None = None,
    *,
    compiled: bool | None = None,
) -> Stages:
    """Both stages, without drawing a timeline. Raises as ``simulate``."""
    options = options or TimingOptions()
    if not traces:
        raise InputError("no trace to time")
    timing = load_timing(chip)
    core = chip.core
    assert core is not None
    if compiled is None:
        compiled = use_compiled(sum(len(t) for t in traces))
    if options.schedule == "tensorizer":
        traces = [tensorize(t, core, timing, options.active_passes) for t in traces]
    elif RENAME_TILES in options.active_passes:
        traces = [renamed(t) for t in traces]
    tables = ClassTables(ONE_RING in options.active_passes)
    programs = [compile_core(t, n, core, tables, timing, options, compiled) for n, t in enumerate(traces)]
    linked = link(programs, tables, core, timing, compiled)
    for program in programs:
        program.forget()
    stretch = hbm_stretch(chip, timing, len(traces), options)
    totals, typical = _runs(linked, tables, timing, stretch, options, compiled)
    return Stages(traces, programs, tables, linked, totals, typical, timing, stretch)


def simulate(
    traces: Sequence[Trace], chip: Chip, options: TimingOptions | None = None, *, compiled: bool | None = None
) -> Timeline:
    """Time the traces of the cores of one logical core on ``chip``.

    ``compiled`` forces the loops to run compiled (True) or as plain Python (False); by default the size decides. The
    times are the same.

    Raises:
        InputError: no trace, or the chip has no NeuronCore.
        HardwareError: a storage does not fit its memory (with ``strict_capacity``: the live ones do not).
        CompilerError: explicit dependences form a cycle or contradict program order.
        DeadlockError: the cores wait for each other.
    """
    options = options or TimingOptions()
    stages = run_stages(traces, chip, options, compiled=compiled)
    programs, tables, linked, timing = stages.programs, stages.tables, stages.linked, stages.timing
    core = chip.core
    assert core is not None
    totals, mean, run = stages.totals, stages.mean_ps, stages.typical
    tracks, events, opcodes, engine_event, transfer_event = draw_events(linked, run, tables)
    waits = draw_waits(linked, run, tables, tracks, engine_event, transfer_event)
    findings = [f for p in programs for f in p.findings]
    support, reason = support_of(stages, chip, options)
    fixed = timing.clock_offset_ps + timing.clock_tail_ps if options.clock == "span" else 0
    return Timeline(
        chip=chip.name,
        schedule=options.schedule,
        clock=options.clock,
        total_ps=mean + fixed,
        drawn_ps=run.total,
        spread_ps=max(totals) - min(totals),
        tracks=tracks,
        events=events,
        waits=waits,
        opcodes=opcodes,
        memory=draw_memory(programs, linked, run, core),
        totals=totals_of(stages),
        findings=findings,
        support=support,
        support_reason=reason,
        peak_flops=(core.tensor.flops("bfloat16") or 0.0) * len(traces),
        lines=[t.lines for t in stages.traces],
        line_of=[t.column("line") for t in stages.traces],
        traces=stages.traces,
    )


def _runs(
    linked: Linked, tables: ClassTables, timing: Timing, stretch: float, options: TimingOptions, compiled: bool
) -> tuple[list[int], Run]:
    """The times of a run for each phase of the throttle (one if TensorE is not throttled or used), and the typical run.

    Large runs are not kept: the typical one is run again.
    """
    window = timing.tensor.throttle_window_ps
    throttled = timing.tensor.throttled and (linked.nodes.queue % QUEUE_COUNT == TENSOR).any()
    count = options.throttle_phases if throttled else 1
    phases = [(2 * i + 1) * window // (2 * count) for i in range(count)]

    def run(phase: int) -> Run:
        return execute(linked.nodes, tables, timing, stretch, phase, compiled)

    size = len(linked.nodes.queue)
    if count == 1 or size > KEEP_RUNS:
        with ThreadPoolExecutor(2 if compiled else 1) as pool:  # two at a time are in memory
            totals = list(pool.map(lambda phase: run(phase).total, phases)) if count > 1 else [0]
        mean = _mean(totals)
        typical = run(min(zip(totals, phases, strict=True), key=lambda t: (abs(t[0] - mean), t[0]))[1])
        return totals if count > 1 else [typical.total], typical
    if not compiled or size < THREADS_FROM:
        runs = [run(phase) for phase in phases]
    else:
        first = run(phases[0])  # loads the compiled loop
        with ThreadPoolExecutor(min(count - 1, os.cpu_count() or 1)) as pool:
            runs = [first, *pool.map(run, phases[1:])]
    totals = [r.total for r in runs]
    mean = _mean(totals)
    return totals, min(runs, key=lambda r: (abs(r.total - mean), r.total))


def hbm_stretch(chip: Chip, timing: Timing, cores: int, options: TimingOptions | None = None) -> float:
    """How much longer packets take because the cores that share HBM could together ask for more than it gives.

    Nothing else of a time depends on HBM's bandwidth.
    """
    sharers = max(cores, (options.hbm_sharers if options else None) or cores)
    wanted = sharers * timing.dma.engines * timing.dma.sustained_bytes_per_ns * 1e9
    return max(1.0, wanted / chip.hbm.bytes_per_second)


def totals_of(stages: Stages) -> Totals:
    """The sums over all cores."""
    programs, linked, run, tables = stages.programs, stages.linked, stages.typical, stages.tables
    variant = linked.nodes.variant
    tensor = linked.nodes.queue % QUEUE_COUNT == TENSOR
    busy = tables.column("busy")[variant[tensor]]

    def total(name: str) -> int:
        return int(np.sum(tables.column(name)[variant])) if len(variant) else 0

    return Totals(
        hbm_read_bytes=total("hbm_read"),
        hbm_write_bytes=total("hbm_write"),
        flops=total("flops"),
        instructions=sum(len(p.trace) for p in programs),
        removed_loads=sum(len(p.removed) for p in programs),
        spills=linked.spills,
        spill_bytes=linked.spill_bytes,
        throttled_ps=int((run.end[tensor] - run.start[tensor] - busy).sum()),
    )


def support_of(stages: Stages, chip: Chip, options: TimingOptions | None = None) -> tuple[str, str]:
    """How well the time is known on ``chip``, and why."""
    support, reason = _support(stages.timing, options or TimingOptions(), stages.linked, stages.traces)
    if chip.changes:
        return "what-if", f"set by the user: {chip.changed}; otherwise {support}: {reason}"
    return support, reason


def _support(timing: Timing, options: TimingOptions, linked: Linked, traces: Sequence[Trace]) -> tuple[str, str]:
    """How well the time is known, from the constants, the schedule and what happened."""
    if timing.support == "assumed":
        return "assumed", f"the constants of NeuronCore-{timing.version} are carried over from NeuronCore-v3"
    # A trace shares its table of classes with others of the process: only those that it uses count.
    used = (trace.classes[k] for trace in traces for k in np.unique(np.asarray(trace.instructions["klass"])))
    if any(klass.name.startswith("nki.collectives.") for klass in used):
        return "extrapolated", "collectives take what their schedule needs on the links, all ranks coming at once"
    if linked.spills:
        return "extrapolated", "live tiles outgrew on-chip memory: spills are modelled on two published cases"
    if options.schedule == "program":
        return "interpolated", "measured constants, but no compiler is known to keep program order"
    return "calibrated", f"constants fitted to profiles of NeuronCore-{timing.version}"
