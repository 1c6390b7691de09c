"""DMA triggers alone, run through the machine at the times at which they were measured to begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trnsim.profiles import costs
from trnsim.profiles.profile import ENGINES
from trnsim.timing.machine import NEVER, RING, Nodes, execute
from trnsim.timing.tables import QUEUE_COUNT, ClassTables, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.hardware.timing_constants import Timing
    from trnsim.profiles.costs import Shape


def replay_triggers(
    shapes: Sequence[Shape], starts: NDArray[np.int64], timing: Timing
) -> list[tuple[int, int, int]]:
    """For each trigger: how long it keeps its engine, its first and its last packet, in picoseconds from its start.

    ``starts`` are picoseconds on any clock. Each engine idles until the measured start of its next trigger; GpSimdE's
    preparation of descriptors comes before a trigger's start and is left out.
    """
    tables = ClassTables()
    begin = int(starts.min()) - timing.dma.software_prepare_ps
    nodes: list[tuple[int, int, int]] = []  # queue, variant, index of the trigger or -1
    for engine in range(len(ENGINES) - 1):
        mine = [i for i in np.argsort(starts, kind="stable").tolist() if shapes[i].engine == ENGINES[engine]]
        for i in mine:
            found = costs.costed(timing, shapes[i])
            at = int(starts[i]) - begin - (timing.dma.software_prepare_ps if ENGINES[engine] == "gpsimd" else 0)
            tables.variants.append(Variant(QUEUE_COUNT - 1, 0, busy=at, latency=at))
            idle = len(tables.variants) - 1
            nodes.append((QUEUE_COUNT - 1, idle, -1 - i))
            nodes.append((engine, tables.add_pieces(found.klass, found.pieces, ENGINES[engine], engine, timing), i))
    return _times(nodes, tables, timing, len(shapes))


def _times(
    nodes: list[tuple[int, int, int]], tables: ClassTables, timing: Timing, count: int
) -> list[tuple[int, int, int]]:
    """Each trigger waits for a node of its own that lasts from 0 to its start, in a core of its own."""
    clocks = [n for n in nodes if n[2] < 0]
    triggers = [n for n in nodes if n[2] >= 0]
    # Core 0 holds the triggers; every clock has a queue of its own in the cores behind it.
    queue = np.array([t[0] for t in triggers] + [QUEUE_COUNT * (1 + k) for k in range(len(clocks))], np.int64)
    variant = np.array([t[1] for t in triggers] + [c[1] for c in clocks], np.int64)
    where = {t[2]: number for number, t in enumerate(triggers)}
    successor = np.array([where[-1 - c[2]] for c in clocks], np.int64)
    total = len(queue)
    cores = 1 + len(clocks)
    by_queue = np.argsort(queue, kind="stable")
    run = execute(
        Nodes(
            queue=queue,
            variant=variant,
            group=np.full(total, -1, np.int64),
            banks=np.zeros(total, np.int64),
            queue_first=np.searchsorted(queue[by_queue], np.arange(cores * QUEUE_COUNT + 1)).astype(np.int64),
            queue_nodes=by_queue.astype(np.int64),
            pending=np.concatenate((np.ones(len(triggers), np.int64), np.zeros(len(clocks), np.int64))),
            successor_first=np.concatenate((np.zeros(len(triggers), np.int64), np.arange(len(clocks) + 1))).astype(np.int64),
            successor=successor,
            successor_latency=np.zeros(len(clocks), np.int64),
            successor_kind=np.zeros(len(clocks), np.int64),
            group_size=np.zeros(0, np.int64),
            cores=cores,
        ),
        tables, timing, 1.0, 0, compiled=False,
    )  # fmt: skip
    assert int(run.start.max()) < NEVER
    found: list[tuple[int, int, int]] = [(0, 0, 0)] * count
    for number, trigger in enumerate(triggers):
        waited = int(run.ready[number]) if run.reason[number] == RING else int(run.start[number])
        begin = max(waited, int(run.idle_from[number])) if run.reason[number] == RING else waited
        found[trigger[2]] = (
            int(run.end[number]) - begin,
            int(run.transfer_start[number]) - begin,
            int(run.done[number]) - begin,
        )
    return found
