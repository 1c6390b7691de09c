"""What the layers of a model cost in training, by kind of work: priced once, put together for many layouts.

What a layer does on a rank depends on how its tokens and weights are cut (tensor, context, expert parallelism,
micro-batch, recomputation), not on how many layers a stage has. A layout is then a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trnsim.numerics import as_dtype
from trnsim.planner.groups import ExchangeCosts, stride
from trnsim.planner.uses import UseCosts, worst
from trnsim.workloads.memory import Memory, stage_memory
from trnsim.workloads.operators import OPTIMIZER, PRODUCTS, Exchange, Use, format_bytes
from trnsim.workloads.steps import layer_kept
from trnsim.workloads.training import (
    layer_steps,
    local_parameters,
    outer_steps,
    stage_parameters,
    training_pass,
    update,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.model import System
    from trnsim.workloads.layout import Layout
    from trnsim.workloads.model import Layer, Model
    from trnsim.workloads.operators import Step

# Kinds of work. Apart are the loss, which frameworks compute in several passes over logits; products in 8 bits and less
# (``narrow``); those of experts, what stands ``between`` them, and as ``groups`` how many such products of one expert
# there are, each of which is started and cast by itself; scans of states. ``routing`` brings tokens into their order;
# ``tp_alone``: exchanges of tensor parallelism that no product hides, as its format is not cut into pieces (``WHOLE``);
# ``sends``: between stages that interleave, beside passes of other chunks; ``pp``: those that a pipeline waits for;
# ``gather`` brings the weights that ranks share (ZeRO 3); ``ep_far`` is between systems. ``late``: what no computation
# hides of gradients and weights; ``host``: what one does once a step.
KINDS = (
    "products", "narrow", "attention", "moves", "loss", "casts", "experts", "experts_narrow", "between", "groups",
    "routing", "scans", "tp", "tp_alone", "cp", "ep", "ep_far", "gather", "pp", "sends", "dp", "optimizer", "late",
    "host",
)  # fmt: skip
COMPUTE = slice(0, 12)
KIND = {name: number for number, name in enumerate(KINDS)}
_GROUPS = {"expert_tp": "ep", "expert_dp": "dp", "embedding": "dp"}
# Bytes that cross HBM for each score of attention in 16 bits where no kernel is fused. Forward: written by the product;
# read and written by the masked softmax; read and written by dropout with a mask of a byte; read by the next product.
# Backward: read for the values' gradient; written by the scores' gradient, through dropout (with the mask) and softmax
# (with its result), and read by two products.
_SCORES = {"attention": 13, "attention_backward": 21}
# Bytes that cross HBM for each logit in 16 bits where no kernel fuses the loss. Forward: cast to float32; read for the
# largest; less it; its exponential, in place; read for their sum; over it. Backward: times the gradient; cast back.
# (megatron/core/tensor_parallel/cross_entropy.py at core_r0.8.0.)
_LOGITS = {"cross_entropy": 6 + 4 + 8 + 8 + 4 + 8, "cross_entropy_backward": 8 + 6}
FORWARD, BACKWARD, WEIGHT = range(3)
# Formats whose products no framework cuts into pieces beside their exchanges: Megatron-Bridge turns tp_comm_overlap off
# in all of its recipes in NVFP4 (scripts/performance/configs/llama/llama3_llm_pretrain.py, 2a0d46e2).
WHOLE = ("nvfp4",)


@dataclass(frozen=True, eq=False)
class Cost:
    """Microseconds [3, kinds] of the forward pass, the backward pass for inputs, and that for weights.

    ``flops``: of products, what is computed again included.
    """

    times: NDArray[np.float64]
    flops: float
    supports: frozenset[str]
    reasons: tuple[str, ...]


class Prices:
    """Costs of the layers of one model, for sequences of one length, on one kind of system."""

    def __init__(
        self, model: Model, sequence: int, system: System, implementation: str = "", lnc: int | None = None
    ) -> None:
        """``lnc``: cores of a rank on Trainium; None: the chip's default.

        Raises:
            InputError: an implementation that the chip does not have.
        """
        self.model, self.sequence, self.system, self.lnc = model, sequence, system, lnc
        self.uses = UseCosts(system.chip.name, implementation, logical_cores(system, lnc))
        self.exchanges = ExchangeCosts(system, lnc)
        self.kinds = [layer for layer, _ in model.kinds()]
        places = {layer: number for number, layer in enumerate(self.kinds)}
        self._kind = np.array([places[layer] for layer in model.layers])
        self._known: dict[tuple[Any, ...], Any] = {}
        self._active = max((layer.experts.active for layer in self.kinds if layer.experts), default=1)

    def chunks(self, layout: Layout) -> NDArray[np.float64]:
        """[pieces, kinds of layers]: how many of each a piece of the model has."""
        key = ("chunks", layout.pp, layout.vpp, layout.stages)
        found = self._known.get(key)
        if found is None:
            sizes = layout.chunks(len(self._kind))
            piece = np.repeat(np.arange(len(sizes)), sizes)
            found = np.zeros((len(sizes), len(self.kinds)))
            np.add.at(found, (piece, self._kind), 1.0)
            self._known[key] = found
            counts = found.reshape(layout.vpp, layout.pp, -1).sum(axis=0)
            self._known[("stages", *key[1:])] = counts, [row.tobytes() for row in counts]
        return cast("NDArray[np.float64]", found)

    def layers(self, layout: Layout) -> list[Cost]:
        """Each kind of layer."""
        key = ("layers", *self._shape(layout))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = [self.layer(layer, layout) for layer in self.kinds]
        return cast("list[Cost]", found)

    def layer(self, layer: Layer, layout: Layout) -> Cost:
        """One layer.

        Raises:
            UnsupportedError: an operator or exchange that nothing is known of.
        """
        p = training_pass(self.model, layout, self.sequence)
        return self._cost(*layer_steps(layout, p, layer), layout)

    def held(self, layout: Layout) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Of each kind of layer: bytes that a micro-batch leaves for the backward pass; those that it would without
        recomputation; and parameters on the rank.
        """
        one = layout
        formats = (one.dtype, one.product_dtype, one.weight_dtype, one.flash, one.sequence_parallel)
        key = ("held", one.tp, one.cp, one.ep, one.expert_ranks, one.micro_batch, one.recompute, *formats)
        found = self._known.get(key)
        if found is None:
            p = training_pass(self.model, layout, self.sequence)
            found = self._known[key] = tuple(
                np.array([float(value) for value in values])
                for values in (
                    [sum(k.bytes for k in layer_kept(layer, p, layout.recompute)) for layer in self.kinds],
                    [sum(k.bytes for k in layer_kept(layer, p, "none")) for layer in self.kinds],
                    [sum(local_parameters(layer.weights, layout)) for layer in self.kinds],
                )
            )
        return cast("tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]", found)

    def ends(self, layout: Layout) -> tuple[Cost, Cost]:
        """What stands before the first layer, and after the last one."""
        key = ("ends", layout.next_token, *self._shape(layout))
        found = self._known.get(key)
        if found is None:
            p = training_pass(self.model, layout, self.sequence)
            first, last = outer_steps(self.model, layout, p)
            found = self._known[key] = (self._cost(*first, layout), self._cost(*last, layout))
        return cast("tuple[Cost, Cost]", found)

    def send(self, layout: Layout) -> tuple[float, str, str]:
        """Microseconds of a micro-batch's way from a stage to the next, how it is known and why."""
        p = training_pass(self.model, layout, self.sequence)
        nbytes = float(p.rows * self.model.hidden * p.itemsize)
        told = self.exchanges.cost("send_receive", 2, stride(layout, "pp"), nbytes, self._used(layout))
        return told.microseconds, told.support, told.reason

    def update(self, layout: Layout, stage: int) -> tuple[NDArray[np.float64], frozenset[str], tuple[str, ...]]:
        """Once a step: [3, kinds]: gradients (0) and weights (1) that are exchanged, and the optimiser (2)."""
        one = layout
        key = (
            "update", self._layers_of(layout, stage), stage == 0, stage == one.pp - 1, one.next_token, one.pp, one.tp,
            one.cp, one.dp, one.ep, one.expert_ranks, one.zero, one.micro_batches if one.zero >= 2 else 1, one.dtype,
            one.gradient_dtype, one.master_dtype,
        )  # fmt: skip
        found = self._known.get(key)
        if found is None:
            times = np.zeros((3, len(KINDS)))
            supports: set[str] = set()
            reasons: dict[str, None] = {}
            for item in update(self.model, layout, stage):
                row = 2
                if isinstance(item, Exchange) and item.group != "embedding":
                    row = 1 if item.operation == "all_gather" else 0
                time, support, reason, kind = self.priced(item, layout)
                times[row, kind] += time
                supports.add(support)
                reasons[reason] = None
            found = self._known[key] = (times, frozenset(supports), tuple(reasons))
        return cast("tuple[NDArray[np.float64], frozenset[str], tuple[str, ...]]", found)

    def _layers_of(self, layout: Layout, stage: int) -> bytes:
        """Which layers a stage has, as a key."""
        return self._stages(layout)[1][stage]

    def _stages(self, layout: Layout) -> tuple[NDArray[np.float64], list[bytes]]:
        """[stages, kinds of layers]: how many of each a stage has; and the same as keys."""
        self.chunks(layout)
        found = self._known["stages", layout.pp, layout.vpp, layout.stages]
        return cast("tuple[NDArray[np.float64], list[bytes]]", found)

    def memory(self, layout: Layout, reserve: float = 0.0) -> list[Memory]:
        """Memory of a rank of each stage that may need the most: as ``workloads.memory.training_memory``."""
        kept, whole, sums = self.held(layout)
        counts, _ = self._stages(layout)
        found = []
        for stage in self.fullest_stages(layout):
            has = counts[stage] > 0
            found.append(
                stage_memory(
                    self.model, layout, self.sequence, stage, reserve,
                    parameters=self.parameters(layout, stage),
                    kept=float(counts[stage] @ kept),
                    largest=float(whole[has].max(initial=0.0)),
                    gathered=float(sums[has].max(initial=0.0)),
                )
            )  # fmt: skip
        return found

    def fullest_stages(self, layout: Layout) -> list[int]:
        """Those of which one has the fullest rank."""
        if len(self.kinds) > 1:
            return list(range(layout.pp))
        # Of stages with as many layers the first keeps the most.
        return sorted({0, int(np.argmax(self.stage_layers(layout)[:, 0])), layout.pp - 1})

    def stage_layers(self, layout: Layout) -> NDArray[np.float64]:
        """[stages, kinds of layers]: how many of each a stage has."""
        return self._stages(layout)[0]

    def remembered(self, key: tuple[Any, ...], make: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """What ``make`` gives, once for a key."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = make()
        return cast("NDArray[np.float64]", found)

    def step_ends(self, layout: Layout) -> tuple[NDArray[np.float64], frozenset[str], tuple[str, ...]]:
        """[stages, 3, kinds] of ``update`` of each stage, and how they are known."""
        supports: frozenset[str] = frozenset()
        reasons: tuple[str, ...] = ()
        ends = np.zeros((layout.pp, 3, len(KINDS)))
        sizes = self.stage_layers(layout)
        told = first = self.update(layout, 0)
        last = self.update(layout, layout.pp - 1)
        for stage in range(layout.pp):
            # Stages between the ends with the same layers wait for the same.
            same = stage > 1 and bool((sizes[stage] == sizes[stage - 1]).all()) and stage < layout.pp - 1
            if not same:
                inner = first if stage == 0 else self.update(layout, stage)
                told = last if stage == layout.pp - 1 else inner
                supports, reasons = supports | told[1], tuple(dict.fromkeys((*reasons, *told[2])))
            ends[stage] = told[0]
        return ends, supports, reasons

    def parameters(self, layout: Layout, stage: int) -> tuple[float, float]:
        one, last = layout, stage == layout.pp - 1
        key = ("parameters", self._layers_of(one, stage), stage == 0, last, one.pp > 1, one.tp, one.ep,
               one.expert_ranks, one.next_token)  # fmt: skip
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = stage_parameters(self.model, layout, stage)
        return cast("tuple[float, float]", found)

    def _used(self, layout: Layout) -> int:
        return self.exchanges.used(layout.ranks)

    def _shape(self, layout: Layout) -> tuple[Any, ...]:
        """What a layer's cost depends on."""
        one = layout
        shared = (one.replicas, one.expert_replicas) if one.zero == 3 else ()
        formats = (one.dtype, one.product_dtype, one.weight_dtype, one.flash, one.fused_loss, one.sequence_parallel)
        cut = (one.tp, one.cp, one.ep, one.expert_ranks, one.micro_batch, one.recompute)
        return (*cut, *formats, shared, self._used(one))

    def _cost(self, ahead: Step, after: Step, layout: Layout) -> Cost:
        times = np.zeros((3, len(KINDS)))
        supports: set[str] = set()
        reasons: dict[str, None] = {}
        flops = 0.0
        for forward, step in ((True, ahead), (False, after)):
            for item in step:
                row = FORWARD if forward else WEIGHT if item.where.endswith(".weight") else BACKWARD
                time, support, reason, kind = self.priced(item, layout)
                times[row, kind] += time
                supports.add(support)
                reasons[reason] = None
                if isinstance(item, Use) and item.operator == "grouped_matmul":
                    times[row, KIND["groups"]] += float(item.sizes["experts"]) * float(item.count)
                if isinstance(item, Use) and item.operator in PRODUCTS:
                    flops += float(item.flops)
        reasons.pop("", None)
        return Cost(times, flops, frozenset(supports), tuple(reasons))

    def priced(self, item: Use | Exchange, layout: Layout) -> tuple[float, str, str, int]:
        """Microseconds of an operator or exchange, all its repetitions; how that is known, why; its kind."""
        if isinstance(item, Exchange):
            apart, used = stride(layout, item.group), self._used(layout)
            nbytes = _sent(item, layout)
            if item.operation == "all_to_all":
                nbytes *= self._once(-(-int(item.ranks) * apart // used))
            told = self.exchanges.cost(item.operation, int(item.ranks), apart, nbytes, used)
            far = item.group == "ep" and int(item.ranks) * apart > used
            kind = KIND["ep_far"] if far else None
            kind = KIND["gather"] if item.phase != OPTIMIZER and item.group in ("dp", "expert_dp") else kind
            kind = KIND["tp_alone"] if item.group == "tp" and layout.product_dtype in WHOLE else kind
            kind = KIND[_GROUPS.get(item.group, item.group)] if kind is None else kind
            support, reason, time = told.support, told.reason, told.microseconds * float(item.count)
        else:
            apart = not layout.fused_loss and item.operator in _LOGITS
            kind = KIND["moves"] if apart else _kind(item)
            time, support, reason = self._unfused(item) if apart else self._use(item, layout)
        return time, support, "" if support == "calibrated" else reason, kind

    def _once(self, systems: int) -> float:
        """Share of routed tokens that cross to other systems, where each goes to a system once, however many of its
        experts are there (as DeepEP and HybridEP do), of one copy for each expert.
        """
        active = self._active
        return systems * (1 - (1 - 1 / systems) ** active) / active if systems > 1 else 1.0

    def _unfused(self, item: Use) -> tuple[float, str, str]:
        """A loss of several kernels, by the bytes that they move."""
        moved = {"rows": item.sizes["rows"] * item.sizes["vocabulary"] * _LOGITS[item.operator] / 4, "width": 1}
        cost = self.uses.cost(replace(item, operator="elementwise", sizes=moved))
        return cost.microseconds, worst({cost.support, "extrapolated"}), cost.reason

    def _use(self, item: Use, layout: Layout) -> tuple[float, str, str]:
        if layout.flash or item.operator not in _SCORES or not item.sizes.get("causal", 1):
            cost = self.uses.cost(item)
            return cost.microseconds, cost.support, cost.reason
        # Without a fused kernel all scores are computed, masked ones too, and cross HBM.
        cost = self.uses.cost(replace(item, sizes={**item.sizes, "causal": 0}))
        scores = item.sizes["heads"] * item.sizes["queries"] * item.sizes["keys"]
        moved = {"rows": scores * _SCORES[item.operator] / 4, "width": 1}
        more = self.uses.cost(replace(item, operator="elementwise", sizes=moved))
        return cost.microseconds + more.microseconds, worst({cost.support, "extrapolated"}), cost.reason


def _sent(item: Exchange, layout: Layout) -> float:
    """Bytes. What tensor parallelism gathers for narrow products is cast first, and crosses links in their format."""
    nbytes = float(item.bytes)
    if item.group == "tp" and item.operation == "all_gather" and layout.product_dtype and item.where != "head.input":
        nbytes *= format_bytes(layout.product_dtype) / as_dtype(layout.dtype).itemsize
    return nbytes


def _kind(use: Use) -> int:
    if use.phase == OPTIMIZER:
        return KIND["optimizer"]
    if "attention" in use.operator:
        return KIND["attention"]
    if use.operator.startswith("quantize"):
        return KIND["casts"]
    if use.operator.startswith("cross_entropy"):
        return KIND["loss"]
    if use.operator == "grouped_matmul":
        return KIND["experts_narrow" if format_bytes(use.dtype) < 2 else "experts"]
    if use.operator.startswith(("conv", "linear_attention")):
        return KIND["scans"]
    if use.operator in ("router", "permute", "combine"):
        return KIND["routing"]
    if use.operator in PRODUCTS:
        return KIND["narrow" if format_bytes(use.dtype) < 2 else "products"]
    return KIND["between" if use.where.startswith("experts.") else "moves"]


def together(costs: Iterable[Cost]) -> tuple[frozenset[str], tuple[str, ...]]:
    """How several costs are known."""
    supports: set[str] = set()
    reasons: dict[str, None] = {}
    for cost in costs:
        supports |= cost.supports
        reasons.update(dict.fromkeys(cost.reasons))
    return frozenset(supports), tuple(reasons)


def logical_cores(system: System, lnc: int | None = None) -> int:
    """NeuronCores of a rank: as given, else the default of the generation (1 on NeuronCore-v2, 2 after it)."""
    if system.chip.core is None:
        return 1
    return lnc or (1 if system.chip.core.version == "v2" else 2)
