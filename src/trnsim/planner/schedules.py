"""How often a pipelined step waits for each pass of each piece: its length as a sum, for searches and fits.

The rank that a step waits for is busy with every micro-batch. Before its first pass the first micro-batch passes all
ranks in front of it, after its last one the last micro-batch goes back through them; and once it waits for the ranks
behind it to turn a micro-batch around, with the pieces of their last chunks. ``zb-h1`` fills these gaps with gradients
of weights. The step is as long as the rank for which that takes longest; ``pipeline.simulate`` replays the schedules,
and a test holds both within 1 % of each other.
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
    whole = times.sum(axis=1).reshape(chunks, stages)
    # A gap that gradients of weights fill is shorter by them.
    gap = (times @ (1.0, 1.0, -1.0)).reshape(chunks, stages) if schedule == "zb-h1" and chunks == 1 else whole
    before = np.concatenate([[0.0], np.cumsum(gap[0])[:-1]])
    behind = np.concatenate([np.cumsum(gap[-1][::-1])[::-1][1:], [0.0]])
    busy = micro_batches * whole.sum(axis=0)
    waits = np.maximum(before + behind, 0.0) + 2 * (stages - 1) * send
    stage = int(np.argmax(busy + waits))
    found = np.zeros((chunks, stages, 3))
    found[:, stage] += micro_batches
    last = np.array([1.0, 1.0, -1.0]) if gap is not whole else np.ones(3)
    found[0, :stage] += last
    found[-1, stage + 1 :] += last
    # With one chunk a rank, ranks wait for each other in loops: as many micro-batches as there are ranks pass one round
    # from the first to the last and back. With several chunks others run meanwhile.
    sends = 2.0 * (stages - 1) * (1 + (micro_batches / stages if chunks == 1 else 0.0))
    return Counts(found.reshape(chunks * stages, 3), sends, stage, float(waits[stage]))
