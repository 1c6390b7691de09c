"""What readers of configs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError
from trnsim.workloads.model import Layer, Model
from trnsim.workloads.parts import Attention
from trnsim.workloads.weights import Weight, vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.workloads.config import Fields
    from trnsim.workloads.parts import Part


def head_size(f: Fields, hidden: int, heads: int) -> int:
    """``head_dim``, or hidden over heads.

    Raises:
        InputError: it is missing, and heads do not divide the width.
    """
    size = f.get("head_dim")
    if size is not None:
        return int(size)
    if hidden % heads:
        raise InputError(
            f"{f.source}: hidden_size is no multiple of num_attention_heads and there is no head_dim",
            operand="num_attention_heads",
            value=heads,
            limit=hidden,
        )
    return hidden // heads


def attention(f: Fields, **chosen: Any) -> Attention:
    """Attention as most configs spell it; ``chosen`` sets what they do not say."""
    hidden, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    kv_heads = chosen.pop("kv_heads", None) or f.optional("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(
            f"{f.source}: num_attention_heads is no multiple of num_key_value_heads",
            operand="num_key_value_heads",
            value=kv_heads,
            limit=heads,
        )
    size = chosen.pop("size", None) or head_size(f, hidden, heads)
    value_size = chosen.pop("value_size", None) or size
    chosen.setdefault("rotary", int(size * partial_rotary(f)))
    return Attention(hidden, heads, kv_heads, size, value_size, **chosen)


def partial_rotary(f: Fields, default: float = 1.0) -> float:
    """The part of a head that is turned."""
    found = f.get("partial_rotary_factor")
    rope = f.get("rope_parameters")
    if found is None and isinstance(rope, dict):
        found = rope.get("partial_rotary_factor")
    return default if found is None else float(found)


def windows(f: Fields, count: int, default: list[str] | None = None) -> list[int]:
    """The window of each layer, 0 for full attention, from ``layer_types`` or ``default``."""
    kinds = f.kinds("layer_types", count) or default or ["full_attention"] * count
    if "sliding_attention" not in kinds:
        return [0] * count
    window = f.integer("sliding_window")
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def model(
    f: Fields,
    name: str,
    layers: Sequence[Layer],
    *,
    tied: bool,
    final_norm: bool = True,
    norm_kind: str = "rms",
    norm_bias: bool = False,
    outer: Sequence[Weight] = (),
    **chosen: Any,
) -> Model:
    """A model with an embedding, ``layers``, a final norm and a head."""
    hidden = layers[0].hidden
    final = [vector("final_norm", hidden)] * final_norm + [vector("final_norm_bias", hidden)] * (
        final_norm and norm_bias
    )
    if chosen.get("next_token"):
        chosen.setdefault("next_layers", (layers[-1],))
    chosen.setdefault("positions", f.optional("max_position_embeddings"))
    chosen.setdefault("vocabulary", f.integer("vocab_size"))
    return Model(
        name=name,
        architecture=str(f.get("model_type", "")),
        hidden=hidden,
        layers=tuple(interned(layers)),
        tied=f.flag("tie_word_embeddings", tied),
        outer=(*outer, *final),
        norm_kind=norm_kind,
        config=f.values,
        **chosen,
    )


def interned(layers: Sequence[Layer]) -> list[Layer]:
    """Equal layers as one object."""
    known: dict[Layer, Layer] = {}
    return [known.setdefault(layer, layer) for layer in layers]


def plain(parts: Sequence[Part], hidden: int, norms: int = 2, **chosen: Any) -> Layer:
    return Layer(tuple(parts), hidden, norms, **chosen)
