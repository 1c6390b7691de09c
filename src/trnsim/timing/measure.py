"""What a timeline sums up to, without drawing it: for whoever times many traces and looks at none of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.draw import live_bytes, lives, members_of, own_time
from trnsim.timing.simulate import run_stages, support_of, totals_of
from trnsim.timing.tables import ENGINES, NO_DMA, QUEUE_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.hardware.model import Chip
    from trnsim.machine.trace import Trace
    from trnsim.timing.options import TimingOptions
    from trnsim.timing.simulate import Stages
    from trnsim.timing.timeline import Totals

    Column = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Measured:
    """Sums over all cores, and the busy time of each engine and of the DMA of the core where it is longest.

    ``sbuf_bytes``: the peak of a partition. As the ``Timeline`` of the same traces has them, on the clock ``kernel``.
    """

    total_ps: int
    busy_ps: dict[str, int]
    dma_busy_ps: int
    sbuf_bytes: int
    totals: Totals
    support: str
    reason: str


def measure(traces: Sequence[Trace], chip: Chip, options: TimingOptions | None = None) -> Measured:
    """Time traces of the cores of one logical core on ``chip``. Raises as ``simulate``."""
    stages = run_stages(traces, chip, options)
    nodes, run, tables = stages.linked.nodes, stages.typical, stages.tables
    dge = tables.column("dge")[nodes.variant]
    start, end = own_time(nodes, run)
    busy = dict.fromkeys(ENGINES, 0)
    for queue in range(nodes.cores * QUEUE_COUNT):
        number = queue % QUEUE_COUNT
        if number >= len(ENGINES):
            continue
        mine = nodes.queue_nodes[nodes.queue_first[queue] : nodes.queue_first[queue + 1]]
        loads = mine[run.table_start[mine] >= 0]  # of function tables: the engine is busy with them too
        spans = (start[mine], end[mine])
        if len(loads):
            spans = (
                np.concatenate((spans[0], run.table_start[loads])),
                np.concatenate((spans[1], run.idle_from[loads])),
            )
        busy[ENGINES[number]] = max(busy[ENGINES[number]], _together(*spans))
    moving = dge != NO_DMA
    dma = 0
    for core in range(nodes.cores):
        rows = np.flatnonzero(moving & (stages.linked.core == core))
        dma = max(dma, _together(run.transfer_start[rows], run.done[rows]))
    support, reason = support_of(stages, chip, options)
    return Measured(stages.mean_ps, busy, dma, _sbuf_peak(stages), totals_of(stages), support, reason)


def _together(start: Column, end: Column) -> int:
    """Time in which at least one of some intervals runs."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reached = np.maximum.accumulate(end)
    before = np.concatenate((start[:1], reached[:-1]))
    return int(np.maximum(end - np.maximum(start, before), 0).sum())


def _sbuf_peak(stages: Stages) -> int:
    peak = 0
    for number, program in enumerate(stages.programs):
        begin, finish = lives(program, number, stages.linked, stages.typical)
        members, starts, ends = members_of(program, "sbuf", begin, finish)
        sizes = program.trace.storage_columns["row_bytes"][members]
        peak = max(peak, live_bytes(starts, ends, sizes)[2])
    return peak
