"""Serving plans: what a step of a replica costs on chips, and the steady state of a load.

A step's time is that of its operators and exchanges, one after the other as a graph runs them: products over all tokens
of the step together, attention of each chunk of a prompt and of the sequences that decode apart. The engine
(``serving/``) decides what steps do; the stack (``hardware/stacks``) says what surrounds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware import load_system
from trnsim.hardware.stack import load_stack
from trnsim.planner.groups import ExchangeCosts, stride
from trnsim.planner.pricing import logical_cores, ranks_per_chip
from trnsim.planner.uses import UseCosts, worst
from trnsim.serving.closed_form import SteadyState, steady_state
from trnsim.serving.profile import replica_settings, static_shapes
from trnsim.workloads.memory import Memory, serving_memory
from trnsim.workloads.operators import Exchange
from trnsim.workloads.serving import decode, prefill

if TYPE_CHECKING:
    from trnsim.hardware.model import Price, System
    from trnsim.hardware.stack import Stack
    from trnsim.serving.cost import Integers, Step
    from trnsim.serving.settings import ReplicaSettings, Speculation
    from trnsim.workloads import Layout, Model
    from trnsim.workloads.operators import Step as Items

# What stands after the layers: computed for the tokens that are sampled, not for all.
_HEAD = ("final_norm", "head", "head.input")
# Contexts between which decode attention is interpolated grow by this factor.
_FINE = 2**0.25


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """A model on replicas of a layout.

    Attributes:
        layout: of one replica (``tp``, ``ep``); its ``dp`` is the number of replicas. ``product_dtype`` and
            ``weight_dtype`` are the formats of products and weights.
        formats: of stored weights by part (``default``, ``experts`` ...): what fills the memory.
        cache_dtype: of keys and values.
        max_model_len: tokens of a request at most.
        stack: of ``hardware/stacks``. ``max_num_seqs``, ``max_num_batched_tokens``: None: the stack's.
    """

    model: Model
    system: str
    layout: Layout
    formats: Mapping[str, str]
    cache_dtype: str = "bfloat16"
    max_model_len: int = 8192
    stack: str = ""
    implementation: str = ""
    lnc: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    speculation: Speculation | None = None

    @property
    def replica_ranks(self) -> int:
        return self.layout.tp * self.layout.pp


class StepCosts:
    """The time of a replica's step: a ``serving.RunCost``."""

    def __init__(self, plan: ServingPlan, system: System | None = None) -> None:
        """Raises:
        InputError: the layout does not fit the model or the system.
        UnsupportedError: pipelines; ranks of a replica that one system does not hold evenly.
        """
        if plan.layout.pp > 1:
            raise UnsupportedError("serving over a pipeline is not supported", operand="pp", value=plan.layout.pp)
        self.plan = plan
        self.system = system or load_system(plan.system)
        self._uses = UseCosts(
            self.system.chip.name, plan.implementation, logical_cores(self.system, plan.lnc), casts_apart=False
        )
        self._exchanges = ExchangeCosts(self.system, plan.lnc)
        self._used = self._exchanges.used(plan.layout.tp * plan.layout.dp)
        self.supports: set[str] = set()
        self.reasons: dict[str, None] = {}
        self._body: dict[int, float] = {}
        self._heads: dict[int, float] = {}
        self._chunks: dict[tuple[int, int], float] = {}
        self._decode: dict[tuple[int, int, int], float] = {}

    def step_ps(self, step: Step) -> int:
        """Picoseconds of device time of ``step``."""
        sequences = int(step.decode_context.size)
        microseconds = self._rest(step.total_tokens, sequences * step.decode_tokens + int(step.prefill_tokens.size))
        for tokens, before in zip(step.prefill_tokens.tolist(), step.prefill_context.tolist(), strict=True):
            microseconds += self._chunk(tokens, before)
        if sequences:
            total = step.decode_context.sum(keepdims=True)
            microseconds += float(self._attention(sequences, step.decode_tokens, total)[0])
        return round(microseconds * 1e6)

    def decode_steps_ps(self, sequences: int, tokens: int, context_sum: Integers, context_max: Integers) -> Integers:
        """Picoseconds of successive decode steps."""
        del context_max
        rest = self._rest(sequences * tokens, sequences * tokens)
        return np.asarray(np.rint((rest + self._attention(sequences, tokens, context_sum)) * 1e6), np.int64)

    def _rest(self, tokens: int, rows: int) -> float:
        """All but attention over the cache, of ``tokens`` of which ``rows`` are sampled."""
        if tokens not in self._body:
            step = prefill(self.plan.model, self.plan.layout, 1, tokens)
            self._body[tokens] = self._time([i for i in step if i.where not in _HEAD and not _is_core(i.where)])
        if rows not in self._heads:
            step = decode(self.plan.model, self.plan.layout, rows, 1)
            self._heads[rows] = self._time([i for i in step if i.where in _HEAD])
        return self._body[tokens] + self._heads[rows]

    def _chunk(self, tokens: int, before: int) -> float:
        """Attention of a chunk of a prompt."""
        key = (tokens, before)
        if key not in self._chunks:
            step = prefill(self.plan.model, self.plan.layout, 1, tokens, before)
            self._chunks[key] = self._time([i for i in step if _is_core(i.where)])
        return self._chunks[key]

    def _attention(self, sequences: int, tokens: int, context_sum: Integers) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Attention of sequences that decode, between contexts of a geometric row, which are priced."""
        context = np.maximum(context_sum / sequences + tokens, 1.0)
        place = np.log(context) / np.log(_FINE)
        low = np.floor(place).astype(np.int64)
        found = {n: self._at(sequences, tokens, n) for n in np.unique(np.concatenate((low, low + 1))).tolist()}
        begin, end = np.rint(_FINE ** low.astype(float)), np.rint(_FINE ** (low + 1.0))
        a = np.array([found[n] for n in low.tolist()])
        b = np.array([found[n + 1] for n in low.tolist()])
        share = np.where(end > begin, (context - begin) / np.maximum(end - begin, 1.0), 0.0)
        return np.asarray(a + (b - a) * np.clip(share, 0.0, 1.0))

    def _at(self, sequences: int, tokens: int, knot: int) -> float:
        key = (sequences, tokens, knot)
        if key not in self._decode:
            context = max(round(_FINE**knot), 1)
            plan = self.plan
            step = decode(plan.model, plan.layout, sequences, context, new=tokens, cache_dtype=plan.cache_dtype)
            self._decode[key] = self._time([i for i in step if _is_core(i.where)])
        return self._decode[key]

    def _time(self, step: Items) -> float:
        total = 0.0
        for item in step:
            if isinstance(item, Exchange):
                told = self._exchanges.cost(
                    item.operation, int(item.ranks), stride(self.plan.layout, item.group), float(item.bytes), self._used
                )
                total += told.microseconds * float(item.count)
                support, reason = told.support, told.reason
            else:
                cost = self._uses.cost(item)
                total += cost.microseconds
                support, reason = cost.support, cost.reason
            self.supports.add(support)
            if reason and support != "calibrated":
                self.reasons[reason] = None
        return total


def _is_core(where: str) -> bool:
    return where.endswith(".core") or where == "indexer.scores"


@dataclass(frozen=True, kw_only=True)
class ServingEstimate:
    """A plan under a closed loop of equal requests.

    Attributes:
        state: of one replica.
        memory: of a rank; ``capacity_bytes`` of its memory; ``cache_tokens`` that a replica's cache holds.
        chips: that all replicas fill.
        usd_per_hour: of these chips, None where there is no price; ``price`` that it is from.
    """

    plan: ServingPlan
    state: SteadyState
    users: int
    input_tokens: int
    output_tokens: int
    memory: Memory
    capacity_bytes: int
    cache_tokens: int
    chips: float
    price: Price | None
    usd_per_hour: float | None
    support: str
    reasons: tuple[str, ...]

    @property
    def output_tokens_per_second(self) -> float:
        return self.state.output_tokens_per_second * self.plan.layout.dp

    @property
    def output_tokens_per_second_per_chip(self) -> float:
        return self.output_tokens_per_second / self.chips

    @property
    def usd_per_million_output_tokens(self) -> float | None:
        if self.usd_per_hour is None:
            return None
        return self.usd_per_hour / 3600 / self.output_tokens_per_second * 1e6


class ServingCase:
    """A plan made ready: costs, memory, and the settings of its replicas."""

    def __init__(self, plan: ServingPlan) -> None:
        """Raises:
        InputError: unknown names; a layout that does not fit; weights that leave no room for the cache.
        UnsupportedError: see ``StepCosts``.
        """
        self.plan = plan
        self.system = load_system(plan.system)
        self.stack: Stack = load_stack(plan.stack or default_serving_stack(self.system))
        self.costs = StepCosts(plan, self.system)

    @property
    def rank_bytes(self) -> int:
        """Memory of a rank."""
        return round(self.system.chip.hbm.capacity_bytes / ranks_per_chip(self.system, self.plan.lnc))

    @cached_property
    def memory(self) -> Memory:
        """Of a rank, the cache apart."""
        plan, one = self.plan, self.plan.layout
        batched = plan.max_num_batched_tokens or self.stack.max_num_batched_tokens or plan.max_model_len
        return serving_memory(
            plan.model,
            plan.formats,
            tokens=1,
            sequences=0,
            prefill_tokens=min(batched, max(plan.max_model_len, 1)),
            cache_dtype=plan.cache_dtype,
            tp=one.tp,
            ep=one.ep,
            expert_tp=one.expert_ranks,
            reserve=0,
        )

    @cached_property
    def settings(self) -> ReplicaSettings:
        """Of a replica.

        Raises:
            InputError: the weights leave no room for the cache of one request; says by how much.
        """
        plan, one, stack = self.plan, self.plan.layout, self.stack
        used = float(self.memory.weights + self.memory.activations)
        seqs = plan.max_num_seqs or stack.max_num_seqs
        batched = plan.max_num_batched_tokens or stack.max_num_batched_tokens or plan.max_model_len
        graphs = static_shapes(stack, plan.max_model_len, seqs, batched).graphs
        room = stack.cache_bytes(self.rank_bytes, int(used), graphs)
        elements = float(plan.model.cache_elements(plan.max_model_len, one.tp)) / plan.max_model_len
        if room <= 0:
            raise InputError(
                f"{plan.model.name} does not fit: weights and activations of a rank take {used / 2**30:,.1f} GiB, "
                f"{-room / 2**30:,.1f} GiB more than {stack.name} leaves of {self.rank_bytes / 2**30:,.1f} GiB",
                operand="tp", value=one.tp,
            )  # fmt: skip
        return replica_settings(
            stack,
            max_model_len=plan.max_model_len,
            capacity_bytes=room * one.tp,
            elements_per_token=elements * one.tp,
            dtype=plan.cache_dtype,
            max_num_seqs=plan.max_num_seqs,
            max_num_batched_tokens=plan.max_num_batched_tokens,
            speculation=plan.speculation,
        )

    def estimate(self, users: int, input_tokens: int, output_tokens: int) -> ServingEstimate:
        """Steady state of ``users`` over all replicas, prompts and outputs of one length.

        Raises:
            InputError: requests that the cache or ``max_model_len`` cannot hold.
        """
        plan, settings = self.plan, self.settings
        each = -(-users // plan.layout.dp)
        state = steady_state(
            self.costs, settings, users=each, input_tokens=input_tokens, output_tokens=output_tokens
        )
        chips = plan.replica_ranks * plan.layout.dp / ranks_per_chip(self.system, plan.lnc)
        price = newest_price(self.system)
        hourly = None if price is None else price.usd_per_hour * chips / self.system.chip_count
        token = settings.cache.bytes_per_token
        return ServingEstimate(
            plan=plan,
            state=state,
            users=users,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            memory=self.memory,
            capacity_bytes=self.rank_bytes,
            cache_tokens=int(settings.cache.capacity_bytes / token),
            chips=chips,
            price=price,
            usd_per_hour=hourly,
            support=worst({*self.costs.supports, "assumed" if self.stack.assumed else "calibrated"}),
            reasons=(
                *self.costs.reasons,
                *((f"stack {self.stack.name}: {', '.join(self.stack.assumed)} assumed",) if self.stack.assumed else ()),
            ),
        )


def default_serving_stack(system: System) -> str:
    return "vllm-gpu" if system.chip.family == "nvidia" else "nxdi"


def newest_price(system: System, kind: str = "") -> Price | None:
    """The newest price of a system of the first type that it has: on demand, capacity block, spot; None: it has none."""
    for one in (kind,) if kind else ("on-demand", "capacity-block", "spot"):
        found = [p for p in system.prices if p.type == one]
        if found:
            return max(found, key=lambda p: (str(p.date), -p.usd_per_hour))
    return None
