"""GpSimdE: eight programmable cores of 16 lanes, for what the other engines do not do. It does not reach PSUM.

Documented in the NKI reference (``nki.isa``, release 0.6). Affine patterns are computed in 32-bit integers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, UndefinedBehaviorError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import ALU, AluOp
from trnsim.isa.costs import streamed, work
from trnsim.isa.instruction import (
    Immediate,
    In,
    Out,
    instruction,
    require,
    require_memory,
    require_number,
    require_numbers,
    require_same_size,
    target,
)
from trnsim.isa.work import Work
from trnsim.machine import core as machine
from trnsim.machine.form import SBUF, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass
from trnsim.numerics import from_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_CORE_LANES = 16


# -- affine patterns ---------------------------------------------------------------------------------------------------


def _require_pattern(pattern: Any, dst: Form) -> None:
    try:
        counts = [int(count) for _, count in pattern]
        whole = all(int(number) == number for pair in pattern for number in pair)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise CompilerError(
            "pattern is a list of [step, count], integers", operand="pattern", value=pattern, limit="[[step, count]]"
        )
    require(1 <= len(counts) <= 4, "a pattern has 1 to 4 dimensions", "pattern", len(counts), 4)
    require(
        math.prod(counts) == dst.elements and min(counts) > 0,
        "the counts of pattern must multiply to dst's elements a partition",
        "pattern",
        math.prod(counts),
        dst.elements,
    )


def _int32(value: Any, name: str, instruction: str) -> int:
    """A number of an affine pattern, which the engine takes in 32 bits; a register is read."""
    try:
        number = int(value)
        whole = number == value
    except (TypeError, ValueError):
        whole = False
    if not whole or not -(2**31) <= number < 2**31:
        raise CompilerError(
            f"{name} is an int32",
            instruction=instruction,
            operand=name,
            value=value,
            limit="int32",
            generation=machine.current().generation,
        )
    return number


def _affine(pattern: Any, lanes: int, offset: Any, channel_multiplier: Any, instruction: str) -> NDArray[np.int32]:
    """``offset + p * channel_multiplier + sum(index * step)``, ``(lanes, elements)``, in 32-bit integers."""
    free = _steps(tuple((int(step), int(count)) for step, count in pattern))
    channels = np.arange(lanes) * _int32(channel_multiplier, "channel_multiplier", instruction)
    channels += _int32(offset, "offset", instruction)
    result: NDArray[np.int32] = channels.astype(np.int32)[:, None] + free
    return result


@lru_cache(maxsize=256)
def _steps(pattern: tuple[tuple[int, int], ...]) -> NDArray[np.int32]:
    total = np.zeros(1, np.int64)
    for step, count in pattern:
        total = (total[:, None] + np.arange(count) * step).ravel()
    return total.astype(np.int32)


@instruction("nki.isa.iota", engines="gpsimd")
def iota(dst: Out, pattern: Any, offset: Immediate = 0, channel_multiplier: Immediate = 0) -> None:
    """dst[p, i] = offset + p * channel_multiplier + the sum of steps of ``pattern`` at i, converted to dst's dtype."""
    del offset, channel_multiplier
    require_memory(SBUF, dst=dst)
    require_numbers(dst=dst)
    _require_pattern(pattern, dst)


@iota.meaning
def _(dst: NkiTensor, pattern: Any, offset: Any, channel_multiplier: Any) -> NDArray[Any]:
    values = _affine(pattern, dst.shape[0], offset, channel_multiplier, "iota")
    return values.view(np.uint32) if dst.dtype == "uint32" else values


@iota.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


