"""VectorE: searches along the free dimensions, movement across partitions, and MX quantisation.

Documented in the NKI reference (``nki.isa``, release 0.6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.costs import streamed, work
from trnsim.isa.instruction import (
    Immediate,
    In,
    OptionalOut,
    Out,
    Update,
    instruction,
    require,
    require_memory,
    require_number,
    require_numbers,
    require_on_chip,
    require_same_size,
    target,
    write,
)
from trnsim.isa.work import Work
from trnsim.machine import core as machine
from trnsim.machine.core import check_start_partition
from trnsim.machine.form import SBUF, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass
from trnsim.numerics import mx

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.isa.instruction import NkiInstruction
    from trnsim.machine.core import Core


_NOT_FOUND = np.uint32(0xFFFFFFFF)

# -- searches ----------------------------------------------------------------------------------------------------------


def _require_searchable(form: Form, name: str) -> None:
    require_numbers(**{name: form})
    require(
        8 <= form.elements <= 16384,
        "must have 8 to 16384 elements a partition",
        name,
        form.elements,
        "8 to 16384",
    )
    require(len(form.shape) <= 3, "has at most 3 dimensions", name, form.shape, 3)


def _require_eight(form: Form, data: Form, name: str) -> None:
    require_numbers(**{name: form})
    require(
        form.partitions == data.partitions and form.elements == 8,
        "must have 8 elements in each partition of data",
        name,
        form.shape,
        (data.partitions, 8),
    )


@instruction("nki.isa.max8", engines="vector")
def max8(dst: Out, src: In) -> None:
    """dst[p, :8] = the eight largest of src[p, :], descending."""
    _require_searchable(src, "src")
    _require_eight(dst, src, "dst")


@max8.meaning
def _(src: NkiTensor) -> NDArray[np.float32]:
    values = _likely(src.as_float32().reshape(src.shape[0], -1))
    top = np.partition(values, values.shape[1] - 8, axis=1)[:, -8:]
    return np.sort(top, axis=1)[:, ::-1]


def _likely(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Elements of each row among which the eight largest of it are.

    They are in the eight blocks with the largest maxima: a block that is not among these has no element larger than
    eight others. Maxima are quick to find, a partition of all is not.
    """
    rows, columns = values.shape
    width = int(np.sqrt(columns))
    blocks, rest = divmod(columns, width)
    if blocks <= 32:
        return values
    split = values[:, : blocks * width].reshape(rows, width, blocks)  # block b: every blocks-th element from b
    best = np.argpartition(split.max(axis=1), blocks - 8, axis=1)[:, -8:]
    chosen = np.take_along_axis(split, best[:, None, :], axis=2).reshape(rows, 8 * width)
    return np.concatenate([chosen, values[:, columns - rest :]], axis=1) if rest else chosen


@max8.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


@instruction("nki.isa.nc_find_index8", engines="vector")
def nc_find_index8(dst: Out, data: In, vals: In) -> None:
    """dst[p, k] = where vals[p, k] first is in data[p, :]; of equal vals the next takes the next place; or all ones."""
    _require_searchable(data, "data")
    _require_eight(vals, data, "vals")
    _require_eight(dst, data, "dst")
    require(dst.dtype in ("uint16", "uint32"), "indices are uint16 or uint32", "dst", dst.dtype, ("uint16", "uint32"))


@nc_find_index8.meaning
def _(dst: NkiTensor, data: NkiTensor, vals: NkiTensor) -> NDArray[Any]:
    return _find(data, vals, range(8)).astype(dst.dtype.numpy)


@nc_find_index8.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


def _find(data: NkiTensor, vals: NkiTensor, order: range) -> NDArray[np.uint32]:
    """Indices ``(P, 8)`` of ``vals`` in ``data``, taken in ``order``, no place found twice; all ones if not found."""
    values = data.as_float32().reshape(data.shape[0], -1)
    wanted = vals.as_float32().reshape(data.shape[0], 8)
    lanes = np.arange(len(values))
    table, places = _candidates(values, wanted)
    free = np.ones(table.shape, bool)
    indices = np.empty(wanted.shape, np.uint32)
    for k in order:
        match = (table == wanted[:, k : k + 1]) & free
        at = match.argmax(axis=1)
        found = match[lanes, at]
        indices[:, k] = np.where(found, at if places is None else places[lanes, at], _NOT_FOUND)
        free[lanes[found], at[found]] = False
    return indices


