"""Models of the transformers library without weights: what ours are compared with."""

from __future__ import annotations

import warnings

import pytest

from trnsim.workloads.families import text_fields

# Architectures that transformers spells otherwise or does not have.
OTHER = {"kimi_k2": "deepseek_v3"}


def reference(values, **chosen):
    """The class that transformers has for a config, on the meta device."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        transformers.logging.set_verbosity_error()
        architecture, fields = text_fields(values)
        architecture = OTHER.get(architecture, architecture)
        if architecture not in CONFIG_MAPPING:
            pytest.skip(f"transformers has no {architecture}")
        given = {name: value for name, value in fields.items() if name not in ("model_type", "quantization_config")}
        config = CONFIG_MAPPING[architecture](**given, **chosen)
        with torch.device("meta"):
            return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def count(values):
    return sum(parameter.numel() for parameter in reference(values).parameters())
