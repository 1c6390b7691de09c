"""How often a pipelined step waits for each pass of each piece: its length as a sum, for searches and fits.

The rank that a step waits for is busy with every micro-batch. Before its first pass the first micro-batch passes all
ranks in front of it, after its last one the last micro-batch goes back through them; and at both ends it waits for the
ranks behind it to turn a micro-batch around, longer than it has other passes to do, and, with several chunks, until
they have caught up. ``zb-h1`` fills these gaps with gradients of weights. The step is as long as the rank for which
that takes longest; ``pipeline.simulate`` replays the schedules, and a test holds both within 1 % of each other from
two groups of micro-batches on, for pieces as models have them: the first up to a tenth shorter, the last up to a fifth
longer. Where the last is a fourteenth shorter, it is 1.5 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEDULES = ("1f1b", "zb-h1")


@dataclass(frozen=True, eq=False)
class Counts:
    """Of a step: ``passes`` [pieces, 3] and ``sends``, how often each is waited for; the rank that it waits for; how
    long that one waits (``bubble``).
    """

    passes: NDArray[np.float64]
    sends: float
    stage: int
    bubble: float


def counts(
    times: NDArray[np.float64], send: float, stages: int, chunks: int, micro_batches: int, schedule: str = "1f1b"
) -> Counts:
    """What a step waits for.

    Args:
        times: [pieces, 3] of the forward pass, the backward pass for inputs, and that for weights; piece i is on rank
            i % stages.
        send: from a piece to the next, and back.

    Raises:
        InputError: no such schedule.
    """
    if schedule not in SCHEDULES:
        raise InputError("no such schedule of a pipeline", operand="schedule", value=schedule, limit=SCHEDULES)
    if stages == 1:
        return Counts(np.full((chunks, 3), float(micro_batches)), 0.0, 0, 0.0)
    table = times.reshape(chunks, stages, 3)
    forward, backward = table[:, :, 0], table[:, :, 1] + table[:, :, 2]
    split = schedule == "zb-h1" and chunks == 1
    whole = forward + backward
    # A gap that gradients of weights fill is shorter by them.
    gap = whole - 2 * table[:, :, 2] if split else whole
    before = np.concatenate([[0.0], np.cumsum(gap[0])[:-1]])
    behind = np.concatenate([np.cumsum(gap[-1][::-1])[::-1][1:], [0.0]])
    busy = micro_batches * whole.sum(axis=0)
    turned = behind
    if not split:
        # While a micro-batch is turned around, a rank does what it has ahead: before its first backward pass forward
        # passes, after its last forward pass backward passes.
        ahead = (2 if chunks > 1 else 1) * np.minimum(np.arange(stages)[::-1], micro_batches - 1)
        starts, ends = turned - ahead * forward[-1], turned - ahead * backward[-1]
        behind = np.maximum(starts, 0.0) + np.maximum(ends, 0.0)
        if chunks > 1:
            # Ranks behind begin later, and catch up with a slower one in the passes of one chunk.
            slowest = np.array([s + int(np.argmax(busy[s:])) for s in range(stages)])
            fastest = np.array([s + 1 + int(np.argmin(busy[s + 1 :])) if s + 1 < stages else s for s in range(stages)])
            late = turned - np.where(slowest == np.arange(stages), busy - busy[fastest], 0.0) / chunks
            catching = late > behind
            behind = np.where(catching, late, behind)
    waits = np.maximum(before + behind, 0.0) + 2 * (stages - 1) * send
    stage = int(np.argmax(busy + waits))
    found = np.zeros((chunks, stages, 3))
    found[:, stage] += micro_batches
    passes = np.array([1.0, 1.0, -1.0]) if split else np.ones(3)
    found[0, :stage] += passes
    if split:
        found[-1, stage + 1 :] += passes
    elif chunks > 1 and catching[stage]:
        found[-1, stage + 1 :] += passes
        if slowest[stage] == stage:
            found[:, stage] -= micro_batches / chunks
            found[:, fastest[stage]] += micro_batches / chunks
    else:
        for waited, own in ((starts[stage] > 0, slice(0, 1)), (ends[stage] > 0, slice(1, 3))):
            if waited:
                found[-1, stage + 1 :] += 1
                found[-1, stage, own] -= ahead[stage]
    # With one chunk a rank, ranks wait for each other in loops: as many micro-batches as there are ranks pass one round
    # from the first to the last and back. With several chunks others run meanwhile.
    sends = 2.0 * (stages - 1) * (1 + (micro_batches / stages if chunks == 1 else 0.0))
    return Counts(found.reshape(chunks * stages, 3), sends, stage, float(waits[stage]))
