"""Goodput under failures: against a drawn history of failures, a grid, and the published optima."""

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.planner.goodput import best_interval, daly_interval, goodput, long_run, system_mtbf, young_interval


def drawn(interval, checkpoint, mtbf, restart, seed=0, intervals=40_000):
    """Goodput of a drawn history: an interval and its checkpoint are tried until no failure comes in between."""
    rng = np.random.default_rng(seed)
    wall, need = 0.0, interval + checkpoint
    for _ in range(intervals):
        while (failure := rng.exponential(mtbf)) < need:
            wall += failure
            while (again := rng.exponential(mtbf)) < restart:
                wall += again
            wall += restart
        wall += need
    return intervals * interval / wall


@pytest.mark.parametrize(
    ("interval", "checkpoint", "mtbf", "restart"), [(60, 2, 600, 10), (30, 10, 100, 20), (5, 1, 5, 1), (100, 0, 50, 0)]
)
def test_against_drawn_failures(interval, checkpoint, mtbf, restart):
    expected = drawn(interval, checkpoint, mtbf, restart)
    # 40,000 intervals: the deviation of the mean is well under 1 %.
    assert goodput(interval, checkpoint, mtbf, restart) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("checkpoint", [0.001, 0.1, 1.0, 5.0, 50.0, 300.0])
def test_best_interval(checkpoint):
    mtbf = 100.0
    best = float(best_interval(checkpoint, mtbf))
    grid = np.geomspace(1e-3, 1e3, 20_001)
    assert goodput(best, checkpoint, mtbf) >= goodput(grid, checkpoint, mtbf).max()
    if checkpoint <= mtbf / 2:
        assert goodput(daly_interval(checkpoint, mtbf), checkpoint, mtbf) == pytest.approx(
            float(goodput(best, checkpoint, mtbf)), rel=1e-3
        )
    if checkpoint <= mtbf / 1000:
        assert best == pytest.approx(float(young_interval(checkpoint, mtbf)), rel=0.03)


def test_known_values():
    assert young_interval(2.0, 100.0) == 20
    assert daly_interval(250.0, 100.0) == 100
    assert system_mtbf(16_384, 16_384 * 3.0) == 3.0
    assert best_interval(0.0, 100.0) == 0
    assert goodput(0.0, 0.0, 100.0, 5.0) == pytest.approx(np.exp(-0.05))
    # No failures to speak of: only checkpoints cost.
    assert goodput(90.0, 10.0, 1e12) == pytest.approx(0.9)
    run = long_run(1000.0, 2.0, 100.0, restart=5.0)
    assert run.wall == pytest.approx(1000 / run.goodput)
    assert long_run(1000.0, 2.0, 100.0, interval=20.0).interval == 20
    many = best_interval(np.array([1.0, 2.0]), 100.0)
    assert many.shape == (2,)
    assert many[1] > many[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: goodput(10, 1, 0), "mtbf must be positive"),
        (lambda: goodput(10, -1, 10), "checkpoint must be 0 or more"),
        (lambda: goodput(0, 1, 10), "does no work"),
        (lambda: system_mtbf(0, 10), "chips must be positive"),
        (lambda: long_run(10, 1e6, 1.0), "leave no time"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()
