"""Feed-forward networks: dense ones, and mixtures of experts with a router, shared experts and a latent in between."""

from __future__ import annotations

from dataclasses import dataclass

from trnsim.workloads.operators import Exchange, Pass, Step, Use
from trnsim.workloads.parts.base import Kept, multiply, norm, product
from trnsim.workloads.weights import COLUMN, ROW, Count, Weight, ceil_div, vector


@dataclass(frozen=True)
class Dense:
    """down(activation(gate) * up) if ``gated``, else down(activation(up))."""

    hidden: int
    inner: int
    gated: bool = True
    bias: bool = False
    trained_activation: int = 0

    name = "mlp"

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (
            *_network("mlp", self.hidden, self.inner, self.gated, self.bias),
            *(vector("mlp.activation", 1) for _ in range(self.trained_activation)),
        )

    def forward(self, p: Pass) -> Step:
        inner = ceil_div(self.inner, p.tp)
        return network("mlp", p, p.tokens, self.hidden, inner, self.gated)

    def kept(self, p: Pass) -> list[Kept]:
        inner = ceil_div(self.inner, p.tp)
        return _inner("mlp", p.tokens * inner, self.gated, p)

    def cache_elements(self, keys: Count, tp: Count) -> Count:
        return 0 * keys * tp

    def state_bytes(self, tp: Count) -> Count:
        return 0 * tp

    def pairs(self, queries: Count, keys: Count) -> Count:
        return 0 * queries * keys


@dataclass(frozen=True)
class Experts:
    """A mixture of experts.

    Attributes:
        experts, active: there are, and a token passes.
        inner: of an expert. ``bias``: of experts and router.
        shared: width of the experts that every token passes, all together; ``shared_gate``: scaled by a gate;
            ``shared_gated``: as ``gated``, by default the same.
        latent: experts work on as many elements, into which and out of which a product leads (Nemotron 3); 0: none.
        score_bias: an offset of the router's scores that is a parameter (elsewhere it is a buffer, and not counted).
        dense: width of a dense network beside the experts, with norms of its own (Gemma 4); 0: none.
    """

    hidden: int
    experts: int
    active: int
    inner: int
    gated: bool = True
    bias: bool = False
    shared: int = 0
    shared_gate: bool = False
    latent: int = 0
    score_bias: bool = False
    dense: int = 0
    router_scales: bool = False

    name = "experts"

    @property
    def width(self) -> int:
        """What an expert takes and gives."""
        return self.latent or self.hidden

    @property
    def weights(self) -> tuple[Weight, ...]:
        e, k = self.experts, self.active
        found = [Weight("router", self.hidden, e, bias=self.bias)]
        if self.score_bias:
            found.append(vector("router.offsets", e))
        if self.router_scales:
            found += [vector("router.scale", self.hidden), vector("router.expert_scales", e)]
        if self.latent:
            found += [Weight("experts.into", self.hidden, self.latent), Weight("experts.out", self.latent, self.hidden)]
        found += [
            Weight(w.name, w.k, w.n, w.kind, w.shard, w.units, w.bias, e, k)
            for w in _network("experts", self.width, self.inner, self.gated, self.bias)
        ]
        if self.shared:
            found += _network("shared", self.hidden, self.shared, self.gated, False)
        if self.shared_gate:
            found.append(Weight("shared.gate_weight", self.hidden, 1))
        if self.dense:
            found += _network("mlp", self.hidden, self.dense, self.gated, False)
            found += [vector(f"experts.norm_{i}", self.hidden) for i in range(3)]
        return tuple(found)

    def tokens(self, p: Pass) -> Count:
        """Rows that the experts of a rank have, routed evenly.

        Dispatched tokens come from ranks that hold others each; ranks of ``expert_tp`` have the same. Where all ranks
        hold the same tokens (``p.replicated``), each takes those of its experts.
        """
        if p.replicated:
            return ceil_div(p.tokens * self.active, p.ep)
        return p.rows * p.expert_tp * self.active

    def forward(self, p: Pass) -> Step:
        a, m = p.itemsize, self.tokens(p)
        local = ceil_div(self.experts, p.ep)
        step: Step = [
            Use(
                "router",
                {"tokens": p.rows, "width": self.hidden, "experts": self.experts, "k": self.active},
                p.dtype,
                "router",
            )
        ]
        if self.latent:
            step.append(multiply(p, "experts.into", p.rows, self.hidden, self.latent))
        moved = p.rows * self.active * self.width * a
        step.append(Use("permute", {"rows": p.rows * self.active, "width": self.width}, p.dtype, "experts.dispatch"))
        if not p.replicated:
            step += [
                Exchange("all_to_all", "ep", p.ep, moved, "experts.dispatch"),
                Exchange("all_gather", "expert_tp", p.expert_tp, moved * p.expert_tp, "experts.dispatch"),
            ]
        # Experts that have a token at all, if every token chose at random.
        everyone = p.tokens if p.replicated else p.rows * p.ep * p.expert_tp
        hit = local * (1 - (1 - self.active / self.experts) ** everyone)
        inner = ceil_div(self.inner, p.expert_tp)
        common = {"tokens": m, "experts": local, "hit": hit}
        into = common | {"k": self.width, "n": inner * (2 if self.gated else 1)}
        step += [
            Use("grouped_matmul", into, p.products, "experts.up", weight_dtype=p.weight_dtype),
            _activation(m, inner, self.gated, p, "experts.activation"),
            Use(
                "grouped_matmul",
                common | {"k": inner, "n": self.width},
                p.products,
                "experts.down",
                weight_dtype=p.weight_dtype,
            ),
        ]
        if not p.replicated:
            step += [
                Exchange("reduce_scatter", "expert_tp", p.expert_tp, moved * p.expert_tp, "experts.combine"),
                Exchange("all_to_all", "ep", p.ep, moved, "experts.combine"),
            ]
        step.append(Use("combine", {"rows": p.rows * self.active, "width": self.width}, p.dtype, "experts.combine"))
        if self.latent:
            step.append(multiply(p, "experts.out", p.rows, self.latent, self.hidden))
        if self.shared:
            step += network("shared", p, p.tokens, self.hidden, ceil_div(self.shared, p.tp), self.gated)
        if self.shared_gate:
            step.append(product(Weight("shared.gate_weight", self.hidden, 1), p, p.rows))
        if self.dense:
            step += network("mlp", p, p.tokens, self.hidden, ceil_div(self.dense, p.tp), self.gated)
            step += [norm("rms", p.rows, self.hidden, p, "experts.norm")] * 3
        return step

    def kept(self, p: Pass) -> list[Kept]:
        a, m = p.itemsize, self.tokens(p)
        found = [
            Kept("router", p.rows * (self.experts * 4 + self.active * 8)),
            # Their inputs, what is between, and their results, which the router's weights scale.
            *_inner("experts", m * ceil_div(self.inner, p.expert_tp), self.gated, p),
            Kept("experts.rows", m * self.width * (a + p.cast_bytes)),
        ]
        if self.latent:
            found.append(Kept("experts.latent", p.rows * 2 * self.latent * a))
        inner = ceil_div(self.shared, p.tp) + ceil_div(self.dense, p.tp)
        found += _inner("shared", p.tokens * inner, self.gated, p)
        if self.shared_gate:
            found.append(Kept("shared.output", p.rows * self.hidden * a))
        return found

    def cache_elements(self, keys: Count, tp: Count) -> Count:
        return 0 * keys * tp

    def state_bytes(self, tp: Count) -> Count:
        return 0 * tp

    def pairs(self, queries: Count, keys: Count) -> Count:
        return 0 * queries * keys


