"""Operators that kernels stand for have the sizes of their contracts."""

from __future__ import annotations

import pytest

from trnsim.operators.kernel_costs import contracts
from trnsim.workloads import Layout, Use, decode, load_model, prefill, training

# What a step knows beside a kernel's sizes: experts that have a token, and that tokens are contracted.
BESIDE = {"hit", "contract"}
MODELS = ["llama-3.1-8b", "gpt-2", "glm-5", "gpt-oss-20b", "qwen3.5-35b-a3b", "nemotron-3-nano", "deepseek-v4-flash"]


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_contracts(name):
    known, model = contracts(), load_model(name)
    layout = Layout(product_dtype="float8_e4m3")
    (stage,) = training(model, layout, 256)
    steps = [prefill(model, Layout(), 1, 256), decode(model, Layout(), 4, 256), *stage.chunks[0], stage.update]
    for use in (item for step in steps for item in step if isinstance(item, Use)):
        if use.operator not in known:
            continue
        contract = known[use.operator]
        assert set(contract.sizes) - set(getattr(contract, "defaults", ())) <= set(use.sizes), use
        assert set(use.sizes) - BESIDE <= set(contract.sizes) | set(contract.options), use
