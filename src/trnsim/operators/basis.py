"""Where along an axis samples are taken, and how they weigh at a coordinate between or beyond them.

A coordinate is so many tiles, the last perhaps a part of one. Time at whole tiles is a straight line between *knots*.
Knots lie closer where a loop begins: in the first block, and in the second, which stands for all that follow. Beyond it
time grows by the same with every block (degree one) or by as much more as it did from block to block (degree two).
What a part of a tile takes less than a whole one comes from knots of its own, the smallest parts.

Or no knots are used: a coordinate is then so many blocks beyond one that ends as it does, with as many tiles of a block
and the same part of one, and only blocks are extrapolated (``Knots.own``).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trnsim.kernels.contract import Axis

Weights = dict[int, float]
# A weight that is nothing but rounding.
NOTHING = 1e-12
# Windows that a use is extrapolated by at most where blocks have not settled, while these are not of more blocks: what
# little the blocks of samples differ counts so many times, by each axis.
MOST_WINDOWS, LONGEST_WINDOW = 8, 32
# What a coordinate is between knots: one of them, whole tiles between two, a part of a tile.
AT_KNOT, BETWEEN, PART = range(3)


@dataclass(frozen=True)
class Knots:
    """The knots of an axis, in tiles, and those where the smallest part of a tile is sampled too.

    ``window``: blocks that together take as long as as many blocks after them (``degree`` 1), or longer by as much each
    time (2), ``skip`` blocks after the second; ``unsettled``: by how much they do not, in proportion.
    """

    axis: Axis
    whole: tuple[int, ...]
    parts: tuple[int, ...]
    window: int = 1
    degree: int = 1
    skip: int = 0
    unsettled: float = 0.0

    @classmethod
    def of(cls, axis: Axis, more: Iterable[int] = (), more_parts: Iterable[int] = ()) -> Knots:
        """The usual knots: powers of two, ends of blocks, and where a block begins."""
        period, low = axis.block // axis.tile, -(-axis.low // axis.tile)
        if _repeats(axis):
            base = _base_of(axis)
            second = [base + at for at in (1, *_doublings(1, period), period)]
            beyond = [base + (1 + blocks) * period for blocks in _beyond(axis)]
            whole = {low, *_doublings(low, base), base, *second, *beyond}
            parts = {low, 2 * low, base, base + 1, base + period}
            top = max(whole)
        else:
            top = max(low, (axis.high or 0) // axis.tile)
            begins = [block * period + 1 for block in range(low // period, top // period + 1)]
            whole = {low, top, *_doublings(low, top), *begins, *(at - 1 for at in begins)}
            parts = {low, 2 * low, *begins, top}
        whole = {at for at in whole | set(more) if low <= at <= top}
        parts = {at for at in (parts | set(more_parts)) & whole if (at - 1) * axis.tile + axis.grain >= axis.low}
        some = tuple(sorted(parts)) if axis.tile > axis.grain else ()
        return cls(axis, tuple(sorted(whole)), some, degree=axis.degree)

    def and_at(self, tiles: int, *, part: bool = False) -> Knots:
        """With a knot more, if it is among those of loops that have not settled."""
        found = Knots.of(self.axis, (*self.whole, tiles), (*self.parts, tiles) if part else self.parts)
        return replace(found, window=self.window, degree=self.degree, skip=self.skip, unsettled=self.unsettled)

    def tiles_of(self, coordinate: int) -> int:
        """Up to the end of a coordinate, of which blocks that repeat are left out."""
        tiles = -(-coordinate // self.axis.tile)
        if not _repeats(self.axis):
            return tiles
        base, period = _base_of(self.axis), self.axis.block // self.axis.tile
        return tiles if tiles <= base + period else base + 1 + (tiles - base - 1) % period

    def coordinate(self, tiles: int, *, part: bool = False) -> int:
        """That of a knot."""
        return (tiles - 1) * self.axis.tile + self.axis.grain if part else tiles * self.axis.tile

    def between(self) -> list[tuple[int, int, int]]:
        """(knot, tiles half way, knot), where there is something between knots that is not beyond all blocks."""
        axis = self.axis
        end = _base_of(axis) + axis.block // axis.tile if _repeats(axis) else self.whole[-1]
        pairs = zip(self.whole, self.whole[1:], strict=False)
        return [(a, (a + b) // 2, b) for a, b in pairs if b - a > 1 and b <= end]

    def weights(self, coordinate: int) -> tuple[Weights, Weights]:
        """Coordinates of samples, and how they weigh: of the whole tiles, and of what the last lacks (negative)."""
        axis = self.axis
        tiles = -(-coordinate // axis.tile)
        whole: Weights = {}
        within = self.tiles_of(coordinate)
        if within < tiles:
            period = axis.block // axis.tile
            self._grow(whole, (tiles - within) // period, (_base_of(axis) + period - within) / period)
        left, right, share = _place(self.whole, within)
        _add(whole, self.coordinate(left), 1 - share)
        _add(whole, self.coordinate(right), share)
        if axis.degree > 1 and left < right:
            self._bend(whole, (within - left) * (right - within))
        lacking: Weights = {}
        missing = tiles * axis.tile - coordinate
        if missing and self.parts:
            share_missing = min(1.0, missing / (axis.tile - axis.grain))
            first, second, place = _place(self.parts, within)
            for at, weight in ((first, 1 - place), (second, place)):
                _add(lacking, self.coordinate(at), weight * share_missing)
                _add(lacking, self.coordinate(at, part=True), -weight * share_missing)
        return whole, {at: -weight for at, weight in lacking.items() if weight}

    def carried(self, coordinate: int) -> list[tuple[float, int, int]]:
        """What a coordinate is a sum of, where blocks move another axis on: weights, coordinates, and by how much.

        Blocks after the second take what the second does, further on: on average as far as the middle one of them.
        """
        axis = self.axis
        end = _base_of(axis) * axis.tile + axis.block
        if not axis.carries or coordinate <= end:
            return [(1.0, coordinate, 0)]
        blocks = -(-(coordinate - end) // axis.block)
        rest = coordinate - blocks * axis.block
        further = (blocks + 1) * axis.block // 2
        return [(1.0, rest, 0), (blocks, rest, further), (-blocks, rest - axis.block, further)]

    @property
    def end(self) -> int:
        """That of the block that stands for those that follow."""
        return _base_of(self.axis) * self.axis.tile + self.axis.block

    @property
    def repeats(self) -> bool:
        """Whether there are blocks that are extrapolated."""
        return _repeats(self.axis)

    def own(self, coordinate: int, *, settled: bool = True) -> Weights:
        """Coordinates of samples that end as this one does, and how they weigh; ``settled``: blocks along all axes."""
        windows, start, step = self._windows(coordinate, settled=settled)
        if not windows:
            return {coordinate: 1.0}
        if self.degree == 1:
            shares: tuple[float, ...] = (1.0 - windows, windows)
        else:
            shares = (
                (windows - 1) * (windows - 2) / 2, -windows * (windows - 2.0), windows * (windows - 1) / 2,
            )  # fmt: skip
        return {start + number * step: share for number, share in enumerate(shares) if share}

    def nearer(self, coordinate: int, more: int, *, settled: bool = True) -> int:
        """So many windows beyond those samples; the coordinate itself where it is not further."""
        if self.axis.carries:
            beyond = -(-(coordinate - self.end) // self.axis.block)
            return coordinate - max(0, beyond - more - 1) * self.axis.block
        windows, start, step = self._windows(coordinate, settled=settled)
        return start + min(windows, self.degree + more) * step if windows else coordinate

    def within(self, coordinate: int, *, settled: bool = True) -> int:
        """The last of those samples."""
        if self.axis.carries:
            return coordinate - max(0, -(-(coordinate - self.end) // self.axis.block)) * self.axis.block
        windows, start, step = self._windows(coordinate, settled=settled)
        return start + self.degree * step if windows else coordinate

    def form(self, coordinate: int) -> int:
        """Whether it is at a knot, between two or a part of a tile; more by three beyond the last block sampled."""
        tiles, within = -(-coordinate // self.axis.tile), self.tiles_of(coordinate)
        if tiles * self.axis.tile != coordinate or within > self.whole[-1]:
            found = PART
        else:
            found = AT_KNOT if within in self.whole else BETWEEN
        return found + 3 * (within < tiles)

    def _windows(self, coordinate: int, *, settled: bool) -> tuple[int, int, int]:
        """How many windows it is extrapolated by, from which coordinate, that ends as it does, and how long one is."""
        axis = self.axis
        if axis.carries or not _repeats(axis):
            return 0, coordinate, 0
        blocks = (-(-coordinate // axis.tile) - self.tiles_of(coordinate)) // (axis.block // axis.tile) - self.skip
        window = self.window
        while not settled and blocks // window > MOST_WINDOWS and 2 * window <= LONGEST_WINDOW:
            window *= 2
        windows = blocks // window
        if windows <= self.degree:
            return 0, coordinate, 0
        return windows, coordinate - windows * window * axis.block, window * axis.block

    @property
    def coordinates(self) -> tuple[int, ...]:
        """Where samples may be needed."""
        return (*(self.coordinate(at) for at in self.whole), *(self.coordinate(at, part=True) for at in self.parts))

    def _grow(self, whole: Weights, blocks: int, before: float) -> None:
        """What ``blocks`` blocks more take, from a coordinate ``before`` blocks before the second's end."""
        if self.axis.degree == 1:
            places = (0, *_beyond(self.axis))
            right = min(bisect_left(places, blocks), len(places) - 1)
            first, second = (self.coordinate(at) for at in self.whole[-len(places) :][right - 1 : right + 1])
            start = self.coordinate(self.whole[-len(places)])
            share = (blocks - places[right - 1]) / (places[right] - places[right - 1])
            for at, weight in ((start, -1.0), (first, 1 - share), (second, share)):
                _add(whole, at, weight)
            return
        # The first of them takes so much more than the last sampled one as its place is before or after it.
        linear, bend = blocks, blocks * (blocks - 1) / 2 - blocks * before
        first, second, third = (self.coordinate(at) for at in self.whole[-3:])
        for at, weight in ((first, bend - linear), (second, linear - 2 * bend), (third, bend)):
            _add(whole, at, weight)

    def _bend(self, whole: Weights, product: int) -> None:
        """A parabola lies below the straight line between two of its points."""
        period = self.axis.block / self.axis.tile if _repeats(self.axis) else 0
        if period:
            bend = product / (2 * period**2)
            for at, weight in zip(self.whole[-3:], (-bend, 2 * bend, -bend), strict=True):
                _add(whole, self.coordinate(at), weight)


