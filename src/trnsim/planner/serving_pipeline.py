"""Steps over a pipeline, and steps with drafts: costs made of other costs.

A pipeline of ``pp`` stages keeps as many micro-batches in flight, each a share of the sequences. While one is on the
last stage the others are on those before, so that all have made a step after ``pp`` times what the slowest stage
takes for one. A prompt alone passes the stages one after the other and takes as long.

Speculation drafts ``length`` tokens a step with a smaller model, one after the other, on the same ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from trnsim.serving.cost import Step

if TYPE_CHECKING:
    from trnsim.planner.serving_costs import Parts, StepCosts
    from trnsim.serving.cost import Integers


class PipelineCosts:
    """A ``serving.RunCost`` of stages that differ: the first, one in the middle, the last."""

    def __init__(self, stages: Sequence[StepCosts], pp: int) -> None:
        self.stages, self.pp = list(stages), pp

    @property
    def supports(self) -> set[str]:
        return {support for stage in self.stages for support in stage.supports}

    @property
    def reasons(self) -> dict[str, None]:
        return {reason: None for stage in self.stages for reason in stage.reasons}

    def with_factors(self, factors: Parts) -> PipelineCosts:
        """The same plan with other factors."""
        return PipelineCosts([stage.with_factors(factors) for stage in self.stages], self.pp)

    def step_ps(self, step: Step) -> int:
        """Picoseconds until all micro-batches of ``step`` have passed all stages once."""
        count = int(step.decode_context.size)
        if not step.prefill_tokens.size:
            sums = step.decode_context.sum(keepdims=True)
            return int(self.decode_steps_ps(count, step.decode_tokens, sums, sums)[0]) if count else 0
        # The largest micro-batch: its share of the sequences that decode, and of the prompts the first ones.
        prompts = -(-int(step.prefill_tokens.size) // self.pp)
        mine = -(-count // self.pp)
        mean = round(float(step.decode_context.mean())) if count else 0
        order = np.argsort(-step.prefill_tokens, kind="stable")[:prompts]
        one = Step(
            step.prefill_tokens[order],
            step.prefill_context[order],
            np.full(mine, mean, np.int64),
            step.decode_tokens,
        )
        return self.pp * max(stage.step_ps(one) for stage in self.stages)

    def decode_steps_ps(self, sequences: int, tokens: int, context_sum: Integers, context_max: Integers) -> Integers:
        """Picoseconds of successive decode steps."""
        mine = -(-sequences // self.pp)
        share = np.asarray(np.rint(context_sum * (mine / sequences)), np.int64)
        times = [stage.decode_steps_ps(mine, tokens, share, context_max) for stage in self.stages]
        return np.asarray(self.pp * np.max(times, axis=0), np.int64)


class DraftedCosts:
    """A ``serving.RunCost`` of steps that decode ``1 + length`` tokens a sequence, drafted by a smaller model."""

    def __init__(self, target: StepCosts | PipelineCosts, draft: StepCosts, length: int) -> None:
        self.target, self.draft, self.length = target, draft, length

    @property
    def supports(self) -> set[str]:
        return self.target.supports | self.draft.supports

    @property
    def reasons(self) -> dict[str, None]:
        return {**self.target.reasons, **self.draft.reasons}

    def with_factors(self, factors: Parts) -> DraftedCosts:
        """The same plan with other factors."""
        found = copy(self)
        found.target, found.draft = self.target.with_factors(factors), self.draft.with_factors(factors)
        return found

    def step_ps(self, step: Step) -> int:
        """Picoseconds of device time of ``step``; the draft model computes prompts too."""
        found = self.target.step_ps(step)
        if step.prefill_tokens.size:
            found += self.draft.step_ps(Step(step.prefill_tokens, step.prefill_context))
        count = int(step.decode_context.size)
        if count:
            sums = step.decode_context.sum(keepdims=True)
            found += int(self._drafts(count, sums)[0])
        return found

    def decode_steps_ps(self, sequences: int, tokens: int, context_sum: Integers, context_max: Integers) -> Integers:
        """Picoseconds of successive decode steps."""
        target = self.target.decode_steps_ps(sequences, tokens, context_sum, context_max)
        return np.asarray(target + self._drafts(sequences, context_sum), np.int64)

    def _drafts(self, sequences: int, context_sum: Integers) -> Integers:
        return self.length * self.draft.decode_steps_ps(sequences, 1, context_sum, context_sum)
