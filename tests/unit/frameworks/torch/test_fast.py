"""``fast``: results, formats and aliases of aten calls beside float64, in every format that tensors have."""

from __future__ import annotations

import copy
import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from trnsim.errors import HardwareError, UnsupportedError  # noqa: E402
from trnsim.frameworks.torch import formats  # noqa: E402
from trnsim.frameworks.torch.fast import FastExecutor  # noqa: E402

aten = torch.ops.aten
LOW = [torch.bfloat16, torch.float16]
ALL = [torch.float32, *LOW]
# Half a step of a format, relative; float32 arithmetic adds a little of its own.
HALF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


class Through(TorchDispatchMode):
    """Sends what runs inside to an executor."""

    def __init__(self, executor):
        super().__init__()
        self.executor = executor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.executor.run(func, args, kwargs or {})


def through(executor, function, *args):
    with Through(executor):
        return function(*args)


def drawn(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def wide(value):
    """Floating tensors in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(wide, value))
    return torch.float64 if value in ALL else value


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def assert_once_rounded(got, expected, like, sums=1.0):
    """``got`` is float64 ``expected`` rounded once, as far as float32 sums of terms of size ``sums`` tell."""
    for one, right, native in zip(flat(got), flat(expected), flat(like), strict=True):
        assert (one.shape, one.dtype) == (native.shape, native.dtype)
        if not one.is_floating_point():
            assert torch.equal(one, right)
            continue
        limit = right.abs() * HALF[one.dtype] * 1.01 + 2e-6 * sums + torch.finfo(one.dtype).tiny
        assert bool(((one.double() - right).abs() <= limit).all()), f"{one}\n{right}"


X = lambda d: drawn(6, 40, dtype=d)
Y = lambda d: drawn(6, 40, dtype=d, seed=1)
W = lambda d: drawn(40, dtype=d, seed=2)
ROWS = torch.tensor([0, 2, 2, 5])
ONE_TO_SIX = torch.tensor([3, 0, 39, 7, 8, 9])
# (operator, arguments for a format, keywords)
OPERATORS = {
    "add": (aten.add.Tensor, lambda d: (X(d), Y(d)), {"alpha": 0.3}),
    "add scalar": (aten.add.Scalar, lambda d: (X(d), 0.1), {}),
    "mul number": (aten.mul.Tensor, lambda d: (X(d), 0.1), {}),
    "mul row": (aten.mul.Tensor, lambda d: (X(d), W(d)), {}),
    "div": (aten.div.Tensor, lambda d: (X(d), Y(d).abs() + 1), {}),
    "lt": (aten.lt.Scalar, lambda d: (X(d), 0.1), {}),
    "where": (aten.where.self, lambda d: (X(d) > 0, X(d), Y(d)), {}),
    "pow": (aten.pow.Tensor_Scalar, lambda d: (X(d), 3), {}),
    "rsqrt": (aten.rsqrt.default, lambda d: (X(d).abs() + 0.5,), {}),
    "exp": (aten.exp.default, lambda d: (X(d),), {}),
    "silu": (aten.silu.default, lambda d: (X(d),), {}),
    "silu backward": (aten.silu_backward.default, lambda d: (X(d), Y(d)), {}),
    "gelu": (aten.gelu.default, lambda d: (X(d),), {"approximate": "tanh"}),
    "gelu backward": (aten.gelu_backward.default, lambda d: (X(d), Y(d)), {"approximate": "none"}),
    "tanh": (aten.tanh.default, lambda d: (X(d),), {}),
    "sum": (aten.sum.dim_IntList, lambda d: (X(d), [-1], True), {}),
    "sum to float32": (aten.sum.dim_IntList, lambda d: (X(d), [0]), {"dtype": torch.float32}),
    "mean": (aten.mean.dim, lambda d: (X(d), [-1]), {}),
    "var": (aten.var.correction, lambda d: (X(d), [-1]), {"correction": 0}),
    "amax": (aten.amax.default, lambda d: (X(d), [-1]), {}),
    "max": (aten.max.dim, lambda d: (X(d), -1), {}),
    "cumsum": (aten.cumsum.default, lambda d: (X(d), -1), {}),
    "norm": (aten.linalg_vector_norm.default, lambda d: (X(d), 2), {}),
    "softmax": (aten._softmax.default, lambda d: (X(d), -1, False), {}),
    "log softmax": (aten._log_softmax.default, lambda d: (X(d), -1, False), {}),
    "softmax backward": (aten._softmax_backward_data.default, lambda d: (X(d), Y(d).softmax(-1), -1, d), {}),
    "layer norm": (aten.native_layer_norm.default, lambda d: (X(d), [40], W(d), W(d), 1e-5), {}),
    "layer norm backward": (
        aten.native_layer_norm_backward.default,
        lambda d: (X(d), Y(d), [40], drawn(6, 1), drawn(6, 1, seed=4).abs(), W(d), W(d), [True, True, True]),
        {},
    ),
    "embedding": (aten.embedding.default, lambda d: (X(d), ROWS), {}),
    "embedding backward": (aten.embedding_dense_backward.default, lambda d: (X(d)[:4], ROWS, 9, -1, False), {}),
    "index": (aten.index.Tensor, lambda d: (X(d), [ROWS]), {}),
    "index add": (aten.index_add.default, lambda d: (X(d), 0, ROWS, Y(d)[:4]), {}),
    "index put": (aten.index_put.default, lambda d: (X(d), [ROWS], Y(d)[:4], True), {}),
    "scatter add": (aten.scatter_add.default, lambda d: (X(d), 1, ONE_TO_SIX[:, None], Y(d)[:, :1]), {}),
    "gather": (aten.gather.default, lambda d: (X(d), 1, ONE_TO_SIX[:, None]), {}),
    "cat": (aten.cat.default, lambda d: ([X(d), Y(d)], 1), {}),
    "loss": (aten.nll_loss_forward.default, lambda d: (X(d), ONE_TO_SIX, None, 1, -100), {}),
    "topk": (aten.topk.default, lambda d: (X(d), 3), {}),
    "lerp": (aten.lerp.Scalar, lambda d: (X(d), Y(d), 0.1), {}),
    "addcmul": (aten.addcmul.default, lambda d: (X(d), Y(d), Y(d)), {"value": 0.2}),
    "foreach": (aten._foreach_add.List, lambda d: ([X(d), W(d)], [Y(d), W(d)]), {"alpha": 0.7}),
}
PRODUCTS = {
    "mm": (aten.mm.default, lambda d: (drawn(9, 40, dtype=d), drawn(40, 12, dtype=d, seed=1)), {}),
    "mm transposed": (aten.mm.default, lambda d: (drawn(9, 40, dtype=d), drawn(12, 40, dtype=d, seed=1).t()), {}),
    "addmm": (
        aten.addmm.default,
        lambda d: (drawn(12, dtype=d), drawn(9, 40, dtype=d), drawn(40, 12, dtype=d, seed=1)),
        {"beta": 0.5, "alpha": 2},
    ),
    "bmm": (aten.bmm.default, lambda d: (drawn(2, 9, 40, dtype=d), drawn(2, 40, 12, dtype=d, seed=1)), {}),
    "baddbmm": (
        aten.baddbmm.default,
        lambda d: (drawn(2, 9, 12, dtype=d), drawn(2, 9, 40, dtype=d), drawn(2, 40, 12, dtype=d, seed=1)),
        {},
    ),
    "mv": (aten.mv.default, lambda d: (drawn(9, 40, dtype=d), drawn(40, dtype=d)), {}),
    "convolution": (
        aten.convolution.default,
        lambda d: (drawn(2, 3, 8, 8, dtype=d), drawn(4, 3, 3, 3, dtype=d), None, [1], [1], [1], False, [0], 1),
        {},
    ),
}  # fmt: skip


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
            exact.append(formats.in_blocks(tensor.float(), formats.Policy.of(policy).operand, dim).double())
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
    with pytest.raises(UnsupportedError, match=rf"{func._schema.name}.* on (float64|complex64), which no engine"):
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
