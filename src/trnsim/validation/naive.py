"""Two models that know nothing of order, dependence or waiting, to compare predictions with.

``busiest``: the kernel takes as long as the busiest of its engines and its DMA would take on its own.
``sum``: the DMA and the busiest compute engine, one after the other. Both take the costs of our instruction model at
full rate, DMA over all engines of the core, and of several cores the slowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.hardware import load_timing
from trnsim.timing.tables import ENGINES, NO_DMA, ClassTables

if TYPE_CHECKING:
    from trnsim.hardware import Chip
    from trnsim.machine.trace import Trace


@dataclass(frozen=True)
class Naive:
    """Microseconds without the fixed parts of a clock."""

    busiest_us: float
    sum_us: float


def naive(traces: Sequence[Trace], chip: Chip) -> Naive:
    """Both naive times of one launch."""
    loads = [_loads(trace, chip) for trace in traces]
    return Naive(
        busiest_us=max(max(compute, dma) for compute, dma in loads) / 1e6,
        sum_us=max(compute + dma for compute, dma in loads) / 1e6,
    )


def _loads(trace: Trace, chip: Chip) -> tuple[int, int]:
    """Picoseconds of work of the busiest compute engine and of the DMA engines of one core."""
    timing = load_timing(chip)
    engines = timing.dma.engines
    tables = ClassTables()
    klass, counts = np.unique(trace.instructions["klass"], return_counts=True)
    busy = dict.fromkeys(range(len(ENGINES)), 0)
    dma = 0
    for number, count in zip(klass.tolist(), counts.tolist(), strict=True):
        variant = tables.candidates[tables.add(trace.classes[number], timing)][0]
        while variant >= 0:
            piece = tables.variants[variant]
            if piece.dge == NO_DMA:
                busy[piece.queue] = busy.get(piece.queue, 0) + count * piece.busy
            else:
                lanes = piece.lane_low * (engines - piece.lanes_high) + piece.lane_high * piece.lanes_high
                dma += count * lanes // engines
            variant = piece.chain
    return max(busy.values()), dma
