"""Reductions over free dimensions, and the normalisations made of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import HardwareError
from trnsim.isa import reductions as vector_reductions
from trnsim.isa import scalar, vector
from trnsim.isa.alu import ACTIVATIONS, ALU
from trnsim.isa.constants import reduce_cmd
from trnsim.machine.form import PSUM
from trnsim.nki.language.operands import (
    broadcast_partition,
    common_shape,
    free_broadcast,
    new,
    result_dtype,
    tile,
    to_sbuf,
)
from trnsim.nki.language.tokens import names_op

if TYPE_CHECKING:
    from trnsim.machine.tensor import NkiTensor


def _axes(axis: Any, x: NkiTensor, function: str) -> tuple[int, ...]:
    """The reduced dimensions, ascending.

    Raises:
        HardwareError: they are not the last free dimensions.
    """
    given = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    rank = x.ndim
    axes = tuple(sorted(int(a) + rank if a < 0 else int(a) for a in given))
    if not axes or axes != tuple(range(rank - len(axes), rank)) or axes[0] == 0:
        raise HardwareError(
            "only the last free dimensions can be reduced",
            instruction=function,
            operand="axis",
            value=axis,
            limit=f"consecutive dimensions from 1 on that end with {rank - 1}",
        )
    return axes


def _reduced_shape(x: NkiTensor, axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    kept = x.shape[: axes[0]]
    return (*kept, *(1,) * len(axes)) if keepdims else kept if len(kept) > 1 else (*kept, 1)


def _reduce(function: str, op: str, x: Any, axis: Any, *, dtype: Any, keepdims: bool) -> NkiTensor:
    source = tile(x, function)
    axes = _axes(axis, source, function)
    result = new(_reduced_shape(source, axes, keepdims), result_dtype(dtype, source))
    vector_reductions.tensor_reduce(result, ALU[op], source, axes)
    return result


@names_op("add")
def sum(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The sum over dimensions ``axis``, added in float32.

    Args:
        x: a tile.
        axis: one dimension or several; the last free ones.
        dtype: of the result. Default: that of ``x``.
        keepdims: keep the reduced dimensions with size 1. Without them a result has two dimensions at least.

    Raises:
        HardwareError: ``x`` is in HBM, or other dimensions.
    """
    return _reduce("nl.sum", "add", x, axis, dtype=dtype, keepdims=keepdims)


