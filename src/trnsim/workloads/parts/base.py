"""What every part of a layer says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trnsim.workloads.operators import Pass, Step, Use
from trnsim.workloads.weights import COLUMN, ROW, Count, Weight, share

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Kept:
    """Bytes that a rank keeps from the forward to the backward pass.

    ``core``: scores of attention and what comes of them, which selective recomputation drops. ``again``: what norms,
    activations and projections out of a latent give, which it drops where a fused kernel keeps no scores.
    """

    name: str
    bytes: Count
    core: bool = False
    again: bool = False


class Part(Protocol):
    """A mixer of tokens or a feed-forward network.

    ``forward`` is the work of one rank without the exchanges of tensor parallelism, which the layer puts around it.
    ``kept`` leaves out the part's input, which the layer keeps. ``cache_elements`` are those of keys and values that a
    rank keeps of one sequence of ``keys`` tokens, ``state_bytes`` what it keeps of a sequence however long it is.
    """

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> tuple[Weight, ...]: ...

    def forward(self, p: Pass) -> Step: ...

    def kept(self, p: Pass) -> list[Kept]: ...

    def cache_elements(self, keys: Count, tp: Count) -> Count: ...

    def state_bytes(self, tp: Count) -> Count: ...

    def pairs(self, queries: Count, keys: Count) -> Count:
        """FLOPs between tokens (scores, values, states) of the new ``queries`` of one sequence, forward, all heads."""
        ...


def product(weight: Weight, p: Pass, tokens: Count | None = None) -> Use:
    """The matmul of a weight on a rank."""
    return joined((weight,), p, weight.name, tokens)


def joined(weights: Sequence[Weight], p: Pass, where: str, tokens: Count | None = None) -> Use:
    """The matmul of weights with one input, side by side."""
    k = weights[0].k
    if weights[0].shard == ROW:
        k = share(k, weights[0].units, p.tp)
    n = sum(share(w.n, w.units, p.tp) if w.shard == COLUMN else w.n for w in weights)
    return multiply(p, where, p.tokens if tokens is None else tokens, k, n)


def multiply(p: Pass, where: str, m: Count, k: Count, n: Count) -> Use:
    """A product with weights, in the format of products."""
    return Use("matmul", {"m": m, "k": k, "n": n}, p.products, where, weight_dtype=p.weight_dtype)


def norm(kind: str, rows: Count, width: Count, p: Pass, where: str) -> Use:
    return Use("layernorm" if kind == "layer" else "rmsnorm", {"rows": rows, "width": width}, p.dtype, where)
