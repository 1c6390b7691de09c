"""Generation with a KV cache: which steps compute a prompt and which decode, and what a person waits for.

``model.generate`` of ``transformers`` runs unchanged. After every call of a model that keeps a cache, the cache says
how many tokens it holds: a call that added one to some is a decode step, any other computes a prompt. Sampling belongs
to the step whose logits it takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from trnsim.frameworks.torch.report import Report

PREFILL, DECODE, OTHER, AROUND = "prefill", "decode", "step", "rest"


class Caches:
    """The caches that were seen, with how many tokens each held."""

    def __init__(self) -> None:
        self._held: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def name_of(self, result: Any) -> str:
        """What the call of a model was, of which ``result`` is the output."""
        cache = cache_of(result)
        if cache is None:
            return OTHER
        before = self._held.get(cache, 0)
        now = held(cache)
        self._held[cache] = now if now is not None else before + 1
        if now is None:  # a cache without data: its first call is the prompt
            return DECODE if before else PREFILL
        return DECODE if before and now - before == 1 else PREFILL


def cache_of(result: Any) -> Any:
    """The KV cache in a model's output; None if it has none."""
    cache = getattr(result, "past_key_values", None)
    return cache if hasattr(cache, "get_seq_length") else None


def held(cache: Any) -> int | None:
    """Tokens that a cache holds; None where that is a number on the chip without data."""
    with _disable_current_modes():
        length = cache.get_seq_length()
        if isinstance(length, FakeTensor):
            return None
        return int(length)


def tensors_of(cache: Any) -> Iterator[torch.Tensor]:
    """The tensors that hold a cache's keys and values, by layer."""
    for layer in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            if isinstance(tensor, torch.Tensor):
                yield tensor


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer (or a batch of them): times of its steps, in picoseconds."""

    prefill_ps: float
    decode_ps: tuple[float, ...]

    @property
    def ttft_ps(self) -> float:
        """Time to the first token: the prompt, and the choice of the token."""
        return self.prefill_ps

    @property
    def tpot_ps(self) -> float | None:
        """Mean time of each further token; None of an answer of one."""
        return sum(self.decode_ps) / len(self.decode_ps) if self.decode_ps else None

    @property
    def tokens(self) -> int:
        """Tokens of each sequence."""
        return 1 + len(self.decode_ps)

    @property
    def total_ps(self) -> float:
        return self.prefill_ps + sum(self.decode_ps)


def generations(report: Report) -> list[Generation]:
    """The answers of a run, in order: each begins with the computation of a prompt, in one step or several."""
    found: list[tuple[float, list[float]]] = []
    for step in report.steps:
        if step.name == PREFILL:
            if found and not found[-1][1]:
                found[-1] = (found[-1][0] + step.time_ps, [])  # the next piece of the same prompt
            else:
                found.append((step.time_ps, []))
        elif step.name == DECODE and found:
            found[-1][1].append(step.time_ps)
    return [Generation(prefill, tuple(decode)) for prefill, decode in found]
