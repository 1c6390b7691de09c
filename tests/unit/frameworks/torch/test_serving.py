"""Requests served with real tokens: those of ``generate``, with times that are those of the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from configs import VOCABULARY, make

import trnsim.torch
from trnsim.errors import InputError
from trnsim.serving import HostSettings

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'trnsim[models]'")

LENGTHS = (5, 9, 17, 3, 12)
WANTED = (8, 6, 1, 10, 7)


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]


def alone(model, prompt, count, **options):
    """The new tokens of a request by itself, as ``generate`` gives them on the chip."""
    inputs = torch.tensor([prompt])
    with trnsim.torch.device("trn2", format=options.get("format", "bf16")), torch.no_grad():
        found = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return tuple(found[0, len(prompt) :].tolist())


@pytest.mark.parametrize("format", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt2"])
def test_tokens_are_those_of_generate(name, format):
    model = make(name)
    served = trnsim.torch.serve(model, prompts(), WANTED, format=format, slots=3)
    assert served.tokens == tuple(alone(model, p, n, format=format) for p, n in zip(prompts(), WANTED, strict=True))


def test_times_are_those_of_the_steps_on_the_chip():
    served = trnsim.torch.serve(make("llama"), prompts(), WANTED, slots=2)
    times = [step.time_ps for step in served.report.steps if step.name in {"prefill", "decode"}]
    log = served.result.steps
    assert (log["end_ps"] - log["start_ps"]).tolist() == [round(t) for t in times]
    assert len(times) == len(served.report.steps)  # the chip did nothing else
    # One prompt after the other, and no slot is used by two.
    assert (log["decode_sequences"] <= 2).all()
    assert [s.name for s in served.report.steps if s.name == "prefill"] == ["prefill"] * 5
    assert served.ttft[0] == pytest.approx(times[0] * 1e-12)
    assert served.ttft[2] > served.ttft[1] > served.ttft[0]
    assert np.isnan(served.tpot[2])  # an answer of one token
    assert served.result.output_tokens.tolist() == list(WANTED)
    assert served.report.memory.at_peak["cache"] > 0


def test_steps_of_the_same_shapes_take_the_same_time():
    served = trnsim.torch.serve(make("llama"), [[1] * 9, [2] * 9, [3] * 9], 12, slots=3)
    decode = served.report.step_times("decode")
    assert len(decode) == 11
    # Contexts of up to 16 and of up to 21 tokens are two graphs.
    assert len(set(decode)) == 2


def test_an_answer_ends_with_the_token_that_ends_a_text():
    model = make("llama")
    whole = trnsim.torch.serve(model, prompts(), 8, slots=2).tokens
    end = whole[0][2]
    served = trnsim.torch.serve(model, prompts(), 8, slots=2, eos_token_id=end)
    expected = [t[: t.index(end) + 1] if end in t else t for t in whole]
    assert list(served.tokens) == expected
    assert served.result.output_tokens.tolist() == [len(t) for t in expected]


def test_draws_do_not_depend_on_who_is_served_beside():
    model = make("llama")
    drawn = [trnsim.torch.serve(model, prompts(), WANTED, slots=n, temperature=1.0, seed=3).tokens for n in (1, 3)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != trnsim.torch.serve(model, prompts(), WANTED, slots=3).tokens
    assert drawn[0] != trnsim.torch.serve(model, prompts(), WANTED, slots=3, temperature=1.0, seed=4).tokens


def test_draws_follow_the_softmax():
    """First tokens of many requests of one prompt: how often each is drawn, beside its probability."""
    model, count = make("gpt2"), 400
    served = trnsim.torch.serve(model, [[5, 7, 9]] * count, 1, format="float32", slots=1, temperature=0.5)
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 7, 9]])).logits[0, -1].double() / 0.5).softmax(0)
    found = torch.bincount(torch.tensor([t[0] for t in served.tokens]), minlength=VOCABULARY) / count
    spread = (expected * (1 - expected) / count).sqrt()
    likely = expected > 0.02
    assert likely.sum() >= 3
    assert ((found - expected).abs() <= 4 * spread)[likely].all()


def test_time_of_the_host_is_added_to_steps():
    chip_only, both = (
        trnsim.torch.serve(make("gpt2"), prompts(), 4, host=HostSettings(step_ps=ps)) for ps in (0, 10**9)
    )
    assert both.tokens == chip_only.tokens
    steps = len(chip_only.report.steps)
    assert both.result.finish_ps.max() == chip_only.result.finish_ps.max() + steps * 10**9


def test_arrivals_are_waited_for():
    model = make("gpt2")
    served = trnsim.torch.serve(model, prompts()[:2], 3, arrival_seconds=[0.0, 1.0])
    assert served.result.arrival_ps[1] == 10**12
    assert served.ttft[1] == pytest.approx(served.ttft[0], rel=0.2)
    assert model.training is False


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prompts": []}, "prompts"),
        ({"depth": "shape"}, "tokens"),
        ({"max_new_tokens": [3]}, "prompts"),
        ({"max_model_len": 12}, "max_model_len"),
    ],
)
def test_what_cannot_be_served_is_said(change, what):
    given = {"prompts": prompts(), "max_new_tokens": 3} | change
    with pytest.raises(InputError, match=what):
        trnsim.torch.serve(make("llama"), given.pop("prompts"), given.pop("max_new_tokens"), **given)
