"""TensorE: a systolic array of 128 x 128 processing elements.

Documented in the Trainium architecture guides and the NKI reference. One ``nc_matmul`` loads the stationary operand
into the array and streams the moving operand through it into PSUM, with float32 products and sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware.timing_constants import TensorTiming, Timing
from trnsim.isa.constants import engine as Engine
from trnsim.isa.constants import matmul_perf_mode
from trnsim.isa.costs import streamed, work
from trnsim.isa.instruction import (
    In,
    Out,
    Update,
    instruction,
    require,
    require_memory,
    require_on_chip,
    without,
)
from trnsim.isa.work import Work
from trnsim.machine import core as machine
from trnsim.machine.form import PSUM, SBUF, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass
from trnsim.numerics import mx
from trnsim.numerics.formats import float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.isa.instruction import NkiInstruction
    from trnsim.machine.core import Core
    from trnsim.machine.storage import Storage

_MATMUL_DTYPES = ("float8_e4m3", "float8_e5m2", "float8_e3m4", "bfloat16", "float16", "tfloat32", "float32")
_WIDE = ("tfloat32", "float32")
_INDIRECT_DTYPES = ("float16", "bfloat16", "float8_e4m3", "float8_e5m2", "float8_e4m3fn")
_FP8 = ("float8_e4m3", "float8_e5m2", "float8_e3m4")


def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, int] = (),  # type: ignore[assignment]
    tile_size: tuple[int, int] = (),  # type: ignore[assignment]
    perf_mode: Any = matmul_perf_mode.none,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = stationary.T @ moving`` on TensorE; see ``_matmul`` for shapes and limits.

    Args:
        accumulate: False overwrites ``dst``, True adds to it; None overwrites what no matmul has written yet and adds
            to the rest.
    """
    core = machine.current()
    if accumulate is not None and accumulate.__class__ is not bool:
        accumulate = _flag(accumulate, "nc_matmul")
    if dst.__class__ is not NkiTensor or accumulate is False:
        adds = False
        if dst.__class__ is NkiTensor and dst.memory == PSUM:
            core.accumulates(dst, False)
    else:
        adds = core.accumulates(dst, accumulate)
    function = _matmul_add if adds else _matmul
    return function(
        dst, stationary, moving, is_stationary_onezero, is_moving_onezero, is_transpose, tile_position, tile_size,
        perf_mode, name,
    )  # fmt: skip


def _flag(value: Any, instruction: str) -> bool:
    """``accumulate`` as a truth value; kernels give comparisons of loop indices, NumPy's too."""
    if not isinstance(value, (bool, int, np.bool_, np.integer)):
        raise CompilerError(
            "accumulate is True, False or None",
            instruction=instruction,
            operand="accumulate",
            value=value,
            limit="True, False or None",
            generation=machine.current().generation,
        )
    return bool(value)


