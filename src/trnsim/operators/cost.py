"""The cost of one use of an operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
