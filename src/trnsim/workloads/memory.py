"""Bytes of a rank by kind, in training and in serving.

Training, after Korthikanti et al. (arXiv 2205.05198): weights, gradients and optimiser states of a stage, and the
activations of as many micro-batches as its place in the pipeline keeps at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from trnsim.numerics import as_dtype
from trnsim.workloads.layout import Layout, stage_kinds
from trnsim.workloads.model import Model
from trnsim.workloads.operators import Pass, format_bytes
from trnsim.workloads.steps import layer_kept
from trnsim.workloads.training import local_parameters, stage_parameters, training_pass
from trnsim.workloads.weights import Count, Weight, ceil_div

LOGIT_BYTES = 4  # the loss is computed in float32


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    ``activations`` are kept for the backward pass (training) or are those of the largest layer (serving); ``working``
    what lives besides while one layer runs; ``reserve`` what the runtime takes, given by its stack.
    """

    weights: Count = 0
    gradients: Count = 0
    optimizer: Count = 0
    activations: Count = 0
    working: Count = 0
    cache: Count = 0
    reserve: Count = 0

    @property
    def total(self) -> Count:
        held = self.weights + self.gradients + self.optimizer + self.activations
        return held + self.working + self.cache + self.reserve

    def by_kind(self) -> dict[str, Count]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def states(dense: Count, experts: Count, layout: Layout) -> Memory:
    """Weights, gradients and optimiser states of so many parameters on one rank, shared as ZeRO says.

    Args:
        dense, experts: as ``training.local_parameters`` and ``stage_parameters`` give them.
    """
    weight = gradient = optimizer = 0.0
    each = layout.moments * as_dtype(layout.moment_dtype).itemsize
    each += as_dtype(layout.master_dtype).itemsize if layout.master_dtype else 0
    for count, ranks in ((dense, layout.replicas), (experts, layout.expert_replicas)):
        weight += count * as_dtype(layout.dtype).itemsize / (ranks if layout.zero >= 3 else 1)
        gradient += count * as_dtype(layout.gradient_dtype).itemsize / (ranks if layout.zero >= 2 else 1)
        optimizer += count * each / (ranks if layout.zero >= 1 else 1)
    return Memory(weights=weight, gradients=gradient, optimizer=optimizer)


def in_flight(layout: Layout, stage: int) -> Any:
    """Chunks of a stage whose activations live at once, at most (1F1B; interleaved as Megatron-LM schedules it).

    An array where degrees of the layout are.
    """
    if layout.pp == 1:
        return 1
    ahead = layout.pp - stage - 1
    if layout.vpp > 1:
        ahead = 2 * ahead + (layout.vpp - 1) * layout.pp
    most = layout.micro_batches * layout.vpp
    return min(ahead + 1, most) if isinstance(most, int) else np.minimum(ahead + 1, most)


def layer_activations(model: Model, layout: Layout, sequence: Count, stage: int = 0) -> Count:
    """Bytes that the layers of a stage keep for the backward passes of the micro-batches in flight.

    Chunks are taken as equal where a stage has several: the mean of a chunk, times those in flight.
    """
    p = training_pass(model, layout, sequence)
    kinds = stage_kinds(layout, model, stage)
    kept = sum(count * _bytes(layer_kept(layer, p, layout.recompute)) for layer, count in kinds)
    return kept / layout.vpp * in_flight(layout, stage)


def training_memory(model: Model, layout: Layout, sequence: int, reserve: Count = 0) -> tuple[Memory, ...]:
    """Memory of a rank of each stage.

    Args:
        sequence: tokens of a sequence.
        reserve: bytes that the runtime takes.

    Raises:
        InputError: the layout does not fit the model.
    """
    layout.check(model, sequence)
    return tuple(_stage_memory(model, layout, sequence, number, reserve) for number in range(layout.pp))


def _stage_memory(model: Model, layout: Layout, sequence: int, number: int, reserve: Count) -> Memory:
    p = training_pass(model, layout, sequence)
    kinds = stage_kinds(layout, model, number)
    return stage_memory(
        model,
        layout,
        sequence,
        number,
        reserve,
        parameters=stage_parameters(model, layout, number),
        kept=sum(count * _bytes(layer_kept(layer, p, layout.recompute)) for layer, count in kinds),
        largest=max((_bytes(layer_kept(layer, p, "none")) for layer, _ in kinds), default=0),
        gathered=max((sum(local_parameters(layer.weights, layout)) for layer, _ in kinds), default=0),
    )


