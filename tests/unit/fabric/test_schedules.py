"""Every algorithm returns what NumPy says, for any number of ranks and any size, in the documented order of sums."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.fabric.algorithms import algorithms, schedule
from trnsim.fabric.data import execute
from trnsim.fabric.schedule import split

REDUCING = ("all_reduce", "reduce_scatter")
HALVES = ("ring", "mesh", "rdh")


@st.composite
def cases(draw, collectives=("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast")):
    collective = draw(st.sampled_from(collectives))
    algorithm = draw(st.sampled_from(algorithms(collective)))
    ranks = draw(st.integers(1, 20))
    if algorithm == "kangaring":
        ranks = 2 * draw(st.integers(1, 10))
    options = {}
    if algorithm == "hierarchical":
        inner = draw(st.integers(1, 5))
        ranks = inner * draw(st.integers(1, 5))
        options = {"inner": inner}
        if collective != "all_to_all":
            options |= {f"{side}_algorithm": draw(st.sampled_from(HALVES)) for side in ("inner", "outer")}
            if draw(st.booleans()):
                options["outer_orders"] = [draw(st.permutations(range(ranks // inner))) for _ in range(inner)]
    if collective == "broadcast":
        options["root"] = draw(st.integers(0, ranks - 1))
    if algorithm in ("tree", "ring"):
        options["pieces"] = draw(st.integers(1, 5))
    if collective != "broadcast" and algorithm == "ring" and collective != "all_to_all":
        options["orders"] = [draw(st.permutations(range(ranks))) for _ in range(draw(st.integers(1, 3)))]
    return collective, algorithm, ranks, draw(st.integers(0, 200)), options


def _inputs(made, elements, seed, dtype=np.int32):
    generator = np.random.default_rng(seed)
    values = generator.integers(-1000, 1000, (made.ranks, elements)).astype(dtype)
    if made.collective == "all_gather":
        begin, size = (x // made.itemsize for x in made.shares)
        return [values[0, begin[r] : begin[r] + size[r]] for r in range(made.ranks)], values
    return list(values), values


def _expected(made, values, op=np.add):
    n, item = made.ranks, made.itemsize
    if made.collective in REDUCING:
        whole = op.reduce(values, axis=0, dtype=values.dtype)
        if made.collective == "all_reduce":
            return [whole] * n
        return np.split(whole, made.shares[0][1:] // item)
    if made.collective == "all_gather":
        return [values[0]] * n
    if made.collective == "broadcast":
        return [values[made.root]] * n
    parts = [np.split(row, np.cumsum(c)[:-1] // item) for row, c in zip(values, made.counts, strict=True)]
    return [np.concatenate([parts[i][j] for i in range(n)]) for j in range(n)]


@given(cases(), st.integers(0, 10))
@settings(max_examples=300, deadline=None)
def test_equals_numpy(case, seed):
    collective, algorithm, ranks, elements, options = case
    made = schedule(collective, algorithm, ranks, elements * 4, itemsize=4, **options)
    given_, values = _inputs(made, elements, seed)
    kept = [x.copy() for x in given_]
    for op in ("add", "maximum") if collective in REDUCING else ("add",):
        found = execute(made, given_, op)
        for one, right in zip(found, _expected(made, values, getattr(np, op)), strict=True):
            np.testing.assert_array_equal(one, right)
    for one, before in zip(given_, kept, strict=True):
        np.testing.assert_array_equal(one, before)


@given(st.integers(1, 9), st.integers(0, 99), st.data())
@settings(max_examples=60, deadline=None)
def test_uneven_counts(ranks, seed, data):
    counts = np.array(data.draw(st.lists(st.integers(0, 9), min_size=ranks * ranks, max_size=ranks * ranks)))
    table = counts.reshape(ranks, ranks) * 4
    for algorithm in ("mesh", "ring", "hierarchical"):
        inner = data.draw(st.sampled_from([d for d in range(1, ranks + 1) if ranks % d == 0]))
        made = schedule(
            "all_to_all", algorithm, ranks, int(table.sum(axis=1).max()), itemsize=4, counts=table, inner=inner
        )
        values = [np.random.default_rng(seed + r).integers(0, 99, n // 4).astype(np.int32)
                  for r, n in enumerate(table.sum(axis=1))]  # fmt: skip
        for one, right in zip(execute(made, values), _expected(made, values), strict=True):
            np.testing.assert_array_equal(one, right)
    made = schedule("all_gather", "ring", ranks, int(table[0].sum()), itemsize=4, counts=table[0])
    shares = [np.full(n // 4, r, np.int32) for r, n in enumerate(table[0])]
    for one in execute(made, shares):
        np.testing.assert_array_equal(one, np.concatenate(shares))


def _ring_order(values, add):
    """Share ``c`` starts at rank ``c + 1`` and goes round: each rank adds its own to what has come."""
    n = len(values)
    begin, size = split(values.shape[1], n)
    parts = []
    for c in range(n):
        total = values[(c + 1) % n, begin[c] : begin[c] + size[c]]
        for i in range(2, n + 1):
            total = add(values[(c + i) % n, begin[c] : begin[c] + size[c]], total)
        parts.append(total)
    return np.concatenate(parts)


def _rank_order(values, add):
    """In float32 by rank, rounded once."""
    del add
    total = values[0].astype(np.float32)
    for row in values[1:]:
        total = total + row.astype(np.float32)
    return total.astype(values.dtype)


def _halving_order(values, add):
    """Pairs a half apart first: a rank's own with its partner's, then these with those a quarter apart."""
    while len(values) > 1:
        half = len(values) // 2
        values = add(values[:half], values[half:])
    return values[0]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    ("algorithm", "order"),
    [("ring", _ring_order), ("mesh", _rank_order), ("single_step_mesh", _rank_order), ("rdh", _halving_order)],
)
def test_order_of_floating_sums(algorithm, order, dtype):
    values = (np.random.default_rng(1).standard_normal((8, 203)) * 100).astype(dtype)

    def add(a, b):
        return (a.astype(np.float32) + b.astype(np.float32)).astype(dtype)

    made = schedule("all_reduce", algorithm, 8, values[0].nbytes, itemsize=values.itemsize)
    right = order(values, add)
    for one in execute(made, list(values)):
        np.testing.assert_array_equal(one.view(f"u{values.itemsize}"), right.view(f"u{values.itemsize}"))


@given(cases(collectives=REDUCING), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_floating_sums_are_near_and_equal_on_all_ranks(case, seed):
    collective, algorithm, ranks, elements, options = case
    made = schedule(collective, algorithm, ranks, elements * 4, itemsize=4, **options)
    values = np.random.default_rng(seed).standard_normal((ranks, elements)).astype(np.float32)
    found = execute(made, list(values))
    exact = _expected(made, values.astype(np.float64))
    for one, right in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, right, atol=ranks * 2e-6)  # float32 sums of up to 25 values of about 1
    if collective == "all_reduce":
        assert len({one.tobytes() for one in found}) == 1


def test_permute():
    made = schedule("permute", "mesh", 4, 12, itemsize=4, pairs=[(0, 1), (1, 3), (3, 0)])
    found = execute(made, [np.full(3, r, np.int32) for r in range(4)])
    assert [None if x is None else int(x[0]) for x in found] == [3, 0, None, 1]


@pytest.mark.parametrize(
    ("algorithm", "n", "steps", "moved"),
    [("ring", 8, 14, 14), ("mesh", 8, 2, 14), ("rdh", 8, 6, 14), ("rdh", 6, 8, 14), ("single_step_mesh", 8, 1, 56),
     ("kangaring", 8, 10, None), ("tree", 8, None, 14)],
)  # fmt: skip
def test_steps_and_traffic_are_those_of_the_algorithm(algorithm, n, steps, moved):
    made = schedule("all_reduce", algorithm, n, 8 * 120)
    if steps is not None:
        assert made.steps == steps
    if moved is not None and n == 8:
        assert made.moved_bytes == moved * 8 * 120


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: schedule("gossip", "ring", 2, 8), "no such collective"),
        (lambda: schedule("all_gather", "tree", 2, 8), "no algorithm"),
        (lambda: schedule("all_reduce", "ring", 0, 8), "at least one rank"),
        (lambda: schedule("all_reduce", "ring", 2, 7, itemsize=2), "whole number of elements"),
        (lambda: schedule("all_reduce", "kangaring", 5, 8), "even"),
        (lambda: schedule("all_reduce", "hierarchical", 8, 8, inner=3), "divisor of 8"),
        (lambda: schedule("all_reduce", "hierarchical", 8, 8, inner=4, inner_algorithm="tree"), "not made of"),
        (lambda: schedule("all_reduce", "ring", 3, 9, orders=[[0, 1, 1]]), "names all 3 ranks once"),
        (lambda: schedule("all_to_all", "mesh", 2, 8, counts=[[1, 2, 3]]), "2 by 2"),
        (lambda: schedule("all_gather", "ring", 2, 8, counts=[1, 2]), "add up"),
        (lambda: schedule("broadcast", "tree", 2, 8, root=2), "root"),
        (lambda: schedule("permute", "mesh", 2, 8), "pairs"),
        (lambda: schedule("permute", "mesh", 2, 8, pairs=[(0, 1), (0, 0)]), "source twice"),
        (lambda: schedule("permute", "mesh", 2, 8, pairs=[(0, 2)]), "outside the group"),
    ],
)
def test_bad_schedules(call, match):
    with pytest.raises(InputError, match=match):
        call()


@pytest.mark.parametrize(
    ("inputs", "op", "match"),
    [
        ([np.zeros(4, np.float32)], "add", "input for each rank"),
        ([np.zeros(4, np.float32), np.zeros((2, 2), np.float32)], "add", "rank 1 .*shape"),
        ([np.zeros(4, np.float32), np.zeros(3, np.float32)], "add", "rank 1 brings 12 bytes"),
        ([np.zeros(4, np.float32), np.zeros(4, np.int32)], "add", "rank 1 brings int32"),
        ([np.zeros(2, np.float64), np.zeros(2, np.float64)], "add", "elements of 4 bytes"),
        ([np.zeros(4, np.float32), None], "add", "rank 1 brings nothing"),
        ([np.zeros(4, np.float32)] * 2, "xor", "operator"),
    ],
)
def test_bad_data(inputs, op, match):
    with pytest.raises(InputError, match=match):
        execute(schedule("all_reduce", "ring", 2, 16, itemsize=4), inputs, op)
