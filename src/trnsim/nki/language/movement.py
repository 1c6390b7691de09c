"""Moving data: between HBM and SBUF, between engines' memories, across partitions; and the matrix product."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trnsim.errors import CompilerError, HardwareError, UnsupportedError
from trnsim.isa import dma, gpsimd, tensor, vector
from trnsim.isa.constants import engine
from trnsim.machine import core as machine
from trnsim.machine.form import HBM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.language.constants import float32, psum, tile_size, uint32
from trnsim.nki.language.operands import (
    broadcast_partition,
    free_broadcast,
    new,
    result_dtype,
    tile,
    to_sbuf,
)
from trnsim.nki.language.tokens import names_op
from trnsim.releases import foreign_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def _in_hbm(x: Any, function: str, operand: str) -> NkiTensor:
    core = machine.current()
    if not isinstance(x, NkiTensor):
        raise CompilerError(
            f"{operand} must be a tensor in HBM, not {type(x).__name__}{foreign_tensor(x)}",
            instruction=function,
            operand=operand,
            value=type(x).__name__,
        )
    if x.storage.memory != HBM:
        raise HardwareError(
            f"{operand} must be in HBM, but is a tile in {x.storage.memory.upper()}",
            instruction=function,
            operand=operand,
            value=x.name,
            limit="HBM",
            generation=core.generation,
        )
    return x


def _check_partitions(partitions: int, function: str, operand: str) -> None:
    if partitions > tile_size.pmax:
        raise HardwareError(
            f"partition size {partitions} exceeds {tile_size.pmax}",
            instruction=function,
            operand=operand,
            value=partitions,
            limit=tile_size.pmax,
            generation=machine.current().generation,
        )


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A tile in SBUF with the elements of an HBM tensor, its first dimension on the partitions; by DMA.

    Args:
        src: a tensor in HBM, its first size at most 128.
        dtype: of the tile; the DMA converts. Default: that of ``src``.

    Raises:
        HardwareError: ``src`` is not in HBM, or has more than 128 rows.
    """
    source = _in_hbm(src, "nl.load", "src")
    _check_partitions(source.shape[0], "nl.load", "src")
    result = new(source.shape, result_dtype(dtype, source))
    dma.dma_copy(result, source)
    return result


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """Copy a tile in SBUF to an HBM tensor with as many elements, converting to its dtype; by DMA.

    Raises:
        HardwareError: ``dst`` is not in HBM, ``value`` is not in SBUF, or the sizes differ.
    """
    target = _in_hbm(dst, "nl.store", "dst")
    dma.dma_copy(target, tile(value, "nl.store", "value"))


