"""The launch grid and the loops of NKI 0.1."""

from __future__ import annotations

import ctypes
import dis
import math
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trnsim.errors import CompilerError
from trnsim.nki.versions.beta1.tensor import state

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Self


class Cores(int):
    """``nl.nc(n)``: a dimension of the grid over physical cores."""

    def __mul__(self, other: Any) -> Any:
        return SpmdDim(self, other)

    def __rmul__(self, other: Any) -> Any:
        return SpmdDim(other, self)


class SpmdDim:
    """``nl.spmd_dim(...)``: a grid dimension made of several, programs and cores."""

    def __init__(self, *sizes: Any) -> None:
        self.sizes = sizes

    def __int__(self) -> int:
        return math.prod(int(s) for s in self.sizes)


nc, spmd_dim = Cores, SpmdDim


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


class LoopIndex(int):
    """The index of a loop, which knows whether it is in its first iteration."""

    first: bool

    def __new__(cls, value: int, first: bool) -> Self:
        made = super().__new__(cls, value)
        made.first = first
        return made


def affine_range(*args: Any, **_: Any) -> Iterator[LoopIndex]:
    """``range``: every iteration is executed in turn, each from the numbers that held before the loop.

    The compiler of NKI 0.1 traced a loop's body once, so what ``x += 1`` did to a number of Python's was not carried
    from one iteration to the next; kernels rely on it (``cur_addr += size`` beside an allocation).
    """
    numbers = range(*(int(a) for a in args))
    frame = sys._getframe(1)
    names = _updated(frame.f_code)
    if not names or len(numbers) < 2:
        return _plain(numbers)
    return _traced(numbers, frame, names)


sequential_range = affine_range


def static_range(*args: Any, **_: Any) -> Iterator[LoopIndex]:
    """``range``: unrolled, so that numbers are carried from one iteration to the next."""
    return _plain(range(*(int(a) for a in args)))


def _plain(numbers: range) -> Iterator[LoopIndex]:
    return (LoopIndex(i, n == 0) for n, i in enumerate(numbers))


def _traced(numbers: range, frame: FrameType, names: tuple[str, ...]) -> Iterator[LoopIndex]:
    before = frame.f_locals
    kept = {n: before[n] for n in names if isinstance(before.get(n), (int, float))}
    for n, i in enumerate(numbers):
        if n and kept:
            now = frame.f_locals
            if any(now.get(name) is not value for name, value in kept.items()):
                now.update(kept)
                ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        yield LoopIndex(i, n == 0)


@cache
def _updated(code: CodeType) -> tuple[str, ...]:
    """Local variables that a function changes in place (``x += 1``)."""
    found = []
    for operation, store in pairwise(dis.get_instructions(code)):
        in_place = operation.opname.startswith("INPLACE_") or (
            operation.opname == "BINARY_OP" and operation.argrepr.endswith("=")
        )
        if in_place and store.opname.startswith("STORE_"):
            found.append(str(store.argval))
    return tuple(dict.fromkeys(found))


def starts(loop_indices: Any) -> bool:
    """True in the first iteration of all these loops."""
    given = loop_indices if isinstance(loop_indices, (tuple, list)) else (loop_indices,)
    return all(i.first if isinstance(i, LoopIndex) else int(i) == 0 for i in given)
