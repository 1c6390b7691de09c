"""What a kernel takes at sizes that were not simulated, from the sizes that were: those nearest, scaled by work.

Where a surface lacks samples, or there is none for a size that surfaces do not extrapolate, a kernel's time over what
its multiplications and its bytes take at the peak rates (``roofline``) is carried from the nearest simulated sizes,
near by the logarithms of all sizes. No use is faster than the fastest sample. Nothing is simulated for it. How far off
that is, is told by leaving out each sample in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.hardware import load_chip
from trnsim.operators.packing import unpack
from trnsim.operators.work import OPERATORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.operators.shipped import Entry

    Floats = NDArray[np.float64]

_NEAREST = 4
# Samples that are left out to tell the error, at most.
_LEFT_OUT = 200
# Two sizes as near as this (of the logarithm, squared) weigh the same.
_SAME = 0.01
# Formats of operands whose products TensorE does at another rate, by itself; others at that of 16 bits.
_RATES = ("float8_e4m3", "float8_e5m2", "float8_e4m3fn_x4", "float8_e5m2_x4", "float4_e2m1fn_x4", "float32")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Simulated sizes of one operator in one format: ``logs`` [samples, sizes], ``ratios`` of time to roofline.

    ``error``: the median of those left out. ``changed``: options that had to be others than asked for.
    """

    names: tuple[str, ...]
    logs: Floats
    ratios: Floats
    least_us: float
    error: float
    changed: tuple[str, ...] = ()

    def ratio(self, sizes: Mapping[str, Any]) -> float:
        """Of time to roofline, at some sizes."""
        return float(np.exp(_carried(self.logs, np.log(self.ratios), self._place(sizes))))

    def _place(self, sizes: Mapping[str, Any]) -> Floats:
        found: Floats = np.log1p(np.array([float(sizes[name]) for name in self.names]))
        return found


def roofline_us(chip: str, cores: int, contract: Contract, problem: Problem) -> float:
    """Microseconds of the multiplications and of the bytes at the peak rates of ``cores`` cores, overlapping."""
    loaded = load_chip(chip)
    core = loaded.core
    assert core is not None
    name = problem.dtype if problem.dtype in _RATES else "bfloat16"
    peak = (core.tensor.flops(name) or core.tensor.flops("bfloat16") or 0.0) * cores
    moved = loaded.hbm.bytes_per_second * cores / (loaded.core_count or 1)
    return 1e6 * float(np.hypot(contract.flops(problem) / peak, contract.bytes(problem) / moved))


def gather(chip: str, cores: int, contract: Contract, problem: Problem, entries: Iterable[Entry]) -> Neighbours | None:
    """The samples of an operator's shipped surfaces in a format, with the options asked for if there are any.

    None: there are none.
    """
    entries = list(entries)
    held = [entry for entry in entries if entry.dtype == problem.dtype]
    if not held and not (contract.name in OPERATORS and OPERATORS[contract.name].products):
        # What only moves data takes as long for each byte.
        held = entries
    same = [entry for entry in held if dict(entry.options) == dict(problem.options)]
    changed: tuple[str, ...] = ()
    if not same and held:
        # Those with the fewest other options.
        fewest = min(len(_differing(entry, problem)) for entry in held)
        same = [entry for entry in held if len(_differing(entry, problem)) == fewest]
        changed = _differing(same[0], problem)
    rows: list[list[float]] = []
    ratios: list[float] = []
    least = np.inf
    names = tuple(contract.sizes)
    for entry in same:
        one = contract.problem(entry.dtype, cores, {**entry.sizes, **entry.options}, problem.generation)
        surface = unpack(entry.surface)
        for point, values in surface.samples.items():
            places = {knots.axis.name: at for knots, at in zip(surface.knots, point, strict=True)}
            use = one.resized(contract.placed(one, places)) if places else one
            time, roof = float(values[0]) / 1e6, roofline_us(chip, cores, contract, use)
            if roof <= 0:
                continue
            rows.append([float(use.sizes[name]) for name in names])
            ratios.append(time / roof)
            least = min(least, time)
    if not rows:
        return None
    logs, found = np.log1p(np.array(rows)), np.array(ratios)
    return Neighbours(names, logs, found, float(least), _error(logs, np.log(found)), changed)


def _differing(entry: Entry, problem: Problem) -> tuple[str, ...]:
    return tuple(name for name, value in problem.options.items() if entry.options.get(name) != value)


def _carried(logs: Floats, values: Floats, place: Floats, without: int = -1) -> float:
    far = ((logs - place) ** 2).sum(axis=1)
    if without >= 0:
        far[without] = np.inf
    count = min(_NEAREST, len(far) - (without >= 0))
    nearest = np.argpartition(far, count - 1)[:count]
    weights = 1 / (far[nearest] + _SAME)
    return float(weights @ values[nearest] / weights.sum())


def _error(logs: Floats, values: Floats) -> float:
    """Median of how far off the samples are that are left out, evenly spread."""
    if len(values) < 2:
        return float("nan")
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), _LEFT_OUT)).round().astype(int))
    wrong = [abs(np.expm1(_carried(logs, values, logs[i], int(i)) - values[i])) for i in chosen]
    return float(np.median(wrong))
