"""Factors of training stacks, fitted on published steps, and the folds that leave a model out.

A step is a sum of kinds of work (``planner.training.step_line``), each times a factor of the stack. Factors are those
of least squared relative error, drawn to what they are expected to be where few rows say otherwise. What a step waits
for depends on the factors themselves (``max``), so sums are made anew until they stay. Products have factors by
architecture and width of format, drawn to each other; the others hold for all chips of a framework. A framework may be
near another one: its factors are drawn to those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.planner.pricing import KINDS
from trnsim.planner.stack import BY_GENERATION, REFERENCE, strains, weights
from trnsim.planner.training import Pieces, pieces_of, prices_of, step_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.planner.training import TrainingPlan

# Expected factors, how far they may lie from it at no great cost (one standard deviation), and their bounds. Products
# run at lower clocks under load than in benchmarks of single kernels; element-wise kernels are many and small, and
# compilers join some; norms and activations cast what they give; a loss that no kernel fuses passes over logits in
# float32 several times, scans write what lies between their blocks. Shares of exchanges that are exposed lie between
# none and all of them, and somewhat more where networks are slower than predicted; what is late of gradients cannot
# take less than 0.6 of the time predicted, where links would be full; of what brings tokens to experts some cannot be
# hidden, as they wait for it. ``groups``: microseconds; ``host``: milliseconds a step.
EXPECTED: Mapping[str, tuple[float, float, float, float]] = {
    "products": (1.2, 0.1, 0.5, 2.5),
    "narrow": (1.2, 0.1, 0.5, 2.5),
    "attention": (1.0, 0.1, 0.3, 2.5),
    "moves": (1.1, 0.2, 0.0, 5.0),
    "loss": (4.0, 2.0, 0.5, 20.0),
    "casts": (0.7, 0.2, 0.0, 5.0),
    "experts": (1.5, 0.2, 0.3, 5.0),
    "experts_narrow": (2.0, 0.3, 0.3, 5.0),
    "routing": (1.5, 0.3, 0.0, 10.0),
    "between": (2.0, 0.75, 0.3, 20.0),
    "groups": (10.0, 20.0, 0.0, 200.0),
    "scans": (5.0, 4.0, 0.5, 30.0),
    "tp": (0.5, 0.25, 0.0, 1.5),
    "tp_alone": (1.0, 0.1, 0.5, 2.0),
    "cp": (0.3, 0.25, 0.0, 1.5),
    "ep": (0.4, 0.15, 0.2, 1.5),
    "ep_far": (0.5, 0.15, 0.0, 1.5),
    "gather": (0.2, 0.3, 0.0, 4.0),
    "pp": (0.5, 0.5, 0.0, 3.0),
    "sends": (0.3, 0.4, 0.0, 1.5),
    "dp": (0.1, 0.1, 0.0, 1.5),
    "optimizer": (1.0, 0.3, 0.0, 4.0),
    "late": (1.0, 0.1, 0.95, 1.5),
    "host": (30.0, 40.0, 0.0, 300.0),
}
# How far factors of products lie from each other on one architecture (of widths of formats), and across architectures
# (of one width), at no great cost: chips are alike in what sustained load does to their clocks.
ALIKE = (0.005, 0.1)
# What models without experts do not do.
WITH_EXPERTS = ("experts", "experts_narrow", "between", "groups", "routing", "scans", "ep", "ep_far")
# Standard deviation of products' factors where operators' costs are carried over from other chips, as on Trainium.
CARRIED = 0.5
# Relative error of a published step itself, one standard deviation.
NOISE = 0.03
# Relative errors beyond which a step is taken for one that no factors explain.
LARGE = 0.05
_ROUNDS = 12


@dataclass(frozen=True)
class Member:
    """A published step, in microseconds; ``release`` of what it ran on."""

    id: str
    release: str
    plan: TrainingPlan
    measured_us: float


@dataclass(frozen=True, eq=False)
class Point:
    """One group of published steps: the median one.

    Attributes:
        framework: which rows share factors.
        noise: relative error of the step, one standard deviation.
        generation, strain: architecture of the chip, and how much power limits it (``planner.stack``).
    """

    key: str
    ids: tuple[str, ...]
    framework: str
    generation: str
    strain: float
    chip: str
    model: str
    narrow: bool
    moe: bool
    plan: TrainingPlan
    pieces: Pieces
    measured_us: float
    model_flops: float
    members: tuple[Member, ...] = ()
    noise: float = NOISE

    @property
    def releases(self) -> int:
        """How many its members ran on."""
        return len({m.release for m in self.members})

    @property
    def ranks(self) -> int:
        return self.plan.layout.ranks


def base_name(name: str) -> str:
    """A model without what tells its releases and proxies apart."""
    return re.sub(r",.*| .*", "", name).replace("llama-3.3", "llama-3.1").replace("llama-3-", "llama-3.1-")


@dataclass(frozen=True)
class Factors:
    """Fitted factors: of products by architecture (``generations``), of the others for all."""

    values: Mapping[str, float]
    generations: Mapping[str, Mapping[str, float]]

    def weights(self, generation: str, strained: float = 1.0) -> NDArray[np.float64]:
        """By ``KINDS``."""
        return weights(self.values, self.generations, generation, strained)


EXPECTATION = Factors({kind: EXPECTED[kind][0] for kind in KINDS}, {})


def fit(points: Sequence[Point], near: Factors = EXPECTATION) -> Factors:
    """Factors of these points, near those expected or those of a framework like this one: of what all models do from
    those without experts, then of what experts add.
    """
    dense = [p for p in points if not p.moe]
    if near is not EXPECTATION or not dense or len(dense) == len(points):
        return _fit(points, near, near, KINDS)
    shared = _fit(dense, near, near, [k for k in KINDS if k not in WITH_EXPERTS])
    missing = {p.generation for p in points} - {p.generation for p in dense}
    free = (*WITH_EXPERTS, *(BY_GENERATION if missing else ()))
    return _fit([p for p in points if p.moe], shared, near, free, shared.generations)


def _fit(
    points: Sequence[Point], start: Factors, near: Factors, free: Sequence[str], settled: Iterable[str] = ()
) -> Factors:
    """Factors of these kinds; others stay as ``start`` has them, and so do those of ``settled`` generations."""
    generations = sorted({p.generation for p in points})
    names = [(kind, g) for kind in BY_GENERATION for g in generations if kind in free and g not in settled]
    names += [(kind, "") for kind in KINDS if kind not in BY_GENERATION and kind in free]
    prior = _values(near, names)
    loose, low, high = np.array([EXPECTED[kind][1:] for kind, _ in names]).T
    loose = np.where([bool(g) and g not in REFERENCE for _, g in names], CARRIED, loose)
    alike = _alike(names)
    place = {name: i for i, name in enumerate(names)}
    columns = {
        g: [(number, place.get((k, g if k in BY_GENERATION else ""))) for number, k in enumerate(KINDS)]
        for g in generations
    }
    found, before = start, _values(start, names)
    noise = np.array([p.noise for p in points])
    for _ in range(_ROUNDS):
        matrix, target = np.zeros((len(points), len(names))), np.zeros(len(points))
        for row, point in enumerate(points):
            held, scale = found.weights(point.generation, point.strain), strains(point.strain)
            line, _ = step_line(point.pieces, point.plan.layout, held)
            rest = line[-1]
            for number, column in columns[point.generation]:
                if column is None:
                    rest += line[number] * held[number]
                else:
                    matrix[row, column] = line[number] * scale[number] / (point.measured_us * point.noise)
            target[row] = (1 - rest / point.measured_us) / point.noise
        # Steps that no factors explain count by their error, not its square.
        trust = _trust((matrix @ before - target) * noise)
        whole = np.vstack([matrix * trust[:, None], np.diag(1 / loose), alike])
        values = _bounded(whole, np.concatenate([target * trust, prior / loose, np.zeros(len(alike))]), low, high)
        # Half a step: what is exposed changes with the factors, and would swing.
        values = (values + before) / 2
        found = _replaced(found, names, values)
        if np.abs(values - before).max() < 3e-3:
            break
        before = values
    return found


def _alike(names: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Rows that draw factors of products to each other."""
    rows = []
    for i, (kind, generation) in enumerate(names):
        for j, (other, another) in enumerate(names[:i]):
            if not generation or not another or (kind != other) == (generation != another):
                continue
            row = np.zeros(len(names))
            row[i], row[j] = 1 / ALIKE[kind == other], -1 / ALIKE[kind == other]
            rows.append(row)
    return np.array(rows).reshape(len(rows), len(names))


