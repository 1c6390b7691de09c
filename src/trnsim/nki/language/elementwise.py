"""Arithmetic, comparisons, bits and logic on tiles, element by element.

Two tiles go through ``nisa.tensor_tensor``; a tile and a number, or a float32 tile with one element a partition,
through ``nisa.tensor_scalar``, which is faster. All arithmetic is float32, of 32-bit integers too: beyond 2**24 they
lose bits (``nisa.tensor_tensor`` on GpSimdE does not). Results are new tiles in SBUF with the dtype of the tiles
(``promote`` where they differ), or ``dtype``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError
from trnsim.isa import vector
from trnsim.isa.alu import ALU, AluOp
from trnsim.isa.constants import engine
from trnsim.machine import core as machine
from trnsim.machine.form import PSUM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.language.constants import uint8
from trnsim.nki.language.operands import (
    common_shape,
    constant_for,
    free_broadcast,
    match_partitions,
    new,
    operand,
    promote,
    result_dtype,
    tile,
    to_sbuf,
)
from trnsim.nki.language.tokens import names_op
from trnsim.numerics import DType, as_dtype

ElementFunction = Callable[..., NkiTensor]

_WORDS = ("int32", "uint32")
_COMMUTATIVE = {"add", "multiply", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"}


def apply(op: AluOp, x: Any, y: Any, dtype: Any, function: str) -> NkiTensor:
    """A new tile ``op(x, y)``; at least one is a tile.

    Raises:
        CompilerError: two numbers, something that is neither, or shapes that do not broadcast.
        HardwareError: a tensor in HBM, or operands the engines do not take.
    """
    a, b = operand(x, function, "x"), operand(y, function, "y")
    if isinstance(a, NkiTensor):
        if isinstance(b, NkiTensor):
            return _two_tiles(op, a, b, promote(a.dtype, b.dtype) if dtype is None else as_dtype(dtype), function)
        return _with_number(op, a, b, result_dtype(dtype, a), reverse=False)
    if isinstance(b, NkiTensor):
        return _with_number(op, b, a, result_dtype(dtype, b), reverse=op.name not in _COMMUTATIVE)
    machine.current()
    raise CompilerError("at least one of x and y must be a tile", instruction=function, value=(x, y))


def _with_number(op: AluOp, x: NkiTensor, value: float, dtype: DType, *, reverse: bool) -> NkiTensor:
    if op.kind != "bitvec":
        value = float(value)
    if op.name == "power":
        x = to_sbuf(x)
    result = new(x.shape, dtype)
    vector.tensor_scalar(result, x, op, value, reverse)
    return result


def _two_tiles(op: AluOp, x: NkiTensor, y: NkiTensor, dtype: DType, function: str) -> NkiTensor:
    if x.shape == y.shape:
        shape = x.shape
    else:
        shape = common_shape(function, x, y)
        x = match_partitions(x, shape[0], function, "x")
        y = match_partitions(y, shape[0], function, "y")
        if op.kind != "bitvec" and op.name != "power":
            for whole, column, reverse in ((x, y, False), (y, x, op.name not in _COMMUTATIVE)):
                if whole.shape == shape and column.dtype == "float32" and math.prod(column.shape[1:]) == 1:
                    result = new(shape, dtype)
                    vector.tensor_scalar(result, whole, op, column, reverse)
                    return result
    if op.name == "power":
        x, y = to_sbuf(x), to_sbuf(y)
    elif x.storage.memory == y.storage.memory == PSUM:
        y = to_sbuf(y)
    result = new(shape, dtype)
    runs_on = engine.unknown
    if dtype.kind != "float" and op.kind != "bitvec" and op.name != "power":
        words = all(kind in _WORDS for kind in (x.dtype, y.dtype, dtype))
        runs_on = engine.vector if words else engine.unknown
    vector.tensor_tensor(result, free_broadcast(x, shape), free_broadcast(y, shape), op, runs_on)
    return result


def _binary(name: str, text: str) -> ElementFunction:
    op = ALU[name]
    label = f"nl.{name}"

    @names_op(name)
    def function(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
        return apply(op, x, y, dtype, label)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"{text}\n\n    ``x``, ``y``: tiles that broadcast to each other, or one tile and a number. ``dtype``: of the "
        "result; default: that of the tiles.\n\n    Raises:\n"
        "        CompilerError: no tile, or shapes that do not fit.\n"
        "        HardwareError: an operand in HBM, or of a dtype the operator does not take.\n    "
    )
    return function


add = _binary("add", "x + y.")
subtract = _binary("subtract", "x - y.")
multiply = _binary("multiply", "x * y.")
maximum = _binary("maximum", "The larger of x and y; NaN if one is.")
minimum = _binary("minimum", "The smaller of x and y; NaN if one is.")
power = _binary("power", "x to the power y; of two tiles on GpSimdE, to which tiles in PSUM are copied.")
mod = _binary("mod", "The remainder of x / y with the sign of y, exactly (``numpy.mod``).")
fmod = _binary("fmod", "The remainder of x / y with the sign of x, exactly (``numpy.fmod``).")
equal = _binary("equal", "1 where x == y, else 0.")
not_equal = _binary("not_equal", "1 where x != y, else 0.")
less = _binary("less", "1 where x < y, else 0.")
less_equal = _binary("less_equal", "1 where x <= y, else 0.")
greater = _binary("greater", "1 where x > y, else 0.")
greater_equal = _binary("greater_equal", "1 where x >= y, else 0.")
logical_and = _binary("logical_and", "1 where neither x nor y is 0, else 0.")
logical_or = _binary("logical_or", "1 where x or y is not 0, else 0.")
logical_xor = _binary("logical_xor", "1 where one of x and y is 0 and the other is not, else 0.")
bitwise_and = _binary("bitwise_and", "The bits of integers x and y that are set in both.")
bitwise_or = _binary("bitwise_or", "The bits of integers x and y that are set in one of them or both.")
bitwise_xor = _binary("bitwise_xor", "The bits of integers x and y that differ.")
left_shift = _binary("left_shift", "The bits of integer x moved up by y places.")
right_shift = _binary("right_shift", "The bits of integer x moved down by y places; zeros come in.")


def _magnitude(name: str, x: Any, y: Any, dtype: Any) -> NkiTensor:
    generation = machine.current().generation
    if generation != "v4":
        raise HardwareError(
            f"nl.{name} needs NeuronCore-v4", instruction=f"nl.{name}", limit="NeuronCore-v4", generation=generation
        )
    return apply(ALU[name], x, y, dtype, f"nl.{name}")


@names_op("abs_max")
def abs_max(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """``x`` where abs(x) > abs(y), else ``y`` (NeuronCore-v4); operands as for ``nl.add``.

    Raises:
        HardwareError: an older NeuronCore.
    """
    return _magnitude("abs_max", x, y, dtype)


@names_op("abs_min")
def abs_min(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """``x`` where abs(x) < abs(y), else ``y`` (NeuronCore-v4); operands as for ``nl.add``.

    Raises:
        HardwareError: an older NeuronCore.
    """
    return _magnitude("abs_min", x, y, dtype)


@names_op("divide")
def divide(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """``x / y``; operands as for ``nl.add``.

    The engines have no division: a tile ``y`` is inverted first (``nl.reciprocal``), of a number ``y`` the inverse is a
    constant; then they multiply. So the quotient is rounded twice.
    """
    a, b = operand(x, "nl.divide", "x"), operand(y, "nl.divide", "y")
    if not isinstance(b, NkiTensor):
        with np.errstate(divide="ignore"):
            return apply(ALU["multiply"], x, float(np.float32(1) / np.float32(b)), dtype, "nl.divide")
    if dtype is None:
        dtype = promote(a.dtype, b.dtype) if isinstance(a, NkiTensor) else b.dtype
    inverse = new(b.shape)
    vector.reciprocal(inverse, b)
    return apply(ALU["multiply"], x, inverse, dtype, "nl.divide")


# -- one operand -------------------------------------------------------------------------------------------------------


def negative(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """-x."""
    return apply(ALU["multiply"], tile(x, "nl.negative"), -1.0, dtype, "nl.negative")


@names_op("invert")
def invert(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """All bits of integers x flipped.

    Raises:
        HardwareError: ``x`` is no tile of integers.
    """
    source = tile(x, "nl.invert")
    if source.dtype.kind not in ("int", "uint"):
        raise HardwareError("invert takes integers", instruction="nl.invert", operand="x", value=source.dtype)
    return apply(ALU["bitwise_xor"], source, -1, dtype, "nl.invert")


@names_op("logical_not")
def logical_not(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 where x is 0, else 0."""
    return apply(ALU["logical_xor"], tile(x, "nl.logical_not"), 1.0, dtype, "nl.logical_not")


