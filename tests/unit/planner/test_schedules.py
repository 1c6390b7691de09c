"""Steps as sums of passes against replayed pipelines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.planner.pipeline import Schedule, Times, simulate
from trnsim.planner.schedules import counts


def _replayed(times, send, stages, chunks, count, schedule):
    name = "interleaved" if chunks > 1 else schedule
    forward, backward, weight = times.T
    return float(simulate(Schedule(name, stages, count, chunks), Times(forward, backward, weight, send)).total)


def _length(times, send, found):
    return float((found.passes * times).sum() + found.sends * send)


@settings(max_examples=60, deadline=None)
@given(
    stages=st.sampled_from([1, 2, 4, 8]),
    chunks=st.sampled_from([1, 2, 5]),
    groups=st.integers(2, 12),
    first=st.floats(0.9, 1.02),
    last=st.floats(0.98, 1.2),
    send=st.floats(0, 0.01),
)
def test_within_one_percent_of_replayed_steps(stages, chunks, groups, first, last, send):
    # Equal layers; the first piece is shorter (the embedding takes little), the last one longer (the head).
    chunks = 1 if stages == 1 else chunks
    times = np.tile([1.0, 1.1, 0.9], (stages * chunks, 1))
    times[0] *= first
    times[-1] *= last
    count = groups * stages
    found = counts(times, send, stages, chunks, count)
    assert _length(times, send, found) == pytest.approx(_replayed(times, send, stages, chunks, count, "1f1b"), rel=0.01)


@pytest.mark.parametrize(("stages", "count"), [(2, 8), (4, 16), (8, 64)])
def test_zero_bubble(stages, count):
    times = np.tile([1.0, 1.1, 0.9], (stages, 1))
    found = counts(times, 0.0, stages, 1, count, "zb-h1")
    assert _length(times, 0.0, found) == pytest.approx(_replayed(times, 0.0, stages, 1, count, "zb-h1"), rel=0.01)


def test_unknown_schedule():
    with pytest.raises(InputError, match="no such schedule"):
        counts(np.ones((2, 3)), 0.0, 2, 1, 4, "best")
