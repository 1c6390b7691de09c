"""Sums over intervals in columns: unions, rates. Plain NumPy, nothing about kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]


def union_by_group(group: Any, start: Any, end: Any, groups: int) -> Ints:
    """For each of ``groups`` groups, the length of the union of its intervals [start, end)."""
    group = np.asarray(group, dtype=np.int64)
    start = np.asarray(start, dtype=np.int64)
    end = np.maximum(np.asarray(end, dtype=np.int64), start)
    result = np.zeros(groups, np.int64)
    if not len(group):
        return result
    order = np.lexsort((start, group))
    group, start, end = group[order], start[order], end[order]
    # One running maximum serves all groups: each group's times are moved beyond the times of the group before.
    base = group * (int(end.max()) - min(0, int(start.min())) + 1)
    reached = np.maximum.accumulate(base + end)
    before = np.concatenate(([np.iinfo(np.int64).min], reached[:-1]))
    gained = np.maximum(base + end - np.maximum(base + start, before), 0)
    np.add.at(result, group, gained)
    return result


def sum_by_group(group: Any, values: Any, groups: int) -> Ints:
    """Exact integer sums of ``values`` by ``group``."""
    result = np.zeros(groups, np.int64)
    np.add.at(result, np.asarray(group, dtype=np.int64), np.asarray(values, dtype=np.int64))
    return result


def lanes(start: Any, end: Any) -> Ints:
    """Lane of each interval (sorted by start) such that intervals in one lane do not overlap; few lanes, first fit."""
    free: list[int] = []
    result = np.zeros(len(start), np.int64)
    for i, (begin, finish) in enumerate(zip(np.asarray(start).tolist(), np.asarray(end).tolist(), strict=True)):
        lane = next((k for k, until in enumerate(free) if until <= begin), len(free))
        if lane == len(free):
            free.append(0)
        free[lane] = finish
        result[i] = lane
    return result


def rate(start: Any, end: Any, amount: Any, total: int, bins: int) -> tuple[Floats, Floats]:
    """``amount`` spread evenly over each interval and summed into equal bins of [0, total]: bin starts, amount a bin.

    The sum over bins is the sum of the amounts; intervals are clipped to [0, total] without losing any of it.
    """
    width = max(total, 1) / bins
    begin = np.clip(np.asarray(start, dtype=np.float64), 0, total) / width
    finish = np.clip(np.asarray(end, dtype=np.float64), 0, total) / width
    finish = np.maximum(finish, begin + 1e-9)
    per_bin = np.asarray(amount, dtype=np.float64) / (finish - begin)
    # The amount that flowed before a time is the integral of steps: +rate at begin, -rate at finish.
    edges = np.concatenate((begin, finish))
    steps = np.concatenate((per_bin, -per_bin))
    order = np.argsort(edges, kind="stable")
    edges, slope = edges[order], np.cumsum(steps[order])
    flowed = np.concatenate(([0.0], np.cumsum(slope[:-1] * np.diff(edges))))
    grid = np.arange(bins + 1, dtype=np.float64)
    if not len(edges):
        return grid[:-1] * width, np.zeros(bins)
    cumulative = np.interp(grid, edges, flowed)
    cumulative[-1] = flowed[-1]
    return grid[:-1] * width, np.maximum(np.diff(cumulative), 0.0)
