"""A serving plan under arrivals: the engine is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trnsim.planner.serving import ServingCase
from trnsim.planner.serving_disaggregated import PooledCase
from trnsim.serving import bursty, lengths, shared_prefix, simulate
from trnsim.serving.traces import read_trace

if TYPE_CHECKING:
    from trnsim.planner.serving import ServingPlan
    from trnsim.serving import ServingResult, Workload

# Tokens of the blocks that prefixes are shared in: as the caches of the catalogue, or a divisor of theirs.
_BLOCK = 16


def arrivals(
    trace: Path | None,
    rate: float | None,
    count: int,
    isl: int,
    osl: int,
    seed: int = 0,
    *,
    burstiness: float = 1.0,
    cached: int = 0,
) -> Workload:
    """Requests of a file, or Poisson arrivals of equal requests (``burstiness`` below 1: in bursts).

    ``cached`` tokens of the prompts of equal requests are the same for all.

    Raises:
        InputError: a file that does not hold; a rate that is not positive.
    """
    if trace is not None:
        return read_trace(trace, limit=count)
    found = bursty(rate or 0.0, lengths(isl, count), lengths(osl, count), burstiness=burstiness, seed=seed)
    return shared_prefix(found, np.zeros(count, np.int64), cached, _BLOCK) if cached else found


def run(plan: ServingPlan, workload: Workload) -> ServingResult:
    """Requests that are longer than the plan allows are rejected and reported."""
    case = ServingCase(plan)
    reuses = workload.prefix_keys is not None and case.settings.cache.prefix_reuse
    return simulate(workload, case.pool(), router="prefix" if reuses else "least-requests", too_long="reject")


def run_pools(prefill: ServingPlan, decode: ServingPlan, workload: Workload) -> ServingResult:
    """As ``run``, with a pool that computes prompts; the cache moves as over the fabric."""
    case = PooledCase.of(prefill, decode)
    move = case.transfer(max(round(float(workload.input_tokens.mean())), 1))[0]
    return simulate(workload, case.decode.pool(), prefill=case.prefill.pool(), transfer=move, too_long="reject")
