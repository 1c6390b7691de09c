"""The operands of a trace as boxes of bytes: which rows and bytes of which storage each instruction touches.

SBUF and PSUM are partitions x bytes of a partition; an HBM storage is rows x bytes of its last dimension. A box is
exact, or the bounding box of a pattern of several strides. Storages with explicit addresses of one memory share one
key, in the coordinates of that memory, so overlapping addresses meet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.form import Form
    from trnsim.machine.trace import StorageInfo, Trace
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.int64]

# What ``step`` says of a box: all its bytes are touched, or no simple pattern is known.
DENSE, INEXACT = 0, -1


@dataclass
class Accesses:
    """One row an operand, in program order, reads of an instruction before its updates and writes."""

    instruction: Column
    storage: Column
    key: Column
    role: Column
    start: Column
    end: Column
    low: Column
    high: Column
    step: Column
    run: Column
    form: Column
    keys: int

    def __len__(self) -> int:
        return len(self.instruction)

    def take(self, rows: Column) -> Accesses:
        """The rows numbered ``rows``."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "keys"}
        return Accesses(**columns, keys=self.keys)


def find_accesses(trace: Trace, klass: Column, tables: ClassTables) -> Accesses:
    """Boxes of all operands. ``klass`` is the class of each instruction in ``tables``."""
    columns, operands = trace.instructions, trace.operands
    counts = np.array([len(r) for r in tables.roles] or [0], np.int64)[klass] if len(klass) else klass
    total = int(counts.sum())
    instruction = np.repeat(np.arange(len(klass), dtype=np.int64), counts)
    position = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    row = columns["operand"][instruction] + position if total else instruction
    width = max([len(r) for r in tables.roles] or [0])
    roles = np.zeros((max(1, len(tables.roles)), max(1, width)), np.int64)
    for number, found in enumerate(tables.roles):
        roles[number, : len(found)] = found
    role = roles[klass[instruction], position]
    storage, form, offset = operands["storage"][row], operands["form"][row], operands["offset"][row]
    boxes = _boxes(trace, storage, form)
    start, low = operands["start"][row], offset
    hbm = boxes[:, 4] > 0
    width_bytes = np.maximum(boxes[:, 4], 1)
    start = np.where(hbm, offset // width_bytes, start)
    low = np.where(hbm, offset % width_bytes, low)
    end, high, step = start + boxes[:, 0], low + boxes[:, 1], boxes[:, 2]
    wraps = hbm & (high > width_bytes)
    end = np.where(wraps, end + 1, end)
    low, high = np.where(wraps, 0, low), np.where(wraps, width_bytes, high)
    step = np.where(wraps, INEXACT, step)
    key, start_shift, low_shift, keys = _keys(trace.storages)
    order = np.lexsort((role, instruction))
    return Accesses(
        instruction=instruction[order],
        storage=storage[order],
        key=key[storage][order] if total else storage,
        role=role[order],
        start=(start + start_shift[storage])[order] if total else start,
        end=(end + start_shift[storage])[order] if total else end,
        low=(low + low_shift[storage])[order] if total else low,
        high=(high + low_shift[storage])[order] if total else high,
        step=step[order],
        run=boxes[:, 3][order],
        form=form[order],
        keys=keys,
    )


def _keys(storages: list[StorageInfo]) -> tuple[Column, Column, Column, int]:
    """Key of each storage and the shift into the coordinates of its key."""
    count = len(storages)
    key = np.arange(count, dtype=np.int64)
    start, low = np.zeros(count, np.int64), np.zeros(count, np.int64)
    arenas: dict[str, int] = {}
    for number, info in enumerate(storages):
        if info.address is not None and info.memory != "hbm":
            key[number] = arenas.setdefault(info.memory, count + len(arenas))
            start[number], low[number] = info.address
    return key, start, low, count + len(arenas)


def _boxes(trace: Trace, storage: Column, form: Column) -> Column:
    """For each operand: rows, bytes, step, run, and for HBM the bytes of a row (0 on chip)."""
    width = np.array([s.row_bytes if s.memory == "hbm" else 0 for s in trace.storages] or [0], np.int64)[storage]
    size = int(np.max(width, initial=0)) + 1
    pairs, inverse = np.unique(form * size + width, return_inverse=True)
    rows = np.zeros((max(1, len(pairs)), 5), np.int64)
    for i, pair in enumerate(pairs.tolist()):
        number, row_bytes = divmod(pair, size)
        found = trace.forms[number]
        rows[i] = (*(_hbm_box(found, row_bytes) if row_bytes else _chip_box(found)), row_bytes)
    return rows[inverse.ravel()] if len(form) else np.zeros((0, 5), np.int64)


def _chip_box(form: Form) -> tuple[int, int, int, int]:
    if form.indirect:
        return form.partition_span, form.span, INEXACT, 0
    levels = form.levels
    run = levels[-1][1]
    dense_rows = form.partition_span == form.partitions
    if len(levels) == 1 and dense_rows:
        return form.partitions, run, DENSE, run
    if len(levels) == 2 and dense_rows and levels[0][0] >= run:
        return form.partitions, form.span, levels[0][0], run
    return form.partition_span, form.span, INEXACT, 0


def _hbm_box(form: Form, row_bytes: int) -> tuple[int, int, int, int]:
    """Box of a view of a storage whose rows have ``row_bytes`` bytes, when it starts within a row."""
    if form.indirect:
        return max(1, -(-form.span // row_bytes)), row_bytes, INEXACT, 0
    levels = form.levels
    run = levels[-1][1]
    if run > row_bytes:
        return -(-form.span // row_bytes), row_bytes, DENSE if run == form.span and run % row_bytes == 0 else INEXACT, 0
    inner = [(s, c) for s, c in levels[:-1] if s < row_bytes]
    outer = [(s, c) for s, c in levels[:-1] if s >= row_bytes]
    width = sum((c - 1) * s for s, c in inner) + run
    if any(s % row_bytes for s, _ in outer) or width > row_bytes:
        return -(-form.span // row_bytes), row_bytes, INEXACT, 0
    rows, dense = 1, True
    for stride, count in reversed(outer):
        dense = dense and stride == rows * row_bytes
        rows += (count - 1) * (stride // row_bytes)
    if not dense or len(inner) > 1:
        return rows, width, INEXACT, 0
    return rows, width, inner[0][0] if inner else DENSE, run