def _inner(name: str, elements: Count, gated: bool, p: Pass) -> list[Kept]:
    """Kept inside a network: what goes into the activation, and what comes out, as a product takes it."""
    into = Kept(f"{name}.inner", elements * (2 if gated else 1) * p.itemsize)
    return [into, Kept(f"{name}.activated", elements * p.cast_bytes, again=True)]


def _network(name: str, hidden: int, inner: int, gated: bool, bias: bool) -> list[Weight]:
    up = [Weight(f"{name}.{role}", hidden, inner, shard=COLUMN, bias=bias) for role in ("gate", "up")[1 - gated :]]
    return [*up, Weight(f"{name}.down", inner, hidden, shard=ROW, bias=bias)]


def network(name: str, p: Pass, tokens: Count, hidden: int, inner: Count, gated: bool) -> Step:
    """The operators of a network of which a rank has ``inner``: one where ``p.fused``, else three."""
    if p.fused:
        sizes = {"tokens": tokens, "width": hidden, "hidden": inner, "outputs": hidden}
        return [Use("gated_mlp" if gated else "mlp", sizes, p.products, name, weight_dtype=p.weight_dtype)]
    return [
        multiply(p, f"{name}.up", tokens, hidden, inner * (2 if gated else 1)),
        _activation(tokens, inner, gated, p, f"{name}.activation"),
        multiply(p, f"{name}.down", tokens, inner, hidden),
    ]


def _activation(rows: Count, width: Count, gated: bool, p: Pass, where: str) -> Use:
    return Use("gated_activation" if gated else "elementwise", {"rows": rows, "width": width}, p.dtype, where)