def _base_of(axis: Axis) -> int:
    """Tiles before the block that stands for those that follow."""
    period, low = axis.block // axis.tile, -(-axis.low // axis.tile)
    return max(axis.first, -(-low // period)) * period if axis.first else 0


def _beyond(axis: Axis) -> tuple[int, ...]:
    """Blocks after the second that samples have."""
    if axis.carries:
        return ()
    if axis.degree > 1:
        return 1, 2
    return (*_doublings(2, axis.far), axis.far)


def _repeats(axis: Axis) -> bool:
    """Whether there are blocks enough to tell how much each takes."""
    if axis.high is None:
        return True
    sampled = 1 + max(_beyond(axis), default=0)
    return _base_of(axis) * axis.tile + sampled * axis.block <= axis.high


def _doublings(low: int, high: int) -> list[int]:
    """1, 2, 4 ... times ``low``, below ``high``."""
    found, at = [], low
    while at < high:
        found.append(at)
        at *= 2
    return found


def _place(knots: tuple[int, ...], at: int) -> tuple[int, int, float]:
    """The knots left and right, and how far ``at`` is from the left one; beyond the ends that one alone."""
    right = bisect_left(knots, at)
    if right == len(knots) or right == 0 or knots[right] == at:
        knot = knots[min(right, len(knots) - 1)]
        return knot, knot, 0.0
    left, after = knots[right - 1], knots[right]
    return left, after, (at - left) / (after - left)


def _add(weights: Weights, at: int, weight: float) -> None:
    found = weights.get(at, 0.0) + weight
    if abs(found) > NOTHING:
        weights[at] = found
    else:
        weights.pop(at, None)
