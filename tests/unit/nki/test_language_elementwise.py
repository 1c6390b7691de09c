"""Functions of ``nki.language`` on tiles, against NumPy."""

import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from trnsim.errors import CompilerError, HardwareError
from trnsim.isa.alu import as_activation, as_alu_op
from trnsim.nki import isa
from trnsim.nki import language as nl

sys.path.insert(0, str(Path(__file__).parent))
from test_language_harness import as_stored, run

RNG = np.random.default_rng(7)
X = (RNG.normal(size=(16, 24)) * 3).astype(np.float32)
Y = (RNG.normal(size=(16, 24)) * 2).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.1)
I = RNG.integers(-1000, 1000, (16, 24)).astype(np.int32)
J = RNG.integers(1, 30, (16, 24)).astype(np.int32)
BITS = RNG.integers(0, 2, (16, 24)).astype(np.float32)

# One rounding of float32 for what is one operation; a few where the function is a sequence or a transcendental.
ULP = 2.0**-23


def _float(function):
    """A reference computed in float64."""
    return lambda *args: function(*[np.asarray(a, np.float64) if np.ndim(a) else float(a) for a in args])


def _erf(x):
    return np.vectorize(math.erf)(x)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _gelu(x):
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def _derivative(function):
    h = 1e-5
    return lambda x: (function(x + h) - function(x - h)) / (2 * h)


def _gelu_sigmoid(x):
    return x * _sigmoid(1.702 * x)


def _silu(x):
    return x * _sigmoid(x)


BINARY = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "maximum": np.maximum,
    "minimum": np.minimum, "equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal,
    "greater": np.greater, "greater_equal": np.greater_equal, "logical_and": np.logical_and,
    "logical_or": np.logical_or, "logical_xor": np.logical_xor, "mod": np.mod, "fmod": np.fmod, "power": np.power,
}  # fmt: skip
EXACT = {"maximum", "minimum", "mod", "fmod"}


def _operands(name):
    if name == "power":
        return POSITIVE, Y
    if name.startswith("logical"):
        return BITS, BITS[::-1].copy()
    if "equal" in name:
        return np.round(X), np.round(Y)
    return X, Y


def _check(result, reference, tolerance=4 * ULP):
    np.testing.assert_allclose(np.asarray(result, np.float64), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BINARY)
def test_binary_on_two_tiles(name):
    a, b = _operands(name)
    got = run(getattr(nl, name), a, b)
    expected = BINARY[name](a, b).astype(np.float32)
    _check(got.values, expected, 0 if name in EXACT else 4 * ULP if name != "power" else 1e-5)
    assert got.tensor.buffer is nl.sbuf
    assert got.tensor.dtype == nl.float32


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("left", [False, True])
def test_binary_with_a_number(name, left):
    a, _ = _operands(name)
    a = POSITIVE if left and name in ("divide", "mod", "fmod") else a
    value = 1.0 if name.startswith("logical") else 2.0
    got = run(lambda t: getattr(nl, name)(value, t) if left else getattr(nl, name)(t, value), a)
    args = (np.float32(value), a) if left else (a, np.float32(value))
    expected = BINARY[name](*args).astype(np.float32)
    _check(got.values, expected, 0 if name in EXACT else 4 * ULP if name != "power" else 1e-5)
    assert "tensor_tensor" not in got.instructions


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3", "float8_e5m2"])
@pytest.mark.parametrize("name", ["add", "multiply", "maximum", "less"])
def test_binary_rounds_to_the_dtype_of_the_tiles(name, dtype):
    a, b = as_stored(X, dtype), as_stored(Y, dtype)
    got = run(getattr(nl, name), a, b)
    expected = BINARY[name](a.astype(np.float32), b.astype(np.float32)).astype(np.float32)
    np.testing.assert_array_equal(got.values, expected.astype(a.dtype))
    assert got.tensor.dtype == dtype


BITWISE = {
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
    "left_shift": np.left_shift, "right_shift": np.right_shift,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32])
