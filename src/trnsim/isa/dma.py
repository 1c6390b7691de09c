"""DMA: 16 engines beside each core that move data between HBM and SBUF in descriptors of contiguous bytes.

Documented in the architecture guides, the DMA bandwidth guide, the DGE guide and the NKI reference. Who generates the
descriptors (the DGE mode) decides which engine spends time on it; the data arrive all the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import HardwareError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import AluOp
from trnsim.isa.constants import dge_mode as DgeMode
from trnsim.isa.constants import engine as Engine
from trnsim.isa.constants import oob_mode as OobMode
from trnsim.isa.costs import reads_and_writes
from trnsim.isa.instruction import In, Ins, Out, instruction, require, target
from trnsim.isa.work import Transfer
from trnsim.machine import core as machine
from trnsim.machine.form import HBM, PSUM, SBUF, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass
from trnsim.numerics import cast
from trnsim.units import Picoseconds

_MODES = ("unknown", "swdge", "hwdge", "none")


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def _check_common(
    dst: Form, sources: dict[str, Form], dge_mode: Any, oob_mode: Any, *, allow_psum: bool = False
) -> None:
    for name, form in (("dst", dst), *sources.items()):
        psum = form.memory == PSUM and not allow_psum
        require(not psum, "DMA reaches HBM and SBUF, not PSUM", name, "psum", ("hbm", "sbuf"))
        if form.indirect > 0:
            _check_index(name, form)
    require(_name(dge_mode) in _MODES, "no such descriptor generation mode", "dge_mode", dge_mode, _MODES)
    modes = ("error", "skip")
    require(_name(oob_mode) in modes, "no such out-of-bounds mode", "oob_mode", oob_mode, modes)


def _check_index(name: str, form: Form) -> None:
    """A view with ``vector_offset`` is in HBM, its index in SBUF: an integer for each of its rows."""
    index = Form.table[form.indirect - 1]
    require(form.memory == HBM, "a view with vector_offset must be in HBM", name, form.memory, HBM)
    require(index.memory == SBUF, "the indices of vector_offset must be in SBUF", name, index.memory, SBUF)
    kinds = ("int", "uint")
    require(index.dtype.kind in kinds, "indices of vector_offset are integers", name, index.dtype, "an integer dtype")
    require(
        index.size >= form.shape[0],
        "vector_offset needs an index for each row of the pattern",
        name,
        f"{index.shape} indices",
        f"{form.shape[0]} rows",
    )


def _check_priority(priority: Any) -> None:
    if priority is not None:
        generation = machine.current().generation
        require(generation == "v4", "DMA priorities need NeuronCore-v4", "priority", priority, "NeuronCore-v4")
        require(priority in (0, 1, 2, 3), "priority must be 0 to 3", "priority", priority, (0, 3))


@instruction("nki.isa.dma_copy", engines="dma")
def dma_copy(
    dst: Out,
    src: In,
    priority: Any = None,
    oob_mode: Any = OobMode.error,
    dge_mode: Any = DgeMode.unknown,
    engine: Any = Engine.unknown,
) -> None:
    """Dst = src, element by element in row-major order; other dtypes go through float32.

    Views made with ``vector_offset`` gather or scatter rows. An index out of bounds is an error, or with
    ``oob_mode.skip`` leaves the destination as it is. Integers of one size are copied bit for bit.
    """
    _check_common(dst, {"src": src}, dge_mode, oob_mode, allow_psum=machine.current().launch.release.version == "0.2")
    _check_priority(priority)
    require(
        dst.size == src.size,
        "dst and src must have the same number of elements",
        "src",
        f"{src.shape} = {src.size}",
        f"{dst.shape} = {dst.size}",
    )
    mode = _name(dge_mode)
    generation = machine.current().generation
    if mode == "hwdge":
        require(
            generation != "v2", "hardware descriptor generation needs NeuronCore-v3", "dge_mode", mode, "swdge, none"
        )
        require(dst.dtype == src.dtype, "hwdge moves raw bytes: dtypes must match", "dst", dst.dtype, src.dtype)
        require(
            _name(engine) in ("unknown", "sync", "scalar"),
            "hwdge is issued by sync or scalar",
            "engine",
            engine,
            "sync, scalar",
        )
        require(not (src.indirect > 0 or dst.indirect > 0), "vector_offset needs swdge", "dge_mode", mode, "swdge")
    else:
        require(_name(engine) == "unknown", "engine is for dge_mode.hwdge only", "engine", engine, "unknown")
    if mode == "none":
        require(not (src.indirect or dst.indirect), "run-time addresses need a DGE", "dge_mode", mode, "swdge, hwdge")
    _check_packed(dst, src)
    # `engine` names the ring's engine, not who executes: the DMA engines do.


def _check_packed(dst: Form, src: Form) -> None:
    if "packed" in (dst.dtype.kind, src.dtype.kind):
        require(dst.dtype == src.dtype, "packed x4 formats are copied, not converted", "dst", dst.dtype, src.dtype)


def _converted(values: NDArray[Any], src: NkiTensor, dst: NkiTensor) -> NDArray[Any]:
    if src.dtype == dst.dtype:
        return values
    same_size = src.dtype.itemsize == dst.dtype.itemsize
    if same_size and {src.dtype.kind, dst.dtype.kind} <= {"int", "uint"}:
        return values.view(dst.dtype.numpy)
    return cast(values, src.dtype, dst.dtype)


def _row_indices(view: NkiTensor, skip: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Row that each row of an indirect view names, 0 where that is out of bounds; which are in bounds (None: all)."""
    moved = view.indirection
    assert moved is not None
    assert moved.index is not None
    count = view.shape[0]
    index = moved.index.array().reshape(-1)[:count].astype(np.int64) % 2**32
    largest = int(index.max())
    valid = None
    if largest >= moved.limit:
        valid = index < moved.limit
        if not skip:
            row = int(np.argmin(valid))
            raise HardwareError(
                f"index {int(index[row])} in partition {row} is out of bounds for {view.name!r}",
                instruction="dma_copy",
                operand="vector_offset",
                value=int(index[row]),
                limit=moved.limit,
            )
        index = np.where(valid, index, 0)
        largest = int(index.max())
    last = view.offset + largest * moved.stride
    last += sum((n - 1) * s for n, s in zip(view.shape[1:], view.strides[1:], strict=True) if s > 0)
    limit = view.storage.rows * view.storage.row_bytes // view.dtype.itemsize
    if last >= limit:
        raise HardwareError(
            f"an indirect access leaves {view.name!r}", operand="vector_offset", value=last, limit=limit
        )
    return index, valid


