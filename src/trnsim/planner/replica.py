"""A serving layout of another tool, on a stack, as the settings of a replica that the engine takes."""

from __future__ import annotations

import math
from dataclasses import replace

from trnsim.errors import InputError
from trnsim.hardware.stack import Stack
from trnsim.serving.profile import replica_settings
from trnsim.serving.settings import ReplicaSettings, Speculation, StaticShapes

from .exchange import ServingLayout


def settings_of(
    layout: ServingLayout,
    stack: Stack,
    *,
    capacity_bytes: int,
    elements_per_token: float,
    acceptance: float | None = None,
    seed: int = 0,
) -> ReplicaSettings:
    """Settings of one replica: what ``layout`` says, and where it says nothing, what ``stack`` does.

    ``capacity_bytes``: KV cache of the replica, where the layout does not give a number of blocks;
    ``elements_per_token``: numbers that the model keeps a token. ``acceptance`` is needed where the layout speculates.
    Raises ``InputError`` where they do not go together.
    """
    if layout.max_model_len is None:
        raise InputError(f"{layout.source}: the longest sequence (max_model_len) is not given")
    if layout.speculation_length and acceptance is None:
        raise InputError(
            f"{layout.source}: speculation needs an acceptance rate", value=f"{layout.speculation_length} draft tokens"
        )
    stack = replace(
        stack,
        cache_layout=stack.cache_layout if layout.paged is None else "paged" if layout.paged else "contiguous",
        block_tokens=layout.block_tokens or stack.block_tokens,
        host_overlap=_overlap(layout, stack),
        prefix_reuse=_prefix_reuse(layout, stack),
    )
    settings = replica_settings(
        stack,
        max_model_len=layout.max_model_len,
        capacity_bytes=capacity_bytes,
        elements_per_token=elements_per_token,
        dtype=layout.cache_dtype or layout.dtype or "bfloat16",
        max_num_seqs=layout.max_num_seqs,
        max_num_batched_tokens=layout.max_num_batched_tokens,
        speculation=Speculation(length=layout.speculation_length, acceptance=acceptance, seed=seed)
        if layout.speculation_length and acceptance is not None
        else None,
    )
    if layout.blocks is not None and settings.cache.layout == "paged":
        size = settings.cache.bytes_per_token * settings.cache.block_tokens
        settings = replace(settings, cache=replace(settings.cache, capacity_bytes=math.ceil(size * layout.blocks)))
    if layout.prefill_buckets or layout.decode_batch_buckets or layout.decode_context_buckets:
        theirs, ours = layout, settings.shapes
        shapes = StaticShapes(
            prefill=theirs.prefill_buckets or ours.prefill,
            decode_batch=theirs.decode_batch_buckets or ours.decode_batch,
            decode_context=_with(theirs.decode_context_buckets, layout.max_model_len) or ours.decode_context,
        )
        settings = replace(settings, shapes=shapes)
    return settings


def _overlap(layout: ServingLayout, stack: Stack) -> str:
    if layout.asynchronous is None:
        return stack.host_overlap
    if not layout.asynchronous:
        return "none"
    # The stack knows when its host can work ahead; one that by itself never does so does in steady decode.
    return stack.host_overlap if stack.host_overlap != "none" else "steady-decode"


def _prefix_reuse(layout: ServingLayout, stack: Stack) -> bool:
    paged = stack.cache_layout == "paged" if layout.paged is None else layout.paged
    return paged and (stack.prefix_reuse if layout.prefix_reuse is None else layout.prefix_reuse)


def _with(sizes: tuple[int, ...], largest: int) -> tuple[int, ...]:
    """Listed sizes and the largest, for which there is always a graph."""
    return tuple(sorted({*sizes, largest})) if sizes else ()
