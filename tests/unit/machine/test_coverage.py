"""Coverage against a boolean map of the same bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.machine.coverage import Coverage

ROWS, BYTES = 6, 24
boxes = st.tuples(st.integers(0, ROWS - 1), st.integers(1, ROWS), st.integers(0, BYTES - 1), st.integers(1, BYTES)).map(
    lambda b: (b[0], min(ROWS, b[0] + b[1]), b[2], min(BYTES, b[2] + b[3]))
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(writes=st.lists(boxes, max_size=12), read=boxes)
def test_missing_is_what_was_never_written(writes, read):
    coverage, reference = Coverage(ROWS, BYTES), np.zeros((ROWS, BYTES), bool)
    for row, row_end, begin, end in writes:
        coverage.add(row, row_end, begin, end)
        reference[row:row_end, begin:end] = True
    row, row_end, begin, end = read
    missing = np.zeros((ROWS, BYTES), bool)
    for low, high, intervals in coverage.missing(row, row_end, np.array([[begin, end]], np.int64)):
        for first, last in intervals.tolist():
            missing[low:high, first:last] = True
    wanted = np.zeros((ROWS, BYTES), bool)
    wanted[row:row_end, begin:end] = True
    assert (missing == (wanted & ~reference)).all()
    assert coverage.full <= reference.all()
    if reference.all():
        assert not coverage.missing(0, ROWS, np.array([[0, BYTES]], np.int64))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    patterns=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)), max_size=8)
)
def test_strided_writes(patterns):
    coverage, reference = Coverage(2, 64), np.zeros((2, 64), bool)
    for start, step, count, length in patterns:
        starts = start + np.arange(count, dtype=np.int64) * (step + length)
        coverage.add_runs(0, 2, starts, length)
        for s in starts.tolist():
            reference[:, s : s + length] = True
    missing = np.zeros((2, 64), bool)
    for low, high, intervals in coverage.missing(0, 2, np.array([[0, 64]], np.int64)):
        for first, last in intervals.tolist():
            missing[low:high, first:last] = True
    assert (missing == ~reference).all()
