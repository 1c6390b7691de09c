"""What to run for a measurement: kernels of a checkout, their arguments, the chip, the cores and the clock."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trnsim.validation.clocks import clock_of
from trnsim.validation.exclusion import NO_SOURCE, excluded
from trnsim.validation.rows import Row


@dataclass(frozen=True)
class Tensor:
    """An argument without data. ``dtype`` is spelled as in ``trnsim profile --arg``, ``f32`` or ``bf16``.

    ``filled``: the number that all its elements are, for int32 whose values decide what the kernel does.
    """

    dtype: str
    shape: tuple[int, ...]
    filled: int | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Name:
    """An argument that is a name of a module of the checkout, such as a member of an enumeration."""

    module: str
    path: str


@dataclass(frozen=True)
class Made:
    """An argument that a name of the checkout makes of others, such as a class of settings."""

    maker: Name
    named: tuple[tuple[str, Name | float | str | None], ...]


Value = Tensor | Name | Made | int | float | bool | str | None


@dataclass(frozen=True)
class Source:
    """Where a kernel's code is.

    ``checkout``: ``sdk``, ``samples``, ``library``, ``fusion``, ``course``, ``accelopt``, ``autocomp``, ``autotune``,
    ``tilebench``, or ``file`` (a path of its own). ``path`` is relative to it. ``revision``: a tag or commit whose
    version of the file is meant, ``""`` for the files as they are. ``block``: the how-manieth code block with a kernel,
    for documentation, or candidate of a search. ``environment`` names what must be in place in the process: ``nki``,
    ``library`` (names that nki-library's suite brings), or a release such as ``0.2``.
    """

    checkout: str
    path: str
    revision: str = ""
    block: int = 0
    environment: str = "nki"


@dataclass(frozen=True)
class Call:
    """One launch of a kernel. ``compile_options`` are of NKI 0.1's ``additional_compile_opt``."""

    source: Source
    kernel: str
    arguments: tuple[Value, ...] = ()
    named: tuple[tuple[str, Value], ...] = ()
    lnc: int = 1
    compile_options: str = ""


@dataclass(frozen=True)
class Recipe:
    """What a row is a run of. ``problem`` is what its variants share: they compute the same thing.

    ``setting``: figures of the chip that were others, as for a what-if chip (``dma.sustained_bytes_per_ns=6.4B/ns``).
    ``passes``: those that flags of the compiler turn on, and off where a ``-`` stands before them.
    """

    operation: str
    origin: str
    group: str
    calls: tuple[Call, ...]
    label: str
    problem: str
    setting: str = ""
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A kernel with its arguments on one chip and clock, and all rows that measured it."""

    recipe: Recipe
    chip: str
    cores: int
    clock: str
    rows: tuple[Row, ...] = field(default=(), compare=False)

    @property
    def family(self) -> str:
        """One operation, of one source, on one chip."""
        return f"{self.recipe.operation}, {self.recipe.origin}, {self.chip}"

    @property
    def name(self) -> str:
        return f"{self.recipe.label} {self.recipe.problem}"

    @property
    def measured_us(self) -> float:
        """Median of the rows, microseconds."""
        return statistics.median(_time(row) for row in self.rows)

    @property
    def size(self) -> int:
        """About how much there is to run: elements of the arguments."""
        total = 0
        for call in self.recipe.calls:
            for value in (*call.arguments, *(v for _, v in call.named)):
                if isinstance(value, Tensor):
                    elements = 1
                    for n in value.shape:
                        elements *= n
                    total += elements
        return total


@dataclass(frozen=True)
class Selection:
    """The cases of a file of measurements, and how many rows were left out for which reason."""

    cases: tuple[Case, ...]
    excluded: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def counts(self) -> Counter[str]:
        return Counter({reason: len(ids) for reason, ids in self.excluded})


def select(rows: Iterable[Row]) -> Selection:
    """One case for each distinct kernel, shape, dtype, chip and clock among ``rows``."""
    from trnsim.validation.recipes import recipe_of

    found: dict[Case, list[Row]] = {}
    left_out: dict[str, list[str]] = {}
    for row in rows:
        reason = excluded(row)
        recipe = recipe_of(row) if reason is None else None
        if recipe is None:
            left_out.setdefault(reason or NO_SOURCE, []).append(row.id)
            continue
        clock = clock_of(row.metric, row.core_count)
        assert clock is not None
        found.setdefault(Case(recipe, chip_of(row), row.core_count, clock), []).append(row)
    cases = [Case(c.recipe, c.chip, c.cores, c.clock, tuple(same)) for c, same in found.items()]
    return Selection(tuple(cases), tuple((r, tuple(ids)) for r, ids in sorted(left_out.items())))


def chip_of(row: Row) -> str:
    """The chip of a row: the first that it names; ``(inferred)`` and alternatives of one generation are dropped."""
    return row.chip.replace("(", " ").replace("/", " ").split()[0]


def _time(row: Row) -> float:
    time = row.microseconds
    assert time is not None
    return time


def of_family(cases: Sequence[Case], text: str) -> list[Case]:
    """Cases whose family contains ``text``."""
    return [c for c in cases if text.lower() in c.family.lower()]
