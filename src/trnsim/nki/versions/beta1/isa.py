"""``neuronxcc.nki.isa`` of NKI 0.1: instructions that return their result, with ``mask`` and ``dtype``.

Semantics and argument names are those of the reference of SDK 2.26. Where an operand is in a memory that the engine
does not reach, the compiler of that time inserted a copy; so does this module, visibly in the trace.
"""

from __future__ import annotations

import math
from typing import Any

from trnsim import releases
from trnsim.errors import CompilerError, HardwareError, UnsupportedError
from trnsim.isa import constants, dma, scalar, tensor, vector
from trnsim.isa.alu import ALU, as_activation, as_alu_op
from trnsim.isa.constants import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from trnsim.machine.form import PSUM, SBUF
from trnsim.machine.tensor import NkiTensor
from trnsim.nki import isa as _today
from trnsim.nki.isa import get_nc_sub_version, get_nc_version
from trnsim.nki.language.operands import promote
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.functions import common_shape, constant, two_tiles
from trnsim.nki.versions.beta1.index import Box
from trnsim.nki.versions.beta1.moves import (
    boxes,
    copy_to,
    dtype_of,
    fill,
    in_sbuf,
    result,
    source,
    transfer,
    wrap,
)
from trnsim.nki.versions.beta1.operands import number_or_column, span, step_operand, truth_bytes
from trnsim.nki.versions.beta1.positions import affine_select, iota
from trnsim.nki.versions.beta1.programs import will_read, will_write
from trnsim.nki.versions.beta1.reductions import (
    bn_aggr,
    bn_stats,
    dropout,
    local_gather,
    max8,
    nc_find_index8,
    nc_match_replace8,
    nc_stream_shuffle,
    range_select,
    select_reduce,
    sequence_bounds,
    tensor_partition_reduce,
    tensor_reduce,
    tensor_scalar_cumulative,
    tensor_scalar_reduce,
    tensor_tensor_scan,
)
from trnsim.nki.versions.beta1.rules import writes
from trnsim.nki.versions.beta1.tensor import Result, Tensor, assign, drop_zeros, flush, state
from trnsim.nki.versions.calls import guard_first as _guard
from trnsim.numerics import as_dtype

tensor_engine, vector_engine, scalar_engine = engine.tensor, engine.vector, engine.scalar
gpsimd_engine, unknown_engine = engine.gpsimd, engine.unknown
__path__: list[str] = []  # nki.isa.constants is imported as a module of this one


# -- TensorE -----------------------------------------------------------------------------------------------------------


