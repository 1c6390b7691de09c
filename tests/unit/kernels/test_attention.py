"""Attention of many queries against PyTorch in float64, over drawn shapes, masks and formats."""

import numpy as np
import pytest
from hypothesis import given
from kernel_harness import ROUNDING, assert_close, drawn, run

import trnsim
import trnsim.kernels.attention
from trnsim.kernels.attention import attention

torch = pytest.importorskip("torch", reason="PyTorch is an extra")
attention_cases = pytest.importorskip("attention_cases")


def reference(q, k, v, *arguments):
    """Results, and logarithms of the sums, in float64."""
    result, logs = attention_cases.attend(*(torch.tensor(x.astype(np.float64)) for x in (q, k, v)), *arguments)
    return result.numpy(), logs.numpy()


@given(attention_cases.cases)
@drawn(25)
def test_results(case):
    """The queries of causal attention are the last tokens among the keys."""
    heads, depth, queries, more, width, window, dtype, where = case
    causal = window is not None
    q, k, v = attention_cases.arrays(heads, depth, queries, queries + more if causal else more + 1, width, dtype)
    arguments = (depth**-0.5, causal, window or 0, more if causal else 0)
    found, logs = run(attention, where, q, k, v, *arguments, True)
    wanted, wanted_logs = reference(q, k, v, *arguments)
    # Steps of the format in weights, their sums and the result.
    assert_close(found, wanted, dtype, 4, max(1, np.abs(wanted).max()), sums=2e-5)
    assert_close(logs, wanted_logs, np.float32, 0, 1, sums=1e-4)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("depth", [192, 256])
def test_wide_heads(depth, dtype):
    """Two tiles of a head's elements."""
    q, k, v = attention_cases.arrays((2, 1), depth, 200, 300, 72, dtype)
    found = run(attention, ("trn2", 2), q, k, v, depth**-0.5, True, 0, 100)
    assert_close(found, reference(q, k, v, depth**-0.5, True, 0, 100)[0], dtype, 4, 2, sums=2e-5)


def test_large_scores():
    """Scores of a size whose exponentials overflow, and rows whose largest scores differ by hundreds."""
    rng = np.random.default_rng(0)
    q = (rng.standard_normal((1, 64, 256)) * np.linspace(1, 100, 256)).astype(np.float32)
    k, v = rng.standard_normal((1, 64, 700)).astype(np.float32), rng.standard_normal((1, 700, 64)).astype(np.float32)
    for chip in ("trn2", "trn3"):
        options = trnsim.SimulationOptions(chip=chip, timed=False)
        found = trnsim.simulate(attention, q, k, v, 1.0, options=options)
        assert np.abs(found - reference(q, k, v, 1.0)[0]).max() <= 1e-3


def test_keys_that_do_not_fit(monkeypatch):
    """Keys and values that are loaded for each block of queries give what kept ones do, bit for bit."""
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, 64, size)).astype(np.float32) for size in (200, 2500))
    v = rng.standard_normal((2, 2500, 64)).astype(np.float32)
    options = trnsim.SimulationOptions(timed=False)
    kept = trnsim.simulate(attention, q, k, v, 0.125, True, 600, 2000, options=options)
    monkeypatch.setattr(trnsim.kernels.attention, "KEPT_BYTES", 0)
    loaded = trnsim.simulate(attention, q, k, v, 0.125, True, 600, 2000, options=options)
    assert (np.asarray(kept) == np.asarray(loaded)).all()
    assert np.abs(loaded - reference(q, k, v, 0.125, True, 600, 2000)[0]).max() <= 1e-5


@pytest.mark.parametrize(
    ("q", "k", "v", "arguments", "message"),
    [
        ((1, 64, 8), (1, 128, 8), (1, 8, 64), {}, "q has head dimension 64, k 128"),
        ((1, 257, 8), (1, 257, 8), (1, 8, 64), {}, "head dimension 257 exceeds 256"),
        ((3, 64, 8), (2, 64, 8), (2, 8, 64), {}, "3 heads are no multiple of 2 key heads"),
        ((1, 64, 8), (1, 64, 8), (1, 9, 64), {}, "k has 1 heads of 8 keys"),
        ((1, 64, 9), (1, 64, 8), (1, 8, 64), {"causal": True}, "9 queries from 0 on pass 8 keys"),
        ((1, 64, 8), (1, 64, 8), (1, 8, 64), {"window": 4}, "window and first_query are for causal attention"),
        ((1, 64, 8), (1, 64, 8), (1, 8, 64), {"scale": 0.0}, "scale 0.0 is not positive"),
    ],
)
def test_sizes_that_do_not_fit(q, k, v, arguments, message):
    with pytest.raises(AssertionError, match=message):
        trnsim.simulate(attention, *(np.zeros(s, np.float32) for s in (q, k, v)), **arguments)
