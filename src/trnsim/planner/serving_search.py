"""The best layouts that serve a load: every degree of tensor parallelism and number of replicas, under constraints.

The space: degrees of two up to the ranks of one system; for models with experts also expert parallelism over the ranks
of a replica, and over those of all replicas (attention with data parallelism); as many replicas as fill the chips that
are given, or any power of two within one system; a pipeline where one is asked for, or where the model fits no system
without. The search is exhaustive. Best is the most output tokens a second and chip.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from trnsim.errors import InputError, TrnsimError, UnsupportedError
from trnsim.hardware import load_system, system_names
from trnsim.hardware.stack import load_stack
from trnsim.planner.serving import ServingCase, ServingEstimate, ServingPlan, default_serving_stack
from trnsim.planner.training import ranks_per_chip
from trnsim.workloads import Layout

MEMORY = "do not fit in memory"
# Stages of the pipelines that are tried one after the other, until a model fits.
PIPELINES = (1, 2, 4, 8, 16)
# By how much shorter TPOT is from one plan of a frontier to the next, at least.
SHOWN = 0.005


class Latency(Protocol):
    """Seconds to the first token, and of each further one."""

    @property
    def ttft(self) -> float: ...

    @property
    def tpot(self) -> float: ...


class Rated(Protocol):
    """A plan under a load."""

    @property
    def state(self) -> Latency: ...

    @property
    def output_tokens_per_second_per_chip(self) -> float: ...


Plan = TypeVar("Plan", bound=Rated)


@dataclass(frozen=True, kw_only=True)
class Load:
    """A closed loop of ``users`` with prompts and outputs of one length; limits in seconds, None: none.

    ``cached_tokens`` of each prompt are the same for all, and reused where the stack does that.
    """

    users: int
    input_tokens: int
    output_tokens: int
    ttft: float | None = None
    tpot: float | None = None
    price_type: str = ""
    cached_tokens: int = 0

    def late(self, state: Latency) -> str:
        """The limit that a plan is over; "": none."""
        if self.ttft is not None and state.ttft > self.ttft:
            return "TTFT"
        return "TPOT" if self.tpot is not None and state.tpot > self.tpot else ""


@dataclass(frozen=True)
class Found:
    """Plans, the best first; ``slow`` ones are over a limit; how many were evaluated, and why others were left out."""

    best: tuple[ServingEstimate, ...]
    evaluated: int
    pruned: dict[str, int]
    seconds: float
    slow: tuple[ServingEstimate, ...] = ()

    @property
    def pareto(self) -> tuple[ServingEstimate, ...]:
        """Plans that no other beats in both output tokens a second and chip and TPOT, the most tokens first."""
        return undominated(self.best)


def undominated(plans: Iterable[Plan], by: float = 0.0) -> tuple[Plan, ...]:
    """Those of ``plans`` that no other beats in both output tokens a second and chip and TPOT.

    ``by``: the part by which a plan's TPOT must be shorter than that of one with more tokens a chip.
    """
    found: list[Plan] = []
    for one in sorted(plans, key=lambda e: (-e.output_tokens_per_second_per_chip, e.state.tpot)):
        if not found or one.state.tpot < found[-1].state.tpot * (1 - by):
            found.append(one)
    return tuple(found)


def fitted_batch(plan: ServingPlan, users: int) -> ServingPlan:
    """The plan with the batch that the load needs where graphs are compiled for one batch, which a user chooses."""
    stack = load_stack(plan.stack or default_serving_stack(load_system(plan.system)))
    if plan.max_num_seqs is not None or stack.decode_batch.rule != "largest":
        return plan
    each = -(-users // plan.layout.dp)
    return replace(plan, max_num_seqs=max(1, min(each, ServingCase(plan).slots(plan.max_model_len))))


def evaluate(plan: ServingPlan, load: Load) -> ServingEstimate:
    """One plan under a load.

    Raises:
        TrnsimError: it does not fit the model, the memory or the load.
    """
    case = ServingCase(fitted_batch(plan, load.users))
    return case.estimate(load.users, load.input_tokens, load.output_tokens, load.price_type, load.cached_tokens)


def layouts(plan: ServingPlan, chips: float | None, fixed: dict[str, int], pp: int = 1) -> Iterator[Layout]:
    """The space (see the module). ``fixed``: ``tp``, ``pp``, ``ep``, ``dp`` that stay."""
    system = load_system(plan.system)
    per = ranks_per_chip(system, plan.lnc)
    most = round(system.chip_count * per)
    pp = fixed.get("pp", pp)
    for tp in (fixed["tp"],) if "tp" in fixed else doubled(most):
        ranks = round((chips or system.chip_count) * per)
        if "dp" in fixed:
            replicas: tuple[int, ...] = (fixed["dp"],)
        elif chips is not None:
            if ranks % (tp * pp):
                continue
            replicas = (ranks // (tp * pp),)
        else:
            replicas = (1,) if "tp" in fixed else tuple(doubled(max(ranks // (tp * pp), 1)))
        for dp in replicas:
            shares = (1, tp, tp * dp) if plan.model.mixture else (1,)
            for ep in (fixed["ep"],) if "ep" in fixed else dict.fromkeys(shares):
                yield Layout(tp=tp, pp=pp, ep=ep, dp=dp)


def doubled(most: int) -> list[int]:
    """Powers of two, up to ``most``."""
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def search(plan: ServingPlan, load: Load, chips: float | None = None, fixed: dict[str, int] | None = None) -> Found:
    """All layouts of the space that hold the constraints, the best first.

    Raises:
        InputError: none does; says why, by how much, and the smallest system that the model fits.
    """
    begin = time.perf_counter()
    pruned: Counter[str] = Counter()
    errors: list[TrnsimError] = []
    best: list[ServingEstimate] = []
    slow: list[ServingEstimate] = []
    evaluated = 0
    for pp in PIPELINES:
        for layout in layouts(plan, chips, fixed or {}, pp):
            try:
                found = evaluate(replace(plan, layout=layout), load)
            except (InputError, UnsupportedError) as error:
                errors.append(error)
                pruned[why_not(error)] += 1
                continue
            evaluated += 1
            late = load.late(found.state)
            if late:
                pruned[f"{late} over its limit"] += 1
            (slow if late else best).append(found)
        # Pipelines are for models that fit no system without.
        if best or slow or "pp" in (fixed or {}) or not any(why_not(e) == MEMORY for e in errors):
            break
    if not best:
        raise _none(plan, load, slow, errors)
    best.sort(key=lambda one: -one.output_tokens_per_second_per_chip)
    return Found(tuple(best), evaluated, dict(pruned), time.perf_counter() - begin, tuple(slow))


def frontier(
    plan: ServingPlan, load: Load, chips: float | None = None, fixed: dict[str, int] | None = None
) -> tuple[ServingEstimate, ...]:
    """Throughput against latency: the plans of all layouts under 1, 2, 4 ... users, up to those of the load, that no
    other beats in both output tokens a second and chip and TPOT.

    Raises:
        InputError: no plan holds the constraints under any number of users.
    """
    return frontier_of(lambda some: search(plan, some, chips, fixed).best, load)


def frontier_of(plans: Callable[[Load], Iterable[Plan]], load: Load) -> tuple[Plan, ...]:
    """Throughput against latency, of the ``plans`` for a load, which refuse one that none serves.

    Raises:
        InputError: all are refused.
    """
    found: list[Plan] = []
    refused: InputError | None = None
    for users in dict.fromkeys((*doubled(load.users), load.users)):
        try:
            found += plans(replace(load, users=users))
        except InputError as error:
            refused = error
    if not found:
        assert refused is not None
        raise refused
    return undominated(found, SHOWN)


def why_not(error: TrnsimError) -> str:
    """Why a plan was left out, as reports count it."""
    text = str(error)
    if "does not fit" in text or "KV cache" in text or "than the KV" in text:
        return MEMORY
    return "layouts that the model or system does not allow"


def _none(plan: ServingPlan, load: Load, slow: list[ServingEstimate], errors: list[TrnsimError]) -> InputError:
    if slow:
        ttft, tpot = min(s.state.ttft for s in slow), min(s.state.tpot for s in slow)
        return InputError(
            f"no plan of {plan.model.name} on {plan.system} holds the limits: the shortest TTFT is "
            f"{ttft * 1e3:,.1f} ms, the shortest TPOT {tpot * 1e3:,.2f} ms",
            operand="limits", value=f"TTFT {_ms(load.ttft)}, TPOT {_ms(load.tpot)}",
        )  # fmt: skip
    memory = [e for e in errors if why_not(e) == MEMORY]
    if not memory:
        return InputError(
            f"no plan of {plan.model.name} on {plan.system}: " + str(errors[0] if errors else "no layout")
        )
    fits = smallest_system(plan, load)
    hint = f"; the smallest system that it fits is {fits}" if fits else ""
    return InputError(f"{memory[-1]}{hint}")


def _ms(seconds: float | None) -> str:
    return "any" if seconds is None else f"{seconds * 1e3:g} ms"


def smallest_system(plan: ServingPlan, load: Load) -> str:
    """The system with the least memory of the same vendor on which one replica fits and answers one request."""
    family = load_system(plan.system).chip.family
    systems = [load_system(name) for name in system_names()]
    systems = [s for s in systems if (s.chip.family == "nvidia") == (family == "nvidia") and s.chip.hbm is not None]
    for system in sorted(systems, key=lambda s: s.chip.hbm.capacity_bytes * s.chip_count):
        try:
            most = round(system.chip_count * ranks_per_chip(system, plan.lnc))
            layout = Layout(tp=2 ** (most.bit_length() - 1))
            other = replace(plan, system=system.name, layout=layout, stack="", implementation="")
            ServingCase(other).estimate(1, load.input_tokens, load.output_tokens)
        except TrnsimError:
            continue
        return system.name
    return ""
