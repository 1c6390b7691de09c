"""Several instructions of one line as one: which may be merged, and the trace in which they are.

Instructions of one class and line may be merged where none depends on another, even over others: they have the same
depth in the graph of all dependences, so that the merged program has an order too. It keeps the kernel's order as far
as that allows.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.explain.case import Case, Lines, lines_of, select
from trnsim.machine.trace import InstructionClass, OperandClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trnsim.machine.trace import Trace

    Column = NDArray[np.int64]

# Instructions from the first to the last that are merged: neighbouring iterations, not the whole kernel.
WINDOW = 256


Box = tuple[int, int, int]
"""Storage, first partition and first byte of an operand."""


@dataclass(frozen=True)
class Group:
    """Instructions of one class that may be merged: their rows, and of each the boxes of its operands."""

    trace: Trace
    klass: InstructionClass
    rows: list[int]
    boxes: list[list[Box]]


def merged(
    case: Case,
    most: Callable[[InstructionClass], int],
    keys: Callable[[InstructionClass], list[str] | None],
    merge: Callable[[Group], InstructionClass | None],
) -> tuple[Case, Lines]:
    """``case`` with instructions of one line merged into one, wherever that is possible.

    ``most``: how many of a class at most. ``keys``: of a class, the operands that must be the same in all that are
    merged; None if it is not to be merged.
    ``merge``: the class of the merged instruction, or None if there is none.
    """
    traces: list[Trace] = []
    lines: Lines = Counter()
    for number, trace in enumerate(case.traces):
        edges = case.programs[number].edges
        depth = _depths(edges.producer, edges.consumer, len(trace))
        found = [(g.rows, k) for g in _groups(trace, depth, most, keys) for k in [merge(g)] if k is not None]
        traces.append(_contract(trace, found, edges.producer, edges.consumer) if found else trace)
        lines += lines_of(trace, np.array([r for rows, _ in found for r in rows], np.int64))
    return replace(case, traces=tuple(traces)), lines


def merged_class(klass: InstructionClass, count: int, instruction: Any, engines: tuple[str, ...]) -> InstructionClass:
    """The class of what ``instruction`` stands for: ``count`` instructions of ``klass``, with the operands of all."""
    operands = tuple(
        OperandClass(f"{o.name}#{i}" if i else o.name, o.role, o.form) for i in range(count) for o in klass.operands
    )
    return replace(
        klass, instruction=instruction, operands=operands, roles=klass.roles * count, engines=engines, seen={}
    )


def _depths(producer: Column, consumer: Column, count: int) -> Column:
    """The longest chain of dependences that leads to each instruction. Edges are sorted by consumer."""
    depth = [0] * count
    for p, c in zip(producer.tolist(), consumer.tolist(), strict=True):
        if depth[p] >= depth[c]:
            depth[c] = depth[p] + 1
    return np.array(depth, np.int64)


def _groups(
    trace: Trace,
    depth: Column,
    most: Callable[[InstructionClass], int],
    keys: Callable[[InstructionClass], list[str] | None],
) -> list[Group]:
    columns, operands = trace.instructions, trace.operands
    place: dict[int, list[int] | None] = {}
    limit: dict[int, int] = {}
    for number in np.unique(columns["klass"]).tolist():
        klass = trace.classes[number]
        same, limit[number] = keys(klass), most(klass)
        names = [o.name for o in klass.operands]
        place[number] = None if same is None else [names.index(n) for n in same]
    newest: dict[tuple[int, ...], Group] = {}
    groups: list[Group] = []
    rows = zip(*(columns[n].tolist() for n in ("klass", "line", "operand", "region", "rendezvous")), strict=True)
    boxes = list(zip(*(operands[n].tolist() for n in ("storage", "start", "offset")), strict=True))
    depths = depth.tolist()
    for row, (number, line, first, region, rendezvous) in enumerate(rows):
        fixed = place[number]
        if fixed is None or region > 0 or rendezvous >= 0:
            continue
        key = (number, line, depths[row], *(x for i in fixed for x in boxes[first + i]))
        group = newest.get(key)
        if group is None or len(group.rows) >= limit[number] or row - group.rows[0] > WINDOW:
            group = newest[key] = Group(trace, trace.classes[number], [], [])
            groups.append(group)
        group.rows.append(row)
        group.boxes.append(boxes[first : first + len(group.klass.operands)])
    return [g for g in groups if len(g.rows) > 1]


def _contract(
    trace: Trace, found: list[tuple[list[int], InstructionClass]], producer: Column, consumer: Column
) -> Trace:
    """The trace in which each group is one instruction."""
    count = len(trace)
    leader: NDArray[np.int64] = np.arange(count, dtype=np.int64)
    members: dict[int, list[int]] = {}
    for rows, _ in found:
        leader[rows] = rows[0]
        members[rows[0]] = rows
    order = _order(leader, producer, consumer)
    first = trace.instructions["operand"]
    per_class = np.array([len(c.operands) for c in trace.classes], np.int64)
    width = per_class[trace.instructions["klass"]]
    operand_rows: list[int] = []
    counts = []
    for row in order:
        before = len(operand_rows)
        for member in members.get(row, (row,)):
            operand_rows.extend(range(int(first[member]), int(first[member] + width[member])))
        counts.append(len(operand_rows) - before)
    changed = select(trace, np.array(order, np.int64), np.array(operand_rows, np.int64), counts)
    position = np.zeros(count, np.int64)
    position[order] = np.arange(len(order))
    position = position[leader]
    klass = changed.instructions["klass"].copy()
    classes = list(trace.classes)
    numbers: dict[int, int] = {}
    for rows, merged_into in found:
        if id(merged_into) not in numbers:
            numbers[id(merged_into)] = len(classes)
            classes.append(merged_into)
        klass[position[rows[0]]] = numbers[id(merged_into)]
    edges = {(int(position[a]), int(position[b])) for a, b in trace.edges}
    changed = replace(
        changed,
        classes=classes,
        edges=sorted(e for e in edges if e[0] != e[1]),
        names={n: int(position[r]) for n, r in trace.names.items()},
    )
    changed.set_column("klass", klass)
    return changed


def _order(leader: Column, producer: Column, consumer: Column) -> list[int]:
    """Leaders in an order that has every producer first, otherwise by their rows."""
    pairs = np.unique(np.stack((leader[producer], leader[consumer])), axis=1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    waiting = np.bincount(pairs[1], minlength=len(leader)).tolist()
    by_producer = np.searchsorted(pairs[0], np.arange(len(leader) + 1)).tolist()
    followers = pairs[1].tolist()
    ready = [r for r in np.unique(leader).tolist() if waiting[r] == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        row = heapq.heappop(ready)
        order.append(row)
        for follower in followers[by_producer[row] : by_producer[row + 1]]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, follower)
    return order