def _trust(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square roots of Huber's weights."""
    return np.asarray(np.sqrt(np.minimum(1.0, LARGE / np.maximum(np.abs(errors), 1e-9))))


def _values(factors: Factors, names: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    return np.array([factors.weights(g)[KINDS.index(kind)] for kind, g in names])


def _replaced(factors: Factors, names: Sequence[tuple[str, str]], values: NDArray[np.float64]) -> Factors:
    held, by = dict(factors.values), {g: dict(kinds) for g, kinds in factors.generations.items()}
    for (kind, g), value in zip(names, values.tolist(), strict=True):
        if g:
            by.setdefault(g, {})[kind] = value
        else:
            held[kind] = value
    return Factors(held, by)


def _bounded(
    a: NDArray[np.float64], b: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares between bounds: what would leave them stays at one, and is let go where that helps."""
    gram, right = a.T @ a, a.T @ b
    x = np.clip(np.linalg.solve(gram, right), low, high)
    for _ in range(200):
        slope = gram @ x - right
        free = ~(((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0)))
        if np.abs(slope[free]).max(initial=0.0) < 1e-9 * np.abs(right).max():
            break
        step = np.zeros_like(x)
        step[free] = np.linalg.solve(gram[np.ix_(free, free)], -slope[free])
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(step > 0, (high - x) / step, np.where(step < 0, (low - x) / step, np.inf))
        share = min(1.0, float(room[room > 0].min(initial=1.0)))
        x = np.clip(x + share * step, low, high)
    return np.asarray(x)


@dataclass(frozen=True)
class Predicted:
    """A point with what is predicted of it, microseconds: by a fit on all; without its model (``factors``); and by one
    MFU for its chip and format.
    """

    point: Point
    fitted_us: float
    left_out_us: float
    null_us: float | None
    factors: Factors

    @property
    def error(self) -> float:
        """Relative, of the fit that did not see the model."""
        return self.left_out_us / self.point.measured_us - 1


def folds(
    points: Sequence[Point], samples: Sequence[Point], after: Mapping[str, str]
) -> tuple[list[Predicted], dict[str, Factors]]:
    """Each point predicted by a fit on all, and by one on all other models; and by the null model of the same fold.

    Args:
        samples: what is fitted: points, and those of frameworks that others of their members ran on.
        after: frameworks whose factors others' are near, by framework; those are left out without the model, too.

    Returns:
        the points, and the fits on all by framework.
    """
    by: dict[str, list[Point]] = {}
    for point in samples:
        by.setdefault(point.framework, []).append(point)
    fits: dict[tuple[str, str], Factors] = {}

    def fitted(framework: str, without: str) -> Factors:
        mine = [p for p in by.get(framework, []) if base_name(p.model) != without]
        if without and len(mine) == len(by.get(framework, [])) and not after.get(framework):
            return fitted(framework, "")
        if (framework, without) not in fits:
            other = after.get(framework)
            near = fitted(other, without) if other else EXPECTATION
            fits[framework, without] = fit(mine, near) if mine else near
        return fits[framework, without]

    found = []
    for point in points:
        mine = base_name(point.model)
        others = [p for p in points if p.framework == point.framework and base_name(p.model) != mine]
        whole, without = fitted(point.framework, ""), fitted(point.framework, mine)
        found.append(Predicted(point, time_us(point, whole), time_us(point, without), _null(point, others), without))
    return found, {framework: fitted(framework, "") for framework in by}


def time_us(point: Point, factors: Factors, plan: TrainingPlan | None = None) -> float:
    """Of a step of the point, or of one of its members, with these factors."""
    found = factors.weights(point.generation, point.strain)
    pieces = point.pieces if plan is None else pieces_of(prices_of(plan), plan.layout)
    line, _ = step_line(pieces, (plan or point.plan).layout, found)
    return float(line[:-1] @ found + line[-1])


def _null(point: Point, others: Sequence[Point]) -> float | None:
    """The time at the mean FLOPs a second and rank of other models, with experts or without as this one, on the same
    chip and format; None: there are none.
    """
    form = point.plan.layout.product_dtype
    same = [p for p in others if (p.chip, p.plan.layout.product_dtype, p.moe) == (point.chip, form, point.moe)]
    if not same:
        return None
    rate = np.exp(np.mean([np.log(p.model_flops / p.measured_us / p.ranks) for p in same]))
    return float(point.model_flops / rate / point.ranks)
