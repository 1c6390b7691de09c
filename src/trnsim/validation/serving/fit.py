"""Serving stacks fitted on published TPOT, and the null model, refitted for every fold.

A TPOT is the time of operators' work, of what each operator takes however small, and of exchanges, each times a factor,
and host time a step: the constants of a stack. Kernels of a graph follow each other with less between them than when
they are measured alone, and stacks have all-reduces of their own. The mean relative error is what is minimised, by
weights that are adjusted until they stand, so that single rows off by much do not pull the others.

The null model is what bytes and FLOPs say: weights and cache that a step reads, over HBM's rate, FLOPs over the peak,
each times a factor, plus a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Points that constants are fitted on at least.
_LEAST = 8
# How far factors are held near 1, as a share of the points' weight; relative errors below which rows count alike.
_PULL, _FLOOR = 1e-3, 0.05
_AS_MEASURED = (1.0, 1.0, 1.0)
# Configurations of a stack from which one factor, and from which all constants are fitted.
ONE_FACTOR, ALL_FACTORS = 3, 8


@dataclass(frozen=True)
class Point:
    """One configuration: milliseconds by part, and measured.

    ``parts``: TPOT of operators' work alone, of their fixed times, of exchanges, and of one millisecond of host time a
    step.
    ``null``: of bytes alone at HBM's rate, of FLOPs alone at the peak, and 1.
    """

    ids: tuple[str, ...]
    model: str
    moe: bool
    chip: str
    tp: int
    stack: str
    parts: tuple[float, float, float, float]
    null: tuple[float, float, float]
    measured_ms: float
    ttft_ms: float | None
    ttft_measured_ms: float | None
    users: int
    lengths: tuple[int, int]
    format: str

    @property
    def unfitted_ms(self) -> float:
        """Operators and exchanges as they are, no host time."""
        return sum(self.parts[:3])

    @property
    def key(self) -> str:
        lengths = "x".join(map(str, self.lengths))
        return f"{self.model} {self.chip} tp{self.tp} {self.format} {self.stack} {lengths} c{self.users}"


@dataclass(frozen=True)
class Predicted:
    """Milliseconds by the fit over all points, and without the point's fold."""

    point: Point
    fitted_ms: float
    left_out_ms: float
    null_ms: float

    @property
    def error(self) -> float:
        return self.left_out_ms / self.point.measured_ms - 1


def solve(rows: Sequence[Sequence[float]], measured: Sequence[float], expected: Sequence[float] = ()) -> Floats:
    """Factors, none below 0, that minimise the mean absolute relative error.

    Those that hardly move it stay near ``expected``, 1 for each of the first so many: kernels as they are measured.
    """
    y = np.asarray(measured)
    x = np.asarray(rows) / y[:, None]
    weights = np.ones(len(y))
    found = np.ones(x.shape[1])
    near = np.zeros((len(expected), x.shape[1]))
    np.fill_diagonal(near, 1.0)
    for _ in range(40):
        root, pull = np.sqrt(weights), np.sqrt(_PULL * weights.sum())
        left = np.vstack([x * root[:, None], pull * near])
        found = _nonnegative(left, np.concatenate([root, pull * np.asarray(expected, np.float64)]))
        weights = 1 / np.maximum(np.abs(x @ found - 1), _FLOOR)
    return found


def _nonnegative(x: Floats, y: Floats) -> Floats:
    """Least squares with factors of at least 0: all sets of factors that may be positive are tried."""
    best, least = np.zeros(x.shape[1]), np.inf
    for mask in range(1, 2 ** x.shape[1]):
        columns = [i for i in range(x.shape[1]) if mask >> i & 1]
        part = np.linalg.lstsq(x[:, columns], y, rcond=None)[0]
        if (part < 0).any():
            continue
        off = float(((x[:, columns] @ part - y) ** 2).sum())
        if off < least:
            best, least = np.zeros(x.shape[1]), off
            best[columns] = part
    return best


def folds(points: Sequence[Point]) -> tuple[list[Predicted], dict[str, Floats]]:
    """Every point by the fit of all, and by fits without its chip's runs of the same tensor parallelism."""
    fits = _fits(points, lambda p: p.parts, _AS_MEASURED)
    whole = [_predict(p, fits, p.parts) for p in points]
    left, null = [0.0] * len(points), [0.0] * len(points)
    for fold in dict.fromkeys((p.chip, p.tp) for p in points):
        others = [p for p in points if (p.chip, p.tp) != fold]
        mine, nulls = _fits(others, lambda p: p.parts, _AS_MEASURED), _fits(others, lambda p: p.null)
        for i, p in enumerate(points):
            if (p.chip, p.tp) == fold:
                left[i], null[i] = _predict(p, mine, p.parts), _predict(p, nulls, p.null)
    return [Predicted(p, *v) for p, *v in zip(points, whole, left, null, strict=True)], fits


def _fits(
    points: Sequence[Point], parts: Callable[[Point], Sequence[float]], expected: Sequence[float] = ()
) -> dict[str, Floats]:
    """By stack, format, and whether there are experts; all stacks of a kind together for those that a fold lacks."""
    found = {}
    for name in dict.fromkeys(n for p in points for n in group_names(p)):
        mine = [p for p in points if name in group_names(p)]
        if len(mine) >= _LEAST:
            found[name] = solve([parts(p) for p in mine], [p.measured_ms for p in mine], expected)
    return found


def group_names(p: Point) -> tuple[str, ...]:
    """Groups that share constants, the narrowest first: kernels for a format, and of experts, are a stack's own."""
    kind = "experts" if p.moe else "dense"
    return f"{p.stack} {kind} {p.format}", f"{p.stack} {kind}", f"any {kind}"


def _predict(p: Point, fits: dict[str, Floats], parts: Sequence[float]) -> float:
    for name in group_names(p):
        if name in fits:
            return float(np.dot(fits[name], parts))
    return float(sum(parts[:3]))


def fitted(points: Sequence[Point]) -> Floats:
    """Constants of one stack: of work, fixed times, exchanges and host time; of few points, one factor on all."""
    return _one_solve(points, _columns, _AS_MEASURED if len(points) >= ALL_FACTORS else (1.0,))


def predicted(point: Point, others: Sequence[Point]) -> float:
    """Milliseconds of ``point`` by the fit of others."""
    return float(np.dot(fitted(others), _columns(point, len(others))))


def null_predicted(point: Point, others: Sequence[Point]) -> float:
    """As ``predicted``, by bytes and FLOPs over rates plus a constant; of few points, bytes alone."""
    return float(np.dot(_one_solve(others, _null_columns), _null_columns(point, len(others))))


def _one_solve(
    points: Sequence[Point], columns: Callable[[Point, int], Sequence[float]], near: Sequence[float] = ()
) -> Floats:
    return solve([columns(p, len(points)) for p in points], [p.measured_ms for p in points], near)


def _columns(p: Point, count: int) -> Sequence[float]:
    return p.parts if count >= ALL_FACTORS else (sum(p.parts[:3]),)


def _null_columns(p: Point, count: int) -> Sequence[float]:
    return p.null if count >= ALL_FACTORS else p.null[:1]
