"""The cost of one use of an operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync", "dma")


@dataclass(frozen=True)
class OperatorCost:
    """Time in picoseconds on all cores of a logical core together, bytes of HBM, and how it is known.

    ``busy_ps`` is of the busier core; ``sbuf_bytes`` the peak of a partition. ``support`` is calibrated, interpolated,
    extrapolated or assumed; ``reason`` says why; ``how`` is ``surface`` or ``simulated``.
    """

    operator: str
    implementation: str
    time_ps: float
    hbm_bytes: int
    flops: int
    sbuf_bytes: int
    support: str
    reason: str = ""
    how: str = ""
    error_percent: float | None = None
    busy_ps: Mapping[str, float] = field(default_factory=dict)

    @property
    def microseconds(self) -> float:
        return self.time_ps / 1e6

    @property
    def bound(self) -> str:
        """What is busy longest: an engine, or ``dma``."""
        return max(self.busy_ps, key=lambda name: self.busy_ps[name]) if self.busy_ps else ""


@dataclass(frozen=True)
class OperatorCosts:
    """The costs of many uses: as those of ``OperatorCost``, an array each."""

    operator: str
    implementation: str
    time_ps: NDArray[np.float64]
    hbm_bytes: NDArray[np.float64]
    flops: NDArray[np.float64]
    sbuf_bytes: NDArray[np.float64]
    busy_ps: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
