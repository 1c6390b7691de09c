"""HBM by kind, without data, beside what ``workloads`` counts of the same models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trnsim.torch
from trnsim.workloads.catalogue import build
from trnsim.workloads.layout import Layout
from trnsim.workloads.memory import training_memory

TOKENS, SEQUENCES = 512, 2
KINDS = {"weight": "weights", "gradient": "gradients", "optimizer": "optimizer", "activation": "activations"}
_GROUPED = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 4096, "head_dim": 64, "max_position_embeddings": 1024,
}  # fmt: skip
_EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "norm_topk_prob": True}
MODELS = {
    "LlamaForCausalLM": ("LlamaConfig", _GROUPED),
    "MistralForCausalLM": ("MistralConfig", {**_GROUPED, "sliding_window": None}),
    "Qwen3ForCausalLM": ("Qwen3Config", _GROUPED),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {**_GROUPED, **_EXPERTS}),
    "MixtralForCausalLM": ("MixtralConfig", {**_GROUPED, "num_local_experts": 8, "sliding_window": None}),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"n_embd": 512, "n_layer": 2, "n_head": 8, "vocab_size": 4096, "n_positions": 1024, "resid_pdrop": 0.0,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None},
    ),
}  # fmt: skip


def kept(report):
    """Bytes by kind: the most over time; of activations those that the backward pass finds."""
    memory, step = report.memory, report.steps[-1]
    regions = report.regions[step.graph]
    turn = step.start_ps + next(r.start_ps for r in regions if r.phase == "backward")
    found = {kind: max(held) for kind, held in memory.bytes.items()}
    before = [place for place, time in enumerate(memory.times_ps) if time < turn]
    found["activation"] = memory.bytes["activation"][before[-1]]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_training_is_within_two_percent_of_workloads(name):
    transformers = pytest.importorskip("transformers")
    config_name, sizes = MODELS[name]
    config = getattr(transformers, config_name)(**sizes)
    with trnsim.torch.device("trn2", depth="shape", whole_device=True) as chip:
        model = getattr(transformers, name)(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        tokens = torch.randint(0, 4096, (SEQUENCES, TOKENS))
        for _ in range(2):
            with chip.step():
                model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    found = kept(chip.report())
    layout = Layout(
        dtype="float32", gradient_dtype="float32", master_dtype="", moment_dtype="float32", micro_batch=SEQUENCES,
        global_batch=SEQUENCES, sequence_parallel=False,
    )  # fmt: skip
    counted = build(config.to_dict() | {"architectures": [name]}, name)
    (expected,) = training_memory(counted, layout, TOKENS)
    for ours, theirs in KINDS.items():
        assert found[ours] == pytest.approx(getattr(expected, theirs), rel=0.02), ours
    assert sum(found[kind] for kind in KINDS) == pytest.approx(expected.total, rel=0.02)


def test_what_stays_in_sbuf_takes_no_hbm():
    """x, the norm's result and the product's: what the norm computes between is not in HBM."""
    width, rows = 256, 512
    model = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, width, bias=False))
    with trnsim.torch.device("trn2") as chip, chip.step(), torch.no_grad():
        result = model(torch.rand(rows, width))
    memory = chip.report().memory
    whole = rows * width * 4
    assert result.shape == (rows, width)
    assert memory.at_peak["weight"] == (width + width * width) * 4
    assert memory.peak_bytes - memory.at_peak["weight"] == 2 * whole


def test_memory_of_a_run_is_that_of_its_steps():
    """Repeated steps hold as much as the first of their kind, and nothing is left behind."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    peaks = []
    for steps in (2, 6):
        with trnsim.torch.device("trn2") as chip:
            for _ in range(steps):
                with chip.step():
                    model(torch.ones(128, 64)).sum().backward()
                    model.zero_grad()
        memory = chip.report().memory
        peaks.append(memory.peak_bytes)
        assert memory.bytes["gradient"][-1] == 0
        assert len(memory.times_ps) == len(memory.bytes["activation"])
    assert peaks[0] == peaks[1]


def test_an_optimiser_and_a_cache_are_told_by_what_they_are():
    model = nn.Linear(32, 32, bias=False)
    with trnsim.torch.device("trn2") as chip:
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(4, 32)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    held = {kind: max(values) for kind, values in chip.report().memory.bytes.items()}
    assert held["weight"] == held["gradient"] == 32 * 32 * 4
    assert held["optimizer"] == 2 * held["weight"] + 4  # and the number of steps


def test_a_share_is_what_one_rank_has():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**_GROUPED)
    part = trnsim.torch.share(config, tp=4, pp=2)
    assert (part.num_attention_heads, part.num_key_value_heads, part.head_dim) == (2, 1, 64)
    assert (part.intermediate_size, part.vocab_size, part.num_hidden_layers, part.hidden_size) == (384, 1024, 1, 512)
    with pytest.raises(trnsim.errors.InputError, match="num_attention_heads does not divide by 3"):
        trnsim.torch.share(config, tp=3)