def _rows(view: NkiTensor, index: NDArray[np.int64]) -> NDArray[Any] | None:
    """Rows 0 to the largest of ``index``, as a NumPy view of the storage; None if rows overlap or run backwards."""
    moved = view.indirection
    assert moved is not None
    size = view.dtype.itemsize
    free = list(zip(view.shape[1:], view.strides[1:], strict=True))
    if min((s for _, s in free), default=0) < 0 or sum((n - 1) * s for n, s in free) >= moved.stride:
        return None
    return np.ndarray(
        (int(index.max()) + 1, *view.shape[1:]),
        view.dtype.numpy,
        view.storage.bytes(),
        view.offset * size,
        (moved.stride * size, *(s * size for _, s in free)),
    )


def _offsets(view: NkiTensor, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Element offsets ``(rows, elements of a row)`` in the storage."""
    moved = view.indirection
    assert moved is not None
    rest = np.zeros(1, np.int64)
    for n, s in zip(view.shape[1:], view.strides[1:], strict=True):
        rest = (rest[:, None] + np.arange(n, dtype=np.int64) * s).ravel()
    return np.asarray(view.offset + index[:, None] * moved.stride + rest[None, :])


def _gather(view: NkiTensor, index: NDArray[np.int64]) -> NDArray[Any]:
    """A copy of the rows ``index`` of an indirect view."""
    rows = _rows(view, index)
    if rows is None:
        return np.asarray(_flat(view)[_offsets(view, index)])
    # ``take`` copies whole rows, but first all of an array with gaps.
    return rows.take(index, axis=0, mode="clip") if rows.flags.c_contiguous else rows[index]


def _gather_into(dst: NkiTensor, src: NkiTensor, index: NDArray[np.int64]) -> bool:
    """Gather without a copy in between; False, and nothing done, where the operands do not lend themselves to it."""
    plain = dst.indirection is None and dst.dtype is src.dtype and dst.shape == (len(index), *src.shape[1:])
    rows = _rows(src, index) if plain and dst.storage is not src.storage else None
    if rows is None or not rows.flags.c_contiguous or not dst.is_contiguous():
        return False
    out = target(dst)
    if not out.flags.c_contiguous:
        return False
    rows.take(index, axis=0, out=out, mode="clip")
    return True


def _scatter(view: NkiTensor, index: NDArray[np.int64], values: NDArray[Any]) -> None:
    """Write rows ``index`` of an indirect view; of equal indices the last one stays."""
    rows = _rows(view, index) if len(index) else None
    if rows is None:
        offsets = _offsets(view, index)
        _flat(view)[offsets] = values.reshape(offsets.shape)
    else:
        rows[index] = values.reshape(len(index), *view.shape[1:])


def _flat(view: NkiTensor) -> NDArray[Any]:
    return view.storage.bytes().view(view.dtype.numpy)


def _outside(instruction: str, views: dict[str, NkiTensor], skip: bool) -> bool:
    """True if a scalar offset leaves its tensor and the access is skipped; without ``skip`` that is an error."""
    for name, view in views.items():
        if view.indirection is not None and view.indirection.index is None:
            if skip:
                return True
            raise HardwareError(
                f"run-time index {view.indirection.stride} is out of bounds for {view.name!r}",
                instruction=instruction,
                operand=name,
                value=view.indirection.stride,
                limit=view.indirection.limit,
            )
    return False


@dma_copy.meaning
def _(dst: NkiTensor, src: NkiTensor, oob_mode: Any) -> NDArray[Any] | None:
    if src.indirection is None and dst.indirection is None:
        dst.store(_converted(src.array(), src, dst))
        return None
    skip = _name(oob_mode) == "skip"
    if _outside("dma_copy", {"dst": dst, "src": src}, skip):
        return None
    valid: NDArray[np.bool_] | None = None
    if src.indirection is not None:
        index, valid = _row_indices(src, skip)
        if valid is None and _gather_into(dst, src, index):
            return None
        values = _gather(src, index)
    else:
        values = src.array()
    values = _converted(values, src, dst)
    if dst.indirection is not None:
        index, valid_rows = _row_indices(dst, skip)
        storage = dst.storage
        storage.make_writable()
        storage.shadow = None
        rows = values.reshape(dst.shape)
        if valid_rows is not None:
            index, rows = index[valid_rows], rows[valid_rows]
        elif src.storage is storage:
            rows = rows.copy()
        _scatter(dst, index, rows)
        return None
    if valid is not None:
        storage = dst.storage
        storage.make_writable()
        storage.shadow = None
        keep = np.repeat(valid, dst.size // len(valid)).reshape(dst.shape)
        np.copyto(dst.array(), values.reshape(dst.shape), where=keep)
        return None
    dst.store(values)
    return None


def _descriptors(t: Timing, dst: Form, src: Form) -> tuple[tuple[int, int], ...]:
    """``(bytes, count)`` of the runs that are contiguous on both sides; a partition of SBUF is a run at most."""
    elements = min(src.levels[-1][1] // src.dtype.itemsize, dst.levels[-1][1] // dst.dtype.itemsize)
    for form in (src, dst):
        if form.indirect > 0:
            elements = min(elements, form.size // form.shape[0])
    elements = max(1, min(elements, *(f.elements for f in (src, dst) if f.memory != HBM), src.size))
    return t.dma.split(elements * max(src.dtype.itemsize, dst.dtype.itemsize), -(-src.size // elements))


def _hbm_bytes(forms: list[Form]) -> int:
    """What crosses HBM's port; between two places of SBUF, what is moved."""
    return max((f.bytes for f in forms if f.memory == HBM), default=max(f.bytes for f in forms))


_DGE = {"hwdge": "hwdge", "swdge": "swdge", "none": "static", "unknown": "auto"}


@dma_copy.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Transfer, ...]:
    dst, src = k.operand("dst"), k.operand("src")
    found = _descriptors(t, dst, src)
    reads, writes = reads_and_writes(k)
    moved = src.indirect > 0 or dst.indirect > 0
    mode = _DGE[k.attributes["dge_mode"]]
    if mode == "auto" and (moved or (dst.dtype != src.dtype and t.dma.default_dge == "hwdge")):
        mode = "swdge"  # gathers and conversions need the software's descriptors
    queue = k.attributes["engine"] if k.attributes["engine"] in ("sync", "scalar") else ""
    kind = "gather" if src.indirect > 0 else "scatter" if dst.indirect > 0 else "copy"
    times = tuple(t.dma.packet(size) for size, _ in found)
    return (Transfer(_hbm_bytes([dst, src]), found, times, kind, mode, queue, "DMA", reads, writes),)


