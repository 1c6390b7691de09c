"""Factors of training stacks, fitted on published steps, and the folds that leave a model out.

A step is a sum of kinds of work (``planner.training.step_line``), each times a factor of the stack. Factors are those
of least squared relative error, drawn to what they are expected to be where few rows say otherwise. What a step waits
for depends on the factors themselves (``max``), so sums are made anew until they stay. Products have factors by
generation of chips and width of format; the others hold for all chips of a framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.planner.pricing import KINDS
from trnsim.planner.stack import BY_GENERATION, weights
from trnsim.planner.training import Pieces, step_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.planner.training import TrainingPlan

# Expected factors, how far they may lie from it at no great cost (one standard deviation), and their bounds. Products
# run at lower clocks under load than in benchmarks of single kernels; element-wise kernels are many and small, and
# compilers join some; shares of exchanges that are exposed lie between none and all of them, and somewhat more where
# networks are slower than predicted.
EXPECTED: Mapping[str, tuple[float, float, float, float]] = {
    "products": (1.1, 0.15, 0.5, 2.5),
    "narrow": (1.1, 0.2, 0.5, 2.5),
    "attention": (1.0, 0.2, 0.3, 2.5),
    "moves": (1.2, 0.5, 0.0, 5.0),
    "casts": (1.0, 0.5, 0.0, 5.0),
    "tp": (0.5, 0.25, 0.0, 1.5),
    "cp": (0.3, 0.25, 0.0, 1.5),
    "ep": (0.8, 0.25, 0.0, 1.5),
    "gather": (0.2, 0.2, 0.0, 1.5),
    "pp": (0.5, 0.5, 0.0, 3.0),
    "dp": (0.2, 0.2, 0.0, 1.5),
    "optimizer": (1.0, 0.3, 0.0, 4.0),
}
# Relative error of a published step itself, one standard deviation.
NOISE = 0.03
_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Point:
    """One group of published steps: the median one.

    Attributes:
        framework: which rows share factors.
        scale: rank-microseconds of a sequence, by which rows that differ only in data parallelism compare.
    """

    key: str
    ids: tuple[str, ...]
    framework: str
    generation: str
    chip: str
    model: str
    narrow: bool
    moe: bool
    plan: TrainingPlan
    pieces: Pieces
    measured_us: float
    model_flops: float

    @property
    def ranks(self) -> int:
        return self.plan.layout.ranks


def base_name(name: str) -> str:
    """A model without what tells its releases and proxies apart."""
    return re.sub(r",.*| .*", "", name).replace("llama-3.3", "llama-3.1").replace("llama-3-", "llama-3.1-")


@dataclass(frozen=True)
class Factors:
    """Fitted factors: of products by generation, of the others for all."""

    values: Mapping[str, float]
    generations: Mapping[str, Mapping[str, float]]

    def weights(self, generation: str) -> NDArray[np.float64]:
        """By ``KINDS``."""
        return weights(self.values, self.generations, generation)


EXPECTATION = Factors({kind: EXPECTED[kind][0] for kind in KINDS}, {})


def fit(points: Sequence[Point], start: Factors = EXPECTATION) -> Factors:
    """Factors of these points."""
    generations = sorted({p.generation for p in points})
    names = [(kind, g) for kind in BY_GENERATION for g in generations]
    names += [(kind, "") for kind in KINDS if kind not in BY_GENERATION]
    expected = np.array([EXPECTED[kind] for kind, _ in names])
    prior, loose, low, high = expected.T
    columns = {
        g: np.array([names.index((k, g if k in BY_GENERATION else "")) for k in KINDS]) for g in generations
    }  # fmt: skip
    found, before = start, None
    for _ in range(_ROUNDS):
        matrix, target = np.zeros((len(points), len(names))), np.zeros(len(points))
        for row, point in enumerate(points):
            line, _ = step_line(point.pieces, point.plan.layout, found.weights(point.generation))
            matrix[row, columns[point.generation]] = line[:-1] / (point.measured_us * NOISE)
            target[row] = (1 - line[-1] / point.measured_us) / NOISE
        whole = np.vstack([matrix, np.diag(1 / loose)])
        values = _bounded(whole, np.concatenate([target, prior / loose]), prior, low, high)
        if before is not None:
            # Half a step: what is exposed changes with the factors, and would swing.
            values = (values + before) / 2
        found = _factors(names, values, generations)
        if before is not None and np.abs(values - before).max() < 1e-3:
            break
        before = values
    return found


def _factors(names: Sequence[tuple[str, str]], values: NDArray[np.float64], generations: Sequence[str]) -> Factors:
    held = dict(zip(names, values.tolist(), strict=True))
    by = {g: {kind: held[kind, g] for kind in BY_GENERATION} for g in generations}
    return Factors({kind: value for (kind, g), value in held.items() if not g} | {k: EXPECTED[k][0] for k in BY_GENERATION}, by)


def _bounded(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    start: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Least squares between bounds, by coordinates: convex, so that it ends where the least is."""
    gram, right, x = a.T @ a, a.T @ b, start.copy()
    for _ in range(3000):
        before = x.copy()
        for i in range(len(x)):
            x[i] = min(max(x[i] + (right[i] - gram[i] @ x) / gram[i, i], low[i]), high[i])
        if np.abs(x - before).max() < 1e-6:
            break
    return x


@dataclass(frozen=True)
class Predicted:
    """A point with what is predicted of it, microseconds; ``null_us``: one MFU for its chip and format."""

    point: Point
    fitted_us: float
    left_out_us: float
    null_us: float | None


def folds(points: Sequence[Point]) -> tuple[list[Predicted], dict[str, Factors]]:
    """Each point predicted by a fit on all, and by one on all other models; and by the null model of the same fold.

    Also the fits on all, by framework.
    """
    found, fits = [], {}
    for framework in dict.fromkeys(p.framework for p in points):
        mine = [p for p in points if p.framework == framework]
        whole = fits[framework] = fit(mine)
        without = {name: fit([p for p in mine if base_name(p.model) != name], whole) for name in _names(mine)}
        for point in mine:
            others = [p for p in mine if base_name(p.model) != base_name(point.model)]
            found.append(
                Predicted(
                    point,
                    time_us(point, whole),
                    time_us(point, without[base_name(point.model)]),
                    _null(point, others),
                )
            )
    return found, fits


def time_us(point: Point, factors: Factors) -> float:
    """Of a step, with these factors."""
    found = factors.weights(point.generation)
    line, _ = step_line(point.pieces, point.plan.layout, found)
    return float(line[:-1] @ found + line[-1])


def _names(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(base_name(p.model) for p in points))


def _null(point: Point, others: Sequence[Point]) -> float | None:
    """The time at the mean FLOPs a second and rank of other models on the same chip and format; None: there are none."""
    same = [p for p in others if p.chip == point.chip and p.narrow == point.narrow]
    if not same:
        return None
    rate = np.exp(np.mean([np.log(p.model_flops / p.measured_us / p.ranks) for p in same]))
    return float(point.model_flops / rate / point.ranks)
