"""Multi-head, multi-query and grouped-query attention, full or over a window."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trnsim.workloads.operators import Exchange, Pass, Step, Use, seen
from trnsim.workloads.parts.base import Kept, joined, norm, product
from trnsim.workloads.weights import COLUMN, ROW, Count, Weight, ceil_div, vector

# Products of one input, which run as one.
_INTO = ("attention.query", "attention.key", "attention.value", "attention.gate")


@dataclass(frozen=True)
class Attention:
    """softmax(Q K^T) V of ``heads`` query heads over ``kv_heads`` heads of keys and values.

    Attributes:
        hidden, heads, kv_heads: as configs have them; ``size`` of a head's queries and keys, ``value_size`` of its
            values.
        window: a query sees its last ``window`` tokens; 0: all. ``chunk``: only those of its own chunk of as many.
        bias, output_bias: of the query, key and value products, and of the output's.
        norm: of queries and keys: ``head`` (one vector for a head), ``all`` (over all heads); ``norm_bias``: with
            offsets.
        rotary: elements of a head that are turned; 0: none.
        gate: a gate of the output: ``element`` or ``head`` (as many outputs), or none; ``gate_bias``: with
            an offset where the products have one.
        sinks: one more logit a head.
        same_values: values are the keys, before their norm (Gemma 4).
        shared_cache: keys and values come from an earlier layer (Gemma 4): no weights, no cache.
        causal: tokens see what is before them only.
    """

    hidden: int
    heads: int
    kv_heads: int
    size: int
    value_size: int
    window: int = 0
    chunk: int = 0
    bias: bool = False
    output_bias: bool = False
    norm: str = ""
    norm_bias: bool = False
    norm_kind: str = "rms"
    rotary: int = 0
    gate: str = ""
    gate_bias: bool = True
    sinks: bool = False
    same_values: bool = False
    shared_cache: bool = False
    causal: bool = True

    name = "attention"

    @property
    def weights(self) -> tuple[Weight, ...]:
        h, q, kv = self.hidden, self.heads * self.size, self.kv_heads * self.size
        found = [Weight("attention.query", h, q, shard=COLUMN, units=self.heads, bias=self.bias)]
        if not self.shared_cache:
            found.append(Weight("attention.key", h, kv, shard=COLUMN, units=self.kv_heads, bias=self.bias))
            if not self.same_values:
                width = self.kv_heads * self.value_size
                found.append(Weight("attention.value", h, width, shard=COLUMN, units=self.kv_heads, bias=self.bias))
        out = self.heads * self.value_size
        if self.gate:
            width = out if self.gate == "element" else self.heads
            found.append(
                Weight("attention.gate", h, width, shard=COLUMN, units=self.heads, bias=self.bias and self.gate_bias)
            )
        found.append(Weight("attention.output", out, h, shard=ROW, units=self.heads, bias=self.output_bias))
        if self.norm:
            whole = self.norm == "all"
            widths = (q if whole else self.size, *(() if self.shared_cache else (kv if whole else self.size,)))
            units = (self.heads, self.kv_heads)
            for name, width, unit in zip(("query", "key"), widths, units, strict=False):
                for offset in ("", "_bias")[: 1 + self.norm_bias]:
                    shard = (COLUMN, unit) if whole else ("replicated", 0)
                    found.append(vector(f"attention.{name}_norm{offset}", width, *shard))
        if self.sinks:
            found.append(vector("attention.sinks", self.heads, COLUMN, self.heads))
        return tuple(found)

    @property
    def span(self) -> int:
        """Tokens that a query sees at most; 0: all."""
        return self.window

    def _pieces(self, keys: Count) -> Count:
        """Chunks of a sequence, taken as equal; 1 where it is shorter than one."""
        whole = keys / self.chunk
        return (whole + 1 + abs(whole - 1)) / 2

    def _chunked(self, p: Pass) -> Pass:
        """The pass as attention sees it: chunks are sequences of their own; decoding is in the middle of one."""
        if not self.chunk:
            return p
        if p.decoding:
            return replace(p, keys=self._in_chunk(p.keys))
        pieces = self._pieces(p.keys)
        return replace(p, sequences=p.sequences * pieces, queries=p.queries / pieces, keys=p.keys / pieces)

    def _in_chunk(self, keys: Count) -> Count:
        """Tokens that the newest one sees on average."""
        return keys - (keys > self.chunk) * (keys - (self.chunk + 1) / 2)

    def forward(self, p: Pass) -> Step:
        into = [w for w in self.weights if w.kind == "matmul" and w.name in _INTO]
        step: Step = [joined(into, p, "attention.query_key_value")]
        heads, kv = ceil_div(self.heads, p.tp), ceil_div(self.kv_heads, p.tp)
        both = [("query", heads), *(() if self.shared_cache else (("key", kv),))]
        if self.norm:
            for name, count in both:
                rows, width = (p.tokens, count * self.size) if self.norm == "all" else (p.tokens * count, self.size)
                step.append(norm(self.norm_kind, rows, width, p, f"attention.{name}_norm"))
        if self.rotary:
            for name, count in both:
                sizes = {"tokens": p.tokens, "heads": count, "depth": self.rotary}
                step.append(Use("rope", sizes, p.dtype, f"attention.{name}_rope"))
        seeing = self._chunked(p)
        step += attend(seeing, heads, kv, self.size, self.value_size, self.span, self.causal and p.causal)
        if self.gate:
            width = heads * self.value_size
            step.append(Use("gated_activation", {"rows": p.tokens, "width": width}, p.dtype, "attention.gated"))
        step.append(product(self.weights[self._output], p))
        return step

    @property
    def _output(self) -> int:
        return [w.name for w in self.weights].index("attention.output")

    def kept(self, p: Pass) -> list[Kept]:
        heads, kv, a = ceil_div(self.heads, p.tp), ceil_div(self.kv_heads, p.tp), p.itemsize
        into = [Kept("attention.query", p.tokens * heads * self.size * a)]
        if not self.shared_cache:
            into.append(Kept("attention.key_value", p.tokens * kv * (self.size + self.value_size) * a))
        if self.norm:
            into.append(Kept("attention.norms", p.tokens * (heads + kv) * self.size * a))
        if self.gate:
            into.append(Kept("attention.gate", 2 * p.tokens * heads * self.value_size * a))
        return [*into, *kept_scores(p, heads, self.value_size)]

    def cache_elements(self, keys: Count, tp: Count) -> Count:
        if self.shared_cache:
            return 0 * keys
        held = self.window or self.chunk
        tokens = (keys + held - abs(keys - held)) / 2 if held else keys
        return tokens * ceil_div(self.kv_heads, tp) * (self.size + self.value_size)

    def state_bytes(self, tp: Count) -> Count:
        return 0 * tp

    def pairs(self, queries: Count, keys: Count) -> Count:
        sizes = {"queries": queries, "keys": keys, "window": self.span, "causal": int(self.causal)}
        pieces: Count = 1
        if self.chunk:
            pieces = self._pieces(keys)
            # A single query is in the middle of a chunk; more are spread over all of them.
            few = queries < pieces
            pieces = pieces - few * (pieces - 1)
            sizes |= {"queries": queries / pieces, "keys": few * self._in_chunk(keys) + (1 - few) * keys / pieces}
        return 2 * self.heads * pieces * seen(sizes) * (self.size + self.value_size)


@dataclass(frozen=True)
class IndexedAttention(Attention):
    """Grouped-query attention to the tokens that an indexer chooses (MiniMax-M3): ``index_heads`` queries, one key."""

    index_heads: int = 0
    index_size: int = 0
    chosen: int = 0

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (
            *super().weights,
            Weight("indexer.query", self.hidden, self.index_heads * self.index_size),
            Weight("indexer.key", self.hidden, self.index_size),
            vector("indexer.query_norm", self.index_size),
            vector("indexer.key_norm", self.index_size),
        )

    @property
    def span(self) -> int:
        return self.chosen

    def forward(self, p: Pass) -> Step:
        scores = index_scores(p, self.index_heads, self.index_size, p.keys)
        named = {w.name: w for w in self.weights}
        into = joined((named["indexer.query"], named["indexer.key"]), p, "indexer.query_key")
        return [into, scores, *super().forward(p)]

    def cache_elements(self, keys: Count, tp: Count) -> Count:
        return super().cache_elements(keys, tp) + keys * self.index_size

    def pairs(self, queries: Count, keys: Count) -> Count:
        scores = seen({"queries": queries, "keys": keys, "causal": 1})
        return super().pairs(queries, keys) + 2 * self.index_heads * scores * self.index_size


def attend(
    p: Pass,
    heads: Count,
    kv_heads: Count,
    size: int,
    value_size: int,
    window: int,
    causal: bool,
    latent: bool = False,
) -> Step:
    """Scores and values: from the cache where ``p.decoding``, else of all queries at once.

    Under context parallelism each rank has two pieces of a sequence, one from either end, so that all have the same
    work; keys and values come from the other ranks.
    """
    if p.decoding:
        keys = (p.keys + window - abs(p.keys - window)) / 2 if window else p.keys
        sizes = {"sequences": p.sequences * p.queries, "heads": heads, "kv_heads": kv_heads, "context": keys}
        sizes |= {"depth": size, "width": value_size} | ({"latent": 1} if latent else {})
        return [Use("decode_attention", sizes, p.cache_dtype or p.dtype, "attention.core")]
    common = {"heads": p.sequences * heads, "kv_heads": p.sequences * kv_heads, "depth": size, "width": value_size}
    alone = isinstance(p.cp, int) and p.cp == 1
    if alone or window or not causal:
        sizes = common | {"queries": p.queries, "keys": p.keys, "causal": int(causal)}
        step: Step = [Use("attention", sizes | ({"window": window} if window else {}), p.dtype, "attention.core")]
    else:
        piece = p.queries / 2
        own = common | {"queries": piece, "keys": piece, "causal": 1}
        others = common | {"queries": piece, "keys": piece * (2 * p.cp - 1), "causal": 0}
        step = [
            Use("attention", own, p.dtype, "attention.core", 2),
            Use("attention", others, p.dtype, "attention.core"),
        ]
    if not alone:
        whole = p.tokens * p.cp * kv_heads * (size + value_size) * p.itemsize
        step.insert(0, Exchange("all_gather", "cp", p.cp, whole, "attention.core"))
    return step


def index_scores(p: Pass, heads: Count, size: int, keys: Count) -> Use:
    """Scores of an indexer, which has one key a token for all its heads and no values."""
    sizes = {"sequences": p.sequences, "heads": p.sequences * heads, "queries": p.queries, "keys": keys, "depth": size}
    return Use("index_scores", sizes | {"causal": 1}, p.dtype, "indexer.scores")


def kept_scores(p: Pass, heads: Count, value_size: int) -> list[Kept]:
    """What the backward pass of scores, softmax and values needs beside queries, keys and values."""
    found = [Kept("attention.result", p.tokens * heads * value_size * p.itemsize)]
    if p.flash:
        return [*found, Kept("attention.sums", p.tokens * heads * 4, core=True)]
    # The softmax, its dropout's mask of a byte, and what the dropout leaves (Korthikanti et al., section 4.1).
    scores = p.tokens * heads * p.keys
    return [*found, Kept("attention.scores", scores * (2 * p.itemsize + 1 if p.dropout else p.itemsize), core=True)]