@instruction("nki.isa.affine_select", engines="gpsimd")
def affine_select(
    dst: Out,
    pattern: Any,
    channel_multiplier: Immediate,
    on_true_tile: In,
    on_false_value: Immediate,
    cmp_op: AluOp = ALU["equal"],
    offset: Immediate = 0,
) -> None:
    """dst[p, i] = on_true_tile[p, i] where the affine value (``iota``) compares true with 0, else on_false_value."""
    del channel_multiplier, offset
    require_number(on_false_value, "on_false_value")
    require_memory(SBUF, dst=dst, on_true_tile=on_true_tile)
    require_numbers(dst=dst, on_true_tile=on_true_tile)
    require_same_size(dst, on_true_tile, names=("on_true_tile",))
    require(cmp_op.name in _COMPARISONS, "this operator does not compare", "cmp_op", cmp_op, _COMPARISONS)
    _require_pattern(pattern, dst)


@affine_select.meaning
def _(
    dst: NkiTensor,
    pattern: Any,
    channel_multiplier: Any,
    on_true_tile: NkiTensor,
    on_false_value: Any,
    cmp_op: AluOp,
    offset: Any,
) -> None:
    values = _affine(pattern, dst.shape[0], offset, channel_multiplier, "affine_select")
    reject = np.logical_not(getattr(np, cmp_op.name)(values, np.int32(0)))
    if dst.dtype is on_true_tile.dtype:
        dst.store(on_true_tile.array())
    else:
        dst.store_float32(on_true_tile.as_float32())
    fill = from_float32(np.array([on_false_value], np.float32), dst.dtype)[0]
    np.copyto(target(dst), fill, where=reject.reshape(dst.shape))


@affine_select.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


# -- across partitions, and gathers ------------------------------------------------------------------------------------


@instruction("nki.isa.tensor_partition_reduce", engines="gpsimd")
def tensor_partition_reduce(dst: Out, op: AluOp, data: In) -> None:
    """dst[0, i] = data[:, i] reduced with ``op``: add, average or maximum in float32, or bitwise_or, bitwise_and."""
    require_memory(SBUF, dst=dst, data=data)
    require_numbers(dst=dst, data=data)
    allowed = ("add", "average", "maximum", "bitwise_or", "bitwise_and")
    require(op.name in allowed, "this operator does not reduce partitions", "op", op, allowed)
    require(dst.partitions == 1, "dst has one partition", "dst", dst.partitions, 1)
    require(
        dst.elements == data.elements, "dst and data differ in elements a partition", "dst", dst.elements, data.elements
    )
    if op.kind == "bitvec":
        for name, form in (("dst", dst), ("data", data)):
            require(
                form.dtype.kind in ("int", "uint"), f"{op.name} takes integers", name, form.dtype, "an integer dtype"
            )


@tensor_partition_reduce.meaning
def _(dst: NkiTensor, op: AluOp, data: NkiTensor) -> NDArray[Any]:
    if op.kind == "bitvec":
        return np.asarray(op.reduce.reduce(data.array(), axis=0)).astype(dst.dtype.numpy)
    result = np.asarray(op.reduce.reduce(data.as_float32(), axis=0), np.float32)
    return result / np.float32(data.shape[0]) if op.name == "average" else result


@tensor_partition_reduce.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # Each of the eight processors goes through its 16 partitions, then their results are combined: assumed.
    return (work(t, k, engine, 2 * streamed(t, k, engine)),)


@instruction("nki.isa.nc_n_gather", engines="gpsimd")
def nc_n_gather(dst: Out, data: In, indices: In) -> None:
    """dst[p, i] = data[p, indices[p, i]], free dimensions flattened; ``indices`` are uint32."""
    require_memory(SBUF, dst=dst, data=data, indices=indices)
    require(dst.dtype == data.dtype, "dst must have the dtype of data", "dst", dst.dtype, data.dtype)
    require(indices.dtype == "uint32", "indices are uint32", "indices", indices.dtype, "uint32")
    require_same_size(dst, indices, names=("indices",))
    require(
        data.partitions == dst.partitions, "data and dst differ in partitions", "data", data.partitions, dst.partitions
    )


