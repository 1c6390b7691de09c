"""Serving: one continuous-batching engine over an abstract step cost, used by whatever needs a scheduler.

>>> from trnsim.serving import AffineCost, CacheSettings, Pool, ReplicaSettings, closed_loop, lengths, simulate
>>> cost = AffineCost(fixed_ps=5e9, per_token_ps=1e7)  # 5 ms a step and 10 us a token
>>> cache = CacheSettings(capacity_bytes=2**30, elements_per_token=65536)
>>> load = closed_loop(4, lengths(100, 8), lengths(11, 8))
>>> result = simulate(load, Pool(cost=cost, settings=ReplicaSettings(cache=cache)))
>>> [round(float(1e3 * x), 2) for x in (result.ttft.mean(), result.tpot.mean())]  # the prompts, then ten decode steps
[9.0, 5.04]
>>> round(result.output_tokens_per_second)
741
"""

from .cost import AffineCost, EndingCost, RunCost, Step, StepCost
from .result import Distribution, ServingResult
from .settings import (
    CacheSettings,
    HostSettings,
    ReplicaSettings,
    SchedulerSettings,
    Speculation,
    StaticShapes,
    powers_of_two,
)
from .system import Pool, Transfer, simulate
from .workload import Workload, all_at_once, bursty, closed_loop, lengths, poisson, shared_prefix

__all__ = [
    "AffineCost",
    "CacheSettings",
    "Distribution",
    "EndingCost",
    "HostSettings",
    "Pool",
    "ReplicaSettings",
    "RunCost",
    "SchedulerSettings",
    "ServingResult",
    "Speculation",
    "StaticShapes",
    "Step",
    "StepCost",
    "Transfer",
    "Workload",
    "all_at_once",
    "bursty",
    "closed_loop",
    "lengths",
    "poisson",
    "powers_of_two",
    "shared_prefix",
    "simulate",
]
