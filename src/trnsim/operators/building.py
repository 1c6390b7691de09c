"""How surfaces are made: which blocks repeat, where knots lie, what checks say, and samples that a use needs.

Blocks along an axis may take as long as those before from the first that repeat on, or differ for a while, or in turn:
samples of so many blocks more tell how many together take as long as the next ones, and as those after them, or longer
by as much each time (``_Builder.settle``). Where not even many do, time is hardly extrapolated along this axis.

Knots come where lines between those there are do not tell the time: that is found along each axis alone. Then drawn
samples check what is interpolated.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import UnsupportedError
from trnsim.operators.basis import Knots
from trnsim.operators.samples import QUANTITIES
from trnsim.operators.surface import GOOD, Check, Surface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from trnsim.kernels.contract import Axis, Contract, Problem
    from trnsim.operators.surface import Point

    Sample = Callable[[Problem], tuple[NDArray[np.float64], str, str]]

# Blocks have settled where a window of them tells what four windows take, or more, within this.
SETTLED = 0.001
# Blocks that are sampled, in quarters of what the axis says (at least one), a group at a time until they have settled.
COUNTS = ((0, 1, 2, 3, 4), (6, 8), (12, 16), (24, 32))
# Blocks and instructions of the largest sample that only tells whether blocks have settled.
MOST_BLOCKS, LARGEST_SETTLING = 32, 40_000
# Samples that must say that each block takes longer than the one before, or less long, for this to be taken as true.
BENT = 8
# By how much of the time a sample between knots may differ from what was expected before it becomes one.
TOLERANCE = 0.005
# Knots that an axis gets in this way, at most.
MOST_KNOTS = 16
# Samples that only check what is interpolated, and after so many good ones there are enough.
MOST_CHECKS, ENOUGH = 8, 4
# Windows beyond samples at which what is extrapolated is checked, the first where that is not too large.
FURTHER = (8, 5, 3, 2, 1)
# Products of the largest check, and how often one is drawn until it is not larger.
LARGEST_CHECK, MOST_DRAWS = 4000, 8
# Instructions of the largest sample that is simulated, and of a use that is not extrapolated.
LARGEST_SAMPLE = 2_000_000
_INSTRUCTIONS = QUANTITIES.index("instructions")
# Operations of TensorE's largest product, 128 x 128 x 512, and bytes of a tile: about an instruction each.
_PRODUCT, _TILE = 2 * 128 * 128 * 512, 2 * 128 * 2048
SUPPORT = ("", "calibrated", "interpolated", "extrapolated", "assumed", "what-if")


def build(contract: Contract, problem: Problem, sample: Sample) -> Surface:
    """A surface of the regime of ``problem`` that extrapolates: it knows which blocks repeat.

    Raises:
        UnsupportedError: a sample is too large to be simulated.
    """
    return _Builder(contract, problem, sample).build()


def refine(surface: Surface, contract: Contract, problem: Problem, sample: Sample) -> Surface:
    """The same surface with knots where they are needed and checks, so that it interpolates too.

    Raises:
        UnsupportedError: a sample is too large to be simulated.
    """
    return _Builder(contract, problem, sample, surface).refined()


def fill(surface: Surface, contract: Contract, problem: Problem, points: Iterable[Point], sample: Sample) -> None:
    """Take samples of the regime of ``problem``."""
    for point in points:
        take(surface, contract, problem, point, sample)


def take(surface: Surface, contract: Contract, problem: Problem, point: Point, sample: Sample) -> NDArray[np.float64]:
    """A sample of the regime of ``problem``, taken if it is not there."""
    if point not in surface.samples:
        values, support, reason = simulated(contract, problem, surface.axes, point, sample)
        surface.add(point, values)
        if SUPPORT.index(support) > SUPPORT.index(surface.support):
            surface.support, surface.reason = support, reason
    return surface.samples[point]


def check(surface: Surface, contract: Contract, problem: Problem, point: Point, sample: Sample) -> None:
    """Compare what is extrapolated beyond the samples of a use, which must be there, with a simulation."""

    def work_at(at: Point) -> float:
        return work(contract, placed(contract, problem, surface.axes, at))

    most = max(LARGEST_CHECK, sum(work_at(at) for _, at in surface.own(point)))
    nearer = surface.nearer(point, FURTHER[-1])
    for more in FURTHER[:-1]:
        further = surface.nearer(point, more)
        if work_at(further) <= most:
            nearer = further
            break
    fill(surface, contract, problem, (at for _, at in surface.own(nearer)), sample)
    found = surface.extrapolate(nearer)
    assert found is not None
    values = take(surface, contract, problem, nearer, sample)
    surface.compared(Check(nearer, float(found[0]), float(values[0]), own=True))


def simulated(
    contract: Contract, problem: Problem, axes: tuple[Axis, ...], point: Point, sample: Sample
) -> tuple[NDArray[np.float64], str, str]:
    """A use of the regime of ``problem``, at some coordinates.

    Raises:
        UnsupportedError: it is too large.
    """
    use = placed(contract, problem, axes, point)
    refuse_if_large(contract, use)
    return sample(use)


def placed(contract: Contract, problem: Problem, axes: tuple[Axis, ...], point: Point) -> Problem:
    """The use at some coordinates."""
    named = {axis.name: at for axis, at in zip(axes, point, strict=True)}
    return problem.resized(contract.placed(problem, named))


def work(contract: Contract, problem: Problem) -> float:
    """About how many instructions a use takes, to compare uses of one kernel."""
    return float(contract.flops(problem) / _PRODUCT + contract.bytes(problem) / _TILE)


def products(contract: Contract, problem: Problem) -> float:
    """How many of TensorE's largest products a use takes."""
    return float(contract.flops(problem) / _PRODUCT)


