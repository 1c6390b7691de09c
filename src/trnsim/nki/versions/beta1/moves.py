"""Moving data as NKI 0.1 kernels ask for it: copies, fills, casts, broadcasts, masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.isa import dma, vector
from trnsim.machine import core as machine
from trnsim.machine.form import HBM, PSUM, SBUF
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.language.operands import broadcast_partition, free_broadcast
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.index import Box, Predicate, merged
from trnsim.nki.versions.beta1.programs import will_read, will_write
from trnsim.nki.versions.beta1.rules import writes, wrong_memory
from trnsim.nki.versions.beta1.tensor import Result, Tensor, drop_zeros, flush
from trnsim.numerics import DType, as_dtype

Run = Callable[[NkiTensor, "Box | None"], None]


def dtype_of(dtype: Any, default: DType) -> DType:
    """``dtype`` of a call, Python's bool included, or the default."""
    if dtype is None:
        return default
    if dtype is bool:
        return as_dtype("uint8")
    if isinstance(dtype, np.dtype) and dtype.itemsize == 8 and dtype.kind in "fiu":
        return as_dtype({"f": "float32", "i": "int32", "u": "uint32"}[dtype.kind])
    return as_dtype(dtype)


def boxes(mask: Any, shape: tuple[int, ...]) -> list[Box | None]:
    """Where a mask holds in a tile of ``shape``: rectangles, or None for all of it."""
    mask = merged(mask)
    if mask is None or mask is True:
        return [None]
    if isinstance(mask, Predicate):
        found = mask.boxes(shape)
        if len(found) == 1 and found[0] == tuple((0, n) for n in shape):
            return [None]
        return list(found)
    if isinstance(mask, (bool, np.bool_, int)):
        return [None] if mask else []
    raise CompilerError("a mask is made of comparisons of index expressions", operand="mask", value=type(mask).__name__)


def source(x: Any, what: str = "operand") -> Tensor:
    """``x`` as a tile on chip that will be read."""
    if not isinstance(x, Tensor):
        flush()  # says if the kernel is one of another release
        raise CompilerError(f"{what} must be a tile, not {type(x).__name__}", operand=what, value=type(x).__name__)
    view = x.tile
    if view.storage.memory == HBM:
        raise wrong_memory(what, "psum|sbuf", x, " Load it with nl.load first.")
    drop_zeros(x, reads=True)
    return x


def result(
    shape: tuple[int, ...], kind: DType, run: Run, mask: Any = None, *, memory: str = "sbuf", where: Any = None
) -> Result:
    """The result of a call: ``run(dst, box)`` records one instruction for each rectangle of its mask."""
    places = boxes(mask, shape) if where is None else where

    def emit(dst: Tensor) -> None:
        for box in places:
            run(cut(dst, box), box)

    return Result(shape, kind, emit, memory)


def wrap(view: NkiTensor) -> Tensor:
    """A tensor of NKI 0.1 over a view of the machine."""
    return Tensor(view, view.shape, view.dtype)


def in_sbuf(view: NkiTensor, dtype: Any = None) -> NkiTensor:
    """``view``, copied to SBUF if it is in PSUM or has another dtype."""
    kind = view.dtype if dtype is None else as_dtype(dtype)
    if view.storage.memory == SBUF and view.dtype is kind:
        return view
    copied = machine.current().ndarray(view.shape, kind, SBUF)
    vector.tensor_copy(copied, view)
    return copied


def scalar_operand(view: NkiTensor, partitions: int) -> NkiTensor:
    """One float32 a partition."""
    if view.shape[0] != partitions and view.shape[0] == 1:
        view = broadcast_partition(view, partitions)
    if view.dtype != "float32":
        view = in_sbuf(view, "float32")
    return view if view.ndim == 2 else view.reshape((view.shape[0], math.prod(view.shape[1:])))


def spread(view: NkiTensor, shape: tuple[int, ...]) -> NkiTensor:
    """``view`` broadcast to ``shape``: one partition to many by TensorE or VectorE, the rest by strides."""
    if view.shape == shape:
        return view
    if view.shape[0] != shape[0] and view.shape[0] == 1:
        view = broadcast_partition(view, shape[0])
    if view.ndim != len(shape) and math.prod(view.shape[1:]) == math.prod(shape[1:]):
        return view.reshape(shape)
    return free_broadcast(view, shape)


def copy_to(dst: NkiTensor, src: NkiTensor, engine: Any = None) -> None:
    """A copy on chip, with cast and broadcast."""
    if src.shape != dst.shape:
        src = spread(src, dst.shape) if src.size != dst.size else src
    if engine is None:
        vector.tensor_copy(dst, src)
    else:
        vector.tensor_copy(dst, src, engine)


def move(target: Tensor, value: Tensor, mask: Any = None) -> None:
    """``target = value`` by DMA if one is in HBM, else by an engine's copy."""
    drop_zeros(value, reads=True)
    drop_zeros(target, reads=False)
    for box in boxes(mask, target.shape if target.size >= value.size else value.shape):
        dst, src = cut(target, box), cut(value, box)
        if HBM in (dst.storage.memory, src.storage.memory):
            transfer(dst, src)
        else:
            copy_to(dst, src)


def transfer(dst: NkiTensor, src: NkiTensor, **options: Any) -> None:
    """A DMA; PSUM is copied to SBUF first, one partition or element repeated as the destination asks."""
    writes(dst)
    will_read(src)
    will_write(dst)
    if src.storage.memory == PSUM:
        src = in_sbuf(src)
    if dst.storage.memory == PSUM:
        stage = machine.current().ndarray(dst.shape, dst.dtype, SBUF)
        dma.dma_copy(stage, src, **options)
        vector.tensor_copy(dst, stage)
        return
    if src.size != dst.size:
        while src.ndim < dst.ndim:
            src = NkiTensor((1, *src.shape), src.dtype, src.storage, (0, *src.strides), src.offset)
        if src.storage.memory == HBM:
            strides = tuple(0 if n == 1 else s for n, s in zip(src.shape, src.strides, strict=True))
            src = NkiTensor(dst.shape, src.dtype, src.storage, strides, src.offset)
        else:
            src = spread(src, dst.shape)
    dma.dma_copy(dst, src, **options)


def fill(target: Tensor, value: Any, mask: Any = None) -> None:
    """``target = number``."""
    if not isinstance(value, (int, float, np.generic)):
        raise CompilerError("a tensor takes a tile or a number", value=type(value).__name__)
    drop_zeros(target, reads=False)
    for box in boxes(mask, target.shape):
        dst = cut(target, box)
        if dst.storage.memory == HBM:
            stage = machine.current().ndarray((1, 1), dst.dtype, SBUF)
            vector.memset(stage, number_for(value, dst.dtype))
            transfer_constant(dst, stage)
        else:
            vector.memset(dst, number_for(value, dst.dtype))


def transfer_constant(dst: NkiTensor, stage: NkiTensor) -> None:
    """One element repeated over an HBM tensor."""
    writes(dst)
    will_write(dst)
    spreads = NkiTensor((1, dst.size), stage.dtype, stage.storage, (1, 0), stage.offset)
    dma.dma_copy(dst, spreads)


def number_for(value: Any, dtype: DType) -> int | float:
    """A number to fill a ``dtype`` tile with."""
    item = value.item() if isinstance(value, np.generic) else value
    if dtype.kind in ("int", "uint", "bool", "packed"):
        return int(item)
    return float(item)
