"""Why the best serving plan is the best, and what binds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.planner.serving import ServingCase
from trnsim.planner.serving_costs import Parts
from trnsim.planner.serving_search import evaluate, fitted_batch
from trnsim.planner.training import ranks_per_chip
from trnsim.workloads.memory import serving_cache

if TYPE_CHECKING:
    from trnsim.planner.serving import ServingEstimate, ServingPlan
    from trnsim.planner.serving_search import Found, Load

_MORE = 2  # times as many users, to see what more of them would do


@dataclass(frozen=True)
class Explanation:
    """Of the best plan.

    Attributes:
        step_ms: milliseconds of a steady decode step by what they go to.
        bytes_ms: of reading weights and cache once at HBM's rate, which no step of this layout can be faster than.
        steps_ms, prompts_ms: of a request's time, in decode steps and in anything else (prompts, waiting).
        bound: what keeps the batch from being larger, as ``SteadyState``.
        more_users: output tokens a second and chip with twice the users, over those with these; None: it is not served.
        runner_up: the next best plan; ``without_limits``: the best plan of those over a limit, if it is better.
    """

    best: ServingEstimate
    step_ms: Mapping[str, float]
    bytes_ms: float
    steps_ms: float
    prompts_ms: float
    bound: str
    more_users: float | None
    runner_up: ServingEstimate | None
    without_limits: ServingEstimate | None
    limit: str

    @property
    def largest(self) -> str:
        """What takes most of a step."""
        return max(self.step_ms, key=lambda name: self.step_ms[name])


def explain(found: Found, load: Load, plan: ServingPlan) -> Explanation:
    """Explain the best plan of a search for layouts of ``plan``."""
    best = found.best[0]
    case = ServingCase(fitted_batch(best.plan, load.users))
    step = step_parts(case, best)
    steps_ms = sum(step.values()) * (best.output_tokens - 1) / _yield(best)
    faster = [one for one in found.slow if _rate(one) > _rate(best)]
    without = max(faster, key=_rate) if faster else None
    try:
        asked = replace(plan, layout=best.plan.layout)
        more: float | None = _rate(evaluate(asked, replace(load, users=_MORE * load.users))) / _rate(best)
    except TrnsimError:
        more = None
    return Explanation(
        best=best,
        step_ms=step,
        bytes_ms=_bytes_ms(case, best),
        steps_ms=steps_ms,
        prompts_ms=max(best.state.e2e * 1e3 - steps_ms, 0.0),
        bound=best.state.bound,
        more_users=more,
        runner_up=found.best[1] if len(found.best) > 1 else None,
        without_limits=without,
        limit=load.late(without.state) if without is not None else "",
    )


def step_parts(case: ServingCase, one: ServingEstimate) -> dict[str, float]:
    """Milliseconds of a decode step in the middle of the outputs, by what they go to."""
    settings, batch = case.settings, one.state.batch
    tokens = settings.decode_tokens
    middle = np.array([one.input_tokens + one.output_tokens // 2], np.int64)
    by = case.factors

    def milliseconds(factors: Parts, context: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        size, total, longest = settings.shapes.pad_decode(batch, tokens, batch * context, context)
        return float(case.costs.with_factors(factors).decode_steps_ps(size, tokens, total, longest)[0]) / 1e9

    def bare(factors: Parts) -> float:
        size = settings.shapes.pad_decode(batch, tokens, batch * middle, middle)[0]
        ones = np.array([size], np.int64)
        return float(case.costs.with_factors(factors).decode_steps_ps(size, tokens, ones, ones)[0]) / 1e9

    work = Parts(work=by.work)
    products = bare(work)
    host = settings.host
    return {
        "products and norms": products,
        "attention over the cache": max(milliseconds(work, middle) - products, 0.0),
        "what operators take however small": milliseconds(Parts(fixed=by.fixed), middle),
        "exchanges": milliseconds(Parts(exchange=by.exchange), middle),
        "host and launch": (host.launch_ps + (host.step_ps if host.overlap == "none" else 0)) / 1e9,
    }


def _rate(one: ServingEstimate) -> float:
    return one.output_tokens_per_second_per_chip


def _yield(one: ServingEstimate) -> float:
    speculation = one.plan.speculation
    return 1.0 if speculation is None else speculation.mean_tokens


def _bytes_ms(case: ServingCase, one: ServingEstimate) -> float:
    """Milliseconds of a rank's weights and cache at HBM's rate; of experts, all that it holds."""
    plan, chip = case.run, case.system.chip
    layout = plan.layout
    context = one.input_tokens + one.output_tokens // 2
    cache = float(serving_cache(plan.model, context, one.state.batch, plan.cache_dtype, layout.tp)) / layout.pp
    rate = chip.hbm.bytes_per_second / ranks_per_chip(case.system, plan.lnc)
    return (float(case.memory.weights) + cache) / rate * 1e3
