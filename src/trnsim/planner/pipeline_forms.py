"""Length of a pipelined step in closed form, for arrays of plans: what searches use instead of ``pipeline.simulate``.

A step is as long as the longest chain of operations that wait for one another. The schedules are so regular that few
kinds of chain can be the longest, and each has a length that can be written down:

- a *head*, until rank s may begin its first backward pass: its own first forward passes, or the way of the first
  micro-batch to the last rank and back;
- a *middle* that repeats for each micro-batch: rank s is always busy, or, where sending takes time, a loop of ranks s
  to r, which are coupled: r - s + 1 micro-batches take one round from s to r and back;
- a *tail*: the backward passes that s has left, or the way of the last micro-batch to the last rank and back; then down
  to rank 0 (``zb-h1``: to any rank, which ends with weight gradients).

The length is the maximum over s, r and the kinds of head and tail. Without sending it is exact for ``1f1b``. ``gpipe``
is a flow shop forth and one back, which is exact. ``interleaved``, and ``zb-h1`` with sending or few micro-batches,
replay up to
2 ``_SETTLED`` groups of ``stages`` micro-batches, and of more the first ``_SETTLED``, extended by what the last adds.
``tests/unit/planner/test_pipeline.py`` holds all of them within 1 % of ``simulate``, uneven stages and sending of up to
a tenth of a stage's time included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from .pipeline import Floats, Schedule, Times, simulate

_SETTLED: Final = 7


def step_time(schedule: Schedule, times: Times) -> Floats:
    """Length of a step: an array of the plans' shape, in the unit of ``times``."""
    forward, backward, weight, send = times.checked(schedule)
    if schedule.name == "gpipe":
        return _gpipe(schedule, forward, backward, send)
    few = schedule.microbatches < 2 * schedule.stages
    if schedule.name == "interleaved" or (schedule.splits_backward and (few or np.any(send))):
        return _extended(schedule, times)
    return _one_forward_one_backward(schedule, forward, backward, weight, send)


def _gpipe(schedule: Schedule, forward: Floats, backward: Floats, send: Floats) -> Floats:
    total = (forward + backward).sum(axis=-1) + 2 * send.sum(axis=-1)
    return np.asarray(total + (schedule.microbatches - 1) * (forward.max(axis=-1) + backward.max(axis=-1)))


def _before(values: Floats) -> Floats:
    """Sums over the ranks in front of each."""
    return np.asarray(np.cumsum(values, axis=-1) - values)


def _one_forward_one_backward(
    schedule: Schedule, forward: Floats, backward: Floats, weight: Floats, send: Floats
) -> Floats:
    stages, count, split = schedule.stages, schedule.microbatches, schedule.splits_backward
    shape = np.broadcast_shapes(*(x.shape for x in (forward, backward, weight, send)))
    forward, backward, weight, send = (np.broadcast_to(x, shape) for x in (forward, backward, weight, send))
    both = forward + backward
    fill = np.cumsum(forward + send, axis=-1) - send  # end of the first forward pass of each rank
    drain = _before(backward + send)  # from a rank's last backward pass down to rank 0
    slow_forward = np.maximum.accumulate(forward, axis=-1)
    slow_backward = np.maximum.accumulate(backward, axis=-1)
    longest: Floats = np.zeros(shape[:-1])
    head = tail = np.zeros(shape[:-1])
    for s in reversed(range(stages)):
        b, w = backward[..., s], weight[..., s]
        ahead = min(stages - s, count)
        pairs = count - ahead
        lag = min(s, count) if split else count
        # Head: until the first backward pass of rank s may begin. Tail: from the end of its last forward pass to that
        # of its last backward pass of inputs. Each is its own passes, or the way to the ranks behind it and back.
        own_head = fill[..., s] + (ahead - 1) * slow_forward[..., s]
        far_head = head + backward[..., s + 1] + send[..., s] if s + 1 < stages else own_head
        between = max(0, pairs - lag)  # weight gradients in the middle
        cooling = max(0, ahead - 1 - max(0, lag - pairs)) if split else 0  # and between the backward passes at the end
        own_tail = ahead * (b if split else slow_backward[..., s]) + cooling * w
        if not split:
            own_tail = own_tail - slow_backward[..., s] + b
        far_tail = send[..., s] + forward[..., s + 1] + tail + send[..., s] + b if s + 1 < stages else own_tail
        head, tail = np.maximum(own_head, far_head), np.maximum(own_tail, far_tail)
        if pairs:
            reached = head + _middle(s, pairs, between, both, w, send) + tail
        else:
            # Without a middle the first micro-batch's return does not delay the last forward pass.
            reached = np.maximum(own_head + tail, far_head + own_tail)
        if not split:
            longest = np.maximum(longest, reached + drain[..., s])
            continue
        for q in range(s + 1):
            down = drain[..., s] - drain[..., q]
            longest = np.maximum(longest, reached + down + min(q + 1, count) * weight[..., q])
    return longest


def _middle(s: int, pairs: int, between: int, both: Floats, w: Floats, send: Floats) -> Floats:
    """The longest chain over ``pairs`` micro-batches from a backward pass of rank s to a forward pass of it.

    Rank s does ``between`` weight gradients meanwhile (only where nothing is to be sent).
    """
    longest = pairs * both[..., s] + between * w
    if not np.any(send):
        return np.asarray(longest)
    stages = both.shape[-1]
    loops = [both[..., s]]
    for r in range(s + 1, min(stages, s + pairs - 1)):
        loops.append(loops[-1] + both[..., r] + 2 * send[..., r - 1])
    for size, loop in enumerate(loops[1:], start=2):
        # The chain begins with a pair of rank s itself.
        rounds, rest = divmod(pairs - 1, size)
        last = loops[rest - 1] if rest else 0.0
        longest = np.maximum(longest, both[..., s] + rounds * loop + last)
    return np.asarray(longest)


def _extended(schedule: Schedule, times: Times) -> Floats:
    """As many micro-batches replayed as it takes until each group of ``stages`` adds the same."""
    stages, count = schedule.stages, schedule.microbatches
    # Up to twice as many, one whole replay is no dearer than the two of an extension.
    groups = count // stages - _SETTLED if count // stages >= 2 * _SETTLED else 0
    settled = replace(schedule, microbatches=count - groups * stages)
    length = simulate(settled, times).total
    if not groups:
        return length
    fewer = simulate(replace(settled, microbatches=settled.microbatches - stages), times).total
    return np.asarray(length + groups * (length - fewer))