def _matmul_rules(
    dst: Out,
    stationary: In,
    moving: In,
    is_stationary_onezero: bool,
    is_moving_onezero: bool,
    is_transpose: bool,
    tile_position: Any,
    tile_size: Any,
    perf_mode: Any,
) -> None:
    del is_stationary_onezero, is_moving_onezero
    generation = machine.current().generation
    require_memory(SBUF, stationary=stationary, moving=moving)
    require_memory(PSUM, dst=dst)
    mode = str(getattr(perf_mode, "value", perf_mode))
    double_row = mode.startswith("double_row")
    require(double_row or mode == "none", "no such performance mode", "perf_mode", mode, ("none", "double_row"))
    release = machine.current().launch.release
    ocp = generation == "v4" and not release.before("0.4")
    allowed = _MATMUL_DTYPES + (("float8_e4m3fn",) if ocp else ())
    for operand, form in (("stationary", stationary), ("moving", moving)):
        transposes = is_transpose and form.dtype.kind in ("int", "uint")
        require(form.dtype in allowed or transposes, "TensorE does not take this dtype", operand, form.dtype, allowed)
    pair = (stationary.dtype, moving.dtype)
    require(
        (stationary.dtype in _WIDE) == (moving.dtype in _WIDE),
        "float32 and tfloat32 multiply only with each other",
        "moving",
        pair,
        "both or neither",
    )
    require(
        not ({"float8_e4m3", "float8_e4m3fn"} <= set(pair)),
        "float8_e4m3 and float8_e4m3fn cannot mix",
        "moving",
        pair,
        "one",
    )
    if is_transpose and generation != "v2":
        require(
            dst.dtype in {stationary.dtype, moving.dtype, "float32"},
            "a transpose keeps its dtype",
            "dst",
            dst.dtype,
            pair,
        )
    else:
        outputs = ("float32", "bfloat16") if generation == "v4" else ("float32",)
        keeps = is_transpose and dst.dtype == moving.dtype
        require(dst.dtype in outputs or keeps, "nc_matmul writes only these dtypes", "dst", dst.dtype, outputs)
    rows, columns = stationary.partitions, stationary.elements
    n = moving.elements
    if double_row:
        require(generation != "v2", "double_row needs NeuronCore-v3", "perf_mode", "double_row", "v3, v4")
        fp8 = (*_FP8, "float8_e4m3fn")
        for operand, form in (("stationary", stationary), ("moving", moving)):
            require(form.dtype in fp8, "double_row multiplies 8-bit floats", operand, form.dtype, fp8)
            require(
                len(form.shape) >= 3 and form.shape[1] == 2,
                "double_row operands have shape [K, 2, ...]",
                operand,
                form.shape,
                "(K, 2, ...)",
            )
        columns, n = columns // 2, n // 2
    for operand, form in (("stationary", stationary), ("moving", moving)):
        if form.reach:
            allowed = _INDIRECT_DTYPES
            require(form.dtype in allowed, "no tensor indirection with this dtype", operand, form.dtype, allowed)
    if is_transpose:
        require(not moving.reach, "a transpose cannot gather moving", "moving", "tensor indirection", "a plain tensor")
    _forbid_tiling(tile_position, dst, stationary, moving)
    row_limit, column_limit = 128, 128
    if bool(tile_position) != bool(tile_size):
        raise CompilerError(
            "tile_position and tile_size go together", operand="tile_size", value=tile_size, limit=tile_position
        )
    _check_pairs(tile_position, tile_size)
    if tile_size:
        row_limit, column_limit = (int(x) for x in tile_size)
        sizes = (64, 128) if generation == "v2" else (32, 64, 128)
        for what, size, at in zip(("row", "column"), tile_size, tile_position, strict=True):
            require(int(size) in sizes, f"{what} tile size", "tile_size", size, sizes)
            require(
                int(at) % int(size) == 0 and int(at) >= 0 and int(at) + int(size) <= 128,
                f"start {what} must be a multiple of the tile size inside the array",
                "tile_position",
                at,
                size,
            )
        require(
            not (double_row and column_limit != 128), "double_row excludes column tiling", "tile_size", tile_size, 128
        )
    require(rows <= row_limit, f"partition size {rows} exceeds {row_limit}", "stationary", rows, row_limit)
    require(columns <= column_limit, f"free size {columns} exceeds {column_limit}", "stationary", columns, column_limit)
    require(
        moving.partitions == rows,
        "stationary and moving must have the same partitions (the contraction)",
        "moving",
        moving.shape,
        stationary.shape,
    )
    wide = dst.dtype == "bfloat16" and not release.before("0.5")
    most = 512 if generation != "v4" else (8192 if wide else 4096)
    require(n <= most, f"free size {n} exceeds {most}", "moving", n, most)
    require(
        dst.partitions == columns and dst.elements == n,
        "dst must be (free size of stationary, free size of moving)",
        "dst",
        dst.shape,
        (columns, n),
    )
    bank = 2048
    if generation != "v4":
        require(
            dst.phase + dst.span <= bank,
            "the result must lie in one PSUM bank",
            "dst",
            f"{dst.phase + dst.span} bytes",
            bank,
        )


