"""Disaggregated serving: replicas that compute prompts, others that decode, and the cache that moves between them.

Both are plans of one model on one kind of system, each with a layout of its own: tensor and expert parallelism, stages.
The cache of a prompt goes over the fabric, each rank of the smaller replica sending or receiving its share: between
systems where the two do not fit on one. The search is exhaustive, and best is the most output tokens a second and chip.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.planner.groups import ExchangeCosts
from trnsim.planner.serving import ServingCase, ServingPlan, chip_price
from trnsim.planner.serving_search import MEMORY, PIPELINES, Load, doubled, fitted_batch, frontier_of, why_not
from trnsim.planner.training import ranks_per_chip
from trnsim.planner.uses import worst
from trnsim.serving.closed_pools import PooledState, decode_times, pooled_state
from trnsim.serving.system import Transfer
from trnsim.workloads import Layout

if TYPE_CHECKING:
    from trnsim.hardware.model import Price
    from trnsim.workloads.memory import Memory


@dataclass(frozen=True, kw_only=True)
class PooledEstimate:
    """A pair of plans under a closed loop of equal requests.

    ``transfer``: of a prompt's cache, ``transfer_bytes`` of it all; ``prefill_memory``, ``decode_memory``: of a rank.
    """

    prefill: ServingPlan
    decode: ServingPlan
    state: PooledState
    users: int
    transfer: Transfer
    transfer_bytes: float
    chips: float
    prefill_memory: Memory
    decode_memory: Memory
    price: Price | None
    usd_per_hour: float | None
    error_percent: float | None
    support: str
    reasons: tuple[str, ...]

    @property
    def output_tokens_per_second_per_chip(self) -> float:
        return self.state.output_tokens_per_second / self.chips

    @property
    def usd_per_million_output_tokens(self) -> float | None:
        if self.usd_per_hour is None:
            return None
        return self.usd_per_hour / 3600 / self.state.output_tokens_per_second * 1e6


@dataclass(frozen=True)
class PooledFound:
    """Pairs of plans, the best first; how many were evaluated, and why others were left out."""

    best: tuple[PooledEstimate, ...]
    evaluated: int
    pruned: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class PooledCase:
    """Two plans made ready; their layouts' ``dp`` are the numbers of replicas."""

    prefill: ServingCase
    decode: ServingCase

    @classmethod
    def of(cls, prefill: ServingPlan, decode: ServingPlan) -> PooledCase:
        """Make two plans ready.

        Raises:
            InputError: see ``ServingCase``.
        """
        return cls(ServingCase(replace(prefill, speculation=None, draft=None)), ServingCase(decode))

    def transfer(self, tokens: int) -> tuple[Transfer, float, str, str]:
        """(how the cache of a prompt of ``tokens`` moves, its bytes, support, reason).

        Raises:
            UnsupportedError: no model of the links.
        """
        first, second = self.prefill.plan.layout, self.decode.plan.layout
        system = self.decode.system
        costs = ExchangeCosts(system, self.decode.plan.lnc)
        held = round(system.chip_count * ranks_per_chip(system, self.decode.plan.lnc))
        ranks = first.tp * first.pp * first.dp + second.tp * second.pp * second.dp
        flows = min(first.tp * first.pp, second.tp * second.pp)
        # On one system a rank sends to another of it, elsewhere to its like on the next system.
        used = min(ranks, held)
        stride = min(first.tp * first.pp, used - 1) if ranks <= held else used
        settings = self.decode.settings
        whole = tokens * settings.cache.bytes_per_token
        large, small = whole / flows, max(whole / flows / 16, 1.0)
        told = [costs.cost("send_receive", 2, stride, size, used) for size in (small, large)]
        slope = max((told[1].microseconds - told[0].microseconds) / (large - small), 1e-12)
        latency = max(told[1].microseconds - slope * large, 0.0)
        rate = flows / slope * 1e6
        return Transfer(bytes_per_second=rate, latency_ps=round(latency * 1e6)), whole, told[1].support, told[1].reason

    def estimate(
        self,
        users: int,
        input_tokens: int,
        output_tokens: int,
        price_type: str = "",
        steps: Callable[[int], float] | None = None,
    ) -> PooledEstimate:
        """Steady state of ``users``; ``steps``: see ``pooled_state``.

        Raises:
            InputError: requests that a cache cannot hold.
        """
        move, size, support, reason = self.transfer(input_tokens)
        state = pooled_state(
            self.prefill.pool(),
            self.decode.pool(),
            move,
            users=users,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            steps=steps,
        )
        chips = self.prefill.chips + self.decode.chips
        price = chip_price(self.decode.system, price_type)
        fit = self.decode.fit
        costs = (self.prefill.costs, self.decode.costs)
        reasons = dict.fromkeys((f"transfer of the cache: {reason}" if reason else "", *costs[1].reasons))
        return PooledEstimate(
            prefill=self.prefill.plan,
            decode=self.decode.plan,
            state=state,
            users=users,
            transfer=move,
            transfer_bytes=size,
            chips=chips,
            prefill_memory=replace(self.prefill.memory, cache=self.prefill.cache_bytes),
            decode_memory=replace(self.decode.memory, cache=self.decode.cache_bytes),
            price=None if price is None else price[0],
            usd_per_hour=None if price is None else price[1] * chips,
            error_percent=None if fit is None else fit.error_percent,
            support=worst({support, *costs[0].supports, *costs[1].supports, "assumed"}),
            reasons=tuple(r for r in reasons if r),
        )


