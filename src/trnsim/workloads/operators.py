"""Operators and exchanges of a step as plain data.

A ``Use`` names an operator as the kernels' contracts do, with its sizes; an ``Exchange`` is a collective at its place
between them. Sizes may be arrays, one element a layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trnsim.errors import InternalError
from trnsim.numerics import as_dtype

from .weights import Count, ceil_div

FORWARD, RECOMPUTE, BACKWARD, OPTIMIZER = "forward", "recompute", "backward", "optimizer"


@dataclass(frozen=True)
class Use:
    """One operator on one rank.

    Attributes:
        operator: ``matmul``, ``attention``, ``rmsnorm`` ...
        sizes: by the names that the contracts in ``trnsim.kernels`` have, with options such as ``causal`` or
            ``residual``. A grouped matmul's ``hit`` are the experts that have a token, on average. Operators that no
            kernel stands for yet: ``conv``, ``linear_attention``, ``index_scores``, ``permute``, ``combine``.
        dtype: NKI's name of the format of its inputs; ``weight_dtype`` that of its weights, if another.
        count: how often, one after the other.
        phase: ``forward``, ``recompute``, ``backward`` or ``optimizer``.
        where: part of the layer, such as ``attention.query``.
    """

    operator: str
    sizes: Mapping[str, Count]
    dtype: str
    where: str
    count: Count = 1
    phase: str = FORWARD
    weight_dtype: str = ""

    @property
    def flops(self) -> Count:
        """Of the mathematics, two a multiplication and addition; causal attention counts what is not masked."""
        if self.operator not in FLOPS:
            raise InternalError(f"no FLOPs known of {self.operator}")
        return FLOPS[self.operator](self.sizes) * self.count

    @property
    def hbm_bytes(self) -> Count:
        """What must cross HBM at least. Products of 8 bits and less give 16."""
        into, out, weights = elements(self)
        size = format_bytes(self.dtype)
        result = max(size, 2) if self.operator in PRODUCTS else size
        return (into * size + out * result + weights * format_bytes(self.weight_dtype or self.dtype)) * self.count


@dataclass(frozen=True)
class Exchange:
    """One collective.

    Attributes:
        operation: ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all``, ``send_receive``.
        group: ``tp``, ``ep``, ``cp``, ``dp``, ``expert_dp``, ``pp``: the ranks that take part.
        ranks: how many.
        bytes: of the whole tensor: what an all-reduce sums, an all-gather ends with, a reduce-scatter starts with;
            what a rank holds before an all-to-all or sends to the next.
        where: part of the layer after or before which it stands.
    """

    operation: str
    group: str
    ranks: Count
    bytes: Count
    where: str
    count: Count = 1
    phase: str = FORWARD


Step = list["Use | Exchange"]


def format_bytes(dtype: str) -> float:
    """Bytes of one element with its share of a scale."""
    return SCALED_BYTES[dtype] if dtype in SCALED_BYTES else as_dtype(dtype).itemsize


# OCP Microscaling Formats 1.0: an E8M0 scale for 32 elements. NVFP4: an E4M3 scale for 16. int4: a bfloat16 scale for
# 32,
# as Kimi K2.5 is stored. Scales of fp8 and int8, one a block of 128 x 128 or a channel, are left out.
SCALED_BYTES = {
    "mxfp8": 1 + 1 / 32,
    "mxfp4": 1 / 2 + 1 / 32,
    "nvfp4": 1 / 2 + 1 / 16,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 1 / 2 + 2 / 32,
}


def seen(sizes: Mapping[str, Count]) -> Count:
    """Pairs of a query and a key that it sees, of one head.

    Causal queries are the last ``queries`` of ``keys`` tokens. A window lets a query see its last ``window`` tokens.
    """
    queries, keys = sizes["queries"], sizes["keys"]
    if not sizes.get("causal", 0):
        return queries * _least(keys, sizes.get("window", 0))
    window = sizes.get("window", 0)
    total = queries * keys - queries * (queries - 1) / 2
    if not window:
        return total
    # Query i (from 0) would see keys - queries + 1 + i; those past the window are cut off.
    first = keys - queries + 1 - window
    cut = _ramp(first + queries - 1) - _ramp(first - 1)
    return total - cut


def _ramp(last: Count) -> Count:
    """1 + 2 + ... + last; 0 for what is below 1."""
    last = (last + abs(last)) / 2
    return last * (last + 1) / 2


def _least(keys: Count, window: Count) -> Count:
    return keys if not window else (keys + window - abs(keys - window)) / 2


def _attention(s: Mapping[str, Count]) -> Count:
    return 2 * s["heads"] * seen(s) * (s["depth"] + s["width"])


# FLOPs of each operator from its sizes. Element-wise work counts one an operation on an element; TensorE does none of
# it.
FLOPS: dict[str, Any] = {
    "matmul": lambda s: 2 * s["m"] * s["k"] * s["n"],
    "grouped_matmul": lambda s: 2 * s["tokens"] * s["k"] * s["n"],
    "gated_mlp": lambda s: 2 * s["tokens"] * s["hidden"] * (2 * s["width"] + s["outputs"]),
    "mlp": lambda s: 2 * s["tokens"] * s["hidden"] * (s["width"] + s["outputs"]),
    "attention": _attention,
    # Flash attention computes the scores again: five products for two.
    "attention_backward": lambda s: 2 * s["heads"] * seen(s) * (3 * s["depth"] + 2 * s["width"]),
    "decode_attention": lambda s: 2 * s["sequences"] * s["heads"] * s["context"] * (s["depth"] + s["width"]),
    "index_scores": lambda s: 2 * s["heads"] * seen(s) * s["depth"],
    "index_scores_backward": lambda s: 4 * s["heads"] * seen(s) * s["depth"],
    "rmsnorm": lambda s: 4 * s["rows"] * s["width"],
    "rmsnorm_backward": lambda s: 8 * s["rows"] * s["width"],
    "layernorm": lambda s: 6 * s["rows"] * s["width"],
    "layernorm_backward": lambda s: 12 * s["rows"] * s["width"],
    "rope": lambda s: 6 * s["tokens"] * s["heads"] * s["depth"] / 2,
    "router": lambda s: 2 * s["tokens"] * s["width"] * s["experts"],
    "embedding": lambda s: 0 * s["tokens"],
    "embedding_backward": lambda s: s["tokens"] * s["width"],
    "cross_entropy": lambda s: 4 * s["rows"] * s["vocabulary"],
    "cross_entropy_backward": lambda s: 4 * s["rows"] * s["vocabulary"],
    "gated_activation": lambda s: 5 * s["rows"] * s["width"],
    "gated_activation_backward": lambda s: 10 * s["rows"] * s["width"],
    "elementwise": lambda s: 3 * s["rows"] * s["width"],
    "activation_backward": lambda s: 6 * s["rows"] * s["width"],
    "permute": lambda s: 0 * s["rows"],
    "combine": lambda s: 2 * s["rows"] * s["width"],
    "quantize_rows": lambda s: 3 * s["rows"] * s["width"],
    "quantize_mxfp8": lambda s: 3 * s["k"] * s["n"],
    "quantize_mxfp4": lambda s: 3 * s["k"] * s["n"],
    "adam": lambda s: 16 * s["elements"],
    "conv": lambda s: 2 * s["tokens"] * s["channels"] * s["taps"],
    "conv_backward": lambda s: 4 * s["tokens"] * s["channels"] * s["taps"],
    # A state of [depth, width] a head: decayed, corrected (delta rule), written and read for each token.
    "linear_attention": lambda s: 2 * s["tokens"] * s["heads"] * s["depth"] * s["width"] * s["passes"],
    "linear_attention_backward": lambda s: 4 * s["tokens"] * s["heads"] * s["depth"] * s["width"] * s["passes"],
}


# Operators of the tensor engine, whose FLOPs utilisation counts.
PRODUCTS = frozenset(
    {"matmul", "grouped_matmul", "gated_mlp", "mlp", "attention", "attention_backward", "decode_attention", "router"}
    | {"index_scores", "index_scores_backward"}
    | {"conv", "conv_backward", "linear_attention", "linear_attention_backward"}
)


def elements(use: Use) -> tuple[Count, Count, Count]:
    """Elements that an operator must move at least: (activations in, activations out, weights)."""
    s, name = use.sizes, use.operator
    if name == "matmul":
        into, other, out = s["m"] * s["k"], s["k"] * s["n"], s["m"] * s["n"]
        return (into, out, other) if use.phase in (FORWARD, RECOMPUTE) else (into + other, out, 0)
    if name == "grouped_matmul":
        # An expert that has no token is not loaded.
        return s["tokens"] * s["k"], s["tokens"] * s["n"], s["hit"] * s["k"] * s["n"]
    if name in ("gated_mlp", "mlp"):
        up = s["width"] * (2 if name == "gated_mlp" else 1)
        return s["tokens"] * s["width"], s["tokens"] * s["outputs"], s["hidden"] * (up + s["outputs"])
    if name in ("attention", "attention_backward"):
        passes = 1 if name == "attention" else 2
        keys = s["kv_heads"] * s["keys"] * (s["depth"] + s["width"])
        queries, results = s["heads"] * s["queries"] * s["depth"], s["heads"] * s["queries"] * s["width"]
        return (keys + queries) * passes, results * passes, 0
    if name == "decode_attention":
        cache = s["kv_heads"] * s["context"] * (s["depth"] + (0 if s.get("latent", 0) else s["width"]))
        return s["sequences"] * (cache + s["heads"] * s["depth"]), s["sequences"] * s["heads"] * s["width"], 0
    if name.startswith("index_scores"):
        return (s["heads"] * s["queries"] + s["sequences"] * s["keys"]) * s["depth"], 0, 0
    if name.startswith("linear_attention"):
        state = s["sequences"] * s["heads"] * s["depth"] * s["width"]
        each = s["tokens"] * s["heads"] * (s["depth"] + s["width"])
        return each + state, each + state, 0
    if name in ("embedding", "embedding_backward"):
        return s["tokens"] * s["width"], s["tokens"] * s["width"], 0
    if name == "router":
        return s["tokens"] * s["width"], 0, s["width"] * s["experts"]
    if name == "rope":
        return s["tokens"] * s["heads"] * s["depth"], s["tokens"] * s["heads"] * s["depth"], 0
    if name == "adam":
        return 4 * s["elements"], 3 * s["elements"], 0  # gradient, weight and moments; weight and moments
    if name.startswith("conv"):
        return s["tokens"] * s["channels"], s["tokens"] * s["channels"], 0
    if name.startswith("cross_entropy"):
        every = s["rows"] * s["vocabulary"]
        return every, every if name.endswith("_backward") else 0, 0
    if name.startswith("quantize_mx"):
        return s["k"] * s["n"], s["k"] * s["n"], 0
    inputs = {"gated_activation": 2, "gated_activation_backward": 3, "activation_backward": 2}
    usual = 2 if name.endswith("_backward") or s.get("residual", 0) else 1
    outputs = 2 if name == "gated_activation_backward" else 1
    return inputs.get(name, usual) * s["rows"] * s["width"], outputs * s["rows"] * s["width"], 0


def quantized(step: Iterable[Use | Exchange], dtype: str) -> Step:
    """A step with what brings the inputs of products to the format of the products, from ``dtype``."""
    found: Step = []
    for item in step:
        if (
            isinstance(item, Use)
            and item.operator in ("matmul", "grouped_matmul", "gated_mlp", "mlp")
            and item.dtype != dtype
        ):
            rows = item.sizes["m"] if item.operator == "matmul" else item.sizes["tokens"]
            width = item.sizes["k"] if "k" in item.sizes else item.sizes["width"]
            found.append(quantization(item, rows, width, dtype))
        found.append(item)
    return found


def quantization(of: Use, rows: Count, width: Count, dtype: str) -> Use:
    """The operator that brings [rows, width] to the format of a product."""
    where = f"{of.where}.quantized"
    if of.dtype in ("mxfp8", "mxfp4"):
        return Use(f"quantize_{of.dtype}", {"k": width, "n": rows}, dtype, where, of.count, of.phase)
    return Use("quantize_rows", {"rows": rows, "width": width}, dtype, where, of.count, of.phase)


def multiplied(step: Iterable[Use | Exchange], count: Count) -> Step:
    """A step that happens ``count`` times."""
    return [replace(item, count=item.count * count) for item in step]


@dataclass(frozen=True)
class Pass:
    """What a rank has in hand as one layer runs.

    Attributes:
        sequences: of the batch, that this rank works on.
        queries: tokens of each that are new, on this rank (a share of the sequence under context parallelism).
        keys: tokens of each that the last query sees, itself included.
        tp, cp, ep, expert_tp: ranks of tensor, context and expert parallelism.
        sequence_parallel: outside of products, ranks of ``tp`` hold a share of the tokens each.
        dtype: of activations; ``product_dtype`` of the products of layers with weights, ``weight_dtype`` of their
            weights, if others; ``cache_dtype`` of keys and values.
        decoding: one new token a sequence, keys and values from the cache.
        fused: a feed-forward network is one operator, as serving has it; training keeps what is between.
        replicated: ranks of ``ep`` hold the same tokens (serving without attention data parallelism): no dispatch.
        dropout: masks are kept for the backward pass.
        flash: scores stay on chip; otherwise they and their softmax are kept.
    """

    sequences: Count
    queries: Count
    keys: Count
    tp: Count = 1
    cp: Count = 1
    ep: Count = 1
    expert_tp: Count = 1
    sequence_parallel: bool = False
    dtype: str = "bfloat16"
    product_dtype: str = ""
    weight_dtype: str = ""
    cache_dtype: str = ""
    decoding: bool = False
    fused: bool = False
    causal: bool = True
    dropout: bool = False
    flash: bool = True
    replicated: bool = False

    @property
    def tokens(self) -> Count:
        """Of the products: all that the ranks of ``tp`` share."""
        return self.sequences * self.queries

    @property
    def rows(self) -> Count:
        """Outside of the products."""
        return ceil_div(self.tokens, self.tp) if self.sequence_parallel else self.tokens

    @property
    def products(self) -> str:
        """The format of products with weights."""
        return self.product_dtype or self.dtype

    @property
    def itemsize(self) -> int:
        return as_dtype(self.dtype).itemsize

    @property
    def cast_bytes(self) -> float:
        """Of an element as products take it: what they keep for their weights' gradients is kept so."""
        return format_bytes(self.products)
