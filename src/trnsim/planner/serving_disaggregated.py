"""Disaggregated serving: replicas that compute prompts, others that decode, and the cache that moves between them.

Both are plans of one model on one kind of system. The cache of a prompt goes over the fabric, each rank of the smaller
replica sending or receiving its share: between systems where the two do not fit on one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.planner.groups import ExchangeCosts
from trnsim.planner.serving import ServingCase, ServingPlan, chip_price
from trnsim.planner.serving_search import Load, why_not
from trnsim.planner.training import ranks_per_chip
from trnsim.planner.uses import worst
from trnsim.serving.closed_pools import PooledState, pooled_state
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


class PooledCase:
    """Two plans made ready."""

    def __init__(self, prefill: ServingPlan, decode: ServingPlan) -> None:
        """Layouts' ``dp`` are the numbers of replicas.

        Raises:
            InputError: see ``ServingCase``.
        """
        self.prefill = ServingCase(replace(prefill, speculation=None, draft=None))
        self.decode = ServingCase(decode)

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

    def estimate(self, users: int, input_tokens: int, output_tokens: int, price_type: str = "") -> PooledEstimate:
        """Steady state of ``users``.

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


def pairs(
    plan: ServingPlan, chips: float | None, prefill: dict[str, int], decode: dict[str, int]
) -> Iterator[tuple[Layout, Layout]]:
    """Layouts of both pools: ``tp`` and ``dp`` that stay, or all degrees of two and numbers that fill the chips."""
    system = load_system(plan.system)
    per = ranks_per_chip(system, plan.lnc)
    held = round(system.chip_count * per)
    ranks = round((chips or system.chip_count) * per)
    degrees = [2**n for n in range(held.bit_length()) if 2**n <= held]
    for one in (prefill["tp"],) if "tp" in prefill else degrees:
        for other in (decode["tp"],) if "tp" in decode else degrees:
            for count in (prefill["dp"],) if "dp" in prefill else range(1, max((ranks - other) // one, 0) + 1):
                rest = (ranks - count * one) // other
                number = decode.get("dp", rest)
                if number >= 1 and ("dp" in decode or count * one + number * other == ranks):
                    yield Layout(tp=one, dp=count), Layout(tp=other, dp=number)


def search_pools(
    plan: ServingPlan, load: Load, chips: float | None, prefill: dict[str, int], decode: dict[str, int]
) -> PooledFound:
    """All pairs of the space that hold the limits, the most output tokens a second and chip first.

    Raises:
        InputError: none does.
    """
    begin = time.perf_counter()
    pruned: Counter[str] = Counter()
    best: list[PooledEstimate] = []
    evaluated, last = 0, ""
    for first, second in pairs(plan, chips, prefill, decode):
        try:
            each = -(-load.users // second.dp)
            decoding = replace(plan, layout=second)
            if plan.max_num_seqs is None and ServingCase(decoding).stack.decode_batch.rule == "largest":
                decoding = replace(decoding, max_num_seqs=each)
            found = PooledCase(replace(plan, layout=first), decoding).estimate(
                load.users, load.input_tokens, load.output_tokens, load.price_type
            )
        except TrnsimError as error:
            pruned[why_not(error)] += 1
            last = str(error)
            continue
        evaluated += 1
        if load.ttft is not None and found.state.ttft > load.ttft:
            pruned["TTFT over its limit"] += 1
        elif load.tpot is not None and found.state.tpot > load.tpot:
            pruned["TPOT over its limit"] += 1
        else:
            best.append(found)
    if not best:
        why = f": {last}" if last else ""
        raise InputError(
            f"no pair of pools of {plan.model.name} on {plan.system} holds the limits{why}",
            operand="--disaggregated",
            value="; ".join(f"{n} {r}" for r, n in pruned.items()) or "no pair fills the chips",
        )  # fmt: skip
    best.sort(key=lambda one: -one.output_tokens_per_second_per_chip)
    return PooledFound(tuple(best), evaluated, dict(pruned), time.perf_counter() - begin)
