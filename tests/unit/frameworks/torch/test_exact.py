"""``exact``: kernels that compute aten calls, instruction by instruction, beside ``fast``, operator by operator."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from aten_calls import ALL, HALF, OPERATORS, PRODUCTS, Through, aten, drawn, flat, through  # noqa: E402
from configs import make  # noqa: E402

import trnsim.torch  # noqa: E402
from trnsim.errors import HardwareError  # noqa: E402
from trnsim.frameworks.torch.exact import ExactExecutor  # noqa: E402
from trnsim.frameworks.torch.fast import FastExecutor  # noqa: E402

PLACES = [("trn1", 1), ("trn2", 2), ("trn3", 2)]
# Calls that no kernel computes: the reason is in ``fallbacks``.
WITHOUT = {"var", "cumsum", "index add", "index put", "scatter add", "loss", "convolution"}
WITHOUT |= {"layer norm backward"}  # its forward pass is not in this test; see below
MOVES = {"lt", "where", "max", "index", "gather", "cat", "topk"}
# Kernels round what they make of the format on the way: so many half steps of a result, relative to the largest.
ROUNDINGS = {"softmax": 2, "softmax backward": 3, "layer norm": 3, "silu backward": 4, "gelu backward": 6}


def assert_near(got, expected, roundings=1.0, sums=1e-5):
    """Formats, shapes and strides are equal, values within half steps of the format and the order of float32 sums."""
    for one, other in zip(flat(got), flat(expected), strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        if not one.is_floating_point():
            assert torch.equal(one, other)
            continue
        size = float(other.double().abs().max())
        limit = (2 * roundings * HALF[other.dtype] + sums) * size + 1e-30
        assert float((one.double() - other.double()).abs().max()) <= limit


@pytest.mark.parametrize("where", PLACES, ids=str)
@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("name", [*OPERATORS, *PRODUCTS])
def test_operators_are_those_of_fast(name, dtype, where):
    func, arguments, keywords = (OPERATORS | PRODUCTS)[name]
    executor = ExactExecutor(*where, "bf16")
    got = executor.run(func, arguments(dtype), keywords)
    expected = FastExecutor("bf16", executor.generation).run(func, arguments(dtype), keywords)
    assert_near(got, expected, ROUNDINGS.get(name, 1))
    if name in WITHOUT:
        assert [of for of, _ in executor.fallbacks] == [str(func)]
    else:
        assert not executor.fallbacks
        assert bool(executor.launches) == (name not in MOVES)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(1, 70), st.integers(1, 200), st.integers(1, 70), st.booleans(), st.booleans(), st.sampled_from(ALL),
    st.sampled_from(["float32", "bf16", "fp16", "fp8", "mxfp8"]), st.sampled_from(PLACES),
)  # fmt: skip
def test_products_of_every_policy(m, k, n, left_turned, right_turned, dtype, policy, where):
    if policy == "mxfp8" and where[0] != "trn3":
        with pytest.raises(HardwareError, match="NeuronCore-v4"):
            ExactExecutor(*where, policy)
        return
    left = drawn(k, m, dtype=dtype).t() if left_turned else drawn(m, k, dtype=dtype)
    right = drawn(n, k, dtype=dtype, seed=1).t() if right_turned else drawn(k, n, dtype=dtype, seed=1)
    bias = drawn(n, dtype=dtype)
    executor = ExactExecutor(*where, policy)
    fast = FastExecutor(policy, executor.generation)
    for func, args in ((aten.mm.default, (left, right)), (aten.addmm.default, (bias, left, right))):
        # mean products of k terms, of which the largest result is a few times the root of k
        assert_near(executor.run(func, args, {}), fast.run(func, args, {}), sums=1e-4)
    assert not executor.fallbacks


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.integers(1, 2), st.sampled_from([(1, 1), (4, 2), (6, 1)]), st.integers(1, 150), st.sampled_from([16, 64]),
    st.booleans(), st.sampled_from(ALL), st.sampled_from(PLACES),
)  # fmt: skip
def test_attention_and_its_gradients(batch, heads, tokens, size, causal, dtype, where):
    shapes = [(batch, heads[0], tokens, size), *[(batch, heads[1], tokens, size)] * 2]
    executor = ExactExecutor(*where, "bf16")
    results = []
    for one in (executor, FastExecutor("bf16")):
        q, k, v = (drawn(*s, dtype=dtype, seed=i).requires_grad_() for i, s in enumerate(shapes))
        with Through(one):
            attend = torch.nn.functional.scaled_dot_product_attention
            out = attend(q, k, v, is_causal=causal, enable_gqa=heads[0] != heads[1])
            out.backward(drawn(*out.shape, dtype=dtype, seed=9))
        results.append([out.detach(), q.grad, k.grad, v.grad])
    for got, expected in zip(*results, strict=True):
        # operands in bfloat16, probabilities and gradients of scores rounded to it between two products
        size_of = float(expected.double().abs().max()) + 1e-9
        error = float((got.double() - expected.double()).abs().max())
        assert error <= 12 * HALF[torch.bfloat16] * max(size_of, 0.05)
    assert not [of for of, _ in executor.fallbacks if "attention" in of]


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_norms_and_their_gradients(dtype):
    results = []
    for executor in (ExactExecutor("trn2", 2, "float32"), FastExecutor("float32")):
        x = drawn(5, 48, dtype=dtype).requires_grad_()
        layers = [torch.nn.LayerNorm(48), torch.nn.RMSNorm(48)]
        with Through(executor):
            parts = []
            for layer in layers:
                y = layer.to(dtype)(x)
                parts += [
                    y.detach(),
                    *torch.autograd.grad(y, [x, *layer.parameters()], drawn(5, 48, dtype=dtype, seed=2)),
                ]
        results.append(parts)
        if isinstance(executor, ExactExecutor):
            assert executor.launches["layernorm"] == executor.launches["layernorm_backward"] == 1
            assert not executor.fallbacks
    assert_near(*results, roundings=8)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_fused_rms_norm(dtype):
    """Graphs have it as one call, which PyTorch has no CPU kernel for: beside float64."""
    executor = ExactExecutor("trn2", 2, "bf16")
    x, weight, dy = drawn(5, 48, dtype=dtype), drawn(48, dtype=dtype, seed=1), drawn(5, 48, dtype=dtype, seed=2)
    y, deviation = executor.run(aten._fused_rms_norm.default, (x, [48], weight, 1e-6), {})
    got = executor.run(aten._fused_rms_norm_backward.default, (dy, x, [48], deviation, weight, [True, True]), {})
    exact = [t.double().requires_grad_() for t in (x, weight)]
    expected = torch.nn.functional.rms_norm(exact[0], [48], exact[1], 1e-6)
    expected.backward(dy.double())
    for one, right in zip((y, *got), (expected.detach(), exact[0].grad, exact[1].grad), strict=True):
        assert one.dtype is dtype
        assert float((one.double() - right).abs().max()) <= (8 * HALF[dtype] + 1e-5) * float(right.abs().max())
    assert executor.launches == {"rmsnorm": 1, "rmsnorm_backward": 1}
    assert not executor.fallbacks


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training(dtype, fused):
    """Losses of three steps of AdamW, beside those of ``fast``."""
    losses = []
    for executor in (ExactExecutor("trn2", 2, "bf16"), FastExecutor("bf16")):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Embedding(9, 16), torch.nn.Linear(16, 32), torch.nn.SiLU(), torch.nn.Linear(32, 9)
        )
        net = net.to(dtype)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=fused)
        for _ in range(3):
            with Through(executor):
                loss = torch.nn.functional.cross_entropy(net(torch.arange(9)), torch.arange(9).roll(1))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        losses.append(loss.item())
        if isinstance(executor, ExactExecutor):
            assert executor.launches["embedding"] == executor.launches["embedding_backward"] == 3
            assert executor.launches["adam_step"] == (15 if fused else 0)
            assert {of for of, _ in executor.fallbacks} <= {
                "aten.nll_loss_forward.default",
                "aten.nll_loss_backward.default",
            }
    assert losses[0] == pytest.approx(losses[1], rel=8 * HALF[torch.bfloat16])


@pytest.mark.parametrize(
    ("queries", "keys", "allowed", "boolean", "kernel"),
    [
        (5, 5, lambda i, j: j <= i, False, True),
        (5, 5, lambda i, j: j <= i, True, True),
        (3, 7, lambda i, j: j <= i + 4, False, True),
        (1, 9, lambda i, j: j <= 6, True, True),
        (4, 6, lambda i, j: j >= 0, False, True),
        (4, 6, lambda i, j: j != 2, False, False),
    ],
)
def test_masks(queries, keys, allowed, boolean, kernel):
    mask = allowed(torch.arange(queries)[:, None], torch.arange(keys)[None])
    if not boolean:
        mask = torch.zeros(queries, keys).masked_fill(~mask, torch.finfo(torch.float32).min)
    q, k, v = drawn(1, 2, queries, 16), drawn(1, 2, keys, 16, seed=1), drawn(1, 2, keys, 16, seed=2)
    executor = ExactExecutor("trn2", 1, "float32")
    func = aten._scaled_dot_product_flash_attention_for_cpu.default
    got, _ = executor.run(func, (q, k, v), {"attn_mask": mask[None, None]})
    scores = (q.double() @ k.double().mT) / 4
    seen = mask if boolean else mask == 0
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.double()
    assert float((got.double() - expected).abs().max()) <= 1e-5
    assert executor.launches["attention"] == int(kernel)
    assert bool(executor.fallbacks) != kernel


# What models of ``transformers`` have beside kernels: angles, the choice of a loss, who goes to which expert.
NO_KERNEL = {"cos", "sin", "nll_loss_forward", "nll_loss_backward", "histc", "cumsum", "index_put"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe"])
def test_models(name, dtype):
    """Forward and backward are as near to float64 as ``fast`` is, within twice its error."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'trnsim[models]'")
    model = make(name).to(dtype)
    ids = torch.randint(1, 100, (1, 16), generator=torch.Generator().manual_seed(3))
    wide = copy.deepcopy(model).double()
    wide.config._experts_implementation = "eager"  # grouped products have no float64
    exact = ExactExecutor("trn2", 2, "float32")
    found = []
    for one, executor in ((wide, None), (model, exact), (model, FastExecutor("float32"))):
        one.zero_grad()
        with Through(executor) if executor is not None else torch.enable_grad():
            output = one(input_ids=ids, labels=ids, use_cache=False)
            output.loss.backward()
        gradients = [p.grad.double().flatten() for p in one.parameters() if p.grad is not None]
        found.append((output.logits.detach().double().flatten(), torch.cat(gradients)))
    for right, got, fast in zip(*found, strict=True):
        assert float((got - right).norm()) <= 2 * float((fast - right).norm()) + 1e-6 * float(right.norm())
    assert {of.removeprefix("aten.").partition(".")[0] for of, _ in exact.fallbacks} <= NO_KERNEL
    assert exact.launches["attention"] == exact.launches["attention_backward"] == 2


