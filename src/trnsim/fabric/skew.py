"""Stragglers: how late each rank comes to a collective, as a distribution with a seed.

In each collective each rank is late with some probability, on its own, and then by a time that is drawn from an
exponential distribution. The collective is over when the last rank has come and the data has moved; a rank sees the
wait for the last one beside the time of the collective. With more ranks one is late more often, and the last one later.
The two constants (``skew.toml``) come from one published trace.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError
from trnsim.hardware.quantity import DURATION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class Skew:
    """Delays of ranks: none, or with this probability an exponential one with this mean."""

    probability: float
    mean_ps: float
    reason: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError("a probability lies between 0 and 1", operand="skew", value=self.probability)
        if not self.mean_ps >= 0:
            raise InputError("a delay has a mean of at least 0", operand="skew", value=self.mean_ps, limit=0)

    def delays(self, ranks: int, count: int, seed: int) -> NDArray[np.float64]:
        """Delays in picoseconds, ``(count, ranks)``: ``count`` collectives, the same for the same seed.

        Raises:
            InputError: fewer than one rank or collective.
        """
        if ranks < 1 or count < 1:
            raise InputError("delays are those of at least one rank and collective", value=(count, ranks), limit=1)
        rng = np.random.default_rng(seed)
        late = rng.random((count, ranks)) < self.probability
        return np.asarray(np.where(late, self.mean_ps * rng.standard_exponential((count, ranks)), 0.0))

    def waits(self, ranks: int, count: int, seed: int) -> NDArray[np.float64]:
        """What the first rank waits for the last, in picoseconds, in each of ``count`` collectives."""
        delays = self.delays(ranks, count, seed)
        return np.asarray(delays.max(axis=1) - delays[:, 0])

    def last_ps(self, share: float, ranks: int) -> float:
        """How late the last of ``ranks`` is in this share of collectives at most (0.5: the median).

        Raises:
            InputError: a share that is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise InputError("a share of collectives lies between 0 and 1", value=share)
        above = -math.expm1(math.log(share) / ranks)  # of a rank, to be later than this
        return self.mean_ps * max(math.log(self.probability / above), 0.0) if self.probability else 0.0


def fitted(median_ps: float, high_ps: float, high: float, ranks: int) -> Skew:
    """The last of ``ranks`` is ``median_ps`` late in half of all collectives, ``high_ps`` at most in a share ``high``.

    Raises:
        InputError: no such: these are not ascending, or every rank would be late.
    """
    above = [-math.expm1(math.log(share) / ranks) for share in (0.5, high)]
    if not 0 < median_ps < high_ps:
        raise InputError("the median of a wait is above 0 and below its higher quantile", value=(median_ps, high_ps))
    mean = (high_ps - median_ps) / math.log(above[0] / above[1])
    return Skew(probability=above[0] * math.exp(median_ps / mean), mean_ps=mean)


@cache
def published() -> Skew:
    """The skew of ``skew.toml``."""
    found = tomllib.loads(Path(__file__).with_name("skew.toml").read_text(encoding="utf-8"))
    return Skew(
        probability=float(found["probability"]),
        mean_ps=float(DURATION.parse(found["mean"])),
        reason=found["reason"],
    )
