"""The time of a training step: operators and exchanges of each piece of the model, what of it overlaps, the pipeline.

A *stack* (``training_stacks.toml``) says how long each kind of computation takes beside its kernel alone, and which
share of an exchange cannot be hidden. What can be hidden is hidden behind computation that runs meanwhile, as long as
that lasts:

- tensor parallelism: behind the products that the exchange belongs to, cut into pieces (but in NVFP4);
- context parallelism: behind attention; experts, and shared weights (ZeRO 3): behind all computation of a pass;
- sends between stages with several chunks: behind passes of other chunks;
- gradients: behind the backward pass of the last micro-batch; weights: behind the first forward pass of the next step.

So an exchange of T microseconds beside W of computation takes ``max(share x T, T - W)``. Each pass of each piece is a
number then, of which ``schedules.counts`` says how often a step waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.hardware import load_system
from trnsim.planner.pricing import COMPUTE, KIND, KINDS, Prices, logical_cores, together
from trnsim.planner.schedules import Counts, counts
from trnsim.planner.stack import TrainingStack, load_training_stack
from trnsim.planner.uses import worst
from trnsim.workloads.memory import Memory, training_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.model import System
    from trnsim.workloads.layout import Layout
    from trnsim.workloads.model import Model

    Floats = NDArray[np.float64]

_TP, _CP, _EP, _FAR, _GATHER, _DP = (KIND[name] for name in ("tp", "cp", "ep", "ep_far", "gather", "dp"))
_LATE, _ALONE = KIND["late"], KIND["tp_alone"]
_ATTENTION = KIND["attention"]
# A host does something once a step; its factor counts in these.
HOST_US = 1000.0
# A line has the kinds, and microseconds that no factor of a stack changes.
WIDTH = len(KINDS) + 1


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A model, a layout and where it runs.

    Attributes:
        system: name or file of the catalogue, or one that was changed; as many of it as the layout's ranks fill.
        sequence: tokens of a sequence.
        implementation: of operators; "": the chip's usual one.
        stack: what surrounds them; "": the chip's usual one.
        lnc: NeuronCores of a rank on Trainium; None: the chip's default.
        schedule: of the pipeline: ``1f1b`` (interleaved where stages have several chunks) or ``zb-h1``.
    """

    model: Model
    system: str | System
    layout: Layout
    sequence: int
    implementation: str = ""
    stack: str = ""
    lnc: int | None = None
    schedule: str = "1f1b"

    @property
    def on(self) -> System:
        """The system."""
        return load_system(self.system) if isinstance(self.system, str) else self.system


@dataclass(frozen=True, eq=False)
class Pieces:
    """Microseconds of each piece and pass by kind, before a stack: ``times`` [pieces, 3, kinds] (forward, backward for
    inputs, for weights); ``ends`` [stages, 3, kinds] (gradients, weights, optimiser); ``send`` between pieces.
    """

    times: Floats
    ends: Floats
    send: float
    flops: float
    supports: frozenset[str]
    reasons: tuple[str, ...]


def pieces_of(prices: Prices, layout: Layout) -> Pieces:
    """Price a layout.

    Raises:
        InputError: the layout does not fit the model.
        UnsupportedError: an operator or exchange that nothing is known of.
    """
    model = prices.model
    layout.check(model, prices.sequence)
    layers, chunks = prices.layers(layout), prices.chunks(layout)
    times = np.tensordot(chunks, np.stack([cost.times for cost in layers]), 1)
    before, after = prices.ends(layout)
    times[0] += before.times
    times[-1] += after.times
    flops = float(chunks.sum(axis=0) @ [cost.flops for cost in layers]) + before.flops + after.flops
    supports, reasons = together((*layers, before, after))
    send = 0.0
    if layout.pp > 1:
        send, support, reason = prices.send(layout)
        supports, reasons = supports | {support}, (*reasons, *([reason] if support != "calibrated" else []))
    ends, more, why = prices.step_ends(layout)
    supports, reasons = supports | more, tuple(dict.fromkeys((*reasons, *why)))
    return Pieces(times, ends, send, flops / layout.pp, supports, tuple(r for r in reasons if r))


