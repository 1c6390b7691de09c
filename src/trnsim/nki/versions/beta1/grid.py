"""The launch grid of NKI 0.1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.nki.versions.beta1.tensor import state


class Cores(int):
    """``nl.nc(n)``: a dimension of the grid over physical cores."""

    def __mul__(self, other: Any) -> Any:
        return SpmdDim(self, other)

    def __rmul__(self, other: Any) -> Any:
        return SpmdDim(other, self)


class SpmdDim:
    """``nl.spmd_dim(...)``: a grid dimension made of several, programs and cores."""

    def __init__(self, *sizes: Any) -> None:
        self.sizes: tuple[Any, ...] = tuple(p for s in sizes for p in (s.sizes if isinstance(s, SpmdDim) else (s,)))

    def __int__(self) -> int:
        return math.prod(int(s) for s in self.sizes)


nc, spmd_dim = Cores, SpmdDim


def cores_of(grid: tuple[Any, ...], cores: int) -> list[int]:
    """The core of each program of a launch grid, by program number.

    ``nl.nc(n)`` dimensions distribute programs over cores; without them ``cores`` share them in runs of equal length.
    """
    parts = [p for dim in grid for p in (dim.sizes if isinstance(dim, SpmdDim) else (dim,))]
    count = math.prod(int(p) for p in parts)
    if not any(isinstance(p, Cores) for p in parts):
        return [number * cores // count for number in range(count)]
    found = []
    for number in range(count):
        core = 0
        for size, at in zip(parts, np.unravel_index(number, [int(p) for p in parts]), strict=True):
            if isinstance(size, Cores):
                core = core * int(size) + int(at)
        found.append(core)
    return found


def program_id(axis: int) -> int:
    """Position of this program along ``axis`` of the grid; 0 without one."""
    current = state()
    if not current.grid and axis == 0:
        return 0
    if not 0 <= axis < len(current.grid):
        raise CompilerError("the launch grid has no such axis", operand="axis", value=axis, limit=len(current.grid))
    return current.ids[axis]


def num_programs(axes: Any = None) -> int:
    """The programs along ``axes`` of the grid, of all of it without."""
    grid = state().grid
    if axes is None:
        return math.prod(grid)
    given = axes if isinstance(axes, (tuple, list)) else (axes,)
    if not grid:
        return 1
    return math.prod(grid[int(a)] for a in given)


def program_ndim() -> int:
    """Dimensions of the grid."""
    return len(state().grid)