def _check_pairs(tile_position: Any, tile_size: Any) -> None:
    for name, pair in (("tile_position", tile_position), ("tile_size", tile_size)):
        if pair and len(pair) != 2:
            raise CompilerError(f"{name} is (row, column)", operand=name, value=pair, limit="two integers")


def _forbid_tiling(tile_position: Any, *forms: Form) -> None:
    """Tensor indirection works on the whole array only."""
    if any(form.reach for form in forms) and tile_position:
        require(
            tuple(tile_position) == (0, 0), "tensor indirection excludes tiling", "tile_position", tile_position, (0, 0)
        )


@instruction("nki.isa.nc_matmul", engines="tensor", indirect="dst stationary moving")
def _matmul(
    dst: Out,
    stationary: In,
    moving: In,
    is_stationary_onezero: bool,
    is_moving_onezero: bool,
    is_transpose: bool,
    tile_position: Any,
    tile_size: Any,
    perf_mode: Any,
) -> None:
    """dst[m, n] = sum over k of stationary[k, m] * moving[k, n], overwriting ``dst``."""
    _matmul_rules(
        dst, stationary, moving, is_stationary_onezero, is_moving_onezero, is_transpose, tile_position, tile_size,
        perf_mode,
    )  # fmt: skip


@instruction("nki.isa.nc_matmul.accumulate", engines="tensor", indirect="dst stationary moving")
def _matmul_add(
    dst: Update,
    stationary: In,
    moving: In,
    is_stationary_onezero: bool,
    is_moving_onezero: bool,
    is_transpose: bool,
    tile_position: Any,
    tile_size: Any,
    perf_mode: Any,
) -> None:
    """As ``nc_matmul``, adding to what ``dst`` holds."""
    _matmul_rules(
        dst, stationary, moving, is_stationary_onezero, is_moving_onezero, is_transpose, tile_position, tile_size,
        perf_mode,
    )  # fmt: skip


