"""Surfaces: the cost of a kernel as a function of its sizes, from samples that are simulated.

In one regime a kernel's loops differ in how often they run, and engines that work in order settle into a period: each
further block of a loop takes as long as the one before. So a cost is interpolated between samples at the knots of every
axis (``basis``), which lie where loops begin and end, and grows with the number of blocks beyond. What an axis needs is
found along it alone: between its knots another sample is taken, and becomes a knot where it is not what was expected.
A use needs the samples around it only; they are taken when it is asked for. More samples, which no knots belong to,
tell the error.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, product
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import UnsupportedError
from trnsim.operators.basis import Knots
from trnsim.operators.samples import QUANTITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from trnsim.kernels.contract import Axis, Contract, Problem

    Point = tuple[int, ...]
    Sample = Callable[[Problem], tuple[NDArray[np.float64], str, str]]

# By how much of the time a sample between knots may differ from what was expected before it becomes one.
TOLERANCE = 0.005
# Knots that an axis gets in this way, at most.
MOST_KNOTS = 16
# Samples that only check: the last so many tell the error, after at most so many of which some led to more knots.
CHECKS, MOST_CHECKS = 2, 8
GOOD = 0.02
# Products of the largest check, and how often one is drawn until it is not larger.
LARGEST_CHECK, MOST_DRAWS = 4000, 8
# A use of fewer instructions than this many times those of one block of every loop is a small one: as many of them are
# checked as of others.
FEW = 4
# A check tells the error of uses of up to so many times its instructions; that of the largest, of all above.
NEAR = 4
# The largest error of a check with which a surface is used.
LARGEST_ERROR = 0.04
# Instructions of the largest sample that is simulated, and of a use that is not extrapolated.
LARGEST_SAMPLE = 2_000_000
_INSTRUCTIONS = QUANTITIES.index("instructions")
# Operations of TensorE's largest product, 128 x 128 x 512: the measure of how many instructions a use takes.
_PRODUCT = 2 * 128 * 128 * 512
# Uses that are evaluated together.
_TOGETHER = 8192
# Coordinates whose weights are remembered.
_HELD = 100_000


@dataclass(frozen=True)
class Check:
    """A sample that a surface was not made from: its coordinates, times in picoseconds, and instructions."""

    point: Point
    found_ps: float
    simulated_ps: float
    instructions: float = 0.0

    @property
    def error(self) -> float:
        return abs(self.found_ps / self.simulated_ps - 1)


@dataclass
class Surface:
    """Knots of each axis, and the samples at them that were taken. Without an axis there are none: uses are simulated.

    Attributes:
        knots: of the axes, in order.
        samples: quantities by coordinates.
        checks: samples that were only compared.
        support, reason: of the samples.
    """

    knots: tuple[Knots, ...]
    samples: dict[Point, NDArray[np.float64]]
    checks: tuple[Check, ...] = ()
    support: str = ""
    reason: str = ""
    _held: dict[tuple[int, int], tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)
    _held_rest: dict[Point, tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(knots.axis for knots in self.knots)

    def error(self, instructions: float) -> float:
        """The largest of the checks of about as many instructions or more: what happens once weighs less and less."""
        counts, errors = self._errors
        return errors[bisect_left(counts, min(instructions, counts[-1]) / NEAR)] if counts else 0.0

    @cached_property
    def _errors(self) -> tuple[list[float], list[float]]:
        """Instructions of the checks, ascending, and the largest error of each and those above it."""
        ordered = sorted(self.checks, key=lambda check: -check.instructions)
        errors = accumulate((check.error for check in ordered), max)
        return [check.instructions for check in ordered][::-1], list(errors)[::-1]

    def covers(self, point: Sequence[int]) -> bool:
        """Whether the coordinates are of this regime."""
        return all(
            axis.low <= at and (axis.high is None or at <= axis.high) for axis, at in zip(self.axes, point, strict=True)
        )

    def add(self, point: Point, values: NDArray[np.float64]) -> None:
        """Keep a sample."""
        self.samples[point] = values
        if "_table" in self.__dict__ and self._is_at_knots(point):
            self._table[self._row(point)] = values

    def needed(self, point: Sequence[int]) -> list[Point]:
        """The samples that ``evaluate`` needs."""
        found: dict[Point, None] = {}
        for _, at in self._carried(point):
            for along in self._terms(at):
                for chosen in product(*(places for places, _, _ in along)):
                    found[chosen] = None
        return list(found)

    def missing(self, point: Sequence[int]) -> list[Point]:
        """Those that have not been taken."""
        return [other for other in self.needed(point) if other not in self.samples]

    def evaluate(self, point: Sequence[int]) -> NDArray[np.float64]:
        """The quantities at some coordinates; not a number where samples are missing."""
        if not self._carrying:
            return self._plain(point)
        result = np.zeros(len(QUANTITIES))
        for weight, at in self._carried(point):
            result += weight * self._plain(at)
        return result

    def _plain(self, point: Sequence[int]) -> NDArray[np.float64]:
        first = self._along(0, point[0])
        rest = self._rest(tuple(point[1:]))
        found: Any = self._sum(first[0], rest[0])
        for one, other in ((first[0], lacking) for lacking in rest[1:]):
            found = found + self._sum(one, other)
        if len(first[1][0]):
            found = found + self._sum(first[1], rest[0])
        result: NDArray[np.float64] = found
        return result

    def _sum(self, first: tuple[Any, ...], rest: tuple[Any, Any] | None) -> Any:
        _, rows, weights = first
        if rest is not None:
            rows, weights = (rows[:, None] + rest[0]).ravel(), (weights[:, None] * rest[1]).ravel()
        return weights.dot(self._table.take(rows, 0))

    def _rest(self, point: Point) -> tuple[Any, ...]:
        """Rows and weights of the axes but the first, which vary less: of whole tiles, and of what they lack."""
        found = self._held_rest.get(point)
        if found is None:
            along = [self._along(number, at) for number, at in enumerate(point, 1)]
            terms = [[whole for whole, _ in along]]
            for number, (_, lacking) in enumerate(along):
                if len(lacking[0]):
                    terms.append([*terms[0][:number], lacking, *terms[0][number + 1 :]])
            found = tuple(_product(term) for term in terms)
            if len(self._held_rest) >= _HELD:
                self._held_rest.clear()
            self._held_rest[point] = found
        return found

    def evaluate_many(self, points: NDArray[np.int64]) -> NDArray[np.float64]:
        """The quantities at many coordinates, [uses, axes] to [uses, quantities]."""
        if not self._carrying:
            return self._plain_many(points)
        parts = [[(number, *part) for part in self._carried(at)] for number, at in enumerate(points.tolist())]
        uses, weights, places = zip(*(part for some in parts for part in some), strict=True)
        values = self._plain_many(np.array(places, np.int64)) * np.array(weights)[:, None]
        result = np.zeros((len(points), len(QUANTITIES)))
        np.add.at(result, np.array(uses), values)
        return result

    def _plain_many(self, points: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.empty((len(points), len(QUANTITIES)))
        sizes = [np.unique(points[:, number], return_inverse=True) for number in range(len(self.knots))]
        tables = [self._dense(number, unique) for number, (unique, _) in enumerate(sizes)]
        for start in range(0, len(points), _TOGETHER):
            some = slice(start, start + _TOGETHER)
            found[some] = self._together(
                [(table, places[some]) for table, (_, places) in zip(tables, sizes, strict=True)]
            )
        return found

    def _together(self, axes: list[Any]) -> NDArray[np.float64]:
        total: Any = 0.0
        for lacking in range(-1, len(axes)):
            rows: Any = np.zeros((len(axes[0][1]), 1), np.int64)
            weights: Any = np.ones((len(axes[0][1]), 1))
            for number, (table, places) in enumerate(axes):
                along, share = table[1 if number == lacking else 0]
                rows = (rows[:, :, None] + along[places][:, None, :]).reshape(len(rows), -1)
                weights = (weights[:, :, None] * share[places][:, None, :]).reshape(len(rows), -1)
            if lacking < 0 or weights.any():
                used = weights != 0
                values = np.where(used[:, :, None], self._table[rows], 0.0)
                total = total + np.einsum("up,upq->uq", weights, values)
        result: NDArray[np.float64] = total
        return result

    def _dense(self, number: int, sizes: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Rows and weights of each size, of whole tiles and of what they lack, padded to one length."""
        every = [self._along(number, int(size)) for size in sizes]
        found = []
        for kind in (0, 1):
            longest = max(1, *(len(one[kind][1]) for one in every))
            rows, weights = np.zeros((len(sizes), longest), np.int64), np.zeros((len(sizes), longest))
            for place, one in enumerate(every):
                rows[place, : len(one[kind][1])], weights[place, : len(one[kind][2])] = one[kind][1], one[kind][2]
            found.append((rows, weights))
        return found

    def _terms(self, point: Sequence[int]) -> list[list[tuple[Any, ...]]]:
        """Products over the axes that add up: of whole tiles, and for each axis of what its last tile lacks."""
        along = [self._along(number, at) for number, at in enumerate(point)]
        terms = [[whole for whole, _ in along]]
        for number, (_, lacking) in enumerate(along):
            if len(lacking[0]):
                terms.append([*terms[0][:number], lacking, *terms[0][number + 1 :]])
        return terms

    def _along(self, number: int, size: int) -> tuple[Any, ...]:
        """(coordinates, their places in the table, weights) of whole tiles, and of what the last lacks."""
        found = self._held.get((number, size))
        if found is None:
            place, stride = self._places[number]
            found = tuple(
                (tuple(part), np.array([place[at] * stride for at in part], np.int64), np.array(list(part.values())))
                for part in self.knots[number].weights(size)
            )
            if len(self._held) >= _HELD:
                self._held.clear()
            self._held[number, size] = found
        return found

    @cached_property
    def _carrying(self) -> list[tuple[int, int]]:
        """Axes whose blocks move another one on, and which."""
        names = [axis.name for axis in self.axes]
        return [(number, names.index(axis.carries)) for number, axis in enumerate(self.axes) if axis.carries]

    def _carried(self, point: Sequence[int]) -> list[tuple[float, Point]]:
        """What a use is a sum of, none of them beyond the second block of an axis that moves another one on."""
        found: list[tuple[float, Point]] = [(1.0, tuple(point))]
        for number, other in self._carrying:
            parts = []
            for weight, at in found:
                for share, place, further in self.knots[number].carried(at[number]):
                    moved = list(at)
                    moved[number], moved[other] = place, at[other] + further
                    parts.append((weight * share, tuple(moved)))
            found = parts
        return found

    @cached_property
    def _places(self) -> list[tuple[dict[int, int], int]]:
        """For each axis the place of each coordinate, and how many rows lie between two."""
        found = []
        stride = 1
        for knots in reversed(self.knots):
            places = {at: number for number, at in enumerate(dict.fromkeys(knots.coordinates))}
            found.append((places, stride))
            stride *= len(places)
        return found[::-1]

    def _is_at_knots(self, point: Point) -> bool:
        return all(at in places for at, (places, _) in zip(point, self._places, strict=True))

    def _row(self, point: Point) -> int:
        return sum(places[at] * stride for at, (places, stride) in zip(point, self._places, strict=True))

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        """Quantities by place."""
        count = len(self._places[0][0]) * self._places[0][1] if self.knots else 1
        table = np.full((count, len(QUANTITIES)), np.nan)
        for point, values in self.samples.items():
            if self._is_at_knots(point):
                table[self._row(point)] = values
        return table


