"""A serving plan under arrivals: the engine is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trnsim.planner.serving import ServingCase
from trnsim.serving import lengths, poisson, simulate
from trnsim.serving.traces import read_trace

if TYPE_CHECKING:
    from trnsim.planner.serving import ServingPlan
    from trnsim.serving import ServingResult, Workload


def arrivals(trace: Path | None, rate: float | None, count: int, isl: int, osl: int, seed: int = 0) -> Workload:
    """Requests of a file, or Poisson arrivals of equal requests.

    Raises:
        InputError: a file that does not hold; a rate that is not positive.
    """
    if trace is not None:
        return read_trace(trace, limit=count)
    return poisson(rate or 0.0, lengths(isl, count), lengths(osl, count), seed=seed)


def run(plan: ServingPlan, workload: Workload) -> ServingResult:
    """Requests that are longer than the plan allows are rejected and reported."""
    return simulate(workload, ServingCase(plan).pool(), too_long="reject")
