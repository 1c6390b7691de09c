"""Loops that follow each other are fused where what they hand on in PSUM does not fit.

A kernel may compute all tiles of one step before the first of the next, more than PSUM holds. The compiler then runs
what reads the first tiles before it makes the next ones: three published attention kernels on trn1 that hand on 64 MiB
in PSUM, which has 2, take the time of their DMAs or engines (ucb-bar/autocomp). Tiles of SBUF are spilled instead, as
the profile of bmm_softmax says (zhang677/AccelOpt).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from trnsim.machine.form import PSUM
from trnsim.timing.accesses import find_accesses
from trnsim.timing.dependences import find_dependences
from trnsim.timing.tables import ClassTables

if TYPE_CHECKING:
    from trnsim.hardware.model import Core
    from trnsim.hardware.timing_constants import Timing
    from trnsim.timing.tensorizer.rows import Row, Rows


def dependences(rows: Rows, timing: Timing) -> list[tuple[int, int]]:
    """Which rows follow which (producer, consumer): for data, the state of an engine, a region that keeps its order."""
    trace, tables = rows.build(), ClassTables()
    klass = trace.instructions["klass"]
    used, inverse = np.unique(klass, return_inverse=True)
    numbers = np.array([tables.add(trace.classes[int(c)], timing) for c in used], np.int64)[inverse]
    edges, _ = find_dependences(find_accesses(trace, numbers, tables), False)
    found = set(zip(edges.producer.tolist(), edges.consumer.tolist(), strict=True))
    last: dict[str, int] = {}
    for number, row in enumerate(rows.rows):
        region = [f"region {row.region}"] if row.region else []
        meeting = ["meeting"] if row.rendezvous >= 0 else []
        for name in (*row.klass.state, *region, *meeting):
            if name in last:
                found.add((last[name], number))
            last[name] = number
    return sorted(found)


def fuse_loops(rows: Rows, core: Core, timing: Timing) -> None:
    """Order ``rows`` so that PSUM holds what they hand on in it, where in program order it does not."""
    limit = core.psum.bytes_per_partition
    if _peak(rows) <= limit:
        return
    order = _Order(rows, dependences(rows, timing), limit).found()
    rows.rows = [rows.rows[number] for number in order]


def _tiles(rows: Rows, row: Row) -> set[int]:
    """Tiles without an address in PSUM that ``row`` touches."""
    return {at.storage for at in row.operands if at.form.memory == PSUM and rows.is_tile(at.storage)}


def _peak(rows: Rows) -> int:
    """The most bytes of a partition of PSUM that tiles without an address hold in program order."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, row in enumerate(rows.rows):
        for tile in _tiles(rows, row):
            first.setdefault(tile, number)
            last[tile] = number
    change = np.zeros(len(rows.rows) + 1, np.int64)
    for tile, begin in first.items():
        change[begin] += rows.storages[tile].row_bytes
        change[last[tile] + 1] -= rows.storages[tile].row_bytes
    return int(np.cumsum(change).max())


class _Order:
    """Program order, but whoever reads the oldest tiles of PSUM comes before what would outgrow it."""

    def __init__(self, rows: Rows, edges: list[tuple[int, int]], limit: int) -> None:
        self._rows, self._room = rows, limit
        self._needs: list[list[int]] = [[] for _ in rows.rows]
        for producer, consumer in edges:
            self._needs[consumer].append(producer)
        self._touched = [_tiles(rows, row) for row in rows.rows]
        self._users: dict[int, list[int]] = defaultdict(list)
        for number, tiles in enumerate(self._touched):
            for tile in tiles:
                self._users[tile].append(number)
        self._left = {tile: len(users) for tile, users in self._users.items()}
        self._live: dict[int, None] = {}  # in the order in which they were first touched
        self._placed = bytearray(len(rows.rows))
        self._order: list[int] = []

    def found(self) -> list[int]:
        for number in range(len(self._needs)):
            if not self._placed[number]:
                while self._wanted([number]) > self._room and self._make_room(number):
                    pass
                if not self._placed[number]:
                    self._place(number)
        return self._order

    def _wanted(self, group: list[int]) -> int:
        new = {tile for number in group for tile in self._touched[number] if tile not in self._live}
        return sum(self._rows.storages[tile].row_bytes for tile in new)

    def _make_room(self, coming: int) -> bool:
        """Place all that reads the oldest tile for which that takes no more room; whether there is one."""
        for tile in self._live:
            group = self._before([n for n in self._users[tile] if not self._placed[n]])
            if coming not in group and self._wanted(group) <= self._room:
                for number in group:
                    self._place(number)
                return True
        return False

    def _before(self, group: list[int]) -> list[int]:
        """``group`` and all that it needs and is not placed, in program order."""
        seen = set(group)
        waiting = list(group)
        while waiting:
            for producer in self._needs[waiting.pop()]:
                if not self._placed[producer] and producer not in seen:
                    seen.add(producer)
                    waiting.append(producer)
        return sorted(seen)

    def _place(self, number: int) -> None:
        self._placed[number] = 1
        self._order.append(number)
        for tile in self._touched[number]:
            size = self._rows.storages[tile].row_bytes
            if tile not in self._live:
                self._live[tile] = None
                self._room -= size
            self._left[tile] -= 1
            if not self._left[tile]:
                del self._live[tile]
                self._room += size