def _candidates(
    values: NDArray[np.float32], wanted: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.intp] | None]:
    """The elements of each row, in order, that can equal one of its ``wanted``, and where they were.

    What is below the least that is wanted cannot; where little else is left, only that is looked through.
    """
    with np.errstate(invalid="ignore"):
        possible = values >= np.fmin.reduce(wanted, axis=1)[:, None]
    counts = np.count_nonzero(possible, axis=1)
    longest = int(counts.max(initial=0))
    if not 0 < longest <= values.shape[1] // 8:
        return values, None
    flat = np.flatnonzero(possible)
    lane, at = np.divmod(flat, values.shape[1])
    place = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(values), longest), np.nan, np.float32)
    table[lane, place] = values.reshape(-1)[flat]
    places = np.zeros(table.shape, np.intp)
    places[lane, place] = at
    return table, places


@instruction("nki.isa.nc_match_replace8", engines="vector")
def nc_match_replace8(dst: Out, data: In, vals: In, imm: Immediate, dst_idx: OptionalOut = None) -> None:
    """To ``dst`` goes ``data`` with the first place of each of the 8 vals of a partition replaced by ``imm``.

    ``dst_idx`` receives those places, all ones for what was not found. Vals are taken from the last to the first, so of
    equal ones the last has the first place.
    """
    require_number(imm, "imm")
    _require_searchable(data, "data")
    _require_eight(vals, data, "vals")
    require_numbers(dst=dst)
    require_same_size(dst, data, names=("data",))
    if dst_idx is not None:
        _require_eight(dst_idx, data, "dst_idx")
        allowed = ("uint16", "uint32")
        require(dst_idx.dtype in allowed, "indices are uint16 or uint32", "dst_idx", dst_idx.dtype, allowed)


@nc_match_replace8.meaning
def _(dst: NkiTensor, data: NkiTensor, vals: NkiTensor, imm: float, dst_idx: NkiTensor | None) -> None:
    indices = _find(data, vals, range(7, -1, -1))
    values = data.as_float32().reshape(data.shape[0], -1).copy()
    lane, k = np.nonzero(indices != _NOT_FOUND)
    values[lane, indices[lane, k]] = imm
    write(dst, values)
    if dst_idx is not None:
        dst_idx.store(indices.astype(dst_idx.dtype.numpy))


@nc_match_replace8.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


# -- across partitions -------------------------------------------------------------------------------------------------


def nc_stream_shuffle(dst: NkiTensor, src: NkiTensor, shuffle_mask: Any, name: str | None = None) -> NkiInstruction:
    """Partition ``i`` of a quadrant of dst = partition ``shuffle_mask[i]`` of that quadrant of src; 255 leaves it."""
    try:
        mask = tuple(int(x) for x in shuffle_mask)
    except (TypeError, ValueError) as error:
        raise CompilerError(
            "shuffle_mask is a list of 32 integers", instruction="nc_stream_shuffle", operand="shuffle_mask",
            value=repr(shuffle_mask)[:60], limit="32 integers", generation=machine.current().generation,
        ) from error  # fmt: skip
    function = _shuffle_some if 255 in mask[: dst.shape[0]] else _shuffle
    return function(dst, src, mask, name)


