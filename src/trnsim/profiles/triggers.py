"""DMA triggers alone, run through the machine at the times at which they were measured to begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trnsim.profiles import costs
from trnsim.profiles.profile import ENGINES
from trnsim.timing.machine import RING, Nodes, execute
from trnsim.timing.tables import QUEUE_COUNT, SYNC, ClassTables, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.hardware.timing_constants import Timing
    from trnsim.profiles.costs import Shape


def replay_triggers(shapes: Sequence[Shape], starts: NDArray[np.int64], timing: Timing) -> list[tuple[int, int, int]]:
    """For each trigger: how long it keeps its engine, its first and its last packet, in picoseconds from its start.

    ``starts`` are picoseconds on any clock. Each engine idles until the measured start of its next trigger; GpSimdE's
    preparation of descriptors comes before a trigger's start and is left out.
    """
    tables = ClassTables()
    begin = int(starts.min()) - timing.dma.software_prepare_ps
    triggers: list[tuple[int, int, int]] = []  # queue, variant, index of the trigger
    clocks: list[int] = []  # of each trigger, the variant that lasts until its start
    for engine in range(len(ENGINES) - 1):
        mine = [i for i in np.argsort(starts, kind="stable").tolist() if shapes[i].engine == ENGINES[engine]]
        for i in mine:
            found = costs.costed(timing, shapes[i])
            at = int(starts[i]) - begin - (timing.dma.software_prepare_ps if ENGINES[engine] == "gpsimd" else 0)
            clocks.append(len(tables.variants))
            tables.variants.append(Variant(SYNC, 0, busy=at, latency=at))
            variant = tables.add_pieces(found.klass, found.pieces, ENGINES[engine], engine, timing)
            triggers.append((engine, variant, i))
    return _times(triggers, clocks, tables, timing)


def _times(
    triggers: list[tuple[int, int, int]], clocks: list[int], tables: ClassTables, timing: Timing
) -> list[tuple[int, int, int]]:
    """Each trigger waits for a node of its own that lasts from 0 to its start, in a core of its own."""
    # Core 0 holds the triggers; every clock has a queue of its own in the cores behind it.
    queue = np.array([t[0] for t in triggers] + [QUEUE_COUNT * (1 + k) + SYNC for k in range(len(clocks))], np.int64)
    variant = np.array([t[1] for t in triggers] + clocks, np.int64)
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
            successor_first=np.concatenate((np.zeros(len(triggers)), np.arange(len(clocks) + 1))).astype(np.int64),
            successor=np.arange(len(triggers), dtype=np.int64),
            successor_latency=np.zeros(len(clocks), np.int64),
            successor_kind=np.zeros(len(clocks), np.int64),
            group_size=np.zeros(0, np.int64),
            cores=cores,
        ),
        tables, timing, 1.0, 0, compiled=False,
    )  # fmt: skip
    found: list[tuple[int, int, int]] = [(0, 0, 0)] * len(triggers)
    for number, trigger in enumerate(triggers):
        begin = int(run.start[number])
        if run.reason[number] == RING:  # under way while it waits for its ring
            begin = max(int(run.ready[number]), int(run.idle_from[number]))
        found[trigger[2]] = (
            int(run.end[number]) - begin,
            int(run.transfer_start[number]) - begin,
            int(run.done[number]) - begin,
        )
    return found
