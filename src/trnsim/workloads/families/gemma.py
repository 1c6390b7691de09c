"""Gemma 2 to 4 and VaultGemma: norms around both parts, windows; Gemma 4's shared caches and per-layer inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.workloads.families.common import attention, model, plain, windows
from trnsim.workloads.parts import Dense, Experts
from trnsim.workloads.weights import Weight, vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from trnsim.workloads.config import Fields
    from trnsim.workloads.model import Model


def _alternating(count: int, period: int) -> list[str]:
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)]


def gemma(norms: int, norm: str, period: int) -> Callable[[Fields, str], Model]:
    """A reader of Gemma 2, VaultGemma (two norms a layer) or Gemma 3 (norms of heads, five windows in six)."""

    def build(f: Fields, name: str) -> Model:
        count, hidden = f.integer("num_hidden_layers"), f.integer("hidden_size")
        bias = f.flag("attention_bias")
        network = Dense(hidden, f.integer("intermediate_size"))
        default = _alternating(count, f.optional("sliding_window_pattern", period))
        layers = [
            plain((attention(f, window=w, bias=bias, output_bias=bias, norm=norm), network), hidden, norms)
            for w in windows(f, count, default)
        ]
        return model(f, name, layers, tied=True)

    return build


def gemma4(f: Fields, name: str) -> Model:
    """Full attention has wider heads, fewer of them for keys, and its keys as values where the config says so.

    The last ``num_kv_shared_layers`` take keys and values from an earlier layer of their kind. With
    ``hidden_size_per_layer_input`` each layer adds rows of a table of its own.
    """
    count, hidden = f.integer("num_hidden_layers"), f.integer("hidden_size")
    small, bias = f.optional("hidden_size_per_layer_input"), f.flag("attention_bias")
    first_shared = count - f.optional("num_kv_shared_layers")
    kinds = f.kinds("layer_types", count) or _alternating(count, 6)
    kinds[-1] = "full_attention"
    layers = []
    for i, kind in enumerate(kinds):
        full, shared = kind == "full_attention", i >= first_shared
        chosen: dict[str, Any] = {"window": 0 if full else f.integer("sliding_window")}
        if full:
            chosen["size"] = f.optional("global_head_dim", 512)
            chosen["same_values"] = f.flag("attention_k_eq_v")
            if chosen["same_values"]:
                chosen["kv_heads"] = f.optional("num_global_key_value_heads") or None
        mixer = attention(f, bias=bias, output_bias=bias, norm="head", shared_cache=shared, **chosen)
        wide = 2 if shared and f.flag("use_double_wide_mlp") else 1
        inner = f.integer("intermediate_size") * wide
        network = _mixture(f, hidden, inner) if f.flag("enable_moe_block") else Dense(hidden, inner)
        extra = (
            (
                Weight("per_layer.gate", hidden, small),
                Weight("per_layer.projection", small, hidden),
                vector("per_layer.norm", hidden),
            )
            if small
            else ()
        )
        layers.append(plain((mixer, network), hidden, 4, extra=extra))
    outer = (
        (
            Weight(
                "per_layer.embedding", f.integer("vocab_size_per_layer_input"), count * small, "table", "vocabulary"
            ),
            Weight("per_layer.all", hidden, count * small),
            vector("per_layer.all_norm", small),
        )
        if small
        else ()
    )
    return model(f, name, layers, tied=True, outer=outer)


def _mixture(f: Fields, hidden: int, inner: int) -> Experts:
    """Experts beside a dense network."""
    return Experts(
        hidden,
        f.integer("num_experts"),
        f.integer("top_k_experts"),
        f.integer("moe_intermediate_size"),
        dense=inner,
        router_scales=True,
    )


BUILDERS: dict[str, Callable[[Fields, str], Model]] = {
    "gemma2": gemma(4, "", 2),
    "gemma3_text": gemma(4, "head", 6),
    "gemma4_text": gemma4,
    "vaultgemma": gemma(2, "", 2),
}
