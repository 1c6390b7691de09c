"""Activation functions of ScalarE on tiles, in float32, and the trigonometric functions for any angle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trnsim.isa import scalar, vector
from trnsim.isa.alu import ACTIVATIONS, ALU
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.language.constants import int32
from trnsim.nki.language.operands import new, result_dtype, tile
from trnsim.nki.language.tokens import names_op

TileFunction = Callable[..., NkiTensor]


def _activation(name: str, text: str) -> TileFunction:
    activation = ACTIVATIONS[name]
    label = f"nl.{name}"

    @names_op(name)
    def function(x: NkiTensor, dtype: Any = None) -> NkiTensor:
        source = tile(x, label)
        result = new(source.shape, result_dtype(dtype, source))
        scalar.activation(result, activation, source)
        return result

    function.__name__ = function.__qualname__ = name
    limits = "" if math.isinf(activation.high) else f" for x from {activation.low:.4g} to {activation.high:.4g}"
    function.__doc__ = (
        f"{text}{limits}.\n\n    ``x``: a tile. ``dtype``: of the result in SBUF; default: that of ``x``.\n\n"
        "    Raises:\n        HardwareError: ``x`` is in HBM.\n    "
    )
    return function


abs = _activation("abs", "The absolute value of x")
square = _activation("square", "x * x")
sign = _activation("sign", "-1 where x < 0, 0 where x == 0, 1 where x > 0")
exp = _activation("exp", "e to the power x")
log = _activation("log", "The natural logarithm of x")
sqrt = _activation("sqrt", "The square root of x")
tanh = _activation("tanh", "The hyperbolic tangent of x")
sigmoid = _activation("sigmoid", "1 / (1 + exp(-x))")
relu = _activation("relu", "The larger of x and 0")
gelu = _activation("gelu", "x times the normal distribution's cumulative function")
gelu_dx = _activation("gelu_dx", "The derivative of ``gelu``")
gelu_apprx_tanh = _activation("gelu_apprx_tanh", "``gelu`` by the tanh approximation")
gelu_apprx_sigmoid = _activation("gelu_apprx_sigmoid", "``gelu`` by the approximation x * sigmoid(1.702 x)")
gelu_apprx_sigmoid_dx = _activation("gelu_apprx_sigmoid_dx", "The derivative of ``gelu_apprx_sigmoid``")
silu = _activation("silu", "x * sigmoid(x)")
silu_dx = _activation("silu_dx", "The derivative of ``silu``")
softplus = _activation("softplus", "log(1 + exp(x))")
mish = _activation("mish", "x * tanh(softplus(x))")
erf = _activation("erf", "The error function of x")
erf_dx = _activation("erf_dx", "The derivative of ``erf``")
arctan = _activation("arctan", "The arc tangent of x")


# -- angles ------------------------------------------------------------------------------------------------------------

# 2 pi in three parts (W. J. Cody and W. Waite, 1980): the first two have 8 and 9 bits, so that their products with up
# to 2**15 turns are exact.
_TURN_HIGH = 6.28125
_TURN_MIDDLE = 0.001934051513671875
_TURN_LOW = 2 * math.pi - _TURN_HIGH - _TURN_MIDDLE
# A miscounted turn leaves an angle just beyond pi, where the table of sin is still right (its last piece is cubic).
# What lies further out was no angle: the bound keeps the result of such numbers below 1.
_BOUND = 3.25


def _reduced(x: NkiTensor, quarter: int) -> NkiTensor:
    """``x + quarter * pi / 2`` less whole turns; a float32 tile.

    VectorE counts the turns (rounded to an integer by the conversion) and subtracts them in three steps. The result is
    within 4e-7 of the angle for |x| below 2**15 turns; from there on the error grows with x.
    """
    turns = new(x.shape, int32)
    offset = ALU["add"] if quarter else None
    vector.tensor_scalar(turns, x, ALU["multiply"], 1 / (2 * math.pi), False, offset, quarter / 4 if quarter else None)
    angle = new(x.shape)
    multiply, add = ALU["multiply"], ALU["add"]
    vector.scalar_tensor_tensor(angle, turns, multiply, -_TURN_HIGH, add, x)
    vector.scalar_tensor_tensor(angle, turns, multiply, -_TURN_MIDDLE, add, angle)
    vector.scalar_tensor_tensor(angle, turns, multiply, -_TURN_LOW, add, angle)
    if quarter:
        vector.tensor_scalar(angle, angle, add, quarter * math.pi / 2)
    vector.tensor_scalar(angle, angle, ALU["minimum"], _BOUND, False, ALU["maximum"], -_BOUND)
    return angle


def _sine(x: NkiTensor, dtype: Any, quarter: int) -> NkiTensor:
    result = new(x.shape, result_dtype(dtype, x))
    scalar.activation(result, ACTIVATIONS["sin"], _reduced(x, quarter))
    return result


@names_op("sin")
def sin(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The sine of x: VectorE takes off whole turns, ScalarE evaluates on [-pi, pi].

    Within 5e-7 for |x| below 2e5; beyond, the error grows with x. ``nisa.activation(op=nl.sin)`` takes no turns off.
    """
    return _sine(tile(x, "nl.sin"), dtype, 0)


def cos(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The cosine of x, as the sine of x + pi / 2; see ``nl.sin``."""
    return _sine(tile(x, "nl.cos"), dtype, 1)


def tan(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The tangent of x, as sine times the reciprocal of the cosine; see ``nl.sin``."""
    source = tile(x, "nl.tan")
    sine, cosine = _sine(source, np.float32, 0), _sine(source, np.float32, 1)
    vector.reciprocal(cosine, cosine)
    result = new(source.shape, result_dtype(dtype, source))
    vector.tensor_tensor(result, sine, cosine, ALU["multiply"])
    return result
