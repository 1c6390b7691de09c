"""What engines executed, as a profiler counts it: every pass of TensorE with the load before it, every DMA trigger."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from trnsim.hardware.timing_constants import load_timing
from trnsim.isa.work import Work
from trnsim.timing.timeline import ENGINE

if TYPE_CHECKING:
    from trnsim.hardware.model import Chip
    from trnsim.timing.timeline import Timeline


def executed_counts(timeline: Timeline, chip: Chip) -> Counter[tuple[str, str]]:
    """How many instructions of each (engine, opcode) ran, those of all cores together.

    Opcodes are those of events, but for TensorE: ``LDWEIGHTS`` and ``MATMUL`` once a pass.
    """
    timing = load_timing(chip)
    events = timeline.events
    counts: Counter[tuple[str, str]] = Counter()
    for track in timeline.tracks:
        if track.kind != ENGINE:
            continue
        mine = events.track == track.index
        if track.name != "tensor":
            codes, found = np.unique(events.opcode[mine], return_counts=True)
            for code, count in zip(codes.tolist(), found.tolist(), strict=True):
                counts[track.name, timeline.opcodes[code]] += count
            continue
        trace = timeline.traces[track.core]
        rows = np.unique(events.instruction[mine & (events.instruction >= 0)])
        classes, found = np.unique(trace.instructions["klass"][rows], return_counts=True)
        for number, count in zip(classes.tolist(), found.tolist(), strict=True):
            klass = trace.classes[number]
            for piece in klass.instruction.cost(timing, klass, "tensor"):
                if isinstance(piece, Work) and piece.queue in ("", "tensor"):
                    counts["tensor", piece.opcode] += count
    return counts
