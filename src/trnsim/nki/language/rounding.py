"""Rounding to integers on VectorE, exact for every float32.

The engines round when they convert to an integer: to nearest, ties to even, saturating at the ends of int32. The
rounded value is off by one where it lies on the wrong side of x, which a comparison finds. From 2**31 on (and for
infinities and NaN) the conversion saturates, but there every float32 is an integer already, so x itself is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.isa import scalar, vector
from trnsim.isa.alu import ACTIVATIONS, ALU
from trnsim.nki.language.constants import float32, int32, uint8
from trnsim.nki.language.operands import new, result_dtype, tile, to_sbuf

if TYPE_CHECKING:
    from trnsim.machine.tensor import NkiTensor

_INT32_END = 2.0**31


def floor(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The largest integer that is not above x. ``dtype``: of the result; default: that of ``x``."""
    return _rounded(x, dtype, "floor")


def ceil(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The smallest integer that is not below x. ``dtype``: of the result; default: that of ``x``."""
    return _rounded(x, dtype, "ceil")


def trunc(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The integer part of x: the nearest integer towards 0. ``dtype``: of the result; default: that of ``x``."""
    return _rounded(x, dtype, "trunc")


def _rounded(x: NkiTensor, dtype: Any, how: str) -> NkiTensor:
    source = tile(x, f"nl.{how}")
    kind = result_dtype(dtype, source)
    if source.dtype.kind != "float":
        result = new(source.shape, kind)
        vector.tensor_copy(result, source)
        return result
    value = to_sbuf(source, float32)
    size = new(value.shape)
    scalar.activation(size, ACTIVATIONS["abs"], value)
    if how == "trunc":
        result = _below(size)
        # The sign again: -2 or 0, plus 1, times the result.
        factor = new(value.shape)
        vector.tensor_scalar(factor, value, ALU["less"], 0.0, False, ALU["multiply"], -2.0)
        vector.scalar_tensor_tensor(result, factor, ALU["add"], 1.0, ALU["multiply"], result)
    else:
        result = _below(value) if how == "floor" else _above(value)
    small = new(value.shape, uint8)
    vector.tensor_scalar(small, size, ALU["less"], _INT32_END)
    vector.tensor_copy_predicated(result, value, small, True)
    return to_sbuf(result, kind)


def _nearest(x: NkiTensor) -> NkiTensor:
    integers = new(x.shape, int32)
    vector.tensor_copy(integers, x)
    result = new(x.shape)
    vector.tensor_copy(result, integers)
    return result


def _below(x: NkiTensor) -> NkiTensor:
    result, wrong = _nearest(x), new(x.shape)
    vector.tensor_tensor(wrong, result, x, ALU["greater"])
    vector.tensor_tensor(result, result, wrong, ALU["subtract"])
    return result


def _above(x: NkiTensor) -> NkiTensor:
    result, wrong = _nearest(x), new(x.shape)
    vector.tensor_tensor(wrong, result, x, ALU["less"])
    vector.tensor_tensor(result, result, wrong, ALU["add"])
    return result
