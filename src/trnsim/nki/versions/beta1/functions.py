"""Functions on tiles of NKI 0.1: element by element and reductions, with masks, dtypes and broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.isa import scalar, vector
from trnsim.isa.alu import ACTIVATIONS, ALU, AluOp
from trnsim.isa.constants import engine as Engine
from trnsim.machine.form import PSUM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki import isa
from trnsim.nki.language.operands import promote
from trnsim.nki.language.tokens import names_op
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.index import Box
from trnsim.nki.versions.beta1.moves import boxes, dtype_of, in_sbuf, result, scalar_operand, source, spread, wrap
from trnsim.nki.versions.beta1.rules import named
from trnsim.nki.versions.beta1.tensor import Result, Tensor, flush
from trnsim.numerics import DType, as_dtype

_WORDS = ("int32", "uint32")
_COMMUTATIVE = {"add", "multiply", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"}
_COMPARISONS = ("compare", "logical")
_FLOAT32 = as_dtype("float32")
_INT32 = as_dtype("int32")


def constant(value: Any) -> int | float | None:
    """``value`` as a Python number, or None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (int, float)) else None


def weak(kind: DType, value: float) -> DType:
    """The dtype of a tile of ``kind`` with a Python number: a float makes integers float32."""
    if isinstance(value, float) and kind.kind in ("int", "uint", "bool"):
        return _FLOAT32
    return kind


def common_shape(x: Tensor, y: Tensor) -> tuple[int, ...]:
    """The shape that both broadcast to."""
    a, b = x.shape, y.shape
    if len(a) != len(b):
        short, long = (a, b) if len(a) < len(b) else (b, a)
        short = (short[0], *(1,) * (len(long) - len(short)), *short[1:])
        a, b = (short, long)
    if any(n != m and 1 not in (n, m) for n, m in zip(a, b, strict=True)):
        raise CompilerError("the shapes do not broadcast to each other", value=f"{x.shape} and {y.shape}")
    return tuple(max(n, m) for n, m in zip(a, b, strict=True))


def binary(name: str, x: Any, y: Any, dtype: Any = None, mask: Any = None) -> Any:
    """The tile ``name(x, y)``; one of both may be a number."""
    flush()
    op = ALU[name]
    a, b = constant(x), constant(y)
    if a is not None and b is not None:
        raise CompilerError("at least one of x and y must be a tile", instruction=f"nl.{name}", value=(x, y))
    compares = op.kind in _COMPARISONS
    if a is None and b is None:
        left, right = source(x, "x"), source(y, "y")
        kind = as_dtype("uint8") if compares else promote(left.kind, right.kind)
        kind = dtype_of(dtype, _quotient(name, kind))
        shape = common_shape(left, right)
        mask = _joined(mask, left, right)
        return result(shape, kind, lambda dst, box: two_tiles(dst, op, _part(left, box), _part(right, box)), mask)
    whole = source(x, "x") if a is None else source(y, "y")
    value = b if a is None else a
    assert value is not None
    reverse = a is not None and op.name not in _COMMUTATIVE
    kind = dtype_of(dtype, as_dtype("uint8") if compares else _quotient(name, weak(whole.kind, value)))
    mask = _joined(mask, whole)
    return result(whole.shape, kind, lambda dst, box: with_number(dst, op, cut(whole, box), value, reverse), mask)


def _quotient(name: str, kind: DType) -> DType:
    """A quotient of integers is a float32."""
    return _FLOAT32 if name == "divide" and kind.kind in ("int", "uint", "bool") else kind


def _joined(mask: Any, *tiles: Tensor) -> Any:
    for tile in tiles:
        if tile.mask is not None:
            mask = tile.mask if mask is None else tile.mask & mask
    return mask


def _part(x: Tensor, box: Box | None) -> NkiTensor:
    return cut(x, box)


def with_number(dst: NkiTensor, op: AluOp, x: NkiTensor, value: float, reverse: bool) -> None:
    """``dst = op(x, value)``."""
    if op.kind != "bitvec":
        value = float(value)
    if op.name == "power":
        x = in_sbuf(x)
    vector.tensor_scalar(dst, x, op, value, reverse)


def two_tiles(dst: NkiTensor, op: AluOp, x: NkiTensor, y: NkiTensor, engine: Any = Engine.unknown) -> None:
    """``dst = op(x, y)``, each broadcast to the shape of ``dst``."""
    shape = dst.shape
    if op.kind != "bitvec" and op.name != "power" and x.shape != y.shape:
        for whole, column, reverse in ((x, y, False), (y, x, op.name not in _COMMUTATIVE)):
            if whole.shape == shape and math.prod(column.shape[1:]) == 1 and column.dtype == "float32":
                vector.tensor_scalar(dst, whole, op, scalar_operand(column, shape[0]), reverse)
                return
    if op.name == "power":
        x, y = in_sbuf(x), in_sbuf(y)
    x, y = spread(x, shape), spread(y, shape)
    if x.storage.memory == y.storage.memory == PSUM:
        y = in_sbuf(y)
    runs_on = engine
    if dst.dtype.kind != "float" and op.kind != "bitvec" and op.name != "power" and engine is Engine.unknown:
        runs_on = Engine.vector if all(k.dtype in _WORDS for k in (x, y, dst)) else Engine.unknown
    vector.tensor_tensor(dst, x, y, op, runs_on)