def _operands(stationary: NkiTensor, moving: NkiTensor, perf_mode: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both operands as float32 matrices ``(contraction, free)``."""
    a, b = stationary.as_float32_shared(), moving.as_float32_shared()
    if str(getattr(perf_mode, "value", perf_mode)).startswith("double_row"):
        k = a.shape[0]
        a = a.reshape(k, 2, -1).transpose(1, 0, 2).reshape(2 * k, -1)
        b = b.reshape(k, 2, -1).transpose(1, 0, 2).reshape(2 * k, -1)
    if a.ndim != 2:
        a = a.reshape(a.shape[0], -1)
    if b.ndim != 2:
        b = b.reshape(b.shape[0], -1)
    return a, b


def _product(stationary: NkiTensor, moving: NkiTensor, is_transpose: bool, perf_mode: Any) -> NDArray[Any]:
    if is_transpose:
        return _transpose_product(stationary, moving)
    a, b = _operands(stationary, moving, perf_mode)
    product: NDArray[Any] = np.matmul(a.T, b)
    return product


# A chain of this many products is multiplied at the latest.
_CHAIN_LIMIT = 32


class _Chain:
    """Products accumulating into one tile of PSUM, put off so that they become one multiplication.

    ``sum(a[i].T @ b[i])`` is one product of the operands stacked along the contraction, which a BLAS does at full speed
    where each small product would not. Whoever reads the tile or writes an operand flushes the chain first.
    """

    __slots__ = ("add", "core", "dst", "left", "pinned", "right")

    def __init__(self, core: Core, dst: NkiTensor, add: bool) -> None:
        self.core, self.dst, self.add = core, dst, add
        self.left: list[NkiTensor] = []
        self.right: list[NkiTensor] = []
        self.pinned: list[Storage] = []

    def takes(self, dst: NkiTensor, stationary: NkiTensor) -> bool:
        """True if a product of ``stationary`` into ``dst`` continues this chain."""
        mine = self.dst
        same = dst.offset == mine.offset and dst.shape == mine.shape and dst.strides == mine.strides
        return same and stationary.shape == self.left[0].shape

    def append(self, stationary: NkiTensor, moving: NkiTensor) -> None:
        self.left.append(stationary)
        self.right.append(moving)
        for storage in (stationary.storage, moving.storage):
            if storage.pins is not self:
                if storage.pins is not None:
                    storage.pins.flush()
                storage.pins = self
                self.pinned.append(storage)

    def flush(self) -> None:
        dst = self.dst
        dst.storage.chain = None
        for storage in self.pinned:
            if storage.pins is self:
                storage.pins = None
        a, b = _stack(self.left), self._stacked_moving()
        view = dst.array()
        if view.ndim == 2 and not self.add:
            np.matmul(a.T, b, out=view)
            return
        product = np.matmul(a.T, b).reshape(dst.shape)
        if self.add:
            np.add(view, product, out=view)
        else:
            view[...] = product

    def _stacked_moving(self) -> NDArray[np.float32]:
        """The moving operands stacked and contiguous; kept, since the next chain often multiplies the same ones.

        The storages are kept with them, so that what lies there is still what was copied unless it was written since.
        """
        parts = self.right
        if len(parts) == 1:
            return _stack(parts)
        key = [(t.offset, t.shape, t.strides, t.dtype) for t in parts]
        storages = [t.storage for t in parts]
        written = [s.writers for s in storages]
        kept = self.core.state.get("stacked moving")
        if (
            kept is not None
            and kept[0] == key
            and kept[2] == written
            and all(x is y for x, y in zip(kept[1], storages, strict=True))
        ):
            return kept[3]  # type: ignore[no-any-return]
        source = _stack(parts)
        if kept is not None and kept[3].shape == source.shape:
            stacked: NDArray[np.float32] = kept[3]
            np.copyto(stacked, source)
        else:
            stacked = np.array(source, order="C")
        self.core.state["stacked moving"] = (key, storages, written, stacked)
        return stacked


def _stack(parts: list[NkiTensor]) -> NDArray[np.float32]:
    """The parts stacked along the contraction, rows interleaved; a view of the storage where its layout allows."""
    first = parts[0]
    count = len(parts)
    if count > 1 and len(first.shape) == 2:
        step = parts[1].offset - first.offset
        if first.strides[0] == step * count and all(
            t.storage is first.storage
            and t.offset == first.offset + i * step
            and t.strides == first.strides
            and t.dtype is first.dtype
            for i, t in enumerate(parts)
        ):
            shape = (first.shape[0] * count, first.shape[1])
            strides = (step, first.strides[1])
            return NkiTensor(shape, first.dtype, first.storage, strides, first.offset).as_float32_shared()
    arrays = [t.as_float32_shared() for t in parts]
    arrays = [x if x.ndim == 2 else x.reshape(x.shape[0], -1) for x in arrays]
    if count == 1:
        return arrays[0]
    return np.stack(arrays, axis=1).reshape(arrays[0].shape[0] * count, -1)


def _multiply_into(dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, perf_mode: Any, add: bool) -> None:
    """The common case, float32 PSUM: put the product off, as part of the chain that accumulates into ``dst``."""
    if str(getattr(perf_mode, "value", perf_mode)) != "none":
        a, b = _operands(stationary, moving, perf_mode)
        view = dst.array()
        product = np.matmul(a.T, b).reshape(dst.shape)
        view[...] = view + product if add else product
        return
    storage = dst.storage
    chain = storage.chain
    if chain is not None and not (add and isinstance(chain, _Chain) and chain.takes(dst, stationary)):
        chain.flush()
        chain = None
    core = machine.current()
    if chain is None:
        chain = _Chain(core, dst, add)
        storage.chain = chain
    assert isinstance(chain, _Chain)
    chain.append(stationary, moving)
    aliased = storage.arena is not None or stationary.storage.arena is not None or moving.storage.arena is not None
    if storage.chain is chain and (aliased or len(chain.left) >= _CHAIN_LIMIT or not core.numeric):
        chain.flush()


def _transpose_product(stationary: NkiTensor, moving: NkiTensor) -> NDArray[Any]:
    """Transpose mode passes data through bit for bit where the other operand is a permutation of ones and zeros."""
    a = stationary.array().reshape(stationary.shape[0], -1)
    b = moving.array().reshape(moving.shape[0], -1)
    if machine.current().generation != "v2":
        ones = moving.as_float32().reshape(b.shape)
        if _selects(ones):
            source = np.argmax(ones, axis=0)
            return np.asarray(a.T[:, source])
        ones = stationary.as_float32().reshape(a.shape)
        if _selects(ones):
            return np.asarray(b[np.argmax(ones, axis=0)])
    return np.asarray(np.matmul(stationary.as_float32().reshape(a.shape).T, moving.as_float32().reshape(b.shape)))


def _selects(matrix: NDArray[np.float32]) -> bool:
    return bool(((matrix == 0) | (matrix == 1)).all() and (matrix.sum(axis=0) == 1).all())


@_matmul.meaning
def _(
    dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, is_transpose: bool, perf_mode: Any
) -> NDArray[Any] | None:
    if dst.dtype is float32 and not is_transpose:
        _multiply_into(dst, stationary, moving, perf_mode, add=False)
        return None
    product = _product(stationary, moving, is_transpose, perf_mode)
    if is_transpose and product.dtype == np.float32 and dst.dtype != "float32":
        return product.astype(dst.dtype.numpy)
    return product


@_matmul_add.meaning
def _(
    dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, is_transpose: bool, perf_mode: Any
) -> NDArray[Any] | None:
    if dst.dtype is float32 and not is_transpose:
        _multiply_into(dst, stationary, moving, perf_mode, add=True)
        return None
    product = _product(stationary, moving, is_transpose, perf_mode)
    return (dst.as_float32() + product.astype(np.float32).reshape(dst.shape)).astype(np.float32)


@_matmul.cost
@_matmul_add.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    """Each pass is LoadStationary (behind the multiply before it) and MultiplyMoving of max(N, 64) cycles.

    float32 takes two passes of two cycles a row, one if an operand holds ones and zeros only. Tiles of the array work
    side by side, so an instruction that uses a share of it delays the next by that share.
    """
    e = t.tensor
    stationary, moving = k.operand("stationary"), k.operand("moving")
    double = str(k.attributes["perf_mode"]).startswith("double_row")
    columns, rows = (f.elements // (2 if double else 1) for f in (stationary, moving))
    wide = stationary.dtype == "float32" or moving.dtype == "float32"
    passes, cycles = (e.float32_passes, e.float32_cycles_per_row) if wide else (1, 1)
    if wide and (k.attributes["is_stationary_onezero"] or k.attributes["is_moving_onezero"]):
        passes = max(1, passes // 2)
    if wide and k.attributes["is_transpose"]:
        passes = e.float32_transpose_passes
    share = 1.0
    if k.attributes["tile_size"]:
        row_size, column_size = k.attributes["tile_size"]
        share = row_size * column_size / 128**2
    flops = 0 if k.attributes["is_transpose"] else 2 * stationary.size * rows
    return _passes(t, k, passes, columns, rows, cycles, share, flops)


def _passes(
    t: Timing, k: InstructionClass, passes: int, columns: int, rows: int, cycles: int, share: float, flops: int
) -> tuple[Work, ...]:
    e = t.tensor
    load = e.load(columns, _load_times(e, cycles, passes))
    multiply = e.multiply(rows, cycles_per_row=cycles)
    busy = round(multiply * share)
    left = tuple(i for i, o in enumerate(k.operands) if o.name.startswith("stationary"))
    right = tuple(i for i, o in enumerate(k.operands) if o.name.startswith("moving"))
    pieces: list[Work] = []
    for index in range(passes):
        pieces += [
            _load_work(e, load, left),
            Work("tensor", "MATMUL", busy, multiply + e.tail_ps, right, (0,), flops=0 if index else flops),
        ]
    return tuple(pieces)


def _load_times(e: TensorTiming, cycles: int, passes: int) -> int:
    """How many times longer a load takes than that of a 16-bit matrix."""
    if cycles == 1:
        return 1
    return e.load_float32_transpose if passes == 1 else e.load_float32


def _load_work(e: TensorTiming, load: int, reads: tuple[int, ...]) -> Work:
    """LoadStationary: what it delays its multiply when nothing hides it, and how long it is seen to last."""
    return Work("tensor", "LDWEIGHTS", max(0, load - e.load_lead_ps), load + e.load_tail_ps, reads, background=True)


@instruction("nki.isa.nc_transpose", engines="tensor vector")
def nc_transpose(dst: Out, data: In, engine: Any = Engine.unknown) -> tuple[str, ...]:
    """dst[f, p] = data[p, f], the free dimensions of ``data`` flattened; bit for bit from NeuronCore-v3 on.

    TensorE transposes up to 128 x 128 from SBUF into PSUM, VectorE up to 32 x 32 anywhere on chip.
    """
    del engine
    generation = machine.current().generation
    require_on_chip(dst=dst, data=data)
    require(
        dst.dtype == data.dtype or (data.dtype == "float32" and dst.dtype == "bfloat16"),
        "dst must have the dtype of data",
        "dst",
        dst.dtype,
        data.dtype,
    )
    p, f = data.partitions, data.elements
    require(p <= 128 and f <= 128, "TensorE transposes at most 128 x 128", "data", data.shape, (128, 128))
    require(
        dst.partitions == f and dst.elements == p,
        "dst must be (free size, partitions) of data",
        "dst",
        dst.shape,
        (f, p),
    )
    engines: tuple[str, ...] = ("tensor", "vector")
    if p > 32 or f > 32:
        engines = without(engines, "vector")
    elif dst.memory == SBUF or data.memory == PSUM:
        engines = ("vector",)
    else:
        engines = ("vector", "tensor")
    if dst.memory != PSUM or data.memory != SBUF:
        engines = without(engines, "tensor")
        require(
            bool(engines),
            "a transpose of more than 32 x 32 runs on TensorE, from SBUF into PSUM",
            "dst",
            f"{data.memory} to {dst.memory}",
            "sbuf to psum",
        )
    if generation == "v2" and data.dtype.kind != "float":
        engines = without(engines, "tensor")
    return engines


@nc_transpose.meaning
def _(dst: NkiTensor, data: NkiTensor) -> NDArray[Any]:
    values = data.array().reshape(data.shape[0], -1).T
    if dst.dtype != data.dtype:
        return data.as_float32().reshape(data.shape[0], -1).T
    return values


@nc_transpose.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    """On TensorE the data are stationary and an identity moves: a row for each partition of ``data``."""
    data = k.operand("data")
    if engine == "vector":
        return (work(t, k, engine, streamed(t, k, engine), opcode="TRANSPOSE"),)
    e = t.tensor
    wide = data.dtype.itemsize == 4
    passes, cycles = (e.float32_transpose_passes, e.float32_cycles_per_row) if wide else (1, 1)
    load = e.load(data.elements, _load_times(e, cycles, passes))
    multiply = e.multiply(data.partitions, cycles_per_row=cycles)
    pieces: list[Work] = []
    for _ in range(passes):
        pieces += [
            _load_work(e, load, (1,)),
            Work("tensor", "MATMUL", multiply, multiply + e.tail_ps, (), (0,)),
        ]
    return tuple(pieces)


_X4 = ("float8_e5m2_x4", "float8_e4m3fn_x4", "float4_e2m1fn_x4")
_SCALES = ("float8_e8m0fnu", "uint8")


def nc_matmul_mx(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    stationary_scale: NkiTensor,
    moving_scale: NkiTensor,
    tile_position: Any = None,
    tile_size: Any = None,
    accumulate: bool | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = dequantize(stationary).T @ dequantize(moving)`` of MXFP8 or MXFP4 operands (NeuronCore-v4)."""
    core = machine.current()
    if accumulate is not None:
        accumulate = _flag(accumulate, "nc_matmul_mx")
    adds = dst.__class__ is NkiTensor and dst.memory == PSUM and core.accumulates(dst, accumulate)
    function = _matmul_mx_add if adds else _matmul_mx
    _check_pair("stationary", stationary, stationary_scale)
    _check_pair("moving", moving, moving_scale)
    return function(dst, stationary, moving, stationary_scale, moving_scale, tile_position or (), tile_size or (), name)


def _check_pair(name: str, data: Any, scale: Any) -> None:
    """MX data and their scales are gathered by the same index, or neither is."""
    moved = [
        None if not isinstance(x, NkiTensor) or x.indirection is None else x.indirection.index for x in (data, scale)
    ]
    first, last = moved
    if first is None or last is None:
        same = first is last
    else:
        same = first.storage is last.storage and first.offset == last.offset and first.form is last.form
    if not same:
        raise HardwareError(
            f"{name} and {name}_scale must use the same index, or none",
            instruction="nc_matmul_mx",
            operand=f"{name}_scale",
            value="no index" if last is None else repr(last),
            limit="no index" if first is None else repr(first),
            generation=machine.current().generation,
        )


def _mx_rules(
    dst: Out, stationary: In, moving: In, stationary_scale: In, moving_scale: In, tile_position: Any, tile_size: Any
) -> None:
    require_memory(
        SBUF, stationary=stationary, moving=moving, stationary_scale=stationary_scale, moving_scale=moving_scale
    )
    require_memory(PSUM, dst=dst)
    for name, form in (("stationary", stationary), ("moving", moving)):
        require(form.dtype in _X4, "operands are packed x4 formats", name, form.dtype, _X4)
    for name, form in (("stationary_scale", stationary_scale), ("moving_scale", moving_scale)):
        require(form.dtype in _SCALES, "scales are float8_e8m0fnu or uint8", name, form.dtype, _SCALES)
    require(
        dst.dtype in ("float32", "bfloat16"), "dst is float32 or bfloat16", "dst", dst.dtype, ("float32", "bfloat16")
    )
    rows = stationary.partitions
    limit = 128
    _forbid_tiling(tile_position, dst, stationary, moving)
    if bool(tile_position) != bool(tile_size):
        raise CompilerError(
            "tile_position and tile_size go together", operand="tile_size", value=tile_size, limit=tile_position
        )
    _check_pairs(tile_position, tile_size)
    if tile_size:
        limit, row = int(tile_size[0]), int(tile_position[0])
        require(int(tile_size[1]) == 128, "MX has row tiling only", "tile_size", tile_size, "128 columns")
        require(int(tile_position[1]) == 0, "MX has row tiling only", "tile_position", tile_position, "column 0")
        require(limit in (32, 64, 128), "row tile size", "tile_size", tile_size, (32, 64, 128))
        require(
            row % limit == 0 and 0 <= row <= 128 - limit,
            "start row must be a multiple of the tile size inside the array",
            "tile_position",
            tile_position,
            limit,
        )
    require(rows % 32 == 0 and rows <= limit, "partitions must be a multiple of 32", "stationary", rows, limit)
    require(moving.partitions == rows, "operands differ in partitions", "moving", moving.partitions, rows)
    m, n = stationary.elements, moving.elements
    require(m % 2 == 0 and m <= 128, "free size must be even and at most 128", "stationary", m, 128)
    most = 8192 if dst.dtype == "bfloat16" else 4096
    require(n <= most, f"free size {n} exceeds {most}", "moving", n, most)
    require(dst.partitions == m and dst.elements == n, "dst must be (M, N)", "dst", dst.shape, (m, n))
    for name, form, data in (
        ("stationary_scale", stationary_scale, stationary),
        ("moving_scale", moving_scale, moving),
    ):
        need = rows // 8 if rows <= 32 else rows - 28
        require(
            form.partitions >= need and form.elements == data.elements,
            "scales need the data's free size, and 4 partitions in each quadrant",
            name,
            form.shape,
            (need, data.elements),
        )


@instruction(
    "nki.isa.nc_matmul_mx",
    engines="tensor",
    generations="v4",
    indirect="dst stationary moving stationary_scale moving_scale",
)
def _matmul_mx(
    dst: Out, stationary: In, moving: In, stationary_scale: In, moving_scale: In, tile_position: Any, tile_size: Any
) -> None:
    """Overwriting form of ``nc_matmul_mx``."""
    _mx_rules(dst, stationary, moving, stationary_scale, moving_scale, tile_position, tile_size)


@instruction(
    "nki.isa.nc_matmul_mx.accumulate",
    engines="tensor",
    generations="v4",
    indirect="dst stationary moving stationary_scale moving_scale",
)
def _matmul_mx_add(
    dst: Update, stationary: In, moving: In, stationary_scale: In, moving_scale: In, tile_position: Any, tile_size: Any
) -> None:
    """As ``nc_matmul_mx``, adding to what ``dst`` holds."""
    _mx_rules(dst, stationary, moving, stationary_scale, moving_scale, tile_position, tile_size)


def _dequantized(data: NkiTensor, scale: NkiTensor) -> NDArray[np.float32]:
    """MX operand as float32 ``(4 * partitions, free)``: the contraction runs over partitions and packed elements."""
    p = data.shape[0]
    packed = data.array().reshape(p, -1)
    rows = scale.array().view(np.uint8).reshape(scale.shape[0], -1)
    if p > 32:
        rows = mx.gather_scales(rows, p)
    values = mx.dequantize(np.ascontiguousarray(packed), rows[: p // 8], data.dtype)
    return values.reshape(p, -1, 4).transpose(0, 2, 1).reshape(4 * p, -1)


def _mx_product(
    stationary: NkiTensor, moving: NkiTensor, stationary_scale: NkiTensor, moving_scale: NkiTensor
) -> NDArray[np.float32]:
    product: NDArray[np.float32] = np.matmul(
        _dequantized(stationary, stationary_scale).T, _dequantized(moving, moving_scale)
    )
    return product


@_matmul_mx.meaning
def _(stationary: NkiTensor, moving: NkiTensor, stationary_scale: NkiTensor, moving_scale: NkiTensor) -> NDArray[Any]:
    return _mx_product(stationary, moving, stationary_scale, moving_scale)


@_matmul_mx_add.meaning
def _(
    dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, stationary_scale: NkiTensor, moving_scale: NkiTensor
) -> NDArray[Any]:
    product = _mx_product(stationary, moving, stationary_scale, moving_scale)
    return (dst.as_float32().reshape(product.shape) + product).astype(np.float32)


@_matmul_mx.cost
@_matmul_mx_add.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    """One pass at the rate of bfloat16, contracting four packed elements a row of the array."""
    stationary, moving = k.operand("stationary"), k.operand("moving")
    share = k.attributes["tile_size"][0] / 128 if k.attributes["tile_size"] else 1.0
    flops = 2 * 4 * stationary.size * moving.elements
    return _passes(t, k, 1, stationary.elements, moving.elements, 1, share, flops)
