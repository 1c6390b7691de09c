"""Operators of the engines' arithmetic units, and activation functions of ScalarE.

Documented in the NKI reference as ``nki-aluop`` and ``nki-act-func``. Arithmetic is float32; the activation tables of
the hardware are not public, so these are IEEE float32 results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import CompilerError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class AluOp:
    """An operator of the arithmetic units.

    ``kind``: ``arithmetic`` (float32), ``bitvec`` (bits of integers), ``logical`` (0/1 results) or ``compare``.
    ``reduce`` is the ufunc that reduces with it, or None. ``identity`` starts such a reduction. ``unary`` operators
    take no second operand.
    """

    name: str
    kind: str
    function: Callable[..., Any]
    reduce: Any = None
    identity: float | None = None
    unary: bool = False

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __repr__(self) -> str:
        return f"nl.{self.name}"


def _compare(ufunc: Any) -> Callable[[Array, Any], Array]:
    def function(x: Array, y: Any) -> Array:
        return ufunc(x, y).astype(np.float32)  # type: ignore[no-any-return]

    return function


def _logical(ufunc: Any) -> Callable[[Array, Any], Array]:
    def function(x: Array, y: Any) -> Array:
        return ufunc(np.asarray(x) != 0, np.asarray(y) != 0).astype(np.float32)  # type: ignore[no-any-return]

    return function


def _abs_max(x: Array, y: Any) -> Array:
    return np.where(np.abs(x) > np.abs(y), x, y)


def _abs_min(x: Array, y: Any) -> Array:
    return np.where(np.abs(x) < np.abs(y), x, y)


def _logical_shift(ufunc: Any) -> Callable[[Array, Any], Any]:
    """Shifts are logical: they act on the bits as an unsigned number; shifting by the width or more gives 0."""

    def function(x: Array, y: Any) -> Any:
        x = np.asarray(x)
        bits = x.dtype.itemsize * 8
        unsigned = x.view(np.dtype(f"u{x.dtype.itemsize}"))
        amount = np.asarray(y).astype(np.int64)
        inside = (amount >= 0) & (amount < bits)
        shifted = ufunc(unsigned, np.where(inside, amount, 0).astype(unsigned.dtype))
        return np.where(inside, shifted, unsigned.dtype.type(0)).astype(unsigned.dtype).view(x.dtype)

    return function


def _fmod(x: Any, y: Any) -> Any:
    return np.fmod(x, y)


_OPERATORS = [
    AluOp("add", "arithmetic", np.add, np.add, 0.0),
    AluOp("subtract", "arithmetic", np.subtract, np.subtract, 0.0),
    AluOp("multiply", "arithmetic", np.multiply, np.multiply, 1.0),
    AluOp("maximum", "arithmetic", np.maximum, np.maximum, -math.inf),
    AluOp("minimum", "arithmetic", np.minimum, np.minimum, math.inf),
    AluOp("divide", "arithmetic", np.divide),
    AluOp("power", "arithmetic", np.power),
    AluOp("mod", "arithmetic", np.mod),
    AluOp("fmod", "arithmetic", _fmod),
    AluOp("abs_max", "arithmetic", _abs_max, None, 0.0),
    AluOp("abs_min", "arithmetic", _abs_min, None, math.inf),
    AluOp("average", "arithmetic", np.add, np.add, 0.0),
    AluOp("bypass", "arithmetic", lambda x, y=None: x, None, None, True),
    AluOp("abs", "arithmetic", lambda x, y=None: np.abs(x), None, None, True),
    AluOp("square", "arithmetic", lambda x, y=None: x * x, None, None, True),
    AluOp("relu", "arithmetic", lambda x, y=None: np.maximum(x, np.float32(0)), None, None, True),
    AluOp("rsqrt", "arithmetic", lambda x, y=None: np.float32(1) / np.sqrt(x), None, None, True),
    AluOp("reciprocal", "arithmetic", lambda x, y=None: np.float32(1) / x, None, None, True),
    AluOp("negative", "arithmetic", lambda x, y=None: -x, None, None, True),
    AluOp("equal", "compare", _compare(np.equal)),
    AluOp("not_equal", "compare", _compare(np.not_equal)),
    AluOp("less", "compare", _compare(np.less)),
    AluOp("less_equal", "compare", _compare(np.less_equal)),
    AluOp("greater", "compare", _compare(np.greater)),
    AluOp("greater_equal", "compare", _compare(np.greater_equal)),
    AluOp("logical_and", "logical", _logical(np.logical_and), np.logical_and, 1.0),
    AluOp("logical_or", "logical", _logical(np.logical_or), np.logical_or, 0.0),
    AluOp("logical_xor", "logical", _logical(np.logical_xor), np.logical_xor, 0.0),
    AluOp("logical_not", "logical", lambda x, y=None: (np.asarray(x) == 0).astype(np.float32), None, None, True),
    AluOp("bitwise_and", "bitvec", np.bitwise_and, np.bitwise_and),
    AluOp("bitwise_or", "bitvec", np.bitwise_or, np.bitwise_or),
    AluOp("bitwise_xor", "bitvec", np.bitwise_xor, np.bitwise_xor),
    AluOp("invert", "bitvec", lambda x, y=None: np.invert(x), None, None, True),
    AluOp("left_shift", "bitvec", _logical_shift(np.left_shift)),
    AluOp("right_shift", "bitvec", _logical_shift(np.right_shift)),
]
ALU: dict[str, AluOp] = {op.name: op for op in _OPERATORS}
ALU["max"], ALU["min"] = ALU["maximum"], ALU["minimum"]

_UFUNC_NAMES = {"amax": "maximum", "amin": "minimum", "true_divide": "divide", "sum": "add", "prod": "multiply"}


def as_alu_op(value: Any, operand: str = "op") -> AluOp:
    """The operator behind ``nl.add``, ``np.add`` and the like.

    Raises:
        CompilerError: it is no operator of the arithmetic units.
    """
    if isinstance(value, AluOp):
        return value
    name = getattr(value, "__trnsim_op__", None) or getattr(value, "__name__", None)
    op = ALU.get(_UFUNC_NAMES.get(str(name), str(name))) if not isinstance(value, str) else None
    if op is None:
        raise CompilerError(f"{operand} is not an operator of the arithmetic units", operand=operand, value=value)
    return op


# -- activation functions ----------------------------------------------------------------------------------------------

f32 = np.float32
_INV_SQRT_2PI = f32(1 / math.sqrt(2 * math.pi))
_TWO_OVER_SQRT_PI = f32(2 / math.sqrt(math.pi))
_TANH_SCALE = f32(math.sqrt(2 / math.pi))
_TANH_CUBIC = f32(0.044715)
_SIGMOID_GELU = f32(1.702)


def _expansion(low: float, high: float, value: Callable[[float], float], slope: Callable[[float], float]) -> Array:
    """Values and slopes of a function at the multiples of 1/512 from ``low`` to ``high``, for ``_near``."""
    grid = np.arange(round(low * 512), round(high * 512) + 1) / 512
    return np.array([[value(g) for g in grid], [slope(g) for g in grid]], np.float32)


def _near(x: Array, table: Array, low: float, high: float, second: float) -> Array:
    """The function of ``table`` at x, by a Taylor expansion about the point next to x, at most 1/1024 away.

    For a slope like ``exp(-second * g**2)`` it is ``value + slope (d - second g d**2 + ((2 second g)**2 - 2 second) / 6
    d**3)``; what is left out lies far below float32's rounding. Temporaries are reused: fresh memory costs more than
    the arithmetic.
    """
    d = np.clip(x, f32(low), f32(high))
    g = np.rint(d * f32(512))
    index = (g - f32(low * 512)).astype(np.intp)
    g *= f32(1 / 512)
    d -= g
    g *= d
    g *= f32(second)  # second g d
    cubic = g * g
    cubic *= f32(4 / 6)
    cubic -= g
    np.multiply(d, d, out=g)
    g *= f32(second / 3)
    cubic -= g
    cubic += f32(1)
    cubic *= d
    cubic *= table[1].take(index, out=d, mode="clip")
    cubic += table[0].take(index, out=d, mode="clip")
    return np.asarray(cubic)


@cache
def _erf_table() -> Array:
    return _expansion(-4, 4, math.erf, lambda g: 2 / math.sqrt(math.pi) * math.exp(-g * g))


@cache
def _cdf_table() -> Array:
    def value(g: float) -> float:
        return math.erfc(-g / math.sqrt(2)) / 2

    return _expansion(-14.5, 8, value, lambda g: math.exp(-g * g / 2) / math.sqrt(2 * math.pi))


def erf(x: Array) -> Array:
    """Error function in float32, within 3 units in the last place."""
    return _near(x, _erf_table(), -4, 4, 1)


def _normal_cdf(x: Array) -> Array:
    """Probability that a standard normal is below x, in float32, within 2 units in the last place, small ones too."""
    return _near(x, _cdf_table(), -14.5, 8, 0.5)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    one = f32(1)
    return np.where(x >= 0, one / (one + e), e / (one + e)).astype(np.float32)


def _gelu_dx(x: Array) -> Array:
    return np.asarray(_normal_cdf(x) + x * _INV_SQRT_2PI * np.exp(f32(-0.5) * x * x))


def _gelu_tanh(x: Array) -> Array:
    """0.5 (1 + tanh(y)) is sigmoid(2 y), which keeps its precision where it is small."""
    return x * sigmoid(f32(2) * _TANH_SCALE * (x + _TANH_CUBIC * x * x * x))


def _gelu_sigmoid_dx(x: Array) -> Array:
    s = sigmoid(_SIGMOID_GELU * x)
    return s + _SIGMOID_GELU * x * s * sigmoid(-_SIGMOID_GELU * x)


def _silu_dx(x: Array) -> Array:
    s = sigmoid(x)
    return np.asarray(s + x * s * sigmoid(-x))


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, f32(0)) + np.log1p(np.exp(-np.abs(x))))


def _mish(x: Array) -> Array:
    return np.asarray(x * np.tanh(_softplus(x)))


def _sin(x: Array) -> Array:
    """Sine on [-pi, pi]; outside, the documented cubic extrapolation of the table's last piece.

    The vendor's simulator gives sin(9.0) = 27.65: the cubic Taylor polynomial at pi, -(x - pi) + (x - pi)^3 / 6.
    """
    inside = np.abs(x) <= f32(math.pi)
    d = np.abs(x) - f32(math.pi)
    outside = np.sign(x) * (d * d * d / f32(6) - d)
    return np.where(inside, np.sin(x), outside).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation function of ScalarE. ``table`` names the set of tables that must be loaded for it."""

    name: str
    function: Callable[..., Any]
    table: str = ""
    low: float = -math.inf
    high: float = math.inf

    def __call__(self, x: Array) -> Array:
        return self.function(x)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"nl.{self.name}"


