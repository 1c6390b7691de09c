"""From a stack of the catalogue to the settings of a replica."""

from __future__ import annotations

from trnsim.errors import InputError
from trnsim.hardware.stack import Sizes, Stack

from .settings import (
    CacheSettings,
    HostSettings,
    ReplicaSettings,
    SchedulerSettings,
    Speculation,
    StaticShapes,
    powers_of_two,
)


def replica_settings(
    stack: Stack,
    *,
    max_model_len: int,
    capacity_bytes: int,
    elements_per_token: float,
    dtype: str = "bfloat16",
    scale_bytes_per_token: float = 0.0,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    prefix_reuse: bool | None = None,
    speculation: Speculation | None = None,
    swap_bytes_per_second: float = 0.0,
) -> ReplicaSettings:
    """Settings of a replica under ``stack``; what is given here goes before the stack's own value.

    ``capacity_bytes`` is the cache of the whole replica (``Stack.cache_bytes`` gives that of a rank). Sizes that graphs
    are compiled for follow from ``max_model_len`` and the scheduler's limits by the stack's rules. Raises
    ``InputError`` for sizes that do not go together.
    """
    seqs = stack.max_num_seqs if max_num_seqs is None else max_num_seqs
    batched = stack.max_num_batched_tokens if max_num_batched_tokens is None else max_num_batched_tokens
    # A stack without a limit of its own computes prompts of any length in one piece.
    batched = max_model_len if batched is None else batched
    return ReplicaSettings(
        cache=CacheSettings(
            capacity_bytes=capacity_bytes,
            elements_per_token=elements_per_token,
            dtype=dtype,
            scale_bytes_per_token=scale_bytes_per_token,
            layout=stack.cache_layout,
            block_tokens=stack.block_tokens,
            prefix_reuse=stack.prefix_reuse if prefix_reuse is None else prefix_reuse,
        ),
        scheduler=SchedulerSettings(
            policy=stack.policy,
            max_num_seqs=seqs,
            max_num_batched_tokens=batched,
            max_model_len=max_model_len,
            max_prefills=stack.max_prefills,
            chunks=stack.chunks,
            preemption=stack.preemption,
            watermark=stack.watermark,
        ),
        host=HostSettings(step_ps=stack.host_step_ps, launch_ps=stack.launch_floor_ps, overlap=stack.host_overlap),
        shapes=static_shapes(stack, max_model_len, seqs, batched),
        speculation=speculation,
        swap_bytes_per_second=swap_bytes_per_second,
    )


def static_shapes(stack: Stack, max_model_len: int, max_num_seqs: int, max_num_batched_tokens: int) -> StaticShapes:
    """The sizes that the stack compiles graphs for."""
    longest = max_model_len
    if stack.chunks or stack.cache_layout == "contiguous":
        longest = min(longest, max_num_batched_tokens)
    return StaticShapes(
        prefill=_sizes(stack, "prefill", stack.prefill, longest),
        decode_batch=_sizes(stack, "decode_batch", stack.decode_batch, max_num_seqs),
        decode_context=_sizes(stack, "decode_context", stack.decode_context, max_model_len),
    )


def _sizes(stack: Stack, name: str, sizes: Sizes, largest: int) -> tuple[int, ...]:
    if sizes.rule == "exact":
        return ()
    if sizes.rule == "largest":
        return (largest,)
    if sizes.rule == "powers-of-two":
        return powers_of_two(min(sizes.smallest, largest), largest)
    if sizes.sizes[-1] > largest:
        raise InputError(
            f"stack {stack.name}: shapes.{name}_sizes: larger than is ever needed", value=sizes.sizes[-1], limit=largest
        )
    return (*(s for s in sizes.sizes if s < largest), largest)