def _binary_function(name: str) -> Callable[..., Any]:
    @names_op(name)
    def function(x: Any, y: Any, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
        return binary(name, x, y, dtype, mask)

    named(function, name)
    function.__doc__ = f"``{name}(x, y)``, element by element; see ``binary``."
    return function


BINARY = {
    name: _binary_function(name)
    for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "mod", "fmod", "equal", "not_equal",
        "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "logical_xor", "bitwise_and",
        "bitwise_or", "bitwise_xor", "left_shift", "right_shift",
    )
}  # fmt: skip


# -- one operand -------------------------------------------------------------------------------------------------------


def activate(name: str, x: Any, dtype: Any = None, mask: Any = None) -> Result:
    """The tile ``name(x)`` by ScalarE."""
    flush()
    tile = source(x, "x")
    activation = ACTIVATIONS[name]
    kind = dtype_of(dtype, tile.kind)
    return result(tile.shape, kind, lambda dst, box: _run(scalar.activation, dst, activation, cut(tile, box)), mask)


def _run(function: Any, *args: Any) -> None:
    function(*args)


def _activation_function(name: str) -> Callable[..., Any]:
    @names_op(name)
    def function(x: Any, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
        return activate(name, x, dtype, mask)

    named(function, name)
    function.__doc__ = f"``{name}(x)``, element by element, on ScalarE."
    return function


UNARY = {
    name: _activation_function(name)
    for name in (
        "abs", "square", "sign", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "relu", "gelu", "gelu_dx",
        "gelu_apprx_tanh", "gelu_apprx_sigmoid", "silu", "silu_dx", "softplus", "mish", "erf", "erf_dx", "arctan",
    )
}  # fmt: skip


def from_language(name: str, op: str | None = None) -> Callable[..., Any]:
    """A function of today's ``nl`` that makes its own tile; a mask restricts it to rectangles of that tile."""

    def function(x: Any, *args: Any, dtype: Any = None, mask: Any = None, **options: Any) -> Any:
        from trnsim.nki import language

        flush()
        tile = source(x, "x")
        today: Any = getattr(language, name)
        places = boxes(mask, tile.shape)
        given = [source(a).checked() if isinstance(a, Tensor) else a for a in args]
        named = {k: source(v).checked() if isinstance(v, Tensor) else v for k, v in options.items()}
        if dtype is not None:
            named["dtype"] = dtype_of(dtype, tile.kind)
        parts = [today(cut(tile, box), *given, **named) for box in places]
        if places == [None]:
            return wrap(parts[0])
        shape = tile.shape if not parts or parts[0].ndim == tile.ndim else parts[0].shape
        kind = parts[0].dtype if parts else dtype_of(dtype, tile.kind)
        found = iter(parts)
        return result(shape, kind, lambda dst, _: _run(vector.tensor_copy, dst, next(found)), where=places)

    named(function, name)
    function.__doc__ = f"``nl.{name}`` of today, with a mask."
    return names_op(op)(function) if op else function


# -- reductions --------------------------------------------------------------------------------------------------------


def axes_of(axis: Any, rank: int) -> tuple[int, ...]:
    """Reduced dimensions, ascending."""
    given = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    axes = tuple(sorted(int(a) + rank if a < 0 else int(a) for a in given))
    if not axes or axes[0] < 1 or axes[-1] >= rank or len(set(axes)) != len(axes):
        raise CompilerError("only free dimensions can be reduced", operand="axis", value=axis, limit=f"1 to {rank - 1}")
    return axes


def reduce(op: AluOp, data: Tensor, axis: Any, kind: DType, mask: Any, keepdims: bool, negate: bool = False) -> Result:
    """A reduction over free dimensions on VectorE."""
    axes = axes_of(axis, data.ndim)
    kept = [d for d in range(data.ndim) if d not in axes]
    full = tuple(1 if d in axes else n for d, n in enumerate(data.shape))
    shape = full if keepdims else tuple(data.shape[d] for d in kept)
    places = boxes(mask, data.shape)

    def emit(dst: Tensor) -> None:
        for box in places:
            part = cut(data, box)
            if axes != tuple(range(data.ndim - len(axes), data.ndim)):
                part = part.permute((*kept, *axes))
            where = None
            if box is not None:
                spans = [(0, 1) if d in axes else box[d] for d in range(data.ndim)]
                where = tuple(spans if keepdims else [spans[d] for d in kept])
            out = cut(dst, where)
            last = tuple(range(len(kept), data.ndim))
            isa.tensor_reduce(out, op, part, last, negate)

    return Result(shape, kind, emit)


def _reduction(name: str, op: str) -> Callable[..., Any]:
    @names_op(op)
    def function(x: Any, axis: Any, dtype: Any = None, mask: Any = None, keepdims: bool = False, **_: Any) -> Any:
        flush()
        data = source(x, "x")
        return reduce(ALU[op], data, axis, dtype_of(dtype, data.kind), mask, keepdims)

    named(function, name)
    function.__doc__ = f"``{name}`` over free dimensions."
    return function


REDUCTIONS = {
    name: _reduction(name, op)
    for name, op in {"sum": "add", "max": "maximum", "min": "minimum", "prod": "multiply"}.items()
}
