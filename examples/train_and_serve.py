"""A small Llama of ``transformers``: trained on Shakespeare on a simulated trn2, then served on it to several people.

Training and inference are one product, as the chip is. The served tokens are real: what the trained model writes::

    python examples/train_and_serve.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from char_gpt import Corpus, Sizes
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import trnsim.torch
from trnsim.serving import HostSettings
from trnsim.units import format_time

PROMPTS = ("ROMEO:\n", "First Citizen:\n", "My lord, ", "What news", "KING HENRY:\nI ", "JULIET:\nO ")


def new_model(vocabulary):
    """The same random weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(model, corpus, steps, chip_name, *, progress=False):
    """Losses by step, and the report."""
    sizes, generator = Sizes(len(corpus.characters)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    with trnsim.torch.device(chip_name, progress=steps if progress else False) as chip:
        for _ in range(steps):
            inputs, targets = corpus.batch(sizes, generator)
            logits = model(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    optimizer.zero_grad()  # no gradients are held while it serves
    return losses, chip.report()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=48, help="characters of each answer")
    parser.add_argument("--slots", type=int, default=4, help="answers that are computed together")
    parser.add_argument("--chip", default="trn2")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    console, corpus = Console(), Corpus()
    model = new_model(len(corpus.characters))
    losses, report = train(model, corpus, options.steps, options.chip, progress=True)
    step = format_time(report.step_times()[-1])
    console.print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, {step} a step on {options.chip}")
    number = {c: i for i, c in enumerate(corpus.characters)}
    served = trnsim.torch.serve(
        model,
        [[number[c] for c in prompt] for prompt in PROMPTS],
        options.tokens,
        chip=options.chip,
        slots=options.slots,
        arrival_seconds=[0.002 * i for i in range(len(PROMPTS))],
        temperature=0.7,
        host=HostSettings(step_ps=100_000_000),  # 0.1 ms of scheduler and sampling a step
    )
    table = Table(
        "prompt and answer", "TTFT", "TPOT", title=f"{options.slots} slots on {options.chip}", show_lines=True
    )
    for prompt, tokens, ttft, tpot in zip(PROMPTS, served.tokens, served.ttft, served.tpot, strict=True):
        text = prompt + "".join(corpus.characters[t] for t in tokens)
        table.add_row(text, format_time(ttft * 1e12), format_time(tpot * 1e12))
    console.print(table)
    console.print(f"{served.result.output_tokens_per_second:,.0f} characters a second")
    served.report.save(options.out / "served.html")


if __name__ == "__main__":
    main()
