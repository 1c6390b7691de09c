"""The critical path in the words of the kernel: time by engine, what it is spent on, and source line."""

from __future__ import annotations

import linecache
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import Location
from trnsim.report.summary import ENGINE_NAMES
from trnsim.timing.critical import (
    COMPLETION,
    DATA,
    DESCRIPTORS,
    FIRST_PACKET,
    IN_ORDER,
    LINKS,
    START,
    TRANSFER,
    WHAT,
    CriticalPath,
    critical_path,
)
from trnsim.timing.tables import QUEUES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trnsim.explain.case import Case

WINDOWS = 16
_BY_DMA = (DESCRIPTORS, FIRST_PACKET, TRANSFER, COMPLETION)
SPILL_LINE = Location("<spill>", 0)


@dataclass(frozen=True)
class Share:
    """Time of the path that one engine spends on one thing for one source line. ``line`` None: all lines."""

    engine: str
    what: str
    line: Location | None
    time_ps: int
    pieces: int


@dataclass(frozen=True)
class Piece:
    """Consecutive pieces of the path of one engine, thing and line; ``link``: why it follows what comes before it."""

    engine: str
    core: int
    what: str
    line: Location
    link: str
    start_ps: int
    end_ps: int


@dataclass(frozen=True)
class Path:
    """The path, the last piece first, and what it is made of, the largest first."""

    total_ps: int
    pieces: list[Piece]
    reasons: list[Share]
    lines: list[Share]
    links: dict[str, int]
    windows: list[tuple[int, int, list[Share]]]


def explain_path(case: Case) -> Path:
    """The path of ``case``."""
    path = critical_path(case.stages)
    pieces = list(_pieces(case, path))
    held: dict[str, int] = {}
    for link in path.link.tolist():
        if link not in (START, DATA, IN_ORDER):
            held[LINKS[link]] = held.get(LINKS[link], 0) + 1
    return Path(
        total_ps=path.total_ps,
        pieces=pieces,
        reasons=_shares([(p.engine, p.what, None, p.end_ps - p.start_ps) for p in pieces]),
        lines=_shares([(p.engine, p.what, p.line, p.end_ps - p.start_ps) for p in pieces]),
        links=dict(sorted(held.items(), key=lambda item: -item[1])),
        windows=_windows(pieces, path.total_ps),
    )


def text_of(line: Location) -> str:
    """The source of ``line``, where it can be read."""
    return linecache.getline(line.file, line.line).strip()


def _pieces(case: Case, path: CriticalPath) -> Iterator[Piece]:
    tables = [(t.instructions["line"], t.lines) for t in case.traces]
    for core, queue, row, what, link, start, end in zip(
        *(c.tolist() for c in (path.core, path.queue, path.row, path.what, path.link, path.start, path.end)),
        strict=True,
    ):
        lines, known = tables[core]
        name = QUEUES[queue]
        engine = ENGINE_NAMES["dma"] if what in _BY_DMA else ENGINE_NAMES.get(name, ENGINE_NAMES["dma"])
        yield Piece(
            engine, core, WHAT[what], known[int(lines[row])] if row >= 0 else SPILL_LINE, LINKS[link], start, end
        )


def _shares(entries: list[tuple[str, str, Location | None, int]]) -> list[Share]:
    total: dict[tuple[str, str, Location | None], list[int]] = {}
    for engine, what, line, time in entries:
        entry = total.setdefault((engine, what, line), [0, 0])
        entry[0] += time
        entry[1] += 1
    found = [Share(*key, *entry) for key, entry in total.items()]
    return sorted(found, key=lambda s: (-s.time_ps, s.engine, s.what, str(s.line)))


def _windows(pieces: list[Piece], total: int) -> list[tuple[int, int, list[Share]]]:
    """What fills equal parts of the time, the last first; neighbours that are filled by the same become one."""
    edges = np.linspace(0, total, WINDOWS + 1).astype(np.int64).tolist()
    ascending = pieces[::-1]
    starts, ends = [p.start_ps for p in ascending], [p.end_ps for p in ascending]

    def inside(low: int, high: int) -> list[Share]:
        chosen = ascending[bisect_right(ends, low) : bisect_left(starts, high)]
        return _shares([(p.engine, p.what, p.line, min(p.end_ps, high) - max(p.start_ps, low)) for p in chosen])

    found: list[tuple[int, int, list[Share]]] = []
    for low, high in reversed(list(pairwise(edges))):
        shares = inside(low, high)
        if found and _main(shares) == _main(found[-1][2]):
            found[-1] = (low, found[-1][1], inside(low, found[-1][1]))
        else:
            found.append((low, high, shares))
    return found


def _main(shares: list[Share]) -> set[tuple[str, str, Location | None]]:
    """The two that fill most."""
    return {(s.engine, s.what, s.line) for s in shares[:2]}
