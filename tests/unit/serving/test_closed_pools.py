"""The closed form of disaggregated serving against the engine."""

from __future__ import annotations

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.serving import (
    AffineCost,
    CacheSettings,
    Pool,
    ReplicaSettings,
    SchedulerSettings,
    Speculation,
    Transfer,
    closed_loop,
    lengths,
    simulate,
)
from trnsim.serving.closed_pools import pooled_state

COST = AffineCost(fixed_ps=8e9, per_token_ps=4e7, per_context_ps=2e4, per_pair_ps=1e3)


def pool(replicas: int, seqs: int = 64, speculation: Speculation | None = None) -> Pool:
    settings = ReplicaSettings(
        cache=CacheSettings(capacity_bytes=10**6, elements_per_token=1, dtype="float8_e4m3"),
        scheduler=SchedulerSettings(max_num_seqs=seqs, max_num_batched_tokens=4096, max_model_len=4096),
        speculation=speculation,
    )
    return Pool(cost=COST, settings=settings, replicas=replicas)


@pytest.mark.parametrize(
    ("prefills", "decodes", "users", "seqs", "output", "bound"),
    [
        (1, 1, 8, 64, 256, "users"),
        (2, 1, 16, 64, 256, "users"),
        (1, 2, 32, 64, 300, "users"),
        (1, 4, 64, 64, 64, "prefill"),
        (4, 1, 64, 8, 256, "decode"),
        (2, 2, 64, 16, 200, "decode"),
    ],
)
def test_against_the_engine(prefills: int, decodes: int, users: int, seqs: int, output: int, bound: str):
    first, second, move = pool(prefills), pool(decodes, seqs), Transfer(bytes_per_second=1e6, latency_ps=10**9)
    form = pooled_state(first, second, move, users=users, input_tokens=1024, output_tokens=output)
    count = 20 * users
    load = closed_loop(users, lengths(1024, count), lengths(output, count))
    result = simulate(load, second, prefill=first, transfer=move)
    middle = slice(count // 4, 3 * count // 4)
    assert form.bound == bound
    assert form.output_tokens_per_second == pytest.approx(result.steady_output_tokens_per_second(), rel=0.08)
    assert form.tpot == pytest.approx(result.tpot[middle].mean(), rel=0.10)
    if bound != "users":
        assert form.ttft == pytest.approx(result.ttft[middle].mean(), rel=0.15 if bound == "prefill" else 0.4)


def test_speculation_shortens_decode():
    plain = pooled_state(pool(1), pool(1), Transfer(bytes_per_second=1e9), users=8, input_tokens=512, output_tokens=256)
    drafted = pool(1, speculation=Speculation(length=3, acceptance=0.8))
    fast = pooled_state(pool(1), drafted, Transfer(bytes_per_second=1e9), users=8, input_tokens=512, output_tokens=256)
    assert fast.tpot < 0.6 * plain.tpot


def test_a_slow_transfer_is_waited_for():
    times = [
        pooled_state(pool(1), pool(1), Transfer(bytes_per_second=rate), users=1, input_tokens=512, output_tokens=8).e2e
        for rate in (1e9, 1e3)
    ]
    assert np.diff(times)[0] == pytest.approx(0.512, rel=0.01)


def test_outputs_of_one_token_are_refused():
    with pytest.raises(InputError, match="two tokens"):
        pooled_state(pool(1), pool(1), Transfer(bytes_per_second=1e9), users=1, input_tokens=8, output_tokens=1)
