"""A transformer as layers of parts, with what follows from them: parameters, FLOPs, bytes of a token in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trnsim.workloads.parts import Experts, Part
from trnsim.workloads.weights import VOCABULARY, Count, Weight, vector


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        parts: in order, such as attention and feed-forward network; a layer of a hybrid model may have one.
        hidden: width of what flows from layer to layer.
        norms: vectors before and after the parts: how many, of which ``kind`` (``rms``, ``layer``), with offsets or
            not.
        parallel: the parts work on the same input and are added up together (Falcon, Phi): one exchange, not two.
        streams: residual streams (DeepSeek-V4's hyper-connections); 1 elsewhere.
        extra: weights of neither part, such as per-layer inputs (Gemma 4).
    """

    parts: tuple[Part, ...]
    hidden: int
    norms: int
    norm_kind: str = "rms"
    norm_bias: bool = False
    parallel: bool = False
    streams: int = 1
    extra: tuple[Weight, ...] = ()

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        norms = [
            vector(f"norm_{i}{offset}", self.hidden)
            for i in range(self.norms)
            for offset in ("", "_bias")[: 1 + self.norm_bias]
        ]
        return tuple(w for part in self.parts for w in part.weights) + tuple(norms) + self.extra + self._connections

    @property
    def _connections(self) -> tuple[Weight, ...]:
        if self.streams == 1:
            return ()
        n = self.streams
        mixes = (2 + n) * n
        return tuple(
            w
            for part in self.parts
            for w in (Weight(f"{part.name}.mix", n * self.hidden, mixes), vector(f"{part.name}.mix_bias", mixes + 3))
        )

    @cached_property
    def parameters(self) -> int:
        return sum(w.parameters for w in self.weights)

    @cached_property
    def active_parameters(self) -> int:
        return sum(w.active_parameters for w in self.weights)

    @property
    def experts(self) -> Experts | None:
        return next((part for part in self.parts if isinstance(part, Experts)), None)


def counted(layers: Iterable[Layer]) -> list[tuple[Layer, int]]:
    """Different layers of a model, in the order of their first, with how often each occurs."""
    found: dict[int, tuple[Layer, int]] = {}
    for layer in layers:
        # Equal layers of a model are one object.
        found[id(layer)] = (layer, found.get(id(layer), (layer, 0))[1] + 1)
    return list(found.values())


@dataclass(frozen=True)
class Model:
    """A transformer.

    Attributes:
        name: in the catalogue, or that of the file.
        architecture: ``model_type`` of its config.
        layers: in order; equal ones are equal objects.
        vocabulary: rows of the embedding and outputs of the head; ``tied``: the head's weights are the embedding's.
        outer: weights before and after the layers, beside embedding and head: final norm, positions, projections.
        causal: a decoder; else an encoder such as BERT.
        dropout: trained with it (masks are kept).
        positions: tokens of a sequence at most; 0: not said.
        next_token: modules that predict tokens further ahead (multi-token prediction), not counted in ``parameters``;
            each has ``next_layers``, and shares embedding and head.
        config: the facts that this was built from.
    """

    name: str
    architecture: str
    hidden: int
    layers: tuple[Layer, ...]
    vocabulary: int
    tied: bool
    outer: tuple[Weight, ...]
    head_bias: bool = False
    embedding_width: int = 0
    causal: bool = True
    dropout: bool = False
    positions: int = 0
    next_token: int = 0
    next_layers: tuple[Layer, ...] = ()
    norm_kind: str = "rms"
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def embedding(self) -> Weight:
        return Weight("embedding", self.vocabulary, self.embedding_width or self.hidden, "table", VOCABULARY)

    @property
    def head(self) -> Weight:
        """The product with the vocabulary; tied or not, it multiplies."""
        width = self.embedding_width or self.hidden
        return Weight("head", width, self.vocabulary, shard=VOCABULARY, bias=self.head_bias)

    @cached_property
    def next_weights(self) -> tuple[Weight, ...]:
        """Of one module of multi-token prediction: its layers, the product that joins two inputs, three norms."""
        own = [vector(f"next_token.norm_{i}", self.hidden) for i in range(3)]
        projection = Weight("next_token.projection", 2 * self.hidden, self.hidden)
        return (projection, *own, *(w for layer in self.next_layers for w in layer.weights))

    @cached_property
    def parameters(self) -> int:
        """All that are trained; a tied head counts once."""
        head = (self.vocabulary if self.head_bias else 0) if self.tied else self.head.parameters
        return self._layers + self.embedding.parameters + head + sum(w.parameters for w in self.outer)

    @cached_property
    def _layers(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def active_parameters(self) -> int:
        """Those that a token meets: of experts, the chosen ones; all of embedding and head, as model cards count."""
        idle = sum(layer.parameters - layer.active_parameters for layer in self.layers)
        return self.parameters - idle

    @cached_property
    def embedding_parameters(self) -> int:
        """Of the tables that a token is looked up in: no products."""
        tables = sum(w.parameters for w in self.outer if w.kind == "table")
        return tables + (0 if self.tied else self.embedding.parameters)

    @cached_property
    def products(self) -> int:
        """Multiplications and additions of one token in products with weights, the head's included: N of 6 N."""
        layers = sum(w.products for layer in self.layers for w in layer.weights)
        return layers + sum(w.products for w in self.outer) + self.head.products

    def kinds(self) -> list[tuple[Layer, int]]:
        """Different layers and how often each occurs."""
        return self._kinds

    @cached_property
    def _kinds(self) -> list[tuple[Layer, int]]:
        return counted(self.layers)

    @property
    def mixture(self) -> bool:
        return any(layer.experts for layer, _ in self.kinds())

    def pair_flops(self, queries: Count, keys: Count) -> Count:
        """FLOPs between tokens, forward: attention over what is not masked, and states."""
        return sum(count * part.pairs(queries, keys) for layer, count in self.kinds() for part in layer.parts)

    def forward_flops(self, sequence: Count, next_token: int = 0) -> Count:
        """Model FLOPs of one sequence, forward: 2 N a token and the causal half of attention.

        Args:
            next_token: modules of multi-token prediction that run too.
        """
        found = 2 * self.products * sequence + self.pair_flops(sequence, sequence)
        if not next_token:
            return found
        products = sum(w.products for w in self.next_weights) + self.head.products
        pairs = sum(part.pairs(sequence, sequence) for layer in self.next_layers for part in layer.parts)
        return found + next_token * (2 * products * sequence + pairs)

    def training_flops(self, sequence: Count, next_token: int = 0) -> Count:
        """Model FLOPs of one sequence, forward and backward, without recomputation: the numerator of MFU."""
        return 3 * self.forward_flops(sequence, next_token)

    def decode_flops(self, keys: Count) -> Count:
        """Model FLOPs of one new token that sees ``keys`` tokens, itself included."""
        return 2 * self.products + self.pair_flops(1, keys)

    def cache_elements(self, keys: Count, tp: Count = 1) -> Count:
        """Elements of keys and values of one sequence of ``keys`` tokens on one of ``tp`` ranks."""
        return sum(count * part.cache_elements(keys, tp) for layer, count in self.kinds() for part in layer.parts)

    def state_bytes(self, tp: Count = 1) -> Count:
        """Bytes of one sequence that do not grow with it: states of linear attention."""
        return sum(count * part.state_bytes(tp) for layer, count in self.kinds() for part in layer.parts)
