"""The share of a model that one logical core has: its config with sizes divided.

Under tensor parallelism every rank has all layers, with a part of the heads, of the width of the feed-forward networks
(of each expert) and of the vocabulary; where there are fewer key heads than ranks, ranks hold copies. Under pipeline
parallelism a rank has a part of the layers. A model built from the config of a share does the work of one rank;
exchanges between ranks are not in it.
"""

from __future__ import annotations

import copy
from typing import Any

from trnsim.errors import InputError

# What tensor parallelism divides, by the names of transformers' configs.
_HEADS = ("num_attention_heads", "n_head")
_KEYS = ("num_key_value_heads",)
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner", "vocab_size")
_LAYERS = ("num_hidden_layers", "n_layer")


def share(config: Any, *, tp: int = 1, pp: int = 1) -> Any:
    """The config of one rank's part of a model: a copy of ``config`` (of transformers) with sizes divided.

    Args:
        tp, pp: ranks of tensor and pipeline parallelism.

    Raises:
        InputError: a size that does not divide, or a config without one of them.
    """
    found = copy.deepcopy(config)
    heads = next((name for name in _HEADS if getattr(found, name, None)), None)
    layers = next((name for name in _LAYERS if getattr(found, name, None)), None)
    if heads is None or layers is None:
        named = (*_HEADS, *_LAYERS)
        raise InputError(f"{type(config).__name__} names no heads or layers", operand="config", limit=named)
    if tp > 1 and heads == "n_head":
        raise InputError(f"{type(config).__name__} derives widths from its heads and cannot be divided", operand="tp")
    if tp > 1 and not getattr(found, "head_dim", None):
        found.head_dim = found.hidden_size // getattr(found, heads)
    kept = {name: getattr(found, name) for name in _KEYS if getattr(found, name, None)}
    for name in (heads, *_WIDTHS):
        size = getattr(found, name, None)
        if size and tp > 1:
            setattr(found, name, _divided(name, size, tp))
    for name, size in kept.items():
        setattr(found, name, max(size // tp, 1))
    setattr(found, layers, _divided(layers, getattr(found, layers), pp))
    kinds = getattr(found, "layer_types", None)
    if kinds:
        found.layer_types = kinds[: getattr(found, layers)]
    return found


def _divided(name: str, size: int, ranks: int) -> int:
    if size % ranks:
        raise InputError(f"{name} does not divide by {ranks}", operand=name, value=size, limit=ranks)
    return size // ranks