def test_fallbacks_say_why():
    executor = ExactExecutor("trn2", 1, "bf16")
    x = drawn(4, 8)
    executor.run(aten._softmax.default, (x, 0, False), {})
    executor.run(aten.cumsum.default, (x, 0), {})
    executor.run(aten.native_layer_norm.default, (x, [4, 8], None, None, 1e-5), {})
    wide = drawn(1, 9000)
    executor.run(aten._softmax.default, (wide, -1, False), {})
    reasons = dict(executor.fallbacks)
    assert reasons.pop(("aten._softmax.default", "not the last dimension")) == 1
    assert reasons.pop(("aten.cumsum.default", "no kernel")) == 1
    assert reasons.pop(("aten.native_layer_norm.default", "more than the last dimension is normalised")) == 1
    ((operator, reason),) = reasons
    assert operator == "aten._softmax.default"
    assert "9000" in reason


def test_reports_say_what_no_kernel_computed():
    x = drawn(4, 8)
    with trnsim.torch.device("trn2", depth="exact") as chip:
        x.exp().cumsum(0)
    first, *rest = chip.report().notes
    assert first == "exact: 1 kernels ran, 1 calls of other operators were computed as in fast"
    assert rest == ["aten.cumsum.default, 1 times: no kernel"]
    with trnsim.torch.device("trn2") as chip:
        x.exp().cumsum(0)
    assert not chip.report().notes


def test_integers_are_not_counted():
    executor = ExactExecutor("trn2", 1, "bf16")
    through(executor, lambda: torch.arange(5) * 3 + 1)
    assert not executor.fallbacks
    assert not executor.launches
