"""Element-wise operators, rotary embedding and Adam against PyTorch in float64, over drawn shapes and formats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import BF16, assert_close, drawn, dtypes, normal, places, run

from trnsim.kernels.adam import adam_step
from trnsim.kernels.elementwise import activation_backward, elementwise, gated_activation, gated_activation_backward
from trnsim.kernels.rope import rope

torch = pytest.importorskip("torch", reason="PyTorch is an extra")
F = torch.nn.functional

FUNCTIONS = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
}
shapes = st.tuples(st.integers(1, 400), st.integers(1, 300))


def double(array):
    return torch.tensor(array.astype(np.float64), requires_grad=True)


@given(
    shapes, st.booleans(), st.booleans(), st.sampled_from(list(FUNCTIONS)), st.sampled_from([1.0, 0.5]), dtypes, places
)
@drawn(40)
def test_elementwise(shape, biased, added, name, scale, dtype, where):
    x = normal(1, shape, dtype)
    bias = normal(2, shape[1], dtype) if biased else None
    residual = normal(3, shape, dtype) if added else None
    argument = scale * double(x) + (double(bias) if biased else 0)
    wanted = FUNCTIONS[name](argument) + (double(residual) if added else 0)
    size = max(1, argument.abs().max().item(), wanted.abs().max().item())
    assert_close(run(elementwise, where, x, bias, residual, name, scale), wanted.detach(), dtype, 3.5, size)


@given(shapes, st.sampled_from(["relu", "silu", "gelu", "gelu_tanh", "sigmoid"]), dtypes, places)
@drawn(40)
def test_gradients(shape, name, dtype, where):
    x, up, arrived = (normal(seed, shape, dtype) for seed in range(3))
    leaf, other, back = double(x), double(up), double(arrived).detach()
    FUNCTIONS[name](leaf).backward(back)
    size = max(1, leaf.grad.abs().max().item())
    # These derivatives are made of rounded parts.
    steps = 5 if name in ("gelu_tanh", "sigmoid") else 2
    assert_close(run(activation_backward, where, arrived, x, name), leaf.grad, dtype, steps, size)
    leaf.grad = None
    wanted = FUNCTIONS[name](leaf) * other
    wanted.backward(back)
    assert_close(run(gated_activation, where, x, up, name), wanted.detach(), dtype, 2)
    of_gate, of_up = run(gated_activation_backward, where, arrived, x, up, name)
    assert_close(of_gate, leaf.grad, dtype, steps + 1)
    assert_close(of_up, other.grad, dtype, 2)


@given(st.integers(1, 300), st.integers(1, 5), st.sampled_from([2, 10, 64, 128]), st.booleans(), dtypes, places)
@drawn(40)
def test_rope(tokens, heads, size, inverse, dtype, where):
    x, angles = normal(1, (tokens, heads, size), dtype), normal(2, (tokens, size // 2), np.float32)
    cosines, sines = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    leaf = double(x)
    turns = torch.complex(double(cosines), double(sines))[:, None]
    first, second = leaf.chunk(2, -1)
    turned = torch.complex(first, second) * turns
    wanted = torch.cat([turned.real, turned.imag], -1)
    if inverse:  # what takes a gradient of the result back
        arrived = leaf.detach()
        wanted.backward(arrived)
        wanted = leaf.grad
    assert_close(run(rope, where, x, cosines, sines, inverse), wanted.detach(), dtype, 3)


@given(
    shapes, st.sampled_from([torch.optim.AdamW, torch.optim.Adam]), st.sampled_from([0.0, 0.1]), dtypes,
    st.sampled_from([BF16, np.float32]), places,
)  # fmt: skip
@drawn(40)
def test_adam(shape, optimiser, decay, dtype, model_dtype, where):
    start = normal(1, shape, np.float32)
    parameter = torch.nn.Parameter(torch.tensor(start.astype(np.float64)))
    steps = optimiser([parameter], lr=1e-2, betas=(0.8, 0.95), weight_decay=decay)
    weight, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    model = np.zeros(shape, model_dtype)
    for step in (1, 2, 3):
        gradient = normal(step, shape, dtype)
        gradient[0, 0] = 0
        parameter.grad = torch.tensor(gradient.astype(np.float64))
        steps.step()
        schedule = np.array([1e-2, 1 - 0.8**step, 1 - 0.95**step], np.float32)
        weight, first, second, model = run(
            adam_step, where, weight, first, second, gradient, schedule, model, beta1=0.8, beta2=0.95,
            weight_decay=decay, decoupled=optimiser is torch.optim.AdamW,
        )  # fmt: skip
    state = steps.state[parameter]
    assert_close(weight, parameter.detach(), np.float32, 1, 1)
    assert_close(first, state["exp_avg"], np.float32, 1, 1)
    assert_close(second, state["exp_avg_sq"], np.float32, 1, 1)
    assert_close(model, parameter.detach(), model_dtype, 1, max(4, np.abs(weight).max()))


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        (elementwise, (np.zeros((2, 3), np.float32), None, None, "swish"), "no activation swish: there are identity"),
        (elementwise, (np.zeros((2, 3), np.float32), np.zeros(2, np.float32)), r"bias is \(2,\): it must be \(3,\)"),
        (activation_backward, (np.zeros((2, 3), np.float32),) * 2 + ("identity",), "no derivative of identity"),
        (gated_activation, (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)), r"up is \(3, 2\)"),
        (rope, (np.zeros((2, 1, 3), np.float32),) + (np.zeros((2, 1), np.float32),) * 2, "heads have 3 elements"),
        (adam_step, (np.zeros((2, 3), BF16),) * 6, "weight is bfloat16: it must be float32"),
    ],
)  # fmt: skip
def test_refused(kernel, arguments, message):
    with pytest.raises(AssertionError, match=message):
        run(kernel, ("trn2", 1), *arguments)
