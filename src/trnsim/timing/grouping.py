"""Grouping of columns by small integers, in time linear in their length: no sort is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.timing.compiled import run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Column = NDArray[np.signedinteger[Any]]


def distinct(values: Column, limit: int) -> tuple[Column, Column]:
    """The values that occur, ascending, and for each value its place among them; all from 0 to below ``limit``."""
    seen = np.zeros(limit, bool)
    seen[values] = True
    place = np.cumsum(seen, dtype=np.int32) - 1
    return np.flatnonzero(seen), place[values]


def bucket(values: Column, limit: int, compiled: bool) -> tuple[Column, Column]:
    """Rows in stable order of their value, and where each value's rows begin: ``limit + 1`` offsets."""
    order, offsets = np.zeros(len(values), np.int32), np.zeros(limit + 1, np.int64)
    run(_bucket, compiled, values, order, offsets, np.zeros(limit, np.int64))
    return order, offsets


def _bucket(values: Any, order: Any, offsets: Any, at: Any) -> int:
    for i in range(len(values)):
        offsets[values[i] + 1] += 1
    for v in range(len(at)):
        offsets[v + 1] += offsets[v]
        at[v] = offsets[v]
    for i in range(len(values)):
        v = values[i]
        order[at[v]] = i
        at[v] += 1
    return 0
