"""Which instruction must wait for which: read after write, write after read, write after write, by bytes touched.

Each key (a storage, or all explicit addresses of a memory) keeps lists of the accesses that still matter: writes not
overwritten and reads since. A write that covers an access takes it off its list, so the usual tile, written once and
read whole, costs one comparison an access.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.compiled import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.timing.accesses import Accesses

    Column = NDArray[np.signedinteger[Any]]

RAW, WAR, WAW, ORDER, EXPLICIT, SBUF_SPACE, PSUM_SPACE, SPILL = range(8)


@dataclass
class Edges:
    """``consumer[i]`` must wait for ``producer[i]`` because of ``kind[i]``; sorted by consumer."""

    producer: Column
    consumer: Column
    kind: Column

    def __len__(self) -> int:
        return len(self.producer)

    def take(self, rows: Column) -> Edges:
        """The edges numbered ``rows``."""
        return Edges(self.producer[rows], self.consumer[rows], self.kind[rows])

    @staticmethod
    def join(parts: Sequence[Edges]) -> Edges:
        """All edges of ``parts``, sorted by consumer, then producer and kind."""
        parts = [p for p in parts if len(p)] or list(parts[:1])
        if len(parts) == 1:
            return parts[0]
        producer = np.concatenate([p.producer for p in parts])
        consumer = np.concatenate([p.consumer for p in parts])
        kind = np.concatenate([p.kind for p in parts])
        order = np.lexsort((kind, producer, consumer))
        return Edges(producer[order], consumer[order], kind[order])


def find_dependences(accesses: Accesses, compiled: bool) -> tuple[Edges, Column]:
    """Edges between instructions by consumer and producer, and which accesses are the first to write their bytes.

    An access is *initial* if it writes bytes that no earlier instruction touched (since they were last overwritten).
    """
    count = len(accesses)
    initial = np.zeros(count, np.int8)
    capacity = 3 * count + 64
    while True:
        producer, consumer = (np.zeros(capacity, np.int32) for _ in range(2))
        kind = np.zeros(capacity, np.int8)
        found = run(
            _dependences,
            compiled,
            accesses.instruction, accesses.key, accesses.role, accesses.start, accesses.end, accesses.row_step,
            accesses.row_run, accesses.low, accesses.high, accesses.step, accesses.run, accesses.form,
            np.full(accesses.keys, -1, np.int64), np.full(accesses.keys, -1, np.int64),
            np.full(2 * count, -1, np.int32), initial, producer, consumer, kind,
            helpers=(_between, _meets, _covers),
        )  # fmt: skip
        if found >= 0:
            return Edges(*(c[:found].copy() for c in (producer, consumer, kind))), initial
        capacity *= 2


def _between(shift: int, step: int, run: int, length: int) -> bool:
    """Whether ``length`` things lie between the runs of a pattern; ``shift``: from the start of a run to theirs."""
    shift %= step
    return bool(shift >= run and shift + length <= step)


def _meets(
    i: int, j: int, start: Any, end: Any, row_step: Any, row_run: Any, low: Any, high: Any, step: Any, length: Any
) -> bool:
    """Whether accesses ``i`` and ``j`` of one key touch a common byte."""
    if start[i] >= end[j] or start[j] >= end[i] or low[i] >= high[j] or low[j] >= high[i]:
        return False
    if step[i] > 0 and step[i] == step[j]:
        if _between(low[j] - low[i], step[i], length[i], length[j]):
            return False
    elif step[i] > 0:
        if _between(low[j] - low[i], step[i], length[i], high[j] - low[j]):
            return False
    elif step[j] > 0 and _between(low[i] - low[j], step[j], length[j], high[i] - low[i]):
        return False
    if row_step[i] > 0 and row_step[i] == row_step[j]:
        return not _between(start[j] - start[i], row_step[i], row_run[i], row_run[j])
    if row_step[i] > 0:
        return not _between(start[j] - start[i], row_step[i], row_run[i], end[j] - start[j])
    if row_step[j] > 0:
        return not _between(start[i] - start[j], row_step[j], row_run[j], end[i] - start[i])
    return True


def _covers(
    i: int, j: int, start: Any, end: Any, row_step: Any, row_run: Any, low: Any, high: Any, step: Any, length: Any,
    form: Any,
) -> bool:  # fmt: skip
    """Whether access ``i`` touches every byte that ``j`` does."""
    if start[i] > start[j] or end[i] < end[j] or low[i] > low[j] or high[i] < high[j]:
        return False
    if form[i] == form[j] and start[i] == start[j] and low[i] == low[j]:
        return True
    if row_step[i] != 0 and not (
        row_step[i] > 0
        and row_step[i] == row_step[j]
        and (start[j] - start[i]) % row_step[i] + row_run[j] <= row_run[i]
    ):
        return False
    if step[i] == 0:
        return True
    return bool(step[i] > 0 and step[i] == step[j] and (low[j] - low[i]) % step[i] + length[j] <= length[i])


def _dependences(
    instruction: Any,
    key: Any,
    role: Any,
    start: Any,
    end: Any,
    row_step: Any,
    row_run: Any,
    low: Any,
    high: Any,
    step: Any,
    length: Any,
    form: Any,
    write_head: Any,
    read_head: Any,
    following: Any,
    initial: Any,
    producer: Any,
    consumer: Any,
    kind: Any,
) -> int:
    """Fill ``producer``, ``consumer`` and ``kind``; the number of edges, or -1 if they do not fit.

    ``following[2 * i]`` links access ``i`` in the list of writes, ``following[2 * i + 1]`` in that of reads.
    """
    count = len(instruction)
    capacity = len(producer)
    edges = 0
    first = 0
    for i in range(count):
        here = instruction[i]
        if i == 0 or instruction[i - 1] != here:
            first = edges
        k = key[i]
        writes = role[i] != 0
        reads = role[i] != 2
        touched = False
        here_low = low[i]
        here_high = high[i]
        for side in range(2):
            # side 0: earlier writes; side 1: earlier reads, which matter to writes only.
            if side == 1 and not writes:
                break
            previous = -1
            j = write_head[k] if side == 0 else read_head[k]
            while j >= 0:
                after = following[2 * j + side]
                other = instruction[j]
                # Most accesses of a tile are to other bytes of it: that is seen first.
                apart = here_low >= high[j] or low[j] >= here_high
                if not apart and other != here and _meets(i, j, start, end, row_step, row_run, low, high, step, length):
                    touched = True
                    why = (0 if reads else 2) if side == 0 else 1
                    known = False
                    for e in range(first, edges):
                        if producer[e] == other:
                            known = True
                            kind[e] = min(kind[e], why)
                            break
                    if not known:
                        if edges >= capacity:
                            return -1
                        producer[edges] = other
                        consumer[edges] = here
                        kind[edges] = why
                        edges += 1
                    if writes and _covers(i, j, start, end, row_step, row_run, low, high, step, length, form):
                        if previous < 0:
                            if side == 0:
                                write_head[k] = after
                            else:
                                read_head[k] = after
                        else:
                            following[2 * previous + side] = after
                        j = after
                        continue
                previous = j
                j = after
        if i + 1 == count or instruction[i + 1] != here:
            for e in range(first + 1, edges):
                p = producer[e]
                w = kind[e]
                at = e
                while at > first and producer[at - 1] > p:
                    producer[at] = producer[at - 1]
                    kind[at] = kind[at - 1]
                    at -= 1
                producer[at] = p
                kind[at] = w
        if writes:
            following[2 * i] = write_head[k]
            write_head[k] = i
            initial[i] = 0 if touched else 1
        if reads and not writes:
            following[2 * i + 1] = read_head[k]
            read_head[k] = i
    return edges
