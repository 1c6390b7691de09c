"""What is asked: traces under options on a chip, and attempts to change them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.hardware.timing_constants import load_timing
from trnsim.releases import DEFAULT, Release
from trnsim.timing.compile import compile_core
from trnsim.timing.compiled import use_compiled
from trnsim.timing.options import TimingOptions
from trnsim.timing.simulate import Stages, run_stages
from trnsim.timing.tables import ClassTables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trnsim.hardware import Chip
    from trnsim.hardware.model import Core
    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.trace import InstructionClass, Trace
    from trnsim.timing.compile import CoreProgram

Lines = Counter[tuple[int, int]]
"""How many instructions of each (core, line of its trace) a change touches."""


@dataclass(frozen=True)
class Case:
    """Traces of the cores of one logical core, and how they are timed."""

    traces: tuple[Trace, ...]
    chip: Chip
    options: TimingOptions = field(default_factory=TimingOptions)
    release: Release = DEFAULT

    @property
    def core(self) -> Core:
        assert self.chip.core is not None
        return self.chip.core

    @property
    def timing(self) -> Timing:
        return load_timing(self.chip)

    @cached_property
    def stages(self) -> Stages:
        """Both stages of the timing of this case."""
        return run_stages(self.traces, self.chip, self.options)

    @property
    def total_ps(self) -> int:
        """The predicted time: the mean over the throttle's phases."""
        return self.stages.mean_ps

    @cached_property
    def programs(self) -> tuple[CoreProgram, ...]:
        """The program of each core as the kernel has it, for its dependences."""
        options = TimingOptions(schedule="program")
        compiled = use_compiled(sum(map(len, self.traces)))
        return tuple(
            compile_core(t, n, self.core, ClassTables(), self.timing, options, compiled)
            for n, t in enumerate(self.traces)
        )

    def without(self, name: str) -> TimingOptions:
        """The options with the compiler's pass ``name`` left out."""
        return replace(self.options, passes=self.options.active_passes - {name})

    def using(self, name: str) -> TimingOptions:
        """The options with the compiler's pass ``name`` taken in."""
        return replace(self.options, passes=self.options.active_passes | {name})


@dataclass(frozen=True)
class Attempt:
    """A changed case: how far the change goes, and the instructions that it touches, by line."""

    label: str
    case: Case
    lines: Lines


@dataclass(frozen=True)
class Relaxation:
    """A change to a kernel that may help: a name, what to do, and the attempts at it.

    ``attempts`` is a pure function of a case; it yields nothing where the change does not apply. ``meaning`` (its
    docstring) says what the change means physically.
    """

    name: str
    advice: str
    attempts: Callable[[Case], Iterator[Attempt]]

    @property
    def meaning(self) -> str:
        return " ".join((self.attempts.__doc__ or "").split())


@dataclass(frozen=True)
class Derived:
    """What stands for an instruction in a changed trace: it costs what ``cost`` says."""

    name: str
    cost: Callable[[Timing, InstructionClass, str], tuple[Any, ...]]
    is_matmul: bool = False


def with_classes(
    trace: Trace, change: Callable[[InstructionClass], InstructionClass | None]
) -> tuple[Trace, Lines, bool]:
    """``trace`` with its classes changed (None: as it is), the lines of changed instructions, and whether any was."""
    columns = trace.instructions
    used, inverse = np.unique(columns["klass"], return_inverse=True)
    classes: list[InstructionClass] = []
    touched = np.zeros(len(used), bool)
    for number, index in enumerate(used.tolist()):
        found = change(trace.classes[index])
        touched[number] = found is not None
        classes.append(found or trace.classes[index])
    if not touched.any():
        return trace, Counter(), False
    changed = replace(trace, classes=classes)
    changed.set_column("klass", inverse.ravel().astype(np.int64))
    return changed, lines_of(trace, np.flatnonzero(touched[inverse.ravel()])), True


def lines_of(trace: Trace, rows: Any) -> Lines:
    """How many of ``rows`` each line has."""
    line, count = np.unique(trace.instructions["line"][rows], return_counts=True)
    return Counter({(trace.core, int(n)): int(c) for n, c in zip(line, count, strict=True)})


def with_class_changes(
    case: Case, change: Callable[[InstructionClass], InstructionClass | None], options: TimingOptions | None = None
) -> tuple[Case, Lines]:
    """``case`` with the classes of all traces changed, and the lines of what was."""
    traces: list[Trace] = []
    lines: Lines = Counter()
    for trace in case.traces:
        changed, touched, _ = with_classes(trace, change)
        traces.append(changed)
        lines += touched
    return replace(case, traces=tuple(traces), options=options or case.options), lines


def select(trace: Trace, rows: Sequence[int] | Any, operand_rows: Any, counts: Any) -> Trace:
    """The instructions ``rows`` of ``trace`` in this order; row i has the next ``counts[i]`` of ``operand_rows``."""
    columns = {n: c[rows] for n, c in trace.instructions.items()}
    counts = np.asarray(counts, np.int64)
    columns["operand"] = np.cumsum(counts) - counts
    operands = {n: c[operand_rows] for n, c in trace.operands.items()}
    return trace.with_columns(columns, operands)
