"""Where along an axis samples are taken, and how they weigh at a coordinate between or beyond them.

A coordinate is so many tiles, the last perhaps a part of one. Time at whole tiles is a straight line between *knots*.
Knots lie closer where a loop begins: in the first block, and in the second, which stands for all that follow. Beyond it
time grows by the same with every block (degree one) or by as much more as it did from block to block (degree two).
What a part of a tile takes less than a whole one comes from knots of its own, the smallest parts.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trnsim.kernels.contract import Axis

Weights = dict[int, float]
# A weight that is nothing but rounding.
NOTHING = 1e-12


@dataclass(frozen=True)
class Knots:
    """The knots of an axis, in tiles, and those where the smallest part of a tile is sampled too."""

    axis: Axis
    whole: tuple[int, ...]
    parts: tuple[int, ...]

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
        return cls(axis, tuple(sorted(whole)), tuple(sorted(parts)) if axis.tile > axis.grain else ())

    def and_at(self, tiles: int, *, part: bool = False) -> Knots:
        """With a knot more, if it is among those of loops that have not settled."""
        return Knots.of(self.axis, (*self.whole, tiles), (*self.parts, tiles) if part else self.parts)

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
