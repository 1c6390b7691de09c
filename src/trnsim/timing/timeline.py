"""The result of a timing run: what every engine and DMA ring did when, and what it waited for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.errors import Finding, Location
    from trnsim.machine.trace import Trace

    Column = NDArray[np.signedinteger[Any]]

ENGINE, DMA = "engine", "dma"

WAIT_REASONS = (
    "startup",
    "data from tensor",
    "data from vector",
    "data from scalar",
    "data from gpsimd",
    "data from sync",
    "data from dma",
    "semaphore latency",
    "sbuf space",
    "psum space",
    "spill",
    "explicit order",
    "stationary load",
    "port conflict",
    "psum bank conflict",
    "dma ring full",
    "rendezvous",
    "dma descriptors",
    "no more work",
)
(
    STARTUP,
    DATA_TENSOR,
    DATA_VECTOR,
    DATA_SCALAR,
    DATA_GPSIMD,
    DATA_SYNC,
    DATA_DMA,
    SEMAPHORE,
    WAIT_SBUF,
    WAIT_PSUM,
    WAIT_SPILL,
    WAIT_ORDER,
    WAIT_LOAD,
    WAIT_PORT,
    WAIT_BANK,
    WAIT_RING,
    WAIT_MEETING,
    WAIT_DESCRIPTORS,
    NO_MORE_WORK,
) = range(len(WAIT_REASONS))


@dataclass(frozen=True)
class Track:
    """An engine, or a DMA ring, of one core."""

    index: int
    core: int
    name: str
    kind: str


@dataclass(frozen=True)
class Events:
    """Columns, one row an event, sorted by ``start``.

    From ``start`` to ``end`` the track is busy; at ``done`` the results are visible. ``instruction`` is a row of the
    trace of the track's core, -1 for what the compiler added. Transfers of one ring overlap where the DMA engines are
    free already.
    """

    track: Column
    opcode: Column
    instruction: Column
    start: Column
    end: Column
    done: Column
    bytes: Column

    def __len__(self) -> int:
        return len(self.track)


@dataclass(frozen=True)
class Waits:
    """Columns, one row an idle interval of an engine track; the event that waited (-1 at the end) and what released
    it.
    """

    track: Column
    start: Column
    end: Column
    reason: Column
    before: Column
    released_by: Column

    def __len__(self) -> int:
        return len(self.track)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a partition that are live in one memory of one core, from each of ``times`` on."""

    core: int
    memory: str
    times: Column
    bytes: Column
    capacity: int
    peak: int
    holders: Sequence[tuple[str, int, Location | None]]


@dataclass(frozen=True)
class Totals:
    """Sums over all cores. ``instructions`` counts the trace's, ``removed_loads`` those the compiler left out."""

    hbm_read_bytes: int = 0
    hbm_write_bytes: int = 0
    flops: int = 0
    instructions: int = 0
    removed_loads: int = 0
    spills: int = 0
    spill_bytes: int = 0
    throttled_ps: int = 0
    """By how much the throttle lengthened TensorE's work."""


