"""Surfaces against what they are sums of, and against whole simulations."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError, UnsupportedError
from trnsim.kernels.contract import PLAIN, Axis, Contract, Limit
from trnsim.operators import building, surface
from trnsim.operators.basis import Knots
from trnsim.operators.draws import Draws
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.samples import QUANTITIES

CONTRACTS = contracts()


def along(axis, size, of):
    whole, lacking = Knots.of(axis).weights(size)
    return sum(weight * of(at) for weights in (whole, lacking) for at, weight in weights.items())


AXES = [
    Axis("linear", 128, 1024, first=2, far=8),
    Axis("from the first", 2, 2, low=2, grain=2, first=0, far=1),
    Axis("from a low", 128, 1024, low=5000),
    Axis("as it is", 128, 1024, low=128, high=3000, grain=64),
]


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
@given(st.integers(1, 100_000))
@settings(deadline=None)
def test_lines_are_found_again(axis, size):
    size = max(axis.low, size if axis.high is None else size % axis.high) // axis.grain * axis.grain
    size = max(size, -(-axis.low // axis.grain) * axis.grain)
    assert along(axis, size, lambda at: 7.0) == pytest.approx(7)
    whole = -(-size // axis.tile) * axis.tile
    if axis.high is None or whole <= axis.high:
        assert along(axis, whole, lambda at: 3.0 * at + 5) == pytest.approx(3 * whole + 5)


@given(st.integers(1, 1000))
@settings(deadline=None)
def test_what_repeats_with_every_block_is_found_again(blocks):
    axis = Axis("a", 128, 512)

    def of(at):  # the second tile of a block takes longer than the others
        return 3 * at + (-(-at // 128) % 4 == 2)

    for tiles in range(4 * blocks + 1, 4 * blocks + 5):
        if tiles > 4:
            assert along(axis, tiles * 128, of) == pytest.approx(of(tiles * 128), abs=0.51 if tiles % 4 == 3 else 1e-6)


@given(st.integers(5, 4000))
@settings(deadline=None)
def test_parabolas_are_found_again(tiles):
    axis = Axis("a", 128, 512, degree=2)
    at = tiles * 128
    assert along(axis, at, lambda x: 3.0 + 2 * x + 0.1 * x * x) == pytest.approx(3.0 + 2 * at + 0.1 * at * at)


@given(st.integers(129, 20_000))
@settings(deadline=None)
def test_a_part_of_a_tile_lies_between_nothing_and_a_tile(size):
    def of(at):
        return float(-(-at // 128) * 128)  # a part takes as long as a tile

    assert along(Axis("a", 128, 1024), size, of) == pytest.approx(of(size))


BLOCKS = (Axis("a", 1, 10), Axis("b", 2, 20))


def synthetic(axes=BLOCKS, flops=1, **more):
    """A kernel of two loops, blocks of 10 and 20."""
    return Contract(
        name="synthetic", kernel=None, sizes=("a", "b"), arguments=lambda _: (), axes=lambda _: axes,
        flops=lambda _: flops, bytes=lambda _: 1, **more,
    )  # fmt: skip


def sample_of(time, instructions=1e3):
    asked = []

    def sample(problem):
        a, b = problem.sizes["a"], problem.sizes["b"]
        asked.append((a, b))
        return np.array([time(a, b), 0, instructions] + [0] * (len(QUANTITIES) - 3), float), "assumed", "made up"

    return sample, asked


def problem_of(contract):
    return contract.problem("float32", 1, {"a": 1, "b": 1})


def made_of(contract, sample):
    return building.refine(
        building.build(contract, problem_of(contract), sample), contract, problem_of(contract), sample
    )


def found_at(contract, made, sample, a, b):
    """By interpolation."""
    building.fill(made, contract, problem_of(contract), made.missing((a, b)), sample)
    return made.evaluate((a, b))[0]


def own_at(contract, made, sample, a, b):
    """From samples that end as the use does."""
    building.fill(made, contract, problem_of(contract), [at for _, at in made.own((a, b))], sample)
    return made.extrapolate((a, b))[0]


@given(st.integers(1, 4000), st.integers(1, 8000))
@settings(deadline=None, max_examples=30)
def test_a_bilinear_time_is_found_again(a, b):
    def time(a, b):
        return 1e6 + 1000.0 * a + 2000 * (-(-b // 2)) + 70 * a * (-(-b // 2))

    contract = synthetic()
    sample, asked = sample_of(time)
    made = made_of(contract, sample)
    assert all(check.error < 1e-9 for check in made.checks)
    assert found_at(contract, made, sample, a, b) == pytest.approx(time(a, b))
    assert own_at(contract, made, sample, a, b) == pytest.approx(time(a, b))
    assert max(asked) <= (60, 120)


def cycle(a):
    """Blocks of 10 that take 700, 800 and 900 in turn, after the first."""
    blocks, rest = divmod(a, 10)
    steps = [70, 80, 90]
    return 1e4 + sum(10 * steps[n % 3] for n in range(blocks)) + rest * steps[blocks % 3]


@pytest.mark.parametrize(
    ("of", "window", "degree", "settled"),
    [
        (lambda a: 1e5 + 700.0 * a, 1, 1, True),
        (cycle, 3, 1, True),
        (lambda a: 1e5 + 700.0 * a + 30.0 * a * a, 1, 2, True),  # each block takes longer than the one before
        (lambda a: 1e5 + 700.0 * a * (1 + 0.05 * np.sin(a**2)), None, 1, False),
    ],
)
@given(a=st.integers(1, 4000), b=st.integers(1, 30))
@settings(deadline=None, max_examples=10)
def test_blocks_that_settle(of, window, degree, settled, a, b):
    contract = synthetic()

    def time(a, b):
        return of(a) + 100.0 * (-(-b // 2)) * a

    sample, _ = sample_of(time)
    made = building.build(contract, problem_of(contract), sample)
    knots = made.knots[0]
    assert (knots.unsettled == 0) is settled
    assert knots.degree == degree
    if settled:
        assert knots.window == window
        assert own_at(contract, made, sample, a, b) == pytest.approx(time(a, b), rel=1e-9)
        assert made.unsettled((a, b)) == 0
    else:
        assert made.unsettled((4000, b)) > 0.01


def test_what_has_not_settled_is_simulated_or_refused(monkeypatch):
    def time(a, b):
        return 1e5 + 700.0 * a * (1 + 0.05 * np.sin(a**2)) + b

    contract = synthetic(flops=10**9)
    sample, asked = sample_of(time)
    monkeypatch.setattr("trnsim.operators.kernel_costs.contracts", lambda: {"synthetic": contract})
    costs = KernelCosts("trn2", use_shipped=False)
    monkeypatch.setattr(costs.source, "sampler", lambda _, problem: sample(problem))
    for a, b in ((35, 9), (4000, 9)):
        found = costs.cost("synthetic", "float32", a=a, b=b)
        assert found.time_ps == time(a, b)
    assert (4000, 9) in asked
    contract = dataclasses.replace(contract, flops=lambda p: 10**15 * (p.sizes["a"] > 2000))
    costs._contracts["synthetic"] = contract
    with pytest.raises(UnsupportedError, match=r"blocks of a differ by .*too large"):
        costs.cost("synthetic", "float32", a=4001, b=9)


def test_checks_speak_for_their_cell():
    """What is wrong of parts of tiles is not held against whole ones, nor the other way round."""
    contract = synthetic((Axis("a", 8, 32), Axis("b", 1, 16)))
    sample, _ = sample_of(
        lambda a, b: 1e6 + 100.0 * (-(-a // 8)) * b + (20_000.0 * (a % 8) if a % 8 in (2, 3) else 0) * b
    )
    made = made_of(contract, sample)
    for a, b in ((40, 5), (3, 4), (402, 4), (403, 4)):
        values = sample(problem_of(contract).resized({"a": a, "b": b}))[0]
        made.compared(surface.Check((a, b), found_at(contract, made, sample, a, b), values[0]))
        made.compared(surface.Check((a, b), made.evaluate((a, b))[0], values[0]))
    assert made.interpolates((40, 6))
    assert made.error((40, 6), own=False) < 0.01 < made.error((411, 4), own=False)
    assert not made.interpolates((411, 4))


@pytest.mark.parametrize("order", list(itertools.permutations(("assumed", "calibrated", "extrapolated"))))
def test_support_is_the_worst_of_the_samples(order):
    contract, labels = synthetic(), itertools.chain(order, itertools.repeat("calibrated"))
    sample, _ = sample_of(lambda a, b: 1e6 + a + b)
    made = building.build(contract, problem_of(contract), lambda p: (sample(p)[0], next(labels), "why"))
    assert made.support == "assumed"


def test_a_sample_at_no_knots_is_one_of_its_own():
    contract = synthetic()
    sample, _ = sample_of(lambda a, b: 1e6 + 1000.0 * a * b)
    made = made_of(contract, sample)
    before = found_at(contract, made, sample, 100, 9)
    for point in ((137, 9), (100, 9)):
        made.add(point, np.full(len(QUANTITIES), 5.0))
        assert made.samples[point][0] == 5
    assert found_at(contract, made, sample, 100, 9) == before


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(deadline=None, max_examples=30)
def test_what_blocks_move_on_is_found_again(a, b):
    """Each step of a sees what b has, and the steps of a before it, as causal attention does."""

    def time(a, b):
        return 1e6 + 5000 * a + 300.0 * a * b + 300.0 * a * (a + 1) / 2

    contract = synthetic((Axis("a", 1, 8, carries="b"), Axis("b", 1, 16)))
    sample, asked = sample_of(time)
    made = made_of(contract, sample)
    # What lies between knots of a is a straight line; so is the sum of what follows.
    assert found_at(contract, made, sample, a, b) == pytest.approx(time(a, b), rel=5e-3)
    assert max(at for at, _ in asked) <= 33  # of checks
    assert made.evaluate_many(np.array([(a, b)]))[0, 0] == pytest.approx(made.evaluate((a, b))[0])


def test_knots_come_where_another_engine_takes_over():
    def time(a, b):
        return 1000.0 * max(30, 7 * a) + b

    contract = synthetic((Axis("a", 1, 64), Axis("b", 1, 4)))
    sample, _ = sample_of(time)
    made = made_of(contract, sample)
    for a in (2, 3, 4, 5, 6, 30, 100):
        assert found_at(contract, made, sample, a, 9) == pytest.approx(time(a, 9), rel=0.01)


def test_a_surface_that_is_wrong_is_not_used(monkeypatch):
    draw = np.random.default_rng(0)
    sample, _ = sample_of(lambda a, b: 1000 * draw.uniform(1, 2))
    contract = synthetic()
    monkeypatch.setattr("trnsim.operators.kernel_costs.contracts", lambda: {"synthetic": contract})
    costs = KernelCosts("trn2", use_shipped=False)
    monkeypatch.setattr(costs.source, "sampler", lambda _, problem: sample(problem))
    assert costs.cost("synthetic", "float32", a=15, b=25).how == "simulated"
    assert costs.costs("synthetic", "float32", a=[15], b=25).time_ps[0] >= 1000


def test_what_is_too_large():
    contract = synthetic(flops=10**15)
    with pytest.raises(UnsupportedError, match="too large"):
        building.build(contract, contract.problem("float32", 1, {"a": 5, "b": 7}), sample_of(lambda a, b: 1.0)[0])


USES = [Draws(1, 500, 200_000).use(number) for number in range(120)]


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use[2]} {use[0]} x{use[1]} {use[3]}")
def test_samples_are_of_the_regime(use):
    """What a surface extrapolates from runs its loops as the use does, and is a use itself."""
    chip, cores, operator, dtype, sizes = use
    contract, generation = CONTRACTS[operator], KernelCosts(chip, cores).generation
    problem = contract.problem(dtype, cores, sizes, generation)
    axes = contract.axes(problem)
    point = [contract.coordinates(problem)[axis.name] for axis in axes]
    every = [Knots.of(axis).coordinates for axis in axes]
    for number, axis in enumerate(axes):
        assert axis.low <= point[number], axis
        for end, at in itertools.product((min, max), every[number]):
            place = [at if other == number else end(every[other]) for other in range(len(axes))]
            named = {axis.name: x for axis, x in zip(axes, place, strict=True)}
            sample = problem.resized(contract.placed(problem, named))
            asked = {n: v for n, v in sample.sizes.items() if n in contract.sizes}
            again = contract.problem(dtype, cores, {**asked, **problem.options}, generation).resized(sample.sizes)
            found = contract.coordinates(again)
            assert {name: found[name] for name in named} == named
            if "by_column" not in sample.sizes:
                assert contract.regime(again) == contract.regime(problem)
    assert contract.flops(problem) >= 0
    assert contract.bytes(problem) > 0


SMALL = [
    ("trn2", 1, "rmsnorm", "bfloat16", {"rows": 250_000, "width": 4096}),
    ("trn3", 2, "softmax", "float16", {"rows": 370_001, "width": 4096}),
    (
        "trn2",
        1,
        "decode_attention",
        "bfloat16",
        {"sequences": 45, "heads": 8, "kv_heads": 8, "context": 9000, "depth": 64},
    ),
    ("trn3", 1, "reduce_columns", "float32", {"rows": 100_000, "width": 1536}),
    ("trn1", 1, "gated_activation", "bfloat16", {"rows": 60_000, "width": 5000}),
    ("trn2", 1, "matmul_fp8", "float8_e4m3", {"m": 6000, "k": 1024, "n": 33_280}),
]


@pytest.mark.parametrize("use", SMALL, ids=lambda use: use[2])
def test_against_whole_simulations(use):
    chip, cores, operator, dtype, sizes = use
    costs = KernelCosts(chip, cores, use_shipped=False)
    found = costs.cost(operator, dtype, **sizes)
    whole = costs.simulated(operator, dtype, **sizes)
    assert found.how == "surface"
    assert found.time_ps == pytest.approx(whole.time_ps, rel=0.04)
    assert found.hbm_bytes == pytest.approx(whole.hbm_bytes, rel=0.02)
    assert (found.bound, found.support) == (whole.bound, whole.support)


def test_uses_of_a_regime_without_axes_are_simulated():
    costs = KernelCosts("trn2", use_shipped=False)
    sizes = {"heads": 1, "kv_heads": 1, "depth": 64, "causal": 1}
    for queries, keys in ((128, 256), (256, 384)):
        found = costs.cost("attention_backward", "bfloat16", queries=queries, keys=keys, **sizes)
        assert found == costs.simulated("attention_backward", "bfloat16", queries=queries, keys=keys, **sizes)
        assert found.how == "simulated"
        assert found.support


def test_arrays_are_what_each_is():
    costs = KernelCosts("trn2", use_shipped=False)
    rows, widths = np.array([100, 128, 5000, 70_001, 100, 9]), np.array([512, 512, 512, 768, 512, 768])
    found = costs.costs("reduce_rows", "bfloat16", rows=rows, width=widths)
    each = [costs.cost("reduce_rows", "bfloat16", rows=int(r), width=int(w)) for r, w in zip(rows, widths, strict=True)]
    np.testing.assert_allclose(found.time_ps, [one.time_ps for one in each], rtol=1e-12)
    np.testing.assert_array_equal(found.hbm_bytes, [one.hbm_bytes for one in each])
    np.testing.assert_array_equal(found.flops, [one.flops for one in each])
    np.testing.assert_allclose(found.busy_ps["dma"], [one.busy_ps["dma"] for one in each])


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ({"m": 1, "k": 1}, "no n"),
        ({"m": 1, "k": 1, "n": 1, "o": 1}, "unknown o"),
        ({"m": 0, "k": 1, "n": 1}, "at least 1; nearest: 1"),
        ({"m": 1, "k": 1, "n": 1, "contract_lhs": 2}, "contract_lhs"),
    ],
)
def test_bad_uses(given_, text):
    with pytest.raises(InputError, match=text):
        KernelCosts("trn2").cost("matmul", "bfloat16", **given_)


@pytest.mark.parametrize(
    ("chip", "operator", "dtype", "sizes", "text"),
    [
        ("trn1", "matmul", "float8_e4m3", {"m": 1, "k": 2, "n": 1}, "NeuronCore-v2 has no matmul_fp8; NeuronCore-v3"),
        ("trn2", "matmul", "float8_e4m3fn", {"m": 1, "k": 2, "n": 1}, "NeuronCore-v4 has it; nearest: float8_e4m3"),
        ("trn2", "matmul", "int4", {"m": 1, "k": 2, "n": 1}, "no int4 on NeuronCore-v3; nearest: bfloat16"),
        ("trn3", "matmul", "float4_e2m1fn_x4", {"m": 2, "k": 200, "n": 1}, "a multiple of 128; nearest: 256"),
        ("trn2", "rmsnorm", "float32", {"rows": 1, "width": 10_000}, "1 to 8192; nearest: 8192"),
        ("trn2", "attention", "bfloat16", {"heads": 7, "kv_heads": 2, "queries": 1, "keys": 1, "depth": 64}, "nearest"),
        ("trn2", "attention", "bfloat16", {"heads": 2, "kv_heads": 2, "queries": 9, "keys": 1, "depth": 64}, "9 keys"),
        ("trn2", "attention_backward", "bfloat16",
         {"heads": 2, "kv_heads": 2, "queries": 90_000, "keys": 90_000, "depth": 64}, "about"),
        ("trn2", "router", "bfloat16", {"tokens": 1, "width": 64, "experts": 4, "k": 5}, "nearest: 4"),
        ("trn2", "matmool", "bfloat16", {}, "no kernel for 'matmool'; nearest: matmul"),
    ],
)  # fmt: skip
def test_what_a_contract_or_a_generation_lacks(chip, operator, dtype, sizes, text):
    with pytest.raises(InputError, match=text):
        KernelCosts(chip).cost(operator, dtype, **sizes)


def test_one_use_is_simulated_where_there_is_no_surface():
    costs = KernelCosts("trn2", use_shipped=False)
    sizes = {"rows": 250_000, "width": 4096}
    first = costs.once("rmsnorm", "bfloat16", **sizes)
    assert first == costs.simulated("rmsnorm", "bfloat16", **sizes)
    assert first.how == "simulated"
    costs.cost("rmsnorm", "bfloat16", **sizes)
    assert costs.once("rmsnorm", "bfloat16", **sizes).how == "surface"


def test_bad_places():
    with pytest.raises(InputError, match="logical cores of 2"):
        KernelCosts("trn1", 2)
    with pytest.raises(InputError, match="no NeuronCore"):
        KernelCosts("h100")


@given(st.integers(-5, 3000))
def test_the_nearest_value(value):
    limit = Limit(low=100, high=1000, multiple=64)
    allowed = [at for at in range(100, 1001) if at % 64 == 0]
    assert abs(limit.nearest(value) - value) == min(abs(at - value) for at in allowed)


def test_every_contract():
    for name, contract in CONTRACTS.items():
        assert name == contract.name
        assert contract.summary
        assert set(contract.fixed) | set(contract.defaults) <= set(contract.sizes)
        assert dataclasses.is_dataclass(contract)
    assert {d for c in CONTRACTS.values() for d in c.dtypes["v2"]} == set(PLAIN["v2"])


def test_loops_one_after_the_other_take_no_time_together():
    """Samples of two loops that follow one another may differ by a little: that is not multiplied by their blocks."""
    axes = (Axis("a", 128, 1024, low=1), Axis("b", 128, 1024, low=1))
    knots = tuple(Knots.of(axis) for axis in axes)

    def made(together):
        taken = {}
        found = surface.Surface(knots, taken)
        for _, (a, b) in found.own((50 * 1024, 60 * 1024)):
            taken[a, b] = np.full(len(QUANTITIES), 10.0 * a / 1024 + 20.0 * b / 1024 + together(a / 1024, b / 1024))
        return found

    use = (50 * 1024, 60 * 1024)
    plain = made(lambda a, b: 0.0).extrapolate(use)[0]
    assert plain == pytest.approx(10 * 50 + 20 * 60)
    disturbed = made(lambda a, b: 0.1 * (a > 2) * (b > 2))
    noisy = [at for _, at in disturbed.own(use)]
    assert len(noisy) == 4
    assert disturbed.extrapolate(use)[0] == pytest.approx(plain, rel=0.02)
    disturbed.compared(surface.Check(use, 1.0, 1.0, own=True))
    assert disturbed.error(use, own=True) > 0.04
    real = made(lambda a, b: 5.0 * a * b)
    assert real.extrapolate(use)[0] == pytest.approx(plain + 5 * 50 * 60)