@names_op("multiply")
def prod(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The product over dimensions ``axis``; arguments as for ``nl.sum``."""
    return _reduce("nl.prod", "multiply", x, axis, dtype=dtype, keepdims=keepdims)


@names_op("maximum")
def max(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The largest element over dimensions ``axis``; arguments as for ``nl.sum``."""
    return _reduce("nl.max", "maximum", x, axis, dtype=dtype, keepdims=keepdims)


@names_op("minimum")
def min(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The smallest element over dimensions ``axis``; arguments as for ``nl.sum``."""
    return _reduce("nl.min", "minimum", x, axis, dtype=dtype, keepdims=keepdims)


def all(x: NkiTensor, axis: Any, dtype: Any = None) -> NkiTensor:
    """1 where no element over dimensions ``axis`` is 0, else 0; arguments as for ``nl.sum``."""
    return _reduce("nl.all", "logical_and", x, axis, dtype=dtype, keepdims=False)


def mean(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The mean over dimensions ``axis``, in float32; arguments as for ``nl.sum``."""
    source = tile(x, "nl.mean")
    axes = _axes(axis, source, "nl.mean")
    total = _reduce("nl.mean", "add", source, axes, dtype=np.float32, keepdims=keepdims)
    result = new(total.shape, result_dtype(dtype, source))
    vector.tensor_scalar(result, total, ALU["multiply"], 1 / _count(source, axes))
    return result


def _count(x: NkiTensor, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[a] for a in axes)


def var(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The variance over dimensions ``axis`` (the mean of squared deviations), in float32; arguments as for ``nl.sum``.

    ``keepdims`` is ignored, as NKI 0.6 does: reduced dimensions are always kept with size 1.
    """
    del keepdims
    source = tile(x, "nl.var")
    axes = _axes(axis, source, "nl.var")
    count = _count(source, axes)
    centre = _reduce("nl.var", "add", source, axes, dtype=np.float32, keepdims=True)
    vector.tensor_scalar(centre, centre, ALU["multiply"], -1 / count)
    squares = _sum_of_squares(source, axes, centre)
    result = new(squares.shape, result_dtype(dtype, source))
    vector.tensor_scalar(result, squares, ALU["multiply"], 1 / count)
    return result


def _sum_of_squares(x: NkiTensor, axes: tuple[int, ...], bias: NkiTensor | None = None) -> NkiTensor:
    """The sum of (x + bias) ** 2 over ``axes``, kept with size 1; ScalarE does it alone for all free dimensions."""
    squares = new(x.shape)
    total = new(_reduced_shape(x, axes, True))
    if axes[0] == 1:
        scalar.activation(
            squares, ACTIVATIONS["square"], x, bias, 1.0, ALU["add"], total, reduce_cmd.reset_reduce
        )  # fmt: skip
        return total
    moved = x
    if bias is not None:
        moved = squares
        vector.tensor_tensor(moved, x, free_broadcast(bias, x.shape), ALU["add"])
    scalar.activation(squares, ACTIVATIONS["square"], moved)
    vector_reductions.tensor_reduce(total, ALU["add"], squares, axes)
    return total


def softmax(x: NkiTensor, axis: Any = -1, dtype: Any = None) -> NkiTensor:
    """exp(x - the largest of x) over its sum, along dimensions ``axis``, in float32.

    Over all free dimensions ScalarE subtracts the maximum and sums on the fly; over some of them VectorE does both.

    Args:
        x: a tile.
        axis: one dimension or several; the last free ones.
        dtype: of the result. Default: that of ``x``.

    Raises:
        HardwareError: ``x`` is in HBM, or other dimensions.
    """
    source = tile(x, "nl.softmax")
    axes = _axes(axis, source, "nl.softmax")
    top, total = new(_reduced_shape(source, axes, True)), new(_reduced_shape(source, axes, True))
    powers = new(source.shape)
    result = new(source.shape, result_dtype(dtype, source))
    vector_reductions.tensor_reduce(top, ALU["maximum"], source, axes, True)
    if axes[0] == 1:
        scalar.activation(
            powers, ACTIVATIONS["exp"], source, top, 1.0, ALU["add"], total, reduce_cmd.reset_reduce
        )  # fmt: skip
        vector.reciprocal(total, total)
        vector.tensor_scalar(result, powers, ALU["multiply"], total)
        return result
    vector.tensor_tensor(powers, source, free_broadcast(top, source.shape), ALU["add"])
    scalar.activation(powers, ACTIVATIONS["exp"], powers)
    vector_reductions.tensor_reduce(total, ALU["add"], powers, axes)
    vector.reciprocal(total, total)
    vector.tensor_tensor(result, powers, free_broadcast(total, source.shape), ALU["multiply"])
    return result


def rms_norm(
    x: NkiTensor,
    w: NkiTensor,
    axis: Any,
    n: int,
    epsilon: float = 1e-6,
    dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:
    """``x / sqrt(sum(x * x) / n + epsilon) * w``.

    Args:
        x: a tile.
        w: a tile that broadcasts to the shape of ``x``; one partition is copied to all (``nl.broadcast_to``).
        axis: the dimensions that are summed; the last free ones.
        n: the number of values that the sum is divided by.
        epsilon: added to the mean square.
        dtype: of the result. Default: that of ``x``.
        compute_dtype: of the normalised tile before it is multiplied by ``w``. Default: float32.

    Raises:
        CompilerError: ``w`` does not broadcast to ``x``.
        HardwareError: an operand is in HBM, or other dimensions.
    """
    source, weight = tile(x, "nl.rms_norm"), tile(w, "nl.rms_norm", "w")
    axes = _axes(axis, source, "nl.rms_norm")
    common_shape("nl.rms_norm", source, weight)
    scale = _sum_of_squares(source, axes)
    vector.tensor_scalar(scale, scale, ALU["multiply"], 1 / n, False, ALU["add"], float(epsilon))
    vector.tensor_scalar(scale, scale, ALU["rsqrt"], 0.0)
    if weight.shape[0] != source.shape[0]:
        weight = broadcast_partition(weight, source.shape[0])
    elif weight.storage.memory == source.storage.memory == PSUM:
        weight = to_sbuf(weight)
    weight = free_broadcast(weight, source.shape)
    result = new(source.shape, result_dtype(dtype, source))
    if axes[0] == 1 and compute_dtype is None:
        vector.scalar_tensor_tensor(result, source, ALU["multiply"], scale, ALU["multiply"], weight)
        return result
    normal = new(source.shape, np.float32 if compute_dtype is None else compute_dtype)
    vector.tensor_tensor(normal, source, free_broadcast(scale, source.shape), ALU["multiply"])
    vector.tensor_tensor(result, normal, weight, ALU["multiply"])
    return result