def stage_memory(
    model: Model,
    layout: Layout,
    sequence: int,
    number: int,
    reserve: Count,
    *,
    parameters: tuple[Count, Count],
    kept: Count,
    largest: Count,
    gathered: Count,
) -> Memory:
    """Memory of a rank of one stage.

    Args:
        parameters: of the stage, as ``training.stage_parameters`` gives them.
        kept: bytes that its layers keep of one micro-batch; ``largest``: of the largest layer without recomputation;
            ``gathered``: parameters of the layer that has the most.
    """
    p = training_pass(model, layout, sequence)
    found = states(*parameters, layout)
    activations = kept / layout.vpp * in_flight(layout, number)
    stream = p.rows * model.hidden * p.itemsize
    if number == 0:
        # What the embedding gives needs no copy of its own, but a mask where there is dropout.
        activations += p.rows * model.hidden * in_flight(layout, 0) if model.dropout else 0
    if number == layout.pp - 1:
        width = ceil_div(model.vocabulary, layout.tp)
        outputs = 2 * stream + p.tokens * width * LOGIT_BYTES
        further = sum(_bytes(layer_kept(layer, p, layout.recompute)) for layer in model.next_layers)
        # A module of multi-token prediction keeps its two inputs, before and after their norms.
        activations += outputs + layout.next_token * (outputs + further + 4 * stream)
    working: Count = 0
    if layout.recompute == "full":
        working = largest
    if layout.zero == 3:
        # Weights of the layer that runs, whole.
        working += gathered * as_dtype(layout.dtype).itemsize
    return Memory(found.weights, found.gradients, found.optimizer, activations, working, 0, reserve)


def _bytes(kept: Iterable[Any]) -> Count:
    return sum(item.bytes for item in kept)


def part_format(weight: Weight, formats: Mapping[str, str]) -> str:
    """The format of a weight: that of its part, else the default. Vectors stay as they are, in bfloat16."""
    if weight.kind == "vector":
        return "bfloat16"
    part = "experts" if weight.experts else weight.name.split(".")[0]
    return formats.get(part, formats.get("default", "bfloat16"))


def serving_weights(
    model: Model, formats: Mapping[str, str], tp: Count = 1, ep: Count = 1, expert_tp: Count = 1
) -> Count:
    """Bytes of the weights on one rank that has all layers, each part in its format, scales included.

    Args:
        formats: by part (``experts``, ``attention``, ``mlp``, ``embedding``, ``head`` ...) and ``default``.
    """
    total: Count = 0
    for layer, count in model.kinds():
        total = total + count * sum(_stored(w, formats, tp, ep, expert_tp) for w in layer.weights)
    outer = [model.embedding, *model.outer, *(() if model.tied else (model.head,))]
    return total + sum(_stored(w, formats, tp, ep, expert_tp) for w in outer)


def _stored(weight: Weight, formats: Mapping[str, str], tp: Count, ep: Count, expert_tp: Count) -> Count:
    return weight.local(tp, ep, expert_tp) * format_bytes(part_format(weight, formats))


def serving_cache(model: Model, tokens: Count, sequences: Count, dtype: str = "bfloat16", tp: Count = 1) -> Count:
    """Bytes of keys, values and states of ``sequences`` of ``tokens`` each on one rank."""
    return sequences * (model.cache_elements(tokens, tp) * as_dtype(dtype).itemsize + model.state_bytes(tp))


def serving_memory(
    model: Model,
    formats: Mapping[str, str],
    *,
    tokens: Count,
    sequences: Count,
    prefill_tokens: Count,
    cache_dtype: str = "bfloat16",
    tp: Count = 1,
    ep: Count = 1,
    expert_tp: Count | None = None,
    pp: int = 1,
    reserve: Count = 0,
) -> Memory:
    """Memory of one rank that serves.

    Args:
        tokens, sequences: of the cache: as many sequences of as many tokens.
        prefill_tokens: tokens that pass the model at once, for its activations.
        pp: stages that share the layers equally; embedding and head are those of the stage that has both (pp 1), else
            of the larger of the two.
        reserve: bytes that the runtime takes.
    """
    split = (tp if ep == 1 else 1) if expert_tp is None else expert_tp
    whole = serving_weights(model, formats, tp, ep, split)
    ends = sum(_stored(w, formats, tp, ep, split) for w in (model.embedding, *(() if model.tied else (model.head,))))
    weights = whole if pp == 1 else (whole - ends) / pp + ends / (1 if model.tied else 2)
    p = Pass(prefill_tokens, 1, 1, tp=tp, ep=ep, expert_tp=split, replicated=True)
    largest = max(_bytes(layer_kept(layer, p, "selective")) for layer, _ in model.kinds())
    return Memory(
        weights=weights,
        activations=largest,
        cache=serving_cache(model, tokens, sequences, cache_dtype, tp) / pp,
        reserve=reserve,
    )
