"""What the functions on tiles share: checks of operands, result dtypes, broadcasting, copies between memories."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError
from trnsim.isa import scalar, tensor, vector, vector_search
from trnsim.isa.alu import ACTIVATIONS
from trnsim.machine import core as machine
from trnsim.machine.form import HBM, PSUM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.language.constants import bfloat16, float32, psum, sbuf
from trnsim.numerics import DType, as_dtype
from trnsim.releases import foreign_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHUNK = 512  # elements a partition of a PSUM bank in float32, and of the moving operand


def tile(x: Any, function: str, operand: str = "x") -> NkiTensor:
    """``x`` if it is a tile in SBUF or PSUM.

    Raises:
        CompilerError: outside a kernel, or ``x`` is no tensor of the kernel.
        HardwareError: ``x`` is in HBM.
    """
    machine.current()
    if not isinstance(x, NkiTensor):
        raise CompilerError(
            f"{operand} must be a tile in SBUF or PSUM, not {type(x).__name__}{foreign_tensor(x)}",
            instruction=function,
            operand=operand,
            value=type(x).__name__,
        )
    if x.storage.memory == HBM:
        raise HardwareError(
            f"{operand} is in HBM, which the engines do not reach: load it first with nl.load or nisa.dma_copy",
            instruction=function,
            operand=operand,
            value=x.name,
            limit="SBUF or PSUM",
        )
    return x


def number(value: Any) -> int | float | None:
    """``value`` as a Python number, or None if it is none."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, np.generic):
        item = value.item()
        return item if isinstance(item, (bool, int, float)) else None
    return None


def operand(value: Any, function: str, name: str) -> NkiTensor | int | float:
    """``value`` as a number, or a tile as ``tile`` checks it."""
    if value.__class__ is not NkiTensor:
        constant = number(value)
        if constant is not None:
            return constant
    return tile(value, function, name)


def new(shape: Sequence[int], dtype: Any = float32) -> NkiTensor:
    """A tile in SBUF."""
    return machine.current().ndarray(shape, dtype, sbuf)


def result_dtype(dtype: Any, x: NkiTensor) -> DType:
    """``dtype``, or that of ``x`` if it is None."""
    return x.dtype if dtype is None else as_dtype(dtype)


