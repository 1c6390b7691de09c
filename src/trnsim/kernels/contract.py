"""What a kernel promises beside its code: the sizes it takes, its loops, and which of its tiles stay in SBUF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trnsim.errors import InputError

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Problem:
    """One use of an operator: its sizes, number format, options, and the cores that share it."""

    sizes: Sizes
    dtype: str
    options: Mapping[str, int] = field(default_factory=dict)
    cores: int = 1

    def resized(self, sizes: Sizes) -> Problem:
        return Problem(sizes, self.dtype, self.options, self.cores)


@dataclass(frozen=True)
class Contract:
    """A kernel as an operator.

    Attributes:
        name: of the operator, such as ``matmul``.
        kernel: what ``nki.jit`` made.
        sizes: names of the sizes that a use gives, each at least 1.
        dtypes: number formats.
        options: names of choices, each with the values it may have, the default first.
        arguments: what the kernel is called with, arrays as ``ShapeOnly``.
        blocks: for each size that a loop runs over, how much of it one iteration of the outermost such loop takes.
            Time is linear in the iterations once they repeat; a size that is missing here is never extrapolated.
        regime: what else decides how the loops run (which tiles stay, which size the cores share); uses of equal regime
            and remainders differ in the number of iterations only.
        flops: of the mathematics, two a multiplication and addition.
        bytes: what must cross HBM at least.
    """

    name: str
    kernel: Any
    sizes: tuple[str, ...]
    dtypes: tuple[str, ...]
    arguments: Callable[[Problem], tuple[Any, ...]]
    blocks: Callable[[Problem], Mapping[str, int]]
    regime: Callable[[Problem], tuple[Any, ...]]
    flops: Callable[[Problem], int]
    bytes: Callable[[Problem], int]
    options: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def problem(self, dtype: str, cores: int, given: Mapping[str, int]) -> Problem:
        """Check a use.

        Raises:
            InputError: a size or option that is missing, unknown or out of range, or a format that it does not take.
        """
        unknown = sorted(set(given) - set(self.sizes) - set(self.options))
        missing = sorted(set(self.sizes) - set(given))
        if unknown or missing:
            parts = [f"no {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
            raise InputError(f"{self.name}: {'; '.join(parts)}", operand="sizes", limit=(*self.sizes, *self.options))
        for name in self.sizes:
            if given[name] < 1:
                raise InputError(f"{self.name}: {name} must be at least 1", operand=name, value=given[name], limit=1)
        if dtype not in self.dtypes:
            raise InputError(f"{self.name} has no {dtype}", operand="dtype", value=dtype, limit=self.dtypes)
        options = {}
        for name, values in self.options.items():
            options[name] = given.get(name, values[0])
            if options[name] not in values:
                raise InputError(f"{self.name}: no such {name}", operand=name, value=options[name], limit=values)
        return Problem({n: given[n] for n in self.sizes}, dtype, options, cores)
