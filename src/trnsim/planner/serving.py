"""Serving plans: a model on replicas, the memory that its cache gets, and the steady state of a load.

What a step costs is in ``serving_costs``; the engine (``serving/``) decides what steps do; the stack
(``hardware/stacks``) says what surrounds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware import load_system
from trnsim.hardware.stack import load_stack
from trnsim.planner.economics import price_of
from trnsim.planner.pricing import logical_cores
from trnsim.planner.replica import settings_of
from trnsim.planner.serving_costs import Parts, StepCosts, computed
from trnsim.planner.serving_padding import padded
from trnsim.planner.serving_pipeline import DraftedCosts, PipelineCosts
from trnsim.planner.serving_stack import stack_fit
from trnsim.planner.training import peak_flops, ranks_per_chip
from trnsim.planner.uses import worst
from trnsim.serving.closed_form import SteadyState, steady_state
from trnsim.serving.profile import replica_settings, static_shapes
from trnsim.serving.settings import StaticShapes
from trnsim.serving.system import Pool
from trnsim.workloads import Layout
from trnsim.workloads.memory import Memory, serving_cache, serving_memory, serving_weights

if TYPE_CHECKING:
    from trnsim.hardware.model import Price, System
    from trnsim.hardware.stack import Stack
    from trnsim.planner.exchange import ServingLayout
    from trnsim.serving.settings import ReplicaSettings, Speculation
    from trnsim.workloads import Model

# Formats of --dtype by the names that users give them; "shipped" is how the model's weights are published.
FORMATS = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8", "mxfp8": "mxfp8", "mxfp4": "mxfp4", "nvfp4": "nvfp4",
           "int4": "int4", "int8": "int8"}  # fmt: skip
CACHE_FORMATS = {"bf16": "bfloat16", "fp8": "float8_e4m3"}


def weight_parts(dtype: str, shipped: Mapping[str, str]) -> dict[str, str]:
    """Formats of weights by part. Embedding, head and router stay in 16 bits.

    Raises:
        InputError: no such format.
    """
    if dtype in ("", "shipped"):
        return dict(shipped)
    if dtype not in FORMATS:
        raise InputError(f"no format {dtype!r} of weights", operand="dtype", value=dtype, limit=("shipped", *FORMATS))
    wide = {} if dtype in ("bf16", "fp16") else {"embedding": "bfloat16", "head": "bfloat16", "router": "bfloat16"}
    if dtype == "mxfp4" and shipped.get("experts"):
        return {**shipped, "experts": "mxfp4"}
    return {"default": FORMATS[dtype], **wide}


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """A model on replicas of a layout.

    Attributes:
        layout: of one replica (``tp``, ``pp``, ``ep``); its ``dp`` is the number of replicas, which share experts where
            ``ep`` is more than ``tp`` (attention with data parallelism).
        formats: of stored weights by part (``default``, ``experts`` ...): what fills the memory and is multiplied.
        cache_dtype: of keys and values.
        max_model_len: tokens of a request at most.
        stack: of ``hardware/stacks``; "": the chip's usual. ``max_num_seqs``, ``max_num_batched_tokens``: None: the
            stack's.
        speculation: drafts and their acceptance; ``draft``: the model that makes them, in 16 bits on the same ranks;
            None: they cost nothing (a lookup in the prompt).
        described: another tool's configuration, which goes before the stack where it says something.
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
    draft: Model | None = None
    described: ServingLayout | None = None

    @property
    def replica_ranks(self) -> int:
        return self.layout.tp * self.layout.pp


