"""A measured profile run through our machine again: its streams in its order, our durations, latencies and contention.

Spans are compared without the runtime's fixed parts: from the first instruction of the kernel to the end of its last
DMA or instruction. An engine's busy time is the union of its instructions, from start to visible result as a profiler
counts them, without those that its sequencer carries out alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.profiles.operands import parse
from trnsim.profiles.profile import ENGINES, Profile, union_ps
from trnsim.profiles.streams import Streams, build, kernel_packets
from trnsim.timing.machine import RING, Run, execute
from trnsim.timing.tables import NO_DMA, TENSOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.timing_constants import Timing

    Column = NDArray[np.int64]


@dataclass(frozen=True)
class Compared:
    """Something that both have. ``error`` is predicted over measured less one."""

    name: str
    measured_ps: int
    predicted_ps: int
    count: int = 1

    @property
    def error(self) -> float:
        return self.predicted_ps / self.measured_ps - 1 if self.measured_ps else 0.0


@dataclass(frozen=True)
class Replay:
    """The result. ``rows`` are rows of the profile; times are predicted, on the profile's clock."""

    profile: Profile
    span: Compared
    engines: list[Compared]
    classes: list[Compared]
    """Durations by engine, opcode and shape, the largest difference first."""
    rows: Column
    start_ps: Column
    duration_ps: Column
    phase_ps: int


def replay(profile: Profile, timing: Timing) -> Replay:
    """Replay ``profile`` with the constants of ``timing``.

    Raises:
        InputError, UnsupportedError: see ``streams.build``.
        DeadlockError: the streams wait for each other.
    """
    streams = build(profile, timing)
    run = execute(streams.nodes, streams.tables, timing, 1.0, streams.phase_ps, compiled=False)
    rows, start, duration, transfer = _rows(streams, run, timing)
    found = profile.instructions
    ends = [found.start_ps[rows] + found.duration_ps[rows]]
    if len(profile.packets):
        kernel = kernel_packets(profile)
        ends.append(profile.packets.start_ps[kernel] + profile.packets.duration_ps[kernel])
    first = int(found.start_ps[rows].min())
    measured = int(max(e.max() for e in ends if len(e))) - first
    predicted = max(int((start + duration).max()), transfer) - int(start.min())
    engines = []
    for number, name in enumerate(ENGINES):
        mine = found.engine[rows] == number
        if mine.any():
            begin = found.start_ps[rows][mine]
            engines.append(
                Compared(
                    name, union_ps(begin, begin + found.duration_ps[rows][mine]),
                    union_ps(start[mine], start[mine] + duration[mine]), int(mine.sum()),
                )
            )  # fmt: skip
    span, classes = Compared("span", measured, predicted), _classes(profile, rows, duration)
    return Replay(profile, span, engines, classes, rows, start, duration, streams.phase_ps)


def _rows(streams: Streams, run: Run, timing: Timing) -> tuple[Column, Column, Column, int]:
    """Rows of the profile, their predicted starts and durations on its clock, and the end of the last transfer."""
    variant = streams.nodes.variant
    dge = streams.tables.column("dge")[variant]
    real = streams.row >= 0
    start = run.start.copy()
    # A trigger that waits for its ring is under way while it waits.
    ring = (run.reason == RING) & (dge != NO_DMA)
    start[ring] = np.maximum(run.idle_from, run.ready)[ring]
    end = np.where(dge == NO_DMA, run.done, run.end)
    loads = streams.load_row >= 0
    # A load runs behind the multiply before it, from when that one starts, as slowly as its own multiply.
    tensor = timing.tensor
    length = run.end - run.start
    slow = np.where(length > 1.5 * streams.tables.column("busy")[variant], tensor.throttle_slowdown, 1)
    exposed = streams.tables.column("load")[variant]
    load_start = _before(streams, run, exposed)
    load_end = load_start + (exposed + tensor.load_lead_ps) * slow + tensor.load_tail_ps
    rows = np.concatenate((streams.row[real], streams.load_row[loads]))
    starts = np.concatenate((start[real], load_start[loads])) + streams.begin_ps
    ends = np.concatenate((end[real], load_end[loads])) + streams.begin_ps
    transfers = run.done[dge != NO_DMA]
    last = int(transfers.max()) + streams.begin_ps if len(transfers) else 0
    order = np.argsort(starts, kind="stable")
    return rows[order], starts[order], (ends - starts)[order], last


def _before(streams: Streams, run: Run, exposed: Column) -> Column:
    """When each node's load starts: with the multiply before it, or as long before its own as it takes."""
    found = run.start - exposed
    queues = streams.nodes.queue_first
    tensor = streams.nodes.queue_nodes[queues[TENSOR] : queues[TENSOR + 1]]
    found[tensor[1:]] = np.minimum(found[tensor[1:]], np.maximum(run.start[tensor[:-1]], run.ready[tensor[1:]]))
    return found


def _classes(profile: Profile, rows: Column, duration: Column) -> list[Compared]:
    sums: dict[str, list[int]] = {}
    for row, length in zip(rows.tolist(), duration.tolist(), strict=True):
        engine = ENGINES[int(profile.instructions.engine[row])]
        name = f"{engine} {profile.opcode_of(row)} {parse(profile.operands_of(row)).shape}".strip()
        entry = sums.setdefault(name, [0, 0, 0])
        entry[0] += int(profile.instructions.duration_ps[row])
        entry[1] += length
        entry[2] += 1
    found = [Compared(name, measured, predicted, count) for name, (measured, predicted, count) in sums.items()]
    return sorted(found, key=lambda c: (-abs(c.predicted_ps - c.measured_ps), c.name))
