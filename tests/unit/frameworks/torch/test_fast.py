"""``fast``: results, formats and aliases of aten calls beside float64, in every format that tensors have."""

from __future__ import annotations

import copy
import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from aten_calls import (  # noqa: E402
    ALL,
    HALF,
    LOW,
    OPERATORS,
    PRODUCTS,
    Through,
    assert_once_rounded,
    aten,
    drawn,
    through,
    wide,
)

from trnsim.errors import HardwareError, UnsupportedError  # noqa: E402
from trnsim.frameworks.torch import formats  # noqa: E402
from trnsim.frameworks.torch.fast import FastExecutor  # noqa: E402


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_round_once(name, dtype):
    func, arguments, keywords = OPERATORS[name]
    args = arguments(dtype)
    expected = func(*map(wide, args), **{k: wide(v) for k, v in keywords.items()})
    got = FastExecutor("bf16").run(func, args, keywords)
    sums = 40.0 if "norm" in name or "sum" in name else 4.0
    # Mean and deviation stay in float32, in which the backward pass reads them.
    like = func(*args, **keywords) if "layer norm" not in name else [args[0], *wide_enough(expected[1:], name, dtype)]
    assert_once_rounded(got, expected, like, sums=sums)


def wide_enough(results, name, dtype):
    return [t.to(dtype if "backward" in name else torch.float32) for t in results]


@pytest.mark.parametrize("policy", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_round_operands_and_result(name, dtype, policy):
    func, arguments, keywords = PRODUCTS[name]
    args = arguments(dtype)
    native = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[policy]
    operand = native if dtype is torch.float32 else dtype
    added = len(args) == 3 and name != "convolution"
    exact = [a.to(operand).double() if isinstance(a, torch.Tensor) and not (added and i == 0) else wide(a)
             for i, a in enumerate(args)]  # fmt: skip
    got = FastExecutor(policy).run(func, args, keywords)
    assert_once_rounded(got, func(*exact, **keywords), func(*args, **keywords), sums=40.0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 80), st.integers(1, 40), st.booleans(), st.booleans(), st.sampled_from(ALL),
    st.sampled_from(["fp8", "mxfp8"]), st.integers(0, 99),
)  # fmt: skip
def test_narrow_products(m, k, n, left_turned, right_turned, dtype, policy, seed):
    """A product in 8 bits, beside float64 of operands that the tests of formats have checked."""
    left = drawn(k, m, dtype=dtype, seed=seed, scale=5).t() if left_turned else drawn(m, k, dtype=dtype, seed=seed)
    right = drawn(n, k, dtype=dtype, seed=seed + 1).t() if right_turned else drawn(k, n, dtype=dtype, seed=seed + 1)
    exact = []
    for tensor, dim in ((left, 1), (right, 0)):
        if policy == "fp8":
            codes, scale = formats.scaled(tensor.float(), formats.Policy.of(policy).operand)
            exact.append(codes.double() * (1 if scale is None else scale.double()))
        else:
            sixteen = tensor.bfloat16() if dtype is torch.float32 else tensor  # what the instruction reads
            exact.append(formats.in_blocks(sixteen.float(), formats.Policy.of(policy).operand, dim).double())
    bias = drawn(n, dtype=dtype)
    product = exact[0] @ exact[1]
    executor = FastExecutor(policy, "v4")
    like = left @ right
    sums = float(exact[0].abs().max() * exact[1].abs().max()) * k
    assert_once_rounded(executor.run(aten.mm.default, (left, right), {}), product, like, sums)
    got = executor.run(aten.addmm.default, (bias, left, right), {"beta": 2.0})
    assert_once_rounded(got, product + 2 * bias.double(), like, sums)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_changes_in_place(dtype):
    executor = FastExecutor("bf16")
    base = drawn(6, 40, dtype=dtype)
    part, before = base[2:4], base.double()
    got = executor.run(aten.add_.Tensor, (part, part), {"alpha": 0.5})
    assert got is part
    before[2:4] *= 1.5
    assert_once_rounded(base, before, base)
    out = torch.empty(6, 40, dtype=dtype)
    assert executor.run(aten.mul.out, (base, base), {"out": out}) is out
    assert_once_rounded(out, base.double() ** 2, out)
    several = [drawn(5, dtype=dtype), drawn(7, dtype=dtype)]
    expected = [t.double() * 3 for t in several]
    assert executor.run(aten._foreach_mul_.Scalar, (several, 3.0), {}) is None
    assert_once_rounded(several, expected, several)


def test_batch_norm_writes_running_statistics():
    mean, var = torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)
    x = drawn(4, 3, 5, dtype=torch.bfloat16) + 1
    FastExecutor("bf16").run(aten.native_batch_norm.default, (x, None, None, mean, var, True, 0.5, 1e-5), {})
    assert_once_rounded(mean, x.double().mean((0, 2)) / 2, mean)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_views_share_storage(dtype):
    def views(x):
        return x.t(), x.view(-1), x[1:, ::2], x.expand(2, 6, 40), x.detach()

    x = drawn(6, 40, dtype=dtype)
    for view in through(FastExecutor("bf16"), views, x):
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.exp.default, (torch.zeros(2, dtype=torch.float64),)),
        (aten.mm.default, (torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))),
        (aten._foreach_add.Scalar, ([torch.zeros(2), torch.zeros(2, dtype=torch.float64)], 1)),
        (aten.mul.Tensor, (torch.zeros(2, dtype=torch.complex64), 2)),
    ],
)
@pytest.mark.parametrize("policy", ["bf16", "fp8"])
def test_formats_that_no_engine_has(func, args, policy):
    with pytest.raises(UnsupportedError, match=rf"{func}.* on (float64|complex64), which no engine"):
        FastExecutor(policy).run(func, args, {})