def to_sbuf(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """``x``, copied to SBUF if it is elsewhere or has another dtype."""
    kind = result_dtype(dtype, x)
    if x.storage.memory != PSUM and x.dtype is kind:
        return x
    copy = new(x.shape, kind)
    vector.tensor_copy(copy, x)
    return copy


def constant_for(value: float, dtype: DType, function: str) -> int | float:
    """A number to fill a ``dtype`` tile with.

    Raises:
        CompilerError: a fraction for an integer dtype.
    """
    if dtype.kind not in ("int", "uint", "bool", "packed"):
        return float(value)
    if value != int(value):
        raise CompilerError(
            f"a {dtype} tile takes an integer", instruction=function, operand="value", value=value, limit=dtype
        )
    return int(value)


# -- dtypes of results -------------------------------------------------------------------------------------------------


def promote(a: DType, b: DType) -> DType:
    """The dtype of the result of two tiles, by NKI's table of type promotion.

    Equal dtypes stay; a float wins over an integer; of two floats the wider one, of two different ones of 16 bits
    float32, of 8 bits bfloat16; integers of different sign need one size more than the unsigned one, uint32 gives
    float32.

    Raises:
        CompilerError: scales and packed formats mix with nothing.
    """
    if a is b:
        return a
    kinds = (a.kind, b.kind)
    if "packed" in kinds or "scale" in kinds:
        raise CompilerError(f"{a} and {b} have no common dtype", operand="y", value=f"{a}, {b}")
    if "bool" in kinds:
        return b if a.kind == "bool" else a
    if "float" in kinds:
        return _wider_float(a, b)
    if a.kind == b.kind:
        return a if a.itemsize > b.itemsize else b
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    size = max(signed.itemsize, 2 * unsigned.itemsize)
    return float32 if size > 4 else as_dtype(f"int{8 * size}")


def _wider_float(a: DType, b: DType) -> DType:
    if a.kind != b.kind:
        return a if a.kind == "float" else b
    if a.itemsize != b.itemsize:
        return a if a.itemsize > b.itemsize else b
    return bfloat16 if a.itemsize == 1 else float32


# -- shapes ------------------------------------------------------------------------------------------------------------


def common_shape(function: str, *tiles: NkiTensor) -> tuple[int, ...]:
    """The shape that ``tiles`` broadcast to: every dimension equal, or 1. A ``(P, 1)`` tile goes with any rank.

    Raises:
        CompilerError: the shapes do not fit each other.
    """
    shape = max((t.shape for t in tiles), key=lambda s: (len(s), math.prod(s)))
    for x in tiles:
        if len(x.shape) != len(shape) and math.prod(x.shape[1:]) != 1:
            raise _mismatch(function, tiles)
    full = [max(t.shape[0] for t in tiles)]
    ranked = [t.shape for t in tiles if len(t.shape) == len(shape)]
    full.extend(max(s[dim] for s in ranked) for dim in range(1, len(shape)))
    for x in tiles:
        sizes = x.shape if len(x.shape) == len(shape) else (x.shape[0], *(1,) * (len(shape) - 1))
        if any(n not in (1, m) for n, m in zip(sizes, full, strict=True)):
            raise _mismatch(function, tiles)
    return tuple(full)


def _mismatch(function: str, tiles: tuple[NkiTensor, ...]) -> CompilerError:
    return CompilerError(
        "the shapes do not broadcast to each other",
        instruction=function,
        value=" and ".join(str(t.shape) for t in tiles),
    )


def free_broadcast(x: NkiTensor, shape: Sequence[int]) -> NkiTensor:
    """``x`` seen with the free sizes of ``shape``; nothing is copied."""
    if x.shape == shape:
        return x
    while len(x.shape) < len(shape):
        x = x.expand_dim(1)
    for dim in range(1, len(shape)):
        if x.shape[dim] != shape[dim]:
            x = x.broadcast(dim, shape[dim])
    return x


def match_partitions(x: NkiTensor, partitions: int, function: str, name: str) -> NkiTensor:
    """``x`` with one partition copied to ``partitions``; reported, since no engine broadcasts partitions by itself."""
    if x.shape[0] == partitions:
        return x
    core = machine.current()
    core.launch.add_finding(
        "hardware-rejects",
        f"{function} broadcasts the one partition of {name} to {partitions}: no instruction does that, and the NKI "
        "compiler rejects it; call nl.broadcast_to first",
        core.caller_line(),
        operand=name,
    )
    return broadcast_partition(x, partitions)


_FLOATS = ("float32", "tfloat32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2")
_TO_FIRST = (0,) * 32


def broadcast_partition(x: NkiTensor, partitions: int) -> NkiTensor:
    """A tile in SBUF that holds the one partition of ``x`` in each of ``partitions``.

    As the architecture guide describes: TensorE multiplies ``x`` with a row of ones, 512 elements a partition at a
    time, and ScalarE copies the products from PSUM. One product and no sum: values stay as they are (a zero may lose
    its sign). What TensorE does not multiply (integers) is copied by VectorE's shuffle, 32 partitions at a time.
    """
    core = machine.current()
    result = core.ndarray((partitions, *x.shape[1:]), x.dtype, sbuf)
    if x.dtype not in _FLOATS and not (x.dtype == "float8_e4m3fn" and core.generation == "v4"):
        for start in range(0, partitions, 32):
            rows = result[start : min(start + 32, partitions)]
            vector_search.nc_stream_shuffle(rows, x, _TO_FIRST)
        return result
    key = f"ones {x.dtype}"
    ones = core.state.get(key)
    if ones is None:
        ones = core.state[key] = core.ndarray((1, 128), x.dtype, sbuf)
        vector.memset(ones, 1.0)
    stationary = ones[:, 0:partitions]
    size = math.prod(x.shape[1:])
    source = to_sbuf(x)
    if size > _CHUNK:
        if not source.is_contiguous():
            source = new(x.shape, x.dtype)
            vector.tensor_copy(source, x)
        source = source.reshape((1, size))
    flat = result.reshape((partitions, size))
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        product = core.ndarray((partitions, stop - start), float32, psum)
        moving = source if size <= _CHUNK else source[:, start:stop]
        tensor.nc_matmul(product, stationary, moving, is_stationary_onezero=True, accumulate=False)
        # No public name has this function, so it is known to scale nothing: a copy that readers of PSUM can do without.
        scalar.activation(flat[:, start:stop], ACTIVATIONS["identity"], product)
    return result
