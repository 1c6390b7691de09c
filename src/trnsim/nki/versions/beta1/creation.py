"""Making tensors in NKI 0.1: ``nl.ndarray`` with block dimensions and allocators, ``nl.zeros``, constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.isa import vector
from trnsim.machine import core as machine
from trnsim.machine.core import as_region
from trnsim.machine.form import HBM, PSUM, SBUF
from trnsim.machine.regions import MemoryRegion
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.versions.beta1.blocks import BlockTensor
from trnsim.nki.versions.beta1.compiler import Allocation
from trnsim.nki.versions.beta1.moves import dtype_of, number_for, wrap
from trnsim.nki.versions.beta1.rules import top_level
from trnsim.nki.versions.beta1.tensor import Tensor, flush, state
from trnsim.numerics import DType, as_dtype


class ParDim(int):
    """``nl.par_dim(n)``: the dimension that lies across partitions; those before it are block dimensions."""


class _Hbm:
    """``nl.hbm``: HBM that all programs of a grid see."""

    value = "hbm"

    def __repr__(self) -> str:
        return "nl.hbm"


hbm = _Hbm()
_FLOAT32 = as_dtype("float32")


def ndarray(shape: Sequence[int], dtype: Any, *, buffer: Any = None, name: str = "", **_: Any) -> Tensor:
    """An uninitialised tensor; in SBUF without ``buffer``."""
    current = state()
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    kind = dtype_of(dtype, _FLOAT32)
    if isinstance(buffer, Allocation):
        return _on_chip(current.core, sizes, kind, buffer.memory, name, buffer)
    if buffer is hbm:
        return _in_hbm(sizes, kind, MemoryRegion.shared_hbm, name)
    region = as_region(buffer)
    if region.memory == HBM:
        if region is MemoryRegion.shared_hbm:
            top_level()
        return _in_hbm(sizes, kind, region, name)
    return _on_chip(current.core, sizes, kind, region.memory, name, None)


def _in_hbm(sizes: tuple[Any, ...], kind: DType, region: MemoryRegion, name: str) -> Tensor:
    current = state()
    plain = tuple(int(n) for n in sizes)
    shared = region is MemoryRegion.shared_hbm and math.prod(current.grid) > 1
    if shared:
        index = current.shared_count
        current.shared_count += 1
        if index < len(current.shared):
            known = current.shared[index]
            if known.shape != plain or known.kind != kind:
                raise CompilerError(
                    f"program {current.ids} allocates {kind} {plain} as its shared_hbm tensor {index}, another program "
                    f"{known.kind} {known.shape}: all programs must allocate the same",
                    instruction="nl.ndarray",
                )
            return known
    result = wrap(current.core.ndarray(plain, kind, region, name))
    if shared:
        current.shared.append(result)
    return result


def _on_chip(
    core: machine.Core, sizes: tuple[Any, ...], kind: DType, memory: str, name: str, allocation: Allocation | None
) -> Tensor:
    at = next((i for i, n in enumerate(sizes) if isinstance(n, ParDim)), 0)
    blocks = tuple(int(n) for n in sizes[:at])
    tile = tuple(int(n) for n in sizes[at:])
    if len(tile) == 1:
        tile = (*tile, 1)
    table: dict[tuple[int, ...], NkiTensor] = {}
    for position in np.ndindex(*blocks):
        address = None
        if allocation is not None:
            address = allocation.address(position, tile[0], math.prod(tile[1:]) * kind.itemsize)
        label = name if not blocks or not name else f"{name}_{'_'.join(map(str, position))}"
        table[position] = core.ndarray(tile, kind, memory, "" if allocation else label, address)
    return BlockTensor(table, blocks, ()) if blocks else wrap(table[()])


def full(shape: Sequence[int], fill_value: Any, dtype: Any, *, buffer: Any = None, name: str = "", **_: Any) -> Tensor:
    """A tensor filled with a number. Zeros in PSUM cost nothing where multiplications write first."""
    current = flush()
    result = ndarray(shape, dtype, buffer=buffer, name=name)
    tiles = list(result.table.values()) if isinstance(result, BlockTensor) else [result.tile]
    for tile in tiles:
        if tile.storage.memory == PSUM and fill_value == 0:
            current.lazy_zeros[tile.storage.id] = tile
        elif tile.storage.memory == HBM:
            raise CompilerError(
                "Creating HBM tensor with init value is not supported: make it with nl.ndarray and nl.store to it",
                instruction="nl.full",
            )
        else:
            vector.memset(tile, number_for(fill_value, tile.dtype))
    return result


def zeros(shape: Sequence[int], dtype: Any, *, buffer: Any = None, name: str = "", **_: Any) -> Tensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype, buffer=buffer, name=name)


def ones(shape: Sequence[int], dtype: Any, *, buffer: Any = None, name: str = "", **_: Any) -> Tensor:
    """A tensor of ones."""
    return full(shape, 1, dtype, buffer=buffer, name=name)


def zeros_like(a: Tensor, dtype: Any = None, *, buffer: Any = None, name: str = "", **_: Any) -> Tensor:
    """Zeros with the shape of ``a``."""
    return zeros(a.shape, a.kind if dtype is None else dtype, buffer=buffer, name=name)


def empty_like(a: Tensor, dtype: Any = None, *, buffer: Any = None, name: str = "", **_: Any) -> Tensor:
    """An uninitialised tensor with the shape of ``a``."""
    region = a.buffer if buffer is None else buffer
    return ndarray(a.shape, a.kind if dtype is None else dtype, buffer=region, name=name)


def rand(shape: Sequence[int], dtype: Any = np.float32, **_: Any) -> Tensor:
    """A tile of random numbers, uniform in [0, 1)."""
    from trnsim.nki import language

    flush()
    return wrap(language.rand(tuple(int(n) for n in shape), dtype_of(dtype, _FLOAT32)))


def random_seed(seed: Any, *, mask: Any = None, **_: Any) -> None:
    """Seed the random numbers with a tile of one element, or a number."""
    from trnsim.nki import language
    from trnsim.nki.versions.beta1.moves import boxes, in_sbuf

    current = flush()
    if not boxes(mask, (1, 1)):
        return
    if isinstance(seed, Tensor):
        tile = in_sbuf(seed.checked(), "uint32" if seed.kind not in ("int32", "uint32") else None)
    else:
        tile = current.core.ndarray((1, 1), "uint32", SBUF)
        vector.memset(tile, int(seed))
    language.random_seed(tile)


def shared_constant(constant: Any, dtype: Any = None, **_: Any) -> Tensor:
    """A constant in HBM."""
    from trnsim.nki import language

    flush()
    data = np.asarray(constant)
    kind = dtype_of(dtype if dtype is not None else data.dtype, _FLOAT32)
    return wrap(language.shared_constant(data.astype(kind.numpy)))


def shared_identity_matrix(n: int, dtype: Any = np.uint8, **_: Any) -> Tensor:
    """The identity matrix in HBM."""
    return shared_constant(np.eye(int(n), dtype=np.float32), dtype)
