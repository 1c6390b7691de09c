"""A training step as plain data: what each stage of the pipeline computes and exchanges.

A stage runs ``forward`` and ``backward`` once for each micro-batch and chunk, then ``update``. Within a chunk equal
layers are one run with a count; the order inside a layer is that of the mathematics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trnsim.numerics import as_dtype
from trnsim.workloads.layout import Layout, stage_chunks, stage_kinds
from trnsim.workloads.model import Layer, Model, counted
from trnsim.workloads.operators import OPTIMIZER, PRODUCTS, RECOMPUTE, Exchange, Pass, Step, Use, multiplied
from trnsim.workloads.parts.base import norm
from trnsim.workloads.steps import backward, embedding_forward, head_forward, layer_forward
from trnsim.workloads.weights import Count, Weight, vector


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline on one of its ranks.

    Attributes:
        number: from 0.
        chunks: (forward, backward) of each chunk of layers for one micro-batch; ``backward`` starts with what is
            computed again. Sending to the next stage is the last exchange of a chunk's passes.
        update: exchanges of gradients and weights and the optimiser, once a step.
    """

    number: int
    chunks: tuple[tuple[Step, Step], ...]
    update: Step


def training_pass(model: Model, layout: Layout, sequence: Count) -> Pass:
    """What a rank has in hand for a micro-batch of sequences of ``sequence`` tokens."""
    return Pass(
        sequences=layout.micro_batch,
        queries=sequence // layout.cp,
        keys=sequence,
        tp=layout.tp,
        cp=layout.cp,
        ep=layout.ep,
        expert_tp=layout.expert_ranks,
        sequence_parallel=layout.sequence_parallel,
        # Without sequence parallelism ranks of tp have the same tokens: experts are then shared among them.
        replicated=layout.tp > 1 and not layout.sequence_parallel,
        dtype=layout.dtype,
        product_dtype=layout.product_dtype,
        weight_dtype=layout.weight_dtype,
        causal=model.causal,
        dropout=model.dropout,
        flash=layout.flash,
    )


def training(model: Model, layout: Layout, sequence: int) -> tuple[Stage, ...]:
    """The stages of one training step.

    Raises:
        InputError: the layout does not fit the model.
    """
    layout.check(model, sequence)
    p = training_pass(model, layout, sequence)
    found: dict[tuple[object, ...], Stage] = {}
    stages = []
    for number in range(layout.pp):
        # Stages between the ends with the same layers have the same work.
        layers = tuple(id(model.layers[i]) for chunk in stage_chunks(layout, model, number) for i in chunk)
        key = (layers, number == 0, number == layout.pp - 1)
        if key not in found:
            found[key] = _stage(model, layout, p, number)
        stages.append(replace(found[key], number=number))
    return tuple(stages)


def _stage(model: Model, layout: Layout, p: Pass, number: int) -> Stage:
    chunks = []
    total = layout.pp * layout.vpp
    for place, layers in enumerate(stage_chunks(layout, model, number)):
        index = place * layout.pp + number
        chunks.append(_chunk(model, layout, p, [model.layers[i] for i in layers], index == 0, index == total - 1))
    return Stage(number, tuple(chunks), update(model, layout, number))


def _chunk(model: Model, layout: Layout, p: Pass, layers: list[Layer], first: bool, last: bool) -> tuple[Step, Step]:
    before, behind = outer_steps(model, layout, p)
    ahead, after = _layers(layout, p, layers)
    if first:
        ahead, after = [*before[0], *ahead], [*after, *before[1]]
    if last:
        ahead, after = [*ahead, *behind[0]], [*behind[1], *after]
    boundary = p.rows * model.hidden * p.itemsize
    if not last and layout.pp > 1:
        ahead.append(Exchange("send_receive", "pp", 2, boundary, "stage"))
    if not first and layout.pp > 1:
        after.append(Exchange("send_receive", "pp", 2, boundary, "stage", phase="backward"))
    return ahead, after


def _layers(layout: Layout, p: Pass, layers: list[Layer]) -> tuple[Step, Step]:
    """Layers forward, and backward with what is computed again."""
    ahead: Step = []
    after: Step = []
    for layer, count in counted(layers):
        through, back = layer_steps(layout, p, layer)
        ahead += multiplied(through, count)
        after = [*multiplied(back, count), *after]
    return ahead, after


def layer_steps(layout: Layout, p: Pass, layer: Layer) -> tuple[Step, Step]:
    """One layer forward, and backward with what is computed again."""
    gathered = _gathered(layer.weights, layout) if layout.zero == 3 else []
    step = layer_forward(layer, p)
    again = [*(replace(item, phase=RECOMPUTE) for item in gathered), *_recomputed(step, layout)]
    return [*gathered, *step], [*again, *backward(step)]


def outer_steps(model: Model, layout: Layout, p: Pass) -> tuple[tuple[Step, Step], tuple[Step, Step]]:
    """What stands before the first layer, forward and backward, and what after the last."""
    first = embedding_forward(model, p)
    ahead = head_forward(model, p, p.tokens, loss=True)
    after = backward(ahead)
    for _ in range(layout.next_token):
        through, back = _next_token(model, layout, p)
        ahead, after = [*ahead, *through], [*back, *after]
    return (first, backward(first)), (ahead, after)


