"""Stragglers: the same for the same seed, later with more ranks, and quantiles that the draws have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.fabric.skew import Skew, fitted, published


def test_same_seed_same_delays():
    skew = published()
    assert (skew.delays(64, 100, 3) == skew.delays(64, 100, 3)).all()
    assert (skew.delays(64, 100, 3) != skew.delays(64, 100, 4)).any()


@given(st.floats(1e5, 1e9), st.floats(1.2, 10), st.integers(2, 4096))
def test_a_fit_has_its_quantiles(median, ratio, ranks):
    try:
        skew = fitted(median, median * ratio, 0.9, ranks)
    except InputError:  # every rank would have to be late, and more
        assume(False)
    assert skew.last_ps(0.5, ranks) == pytest.approx(median, rel=1e-6)
    assert skew.last_ps(0.9, ranks) == pytest.approx(median * ratio, rel=1e-6)


def test_draws_have_the_quantiles():
    skew = published()
    last = skew.delays(64, 50_000, 0).max(axis=1)
    for share in (0.3, 0.5, 0.9, 0.99):
        # The standard error of a quantile of 50,000 draws is below 2 %.
        assert np.quantile(last, share) == pytest.approx(skew.last_ps(share, 64), rel=0.05, abs=1e6)


def test_more_ranks_wait_longer():
    skew = published()
    found = [skew.last_ps(0.5, n) for n in (64, 256, 4096)]
    assert found == sorted(found)
    assert found[0] > 0


def test_waits_are_those_of_a_rank():
    waits = published().waits(64, 1000, 1)
    assert waits.min() >= 0
    assert waits.shape == (1000,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Skew(probability=1.5, mean_ps=1),
        lambda: Skew(probability=0.5, mean_ps=-1),
        lambda: published().delays(0, 1, 0),
        lambda: published().last_ps(1.0, 4),
        lambda: fitted(2.0, 1.0, 0.9, 4),
    ],
)
def test_wrong_input(make):
    with pytest.raises(InputError):
        make()
