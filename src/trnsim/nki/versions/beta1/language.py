"""``neuronxcc.nki.language`` of NKI 0.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from trnsim import releases
from trnsim.errors import CompilerError
from trnsim.isa import gpsimd
from trnsim.machine.form import HBM, PSUM
from trnsim.machine.regions import MemoryRegion
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.language.constants import tile_size
from trnsim.nki.language.loops import ds
from trnsim.nki.language.operands import broadcast_partition
from trnsim.nki.language.tokens import names_op
from trnsim.nki.versions.beta1 import constants, isa
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.across import all_reduce, loop_reduce
from trnsim.nki.versions.beta1.constants import sizeinbytes
from trnsim.nki.versions.beta1.creation import (
    ParDim,
    empty_like,
    full,
    hbm,
    ndarray,
    ones,
    rand,
    random_seed,
    shared_constant,
    shared_identity_matrix,
    zeros,
    zeros_like,
)
from trnsim.nki.versions.beta1.functions import BINARY, REDUCTIONS, UNARY, binary, from_language
from trnsim.nki.versions.beta1.grid import nc, num_programs, program_id, program_ndim, spmd_dim
from trnsim.nki.versions.beta1.index import arange, mgrid
from trnsim.nki.versions.beta1.loops import affine_range, sequential_range, static_range
from trnsim.nki.versions.beta1.moves import boxes, dtype_of, fill, in_sbuf, source, spread, wrap
from trnsim.nki.versions.beta1.rules import wrong_memory
from trnsim.nki.versions.beta1.tensor import Result, Tensor, drop_zeros, flush
from trnsim.numerics import as_dtype

float32, float16, bfloat16 = np.float32, np.float16, ml_dtypes.bfloat16
int8, int16, int32, uint8, uint16, uint32, bool_ = (
    np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32, np.bool_,
)  # fmt: skip
float8_e4m3, float8_e5m2, float8_e4m3fn = ml_dtypes.float8_e4m3, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn
tfloat32 = as_dtype("tfloat32")
sbuf, psum = MemoryRegion.sbuf, MemoryRegion.psum
private_hbm, shared_hbm = MemoryRegion.private_hbm, MemoryRegion.shared_hbm
par_dim = ParDim

add = BINARY["add"]
subtract = BINARY["subtract"]
multiply = BINARY["multiply"]
divide = BINARY["divide"]
maximum = BINARY["maximum"]
minimum = BINARY["minimum"]
power = BINARY["power"]
mod = BINARY["mod"]
fmod = BINARY["fmod"]
equal = BINARY["equal"]
not_equal = BINARY["not_equal"]
less = BINARY["less"]
less_equal = BINARY["less_equal"]
greater = BINARY["greater"]
greater_equal = BINARY["greater_equal"]
logical_and = BINARY["logical_and"]
logical_or = BINARY["logical_or"]
logical_xor = BINARY["logical_xor"]
bitwise_and = BINARY["bitwise_and"]
bitwise_or = BINARY["bitwise_or"]
bitwise_xor = BINARY["bitwise_xor"]
left_shift = BINARY["left_shift"]
right_shift = BINARY["right_shift"]
abs = UNARY["abs"]
square = UNARY["square"]
sign = UNARY["sign"]
exp = UNARY["exp"]
log = UNARY["log"]
sqrt = UNARY["sqrt"]
rsqrt = UNARY["rsqrt"]
tanh = UNARY["tanh"]
sigmoid = UNARY["sigmoid"]
relu = UNARY["relu"]
gelu = UNARY["gelu"]
gelu_dx = UNARY["gelu_dx"]
gelu_apprx_tanh = UNARY["gelu_apprx_tanh"]
gelu_apprx_sigmoid = UNARY["gelu_apprx_sigmoid"]
silu = UNARY["silu"]
silu_dx = UNARY["silu_dx"]
softplus = UNARY["softplus"]
mish = UNARY["mish"]
erf = UNARY["erf"]
erf_dx = UNARY["erf_dx"]
arctan = UNARY["arctan"]
sum = REDUCTIONS["sum"]
max = REDUCTIONS["max"]
min = REDUCTIONS["min"]
prod = REDUCTIONS["prod"]


class fp32:
    """Limits of float32."""

    min = -3.4028234663852886e38
    max = 3.4028234663852886e38


class bfp16:
    """Limits of bfloat16."""

    min = float(as_dtype("bfloat16").min)
    max = float(as_dtype("bfloat16").max)


def finfo(dtype: Any) -> Any:
    """Limits of a float format."""
    limits: Any = ml_dtypes.finfo
    return limits(as_dtype(dtype).numpy)


def static_cast(input_data: Any, dtype: Any) -> Any:
    """A NumPy array (or a tile) in another dtype."""
    if isinstance(input_data, Tensor):
        return copy(input_data, dtype=dtype)
    return np.asarray(input_data).astype(as_dtype(dtype).numpy)


# -- moving ------------------------------------------------------------------------------------------------------------


def _tile_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) > 1 else (*shape, 1)


def load(src: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """A tile in SBUF with the elements of a tensor in HBM."""
    flush()
    if not isinstance(src, Tensor):
        flush()  # says if the kernel is one of another release
        raise CompilerError("src must be a tensor", instruction="nl.load", operand="src", value=type(src).__name__)
    if src.memory != HBM:
        raise wrong_memory("src", "hbm", src)
    mask = src.mask if mask is None else mask
    places = boxes(mask, src.shape)

    def emit(dst: Tensor) -> None:
        target = dst
        if dst.shape != src.shape:
            target = Tensor(dst.tile.reshape(src.shape) if len(src.shape) > 1 else dst.tile, dst.shape, dst.kind)
        for box in places:
            isa.with_bounds(cut(target, box), cut(src, box))

    return Result(_tile_shape(src.shape), dtype_of(dtype, src.kind), emit)


def store(dst: Any, value: Any, *, mask: Any = None, **_: Any) -> None:
    """The elements of a tile (or a number) to a tensor in HBM; a result without a place has the dtype of ``dst``."""
    if isinstance(value, Result) and value.waits and isinstance(dst, Tensor) and value.place_in != PSUM:
        value.materialize(dst.kind)
    flush()
    if not isinstance(dst, Tensor):
        raise CompilerError("dst must be a tensor", instruction="nl.store", operand="dst", value=type(dst).__name__)
    if dst.memory != HBM:
        raise wrong_memory("dst", "hbm", dst)
    mask = dst.mask if mask is None else mask
    if not isinstance(value, Tensor):
        fill(dst, value, mask)
        return
    drop_zeros(value, reads=True)
    if value.size > dst.size and mask is None:
        raise CompilerError("value is larger than dst", instruction="nl.store", value=value.shape, limit=dst.shape)
    reference = dst.shape if dst.size >= value.size else value.shape
    for box in boxes(mask, reference):
        out, part = cut(dst, box), cut(value, box)
        if out.storage.memory == HBM and part.storage.memory == PSUM:
            part = in_sbuf(part)
        isa.with_bounds(out, part)


def copy(src: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """A copy of a tile."""
    return isa.tensor_copy(src, mask=mask, dtype=dtype)


copy = names_op("copy")(copy)


def load_transpose2d(src: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """The transpose of a tensor ``(M, N)`` in HBM."""
    return isa.dma_transpose(src, mask=mask, dtype=dtype)


def transpose(x: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
    """The transpose of a tile."""
    if isinstance(x, Tensor) and x.ndim > 2:
        raise CompilerError(
            f"parameter 'x{list(x.shape)}' of 'transpose' exceed max supported number of dimensions of 2",
            instruction="nl.transpose",
        )
    return isa.nc_transpose(x, dtype=dtype, mask=mask)


def matmul(x: Any, y: Any, *, transpose_x: bool = False, mask: Any = None, **_: Any) -> Any:
    """``x @ y`` into PSUM; with ``transpose_x`` ``x`` is the stationary operand as it is."""
    if not transpose_x:
        flush()
        x = wrap(in_sbuf(isa.nc_transpose(x, engine=isa.tensor_engine).tile))
    return isa.nc_matmul(x, y, mask=mask)


def broadcast_to(src: Any, *, shape: Sequence[int], **_: Any) -> Any:
    """A tile repeated to ``shape``."""
    flush()
    tile = source(src, "src")
    sizes = tuple(int(n) for n in shape)
    view = tile.checked()
    if view.shape[0] != sizes[0]:
        view = broadcast_partition(view, sizes[0])
    return wrap(spread(view, sizes))


def expand_dims(data: Any, axis: int) -> Any:
    """A new dimension of size 1."""
    flush()
    return data.expand_dims(axis)


def gather_flattened(data: Any, indices: Any, *, mask: Any = None, dtype: Any = None, **_: Any) -> Any:
    """``result[p, i] = data[p, indices[p, i]]``."""
    flush()
    tile, where = source(data, "data"), source(indices, "indices")
    places = boxes(mask, where.shape)

    def emit(dst: Tensor) -> None:
        for box in places:
            index = in_sbuf(cut(where, box))
            index = index if index.dtype == "uint32" else _words(index)
            rows = cut(tile, None if box is None else box[:1])
            gpsimd.nc_n_gather(cut(dst, box), in_sbuf(rows), index)

    return Result(where.shape, dtype_of(dtype, tile.kind), emit)


def _words(index: NkiTensor) -> NkiTensor:
    return index.view("uint32") if index.dtype.itemsize == 4 else in_sbuf(index, "uint32")


def atomic_rmw(dst: Any, value: Any, op: Any, *, mask: Any = None, **_: Any) -> None:
    """``dst = op(dst, value)`` in HBM, through an index tile too."""
    isa.dma_copy(dst=dst, src=value, dst_rmw_op=op, mask=mask)


def device_print(prefix: Any, x: Any, *, mask: Any = None, **_: Any) -> None:
    """Print a tensor."""
    from trnsim.nki import language

    flush()
    for box in boxes(mask, x.shape):
        language.device_print(prefix, cut(x, box))


# -- more functions ----------------------------------------------------------------------------------------------------

sin, cos, tan = (from_language(n, o) for n, o in (("sin", "sin"), ("cos", None), ("tan", None)))
ceil, floor, trunc = (from_language(n) for n in ("ceil", "floor", "trunc"))
mean, var, softmax, rms_norm = (from_language(n) for n in ("mean", "var", "softmax", "rms_norm"))
all = from_language("all")
where = from_language("where")


def reciprocal(x: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
    """``1 / x`` on VectorE."""
    return isa.reciprocal(x, dtype=dtype, mask=mask)


reciprocal = names_op("reciprocal")(reciprocal)


def negative(x: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
    """``-x``."""
    return binary("multiply", x, -1, dtype, mask)


negative = names_op("negative")(negative)


def invert(x: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
    """All bits of integers flipped."""
    return binary("bitwise_xor", x, -1, dtype, mask)


invert = names_op("invert")(invert)


def logical_not(x: Any, *, dtype: Any = bool, mask: Any = None, **_: Any) -> Any:
    """1 where x is 0."""
    return binary("equal", x, 0, dtype, mask)


logical_not = names_op("logical_not")(logical_not)


def dropout(x: Any, rate: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
    """``x`` with elements set to 0 with probability ``rate``."""
    return isa.dropout(x, rate, dtype=dtype, mask=mask)


# -- tiles of a multiplication ----------------------------------------------------------------------------------------


def gemm_grid() -> Any:
    """Index expressions of the moving operand of a multiplication."""
    return mgrid[0:128, 0:512]


def gemm_stationary_grid() -> Any:
    """Index expressions of the stationary operand of a multiplication."""
    return mgrid[0:128, 0:128]


__path__: list[str] = []  # neuronxcc.nki.language.constants is imported as a module

__all__ = [
    "abs",
    "add",
    "affine_range",
    "all",
    "all_reduce",
    "arange",
    "arctan",
    "atomic_rmw",
    "bfloat16",
    "bfp16",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bool_",
    "broadcast_to",
    "ceil",
    "constants",
    "copy",
    "cos",
    "device_print",
    "divide",
    "dropout",
    "ds",
    "empty_like",
    "equal",
    "erf",
    "erf_dx",
    "exp",
    "expand_dims",
    "finfo",
    "float8_e4m3",
    "float8_e4m3fn",
    "float8_e5m2",
    "float16",
    "float32",
    "floor",
    "fmod",
    "fp32",
    "full",
    "gather_flattened",
    "gelu",
    "gelu_apprx_sigmoid",
    "gelu_apprx_tanh",
    "gelu_dx",
    "gemm_grid",
    "gemm_stationary_grid",
    "greater",
    "greater_equal",
    "hbm",
    "int8",
    "int16",
    "int32",
    "invert",
    "left_shift",
    "less",
    "less_equal",
    "load",
    "load_transpose2d",
    "log",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "loop_reduce",
    "matmul",
    "max",
    "maximum",
    "mean",
    "mgrid",
    "min",
    "minimum",
    "mish",
    "mod",
    "multiply",
    "nc",
    "ndarray",
    "negative",
    "not_equal",
    "num_programs",
    "ones",
    "par_dim",
    "power",
    "private_hbm",
    "prod",
    "program_id",
    "program_ndim",
    "psum",
    "rand",
    "random_seed",
    "reciprocal",
    "relu",
    "right_shift",
    "rms_norm",
    "rsqrt",
    "sbuf",
    "sequential_range",
    "shared_constant",
    "shared_hbm",
    "shared_identity_matrix",
    "sigmoid",
    "sign",
    "silu",
    "silu_dx",
    "sin",
    "sizeinbytes",
    "softmax",
    "softplus",
    "spmd_dim",
    "sqrt",
    "square",
    "static_cast",
    "static_range",
    "store",
    "subtract",
    "sum",
    "tan",
    "tanh",
    "tfloat32",
    "tile_size",
    "transpose",
    "trunc",
    "uint8",
    "uint16",
    "uint32",
    "var",
    "where",
    "zeros",
    "zeros_like",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    raise releases.no_attribute("nki.language", name, "0.1")
