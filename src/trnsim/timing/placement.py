"""Bytes of SBUF and PSUM for tiles without an address, from first write to last use in scheduled order.

Space is given out round robin, so a tile gets the bytes that have been free longest: that lets work run ahead as far as
the capacity allows. Under the schedule ``nki``, what is loaded gets the lowest free bytes instead, unless tiles have to
make room: in measured matmuls of one product a block each load waits for the last reader of about its fourth
predecessor. A tile that takes over bytes must wait for the last users of whatever held them before. PSUM is given out
so that no tile crosses a bank needlessly and successive tiles lie in different banks. Where live tiles outgrow the
memory, the one whose next use is furthest away makes room and comes back before that use, as the vendor's compiler
does. A tile that was loaded from a tensor that nothing writes is dropped and loaded again, others are spilled to HBM;
those of SBUF live there then (``spilling``).

That such loads are repeated rather than spilled: version 4 of the how-to matmul (aws-neuron-sdk
nki/guides/tutorials/kernel-optimization.rst) holds 320 KiB a partition, read 8.7 GB where it says 4.5 GB, as if each
tile of the moving matrix were loaded for each use, and its TensorE never waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.compiled import run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Column = NDArray[np.signedinteger[Any]]


SPILLED, RELOADED, DROPPED = range(3)
NEVER = 1 << 62
SLACK = 8
"""Where tiles have to make room, loads are repeated rather than let this part of a memory be full: others run ahead.
Under ``tensorizer`` tiles are spilled so too: bmm_softmax on trn1 (zhang677/AccelOpt) spills 754 MB, with this 755,
with all of SBUF 713.
"""
AHEAD = 16
"""Instructions that hide a load: a DMA takes 2 to 3 us from trigger to semaphore, a matmul 0.2 to 0.9 us."""


@dataclass
class Placement:
    """Where tiles of one memory went.

    ``address``: first byte of each storage (-1: not placed, or in several pieces). ``taken_over``: rows of (new
    storage, earlier holder, position at which it moves in). ``spills``: rows of (position, storage, what): ``SPILLED``
    to HBM, ``RELOADED`` from it, or ``DROPPED`` because HBM has its bytes.
    """

    address: Column
    taken_over: Column
    spills: Column


def place(
    memory_bytes: int,
    bank_bytes: int,
    reserved: list[tuple[int, int]],
    sizes: Column,
    uses: Column,
    use_start: Column,
    sequence: tuple[Column, Column],
    loaded: Column,
    compiled: bool,
    *,
    lowest: Column | None = None,
) -> Placement:
    """Place storages in a memory of ``memory_bytes`` a partition.

    ``sequence`` is (position, storage) of every use in scheduled order; ``uses[use_start[s]:use_start[s + 1]]`` are the
    positions that use storage ``s``. ``loaded[s]`` is the position from which on HBM has what is in ``s`` too,
    ``NEVER`` if it never has. ``reserved`` bytes belong to explicit addresses. ``bank_bytes`` is 0 without
    banks. ``lowest`` is 1 for storages that take the lowest free bytes as long as nothing has to make room.
    """
    count = len(sizes)
    capacity = 4 * count + 256
    low, high, free = _initial_segments(memory_bytes, reserved)
    room = sum(h - l for l, h, f in zip(low, high, free, strict=True) if f)
    target = room
    while True:
        segments = len(low) + 2 * capacity
        columns = [np.zeros(segments, np.int64) for _ in range(3)]
        for column, values in zip(columns, (low, high, free), strict=True):
            column[: len(values)] = values
        address = np.full(count, -1, np.int64)
        overs, spills = np.zeros(3 * capacity, np.int64), np.zeros(3 * capacity, np.int64)
        lengths = np.array([0, 0, len(low), 0, 0], np.int64)
        rotating = lowest is None or target < room
        full = run(
            _place,
            compiled,
            bank_bytes, sizes, uses, use_start, sequence[0], sequence[1], loaded, address, np.zeros(count, np.int64),
            np.zeros(count, np.int64), use_start[:-1].copy(), *columns, np.full(segments, -1, np.int64),
            overs, spills, lengths, np.zeros(count, np.int64) if rotating else lowest, target,
            helpers=(_split, _allocate, _release, _victim),
        )  # fmt: skip
        if not full and lengths[1] and target == room:
            target -= room // SLACK
        elif not full:
            return Placement(address, overs[: 3 * lengths[0]].reshape(-1, 3), spills[: 3 * lengths[1]].reshape(-1, 3))
        else:
            capacity *= 4


def _initial_segments(memory_bytes: int, reserved: list[tuple[int, int]]) -> tuple[list[int], list[int], list[int]]:
    """Memory in order: free stretches and those that belong to explicit addresses."""
    stretches: list[tuple[int, int, int]] = []
    at = 0
    for begin, end in sorted(reserved):
        if begin > at:
            stretches.append((at, begin, 1))
        if end > at:
            stretches.append((max(at, begin), min(end, memory_bytes), 0))
            at = end
    if at < memory_bytes:
        stretches.append((at, memory_bytes, 1))
    return [s[0] for s in stretches], [s[1] for s in stretches], [s[2] for s in stretches]


def _split(segment: int, at: int, low: Any, high: Any, free: Any, holder: Any, lengths: Any) -> None:
    """Cut a segment at byte ``at``."""
    for j in range(lengths[2], segment, -1):
        low[j] = low[j - 1]
        high[j] = high[j - 1]
        free[j] = free[j - 1]
        holder[j] = holder[j - 1]
    high[segment] = at
    low[segment + 1] = at
    lengths[2] += 1


def _allocate(
    storage: int,
    size: int,
    bank: int,
    position: int,
    low: Any,
    high: Any,
    free: Any,
    holder: Any,
    overs: Any,
    lengths: Any,
) -> int:
    """Give ``storage`` bytes; its address, -1 for several pieces, -2 if there are not enough."""
    pointer = lengths[3] if lengths[4] == 0 else 0
    for attempt in range(2):
        n = lengths[2]
        i = 0
        while i < n:
            if free[i] == 0 or (attempt == 0 and high[i] <= pointer):
                i += 1
                continue
            start = max(low[i], pointer) if attempt == 0 else low[i]
            if bank > 0 and (size > bank or start // bank != (start + size - 1) // bank):
                start = -(-start // bank) * bank
            # The free stretch from here on.
            last = i
            while last + 1 < n and free[last + 1] == 1 and high[last] < start + size:
                last += 1
            if start < low[i] or high[last] < start + size or start >= high[i]:
                i += 1
                continue
            if start > low[i]:
                _split(i, start, low, high, free, holder, lengths)
                i += 1
                last += 1
            if high[last] > start + size:
                _split(last, start + size, low, high, free, holder, lengths)
            for j in range(i, last + 1):
                if holder[j] >= 0:
                    overs[3 * lengths[0]] = storage
                    overs[3 * lengths[0] + 1] = holder[j]
                    overs[3 * lengths[0] + 2] = position
                    lengths[0] += 1
            gone = last - i
            high[i] = start + size
            free[i] = 0
            holder[i] = storage
            for j in range(i + 1, lengths[2] - gone):
                low[j] = low[j + gone]
                high[j] = high[j + gone]
                free[j] = free[j + gone]
                holder[j] = holder[j + gone]
            lengths[2] -= gone
            if lengths[4] == 0:
                lengths[3] = start + size if bank == 0 else -(-(start + size) // bank) * bank
            return int(start)
    total = 0
    for j in range(lengths[2]):
        if free[j] == 1:
            total += high[j] - low[j]
    if total < size:
        return -2
    left = size
    j = 0
    while left > 0:
        if free[j] == 1:
            if high[j] - low[j] > left:
                _split(j, low[j] + left, low, high, free, holder, lengths)
            if holder[j] >= 0:
                overs[3 * lengths[0]] = storage
                overs[3 * lengths[0] + 1] = holder[j]
                overs[3 * lengths[0] + 2] = position
                lengths[0] += 1
            free[j] = 0
            holder[j] = storage
            left -= high[j] - low[j]
        j += 1
    return -1


def _release(storage: int, free: Any, holder: Any, lengths: Any) -> None:
    for j in range(lengths[2]):
        if holder[j] == storage:
            free[j] = 1


def _victim(position: int, alive: Any, using: Any, cursor: Any, uses: Any, use_start: Any) -> int:
    """The storage in memory, not in use at ``position``, that makes room; -1 if there is none.

    That is the one whose next use is furthest away, of those last used ``AHEAD`` instructions ago if there are any:
    what takes its place can then be loaded while those run.
    """
    best = -1
    furthest = position
    recent = -1
    furthest_recent = position
    for s in range(len(alive)):
        if alive[s] != 1 or using[s] > position or cursor[s] >= use_start[s + 1]:
            continue
        next_use = uses[cursor[s]]
        if using[s] + AHEAD <= position and next_use > furthest:
            best = s
            furthest = next_use
        if next_use > furthest_recent:
            recent = s
            furthest_recent = next_use
    return best if best >= 0 else recent


def _place(
    bank: int,
    sizes: Any,
    uses: Any,
    use_start: Any,
    positions: Any,
    storages: Any,
    loaded: Any,
    address: Any,
    alive: Any,
    using: Any,
    cursor: Any,
    low: Any,
    high: Any,
    free: Any,
    holder: Any,
    overs: Any,
    spills: Any,
    lengths: Any,
    lowest: Any,
    target: int,
) -> int:
    """Fill ``address``, ``overs`` and ``spills``; 1 if they are too short."""
    events = len(positions)
    event = 0
    held = 0
    while event < events:
        position = positions[event]
        end = event
        while end < events and positions[end] == position:
            end += 1
        for e in range(event, end):
            s = storages[e]
            # Past this use already, so that a victim's next use is a later one.
            while cursor[s] < use_start[s + 1] and uses[cursor[s]] <= position:
                cursor[s] += 1
            using[s] = position + 1
        for e in range(event, end):
            s = storages[e]
            if alive[s] == 1:
                continue
            if 3 * (lengths[0] + lengths[2] + 4) > len(overs) or lengths[2] + 4 > len(low):
                return 1
            where = -2
            lengths[4] = lowest[s]
            keeping = held + sizes[s] > target
            if not keeping:
                where = _allocate(s, sizes[s], bank, position, low, high, free, holder, overs, lengths)
            while where == -2:
                victim = _victim(position, alive, using, cursor, uses, use_start)
                if victim < 0 and not keeping:
                    break
                if keeping and (victim < 0 or loaded[victim] >= position):
                    keeping = False
                    where = _allocate(s, sizes[s], bank, position, low, high, free, holder, overs, lengths)
                    continue
                if 3 * (lengths[1] + 2) > len(spills):
                    return 1
                spills[3 * lengths[1]] = position
                spills[3 * lengths[1] + 1] = victim
                spills[3 * lengths[1] + 2] = DROPPED if loaded[victim] < position else SPILLED
                lengths[1] += 1
                alive[victim] = 2
                held -= sizes[victim]
                _release(victim, free, holder, lengths)
                if 3 * (lengths[0] + lengths[2] + 4) > len(overs):
                    return 1
                if not keeping or held + sizes[s] <= target:
                    where = _allocate(s, sizes[s], bank, position, low, high, free, holder, overs, lengths)
            held += sizes[s]
            if alive[s] == 2:
                if 3 * (lengths[1] + 2) > len(spills):
                    return 1
                spills[3 * lengths[1]] = position
                spills[3 * lengths[1] + 1] = s
                spills[3 * lengths[1] + 2] = RELOADED
                lengths[1] += 1
            elif where >= 0:
                address[s] = where
            alive[s] = 1
        for e in range(event, end):
            s = storages[e]
            if alive[s] == 1 and cursor[s] >= use_start[s + 1]:
                alive[s] = 0
                held -= sizes[s]
                _release(s, free, holder, lengths)
        event = end
    return 0