@pytest.mark.parametrize("name", BITWISE)
def test_bits(name, dtype):
    a = RNG.integers(0, 120, (8, 6)).astype(dtype)
    b = RNG.integers(0, 7, (8, 6)).astype(dtype)
    got = run(getattr(nl, name), a, b)
    np.testing.assert_array_equal(got.values, BITWISE[name](a, b))
    got = run(lambda t: getattr(nl, name)(t, 3), a)
    np.testing.assert_array_equal(got.values, BITWISE[name](a, dtype(3)))
    got = run(lambda t: getattr(nl, name)(5, t), b)
    np.testing.assert_array_equal(got.values, BITWISE[name](dtype(5), b))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32])
def test_invert(dtype):
    a = RNG.integers(0, 120, (8, 6)).astype(dtype)
    np.testing.assert_array_equal(run(nl.invert, a).values, np.invert(a))


UNARY = {
    "abs": np.abs, "square": np.square, "sign": np.sign, "exp": np.exp, "tanh": np.tanh, "sigmoid": _sigmoid,
    "relu": lambda x: np.maximum(x, 0), "gelu": _gelu, "gelu_dx": _derivative(_gelu),
    "gelu_apprx_sigmoid": _gelu_sigmoid, "gelu_apprx_sigmoid_dx": _derivative(_gelu_sigmoid),
    "gelu_apprx_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": _silu, "silu_dx": _derivative(_silu), "softplus": lambda x: np.log1p(np.exp(x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))), "erf": _erf,
    "erf_dx": lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x), "negative": np.negative, "sin": np.sin, "cos": np.cos,
    "reciprocal": lambda x: 1 / x, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
}  # fmt: skip
OF_POSITIVE = {"log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "arctan": np.arctan}
# Derivatives are compared with difference quotients, which are good to 1e-9; the functions are float32 throughout.
CLOSE = {"exp": 2e-6, "mish": 2e-6, "softplus": 1e-6}


@pytest.mark.parametrize("name", [*UNARY, *OF_POSITIVE])
def test_unary(name):
    data, reference = (X, UNARY[name]) if name in UNARY else (np.minimum(POSITIVE, 1.5), OF_POSITIVE[name])
    got = run(getattr(nl, name), data)
    _check(got.values, _float(reference)(data), CLOSE.get(name, 1e-6))
    assert got.tensor.buffer is nl.sbuf


def test_logical_not():
    np.testing.assert_array_equal(run(nl.logical_not, BITS).values, (BITS == 0).astype(np.float32))


def test_tan():
    got = run(nl.tan, np.clip(X, -1.4, 1.4))
    _check(got.values, np.tan(np.clip(X, -1.4, 1.4).astype(np.float64)), 4e-6)


@pytest.mark.parametrize("name", ["exp", "floor", "rsqrt", "sin", "reciprocal", "negative"])
def test_unary_dtypes(name):
    a = as_stored(POSITIVE, "bfloat16")
    got = run(getattr(nl, name), a)
    reference = {**UNARY, **OF_POSITIVE}[name](a.astype(np.float32)).astype(ml_dtypes.bfloat16)
    np.testing.assert_allclose(got.values.astype(np.float32), reference.astype(np.float32), rtol=2.0**-8, atol=1e-6)
    assert run(lambda t: getattr(nl, name)(t, dtype=nl.float32), a).tensor.dtype == nl.float32


# -- rounding and angles -----------------------------------------------------------------------------------------------

HARD = np.array(
    [
        0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.99999994, -0.99999994, 1e-38, -1e-38, 8388607.5, -8388607.5, 8388608,
        8388609, 2**24 + 2, 2**31 - 128, 2**31, -(2**31), 2**32, 1e20, -1e20, 3.4e38, math.inf, -math.inf, math.nan,
    ],
    np.float32,
)  # fmt: skip
SPREAD = (RNG.uniform(-1, 1, 1000) * 2.0 ** RNG.integers(-30, 60, 1000)).astype(np.float32)


@pytest.mark.parametrize("name", ["floor", "ceil", "trunc"])
@pytest.mark.parametrize("generation", ["v2", "v3", "v4"])
def test_rounding_is_exact_for_every_float32(name, generation):
    values = np.resize(np.concatenate([HARD, SPREAD]), (8, 129))
    got = run(getattr(nl, name), values, generation=generation)
    np.testing.assert_array_equal(got.values, getattr(np, name)(values))


@pytest.mark.parametrize("name", ["floor", "ceil", "trunc"])
def test_integers_are_rounded_already(name):
    np.testing.assert_array_equal(run(getattr(nl, name), I).values, I)


@pytest.mark.parametrize("name", ["mod", "fmod"])
def test_remainders_are_exact(name):
    divisors = np.resize(np.array([0.1, 3, -7, 1e-3, 1e10], np.float32), (8, 129))
    values = np.resize(SPREAD, (8, 129))
    np.testing.assert_array_equal(run(getattr(nl, name), values, divisors).values, getattr(np, name)(values, divisors))


@pytest.mark.parametrize("scale", [1, 10, 1e3, 2e5])
def test_angles_of_any_size(scale):
    angles = (RNG.uniform(-1, 1, (64, 64)) * scale).astype(np.float32)
    exact = angles.astype(np.float64)
    assert np.abs(run(nl.sin, angles).values - np.sin(exact)).max() < 5e-7
    assert np.abs(run(nl.cos, angles).values - np.cos(exact)).max() < 6e-7


# -- broadcasting, dtypes, memories ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [((8, 4, 6), (8, 1, 6)), ((8, 4, 1), (8, 1, 6)), ((8, 6), (8, 1)), ((8, 1), (8, 6)), ((8, 4, 6), (8, 1))],
)
@pytest.mark.parametrize("name", ["subtract", "less"])
def test_free_dimensions_broadcast(a, b, name):
    x, y = RNG.normal(size=a).astype(np.float32), RNG.normal(size=b).astype(np.float32)
    got = run(getattr(nl, name), x, y)
    if len(a) > len(b):
        y = y.reshape(8, 1, 1)
    np.testing.assert_array_equal(got.values, BINARY[name](x, y).astype(np.float32))
    assert not got.findings


