"""Which aten operators of the examples' models run as kernels, and which fall back: docs/reference/torch_coverage.md.

    python scripts/torch_coverage.py            # writes the page

Needs ``trnsim[torch,models]``. Small random configurations: what falls back does not depend on sizes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

import trnsim.torch

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "torch_coverage.md"
VOCABULARY = 1024


@dataclass
class Coverage:
    """Of one model: calls that kernels ran, calls that fell back by operator, and shares of the time."""

    model: str
    kernels: int = 0
    fallbacks: Counter = field(default_factory=Counter)
    reasons: dict = field(default_factory=dict)
    kernel_ps: float = 0.0
    fallback_ps: dict = field(default_factory=lambda: {"device": 0.0, "host": 0.0})
    fallback_calls: dict = field(default_factory=lambda: {"device": 0, "host": 0})
    operators: set = field(default_factory=set)

    def add(self, report):
        """Add a run."""
        for region, runs in report.every_region():
            if region.kind == "fallback":
                self.fallbacks.update(dict.fromkeys(region.aten, runs))
            else:
                self.kernels += len(region.aten) * runs
                self.kernel_ps += region.time_ps * runs
                self.operators.update(region.aten)
        for one in report.fallbacks:
            self.reasons[one.operator] = (one.place, one.reason)
            self.fallback_ps[one.place] += one.time_ps
            self.fallback_calls[one.place] += one.count


def models():
    """Name and model, small configurations as a person would train first."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    grouped = sizes | {"num_key_value_heads": 2, "intermediate_size": 512}
    experts = {"head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    gpt2 = {"n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}
    return [
        ("Llama", transformers.LlamaForCausalLM, transformers.LlamaConfig(**grouped)),
        ("Qwen3-MoE", transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig(**grouped, **experts)),
        ("GPT-2", transformers.GPT2LMHeadModel, transformers.GPT2Config(**gpt2)),
        ("BERT (MiniLM)", transformers.BertForMaskedLM, transformers.BertConfig(**sizes, intermediate_size=1024)),
    ]


def collect():
    """Coverage of training and of generation, by model."""
    found = []
    tokens = torch.randint(1, VOCABULARY, (2, 128), generator=torch.Generator().manual_seed(0))
    for name, kind, config in models():
        config.bos_token_id = config.eos_token_id = None
        config.pad_token_id = 0
        torch.manual_seed(0)
        model = kind(config)
        training = Coverage(f"{name}, training")
        with trnsim.torch.device("trn2") as chip:
            optimizer = torch.optim.AdamW(model.parameters())
            for _ in range(2):
                optimizer.zero_grad()
                model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
                optimizer.step()
        training.add(chip.report())
        found.append(training)
        if not name.startswith("BERT"):
            generation = Coverage(f"{name}, generate")
            model.eval()
            with trnsim.torch.device("trn2") as chip:
                mask = torch.ones_like(tokens[:, :32])
                model.generate(tokens[:, :32], attention_mask=mask, max_new_tokens=8, do_sample=False)
            generation.add(chip.report())
            found.append(generation)
    return found


def page(found):
    """The page's text."""
    lines = [
        "# Operators of PyTorch models: kernels and fallbacks",
        "",
        "Made by `scripts/torch_coverage.py`: calls of aten operators in two training steps with AdamW (2 x 128",
        "tokens) and in `generate` of 8 tokens after a prompt of 2 x 32, on trn2 in bf16, of small configurations of",
        "classes of `transformers`. A call in a kernel is one in a region with a kernel's cost, alone or fused.",
        "A call that fell back is priced as its bytes over HBM (device) or a round trip to the host, and stands in",
        "every report by name. Views cost nothing and are not counted.",
        "",
        "| model | calls in kernels | operators in kernels | fell back on device | of the time | host stops | of it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        total = one.kernel_ps + sum(one.fallback_ps.values())
        places = " | ".join(
            f"{one.fallback_calls[place]} | {100 * one.fallback_ps[place] / total:.1f} %"
            for place in ("device", "host")
        )
        lines.append(f"| {one.model} | {one.kernels:,} | {len(one.operators)} | {places} |")
    lines += ["", "## What falls back", "", "| operator | on | why | calls, by model |", "| --- | --- | --- | --- |"]
    for name in sorted({n for one in found for n in one.fallbacks}):
        where = "; ".join(f"{one.model} {one.fallbacks[name]}" for one in found if one.fallbacks[name])
        place, reason = next(one.reasons[name] for one in found if name in one.reasons)
        lines.append(f"| `{name}` | {place} | {reason} | {where} |")
    lines += ["", "## What runs in kernels", ""]
    every = sorted({n for one in found for n in one.operators})
    lines.append(", ".join(f"`{name.removeprefix('aten.').removesuffix('.default')}`" for name in every) + ".")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(collect()))
