"""The form of an access: everything about a view but where it lies.

Two views of equal form cost the same and obey the same rules, so checks and costs are worked out once for each form
(and each combination of forms an instruction is called with) and looked up afterwards.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trnsim.numerics import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

SBUF, PSUM, HBM = "sbuf", "psum", "hbm"


class Form:
    """Shape, strides (elements), dtype and memory of a view, interned: equal forms are the same object.

    For SBUF and PSUM the first dimension is the partitions, with its stride counted in partitions; ``start`` is the
    first partition and ``phase`` the byte within a PSUM bank. For HBM all dimensions are addresses in one line of
    bytes. ``indirect`` is nonzero for a view whose rows are chosen at run time: one more than the form of its index
    tensor (its extent is then the whole storage), or -1 for a run-time index that lies outside. ``reach`` is nonzero
    for tensor indirection: the free elements among which the index chooses.
    """

    __slots__ = (
        "__dict__", "byte_strides", "dtype", "id", "indirect", "memory", "phase", "reach", "shape", "start", "strides"
    )  # fmt: skip

    _interned: ClassVar[dict[tuple[object, ...], Form]] = {}
    table: ClassVar[list[Form]] = []

    memory: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    phase: int
    indirect: int
    reach: int
    byte_strides: tuple[int, ...]
    id: int

    @classmethod
    def of(
        cls,
        memory: str,
        dtype: DType,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        start: int = 0,
        phase: int = 0,
        indirect: int = 0,
        reach: int = 0,
    ) -> Form:
        """The interned form; its ``id`` indexes ``Form.table`` in this process."""
        key = (memory, dtype, shape, strides, start, phase, indirect, reach)
        form = cls._interned.get(key)
        if form is None:
            form = cls()
            form.memory, form.dtype, form.shape, form.strides = memory, dtype, shape, strides
            form.start, form.phase, form.indirect, form.reach = start, phase, indirect, reach
            size = dtype.itemsize
            free = strides if memory == HBM else strides[1:]
            form.byte_strides = tuple(s * size for s in free)
            form.id = len(cls.table)
            cls.table.append(form)
            cls._interned[key] = form
        return form

    @property
    def on_chip(self) -> bool:
        return self.memory != HBM

    @cached_property
    def partitions(self) -> int:
        """Partitions touched (SBUF, PSUM); 1 for HBM."""
        return 1 if self.memory == HBM else self.shape[0]

    @cached_property
    def partition_span(self) -> int:
        """Partitions from the first to the last touched, inclusive."""
        return 1 if self.memory == HBM else (self.shape[0] - 1) * self.strides[0] + 1

    @cached_property
    def free_shape(self) -> tuple[int, ...]:
        return self.shape if self.memory == HBM else self.shape[1:]

    @cached_property
    def free_strides(self) -> tuple[int, ...]:
        return self.strides if self.memory == HBM else self.strides[1:]

    @cached_property
    def elements(self) -> int:
        """Elements per partition (SBUF, PSUM) or in all (HBM)."""
        return int(np.prod(self.free_shape, dtype=np.int64))

    @cached_property
    def size(self) -> int:
        return self.elements * self.partitions

    @cached_property
    def bytes(self) -> int:
        """Bytes moved when the whole view is read once."""
        return self.size * self.dtype.itemsize

    @cached_property
    def span(self) -> int:
        """Bytes from the first to the last byte touched, within a partition (SBUF, PSUM) or the storage (HBM)."""
        last = sum((n - 1) * s for n, s in zip(self.free_shape, self.free_strides, strict=True))
        return (self.reach or last + 1) * self.dtype.itemsize

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """``(stride, count)`` of the free dimensions in bytes, outermost first, merged where they are contiguous.

        The innermost level is always ``(1, bytes of a contiguous run)``. Dimensions of size one are dropped; zero
        strides (broadcast) are dropped too, since they touch nothing new.
        """
        run = self.dtype.itemsize
        merged: list[tuple[int, int]] = []
        for count, stride in zip(reversed(self.free_shape), reversed(self.free_strides), strict=True):
            step = stride * self.dtype.itemsize
            if count == 1 or step == 0:
                continue
            if not merged and step == run:
                run *= count
            elif merged and merged[-1][0] * merged[-1][1] == step:
                merged[-1] = (merged[-1][0], merged[-1][1] * count)
            else:
                merged.append((step, count))
        return (*reversed(merged), (1, run))

    @cached_property
    def contiguous(self) -> bool:
        """True if a partition (HBM: the view) is one run of bytes."""
        return len(self.levels) == 1

    @cached_property
    def step_bytes(self) -> int:
        """Bytes between neighbouring elements of the innermost dimension longer than one."""
        for count, stride in zip(reversed(self.free_shape), reversed(self.free_strides), strict=True):
            if count > 1:
                return abs(stride) * self.dtype.itemsize
        return self.dtype.itemsize

    def runs(self) -> tuple[int, int]:
        """``(bytes of a contiguous run, number of runs)`` in all partitions together."""
        run = self.levels[-1][1]
        return run, max(1, self.bytes // run)

    @cached_property
    def interval_offsets(self) -> NDArray[np.int64]:
        """First byte of each contiguous run within a partition, ascending, relative to the first."""
        offsets = np.zeros(1, np.int64)
        for stride, count in self.levels[:-1]:
            offsets = (offsets[:, None] + np.arange(count, dtype=np.int64) * stride).ravel()
        offsets.sort()
        return offsets

    def __repr__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape))} {self.memory}"
