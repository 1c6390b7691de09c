"""Attention over compressed tokens (DeepSeek-V4): one key head, a window, and one key for every few tokens before it.

Keys are values. Every ``ratio`` tokens a learned mean of them becomes one key; where an indexer exists (ratio 4) a
query sees the ``chosen`` best of those, else all. The result passes a grouped low-rank product. Facts: configuration
and modules of ``deepseek_v4`` in transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trnsim.workloads.operators import Pass, Step, Use, seen
from trnsim.workloads.parts.attention import attend, index_scores, kept_scores
from trnsim.workloads.parts.base import Kept, norm, product
from trnsim.workloads.weights import COLUMN, ROW, Count, Weight, ceil_div, vector


@dataclass(frozen=True)
class CompressedAttention:
    """``ratio`` 0: the window alone; ``index_heads`` 0: no indexer; ``groups`` of ``output_rank`` before the output."""

    hidden: int
    heads: int
    size: int
    rotary: int
    query_rank: int
    window: int
    groups: int
    output_rank: int
    ratio: int = 0
    index_heads: int = 0
    index_size: int = 0
    chosen: int = 0

    name = "attention"

    @property
    def weights(self) -> tuple[Weight, ...]:
        h, d = self.hidden, self.size
        out = self.groups * self.output_rank
        found = [
            vector("attention.sinks", self.heads, COLUMN, self.heads),
            Weight("attention.query_latent", h, self.query_rank),
            vector("attention.query_norm", self.query_rank),
            Weight("attention.query", self.query_rank, self.heads * d, shard=COLUMN, units=self.heads),
            Weight("attention.key", h, d),
            vector("attention.key_norm", d),
            Weight("attention.output_latent", self.heads * d // self.groups, out, shard=COLUMN, units=self.groups),
            Weight("attention.output", out, h, shard=ROW, units=self.groups),
        ]
        if self.ratio:
            # With an indexer, blocks overlap: two keys a block are made and one is left.
            wide = d * (2 if self.index_heads else 1)
            found += _compressor("compressor", h, self.ratio, wide, d)
        if self.index_heads:
            found += _compressor("indexer", h, self.ratio, 2 * self.index_size, self.index_size)
            found += [
                Weight("indexer.query", self.query_rank, self.index_heads * self.index_size),
                Weight("indexer.weights", h, self.index_heads),
            ]
        return tuple(found)

    def _kept_keys(self, keys: Count) -> Count:
        """Compressed keys that a query sees of ``keys`` tokens."""
        if not self.ratio:
            return 0 * keys
        compressed = keys // self.ratio
        return (compressed + self.chosen - abs(compressed - self.chosen)) / 2 if self.index_heads else compressed

    def forward(self, p: Pass) -> Step:
        step: Step = [product(w, p) for w in self.weights if w.kind == "matmul" and w.name != "attention.output"]
        heads = ceil_div(self.heads, p.tp)
        step += [
            norm("rms", p.tokens, self.query_rank, p, "attention.query_norm"),
            norm("rms", p.tokens, self.size, p, "attention.key_norm"),
            Use("rope", {"tokens": p.tokens, "heads": heads + 1, "depth": self.rotary}, p.dtype, "attention.rope"),
        ]
        step += attend(p, heads, 1, self.size, self.size, self.window, True, latent=True)
        if self.ratio:
            step += self._compressed(p, heads)
        step.append(product(self.weights[[w.name for w in self.weights].index("attention.output")], p))
        return step

    def _compressed(self, p: Pass, heads: Count) -> Step:
        """Scores of compressed keys; a query of a prefill sees half of them on average."""
        step: Step = []
        if self.index_heads:
            found = index_scores(
                p, self.index_heads, self.index_size, p.keys // self.ratio * (1 if p.decoding else 0.5)
            )
            step.append(replace(found, sizes={**found.sizes, "causal": 0}))
        sizes = {"kv_heads": 1, "depth": self.size, "width": self.size}
        keys = self._kept_keys(p.keys)
        if p.decoding:
            sizes |= {"sequences": p.tokens, "heads": heads, "context": keys, "latent": 1}
            return [*step, Use("decode_attention", sizes, p.cache_dtype or p.dtype, "compressor.core")]
        sizes |= {"heads": p.sequences * heads, "kv_heads": p.sequences, "queries": p.queries, "keys": keys / 2}
        return [*step, Use("attention", sizes | {"causal": 0}, p.dtype, "compressor.core")]

    def kept(self, p: Pass) -> list[Kept]:
        heads, a = ceil_div(self.heads, p.tp), p.itemsize
        wide = sum(
            w.n for w in self.weights if w.kind == "matmul" and w.shard != COLUMN and w.name != "attention.output"
        )
        return [
            Kept("attention.query", p.tokens * heads * self.size * a),
            Kept("attention.latents", p.tokens * (wide + self.query_rank + self.size) * a),
            Kept("attention.output_latent", p.tokens * ceil_div(self.groups * self.output_rank, p.tp) * a),
            *kept_scores(p, heads, self.size),
        ]

    def cache_elements(self, keys: Count, tp: Count) -> Count:
        recent = (keys + self.window - abs(keys - self.window)) / 2
        compressed = keys // self.ratio if self.ratio else 0
        return recent * self.size + compressed * (self.size + (self.index_size if self.index_heads else 0)) + 0 * tp

    def state_bytes(self, tp: Count) -> Count:
        return 0 * tp

    def pairs(self, queries: Count, keys: Count) -> Count:
        sizes = {"queries": queries, "keys": keys, "window": self.window, "causal": 1}
        total = 4 * self.heads * seen(sizes) * self.size
        if self.ratio:
            mean = self._kept_keys(keys) * (1 - queries / keys / 2)
            total = total + 4 * self.heads * queries * mean * self.size
        if self.index_heads:
            mean = keys // self.ratio * (1 - queries / keys / 2)
            total = total + 2 * self.index_heads * queries * mean * self.index_size
        return total


def _compressor(name: str, hidden: int, ratio: int, wide: int, size: int) -> list[Weight]:
    return [
        vector(f"{name}.positions", ratio * wide),
        Weight(f"{name}.key", hidden, wide),
        Weight(f"{name}.gate", hidden, wide),
        vector(f"{name}.norm", size),
    ]
