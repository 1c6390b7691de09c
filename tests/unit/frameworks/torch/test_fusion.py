"""Regions of small networks: what runs as one, what it is priced as, the same however it was captured."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import trnsim.torch

TOKENS, WIDTH, HEADS = 64, 128, 4


class RmsNorm(nn.Module):
    """As models of transformers write it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, gated=True, activation=functional.silu):
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False) if gated else None
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.activation = activation

    def forward(self, x):
        inner = self.activation(self.gate(x))
        return self.down(inner if self.up is None else inner * self.up(x))


def rotated(x, cosine, sine):
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Attention(nn.Module):
    """Grouped queries, rotary embeddings; the explicit form writes scores and softmax out."""

    def __init__(self, explicit=False, kv_heads=2, causal=True):
        super().__init__()
        depth = WIDTH // HEADS
        self.explicit, self.kv_heads, self.causal, self.depth = explicit, kv_heads, causal, depth
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, kv_heads * depth, bias=False)
        self.v = nn.Linear(WIDTH, kv_heads * depth, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, tokens, _ = x.shape
        angles = torch.arange(tokens)[:, None] * torch.rand(self.depth)
        q, k, v = (p(x).view(batch, tokens, -1, self.depth).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = rotated(q, angles.cos(), angles.sin()), rotated(k, angles.cos(), angles.sin())
        if self.explicit:
            times = HEADS // self.kv_heads
            k, v = (t[:, :, None].expand(-1, -1, times, -1, -1).reshape(batch, HEADS, tokens, -1) for t in (k, v))
            scores = q @ k.transpose(2, 3) / self.depth**0.5
            if self.causal:
                scores = scores + torch.full((tokens, tokens), -1e9).triu(1)
            result = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
        else:
            result = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)
        return self.o(result.transpose(1, 2).reshape(batch, tokens, -1))


class Block(nn.Module):
    def __init__(self, mixer, norm=RmsNorm):
        super().__init__()
        self.norm, self.mixer = norm(), mixer

    def forward(self, x):
        return x + self.mixer(self.norm(x))


def regions(model, *, train=False, depth="fast", shape=(2, TOKENS // 2, WIDTH), **options):
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    with trnsim.torch.device("trn2", depth=depth, **options) as chip, chip.step():
        with torch.set_grad_enabled(train):
            result = model(inputs)
        if train:
            result.sum().backward()
    return chip.report().regions[-1]


def used(region):
    return [text.split(" ")[0] for text in region.operators]


def test_a_norm_goes_with_the_products_that_read_it():
    found = regions(Block(nn.Linear(WIDTH, WIDTH, bias=False)))
    assert [(r.kind, used(r)) for r in found] == [("norm_matmul", ["rmsnorm", "matmul"]), ("elementwise", ["chain"])]


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(WIDTH), lambda: nn.RMSNorm(WIDTH), RmsNorm])
def test_norms_have_kernels_forward_and_backward(norm):
    found = regions(Block(nn.Linear(WIDTH, WIDTH), norm), train=True)
    name = "layernorm" if isinstance(norm(), nn.LayerNorm) else "rmsnorm"
    operators = [o for r in found for o in used(r)]
    assert operators.count(name) == operators.count(f"{name}_backward") == 1
    sizes = f"{name} (rows {TOKENS}, width {WIDTH}) float32"
    assert sizes in [o for r in found for o in r.operators]


@pytest.mark.parametrize("activation", [functional.silu, functional.gelu, functional.relu])
@pytest.mark.parametrize("gated", [True, False])
def test_an_mlp_with_norm_and_residual_is_one_region(gated, activation):
    (found,) = regions(Block(Mlp(gated, activation)))
    kernel = gated and activation is not functional.relu
    assert found.kind == ("gated_mlp" if kernel else "mlp")
    assert used(found)[0] == "rmsnorm"
    assert found.time_ps < found.unfused_ps


def test_an_mlp_whose_inside_nobody_needs_is_one_kernel():
    (found,) = regions(Mlp())
    assert used(found) == ["gated_mlp"]
    assert f"tokens {TOKENS}, width {WIDTH}, hidden {2 * WIDTH}, outputs {WIDTH}, activation silu" in found.operators[0]


def test_gate_and_up_are_one_product_in_training():
    found = regions(Mlp(), train=True)[0]
    assert used(found)[:3] == ["matmul", "gated_activation", "matmul"]
    assert f"n {4 * WIDTH}" in found.operators[0]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("explicit", [True, False])
def test_attention_is_one_region_in_both_forms(explicit, kv_heads, causal):
    found = regions(Attention(explicit, kv_heads, causal), train=True)
    kinds = [r.kind for r in found]
    assert kinds.count("attention") == kinds.count("attention_backward") == 1
    assert kinds.count("rope") == 2
    text = next(r for r in found if r.kind == "attention").operators[0]
    sizes = (
        f"heads {2 * HEADS}, kv_heads {2 * kv_heads}, queries {TOKENS // 2}, keys {TOKENS // 2}, causal {int(causal)}"
    )
    assert sizes in text
    assert not [r for r in found if r.kind == "fallback"]


def test_one_query_over_a_cache_is_decode_attention():
    def decode(q):
        keys = torch.rand(2, 2, 300, 32)
        return functional.scaled_dot_product_attention(q, keys, keys, enable_gqa=True)

    found = next(r for r in regions(decode, shape=(2, HEADS, 1, 32)) if r.kind == "attention")
    assert "decode_attention (sequences 2, heads 4, kv_heads 2, context 300, depth 32" in found.operators[0]


def test_cross_entropy_and_embedding_have_kernels():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(500, WIDTH)

        def forward(self, x):
            numbers = torch.arange(TOKENS) % 500
            return functional.cross_entropy(self.table(numbers) @ self.table.weight.T, numbers)

    found = regions(Head(), train=True)
    assert {"embedding", "embedding_backward", "cross_entropy", "cross_entropy_backward"} <= {
        o for r in found for o in used(r)
    }
    assert f"cross_entropy (rows {TOKENS}, vocabulary 500) float32" in [o for r in found for o in r.operators]


@pytest.mark.parametrize(
    ("make", "operator"),
    [
        (lambda p: torch.optim.Adam(p, foreach=False), "adam"),
        (lambda p: torch.optim.AdamW(p, foreach=True), "adam"),
        (lambda p: torch.optim.AdamW(p, fused=True), "adam"),
        (lambda p: torch.optim.SGD(p, momentum=0.9), "chain"),
    ],
)
def test_an_optimiser_is_one_region_a_layer(make, operator):
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])})
    model.forward = lambda x: model["layers"][1](model["layers"][0](x))
    with trnsim.torch.device("trn2") as chip:
        optimizer = make(model.parameters())
        for _ in range(2):
            model(torch.rand(4, 32)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    found = [r for r in chip.report().regions[-1] if r.phase == "optimizer"]
    assert [r.module for r in found] == ["layers.0", "layers.1"]
    assert [used(r) for r in found] == [[operator]] * 2
    if operator == "adam":
        assert found[0].operators == (f"adam (elements {32 * 32 + 32}) float32",)


def test_chains_do_not_close_over_other_work():
    """x feeds both the product and the sum behind it: the two element-wise calls cannot be one region."""
    weight = nn.Parameter(torch.rand(WIDTH, WIDTH))

    def function(x):
        y = x * 2
        return (y @ weight).relu() @ weight + y

    found = regions(function)
    order = {}
    for place, region in enumerate(found):
        order.update(dict.fromkeys(region.aten, place))
    assert order["aten.mul.Tensor"] < order["aten.relu.default"] <= order["aten.add.Tensor"]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("mixer", [Mlp, Attention])
def test_times_are_equal_at_all_depths(mixer, train):
    times = []
    for depth in ("fast", "exact", "shape"):
        torch.manual_seed(0)
        found = regions(Block(mixer()), train=train, depth=depth)
        times.append([(r.kind, r.operators, r.time_ps, r.busy_ps) for r in found])
    assert times[0] == times[1] == times[2]


@pytest.mark.parametrize("implementation", ["kernel", "compiler"])
def test_regions_take_at_most_what_their_calls_take(implementation):
    for region in regions(Block(Mlp()), train=True, implementation=implementation):
        assert 0 < region.time_ps <= region.unfused_ps
        assert max(region.busy_ps.values()) <= region.time_ps * (1 + 1e-9)


@pytest.mark.parametrize(
    ("chip", "format", "operator"),
    [
        ("trn2", "float32", "float32"),
        ("trn2", "fp16", "float16"),
        ("trn2", "fp8", "float8_e4m3"),
        ("trn3", "mxfp8", "float8_e4m3fn_x4"),
    ],
)
def test_products_are_priced_in_the_format_of_the_policy(chip, format, operator):
    with trnsim.torch.device(chip, depth="shape", format=format) as device:
        nn.Linear(256, 256, bias=False)(torch.rand(64, 256))
        with trnsim.torch.autocast("bf16"):
            nn.Linear(256, 256, bias=False)(torch.rand(64, 256))
    products = [o for region in device.report().regions for r in region for o in r.operators if o.startswith("matmul")]
    assert [text.rpartition(" ")[2] for text in products] == [operator, "bfloat16"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_is_a_phase_of_its_own(reentrant):
    from torch.utils.checkpoint import checkpoint

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block(Attention()), Block(Mlp())])

        def forward(self, x):
            x = x.requires_grad_()
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return x

    found = regions(Again(), train=True)
    ahead, again = ([r.kind for r in found if r.phase == phase] for phase in ("forward", "recompute"))
    assert "attention" in again
    assert set(again) <= set(ahead)
    assert not [r for r in found if r.kind == "fallback"]
    assert {r.module.split(".")[1] for r in found if r.phase == "recompute"} == {"0", "1"}


def test_a_convolution_is_the_product_of_its_patches():
    found = regions(nn.Conv2d(3, 16, 4, 4), train=True, shape=(2, 3, 32, 32))
    products = [o for r in found for o in r.operators if o.startswith("matmul")]
    assert products[0] == "matmul (m 128, k 48, n 16, contract_lhs 1) bfloat16"
    assert products[1] == "matmul (m 48, k 128, n 16, contract_lhs 0) bfloat16"