@names_op("reciprocal")
def reciprocal(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 / x on VectorE."""
    source = tile(x, "nl.reciprocal")
    result = new(source.shape, result_dtype(dtype, source))
    vector.reciprocal(result, source)
    return result


@names_op("rsqrt")
def rsqrt(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 / sqrt(x) on GpSimdE, which is more precise than ScalarE (``nisa.activation``).

    Raises:
        HardwareError: ``x`` is in PSUM, which GpSimdE does not reach.
    """
    source = tile(x, "nl.rsqrt")
    if source.storage.memory == PSUM:
        raise HardwareError(
            "rsqrt runs on GpSimdE, which does not reach PSUM: copy x to SBUF, or use nisa.activation",
            instruction="nl.rsqrt",
            operand="x",
            value=source.name,
            limit="SBUF",
        )
    result = new(source.shape, result_dtype(dtype, source))
    vector.tensor_scalar(result, source, ALU["rsqrt"], 0.0)
    return result


# -- choosing ----------------------------------------------------------------------------------------------------------


def where(condition: NkiTensor, x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """``x`` where ``condition`` is not 0, else ``y``, bit for bit if the dtypes allow.

    Args:
        condition: a tile.
        x, y: tiles that broadcast with it, or numbers.
        dtype: of the result. Default: that of the tiles x and y, of ``condition`` if both are numbers.
    """
    mask = tile(condition, "nl.where", "condition")
    a, b = operand(x, "nl.where", "x"), operand(y, "nl.where", "y")
    tiles = [t for t in (a, b) if isinstance(t, NkiTensor)]
    if dtype is not None:
        kind = as_dtype(dtype)
    elif len(tiles) == 2:
        kind = promote(tiles[0].dtype, tiles[1].dtype)
    else:
        kind = tiles[0].dtype if tiles else mask.dtype
    shape = common_shape("nl.where", mask, *tiles)
    result = new(shape, kind)
    if isinstance(b, NkiTensor):
        vector.tensor_copy(result, _spread(b, shape, "y"))
    else:
        vector.memset(result, constant_for(b, kind, "nl.where"))
    mask = _spread(mask, shape, "condition")
    if mask.dtype not in ("uint8", "uint16", "uint32") or mask.storage.memory == PSUM:
        predicate = new(shape, uint8)
        vector.tensor_scalar(predicate, mask, ALU["not_equal"], 0.0)
        mask = predicate
    if isinstance(a, NkiTensor):
        chosen = _spread(a if a.dtype is kind else to_sbuf(a, kind), shape, "x")
        vector.tensor_copy_predicated(result, chosen, mask)
    else:
        vector.tensor_copy_predicated(result, constant_for(a, kind, "nl.where"), mask)
    return result


def _spread(x: NkiTensor, shape: tuple[int, ...], name: str) -> NkiTensor:
    return free_broadcast(match_partitions(x, shape[0], "nl.where", name), shape)


def dropout(x: NkiTensor, rate: Any, dtype: Any = None) -> NkiTensor:
    """``x`` with each element set to 0 with probability ``rate``; the others are not scaled.

    Args:
        x: a tile.
        rate: a number, or a tile ``(P, 1)`` with one probability a partition.
        dtype: of the result. Default: that of ``x``.
    """
    from trnsim.nki import isa

    source = tile(x, "nl.dropout")
    probability = operand(rate, "nl.dropout", "rate")
    result = new(source.shape, source.dtype)
    isa_dropout: Any = isa.dropout
    isa_dropout(result, source, probability)
    return to_sbuf(result, dtype)
