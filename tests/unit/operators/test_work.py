"""Operations and bytes of operators against plain loops, and against the contracts of our kernels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.kernels.contract import Problem
from trnsim.operators.kernel_costs import contracts
from trnsim.operators.work import OPERATORS, itemsize, operator, pairs

SIZE = st.integers(1, 40)


@given(SIZE, SIZE, st.booleans(), st.integers(0, 50))
@settings(deadline=None)
def test_pairs_of_query_and_key(queries, keys, causal, window):
    keys = max(keys, queries)
    count = 0
    for query in range(queries):
        at = keys - queries + query
        for key in range(keys):
            seen = not causal or (key <= at and (not window or key > at - window))
            count += seen
    assert pairs({"queries": queries, "keys": keys, "causal": causal, "window": window}) == count


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_many_uses_at_once(name):
    found = operator(name)
    sizes = {n: np.array([8.0, 24.0]) for n in found.sizes}
    for index in (0, 1):
        one = found.use({n: int(v[index]) for n, v in sizes.items()})
        assert np.broadcast_to(found.flops(found.use(sizes)), 2)[index] == found.flops(one)
        assert np.broadcast_to(found.bytes(found.use(sizes), "bfloat16"), 2)[index] == found.bytes(one, "bfloat16")


@pytest.mark.parametrize(
    ("name", "sizes", "flops", "moved"),
    [
        ("matmul", {"m": 2, "k": 3, "n": 5}, 60, 62),
        (
            "attention",
            {"heads": 2, "kv_heads": 1, "queries": 2, "keys": 2, "depth": 4},
            2 * 3 * 16,
            2 * (16 + 16 + 16),
        ),
        ("decode_attention", {"sequences": 3, "heads": 2, "kv_heads": 1, "context": 5, "depth": 4}, 480, 240 + 96),
        ("rmsnorm", {"rows": 3, "width": 4}, 48, 48 + 8),
        ("adam", {"elements": 10}, 140, 280),
        ("gated_mlp", {"tokens": 2, "width": 3, "hidden": 5, "outputs": 3}, 180, 24 + 90),
        ("grouped_matmul", {"tokens": 4, "k": 3, "n": 5, "experts": 2}, 120, 2 * (12 + 30 + 20)),
    ],
)
def test_by_hand(name, sizes, flops, moved):
    found = operator(name)
    used = found.use(sizes)
    assert (found.flops(used), found.bytes(used, "bfloat16")) == (flops, moved)


@pytest.mark.parametrize("name", sorted(contracts()))
@given(st.data())
@settings(deadline=None, max_examples=10)
def test_as_the_contract_of_our_kernel_has_it(name, data):
    """The same operator: sizes, options, operations and bytes."""
    contract = contracts()[name]
    found = operator(name)
    unset = contract.defaults
    sizes = {n: data.draw(st.integers(1, 32), n) * 16 for n in contract.sizes if n not in unset}
    if "keys" in sizes:
        sizes["keys"] += sizes["queries"]
    if "kv_heads" in sizes:
        sizes["heads"] *= sizes["kv_heads"]
    chosen = {n: data.draw(st.sampled_from(values), n) for n, values in contract.options.items()}
    form = contract.dtypes["v4"][0]
    problem = Problem({**unset, **sizes}, form, chosen)
    used = found.use({**sizes, **chosen})
    assert found.flops(used) == contract.flops(problem)
    assert found.bytes(used, form) == pytest.approx(contract.bytes(problem), abs=1)


def test_latent_attention_reads_its_keys_once():
    sizes = {"sequences": 3, "heads": 128, "kv_heads": 1, "context": 1000, "depth": 576, "width": 512}
    found = operator("decode_attention")
    two, one = (found.bytes(found.use({**sizes, "latent": latent}), "bfloat16") for latent in (0, 1))
    assert two - one == 2 * 3 * 1000 * 512


def test_formats():
    assert [itemsize(d) for d in ("float32", "bfloat16", "float8_e5m2", "float8_e4m3fn_x4", "float4_e2m1fn_x4")] == [
        4,
        2,
        1,
        1 + 1 / 32,
        0.5 + 1 / 32,
    ]
    with pytest.raises(InputError, match="no int4 among the formats"):
        itemsize("int4")


_ATTENTION = {"heads": 8, "kv_heads": 2, "queries": 64, "keys": 64, "depth": 64}


@pytest.mark.parametrize(
    ("name", "sizes", "text"),
    [
        ("matmul", {"m": 1}, "no k, n"),
        ("matmul", {"m": 1, "k": 1, "n": 1, "x": 2}, "unknown x"),
        ("matmul", {"m": -1, "k": 1, "n": 1}, "m must be"),
        ("attention", {**_ATTENTION, "kv_heads": 3}, "multiple of kv_heads; nearest: 9"),
        ("attention", {**_ATTENTION, "keys": 32}, "nearest: 64 keys"),
        ("attention", {**_ATTENTION, "keys": np.array([64, 128, 32])}, "nearest: 64 keys"),
        ("attention", {**_ATTENTION, "causal": "no"}, "causal must be"),
    ],
)
def test_bad_sizes(name, sizes, text):
    with pytest.raises(InputError, match=text):
        operator(name).use(sizes)


def test_without_a_mask_keys_may_be_fewer():
    operator("attention").use({**_ATTENTION, "keys": 32, "causal": 0})
