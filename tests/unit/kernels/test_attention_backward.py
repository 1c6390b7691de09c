"""Gradients of attention against PyTorch's in float64, over drawn shapes, masks and formats."""

import numpy as np
import pytest
from hypothesis import given
from kernel_harness import assert_close, drawn, normal, run

import trnsim
from trnsim.kernels.attention_backward import attention_backward

torch = pytest.importorskip("torch", reason="PyTorch is an extra")
attention_cases = pytest.importorskip("attention_cases")


@given(attention_cases.cases)
@drawn(20)
def test_results(case):
    """``more`` keys than queries, half of them before the first query."""
    heads, depth, queries, more, width, window, dtype, where = case
    causal = window is not None
    inputs = attention_cases.arrays(heads, depth, queries, queries + more if causal else more + 1, width, dtype)
    dy = normal(3, (heads[0], queries, width), dtype)
    check(inputs, dy, (depth**-0.5, causal, window or 0, more // 2 if causal else 0), where)


def check(inputs, dy, arguments, where):
    """All three gradients."""
    dtype = dy.dtype
    leaves = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in inputs]
    result, logs = attention_cases.attend(*leaves, *arguments)
    result.backward(torch.tensor(dy.astype(np.float64)))
    forward = result.detach().numpy().astype(dtype), logs.detach().numpy().astype(np.float32)
    found = run(attention_backward, where, *inputs, *forward, dy, *arguments)
    for one, leaf, turned in zip(found, leaves, (True, True, False), strict=True):
        wanted = (leaf.grad.transpose(1, 2) if turned else leaf.grad).numpy()
        # Steps of the format in weights, their gradients and results; one key leaves 0 but for rounding.
        assert_close(one, wanted, dtype, 8, max(np.abs(wanted).max(), 0.5), sums=2e-5)


@pytest.mark.parametrize("cores", [1, 2])
def test_long_sequences(cores, monkeypatch):
    """More keys than a tile has, of smaller ones than usual; two heads of queries for one of keys."""
    for module in ("attention", "attention_backward"):
        monkeypatch.setattr(f"trnsim.kernels.{module}.LOAD", 512)
    inputs = attention_cases.arrays((2, 1), 64, 700, 900, 64, np.float32)
    check(inputs, normal(3, (2, 700, 64), np.float32), (0.125, True, 0, 200), ("trn2", cores))


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
