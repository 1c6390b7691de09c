"""Pipeline schedules: replayed steps against published formulas, closed forms against replayed steps."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.planner.pipeline import BACKWARD, FORWARD, WEIGHT, Schedule, Times, order, peak_activations, simulate
from trnsim.planner.pipeline_forms import step_time

NAMES = ("gpipe", "1f1b", "interleaved", "zb-h1")


@pytest.mark.parametrize(("stages", "count"), [(1, 1), (2, 2), (4, 8), (4, 16), (8, 64)])
def test_even_stages_have_the_published_bubbles(stages, count):
    f, b, w = 2.0, 3.0, 1.5
    work = count * (f + b + w)

    def step(name, chunks=1):
        shape = stages * chunks
        one = Times(*(np.full(shape, x / chunks) for x in (f, b, w)))
        return simulate(Schedule(name, stages, count, chunks), one).total

    fill = (stages - 1) * (f + b + w)
    assert step("gpipe") == pytest.approx(work + fill)
    assert step("1f1b") == pytest.approx(work + fill)
    # Narayanan et al.: v chunks divide the bubble by v.
    assert step("interleaved", 2) == pytest.approx(work + fill / 2)
    # Qi et al., table 1: (p - 1)(T_F + T_B - T_W).
    if count >= stages:
        assert step("zb-h1") == pytest.approx(work + (stages - 1) * (f + b - w))


def test_two_uneven_ranks_by_hand():
    # Rank 0: forward 1, backward 2; rank 1: 2 and 3; 1 to send.
    times = Times(np.array([1.0, 2.0]), np.array([2.0, 3.0]), send=np.array([1.0]))
    found = simulate(Schedule("1f1b", 2, 2), times, events=True)
    spans = {(rank, kind, m): (start, end) for rank, kind, m, _, start, end in found.events}
    assert spans == {
        (0, FORWARD, 0): (0, 1),
        (0, FORWARD, 1): (1, 2),
        (1, FORWARD, 0): (2, 4),
        (1, BACKWARD, 0): (4, 7),
        (1, FORWARD, 1): (7, 9),
        (0, BACKWARD, 0): (8, 10),
        (1, BACKWARD, 1): (9, 12),
        (0, BACKWARD, 1): (13, 15),
    }
    assert found.total == 15
    assert found.busy.tolist() == [6, 10]
    assert found.bubble == pytest.approx(1 - 8 / 15)


@pytest.mark.parametrize(
    ("schedule", "peaks"),
    [
        (Schedule("gpipe", 4, 8), (8, 8, 8, 8)),
        (Schedule("1f1b", 4, 8), (4, 3, 2, 1)),
        (Schedule("1f1b", 4, 2), (2, 2, 2, 1)),
        # Narayanan et al.: 1 + (p - 1) / (p v) of the model on the first rank: (p v + p - 1) chunks.
        (Schedule("interleaved", 4, 8, 2), (11, 9, 7, 5)),
        # Qi et al., table 1: no more than 1F1B's first rank anywhere.
        (Schedule("zb-h1", 4, 8), (4, 4, 4, 4)),
    ],
)
def test_activations_in_flight(schedule, peaks):
    assert peak_activations(schedule) == peaks


@st.composite
def plans(draw):
    name = draw(st.sampled_from(NAMES))
    stages = draw(st.integers(1, 10))
    chunks = draw(st.integers(2, 3)) if name == "interleaved" else 1
    count = draw(st.integers(1, 5)) * stages if name == "interleaved" else draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (20, stages * chunks)
    forward = np.ones(shape)
    uneven = draw(st.sampled_from(["any", "ends", "noise"]))
    if uneven == "any":
        forward *= rng.uniform(0.5, 1.5, shape)
    elif uneven == "ends":  # embedding and head
        forward[:, 0] += rng.uniform(0, 1.5, 20)
        forward[:, -1] += rng.uniform(0, 1.5, 20)
    else:
        forward *= 1 + 0.1 * rng.standard_normal(shape).clip(-3, 3)
    backward = forward * rng.uniform(1, 2.5, (20, 1))
    weight = forward * rng.uniform(0.8, 1.2, (20, 1)) if name == "zb-h1" else None
    send = draw(st.sampled_from([0.0, 0.03, 0.1])) * rng.uniform(0.5, 1.5, (20, stages * chunks - 1))
    return Schedule(name, stages, count, chunks), Times(forward, backward, weight, send)


@settings(max_examples=150, deadline=None)
@given(plans())
def test_closed_forms_are_within_one_percent(plan):
    schedule, times = plan
    replayed = simulate(schedule, times).total
    np.testing.assert_allclose(step_time(schedule, times), replayed, rtol=0.01)
    if schedule.name == "gpipe" or (schedule.name == "1f1b" and not np.any(times.send)):
        np.testing.assert_allclose(step_time(schedule, times), replayed, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(plans())
def test_any_plan(plan):
    schedule, times = plan
    every = simulate(schedule, times)
    forward, backward, _, send = times.checked(schedule)
    for i in (0, 7):
        part = Times(
            times.forward[i], times.backward[i], None if times.weight is None else times.weight[i], times.send[i]
        )
        one = simulate(schedule, part, events=True)
        # Arrays of plans give what single plans give.
        assert one.total == pytest.approx(every.total[i], rel=1e-12)
        assert step_time(schedule, part) == pytest.approx(float(step_time(schedule, times)[i]), rel=1e-9)
        end = {(k, m, c * schedule.stages + r): e for r, k, m, c, _, e in one.events}
        start = {(k, m, c * schedule.stages + r): s for r, k, m, c, s, _ in one.events}
        kinds = 3 if schedule.splits_backward else 2
        assert len(one.events) == len(end) == kinds * schedule.microbatches * schedule.pieces
        for (kind, m, piece), begin in start.items():
            if kind == FORWARD and piece:
                assert begin >= end[FORWARD, m, piece - 1] + send[i, piece - 1]
            if kind == BACKWARD and piece < schedule.pieces - 1:
                assert begin >= end[BACKWARD, m, piece + 1] + send[i, piece]
            if kind != FORWARD:
                assert begin >= end[kind - 1, m, piece]
        for rank in range(schedule.stages):
            mine = sorted((s, e) for r, _, _, _, s, e in one.events if r == rank)
            assert all(b[0] >= a[1] for a, b in pairwise(mine))
            assert len(order(schedule, rank)) == kinds * schedule.microbatches * schedule.chunks
    # No step is shorter than its busiest rank, or the way of one micro-batch.
    assert (every.total >= every.busy.max(axis=-1) * (1 - 1e-12)).all()
    way = (forward + backward).sum(axis=-1) + 2 * send.sum(axis=-1)
    assert (every.total >= way * (1 - 1e-12)).all()
    assert ((every.bubble >= -1e-12) & (every.bubble < 1)).all()


def test_weight_gradients_wait_for_their_input_gradients():
    one = simulate(Schedule("zb-h1", 3, 5), Times(np.ones(3), np.ones(3), np.ones(3)), events=True)
    end = {(r, m): e for r, k, m, _, _, e in one.events if k == BACKWARD}
    assert all(s >= end[r, m] for r, k, m, _, s, _ in one.events if k == WEIGHT)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Schedule("2f2b", 2, 4), "unknown pipeline schedule.*2f2b"),
        (lambda: Schedule("1f1b", 0, 4), "stages must be at least 1"),
        (lambda: Schedule("1f1b", 2, 4, 2), "one chunk a rank"),
        (lambda: Schedule("interleaved", 4, 6, 2), "multiple of the stages.*6.*4"),
        (
            lambda: simulate(Schedule("1f1b", 2, 4), Times(np.ones(3), np.ones(2))),
            "forward must have one value a piece",
        ),
        (lambda: simulate(Schedule("1f1b", 2, 4), Times(np.ones(2), -np.ones(2))), "backward must be finite and 0"),
        (lambda: simulate(Schedule("1f1b", 3, 4), Times(np.ones(3), np.ones(3), send=np.ones(3))), "send must have"),
        (lambda: step_time(Schedule("zb-h1", 2, 4), Times(np.ones(2), np.ones(2))), "needs the time of weight"),
        (
            lambda: simulate(Schedule("1f1b", 2, 4), Times(np.ones((3, 2)), np.ones(2)), events=True),
            "events are of a single plan",
        ),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()
