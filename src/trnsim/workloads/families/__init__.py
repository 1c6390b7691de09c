"""From the fields of a config to layers, one function a family of architectures (``model_type``)."""

from __future__ import annotations

import difflib
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError
from trnsim.workloads.families import decoders, experts, gemma, hybrids, latent, older

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trnsim.workloads.config import Fields
    from trnsim.workloads.model import Model

BUILDERS: dict[str, Callable[[Fields, str], Model]] = {
    **decoders.BUILDERS,
    **experts.BUILDERS,
    **gemma.BUILDERS,
    **hybrids.BUILDERS,
    **latent.BUILDERS,
    **older.BUILDERS,
}

# Models with pictures or sound: their text model is meant, and its fields stand in ``text_config``.
OUTER = {
    "chandra": "qwen3_vl",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "idefics": "llama",
    "kimi_k25": "kimi_k2",
    "llama4": "llama4_text",
    "minimax_m3": "minimax_m3_vl_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
    "qwen2_5_vl_text": "qwen2",
}


def text_fields(values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(architecture, fields) of the text model of a config.

    Raises:
        InputError: the config says no ``model_type``.
    """
    kind = values.get("model_type")
    inner = values.get("text_config")
    if isinstance(inner, dict):
        kept = ("tie_word_embeddings", "quantization_config", "torch_dtype", "dtype")
        outer = {name: values[name] for name in kept if name in values}
        kind = inner.get("model_type") or kind
        values = {**outer, **inner}
    if not isinstance(kind, str):
        raise InputError("the config has no field 'model_type'", operand="model_type")
    return OUTER.get(kind, kind), values


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    return tomllib.loads((Path(__file__).parent / "defaults.toml").read_text())


def defaults(architecture: str) -> Mapping[str, Any]:
    """What the class of an architecture has for fields that its configs leave out."""
    return _defaults().get(architecture, {})


def builder(architecture: str) -> Callable[[Fields, str], Model]:
    """The function of an architecture.

    Raises:
        InputError: no such architecture is known; names the nearest.
    """
    if architecture in BUILDERS:
        return BUILDERS[architecture]
    near = ", ".join(difflib.get_close_matches(architecture, BUILDERS, 3, 0.0))
    raise InputError(
        f"unknown architecture {architecture!r}; the nearest known: {near}", operand="model_type", value=architecture
    )
