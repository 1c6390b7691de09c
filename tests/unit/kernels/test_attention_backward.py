"""Gradients of attention against PyTorch's in float64, over drawn shapes, masks and formats."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim.kernels.attention_backward import attention_backward

torch = pytest.importorskip("torch")

# Largest error over the largest gradient: steps of the format in weights, their gradients and results.
FORMATS = {np.dtype(np.float32): 2e-5, np.dtype(ml_dtypes.bfloat16): 2**-5, np.dtype(np.float16): 2**-8}


def reference(q, k, v, dy, scale, causal, window, first_query):
    """Result, logarithms and gradients in float64; gradients have rows of queries and keys."""
    q, k, v, dy = (torch.from_numpy(np.asarray(x, np.float64)) for x in (q, k, v, dy))
    for x in (q, k, v):
        x.requires_grad_()
    each_k, each_v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = scale * q.transpose(1, 2) @ each_k
    if causal:
        row = first_query + torch.arange(q.shape[2])[:, None]
        column = torch.arange(k.shape[2])
        hidden = column > row
        if window:
            hidden = hidden | (column <= row - window)
        scores = scores.masked_fill(hidden, -torch.inf)
    result = torch.softmax(scores, -1) @ each_v
    result.backward(dy)
    found = (result, torch.logsumexp(scores, -1), q.grad.transpose(1, 2), k.grad.transpose(1, 2), v.grad)
    return [x.detach().numpy() for x in found]


@given(
    st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]), st.sampled_from([64, 128, 17]), st.integers(1, 300),
    st.integers(0, 700), st.sampled_from([64, 128, 40]), st.sampled_from([None, 0, 1, 70, 300]),
    st.sampled_from(list(FORMATS)), st.sampled_from([("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 2)]),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_results(heads, depth, queries, more, width, window, dtype, where, seed):
    """``window``: None is attention without a mask; ``more`` keys than queries, half of them before the first query."""
    chip, cores = where
    rng = np.random.default_rng(seed)
    causal = window is not None
    keys = queries + more if causal else more + 1
    q = rng.standard_normal((heads[0], depth, queries)).astype(dtype)
    k = rng.standard_normal((heads[1], depth, keys)).astype(dtype)
    v = rng.standard_normal((heads[1], keys, width)).astype(dtype)
    dy = rng.standard_normal((heads[0], queries, width)).astype(dtype)
    arguments = (depth**-0.5, causal, window or 0, more // 2 if causal else 0)
    result, lse, *wanted = reference(q, k, v, dy, *arguments)
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    given_forward = (result.astype(dtype), lse.astype(np.float32))
    found = trnsim.simulate(attention_backward[cores], q, k, v, *given_forward, dy, *arguments, options=options)
    for name, one, other in zip(("dq", "dk", "dv"), found, wanted, strict=True):
        assert np.asarray(one).dtype == dtype
        # One key leaves gradients of scores that are 0 but for rounding.
        limit = FORMATS[dtype] * max(np.abs(other).max(), 0.5)
        assert np.abs(np.asarray(one, np.float64) - other).max() <= limit, name


@pytest.mark.parametrize(
    ("q", "k", "width", "message"),
    [
        ((1, 129, 8), (1, 129, 8), 64, "head dimension 129 exceeds 128"),
        ((1, 64, 8), (1, 64, 8), 130, "values of 130 elements exceed 128"),
        ((1, 128, 16384), (1, 128, 16384), 128, "16384 queries and 16384 keys need"),
    ],
)
def test_sizes_that_do_not_fit(q, k, width, message):
    shapes = (q, k, (k[0], k[2], width), (q[0], q[2], width), (q[0], q[2]), (q[0], q[2], width))
    with pytest.raises(AssertionError, match=message):
        trnsim.simulate(attention_backward, *(np.zeros(s, np.float32) for s in shapes))