def lines(pieces: Pieces, weights: Floats) -> Floats:
    """[pieces, 3, kinds + 1] of which the scalar product with ``weights`` (and 1) is the time of a pass."""
    found = np.zeros((*pieces.times.shape[:2], WIDTH))
    # The passes for inputs and for weights share what hides their exchanges.
    passes = (pieces.times[:, :1], pieces.times[:, 1:])
    for rows, times in zip((slice(0, 1), slice(1, 3)), passes, strict=True):
        found[:, rows, COMPUTE] = times[:, :, COMPUTE]
        found[:, rows, _ALONE] = times[:, :, _ALONE]
        total = times.sum(axis=1)
        products = total[:, :2]
        attention = total[:, _ATTENTION : _ATTENTION + 1]
        first = rows.start
        for kind, columns, beside in (
            (_TP, slice(0, 2), products),
            (_CP, slice(_ATTENTION, _ATTENTION + 1), attention),
            (_EP, COMPUTE, total[:, COMPUTE]),
            (_FAR, COMPUTE, total[:, COMPUTE]),
            (_GATHER, COMPUTE, total[:, COMPUTE]),
        ):
            whole = total[:, kind]
            if not whole.any():
                continue
            late = whole - beside @ weights[columns] > weights[kind] * whole
            found[:, first, kind] = np.where(late, 0.0, whole)
            found[:, first, -1] += np.where(late, whole, 0.0)
            found[:, first, columns] -= np.where(late[:, None], beside, 0.0)
    return found


def end_line(pieces: Pieces, passes: Floats, weights: Floats, layout: Layout) -> Floats:
    """[kinds + 1] of what a step waits for at its end, on the stage that waits longest.

    Gradients of a chunk of layers are summed while its last micro-batch goes back, and then while a group of
    micro-batches goes back through each chunk below; weights are gathered so as the next step begins. The stages
    behind the first end earlier and begin later, by as many passes.
    """
    full = np.append(weights, 1.0)
    chunks = passes.reshape(layout.vpp, layout.pp, 3, WIDTH)
    often = layout.micro_batches if layout.zero >= 2 else 1
    groups = (layout.vpp - 1) * min(layout.pp, layout.micro_batches)
    waited = pieces.ends[:, 2] @ weights
    chosen = []
    for row, times in ((0, chunks[:, :, 1:].sum(axis=2)), (1, chunks[:, :, 0])):
        whole = pieces.ends[:, row, _DP]
        own, mean = times[0], times.sum(axis=0) / layout.vpp
        lasts, each = own @ full, mean @ full
        before = np.cumsum(lasts) - lasts
        # Waited for is the longest of: the share that nothing hides; what all chunks exchange; what the last (or first)
        # one does.
        options = np.stack(
            [
                weights[_DP] * whole,
                weights[_LATE] * whole - often * lasts - groups * each - before,
                weights[_LATE] * whole / layout.vpp - often * lasts - before,
            ]
        )
        best = np.argmax(options, axis=0)
        waited = waited + options[best, np.arange(layout.pp)]
        chosen.append((whole, own, mean, best))
    stage = int(np.argmax(waited))
    found = np.zeros(WIDTH)
    found[: len(KINDS)] = pieces.ends[stage, 2]
    found[KIND["host"]] += HOST_US
    for whole, own, mean, best in chosen:
        if best[stage] == 0:
            found[_DP] += whole[stage]
            continue
        all_chunks = best[stage] == 1
        found[_LATE] += whole[stage] / (1 if all_chunks else layout.vpp)
        found -= often * own[stage] + own[:stage].sum(axis=0)
        if all_chunks:
            found -= groups * mean[stage]
    return found


def sends_beside(layout: Layout) -> int:
    """How often a rank sends while it computes: of each pass of each chunk, where stages have several."""
    return 2 * layout.vpp * layout.micro_batches if layout.vpp > 1 else 0


def step_line(pieces: Pieces, layout: Layout, weights: Floats, schedule: str = "1f1b") -> tuple[Floats, Counts]:
    """([kinds + 1] whose scalar product with ``weights`` (and 1) is the time of a step, what the step waits for)."""
    passes = lines(pieces, weights)
    full = np.append(weights, 1.0)
    send = weights[KIND["pp"]] * pieces.send
    found = counts(passes @ full, send, layout.pp, layout.vpp, layout.micro_batches, schedule)
    line = np.einsum("pk,pkw->w", found.passes, passes)
    line[KIND["pp"]] += found.sends * pieces.send
    line[KIND["sends"]] += sends_beside(layout) * pieces.send
    return line + end_line(pieces, passes, weights, layout), found


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """What a plan takes.

    Attributes:
        step_us: time of a step. ``parts`` is what of it is what, after the stack: computation and exchanges that are
            not hidden, by kind; ``bubble`` what of it the slowest stage waits for others.
        hidden: microseconds of exchanges by kind that computation hides.
        memory: of a rank, by stage.
        model_flops: of a step, without recomputation; ``hardware_flops`` with it.
        chips: that the ranks fill. ``peak_flops``: of a chip, of the format of its products.
    """

    plan: TrainingPlan
    stack: TrainingStack
    step_us: float
    parts: Mapping[str, float]
    memory: tuple[Memory, ...]
    model_flops: float
    hardware_flops: float
    chips: float
    peak_flops: float
    support: str
    reasons: tuple[str, ...]
    error_percent: float | None
    slowest_stage: int
    pieces: Pieces = field(repr=False)

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

    @property
    def hfu(self) -> float:
        """As ``mfu``, with what is computed again, and all of what attention computes."""
        return self.hardware_flops / (self.step_us / 1e6) / (self.chips * self.peak_flops)

    @property
    def largest_memory(self) -> Memory:
        return max(self.memory, key=lambda m: float(m.total))


