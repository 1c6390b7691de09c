"""What is asked of a serving system: requests with their lengths, and when they arrive.

Arrivals are open (each request has its time: Poisson, bursty, or from a trace) or closed (a fixed number of users, each
sending the next request when the last one is answered). Times are integer picoseconds; everything random has a seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trnsim.errors import InputError

from .cost import Integers
from .settings import at_least

PS: float = 1e12
"""Picoseconds a second."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Workload:
    """Requests in order of arrival.

    ``input_tokens`` and ``output_tokens``: int64 [n], at least 1 each. Either ``arrival_ps`` (int64 [n], ascending) or
    ``concurrency`` users, each of whom waits ``think_ps`` between an answer and the next request. ``prefix_keys[i]``:
    for prefix reuse, one key for each leading full block of the prompt that others may share; a key stands for all
    tokens up to the end of its block of ``prefix_block_tokens`` tokens.
    """

    input_tokens: Integers
    output_tokens: Integers
    arrival_ps: Integers | None = None
    concurrency: int = 0
    think_ps: int = 0
    prefix_keys: Sequence[Sequence[Hashable]] | None = None
    prefix_block_tokens: int = 0

    def __post_init__(self) -> None:
        count = len(self.input_tokens)
        if count == 0:
            raise InputError("a workload needs at least one request")
        for name in ("input_tokens", "output_tokens"):
            values = np.asarray(getattr(self, name))
            if values.dtype.kind not in "iu" or values.shape != (count,):
                raise InputError(f"Workload.{name} must be one whole number a request", value=values.shape, limit=count)
            wrong = np.flatnonzero(values < 1)
            if wrong.size:
                raise InputError(f"request {wrong[0]}: {name} must be at least 1", value=int(values[wrong[0]]))
            object.__setattr__(self, name, values.astype(np.int64))
        if (self.arrival_ps is None) == (self.concurrency == 0):
            raise InputError("a workload has either arrival times or a concurrency (closed loop)")
        at_least("Workload", 0, concurrency=self.concurrency, think_ps=self.think_ps)
        if self.arrival_ps is not None:
            self._check_arrivals(np.asarray(self.arrival_ps), count)
        if self.prefix_keys is not None:
            at_least("Workload", 1, prefix_block_tokens=self.prefix_block_tokens)
            for i, keys in enumerate(self.prefix_keys):
                if len(keys) * self.prefix_block_tokens > self.input_tokens[i]:
                    raise InputError(
                        f"request {i}: more prefix blocks than its prompt has full ones",
                        value=len(keys),
                        limit=int(self.input_tokens[i]) // self.prefix_block_tokens,
                    )

    def _check_arrivals(self, times: npt.NDArray[np.int64], count: int) -> None:
        if times.shape != (count,) or times.dtype.kind not in "iu":
            raise InputError("Workload.arrival_ps must be one time in picoseconds a request", value=times.shape)
        if times.size and times.min() < 0:
            at = int(times.argmin())
            raise InputError(f"request {at}: negative arrival", value=int(times[at]))
        if np.any(np.diff(times) < 0):
            at = int(np.flatnonzero(np.diff(times) < 0)[0]) + 1
            raise InputError(f"request {at}: arrives before the one in front of it", value=int(times[at]))
        object.__setattr__(self, "arrival_ps", times.astype(np.int64))

    def __len__(self) -> int:
        return len(self.input_tokens)


def lengths(mean: int, count: int, *, spread: float = 0.0, seed: int = 0) -> Integers:
    """``count`` lengths, uniform over mean * (1 - spread) to mean * (1 + spread), at least 1; all ``mean`` at 0."""
    at_least("lengths", 1, mean=mean, count=count)
    if not 0 <= spread <= 1:
        raise InputError("lengths: spread is out of range", value=spread, limit="0 to 1")
    low, high = max(1, round(mean * (1 - spread))), max(1, round(mean * (1 + spread)))
    return np.random.default_rng(seed).integers(low, high, count, endpoint=True)


def closed_loop(
    concurrency: int, input_tokens: Integers, output_tokens: Integers, *, think_seconds: float = 0.0
) -> Workload:
    """Users who each send their next request when the last one has been answered."""
    at_least("closed_loop", 1, concurrency=concurrency)
    at_least("closed_loop", 0, think_seconds=think_seconds)
    return Workload(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        concurrency=concurrency,
        think_ps=round(think_seconds * PS),
    )


def poisson(rate: float, input_tokens: Integers, output_tokens: Integers, *, seed: int = 0) -> Workload:
    """Arrivals of a Poisson process of ``rate`` requests a second, the first after one interval."""
    return bursty(rate, input_tokens, output_tokens, burstiness=1.0, seed=seed)


def bursty(
    rate: float, input_tokens: Integers, output_tokens: Integers, *, burstiness: float, seed: int = 0
) -> Workload:
    """Arrivals whose intervals are gamma distributed with mean 1 / rate and shape ``burstiness``.

    1 is a Poisson process, less is more bursty, more is more even: the parameter of the same name of vLLM's benchmark.
    """
    for name, value in (("rate", rate), ("burstiness", burstiness)):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"arrivals: {name} must be positive", value=value)
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), len(input_tokens))
    return Workload(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        arrival_ps=np.rint(np.cumsum(gaps) * PS).astype(np.int64),
    )


def all_at_once(input_tokens: Integers, output_tokens: Integers) -> Workload:
    """Every request arrives at time 0: what an offline batch is."""
    return Workload(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        arrival_ps=np.zeros(len(input_tokens), np.int64),
    )


def shared_prefix(workload: Workload, groups: Integers, prefix_tokens: int, block_tokens: int) -> Workload:
    """The workload with prompts that begin alike: requests of one group share their first ``prefix_tokens`` tokens.

    Only full blocks of ``block_tokens`` (the cache's block size) are shared.
    """
    at_least("shared_prefix", 1, block_tokens=block_tokens)
    at_least("shared_prefix", 0, prefix_tokens=prefix_tokens)
    shared = np.minimum(prefix_tokens, workload.input_tokens) // block_tokens
    keys = [[(int(g), j) for j in range(int(n))] for g, n in zip(groups, shared, strict=True)]
    return Workload(
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        arrival_ps=workload.arrival_ps,
        concurrency=workload.concurrency,
        think_ps=workload.think_ps,
        prefix_keys=keys,
        prefix_block_tokens=block_tokens,
    )