def test_a_column_takes_the_fast_instruction():
    column = RNG.normal(size=(16, 1)).astype(np.float32)
    assert run(nl.add, X, column).instructions == ["tensor_scalar"]
    assert run(nl.add, X, as_stored(column, "bfloat16")).instructions == ["tensor_tensor"]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_partition_broadcasts_with_a_finding(dtype):
    x, row = np.round(X).astype(dtype), np.round(Y[:1]).astype(dtype)
    got = run(nl.multiply, x, row)
    np.testing.assert_array_equal(got.values, x * row)
    assert got.findings == ["hardware-rejects"]


def test_outer_product():
    column, row = X[:, :1], Y[:1]
    got = run(nl.multiply, column, row)
    np.testing.assert_array_equal(got.values, column * row)


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [
        ("float32", "bfloat16", "float32"), ("float16", "bfloat16", "float32"), ("int32", "bfloat16", "bfloat16"),
        ("float8_e4m3", "float8_e5m2", "bfloat16"), ("float8_e4m3", "float16", "float16"), ("int8", "uint16", "int32"),
        ("int8", "uint8", "int16"), ("uint8", "uint32", "uint32"), ("int32", "uint32", "float32"),
        ("int8", "int8", "int8"),
    ],
)  # fmt: skip
def test_promotion(a, b, result):
    x = as_stored(np.ones((4, 4)), a)
    y = as_stored(np.ones((4, 4)), b)
    for first, second in ((x, y), (y, x)):
        assert run(nl.add, first, second).tensor.dtype == result


@pytest.mark.parametrize("dtype", [nl.float32, nl.uint8, nl.int32])
def test_dtype_of_the_result(dtype):
    got = run(lambda a, b: nl.greater(a, b, dtype=dtype), X, Y)
    assert got.tensor.dtype == dtype
    np.testing.assert_array_equal(got.values, X > Y)


def test_integer_arithmetic_is_float32():
    large = np.full((4, 4), 2**24 + 1, np.int32)
    assert (run(nl.add, large, np.zeros_like(large)).values == 2**24).all()
    np.testing.assert_array_equal(run(nl.multiply, I, J).values, I * J)