@nc_n_gather.meaning
def _(dst: NkiTensor, data: NkiTensor, indices: NkiTensor) -> None:
    lanes = data.shape[0]
    values = data.array().reshape(lanes, -1)
    at = indices.array().reshape(lanes, -1).astype(np.intp)
    _check_indices(at, values.shape[1], "nc_n_gather", "indices")
    dst.store(np.take_along_axis(values, at, axis=1))


@nc_n_gather.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # One instruction for every 512 elements, each with its start.
    n = k.operand("indices").elements
    return (work(t, k, engine, n + (-(-n // 512) - 1) * t.gpsimd.start_cycles),)


@instruction("nki.isa.local_gather", engines="gpsimd")
def local_gather(
    dst: Out, src_buffer: In, index: In, num_elem_per_idx: int = 1, num_valid_indices: int | None = None
) -> None:
    """dst[p, k] = src_buffer[p, n[k] + (0 ... num_elem_per_idx - 1)], by the indices n of p's group of 16 partitions.

    A group's indices are those of all its partitions, taken down the partitions first; the first ``num_valid_indices``
    of them are used. They count elements, from the start of the partition.
    """
    require_memory(SBUF, dst=dst, src_buffer=src_buffer, index=index)
    require(dst.dtype == src_buffer.dtype, "dst must have the dtype of src_buffer", "dst", dst.dtype, src_buffer.dtype)
    require(index.dtype == "uint16", "indices are uint16", "index", index.dtype, "uint16")
    require(
        src_buffer.partitions % _CORE_LANES == 0,
        "partitions must be a multiple of 16",
        "src_buffer",
        src_buffer.partitions,
        _CORE_LANES,
    )
    for name, form in (("index", index), ("dst", dst)):
        require(
            form.partitions == src_buffer.partitions,
            f"{name} and src_buffer differ in partitions",
            name,
            form.partitions,
            src_buffer.partitions,
        )
    sizes = (1, 2, 4, 8, 16, 32)
    require(num_elem_per_idx in sizes, "elements an index", "num_elem_per_idx", num_elem_per_idx, sizes)
    given = _CORE_LANES * index.elements
    count = given if num_valid_indices is None else int(num_valid_indices)
    require(0 < count <= given, "more indices than there are", "num_valid_indices", count, given)
    require(count <= 4096, "a core takes at most 4096 indices", "num_valid_indices", count, 4096)
    require(
        dst.elements == count * num_elem_per_idx,
        "dst must hold all that is gathered",
        "dst",
        dst.elements,
        count * num_elem_per_idx,
    )


@local_gather.meaning
def _(
    dst: NkiTensor, src_buffer: NkiTensor, index: NkiTensor, num_elem_per_idx: int, num_valid_indices: int | None
) -> None:
    lanes = src_buffer.shape[0]
    values = src_buffer.array().reshape(lanes, -1)
    groups = index.array().reshape(lanes // _CORE_LANES, _CORE_LANES, -1).transpose(0, 2, 1)
    at = groups.reshape(len(groups), -1)[:, :num_valid_indices].astype(np.intp)
    at = (at[:, :, None] + np.arange(num_elem_per_idx)).reshape(len(groups), -1)
    _check_indices(at, values.shape[1], "local_gather", "index")
    dst.store(np.take_along_axis(values, np.repeat(at, _CORE_LANES, axis=0), axis=1))


@local_gather.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    data = k.operand("src_buffer")
    each = int(k.attributes["num_elem_per_idx"])
    index = k.operand("index")
    count = k.attributes["num_valid_indices"] or index.elements * 16
    rate = ((28 + 4 * each) / (4 * each)) / min(4 / data.dtype.itemsize, each)
    return (work(t, k, engine, count * each / rate),)


def _check_indices(at: NDArray[np.intp], limit: int, instruction: str, operand: str) -> None:
    if at.size and int(np.max(at)) >= limit:
        raise UndefinedBehaviorError(
            "an index lies outside the gathered partition",
            instruction=instruction,
            operand=operand,
            value=int(np.max(at)),
            limit=limit,
        )
