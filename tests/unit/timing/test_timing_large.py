"""What large traces do in another way gives the same: grouping by counting, phases in threads, runs not kept."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim import nki
from trnsim.hardware import load_chip
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.timing.grouping import bucket, distinct

stages = importlib.import_module("trnsim.timing.simulate")


@pytest.mark.parametrize("compiled", [False, True])
@settings(deadline=None)  # the loop is compiled once
@given(values=st.lists(st.integers(0, 9), max_size=50))
def test_grouping(compiled, values):
    column = np.array(values, np.int64)
    used, place = distinct(column, 10)
    expected, inverse = np.unique(column, return_inverse=True)
    np.testing.assert_array_equal(used, expected)
    np.testing.assert_array_equal(place, inverse.ravel())
    order, offsets = bucket(column, 10, compiled)
    np.testing.assert_array_equal(order, np.argsort(column, kind="stable"))
    np.testing.assert_array_equal(offsets, np.searchsorted(np.sort(column), np.arange(11)))


@nki.jit
def product(a, b):
    left, right = nl.load(a), nl.load(b)
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    for _ in range(60):
        total = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=total, stationary=left, moving=right)
    tile = nl.ndarray((128, 512), nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=tile, src=total)
    nl.store(out, value=tile)
    return out


@pytest.mark.parametrize("limit", ["THREADS_FROM", "KEEP_RUNS"])
def test_phases(limit, monkeypatch):
    traces = trnsim.profile(product, "bf16[128,128]", "bf16[128,512]", chip="trn2").traces
    before = stages.run_stages(traces, load_chip("trn2"), compiled=False)
    assert len(set(before.totals)) > 1
    monkeypatch.setattr(stages, limit, 0)
    after = stages.run_stages(traces, load_chip("trn2"), compiled=True)
    assert after.totals == before.totals
    assert after.typical.total == before.typical.total
    np.testing.assert_array_equal(after.typical.start, before.typical.start)
    np.testing.assert_array_equal(after.typical.lane_by, before.typical.lane_by)
