"""GpSimdE: searches along the free dimension: nonzero elements, the largest values, the bounds of segments.

Documented in the NKI reference (``nki.isa``, release 0.6). GpSimdE's eight cores have 16 partitions each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import CompilerError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.costs import streamed, work
from trnsim.isa.instruction import Immediate, In, Out, instruction, require, require_memory, target
from trnsim.isa.work import Work
from trnsim.machine.form import SBUF
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CORE_LANES = 16
_INT32 = (-(2**31), 2**31 - 1)


@instruction("nki.isa.nonzero_with_count", engines="gpsimd", generations="v3 v4")
def nonzero_with_count(dst: Out, src: In, index_offset: Immediate = 0, padding_val: Immediate = -1) -> None:
    """The places of src's nonzero elements plus ``index_offset``, then padding, and last their count.

    Only the first of each core's 16 partitions is read and written.
    """
    require_memory(SBUF, dst=dst, src=src)
    require(src.dtype in ("float32", "int32"), "src has another dtype", "src", src.dtype, ("float32", "int32"))
    require(dst.dtype == "int32", "dst must be int32", "dst", dst.dtype, "int32")
    require(dst.partitions == src.partitions, "dst and src differ in partitions", "dst", dst.shape, src.shape)
    require(
        dst.elements == src.elements + 1, "dst must have one more element a partition than src", "dst", dst.shape,
        src.elements + 1,
    )  # fmt: skip
    for name, value in (("index_offset", index_offset), ("padding_val", padding_val)):
        whole = isinstance(value, (int, np.integer)) and _INT32[0] <= int(value) <= _INT32[1]
        require(whole, f"{name} must be an int32", name, value, "int32")


@nonzero_with_count.meaning
def _(dst: NkiTensor, src: NkiTensor, index_offset: int, padding_val: int) -> None:
    values = src.array().reshape(src.shape[0], -1)
    out = target(dst)
    for lane in range(-src.form.start % _CORE_LANES, src.shape[0], _CORE_LANES):
        places = np.flatnonzero(values[lane])
        row = np.full(values.shape[1] + 1, padding_val, np.int32)
        row[: len(places)] = places + index_offset
        row[-1] = len(places)
        out[lane] = row.reshape(out.shape[1:])


@nonzero_with_count.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    """No cost is documented: an element a cycle, as GpSimdE streams."""
    return (work(t, k, engine, streamed(t, k, engine), opcode="NONZERO_WITH_COUNT"),)


@instruction("nki.isa.topk", engines="gpsimd")
def topk(val_dst: Out, idx_dst: Out, src: In, n: int) -> None:
    """The K largest of n values and their indices, ascending, for each group of 16 partitions.

    The values of a group are a snake: value i lies in partition i % 16 of the group, column i // 16. K is the free size
    of ``val_dst``; all 16 partitions receive the group's result. Which of equal values are taken is not documented:
    here those of the lowest indices, in ascending order of them.
    """
    require_memory(SBUF, val_dst=val_dst, idx_dst=idx_dst, src=src)
    require(src.dtype == "bfloat16", "src must be bfloat16", "src", src.dtype, "bfloat16")
    require(val_dst.dtype == "bfloat16", "val_dst must be bfloat16", "val_dst", val_dst.dtype, "bfloat16")
    require(idx_dst.dtype == "uint32", "idx_dst must be uint32", "idx_dst", idx_dst.dtype, "uint32")
    require(
        src.partitions % _CORE_LANES == 0, "the partitions must be a multiple of 16", "src", src.partitions, _CORE_LANES
    )
    k = val_dst.elements
    for name, form in (("val_dst", val_dst), ("idx_dst", idx_dst)):
        same = form.partitions == src.partitions and form.elements == k
        require(same, f"{name} must be (partitions of src, K)", name, form.shape, (src.partitions, k))
    if not isinstance(n, (int, np.integer)):
        raise CompilerError("n must be an integer", operand="n", value=n, limit="8 to 65535")
    require(8 <= n < 65536, "n must be 8 to 65535", "n", n, "8 to 65535")
    require(1 <= k <= min(n, 32767), "K must be at most n, and at most 32767", "val_dst", k, min(n, 32767))
    columns = -(-n // _CORE_LANES)
    require(src.elements >= columns, "src has too few columns for n values", "src", src.elements, columns)


@topk.meaning
def _(val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int) -> None:
    values = src.array().reshape(src.shape[0], -1)
    largest, places = target(val_dst), target(idx_dst)
    k = val_dst.form.elements
    for first in range(0, src.shape[0], _CORE_LANES):
        lanes = slice(first, first + _CORE_LANES)
        snake = values[lanes].T.reshape(-1)[:n]
        chosen = _largest(snake.astype(np.float32), k)
        largest[lanes] = snake[chosen].reshape(largest.shape[1:])
        places[lanes] = chosen.reshape(places.shape[1:])


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` largest values, ascending by value, then by index."""
    chosen = np.sort(np.argsort(-values, kind="stable")[:k])
    return chosen[np.argsort(values[chosen], kind="stable")]


@topk.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    """4 n + K cycles, as the NKI reference estimates."""
    cycles = 4 * k.attributes["n"] + k.operand("val_dst").elements
    return (work(t, k, engine, cycles, opcode="TOPK"),)


@instruction("nki.isa.sequence_bounds", engines="gpsimd")
def sequence_bounds(dst: Out, segment_ids: In) -> None:
    """For each element the first index of its segment, and the index after its last one.

    A segment is a run of equal ids. Elements of id 0 are padding: their bounds are n and -1, n the number of elements.
    ``dst`` is ``(1, 2, n)``: all first indices, then all last ones.
    """
    require_memory(SBUF, dst=dst, segment_ids=segment_ids)
    for name, form in (("dst", dst), ("segment_ids", segment_ids)):
        allowed = ("float32", "int32")
        require(form.dtype in allowed, f"{name} has another dtype", name, form.dtype, allowed)
        require(form.partitions == 1, f"{name} must have one partition", name, form.partitions, 1)
    require(
        dst.elements == 2 * segment_ids.elements, "dst must hold two values an element", "dst", dst.shape,
        (1, 2, segment_ids.elements),
    )  # fmt: skip


@sequence_bounds.meaning
def _(dst: NkiTensor, segment_ids: NkiTensor) -> None:
    ids = segment_ids.array().reshape(-1)
    n = len(ids)
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    lengths = np.diff(np.append(starts, n))
    first, end = np.repeat(starts, lengths), np.repeat(starts + lengths, lengths)
    padding = ids == 0
    first[padding], end[padding] = n, -1
    out = target(dst)
    out[...] = np.stack((first, end)).reshape(out.shape)


@sequence_bounds.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    """No cost is documented: an element a cycle of the bounds that are written."""
    return (work(t, k, engine, streamed(t, k, engine), opcode="SEQUENCE_BOUNDS"),)