def _next_token(model: Model, layout: Layout, p: Pass) -> tuple[Step, Step]:
    """A module of multi-token prediction: the next token's embedding joins what the layers gave (arXiv 2412.19437)."""
    join = embedding_forward(model, p)
    join += [norm(model.norm_kind, p.rows, model.hidden, p, "next_token.norm")] * 2
    projection = {"m": p.rows, "k": 2 * model.hidden, "n": model.hidden}
    join.append(Use("matmul", projection, p.dtype, "next_token.projection"))
    through, back = _layers(layout, p, list(model.next_layers))
    head = head_forward(model, p, p.tokens, loss=True)
    return [*join, *through, *head], [*backward(head), *back, *backward(join)]


# What selective recomputation computes again where attention keeps no scores.
_AGAIN = frozenset(("rmsnorm", "layernorm", "gated_activation", "elementwise"))
_FROM_LATENTS = frozenset(("attention.query", "attention.expansion"))


def _recomputed(step: Step, layout: Layout) -> Step:
    """What of a layer's forward pass runs again."""
    if layout.recompute == "none":
        return []
    if layout.recompute == "full":
        chosen = step
    elif not layout.flash:
        chosen = [item for item in step if item.where == "attention.core"]
    else:
        latent = any(item.where == "attention.latents" for item in step)
        chosen = [item for item in step if isinstance(item, Use) and _cheap(item, latent)]
    return [replace(item, phase=RECOMPUTE) for item in chosen]


def _cheap(use: Use, latent: bool) -> bool:
    if use.operator in _AGAIN:
        return not use.sizes.get("residual", 0)
    # A query is a projection out of a latent only where there is one.
    return use.operator == "matmul" and latent and use.where in _FROM_LATENTS


def _gathered(weights: tuple[Weight, ...], layout: Layout) -> Step:
    """ZeRO 3: a layer's weights come from the ranks that share them."""
    item = as_dtype(layout.dtype).itemsize
    dense, experts = local_parameters(weights, layout)
    found: Step = (
        [Exchange("all_gather", "dp", layout.replicas, dense * item, "weights")] if layout.replicas > 1 else []
    )
    if experts and layout.expert_replicas > 1:
        found.append(Exchange("all_gather", "expert_dp", layout.expert_replicas, experts * item, "weights.experts"))
    return found


def local_parameters(weights: tuple[Weight, ...], layout: Layout) -> tuple[Count, Count]:
    """(parameters that all ranks of dp and cp have, parameters of experts) of these weights on one rank."""
    dense = sum(w.local(layout.tp) for w in weights if not w.experts)
    experts = sum(w.local(layout.tp, layout.ep, layout.expert_ranks) for w in weights if w.experts)
    return dense, experts


def stage_parameters(model: Model, layout: Layout, number: int) -> tuple[Count, Count]:
    """As ``local_parameters``, of all weights of a stage.

    Where embedding and head are tied and on different stages, both have them.
    """
    dense, experts = local_parameters(_ends(model, layout, number), layout)
    for layer, count in stage_kinds(layout, model, number):
        one = local_parameters(layer.weights, layout)
        dense, experts = dense + count * one[0], experts + count * one[1]
    return dense, experts


def _ends(model: Model, layout: Layout, number: int) -> tuple[Weight, ...]:
    """Weights of a stage that are of no layer."""
    after = [w for w in model.outer if w.name.startswith(("final", "transform"))]
    found: list[Weight] = []
    if number == 0:
        found += [model.embedding, *(w for w in model.outer if w not in after)]
    if number == layout.pp - 1:
        found += after
        if not model.tied or layout.pp > 1:
            found.append(model.head)
        elif model.head_bias:
            found.append(vector("head.bias", model.vocabulary))
        if layout.next_token:
            found += model.next_weights * layout.next_token
            # A module looks tokens up: the last stage has a copy of the embedding, if the head is none.
            if layout.pp > 1 and not model.tied:
                found.append(model.embedding)
    return tuple(found)


def update(model: Model, layout: Layout, number: int) -> Step:
    """Once a step: gradients summed over ranks with the same weights, the optimiser, weights given back."""
    dense, experts = stage_parameters(model, layout, number)
    gradient, weight = as_dtype(layout.gradient_dtype).itemsize, as_dtype(layout.dtype).itemsize
    step: Step = []
    for group, ranks, count in (
        ("dp", layout.replicas, dense),
        ("expert_dp", layout.expert_replicas, experts),
    ):
        if not count:
            continue
        several = ranks > 1
        if several:
            operation = "reduce_scatter" if layout.zero else "all_reduce"
            # With gradients shared (ZeRO 2 and 3) they are summed after every micro-batch.
            times = layout.micro_batches if layout.zero >= 2 else 1
            step.append(Exchange(operation, group, ranks, count * gradient, "gradients", times, OPTIMIZER))
        mine = count / ranks if layout.zero else count
        step.append(Use("adam", {"elements": mine}, layout.master_dtype or layout.dtype, "optimizer", 1, OPTIMIZER))
        if several and layout.zero in (1, 2):
            step.append(Exchange("all_gather", group, ranks, count * weight, "weights", 1, OPTIMIZER))
    if (model.tied or layout.next_token) and layout.pp > 1 and number in (0, layout.pp - 1):
        shared = model.embedding.local(layout.tp) * gradient
        step.insert(0, Exchange("all_reduce", "embedding", 2, shared, "gradients.embedding", 1, OPTIMIZER))
    return step


def hardware_flops(stage: Stage) -> Count:
    """FLOPs of the products of a stage and micro-batch on one rank, what is computed again included: of HFU."""
    return sum(
        item.flops
        for chunk in stage.chunks
        for step in chunk
        for item in step
        if isinstance(item, Use) and item.operator in PRODUCTS
    )
