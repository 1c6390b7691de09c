"""What a step of a serving engine costs: the abstract boundary between the scheduler and what runs on the chips.

The engine (``engine.py``) decides what each step does and asks a ``StepCost`` how long it takes. A cost is a pure
function of the step: the same step always takes the same time. Times are integer picoseconds.

A cost that can say in one call how long many decode steps take implements ``decode_steps_ps`` too (``RunCost``). The
engine then skips over steps in which nothing but contexts changes; the two methods must agree exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from trnsim.errors import InputError

Integers: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

NONE: Integers = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Step:
    """What one step computes: chunks of prompts, and tokens of sequences that decode.

    ``prefill_tokens[i]`` tokens of a prompt are computed after ``prefill_context[i]`` that the cache holds already.
    Each sequence of ``decode_context`` (tokens in the cache before the step) computes ``decode_tokens`` tokens: 1, or
    1 + k under speculation with drafts of k tokens. int64 arrays.

    ``prefill_requests`` and ``decode_requests`` say whose they are (numbers of the workload's requests), for what
    computes tokens; a time must not depend on them. Where a step is padded, requests are fewer than sequences.
    """

    prefill_tokens: Integers = field(default_factory=lambda: NONE)
    prefill_context: Integers = field(default_factory=lambda: NONE)
    decode_context: Integers = field(default_factory=lambda: NONE)
    decode_tokens: int = 1
    prefill_requests: Integers = field(default_factory=lambda: NONE)
    decode_requests: Integers = field(default_factory=lambda: NONE)

    @property
    def total_tokens(self) -> int:
        """Tokens computed, padding included."""
        return int(self.prefill_tokens.sum()) + self.decode_context.size * self.decode_tokens


class StepCost(Protocol):
    """The time of a step on the chips of one replica, without host time."""

    def step_ps(self, step: Step) -> int:
        """Picoseconds of device time of ``step``."""
        ...


@runtime_checkable
class RunCost(StepCost, Protocol):
    """A cost that decode steps depend on through three figures only: sequences, sum and maximum of their contexts."""

    def decode_steps_ps(self, sequences: int, tokens: int, context_sum: Integers, context_max: Integers) -> Integers:
        """Picoseconds (int64 array) of successive decode steps.

        Step i has ``sequences`` sequences of ``tokens`` tokens each, with contexts that sum up to ``context_sum[i]``
        and whose longest is ``context_max[i]``. Must equal ``step_ps`` of each of these steps.
        """
        ...


@runtime_checkable
class EndingCost(StepCost, Protocol):
    """A cost that computes tokens and so knows when an answer ends before it has all tokens that were asked for."""

    def ended(self, requests: Integers) -> npt.NDArray[np.bool_]:
        """Which of ``requests`` end with the last token that they got. Asked after every step, of all that run."""
        ...


@dataclass(frozen=True, kw_only=True)
class AffineCost:
    """A cost that is linear in what a step does, with coefficients that the user gives or fits.

    fixed + per_token * tokens + per_context * (tokens in the cache that decoding sequences read)
    + per_pair * (pairs of a prompt token and an earlier or the same token, which attention of a chunk computes), in
    picoseconds. Decode reads its cache once a step, however many tokens a sequence computes.
    """

    fixed_ps: float
    per_token_ps: float = 0.0
    per_context_ps: float = 0.0
    per_pair_ps: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed_ps", "per_token_ps", "per_context_ps", "per_pair_ps"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"AffineCost.{name} must be a finite number, 0 or more", value=value)

    def step_ps(self, step: Step) -> int:
        """Picoseconds of a step."""
        new, old = step.prefill_tokens, step.prefill_context
        pairs = int((new * old + new * (new + 1) // 2).sum())
        decode = step.decode_context
        ps = self.fixed_ps + self.per_token_ps * float(step.total_tokens)
        return int(np.rint(ps + self.per_context_ps * float(int(decode.sum())) + self.per_pair_ps * float(pairs)))

    def decode_steps_ps(self, sequences: int, tokens: int, context_sum: Integers, context_max: Integers) -> Integers:
        """Picoseconds of successive decode steps; ``context_max`` has no influence."""
        del context_max
        ps = self.fixed_ps + self.per_token_ps * float(sequences * tokens)
        return np.asarray(np.rint(ps + self.per_context_ps * context_sum), np.int64)
