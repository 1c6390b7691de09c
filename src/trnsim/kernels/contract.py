"""What a kernel promises beside its code: the sizes it takes, its loops, and which of its tiles stay in SBUF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trnsim.errors import InputError

# Of a size, or of many uses at once (an array), so that what a contract computes holds for both.
Size = Any
Sizes = Mapping[str, Size]
Option = int | str

GENERATIONS = ("v2", "v3", "v4")
_PLAIN = ("bfloat16", "float16", "float32")
# The formats of most kernels: what every generation's engines compute with.
PLAIN = dict.fromkeys(GENERATIONS, _PLAIN)


@dataclass(frozen=True)
class Problem:
    """One use of an operator: its sizes, number format, options, the cores that share it and their generation."""

    sizes: Sizes
    dtype: str
    options: Mapping[str, Option] = field(default_factory=dict)
    cores: int = 1
    generation: str = "v3"

    def resized(self, sizes: Sizes) -> Problem:
        return Problem(sizes, self.dtype, self.options, self.cores, self.generation)


@dataclass(frozen=True)
class Axis:
    """A coordinate along which a kernel's loops run more often, within one regime.

    Attributes:
        name: of the coordinate, a size unless the contract says otherwise.
        tile: how much of it one iteration of the innermost loop takes; a part of a tile costs between nothing and one.
        block: how much an iteration of the outermost loop takes, a multiple of ``tile``: from some block on each takes
            as long as the one before.
        low, high: the coordinate's values in this regime.
        grain: what its values are multiples of.
        degree: of time as a polynomial in the number of blocks.
        first: blocks after which they are taken to repeat; 0: they all do.
        far: blocks between samples that say by how much time grows with a block (degree one): more where DMAs,
            which settle slowly, decide it.
        carries: another axis that a block more also moves on by as much, for all that follows: queries of causal
            attention, each block of which sees the keys of those before it. Time is then of degree one in both.
    """

    name: str
    tile: int = 1
    block: int = 1
    low: int = 1
    high: int | None = None
    grain: int = 1
    degree: int = 1
    first: int = 1
    far: int = 2
    carries: str = ""


@dataclass(frozen=True)
class Limit:
    """Values of a size: from ``low`` to ``high``, multiples of ``multiple``."""

    low: int = 1
    high: int | None = None
    multiple: int = 1

    def nearest(self, value: int) -> int:
        """The value that is allowed and nearest."""
        value = max(value, self.low) if self.high is None else min(max(value, self.low), self.high)
        down = value // self.multiple * self.multiple
        up = down + self.multiple
        best = down if down == value or (down >= self.low and value - down <= up - value) else up
        return best if self.high is None or best <= self.high else down


ONE = Limit()


def _same(problem: Problem) -> Sizes:
    return problem.sizes


def _sizes(problem: Problem, coordinates: Sizes) -> Sizes:
    return {**problem.sizes, **coordinates}


@dataclass(frozen=True)
class Contract:
    """A kernel as an operator.

    ``regime`` and ``coordinates`` are computed for arrays of sizes too: they use arithmetic, comparisons and
    ``least``/``most`` only.

    Attributes:
        name: of the operator, such as ``matmul``.
        kernel: what ``nki.jit`` made.
        sizes: names of the sizes that a use gives.
        dtypes: number formats by generation of the NeuronCore.
        arguments: what the kernel is called with, arrays as ``ShapeOnly``, each of its own: one that is given twice
            would be loaded once.
        axes: of the uses of a regime. A size that decides no axis is part of what a surface is for.
        regime: what else decides how the loops run (which tiles stay, which size the cores share).
        flops: of the mathematics, two a multiplication and addition.
        bytes: what must cross HBM at least.
        coordinates: the axes' coordinates from sizes, and ``placed`` the sizes from a problem's coordinates; where the
            coordinates are sizes they need not be given.
        fixed: sizes that are not extrapolated, by value.
        options: names of choices, each with the values it may have, the default first.
        defaults: sizes that need not be given.
        limits: what the sizes may be, where that is not just at least 1.
        check: refuses sizes that do not fit each other.
        summary: what it computes, in a line.
    """

    name: str
    kernel: Any
    sizes: tuple[str, ...]
    arguments: Callable[[Problem], tuple[Any, ...]]
    axes: Callable[[Problem], tuple[Axis, ...]]
    flops: Callable[[Problem], Size]
    bytes: Callable[[Problem], Size]
    regime: Callable[[Problem], tuple[Any, ...]] = lambda _: ()
    dtypes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PLAIN)
    coordinates: Callable[[Problem], Sizes] = _same
    placed: Callable[[Problem, Sizes], Sizes] = _sizes
    fixed: tuple[str, ...] = ()
    options: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)
    defaults: Mapping[str, int] = field(default_factory=dict)
    limits: Callable[[Problem], Mapping[str, Limit]] = lambda _: {}
    check: Callable[[Problem], None] | None = None
    summary: str = ""

    def problem(self, dtype: str, cores: int, given: Mapping[str, Any], generation: str = "v3") -> Problem:
        """Check a use. The values of sizes may be arrays, all of one length.

        Raises:
            InputError: a size or option that is missing, unknown or out of range, or a format that the generation
                lacks; it names the nearest that works.
        """
        try:
            sizes = {name: given[name] for name in self.sizes}
        except KeyError:
            sizes = {**self.defaults, **{name: given[name] for name in self.sizes if name in given}}
            missing = sorted(set(self.sizes) - set(sizes))
            if missing:
                raise InputError(
                    f"{self.name}: no {', '.join(missing)}", operand="sizes", limit=(*self.sizes, *self.options)
                ) from None
        options = {}
        for name, values in self.options.items():
            options[name] = given.get(name, values[0])
            if options[name] not in values:
                raise InputError(f"{self.name}: no such {name}", operand=name, value=options[name], limit=values)
        if len(given) > len(sizes) + len(options) or any(n not in sizes and n not in options for n in given):
            unknown = sorted(set(given) - set(self.sizes) - set(self.options))
            if unknown:
                raise InputError(
                    f"{self.name}: unknown {', '.join(unknown)}",
                    operand="sizes",
                    limit=(*self.sizes, *self.options),
                )
        if dtype not in self.dtypes[generation]:
            raise self._no_dtype(dtype, generation)
        problem = Problem(sizes, dtype, options, cores, generation)
        limits = self.limits(problem)
        for name, size in sizes.items():
            limit = limits.get(name, ONE)
            wrong = size < limit.low
            if limit.high is not None:
                wrong = wrong | (size > limit.high)
            if limit.multiple > 1:
                wrong = wrong | (size % limit.multiple != 0)
            if wrong if isinstance(wrong, bool) else wrong.any():
                self._refuse(name, size if isinstance(wrong, bool) else size[wrong][0], limit)
        if self.check is not None:
            self.check(problem)
        return problem

    def _no_dtype(self, dtype: str, generation: str) -> InputError:
        here = self.dtypes[generation]
        elsewhere = [g for g in GENERATIONS if dtype in self.dtypes[g]]
        has = f"; NeuronCore-{elsewhere[0]} has it" if elsewhere else ""
        if not here:
            return InputError(
                f"NeuronCore-{generation} has no {self.name}{has}",
                operand="operator",
                value=self.name,
                limit=[g for g in GENERATIONS if self.dtypes[g]],
            )
        return InputError(
            f"{self.name} has no {dtype} on NeuronCore-{generation}{has}; nearest: {here[0]}",
            operand="dtype",
            value=dtype,
            limit=here,
        )

    def _refuse(self, name: str, value: Any, limit: Limit) -> None:
        ranged = f"at least {limit.low}" if limit.high is None else f"{limit.low} to {limit.high}"
        multiple = f", a multiple of {limit.multiple}" if limit.multiple > 1 else ""
        nearest = limit.nearest(int(value))
        raise InputError(
            f"{self.name}: {name} must be {ranged}{multiple}; nearest: {nearest}",
            operand=name,
            value=int(value),
            limit=limit.high if limit.high is not None and value > limit.high else limit.low,
        )


def most(first: Size, second: Size) -> Size:
    """The larger, of sizes or arrays of them."""
    if isinstance(first, int) and isinstance(second, int):
        return max(first, second)
    return second + (first - second) * (first > second)


def least(first: Size, second: Size) -> Size:
    """The smaller, of sizes or arrays of them."""
    if isinstance(first, int) and isinstance(second, int):
        return min(first, second)
    return second + (first - second) * (first < second)


def up(value: Size, step: int) -> Size:
    """How many steps it takes to reach ``value``."""
    return -(-value // step)
