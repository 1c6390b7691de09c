"""Weights of a layer: what they measure, what they do to a token, and how ranks share them.

Everything else is derived from these: parameters, FLOPs of products, bytes of a rank, gradients, optimiser states. All
formulas are plain arithmetic, so that the numbers of ranks may be arrays of many layouts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Count = Any  # an int, or an array of ints for many layouts at once

COLUMN, ROW, VOCABULARY, REPLICATED = "column", "row", "vocabulary", "replicated"


def ceil_div(numerator: Count, denominator: Count) -> Count:
    """The quotient rounded up, of ints or arrays."""
    return -(-numerator // denominator)


@dataclass(frozen=True)
class Weight:
    """One matrix, or as many equal ones as there are experts.

    Attributes:
        name: of its part and its role, such as ``attention.query``.
        k, n: inputs and outputs of the product; a vector is [1, n], a table [rows, width].
        kind: ``matmul``, ``vector`` (norms, scales, biases of their own), ``table`` (embeddings: rows by number),
            ``conv`` (one filter a channel).
        shard: how tensor parallelism cuts it: ``column`` (outputs), ``row`` (inputs), ``vocabulary`` (rows of a table
            or outputs of the head), ``replicated``.
        units: what cannot be cut, such as heads: beyond as many ranks, ranks hold copies; 0: any cut.
        bias: a vector of ``n`` is added to the product.
        experts: as many equal matrices; expert parallelism shares them.
        active: of those, how many a token passes.
    """

    name: str
    k: int
    n: int
    kind: str = "matmul"
    shard: str = REPLICATED
    units: int = 0
    bias: bool = False
    experts: int = 0
    active: int = 0

    @property
    def parameters(self) -> int:
        return max(self.experts, 1) * self._one

    @property
    def active_parameters(self) -> int:
        """Those that one token meets; rows of a table are looked up and multiply nothing, yet count once."""
        return (self.active if self.experts else 1) * self._one

    @property
    def products(self) -> int:
        """Multiplications and additions of one token."""
        per_one = self.k * self.n if self.kind in ("matmul", "conv") else 0
        return (self.active if self.experts else 1) * per_one

    @property
    def _one(self) -> int:
        return self.k * self.n + (self.n if self.bias else 0)

    def local(self, tp: Count, ep: Count = 1, expert_tp: Count = 1) -> Count:
        """Parameters that one rank holds, the largest share where a cut is uneven.

        Args:
            tp: ranks of tensor parallelism.
            ep, expert_tp: ranks that share the experts, and that share each of them.
        """
        if self.experts:
            return ceil_div(self.experts, ep) * self._cut(expert_tp)
        return self._cut(tp)

    def _cut(self, ways: Count) -> Count:
        bias = self.n if self.bias else 0
        if self.shard == COLUMN:
            return share(self.n, self.units, ways) * (self.k + (1 if self.bias else 0))
        if self.shard == ROW:
            return share(self.k, self.units, ways) * self.n + bias
        if self.shard == VOCABULARY:
            return (
                ceil_div(self.k, ways) * self.n
                if self.kind == "table"
                else ceil_div(self.n, ways) * (self.k + (1 if self.bias else 0))
            )
        return self.k * self.n + bias


def share(size: int, units: int, ways: Count) -> Count:
    """Of ``size`` in ``units`` equal pieces that cannot be cut (0: any cut), what each of ``ways`` ranks holds."""
    if units:
        return ceil_div(units, ways) * (size // units)
    return ceil_div(size, ways)


def parameters(weights: Iterable[Weight]) -> int:
    return sum(weight.parameters for weight in weights)


def vector(name: str, size: int, shard: str = REPLICATED, units: int = 0) -> Weight:
    """Parameters that scale or are added element by element."""
    return Weight(name, 1, size, "vector", shard, units)