_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


@instruction("nki.isa.dma_transpose", engines="dma")
def dma_transpose(
    dst: Out,
    src: In,
    axes: Any = None,
    priority: Any = None,
    dge_mode: Any = DgeMode.unknown,
    oob_mode: Any = OobMode.error,
) -> None:
    """Dst = src with its dimensions permuted: (1, 0), (2, 1, 0) or (3, 1, 2, 0).

    With a ``vector_offset`` on ``src`` the rows are gathered first (software descriptors, NeuronCore-v3 on).
    """
    _check_common(dst, {"src": src}, dge_mode, oob_mode)
    _check_priority(priority)
    generation = machine.current().generation
    rank = len(src.shape)
    require(rank in _AXES, "dma_transpose takes 2 to 4 dimensions", "src", src.shape, "2 to 4")
    order = tuple(axes) if axes is not None else _AXES[rank]
    require(order == _AXES[rank], "unsupported permutation", "axes", order, _AXES[rank])
    permuted = tuple(src.shape[a] for a in order)
    require(dst.memory == SBUF, "dst must be in SBUF", "dst", dst.memory, SBUF)
    require(dst.dtype == src.dtype, "dst must have the dtype of src", "dst", dst.dtype, src.dtype)
    if not src.indirect:
        require(dst.shape == permuted, "dst must have the permuted shape of src", "dst", dst.shape, permuted)
    mode = _name(dge_mode)
    two = src.dtype.itemsize == 2
    if src.indirect > 0:
        require(generation != "v2", "an indirect transpose needs NeuronCore-v3", "src", "vector_offset", "v3, v4")
        require(mode in ("unknown", "swdge"), "an indirect transpose uses swdge", "dge_mode", mode, "swdge")
        require(two, "an indirect transpose needs a 2-byte dtype", "src", src.dtype, "2 bytes")
        require(src.shape[-1] <= 128, "the last dimension is at most 128", "src", src.shape, 128)
        require(src.shape[0] % 16 == 0, "the first dimension must be a multiple of 16", "src", src.shape, 16)
        if rank == 4:
            require(
                1 in (src.shape[1], src.shape[2]),
                "a 4-D indirect transpose needs a middle size of 1",
                "src",
                src.shape,
                1,
            )
        require(dst.size == src.size, "dst must have the elements of src", "dst", dst.shape, src.shape)
        _check_transpose_index(Form.table[src.indirect - 1])
        return
    require(mode != "swdge", "swdge transposes need a vector_offset", "dge_mode", mode, "hwdge")
    if mode == "hwdge":
        require(
            generation != "v2", "hardware descriptor generation needs NeuronCore-v3", "dge_mode", mode, "swdge, none"
        )
        require(two, "a hwdge transpose needs a 2-byte dtype", "src", src.dtype, "2 bytes")
        require(src.shape[-1] <= 128, "the last dimension is at most 128", "src", src.shape, 128)
        release = machine.current().launch.release
        if release.version != "0.1" and release.before("0.6"):
            exact = src.shape[0] == 16 and src.shape[-1] == 128
            require(exact, "before NKI 0.6 a hwdge transpose takes (16, ..., 128)", "src", src.shape, (16, 128))
        elif rank == 2:
            require(src.shape[0] == 16, "a 2-D hwdge transpose takes 16 rows", "src", src.shape, 16)
        else:
            require(
                src.shape[0] in (1, 2, 4, 8, 16) and (src.shape[0] * src.shape[-2]) % 16 == 0,
                "first size 1, 2, 4, 8 or 16, times the second last a multiple of 16",
                "src",
                src.shape,
                "shape[0] * shape[-2] % 16 == 0",
            )


