"""Prefill and decode steps as plain data."""

from __future__ import annotations

from dataclasses import replace

from trnsim.errors import InputError
from trnsim.workloads.layout import Layout, stage_kinds
from trnsim.workloads.model import Model
from trnsim.workloads.operators import Exchange, Pass, Step, multiplied
from trnsim.workloads.steps import embedding_forward, head_forward, layer_forward
from trnsim.workloads.weights import Count


def prefill(
    model: Model,
    layout: Layout,
    sequences: Count,
    tokens: Count,
    before: Count = 0,
    stage: int = 0,
    *,
    fused: bool = True,
) -> Step:
    """New ``tokens`` of each of ``sequences``, which see ``before`` more in the cache; logits of one token each.

    Args:
        layout: ranks and formats; ``dp`` ranks have sequences of their own, experts spread over them where ``ep`` > tp.
        stage: of the pipeline.
        fused: feed-forward networks are one operator.

    Raises:
        InputError: the model is no decoder, or the layout does not fit it.
    """
    p = _pass(model, layout, sequences, tokens, before + tokens, decoding=False, fused=fused)
    return _step(model, layout, p, sequences, stage)


def decode(
    model: Model,
    layout: Layout,
    sequences: Count,
    context: Count,
    stage: int = 0,
    *,
    new: Count = 1,
    fused: bool = True,
    cache_dtype: str = "",
) -> Step:
    """One decode step of ``sequences`` on one rank, each of ``context`` tokens with the newest.

    Args:
        new: tokens of each sequence that are decoded at once (speculation).
        cache_dtype: of keys and values, if not that of activations.

    Raises:
        InputError: as ``prefill``.
    """
    p = _pass(model, layout, sequences, new, context, decoding=True, fused=fused, cache_dtype=cache_dtype)
    return _step(model, layout, p, sequences * new, stage)


def _pass(
    model: Model,
    layout: Layout,
    sequences: Count,
    queries: Count,
    keys: Count,
    *,
    decoding: bool,
    fused: bool,
    cache_dtype: str = "",
) -> Pass:
    if not model.causal:
        raise InputError(f"{model.name} is an encoder: it has no prefill or decode", operand="model")
    if layout.cp > 1:
        raise InputError("serving over context parallelism is not supported", operand="cp", value=layout.cp)
    replace(layout, sequence_parallel=True).check(model, 2 * layout.tp)
    # Ranks of tp have the same tokens. Where others share the experts, each takes a share of its own to them.
    spread = model.mixture and layout.ep * layout.expert_ranks != layout.tp
    return Pass(
        sequences=sequences,
        queries=queries,
        keys=keys,
        tp=layout.tp,
        ep=layout.ep,
        expert_tp=layout.expert_ranks,
        sequence_parallel=spread,
        replicated=not spread,
        dtype=layout.dtype,
        product_dtype=layout.product_dtype,
        weight_dtype=layout.weight_dtype,
        cache_dtype=cache_dtype,
        decoding=decoding,
        fused=fused,
    )


def _step(model: Model, layout: Layout, p: Pass, outputs: Count, stage: int) -> Step:
    if not 0 <= stage < layout.pp:
        raise InputError("no such stage", operand="stage", value=stage, limit=layout.pp - 1)
    step: Step = embedding_forward(model, p) if stage == 0 else []
    for layer, count in stage_kinds(layout, model, stage):
        step += multiplied(layer_forward(layer, p), count)
    if stage == layout.pp - 1:
        step += head_forward(model, p, outputs, loss=False)
    else:
        step.append(Exchange("send_receive", "pp", 2, p.rows * model.hidden * p.itemsize, "stage"))
    return step
