"""Serving: one continuous-batching engine over an abstract step cost, used by whatever needs a scheduler."""

from .cost import AffineCost, RunCost, Step, StepCost
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
