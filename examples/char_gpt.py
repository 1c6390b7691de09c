"""A character-level GPT, trained from scratch on Shakespeare on a simulated Trainium.

The model and the training loop are plain PyTorch. What a chip's formats do to the training is one line around the
loop, ``with trnsim.torch.device(...)``, and a plot shows the losses beside each other::

    python examples/char_gpt.py                          # four formats, out/char_gpt.svg, the time of a step by chip
    python examples/char_gpt.py --formats bf16 --steps 50
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn
from torch.nn import functional

import trnsim.torch
from trnsim.units import format_time

TEXT = Path(__file__).parent / "data" / "shakespeare.txt"
CHIPS = ("trn1", "trn2", "trn3", "inf2")
SYSTEMS = ("trn1.32xlarge", "trn2.48xlarge", "trn3-ultraserver-gen1", "inf2.48xlarge")


@dataclass(frozen=True)
class Variant:
    """How one of the runs rounds: products in ``format``, weights and the optimiser's moments as ``weights``."""

    name: str
    format: str
    weights: torch.dtype = torch.float32
    stochastic_rounding: bool = False


VARIANTS = (
    Variant("float32", "float32"),
    Variant("bf16", "bf16", torch.bfloat16),
    Variant("bf16-sr", "bf16", torch.bfloat16, stochastic_rounding=True),
    Variant("fp8", "fp8"),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model and of a batch."""

    vocabulary: int
    context: int = 64
    layers: int = 3
    width: int = 128
    heads: int = 4
    batch: int = 16


class Block(nn.Module):
    """Causal attention and an MLP, each after a norm and added to what came in."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.heads = sizes.heads
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)
        self.mlp_norm = nn.LayerNorm(sizes.width)
        self.up = nn.Linear(sizes.width, 4 * sizes.width)
        self.down = nn.Linear(4 * sizes.width, sizes.width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class CharGPT(nn.Module):
    """Logits of the next character: [batch, length] to [batch, length, vocabulary]."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Corpus:
    """The text as numbers, with batches drawn from its first 90 %."""

    def __init__(self, path: Path = TEXT):
        text = path.read_text()
        self.characters = sorted(set(text))
        number = {c: i for i, c in enumerate(self.characters)}
        self.tokens = torch.tensor([number[c] for c in text])
        self.train = len(text) * 9 // 10

    def batch(self, sizes: Sizes, generator: torch.Generator):
        """Inputs and targets, [batch, context] each."""
        starts = torch.randint(self.train - sizes.context - 1, (sizes.batch,), generator=generator)
        rows = torch.stack([self.tokens[s : s + sizes.context + 1] for s in starts.tolist()])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def loss_of(model, inputs, targets):
    """Mean cross-entropy in nats a character."""
    logits = model(inputs)
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


def train(model, corpus, sizes, steps, *, seed=0, after_step=None):
    """Train with AdamW, with a warm-up and a cosine; the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 20, 0.1 + 0.9 * (1 + math.cos(math.pi * i / steps)) / 2)
    )
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, *corpus.batch(sizes, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if after_step is not None:
            after_step(losses[-1])
    return losses


def new_model(sizes, seed=0):
    """The model with the same initial weights each time."""
    torch.manual_seed(seed)
    return CharGPT(sizes)


def train_on(chip_name, variant, corpus, sizes, steps, progress=None):
    """Losses by step and the report of a training run on a simulated chip."""
    task = progress.add_task(f"{variant.name} on {chip_name}", total=steps) if progress else None
    with trnsim.torch.device(chip_name, format=variant.format, stochastic_rounding=variant.stochastic_rounding) as chip:

        def after_step(loss):
            if progress:
                progress.update(task, advance=1, description=f"{variant.name} on {chip_name}, loss {loss:.3f}")

        losses = train(new_model(sizes).to(variant.weights), corpus, sizes, steps, after_step=after_step)
    return losses, chip.report()


def smoothed(losses, window=20):
    """Running mean over ``window`` steps."""
    return [sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))]


def plot(curves, chip, path):
    """One line a variant: loss by step, and below it by how much more it is than float32's."""
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(7.6, 6.4), layout="constrained", sharex=True, height_ratios=(3, 2)
    )
    first = next(iter(curves))
    for name, losses in curves.items():
        means = smoothed(losses)
        steps = range(1, len(means) + 1)
        upper.plot(steps, means, label=f"{name}: {means[-1]:.3f}", linewidth=1.6)
        lower.plot(steps, [a - b for a, b in zip(means, smoothed(curves[first]), strict=True)], linewidth=1.6)
    upper.set(ylabel="loss, nats a character", title=f"Character GPT on a simulated {chip} (means of 20 steps)")
    upper.legend(title="format: last loss")
    lower.set(xlabel="step", ylabel=f"loss beyond that of {first}")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv=None):
    names = [v.name for v in VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--formats", nargs="+", choices=names, default=names)
    parser.add_argument("--chip", default="trn2")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    console, corpus = Console(), Corpus()
    sizes = Sizes(vocabulary=len(corpus.characters))
    curves, reports = {}, {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        for variant in VARIANTS:
            if variant.name in options.formats:
                curves[variant.name], reports[variant.name] = train_on(
                    options.chip, variant, corpus, sizes, options.steps, progress
                )
    console.print(f"{sum(map(len, curves.values()))} steps in {time.perf_counter() - started:.0f} s")
    for suffix in ("svg", "png"):
        plot(curves, options.chip, options.out / f"char_gpt.{suffix}")
    for name, report in reports.items():
        report.save(options.out / f"char_gpt_{name}.html")
    step_times(options.formats, corpus, sizes, console)


def step_times(formats, corpus, sizes, console):
    """Predicted times by chip: a training step on one logical core, and what data parallelism adds to it.

    Inferentia2 trains too: it has the cores of Trainium and so takes the same time for a step. It has half of the links
    to other chips, so that summing the gradients over an instance takes longer.
    """
    from trnsim.fabric.group import group
    from trnsim.fabric.predict import predict
    from trnsim.fabric.topology import topology

    table = Table("", *CHIPS, title="predicted times")
    for variant in VARIANTS:
        if variant.name in formats:
            reports = [train_on(chip, variant, corpus, sizes, 3)[1] for chip in CHIPS]
            table.add_row(f"step, {variant.name}", *(format_time(r.step_times()[-1]) for r in reports))
    for size, what in (
        (4 * sum(p.numel() for p in new_model(sizes).parameters()), "of this model"),
        (2**30, "of 1 GiB"),
    ):
        times = []
        for system in SYSTEMS:
            ranks = topology(system).rank_count
            times.append(f"{format_time(predict(group(system, ranks), 'all_reduce', size).time_ps)} ({ranks} cores)")
        table.add_row(f"sum of gradients {what}", *times)
    console.print(table)
    console.print("Sums are over all logical cores of", ", ".join(SYSTEMS))


if __name__ == "__main__":
    main()
