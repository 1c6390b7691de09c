"""The operands of a trace as boxes of bytes: which rows and bytes of which storage each instruction touches.

SBUF and PSUM are partitions x bytes of a partition; an HBM storage is rows x bytes of its last dimension, or one row
where fewer of its accesses would be known by that (blocks of so many elements begin and end within rows). A box has a
pattern of rows and one of bytes, each dense or of one stride; where there are more strides, only the bounds are known.
Storages with explicit addresses of one memory share one key, in the coordinates of that memory, so overlapping
addresses meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.machine.trace import MEMORIES
from trnsim.timing.compiled import run
from trnsim.timing.grouping import distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.form import Form
    from trnsim.machine.trace import Trace
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.signedinteger[Any]]

# Rows and numbers of things have 32 bits, which halves what a large trace needs; bytes of a tensor may need more.
_NARROW = ("instruction", "storage", "key", "role", "form", "start", "end", "row_step", "row_run")
_WIDE = ("low", "high", "step", "run")

# What ``step`` says of the bytes of a row, and ``row_step`` of the rows: all are touched; no simple pattern is known.
DENSE, INEXACT = 0, -1
# The length of a row that holds any storage.
_ONE_ROW = 1 << 60


@dataclass
class Accesses:
    """One row an operand, in program order, reads of an instruction before its updates and writes.

    Rows ``start`` to ``end`` and bytes ``low`` to ``high`` of each: with ``step`` above 0, ``run`` bytes every ``step``
    bytes; with ``row_step`` above 0, ``row_run`` rows every ``row_step`` rows.
    """

    instruction: Column
    storage: Column
    key: Column
    role: Column
    start: Column
    end: Column
    row_step: Column
    row_run: Column
    low: Column
    high: Column
    step: Column
    run: Column
    form: Column
    keys: int

    def __len__(self) -> int:
        return len(self.instruction)

    def forget_boxes(self) -> None:
        """Leave only which instruction touches which storage."""
        for name in _NARROW + _WIDE:
            if name not in ("instruction", "storage"):
                setattr(self, name, np.zeros(0, np.int64))

    def keep(self, rows: Column) -> None:
        """Leave out all but the rows numbered ``rows``, a column at a time: there are many."""
        for name in _NARROW + _WIDE:
            setattr(self, name, getattr(self, name)[rows])


def find_accesses(trace: Trace, klass: Column, tables: ClassTables, compiled: bool = False) -> Accesses:
    """Boxes of all operands. ``klass`` is the class of each instruction in ``tables``."""
    form, storage = trace.column("form"), trace.column("storage")
    counts = np.array([len(r) for r in tables.roles] or [0], np.int64)
    total = int(np.bincount(klass, minlength=len(counts)) @ counts) if len(klass) else 0
    # Of each class: its operands in order of role, and their roles.
    first = np.cumsum(counts) - counts
    sequence = [sorted(range(len(r)), key=r.__getitem__) for r in tables.roles]
    position = np.array([i for found in sequence for i in found], np.int64)
    role = np.array([r[i] for r, found in zip(tables.roles, sequence, strict=True) for i in found], np.int64)
    widths, width = _row_widths(trace)
    width = _one_row(trace, form, storage, widths, width)
    box_of, boxes = _boxes(trace, form, widths, width[storage])
    key, start_shift, low_shift, keys = _keys(trace)
    found = {n: np.zeros(total, np.int32) for n in _NARROW} | {n: np.zeros(total, np.int64) for n in _WIDE}
    run(
        _fill,
        compiled,
        klass, trace.column("operand"), counts, first, position, role,
        storage, trace.column("start"), trace.column("offset"), form,
        width, len(widths), box_of, *boxes, key, start_shift, low_shift, *found.values(),
    )  # fmt: skip
    return Accesses(**found, keys=keys)


def _fill(
    klass: Any, operand: Any, counts: Any, first: Any, position: Any, role: Any,
    storage: Any, start: Any, offset: Any, form: Any,
    width: Any, widths: int, box_of: Any, rows: Any, span: Any, step: Any, run_bytes: Any, row_step: Any, row_run: Any,
    row_bytes: Any, key: Any, start_shift: Any, low_shift: Any,
    out_instruction: Any, out_storage: Any, out_key: Any, out_role: Any, out_form: Any, out_start: Any, out_end: Any,
    out_row_step: Any, out_row_run: Any, out_low: Any, out_high: Any, out_step: Any, out_run: Any,
) -> int:  # fmt: skip
    """One row an operand; see ``Accesses``."""
    at = 0
    for i in range(len(klass)):
        k = klass[i]
        for n in range(first[k], first[k] + counts[k]):
            row = operand[i] + position[n]
            s = storage[row]
            box = box_of[form[row] * widths + width[s]]
            begin = start[row]
            low = offset[row]
            wide = row_bytes[box]
            gaps = step[box]
            row_gaps = row_step[box]
            if wide > 0:
                begin = low // wide
                low -= begin * wide
            end = begin + rows[box]
            high = low + span[box]
            if wide > 0 and high > wide:
                # It runs on in the next row.
                end += 1
                low = 0
                high = wide
                gaps = -1
                row_gaps = -1
            out_instruction[at] = i
            out_storage[at] = s
            out_key[at] = key[s]
            out_role[at] = role[n]
            out_start[at] = begin + start_shift[s]
            out_end[at] = end + start_shift[s]
            out_row_step[at] = row_gaps
            out_row_run[at] = row_run[box]
            out_low[at] = low + low_shift[s]
            out_high[at] = high + low_shift[s]
            out_step[at] = gaps
            out_run[at] = run_bytes[box]
            out_form[at] = form[row]
            at += 1
    return at


def _keys(trace: Trace) -> tuple[Column, Column, Column, int]:
    """Key of each storage and the shift into the coordinates of its key."""
    columns = trace.storage_columns
    count = len(trace.storages)
    key = np.arange(count, dtype=np.int64)
    fixed = (columns["start"] >= 0) & (columns["memory"] != MEMORIES.index("hbm"))
    # One arena a memory, numbered in the order in which they are met.
    arenas = list(dict.fromkeys(columns["memory"][fixed].tolist()))
    for number, memory in enumerate(arenas):
        key[fixed & (columns["memory"] == memory)] = count + number
    start, low = (np.where(fixed, columns[n], 0) for n in ("start", "low"))
    return key, start, low, count + len(arenas)


def _row_widths(trace: Trace) -> tuple[Column, Column]:
    """The lengths of rows of HBM storages, 0 for storages on chip, ``_ONE_ROW`` at the end, and the place of each
    storage's among them.
    """
    columns = trace.storage_columns
    hbm = np.flatnonzero(columns["memory"] == MEMORIES.index("hbm"))
    lengths = columns["row_bytes"][hbm]
    widths = np.array(sorted({0, _ONE_ROW, *lengths.tolist()}), np.int64)
    width = np.zeros(len(trace.storages), np.int64)
    width[hbm] = np.searchsorted(widths, lengths)
    return widths, width


def _one_row(trace: Trace, form: Column, storage: Column, widths: Column, width: Column) -> Column:
    """``width``, with that of one row for HBM storages of whose accesses more are exact so."""
    found = width.copy()
    rows = np.flatnonzero(width[storage] > 0)
    if not len(rows):
        return found
    form, storage, offset = form[rows], storage[rows], trace.column("offset")[rows]
    pairs, place = distinct(form * len(widths) + width[storage], len(trace.forms) * len(widths))
    unknown = np.zeros((2, len(pairs)), bool)
    spans = np.zeros(len(pairs), np.int64)
    for i, pair in enumerate(pairs.tolist()):
        number, at = divmod(pair, len(widths))
        for way, row_bytes in enumerate((int(widths[at]), _ONE_ROW)):
            box = _hbm_box(trace.forms[number], row_bytes)
            unknown[way, i] = INEXACT in (box[2], box[4])
            if way == 0:
                spans[i] = box[1]
    length = widths[width[storage]]
    over = offset % length + spans[place] > length
    by_rows, as_one = (
        np.bincount(storage, weights=bad, minlength=len(width)) for bad in (unknown[0][place] | over, unknown[1][place])
    )
    found[as_one < by_rows] = len(widths) - 1
    return found


def _boxes(trace: Trace, form: Column, widths: Column, width: Column) -> tuple[Column, list[Column]]:
    """Of each pair of a form and a row length that occurs: its ``_Box``, and for HBM the bytes of a row."""
    pairs, _ = distinct(form * len(widths) + width, len(trace.forms) * len(widths))
    rows = np.zeros((max(1, len(pairs)), 7), np.int64)
    for i, pair in enumerate(pairs.tolist()):
        number, place = divmod(pair, len(widths))
        found, row_bytes = trace.forms[number], int(widths[place])
        rows[i] = (*(_hbm_box(found, row_bytes) if row_bytes else _chip_box(found)), row_bytes)
    place_of = np.zeros(len(trace.forms) * len(widths) + 1, np.int64)
    place_of[pairs] = np.arange(len(pairs))
    return place_of, [c.copy() for c in rows.T]


_Box = tuple[int, int, int, int, int, int]
"""Rows, bytes, ``step``, ``run``, ``row_step``, ``row_run``."""


def _chip_box(form: Form) -> _Box:
    levels = form.levels
    run = levels[-1][1]
    dense_rows = form.partition_span == form.partitions
    if not form.indirect and dense_rows:
        if len(levels) == 1:
            return form.partitions, run, DENSE, run, DENSE, form.partitions
        if len(levels) == 2 and levels[0][0] >= run:
            return form.partitions, form.span, levels[0][0], run, DENSE, form.partitions
    return form.partition_span, form.span, INEXACT, 0, INEXACT, 0


def _hbm_box(form: Form, row_bytes: int) -> _Box:
    """Box of a view of a storage whose rows have ``row_bytes`` bytes, when it starts within a row."""
    if form.indirect:
        return max(1, -(-form.span // row_bytes)), row_bytes, INEXACT, 0, INEXACT, 0
    levels = form.levels
    run = levels[-1][1]
    inner = [(s, c) for s, c in levels[:-1] if s < row_bytes]
    outer = [(s // row_bytes, c) for s, c in levels[:-1] if s >= row_bytes]
    if run >= row_bytes:
        whole, width, exact = run // row_bytes, row_bytes, run % row_bytes == 0
    else:
        whole, width, exact = 1, sum((c - 1) * s for s, c in inner) + run, True
    if not exact or width > row_bytes or any(s % row_bytes for s, _ in levels[:-1] if s >= row_bytes):
        return -(-form.span // row_bytes), row_bytes, INEXACT, 0, INEXACT, 0
    rows, row_step, row_run = whole, DENSE, whole
    for stride, count in reversed(outer):
        if row_step == DENSE and stride == rows:
            row_run = rows * count
        elif row_step == DENSE and stride > rows:
            row_step = stride
        else:
            row_step = INEXACT
        rows += (count - 1) * stride
    step = INEXACT if len(inner) > 1 else inner[0][0] if inner else DENSE
    return rows, width, step, min(run, width), row_step, row_run
