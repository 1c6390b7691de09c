"""Charts of the page of a model, as SVG text: HBM over time, a step's regions and engines, times of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from trnsim.frameworks.torch.reporting.tables import (
    ENGINE_NAMES,
    Floats,
    busy_bins,
    memory_bins,
    operator_of,
    short_time,
)
from trnsim.units import format_bytes

if TYPE_CHECKING:
    from trnsim.frameworks.torch.report import MemoryUse, RegionCost, Report, StepTime

WIDTH, LEFT, RIGHT = 1180, 84, 14
PLOT = WIDTH - LEFT - RIGHT
BUSY_BINS = 580
MERGED = 0.35  # pixels: narrower regions beside each other of one kind are drawn as one
MAX_STEPS = 1200
KIND_COLORS = {
    "weight": "#2f6fbb",
    "gradient": "#d08a2e",
    "optimizer": "#7a57b5",
    "activation": "#3c9a6a",
    "cache": "#c2517e",
    "input": "#8a949e",
}
PHASE_COLORS = {"forward": "#2f6fbb", "backward": "#d08a2e", "optimizer": "#7a57b5"}
PALETTE = ("#2f6fbb", "#d08a2e", "#3c9a6a", "#7a57b5", "#c2517e", "#2b9eb3", "#9a7b4f", "#6d7fae", "#a3a636", "#b8655a")
FALLBACK_COLOR = "#c5221f"
OTHER_COLOR = "#8a949e"
ENGINE_COLOR = "#2f6fbb"


def _nice_ticks(high: float, count: int = 4) -> list[float]:
    """Round values from 0 to ``high``."""
    if high <= 0:
        return [0.0]
    raw = high / count
    size = 10 ** np.floor(np.log10(raw))
    step = next(float(size * m) for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    return [float(v) for v in np.arange(0, high * 1.0001, step)]


def _byte_ticks(high: float) -> list[float]:
    unit = next(float(u) for u in (2**40, 2**30, 2**20, 2**10, 1) if high >= u or u == 1)
    return [t * unit for t in _nice_ticks(high / unit)]


def _chart(height: int, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _time_axis(low: float, high: float, y: float) -> list[str]:
    span = (high - low) or 1.0
    parts = []
    for tick in _nice_ticks(span, 6):
        x = LEFT + PLOT * tick / span
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>')
        if x < WIDTH - 40:
            parts.append(_text(x, y + 16, short_time(low + tick) if low + tick else "0", "middle" if tick else "start"))
    return parts


def _keys(colors: dict[str, str]) -> str:
    items = [f'<span><i class="swatch" style="background:{c}"></i>{escape(n)}</span>' for n, c in colors.items()]
    return f'<div class="keys">{"".join(items)}</div>'


def memory_chart(memory: MemoryUse, total_ps: float) -> str:
    """What HBM holds over time, by kind, one on the other."""
    times, held = memory_bins(memory)
    if not len(times) or not held:
        return "<p>Nothing was held.</p>"
    height, top, bottom = 260, 12, 26
    held = {kind: sizes for kind, sizes in held.items() if sizes.any()}
    peak = float(memory.peak_bytes)
    near = memory.capacity_bytes <= 2 * peak
    high = max(peak, float(memory.capacity_bytes) if near else 0.0) * 1.06 or 1.0
    low, end = float(times[0]), max(total_ps, float(times[-1]))
    plot = height - top - bottom

    def up(size: float) -> float:
        return height - bottom - plot * size / high

    x = LEFT + PLOT * (np.append(times, end) - low) / ((end - low) or 1.0)
    parts = []
    for tick in _byte_ticks(high):
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(_text(LEFT - 6, up(tick) + 4, format_bytes(tick) if tick else "0", "end"))
    base = np.zeros(len(times))
    for kind, sizes in held.items():
        over = base + sizes
        outline = _steps_path(x, [up(v) for v in over], forward=True)
        outline += _steps_path(x, [up(v) for v in base], forward=False)
        title = f"{kind}: {format_bytes(memory.at_peak.get(kind, 0))} at the peak"
        color = KIND_COLORS.get(kind, OTHER_COLOR)
        parts.append(f'<path d="M{outline}Z" fill="{color}" fill-opacity="0.85"><title>{escape(title)}</title></path>')
        base = over
    if near:
        y = up(float(memory.capacity_bytes))
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(WIDTH - RIGHT, y - 4, f"capacity {format_bytes(memory.capacity_bytes)}", "end"))
    parts += _time_axis(low, end, height - bottom)
    return _chart(height, parts, "HBM over time") + _keys({k: KIND_COLORS.get(k, OTHER_COLOR) for k in held})


def _steps_path(x: Floats, y: Sequence[float], *, forward: bool) -> str:
    """Points of a line that is constant from each x to the next, from left to right or back."""
    points = []
    for i, value in enumerate(y):
        points += [(x[i], value), (x[i + 1], value)]
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in (points if forward else points[::-1])) + ("L" if forward else "")


def step_chart(regions: Sequence[RegionCost], total_ps: float) -> str:
    """One step: phases, modules, regions, and how busy each engine is."""
    ordered = sorted(regions, key=lambda r: r.start_ps)
    total = total_ps or 1.0
    colors = _operator_colors(ordered)
    parts: list[str] = []
    y = 4
    depth = _module_depth(ordered)
    modules = [_cut(r.module, depth) for r in ordered]
    prefix = _common([m for m in modules if m])
    for name, labels, color in (
        ("phase", [r.phase for r in ordered], lambda n: PHASE_COLORS.get(n, OTHER_COLOR)),
        ("module", [m.removeprefix(prefix) for m in modules], _module_color([m.removeprefix(prefix) for m in modules])),
        ("region", [operator_of(r) for r in ordered], lambda n: colors.get(n, OTHER_COLOR)),
    ):
        parts += [_text(LEFT - 6, y + 14, name, "end"), *_bands(ordered, labels, color, y, total)]
        y += 26
    y += 4
    for engine, share in busy_bins(ordered, total, BUSY_BINS).items():
        parts += [_text(LEFT - 6, y + 20, ENGINE_NAMES.get(engine, engine), "end"), *_area(share, y, 28)]
        y += 34
    parts += _time_axis(0.0, total, y)
    return _chart(y + 22, parts, "Timeline of a step") + _keys(colors)


def _operator_colors(regions: Sequence[RegionCost]) -> dict[str, str]:
    times: dict[str, float] = {}
    for region in regions:
        name = operator_of(region)
        times[name] = times.get(name, 0.0) + region.time_ps
    ranked = sorted(times, key=lambda name: -times[name])
    named = [name for name in ranked if not name.startswith("fallback")][: len(PALETTE)]
    colors = dict(zip(named, PALETTE, strict=False))
    fallbacks = [name for name in ranked if name.startswith("fallback")]
    if fallbacks:
        colors |= dict.fromkeys(fallbacks[:3], FALLBACK_COLOR)
    return colors


def _cut(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def _module_depth(regions: Sequence[RegionCost]) -> int:
    """Names to show: so many that no module is more than a third of the step, so that a wrapper is no single band."""
    total = sum(r.time_ps for r in regions)
    for depth in range(1, 6):
        times: dict[str, float] = {}
        for region in regions:
            name = _cut(region.module, depth)
            times[name] = times.get(name, 0.0) + region.time_ps
        if max(times.values(), default=0.0) <= total / 3:
            return depth
    return 5


def _common(names: Sequence[str]) -> str:
    """What most of the names begin with, up to a dot: it is left out."""
    first = [name.rpartition(".")[0] for name in names]
    most = max(set(first), key=lambda one: (first.count(one), one)) if first else ""
    return f"{most}." if most else ""


def _module_color(names: Sequence[str]) -> Callable[[str], str]:
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return lambda name: PALETTE[order[name] % len(PALETTE)] if name else OTHER_COLOR


def _bands(
    regions: Sequence[RegionCost], labels: Sequence[str], color: Callable[[str], str], y: int, total: float
) -> list[str]:
    """Rectangles from left to right; what is alike or too narrow to see is one."""
    parts: list[str] = []
    scale = PLOT / total
    start, end = 0.0, 0.0
    label: str | None = None

    def draw() -> None:
        if label is None or end <= start:
            return
        x, width = LEFT + start * scale, max((end - start) * scale, 0.2)
        inner = (
            _text(x + 3, y + 13, label[: int(width / 6.5)]) if width > 6.5 * min(len(label), 6) + 4 and label else ""
        )
        inner = inner.replace("<text ", '<text style="fill:#fff;pointer-events:none" ')
        title = f"{label or '(outside of modules)'}: {short_time(end - start)}, from {short_time(start)}"
        parts.append(f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="19" fill="{color(label)}">'
                     f"<title>{escape(title)}</title></rect>{inner}")  # fmt: skip

    for region, name in zip(regions, labels, strict=True):
        begin, finish = region.start_ps, region.start_ps + region.time_ps
        touches = label is not None and (begin - end) * scale < MERGED
        if touches and (name == label or (finish - start) * scale < MERGED):
            end = max(end, finish)
        else:
            draw()
            start, end, label = begin, finish, name
    draw()
    return parts


def _area(share: Floats, y: int, height: int) -> list[str]:
    x = LEFT + PLOT * np.arange(len(share) + 1) / len(share)
    top = [y + height - height * float(s) for s in share]
    outline = _steps_path(x, top, forward=True) + f"{x[-1]:.1f} {y + height}L{LEFT} {y + height}"
    mean = f"busy {100 * float(share.mean()):.1f} % of the step"
    return [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + height}" y2="{y + height}"/>',
        f'<path d="M{outline}Z" fill="{ENGINE_COLOR}" fill-opacity="0.8"><title>{mean}</title></path>',
    ]


def steps_chart(report: Report) -> str:
    """A bar for each step, as long as it took; alike ones beside each other where there are too many."""
    steps = list(report.steps)
    if len(steps) > MAX_STEPS:
        size = -(-len(steps) // MAX_STEPS)
        pieces = [steps[i : i + size] for i in range(0, len(steps), size)]
    else:
        pieces = [[step] for step in steps]
    height, bottom = 150, 22
    high = max(s.time_ps for s in steps) * 1.08 or 1.0
    width = PLOT / len(pieces)
    names = list(dict.fromkeys(s.name for s in steps))
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    parts = []
    for tick in _nice_ticks(high, 3):
        y = height - bottom - (height - bottom - 8) * tick / high
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, short_time(tick) if tick else "0", "end"))
    for i, piece in enumerate(pieces):
        parts.append(_step_bar(piece, LEFT + i * width, width, high, height - bottom, colors))
    parts += [_text(LEFT, height - 6, "step 0"), _text(WIDTH - RIGHT, height - 6, f"step {len(steps) - 1}", "end")]
    return _chart(height, parts, "Time of each step") + (_keys(colors) if len(names) > 1 else "")


def _step_bar(
    piece: Sequence[StepTime], x: float, width: float, high: float, floor: int, colors: dict[str, str]
) -> str:
    longest = max(piece, key=lambda s: s.time_ps)
    tall = (floor - 8) * longest.time_ps / high
    gap = 1 if width > 4 else 0
    title = f"{longest.name}: {short_time(longest.time_ps)}, from {short_time(longest.start_ps)}"
    return (
        f'<rect x="{x:.2f}" y="{floor - tall:.1f}" width="{max(min(width, 60) - gap, 0.3):.2f}" height="{tall:.1f}" '
        f'fill="{colors[longest.name]}"><title>{escape(title)}</title></rect>'
    )
