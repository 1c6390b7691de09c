"""Loops that follow each other are fused where what they hand on in PSUM does not fit.

A kernel may compute all tiles of one step before the first of the next, more than PSUM holds. The compiler then runs
what each result needs, one result after the other: two published attention kernels on trn1 that hand on 64 MiB in
PSUM, which has 2, take the time of their DMAs (ucb-bar/autocomp). Tiles of SBUF are spilled instead, as the profile of
bmm_softmax says (zhang677/AccelOpt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trnsim.machine.form import HBM, PSUM
from trnsim.timing.accesses import find_accesses
from trnsim.timing.dependences import find_dependences
from trnsim.timing.tables import ClassTables

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    """Order ``rows`` by results, each after what it needs, where tiles outgrow PSUM and that makes it less."""
    before = _peak(rows, range(len(rows.rows)))
    if before <= core.psum.bytes_per_partition:
        return
    order = _by_result(dependences(rows, timing), [_stores(row) for row in rows.rows])
    if _peak(rows, order) < before:
        rows.rows = [rows.rows[number] for number in order]


def _stores(row: Row) -> bool:
    """Whether the row writes HBM."""
    operands = zip(row.klass.operands, row.operands, strict=True)
    return any(item.role != "read" and at.form.memory == HBM for item, at in operands)


def _peak(rows: Rows, order: Iterable[int]) -> int:
    """The most bytes of a partition of PSUM that tiles without an address hold."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, number in enumerate(order):
        for at in rows.rows[number].operands:
            if at.form.memory == PSUM and rows.is_tile(at.storage):
                first.setdefault(at.storage, position)
                last[at.storage] = position
    change = np.zeros(len(rows.rows) + 1, np.int64)
    for storage, begin in first.items():
        change[begin] += rows.storages[storage].row_bytes
        change[last[storage] + 1] -= rows.storages[storage].row_bytes
    return int(np.cumsum(change).max())


def _by_result(edges: list[tuple[int, int]], stored: list[bool]) -> list[int]:
    """Rows in the order of the results (what is stored, what nothing waits for), each after what it needs."""
    count = len(stored)
    needs: list[list[int]] = [[] for _ in range(count)]
    result = [True] * count
    for producer, consumer in edges:
        needs[consumer].append(producer)
        result[producer] = stored[producer]
    placed = bytearray(count)
    found: list[int] = []
    for number in range(count):
        if not result[number] or placed[number]:
            continue
        placed[number] = 1
        group, waiting = [number], [number]
        while waiting:
            row = waiting.pop()
            for producer in needs[row]:
                if not placed[producer]:
                    placed[producer] = 1
                    group.append(producer)
                    waiting.append(producer)
        group.sort()
        found += group
    return found
