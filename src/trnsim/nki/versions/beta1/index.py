"""Index expressions of NKI 0.1: ``nl.arange``, ``nl.mgrid``, and the predicates that masks are made of.

An ``Index`` is affine: ``base + sum(steps[d] * i[d])`` over the dimensions of a tile, so that an access through it is a
strided view. A ``Predicate`` is a conjunction of comparisons of such expressions with zero; ``boxes`` says which
rectangles of a tile it holds on.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, UnsupportedError

if TYPE_CHECKING:
    from types import CodeType

    from numpy.typing import NDArray

Box = tuple[tuple[int, int], ...]

_MOST_BOXES = 4096  # of a mask that is no rectangle
_NEGATED = {
    "greater_equal": "less", "less": "greater_equal", "greater": "less_equal", "less_equal": "greater",
    "equal": "not_equal", "not_equal": "equal",
}  # fmt: skip


class Index:
    """An affine expression of the positions in a tile.

    Attributes:
        base: its value at the first position.
        steps: what one step along each dimension adds.
        shape: the sizes of the dimensions, 1 where it does not depend on one.
    """

    __slots__ = ("base", "shape", "steps")

    __array_ufunc__ = None

    def __init__(self, base: int, steps: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self.base, self.steps, self.shape = base, steps, shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> Index:
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            given = sum(1 for k in keys if k is not None and k is not Ellipsis)
            keys = keys[:at] + (slice(None),) * (self.ndim - given) + keys[at + 1 :]
        steps: list[int] = []
        shape: list[int] = []
        base, dim = self.base, 0
        for item in keys:
            if item is None:
                steps.append(0)
                shape.append(1)
                continue
            if dim >= self.ndim:
                raise CompilerError(f"too many indices for an index expression of shape {self.shape}", value=str(key))
            if isinstance(item, slice):
                start, stop, step = item.indices(self.shape[dim])
                base += start * self.steps[dim]
                steps.append(self.steps[dim] * step)
                shape.append(max(0, -(-(stop - start) // step)))
            else:
                base += int(item) * self.steps[dim]
            dim += 1
        return Index(base, (*steps, *self.steps[dim:]), (*shape, *self.shape[dim:]))

    def __setitem__(self, key: Any, value: Any) -> None:
        raise CompilerError("'index' tensor does not support item assignment; make a tile of it with nisa.iota")

    def _with(self, other: Any, sign: int) -> Any:
        if isinstance(other, Index):
            a, b = _align(self, other)
            shape = _common(a.shape, b.shape)
            steps = tuple(x + sign * y for x, y in zip(a.steps, b.steps, strict=True))
            return Index(a.base + sign * b.base, steps, shape)
        number = _integer(other)
        if number is None:
            return NotImplemented
        return Index(self.base + sign * number, self.steps, self.shape)

    def __add__(self, other: Any) -> Any:
        return self._with(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._with(other, -1)

    def __rsub__(self, other: Any) -> Any:
        return (self * -1)._with(other, 1)

    def __neg__(self) -> Any:
        return self * -1

    def __mul__(self, other: Any) -> Any:
        number = _integer(other)
        if number is None:
            if isinstance(other, Index):
                raise UnsupportedError("the product of two index expressions is not affine")
            return NotImplemented
        return Index(self.base * number, tuple(s * number for s in self.steps), self.shape)

    __rmul__ = __mul__

    def limits(self) -> tuple[int, int]:
        """Its smallest and largest value."""
        low = high = self.base
        for s, n in zip(self.steps, self.shape, strict=True):
            if s > 0:
                high += s * (n - 1)
            else:
                low += s * (n - 1)
        return low, high

    def __floordiv__(self, other: Any) -> Any:
        number = _integer(other)
        if number is None or number <= 0:
            return NotImplemented
        low, high = self.limits()
        if low // number == high // number:
            return Index(low // number, (0,) * self.ndim, self.shape)
        if all(s % number == 0 for s in self.steps):
            return Index(self.base // number, tuple(s // number for s in self.steps), self.shape)
        raise UnsupportedError(f"an index expression divided by {number} is not affine here")

    def __mod__(self, other: Any) -> Any:
        number = _integer(other)
        if number is None or number <= 0:
            return NotImplemented
        low, high = self.limits()
        if low // number == high // number:
            return self - low // number * number
        if all(s % number == 0 for s in self.steps):
            return Index(self.base % number, (0,) * self.ndim, self.shape)
        raise UnsupportedError(f"an index expression modulo {number} is not affine here")

    def _compare(self, other: Any, operator: str) -> Any:
        difference = self._with(other, -1)
        return difference if difference is NotImplemented else Predicate(((difference, operator),))

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, "less")

    def __le__(self, other: Any) -> Any:
        return self._compare(other, "less_equal")

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, "greater")

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, "greater_equal")

    def __eq__(self, other: object) -> Any:
        return self._compare(other, "equal")

    def __ne__(self, other: object) -> Any:
        return self._compare(other, "not_equal")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise CompilerError("control flow cannot depend on an index expression (nl.arange)", value=repr(self))

    def array(self) -> NDArray[np.int64]:
        """All its values."""
        result = np.full((1,) * self.ndim, self.base, np.int64)
        for dim, (s, n) in enumerate(zip(self.steps, self.shape, strict=True)):
            sizes = [1] * self.ndim
            sizes[dim] = n
            result = result + (np.arange(n, dtype=np.int64) * s).reshape(sizes)
        return result

    def __repr__(self) -> str:
        return f"index expression of shape {self.shape}"


class Predicate:
    """A condition on the positions in a tile: comparisons ``(expression, operator)`` with 0 that all hold."""

    __slots__ = ("terms", "values")

    __array_ufunc__ = None

    def __init__(self, terms: tuple[tuple[Index, str], ...], values: NDArray[np.bool_] | None = None) -> None:
        self.terms, self.values = terms, values

    def __and__(self, other: Any) -> Any:
        if isinstance(other, (bool, np.bool_)):
            return self if other else False
        if not isinstance(other, Predicate):
            return NotImplemented
        if self.values is None and other.values is None:
            return Predicate(self.terms + other.terms)
        return Predicate((), self.array() & other.array())

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        if isinstance(other, (bool, np.bool_)):
            return True if other else self
        if not isinstance(other, Predicate):
            return NotImplemented
        return Predicate((), self.array() | other.array())

    __ror__ = __or__

    def __invert__(self) -> Predicate:
        if self.values is None and len(self.terms) == 1:
            expression, operator = self.terms[0]
            return Predicate(((expression, _NEGATED[operator]),))
        return Predicate((), ~self.array())

    def __bool__(self) -> bool:
        """``a and b`` of predicates is their conjunction; any other use of a truth value is an error."""
        frame = sys._getframe(1)
        if _short_circuits(frame.f_code).get(frame.f_lasti) != "and":
            raise CompilerError("control flow cannot depend on an index expression (nl.arange)", value=repr(self))
        _asked.append(self)
        return True

    def array(self) -> NDArray[np.bool_]:
        """Its truth values, one a position."""
        if self.values is not None:
            return self.values
        result: Any = np.bool_(True)
        for expression, operator in self.terms:
            result = result & getattr(np, operator)(expression.array(), 0)
        return np.asarray(result)

    def boxes(self, shape: tuple[int, ...]) -> list[Box]:
        """Disjoint rectangles of a tile of ``shape`` that together are all positions where it holds."""
        limits = [(0, n) for n in shape]
        if self.values is None:
            for expression, operator in self.terms:
                expression = _fit(expression, len(shape))  # noqa: PLW2901
                for e in _at_least_zero(expression, operator):
                    if e is None or not _narrow(limits, e):
                        return _decompose(self._over(shape))
            return [] if any(low >= high for low, high in limits) else [tuple(limits)]
        return _decompose(self._over(shape))

    def _over(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        values = self.array()
        if values.ndim < len(shape):
            values = values.reshape(values.shape + (1,) * (len(shape) - values.ndim))
        return np.broadcast_to(values, shape)

    def __repr__(self) -> str:
        return "predicate of index expressions"


_asked: list[Predicate] = []


def merged(mask: Any) -> Any:
    """``mask`` joined with the predicates that an ``and`` asked for their truth before it."""
    if _asked:
        for predicate in _asked:
            mask = predicate & mask
        _asked.clear()
    return mask


@cache
def _short_circuits(code: CodeType) -> dict[int, str]:
    """Offsets of the instructions of ``and`` in a function."""
    return {i.offset: "and" for i in dis.get_instructions(code) if _is_and(i.opname)} | _copies(code)


def _is_and(opname: str) -> bool:
    return opname == "JUMP_IF_FALSE_OR_POP"


def _copies(code: CodeType) -> dict[int, str]:
    """From Python 3.12 on ``and`` copies the value, then tests it."""
    found = {}
    instructions = list(dis.get_instructions(code))
    for before, after in pairwise(instructions):
        if before.opname == "COPY" and after.opname in ("POP_JUMP_IF_FALSE", "TO_BOOL"):
            found[after.offset] = "and"
    return found


def _integer(value: Any) -> int | None:
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _align(a: Index, b: Index) -> tuple[Index, Index]:
    """Both with the larger rank, as NumPy broadcasts: new dimensions in front."""
    rank = max(a.ndim, b.ndim)

    def extended(x: Index) -> Index:
        more = rank - x.ndim
        return x if not more else Index(x.base, (0,) * more + x.steps, (1,) * more + x.shape)

    return extended(a), extended(b)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    for n, m in zip(a, b, strict=True):
        if n != m and 1 not in (n, m):
            raise CompilerError(f"index expressions of shapes {a} and {b} do not broadcast to each other")
    return tuple(max(n, m) for n, m in zip(a, b, strict=True))


def broadcast(indices: list[Index]) -> tuple[list[Index], tuple[int, ...]]:
    """The expressions with one rank, and the shape they span together."""
    rank = max(i.ndim for i in indices)
    shape: tuple[int, ...] = (1,) * rank
    result = []
    for index in indices:
        more = rank - index.ndim
        aligned = Index(index.base, (0,) * more + index.steps, (1,) * more + index.shape) if more else index
        shape = _common(shape, aligned.shape)
        result.append(aligned)
    return result, shape


def _fit(index: Index, rank: int) -> Index:
    """An expression of a mask seen in a tile of ``rank`` dimensions."""
    more = rank - index.ndim
    if more > 0:
        return Index(index.base, index.steps + (0,) * more, index.shape + (1,) * more)
    if more < 0:
        kept = [d for d in range(index.ndim) if index.shape[d] != 1]
        if len(kept) > rank:
            raise CompilerError(f"a mask of shape {index.shape} does not fit a tile of {rank} dimensions")
        return Index(index.base, index.steps[:rank], index.shape[:rank])
    return index


def _at_least_zero(e: Index, operator: str) -> Iterator[Index | None]:
    """Expressions that are all at least 0 where the comparison holds; None if there are none."""
    if operator in ("greater_equal", "equal"):
        yield e
    if operator in ("less_equal", "equal"):
        yield -e
    if operator == "greater":
        yield e - 1
    if operator == "less":
        yield -e - 1
    if operator == "not_equal":
        yield None


def _narrow(limits: list[tuple[int, int]], e: Index) -> bool:
    """Restrict ``limits`` to where ``e`` is at least 0; False if that is no rectangle."""
    dims = [d for d, (s, n) in enumerate(zip(e.steps, e.shape, strict=True)) if s and n > 1]
    if len(dims) > 1:
        low, high = e.limits()
        if high < 0:
            limits[0] = (0, 0)
        return low >= 0 or high < 0
    if not dims:
        if e.base < 0:
            limits[0] = (0, 0)
        return True
    dim = dims[0]
    step, (low, high) = e.steps[dim], limits[dim]
    if step > 0:
        limits[dim] = (max(low, -(e.base // step)), high)
    else:
        limits[dim] = (low, min(high, e.base // -step + 1))
    return True


def _decompose(values: NDArray[np.bool_]) -> list[Box]:
    """Rectangles of an array of truth values: runs of equal slices along the first dimension, then each in turn."""
    if values.ndim == 0:
        return [()] if values else []
    result: list[Box] = []
    start = 0
    flat = values.reshape(values.shape[0], -1)
    changes = np.flatnonzero((flat[1:] != flat[:-1]).any(axis=1)) + 1
    for stop in [*changes.tolist(), values.shape[0]]:
        result.extend(((start, stop), *inner) for inner in _decompose(values[start]))
        start = stop
        if len(result) > _MOST_BOXES:
            raise UnsupportedError(f"a mask of more than {_MOST_BOXES} rectangles")
    return result


def arange(*args: int) -> Index:
    """``nl.arange(stop)``, ``nl.arange(start, stop)``, ``nl.arange(start, stop, step)``."""
    numbers = range(*(int(a) for a in args))
    return Index(numbers.start, (numbers.step,), (len(numbers),))


class Grid(tuple[Index, ...]):
    """What ``nl.mgrid[...]`` gives: one index expression a dimension, also by name: ``.p``, then ``.x .y .z .w``."""

    __slots__ = ()

    p = property(lambda self: self[0])
    x = property(lambda self: self[1])
    y = property(lambda self: self[2])
    z = property(lambda self: self[3])
    w = property(lambda self: self[4])


class _MeshGrid:
    """``nl.mgrid[0:128, 0:512]``."""

    def __getitem__(self, key: Any) -> Grid:
        keys = key if isinstance(key, tuple) else (key,)
        rank = len(keys)
        result = []
        for dim, item in enumerate(keys):
            if not isinstance(item, slice) or item.stop is None:
                raise CompilerError("nl.mgrid takes slices with an end", value=str(item))
            numbers = range(int(item.start or 0), int(item.stop), int(item.step or 1))
            steps, shape = [0] * rank, [1] * rank
            steps[dim], shape[dim] = numbers.step, len(numbers)
            result.append(Index(numbers.start, tuple(steps), tuple(shape)))
        return Grid(result)


mgrid = _MeshGrid()
