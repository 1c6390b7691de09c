"""Attention of many queries against PyTorch in float64, over drawn shapes, masks and formats."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
import trnsim.kernels.attention
from trnsim.kernels.attention import attention

torch = pytest.importorskip("torch")

# Largest error of results of size 1: steps of the format in weights, sums and result.
FORMATS = {np.dtype(np.float32): 2e-5, np.dtype(ml_dtypes.bfloat16): 2**-6, np.dtype(np.float16): 2**-9}


def reference(q, k, v, scale, causal=False, window=0, first_query=0):
    """Results, and logarithms of the sums, in float64."""
    q, k, v = (torch.from_numpy(np.asarray(x, np.float64)) for x in (q, k, v))
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = scale * q.transpose(1, 2) @ k
    if causal:
        row = first_query + torch.arange(q.shape[2])[:, None]
        column = torch.arange(k.shape[2])
        hidden = column > row
        if window:
            hidden |= column <= row - window
        scores = scores.masked_fill(hidden, -torch.inf)
    return (torch.softmax(scores, -1) @ v).numpy(), torch.logsumexp(scores, -1).numpy()


@given(
    st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]), st.sampled_from([64, 128, 192, 17]), st.integers(1, 400),
    st.integers(0, 900), st.sampled_from([64, 128, 40]), st.sampled_from([None, 0, 1, 70, 300]),
    st.sampled_from(list(FORMATS)), st.sampled_from([("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 2)]),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_results(heads, depth, queries, more, width, window, dtype, where, seed):
    """``window``: None is attention without a mask; with one, the queries are the last tokens among the keys."""
    chip, cores = where
    rng = np.random.default_rng(seed)
    causal = window is not None
    keys = queries + more if causal else more + 1
    q = rng.standard_normal((heads[0], depth, queries)).astype(dtype)
    k = rng.standard_normal((heads[1], depth, keys)).astype(dtype)
    v = rng.standard_normal((heads[1], keys, width)).astype(dtype)
    arguments = (depth**-0.5, causal, window or 0, more if causal else 0)
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    found, lse = trnsim.simulate(attention[cores], q, k, v, *arguments, True, options=options)
    wanted, wanted_lse = reference(q, k, v, *arguments)
    assert np.asarray(found).dtype == dtype
    assert np.abs(np.asarray(found, np.float64) - wanted).max() <= FORMATS[dtype] * max(1, np.abs(wanted).max())
    assert np.abs(lse - wanted_lse).max() <= 1e-4


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
