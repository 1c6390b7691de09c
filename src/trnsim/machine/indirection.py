"""Tensor indirection (NeuronCore-v4): an index tensor chooses free offsets of a tensor in SBUF or PSUM.

Documented in the NKI reference (``NkiTensor.indirect``, release 0.5) and trainium3_arch.rst, "SBUF/PSUM indirect
access". Offset ``i`` is ``index[i % G, i // G]``, where G is 16 partitions, on TensorE 32. The documentation gives this
for the first G partitions; here each group of G partitions takes its offsets from its own rows of ``index``, and a
finding says so where the groups differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError
from trnsim.machine import core as machine
from trnsim.machine.form import SBUF, Form
from trnsim.machine.storage import Storage
from trnsim.machine.tensor import Indirect, NkiTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.core import Core
    from trnsim.machine.trace import InstructionClass

GROUP, TENSOR_GROUP = 16, 32
SNAKE = "snake"
_INDEX_DTYPES = ("int16", "uint16", "int32", "uint32")
_QUADRANT = 32


def indirect_view(tensor: NkiTensor, index: Any, num_elem: int | None) -> NkiTensor:
    """The view ``(P, num_elem)`` of ``tensor`` whose columns ``index`` names; see ``NkiTensor.indirect``."""
    generation = machine.current().generation

    def refuse(kind: type[CompilerError | HardwareError], message: str, operand: str, value: Any, limit: Any) -> None:
        raise kind(
            message, instruction="indirect", operand=operand, value=value, limit=limit, generation=generation
        )  # fmt: skip

    if generation != "v4":
        refuse(HardwareError, "tensor indirection needs NeuronCore-v4", tensor.name, generation, "v4")
    if not tensor.on_chip:
        refuse(HardwareError, "tensor indirection is for SBUF and PSUM", tensor.name, tensor.memory, "sbuf, psum")
    if tensor.indirection is not None:
        refuse(CompilerError, "a view can be indirect once only", tensor.name, repr(tensor), "one index")
    if not tensor.is_contiguous():
        refuse(
            CompilerError, "the free dimensions of an indirect tensor must be contiguous", tensor.name,
            tensor.get_pattern(), "contiguous",
        )  # fmt: skip
    if not isinstance(index, NkiTensor):
        refuse(CompilerError, "index must be a tensor", "index", type(index).__name__, "a tensor in SBUF")
    if index.memory != SBUF or index.indirection is not None:
        refuse(HardwareError, "index must be a plain tensor in SBUF", "index", repr(index), SBUF)
    if index.dtype not in _INDEX_DTYPES:
        refuse(HardwareError, "index must hold integers", "index", index.dtype, _INDEX_DTYPES)
    if index.ndim != 2 or index.shape[0] != tensor.shape[0]:
        refuse(
            CompilerError, "index must be (P, K) with the partitions of the tensor", "index", index.shape,
            (tensor.shape[0], "K"),
        )  # fmt: skip
    count = index.size if num_elem is None else int(num_elem)
    if not 1 <= count <= index.size:
        refuse(CompilerError, "num_elem must be at least 1 and at most the size of index", "num_elem", count,
               index.size)  # fmt: skip
    reach = int(np.prod(tensor.shape[1:], dtype=np.int64))
    return NkiTensor(
        (tensor.shape[0], count),
        tensor.dtype,
        tensor.storage,
        (tensor.strides[0], 1),
        tensor.offset,
        None,
        Indirect(SNAKE, index, 0, reach),
    )


def is_snake(view: NkiTensor) -> bool:
    """True for a view with tensor indirection."""
    return view.indirection is not None and view.indirection.kind == SNAKE


def check_capacity(view: NkiTensor, group: int, operand: str) -> None:
    """Raise HardwareError unless each group of partitions of ``index`` holds all offsets of ``view``."""
    partitions, count = view.shape
    index = _index(view)
    rows = min(partitions, partitions % group or group)
    limit = group * index.shape[1] if rows == group else min(rows, group * index.shape[1])
    if count > limit:
        raise HardwareError(
            f"a group of {group} partitions of index {index.shape} holds {limit} offsets: give num_elem",
            operand=operand,
            value=count,
            limit=limit,
        )


def check_base_partitions(klass: InstructionClass, operands: tuple[NkiTensor, ...]) -> None:
    """Raise HardwareError if manually allocated operands lie where the instruction cannot reach them together.

    The index starts a quadrant; a gathered operand starts where its index does; the index of a scattered ``dst`` starts
    where the main input does, or where the input's index does if that is in PSUM.
    """
    named: dict[str, NkiTensor] = {}
    for item, tensor in zip(klass.operands, operands, strict=True):
        named[item.name] = tensor

    def together(what: str, a: NkiTensor, b: NkiTensor, other: str) -> None:
        if a.address is None or b.address is None:
            return
        if a.form.start != b.form.start:
            raise HardwareError(
                f"{what} must start on the same partition as {other}",
                instruction=klass.instruction.short,
                operand=what,
                value=a.form.start,
                limit=b.form.start,
                generation=klass.generation,
            )

    for name, tensor in named.items():
        if not is_snake(tensor):
            continue
        index = named[name + ".index"]
        if index.address is not None and index.form.start % _QUADRANT:
            raise HardwareError(
                "the index of an indirect operand must start on a quadrant",
                instruction=klass.instruction.short,
                operand=name + ".index",
                value=index.form.start,
                limit=f"a multiple of {_QUADRANT}",
                generation=klass.generation,
            )
        if name != "dst":
            together(name, tensor, index, name + ".index")
            continue
        main = klass.instruction.indirect[1]
        source = named[main]
        if source.memory == SBUF:
            together("dst.index", index, source, main)
        elif is_snake(source):
            together("dst.index", index, named[main + ".index"], main + ".index")


def expand(klass: InstructionClass, operands: tuple[NkiTensor, ...]) -> tuple[NkiTensor, ...]:
    """The operands of a call with the index of each indirect one behind it, checked against each other."""
    result: list[NkiTensor] = []
    for tensor in operands:
        result.append(tensor)
        if tensor.indirection is not None and tensor.indirection.index is not None:
            result.append(tensor.indirection.index)
    expanded = tuple(result)
    check_base_partitions(klass, expanded)
    return expanded


def offsets(view: NkiTensor, group: int) -> NDArray[np.int64]:
    """Free offsets ``(P, num_elem)`` that each partition of ``view`` takes.

    Raises:
        HardwareError: an offset lies outside the tensor.
    """
    moved = view.indirection
    assert moved is not None
    index = _index(view)
    values = index.array().astype(np.int64)
    partitions, count = view.shape
    places = np.arange(count)
    first = np.arange(partitions) // group * group
    found: NDArray[np.int64] = values[first[:, None] + places % group, places // group]
    if np.min(found) < 0 or np.max(found) >= moved.limit:
        row, at = (int(x) for x in np.argwhere((found < 0) | (found >= moved.limit))[0])
        raise HardwareError(
            f"offset {at} of partition {row} leaves {view.name!r}",
            instruction="indirect",
            operand=f"index {index.name!r}",
            value=int(found[row, at]),
            limit=f"{moved.limit} elements a partition",
            generation="v4",
        )
    return found


def gather(view: NkiTensor, group: int = GROUP) -> NDArray[Any]:
    """A copy of the elements that ``view`` names."""
    return np.take_along_axis(_whole(view), offsets(view, group), axis=1)


def scatter(view: NkiTensor, values: NDArray[Any], group: int) -> None:
    """Write ``values`` to the elements that ``view`` names; of equal offsets the last one stays."""
    storage = view.storage
    if not storage.writable:
        storage.make_writable()
    storage.shadow = None
    where = offsets(view, group)
    whole = _whole(view)
    for column in range(where.shape[1]):
        whole[np.arange(len(where)), where[:, column]] = values[:, column]


def stand_in(view: NkiTensor, group: int) -> NkiTensor:
    """A plain tensor that holds what ``view`` names, for a meaning to read or write in its place."""
    partitions, count = view.shape
    size = view.dtype.itemsize
    storage = Storage(
        -1, view.name, view.memory, view.buffer, view.dtype, view.shape, partitions, count * size
    )  # fmt: skip
    storage.full = True
    form = Form.of(view.memory, view.dtype, view.shape, (view.form.strides[0], 1), view.form.start)
    tensor = NkiTensor(view.shape, view.dtype, storage, (count, 1), 0, form)
    tensor.array()[...] = gather(view, group)
    return tensor


def touched(core: Core, view: NkiTensor, group: int, line: int) -> NDArray[np.int64]:
    """Byte intervals of a partition that a gather reads, in any of its groups; a finding where groups differ."""
    where = offsets(view, group)
    if (where != where[0]).any():
        core.launch.add_finding(
            "indirect-groups",
            f"the offsets of {view.name!r} differ between groups of {group} partitions; the documentation gives those "
            "of the first group only",
            line,
        )
    size = view.dtype.itemsize
    begins = np.unique(where) * size + view.place()[1]
    return np.stack((begins, begins + size), axis=1)


def region_key(view: NkiTensor) -> tuple[int, int, int]:
    """Names the elements of ``view`` as long as nobody writes its index."""
    index = _index(view)
    start, offset = view.place()
    return start, offset, hash((view.form.id, index.storage.id, index.offset, index.storage.writers))


def _index(view: NkiTensor) -> NkiTensor:
    assert view.indirection is not None
    assert view.indirection.index is not None
    return view.indirection.index


def _whole(view: NkiTensor) -> NDArray[Any]:
    """All elements that an index may name."""
    assert view.indirection is not None
    plain = NkiTensor((view.shape[0], view.indirection.limit), view.dtype, view.storage, view.strides, view.offset)
    return plain.array()
