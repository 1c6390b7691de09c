"""The order of each queue: engines are chosen, then a list scheduler orders instructions.

The scheduler simulates the engines with estimated costs. Of the instructions that could start first it takes the one
with the longest path to the end of the kernel, ties in program order. A path goes through results and through the
engine's later instructions: by results alone, all iterations of a loop would look equally urgent and be mixed. It
looks no further than a window from the oldest instruction that it has not placed, and never lets live tiles outgrow
SBUF or PSUM where program order would not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.timing.compiled import run
from trnsim.timing.dependences import ORDER
from trnsim.timing.grouping import bucket
from trnsim.timing.tables import CANDIDATES, NO_DMA, QUEUE_COUNT, SCALAR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.timing.dependences import Edges
    from trnsim.timing.tables import ClassTables

    Column = NDArray[np.signedinteger[Any]]

# Instructions from the oldest one that is not placed yet to the last that may be. Chosen over published kernels. Under
# ``nki``: nki-library's 131 references of ``attention_cte`` are off by 14.8 % with 48, by 11.3 with 64 and 10.8 with 96
# (with 48 the maxima of the next group of queries wait behind the sums of the one before), thirty matmuls the same
# within 1 %; with 72 and more, our ``reduce_rows`` loses a twentieth of its bandwidth. Under ``tensorizer``, the mean
# of 21 families on trn1 and trn2 is 9.9 % with 48, 9.7 with 64, 9.6 with 96; with 64 one of a tutorial's scans is taken
# in the wrong order and comes to 35 % too slow.
LOOK_AHEAD = 64
LOOK_AHEAD_TENSORIZER = 96
# Under ``nki``, a load is placed before its first use by so many times what it is estimated to take, and no earlier.
# What is loaded gets the lowest free bytes in this order, so this bounds how many loads are under way. Chosen on
# seventeen published matmuls on trn2: from 1.72 to 1.85 those of one product a block are 20 % too fast to 5 % too
# slow, with 1.9 up to 22 % and with 2.5 up to 24 % too fast. From 1.5 to 1.7 they are 16 % too fast to 14 % too slow,
# with 1.45 up to 27 % too slow; but below 1.85 a kernel that streams large tiles through SBUF (our ``quantize_rows``)
# loses a fifth of its bandwidth. Loads that need no room found for them (``LOADS_AHEAD``) are not held by it.
LEAD = 1.85
# Under ``nki``, instructions from the oldest one that is not placed to the last load that may be, where the kernel says
# at which address its data goes (or it goes to HBM): no room has to be found, so such loads, in their order, come as
# soon as what was in their place is read. Without, nki-library's ``attention_cte`` that loads its queries a group at a
# time is 24 to 50 % too slow (131 references are 10.6 % off, with it 7.3); a third of them is the same within 0.2 %
# from 160 to 256. Its other kernels hardly change.
LOADS_AHEAD = 256


def choose_variants(
    klass: Column, tables: ClassTables, balance: bool, compiled: bool, by_shape: bool = False
) -> Column:
    """The variant (engine) of each instruction: the candidate whose engine has the least estimated load so far.

    ``by_shape``: instructions whose engine the compiler chooses by their shape, not by what engines have to do, are on
    the first candidate's.
    """
    candidates = tables.candidate_columns()
    if by_shape and len(klass):
        candidates = candidates.reshape(-1, CANDIDATES)
        candidates[np.array(tables.by_shape, bool), 1:] = -1
        candidates = candidates.ravel()
    chosen = candidates.reshape(-1, CANDIDATES)[klass, 0] if len(klass) else np.zeros(0, np.int64)
    if balance and len(klass):
        load = np.zeros(QUEUE_COUNT, np.int64)
        run(_balance, compiled, klass, candidates, tables.column("queue"), tables.column("busy"), load, chosen)
    return chosen


def balance_in_order(klass: Column, order: Column, tables: ClassTables, table_load: int, compiled: bool) -> Column:
    """As ``choose_variants``, in scheduled order and by durations, the first function table of ScalarE included.

    The engines of PSUM copies in public profiles of neuronx-cc come out so, one by one.
    """
    load = np.zeros(QUEUE_COUNT, np.int64)
    candidates = tables.candidate_columns()
    used = candidates.reshape(-1, CANDIDATES)[klass, 0]
    load[SCALAR] = table_load if tables.column("table")[used].any() else 0
    chosen = np.zeros(len(klass), np.int64)
    found = np.zeros(len(klass), np.int64)
    run(_balance, compiled, klass[order], candidates, tables.column("queue"), tables.column("latency"), load, found)
    chosen[order] = found
    return chosen


def balance_by_time(
    klass: Column, order: Column, edges: Edges, tables: ClassTables, completion: int, compiled: bool
) -> Column:
    """As ``balance_in_order``, by time: each instruction goes to the engine that would be done with it first."""
    busy, done, transfer = estimates(tables, completion)
    candidates = tables.candidate_columns()
    count = len(klass)
    by_producer, first = bucket(edges.producer, count, compiled)
    successors = edges.consumer[by_producer]
    ordering = (edges.kind[by_producer] == ORDER).astype(np.int64)
    chosen = np.zeros(count, np.int64)
    run(
        _balance_by_time, compiled, order, klass, candidates, tables.column("queue"), busy, done, transfer, first,
        successors, ordering, np.zeros(count, np.int64), np.zeros(QUEUE_COUNT, np.int64), chosen,
    )  # fmt: skip
    return chosen


def _balance_by_time(
    order: Any, klass: Any, candidates: Any, queue: Any, busy: Any, done: Any, transfer: Any, first: Any,
    successors: Any, ordering: Any, ready: Any, free: Any, chosen: Any,
) -> int:  # fmt: skip
    dma_free = 0
    for p in range(len(order)):
        i = order[p]
        best = candidates[4 * klass[i]]
        soonest = max(free[queue[best]], ready[i]) + done[best]
        for c in range(1, 4):
            other = candidates[4 * klass[i] + c]
            if other < 0:
                break
            finish = max(free[queue[other]], ready[i]) + done[other]
            if finish < soonest:
                best, soonest = other, finish
        chosen[i] = best
        start = max(free[queue[best]], ready[i])
        free[queue[best]] = start + busy[best]
        finish = start + done[best]
        if transfer[best] > 0:
            finish += max(0, dma_free - (finish - transfer[best]))
            dma_free = finish
        for e in range(first[i], first[i + 1]):
            c = successors[e]
            ready[c] = max(ready[c], start if ordering[e] == 1 else finish)
    return 0


def _balance(klass: Any, candidates: Any, queue: Any, busy: Any, load: Any, chosen: Any) -> int:
    for i in range(len(klass)):
        best = candidates[4 * klass[i]]
        least = load[queue[best]] + busy[best]
        for c in range(1, 4):
            other = candidates[4 * klass[i] + c]
            if other < 0:
                break
            with_other = load[queue[other]] + busy[other]
            if with_other < least:
                best, least = other, with_other
        load[queue[best]] = least
        chosen[i] = best
    return 0


def estimates(tables: ClassTables, completion: int) -> tuple[Column, Column, Column]:
    """Estimated time of each variant: until its engine is free, until its result can be used, on the DMA engines."""
    busy, latency, dge = tables.column("busy"), tables.column("latency"), tables.column("dge")
    lane = np.maximum(tables.column("lane_low"), tables.column("lane_high"))
    done = np.where(dge == NO_DMA, latency, tables.column("first") + lane + completion)
    chain = tables.column("chain")
    for i in range(len(chain) - 1, -1, -1):
        if chain[i] >= 0:
            done[i] += done[chain[i]]
    return busy, done, np.where(dge == NO_DMA, 0, lane)


def by_first_use(edges: Edges, queue: Column, is_load: NDArray[np.bool_], compiled: bool) -> Column:
    """Instructions in program order, but the loads of each queue in the order in which they are first waited for.

    Loads keep the places that they have together: at each comes, of those whose own producers are before it, the load
    whose first consumer is the oldest.
    """
    count = len(is_load)
    entered: Column = np.arange(count, dtype=np.int64)
    used: Column = np.full(count, count, np.int64)
    np.minimum.at(used, edges.producer, edges.consumer)
    needs: Column = np.full(count, -1, np.int64)
    np.maximum.at(needs, edges.consumer, edges.producer)
    for one in np.unique(queue[is_load]):
        loads = np.flatnonzero(is_load & (queue == one))
        if (np.diff(used[loads]) >= 0).all():
            continue
        released = loads[np.argsort(needs[loads], kind="stable")]
        chosen = np.zeros(len(loads), np.int64)
        run(_earliest_deadline, compiled, loads, released, needs, used, np.zeros(len(loads) + 1, np.int64), chosen)
        entered[loads] = chosen
    return entered


def _earliest_deadline(slots: Any, released: Any, needs: Any, used: Any, heap: Any, chosen: Any) -> int:
    held = 0
    coming = 0
    for p in range(len(slots)):
        while coming < len(released) and needs[released[coming]] < slots[p]:
            # Into a heap whose root is the load that is used first, ties in program order.
            i = released[coming]
            coming += 1
            at = held
            held += 1
            while at > 0:
                up = (at - 1) // 2
                o = heap[up]
                if used[o] < used[i] or (used[o] == used[i] and o < i):
                    break
                heap[at] = o
                at = up
            heap[at] = i
        chosen[p] = heap[0]
        held -= 1
        i = heap[held]
        at = 0
        while 2 * at + 1 < held:
            down = 2 * at + 1
            o = heap[down]
            if down + 1 < held:
                r = heap[down + 1]
                if used[r] < used[o] or (used[r] == used[o] and r < o):
                    down += 1
                    o = r
            if used[i] < used[o] or (used[i] == used[o] and i < o):
                break
            heap[at] = o
            at = down
        heap[at] = i
    return 0


def earliest_loads(
    edges: Edges,
    queue: Column,
    busy: Column,
    done: Column,
    transfer: Column,
    is_load: NDArray[np.bool_],
    compiled: bool,
) -> Column:
    """Of each instruction the first that may be the oldest not placed when it is placed.

    A load comes before its first use by what it is estimated to take, ``LEAD`` times, or sooner if loads that are used
    later keep the DMA engines until then. Time is that of the busiest engine in program order.
    """
    count = len(queue)
    earliest: Column = np.zeros(count, np.int64)
    loads = np.flatnonzero(is_load)
    if not len(loads):
        return earliest
    data = edges.kind != ORDER
    used: Column = np.full(count, count - 1, np.int64)
    np.minimum.at(used, edges.producer[data], edges.consumer[data])
    passed = np.zeros(count, np.int64)
    for one in np.unique(queue[~is_load]):
        passed = np.maximum(passed, np.cumsum(np.where((queue == one) & ~is_load, busy, 0)))
    wanted = passed[used[loads]] - np.rint(LEAD * done[loads]).astype(np.int64)
    last_first = np.argsort(used[loads], kind="stable")[::-1].copy()
    run(_share_engines, compiled, last_first, transfer[loads], wanted)
    earliest[loads] = np.minimum(np.searchsorted(passed, wanted), loads)
    return earliest


def _share_engines(last_first: Any, transfer: Any, wanted: Any) -> int:
    """Loads begin early enough for those that are used after them."""
    following = 1 << 62
    for load in last_first:
        wanted[load] = min(wanted[load], following - transfer[load])
        following = wanted[load]
    return 0


def list_schedule(
    variant: Column,
    edges: Edges,
    queue: Column,
    busy: Column,
    done: Column,
    transfer: Column,
    touched: tuple[Column, Column],
    sizes: Column,
    memory: Column,
    capacity: Column,
    compiled: bool,
    look_ahead: int,
    earliest: Column,
    loads: Column,
    addressed: Column,
) -> Column:
    """Instruction rows in scheduled order. ``queue`` to ``transfer``, and ``earliest`` (of ``earliest_loads``), are
    columns of the instructions.

    ``loads`` are the rows of those that load from HBM; ``addressed`` says of each whether the kernel gives the address.

    ``touched`` lists the automatic on-chip storages of each instruction (offsets, storages); ``sizes`` and ``memory``
    are theirs; ``capacity`` that of SBUF and PSUM.

    Raises:
        CompilerError: explicit edges form a cycle.
    """
    count = len(variant)
    by_producer, first = bucket(edges.producer, count, compiled)
    successors = edges.consumer[by_producer]
    ordering = (edges.kind[by_producer] == ORDER).astype(np.int64)
    path = done.copy()
    run(_longest_path, compiled, first, successors, queue, busy, done, transfer, np.zeros(QUEUE_COUNT, np.int64), path)
    waiting = np.bincount(edges.consumer, minlength=count).astype(np.int64)
    order = np.zeros(count, np.int64)
    remaining = np.bincount(touched[1], minlength=len(sizes)).astype(np.int64)
    placed = run(
        _list_schedule,
        compiled,
        queue, busy, done, transfer, path, waiting, first, successors, ordering,
        touched[0], touched[1], sizes, memory, capacity, remaining, np.zeros(len(sizes), np.int64),
        np.full(len(sizes), -1, np.int64), np.zeros(count, np.int64), np.zeros(QUEUE_COUNT, np.int64),
        np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(count, np.int64), order, earliest, look_ahead,
        loads, addressed, LOADS_AHEAD, np.zeros(count, np.int64),
    )  # fmt: skip
    if placed < count:
        raise CompilerError("explicit dependences (depends_on, with_schedule) form a cycle")
    return order


def _longest_path(
    first: Any, successors: Any, queue: Any, busy: Any, done: Any, transfer: Any, tail: Any, path: Any
) -> int:
    """``path``: the longest way to the end, through results or through the same engine's later instructions.

    Triggers of DMAs are no such way: a transfer is as urgent as what waits for its data.
    """
    for i in range(len(queue) - 1, -1, -1):
        longest = done[i] if transfer[i] > 0 else max(done[i], busy[i] + tail[queue[i]])
        for e in range(first[i], first[i + 1]):
            longest = max(longest, done[i] + path[successors[e]])
        path[i] = longest
        if transfer[i] == 0:
            tail[queue[i]] = longest
    return 0


def _list_schedule(
    queue: Any,
    busy: Any,
    done: Any,
    transfer: Any,
    path: Any,
    waiting: Any,
    first: Any,
    successors: Any,
    ordering: Any,
    touch_first: Any,
    touch: Any,
    sizes: Any,
    memory: Any,
    capacity: Any,
    remaining: Any,
    alive: Any,
    stamp: Any,
    ready: Any,
    free: Any,
    live: Any,
    wanted: Any,
    window: Any,
    order: Any,
    earliest: Any,
    look_ahead: int,
    loads: Any,
    addressed: Any,
    loads_ahead: int,
    placed: Any,
) -> int:
    """Fill ``order``; how many instructions were placed."""
    count = len(queue)
    held = 0  # instructions in the window
    coming = 0  # the next to enter it
    scan = 0
    dma_free = 0
    next_load = 0
    for position in range(count):
        while coming < count and (held == 0 or coming < window[0] + look_ahead):
            if placed[coming] == 0:
                window[held] = coming
                held += 1
            coming += 1
        # The oldest load that is not placed may come before the window gets to it.
        while next_load < len(loads) and placed[loads[next_load]] == 1:
            next_load += 1
        early = -1
        if next_load < len(loads) and addressed[next_load] == 1:
            i = loads[next_load]
            if i >= coming and waiting[i] == 0 and (held == 0 or i < window[0] + loads_ahead):
                early = i
        best = -1
        best_start = 0
        stuck = False
        while best < 0:
            scan += 1
            wanted[0] = 0
            wanted[1] = 0
            for slot in range(held):
                i = window[slot]
                fits = True
                for t in range(touch_first[i], touch_first[i + 1]):
                    s = touch[t]
                    if alive[s] == 0:
                        m = memory[s]
                        if stamp[s] != scan:
                            stamp[s] = scan
                            wanted[m] += sizes[s]
                        # What older instructions still need comes first.
                        if live[m] + wanted[m] > capacity[m]:
                            fits = False
                if waiting[i] > 0 or (slot > 0 and (not fits or (window[0] < earliest[i] and not stuck))):
                    continue
                start = max(free[queue[i]], ready[i])
                if best < 0 or start < best_start or (start == best_start and path[i] > path[window[best]]):
                    best = slot
                    best_start = start
            if best < 0:
                # Only explicit edges to later instructions can block the oldest one: look further.
                stuck = True
                if coming >= count:
                    for slot in range(held):
                        if waiting[window[slot]] == 0:
                            best = slot
                            best_start = max(free[queue[window[slot]]], ready[window[slot]])
                            break
                    if best < 0:
                        return position
                else:
                    if placed[coming] == 0:
                        window[held] = coming
                        held += 1
                    coming += 1
        i = window[best]
        early_start = max(free[queue[early]], ready[early])
        if early >= 0 and (early_start < best_start or (early_start == best_start and path[early] > path[i])):
            i = early
            best_start = early_start
        else:
            for slot in range(best, held - 1):
                window[slot] = window[slot + 1]
            held -= 1
        placed[i] = 1
        order[position] = i
        free[queue[i]] = best_start + busy[i]
        finish = best_start + done[i]
        if transfer[i] > 0:
            # Transfers share the DMA engines: this one is late by what those before it still take.
            late = max(0, dma_free - (finish - transfer[i]))
            finish += late
            dma_free = finish
        for e in range(first[i], first[i + 1]):
            c = successors[e]
            waiting[c] -= 1
            arrival = best_start if ordering[e] == 1 else finish
            ready[c] = max(ready[c], arrival)
        for t in range(touch_first[i], touch_first[i + 1]):
            s = touch[t]
            if alive[s] == 0:
                alive[s] = 1
                live[memory[s]] += sizes[s]
            remaining[s] -= 1
            if remaining[s] == 0:
                live[memory[s]] -= sizes[s]
    return count