@names_op("copy")
def copy(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A copy of a tile in SBUF, made by VectorE: bit for bit, or through float32 to another ``dtype``."""
    source = tile(x, "nl.copy")
    result = new(source.shape, result_dtype(dtype, source))
    vector.tensor_copy(result, source, engine.vector)
    return result


def load_transpose2d(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A tile ``(N, M)`` in SBUF with the transpose of an HBM tensor ``(M, N)``; by DMA, which is slow at that.

    Raises:
        CompilerError: ``src`` does not have two dimensions.
        HardwareError: ``src`` is not in HBM, or N exceeds 128.
    """
    source = _in_hbm(src, "nl.load_transpose2d", "src")
    if source.ndim != 2:
        raise CompilerError(
            "src must have two dimensions", instruction="nl.load_transpose2d", operand="src", value=source.shape
        )
    _check_partitions(source.shape[1], "nl.load_transpose2d", "src")
    result = new((source.shape[1], source.shape[0]), source.dtype)
    dma.dma_transpose(result, source)
    return to_sbuf(result, dtype)


def gather_flattened(data: NkiTensor, indices: NkiTensor, axis: int = 0, dtype: Any = None) -> NkiTensor:
    """result[p, i] = data[p, indices[p, i]], the free dimensions of ``data`` flattened; on GpSimdE.

    Args:
        data: a tile; copied to SBUF if it is in PSUM.
        indices: a tile of integers with the partitions of ``data``; the result has its shape.
        axis: 0.
        dtype: of the result. Default: that of ``data``.

    Raises:
        UnsupportedError: another axis.
        UndefinedBehaviorError: an index outside the partition.
    """
    if axis != 0:
        raise UnsupportedError(
            "only axis 0 is supported", instruction="nl.gather_flattened", operand="axis", value=axis, limit=0
        )
    source = to_sbuf(tile(data, "nl.gather_flattened", "data"))
    index = to_sbuf(tile(indices, "nl.gather_flattened", "indices"))
    if index.dtype.kind not in ("int", "uint"):
        raise CompilerError(
            "indices must be integers", instruction="nl.gather_flattened", operand="indices", value=index.dtype
        )
    index = index.view(uint32) if index.dtype.itemsize == 4 else to_sbuf(index, uint32)
    result = new(index.shape, source.dtype)
    gpsimd.nc_n_gather(result, source, index)
    return to_sbuf(result, dtype)


def broadcast_to(x: NkiTensor, shape: Sequence[int], dtype: Any = None) -> NkiTensor:
    """``x`` repeated to ``shape``, which has its rank and equals its size in each dimension where that is not 1.

    The result is ``x`` itself if nothing changes, else a tile in SBUF. One partition becomes many as
    ``operands.broadcast_partition`` says: on TensorE for floats, by VectorE's shuffle for integers. Free dimensions are
    repeated by a copy that reads an element again and again.

    Raises:
        CompilerError: ``shape`` has another rank, or ``x`` does not broadcast to it.
        HardwareError: ``x`` is in HBM, or more than 128 partitions.
    """
    source = tile(x, "nl.broadcast_to")
    sizes = tuple(int(n) for n in shape)
    if len(sizes) != source.ndim or any(n not in (1, m) for n, m in zip(source.shape, sizes, strict=True)):
        raise CompilerError(
            f"shape {source.shape} does not broadcast to {sizes}",
            instruction="nl.broadcast_to",
            operand="shape",
            value=sizes,
            limit=source.shape,
        )
    kind = result_dtype(dtype, source)
    if sizes[0] != source.shape[0]:
        source = broadcast_partition(source, sizes[0])
    if source.shape != sizes or source.dtype is not kind:
        result = new(sizes, kind)
        vector.tensor_copy(result, free_broadcast(source, sizes))
        return result
    return source


def expand_dims(x: NkiTensor, axis: int) -> NkiTensor:
    """``x`` with a new dimension of size 1 at ``axis`` (negative from the end); a view.

    Raises:
        HardwareError: axis 0 of a tile, which is the partitions.
    """
    machine.current()
    if not isinstance(x, NkiTensor):
        raise CompilerError("x must be a tensor", instruction="nl.expand_dims", operand="x", value=type(x).__name__)
    return x.expand_dim(axis)


def transpose(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A tile ``(F, P)`` in PSUM with the transpose of a tile ``(P, F)``, both sizes at most 128.

    A tile in PSUM is copied to SBUF first. Another ``dtype`` takes one copy more, in PSUM.

    Raises:
        CompilerError: ``x`` does not have two dimensions.
        HardwareError: ``x`` is larger than 128 x 128.
    """
    source = to_sbuf(tile(x, "nl.transpose"))
    if source.ndim != 2:
        raise CompilerError("x must have two dimensions", instruction="nl.transpose", operand="x", value=source.shape)
    core = machine.current()
    partitions, columns = source.shape
    _check_partitions(columns, "nl.transpose", "x")
    result = core.ndarray((columns, partitions), source.dtype, psum)
    tensor.nc_transpose(result, source)
    kind = result_dtype(dtype, source)
    if kind is source.dtype:
        return result
    converted = core.ndarray((columns, partitions), kind, psum)
    vector.tensor_copy(converted, result)
    return converted


def matmul(x: NkiTensor, y: NkiTensor, transpose_x: bool = False) -> NkiTensor:
    """The float32 tile ``x @ y`` in PSUM, or ``x.T @ y``.

    Args:
        x: a tile in SBUF, ``(M, K)``, or with ``transpose_x`` the stationary operand ``(K, M)``; K and M at most 128.
        y: a tile in SBUF, ``(K, N)``, N at most 512.
        transpose_x: without it, ``x`` is transposed first, through PSUM, and copied back to SBUF.

    Raises:
        HardwareError: an operand is not in SBUF or too large, or the dtypes do not multiply.
    """
    left, right = tile(x, "nl.matmul"), tile(y, "nl.matmul", "y")
    if left.ndim != 2:
        raise CompilerError("x must have two dimensions", instruction="nl.matmul", operand="x", value=left.shape)
    if not transpose_x:
        left = to_sbuf(transpose(left))
    result = machine.current().ndarray((left.shape[1], math.prod(right.shape[1:])), float32, psum)
    tensor.nc_matmul(result, left, right, accumulate=False)
    return result
