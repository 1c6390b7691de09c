"""The time of a training step: operators and exchanges of each stage, laid along the pipeline, with what overlaps.

A stage does its chunk's forward and backward pass once a micro-batch; the slowest stage sets the pace, the others fill
and drain the pipeline before and after it. What the step then still waits for (gradients, optimiser, weights) comes at
its end. A *stack* (``hardware/stacks``) says how much of each kind of work runs at the speed of its kernel alone, and
how much of an exchange is not hidden behind computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.hardware import load_system
from trnsim.planner.groups import ExchangeCosts
from trnsim.planner.stack import TrainingStack, load_training_stack
from trnsim.planner.uses import UseCosts, worst
from trnsim.workloads.memory import Memory, training_memory
from trnsim.numerics import as_dtype
from trnsim.workloads.operators import OPTIMIZER, Exchange, Use, weight_bytes
from trnsim.workloads.training import training

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.model import System
    from trnsim.workloads.layout import Layout
    from trnsim.workloads.model import Model
    from trnsim.workloads.operators import Step

# What a step's time is made of, in microseconds each, before a stack says how much of it counts.
KINDS = ("products", "attention", "moves", "casts", "tp", "cp", "ep", "pp", "dp", "optimizer")
_GROUPS = {"expert_tp": "ep", "expert_dp": "dp", "embedding": "dp"}
Parts = "NDArray[np.float64]"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A model, a layout and where it runs.

    Attributes:
        system: name or file of the catalogue; as many of it as the layout's ranks fill.
        sequence: tokens of a sequence.
        implementation: of operators; "": the chip's usual one.
        stack: what surrounds them; "": the chip's usual one.
        lnc: NeuronCores of a rank on Trainium; None: the chip's default.
    """

    model: Model
    system: str
    layout: Layout
    sequence: int
    implementation: str = ""
    stack: str = ""
    lnc: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """What a plan takes.

    Attributes:
        step_us: time of a step. ``parts`` is what of it is what, after the stack: products, other operators, exchanges
            by group, optimiser, ``bubble`` (stages that wait for others).
        memory: of a rank, by stage.
        model_flops: of a step, without recomputation; ``chips`` that the ranks fill.
        peak_flops: of a chip, of the format of its products.
        components: microseconds by ``KINDS`` that ``step_us`` is a sum of, before the stack.
    """

    plan: TrainingPlan
    step_us: float
    parts: Mapping[str, float]
    memory: tuple[Memory, ...]
    model_flops: float
    chips: float
    peak_flops: float
    support: str
    reasons: tuple[str, ...]
    error_percent: float | None
    components: NDArray[np.float64] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Of a step."""
        layout = self.plan.layout
        return layout.micro_batches * layout.micro_batch * layout.dp * self.plan.sequence

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_us * 1e6

    @property
    def tokens_per_second_per_chip(self) -> float:
        return self.tokens_per_second / self.chips

    @property
    def mfu(self) -> float:
        """Share of peak that the model's FLOPs are."""
        return self.model_flops / (self.step_us / 1e6) / (self.chips * self.peak_flops)


@dataclass(frozen=True)
class Components:
    """Microseconds by ``KINDS`` of a stage and micro-batch, and once a step."""

    stages: NDArray[np.float64]
    """[stages, kinds], of a micro-batch through all its chunks."""
    ends: NDArray[np.float64]
    """[stages, kinds], once a step."""
    supports: frozenset[str]
    reasons: tuple[str, ...]


def components(plan: TrainingPlan, system: System | None = None) -> Components:
    """Operators and exchanges of each stage, priced.

    Raises:
        InputError: the layout does not fit the model, or the system not the layout.
        UnsupportedError: an operator or exchange that nothing is known of.
    """
    system = system or load_system(plan.system)
    uses = _use_costs(system.chip.name, plan.implementation, logical_cores(system, plan.lnc))
    exchanges = ExchangeCosts(system, plan.layout, plan.lnc)
    stages = training(plan.model, plan.layout, plan.sequence)
    supports: set[str] = set()
    reasons: dict[str, None] = {}
    inside = np.zeros((len(stages), len(KINDS)))
    ends = np.zeros((len(stages), len(KINDS)))
    for number, stage in enumerate(stages):
        for chunk in stage.chunks:
            for step in chunk:
                _add(inside[number], step, plan.layout, uses, exchanges, supports, reasons)
        _add(ends[number], stage.update, plan.layout, uses, exchanges, supports, reasons)
    return Components(inside, ends, frozenset(supports), tuple(reasons))


def _cast(item: Exchange, layout: Layout) -> Exchange:
    """What tensor parallelism gathers for narrow products is cast first: it crosses the links in their format."""
    if item.group != "tp" or item.operation != "all_gather" or not layout.weight_dtype:
        return item
    return replace(item, bytes=item.bytes * weight_bytes(layout.weight_dtype) / as_dtype(layout.dtype).itemsize)