@dataclass(frozen=True)
class EngineSummary:
    """How one engine spent the time: busy, and waiting by reason."""

    core: int
    name: str
    busy_ps: int
    waiting_ps: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """See ``docs/dev/ARCHITECTURE.md``. ``total_ps`` is the mean over the throttle's phases, ``spread_ps`` the
    largest less the
    smallest; events and waits are those of the phase nearest the mean, and end at ``drawn_ps``.
    """

    chip: str
    schedule: str
    clock: str
    total_ps: int
    drawn_ps: int
    spread_ps: int
    tracks: Sequence[Track]
    events: Events
    waits: Waits
    opcodes: Sequence[str]
    memory: Sequence[MemoryUse]
    totals: Totals
    findings: Sequence[Finding] = ()
    support: str = "assumed"
    support_reason: str = ""
    peak_flops: float = 0.0
    """Of the cores that ran, bfloat16: the base of ``mfu``."""
    lines: Sequence[Sequence[Location]] = field(default=(), repr=False)
    line_of: Sequence[Any] = field(default=(), repr=False)
    """Of each core: its source lines, and the line of each instruction."""
    traces: Sequence[Trace] = field(default=(), repr=False)
    """Of each core, what ran: the recorded trace, or what the compiler stage made of it."""

    @property
    def mfu(self) -> float | None:
        """Model FLOPS utilization; None if no cost function said how many FLOPs its instruction is."""
        if not (self.totals.flops and self.peak_flops and self.total_ps):
            return None
        return self.totals.flops / (self.peak_flops * self.total_ps * 1e-12)

    @cached_property
    def _busy(self) -> Column:
        """Busy time of each track; for DMA rings the union of their transfers."""
        busy = np.zeros(len(self.tracks), np.int64)
        events = self.events
        for track in self.tracks:
            mine = events.track == track.index
            start, end = events.start[mine], events.end[mine]
            reached = np.maximum.accumulate(end) if len(end) else end
            before = np.concatenate((start[:1], reached[:-1]))
            busy[track.index] = np.maximum(end - np.maximum(start, before), 0).sum()
        return busy

    def engine_summary(self) -> list[EngineSummary]:
        """Busy and waiting time of every engine; together they are ``drawn_ps``."""
        found = []
        for track in self.tracks:
            if track.kind != ENGINE:
                continue
            mine = self.waits.track == track.index
            length = self.waits.end[mine] - self.waits.start[mine]
            by_reason = np.zeros(len(WAIT_REASONS), np.int64)
            np.add.at(by_reason, self.waits.reason[mine], length)
            waiting = {WAIT_REASONS[i]: int(by_reason[i]) for i in np.flatnonzero(by_reason)}
            found.append(EngineSummary(track.core, track.name, int(self._busy[track.index]), waiting))
        return found

    def dma_busy_ps(self, core: int) -> int:
        """Time with at least one transfer of ``core`` in flight."""
        rings = [t.index for t in self.tracks if t.kind == DMA and t.core == core]
        mine = np.isin(self.events.track, rings)
        start, end = self.events.start[mine], self.events.end[mine]
        if not len(start):
            return 0
        reached = np.maximum.accumulate(end)
        before = np.concatenate((start[:1], reached[:-1]))
        return int(np.maximum(end - np.maximum(start, before), 0).sum())

    def line_totals(self, count: int = 10) -> list[tuple[Location, int]]:
        """The ``count`` source lines that kept the busiest engine busy or waiting for them longest, with that time."""
        critical = max((s for s in self.engine_summary()), key=lambda s: s.busy_ps, default=None)
        if critical is None:
            return []
        track = next(t for t in self.tracks if t.core == critical.core and t.name == critical.name and t.kind == ENGINE)
        mine = np.flatnonzero(self.events.track == track.index)
        waits = np.flatnonzero((self.waits.track == track.index) & (self.waits.released_by >= 0))
        costs: dict[tuple[int, int], int] = {}
        events = np.concatenate((mine, self.waits.released_by[waits]))
        lengths = np.concatenate(
            (self.events.end[mine] - self.events.start[mine], self.waits.end[waits] - self.waits.start[waits])
        )
        for event, length in zip(events.tolist(), lengths.tolist(), strict=True):
            row = int(self.events.instruction[event])
            if row >= 0:
                core = self.tracks[int(self.events.track[event])].core
                key = (core, int(self.line_of[core][row]))
                costs[key] = costs.get(key, 0) + length
        best = sorted(costs.items(), key=lambda item: (-item[1], item[0]))[:count]
        return [(self.lines[core][line], length) for (core, line), length in best if line < len(self.lines[core])]

    def bound_by(self) -> str:
        """What bounds the kernel, in a sentence: the busiest engine or the DMA, and what TensorE or it waits for
        most.
        """
        if not self.drawn_ps:
            return "nothing ran"
        summaries = self.engine_summary()
        cores = sorted({s.core for s in summaries})
        busiest = max(summaries, key=lambda s: s.busy_ps)
        dma_core = max(cores, key=self.dma_busy_ps)
        dma = self.dma_busy_ps(dma_core)
        if dma > busiest.busy_ps:
            tensor = next((s for s in summaries if s.core == dma_core and s.name == "tensor" and s.busy_ps), busiest)
            text, waiting = f"DMA: {dma / self.drawn_ps:.0%} busy", tensor
        else:
            text, waiting = f"{_DISPLAY[busiest.name]}: {busiest.busy_ps / self.drawn_ps:.0%} busy", busiest
        reasons = {k: v for k, v in waiting.waiting_ps.items() if k != WAIT_REASONS[NO_MORE_WORK]}
        if not reasons:
            return text
        reason, length = max(reasons.items(), key=lambda item: (item[1], item[0]))
        name, share = _DISPLAY[waiting.name], length / self.drawn_ps
        return f"{text}; {name} waits {share:.0%} for {reason}{self._where(waiting, reason)}"

    def _where(self, summary: EngineSummary, reason: str) -> str:
        """The source line whose instructions ended most of the waits of an engine for ``reason``."""
        track = next(t for t in self.tracks if t.core == summary.core and t.name == summary.name and t.kind == ENGINE)
        chosen = (
            (self.waits.track == track.index)
            & (self.waits.reason == WAIT_REASONS.index(reason))
            & (self.waits.released_by >= 0)
        )
        event = self.waits.released_by[chosen]
        rows = self.events.instruction[event]
        if not (rows >= 0).any() or not len(self.line_of):
            return ""
        length = (self.waits.end - self.waits.start)[chosen][rows >= 0]
        core = np.array([t.core for t in self.tracks])[self.events.track[event]][rows >= 0]
        same = core == summary.core
        if not same.any():
            return ""
        line = np.asarray(self.line_of[summary.core])[rows[rows >= 0][same]]
        total = np.zeros(int(line.max()) + 1, np.int64)
        np.add.at(total, line, length[same])
        location = self.lines[summary.core][int(np.argmax(total))]
        return f" ({location.file.rsplit('/', 1)[-1]}:{location.line})"


_DISPLAY = {"tensor": "TensorE", "vector": "VectorE", "scalar": "ScalarE", "gpsimd": "GpSimdE", "sync": "SyncE"}