@pytest.mark.parametrize("name", ["add", "power", "floor", "reciprocal", "exp"])
def test_tiles_in_psum(name):
    def function(t):
        a = nl.matmul(nl.shared_identity_matrix(16, nl.float32), t, transpose_x=True)
        b = nl.matmul(nl.shared_identity_matrix(16, nl.float32), t, transpose_x=True)
        return getattr(nl, name)(a, b) if name in BINARY else getattr(nl, name)(a)

    got = run(function, POSITIVE)
    reference = BINARY[name](POSITIVE, POSITIVE) if name in BINARY else UNARY[name](POSITIVE)
    _check(got.values, reference, 1e-5)


def test_rsqrt_is_on_gpsimd_and_refuses_psum():
    with pytest.raises(HardwareError, match="GpSimdE"):
        run(lambda t: nl.rsqrt(nl.matmul(t, t)), np.eye(8, dtype=np.float32))


def test_where():
    mask = X > 0
    for condition in (mask.astype(np.float32), mask.astype(np.uint8)):
        np.testing.assert_array_equal(run(nl.where, condition, X, Y).values, np.where(mask, X, Y))
    condition = mask.astype(np.float32)
    np.testing.assert_array_equal(run(lambda c, a: nl.where(c, a, -1.0), condition, X).values, np.where(mask, X, -1))
    np.testing.assert_array_equal(run(lambda c, a: nl.where(c, 2.0, a), condition, X).values, np.where(mask, 2, X))
    column = Y[:, :1].copy()
    np.testing.assert_array_equal(run(nl.where, condition, X, column).values, np.where(mask, X, column))
    half = as_stored(X, "bfloat16")
    got = run(nl.where, condition, half, Y)
    assert got.tensor.dtype == nl.float32
    np.testing.assert_array_equal(got.values, np.where(mask, half.astype(np.float32), Y))


def test_abs_max_needs_the_fourth_generation():
    got = run(nl.abs_max, X, Y, generation="v4")
    np.testing.assert_array_equal(got.values, np.where(np.abs(X) > np.abs(Y), X, Y))
    got = run(nl.abs_min, X, Y, generation="v4")
    np.testing.assert_array_equal(got.values, np.where(np.abs(X) < np.abs(Y), X, Y))
    with pytest.raises(HardwareError, match="NeuronCore-v4"):
        run(nl.abs_max, X, Y)


# -- reductions --------------------------------------------------------------------------------------------------------

CUBE = RNG.normal(size=(8, 4, 6)).astype(np.float32)
REDUCTIONS = {"sum": np.sum, "max": np.max, "min": np.min, "mean": np.mean, "prod": np.prod, "all": np.all}


@pytest.mark.parametrize("axis", [2, -1, (1, 2), [2]])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, axis):
    data = (CUBE > -1).astype(np.float32) if name == "all" else CUBE
    got = run(lambda t: getattr(nl, name)(t, axis=axis), data)
    axes = tuple(axis) if isinstance(axis, list) else axis
    expected = REDUCTIONS[name](data.astype(np.float64), axis=axes)
    assert got.tensor.shape == (expected.shape if expected.ndim > 1 else (8, 1))
    _check(got.values.reshape(expected.shape), expected, 1e-6)


@pytest.mark.parametrize("name", ["sum", "max", "mean"])
def test_keepdims(name):
    got = run(lambda t: getattr(nl, name)(t, axis=2, keepdims=True), CUBE)
    _check(got.values, REDUCTIONS[name](CUBE.astype(np.float64), axis=2, keepdims=True), 1e-6)


@pytest.mark.parametrize("axis", [2, (1, 2)])
def test_var_always_keeps_dimensions(axis):
    got = run(lambda t: nl.var(t, axis=axis), CUBE)
    _check(got.values, CUBE.astype(np.float64).var(axis=axis, keepdims=True), 1e-6)


@pytest.mark.parametrize("axis", [-1, 2, (1, 2)])
@pytest.mark.parametrize("generation", ["v2", "v3"])
def test_softmax(axis, generation):
    got = run(lambda t: nl.softmax(t, axis=axis), CUBE, generation=generation)
    powers = np.exp(CUBE.astype(np.float64))
    _check(got.values, powers / powers.sum(axis=axis, keepdims=True), 1e-6)