@dataclass(frozen=True, kw_only=True)
class ServingEstimate:
    """A plan under a closed loop of equal requests.

    Attributes:
        state: of one replica.
        memory: of a rank, its cache as large as it can be; ``capacity_bytes`` of a rank's memory.
        cache_tokens: that a replica's cache holds.
        cached_tokens: of each prompt, reused; ``peak_flops``: of a chip, dense, of the format of most products.
        chips: that all replicas fill.
        error_percent: of TPOT: of the stack's fit on runs that were left out; None: there is no fit.
        price: of the system or chip, None where there is none; ``usd_per_hour`` of these chips, a share of the system.
    """

    plan: ServingPlan
    state: SteadyState
    users: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    peak_flops: float
    memory: Memory
    capacity_bytes: int
    cache_tokens: int
    chips: float
    price: Price | None
    usd_per_hour: float | None
    watts_per_chip: float | None
    error_percent: float | None
    support: str
    reasons: tuple[str, ...]

    @property
    def output_tokens_per_second(self) -> float:
        return self.state.output_tokens_per_second * self.plan.layout.dp

    @property
    def output_tokens_per_second_per_chip(self) -> float:
        return self.output_tokens_per_second / self.chips

    @property
    def mfu(self) -> float:
        """FLOPs of the model for the tokens that are computed, over the peak of the chips in the products' format."""
        model, tokens = self.plan.model, self.input_tokens + self.output_tokens - 1
        flops = float(model.forward_flops(tokens))
        if self.cached_tokens:
            flops -= float(model.forward_flops(self.cached_tokens))
        requests = self.output_tokens_per_second / self.output_tokens
        return flops * requests / (self.chips * self.peak_flops)

    @property
    def usd_per_million_output_tokens(self) -> float | None:
        if self.usd_per_hour is None:
            return None
        return self.usd_per_hour / 3600 / self.output_tokens_per_second * 1e6

    @property
    def joules_per_output_token(self) -> float | None:
        """Power of the chips, as the catalogue has it, times time: assumed."""
        if self.watts_per_chip is None:
            return None
        return self.watts_per_chip / self.output_tokens_per_second_per_chip


