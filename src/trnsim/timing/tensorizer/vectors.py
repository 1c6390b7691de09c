"""Small steps of independent iterations become one instruction over all of them.

In the public profiles a reduction of a few columns, or the reciprocal of one, that a loop over tiles wrote once an
iteration ran once for four or eight iterations. What stood between then runs iteration by iteration, statement by
statement. Steps that take an operand for each partition, touch PSUM or stream a bank's columns stay as they are. As
many iterations are taken together as PSUM holds tiles of one statement, and SBUF tiles of all.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from trnsim.machine.form import PSUM, SBUF, Form
from trnsim.timing.tensorizer.loops import dependences
from trnsim.timing.tensorizer.rows import Operand, Row, Rows

if TYPE_CHECKING:
    from trnsim.hardware.model import Core
    from trnsim.hardware.timing_constants import Timing

_OCCURRENCES = 8
"""How often a statement may stand in an iteration and be told apart."""
_STEPS = (
    "nki.isa.tensor_reduce", "nki.isa.reciprocal", "nki.isa.tensor_copy", "nki.isa.tensor_tensor", "nki.isa.memset",
    "nki.isa.tensor_scalar", "nki.isa.activation",
)  # fmt: skip


def merge_iterations(rows: Rows, core: Core, timing: Timing) -> None:
    """Join small steps of independent iterations, and order the rows so that they can be."""
    candidates: dict[tuple[int, int], list[int]] = defaultdict(list)
    limit = core.psum.bytes_per_bank // 4
    live = _live(rows)
    for number, row in enumerate(rows.rows):
        if _small(rows, row, limit // 2):
            candidates[row.klass.id, row.line].append(number)
    statements = [part for found in candidates.values() for part in _by_occurrence(found) if len(part) > 1]
    if not statements:
        return
    successors, waiting = _graph(rows, timing)
    groups: list[list[int]] = []
    for found in statements:
        groups += _groups(rows, found, core, limit, successors, live)
    groups = [g for g in groups if len(g) > 1 and _joinable(rows, g)]
    if not groups:
        return
    order, groups = _order(_keys(rows, groups), successors, waiting, groups)
    gone = _join_all(rows, groups)
    rows.rows = [rows.rows[n] for n in order if n not in gone]


def _by_occurrence(found: list[int]) -> list[list[int]]:
    """Rows of a statement that stands several times in an iteration (``nl.var`` scales twice), one list for each."""
    gaps = [b - a for a, b in pairwise(found)]
    for period in range(2, min(_OCCURRENCES, len(gaps) // 2) + 1):
        if len(set(gaps[:period])) > 1 and all(a == b for a, b in zip(gaps, gaps[period:], strict=False)):
            return [found[first::period] for first in range(period)]
    return [found]


def _small(rows: Rows, row: Row, limit: int) -> bool:
    """A step in SBUF over few columns, all of its operands alike in length or reduced."""
    if row.name not in _STEPS or row.region or row.klass.state or row.klass.indirect:
        return False
    longest = max(o.form.elements for o in row.operands)
    if longest > limit:
        return False
    for item, at in zip(row.klass.operands, row.operands, strict=True):
        if at.form.memory != SBUF or not rows.is_tile(at.storage):
            return False
        if item.role == "update" or (at.form.elements == 1 and longest > 1 and item.name not in ("dst", "data")):
            return False
    return True


def _graph(rows: Rows, timing: Timing) -> tuple[list[list[int]], list[int]]:
    """Successors of each row, and how many rows it waits for."""
    successors: list[list[int]] = [[] for _ in rows.rows]
    waiting = [0] * len(rows.rows)
    for producer, consumer in dependences(rows, timing):
        successors[producer].append(consumer)
        waiting[consumer] += 1
    return successors, waiting


def _groups(
    rows: Rows, found: list[int], core: Core, limit: int, successors: list[list[int]], live: list[int]
) -> list[list[int]]:
    """Consecutive rows of one statement, as many together as PSUM and a bank's columns allow, that do not depend on
    each other.
    """
    longest = max(o.form.elements for o in rows.rows[found[0]].operands)
    many = min(limit // longest, _iterations(rows, found, core, live))
    groups: list[list[int]] = []
    group: list[int] = []
    for number in found:
        if group and (len(group) >= many or _reaches(successors, group, number)):
            groups.append(group)
            group = []
        group.append(number)
    groups.append(group)
    return groups


def _live(rows: Rows) -> list[int]:
    """Bytes of a partition of SBUF that tiles hold across each row: touched before it and after it."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, row in enumerate(rows.rows):
        for at in row.operands:
            if at.form.memory == SBUF:
                first.setdefault(at.storage, number)
                last[at.storage] = number
    change = [0] * (len(rows.rows) + 1)
    for storage, begin in first.items():
        if begin < last[storage]:
            change[begin + 1] += rows.storages[storage].row_bytes
            change[last[storage]] -= rows.storages[storage].row_bytes
    return list(accumulate(change))


