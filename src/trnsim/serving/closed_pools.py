"""Steady state of disaggregated serving under a closed loop of equal requests: what searches use.

A request passes three stations: a prefill pool, the transfer of its cache, a decode pool. In x requests a second, a
decode replica runs b of them at a time where b = x * T(b) / replicas, and T(b) is the time of its decode steps at that
batch (Little's law). Of N users all are somewhere, N = x * (prefill + transfer + T(b)), unless a pool is full before:
then x is what that pool serves, and the users who are left over wait there. Waiting by chance below that is not in it,
as users of a closed loop send one request each; ``tests/unit/serving/test_closed_pools.py`` holds the error against the
engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from trnsim.errors import InputError

from .closed_form import decode_seconds, prompt_seconds, running
from .settings import at_least
from .system import Pool, Transfer

_HALVINGS = 60


@dataclass(frozen=True, kw_only=True)
class PooledState:
    """Steady state of both pools; times in seconds.

    ``bound``: ``users`` (no pool is full), ``prefill`` or ``decode``; ``batch``: sequences of a decode replica;
    ``transfer``: of a prompt's cache.
    """

    requests_per_second: float
    output_tokens_per_second: float
    bound: str
    batch: float
    ttft: float
    tpot: float
    e2e: float
    transfer: float


def decode_times(decode: Pool, input_tokens: int, output_tokens: int) -> Callable[[int], float]:
    """Seconds of all decode steps of a request, by the sequences that its replica decodes; each found once."""
    return cache(lambda count: decode_seconds(decode.cost, decode.settings, count, input_tokens, output_tokens))


def pooled_state(
    prefill: Pool,
    decode: Pool,
    transfer: Transfer,
    *,
    users: int,
    input_tokens: int,
    output_tokens: int,
    steps: Callable[[int], float] | None = None,
) -> PooledState:
    """Steady state of ``users`` who send prompts of ``input_tokens`` and get ``output_tokens``, at least 2.

    ``steps``: the ``decode_times`` of this pool and load, where they are held.

    Raises:
        InputError: requests that a pool cannot hold.
    """
    at_least("pooled_state", 1, users=users, input_tokens=input_tokens)
    if output_tokens < 2:
        raise InputError("disaggregated serving needs outputs of two tokens", value=output_tokens)
    alone, most = _prompts(prefill, input_tokens)
    move = transfer.ps(input_tokens, decode.settings.cache) / 1e12
    largest = running(decode.settings, users, input_tokens, output_tokens)

    seconds = steps or decode_times(decode, input_tokens, output_tokens)

    def residence(batch: float) -> float:
        low = min(max(int(batch), 1), max(largest - 1, 1))
        times = seconds(low), seconds(min(low + 1, largest))
        return times[0] + (times[1] - times[0]) * max(batch - low, 0.0)

    def rate(batch: float) -> float:
        return decode.replicas * batch / residence(batch)

    def held(batch: float) -> float:
        """Users that a rate needs in the system."""
        return rate(batch) * (alone + move) + decode.replicas * batch

    full = rate(largest)
    high = float(largest)
    if held(high) <= users and full <= most:
        bound, batch, requests = "decode", high, full
    else:
        low = 0.0
        for _ in range(_HALVINGS):
            batch = (low + high) / 2
            low, high = (low, batch) if held(batch) > users or rate(batch) > most else (batch, high)
        batch = (low + high) / 2
        requests = rate(batch)
        bound = "users" if held(batch) >= users * 0.999 else "prefill"
    inside = users / requests
    stay = residence(batch)
    # Those left over wait before the pool that is full. Equal requests of a full decode batch end together, and their
    # users' next prompts wait for each other.
    ttft = alone
    if bound == "prefill":
        ttft = inside - move - stay
    elif bound == "decode":
        ttft += max(batch / prefill.replicas - 1, 0.0) / 2 * prefill.replicas / most
    tpot = (inside - ttft) / (output_tokens - 1)
    return PooledState(
        requests_per_second=requests,
        output_tokens_per_second=requests * output_tokens,
        bound=bound,
        batch=batch,
        ttft=ttft,
        tpot=tpot,
        e2e=inside,
        transfer=move,
    )


def _prompts(pool: Pool, tokens: int) -> tuple[float, float]:
    """(seconds of a prompt alone, prompts a second that the pool computes at most)."""
    scheduler = pool.settings.scheduler
    alone = prompt_seconds(pool.cost, pool.settings, 1, tokens)
    group = min(max(1, scheduler.max_num_batched_tokens // tokens), scheduler.max_prefills or scheduler.max_num_seqs)
    many = prompt_seconds(pool.cost, pool.settings, group, tokens)
    return alone, pool.replicas * max(1 / alone, group / many)
