"""Goodput of long runs: the share of wall time that is useful work, under failures and checkpoints.

Failures arrive as a Poisson process with mean time M between them over the whole system. Every ``interval`` of work is
followed by a checkpoint that takes ``checkpoint``; a failure costs what was done since the last one, and ``restart``,
during which there may be failures too. The expected wall time of an interval is (J. T. Daly, "A higher order estimate
of the optimum checkpoint interval for restart dumps", FGCS 22, 2006)

    T(interval) = M * exp(restart / M) * (exp((interval + checkpoint) / M) - 1)

and goodput is interval / T. The optimum solves (1 - x) = exp(-x - checkpoint / M) with x = interval / M, here to
machine precision. Young's first-order optimum is sqrt(2 * checkpoint * M); Daly's, which is within 0.1 % of goodput of
the best up to checkpoint = M / 2, is ``daly_interval``.

All times are in one unit; every function takes NumPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trnsim.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]


def _positive(**values: npt.ArrayLike) -> tuple[Floats, ...]:
    found = []
    for name, value in values.items():
        array = np.asarray(value, np.float64)
        if not np.all(np.isfinite(array) & (array > 0)):
            raise InputError(f"goodput: {name} must be positive", value=value)
        found.append(array)
    return tuple(found)


def _not_negative(**values: npt.ArrayLike) -> tuple[Floats, ...]:
    found = []
    for name, value in values.items():
        array = np.asarray(value, np.float64)
        if not np.all(np.isfinite(array) & (array >= 0)):
            raise InputError(f"goodput: {name} must be 0 or more", value=value)
        found.append(array)
    return tuple(found)


def system_mtbf(chips: npt.ArrayLike, chip_mtbf: npt.ArrayLike) -> Floats:
    """Mean time between failures of a job that any of its chips can stop: that of one chip over their number."""
    count, mtbf = _positive(chips=chips, chip_mtbf=chip_mtbf)
    return np.asarray(mtbf / count)


def young_interval(checkpoint: npt.ArrayLike, mtbf: npt.ArrayLike) -> Floats:
    """Young's optimum interval of work between checkpoints (CACM 17, 1974)."""
    (cost,), (mean,) = _not_negative(checkpoint=checkpoint), _positive(mtbf=mtbf)
    return np.sqrt(2 * cost * mean)


def daly_interval(checkpoint: npt.ArrayLike, mtbf: npt.ArrayLike) -> Floats:
    """Daly's optimum interval (2006): M where a checkpoint takes 2 M or more."""
    (cost,), (mean,) = _not_negative(checkpoint=checkpoint), _positive(mtbf=mtbf)
    ratio = cost / (2 * mean)
    estimate = np.sqrt(2 * cost * mean) * (1 + np.sqrt(ratio) / 3 + ratio / 9) - cost
    return np.where(ratio < 1, estimate, mean)


def best_interval(checkpoint: npt.ArrayLike, mtbf: npt.ArrayLike) -> Floats:
    """The interval of the highest goodput; 0 where a checkpoint costs nothing."""
    (cost,), (mean,) = _not_negative(checkpoint=checkpoint), _positive(mtbf=mtbf)
    ratio = cost / mean
    # x = 1 - exp(-x - ratio) has one root above 0; the right side is concave, so Newton's method from 1 descends to it.
    x = np.ones_like(ratio)
    for _ in range(60):
        decay = np.exp(-x - ratio)
        step = (x - 1 + decay) / np.maximum(1 - decay, np.finfo(float).tiny)
        x = np.maximum(x - step, 0.0)
    return np.where(cost > 0, x * mean, 0.0)


def goodput(
    interval: npt.ArrayLike, checkpoint: npt.ArrayLike, mtbf: npt.ArrayLike, restart: npt.ArrayLike = 0.0
) -> Floats:
    """Share of wall time that is useful work, 0 to 1. ``interval`` 0 (with free checkpoints): no work is ever lost."""
    work, cost, back = _not_negative(interval=interval, checkpoint=checkpoint, restart=restart)
    (mean,) = _positive(mtbf=mtbf)
    if np.any((work == 0) & (cost > 0)):
        raise InputError("goodput: an interval of 0 with checkpoints that take time does no work", value=interval)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        share = work / (mean * np.expm1((work + cost) / mean))
    return np.asarray(np.where(work == 0, 1.0, share) * np.exp(-back / mean))


@dataclass(frozen=True)
class LongRun:
    """A run of ``useful`` time: its interval between checkpoints, goodput and expected wall time."""

    interval: float
    goodput: float
    wall: float


def long_run(
    useful: float, checkpoint: float, mtbf: float, restart: float = 0.0, interval: float | None = None
) -> LongRun:
    """Expected wall time of ``useful`` work with checkpoints every ``interval`` (None: the best)."""
    _not_negative(useful=useful)
    chosen = float(best_interval(checkpoint, mtbf)) if interval is None else interval
    share = float(goodput(chosen, checkpoint, mtbf, restart))
    if share == 0:
        raise InputError(
            "goodput: failures leave no time to work", value=f"interval {chosen:g}", limit=f"MTBF {mtbf:g}"
        )
    return LongRun(chosen, share, useful / share)