def _check_transpose_index(index: Form) -> None:
    """Two dimensions of uint32: 16 to 128 partitions in sixteens, all 128 of them if there is more than one column."""
    require(len(index.shape) == 2, "indices have two dimensions", "src", f"{index.shape} indices", 2)
    require(index.dtype == "uint32", "indices of a transpose are uint32", "src", index.dtype, "uint32")
    lanes = index.shape[0]
    fits = lanes == 128 if index.shape[1] > 1 else lanes in range(16, 129, 16)
    limit = "128 partitions" if index.shape[1] > 1 else "16 to 128 partitions, a multiple of 16"
    require(fits, "indices lie in other partitions", "src", f"{index.shape} indices", limit)


@dma_transpose.meaning
def _(dst: NkiTensor, src: NkiTensor, axes: Any, oob_mode: Any) -> NDArray[Any] | None:
    order = tuple(axes) if axes is not None else _AXES[len(src.shape)]
    moved = src.indirection
    if moved is None:
        return src.array().transpose(order)
    if _outside("dma_transpose", {"src": src}, _name(oob_mode) == "skip"):
        return None
    assert moved.index is not None
    rows = src.shape[0]
    index = moved.index.array()
    flat = index.reshape(index.shape[0], -1).T.reshape(-1)[:rows].astype(np.int64) % 2**32
    valid = flat < moved.limit
    if not valid.all() and _name(oob_mode) != "skip":
        bad = int(flat[int(np.argmin(valid))])
        raise HardwareError("an index is out of bounds", operand="vector_offset", value=bad, limit=moved.limit)
    rest = np.zeros(1, np.int64)
    for n, s in zip(src.shape[1:], src.strides[1:], strict=True):
        rest = (rest[:, None] + np.arange(n, dtype=np.int64) * s).ravel()
    offsets = src.offset + np.where(valid, flat, 0)[:, None] * moved.stride + rest[None, :]
    values = _flat(src)[offsets].reshape(src.shape).transpose(order)
    if valid.all():
        return values.reshape(dst.shape)
    kept = dst.array()
    dst.storage.shadow = None
    keep = valid.reshape(1, -1) if kept.ndim == 2 else valid.reshape((1,) * (kept.ndim - 1) + (-1,))
    np.copyto(kept, values.reshape(kept.shape), where=keep)
    return None


