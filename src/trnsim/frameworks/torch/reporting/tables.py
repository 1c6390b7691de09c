"""What the reports of models share: the tree of modules, sums by operator, steps by name, spans of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trnsim.frameworks.torch.report import MemoryUse, RegionCost, Report

ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync", "dma")
ENGINE_NAMES = {
    "tensor": "TensorE",
    "vector": "VectorE",
    "scalar": "ScalarE",
    "gpsimd": "GpSimdE",
    "sync": "SyncE",
    "dma": "DMA",
}
KIND_ORDER = ("weight", "gradient", "optimizer", "activation", "cache", "input")
SUPPORT_ORDER = ("calibrated", "interpolated", "extrapolated", "assumed", "what-if")
ALIKE = 3  # numbered modules beside each other from which on they are shown as one row

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Node:
    """A module: its time with that of the modules in it (``time_ps``), and without (``own_ps``).

    ``bytes`` is what it holds at the peak of HBM, by kind; ``alike``: how many numbered modules the node stands for.
    """

    name: str
    path: str
    time_ps: float = 0.0
    own_ps: float = 0.0
    unfused_ps: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    alike: int = 1
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, time: float, unfused: float, phase: str) -> None:
        """Add the time of a region in it."""
        self.time_ps += time
        self.unfused_ps += unfused
        self.phases[phase] = self.phases.get(phase, 0.0) + time

    @property
    def nbytes(self) -> int:
        """What it holds at the peak."""
        return sum(self.bytes.values())


@dataclass(slots=True)
class Sum:
    """All regions of one kind."""

    name: str
    count: int = 0
    time_ps: float = 0.0
    unfused_ps: float = 0.0
    hbm_bytes: int = 0
    flops: int = 0
    support: str = "calibrated"
    bound: dict[str, float] = field(default_factory=dict)

    def add(self, region: RegionCost, count: int) -> None:
        """Add a region that ran ``count`` times."""
        self.count += count
        self.time_ps += region.time_ps * count
        self.unfused_ps += region.unfused_ps * count
        self.hbm_bytes += region.hbm_bytes * count
        self.flops += region.flops * count
        self.support = weakest((self.support, region.support))
        self.bound[region.bound] = self.bound.get(region.bound, 0.0) + region.time_ps * count

    @property
    def bound_by(self) -> str:
        """The engine that bounds most of its time."""
        return max(self.bound, key=lambda name: self.bound[name]) if self.bound else ""


@dataclass(frozen=True, slots=True)
class StepSum:
    """Steps of one name."""

    name: str
    count: int
    total_ps: float
    low_ps: float
    high_ps: float

    @property
    def mean_ps(self) -> float:
        return self.total_ps / self.count


def short_time(ps: float) -> str:
    """``58_800_000_000`` as ``58.8 ms``: three digits or more, the unit that keeps them few."""
    value, units = ps / 1e3, iter(("ns", "us", "ms", "s"))
    unit = next(units)
    while abs(value) >= 999.5 and unit != "s":
        value, unit = value / 1e3, next(units)
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f} {unit}" if ps else "0"


def short_line(line: str) -> str:
    """``/a/b/c/model.py:12`` as ``c/model.py:12``."""
    return "/".join(line.replace("\\", "/").split("/")[-2:])


def percent(share: float) -> str:
    """``0.123`` as ``12 %``; what is less than half of one is ``<1 %``."""
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def weakest(labels: Iterable[str]) -> str:
    """The least certain of labels of support; a label that is not known is the least."""
    return max(labels, key=lambda label: SUPPORT_ORDER.index(label) if label in SUPPORT_ORDER else len(SUPPORT_ORDER))


def module_tree(report: Report) -> Node:
    """The modules with their times over the whole run; the root is the run."""
    root = Node("", "")
    for region, count in report.every_region():
        node = root
        time, unfused = region.time_ps * count, region.unfused_ps * count
        node.add(time, unfused, region.phase)
        for name in filter(None, region.module.split(".")):
            node = _child(node, name)
            node.add(time, unfused, region.phase)
        node.own_ps += time
    for holder in report.memory.holders:
        node = root
        node.bytes[holder.kind] = node.bytes.get(holder.kind, 0) + holder.nbytes
        for name in filter(None, holder.module.split(".")):
            node = _child(node, name)
            node.bytes[holder.kind] = node.bytes.get(holder.kind, 0) + holder.nbytes
    return root


def _child(node: Node, name: str) -> Node:
    if name not in node.children:
        node.children[name] = Node(name, f"{node.path}.{name}".lstrip("."))
    return node.children[name]


def grouped(node: Node, least: int = ALIKE) -> Node:
    """The tree in which ``least`` or more numbered modules beside each other are one node, their insides added up."""
    numbered = {n: c for n, c in node.children.items() if n.isdigit()}
    kept = _copy(node)
    if len(numbered) >= least:
        numbers = sorted(map(int, numbered))
        name = f"[{numbers[0]}-{numbers[-1]}]"
        together = Node(name, f"{node.path}.{name}".lstrip("."), alike=len(numbered))
        for child in numbered.values():
            _merge(together, child)
        rest = {n: c for n, c in node.children.items() if not n.isdigit()}
        kept.children = {name: together, **rest}
    kept.children = {n: grouped(c, least) for n, c in kept.children.items()}
    return kept


def _copy(node: Node) -> Node:
    return replace(node, phases=dict(node.phases), bytes=dict(node.bytes), children=dict(node.children))


def _merge(into: Node, other: Node) -> None:
    into.time_ps += other.time_ps
    into.own_ps += other.own_ps
    into.unfused_ps += other.unfused_ps
    for phase, time in other.phases.items():
        into.phases[phase] = into.phases.get(phase, 0.0) + time
    for kind, size in other.bytes.items():
        into.bytes[kind] = into.bytes.get(kind, 0) + size
    for name, child in other.children.items():
        _merge(_child(into, name), child)


def rows(node: Node, depth: int, least_share: float = 0.0) -> list[tuple[int, Node]]:
    """Nodes of the tree below ``node`` with how deep each lies, down to ``depth``; chains of one are one row."""
    found: list[tuple[int, Node]] = []

    def walk(at: Node, level: int) -> None:
        for child in sorted(at.children.values(), key=_place):
            if child.time_ps < least_share * node.time_ps and child.nbytes < least_share * max(node.nbytes, 1):
                continue
            found.append((level, child))
            if level + 1 < depth:
                walk(child, level + 1)

    walk(node, 0)
    return found


def _place(node: Node) -> tuple[int, float, int]:
    """Numbered modules by number, after them the others, the longest first."""
    return (0, int(node.name), 0) if node.name.isdigit() else (1, -node.time_ps, -node.nbytes)


def operators(report: Report) -> list[Sum]:
    """Sums over the regions of each kind, the longest first; fallbacks by operator."""
    found: dict[str, Sum] = {}
    for region, count in report.every_region():
        name = operator_of(region)
        found.setdefault(name, Sum(name)).add(region, count)
    return sorted(found.values(), key=lambda one: -one.time_ps)


def operator_of(region: RegionCost) -> str:
    """What a region is listed as: its kind, of a fallback the operator, of a kernel of the user its name."""
    return f"fallback {plain(region.aten[0])}" if region.kind == "fallback" else region.listed


def plain(operator: str) -> str:
    """``aten.mm.default`` as ``mm``."""
    return operator.removeprefix("aten.").removesuffix(".default")


def supports(report: Report) -> dict[str, float]:
    """Share of the time by label of support, the most certain first."""
    times = report.times("support")
    total = sum(times.values()) or 1.0
    order = sorted(times, key=lambda s: SUPPORT_ORDER.index(s) if s in SUPPORT_ORDER else len(SUPPORT_ORDER))
    return {label: times[label] / total for label in order}


def steps_by_name(report: Report) -> list[StepSum]:
    """Steps of each name, in order of their first."""
    times: dict[str, list[float]] = {}
    for step in report.steps:
        times.setdefault(step.name, []).append(step.time_ps)
    return [StepSum(name, len(t), sum(t), min(t), max(t)) for name, t in times.items()]


def memory_bins(memory: MemoryUse, count: int = 600) -> tuple[Floats, dict[str, Floats]]:
    """HBM in at most ``count`` pieces of time: their starts, and by kind what is held at the fullest moment of each.

    The parts of a piece are those of one moment, so that their sum is what was held then.
    """
    times = np.asarray(memory.times_ps, np.float64)
    kinds = [k for k in KIND_ORDER if k in memory.bytes] + [k for k in memory.bytes if k not in KIND_ORDER]
    held = {k: np.asarray(memory.bytes[k], np.float64) for k in kinds}
    if not len(times) or not kinds:
        return times, held
    total = np.sum(list(held.values()), axis=0)
    if len(times) <= count:
        return times, held
    span = times[-1] - times[0]
    at = np.minimum(((times - times[0]) / (span or 1.0) * count).astype(np.int64), count - 1)
    order = np.lexsort((-total, at))
    first = np.unique(at[order], return_index=True)[1]
    fullest = order[first]
    return times[np.searchsorted(at, at[fullest])], {k: v[fullest] for k, v in held.items()}


def busy_bins(regions: Sequence[RegionCost], total_ps: float, count: int) -> dict[str, Floats]:
    """Share of each of ``count`` pieces of a step in which an engine is busy; within a region it is spread evenly."""
    found: dict[str, Floats] = {}
    width = total_ps / count or 1.0
    for engine in ENGINES:
        # The integral of the rate at each region's ends; a piece's share is the difference over it.
        edges, rates = [0.0], [0.0]
        for region in regions:
            busy = region.busy_ps.get(engine, 0.0)
            if busy and region.time_ps:
                start = region.start_ps
                edges += [start, start + region.time_ps]
                rates += [busy / region.time_ps, -busy / region.time_ps]
        if len(edges) == 1:
            continue
        order = np.argsort(edges, kind="stable")
        at, rate = np.asarray(edges)[order], np.cumsum(np.asarray(rates)[order])
        area = np.concatenate([[0.0], np.cumsum(rate[:-1] * np.diff(at))])
        grid = np.linspace(0.0, total_ps, count + 1)
        found[engine] = np.clip(np.diff(np.interp(grid, at, area)) / width, 0.0, 1.0)
    return found


def graphs_to_draw(report: Report) -> list[tuple[int, str, float, int]]:
    """For each name of steps the graph that takes most of the run: its number, name, time of a step, and runs."""
    found: dict[int, tuple[str, float, int]] = {}
    for step in report.steps:
        _, _, times = found.get(step.graph, ("", 0.0, 0))
        found[step.graph] = (step.name, step.time_ps, times + 1)
    longest: dict[str, tuple[int, str, float, int]] = {}
    for graph, (name, time, runs) in found.items():
        if name not in longest or time * runs > longest[name][2] * longest[name][3]:
            longest[name] = (graph, name, time, runs)
    return sorted(longest.values(), key=lambda one: -one[2] * one[3])