def test_scalars_may_be_float64():
    got = FastExecutor("bf16").run(aten.mul.Tensor, (drawn(4), torch.tensor(2.0, dtype=torch.float64)), {})
    assert got.dtype is torch.float32


def test_format_that_the_generation_lacks():
    with pytest.raises(HardwareError, match="NeuronCore-v4"):
        FastExecutor("mxfp8", "v3")
    executor = FastExecutor("bf16", "v3")
    with formats.autocast("mxfp8"), pytest.raises(HardwareError, match="NeuronCore-v4"):
        executor.run(aten.mm.default, (drawn(4, 4), drawn(4, 4)), {})


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.add_(1),
        lambda w: w.data.add_(1),
        lambda w: w.t().mul_(2),
        lambda w: w.data.t()[1:].zero_(),
        lambda w: torch._foreach_add_([w.data], 1),
        lambda w: w.data.copy_(torch.ones_like(w)),
    ],
)
@pytest.mark.parametrize("policy", ["bf16", "fp8"])
def test_rounded_weights_follow_their_weights(change, policy):
    executor = FastExecutor(policy)
    weight, x = torch.nn.Parameter(drawn(8, 8)), drawn(3, 8)

    def run(w):
        with torch.no_grad():
            return x @ w.t()

    through(executor, run, weight)
    with torch.no_grad():
        through(executor, change, weight)
    fresh = through(FastExecutor(policy), run, torch.nn.Parameter(weight.detach().clone()))
    assert torch.equal(through(executor, run, weight), fresh)


def test_rounded_weights_die_with_their_weights():
    executor = FastExecutor("bf16")
    weight = drawn(64, 64)
    executor.run(aten.mm.default, (drawn(1, 64), weight), {})
    assert executor.cache.bytes >= 4 * weight.numel()
    del weight
    gc.collect()
    assert executor.cache.bytes == 0


def test_rounded_weights_have_a_limit():
    executor = FastExecutor("bf16")
    executor.cache.limit = 3 * 4 * 64 * 64
    weights = [drawn(64, 64, seed=i) for i in range(6)]
    for weight in weights:
        executor.run(aten.mm.default, (weight, weight), {})
    assert 0 < executor.cache.bytes <= executor.cache.limit


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4, bias=False)
    )


def loss_of(net, x):
    return torch.nn.functional.cross_entropy(net(x).float(), torch.arange(len(x)) % 4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # Adam's moments are too small for float16
def test_training_beside_float64(dtype, fused):
    """Three steps of AdamW: as near float64 as the formats' rounding lets it be."""
    net, x = model().to(dtype), drawn(24, 16, dtype=dtype)
    right = copy.deepcopy(net).double()
    losses = []
    for one, data, executor in ((net, x, FastExecutor("float32")), (right, x.double(), None)):
        optimiser = torch.optim.AdamW(one.parameters(), lr=1e-2, fused=fused)
        for _ in range(3):
            with Through(executor) if executor is not None else torch.enable_grad():
                loss = loss_of(one, data)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if dtype is torch.float32 else 16 * HALF[dtype] + 1e-3)


def test_gradients_have_the_wider_exponents(monkeypatch):
    used = []
    plain = formats.scaled

    def spied(values, dtype):
        used.append((tuple(values.shape), str(dtype)))
        return plain(values, dtype)

    monkeypatch.setattr(formats, "scaled", spied)
    net, x = model(), drawn(24, 16).requires_grad_()
    through(FastExecutor("fp8"), lambda: loss_of(net, x).backward())
    forward, backward = used[:4], used[4:]
    assert {kind for _, kind in forward} == {"float8_e4m3"}
    # gradients of results are [24, 4] and [24, 32], as are operands that are transposed; others are of forward
    kinds = {(shape, kind) for shape, kind in backward}
    assert ((24, 4), "float8_e5m2") in kinds or ((4, 24), "float8_e5m2") in kinds
    assert ((24, 32), "float8_e5m2") in kinds or ((32, 24), "float8_e5m2") in kinds
    assert not [s for s, kind in kinds if kind == "float8_e5m2" and 16 in s], "the input or the weight as a gradient"


def updated(count, by, steps, seed=0, **options):
    """A weight of ones in bfloat16 after some updates, in float32."""
    weight, executor = torch.ones(count, dtype=torch.bfloat16), FastExecutor("bf16", seed=seed, **options)
    with torch.no_grad(), Through(executor):
        for _ in range(steps):
            weight.add_(torch.full((count,), by))
    return weight.float()


def test_stochastic_updates():
    """Updates of a tenth of a step of bfloat16 are lost to nearest rounding, and right in the mean otherwise."""
    step = 2.0**-7
    assert torch.equal(updated(100, 0.1 * step, 5), torch.ones(100))
    mean = float(updated(20_000, 0.1 * step, 5, stochastic_rounding=True).mean())
    assert mean == pytest.approx(1 + 5 * 0.1 * step, abs=4 * step * (0.25 * 5 / 20_000) ** 0.5)
    one, same, other = (updated(100, 0.5 * step, 1, seed, stochastic_rounding=True) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