# Functions that need no table are computed by the engine's arithmetic: copying, scaling, comparing with zero.
_ACTIVATIONS = [
    Activation("copy", lambda x: x),
    Activation("identity", lambda x: x),
    Activation("square", lambda x: x * x),
    Activation("relu", lambda x: np.maximum(x, f32(0))),
    Activation("prelu", lambda x: np.where(x > 0, x, f32(0) * x)),
    Activation("abs", np.abs),
    Activation("sign", np.sign),
    Activation("exp", np.exp, "exp"),
    Activation("log", np.log, "log", 2.0**-64, 2.0**64),
    Activation("sigmoid", sigmoid, "sigmoid"),
    Activation("tanh", np.tanh, "tanh"),
    Activation("gelu", lambda x: x * _normal_cdf(x), "gelu"),
    Activation("gelu_dx", _gelu_dx, "gelu_dx"),
    Activation("gelu_apprx_tanh", _gelu_tanh, "gelu_apprx_tanh"),
    Activation("gelu_apprx_sigmoid", lambda x: x * sigmoid(_SIGMOID_GELU * x), "gelu_apprx_sigmoid"),
    Activation("gelu_apprx_sigmoid_dx", _gelu_sigmoid_dx, "gelu_apprx_sigmoid_dx"),
    Activation("silu", lambda x: x * sigmoid(x), "silu"),
    Activation("silu_dx", _silu_dx, "silu_dx"),
    Activation("softplus", _softplus, "softplus"),
    Activation("mish", _mish, "mish"),
    Activation("erf", erf, "erf"),
    Activation("erf_dx", lambda x: _TWO_OVER_SQRT_PI * np.exp(-x * x), "erf_dx"),
    Activation("sin", _sin, "sin", -math.pi, math.pi),
    Activation("arctan", np.arctan, "arctan", -math.pi / 2, math.pi / 2),
    Activation("sqrt", np.sqrt, "sqrt", 2.0**-116, 2.0**118),
    Activation("rsqrt", lambda x: f32(1) / np.sqrt(x), "rsqrt", 2.0**-87, 2.0**97),
    Activation("reciprocal", lambda x: f32(1) / x, "reciprocal", -(2.0**42), 2.0**42),
]
ACTIVATIONS: dict[str, Activation] = {a.name: a for a in _ACTIVATIONS}


def as_activation(value: Any, operand: str = "op") -> Activation:
    """The activation function behind ``nl.exp`` and the like.

    Raises:
        CompilerError: ScalarE has no such function.
    """
    if isinstance(value, Activation):
        return value
    name = getattr(value, "__trnsim_op__", None) or getattr(value, "__name__", None)
    activation = ACTIVATIONS.get(str(name)) if not isinstance(value, str) else None
    if activation is None:
        raise CompilerError(f"{operand} is not an activation function of ScalarE", operand=operand, value=value)
    return activation
