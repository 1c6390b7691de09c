"""The instructions of a call summed by core, engine, opcode and source line: what a comparison of profiles needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trnsim.report.call import KernelCall


@dataclass(frozen=True)
class ClassCost:
    """One class. ``line`` is ``file:line``, empty where the compiler added the instruction."""

    core: int
    engine: str
    opcode: str
    line: str
    count: int
    busy_ps: int
    waiting_ps: int
    bytes: int


def class_costs(call: KernelCall) -> list[ClassCost]:
    """Classes in the order of core, engine, opcode and line; waits are those that ended with one of its instructions.

    A DMA counts twice: as its trigger on its engine, and as a transfer of engine ``dma``.
    """
    timeline = call.timeline
    events, waits = timeline.events, timeline.waits
    waited = np.zeros(len(events.start), np.int64)
    known = waits.before >= 0
    np.add.at(waited, waits.before[known], (waits.end - waits.start)[known])
    tracks = {t.index: t for t in timeline.tracks}
    sums: dict[tuple[int, str, str, str], list[int]] = {}
    columns = (events.track, events.opcode, events.instruction, events.end - events.start, events.bytes, waited)
    for track_index, opcode, row, length, size, wait in zip(*(c.tolist() for c in columns), strict=True):
        track = tracks[track_index]
        line = _line(call, track.core, row)
        name = track.name if track.kind == "engine" else "dma"
        entry = sums.setdefault((track.core, name, timeline.opcodes[opcode], line), [0, 0, 0, 0])
        for i, value in enumerate((1, length, wait, size)):
            entry[i] += value
    return [ClassCost(*key, *values) for key, values in sorted(sums.items())]


def _line(call: KernelCall, core: int, row: int) -> str:
    if row < 0 or core >= len(call.traces):
        return ""
    trace = call.traces[core]
    number = int(trace.instructions["line"][row])
    if number >= len(trace.lines) or not trace.lines[number].line:
        return ""
    return f"{trace.lines[number].file}:{trace.lines[number].line}"
