"""Reductions, scans, statistics, searches and selections of ``neuronxcc.nki.isa`` (NKI 0.1)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trnsim.errors import UnsupportedError
from trnsim.isa import constants, gpsimd
from trnsim.isa.alu import as_alu_op
from trnsim.isa.constants import (
    reduce_cmd,
)
from trnsim.machine.form import PSUM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki import isa as today
from trnsim.nki.language.operands import promote
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.functions import reduce
from trnsim.nki.versions.beta1.index import Box
from trnsim.nki.versions.beta1.moves import (
    boxes,
    dtype_of,
    in_sbuf,
    result,
    source,
)
from trnsim.nki.versions.beta1.operands import number_or_column, span, step_operand, truth_bytes
from trnsim.nki.versions.beta1.tensor import Result, Tensor, drop_zeros, flush
from trnsim.numerics import as_dtype

_FP32_MIN = -3.4028234663852886e38


def tensor_reduce(
    op: Any, data: Any, axis: Any, *, mask: Any = None, dtype: Any = None, negate: bool = False, keepdims: bool = False,
    **_: Any,
) -> Any:  # fmt: skip
    """A reduction over free dimensions."""
    flush()
    tile = source(data, "data")
    return reduce(as_alu_op(op), tile, axis, dtype_of(dtype, tile.kind), mask, keepdims, negate)


def tensor_partition_reduce(op: Any, data: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """A reduction over the partitions, into one."""
    flush()
    tile = source(data, "data")
    places = boxes(mask, tile.shape)

    def emit(dst: Tensor) -> None:
        for box in places:
            part = in_sbuf(cut(tile, box))
            gpsimd.tensor_partition_reduce(cut(dst, None if box is None else ((0, 1), *box[1:])), as_alu_op(op), part)

    return Result((1, *tile.shape[1:]), dtype_of(dtype, tile.kind), emit)


def tensor_scalar_reduce(
    *, data: Any, op0: Any, operand0: Any, reduce_op: Any, reduce_res: Any, reverse0: bool = False, dtype: Any = None,
    mask: Any = None, **_: Any,
) -> Any:  # fmt: skip
    """``data op0 operand0``, and its reduction along the free dimensions to ``reduce_res``."""
    flush()
    tile = source(data, "data")
    first, second = as_alu_op(op0), as_alu_op(reduce_op)
    drop_zeros(reduce_res, reads=False)

    def run(dst: NkiTensor, box: Box | None) -> None:
        part = cut(tile, box)
        factor = step_operand(first, operand0, box, part)
        if reverse0 and not isinstance(factor, NkiTensor) and first.name == "subtract":
            raise UnsupportedError("tensor_scalar_reduce with reverse0", instruction="tensor_scalar_reduce")
        today.tensor_scalar_reduce(dst, part, first, factor, second, span(reduce_res, box))

    return result(tile.shape, dtype_of(dtype, tile.kind), run, mask)


def tensor_tensor_scan(
    data0: Any, data1: Any, initial: Any, op0: Any, op1: Any, reverse0: bool = False, reverse1: bool = False, *,
    dtype: Any = None, mask: Any = None, **_: Any,
) -> Any:  # fmt: skip
    """``r[i] = op1(op0(data0[i], r[i - 1]), data1[i])`` along the free dimension."""
    flush()
    x, y = source(data0, "data0"), source(data1, "data1")

    def run(dst: NkiTensor, box: Box | None) -> None:
        a, b = cut(x, box), cut(y, box)
        start = number_or_column(initial, box, a.shape[0])
        first, second = as_alu_op(op0), as_alu_op(op1)
        if a.storage.memory == b.storage.memory == PSUM:
            b = in_sbuf(b)
        start = start if isinstance(start, NkiTensor) else float(start)
        today.tensor_tensor_scan(dst, a, b, start, first, second, reverse0, reverse1)

    return result(x.shape, dtype_of(dtype, promote(x.kind, y.kind)), run, mask)


def _simple(name: str, data: Any, shape: tuple[int, ...], kind: Any, mask: Any, *args: Any, **named: Any) -> Result:
    """An instruction ``name(dst, data, ...)`` whose mask restricts ``data``."""
    function: Any = getattr(today, name)
    places = boxes(mask, data.shape)

    def emit(dst: Tensor) -> None:
        for box in places:
            rows = None if box is None else box[:1]
            given = [span(a, box) if isinstance(a, Tensor) else a for a in args]
            more = {k: span(a, box) if isinstance(a, Tensor) else a for k, a in named.items()}
            function(cut(dst, box if dst.shape == data.shape else rows), cut(data, box), *given, **more)

    return Result(shape, kind, emit)


def bn_stats(data: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """Count, mean and variance of the even and of the odd elements of a partition."""
    flush()
    tile = source(data, "data")
    return _simple("bn_stats", tile, (tile.shape[0], 6), dtype_of(dtype, tile.kind), mask)


def bn_aggr(data: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """Mean and variance from the statistics of ``bn_stats``."""
    flush()
    tile = source(data, "data")
    return _simple("bn_aggr", tile, (tile.shape[0], 2), dtype_of(dtype, tile.kind), mask)


def max8(*, src: Any, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """The eight largest of each partition, descending."""
    flush()
    tile = source(src, "src")
    return _simple("max8", tile, (tile.shape[0], 8), dtype_of(dtype, tile.kind), mask)


def nc_find_index8(*, data: Any, vals: Any, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """Where each of eight values is in its partition."""
    flush()
    tile, eight = source(data, "data"), source(vals, "vals")
    return _simple("nc_find_index8", tile, (tile.shape[0], 8), dtype_of(dtype, as_dtype("uint32")), mask, eight)


def nc_match_replace8(
    *, data: Any, vals: Any, imm: Any, dst_idx: Any = None, mask: Any = None, dtype: Any = None, **_: Any
) -> Any:
    """``data`` with the first place of each of eight values replaced; their places go to ``dst_idx``."""
    flush()
    tile, eight = source(data, "data"), source(vals, "vals")
    if dst_idx is not None:
        drop_zeros(dst_idx, reads=False)
    return _simple(
        "nc_match_replace8", tile, tile.shape, dtype_of(dtype, tile.kind), mask, eight, float(imm), dst_idx=dst_idx
    )


def dropout(data: Any, prob: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """``data`` with elements set to 0 with probability ``prob``."""
    flush()
    tile = source(data, "data")
    function: Any = today.dropout

    def run(dst: NkiTensor, box: Box | None) -> None:
        part = cut(tile, box)
        chance = number_or_column(prob, box, part.shape[0])
        function(dst, part, chance if isinstance(chance, NkiTensor) else float(chance))

    return result(tile.shape, dtype_of(dtype, tile.kind), run, mask)


def local_gather(
    src_buffer: Any, index: Any, num_elem_per_idx: int = 1, num_valid_indices: Any = None, *, mask: Any = None, **_: Any
) -> Any:
    """Elements of each partition at indices that its group of 16 partitions shares."""
    flush()
    del mask
    data, where = source(src_buffer, "src_buffer"), source(index, "index")
    count = 16 * math.prod(where.shape[1:]) if num_valid_indices is None else int(num_valid_indices)
    free = math.prod(where.shape[1:])
    sizes = (free, 16) if count == 16 * free else (count,)
    shape = (data.shape[0], *sizes, *((num_elem_per_idx,) if num_elem_per_idx > 1 else ()))

    def emit(dst: Tensor) -> None:
        gpsimd.local_gather(cut(dst, None), data.checked(), where.checked(), num_elem_per_idx, num_valid_indices)

    return Result(shape, data.kind, emit)


def sequence_bounds(*, segment_ids: Any, dtype: Any = None, **_: Any) -> Any:
    """Where the sequence of each element begins and ends."""
    flush()
    tile = source(segment_ids, "segment_ids")
    shape = (tile.shape[0], 2, math.prod(tile.shape[1:]))
    return _simple("sequence_bounds", tile, shape, dtype_of(dtype, tile.kind), None)


# -- in place ----------------------------------------------------------------------------------------------------------


def nc_stream_shuffle(src: Any, dst: Any, shuffle_mask: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> None:
    """Partitions of each quadrant of 32 exchanged."""
    flush()
    del dtype
    drop_zeros(dst, reads=True)
    for box in boxes(mask, dst.shape):
        today.nc_stream_shuffle(cut(dst, box), cut(source(src, "src"), box), shuffle_mask)


def select_reduce(
    *, dst: Any, predicate: Any, on_true: Any, on_false: Any, reduce_res: Any = None, reduce_cmd: Any = reduce_cmd.idle,
    reduce_op: Any = np.amax, reverse_pred: bool = False, mask: Any = None, dtype: Any = None, **_: Any,
) -> None:  # fmt: skip
    """``on_true`` where ``predicate``, else ``on_false``, and its maximum."""
    flush()
    del dtype
    test, value = source(predicate, "predicate"), source(on_true, "on_true")
    function: Any = today.select_reduce
    drop_zeros(dst, reads=False)
    for box in boxes(mask, dst.shape):
        part = cut(value, box)
        other = number_or_column(on_false, box, part.shape[0])
        total = None if reduce_res is None else span(reduce_res, box)
        other = other if isinstance(other, NkiTensor) else float(other)
        where = truth_bytes(cut(test, box))
        function(cut(dst, box), where, part, other, total, reduce_cmd, as_alu_op(reduce_op), reverse_pred)


def tensor_scalar_cumulative(
    *, src: Any, dst: Any, op0: Any, op1: Any, imm0: Any, imm1: Any = None,
    reduce_cmd: Any = reduce_cmd.reset_reduce, **_: Any,
) -> None:  # fmt: skip
    """A running ``op1`` over ``src op0 imm0``."""
    flush()
    tile = source(src, "src")
    function: Any = today.tensor_scalar_cumulative
    drop_zeros(dst, reads=False)
    first = number_or_column(imm0, None, tile.shape[0])
    second = None if imm1 is None else number_or_column(imm1, None, tile.shape[0])
    first, second = (x if x is None or isinstance(x, NkiTensor) else float(x) for x in (first, second))
    if reduce_cmd is not constants.reduce_cmd.load_reduce:
        second = None  # only that command reads it
    function(cut(dst, None), cut(tile, None), as_alu_op(op0), as_alu_op(op1), first, second, reduce_cmd)


def range_select(
    *, on_true_tile: Any, comp_op0: Any, comp_op1: Any, bound0: Any, bound1: Any, reduce_cmd: Any = reduce_cmd.idle,
    reduce_res: Any = None, reduce_op: Any = np.amax, range_start: Any = 0, on_false_value: Any = _FP32_MIN,
    mask: Any = None, dtype: Any = None, **_: Any,
) -> Any:  # fmt: skip
    """Elements whose position lies between two bounds, others float32's minimum; and their maximum."""
    flush()
    tile = source(on_true_tile, "on_true_tile")

    def run(dst: NkiTensor, box: Box | None) -> None:
        part = cut(tile, box)
        low, high = (number_or_column(b, box, part.shape[0]) for b in (bound0, bound1))
        total = None if reduce_res is None else span(reduce_res, box)
        today.range_select(
            dst, part, as_alu_op(comp_op0), as_alu_op(comp_op1), low, high, reduce_cmd=reduce_cmd, reduce_res=total,
            reduce_op=as_alu_op(reduce_op), range_start=range_start, on_false_value=float(on_false_value),
        )  # fmt: skip

    return result(tile.shape, dtype_of(dtype, tile.kind), run, mask)
