"""A topology as SVG: chips as squares in their servers, links as lines, switches and the network as bars.

Servers whose chips are linked to those of other servers lie one below the other and slanted, so that these links run
straight between equal places; those that close a ring are bent. Of many equal systems only one is drawn. Failed links
and chips are red.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from .measures import bisection, diameter
from .topology import Topology

CHIP = 34
GAP = 30
_STYLE = """
  text { font-family: system-ui, sans-serif; font-size: 12px; fill: #1f2933 }
  .title { font-size: 17px; font-weight: 600 }
  .small { font-size: 10.5px; fill: #52606d }
  .chip { fill: #e8eef7; stroke: #33507a; stroke-width: 1.2 }
  .server { fill: #fafbfc; stroke: #9fb3c8; stroke-width: 1 }
  .bar { fill: #dcefe4; stroke: #2f6f4f; stroke-width: 1.2 }
  .network { fill: #fdeedc; stroke: #a8641c; stroke-width: 1.2 }
  .grid { stroke: #33507a; stroke-width: 1.6; fill: none }
  .wrap { stroke: #33507a; stroke-width: 1.1; fill: none; opacity: .75 }
  .far { stroke: #8a3fa0; stroke-width: 1.2; fill: none; opacity: .65 }
  .up { stroke: #2f6f4f; stroke-width: 1.1; fill: none; opacity: .7 }
  .out { stroke: #a8641c; stroke-width: 1.3; fill: none; opacity: .8 }
  .dead { stroke: #c81e1e; stroke-dasharray: 4 3; stroke-width: 2 }
  .gone { fill: #f9d6d5; stroke: #c81e1e }
"""


@dataclass
class _Canvas:
    """What has been drawn, by layer, and how far it reaches."""

    lines: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    width: float = 0
    height: float = 0

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def line(
        self, kind: str, a: tuple[float, float], b: tuple[float, float], bend: tuple[float, float] | None = None
    ) -> None:
        path = f"M{a[0]:.1f} {a[1]:.1f}"
        path += f" Q{bend[0]:.1f} {bend[1]:.1f} {b[0]:.1f} {b[1]:.1f}" if bend else f" L{b[0]:.1f} {b[1]:.1f}"
        self.lines.append(f'<path class="{kind}" d="{path}"/>')

    def box(self, kind: str, x: float, y: float, width: float, height: float, radius: float = 4) -> None:
        self.boxes.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}"/>'
        )
        self._reach(x + width, y + height)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.texts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
        wide = len(text) * (9.2 if kind == "title" else 6.6)
        self._reach(x + (wide if anchor == "start" else wide / 2), y + 4)

    def svg(self) -> str:
        width, height = self.width + 24, self.height + 20
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}"><style>{_STYLE}</style>'
            f'<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join([*(b for b in self.boxes if 'class="server"' in b), *self.lines,
                         *(b for b in self.boxes if 'class="server"' not in b), *self.texts])
            + "\n</svg>\n"
        )  # fmt: skip


def draw(topology: Topology) -> str:
    """The SVG of a topology: its first system, and the network if there are several."""
    canvas = _Canvas()
    canvas.text(24, 32, topology.name or topology.system.name, "title")
    y = 52.0
    for line in _summary(topology):
        canvas.text(24, y, line)
        y += 17
    top = y + 14
    if topology.level("ultraserver") is not None and _switch(topology, "ultraserver"):
        canvas.box("bar", 24, top, 0, 0)
        top += 48
    centres, servers = _chips(topology, canvas, 24.0, top)
    _grids(topology, canvas, centres)
    _stars(topology, canvas, centres, servers)
    _network(topology, canvas, servers)
    return canvas.svg()


def _summary(topology: Topology) -> list[str]:
    per = topology.ranks_per_chip
    text = f"{topology.chip_count:,} chips, {topology.rank_count:,} ranks"
    lines = [text + (f" ({per} logical cores a chip)" if topology.system.chip.core else "")]
    cut = bisection(topology)
    if cut is not None:
        lines.append(
            f"bisection {rate(cut.bytes_per_second)} one way ({cut.across}), diameter {diameter(topology)} links"
        )
    for level in topology.levels[1:]:
        if level.kind == "none":
            continue
        what = {"grid": "link to a neighbour", "star": "link of a chip to its switch"}[level.kind]
        if level.name == "cluster":
            what = f"{level.adapters} adapters a system, each"
        lines.append(f"{level.name}: {level.technology}, {what} {rate(level.bytes_per_second)} one way")
    return lines


def rate(bytes_per_second: float) -> str:
    """``128 GB/s``."""
    if bytes_per_second >= 1e13:
        return f"{bytes_per_second / 1e12:,.4g} TB/s"
    return f"{bytes_per_second / 1e9:,.4g} GB/s"


def _switch(topology: Topology, name: str) -> bool:
    level = topology.level(name)
    return level is not None and level.kind == "star"


Point = tuple[float, float]
Box = tuple[float, float, float, float]


def _chips(topology: Topology, canvas: _Canvas, x0: float, y0: float) -> tuple[list[Point], list[Box]]:
    """Draws the chips of one system; returns their centres and the boxes of their servers."""
    system = topology.system
    chips, count = system.server.chip_count, system.server_count
    places = _places(topology)
    stacked = _linked(topology)
    head = 30 if _switch(topology, "server") else 0
    grid = topology.level("server")
    margin = 40 if grid is not None and grid.kind == "grid" else 12
    wide = max(x for x, _ in places) + CHIP + 2 * margin
    high = max(y for _, y in places) + CHIP + 2 * margin + head
    across = 1 if stacked else count if count <= 4 else min(count, 9)
    centres: list[Point] = []
    servers: list[Box] = []
    for number in range(count):
        row, column = divmod(number, across)
        x, y = x0 + column * (wide + 18), y0 + row * (high + (24 if stacked else 40))
        canvas.box("server", x, y, wide, high, 8)
        label = f"server {number}" if count > 1 else system.name
        canvas.text(x + 4, y + high + 13, label, "small")
        servers.append((x, y, wide, high))
        for place, (px, py) in enumerate(places):
            cx, cy = x + margin + px + CHIP / 2, y + margin + head + py + CHIP / 2
            chip = number * chips + place
            dead = chip in topology.failed_chips
            size = CHIP * 0.72 if stacked else CHIP
            canvas.box("chip gone" if dead else "chip", cx - size / 2, cy - size / 2, size, size)
            canvas.text(cx, cy + 4, str(chip), anchor="middle")
            centres.append((cx, cy))
    return centres, servers


def _places(topology: Topology) -> list[Point]:
    """Where the chips of a server stand: tori as a grid, slanted if links lead to other servers; rings as a loop."""
    chips = topology.system.server.chip_count
    server = topology.level("server")
    grid = server is not None and server.kind == "grid"
    pitch = CHIP + GAP if grid else CHIP + 10
    if server is not None and grid and len(server.shape) == 1:
        columns = -(-chips // 2)
        return [(i * pitch, 0) if i < columns else ((chips - 1 - i) * pitch, pitch) for i in range(chips)]
    columns = server.shape[-1] if server is not None and grid else min(chips, 8)
    if chips == 4 and topology.system.server_count > 1:
        columns = 2
    rows = [divmod(i, columns) for i in range(chips)]
    if _linked(topology):
        # Seen from the side: a chip's links to the servers above and below pass between those of its neighbours.
        return [(c * 4 * CHIP + r * CHIP, r * (CHIP + 4)) for r, c in rows]
    return [(c * pitch, r * pitch) for r, c in rows]


def _linked(topology: Topology) -> bool:
    level = topology.level("ultraserver")
    return level is not None and level.kind == "grid"


def _grids(topology: Topology, canvas: _Canvas, centres: list[Point]) -> None:
    for section in topology.sections:
        level = topology.levels[section.level]
        if level.kind != "grid":
            continue
        below = topology.size(section.level - 1) // topology.ranks_per_chip
        for chip in range(topology.system.chip_count):
            for dimension, n in enumerate(level.shape):
                stride = below
                for later in level.shape[dimension + 1 :]:
                    stride *= later
                at = chip // stride % n
                last = at == n - 1
                if n < 2 or (last and (not level.wraps or n == 2)):
                    continue
                to = chip + (stride if not last else -(n - 1) * stride)
                link = section.first + section.stride * chip + 2 * dimension
                dead = link in topology.failed_links or {chip, to} & topology.failed_chips
                kind = "dead" if dead else "far" if level.name == "ultraserver" else "wrap" if last else "grid"
                _grid_line(canvas, kind, centres[chip], centres[to], last=last, far=level.name == "ultraserver")


def _grid_line(canvas: _Canvas, kind: str, a: Point, b: Point, *, last: bool, far: bool) -> None:
    if far:
        canvas.line(kind, a, b, (a[0] + 26, (a[1] + b[1]) / 2) if last else None)
    elif abs(a[0] - b[0]) >= 1 and abs(a[1] - b[1]) >= 1 and last:
        canvas.line(kind, a, b, ((a[0] + b[0]) / 2 - 1.4 * CHIP, (a[1] + b[1]) / 2 + 0.2 * CHIP))
    elif not last and (abs(a[0] - b[0]) < 1 or abs(a[1] - b[1]) < 1):
        canvas.line(kind, a, b)
    elif abs(a[1] - b[1]) < 1:
        canvas.line(kind, a, b, ((a[0] + b[0]) / 2, a[1] - 1.1 * CHIP))
    elif abs(a[0] - b[0]) < 1:
        canvas.line(kind, a, b, (a[0] - 1.1 * CHIP, (a[1] + b[1]) / 2))
    else:
        canvas.line(kind, a, b)


def _stars(topology: Topology, canvas: _Canvas, centres: list[Point], servers: list[Box]) -> None:
    chips = topology.system.server.chip_count
    if _switch(topology, "server"):
        for number, (x, y, wide, _) in enumerate(servers):
            canvas.box("bar", x + 8, y + 8, wide - 16, 16)
            canvas.text(x + wide / 2, y + 20, "switch", "small", "middle")
            for place in range(chips):
                chip = number * chips + place
                cx, cy = centres[chip]
                kind = "dead" if chip in topology.failed_chips else "up"
                if cy == centres[number * chips][1]:
                    canvas.line(kind, (cx, y + 24), (cx, cy - CHIP / 2))
                else:  # past the chips of the first row
                    canvas.line(kind, (cx + CHIP / 2 + 5, y + 24), (cx + CHIP / 2 + 5, cy))
                    canvas.line(kind, (cx + CHIP / 2 + 5, cy), (cx + CHIP / 2, cy))
    if _switch(topology, "ultraserver"):
        level = topology.level("ultraserver")
        assert level is not None
        left, right = servers[0][0], max(x + wide for x, _, wide, _ in servers)
        top = servers[0][1] - 44
        canvas.box("bar", left, top, right - left, 20)
        canvas.text(
            (left + right) / 2, top + 14, f"{level.technology} switches: all chips of the system", "small", "middle"
        )
        for x, y, wide, _ in servers:
            below = y > servers[0][1]
            middle = x + wide / 2 if not below else x - 8
            canvas.line("up", (middle, top + 20), (middle, y + 8 if below else y))
            if below:
                canvas.line("up", (middle, y + 8), (x, y + 8))
        canvas.text(left, top - 6, f"each server: {chips} x {rate(level.bytes_per_second)} up and down", "small")


def _network(topology: Topology, canvas: _Canvas, servers: list[Box]) -> None:
    level = topology.level("cluster")
    if level is None:
        return
    left, right = servers[0][0], max(x + wide for x, _, wide, _ in servers)
    bottom = max(y + high for _, y, _, high in servers) + 44
    canvas.box("network", left, bottom, right - left, 22)
    text = f"{level.technology} network: {topology.systems:,} systems, of which one is drawn"
    canvas.text((left + right) / 2, bottom + 15, text, "small", "middle")
    for x, y, wide, high in servers:
        if y + high > bottom - 60 or len(servers) <= 4:
            canvas.line("out", (x + wide - 14, y + high), (x + wide - 14, bottom))
    canvas.text(
        left, bottom + 38, f"{level.adapters} x {rate(level.bytes_per_second)} each way out of a system", "small"
    )
