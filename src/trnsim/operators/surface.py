"""Surfaces: the cost of a kernel as a function of its sizes, from samples that are simulated.

In one regime a kernel's loops differ in how often they run, and engines that work in order settle into a period: each
further block of a loop takes as long as the one before. So the cost of a use is that of fewer blocks along every axis,
whose last ones end as its own do, and grows with the number of blocks (``own``). Samples are those of this use, and of
others that end so.

For any use at once, a cost is interpolated between samples at the knots of every axis (``basis``), which lie where
loops begin and end (``evaluate``). That is as good as the checks say that were made in the same *cell*: of the same
axes at knots, between them, of a part of a tile, beyond the last block sampled. Where there are none it is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from operator import mul
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.operators.samples import QUANTITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.kernels.contract import Axis
    from trnsim.operators.basis import Knots

    Point = tuple[int, ...]
    Cell = tuple[int, ...]

# A surface interpolates where so many checks of a cell are at least this good.
CHECKS, GOOD = 2, 0.01
# The largest error with which a surface is used.
LARGEST_ERROR = 0.04
# What blocks of two axes take together is none of their time below this share of what the smaller takes alone.
TOGETHER = 0.05
# Uses that are evaluated together.
_TOGETHER = 8192
# Coordinates whose weights are remembered.
_HELD = 100_000


@dataclass(frozen=True)
class Check:
    """What was found at some coordinates, and what it should be, in picoseconds.

    ``own``: extrapolated from samples that end as it does, and simulated; else interpolated, and simulated or
    extrapolated so.
    """

    point: Point
    found_ps: float
    simulated_ps: float
    own: bool = False

    @property
    def error(self) -> float:
        return abs(self.found_ps / self.simulated_ps - 1)


@dataclass
class Surface:
    """Knots of each axis, and the samples that were taken. Without an axis there are none: uses are simulated.

    Attributes:
        knots: of the axes, in order.
        samples: quantities by coordinates.
        checks: what was compared.
        support, reason: of the samples, the worst of them.
        refined: whether there are knots wherever lines between them do not tell the time, so that it interpolates.
    """

    knots: tuple[Knots, ...]
    samples: dict[Point, NDArray[np.float64]]
    checks: tuple[Check, ...] = ()
    support: str = ""
    reason: str = ""
    refined: bool = False
    _held: dict[tuple[int, int], tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)
    _held_own: dict[tuple[int, int], tuple[bool, tuple[tuple[int, float], ...]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _held_rest: dict[Point, tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)
    _held_apart: dict[tuple[Any, ...], tuple[NDArray[np.float64], list[float]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _held_forms: dict[tuple[int, int], tuple[int, float]] = field(default_factory=dict, repr=False, compare=False)
    _last: tuple[Point, NDArray[np.float64] | None, float] | None = field(default=None, repr=False, compare=False)
    _errors: dict[tuple[bool, Cell], tuple[int, float]] | None = field(default=None, repr=False, compare=False)
    _held_good: dict[Cell, float] | None = field(default=None, repr=False, compare=False)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(knots.axis for knots in self.knots)

    def cell(self, point: Sequence[int]) -> Cell:
        """Where a use lies, of the forms of its coordinates (``Knots.form``)."""
        return tuple([self._form(number, at)[0] for number, at in enumerate(point)])

    def beyond(self, point: Sequence[int]) -> Cell:
        """Along which axes it is extrapolated from samples that end as it does."""
        return tuple([self._own_along(number, at)[0] for number, at in enumerate(point)])

    @cached_property
    def settled(self) -> bool:
        """Whether blocks have settled along all axes."""
        return not any(knots.unsettled for knots in self.knots)

    def nearer(self, point: Point, more: int) -> Point:
        """A use that is extrapolated from the same samples, by so many windows beyond them along each axis."""
        along = zip(self.knots, point, strict=True)
        return tuple([knots.nearer(at, more, settled=self.settled) for knots, at in along])

    def unsettled(self, point: Sequence[int]) -> float:
        """By how much of its time a use may be wrong as blocks that are extrapolated have not settled."""
        if self.settled:
            return 0.0
        return sum(self._form(number, at)[1] for number, at in enumerate(point))

    def interpolates(self, point: Sequence[int]) -> bool:
        """Whether checks vouch for what is interpolated."""
        return self.interpolation_error(point) is not None

    def interpolation_error(self, point: Sequence[int]) -> float | None:
        """By how much what is interpolated may be wrong; None where checks do not vouch for it."""
        cell, unsettled = [], 0.0
        for place in enumerate(point):
            form, share = self._held_forms.get(place) or self._form(*place)
            cell.append(form)
            unsettled += share
        known = self._good.get(tuple(cell))
        return None if known is None else known + unsettled

    @property
    def _good(self) -> dict[Cell, float]:
        """Largest errors of the cells that are good."""
        if self._held_good is None:
            known = self.errors.items() if self.refined else ()
            self._held_good = {
                cell: error for (own, cell), (count, error) in known if not own and count >= CHECKS and error <= GOOD
            }
        return self._held_good

    def may_interpolate(self, point: Point) -> bool:
        """Whether a check there may vouch for it."""
        count, error = self.errors.get((False, self.cell(point)), (0, 0.0))
        if not self.refined or count >= CHECKS or error > GOOD:
            return False
        return not any(check.point == point and not check.own for check in self.checks)

    def near_good(self, point: Sequence[int]) -> bool:
        """Whether no check is against what is interpolated."""
        return self.refined and self.errors.get((False, self.cell(point)), (0, 0.0))[1] <= GOOD

    def error(self, point: Sequence[int], *, own: bool) -> float | None:
        """The largest of the checks at the same place, with what has not settled; None: nothing was compared there."""
        unsettled = self.unsettled(point)
        if own:
            beyond = self.beyond(point)
            if not any(beyond):
                return 0.0
            known = self.errors.get((True, beyond))
            return None if known is None else known[1] + unsettled + self._extrapolated(tuple(point))[1]
        known = self.errors.get((False, self.cell(point)))
        return None if known is None else known[1] + unsettled

    def most_wrong(self, point: Sequence[int]) -> float | None:
        """An error of what is interpolated anywhere, where there are no checks of a cell."""
        found = [error for (own, _), (_, error) in self.errors.items() if not own]
        return self.error(point, own=False) or max(found, default=1.0) + self.unsettled(point)

    @property
    def errors(self) -> dict[tuple[bool, Cell], tuple[int, float]]:
        """Number and largest error of the checks by place."""
        if self._errors is None:
            self._errors = {}
            for check in self.checks:
                place = (check.own, self.beyond(check.point) if check.own else self.cell(check.point))
                count, error = self._errors.get(place, (0, 0.0))
                self._errors[place] = count + 1, max(error, check.error)
        return self._errors

    def compared(self, check: Check) -> None:
        """Keep a check."""
        self.checks, self._errors, self._held_good = (*self.checks, check), None, None

    def _form(self, number: int, size: int) -> tuple[int, float]:
        """The form of a coordinate, and by how much what is extrapolated along its axis may be wrong."""
        found = self._held_forms.get((number, size))
        if found is None:
            knots = self.knots[number]
            share = 1 - (knots.within(size, settled=False) / size) ** knots.degree if knots.unsettled else 0.0
            found = self._held_forms[number, size] = knots.form(size), share * knots.unsettled
            if len(self._held_forms) > _HELD:
                self._held_forms.clear()
        return found

    def covers(self, point: Sequence[int]) -> bool:
        """Whether the coordinates are of this regime."""
        return all(
            axis.low <= at and (axis.high is None or at <= axis.high) for axis, at in zip(self.axes, point, strict=True)
        )

    def add(self, point: Point, values: NDArray[np.float64]) -> None:
        """Keep a sample."""
        self.samples[point], self._last = values, None
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

    def own(self, point: Sequence[int]) -> list[tuple[float, Point]]:
        """Samples that end as a use does along every axis, and their weights."""
        if not self._carrying:
            return self._own_product(1.0, point)
        found: dict[Point, float] = {}
        for weight, at in self._carried(point):
            for share, place in self._own_product(weight, at):
                found[place] = found.get(place, 0.0) + share
        return [(share, place) for place, share in found.items()]

    def _own_product(self, weight: float, point: Sequence[int]) -> list[tuple[float, Point]]:
        found: list[tuple[float, Point]] = [(weight, ())]
        for number, at in enumerate(point):
            along = self._own_along(number, at)[1]
            found = [(share * one, (*places, place)) for share, places in found for place, one in along]
        return found

    def _own_along(self, number: int, size: int) -> tuple[bool, tuple[tuple[int, float], ...]]:
        """Whether a coordinate is beyond the samples that end as it does, and these with their weights."""
        found = self._held_own.get((number, size))
        if found is None:
            knots = self.knots[number]
            if len(self._held_own) >= _HELD:
                self._held_own.clear()
            found = self._held_own[number, size] = (
                knots.within(size, settled=self.settled) < size,
                tuple(knots.own(size, settled=self.settled).items()),
            )
        return found

    def extrapolate(self, point: Sequence[int]) -> NDArray[np.float64] | None:
        """The quantities at some coordinates from samples that end as they do; None where samples are missing."""
        return self._extrapolated(tuple(point))[0]

    def _extrapolated(self, point: Point) -> tuple[NDArray[np.float64] | None, float]:
        """The quantities, and which share of the time would be more or less if blocks of two axes took some together.

        Where axes are loops one after the other, blocks of both take what they take alone. What little samples differ
        from that is no time that each pair of blocks takes, however many there are.
        """
        if self._last is not None and self._last[0] == point:
            return self._last[1:]
        along = [self._own_along(number, at)[1] for number, at in enumerate(point)]
        windows = [] if self._carrying else [number for number, places in enumerate(along) if len(places) == 2]
        found = self._added(along, windows) if len(windows) > 1 else (self._weighted(self.own(point)), 0.0)
        self._last = (point, *found)
        return found

    def _weighted(self, own: list[tuple[float, Point]]) -> NDArray[np.float64] | None:
        result = np.zeros(len(QUANTITIES))
        for share, place in own:
            values = self.samples.get(place)
            if values is None:
                return None
            result += share * values
        return result

    def _added(
        self, along: list[tuple[tuple[int, float], ...]], windows: list[int]
    ) -> tuple[NDArray[np.float64] | None, float]:
        """The same as a sum of what blocks take along one axis, two axes and so on, without what is nothing."""
        held = tuple([tuple([at for at, _ in a]) if n in windows else a for n, a in enumerate(along)])
        apart = self._held_apart.get(held)
        if apart is None:
            if any(place not in self.samples for place in product(*([at for at, _ in places] for places in along))):
                return None, 0.0
            if len(self._held_apart) >= _HELD:
                self._held_apart.clear()
            apart = self._held_apart[held] = self._apart(along, windows)
        counts = [1.0]
        for number in windows:
            blocks = along[number][1][1]
            counts += [blocks * count for count in counts]
        parts, doubts = apart
        result: NDArray[np.float64] = np.array(counts).dot(parts)
        return result, sum(map(mul, counts, doubts)) / float(result[0])

    def _apart(
        self, along: list[tuple[tuple[int, float], ...]], windows: list[int]
    ) -> tuple[NDArray[np.float64], list[float]]:
        """What one block takes along each subset of axes beyond what it takes along fewer, and the doubt of each."""
        subsets = range(1 << len(windows))
        found, doubts = np.zeros((len(subsets), len(QUANTITIES))), [0.0] * len(subsets)
        for chosen in product(*((places[0],) if n in windows else places for n, places in enumerate(along))):
            weight, place = 1.0, [at for at, _ in chosen]
            for number, (_, share) in enumerate(chosen):
                weight *= 1.0 if number in windows else share
            parts = np.empty((len(subsets), len(QUANTITIES)))
            for subset in subsets:
                for bit, number in enumerate(windows):
                    place[number] = along[number][subset >> bit & 1][0]
                parts[subset] = self.samples[tuple(place)]
            for bit in range(len(windows)):
                for subset in subsets:
                    if subset >> bit & 1:
                        parts[subset] -= parts[subset ^ 1 << bit]
            for subset in subsets:
                alone = [1 << bit for bit in range(len(windows)) if subset >> bit & 1]
                if len(alone) > 1:
                    nothing = np.abs(parts[subset]) < TOGETHER * np.abs(parts[alone]).min(0)
                    doubts[subset] += abs(float(weight * parts[subset, 0])) if nothing[0] else 0.0
                    parts[subset, nothing] = 0.0
            found += weight * parts
        return found, doubts

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
