"""What a run on a simulated chip found, as plain data for terminal, JSON, Perfetto and HTML.

Times are picoseconds of simulated time, sizes bytes. A region is what runs as one: its intermediate results stay in
SBUF. ``Report.regions[g]`` are those of graph ``g``; a step ran one graph.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLACES = ("module", "operator", "engine", "phase", "support")


@dataclass(frozen=True, slots=True)
class RegionCost:
    """One region.

    ``kind``: ``attention``, ``gated_mlp``, ``norm_matmul``, ``elementwise``, ``fallback`` ...; ``operators``: those
    of ``operators/`` that it was priced with, in order, each with its sizes as text; ``aten``: the calls in it;
    ``busy_ps``: by engine; ``unfused_ps``: its calls priced one by one; ``start_ps``: from the start of its step.
    """

    kind: str
    operators: tuple[str, ...]
    aten: tuple[str, ...]
    module: str
    phase: str
    line: str
    start_ps: float
    time_ps: float
    unfused_ps: float
    hbm_bytes: int
    flops: int
    busy_ps: Mapping[str, float]
    support: str
    reason: str = ""

    @property
    def bound(self) -> str:
        """The engine that is busy longest, or ``dma``; empty where nothing is."""
        return max(self.busy_ps, key=lambda name: self.busy_ps[name]) if self.busy_ps else ""

    @property
    def listed(self) -> str:
        """What the region is listed as: its kind, of a fallback the operator, of a kernel of the user its name."""
        kernel = next((name for name in self.aten if name.startswith("nki.")), "")
        if kernel:
            return kernel
        return f"fallback {self.aten[0]}" if self.kind == "fallback" else self.kind


@dataclass(frozen=True, slots=True)
class Fallback:
    """An operator without a kernel: how often it ran, what all its runs took, how it was priced and why.

    ``place``: ``device`` (bytes over HBM as element-wise work) or ``host`` (a round trip over PCIe).
    """

    operator: str
    place: str
    count: int
    time_ps: float
    reason: str
    module: str
    line: str


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step: when it started and how long it took, in simulated time."""

    name: str
    graph: int
    start_ps: float
    time_ps: float


@dataclass(frozen=True, slots=True)
class Holder:
    """What held memory at the peak."""

    kind: str
    module: str
    operator: str
    nbytes: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """HBM over time. ``bytes[kind][i]`` are held from ``times_ps[i]`` on; ``scope`` says whose capacity it is."""

    capacity_bytes: int
    scope: str
    times_ps: tuple[float, ...]
    bytes: Mapping[str, tuple[int, ...]]
    peak_bytes: int
    peak_ps: float
    at_peak: Mapping[str, int]
    holders: tuple[Holder, ...]

    @property
    def over_bytes(self) -> int:
        """By how much the peak exceeds the capacity; 0 if it fits."""
        return max(self.peak_bytes - self.capacity_bytes, 0)


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run."""

    chip: str
    lnc: int
    depth: str
    format: str
    implementation: str
    total_ps: float
    unfused_ps: float
    steps: tuple[StepTime, ...]
    regions: tuple[tuple[RegionCost, ...], ...]
    fallbacks: tuple[Fallback, ...]
    memory: MemoryUse
    notes: tuple[str, ...] = ()
    runs: tuple[int, ...] = field(default=())
    """How often each graph ran."""

    def print(self, console: Console | None = None, *, depth: int = 5) -> None:
        """Show what fits a screen; the tree of modules down to ``depth`` names."""
        from rich.console import Console

        from trnsim.frameworks.torch.reporting.terminal import render_terminal

        render_terminal(self, console or Console(), depth=depth)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report; the end of the name says what: ``.html``, ``.json`` or ``.pftrace`` (ui.perfetto.dev).

        Raises:
            InputError: another end, a folder that is not there, or no ``perfetto`` package.
        """
        from trnsim.frameworks.torch.reporting import write

        write(self, path)

    def step_times(self, name: str = "step") -> list[float]:
        """Picoseconds of each step of a name, in order; ``prefill`` and ``decode`` are those of generation."""
        return [step.time_ps for step in self.steps if step.name == name]

    def every_region(self) -> Iterator[tuple[RegionCost, int]]:
        """Regions of all graphs, each with how often it ran."""
        for regions, count in zip(self.regions, self.runs, strict=True):
            for region in regions:
                yield region, count

    def times(self, by: str, depth: int | None = None) -> dict[str, float]:
        """Picoseconds by ``module`` (of ``depth`` names), ``operator``, ``engine`` (busy), ``phase`` or ``support``.

        Raises:
            ValueError: ``by`` is none of these.
        """
        if by not in PLACES:
            raise ValueError(f"times by {by!r}; there are {', '.join(PLACES)}")
        found: dict[str, float] = defaultdict(float)
        for region, count in self.every_region():
            if by == "engine":
                for engine, busy in region.busy_ps.items():
                    found[engine] += busy * count
                continue
            if by == "module":
                key = ".".join(region.module.split(".")[:depth]) if depth else region.module
            elif by == "operator":
                key = region.listed
            else:
                key = getattr(region, by)
            found[key] += region.time_ps * count
        return dict(sorted(found.items(), key=lambda item: -item[1]))
