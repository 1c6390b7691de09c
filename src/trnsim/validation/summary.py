"""Errors of predictions, by family and over all."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

FLOOR_US = 50.0
"""Below this measured time the error is taken against it: clocks scatter by microseconds."""
APART = 0.05
"""Two measurements count as a pair only if they differ by more than this share of the smaller."""


def error(predicted_us: float, measured_us: float) -> float:
    """Relative error, signed: 0.1 is a tenth too long."""
    return (predicted_us - measured_us) / max(measured_us, FLOOR_US)


@dataclass(frozen=True)
class Point:
    """One comparison. ``clock`` and ``problem`` say with which others it may be ranked."""

    predicted_us: float
    measured_us: float
    clock: str = ""
    problem: str = ""

    @property
    def error(self) -> float:
        return error(self.predicted_us, self.measured_us)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Shares, not percent. ``pairs`` measured more than 5 % apart, ``ordered`` of them predicted in that order.

    ``choice``: of the kernels that compute the same, by how much the one predicted fastest was measured slower than the
    fastest, at worst; None if no problem has two kernels.
    """

    cases: int
    mape: float
    median: float
    worst: float
    bias: float
    pairs: int
    ordered: int
    choice: float | None = None

    @property
    def pairs_in_order(self) -> float | None:
        return self.ordered / self.pairs if self.pairs else None


def errors(points: Sequence[Point]) -> Errors:
    """Errors of one family."""
    signed = [p.error for p in points]
    size = [abs(e) for e in signed]
    pairs = [pair for pair in combinations(points, 2) if _apart(*pair)]
    ordered = sum((a.predicted_us - b.predicted_us) * (a.measured_us - b.measured_us) > 0 for a, b in pairs)
    return Errors(
        cases=len(points),
        mape=statistics.fmean(size),
        median=statistics.median(size),
        worst=max(size),
        bias=statistics.fmean(signed),
        pairs=len(pairs),
        ordered=ordered,
        choice=_choice(points),
    )


def overall(families: Iterable[Errors]) -> Errors:
    """Over families, each counting the same: means of their errors; the worst of all; pairs added up."""
    found = list(families)
    choices = [f.choice for f in found if f.choice is not None]
    return Errors(
        cases=sum(f.cases for f in found),
        mape=statistics.fmean(f.mape for f in found),
        median=statistics.fmean(f.median for f in found),
        worst=max(f.worst for f in found),
        bias=statistics.fmean(f.bias for f in found),
        pairs=sum(f.pairs for f in found),
        ordered=sum(f.ordered for f in found),
        choice=max(choices) if choices else None,
    )


def _apart(a: Point, b: Point) -> bool:
    low, high = sorted((a.measured_us, b.measured_us))
    return a.clock == b.clock and high > low * (1 + APART)


def _choice(points: Sequence[Point]) -> float | None:
    losses = []
    for key in {(p.problem, p.clock) for p in points}:
        same = [p for p in points if (p.problem, p.clock) == key]
        if len(same) > 1:
            chosen = min(same, key=lambda p: p.predicted_us)
            losses.append(chosen.measured_us / min(p.measured_us for p in same) - 1)
    return max(losses) if losses else None
