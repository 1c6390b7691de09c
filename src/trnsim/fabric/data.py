"""Moves the data of a schedule between the NumPy arrays of its ranks.

Sums are made in the order and format of ``schedule.py``: where one rank adds what it receives to what it has, in the
format of the data; where several contributions meet in one step, in float32 in ascending order of rank (float64 for
float64, integers in their own format, which wraps), rounded once. Whether the hardware's engines add in another order
is not public.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError, InternalError
from trnsim.numerics import as_dtype, from_float32, to_float32

from .schedule import Ints, Schedule

Array = NDArray[Any]
_OPERATORS: dict[str, Any] = {"add": np.add, "minimum": np.minimum, "maximum": np.maximum, "multiply": np.multiply}
_NATIVE = ("float32", "float64", "float16", "bfloat16")
"""Formats whose own NumPy addition of two values is that of float32, rounded once to the format."""


def execute(schedule: Schedule, inputs: Sequence[Array | None], op: str = "add") -> list[Array | None]:
    """What each rank has when the schedule has run.

    Args:
        schedule: for as many ranks as there are inputs, and their size.
        inputs: what each rank brings, all of one dtype. all_reduce: equal shapes. reduce_scatter, all_to_all: flat.
            all_gather: each rank's share. broadcast: the root's array (others may be None). permute: each source's.
        op: ``add``, ``minimum``, ``maximum`` or ``multiply``.

    Returns:
        By rank: the reduction in the shape of the inputs, the share, all shares (flat), the root's data, what was
        received (flat); None for a rank that a permute does not send to.

    Raises:
        InputError: the number of inputs, their shapes or dtypes do not fit, or an unknown operator.
    """
    if op not in _OPERATORS:
        raise InputError("collectives do not reduce with this operator", operand="op", value=op,
                         limit=", ".join(_OPERATORS))  # fmt: skip
    first = _check(schedule, inputs)
    dtype, shape = first.dtype, first.shape
    work = np.zeros((schedule.ranks, schedule.buffer_bytes // schedule.itemsize), dtype)
    _load(schedule, inputs, work)
    _run(schedule, work, _adder(op, dtype), _summer(op, dtype))
    return _results(schedule, work, shape)


def _check(schedule: Schedule, inputs: Sequence[Array | None]) -> Array:
    name = schedule.collective
    if len(inputs) != schedule.ranks:
        raise InputError(f"{name} needs an input for each rank", operand="inputs", value=len(inputs),
                         limit=schedule.ranks)  # fmt: skip
    needed = range(schedule.ranks)
    if name == "broadcast":
        needed = range(schedule.root, schedule.root + 1)
    given = [(r, inputs[r]) for r in needed]
    if name == "permute":
        given = [(s, inputs[s]) for s, _ in schedule.pairs]
    first = given[0][1]
    if first is None:
        raise InputError(f"{name}: rank {given[0][0]} brings nothing", operand="inputs")
    if first.dtype.itemsize != schedule.itemsize:
        raise InputError(f"{name} was made for elements of {schedule.itemsize} bytes", operand="inputs",
                         value=str(first.dtype))  # fmt: skip
    for rank, array in given:
        if array is None:
            raise InputError(f"{name}: rank {rank} brings nothing", operand="inputs")
        if array.dtype != first.dtype:
            raise InputError(f"{name}: rank {rank} brings {array.dtype}, rank {given[0][0]} {first.dtype}",
                             operand="inputs", value=str(array.dtype), limit=str(first.dtype))  # fmt: skip
        size = _size(schedule, rank)
        ragged = name not in ("all_gather", "all_to_all") and array.shape != first.shape
        if ragged or array.nbytes != size:
            raise InputError(
                f"{name}: rank {rank} brings {array.nbytes} bytes of shape {array.shape}, its part is {size} bytes"
                + (f" of shape {first.shape}" if ragged else ""),
                operand="inputs", value=array.shape,
            )  # fmt: skip
    return first


def _size(schedule: Schedule, rank: int) -> int:
    if schedule.collective == "all_gather":
        assert schedule.shares is not None
        return int(schedule.shares[1][rank])
    if schedule.collective == "all_to_all":
        assert schedule.counts is not None
        return int(schedule.counts[rank].sum())
    return schedule.nbytes


def _load(schedule: Schedule, inputs: Sequence[Array | None], work: Array) -> None:
    for rank, array in enumerate(inputs):
        if array is None or (schedule.collective == "broadcast" and rank != schedule.root):
            continue
        begin = 0
        if schedule.collective == "all_gather":
            assert schedule.shares is not None
            begin = int(schedule.shares[0][rank]) // schedule.itemsize
        work[rank, begin : begin + array.size] = array.reshape(-1)


def _results(schedule: Schedule, work: Array, shape: tuple[int, ...]) -> list[Array | None]:
    item, name = schedule.itemsize, schedule.collective
    if name in ("all_reduce", "broadcast"):
        return [row.reshape(shape) for row in work]
    if name == "all_gather":
        return list(work)
    if name == "reduce_scatter":
        assert schedule.shares is not None
        begin, size = (x // item for x in schedule.shares)
        return [work[r, begin[r] : begin[r] + size[r]].copy() for r in range(schedule.ranks)]
    if name == "permute":
        targets = {t for _, t in schedule.pairs}
        half = schedule.nbytes // item
        return [work[r, half:].reshape(shape).copy() if r in targets else None for r in range(schedule.ranks)]
    assert schedule.counts is not None
    first = int(schedule.counts.sum(axis=1).max()) // item
    received = schedule.counts.sum(axis=0) // item
    return [work[r, first : first + received[r]].copy() for r in range(schedule.ranks)]


# -- the steps ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plan:
    """Rows in groups that write the same place in one step, and which groups must read before anything is written."""

    groups: Ints
    """Row at which each group begins, and the end."""
    copied: NDArray[np.bool_]
    """By row: another row of its step writes what it reads."""
    steps: Ints
    """Group at which each step begins, and the end."""


@lru_cache(maxsize=64)
def _plan(schedule: Schedule) -> _Plan:
    s = schedule
    room = np.int64(max(s.buffer_bytes, 1))
    lane = (s.step * s.ranks + s.target) * room
    begin, end = lane + s.target_offset, lane + s.target_offset + s.bytes
    change = np.ones(len(s) + 1, bool)
    if len(s):
        change[1:-1] = (begin[1:] != begin[:-1]) | (end[1:] != end[:-1]) | (s.reduce[1:] != s.reduce[:-1])
        furthest = np.maximum.accumulate(end)
        if (begin[1:] < furthest[:-1])[change[1:-1]].any():
            raise InternalError(f"{s.collective} by {s.algorithm}: transfers of one step overlap in part")
    groups = np.flatnonzero(change)
    if not len(s):
        groups = np.zeros(1, np.int64)
    # A row reads [at, at + bytes) of its source: the first write that ends beyond its start overlaps if it begins
    # before its end.
    lane = (s.step * s.ranks + s.source) * room + s.source_offset
    first = np.searchsorted(end, lane, side="right")
    after = np.append(begin, np.iinfo(np.int64).max)
    copied = after[first] < lane + s.bytes
    return _Plan(groups, copied, np.searchsorted(groups, s.starts))


def _run(
    schedule: Schedule,
    work: Array,
    add: Callable[[Array, Array], None],
    total: Callable[[list[Array], Array], None],
) -> None:
    plan = _plan(schedule)
    item = schedule.itemsize
    source, target, reduce = schedule.source.tolist(), schedule.target.tolist(), schedule.reduce.tolist()
    at, to = (schedule.source_offset // item).tolist(), (schedule.target_offset // item).tolist()
    size, copied, groups = (schedule.bytes // item).tolist(), plan.copied.tolist(), plan.groups.tolist()
    for begin, end in zip(plan.steps[:-1].tolist(), plan.steps[1:].tolist(), strict=True):
        kept: dict[tuple[int, int, int], Array] = {}
        for row in range(groups[begin], groups[end]):
            if copied[row]:
                key = (source[row], at[row], size[row])
                if key not in kept:
                    kept[key] = work[source[row], at[row] : at[row] + size[row]].copy()

        def read(row: int, kept: dict[tuple[int, int, int], Array] = kept) -> Array:
            if copied[row]:
                return kept[source[row], at[row], size[row]]
            return work[source[row], at[row] : at[row] + size[row]]

        for group in range(begin, end):
            row, stop = groups[group], groups[group + 1]
            into = work[target[row], to[row] : to[row] + size[row]]
            if not reduce[row]:
                into[...] = read(stop - 1)
            elif stop == row + 1:
                add(into, read(row))
            else:
                parts = [(source[i], read(i)) for i in range(row, stop)]
                parts.append((target[row], into))
                total([part for _, part in sorted(parts, key=lambda p: p[0])], into)


def _adder(op: str, dtype: np.dtype[Any]) -> Callable[[Array, Array], None]:
    operator = _OPERATORS[op]
    if dtype.name in _NATIVE or dtype.kind in "iub":

        def add(into: Array, part: Array) -> None:
            operator(into, part, out=into)

        return add
    total = _summer(op, dtype)
    return lambda into, part: total([into, part], into)


def _summer(op: str, dtype: np.dtype[Any]) -> Callable[[list[Array], Array], None]:
    operator = _OPERATORS[op]
    if dtype.kind in "iub" or dtype.name in ("float32", "float64"):

        def whole(parts: list[Array], into: Array) -> None:
            result = parts[0].copy()
            for part in parts[1:]:
                operator(result, part, out=result)
            into[...] = result

        return whole
    known = as_dtype(dtype)

    def rounded(parts: list[Array], into: Array) -> None:
        result = np.array(to_float32(parts[0], known))
        with np.errstate(all="ignore"):
            for part in parts[1:]:
                operator(result, to_float32(part, known), out=result)
        into[...] = from_float32(result, known)

    return rounded
