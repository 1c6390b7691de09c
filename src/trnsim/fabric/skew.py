"""Stragglers: how late each rank comes to a collective, as a distribution with a seed.

Each rank's delay is drawn on its own from a lognormal distribution; a collective is over when the last rank has come and
the data has moved. A rank sees the wait for the last one beside the time of the collective. The two constants
(``skew.toml``) come from one published trace of 64 ranks; with more ranks the wait grows as the largest of more draws.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

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
    """Delays of ranks: lognormal, with this median and this standard deviation of the logarithm."""

    median_ps: float
    sigma: float
    ranks: int = 0
    """Of the trace that it was fitted on; 0: made by hand."""
    reason: str = ""

    def __post_init__(self) -> None:
        if not (self.median_ps >= 0 and self.sigma >= 0):
            raise InputError("delays have a median and a spread of at least 0", operand="skew",
                             value=(self.median_ps, self.sigma), limit=0)  # fmt: skip

    def delays(self, ranks: int, count: int, seed: int) -> NDArray[np.float64]:
        """Delays in picoseconds, ``(count, ranks)``: ``count`` collectives, the same for the same seed.

        Raises:
            InputError: fewer than one rank or collective.
        """
        if ranks < 1 or count < 1:
            raise InputError("delays are those of at least one rank and collective", value=(count, ranks), limit=1)
        drawn = np.random.default_rng(seed).standard_normal((count, ranks))
        return np.asarray(self.median_ps * np.exp(self.sigma * drawn))

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
        return self.median_ps * float(np.exp(self.sigma * NormalDist().inv_cdf(share ** (1 / ranks))))


def fitted(median_ps: float, high_ps: float, high: float, ranks: int) -> Skew:
    """The skew of which the last of ``ranks`` is ``median_ps`` late in half of all collectives, ``high_ps`` in ``high``."""
    z = [NormalDist().inv_cdf(share ** (1 / ranks)) for share in (0.5, high)]
    sigma = float(np.log(high_ps / median_ps) / (z[1] - z[0]))
    return Skew(median_ps=median_ps * float(np.exp(-sigma * z[0])), sigma=sigma, ranks=ranks)


@cache
def published() -> Skew:
    """The skew of ``skew.toml``."""
    found = tomllib.loads(Path(__file__).with_name("skew.toml").read_text(encoding="utf-8"))
    return Skew(
        median_ps=float(DURATION.parse(found["median"])),
        sigma=float(found["sigma"]),
        ranks=int(found["ranks"]),
        reason=found["reason"],
    )
