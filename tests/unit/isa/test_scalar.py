"""ScalarE: activation functions against ``math`` in float64, scale and bias in every form, sums that continue."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import (
    FLOATS,
    act,
    assert_close,
    assert_refused,
    assert_same,
    draw_values,
    draws,
    given_tensor,
    layouts,
    memories,
    nl,
    only_writes,
    output_layouts,
    read,
    rounded,
    running,
    seeds,
    single,
    sizes,
    tensor,
    upcast,
)

from trnsim.errors import CompilerError, HardwareError
from trnsim.isa import scalar
from trnsim.isa.constants import reduce_cmd


def normal_cdf(x):
    return math.erfc(-x / math.sqrt(2)) / 2


def normal_pdf(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def logistic(x):
    return 1 / (1 + math.exp(-x))


FUNCTIONS = {
    "copy": lambda x: x,
    "square": lambda x: x * x,
    "relu": lambda x: max(x, 0.0),
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "exp": math.exp,
    "sigmoid": logistic,
    "tanh": math.tanh,
    "gelu": lambda x: x * normal_cdf(x),
    "gelu_dx": lambda x: normal_cdf(x) + x * normal_pdf(x),
    "gelu_apprx_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_apprx_sigmoid": lambda x: x * logistic(1.702 * x),
    "silu": lambda x: x * logistic(x),
    "silu_dx": lambda x: logistic(x) * (1 + x * (1 - logistic(x))),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "erf": math.erf,
    "erf_dx": lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x),
    "arctan": math.atan,
}
POSITIVE = {"log": math.log, "sqrt": math.sqrt, "rsqrt": lambda x: 1 / math.sqrt(x), "reciprocal": lambda x: 1 / x}
# Where terms cancel or an exponent is itself rounded, results below this size have the same absolute error.
ROUGH = {"gelu_dx": 0.5, "silu_dx": 0.5, "sin": 0.5, "gelu_apprx_tanh": 0.1, "gelu_apprx_sigmoid": 1e-2, "erf_dx": 1e-2}
EXACT = ("copy", "square", "relu", "abs")


@pytest.mark.parametrize("name", [*FUNCTIONS, *POSITIVE, "sin"])
def test_functions(name):
    """On [-8, 8], within 4 units in the last place of float32."""
    x = np.concatenate([np.linspace(-8, 8, 383), [0.0]]).astype(np.float32).reshape(4, 96)
    if name in POSITIVE:
        x = np.abs(x) + np.float32(2**-10)
    if name == "sin":
        x *= np.float32(math.pi / 8)
    reference = math.sin if name == "sin" else (FUNCTIONS | POSITIVE)[name]
    with running() as core:
        dst = tensor(core, "float32", 4, 96)
        scalar.activation(dst, getattr(act, name), given_tensor(core, x, "float32"))
        expected = np.vectorize(reference, otypes=[np.float64])(x.astype(np.float64))
        error = np.abs(read(dst).astype(np.float64) - expected)
        least = ROUGH.get(name, 1e-9)
        units = error / np.maximum(np.abs(expected), least) * 2.0**24
        assert units.max() <= 8, (units.max(), x.ravel()[units.argmax()])


def test_sin_outside_its_range_is_the_documented_cubic():
    """The vendor's simulator prints 27.65 for 9.0."""
    with running() as core:
        dst = tensor(core, "float32", 1, 2)
        scalar.activation(dst, act.sin, given_tensor(core, np.array([[9.0, -9.0]], np.float32), "float32"))
        assert np.abs(read(dst) - [[27.65, -27.65]]).max() < 0.005


@draws
@given(
    st.sampled_from(["v2", "v3", "v4"]),
    sizes,
    seeds,
    st.sampled_from(EXACT),
    st.sampled_from(["none", "number", "vector"]),
    st.sampled_from(["number", "vector"]),
    st.sampled_from([*FLOATS, "int8", "int32"]),
    st.sampled_from([*FLOATS, "uint8"]),
    memories,
    memories,
    layouts,
    output_layouts,
)
def test_scale_and_bias(generation, size, seed, name, bias, scale, kind, out, place1, place, layout1, layout):
    """dst = op(data * scale + bias), each step rounded to float32."""
    if generation == "v2" and bias == "number":
        bias = "vector"
    x = draw_values(seed, kind, *size)
    b, s = draw_values(seed + 1, "bfloat16", size[0], 1), draw_values(seed + 2, "float32", size[0], 1)
    with running(generation) as core:
        given_bias = {"none": None, "number": float(b[0, 0]), "vector": given_tensor(core, b, "bfloat16")}[bias]
        given_scale = {"number": float(s[0, 0]), "vector": given_tensor(core, s, "float32")}[scale]
        dst = tensor(core, out, *size, place, layout)
        with only_writes(dst):
            scalar.activation(
                dst, getattr(act, name), given_tensor(core, x, kind, place1, layout1), given_bias, given_scale
            )
        value = upcast(single(upcast(x) * upcast(s if scale == "vector" else s[:1])))
        if bias != "none":
            value = upcast(single(value + upcast(b if bias == "vector" else b[:1])))
        expected = single(np.vectorize(FUNCTIONS[name], otypes=[np.float64])(value))
        assert_same(read(dst), rounded(expected, out))