@pytest.mark.parametrize("weights", [(16, 24), (1, 24)])
@pytest.mark.parametrize("compute", [None, nl.float32])
def test_rms_norm(weights, compute):
    w = RNG.normal(size=weights).astype(np.float32)
    got = run(lambda a, b: nl.rms_norm(a, b, axis=1, n=24, epsilon=1e-5, compute_dtype=compute), X, w)
    x = X.astype(np.float64)
    _check(got.values, x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * w, 2e-6)
    assert not got.findings


def test_rms_norm_over_the_last_dimension_only():
    w = np.ones((8, 1, 6), np.float32)
    got = run(lambda a, b: nl.rms_norm(a, b, axis=2, n=6), CUBE, w)
    x = CUBE.astype(np.float64)
    _check(got.values, x / np.sqrt((x * x).mean(axis=2, keepdims=True) + 1e-6), 2e-6)


@pytest.mark.parametrize("axis", [0, 1, (0, 1), ()])
def test_only_the_last_free_dimensions_are_reduced(axis):
    with pytest.raises(HardwareError, match="last free dimensions"):
        run(lambda t: nl.sum(t, axis=axis), CUBE)


# -- tokens and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BINARY, *BITWISE, "invert", "logical_not", "rsqrt", "reciprocal", "relu", "abs"])
def test_functions_are_operators(name):
    assert as_alu_op(getattr(nl, name)).name == name


@pytest.mark.parametrize(("name", "operator"), [("max", "maximum"), ("min", "minimum"), ("sum", "add")])
def test_reductions_are_operators(name, operator):
    assert as_alu_op(getattr(nl, name)).name == operator


@pytest.mark.parametrize("name", ["copy", "exp", "silu_dx", "sin", "sqrt", "gelu_apprx_sigmoid_dx", "prelu", "rsqrt"])
def test_functions_are_activations(name):
    assert as_activation(getattr(nl, name)).name == name


def test_operators_without_a_function():
    assert as_alu_op(nl.average).name == "average"
    assert as_alu_op(nl.bypass).name == "bypass"
    with pytest.raises(CompilerError, match="not a function on tiles"):
        nl.bypass(1, 2)
    with pytest.raises(CompilerError, match="not an operator"):
        as_alu_op(nl.floor)


def test_an_operator_in_an_instruction():
    def function(t):
        result = nl.ndarray((16, 1), nl.float32)
        isa.tensor_reduce(result, nl.max, t, axis=1)
        return result

    np.testing.assert_array_equal(run(function, X).values[:, 0], X.max(axis=1))


@pytest.mark.parametrize("name", ["add", "exp", "floor", "sum", "sin", "softmax", "copy", "transpose"])
def test_hbm_must_be_loaded_first(name):
    def function(t):
        arguments = {"add": (t, 1.0), "sum": (t, 1)}.get(name, (t,))
        return getattr(nl, name)(*arguments)

    with pytest.raises(HardwareError, match=r"x is in HBM.*load it first"):
        run(function, X, load=False)


@pytest.mark.parametrize("call", [lambda t: nl.add(t, X), lambda t: nl.exp(X), lambda t: nl.add(t, "1")])
def test_arrays_are_no_tiles(call):
    with pytest.raises(CompilerError, match="must be a tile"):
        run(call, X)


def test_two_numbers_are_no_tiles():
    with pytest.raises(CompilerError, match="at least one"):
        run(lambda: nl.add(1, 2))


def test_shapes_must_fit():
    for shape in ((16, 23), (8, 24), (16, 4, 6)):
        with pytest.raises(CompilerError, match="do not broadcast"):
            run(nl.add, X, np.ones(shape, np.float32))


@pytest.mark.parametrize("name", ["add", "exp", "floor", "zeros", "load", "softmax", "no_reorder", "program_id"])
def test_nothing_works_outside_a_kernel(name):
    arguments = {"add": (1, 2), "zeros": ((2, 2), nl.float32), "no_reorder": (), "program_id": ()}.get(name, (X,))
    with pytest.raises(CompilerError, match="only inside a kernel"):
        getattr(nl, name)(*arguments)


def test_dropout():
    ones = np.ones((128, 512), np.float32)
    kept = run(lambda t: nl.dropout(t, 0.25), ones).values
    assert set(np.unique(kept)) == {0, 1}
    assert abs(kept.mean() - 0.75) < 0.02
    assert (run(lambda t: nl.dropout(t, 1.0), ones).values == 0).all()