def estimate(plan: TrainingPlan, stack: TrainingStack | None = None, prices: Prices | None = None) -> TrainingEstimate:
    """Time and memory of a step.

    Raises:
        InputError: the layout does not fit the model, or the system not the layout.
        UnsupportedError: an operator or exchange that nothing is known of.
    """
    system, layout = plan.on, plan.layout
    stack = stack or load_training_stack(plan.stack or default_stack(system))
    prices = prices or prices_of(plan)
    pieces = pieces_of(prices, layout)
    weights = stack.weights(system.chip)
    line, waits = step_line(pieces, layout, weights, plan.schedule)
    full = np.append(weights, 1.0)
    step = float(line @ full)
    parts = {kind: float(v) for kind, v in zip((*KINDS, "exposed"), line * full, strict=True) if v}
    parts["bubble"] = waits.bubble
    support, reason = stack.known(system.chip)
    return TrainingEstimate(
        plan=plan,
        stack=stack,
        step_us=step,
        parts=parts,
        memory=training_memory(plan.model, layout, plan.sequence, stack.reserve_bytes),
        model_flops=model_flops(plan),
        hardware_flops=pieces.flops * layout.micro_batches * layout.ranks,
        chips=layout.ranks / ranks_per_chip(system, plan.lnc),
        peak_flops=peak_flops(system, layout),
        support=worst({*pieces.supports, support}),
        reasons=(reason, *pieces.reasons),
        error_percent=stack.error_percent(system.chip, plan.model.mixture),
        slowest_stage=waits.stage,
        pieces=pieces,
    )


def model_flops(plan: TrainingPlan) -> float:
    """Of a step, without recomputation (docs/reference/conventions.md)."""
    layout = plan.layout
    sequences = layout.micro_batches * layout.micro_batch * layout.dp
    return float(plan.model.training_flops(plan.sequence, layout.next_token) * sequences)


_PRICES: dict[tuple[Any, ...], Prices] = {}
_MOST = 64


def prices_of(plan: TrainingPlan) -> Prices:
    """Prices that plans of one model on one system share."""
    key = (id(plan.model), plan.system, plan.sequence, plan.implementation, plan.lnc)
    found = _PRICES.get(key)
    if found is None:
        if len(_PRICES) >= _MOST:
            _PRICES.clear()
        found = _PRICES[key] = Prices(plan.model, plan.sequence, plan.on, plan.implementation, plan.lnc)
    return found


def default_stack(system: System) -> str:
    """The stack of training that a chip usually runs."""
    return "megatron-core" if system.chip.family == "nvidia" else "neuronx-distributed"


def peak_flops(system: System, layout: Layout) -> float:
    """Dense peak of a chip in the format of a layout's products, which MFU counts against."""
    from trnsim.operators.gpu import gpu_format

    chip = system.chip
    dtype = layout.product_dtype or layout.dtype
    dtype = {"fp8": "float8", "nvfp4": "float4"}.get(dtype, dtype)
    if chip.core is None:
        return float(chip.flops[gpu_format(dtype)])
    peak = chip.core.tensor.flops(dtype)
    return float(peak or 0) * (chip.core_count or 1)


def ranks_per_chip(system: System, lnc: int | None = None) -> float:
    """A rank is a GPU, or a logical core."""
    if system.chip.core is None:
        return 1.0
    return (system.chip.core_count or 1) / logical_cores(system, lnc)


def with_layout(plan: TrainingPlan, layout: Layout) -> TrainingPlan:
    """The same plan with another layout."""
    return replace(plan, layout=layout)