def _product(term: list[tuple[Any, ...]]) -> tuple[Any, Any] | None:
    """Rows and weights of the points of some axes together; None: no axis."""
    if not term:
        return None
    _, rows, weights = term[0]
    for _, more, shares in term[1:]:
        rows, weights = np.add.outer(rows, more).ravel(), np.multiply.outer(weights, shares).ravel()
    return rows, weights


def build(contract: Contract, problem: Problem, sample: Sample) -> Surface:
    """A surface of the regime of ``problem``: its knots, and its checks.

    Raises:
        UnsupportedError: a sample is too large to be simulated.
    """
    return _Builder(contract, problem, sample).build()


def fill(surface: Surface, contract: Contract, problem: Problem, points: Iterable[Point], sample: Sample) -> None:
    """Take samples of the regime of ``problem``."""
    for point in points:
        surface.add(point, simulated(contract, problem, surface.axes, point, sample)[0])


def simulated(
    contract: Contract, problem: Problem, axes: tuple[Axis, ...], point: Point, sample: Sample
) -> tuple[NDArray[np.float64], str, str]:
    """A use of the regime of ``problem``, at some coordinates.

    Raises:
        UnsupportedError: it is too large.
    """
    named = {axis.name: at for axis, at in zip(axes, point, strict=True)}
    use = problem.resized(contract.placed(problem, named))
    refuse_if_large(contract, use)
    return sample(use)


