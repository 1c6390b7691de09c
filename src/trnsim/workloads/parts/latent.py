"""Multi-head latent attention (DeepSeek-V2 and later): keys and values as one low-rank vector a token.

Prefill and training expand the latent to keys and values of every head; decoding multiplies the queries with the
expansion instead and attends to the latents themselves, as one key head that all query heads share (arXiv 2405.04434).
An indexer (DeepSeek-V3.2, GLM-5) chooses the tokens that are seen at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from trnsim.workloads.operators import Pass, Step, Use, seen
from trnsim.workloads.parts.attention import attend, index_scores, kept_scores
from trnsim.workloads.parts.base import Kept, joined, norm, product
from trnsim.workloads.weights import COLUMN, ROW, Count, Weight, ceil_div, vector


@dataclass(frozen=True)
class Indexer:
    """Scores of all tokens by a few small heads with one key each; the best ``chosen`` are seen.

    ``query_from``: what its queries are made of, the latent of the queries.
    """

    hidden: int
    query_from: int
    heads: int
    size: int
    chosen: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (
            Weight("indexer.query", self.query_from, self.heads * self.size),
            Weight("indexer.key", self.hidden, self.size),
            vector("indexer.key_norm", self.size),
            vector("indexer.key_norm_bias", self.size),
            Weight("indexer.weights", self.hidden, self.heads),
        )

    def forward(self, p: Pass) -> Step:
        step: Step = [product(w, p) for w in self.weights if w.kind == "matmul"]
        step.append(norm("layer", p.tokens, self.size, p, "indexer.key_norm"))
        step.append(index_scores(p, self.heads, self.size, p.keys))
        return step


@dataclass(frozen=True)
class LatentAttention:
    """MLA: queries through ``query_rank`` (0: directly), keys and values through ``rank``, ``rotary`` of a key shared.

    ``size`` is the part of a head without position, ``value_size`` that of its values. ``indexer_only``: the layer uses
    the choice of an earlier layer's indexer (GLM-5.2), so it has none and yet sees ``chosen`` tokens.
    """

    hidden: int
    heads: int
    query_rank: int
    rank: int
    size: int
    rotary: int
    value_size: int
    indexer: Indexer | None = None
    chosen: int = 0
    bias: bool = False

    name = "attention"

    @property
    def weights(self) -> tuple[Weight, ...]:
        h, key = self.hidden, self.size + self.rotary
        into = self.query_rank or h
        found = [
            Weight("attention.query", into, self.heads * key, shard=COLUMN, units=self.heads),
            Weight("attention.latent", h, self.rank + self.rotary, bias=self.bias),
            vector("attention.latent_norm", self.rank),
            Weight(
                "attention.expansion",
                self.rank,
                self.heads * (self.size + self.value_size),
                shard=COLUMN,
                units=self.heads,
            ),
            Weight("attention.output", self.heads * self.value_size, h, shard=ROW, units=self.heads, bias=self.bias),
        ]
        if self.query_rank:
            found[:0] = [
                Weight("attention.query_latent", h, self.query_rank, bias=self.bias),
                vector("attention.query_norm", self.query_rank),
            ]
        return (*found, *(self.indexer.weights if self.indexer else ()))

    @property
    def _seen(self) -> int:
        return self.indexer.chosen if self.indexer else self.chosen

    def _by_name(self) -> dict[str, Weight]:
        return {w.name: w for w in self.weights}

    def forward(self, p: Pass) -> Step:
        named, heads = self._by_name(), ceil_div(self.heads, p.tp)
        into = [named[name] for name in ("attention.query_latent", "attention.latent") if name in named]
        step: Step = [joined(into, p, "attention.latents")]
        if self.query_rank:
            step.append(norm("rms", p.tokens, self.query_rank, p, "attention.query_norm"))
        step += [
            product(named["attention.query"], p),
            norm("rms", p.tokens, self.rank, p, "attention.latent_norm"),
        ]
        for name, count in (("query", heads), ("key", 1)):
            sizes = {"tokens": p.tokens, "heads": count, "depth": self.rotary}
            step.append(Use("rope", sizes, p.dtype, f"attention.{name}_rope"))
        if self.indexer:
            step += self.indexer.forward(p)
        if p.decoding:
            # The expansion of the keys goes to the queries, that of the values to the result: a product a head each.
            absorbed = {"m": p.tokens, "k": self.size, "n": self.rank}
            step.append(Use("matmul", absorbed, p.dtype, "attention.expansion_keys", heads))
            step += attend(p, heads, 1, self.rank + self.rotary, self.rank, self._seen, True, latent=True)
            expanded = {"m": p.tokens, "k": self.rank, "n": self.value_size}
            step.append(Use("matmul", expanded, p.dtype, "attention.expansion_values", heads))
        else:
            step.append(product(named["attention.expansion"], p))
            step += attend(p, heads, heads, self.size + self.rotary, self.value_size, self._seen, True)
        step.append(product(named["attention.output"], p))
        return step

    def kept(self, p: Pass) -> list[Kept]:
        heads, a = ceil_div(self.heads, p.tp), p.itemsize
        key = self.size + self.rotary
        return [
            # A latent is kept before and after its norm.
            Kept("attention.latents", p.tokens * (2 * self.query_rank + 2 * self.rank + self.rotary) * a),
            Kept("attention.query", p.tokens * heads * key * a, again=True),
            Kept("attention.key_value", p.tokens * heads * (key + self.value_size) * a, again=True),
            *kept_scores(p, heads, self.value_size),
        ]

    def cache_elements(self, keys: Count, tp: Count) -> Count:
        """Every rank of ``tp`` holds all latents: heads share them."""
        indexed = self.indexer.size if self.indexer else 0
        return keys * (self.rank + self.rotary + indexed) + 0 * tp

    def state_bytes(self, tp: Count) -> Count:
        return 0 * tp

    def pairs(self, queries: Count, keys: Count) -> Count:
        window = self._seen
        sizes = {"queries": queries, "keys": keys, "window": window, "causal": 1}
        core = 2 * self.heads * seen(sizes) * (self.size + self.rotary + self.value_size)
        if self.indexer is None:
            return core
        return core + 2 * self.indexer.heads * seen(sizes | {"window": 0}) * self.indexer.size
