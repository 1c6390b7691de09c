"""Refitting the constants that were fitted on whole kernels, and what is predicted of kernels left out of the fit.

Most constants of the model come from instruction and DMA classes of profiles or from documentation; whole kernels never
moved them. ``FITTED`` are those that whole kernels did set: a time of the DMA engines and the fixed parts of three
clocks. A fit makes the mean absolute relative error least, each family counting the same, linear in the constants: the
change of a time with a constant is measured by timing every trace a second time with that constant ``STEP`` larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.validation.report import Compared
from trnsim.validation.summary import FLOOR_US

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatColumn = NDArray[np.float64]

VARIED = ("dma.transfer",)
"""Constants of the timing files, ``section.name``, that are multiplied by a factor."""
OFFSETS = ("benchmark_p50", "cycle_count", "tpb_cycles_two_cores")
"""Clocks whose fixed part a fit may move."""
STEP = 0.25
FITTED = (*VARIED, *OFFSETS)
ROUNDS = 30


@dataclass(frozen=True)
class Fit:
    """``factors`` of ``VARIED`` and ``shifts`` of ``OFFSETS`` in microseconds, those with data; the others stay."""

    factors: dict[str, float]
    shifts: dict[str, float]

    def predicted_us(self, compared: Compared) -> float:
        """The time of a case with these constants."""
        slopes = dict(compared.prediction.slopes)
        time = compared.predicted_us + sum((f - 1) * slopes.get(name, 0.0) for name, f in self.factors.items())
        return time + compared.prediction.launches * self.shifts.get(compared.case.clock, 0.0)


@dataclass(frozen=True)
class Left:
    """Mean absolute relative error of a family: with constants fitted on all, on all but it, on all but its source.

    None where no other family or source is left to fit on.
    """

    family: str
    fitted: float
    without_family: float | None
    without_source: float | None


def fit(training: Sequence[Compared]) -> Fit:
    """Constants that suit ``training`` best. One that no row of it depends on keeps its value."""
    families = [c.case.family for c in training]
    rows, target = [], []
    for c in training:
        weight = 1 / (max(c.case.measured_us, FLOOR_US) * families.count(c.case.family))
        slopes = dict(c.prediction.slopes)
        rows.append(
            [weight * slopes.get(name, 0.0) for name in VARIED]
            + [weight * c.prediction.launches * (c.case.clock == name) for name in OFFSETS]
        )
        target.append(weight * (c.case.measured_us - c.predicted_us))
    matrix, wanted = np.array(rows).reshape(-1, len(FITTED)), np.array(target)
    used = np.abs(matrix).max(axis=0, initial=0.0) > 0
    solution = _least_absolute(matrix, wanted, used)
    for n in range(len(VARIED)):
        if solution[n] < -1:  # no constant is negative
            rest = used.copy()
            rest[n] = False
            solution = _least_absolute(matrix, wanted + matrix[:, n], rest)
            solution[n] = -1.0
    values = dict(zip(FITTED, solution.tolist(), strict=True))
    moved = dict(zip(FITTED, used.tolist(), strict=True))
    return Fit(
        {name: 1 + values[name] for name in VARIED if moved[name]},
        {name: values[name] for name in OFFSETS if moved[name]},
    )


def _least_absolute(matrix: FloatColumn, target: FloatColumn, used: NDArray[np.bool_]) -> FloatColumn:
    """Least absolute deviations by least squares that count each row less the further off it was; 0 where not used."""
    solution = np.zeros(matrix.shape[1])
    if not used.any():
        return solution
    weight = np.ones(len(target))
    for _ in range(ROUNDS):
        solution[used] = np.linalg.lstsq(matrix[:, used] * weight[:, None], target * weight, rcond=None)[0]
        weight = 1 / np.sqrt(np.maximum(np.abs(target - matrix @ solution), 1e-6))
    return solution


def cross_validate(compared: Sequence[Compared]) -> tuple[Fit, list[Left]]:
    """The fit on everything, and for each family its error when it, or its whole source, was not seen.

    Only kernels of the generation that the constants belong to count (trn2).
    """
    known = [c for c in compared if c.prediction.slopes]
    everything = fit(known)
    found = []
    for family in dict.fromkeys(c.case.family for c in known):
        mine = [c for c in known if c.case.family == family]
        origin = mine[0].case.recipe.origin
        others = [c for c in known if c.case.family != family]
        strangers = [c for c in known if c.case.recipe.origin != origin]
        found.append(
            Left(
                family,
                _mape(everything, mine),
                _mape(fit(others), mine) if others else None,
                _mape(fit(strangers), mine) if strangers else None,
            )
        )
    return everything, found


def _mape(constants: Fit, compared: Sequence[Compared]) -> float:
    return float(
        np.mean(
            [abs(constants.predicted_us(c) - c.case.measured_us) / max(c.case.measured_us, FLOOR_US) for c in compared]
        )
    )
