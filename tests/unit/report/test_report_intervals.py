"""Interval sums against slow and obvious ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trnsim.report.intervals import lanes, rate, union_by_group

INTERVALS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 20)), max_size=30)


def columns(rows):
    table = np.array(rows, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 1] + table[:, 2]


@given(INTERVALS)
def test_union(rows):
    group, start, end = columns(rows)
    expected = [len({t for g, s, n in rows if g == i for t in range(s, s + n)}) for i in range(4)]
    assert union_by_group(group, start, end, 4).tolist() == expected


@given(INTERVALS)
def test_lanes_do_not_overlap(rows):
    _, start, end = columns(sorted(rows, key=lambda r: r[1]))
    lane = lanes(start, end)
    for i in set(lane.tolist()):
        mine = lane == i
        assert (start[mine][1:] >= end[mine][:-1]).all()


@given(INTERVALS, st.integers(1, 40))
def test_rate_keeps_the_sum(rows, bins):
    amount, start, end = columns(rows)
    _, flow = rate(start, end, amount, 70, bins)
    assert flow.sum() == pytest.approx(amount.sum(), abs=1e-4)
    assert (flow >= 0).all()


def test_rate_is_even():
    _, flow = rate([0, 50], [100, 100], [100, 50], 100, 4)
    assert flow == pytest.approx([25, 25, 50, 50])
