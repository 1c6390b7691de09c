"""The continuous-batching engine: hand-worked schedules, and properties that hold for any load."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Transfer,
    Workload,
    bursty,
    closed_loop,
    lengths,
    poisson,
    powers_of_two,
    shared_prefix,
    simulate,
)

UNIT = AffineCost(fixed_ps=100, per_token_ps=1)  # 100 a step, 1 a token: schedules can be worked by hand


def replica(blocks=1000, block=4, *, host=None, shapes=None, speculation=None, swap=0.0, cache=None, **scheduler):
    layout = {"layout": "paged", "block_tokens": block, "dtype": "float8_e4m3"} | (cache or {})
    return ReplicaSettings(
        cache=CacheSettings(capacity_bytes=blocks * block, elements_per_token=1, **layout),
        scheduler=SchedulerSettings(**({"max_model_len": 4096, "max_num_batched_tokens": 4096} | scheduler)),
        host=host or HostSettings(),
        shapes=shapes or StaticShapes(),
        speculation=speculation,
        swap_bytes_per_second=swap,
    )


def serve(load, spec, cost=UNIT, **options):
    return simulate(load, Pool(cost=cost, settings=spec), **options)


def load(*requests, concurrency=0):
    """Requests (arrival, input, output); arrivals None for a closed loop."""
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    times = {"concurrency": concurrency} if concurrency else {"arrival_ps": arrival}
    return Workload(input_tokens=prompt, output_tokens=output, **times)


def steps(result, *columns):
    return [tuple(row) for row in np.stack([result.steps[c] for c in columns], axis=1).tolist()]


# -- hand-worked schedules -----------------------------------------------------------------------------------------


def test_one_request_is_a_prefill_and_its_decode_steps():
    result = serve(load((7, 10, 4)), replica())
    # 100 + 10 for the prompt, then three decode steps of 101.
    assert steps(result, "start_ps", "end_ps", "prefill_tokens", "decode_sequences", "context_tokens") == [
        (7, 117, 10, 0, 0),
        (117, 218, 0, 1, 10),
        (218, 319, 0, 1, 11),
        (319, 420, 0, 1, 12),
    ]
    assert (result.first_token_ps[0], result.finish_ps[0]) == (117, 420)
    assert result.tpot[0] == pytest.approx(101e-12)
    assert result.emissions[1].tolist() == [117, 218, 319, 420]


def test_chunked_prefill_shares_steps_with_decode():
    spec = replica(policy="mixed", max_num_seqs=4, max_num_batched_tokens=8)
    result = serve(load((0, 6, 3), (0, 7, 1)), spec)
    assert steps(result, "start_ps", "prefill_tokens", "prefill_sequences", "decode_sequences") == [
        (0, 8, 2, 0),  # all 6 of the first, 2 of the second
        (108, 5, 1, 1),  # the other 5 beside a decode step of the first
        (214, 0, 0, 1),
    ]
    assert result.finish_ps.tolist() == [315, 214]


def test_prefill_first_computes_prompts_alone():
    spec = replica(policy="prefill-first", max_num_seqs=4, max_num_batched_tokens=8)
    result = serve(load((0, 6, 3), (0, 7, 1)), spec)
    assert steps(result, "start_ps", "prefill_tokens", "prefill_sequences", "decode_sequences") == [
        (0, 8, 2, 0),
        (108, 5, 1, 0),  # the first waits
        (213, 0, 0, 1),
        (314, 0, 0, 1),
    ]
    whole = replica(policy="prefill-first", chunks=False, max_num_seqs=4, max_num_batched_tokens=8)
    assert [row[0] for row in steps(serve(load((0, 6, 3), (0, 7, 1)), whole), "prefill_tokens")] == [6, 7, 0, 0]
    one = replica(policy="prefill-first", max_prefills=1, max_num_seqs=4)
    assert [row[0] for row in steps(serve(load((0, 6, 3), (0, 7, 1)), one), "prefill_tokens")] == [6, 7, 0, 0]


def test_a_full_cache_preempts_the_last_and_computes_it_again():
    # 5 blocks of 4. Both prompts take 2 blocks; the first needs a third for its 9th token, the second then too.
    spec = replica(blocks=5, block=4, max_num_seqs=4)
    result = serve(load((0, 8, 4), (0, 8, 4)), spec)
    assert result.preemptions.tolist() == [0, 1]
    assert steps(result, "prefill_tokens", "decode_sequences", "used_units") == [
        (16, 0, 4),
        (0, 1, 3),  # no room for two more blocks: the second gives way
        (0, 1, 3),  # 9 tokens to compute again (8 and the one put out) need 3 blocks, 2 are free
        (0, 1, 3),
        (9, 0, 3),
        (0, 1, 3),
        (0, 1, 3),
    ]
    assert result.output_tokens.tolist() == [4, 4]


def test_swapping_moves_the_cache_and_goes_on():
    spec = replica(blocks=5, block=4, max_num_seqs=4, preemption="swap", swap=1e12)  # one byte a picosecond
    result = serve(load((0, 8, 4), (0, 8, 4)), spec)
    assert result.preemptions.tolist() == [0, 1]
    assert steps(result, "prefill_tokens", "decode_sequences") == [
        (16, 0),
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 1),
    ]
    length = np.diff(np.stack([result.steps["start_ps"], result.steps["end_ps"]]), axis=0)[0]
    assert length.tolist() == [116, 101 + 8, 101, 101, 101 + 8, 101, 101]


def test_whole_prompts_beside_decode_and_room_to_the_end():
    spec = replica(blocks=7, chunks=False, preemption="never", max_num_seqs=4, max_num_batched_tokens=12)
    result = serve(load((0, 8, 3), (0, 8, 5), (0, 8, 2)), spec)
    # Blocks to the end: 3, 3 and 3. The second prompt does not fit the 4 tokens left beside the first; the third finds
    # one block free until the first is done.
    assert steps(result, "prefill_tokens", "decode_sequences", "used_units") == [
        (8, 0, 3),
        (8, 1, 6),
        (0, 2, 6),
        (8, 1, 6),
        (0, 2, 6),
        (0, 1, 3),
    ]


def test_room_to_the_end_is_kept_while_a_prompt_is_cut():
    spec = replica(blocks=6, preemption="never", max_num_seqs=2, max_num_batched_tokens=4)
    result = serve(load((0, 8, 5), (0, 8, 5)), spec)
    # Both hold three blocks from their first chunk on.
    assert steps(result, "prefill_tokens", "used_units")[:4] == [(4, 3), (4, 3), (3, 6), (3, 6)]
    assert not result.preemptions.any()


def test_contiguous_slots_bound_the_batch():
    spec = replica(blocks=32, block=4, cache={"layout": "contiguous"}, max_model_len=64)
    assert spec.cache.units(64) == 2
    result = serve(load(*[(0, 10, 3)] * 3), spec)
    assert steps(result, "prefill_sequences", "decode_sequences", "used_units") == [
        (2, 0, 2),
        (0, 2, 2),
        (0, 2, 2),
        (1, 0, 1),
        (0, 1, 1),
        (0, 1, 1),
    ]


def test_shared_prefixes_are_computed_once():
    spec = replica(cache={"prefix_reuse": True}, max_num_seqs=1)
    requests = shared_prefix(load((0, 10, 2), (0, 10, 2), (0, 8, 1)), np.array([0, 0, 0]), 8, 4)
    result = serve(requests, spec)
    # Two blocks of 4 are shared; a prompt of just these 8 computes its last block again, to have something to sample.
    assert [row[0] for row in steps(result, "prefill_tokens")] == [10, 0, 2, 0, 4]
    assert result.cached_tokens.tolist() == [0, 8, 4]


def test_unused_prefixes_make_room_oldest_first():
    spec = replica(blocks=4, cache={"prefix_reuse": True}, max_num_seqs=1)
    requests = shared_prefix(load(*[(0, 8, 1)] * 4), np.array([0, 1, 0, 1]), 8, 4)
    # Blocks 0a 0b 1a 1b all stay; the last block of a prompt is computed in any case.
    assert serve(requests, spec).cached_tokens.tolist() == [0, 0, 4, 4]
    # In 3 blocks, 1b evicts 0b, the end of the older prompt; then 0b evicts 1b. Two blocks keep nothing for others.
    for blocks, expected in ((3, [0, 0, 4, 4]), (2, [0, 0, 0, 0])):
        small = replica(blocks=blocks, cache={"prefix_reuse": True}, max_num_seqs=1)
        assert serve(requests, small).cached_tokens.tolist() == expected


def test_static_shapes_pad_what_is_computed():
    shapes = StaticShapes(prefill=(8, 16), decode_batch=(2, 4), decode_context=(16, 32))
    spec = replica(
        cache={"layout": "contiguous"},
        policy="prefill-first",
        chunks=False,
        shapes=shapes,
        max_model_len=32,
        max_num_seqs=4,
        max_num_batched_tokens=16,
    )
    cost = AffineCost(fixed_ps=100, per_token_ps=1, per_context_ps=10)
    result = serve(load((0, 13, 4)), spec, cost)
    length = np.diff(np.stack([result.steps["start_ps"], result.steps["end_ps"]]), axis=0)[0]
    # 16 tokens for 13; then two sequences that read 16 each, up to 32 once token 17 is computed.
    assert length.tolist() == [116, 102 + 2 * 160, 102 + 2 * 160, 102 + 2 * 160]
    longer = serve(load((0, 13, 6)), spec, cost)
    length = np.diff(np.stack([longer.steps["start_ps"], longer.steps["end_ps"]]), axis=0)[0]
    assert length.tolist() == [116, *[422] * 3, *[102 + 2 * 320] * 2]
    assert shapes.graphs == 2 + 2 * 2


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [("none", [160, 151, 151, 151]), ("always", [110, 101, 101, 101]), ("steady-decode", [160, 151, 101, 101])],
)
def test_host_time(overlap, expected):
    result = serve(load((0, 10, 4)), replica(host=HostSettings(step_ps=50, overlap=overlap)))
    assert (result.steps["end_ps"] - result.steps["start_ps"]).tolist() == expected


def test_disaggregated_prefill_and_decode():
    spec = replica()
    transfer = Transfer(bytes_per_second=1e12, latency_ps=1000)
    pool = Pool(cost=UNIT, settings=spec)
    result = simulate(load((0, 10, 3), (0, 10, 1)), pool, prefill=pool, transfer=transfer)
    # Prompts by 120; 10 bytes of cache are there at 120 + 1000 + 10; two decode steps of 101.
    assert result.first_token_ps.tolist() == [120, 120]
    assert result.finish_ps.tolist() == [1130 + 202, 120]
    assert steps(result, "replica", "prefill_tokens", "decode_sequences") == [(0, 20, 0), (1, 0, 1), (1, 0, 1)]


def test_routers():
    requests = load(*[(i, 10, n) for i, n in enumerate([50, 1, 1, 50])])
    pool = Pool(cost=UNIT, settings=replica(), replicas=2)
    assert simulate(requests, pool, router="round-robin").replica.tolist() == [0, 1, 0, 1]
    assert simulate(requests, pool, router="least-requests").replica.tolist() == [0, 1, 0, 1]
    apart = load((0, 10, 50), (1, 10, 1), (500, 10, 1), (501, 10, 50))
    assert simulate(apart, pool, router="least-requests").replica.tolist() == [0, 1, 1, 0]
    alike = shared_prefix(load(*[(i, 10, 2) for i in range(6)]), np.array([0, 1, 2, 0, 1, 2]), 4, 4)
    found = simulate(alike, pool, router="prefix").replica.tolist()
    assert found[:3] == found[3:]


def test_speculation_yields_what_its_formula_says():
    spec = Speculation(length=4, acceptance=0.7, seed=3)
    drawn = spec.yields(np.arange(200), np.zeros(200, np.int64), 500)
    assert drawn.mean() == pytest.approx(spec.mean_tokens, rel=0.01)
    assert set(np.unique(drawn)) == {1, 2, 3, 4, 5}
    share = (drawn == 5).mean()
    assert share == pytest.approx(0.7**4, rel=0.02)
    later = spec.yields(np.arange(200), np.full(200, 100), 400)
    assert np.array_equal(drawn[:, 100:], later)
    certain = serve(load((0, 10, 11)), replica(speculation=Speculation(length=4, acceptance=1.0)))
    assert steps(certain, "output_tokens", "end_ps") == [(1, 110), (5, 215), (5, 320)]


def test_powers_of_two():
    assert powers_of_two(128, 1024) == (128, 256, 512, 1024)
    assert powers_of_two(128, 1000) == (128, 256, 512, 1000)
    assert powers_of_two(128, 128) == (128,)


def test_arrival_processes():
    n = lengths(10, 20000)
    gaps = np.diff(poisson(4.0, n, n, seed=1).arrival_ps) / 1e12
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    gaps = np.diff(bursty(4.0, n, n, burstiness=0.25, seed=1).arrival_ps) / 1e12
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() == pytest.approx(0.5, rel=0.05)  # the deviation of a gamma of shape 1/4 is twice its mean
    assert np.array_equal(poisson(4.0, n, n, seed=1).arrival_ps, poisson(4.0, n, n, seed=1).arrival_ps)
    spread = lengths(100, 5000, spread=0.5, seed=2)
    assert (spread.min(), spread.max()) == (50, 150)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: serve(load((0, 4000, 200)), replica()), "request 0.*max_model_len.*4200.*4096"),
        (lambda: serve(load((0, 10, 2), (0, 400, 1)), replica(blocks=20)), "request 1.*KV cache holds.*400.*80"),
        (lambda: load((0, 10, 2), (-5, 10, 2)), "request 1: negative arrival.*-5"),
        (lambda: load((5, 10, 2), (4, 10, 2)), "request 1: arrives before"),
        (lambda: load((0, 0, 2)), "request 0: input_tokens must be at least 1"),
        (lambda: Workload(input_tokens=np.array([1]), output_tokens=np.array([1])), "either arrival times or"),
        (lambda: replica(blocks=1, cache={"layout": "contiguous"}), "holds no sequence of 4096"),
        (lambda: replica(policy="greedy"), "policy: unknown value"),
        (lambda: replica(max_num_seqs=8, max_num_batched_tokens=4), "smaller than a decode step"),
        (lambda: replica(preemption="swap"), "swap_bytes_per_second"),
        (lambda: replica(shapes=StaticShapes(prefill=(4096,))), "prefill buckets need"),
        (lambda: replica(policy="prefill-first", shapes=StaticShapes(prefill=(64,))), "prefill: the largest.*64.*4096"),
        (lambda: StaticShapes(prefill=(64, 32)), "ascend"),
        (lambda: Speculation(length=2, acceptance=1.5), "acceptance"),
        (lambda: replica(cache={"dtype": "fp7"}), "fp7"),
        (lambda: replica(watermark=1.0), "watermark"),
        (lambda: replica(chunks=False), "need the preemption 'never'"),
        (lambda: poisson(0.0, np.array([1]), np.array([1])), "rate must be positive"),
        (lambda: AffineCost(fixed_ps=-1), "fixed_ps"),
        (lambda: serve(load((0, 1, 1)), replica(), router="random"), "router: unknown value"),
        (
            lambda: serve(load((0, 20, 2)), replica(policy="prefill-first", chunks=False, max_num_batched_tokens=16)),
            "not cut in chunks.*20.*16",
        ),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=f"(?s){words}"):
        make()


def test_requests_that_do_not_fit_can_be_rejected():
    result = serve(load((0, 10, 2), (0, 4000, 200), (0, 10, 2)), replica(), too_long="reject")
    assert result.served.tolist() == [True, False, True]
    assert result.finish_ps[1] == -1
    assert (result.summary()["requests"], result.summary()["rejected"]) == (2, 1)


# -- properties ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ByContext:
    """A cost that depends on each context by itself, so that runs cannot be asked for: the engine must step."""

    def step_ps(self, step):
        return int(100 + step.prefill_tokens.sum() + (step.decode_context**2).sum() // 7)


@st.composite
def systems(draw):
    """A load, a pool and options: anything the engine can be asked for."""
    count = draw(st.integers(1, 24))
    prompt = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    output = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    if draw(st.booleans()):
        requests = closed_loop(
            draw(st.integers(1, 12)),
            np.array(prompt),
            np.array(output),
            think_seconds=draw(st.sampled_from([0.0, 3e-9])),
        )
    else:
        gaps = draw(st.lists(st.integers(0, 3000), min_size=count, max_size=count))
        requests = Workload(input_tokens=np.array(prompt), output_tokens=np.array(output), arrival_ps=np.cumsum(gaps))
    policy = draw(st.sampled_from(["mixed", "prefill-first"]))
    speculation = draw(
        st.none() | st.builds(Speculation, length=st.integers(1, 4), acceptance=st.floats(0, 1), seed=st.integers(0, 9))
    )
    seqs = draw(st.integers(1, 10))
    preemption = draw(st.sampled_from(["recompute", "swap", "never"]))
    chunks = (policy == "mixed" and preemption != "never") or draw(st.booleans())
    budget = draw(st.integers(seqs * 5, seqs * 5 + 64)) if chunks else max(60, seqs * 5)
    contiguous = draw(st.integers(0, 3)) == 0
    reuse = not contiguous and draw(st.booleans())
    blocks = draw(st.integers(26, 80))  # 26 blocks of 4 hold the longest request and its drafts
    shapes = StaticShapes()
    if policy == "prefill-first" and draw(st.booleans()):
        shapes = StaticShapes(
            prefill=powers_of_two(8, 128), decode_batch=powers_of_two(1, seqs), decode_context=powers_of_two(16, 104)
        )
    spec = replica(
        blocks,
        4,
        cache={"layout": "contiguous"} if contiguous else {"prefix_reuse": reuse},
        policy=policy,
        chunks=chunks,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_model_len=104,
        max_prefills=draw(st.integers(0, 3)),
        watermark=draw(st.sampled_from([0.0, 0.1])),
        preemption=preemption,
        swap=1e12,
        shapes=shapes,
        speculation=speculation,
        host=draw(
            st.sampled_from(
                [
                    HostSettings(),
                    HostSettings(step_ps=130, launch_ps=7, overlap="steady-decode"),
                    HostSettings(step_ps=130, overlap="always"),
                ]
            )
        ),
    )
    if reuse:
        requests = shared_prefix(
            requests,
            np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))),
            draw(st.integers(0, 40)),
            4,
        )
    cost = draw(
        st.sampled_from(
            [UNIT, AffineCost(fixed_ps=50.25, per_token_ps=3.3, per_context_ps=0.7, per_pair_ps=0.1), ByContext()]
        )
    )
    pool = Pool(cost=cost, settings=spec, replicas=draw(st.integers(1, 3)))
    options = {"router": draw(st.sampled_from(["round-robin", "least-requests", "prefix"]))}
    if draw(st.booleans()):
        options |= {
            "prefill": Pool(cost=UNIT, settings=spec, replicas=2),
            "transfer": Transfer(bytes_per_second=1e12, latency_ps=50),
        }
    return requests, pool, options


def same(a, b):
    assert a.steps.keys() == b.steps.keys()
    for name, column in a.steps.items():
        np.testing.assert_array_equal(column, b.steps[name], err_msg=name)
    for name in (
        "arrival_ps",
        "scheduled_ps",
        "first_token_ps",
        "finish_ps",
        "cached_tokens",
        "preemptions",
        "replica",
    ):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(a.emissions, b.emissions)


@settings(max_examples=200, deadline=None)
@given(systems())
def test_any_system(system):
    requests, pool, options = system
    result = simulate(requests, pool, **options)
    spec, steps = pool.settings, result.steps

    # Skipping ahead is exact, and a run repeats itself.
    same(result, simulate(requests, pool, skip_ahead=False, **options))

    # Every request is answered, in order in time, and its tokens are all there.
    assert result.served.all()
    assert (result.finish_ps > result.arrival_ps).all()
    assert (result.arrival_ps <= result.scheduled_ps).all()
    assert (result.scheduled_ps < result.first_token_ps).all()
    assert (result.first_token_ps <= result.finish_ps).all()
    assert steps["output_tokens"].sum() == requests.output_tokens.sum()
    request, time = result.emissions
    assert np.array_equal(np.unique(request), np.arange(len(requests)))
    first = np.searchsorted(request, np.arange(len(requests)))
    last = np.searchsorted(request, np.arange(len(requests)), side="right") - 1
    np.testing.assert_array_equal(time[first], result.first_token_ps)
    np.testing.assert_array_equal(time[last], result.finish_ps)
    if spec.speculation is None:
        np.testing.assert_array_equal(np.bincount(request), requests.output_tokens)

    # Prompt tokens computed: each prompt less what was cached, more where a request was preempted.
    computed = steps["prefill_tokens"].sum() + result.cached_tokens.sum()
    assert computed >= requests.input_tokens.sum()
    if not result.preemptions.sum():
        assert computed == requests.input_tokens.sum()

    if spec.scheduler.preemption == "never":
        assert not result.preemptions.any()

    # Limits.
    scheduler = spec.scheduler
    sequences = steps["decode_sequences"] + steps["prefill_sequences"]
    assert sequences.max() <= scheduler.max_num_seqs
    units = np.array(result.cache_units)[steps["replica"]]
    assert (steps["used_units"] <= units).all()
    assert (
        steps["used_units"] * spec.cache.unit_tokens(scheduler.max_model_len) >= steps["context_tokens"]
    ).all() or spec.cache.prefix_reuse
    if scheduler.policy == "mixed":
        tokens = steps["prefill_tokens"] + steps["decode_sequences"] * spec.decode_tokens
        assert tokens.max() <= scheduler.max_num_batched_tokens
    else:
        assert not (steps["prefill_sequences"].astype(bool) & steps["decode_sequences"].astype(bool)).any()
    assert (sequences > 0).all()

    # A replica does one step after another.
    for number in range(len(result.cache_units)):
        mine = steps["replica"] == number
        assert (steps["end_ps"][mine] > steps["start_ps"][mine]).all()
        assert (steps["start_ps"][mine][1:] >= steps["end_ps"][mine][:-1]).all()

    # First come, first served: on a replica, requests are first scheduled in the order of arrival.
    for number in np.unique(result.replica):
        mine = np.flatnonzero(result.replica == number)
        order = mine[np.argsort(result.arrival_ps[mine], kind="stable")]
        assert (np.diff(result.scheduled_ps[order]) >= 0).all()

    # Closed loop: never more in the system than there are users, and always as many while requests are left.
    if requests.concurrency:
        times = np.concatenate([result.arrival_ps, result.finish_ps])
        change = np.repeat([1, -1], len(requests))
        order = np.lexsort((change, times))
        assert np.cumsum(change[order]).max() <= requests.concurrency
        if requests.think_ps == 0:
            expected = np.sort(result.finish_ps)[: max(0, len(requests) - requests.concurrency)]
            np.testing.assert_array_equal(np.sort(result.arrival_ps)[requests.concurrency :], expected)


@given(st.integers(1, 60), st.integers(1, 40), st.floats(0, 5), st.floats(0, 5))
@settings(deadline=None)
def test_one_request_equals_prefill_and_decode_steps(prompt, output, per_token, per_context):
    cost = AffineCost(fixed_ps=100, per_token_ps=per_token, per_context_ps=per_context, per_pair_ps=0.3)
    result = serve(load((0, prompt, output)), replica(), cost)
    pairs = sum(range(1, prompt + 1))
    expected = round(100 + per_token * prompt + 0.3 * pairs)
    assert result.first_token_ps[0] == pytest.approx(expected, abs=1)
    for i in range(output - 1):
        expected += round(100 + per_token + per_context * (prompt + i))
    assert result.finish_ps[0] == pytest.approx(expected, abs=output)


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 50), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_replicas_of_a_symmetric_load_do_the_same(replicas, users, prompt, output):
    count = replicas * users * 3
    requests = closed_loop(replicas * users, lengths(prompt, count), lengths(output, count))
    result = simulate(requests, Pool(cost=UNIT, settings=replica(), replicas=replicas), router="round-robin")
    one = simulate(
        closed_loop(users, lengths(prompt, users * 3), lengths(output, users * 3)), Pool(cost=UNIT, settings=replica())
    )
    for number in range(replicas):
        mine = result.steps["replica"] == number
        for name in ("start_ps", "end_ps", "decode_sequences", "used_units"):
            np.testing.assert_array_equal(result.steps[name][mine], one.steps[name])
    assert result.output_tokens_per_second == pytest.approx(replicas * one.output_tokens_per_second)


def test_a_cost_that_knows_no_runs_gives_the_same():
    class Stepwise:
        def step_ps(self, step):
            return UNIT.step_ps(step)

    requests = closed_loop(8, lengths(30, 40, spread=0.5), lengths(30, 40, spread=0.5, seed=1))
    same(serve(requests, replica()), serve(requests, replica(), Stepwise()))


class Ending:
    """100 a step and 1 a token; answers end after the token number that ``ends`` has for a request."""

    def __init__(self, ends):
        self.ends, self.seen, self.tokens = ends, [], {}

    def step_ps(self, step):
        self.seen.append((step.prefill_requests.tolist(), step.decode_requests.tolist()))
        for request in (*step.prefill_requests.tolist(), *step.decode_requests.tolist()):
            self.tokens[request] = self.tokens.get(request, 0) + 1
        return UNIT.step_ps(step)

    def ended(self, requests):
        return np.array([self.tokens[r] >= self.ends.get(r, 99) for r in requests.tolist()], bool)


def test_answers_that_end_early_make_room():
    """Two slots, three requests of 4 tokens; the first ends with its second token, and the third takes its place."""
    cost = Ending({0: 2})
    spec = replica(max_num_seqs=2, policy="prefill-first", chunks=False, max_prefills=1)
    work = load((0, 10, 4), (0, 10, 4), (0, 10, 4))
    result = serve(work, spec, cost)
    assert cost.seen == [([0], []), ([1], []), ([], [0, 1]), ([2], []), ([], [1, 2]), ([], [1, 2]), ([], [2])]
    assert result.output_tokens.tolist() == [2, 4, 4]
    assert work.output_tokens.tolist() == [4, 4, 4]
    assert result.finish_ps.tolist() == [322, 636, 737]
    assert [np.sum(result.emissions[0] == i) for i in range(3)] == [2, 4, 4]


def test_an_answer_may_end_with_its_first_token():
    result = serve(load((0, 10, 4), (0, 10, 1)), replica(), Ending({0: 1}))
    assert result.output_tokens.tolist() == [1, 1]
    assert result.summary()["tpot"] is None
