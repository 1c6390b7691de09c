"""The closed form of the steady state against the engine, over drawn systems."""

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.serving import (
    AffineCost,
    CacheSettings,
    HostSettings,
    Pool,
    ReplicaSettings,
    SchedulerSettings,
    Speculation,
    StaticShapes,
    closed_loop,
    lengths,
    powers_of_two,
    shared_prefix,
    simulate,
)
from trnsim.serving.closed_form import steady_state

LONGEST = 11008


def spec(cache=10**6, speculation=None, host=None, shapes=None, **scheduler):
    return ReplicaSettings(
        cache=CacheSettings(capacity_bytes=cache, elements_per_token=1, dtype="float8_e4m3"),
        scheduler=SchedulerSettings(**({"max_model_len": LONGEST} | scheduler)),
        host=host or HostSettings(),
        shapes=shapes or StaticShapes(),
        speculation=speculation,
    )


def errors(cost, settings, users, prompt, output):
    """Relative errors of throughput, TPOT and TTFT against the engine, without its ramps; None if it preempts."""
    form = steady_state(cost, settings, users=users, input_tokens=prompt, output_tokens=output)
    count = 12 * users
    load = closed_loop(users, lengths(prompt, count), lengths(output, count))
    result = simulate(load, Pool(cost=cost, settings=settings))
    if result.preemptions.any():
        return None
    middle = slice(count // 4, 3 * count // 4)
    tpot = result.tpot[middle].mean() if output > 1 else 1.0
    return (
        form.output_tokens_per_second / result.output_tokens_per_second - 1,
        form.tpot / tpot - 1 if output > 1 else 0.0,
        form.ttft / result.ttft[middle].mean() - 1,
    )


def test_against_the_engine_over_drawn_systems():
    rng = np.random.default_rng(7)
    found = []
    while len(found) < 60:
        users, prompt = int(rng.choice([1, 2, 8, 32, 100])), int(rng.choice([32, 500, 1024, 3000]))
        output = int(rng.choice([16, 128, 300]))
        policy, seqs = str(rng.choice(["mixed", "prefill-first"])), int(rng.choice([8, 64]))
        shapes = StaticShapes()
        if policy == "prefill-first" and rng.integers(2):
            sizes = powers_of_two(128, LONGEST)
            shapes = StaticShapes(prefill=sizes, decode_batch=powers_of_two(1, seqs), decode_context=sizes)
        settings = spec(
            policy=policy,
            max_num_seqs=seqs,
            max_num_batched_tokens=int(rng.choice([512, 2048, 8192])),
            max_prefills=int(rng.integers(2)) if policy != "mixed" else 0,
            host=HostSettings(step_ps=int(2e9), overlap=str(rng.choice(["none", "steady-decode", "always"]))),
            shapes=shapes,
        )
        cost = AffineCost(
            fixed_ps=10 ** rng.uniform(8, 10.3),
            per_token_ps=10 ** rng.uniform(6, 8),
            per_context_ps=10 ** rng.uniform(3, 5),
            per_pair_ps=10 ** rng.uniform(1, 3.5),
        )
        error = errors(cost, settings, users, prompt, output)
        if error is not None:
            found.append(error)
    throughput, tpot, ttft = np.abs(np.array(found)).T
    # What the module promises: bounds on the mean and on all but the worst few.
    assert throughput.mean() < 0.01
    assert throughput.max() < 0.06
    assert tpot.mean() < 0.02
    assert np.percentile(tpot, 95) < 0.06
    assert ttft.mean() < 0.06
    assert np.percentile(ttft, 90) < 0.15


@pytest.mark.parametrize("policy", ["mixed", "prefill-first"])
def test_more_users_than_run_wait_whole_cycles(policy):
    cost = AffineCost(fixed_ps=1e9, per_token_ps=1e7)
    settings = spec(policy=policy, max_num_seqs=8)
    error = errors(cost, settings, 24, 100, 50)
    np.testing.assert_allclose(error, 0, atol=0.03)
    form = steady_state(cost, settings, users=24, input_tokens=100, output_tokens=50)
    assert (form.batch, form.bound) == (8, "max_num_seqs")
    assert form.output_tokens_per_second * form.e2e / 50 == pytest.approx(24)  # Little's law


def test_speculation():
    cost = AffineCost(fixed_ps=1e9, per_token_ps=1e6)
    settings = spec(policy="prefill-first", speculation=Speculation(length=3, acceptance=0.6))
    # A batch ends with its slowest sequence, which the closed form does not know.
    error = errors(cost, settings, 1, 500, 1000)
    np.testing.assert_allclose(error, 0, atol=0.03)


@pytest.mark.parametrize(("users", "prompt", "batch"), [(32, 500, 32), (32, 2000, 32), (100, 2020, 29)])
def test_whole_prompts_beside_decode(users, prompt, batch):
    cost = AffineCost(fixed_ps=1e9, per_token_ps=1e7, per_context_ps=1e3)
    settings = spec(preemption="never", chunks=False, max_num_batched_tokens=2048)
    np.testing.assert_allclose(errors(cost, settings, users, prompt, 200), 0, atol=0.04)
    form = steady_state(cost, settings, users=users, input_tokens=prompt, output_tokens=200)
    assert (form.batch, form.bound) == (batch, "users" if batch == users else "max_num_batched_tokens")
    with pytest.raises(InputError, match="not cut in chunks"):
        steady_state(cost, settings, users=users, input_tokens=2049, output_tokens=200)


def test_a_small_cache_bounds_the_batch():
    cost = AffineCost(fixed_ps=1e9)
    form = steady_state(cost, spec(cache=1600), users=50, input_tokens=100, output_tokens=61)
    assert (form.batch, form.bound) == (10, "cache")
    with pytest.raises(InputError, match=r"KV cache holds.*1600"):
        steady_state(cost, spec(cache=1600), users=50, input_tokens=1600, output_tokens=61)
    with pytest.raises(InputError, match=r"max_model_len"):
        steady_state(cost, spec(), users=1, input_tokens=11000, output_tokens=100)
    with pytest.raises(InputError, match=r"users"):
        steady_state(cost, spec(), users=0, input_tokens=10, output_tokens=10)


@pytest.mark.parametrize("policy", ["mixed", "prefill-first"])
@pytest.mark.parametrize("cached", [256, 768, 1000])
def test_shared_prefixes_against_the_engine(policy, cached):
    cache = CacheSettings(capacity_bytes=10**6, elements_per_token=1, dtype="float8_e4m3", prefix_reuse=True)
    settings = ReplicaSettings(
        cache=cache,
        scheduler=SchedulerSettings(policy=policy, max_num_seqs=16, max_num_batched_tokens=2048, max_model_len=LONGEST),
    )
    cost = AffineCost(fixed_ps=2e9, per_token_ps=2e7, per_context_ps=1e4, per_pair_ps=1e2)
    form = steady_state(cost, settings, users=8, input_tokens=1024, output_tokens=128, cached_tokens=cached)
    load = shared_prefix(closed_loop(8, lengths(1024, 160), lengths(128, 160)), np.zeros(160, np.int64), cached, 16)
    result = simulate(load, Pool(cost=cost, settings=settings))
    assert form.output_tokens_per_second == pytest.approx(result.output_tokens_per_second, rel=0.04)
    assert form.tpot == pytest.approx(result.tpot[40:].mean(), rel=0.06)
    whole = steady_state(cost, settings, users=8, input_tokens=1024, output_tokens=128)
    assert form.output_tokens_per_second > whole.output_tokens_per_second


def test_prefixes_need_a_cache_that_reuses_them():
    with pytest.raises(InputError, match="does not reuse"):
        steady_state(AffineCost(fixed_ps=1.0), spec(), users=1, input_tokens=64, output_tokens=8, cached_tokens=32)
