"""Models of ``transformers`` on a simulated chip: numbers beside float64 and PyTorch's own in the same format."""

from __future__ import annotations

import copy

import pytest
import torch
from configs import VOCABULARY, make

import trnsim.torch

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'trnsim[models]'")

MODELS = ("llama", "qwen3-moe", "gpt2")
FORMATS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The chip may be at most twice as far from float64 as PyTorch; where both round alike what is left is noise of float32.
TWICE = 2.0
# Where a router's choice is a tie within rounding, a run may take another expert than float64 and is then far off for
# that token. Of this batch no choice is as near as that.
SEEDS = {"qwen3-moe": 2}


def tokens(batch, length, seed=1):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model, inputs):
    """Logits and the gradients of all weights."""
    model.zero_grad()
    output = model(input_ids=inputs, labels=inputs, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def exact(model):
    """The model in float64, with the same weights."""
    copied = copy.deepcopy(model).double()
    copied.config._experts_implementation = "eager"  # grouped products have no float64
    return copied


def error(found, expected):
    """Relative, in the norm over all numbers of one tensor or several."""
    parts = [torch.cat([t.double().flatten() for t in (x if isinstance(x, list) else [x])]) for x in (found, expected)]
    return float((parts[0] - parts[1]).norm() / parts[1].norm())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward_are_as_near_to_float64_as_pytorch(name, format):
    model = make(name).to(FORMATS[format])
    inputs = tokens(2, 24, SEEDS.get(name, 1))
    expected = run(exact(model), inputs)
    own = run(copy.deepcopy(model), inputs)
    with trnsim.torch.device("trn2", format=format) as chip:
        found = run(model, inputs)
    for what, ours, theirs, wanted in zip(("logits", "gradients"), found, own, expected, strict=True):
        assert error(ours, wanted) <= TWICE * error(theirs, wanted), (
            what,
            error(ours, wanted),
            error(theirs, wanted),
        )
    report = chip.report()
    assert report.total_ps > 0
    assert {"forward", "backward"} <= set(report.times("phase"))


@pytest.mark.parametrize("format", ["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_generate_gives_the_tokens_and_splits_prefill_from_decode(name, format):
    model = make(name).to(FORMATS[format])
    inputs = tokens(2, 9)
    options = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(inputs)}
    expected = exact(model).generate(inputs, **options)
    with trnsim.torch.device("trn2", format=format) as chip:
        found = model.generate(inputs, **options)
    report = chip.report()
    assert [step.name for step in report.steps] == ["prefill"] + ["decode"] * 6
    (answer,) = trnsim.torch.generations(report)
    assert answer.tokens == 7
    assert answer.ttft_ps == report.steps[0].time_ps
    assert answer.total_ps == pytest.approx(report.total_ps)
    assert answer.tpot_ps == pytest.approx(sum(s.time_ps for s in report.steps[1:]) / 6)
    assert report.memory.at_peak["cache"] > 0
    if format == "float32":
        assert found.tolist() == expected.tolist()
    else:  # rounding decides between logits that are alike; what came before the first such choice is the same
        scores = exact(model)(found).logits
        for row in range(len(found)):
            for at in range(inputs.shape[1], found.shape[1]):
                chosen = scores[row, at - 1, found[row, at]]
                assert scores[row, at - 1].max() - chosen <= 0.05 * scores[row, at - 1].std(), (row, at)


def test_a_cache_that_is_static_splits_too():
    model = make("llama")
    inputs = tokens(1, 9)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(inputs)}
    with trnsim.torch.device("trn2", format="float32") as chip:
        found = model.generate(inputs, cache_implementation="static", disable_compile=True, **options)
    assert found.tolist() == model.generate(inputs, **options).tolist()
    assert [step.name for step in chip.report().steps] == ["prefill"] + ["decode"] * 3


def test_two_answers_after_each_other_are_two():
    model = make("llama")
    with trnsim.torch.device("trn2", format="float32") as chip:
        for length, count in ((5, 3), (8, 2)):
            inputs = tokens(1, length)
            model.generate(
                inputs, max_new_tokens=count, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(inputs)
            )
    found = trnsim.torch.generations(chip.report())
    assert [answer.tokens for answer in found] == [3, 2]
