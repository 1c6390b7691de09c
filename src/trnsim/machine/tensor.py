"""``NkiTensor``: a strided view of a storage, as NKI 0.6 documents it.

Element ``(i, ...)`` of a view lies at ``offset + sum(strides[k] * i[k])``, counted in elements of the view's dtype. On
chip the first dimension is the partitions, and a step of one partition counts as the free elements of the storage's
partition. Views never copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError, IndexRangeError, InternalError, UnsupportedError
from trnsim.machine.form import HBM, PSUM, Form
from trnsim.numerics import as_dtype, from_float32, to_float32
from trnsim.numerics.formats import float32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from trnsim.machine.storage import Storage
    from trnsim.numerics import DType

_BANK_BYTES = 2048

assign: Callable[[NkiTensor, Any], None] | None = None  # ``tensor[key] = value``; isa/ sets it


@dataclass(frozen=True)
class Indirect:
    """How an index tensor moves a view.

    ``vector``: row ``i`` of the view starts ``index[i] * stride`` elements on; ``limit`` is the size of the dimension.
    ``snake``: the columns of an on-chip view are the free offsets in ``index``; ``limit`` is the free size.
    ``outside``: a run-time scalar index, ``stride``, that is not below ``limit``; the instruction decides whether that
    is an error or skips the access.
    """

    kind: str
    index: NkiTensor | None
    stride: int
    limit: int


@dataclass(frozen=True)
class DynamicSlice:
    """``nl.ds(start, size)``."""

    start: Any
    size: int


class NkiTensor:
    """A tensor in SBUF, PSUM or HBM, or a view of one.

    Attributes:
        shape, strides, offset: the view, in elements of ``dtype``.
        dtype: the number format (a string).
        buffer: the memory region it was made in.
        name: the name it was given, or an automatic one.
    """

    __slots__ = ("_form", "dtype", "indirection", "offset", "shape", "storage", "strides")

    __array_priority__ = 1000

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        storage: Storage,
        strides: tuple[int, ...],
        offset: int = 0,
        form: Form | None = None,
        indirection: Indirect | None = None,
    ) -> None:
        self.shape, self.dtype, self.storage = shape, dtype, storage
        self.strides, self.offset = strides, offset
        self._form = form
        self.indirection = indirection

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def buffer(self) -> Any:
        return self.storage.buffer

    @property
    def name(self) -> str:
        return self.storage.name

    @property
    def address(self) -> tuple[int, int] | None:
        """The explicit ``(partition, byte)`` it was placed at, or None."""
        return self.storage.address

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def memory(self) -> str:
        return self.storage.memory

    @property
    def on_chip(self) -> bool:
        return self.storage.memory != HBM

    @property
    def partition_elements(self) -> int:
        """Elements of this dtype in a partition of the storage."""
        return self.storage.row_bytes // self.dtype.itemsize

    def place(self) -> tuple[int, int]:
        """``(start partition, byte)`` of the first element; partition 0 and a byte of the storage in HBM."""
        size = self.dtype.itemsize
        if self.storage.memory == HBM:
            return 0, self.offset * size
        row_bytes = self.storage.row_bytes
        start, offset = divmod(self.offset * size, row_bytes)
        return start, offset

    @property
    def form(self) -> Form:
        form = self._form
        if form is None:
            storage = self.storage
            moved = self.indirection
            indirect = 0 if moved is None else -1 if moved.index is None else moved.index.form.id + 1
            if storage.memory == HBM:
                form = Form.of(HBM, self.dtype, self.shape, self.strides, 0, 0, indirect)
            else:
                size = self.dtype.itemsize
                row_bytes = storage.row_bytes
                start, offset = divmod(self.offset * size, row_bytes) if self.offset else (0, 0)
                address = storage.address
                if address is not None:
                    start += address[0]
                    offset += address[1]
                strides = (self.strides[0] // (row_bytes // size) if self.shape[0] > 1 else 1, *self.strides[1:])
                phase = offset % _BANK_BYTES if storage.memory == PSUM else 0
                reach = moved.limit if moved is not None and moved.kind == "snake" else 0
                form = Form.of(storage.memory, self.dtype, self.shape, strides, start, phase, indirect, reach)
            self._form = form
        return form

    def is_contiguous(self) -> bool:
        """True if the view is row-major without gaps (on chip: within each partition)."""
        expected = 1
        for n, s in zip(reversed(self.shape[self.on_chip :]), reversed(self.strides[self.on_chip :]), strict=True):
            if n != 1:
                if s != expected:
                    return False
                expected *= n
        return True

    def get_pattern(self) -> list[list[int]]:
        """The access pattern ``[[stride, count], ...]`` in the order of ``shape``."""
        return [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]

    def is_indirect(self) -> bool:
        """True if an index tensor takes part in the addressing."""
        return self.indirection is not None

    def __repr__(self) -> str:
        return f"NkiTensor({self.name!r}, {self.dtype}, {self.shape}, {self.storage.memory})"

    def __bool__(self) -> bool:
        """True: a tensor is there. Kernels test optional arguments so; a comparison's result is no tensor in NKI."""
        return True

    def __len__(self) -> int:
        return self.shape[0]

    # -- indexing --------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> NkiTensor:
        keys = key if type(key) is tuple else (key,)
        shape, strides = self.shape, self.strides
        if self.indirection is not None:
            self._check_static(keys)
        rank = len(shape)
        for item in keys:
            if item is Ellipsis:
                if not _has_tensor(keys):
                    at = [k is Ellipsis for k in keys].index(True)
                    keys = keys[:at] + (slice(None),) * (rank - len(keys) + 1) + keys[at + 1 :]
                break
        if len(keys) > rank:
            raise IndexRangeError(f"{len(keys)} indices for {self!r} with {rank} dimensions")
        on_chip = self.storage.memory != HBM
        offset = self.offset
        new_shape: list[int] = []
        new_strides: list[int] = []
        dropped: list[int] = []
        view = NkiTensor
        for dim, item in enumerate(keys):
            size = shape[dim]
            if type(item) is slice or type(item) is range:  # a range is what nl.affine_range and its like return
                start, stop, step = item.start, item.stop, item.step
                start = 0 if start is None else (start if type(start) is int else _integer(start))
                stop = size if stop is None else (stop if type(stop) is int else _integer(stop))
                if step is None:
                    if 0 <= start < stop <= size:
                        offset += start * strides[dim]
                        new_shape.append(stop - start)
                        new_strides.append(strides[dim])
                        continue
                    step = 1
                else:
                    step = _integer(step)
                if start < 0:
                    start += size
                if stop < 0:
                    stop += size
                if not 0 <= start < stop <= size or step < 1:
                    raise self._range_error(dim, f"{item.start}:{item.stop}" + (f":{step}" if step != 1 else ""))
                offset += start * strides[dim]
                new_shape.append((stop - start) if step == 1 else -(-(stop - start) // step))
                new_strides.append(strides[dim] * step)
            elif type(item) is DynamicSlice:
                start, count = _integer(item.start), _integer(item.size)
                if not 0 <= start <= start + count <= size:
                    raise self._range_error(dim, f"ds({start}, {count})")
                view = view if count else _EmptyView
                offset += start * strides[dim]
                new_shape.append(count)
                new_strides.append(strides[dim])
            elif isinstance(item, NkiTensor):
                if len(keys) != 1 and any(not _is_full(k) for k in keys[dim + 1 :]):
                    raise UnsupportedError("a tensor index must be the last index; slice the result instead")
                return self[keys[:dim]].select(dim, item) if dim else self.select(0, item)
            elif item is None:
                raise CompilerError("None is not an index here; use expand_dim", value=repr(self))
            else:
                index = _integer(item)
                if index < 0:
                    index += size
                if not 0 <= index < size:
                    raise self._range_error(dim, str(item))
                offset += index * strides[dim]
                if on_chip and dim == 0:
                    new_shape.append(1)
                    new_strides.append(strides[0])
                else:
                    dropped.append(dim)
        new_shape.extend(shape[len(keys) :])
        new_strides.extend(strides[len(keys) :])
        least = 2 if on_chip else 1
        while len(new_shape) < least:
            new_shape.append(1)
            new_strides.append(1)
        return view(tuple(new_shape), self.dtype, self.storage, tuple(new_strides), offset, None, self.indirection)

    def _check_static(self, keys: tuple[Any, ...]) -> None:
        self._check_plain()
        first = keys[0] if keys else slice(None)
        if first is not Ellipsis and not _is_full(first):
            raise CompilerError("the indirect dimension of a view cannot be sliced or selected again", value=repr(self))

    def _check_plain(self) -> None:
        if self.indirection is not None and self.indirection.kind == "snake":
            raise CompilerError("a view with tensor indirection cannot be viewed again", value=repr(self))

    def _range_error(self, dim: int, what: str) -> IndexRangeError:
        return IndexRangeError(
            f"index {what} is out of range for dimension {dim} of {self!r}",
            operand=self.name,
            value=what,
            limit=f"0 <= start < end <= {self.shape[dim]}",
        )

    def _no_operator(self, *_: Any) -> Any:
        raise CompilerError(
            "tensors have no Python operators since NKI 0.2: use nl.add and the like, or nisa.tensor_tensor",
            value=repr(self),
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _no_operator
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = __and__ = __or__ = __xor__ = __invert__ = _no_operator
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __lt__ = __le__ = __gt__ = __ge__ = _no_operator

    def __setitem__(self, key: Any, value: Any) -> None:
        assert assign is not None
        assign(self[key], value)

    # -- views -----------------------------------------------------------------------------------------------------

    def _view(
        self,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int | None = None,
        dtype: DType | None = None,
    ) -> NkiTensor:
        if self.indirection is not None:
            self._check_plain()
        return NkiTensor(
            tuple(shape),
            dtype or self.dtype,
            self.storage,
            tuple(strides),
            self.offset if offset is None else offset,
            None,
            self.indirection,
        )

    def _dim(self, dim: int, *, free: bool = False, what: str = "dim", extra: int = 0) -> int:
        rank = self.ndim + extra
        index = dim + rank if dim < 0 else dim
        if not 0 <= index < rank:
            raise IndexRangeError(f"{what} {dim} is out of range for {self!r} with {self.ndim} dimensions")
        if free and index == 0 and (self.on_chip or self.indirection is not None):
            raise HardwareError("the partition dimension cannot be changed by this view", operand=what, value=dim)
        return index

    def permute(self, dims: Sequence[int]) -> NkiTensor:
        """Dimensions in the order ``dims``; on chip ``dims[0]`` must be 0."""
        order = tuple(dims)
        if sorted(order) != list(range(self.ndim)):
            raise CompilerError("dims must be a permutation of the dimensions", value=order, limit=self.ndim)
        if order[0] != 0 and (self.on_chip or self.indirection is not None):
            raise HardwareError("the partition dimension must stay first", operand="dims", value=order)
        return self._view([self.shape[d] for d in order], [self.strides[d] for d in order])

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        """Repeat a dimension of size one ``size`` times."""
        dim = self._dim(dim, free=True)
        if self.shape[dim] != 1:
            raise CompilerError("only a dimension of size 1 can be broadcast", operand=f"dim {dim}", value=self.shape)
        shape, strides = list(self.shape), list(self.strides)
        shape[dim], strides[dim] = size, 0
        return self._view(shape, strides)

    def expand_dim(self, dim: int) -> NkiTensor:
        """A new dimension of size one at position ``dim``."""
        dim = self._dim(dim, free=True, extra=1)
        shape, strides = list(self.shape), list(self.strides)
        strides.insert(dim, strides[dim] * shape[dim] if dim < len(shape) else 1)
        shape.insert(dim, 1)
        return self._view(shape, strides)

    def squeeze_dim(self, dim: int) -> NkiTensor:
        """Without dimension ``dim``, which must have size one."""
        dim = self._dim(dim, free=True)
        if self.shape[dim] != 1:
            raise CompilerError("only a dimension of size 1 can be squeezed", operand=f"dim {dim}", value=self.shape)
        return self._view(self.shape[:dim] + self.shape[dim + 1 :], self.strides[:dim] + self.strides[dim + 1 :])

    def reshape_dim(self, dim: int, shape: Sequence[int]) -> NkiTensor:
        """Split dimension ``dim`` into ``shape`` (one entry may be -1)."""
        sizes = list(shape)
        dim = self._dim(dim, free=len(sizes) != 1)
        if sizes.count(-1) == 1:
            known = int(math.prod(s for s in sizes if s != -1))
            sizes[sizes.index(-1)] = self.shape[dim] // max(known, 1)
        if math.prod(sizes) != self.shape[dim]:
            raise CompilerError("the new sizes must multiply to the old", value=tuple(shape), limit=self.shape[dim])
        strides: list[int] = []
        stride = self.strides[dim]
        for size in reversed(sizes):
            strides.insert(0, stride)
            stride *= size
        return self._view(
            (*self.shape[:dim], *sizes, *self.shape[dim + 1 :]),
            (*self.strides[:dim], *strides, *self.strides[dim + 1 :]),
        )

    def flatten_dims(self, start_dim: int, end_dim: int) -> NkiTensor:
        """Merge dimensions ``start_dim`` to ``end_dim`` (inclusive), which must be contiguous."""
        first, last = self._dim(start_dim, free=True), self._dim(end_dim)
        merged = self.shape[first : last + 1]
        stride = _merged_stride(merged, self.strides[first : last + 1])
        if stride is None:
            raise CompilerError(
                "these dimensions are not contiguous in memory", operand="flatten_dims", value=repr(self)
            )
        return self._view(
            (*self.shape[:first], int(math.prod(merged)), *self.shape[last + 1 :]),
            (*self.strides[:first], stride, *self.strides[last + 1 :]),
        )

    def reshape(self, *dims: Any, shape: Any = None, new_shape: Any = None) -> NkiTensor:
        """The same elements with another shape, given as one argument or several; fails if the layout forbids a view.

        ``new_shape`` is the name that NKI 0.4 gave to ``shape``.
        """
        given = [x for x in (dims or None, shape, new_shape) if x is not None]
        if len(given) != 1:
            raise CompilerError("reshape takes one shape", operand="shape", value=given)
        target = list(given[0][0] if len(given[0]) == 1 and isinstance(given[0][0], (tuple, list)) else given[0])
        if target.count(-1) == 1:
            known = int(math.prod(s for s in target if s != -1))
            target[target.index(-1)] = self.size // max(known, 1)
        if math.prod(target) != self.size:
            raise CompilerError("reshape must keep the number of elements", value=tuple(target), limit=self.shape)
        fixed = int(self.on_chip or self.indirection is not None)
        if fixed and (not target or target[0] != self.shape[0]):
            raise HardwareError(
                "reshape cannot change the partition dimension", operand="shape", value=tuple(target), limit=self.shape
            )
        strides = _reshape_strides(self.shape[fixed:], self.strides[fixed:], target[fixed:])
        if strides is None:
            raise CompilerError("this layout cannot be viewed with that shape", value=tuple(target), limit=repr(self))
        return self._view(target, (*self.strides[:fixed], *strides))

    def rearrange(
        self,
        src_pattern: Sequence[Any],
        dst_pattern: Sequence[Any],
        fixed_sizes: dict[str, int] | None = None,
    ) -> NkiTensor:
        """Split, reorder and merge dimensions by name: ``(('b', ('h', 'w')), ('b', 'w', 'h'), {'h': 4})``."""
        sizes = dict(fixed_sizes or {})
        tensor = self
        names: list[str] = []
        if len(src_pattern) != self.ndim:
            raise CompilerError("the source pattern must name every dimension", value=src_pattern, limit=self.shape)
        for item in src_pattern:
            group = (item,) if isinstance(item, str) else tuple(item)
            if len(group) > 1:
                tensor = tensor.reshape_dim(len(names), tuple(sizes.get(n, -1) for n in group))
            names.extend(group)
        flat = [n for item in dst_pattern for n in ((item,) if isinstance(item, str) else item)]
        if sorted(flat) != sorted(names):
            raise CompilerError("both patterns must have the same names", value=dst_pattern, limit=src_pattern)
        tensor = tensor.permute([names.index(n) for n in flat])
        for dim, item in enumerate(dst_pattern):
            if not isinstance(item, str) and len(item) > 1:
                tensor = tensor.flatten_dims(dim, dim + len(item) - 1)
        return tensor

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
        """Elements ``start:end:step`` of dimension ``dim``."""
        dim = self._dim(dim)
        if not 0 <= start < end <= self.shape[dim] or step < 1:
            raise self._range_error(dim, f"{start}:{end}:{step}")
        keys = [slice(None)] * dim + [slice(start, end, step)]
        return self[tuple(keys)]

    def select(self, dim: int, index: Any) -> NkiTensor:
        """Element ``index`` of dimension ``dim``, which is dropped; a tensor or register selects at run time."""
        dim = self._dim(dim)
        if isinstance(index, NkiTensor) or _is_register(index):
            if self.indirection is not None:
                raise CompilerError("a view can be indirect once only", value=repr(self))
            if dim == 0 and self.on_chip:
                raise HardwareError("the partition dimension cannot be selected at run time", operand=f"dim {dim}")
            pattern = [[s, n] for d, (s, n) in enumerate(zip(self.strides, self.shape, strict=True)) if d != dim]
            value = _scalar_value(index, self)
            inside = 0 <= value < self.shape[dim]
            return NkiTensor(
                tuple(n for _, n in pattern) or (1,),
                self.dtype,
                self.storage,
                tuple(s for s, _ in pattern) or (1,),
                self.offset + (value * self.strides[dim] if inside else 0),
                None,
                None if inside else Indirect("outside", None, value, self.shape[dim]),
            )
        index = _integer(index)
        if not 0 <= index < self.shape[dim]:
            raise self._range_error(dim, str(index))
        keys: list[Any] = [slice(None)] * dim + [index]
        return self[tuple(keys)]

    def vector_select(self, dim: int, vector_offset: NkiTensor) -> NkiTensor:
        """Row ``vector_offset[i]`` of dimension 0 for each partition ``i`` (HBM tensors only)."""
        if dim != 0:
            raise CompilerError("vector_select works on dimension 0 only", operand="dim", value=dim)
        pattern = [[self.strides[0], vector_offset.shape[0]], *self.get_pattern()[1:]]
        return self.ap(pattern, vector_offset=vector_offset, indirect_dim=0)

    def ap(
        self,
        pattern: Sequence[Sequence[int]],
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: NkiTensor | None = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        """An explicit access pattern ``[[stride, count], ...]`` over the storage, in elements.

        ``offset`` (elements) adds to the view's own. ``scalar_offset`` (a register or a 1x1 tensor) moves the whole
        pattern by that many strides of ``indirect_dim``; ``vector_offset`` (a ``(P, 1)`` SBUF tensor, HBM views only)
        moves each row.

        Raises:
            HardwareError: more than 5 dimensions, a pattern outside the storage (once it is accessed), or a
                partition stride that is not one partition of the storage.
        """
        kind = self.dtype if dtype is None else as_dtype(dtype)
        if scalar_offset is not None and vector_offset is not None:
            raise CompilerError("scalar_offset and vector_offset exclude each other", instruction="ap")
        if not pattern or len(pattern) > 5:
            raise HardwareError(
                "an access pattern has 1 to 5 dimensions", instruction="ap", value=len(pattern), limit=5
            )
        strides = tuple([p[0] if type(p[0]) is int else _integer(p[0]) for p in pattern])
        shape = tuple([p[1] if type(p[1]) is int else _integer(p[1]) for p in pattern])
        ratio = self.dtype.itemsize / kind.itemsize
        base = self.offset if ratio == 1 else int(self.offset * ratio)
        at = base + (0 if offset is None else _integer(offset))
        if min(shape) < 1:
            raise HardwareError("counts must be positive", instruction="ap", operand="pattern", value=pattern)
        if self.on_chip:
            per_partition = self.storage.row_bytes // kind.itemsize
            own = math.prod(self.shape[1:]) * self.dtype.itemsize // kind.itemsize
            if shape[0] > 1 and strides[0] % per_partition and own and strides[0] % own == 0:
                # Of a slice, public kernels count a partition as the slice's own free elements.
                strides = (strides[0] // own * per_partition, *strides[1:])
            if shape[0] > 1 and (strides[0] % per_partition or strides[0] <= 0):
                raise HardwareError(
                    "the first stride of an on-chip pattern must step whole partitions",
                    instruction="ap",
                    operand="pattern[0]",
                    value=strides[0],
                    limit=per_partition,
                )
        indirection = None
        if scalar_offset is not None or vector_offset is not None:
            if self.indirection is not None:
                raise CompilerError("a view can be indirect once only", value=repr(self))
            whole = self._base_shape()
            stride = math.prod(whole[indirect_dim + 1 :])
            limit = whole[indirect_dim] if indirect_dim < len(whole) else 1
            if scalar_offset is not None:
                value = _scalar_value(scalar_offset, self)
                if value >= limit:
                    # What ends an index is the end of the tensor: public kernels count beyond an inner dimension of
                    # size 1 in strides that it shares with the dimension before it.
                    last = at + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s > 0)
                    elements = self.storage.rows * self.storage.row_bytes // kind.itemsize
                    limit = max(limit, (elements - 1 - last) // max(stride, 1) + 1)
                if not 0 <= value < limit:
                    return NkiTensor(
                        shape, kind, self.storage, strides, at, None, Indirect("outside", None, value, limit)
                    )
                at += value * stride
            else:
                assert vector_offset is not None
                if self.on_chip or indirect_dim != 0:
                    raise HardwareError(
                        "vector_offset needs an HBM tensor and indirect_dim 0",
                        instruction="ap",
                        operand="vector_offset",
                        value=f"{self.memory}, indirect_dim {indirect_dim}",
                    )
                indirection = Indirect("vector", vector_offset, stride, limit)
        view = NkiTensor(shape, kind, self.storage, strides, at, None, indirection)
        if indirection is None:
            try:
                view.check_bounds("ap")
            except HardwareError:
                return _OutsideView(shape, kind, self.storage, strides, at)
        return view

    def _base_shape(self) -> tuple[int, ...]:
        """The shape that a run-time index counts in: the view's own if it is a reshape of the whole storage, else the
        storage's.
        """
        storage = self.storage
        if self.offset or self.shape == storage.shape or not self.is_contiguous():
            return storage.shape
        whole = self.size * self.dtype.itemsize == storage.rows * storage.row_bytes
        return self.shape if whole else storage.shape

    def check_bounds(self, what: str) -> None:
        """Raise HardwareError if the view reaches outside its storage."""
        storage = self.storage
        low = high = self.offset
        for n, s in zip(self.shape, self.strides, strict=True):
            if s > 0:
                high += (n - 1) * s
            else:
                low += (n - 1) * s
        limit = storage.rows * storage.row_bytes // self.dtype.itemsize
        if low < 0 or high >= limit:
            raise HardwareError(
                f"access pattern {self.get_pattern()} at offset {self.offset} leaves {storage.name!r}",
                instruction=what,
                value=f"elements {low} to {high}",
                limit=f"{limit} elements",
            )
        if self.on_chip:
            per_partition = self.partition_elements
            first = self.offset % per_partition
            free = 0
            for n, s in zip(self.shape[1:], self.strides[1:], strict=True):
                free += (n - 1) * s
            if first + free >= per_partition:
                raise HardwareError(
                    f"access pattern {self.get_pattern()} at offset {self.offset} runs past the partition of "
                    f"{storage.name!r}",
                    instruction=what,
                    value=f"free element {first + free}",
                    limit=f"{per_partition} elements a partition",
                )

    def view(self, dtype: Any) -> NkiTensor:
        """The same bytes as another dtype; the last dimension is scaled by the ratio of the sizes."""
        kind = as_dtype(dtype)
        old, new = self.dtype.itemsize, kind.itemsize
        if self.indirection is not None:
            raise CompilerError("an indirect view cannot be reinterpreted", value=repr(self))
        if old == new:
            return self._view(self.shape, self.strides, dtype=kind)
        last, stride = self.shape[-1], self.strides[-1]
        if last > 1 and stride != 1:
            raise CompilerError("the last dimension must be contiguous to be reinterpreted", value=repr(self))
        if (last * old) % new or (self.offset * old) % new or any((s * old) % new for s in self.strides[:-1]):
            raise CompilerError(
                f"{self.dtype} {self.shape} does not divide into {kind}", operand="dtype", value=last * old, limit=new
            )
        strides = tuple(s * old // new for s in self.strides[:-1])
        return self._view((*self.shape[:-1], last * old // new), (*strides, 1), self.offset * old // new, kind)

    reinterpret_cast = view

    def indirect(self, index: NkiTensor, num_elem: int | None = None) -> NkiTensor:
        """The columns of this on-chip tensor that ``index`` names, ``(P, num_elem)`` (NeuronCore-v4).

        ``index`` is ``(P, K)`` integers in SBUF: offset ``i`` into the free elements is ``index[i % G, i // G]``, where
        G is 16 partitions, on TensorE 32. ``num_elem`` defaults to all of ``index``. As an input the view gathers, as
        ``dst`` it scatters; each instruction says which operands can. See ``machine/indirection.py``.

        Raises:
            HardwareError: before NeuronCore-v4, an operand in the wrong memory, or an index that holds no integers.
        """
        from trnsim.machine.indirection import indirect_view

        return indirect_view(self, index, num_elem)

    # -- data ------------------------------------------------------------------------------------------------------

    def array(self) -> NDArray[Any]:
        """The elements as a NumPy view of the storage's bytes; a gathered copy if an index names them."""
        if self.indirection is not None and self.indirection.kind == "snake":
            from trnsim.machine.indirection import gather

            return gather(self)
        storage = self.storage
        if storage.chain is not None:
            storage.chain.flush()
        dtype = self.dtype
        size = dtype.itemsize
        data = storage.base
        if data is None:
            data = storage.bytes()
        if storage.arena is None:
            return np.ndarray(self.shape, dtype.numpy, data, self.offset * size, [s * size for s in self.strides])
        per_partition = storage.row_bytes // size
        start, free = divmod(self.offset, per_partition)
        return np.ndarray(
            self.shape,
            self.dtype.numpy,
            data,
            storage.pitch_offset + start * storage.pitch + free * size,
            (self.strides[0] // per_partition * storage.pitch, *[s * size for s in self.strides[1:]]),
        )

    def as_float32(self) -> NDArray[np.float32]:
        """The elements upcast exactly to float32 (a view if they are float32 already)."""
        return self.array() if self.dtype is float32 else to_float32(self.array(), self.dtype)

    def as_float32_shared(self) -> NDArray[np.float32]:
        """As ``as_float32``, but the whole storage is upcast once and kept until it is written again."""
        storage = self.storage
        if self.dtype.itemsize == 4 or storage.arena is not None or self.dtype is not storage.dtype:
            return self.as_float32()
        shadow = storage.shadow
        if shadow is None:
            if storage.shadow_misses > 4:
                return self.as_float32()
            storage.shadow_misses += 1
            flat = storage.bytes().view(self.dtype.numpy)
            shadow = storage.shadow = to_float32(flat, self.dtype)
        else:
            storage.shadow_misses = 0
        return np.ndarray(self.shape, np.float32, shadow, self.offset * 4, tuple([s * 4 for s in self.strides]))

    def store_float32(self, values: NDArray[np.float32]) -> None:
        """Write float32 results, rounded to this dtype."""
        storage = self.storage
        if not storage.writable:
            storage.make_writable()
        storage.shadow = None
        target = self.array()
        if values.shape != self.shape:
            values = values.reshape(self.shape)
        if self.dtype is float32:
            target[...] = values
        else:
            from_float32(values, self.dtype, out=target)

    def store(self, values: NDArray[Any]) -> None:
        """Write values that are in this dtype already, bit for bit."""
        storage = self.storage
        if not storage.writable:
            storage.make_writable()
        storage.shadow = None
        self.array()[...] = values.reshape(self.shape) if values.shape != self.shape else values


class _OutsideView(NkiTensor):
    """A pattern that leaves its storage: kernels make some that they do not use; an access is an error."""

    __slots__ = ()

    @property
    def form(self) -> Form:
        self.check_bounds("ap")
        raise InternalError("a view outside its storage passed its check")

    def array(self) -> NDArray[Any]:
        self.check_bounds("ap")
        raise InternalError("a view outside its storage passed its check")


class _EmptyView(NkiTensor):
    """A view of no elements, ``t[nl.ds(start, 0)]``: cores without work make some; an access is an error."""

    __slots__ = ()

    def _refuse(self) -> IndexRangeError:
        return IndexRangeError(
            f"a view of {self.name!r} with shape {self.shape} has no elements to access",
            operand=self.name,
            value=self.shape,
            limit="1 element or more",
        )

    @property
    def form(self) -> Form:
        raise self._refuse()

    def array(self) -> NDArray[Any]:
        raise self._refuse()


def _has_tensor(keys: tuple[Any, ...]) -> bool:
    return any(isinstance(k, NkiTensor) for k in keys)


def _is_full(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _is_register(value: Any) -> bool:
    from trnsim.machine.registers import VirtualRegister

    return isinstance(value, VirtualRegister)


def _integer(value: Any) -> int:
    """An index as an int; a register is read (which makes a time-only run compute it)."""
    if type(value) is int:
        return value
    if hasattr(value, "__index__"):
        return int(value.__index__())
    raise TypeError(f"an index must be an integer, slice, nl.ds or register, not {type(value).__name__}")


def _scalar_value(source: Any, view: NkiTensor) -> int:
    """A run-time scalar index (register or 1x1 tensor), read as unsigned like the hardware's bounds check."""
    from trnsim.machine.core import scalar_index

    return scalar_index(source, view)


def _merged_stride(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of the merged dimension, or None if the dimensions do not follow each other."""
    result = None
    expected = None
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        if n == 1:
            continue
        if expected is None:
            result = s
        elif s != expected:
            return None
        expected = s * n
    return 1 if result is None else result


def _reshape_strides(shape: Sequence[int], strides: Sequence[int], target: Sequence[int]) -> list[int] | None:
    """Strides of ``target`` over the same elements, or None if no view exists."""
    if 0 in target:
        return [1] * len(target)
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    groups: list[tuple[int, int]] = []
    for n, s in old:
        if groups and groups[-1][1] == s * n:
            groups[-1] = (groups[-1][0] * n, s)
        else:
            groups.append((n, s))
    result: list[int] = []
    index, left = len(groups) - 1, groups[-1][0] if groups else 1
    stride = groups[-1][1] if groups else 1
    for n in reversed(target):
        if n == 1:
            result.insert(0, stride)
            continue
        if left == 1 and index > 0:
            index -= 1
            left, stride = groups[index]
        if left % n:
            return None
        result.insert(0, stride)
        stride *= n
        left //= n
    return result