def test_sums_stay_in_the_accumulators():
    """reset, add, add, read; then reset_reduce; also where ``reduce_res`` is a column of ``dst``."""
    parts = [draw_values(i, "float32", 64, 20) for i in range(3)]
    with running() as core:
        out, total = tensor(core, "bfloat16", 64, 20), tensor(core, "float32", 64, 1, "psum")
        tiles = [given_tensor(core, p, "float32") for p in parts]
        scalar.activation(out, act.square, tiles[0], reduce_cmd=reduce_cmd.reset)
        scalar.activation(out, act.square, tiles[1], 0.0, 1.0, nl.add, None, reduce_cmd.reduce)
        scalar.activation(out, act.exp, tiles[0])
        scalar.activation(out, act.square, tiles[2], 0.0, 1.0, nl.add, total, reduce_cmd.reduce)
        expected = sum((upcast(p) ** 2).sum(1, keepdims=True) for p in parts[1:])
        assert_close(read(total), expected, "float32", 40)
        before = read(total)
        scalar.activation(out, act.copy, tiles[0], reduce_res=total)
        assert_same(read(total), before)
        scalar.activation_reduce(out, act.square, tiles[0], nl.add, total)
        assert_close(read(total), (upcast(parts[0]) ** 2).sum(1, keepdims=True), "float32", 20)
        assert_same(read(out), rounded(parts[0] ** 2, "bfloat16"))
        wide = tensor(core, "float32", 64, 20)
        scalar.activation_reduce(dst=wide, op=act.square, data=tiles[0], reduce_op=nl.add, reduce_res=wide[:, 0:1])
        assert_close(read(wide[:, 0:1]), (upcast(parts[0]) ** 2).sum(1, keepdims=True), "float32", 20)
        assert_same(read(wide[:, 1:]), parts[0][:, 1:] ** 2)


def test_in_place():
    x = draw_values(1, "float32", 8, 12)
    with running() as core:
        data = given_tensor(core, x, "float32")
        scalar.activation(data, act.square, data, data[:, 0:1], data[:, 1:2])
        value = upcast(single(upcast(single(upcast(x) * upcast(x[:, 1:2]))) + upcast(x[:, 0:1])))
        assert_same(read(data), single(value**2))


def test_time_only_runs_compute_only_what_sums_need():
    """An activation that neither reduces nor reads is not part of a sum's slice."""
    with running(numeric=False) as core:
        x, out, total = (core.ndarray(s, "float32") for s in ((4, 8), (4, 8), (4, 1)))
        other = core.ndarray((4, 8), "float32")
        from trnsim.isa import vector

        vector.memset(x, 2.0)
        scalar.activation(out, act.square, x, None, 1.0, nl.add, None, reduce_cmd.reset_reduce)
        scalar.activation(other, act.square, x)
        scalar.activation(out, act.square, x, None, 1.0, nl.add, total, reduce_cmd.reduce)
        core.force(total)
        assert (read(total) == 64).all()
        assert core.executed[:4].tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("generation", "kind", "operand", "change"),
    [
        ("v2", HardwareError, "bias", {"bias": 0.5}),
        ("v3", HardwareError, "bias", {"bias": ("float32", 8, 2)}),
        ("v3", HardwareError, "bias", {"bias": ("tfloat32", 8, 1)}),
        ("v3", HardwareError, "scale", {"scale": ("bfloat16", 8, 1)}),
        ("v3", HardwareError, "scale", {"scale": ("float32", 4, 1)}),
        ("v3", HardwareError, "data", {"data": ("float32", 8, 15)}),
        ("v3", HardwareError, "data", {"data": ("float32", 8, 16, "hbm")}),
        ("v3", HardwareError, "dst", {"dst": ("float32", 8, 16, "hbm")}),
        ("v4", HardwareError, "data", {"data": ("float8_e5m2_x4", 8, 16)}),
        ("v3", HardwareError, "reduce_op", {"reduce_op": nl.maximum}),
        ("v3", HardwareError, "reduce_cmd", {"reduce_cmd": reduce_cmd.load_reduce}),
        ("v3", HardwareError, "reduce_res", {"reduce_res": ("float32", 8, 2), "reduce_cmd": reduce_cmd.reset}),
        ("v3", CompilerError, "reduce_op", {"reduce_cmd": reduce_cmd.reset_reduce}),
        ("v3", CompilerError, "scale", {"scale": None}),
        ("v3", CompilerError, "op", {"op": nl.add}),
    ],
)
def test_rules(generation, kind, operand, change):
    with running(generation) as core:

        def made(value):
            if not isinstance(value, tuple):
                return value
            return core.ndarray(value[1:3], value[0], value[3] if len(value) > 3 else "sbuf")

        arguments = {"dst": ("float32", 8, 16), "op": act.exp, "data": ("float32", 8, 16)} | change
        values = {name: made(value) for name, value in arguments.items()}
        assert_refused(kind, operand, lambda: scalar.activation(**values))
        assert len(core.trace) == 0
