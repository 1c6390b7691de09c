"""What a simulated serving run did: times of each request, the steps, and the figures that benchmarks report.

TTFT is from arrival to the first token, E2E to the last; TPOT = (E2E - TTFT) / (output tokens - 1), of requests with at
least two; ITL is the time between two tokens (under speculation: between two steps that yield tokens) of one request.
Throughput counts from the first arrival to the last answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from .cost import Floats, Integers
from .log import STEP_COLUMNS, Emissions

if TYPE_CHECKING:
    from .records import Records
    from .replica import Replica
    from .system import Pool

PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0)
_PS = 1e12


@dataclass(frozen=True)
class Distribution:
    """Mean, standard deviation, extremes and percentiles, in seconds."""

    count: int
    mean: float
    std: float
    low: float
    high: float
    percentiles: dict[float, float]

    @classmethod
    def of(cls, seconds: Floats, percentiles: Sequence[float] = PERCENTILES) -> Distribution | None:
        """The distribution of values; None of nothing. Percentiles interpolate, as NumPy's do."""
        if not seconds.size:
            return None
        found = np.percentile(seconds, list(percentiles))
        return cls(
            count=seconds.size,
            mean=float(seconds.mean()),
            std=float(seconds.std()),
            low=float(seconds.min()),
            high=float(seconds.max()),
            percentiles={p: float(v) for p, v in zip(percentiles, found, strict=True)},
        )

    def as_milliseconds(self) -> dict[str, float]:
        """For JSON: ``mean_ms``, ``std_ms``, ``min_ms``, ``max_ms``, ``p50_ms``, ..."""
        named = {"mean": self.mean, "std": self.std, "min": self.low, "max": self.high}
        named |= {f"p{p:g}": v for p, v in self.percentiles.items()}
        return {f"{name}_ms": value * 1e3 for name, value in named.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class ServingResult:
    """One simulated run. Columns by request in order of arrival; times in picoseconds, -1 for rejected requests.

    ``steps``: column name -> int64 array over the steps of all replicas, by replica and time; ``replica`` and the
    columns of ``log.STEP_COLUMNS``. ``cache_units``: blocks (or slots) of each replica's cache.
    """

    arrival_ps: Integers
    scheduled_ps: Integers
    first_token_ps: Integers
    finish_ps: Integers
    input_tokens: Integers
    output_tokens: Integers
    cached_tokens: Integers
    preemptions: Integers
    replica: Integers
    served: npt.NDArray[np.bool_]
    chips: float
    steps: dict[str, Integers]
    cache_units: tuple[int, ...]
    token_log: tuple[Emissions, ...]
    """By replica, what ``emissions`` is made from."""

    @cached_property
    def emissions(self) -> tuple[Integers, Integers]:
        """(request, time) of each time that a request got tokens, by request and time."""
        return _emissions(self.token_log)

    @cached_property
    def ttft(self) -> Floats:
        """Seconds to the first token, of served requests."""
        return _seconds((self.first_token_ps - self.arrival_ps)[self.served])

    @cached_property
    def e2e(self) -> Floats:
        """Seconds to the last token."""
        return _seconds((self.finish_ps - self.arrival_ps)[self.served])

    @cached_property
    def queue(self) -> Floats:
        """Seconds to the start of the first step that computes something of a request."""
        return _seconds((self.scheduled_ps - self.arrival_ps)[self.served])

    @cached_property
    def tpot(self) -> Floats:
        """Seconds per output token after the first, of served requests with at least two."""
        some = self.served & (self.output_tokens > 1)
        return _seconds((self.finish_ps - self.first_token_ps)[some]) / (self.output_tokens[some] - 1)

    @cached_property
    def itl(self) -> Floats:
        """Seconds between successive tokens of the same request, of all requests."""
        request, time = self.emissions
        return _seconds(np.diff(time)[np.diff(request) == 0])

    @property
    def duration(self) -> float:
        """Seconds from the first arrival to the last answer."""
        if not self.served.any():
            return 0.0
        return float(self.finish_ps[self.served].max() - self.arrival_ps[self.served].min()) / _PS

    @property
    def output_tokens_per_second(self) -> float:
        """Output tokens of all requests over the duration."""
        return self._rate(int(self.output_tokens[self.served].sum()))

    @property
    def total_tokens_per_second(self) -> float:
        """Input and output tokens over the duration; inputs found in the cache count."""
        return self._rate(int((self.output_tokens + self.input_tokens)[self.served].sum()))

    @property
    def requests_per_second(self) -> float:
        """Requests over the duration."""
        return self._rate(int(self.served.sum()))

    def _rate(self, count: int) -> float:
        return count / self.duration if self.duration else float("inf") if count else 0.0

    def steady_output_tokens_per_second(self, start: float = 0.25, stop: float = 0.75) -> float:
        """Output tokens a second between two shares of the run, which leaves out its ramps."""
        times, tokens = self.steps["end_ps"], self.steps["output_tokens"]
        begin = int(self.arrival_ps[self.served].min())
        span = self.duration * _PS
        low, high = begin + start * span, begin + stop * span
        inside = (times > low) & (times <= high)
        return float(tokens[inside].sum()) / ((high - low) / _PS)

    def occupancy(self, replica: int = 0) -> tuple[Integers, Floats]:
        """Ends of a replica's steps (picoseconds) and the share of its cache that sequences held during each."""
        mine = self.steps["replica"] == replica
        return self.steps["end_ps"][mine], self.steps["used_units"][mine] / self.cache_units[replica]

    def summary(self) -> dict[str, Any]:
        """The figures as JSON; times in milliseconds."""
        named = {"ttft": self.ttft, "tpot": self.tpot, "itl": self.itl, "e2e": self.e2e, "queue": self.queue}
        found = {name: Distribution.of(values) for name, values in named.items()}
        used = self.steps["used_units"] / np.array(self.cache_units)[self.steps["replica"]]
        return {
            "requests": int(self.served.sum()),
            "rejected": int((~self.served).sum()),
            "duration_s": self.duration,
            "chips": self.chips,
            "input_tokens": int(self.input_tokens[self.served].sum()),
            "output_tokens": int(self.output_tokens[self.served].sum()),
            "cached_tokens": int(self.cached_tokens.sum()),
            "requests_per_s": self.requests_per_second,
            "output_tokens_per_s": self.output_tokens_per_second,
            "total_tokens_per_s": self.total_tokens_per_second,
            "output_tokens_per_s_per_chip": self.output_tokens_per_second / self.chips,
            "steps": int(self.steps["end_ps"].size),
            "preemptions": int(self.preemptions.sum()),
            "cache_peak": float(used.max()) if used.size else 0.0,
            **{name: one.as_milliseconds() if one else None for name, one in found.items()},
        }


def _seconds(ps: Integers) -> Floats:
    return ps.astype(np.float64) / _PS


def collect(
    records: Records, served: npt.NDArray[np.bool_], pools: Sequence[Sequence[Replica]], specs: Sequence[Pool]
) -> ServingResult:
    """The result of replicas that have served everything."""
    replicas = [replica for pool in pools for replica in pool]
    columns = [np.concatenate([r.log.data[i] for r in replicas]) for i in range(len(STEP_COLUMNS))]
    steps = {"replica": np.concatenate([np.full(r.log.rows, r.number, np.int64) for r in replicas])}
    steps |= dict(zip(STEP_COLUMNS, columns, strict=True))
    return ServingResult(
        arrival_ps=records.arrival,
        scheduled_ps=records.scheduled,
        first_token_ps=records.first_token,
        finish_ps=records.finish,
        input_tokens=records.input,
        output_tokens=records.output,
        cached_tokens=records.cached,
        preemptions=records.preemptions,
        replica=records.replica,
        served=served,
        chips=float(sum(one.replicas * one.chips for one in specs)),
        steps=steps,
        cache_units=tuple(r.cache.total for r in replicas),
        token_log=tuple(r.emissions for r in replicas),
    )


def _emissions(logs: Sequence[Emissions]) -> tuple[Integers, Integers]:
    requests, times = [], []
    for log in logs:
        single, ranges, ends = log.single.data, log.ranges.data, log.ends.data
        requests.append(single[0])
        times.append(single[1])
        first, last = ranges[1], ranges[2]
        counts = last - first
        # Positions first, first + 1, ... last - 1 of each range, one after the other.
        offset = np.repeat(np.cumsum(counts) - counts, counts)
        requests.append(np.repeat(ranges[0], counts))
        times.append(ends[0][np.arange(counts.sum()) - offset + np.repeat(first, counts)])
    request, time = np.concatenate(requests), np.concatenate(times)
    order = np.lexsort((time, request))
    return request[order], time[order]