def nc_matmul(
    stationary: Any, moving: Any, *, is_stationary_onezero: bool = False, is_moving_onezero: bool = False,
    is_transpose: bool = False, tile_position: Any = (), tile_size: Any = (), mask: Any = None, perf_mode: Any = "none",
    **_: Any,
) -> Any:  # fmt: skip
    """Multiply into PSUM: ``stationary.T @ moving``; assigned with ``+=`` to PSUM it accumulates there."""
    flush()
    left, right = source(stationary, "stationary"), source(moving, "moving")
    double = str(getattr(perf_mode, "value", perf_mode)).startswith("double_row")
    columns = math.prod(left.shape[1:]) // (2 if double else 1)
    rest = (math.prod(right.shape[1:]) // 2,) if double else right.shape[1:]
    kind = as_dtype("float32")
    if is_transpose and state().core.generation != "v2":
        kind = left.kind
    places = boxes(mask, (left.shape[0], columns, math.prod(rest)))
    ml, mr = boxes(left.mask, left.shape), boxes(right.mask, right.shape)

    def operands() -> tuple[NkiTensor, NkiTensor]:
        a, b = cut(left, _only(ml)), cut(right, _only(mr))
        if a.shape[0] != b.shape[0]:
            rows = min(a.shape[0], b.shape[0])
            a, b = a[:rows], b[:rows]
        return in_sbuf(a), in_sbuf(b)

    def record(dst: Tensor, accumulate: bool | None) -> None:
        a, b = operands()
        for box in places:
            out = cut(dst, None)
            x, y = a, b
            if box is not None:
                (k0, k1), (m0, m1), (n0, n1) = box
                out, x, y = out[m0:m1, n0:n1], x[k0:k1, m0:m1], y[k0:k1, n0:n1]
            tensor.nc_matmul(
                out, x, y, is_stationary_onezero, is_moving_onezero, is_transpose, accumulate, tuple(tile_position),
                tuple(tile_size), "double_row" if double else matmul_perf_mode.none,
            )  # fmt: skip

    return Result(
        (columns, *rest),
        kind,
        lambda dst: record(dst, False),
        "psum",
        None if is_transpose else lambda d: record(d, None),
    )


def _only(places: list[Box | None]) -> Box | None:
    if len(places) != 1:
        raise UnsupportedError("an operand's mask that is no rectangle", instruction="nc_matmul")
    return places[0]


def nc_transpose(data: Any, *, mask: Any = None, dtype: Any = None, engine: Any = unknown_engine, **_: Any) -> Any:
    """The transpose of a tile, free dimensions flattened: by VectorE up to 32 x 32, else by TensorE into PSUM."""
    flush()
    tile = source(data, "data")
    rows, columns = tile.shape[0], math.prod(tile.shape[1:])
    small = rows <= 32 and columns <= 32
    on_vector = engine is vector_engine or (engine is unknown_engine and small)
    places = boxes(mask, tile.shape)

    def emit(dst: Tensor) -> None:
        for box in places:
            part = cut(tile, box)
            part = part if part.ndim == 2 else part.reshape((part.shape[0], math.prod(part.shape[1:])))
            out = cut(dst, None if box is None else (box[1], box[0]))
            _transpose(out, part, on_vector)

    return Result((columns, rows), dtype_of(dtype, tile.kind), emit, SBUF if on_vector else PSUM)


def _transpose(out: NkiTensor, part: NkiTensor, on_vector: bool) -> None:
    core = state().core
    if on_vector:
        if out.dtype != part.dtype:
            part = in_sbuf(part, out.dtype)
        tensor.nc_transpose(out, part, vector_engine)
        return
    part = in_sbuf(part)
    if out.dtype == part.dtype and (core.generation != "v2" or part.dtype.kind == "float"):
        tensor.nc_transpose(out, part, tensor_engine)
        return
    from trnsim.nki.language.creation import shared_identity_matrix

    ones = shared_identity_matrix(128, part.dtype)  # another dtype: a product with the identity
    rows = part.shape[0]
    tensor.nc_matmul(out, part, ones[:rows, :rows], is_transpose=True, accumulate=False)


# -- copies ------------------------------------------------------------------------------------------------------------


def tensor_copy(
    src: Any, *, mask: Any = None, dtype: Any = None, engine: Any = unknown_engine, dst: Any = None, **_: Any
) -> Any:
    """A copy of a tile."""
    flush()
    tile = source(src, "src")
    out = result(
        tile.shape,
        dtype_of(dtype, tile.kind),
        lambda d, box: copy_to(d, cut(tile, box), _engine(engine, d, tile)),
        mask,
    )
    return _placed(out, dst)


def _engine(wanted: Any, dst: NkiTensor, src: Tensor) -> Any:
    """An engine that the copy can run on: the one asked for, if the hardware of this generation has it do that."""
    if wanted is gpsimd_engine and PSUM in (dst.storage.memory, src.memory):
        return None
    if wanted is scalar_engine and state().core.generation == "v2":
        return None
    return None if wanted is unknown_engine else wanted


def _placed(value: Result, dst: Any) -> Any:
    if dst is not None:
        assign(dst, value)
    return value


def tensor_copy_predicated(
    *, src: Any, dst: Any, predicate: Any, reverse_pred: bool = False, mask: Any = None, dtype: Any = None, **_: Any
) -> None:
    """``dst = src`` where ``predicate`` is not 0."""
    flush()
    del dtype
    drop_zeros(dst, reads=True)
    test = source(predicate, "predicate")
    value = source(src, "src") if isinstance(src, Tensor) else constant(src)
    for box in boxes(mask, dst.shape):
        where = truth_bytes(cut(test, box))
        if where.dtype not in ("uint8", "uint16", "uint32"):
            bits = state().core.ndarray(where.shape, "uint8", SBUF)
            vector.tensor_scalar(bits, where, ALU["not_equal"], 0.0)
            where = bits
        chosen: Any = cut(value, box) if isinstance(value, Tensor) else value
        if isinstance(chosen, NkiTensor) and chosen.dtype != dst.kind:
            chosen = in_sbuf(chosen, dst.kind)
        vector.tensor_copy_predicated(cut(dst, box), chosen, where, reverse_pred)


def memset(shape: Any, value: Any, dtype: Any, *, mask: Any = None, engine: Any = unknown_engine, **_: Any) -> Any:
    """A tile filled with a number."""
    flush()
    del engine
    sizes = tuple(int(n) for n in shape)
    return result(sizes, dtype_of(dtype, as_dtype("float32")), lambda dst, _b: fill(wrap(dst), value), mask)


def dma_copy(
    *, dst: Any, src: Any, mask: Any = None, dst_rmw_op: Any = None, oob_mode: Any = oob_mode.error,
    dge_mode: Any = dge_mode.unknown, **_: Any,
) -> None:  # fmt: skip
    """``dst = src`` by DMA; through an index tile it gathers or scatters, with ``dst_rmw_op`` it adds."""
    flush()
    drop_zeros(src, reads=True)
    drop_zeros(dst, reads=False)
    for box in boxes(mask, dst.shape):
        out, part = cut(dst, box), cut(src, box)
        if dst_rmw_op is not None:
            writes(out)
            will_read(out)
            will_write(out)
            dma.dma_compute(out, [out, part], as_alu_op(dst_rmw_op))
            continue
        with_bounds(out, part, oob_mode=oob_mode, dge_mode=_dge(dge_mode, out, part))


def _dge(mode: Any, dst: NkiTensor, src: NkiTensor) -> Any:
    name = str(getattr(mode, "name", mode))
    moved = dst.indirection is not None or src.indirection is not None
    if name == "none" and moved:
        return dge_mode.unknown
    return mode


def with_bounds(dst: NkiTensor, src: NkiTensor, **options: Any) -> None:
    """A transfer whose run-time indices out of bounds are NumPy's IndexError."""
    try:
        transfer(dst, src, **options)
    except HardwareError as error:
        if error.operand != "vector_offset":
            raise
        moved = dst.indirection or src.indirection
        assert moved is not None
        value = error.value if isinstance(error.value, int) else 0
        raise IndexError(
            f"index {value * moved.stride} is out of bounds for axis 0 with size {moved.limit * moved.stride}"
        ) from error


def dma_transpose(
    src: Any, *, axes: Any = None, mask: Any = None, dtype: Any = None, dge_mode: Any = dge_mode.unknown, **_: Any
) -> Any:
    """The transpose of a tensor in HBM or SBUF, by DMA."""
    flush()
    del mask
    view = src.checked() if not src.checks else cut(src, None)
    order = tuple(axes) if axes is not None else {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}[view.ndim]
    shape = tuple(view.shape[a] for a in order)
    mode = dge_mode
    kind = dtype_of(dtype, view.dtype)

    def emit(dst: Tensor) -> None:
        will_read(view)
        out = cut(dst, None)
        part = in_sbuf(view) if view.storage.memory == PSUM else view
        if out.dtype == part.dtype and out.storage.memory == SBUF:
            dma.dma_transpose(out, part, order, dge_mode=mode)
        else:
            stage = state().core.ndarray(shape, part.dtype, SBUF)
            dma.dma_transpose(stage, part, order, dge_mode=mode)
            copy_to(out, stage)

    return Result(shape, kind, emit)


# -- element by element ------------------------------------------------------------------------------------------------


def activation(
    op: Any, data: Any, *, bias: Any = None, scale: Any = 1.0, reduce_op: Any = None, reduce_res: Any = None,
    reduce_cmd: Any = reduce_cmd.idle, mask: Any = None, dtype: Any = None, **_: Any,
) -> Any:  # fmt: skip
    """``op(data * scale + bias)`` on ScalarE."""
    flush()
    tile = source(data, "data")
    function = as_activation(op)
    for name, operand, dtypes in (("bias", bias, ("float32", "float16", "bfloat16")), ("scale", scale, ("float32",))):
        if isinstance(operand, Tensor) and source(operand, name).kind not in dtypes:
            raise CompilerError(
                f"{name} of activation must be a vector of type {', '.join(dtypes)}", instruction="nisa.activation",
                operand=name, value=operand.kind,
            )  # fmt: skip
    if reduce_res is not None:
        drop_zeros(reduce_res, reads=False)
    reducing = as_alu_op(reduce_op) if reduce_op is not None else None

    def run(dst: NkiTensor, box: Box | None) -> None:
        part = cut(tile, box)
        factor = number_or_column(scale, box, part.shape[0])
        shift = number_or_column(bias, box, part.shape[0]) if isinstance(bias, Tensor) else constant(bias)
        if shift is not None and not isinstance(shift, NkiTensor) and state().core.generation == "v2":
            column = state().core.ndarray((part.shape[0], 1), "float32", SBUF)
            vector.memset(column, float(shift))
            shift = column
        total = None if reduce_res is None else span(reduce_res, box)
        scalar.activation(dst, function, part, shift, factor, reducing, total, reduce_cmd)

    return result(tile.shape, dtype_of(dtype, tile.kind), run, mask)


def activation_reduce(
    op: Any, data: Any, *, reduce_op: Any, reduce_res: Any, bias: Any = None, scale: Any = 1.0, mask: Any = None,
    dtype: Any = None, **_: Any,
) -> Any:  # fmt: skip
    """``activation`` whose sums along the free dimensions go to ``reduce_res``."""
    return activation(
        op, data, bias=bias, scale=scale, reduce_op=reduce_op, reduce_res=reduce_res,
        reduce_cmd=reduce_cmd.reset_reduce, mask=mask, dtype=dtype,
    )  # fmt: skip


def tensor_tensor(
    data1: Any, data2: Any, op: Any, *, dtype: Any = None, mask: Any = None, engine: Any = unknown_engine, **_: Any
) -> Any:
    """``op(data1, data2)``: element by element where a partition of both has as many, else sizes of 1 broadcast."""
    flush()
    x, y = source(data1, "data1"), source(data2, "data2")
    if x.shape[0] != y.shape[0]:
        raise CompilerError(
            "number of partitions (dimension 0 size of a tile) mismatch in parameters "
            f"(data1{list(x.shape)}, data2{list(y.shape)}) of 'tensor_tensor'; use broadcast_to",
            instruction="nisa.tensor_tensor",
        )
    alu = as_alu_op(op)
    kind = as_dtype("uint8") if alu.kind in ("compare", "logical") else promote(x.kind, y.kind)
    if x.shape != y.shape and math.prod(x.shape) == math.prod(y.shape):
        y = y.reshape(x.shape)
    shape = common_shape(x, y)
    runs_on = unknown_engine if engine is gpsimd_engine and PSUM in (x.memory, y.memory) else engine
    return result(
        shape, dtype_of(dtype, kind), lambda d, box: two_tiles(d, alu, cut(x, box), cut(y, box), runs_on), mask
    )


def tensor_scalar(
    data: Any, op0: Any, operand0: Any, reverse0: bool = False, op1: Any = None, operand1: Any = None,
    reverse1: bool = False, *, dtype: Any = None, mask: Any = None, engine: Any = unknown_engine, **_: Any,
) -> Any:  # fmt: skip
    """``(data op0 operand0) op1 operand1``; operands are numbers or one element a partition."""
    flush()
    tile = source(data, "data")
    first, second = as_alu_op(op0), as_alu_op(op1) if op1 is not None else None

    def run(dst: NkiTensor, box: Box | None) -> None:
        part = cut(tile, box)
        a = step_operand(first, operand0, box, part)
        b = step_operand(second, operand1, box, part) if second is not None else None
        runs_on = engine if engine is vector_engine else unknown_engine
        vector.tensor_scalar(dst, part, first, a, reverse0, second, b, reverse1, runs_on)

    kind = as_dtype("uint8") if (second or first).kind in ("compare", "logical") else tile.kind
    return result(tile.shape, dtype_of(dtype, kind), run, mask)


def scalar_tensor_tensor(
    *, data: Any, op0: Any, operand0: Any, op1: Any, operand1: Any, reverse0: bool = False, reverse1: bool = False,
    dtype: Any = None, mask: Any = None, **_: Any,
) -> Any:  # fmt: skip
    """``(data op0 operand0) op1 operand1``: a number or one element a partition, then a tile."""
    flush()
    x, y = source(data, "data"), source(operand1, "operand1")
    first, second = as_alu_op(op0), as_alu_op(op1)

    def run(dst: NkiTensor, box: Box | None) -> None:
        a, b = cut(x, box), cut(y, box)
        if a.storage.memory == b.storage.memory == PSUM:
            b = in_sbuf(b)
        factor = step_operand(first, operand0, box, a)
        vector.scalar_tensor_tensor(dst, a, first, factor, second, b, reverse0, reverse1)

    return result(x.shape, dtype_of(dtype, promote(x.kind, y.kind)), run, mask)


def reciprocal(data: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
    """``1 / data``."""
    flush()
    tile = source(data, "data")
    return result(
        tile.shape, dtype_of(dtype, tile.kind), lambda dst, box: _call(vector.reciprocal, dst, cut(tile, box)), mask
    )


def _call(function: Any, *args: Any, **named: Any) -> None:
    function(*args, **named)


_INTERNAL = {
    "builtin_custom_op", "tensor_copy_dynamic_dst", "tensor_copy_dynamic_src", "_tiled_offloaded_memcpy",
    "_tiled_offloaded_fma",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _INTERNAL:
        raise UnsupportedError(f"neuronxcc.nki.isa.{name} is not supported", instruction=name)
    raise releases.no_attribute("nki.isa", name, "0.1")


__all__ = [
    "activation", "activation_reduce", "affine_select", "bn_aggr", "bn_stats", "constants", "dge_mode", "dma_copy",
    "dma_engine", "dma_transpose", "dropout", "engine", "get_nc_sub_version", "get_nc_version", "gpsimd_engine", "iota",
    "local_gather", "matmul_perf_mode", "max8", "memset", "nc_find_index8", "nc_match_replace8", "nc_matmul",
    "nc_stream_shuffle", "nc_transpose", "nc_version", "oob_mode", "range_select", "reciprocal", "reduce_cmd",
    "scalar_engine", "scalar_tensor_tensor", "select_reduce", "sequence_bounds", "tensor_copy",
    "tensor_copy_predicated", "tensor_engine", "tensor_partition_reduce", "tensor_reduce", "tensor_scalar",
    "tensor_scalar_cumulative", "tensor_scalar_reduce", "tensor_tensor", "tensor_tensor_scan", "unknown_engine",
    "vector_engine",
]  # fmt: skip

_guard(globals(), "nki.isa", __all__, _today)