@dma_transpose.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Transfer, ...]:
    """At the share of the DMA engines' rate that the guides give; on NeuronCore-v2 as a copy of the source's runs.

    Since NeuronCore-v3 all engines write tiles of 128 partitions by 16 elements together (trainium2_arch): runs of the
    source do not matter, and a tile that is not full takes as long as one that is.
    """
    dst, src = k.operand("dst"), k.operand("src")
    efficiency = t.dma.transpose_hbm if src.memory == HBM else t.dma.transpose_sbuf
    reads, writes = reads_and_writes(k)
    mode = "swdge" if src.indirect > 0 else _DGE[k.attributes["dge_mode"]]
    if t.version == "v2":
        found = _descriptors(t, src, src)
        times = tuple(t.dma.packet(size, efficiency) for size, _ in found)
    else:
        inner = dst.shape[-1] if len(dst.shape) > 1 else 1
        tiles = -(-dst.shape[0] // 128) * -(-inner // 16) * (dst.size // (dst.shape[0] * inner))
        found = t.dma.split(128 * 16 * dst.dtype.itemsize, tiles)
        rate = efficiency * t.dma.sustained_bytes_per_ns
        times = tuple(Picoseconds(round(1_000 * size / rate)) for size, _ in found)
    return (Transfer(_hbm_bytes([dst, src]), found, times, "transpose", mode, "", "DMA_TRANSPOSE", reads, writes),)


@instruction("nki.isa.dma_compute", engines="dma")
def dma_compute(
    dst: Out,
    srcs: Ins,
    reduce_op: AluOp,
    scales: Any = None,
    unique_indices: bool = True,
    oob_mode: Any = OobMode.error,
) -> None:
    """Dst = the sum of ``srcs`` in float32, in the DMA engines; one indirect source makes it a read-modify-write."""
    _check_common(dst, {f"srcs{i}": s for i, s in enumerate(srcs)}, DgeMode.unknown, oob_mode)
    require(reduce_op.name == "add", "the DMA engines only add", "reduce_op", reduce_op.name, "add")
    require(1 <= len(srcs) <= 16, "1 to 16 sources", "srcs", len(srcs), 16)
    require(
        scales is None or (len(scales) == len(srcs) and all(s == 1.0 for s in scales)),
        "scales must be 1.0, one for each source",
        "scales",
        scales,
        (1.0,) * len(srcs),
    )
    for index, form in enumerate(srcs):
        require(form.size == dst.size, "sources and dst differ in elements", f"srcs{index}", form.shape, dst.shape)
    indirect = [s for s in (*srcs, dst) if s.indirect]
    if indirect:
        require(len(srcs) == 2, "a read-modify-write takes two sources", "srcs", len(srcs), 2)
        require(unique_indices, "indices must be unique", "unique_indices", unique_indices, True)
    moved = [s for s in srcs if s.indirect > 0]
    if moved or dst.indirect > 0:
        require(len(moved) == 1, "a read-modify-write has one source with vector_offset", "srcs", len(moved), 1)
        if dst.indirect > 0:
            require(moved[0] is dst, "the source with vector_offset must match dst", "srcs", moved[0], dst)
        else:
            require(dst.memory == SBUF, "rows are gathered and added to a tile in SBUF", "dst", dst.memory, SBUF)


@dma_compute.meaning
def _(dst: NkiTensor, srcs: list[NkiTensor], oob_mode: Any) -> NDArray[Any] | None:
    skip = _name(oob_mode) == "skip"
    views = {"dst": dst} | {f"srcs{i}": s for i, s in enumerate(srcs)}
    if _outside("dma_compute", views, skip):
        return None
    total: NDArray[np.float32] | None = None
    valid: NDArray[np.bool_] | None = None
    for src in srcs:
        if src.indirection is not None and src.indirection.index is not None:
            index, valid = _row_indices(src, skip)
            values = cast(_gather(src, index), src.dtype, as_float32_dtype())
        else:
            values = src.as_float32()
        total = values.reshape(-1).astype(np.float32) if total is None else total + values.reshape(-1)
    assert total is not None
    if dst.indirection is not None and dst.indirection.index is not None:
        index, rows = _row_indices(dst, skip)
        dst.storage.make_writable()
        dst.storage.shadow = None
        result = cast(total.reshape(dst.shape), as_float32_dtype(), dst.dtype)
        if rows is not None:
            index, result = index[rows], result[rows]
        _scatter(dst, index, result)
        return None
    if valid is not None:
        keep = dst.as_float32().reshape(len(valid), -1)
        total = np.where(valid[:, None], total.reshape(keep.shape), keep).astype(np.float32)
    return total.reshape(dst.shape)


@dma_compute.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Transfer, ...]:
    """Every source is read and the result written: as many packets as the copies of all of them."""
    dst = k.operand("dst")
    sources = [o.form for o in k.operands if o.name.startswith("srcs") and not o.name.endswith(".index")]
    found = tuple(d for s in sources for d in _descriptors(t, dst, s))
    reads, writes = reads_and_writes(k)
    mode = "swdge" if any(f.indirect > 0 for f in (dst, *sources)) else "static"
    total = sum(_hbm_bytes([dst, s]) for s in sources)
    times = tuple(t.dma.packet(size) for size, _ in found)
    return (Transfer(total, found, times, "accumulate", mode, "", "DMA_COMPUTE", reads, writes),)


def as_float32_dtype() -> Any:
    from trnsim.numerics import as_dtype

    return as_dtype("float32")
