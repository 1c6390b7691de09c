"""Normalisation against PyTorch in float64, over drawn shapes and formats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import assert_close, drawn, dtypes, normal, places, run

from trnsim.kernels.layernorm import layernorm, layernorm_backward
from trnsim.kernels.rmsnorm import rmsnorm, rmsnorm_backward

torch = pytest.importorskip("torch", reason="PyTorch is an extra")


def double(array):
    return torch.tensor(array.astype(np.float64), requires_grad=True)


shapes = st.tuples(
    st.one_of(st.integers(1, 500), st.integers(1, 130)), st.sampled_from([32, 61, 128, 200, 513, 1024, 1030, 4096])
)


@given(shapes, dtypes, places)
@drawn(40)
def test_rmsnorm(shape, dtype, where):
    x, weight, arrived = normal(1, shape, dtype), normal(2, shape[1], dtype), normal(3, shape, dtype)
    leaf, scale = double(x), double(weight)
    wanted = torch.nn.functional.rms_norm(leaf, shape[1:], scale, 1e-6)
    wanted.backward(double(arrived).detach())
    assert_close(run(rmsnorm, where, x, weight, 1e-6), wanted.detach(), dtype, 1)
    of_x, of_weight = run(rmsnorm_backward, where, arrived, x, weight, 1e-6)
    assert_close(of_x, leaf.grad, dtype, 3)
    assert_close(of_weight, scale.grad, dtype, 3)


@given(shapes, st.sampled_from([0, 3]), dtypes, places)
@drawn(40)
def test_layernorm(shape, mean, dtype, where):
    x, weight = (normal(1, shape, np.float32) + mean).astype(dtype), normal(2, shape[1], dtype)
    bias, arrived = normal(3, shape[1], dtype), normal(4, shape, dtype)
    leaf, scale, offset = double(x), double(weight), double(bias)
    wanted = torch.nn.functional.layer_norm(leaf, shape[1:], scale, offset, 1e-5)
    wanted.backward(double(arrived).detach())
    assert_close(run(layernorm, where, x, weight, bias, 1e-5), wanted.detach(), dtype, 2)
    of_x, of_weight, of_bias = run(layernorm_backward, where, arrived, x, weight, 1e-5)
    assert_close(of_x, leaf.grad, dtype, 4)
    assert_close(of_weight, scale.grad, dtype, 3)
    assert_close(of_bias, offset.grad, dtype, 1)


def test_mean_far_from_zero():
    """The variance of numbers whose squares have no digits left for it."""
    x, one, zero = normal(1, (130, 2100), np.float32) + np.float32(4096), np.ones(2100, np.float32), np.zeros(2100)
    wanted = torch.nn.functional.layer_norm(torch.tensor(x.astype(np.float64)), (2100,), eps=1e-5)
    found = run(layernorm, ("trn2", 1), x, one, zero.astype(np.float32), 1e-5)
    assert np.abs(found - wanted.numpy()).max() <= 2e-3


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (np.zeros((4, 8), np.float32), np.zeros(9, np.float32), r"weight is \(9,\): it must be \(8,\)"),
        (np.zeros((4, 8), np.float32), np.zeros(8, np.float16), "weight is float16: it must be float32"),
        (np.zeros((4, 8), np.int32), np.zeros(8, np.int32), "x is int32: the kernel takes float32"),
        (np.zeros((4, 8200), np.float32), np.zeros(8200, np.float32), "SBUF holds up to 8192"),
        (np.zeros((4, 8, 2), np.float32), np.zeros(8, np.float32), r"it must be \[rows, width\]"),
    ],
)
def test_refused(x, weight, message):
    with pytest.raises(AssertionError, match=message):
        run(rmsnorm, ("trn2", 1), x, weight)
    with pytest.raises(AssertionError, match=message):
        run(layernorm, ("trn2", 1), x, weight, weight)
