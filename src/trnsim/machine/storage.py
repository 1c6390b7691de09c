"""A storage: what one ``nl.ndarray`` call makes, with its bytes while the kernel runs."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trnsim.machine.coverage import Coverage, intervals_of
from trnsim.machine.form import HBM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.form import Form
    from trnsim.machine.products import Products
    from trnsim.numerics import DType


_pool: dict[int, list[NDArray[np.uint8]]] = {}
_POOL_BYTES = 32 << 20  # of buffers kept for reuse, of each size
_BLOCK = 2048  # bytes of a partition by which an arena finds storages


class Pending(Protocol):
    """Work that was put off; ``flush`` does it."""

    def flush(self) -> None: ...


class Storage:
    """One tensor's memory.

    An automatic storage is an array of its own. One with an explicit ``address`` lies in its memory's arena, so that
    storages whose addresses overlap share bytes. Bytes appear on first touch: a time-only run has none.

    ``chain`` is work put off that writes this storage (matmuls accumulating into it), ``pins`` work put off that reads
    it: they are done before anybody else reads or writes.

    ``rows`` x ``row_bytes``: partitions and bytes a partition on chip; in HBM the last dimension is a row.
    """

    __slots__ = (
        "__weakref__",
        "_coverage",
        "address",
        "arena",
        "base",
        "buffer",
        "chain",
        "core",
        "declared",
        "dtype",
        "full",
        "host",
        "id",
        "kind",
        "known",
        "line",
        "memory",
        "name",
        "pe_regions",
        "pins",
        "pitch",
        "pitch_offset",
        "row_bytes",
        "rows",
        "shadow",
        "shadow_misses",
        "shape",
        "whole",
        "writable",
        "writers",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        name: str,
        memory: str,
        buffer: Any,
        dtype: DType,
        shape: tuple[int, ...],
        rows: int,
        row_bytes: int,
    ) -> None:
        self.id, self.name, self.memory, self.buffer = number, name, memory, buffer
        self.dtype, self.shape, self.rows, self.row_bytes = dtype, shape, rows, row_bytes
        self.address: tuple[int, int] | None = None
        self.arena: Any = None
        self.base: NDArray[np.uint8] | None = None
        self.pitch = row_bytes
        self.pitch_offset = 0
        self.full = False
        self.known: set[tuple[int, int, int]] = set()  # accesses (start, offset, form) within the written part
        self.whole: Form | None = None
        self._coverage: Coverage | None = None
        self.core = 0
        self.kind = "local"
        self.declared = 0
        self.line = 0
        self.host: Any = None
        self.writable = True
        self.shadow: NDArray[np.float32] | None = None
        self.shadow_misses = 0
        self.pe_regions: Products | None = None
        self.writers = 0
        self.chain: Pending | None = None
        self.pins: Pending | None = None

    def __del__(self) -> None:
        base = self.base
        # Reusing a buffer saves the page faults of a new one; it is ours alone if only we and this frame hold it.
        if base is not None and self.arena is None and self.host is None and sys.getrefcount(base) <= 3:
            pool = _pool.setdefault(len(base), [])
            if len(pool) < _POOL_BYTES // len(base):
                pool.append(base)

    @property
    def coverage(self) -> Coverage:
        """Which bytes have been written. ``full`` says so of all of them without asking for details."""
        if self._coverage is None:
            self._coverage = Coverage(self.rows, self.row_bytes, self.full)
        elif self.full:
            self._coverage.full = True
        return self._coverage

    def clear(self, bands: list[tuple[int, int, NDArray[np.int64]]]) -> None:
        """Set bytes to zero."""
        data = self.bytes()
        for low, high, intervals in bands:
            for row in range(low, high):
                at = self.pitch_offset + row * self.pitch
                for begin, end in intervals.tolist():
                    data[at + begin : at + end] = 0
        self.shadow = None

    def bytes(self) -> NDArray[np.uint8]:
        """The flat bytes behind this storage (the whole arena for an explicit address)."""
        if self.base is None:
            if self.arena is not None:
                self.base = self.arena.bytes()
            else:
                size = max(1, self.rows * self.row_bytes)
                pool = _pool.get(size)
                self.base = pool.pop() if pool else np.empty(size, np.uint8)
        return self.base

    def make_writable(self) -> None:
        """Copy bytes that belong to a read-only array of the caller before the first write."""
        if not self.writable:
            self.base = self.bytes().copy()
            self.writable = True

    def fill_missing(self, bands: list[tuple[int, int, NDArray[np.int64]]]) -> None:
        """Give unwritten bytes the official simulator's sentinels: NaN in float formats, 4 in integers."""
        data = self.bytes()
        item = np.array([4 if self.dtype.kind in ("int", "uint", "bool", "packed") else np.nan], np.float32)
        pattern = item.astype(self.dtype.numpy) if self.dtype.kind != "scale" else np.array([255], np.uint8)
        sentinel = np.frombuffer(pattern.tobytes(), np.uint8)
        for low, high, intervals in bands:
            for begin, end in intervals.tolist():
                count = -(-(end - begin) // len(sentinel)) + 1
                phase = begin % len(sentinel)
                values = np.tile(sentinel, count)[phase : phase + end - begin]
                for row in range(low, high):
                    at = self.pitch_offset + row * self.pitch + begin
                    data[at : at + end - begin] = values
        self.shadow = None


class Arena:
    """All bytes of one memory of one core, for storages with explicit addresses."""

    def __init__(self, memory: str, partitions: int, bytes_per_partition: int) -> None:
        self.memory, self.partitions, self.pitch = memory, partitions, bytes_per_partition
        self._data: NDArray[np.uint8] | None = None
        self._open: dict[int, list[weakref.ref[Storage]]] = {}  # those that may not be full yet, by block of bytes

    def bytes(self) -> NDArray[np.uint8]:
        if self._data is None:
            self._data = np.empty(self.partitions * self.pitch, np.uint8)
        return self._data

    def place(self, storage: Storage, start: int, offset: int) -> None:
        """Put ``storage`` at partition ``start``, byte ``offset``."""
        storage.arena, storage.address = self, (start, offset)
        storage.pitch, storage.pitch_offset = self.pitch, start * self.pitch + offset
        reference = weakref.ref(storage)
        for block in self._blocks(storage):
            self._open.setdefault(block, []).append(reference)

    @staticmethod
    def _blocks(storage: Storage) -> range:
        assert storage.address is not None
        first = storage.address[1]
        return range(first // _BLOCK, (first + storage.row_bytes - 1) // _BLOCK + 1)

    def unwritten(self, storage: Storage) -> list[Storage]:
        """Storages other than ``storage`` that share bytes with it and are not fully written."""
        assert storage.address is not None
        p0, b0 = storage.address
        p1, b1 = p0 + storage.rows, b0 + storage.row_bytes
        found: dict[int, Storage] = {}
        for block in self._blocks(storage):
            kept = []
            for reference in self._open[block]:
                other = reference()
                if other is None or other.full:
                    continue
                kept.append(reference)
                assert other.address is not None
                q0, c0 = other.address
                if other is not storage and q0 < p1 and p0 < q0 + other.rows and c0 < b1 and b0 < c0 + other.row_bytes:
                    found[other.id] = other
            self._open[block] = kept
        return list(found.values())


def box(storage: Storage, form: Form, start: int, offset: int) -> tuple[int, int, NDArray[np.int64]] | None:
    """Rows and byte intervals that a view touches: ``(row, row end, (n, 2) intervals)``.

    ``None`` if the view does not decompose into the same bytes of consecutive rows within reasonable size.
    """
    run = form.levels[-1][1]
    if form.memory != HBM:
        return start, start + form.partition_span, intervals_of(form.interval_offsets + offset, run)
    row_bytes = storage.row_bytes
    row, column = divmod(offset, row_bytes)
    levels = list(form.levels)
    rows = 1
    if run > row_bytes:
        if column or run % row_bytes:
            return None
        rows, run = run // row_bytes, row_bytes
        levels = [*levels[:-1], (row_bytes, rows), (1, row_bytes)]
        rows = 1
    inner = [(s, c) for s, c in levels[:-1] if s % row_bytes]
    outer = [(s // row_bytes, c) for s, c in levels[:-1] if s % row_bytes == 0]
    starts = np.zeros(1, np.int64)
    for stride, count in inner:
        starts = (starts[:, None] + np.arange(count, dtype=np.int64) * stride).ravel()
    if column + int(np.max(starts)) + run > row_bytes or np.min(starts) < 0:
        return None
    starts.sort()
    span = 1
    for stride, count in reversed(outer):
        if stride != span:
            return None
        span *= count
    rows = span
    starts = starts + column
    return row, row + rows, intervals_of(starts, run)
