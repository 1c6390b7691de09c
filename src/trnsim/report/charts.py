"""Line charts on logarithmic axes as SVG: a few series, points beside them, ticks at powers. No library is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, BOTTOM = 70, 20, 52
# The title and one row of the legend; another row.
HEAD, ROW = 44, 15
COLORS = ("#0b62c4", "#c4540b", "#3a8f3a", "#7a3fb0", "#a0182e", "#4a5560")
_FONT = 'font-family="system-ui, sans-serif" fill="#222"'


@dataclass(frozen=True)
class Series:
    """A line (``line``) or points with the same meaning of both axes. All values are above 0."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    line: bool = True
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Titles, and how an axis writes its ticks."""

    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    x_tick: Callable[[float], str]
    y_tick: Callable[[float], str]


def svg(charts: Sequence[Chart]) -> str:
    """The charts below each other as one SVG document."""
    height = HEIGHT * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for i, chart in enumerate(charts):
        parts += [f'<g transform="translate(0 {i * HEIGHT})">', *_chart(chart), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def html(title: str, charts: Sequence[Chart], notes: Sequence[str] = ()) -> str:
    """A page with the charts and lines of text below."""
    text = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<body style="font-family: system-ui, sans-serif; max-width: 800px; margin: 2em auto; color: #222">'
        f"{svg(charts)}{text}</body></html>\n"
    )


def _chart(chart: Chart) -> list[str]:
    xs = [x for s in chart.series for x in s.x]
    ys = [y for s in chart.series for y in s.y]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)) + 1e-9)
    if x_low == x_high:
        x_low, x_high = x_low / 2, x_high * 2
    if y_low == y_high:
        y_high *= 10

    legend = _legend(chart.series)
    top = HEAD + ROW * legend[-1][1]

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / x_low) / math.log(x_high / x_low)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - top - BOTTOM) * math.log(y / y_low) / math.log(y_high / y_low)

    parts = [f'<text x="{LEFT}" y="20" font-size="15" font-weight="600" {_FONT}>{escape(chart.title)}</text>']
    for x in _powers(x_low, x_high, 2):
        at = across(x)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 16, chart.x_tick(x), "middle"))
    for y in _powers(y_low, y_high, 10):
        at = up(y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, at + 4, chart.y_tick(y), "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, chart.x_title, "middle"))
    parts.append(f'<g transform="translate(14 {(top + HEIGHT - BOTTOM) / 2}) rotate(-90)">'
                 f"{_text(0, 0, chart.y_title, 'middle')}</g>")  # fmt: skip
    for s in chart.series:
        parts += _series(s, across, up)
    for place in legend:
        parts += _named(*place)
    return parts


def _series(s: Series, across: Callable[[float], float], up: Callable[[float], float]) -> list[str]:
    color = COLORS[s.color % len(COLORS)]
    places = [(across(x), up(y)) for x, y in zip(s.x, s.y, strict=True)]
    if not s.line:
        return [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="white" stroke="{color}" stroke-width="1.5"/>'
            for x, y in places
        ]
    if len(places) == 1:
        return [f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{color}"/>']
    dash = ' stroke-dasharray="5 4"' if s.dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>']


def _legend(series: Sequence[Series]) -> list[tuple[float, int, Series]]:
    """Where each name stands: pixels from the left, and its row."""
    places, at, row = [], float(LEFT), 0
    for s in {s.name: s for s in series}.values():
        width = 36 + 6.6 * len(s.name)
        if at > LEFT and at + width > WIDTH:
            at, row = float(LEFT), row + 1
        places.append((at, row, s))
        at += width
    return places


def _named(at: float, row: int, s: Series) -> list[str]:
    color, y = COLORS[s.color % len(COLORS)], 33 + row * ROW
    if s.line:
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        mark = f'<line x1="{at}" x2="{at + 18}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"{dash}/>'
    else:
        mark = f'<circle cx="{at + 9}" cy="{y}" r="3.5" fill="white" stroke="{color}" stroke-width="1.5"/>'
    return [mark, _text(at + 23, y + 4, s.name, "start")]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" {_FONT}>{escape(text)}</text>'


def _powers(low: float, high: float, base: int) -> list[float]:
    """Powers of ``base`` from ``low`` to ``high``, thinned to a dozen.

    Where they are few: 1, 2, 3, 5, 7 times those of ten, or even steps.
    """
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    if last - first < 2:
        tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [x for ten in tens for x in (n * 10.0**ten for n in (1, 2, 3, 5, 7)) if low <= x <= high]
        return found if len(found) > 1 else _even(low, high)
    step = max(1, -(-(last - first + 1) // 12))
    return [float(base) ** e for e in range(first, last + 1, step)]


def _even(low: float, high: float) -> list[float]:
    """Three to eight multiples of 1, 2 or 5 times a power of ten."""
    wanted = (high - low) / 4
    ten = 10.0 ** math.floor(math.log10(wanted))
    step = max(n * ten for n in (1, 2, 5) if n * ten <= wanted)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
