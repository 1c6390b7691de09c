"""Llama-3.1-70B on a simulated trn2 without its weights: memory and time of a training step, by layer.

Under the depth ``shape`` tensors have shapes and no data, so any size runs on a laptop. A rank's share of the model
(tensor parallelism over 8 logical cores, a pipeline of 8 stages: the 64 logical cores of a trn2.48xlarge) computes a
forward pass, a backward pass and a step of AdamW; exchanges between ranks are not in it::

    python examples/llama70b.py                      # and out/llama70b.html
    python examples/llama70b.py --tp 4 --pp 4        # does not fit: says by how much, and what holds it
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

import trnsim.torch
from trnsim.units import format_bytes, format_time


def config():
    """The published sizes of Llama-3.1-70B."""
    return LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


def train_step(tp=8, pp=8, batch=1, sequence=4096, chip_name="trn2"):
    """The report of one step of a rank."""
    with trnsim.torch.device(chip_name, depth="shape", format="bf16") as chip:
        model = AutoModelForCausalLM.from_config(trnsim.torch.share(config(), tp=tp, pp=pp), dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        tokens = torch.zeros((batch, sequence), dtype=torch.int64)
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
    return chip.report()


def by_layer(report):
    """(layer, picoseconds, bytes at the peak of HBM) of each layer, and of what is around them."""
    from trnsim.frameworks.torch.reporting.tables import module_tree

    model = module_tree(report).children["model"].children
    layers = model["layers"].children
    return [(name, layers[name].time_ps, layers[name].nbytes) for name in sorted(layers, key=int)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, default=8)
    parser.add_argument("--pp", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--chip", default="trn2")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    console, started = Console(), time.perf_counter()
    report = train_step(options.tp, options.pp, options.batch, options.sequence, options.chip)
    table = Table("layer", "time", "HBM at the peak", title="a rank's layers")
    for name, ps, size in by_layer(report):
        table.add_row(name, format_time(ps), format_bytes(size))
    console.print(table)
    report.print(console)
    report.save(options.out / "llama70b.html")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console.print(f"simulated in {time.perf_counter() - started:.1f} s with {format_bytes(memory)} of memory")


if __name__ == "__main__":
    main()
