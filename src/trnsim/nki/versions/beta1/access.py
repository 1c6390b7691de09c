"""Where an access of NKI 0.1 goes: subscripts and masks become strided views of the machine.

An access through index expressions may leave its tensor where a mask excludes those positions, so its bounds are
checked when an instruction uses it (``Check``, ``cut``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trnsim.errors import CompilerError, UnsupportedError
from trnsim.machine import core as machine
from trnsim.machine.form import HBM
from trnsim.machine.tensor import DynamicSlice, Indirect, NkiTensor
from trnsim.nki.versions.beta1.index import Box, Index, broadcast


@dataclass(frozen=True)
class Check:
    """An index that may leave its dimension: legal where a mask excludes those positions."""

    index: Index
    size: int
    what: str


def verify(check: Check, name: str) -> None:
    """Raise IndexError unless the index stays inside its dimension."""
    low, high = check.index.limits()
    if low < 0 or high >= check.size:
        raise IndexError(
            f"Out-of-bound access for tensor `{name}` on dimension {check.what}: index range [{low}, {high}] exceed "
            f"dimension size of {check.size}"
        )


def subscript(x: Any, keys: tuple[Any, ...]) -> tuple[NkiTensor, tuple[Check, ...]]:
    """``x[keys]``: integers, slices and ``nl.ds``, or index expressions and index tiles."""
    rank = len(x.shape)
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys = keys[:at] + (slice(None),) * (rank - len(keys) + 1) + keys[at + 1 :]
    if len(keys) > rank:
        raise CompilerError(f"{len(keys)} indices for a tensor of shape {x.shape}", value=repr(x))
    keys = keys + (slice(None),) * (rank - len(keys))
    if any(isinstance(k, Index) or hasattr(k, "tile") for k in keys):
        indices, shape, dynamic = _advanced(x, keys)
    else:
        indices, shape = _basic(x, keys)
        dynamic = None
    return _through(x, indices, shape, dynamic)


def _basic(x: Any, keys: tuple[Any, ...]) -> tuple[list[Index], tuple[int, ...]]:
    on_chip = x.tile.storage.memory != HBM
    spans: list[tuple[int, int, int, int]] = []  # base, step, count, result dimension or -1
    shape: list[int] = []
    for dim, (key, size) in enumerate(zip(keys, x.shape, strict=True)):
        if isinstance(key, slice):
            step = 1 if key.step is None else int(key.step)
            start = 0 if key.start is None else int(key.start)
            stop = size if key.stop is None else int(key.stop)
            start, stop = start + size * (start < 0), stop + size * (stop < 0)
            count = -(-(stop - start) // step)
        elif isinstance(key, DynamicSlice):
            start, count, step = int(key.start), int(key.size), 1
        else:
            if not hasattr(key, "__index__"):
                raise CompilerError(f"{type(key).__name__} is no index of a tensor", value=repr(key))
            start, count, step = key.__index__(), 1, 1
            start += size * (start < 0)
            if not (on_chip and dim == 0):
                spans.append((start, 0, 1, -1))
                continue
        if count < 1:
            raise CompilerError(f"index {key} of dimension {dim} selects nothing", value=repr(x))
        spans.append((start, step, count, len(shape)))
        shape.append(count)
    while len(shape) < (2 if on_chip else 1):
        shape.append(1)
    rank = len(shape)
    indices = []
    for start, step, count, dim in spans:
        steps, sizes = [0] * rank, [1] * rank
        if dim >= 0:
            steps[dim], sizes[dim] = step, count
        indices.append(Index(start, tuple(steps), tuple(sizes)))
    return indices, tuple(shape)


def _advanced(x: Any, keys: tuple[Any, ...]) -> tuple[list[Index], tuple[int, ...], tuple[int, Any] | None]:
    dynamic: tuple[int, Any] | None = None
    given: list[Index | None] = []
    for dim, (key, size) in enumerate(zip(keys, x.shape, strict=True)):
        if isinstance(key, Index):
            if key.ndim == 1 and x.ndim > 1:
                raise CompilerError(
                    f"indexing tensor `{x.tile.name}` with 1d arange is not supported: use nl.arange(n)[:, None]"
                )
            given.append(key)
        elif hasattr(key, "tile"):
            if dynamic is not None:
                raise UnsupportedError("an access through two index tiles")
            dynamic = (dim, key)
            given.append(Index(0, (0,) * key.ndim, (key.shape[0], *(1,) * (key.ndim - 1))))
        elif isinstance(key, (slice, DynamicSlice)):
            if isinstance(key, slice) and key == slice(None) and size == 1:
                given.append(Index(0, (0,), (1,)))
                continue
            if any(isinstance(k, Index) for k in keys):
                raise CompilerError(
                    "Mixing basic tensor indexing and advanced tensor indexing is not supported: index "
                    f"`{x.tile.name}` with slices only, or with nl.arange in every dimension"
                )
            given.append(None)
        else:
            value = key.__index__()
            given.append(Index(value + size * (value < 0), (0,), (1,)))
    aligned, shape = broadcast([g for g in given if g is not None])
    rest = iter(aligned)
    indices = [None if g is None else next(rest) for g in given]
    for dim, (key, index) in enumerate(zip(keys, indices, strict=True)):
        if index is None:  # a slice beside index expressions is a new last dimension
            (span,), (count,) = _one_slice(key, x.shape[dim])
            indices = [i if i is None else Index(i.base, (*i.steps, 0), (*i.shape, 1)) for i in indices]
            steps, sizes = [0] * len(shape) + [span.steps[0]], [1] * len(shape) + [count]
            indices[dim] = Index(span.base, tuple(steps), tuple(sizes))
            shape = (*shape, count)
    full = [i for i in indices if i is not None]
    if len(shape) == 1 and x.tile.storage.memory != HBM:
        shape = (*shape, 1)
        full = [Index(i.base, (*i.steps, 0), (*i.shape, 1)) for i in full]
    return full, shape, dynamic


def _one_slice(key: Any, size: int) -> tuple[list[Index], tuple[int, ...]]:
    if isinstance(key, DynamicSlice):
        return [Index(int(key.start), (1,), (int(key.size),))], (int(key.size),)
    start, stop, step = key.indices(size)
    count = -(-(stop - start) // step)
    return [Index(start, (step,), (count,))], (count,)


def _through(
    x: Any, indices: list[Index], shape: tuple[int, ...], dynamic: tuple[int, Any] | None
) -> tuple[NkiTensor, tuple[Check, ...]]:
    """The view of ``x`` whose dimension ``d`` is addressed by ``indices[d]``, expressions over ``shape``."""
    view = x.tile
    rank = len(shape)
    offset = view.offset
    strides = [0] * rank
    checks: list[Check] = []
    for dim, (index, size) in enumerate(zip(indices, x.shape, strict=True)):
        if dynamic is not None and dynamic[0] == dim:
            continue
        stride = view.strides[dim]
        offset += index.base * stride
        for d, s in enumerate(index.steps):
            strides[d] += s * stride
        low, high = index.limits()
        if low < 0 or high >= size:
            checks.append(Check(index, size, str(dim)))
        if dim == 0 and view.storage.memory != HBM and any(index.steps[d] for d in range(1, rank) if shape[d] > 1):
            raise CompilerError("the partition dimension of a tile must be the first of an access", value=repr(x))
    for check in x.checks:
        index = Index(check.index.base, (0,) * rank, (1,) * rank)
        for s, inner in zip(check.index.steps, indices, strict=True):
            index = index + inner * s
        checks.append(Check(index, check.size, check.what))
    if view.storage.memory != HBM and shape[0] > 1 and indices[0].steps[0] == 0:
        raise UnsupportedError("an access that reads one partition as many; use nl.broadcast_to", value=repr(x))
    indirection = view.indirection
    if dynamic is not None:
        dim, tile = dynamic
        if view.storage.memory != HBM:
            raise UnsupportedError("index tiles address HBM tensors only", value=repr(x))
        indirection = Indirect("vector", _index_tile(tile), view.strides[dim], x.shape[dim])
    result = NkiTensor(shape, view.dtype, view.storage, tuple(strides), offset, None, indirection)
    return result, tuple(checks)


def _index_tile(tile: Any) -> NkiTensor:
    from trnsim.isa import vector

    view: NkiTensor = tile.tile
    if view.storage.memory == HBM:
        raise CompilerError("indices must be a tile in SBUF; load them first", value=repr(tile))
    if view.dtype not in ("int32", "uint32"):
        copied = machine.current().ndarray(view.shape, "int32", "sbuf")
        vector.tensor_copy(copied, view)
        return copied
    return view


def cut(x: Any, box: Box | None) -> NkiTensor:
    """The part of ``x`` in a box of a mask; dimensions of size 1 are kept. It must lie inside its tensor."""
    view: NkiTensor = x.tile
    if box is None:
        return view if not x.checks else x.checked()
    offset = view.offset
    shape = list(view.shape)
    starts = [0] * len(shape)
    for dim, (low, high) in enumerate(box):
        if dim < len(shape) and shape[dim] > 1:
            offset += low * view.strides[dim]
            starts[dim], shape[dim] = low, high - low
    for check in x.checks:
        base = check.index.base + sum(s * n for s, n in zip(check.index.steps, starts, strict=True))
        sizes = tuple(n if old > 1 else 1 for n, old in zip(shape, check.index.shape, strict=True))
        verify(Check(Index(base, check.index.steps, sizes), check.size, check.what), view.name)
    moved = view.indirection
    if moved is not None and moved.index is not None and moved.index.shape[0] != shape[0]:
        low, high = box[0]
        moved = Indirect(moved.kind, moved.index[low:high], moved.stride, moved.limit)
    return NkiTensor(tuple(shape), view.dtype, view.storage, view.strides, offset, None, moved)
