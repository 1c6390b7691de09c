"""Factors of training stacks, fitted on published steps, and the folds that leave a model out.

A step is a sum of kinds of work (``planner.training.KINDS``), each times a factor of the stack. Factors are those of
least squared relative error, drawn to what they are expected to be where few rows say otherwise, and none negative.
Products have factors by generation of chips and width of format; the others hold for a vendor's chips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.hardware import load_system
from trnsim.planner.training import KINDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.planner.training import TrainingPlan

# Expected factors, how far they may lie from it at no great cost (one standard deviation), and their upper bounds.
# Products run at lower clocks under load than in benchmarks of single kernels; element-wise kernels are many and small;
# exchanges hide behind computation in part.
EXPECTED: Mapping[str, tuple[float, float, float]] = {
    "products": (1.1, 0.15, 2.5),
    "products_narrow": (1.0, 0.2, 2.5),
    "attention": (0.9, 0.15, 2.5),
    "moves": (1.5, 0.7, 6.0),
    "casts": (0.3, 0.5, 4.0),
    "tp": (0.7, 0.25, 1.2),
    "cp": (0.3, 0.25, 1.2),
    "ep": (0.7, 0.25, 1.2),
    "pp": (0.3, 0.25, 1.2),
    "dp": (0.15, 0.15, 1.2),
    "optimizer": (1.0, 0.2, 4.0),
}
_BY_GENERATION = ("products", "products_narrow")
# Relative error of a published step itself, one standard deviation.
NOISE = 0.03


@dataclass(frozen=True)
class Point:
    """One group of published steps: the time of the median one, and what it is a sum of.

    Attributes:
        family: ``nvidia`` or ``neuron``: which rows share factors.
        line: microseconds by ``KINDS``.
    """

    key: str
    ids: tuple[str, ...]
    family: str
    generation: str
    model: str
    narrow: bool
    moe: bool
    plan: TrainingPlan
    line: NDArray[np.float64]
    measured_us: float
    model_flops: float
    ranks: int


def family_of(plan: TrainingPlan) -> str:
    return "nvidia" if load_system(plan.system).chip.family == "nvidia" else "neuron"


def base_name(name: str) -> str:
    """A model without what tells its releases and proxies apart."""
    return re.sub(r",.*| .*", "", name).replace("llama-3.3", "llama-3.1").replace("llama-3-", "llama-3.1-")


@dataclass(frozen=True)
class Factors:
    """Fitted factors: of products by generation, of the others for all."""

    values: Mapping[str, float]

    def weights(self, generation: str, narrow: bool) -> NDArray[np.float64]:
        """By ``KINDS``; a generation without rows has the mean of the others."""
        kind = "products_narrow" if narrow else "products"
        held = [v for k, v in self.values.items() if k.startswith(f"{kind}@")]
        mean = float(np.mean(held)) if held else EXPECTED[kind][0]
        found = {**self.values, "products": self.values.get(f"{kind}@{generation}", mean)}
        return np.array([found.get(k, EXPECTED.get(k, (1.0,))[0]) for k in KINDS])


def fit(points: Sequence[Point]) -> Factors:
    """Factors of these points."""
    names = [f"{k}@{g}" for k in _BY_GENERATION for g in sorted({p.generation for p in points})]
    names += [k for k in KINDS if k != "products"]
    place = {name: i for i, name in enumerate(names)}
    matrix = np.zeros((len(points), len(names)))
    for row, point in zip(matrix, points, strict=True):
        kind = "products_narrow" if point.narrow else "products"
        row[place[f"{kind}@{point.generation}"]] = point.line[0]
        for number, name in enumerate(KINDS[1:], 1):
            row[place[name]] = point.line[number]
        row /= point.measured_us * NOISE
    expected = [EXPECTED[name.split("@")[0]] for name in names]
    prior = np.array([e[0] for e in expected])
    loose = np.array([1 / e[1] for e in expected])
    high = np.array([e[2] for e in expected])
    whole = np.vstack([matrix, np.diag(loose)])
    target = np.concatenate([np.full(len(points), 1 / NOISE), prior * loose])
    return Factors(dict(zip(names, _bounded(whole, target, prior, high).tolist(), strict=True)))


def _bounded(
    a: NDArray[np.float64], b: NDArray[np.float64], start: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares between 0 and ``high``, by coordinates: convex, so that it ends where the least is."""
    gram, right, x = a.T @ a, a.T @ b, start.copy()
    for _ in range(10_000):
        before = x.copy()
        for i in range(len(x)):
            x[i] = min(max(x[i] + (right[i] - gram[i] @ x) / gram[i, i], 0.0), high[i])
        if np.abs(x - before).max() < 1e-10:
            break
    return x


@dataclass(frozen=True)
class Predicted:
    """A point with what is predicted of it, microseconds; ``null_us``: one MFU for its chip and format."""

    point: Point
    fitted_us: float
    left_out_us: float
    null_us: float | None


def folds(points: Sequence[Point]) -> list[Predicted]:
    """Each point predicted by a fit on all, and by one on all other models; and by the null model of the same fold."""
    found = []
    for family in dict.fromkeys(p.family for p in points):
        mine = [p for p in points if p.family == family]
        whole = fit(mine)
        without = {name: fit([p for p in mine if base_name(p.model) != name]) for name in _names(mine)}
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
    return found


def time_us(point: Point, factors: Factors) -> float:
    return float(point.line @ factors.weights(point.generation, point.narrow))


def _names(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(base_name(p.model) for p in points))


def _null(point: Point, others: Sequence[Point]) -> float | None:
    """The time at the mean FLOPs a second and rank of other models on the same chip and format; None: there are none."""
    chip = load_system(point.plan.system).chip.name
    same = [p for p in others if load_system(p.plan.system).chip.name == chip and p.narrow == point.narrow]
    if not same:
        return None
    rate = np.exp(np.mean([np.log(p.model_flops / p.measured_us / p.ranks) for p in same]))
    return float(point.model_flops / rate / point.ranks)