def refuse_if_large(contract: Contract, problem: Problem) -> None:
    """Refuse a use that is too large to be simulated whole.

    Raises:
        UnsupportedError: it is.
    """
    instructions = contract.flops(problem) / _PRODUCT
    if instructions > LARGEST_SAMPLE:
        raise UnsupportedError(
            f"{contract.name} with {dict(problem.sizes)} is in no regime that is extrapolated, and is too large to be "
            "simulated whole",
            value=round(instructions),
            limit=LARGEST_SAMPLE,
        )


class _Builder:
    """Finds the knots of each axis, the others at the end of their first block."""

    def __init__(self, contract: Contract, problem: Problem, sample: Sample) -> None:
        self.contract, self.problem, self.sample = contract, problem, sample
        self.axes = contract.axes(problem)
        self.taken: dict[Point, NDArray[np.float64]] = {}
        self.support = ("", "")
        self.knots = [Knots.of(axis) for axis in self.axes]
        self.middle = tuple(_end_of_first_block(knots) for knots in self.knots)

    def at(self, point: Point) -> NDArray[np.float64]:
        if point not in self.taken:
            values, *support = simulated(self.contract, self.problem, self.axes, point, self.sample)
            self.taken[point], self.support = values, (support[0], support[1])
        return self.taken[point]

    def build(self) -> Surface:
        if not self.axes:  # each use of this regime is one of its own
            return Surface((), {})
        for number in range(len(self.axes)):
            self.refine(number)
        return self.checked()

    def refine(self, number: int) -> None:
        """Knots of one axis where lines between those there are do not tell the time."""
        axis = self.axes[number]
        waiting, added = self.knots[number].between(), 0
        while waiting and added < MOST_KNOTS:
            left, between, right = waiting.pop(0)
            if self.wrong_along(number, self.middle, between * axis.tile) > TOLERANCE:
                self.knots[number] = self.knots[number].and_at(between)
                halves = [(left, (left + between) // 2, between), (between, (between + right) // 2, right)]
                waiting += [half for half in halves if half[0] < half[1] < half[2]]
                added += 1

    def wrong_along(self, number: int, point: Point, at: int) -> float:
        """By how much the time at a coordinate is not what the knots of that axis alone say, in proportion."""
        expected = 0.0
        at = self.knots[number].carried(at)[0][1]
        for weights in self.knots[number].weights(at):
            for place, weight in weights.items():
                expected += self.at((*point[:number], place, *point[number + 1 :]))[0] * weight
        found = self.at((*point[:number], at, *point[number + 1 :]))[0]
        return float(abs(expected - found) / found)

    def checked(self) -> Surface:
        """The surface, after samples that only check it: where one is wrong, the axis that is gets another knot."""
        draw = np.random.default_rng(len(self.axes))
        found: tuple[list[Check], list[Check]] = ([], [])
        few = FEW * float(self.at(self.middle)[_INSTRUCTIONS])
        for number in range(MOST_CHECKS):
            surface = Surface(tuple(self.knots), self.taken, (), *self.support)
            point = self.drawn(draw, number)
            check = self.check(surface, point)
            found[check.instructions < few].append(check)
            if all(_enough(checks) for checks in found):
                break
            if check.error > GOOD:
                self.repair(point)
        last = tuple(check for checks in found for check in checks[-CHECKS:])
        return Surface(tuple(self.knots), self.taken, last, *self.support)

    def drawn(self, draw: Any, number: int) -> Point:
        """A point to check: not too large, with a part of a tile along one axis.

        What parts lack adds up over axes, and needs many samples.
        """
        parted = number // 2 % max(1, len(self.knots))
        points = []
        for _ in range(MOST_DRAWS):
            point = tuple(
                _drawn(draw, knots, large=number % 2 == 0, parted=axis == parted)
                for axis, knots in enumerate(self.knots)
            )
            named = {axis.name: at for axis, at in zip(self.axes, point, strict=True)}
            use = self.problem.resized(self.contract.placed(self.problem, named))
            points.append((float(self.contract.flops(use)) / _PRODUCT, point))
            if points[-1][0] <= LARGEST_CHECK:
                return point
        return min(points)[1]

    def check(self, surface: Surface, point: Point) -> Check:
        for other in surface.missing(point):
            surface.add(other, self.at(other))
        simulated = self.at(point)
        return Check(point, float(surface.evaluate(point)[0]), float(simulated[0]), float(simulated[_INSTRUCTIONS]))

    def repair(self, point: Point) -> None:
        wrong = [self.wrong_along(number, point, at) for number, at in enumerate(point)]
        worst = int(np.argmax(wrong))
        knots = self.knots[worst]
        self.knots[worst] = knots.and_at(knots.tiles_of(point[worst]), part=True)


def _enough(checks: list[Check]) -> bool:
    """Whether the last ones were good."""
    return len(checks) >= CHECKS and max(check.error for check in checks[-CHECKS:]) <= GOOD


def _end_of_first_block(knots: Knots) -> int:
    axis = knots.axis
    end = -(-axis.low // axis.block) * axis.block
    return end if axis.high is None or end <= axis.high else knots.coordinate(knots.whole[-1])


def _drawn(draw: Any, knots: Knots, *, large: bool, parted: bool) -> int:
    """A coordinate between the lowest, or a block, and a little beyond the last knot; of whole tiles or not."""
    axis = knots.axis
    low = max(axis.low, axis.tile)
    reach = axis.first * axis.block + low + (1 + axis.far) * axis.block
    high = max(low, min(axis.high or reach, reach))
    low = max(low, min(axis.block, high)) if large else low
    size = round(float(np.exp(draw.uniform(np.log(low), np.log(high)))))
    size = min(max(axis.low, size // axis.grain * axis.grain), high)
    if not parted:
        size = min(-(-size // axis.tile), high // axis.tile or 1) * axis.tile
    return max(axis.low, min(size, axis.high or size))
