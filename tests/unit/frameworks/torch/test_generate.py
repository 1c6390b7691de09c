"""Names of steps, from what a KV cache holds after each call."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from made_report import made_report

import trnsim.torch
from trnsim.frameworks.torch.generate import Caches
from trnsim.frameworks.torch.report import StepTime


class Cache:
    def __init__(self):
        self.length = 0

    def get_seq_length(self):
        return self.length


@pytest.mark.parametrize(
    ("added", "names"),
    [
        ((8, 1, 1), ("prefill", "decode", "decode")),
        ((8, 8, 3, 1), ("prefill", "prefill", "prefill", "decode")),  # a prompt in pieces
        ((1, 1), ("prefill", "decode")),  # a prompt of one token
    ],
)
def test_calls_are_named_by_what_the_cache_holds(added, names):
    caches, cache = Caches(), Cache()
    for count, name in zip(added, names, strict=True):
        cache.length += count
        assert caches.name_of(SimpleNamespace(past_key_values=cache)) == name


def test_a_model_without_a_cache_has_plain_steps():
    assert Caches().name_of(SimpleNamespace(past_key_values=None)) == "step"
    assert Caches().name_of(object()) == "step"


def test_answers_are_split_at_prompts():
    named = [("prefill", 5.0), ("prefill", 4.0), ("decode", 1.0), ("decode", 3.0), ("rest", 9.0), ("prefill", 2.0)]
    report = replace(made_report(), steps=tuple(StepTime(name, 0, 0.0, time) for name, time in named))
    first, second = trnsim.torch.generations(report)
    assert (first.ttft_ps, first.tpot_ps, first.tokens, first.total_ps) == (9.0, 2.0, 3, 13.0)
    assert (second.ttft_ps, second.tpot_ps, second.tokens) == (2.0, None, 1)