class ServingCase:
    """A plan made ready: costs, memory, and the settings of its replicas."""

    def __init__(self, plan: ServingPlan, factors: Parts | None = None, system: System | None = None) -> None:
        """``factors``: of operators and exchanges; None: those fitted for the stack, if there are.

        Raises:
            InputError: unknown names; a layout that does not fit; weights that leave no room for the cache.
            UnsupportedError: see ``StepCosts``.
        """
        self.plan = plan
        self.system = system or load_system(plan.system)
        self.stack: Stack = load_stack(plan.stack or default_serving_stack(self.system))
        # Fits are of what stacks run: compiled graphs on Neuron devices, not our kernels.
        shipped = plan.implementation in ("", "gpu", "compiler")
        self.fit = stack_fit(self.stack, plan, self.system.chip) if factors is None and shipped else None
        if self.fit is not None:
            factors = self.fit.factors
        elif factors is None and self.stack.back_to_back:
            factors = Parts(work=1.0, fixed=0.0, exchange=1.0)
        # As it runs: heads padded where the stack pads them.
        self.run = replace(plan, model=padded(plan.model, plan.layout.tp)) if self.stack.pads_heads else plan
        self._given = () if factors is None else (factors,)
        self.factors = factors or Parts(1.0, 1.0, 1.0)
        self.costs = self._costs()

    def _costs(self) -> StepCosts | PipelineCosts | DraftedCosts:
        plan, best = self.run, self.stack.best_operators
        pp = plan.layout.pp
        stages = [
            StepCosts(plan, self.system, *self._given, best=best, stage=stage)
            for stage in dict.fromkeys((0, pp // 2, pp - 1))
        ]
        found: StepCosts | PipelineCosts = stages[0] if pp == 1 else PipelineCosts(stages, pp)
        if plan.draft is None or plan.speculation is None:
            return found
        tp = plan.layout.tp
        model = padded(plan.draft, tp) if self.stack.pads_heads else plan.draft
        small = replace(plan, model=model, layout=Layout(tp=tp), formats={"default": "bfloat16"}, draft=None)
        draft = StepCosts(small, self.system, *self._given, best=best)
        return DraftedCosts(found, draft, plan.speculation.length)

    @property
    def chips(self) -> float:
        """That all replicas fill."""
        return self.plan.replica_ranks * self.plan.layout.dp / ranks_per_chip(self.system, self.plan.lnc)

    @property
    def rank_bytes(self) -> int:
        """Memory of a rank."""
        return round(self.system.chip.hbm.capacity_bytes / ranks_per_chip(self.system, self.plan.lnc))

    @property
    def cores(self) -> int:
        """Physical cores of a rank; a GPU counts as one."""
        return 1 if self.system.chip.core is None else logical_cores(self.system, self.plan.lnc)

    @property
    def _prompt_tokens(self) -> int:
        """Tokens that pass the model at once at most."""
        plan, stack = self.plan, self.stack
        batched = plan.max_num_batched_tokens or stack.max_num_batched_tokens or plan.max_model_len
        return batched if stack.chunks or stack.max_prefills != 1 else min(batched, plan.max_model_len)

    @cached_property
    def memory(self) -> Memory:
        """Of a rank, without a cache."""
        plan, one = self.run, self.plan.layout
        found = serving_memory(
            plan.model,
            plan.formats,
            tokens=1,
            sequences=0,
            prefill_tokens=self._prompt_tokens,
            cache_dtype=plan.cache_dtype,
            tp=one.tp,
            ep=one.ep,
            expert_tp=one.expert_ranks,
            pp=one.pp,
            reserve=0,
        )
        if plan.draft is None:
            return found
        more = serving_weights(plan.draft, {"default": "bfloat16"}, one.tp)
        return replace(found, weights=found.weights + more)

    @cached_property
    def _graphs(self) -> int:
        plan, stack = self.plan, self.stack
        seqs = plan.max_num_seqs or stack.max_num_seqs
        batched = plan.max_num_batched_tokens or stack.max_num_batched_tokens or plan.max_model_len
        theirs = plan.described
        if theirs is not None and theirs.decode_batch_buckets:
            return StaticShapes(
                theirs.prefill_buckets, theirs.decode_batch_buckets, theirs.decode_context_buckets
            ).graphs
        return static_shapes(stack, plan.max_model_len, seqs, batched).graphs

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of a rank's memory that are left for the cache.

        Raises:
            InputError: none; says by how much.
        """
        plan, stack = self.plan, self.stack
        used = float(self.memory.weights + self.memory.activations)
        room = stack.cache_bytes(self.rank_bytes, int(used), self._graphs, self.cores)
        if room <= 0:
            raise InputError(
                f"{plan.model.name} does not fit: weights and activations of a rank take {used / 2**30:,.1f} GiB, "
                f"{-room / 2**30:,.1f} GiB more than {stack.name} leaves of {self.rank_bytes / 2**30:,.1f} GiB",
                operand="tp", value=plan.layout.tp,
            )  # fmt: skip
        return room

    def slots(self, tokens: int) -> int:
        """Requests of ``tokens`` that a replica's cache holds."""
        layout = self.plan.layout
        one = float(serving_cache(self.run.model, tokens, 1, self.plan.cache_dtype, layout.tp)) / layout.pp
        return int(self.cache_bytes // one)

    @cached_property
    def settings(self) -> ReplicaSettings:
        """Of a replica.

        Raises:
            InputError: the weights leave no room for the cache; says by how much.
        """
        plan, tp = self.run, self.plan.layout.tp
        elements = float(plan.model.cache_elements(plan.max_model_len, tp)) / plan.max_model_len
        capacity = self.cache_bytes * tp * plan.layout.pp
        if plan.described is not None:
            given = replace(
                plan.described,
                cache_dtype=plan.cache_dtype,
                max_model_len=plan.max_model_len,
                max_num_seqs=plan.max_num_seqs,
                max_num_batched_tokens=plan.max_num_batched_tokens,
                speculation_length=0,
            )
            found = settings_of(given, self.stack, capacity_bytes=capacity, elements_per_token=elements * tp)
            found = replace(found, speculation=plan.speculation)
        else:
            found = replica_settings(
                self.stack,
                max_model_len=plan.max_model_len,
                capacity_bytes=capacity,
                elements_per_token=elements * tp,
                dtype=plan.cache_dtype,
                max_num_seqs=plan.max_num_seqs,
                max_num_batched_tokens=plan.max_num_batched_tokens,
                speculation=plan.speculation,
            )
        if self.fit is None or self.fit.host_ms is None:
            return found
        # Fitted beside the device's time, whatever of it overlaps.
        host = replace(found.host, step_ps=round(self.fit.host_ms * 1e9), launch_ps=0, overlap="none")
        return replace(found, host=host)

    @property
    def _support(self) -> str:
        """How times are known: by a fit of the stack, one carried from other chips, or operators alone."""
        if self.fit is None:
            return worst({*self.costs.supports, "assumed"})
        return "extrapolated" if self.fit.carried else "interpolated"

    def pool(self) -> Pool:
        """All replicas, for the engine."""
        return Pool(
            cost=self.costs,
            settings=self.settings,
            replicas=self.plan.layout.dp,
            chips=self.chips / self.plan.layout.dp,
        )

    def estimate(
        self, users: int, input_tokens: int, output_tokens: int, price_type: str = "", cached_tokens: int = 0
    ) -> ServingEstimate:
        """Steady state of ``users`` over all replicas, prompts and outputs of one length.

        ``cached_tokens`` of each prompt are the same for all, and reused.

        Raises:
            InputError: requests that the cache or ``max_model_len`` cannot hold.
        """
        plan, settings = self.plan, self.settings
        each = -(-users // plan.layout.dp)
        state = steady_state(
            self.costs,
            settings,
            users=each,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
        )
        price = chip_price(self.system, price_type)
        power = self.system.chip.power
        assumed, fit = self.stack.assumed, self.fit
        if fit is not None and fit.host_ms is not None:
            # Time is fitted; what is left decides on memory and batches.
            assumed = tuple(key for key in assumed if not key.startswith(("host.", "launch.")))
        why = (f"stack {self.stack.name}: {', '.join(assumed)} assumed",) if assumed else ()
        if fit is not None:
            of = ", ".join(text for text in (fit.kind, fit.format, fit.generation) if text)
            of += ", carried from these chips" if fit.carried else ""
            what = "configurations" if fit.host_ms is not None else "graphs"
            why = (f"stack {fit.stack} fitted on {fit.cases} published {what}{f' ({of})' if of else ''}", *why)
        reserve = self.stack.kept_bytes(self._graphs, self.cores)
        return ServingEstimate(
            plan=plan,
            state=state,
            users=users,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
            peak_flops=product_peak(plan, self.system),
            memory=replace(self.memory, cache=self.cache_bytes, reserve=reserve),
            capacity_bytes=self.rank_bytes,
            cache_tokens=int(settings.cache.capacity_bytes / settings.cache.bytes_per_token),
            chips=self.chips,
            price=None if price is None else price[0],
            usd_per_hour=None if price is None else price[1] * self.chips,
            watts_per_chip=power.all_in_watts or power.tdp_watts,
            error_percent=None if fit is None else fit.error_percent,
            support=self._support,
            reasons=(*why, *self.costs.reasons) if fit is not None else (*self.costs.reasons, *why),
        )


def product_peak(plan: ServingPlan, system: System) -> float:
    """FLOPs a second of a chip, dense, in the format that most products are computed in."""
    stored = plan.formats.get("experts" if plan.model.mixture else "mlp", plan.formats.get("default", "bfloat16"))
    dtype, _ = computed(system.chip, stored)
    try:
        return peak_flops(system, Layout(product_dtype={"fp8": "float8_e4m3"}.get(dtype, dtype)))
    except KeyError:
        return peak_flops(system, Layout())


def default_serving_stack(system: System) -> str:
    """The stack that a chip is usually served with."""
    return "vllm-gpu" if system.chip.family == "nvidia" else "nxdi"


def chip_price(system: System, kind: str = "", date: str = "") -> tuple[Price, float] | None:
    """(price, dollars an hour of one chip): see ``economics.price_of``; each chip its share of a system.

    None: there is none.
    """
    try:
        price, of = price_of(system, kind or None, date)
    except UnsupportedError:
        return None
    return price, price.usd_per_hour / (system.chip_count if of == "system" else 1)