def refuse_if_large(contract: Contract, problem: Problem, why: str = "") -> None:
    """Refuse a use that is too large to be simulated whole.

    Raises:
        UnsupportedError: it is.
    """
    instructions = products(contract, problem)
    if instructions > LARGEST_SAMPLE:
        raise UnsupportedError(
            f"{contract.name} with {dict(problem.sizes)} is not extrapolated, as {why or 'it is in no regime that is'}"
            ", and is too large to be simulated whole",
            value=round(instructions),
            limit=LARGEST_SAMPLE,
        )


class _Builder:
    """Finds what repeats along each axis and the knots of each, the others at the end of their first block."""

    def __init__(self, contract: Contract, problem: Problem, sample: Sample, known: Surface | None = None) -> None:
        self.contract, self.problem, self.sample = contract, problem, sample
        self.axes = contract.axes(problem)
        knots = known.knots if known is not None else tuple(Knots.of(axis) for axis in self.axes)
        self.surface = known or Surface(knots, {})
        self.knots = list(knots)
        self.middle = tuple(_end_of_first_block(one) for one in self.knots)

    def at(self, point: Point) -> NDArray[np.float64]:
        return take(self.surface, self.contract, self.problem, point, self.sample)

    def build(self) -> Surface:
        for number, knots in enumerate(self.knots):
            if knots.repeats:
                self.knots[number] = self.settle(number)
        return self.made()

    def made(self, *, refined: bool = False) -> Surface:
        known = self.surface
        checks = tuple(one for one in known.checks if one.own)
        return Surface(tuple(self.knots), known.samples, checks, known.support, known.reason, refined)

    def settle(self, number: int) -> Knots:
        """Of how many blocks together each further one takes as long."""
        knots = self.knots[number]
        axis = knots.axis
        if axis.carries or axis.degree > 1:
            return self.settle_bent(number)
        unit = max(1, axis.far // 4)
        best, times = knots, dict[int, float]()
        for group in COUNTS:
            counts = [count * unit for count in group]
            if axis.high is not None and knots.end + counts[-1] * axis.block > axis.high:
                break
            if times and (counts[-1] > max(MOST_BLOCKS, 2 * axis.far) or self.too_large(number, counts[-1])):
                break
            times |= {count: self.along(number, knots.end + count * axis.block) for count in counts}
            best = _settled(knots, times)
            if best.unsettled <= SETTLED:
                return replace(best, unsettled=0.0)
        return best

    def settle_bent(self, number: int) -> Knots:
        """How far off the blocks after those that time is extrapolated from are."""
        knots = self.knots[number]
        first, last = knots.end, knots.end + (2 if knots.axis.carries else 4) * knots.axis.block
        if knots.axis.high is not None and last > knots.axis.high:
            return knots
        surface = Surface(tuple(self.knots), self.surface.samples)
        point = (*self.middle[:number], last, *self.middle[number + 1 :])
        expected = sum(weight * self.at(at)[0] for weight, at in surface.own(point))
        found = self.at(point)[0]
        wrong = abs(expected - found) / (found - self.along(number, first))
        return replace(knots, unsettled=float(wrong)) if wrong > SETTLED else knots

    def too_large(self, number: int, blocks: int) -> bool:
        """Whether a sample of so many blocks takes too long to be simulated for this alone."""
        knots, unit = self.knots[number], max(1, self.axes[number].far // 4)
        one, two = (self.at_place(number, knots.end + many * unit * knots.axis.block)[_INSTRUCTIONS] for many in (0, 1))
        return bool(one + blocks / unit * (two - one) > LARGEST_SETTLING)

    def at_place(self, number: int, place: int) -> NDArray[np.float64]:
        return self.at((*self.middle[:number], place, *self.middle[number + 1 :]))

    def along(self, number: int, place: int) -> float:
        return float(self.at_place(number, place)[0])

    def refined(self) -> Surface:
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
        points: list[Point] = []
        good = 0
        while len(points) < MOST_CHECKS and good < ENOUGH:
            point = self.drawn(draw, len(points))
            points.append(point)
            if self.check(self.made(refined=True), point).error > GOOD:
                self.repair(point)
                good = 0
            else:
                good += 1
        surface = self.made(refined=True)
        for point in dict.fromkeys(points):
            surface.compared(self.check(surface, point))
        return surface

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
            use = placed(self.contract, self.problem, self.axes, point)
            points.append((float(self.contract.flops(use)) / _PRODUCT, point))
            if points[-1][0] <= LARGEST_CHECK:
                return point
        return min(points)[1]

    def check(self, surface: Surface, point: Point) -> Check:
        for other in surface.missing(point):
            surface.add(other, self.at(other))
        return Check(point, float(surface.evaluate(point)[0]), float(self.at(point)[0]))

    def repair(self, point: Point) -> None:
        wrong = [self.wrong_along(number, point, at) for number, at in enumerate(point)]
        worst = int(np.argmax(wrong))
        knots = self.knots[worst]
        self.knots[worst] = knots.and_at(knots.tiles_of(point[worst]), part=True)


def _settled(knots: Knots, times: dict[int, float]) -> Knots:
    """The window and degree by which the fewest blocks tell what more take: the smallest good one, or the best."""
    counts = sorted(times)
    steps = [(times[b] - times[a]) / (b - a) for a, b in pairwise(counts)]
    rising = [b > a for a, b in pairwise(steps)]
    degrees = (1, 2) if len(steps) >= BENT and (all(rising) or not any(rising)) else (1,)
    windows = [count for count in counts if 0 < 4 * count <= counts[-1]]
    found = []
    for degree, window, skip in ((d, w, s) for d in degrees for w in windows for s in (0, w)):
        if any(skip + number * window not in times for number in range(degree + 1)):
            continue
        one, two = times[skip + window] - times[skip], times.get(skip + 2 * window, 0.0) - times[skip]
        wrong = 0.0
        for count in (count for count in counts if count % window == 0 and count > skip + degree * window):
            q = (count - skip) // window
            expected = q * one if degree == 1 else q * (q - 1) / 2 * two - q * (q - 2) * one
            wrong = max(wrong, abs(expected / (times[count] - times[skip]) - 1))
        found.append(replace(knots, window=window, degree=degree, skip=skip, unsettled=wrong))
    good = sorted(
        (one for one in found if one.unsettled <= SETTLED), key=lambda one: one.skip + one.degree * one.window
    )
    return good[0] if good else min(found, key=lambda one: one.unsettled)


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