Given = Mapping[str, int]


def pairs(
    plan: ServingPlan, chips: float | None, prefill: Given, decode: Given, pp: int = 1
) -> Iterator[tuple[Layout, Layout]]:
    """Layouts of both pools, which fill the chips: all that ``prefill`` and ``decode`` do not fix.

    Degrees of two of tensor parallelism, experts on the ranks of a replica or of the pool, ``pp`` stages.
    """
    system = load_system(plan.system)
    per = ranks_per_chip(system, plan.lnc)
    degrees = doubled(round(system.chip_count * per))
    ranks = round((chips or system.chip_count) * per)

    def shapes(fixed: Given) -> list[tuple[int, int]]:
        stages = fixed.get("pp", pp)
        return [(tp, stages) for tp in ((fixed["tp"],) if "tp" in fixed else degrees)]

    def shared(shape: tuple[int, int], count: int, fixed: Given) -> Iterator[Layout]:
        tp, stages = shape
        shares = (1, tp, tp * count) if plan.model.mixture else (1,)
        for ep in (fixed["ep"],) if "ep" in fixed else dict.fromkeys(shares):
            yield Layout(tp=tp, pp=stages, ep=ep, dp=count)

    for one, other in product(shapes(prefill), shapes(decode)):
        first, second = one[0] * one[1], other[0] * other[1]
        for count in (prefill["dp"],) if "dp" in prefill else range(1, max((ranks - second) // first, 0) + 1):
            number = decode.get("dp", (ranks - count * first) // second)
            if number >= 1 and ("dp" in decode or count * first + number * second == ranks):
                yield from product(shared(one, count, prefill), shared(other, number, decode))


class _Cases:
    """Plans of one pool by layout, each made ready once."""

    def __init__(self, make: Callable[[Layout], ServingPlan]) -> None:
        self.make = make
        self.held: dict[Layout, ServingCase | TrnsimError] = {}

    def __getitem__(self, layout: Layout) -> ServingCase:
        """Raises ``TrnsimError`` where the layout does not fit the model or the memory, each time."""
        if layout not in self.held:
            try:
                case = ServingCase(self.make(layout))
                _ = case.settings  # whether the cache has room
                self.held[layout] = case
            except TrnsimError as error:
                self.held[layout] = error
        found = self.held[layout]
        if isinstance(found, TrnsimError):
            raise found
        return found


def search_pools(plan: ServingPlan, load: Load, chips: float | None, prefill: Given, decode: Given) -> PooledFound:
    """All pairs of the space that hold the limits, the most output tokens a second and chip first.

    A pipeline is tried where it is asked for, or where the model fits no system without.

    Raises:
        InputError: none does.
    """
    begin = time.perf_counter()
    pruned: Counter[str] = Counter()
    best: list[PooledEstimate] = []
    evaluated, last = 0, ""
    alone = replace(plan, speculation=None, draft=None)
    prompts = _Cases(lambda layout: replace(alone, layout=layout))
    steps: dict[Layout, Callable[[int], float]] = {}
    decoding = _Cases(lambda layout: fitted_batch(replace(plan, layout=layout), load.users))
    for pp in PIPELINES:
        for first, second in pairs(plan, chips, prefill, decode, pp):
            try:
                case = PooledCase(prompts[first], decoding[second])
                if second not in steps:
                    steps[second] = decode_times(case.decode.pool(), load.input_tokens, load.output_tokens)
                found = case.estimate(load.users, load.input_tokens, load.output_tokens, load.price_type, steps[second])
            except TrnsimError as error:
                pruned[why_not(error)] += 1
                last = str(error)
                continue
            evaluated += 1
            late = load.late(found.state)
            if late:
                pruned[f"{late} over its limit"] += 1
            else:
                best.append(found)
        if evaluated or MEMORY not in pruned or ("pp" in prefill and "pp" in decode):
            break
    if not best:
        why = f": {last}" if last else ""
        raise InputError(
            f"no pair of pools of {plan.model.name} on {plan.system} holds the limits{why}",
            operand="--disaggregated",
            value="; ".join(f"{n} {r}" for r, n in pruned.items()) or "no pair fills the chips",
        )  # fmt: skip
    best.sort(key=lambda one: -one.output_tokens_per_second_per_chip)
    return PooledFound(tuple(best), evaluated, dict(pruned), time.perf_counter() - begin)


def frontier_pools(
    plan: ServingPlan, load: Load, chips: float | None, prefill: Given, decode: Given
) -> tuple[PooledEstimate, ...]:
    """Throughput against latency: see ``serving_search.frontier``."""
    return frontier_of(lambda some: search_pools(plan, some, chips, prefill, decode).best, load)