def _iterations(rows: Rows, found: list[int], core: Core, live: list[int]) -> int:
    """Iterations whose tiles PSUM (those of one statement) and SBUF (all, beside what it holds) can hold together."""
    first, second = found[0], found[1]
    psum: dict[int, dict[int, int]] = defaultdict(dict)
    sbuf: dict[int, int] = {}
    for row in rows.rows[first + 1 : second + 1]:
        for item, at in zip(row.klass.operands, row.operands, strict=True):
            size = rows.storages[at.storage].row_bytes
            if at.form.memory == PSUM:
                psum[row.line][at.storage] = size
            elif at.form.memory == SBUF and item.role != "read":
                sbuf[at.storage] = size
    statement, iteration = max((sum(held.values()) for held in psum.values()), default=0), sum(sbuf.values())
    many = len(found)
    if statement:
        many = min(many, core.psum.bytes_per_partition // statement)
    if iteration:
        held = max(min(live[a : b + 1]) for a, b in pairwise(found))
        room = core.sbuf.usable_bytes_per_partition - held
        many = min(many, room // iteration)
    return max(1, many)


def _reaches(successors: list[list[int]], group: list[int], target: int) -> bool:
    """Whether ``target`` depends on a row of ``group``, which comes before it."""
    seen: set[int] = set()
    stack = list(group)
    while stack:
        for number in successors[stack.pop()]:
            if number == target:
                return True
            if number < target and number not in seen:
                seen.add(number)
                stack.append(number)
    return False


def _joinable(rows: Rows, group: list[int]) -> bool:
    """The operands of the group are whole tiles of their own, or lie at even distances in one tile."""
    for position in range(len(rows.rows[group[0]].operands)):
        held = [rows.rows[n].operands[position] for n in group]
        storages = {o.storage for o in held}
        if len(storages) == 1:
            steps = {b.offset - a.offset for a, b in pairwise(held)}
            if len(steps) != 1 or min(steps) % held[0].form.dtype.itemsize or 0 < abs(min(steps)) < held[0].form.span:
                return False
        elif (
            len(storages) < len(group)
            or len({(o.offset, o.start) for o in held}) > 1
            or len({rows.storages[s].row_bytes for s in storages}) > 1
        ):
            return False
    return True


Key = tuple[int, int, int]


def _keys(rows: Rows, groups: list[list[int]]) -> list[Key]:
    """Where each row wants to stand: iterations that are taken together run statement by statement.

    Statements that meet in a tile of PSUM stay together, iteration by iteration: PSUM could not hold them all.
    """
    keys: list[Key] = [(n, 0, n) for n in range(len(rows.rows))]
    statement = [(row.line, row.name) for row in rows.rows]
    end = 0
    for group in sorted(groups):
        if group[0] < end:
            continue
        length = group[1] - group[0]
        start = group[0]
        while start > end and statement[start - 1] == statement[start - 1 + length]:
            start -= 1
        last = min(len(keys), start + len(group) * length)
        ranks = _ranks(rows, statement, start, last)
        for number in range(start, last):
            keys[number] = (start, ranks[statement[number]], number)
        end = last
    return keys


def _ranks(rows: Rows, statement: list[tuple[int, str]], start: int, last: int) -> dict[tuple[int, str], int]:
    """For each statement of some rows, when the first of those that share tiles of PSUM with it begins."""
    ranks: dict[tuple[int, str], int] = {}
    tiles: dict[int, tuple[int, str]] = {}
    joined: dict[tuple[int, str], tuple[int, str]] = {}

    def root(item: tuple[int, str]) -> tuple[int, str]:
        while joined.get(item, item) != item:
            item = joined[item]
        return item

    for number in range(start, last):
        mine = statement[number]
        ranks.setdefault(mine, number)
        for at in rows.rows[number].operands:
            if at.form.memory == PSUM:
                a, b = root(tiles.setdefault(at.storage, mine)), root(mine)
                if a != b:
                    first, second = sorted((a, b), key=lambda item: ranks[item])
                    joined[second] = first
    return {item: ranks[root(item)] for item in ranks}


def _order(
    keys: list[Key], successors: list[list[int]], waiting: list[int], groups: list[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """Rows by their keys, but each group together and none before what it waits for; groups in a cycle are split."""
    count = len(keys)
    group_of = {n: g for g, members in enumerate(groups) for n in members}
    left = [len(g) for g in groups]
    split: set[int] = set()
    waiting = list(waiting)
    ready = [keys[n] for n in range(count) if waiting[n] == 0]
    heapq.heapify(ready)
    held: dict[int, list[int]] = defaultdict(list)
    order: list[int] = []
    done = [False] * count

    def release(members: list[int]) -> None:
        for number in members:
            order.append(number)
            done[number] = True
        for number in members:
            for other in successors[number]:
                waiting[other] -= 1
                if waiting[other] == 0:
                    heapq.heappush(ready, keys[other])

    while len(order) < count:
        if not ready:
            # What waits for the whole of a group is what the group waits for: take the group apart.
            broken = min((g for g in held if held[g]), key=lambda g: groups[g][0])
            split.add(broken)
            release(held.pop(broken))
            continue
        number = heapq.heappop(ready)[2]
        group = group_of.get(number)
        if group is None or group in split:
            release([number])
            continue
        held[group].append(number)
        left[group] -= 1
        if not left[group]:
            release(sorted(held.pop(group)))
    return order, [g for n, g in enumerate(groups) if n not in split]


def _join_all(rows: Rows, groups: list[list[int]]) -> set[int]:
    """Let the last row of each group do the work of all; the rows that go."""
    users = rows.users()
    gone: set[int] = set()
    for group in groups:
        if not _joinable(rows, group):  # not any more, since the tiles of another group have been joined
            continue
        members = [rows.rows[n] for n in group]
        operands = []
        for position in range(len(members[0].operands)):
            held = [row.operands[position] for row in members]
            if len({o.storage for o in held}) > 1:
                _join_tiles(rows, users, held)
            operands.append(_widened([row.operands[position] for row in members]))
        kept = members[-1]
        kept.operands = operands
        kept.klass = rows.changed(kept.klass, operands)
        gone |= set(group[:-1])
    return gone


def _join_tiles(rows: Rows, users: dict[int, list[tuple[int, int]]], held: list[Operand]) -> None:
    info = rows.storages[held[0].storage]
    old = [o.storage for o in held]
    joined = rows.add_storage(
        info,
        row_bytes=sum(rows.storages[s].row_bytes for s in old),
        shape=(*info.shape[:-1], info.shape[-1] * len(old)),
        declared=min(rows.storages[s].declared for s in old),
    )
    shift = 0
    for storage in old:
        for number, position in users[storage]:
            at = rows.rows[number].operands[position]
            if at.storage == storage:
                at.storage, at.offset = joined, at.offset + shift
                users[joined].append((number, position))
        shift += rows.storages[storage].row_bytes


def _widened(held: list[Operand]) -> Operand:
    """One operand over the operands of a group, which lie at even distances in one tile."""
    first = held[0]
    form = first.form
    step = (held[1].offset - first.offset) // form.dtype.itemsize
    shape = (form.shape[0], len(held), *form.shape[1:])
    strides = (form.strides[0], step, *form.strides[1:])
    return Operand(first.storage, first.start, first.offset, Form.of(SBUF, form.dtype, shape, strides, form.start))