def _add(
    row: NDArray[np.float64],
    step: Step,
    layout: Layout,
    uses: UseCosts,
    exchanges: ExchangeCosts,
    supports: set[str],
    reasons: dict[str, None],
) -> None:
    for item in step:
        if isinstance(item, Exchange):
            told = exchanges.cost(_cast(item, layout))
            row[KINDS.index(_GROUPS.get(item.group, item.group))] += told.microseconds
            support, reason = told.support, told.reason
        else:
            cost = uses.cost(item)
            row[KINDS.index("casts")] += uses.casts(item)
            kind = _kind(item, cost.product)
            row[KINDS.index(kind)] += cost.microseconds
            support, reason = cost.support, cost.reason
        supports.add(support)
        if reason and support != "calibrated":
            reasons[reason] = None


def _kind(use: Use, product: bool) -> str:
    if use.phase == OPTIMIZER:
        return "optimizer"
    if "attention" in use.operator:
        return "attention"
    return "products" if product else "moves"


def along_pipeline(found: Components, layout: Layout, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Microseconds by ``KINDS`` that a step's time is the weighted sum of.

    The stage that is slowest under ``weights`` works on every micro-batch; each other stage's time for one is waited
    for once, in as many pieces as it has chunks, of which one is not hidden (interleaving).
    """
    slowest = int(np.argmax(found.stages @ weights))
    last = int(np.argmax(found.ends @ weights))
    others = found.stages.sum(axis=0) - found.stages[slowest]
    steady: NDArray[np.float64] = layout.micro_batches * found.stages[slowest]
    return np.asarray(steady + others / layout.vpp + found.ends[last])


def estimate(plan: TrainingPlan, stack: TrainingStack | None = None) -> TrainingEstimate:
    """Time and memory of a step.

    Raises:
        InputError: the layout does not fit the model, or the system not the layout.
        UnsupportedError: an operator or exchange that nothing is known of.
    """
    system = load_system(plan.system)
    stack = stack or load_training_stack(plan.stack or default_stack(system))
    found = components(plan, system)
    weights = stack.weights(system.chip, plan.layout)
    line = along_pipeline(found, plan.layout, weights)
    step = float(line @ weights)
    slowest = int(np.argmax(found.stages @ weights))
    others = (found.stages.sum(axis=0) - found.stages[slowest]) @ weights / plan.layout.vpp
    parts = {kind: float(v) for kind, v in zip(KINDS, line * weights, strict=True) if v}
    peak = peak_flops(system, plan.layout)
    per_chip = ranks_per_chip(system, plan.lnc)
    sequences = plan.layout.micro_batches * plan.layout.micro_batch * plan.layout.dp
    return TrainingEstimate(
        plan=plan,
        step_us=step,
        parts={**parts, "bubble": float(others)},
        memory=training_memory(plan.model, plan.layout, plan.sequence, stack.reserve_bytes),
        model_flops=float(plan.model.training_flops(plan.sequence) * sequences),
        chips=plan.layout.ranks / per_chip,
        peak_flops=peak,
        support=worst({*found.supports, stack.support(system.chip)}),
        reasons=(*found.reasons, *stack.reasons(system.chip)),
        error_percent=stack.error_percent(system.chip),
        components=line,
    )


def default_stack(system: System) -> str:
    return "megatron" if system.chip.family == "nvidia" else "neuronx-distributed"


def peak_flops(system: System, layout: Layout) -> float:
    """Dense peak of a chip in the format of a layout's products: the denominator of MFU (docs/reference/conventions)."""
    from trnsim.operators.gpu import gpu_format

    chip = system.chip
    dtype = layout.weight_dtype or layout.dtype
    dtype = {"fp8": "float8", "nvfp4": "float4"}.get(dtype, dtype)
    if chip.core is None:
        return float(chip.flops[gpu_format(dtype)])
    peak = chip.core.tensor.flops(dtype)
    return float(peak or 0) * (chip.core_count or 1)


def logical_cores(system: System, lnc: int | None = None) -> int:
    """NeuronCores of a rank: as given, else the default of the generation (1 on NeuronCore-v2, 2 after it)."""
    if system.chip.core is None:
        return 1
    return lnc or (1 if system.chip.core.version == "v2" else 2)


def ranks_per_chip(system: System, lnc: int | None = None) -> float:
    """A rank is a GPU, or a logical core."""
    if system.chip.core is None:
        return 1.0
    return (system.chip.core_count or 1) / logical_cores(system, lnc)


_USES: dict[tuple[str, str, int], UseCosts] = {}


def _use_costs(chip: str, implementation: str, lnc: int) -> UseCosts:
    key = (chip, implementation, lnc)
    if key not in _USES:
        _USES[key] = UseCosts(chip, implementation, lnc)
    return _USES[key]
