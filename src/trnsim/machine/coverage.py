"""Which bytes of a storage have been written: rectangles of partitions x bytes, never a shadow byte per byte."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Beyond this many runs in one storage the record is given up (``exact`` turns False) rather than grown without bound.
_RUN_LIMIT = 65_536


def intervals_of(starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """``(n, 2)`` intervals of one length."""
    found = np.empty((len(starts), 2), np.int64)
    found[:, 0] = starts
    np.add(starts, length, out=found[:, 1])
    return found


def _merge(intervals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union of ``(n, 2)`` half-open intervals, sorted and disjoint."""
    if len(intervals) == 1:
        return intervals
    order = np.argsort(intervals[:, 0], kind="stable")
    starts, ends = intervals[order, 0], np.maximum.accumulate(intervals[order, 1])
    first = np.concatenate(([True], starts[1:] > ends[:-1]))
    last = np.concatenate((first[1:], [True]))
    found = np.empty((int(np.count_nonzero(first)), 2), np.int64)
    found[:, 0], found[:, 1] = starts[first], ends[last]
    return found


def _union(have: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union of two sets of intervals, ``have`` sorted and disjoint; quick where one new interval follows the rest."""
    if len(new) == 1:
        begin, end = new.item(0), new.item(1)
        last = have.item(-1)
        if begin > last:
            return np.concatenate((have, new))
        if begin >= have.item(-2):
            joined = have.copy()
            joined[-1, 1] = max(last, end)
            return joined
    return _merge(np.concatenate((have, new)))


def _subtract(wanted: NDArray[np.int64], have: NDArray[np.int64]) -> NDArray[np.int64]:
    """``wanted`` minus ``have``; both sorted and disjoint."""
    missing: list[tuple[int, int]] = []
    index = 0
    for begin, end in wanted.tolist():
        index = int(np.searchsorted(have[:, 1], begin, side="right"))
        at = begin
        while index < len(have) and have[index, 0] < end:
            if have[index, 0] > at:
                missing.append((at, int(have[index, 0])))
            at = int(have[index, 1])
            index += 1
        if at < end:
            missing.append((at, end))
    return np.array(missing, np.int64).reshape(-1, 2)


class Coverage:
    """The written part of a storage of ``rows`` x ``row_bytes`` bytes."""

    __slots__ = ("bands", "exact", "full", "row_bytes", "rows")

    def __init__(self, rows: int, row_bytes: int, full: bool = False) -> None:
        self.rows, self.row_bytes = rows, row_bytes
        self.full = full
        self.exact = True
        self.bands: list[tuple[int, int, NDArray[np.int64]]] = []

    def clear(self) -> None:
        """Nothing is written any more."""
        self.full = False
        self.bands.clear()

    def add(self, row: int, row_end: int, begin: int, end: int) -> None:
        """Rows ``row:row_end``, bytes ``begin:end`` are written."""
        if self.full:
            return
        if begin == 0 and end == self.row_bytes and row == 0 and row_end == self.rows:
            self.full = True
            self.bands.clear()
            return
        self._add(row, row_end, np.array([[begin, end]], np.int64))

    def add_runs(self, row: int, row_end: int, starts: NDArray[np.int64], length: int) -> None:
        """Rows ``row:row_end``, bytes ``s:s+length`` for each of ``starts`` are written."""
        if not self.full:
            self._add(row, row_end, _merge(intervals_of(starts, length)))

    def _add(self, row: int, row_end: int, intervals: NDArray[np.int64]) -> None:
        if not self.exact:
            return
        for index in range(len(self.bands) - 1, -1, -1):
            p0, p1, have = self.bands[index]
            if p0 == row and p1 == row_end:
                intervals = _union(have, intervals)
                del self.bands[index]
                break
        for index in range(len(self.bands) - 1, -1, -1):
            p0, p1, have = self.bands[index]
            if (p1 == row or p0 == row_end) and np.array_equal(have, intervals):
                row, row_end = min(p0, row), max(p1, row_end)
                del self.bands[index]
                break
        self.bands.append((row, row_end, intervals))
        if row == 0 and row_end == self.rows and intervals[0, 0] == 0 and intervals[0, 1] >= self.row_bytes:
            self.full = True
            self.bands.clear()
        elif sum(len(b[2]) for b in self.bands) > _RUN_LIMIT:
            self.exact = False
            self.bands.clear()

    def missing(self, row: int, row_end: int, wanted: NDArray[np.int64]) -> list[tuple[int, int, NDArray[np.int64]]]:
        """The part of rows ``row:row_end`` x ``wanted`` intervals that is not written, as bands."""
        if self.full or not self.exact:
            return []
        begin, end = (wanted.item(0), wanted.item(1)) if len(wanted) == 1 else (int(wanted.min()), int(wanted.max()))
        for p0, p1, have in reversed(self.bands):
            if p0 <= row and p1 >= row_end and len(have) == 1 and have.item(0) <= begin and have.item(1) >= end:
                return []
        wanted = _merge(wanted)
        cuts = {row, row_end}
        for p0, p1, _ in self.bands:
            cuts.update(p for p in (p0, p1) if row < p < row_end)
        edges = sorted(cuts)
        result = []
        for low, high in itertools.pairwise(edges):
            written = [b[2] for b in self.bands if b[0] <= low and b[1] >= high]
            left = _subtract(wanted, _merge(np.concatenate(written))) if written else wanted
            if len(left):
                result.append((low, high, left))
        return result

    def bytes_written(self) -> int:
        """How many bytes have been written (an upper bound where bands overlap)."""
        if self.full:
            return self.rows * self.row_bytes
        return sum((p1 - p0) * int((iv[:, 1] - iv[:, 0]).sum()) for p0, p1, iv in self.bands)