def _shuffle_rules(dst: Form, src: Form, shuffle_mask: tuple[int, ...]) -> None:
    require_on_chip(dst=dst, src=src)
    require(dst.dtype == src.dtype, "dst must have the dtype of src", "dst", dst.dtype, src.dtype)
    require(
        dst.elements == src.elements, "src and dst differ in elements a partition", "src", src.elements, dst.elements
    )
    require(len(shuffle_mask) == 32, "the mask has 32 elements", "shuffle_mask", len(shuffle_mask), 32)
    active = -(-max(src.partitions, dst.partitions) // 32) * 32
    for name, form in (("dst", dst), ("src", src)):
        check_start_partition(form.start, active, "nc_stream_shuffle", name, machine.current().generation)
    for index, source in _sources(dst.partitions, shuffle_mask):
        legal = 0 <= shuffle_mask[index % 32] < 32
        require(
            legal and source < src.partitions,
            f"partition {index} of dst takes a partition that src does not have",
            "shuffle_mask",
            shuffle_mask[index % 32],
            f"below {min(32, src.partitions - index // 32 * 32)}, or 255",
        )


def _sources(partitions: int, mask: tuple[int, ...]) -> list[tuple[int, int]]:
    """``(partition of dst, partition of src)`` of all that are written."""
    return [(i, i // 32 * 32 + mask[i % 32]) for i in range(partitions) if mask[i % 32] != 255]


@instruction("nki.isa.nc_stream_shuffle", engines="vector")
def _shuffle(dst: Out, src: In, shuffle_mask: Any) -> None:
    """A shuffle that writes every partition of ``dst``."""
    _shuffle_rules(dst, src, shuffle_mask)


@instruction("nki.isa.nc_stream_shuffle.partial", engines="vector")
def _shuffle_some(dst: Update, src: In, shuffle_mask: Any) -> None:
    """A shuffle that leaves some partitions of ``dst``."""
    _shuffle_rules(dst, src, shuffle_mask)


@_shuffle.meaning
@_shuffle_some.meaning
def _(dst: NkiTensor, src: NkiTensor, shuffle_mask: tuple[int, ...]) -> None:
    pairs = np.array(_sources(dst.shape[0], shuffle_mask), np.intp).reshape(-1, 2)
    values = src.array()[pairs[:, 1]]
    target(dst)[pairs[:, 0]] = values.reshape(-1, *dst.shape[1:])


@_shuffle.cost
@_shuffle_some.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine), opcode="STREAM_SHUFFLE"),)


@instruction("nki.isa.quantize_mx", engines="vector", generations="v4")
def quantize_mx(dst: Out, src: In, dst_scale: Out) -> None:
    """Groups of 8 partitions by 4 elements of ``src`` as MXFP8: packed elements to ``dst``, scales to ``dst_scale``.

    The scales of a quadrant of 32 partitions lie in its first 4 partitions (``numerics.mx``); others of ``dst_scale``
    become 0. Before NKI 0.5 scales follow the rule of the MX specification, so that the largest values saturate.
    """
    require_memory(SBUF, dst=dst, src=src, dst_scale=dst_scale)
    formats, scales = ("float8_e5m2_x4", "float8_e4m3fn_x4"), ("float8_e8m0fnu", "uint8")
    require(src.dtype in ("float16", "bfloat16"), "src is a 16-bit float", "src", src.dtype, ("float16", "bfloat16"))
    require(dst.dtype in formats, "dst is packed MXFP8", "dst", dst.dtype, formats)
    require(dst_scale.dtype in scales, "scales have 8 bits", "dst_scale", dst_scale.dtype, scales)
    require(src.partitions % 32 == 0, "partitions must be a multiple of 32", "src", src.partitions, 32)
    require(src.elements % 4 == 0, "elements a partition must be a multiple of 4", "src", src.elements, 4)
    columns = src.elements // 4
    require(
        dst.partitions == src.partitions and dst.elements == columns,
        "dst has src's partitions and a quarter of its elements",
        "dst",
        dst.shape,
        (src.partitions, columns),
    )
    rows = src.partitions - 28
    require(
        dst_scale.partitions >= rows and dst_scale.elements == columns,
        "scales need 4 partitions in each quadrant, and dst's elements",
        "dst_scale",
        dst_scale.shape,
        (rows, columns),
    )


@quantize_mx.meaning
def _(core: Core, dst: NkiTensor, src: NkiTensor, dst_scale: NkiTensor) -> None:
    rule: mx.Rule = "ocp" if core.launch.release.before("0.5") else "neuron"
    packed, scales = mx.quantize(src.as_float32().reshape(src.shape[0], -1), dst.dtype, rule)
    dst.store(packed)
    tile = np.zeros((dst_scale.shape[0], scales.shape[1]), np.uint8)  # partitions that hold no scale become 0
    dst_scale.store(mx.spread_scales(scales, out=tile).view(dst_scale.dtype.numpy))


@quantize_mx.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # Four elements a partition and cycle (Trainium3 architecture guide).
    return (work(t, k, engine, k.operand("src").elements / 4),)
