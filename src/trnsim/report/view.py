"""A kernel call's timeline and traces as reports read them: columns, and the way from an event back to the kernel."""

from __future__ import annotations

import linecache
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.report.call import KernelCall, TraceLike, TrackLike

Ints = NDArray[np.int64]
Table = TypeVar("Table")


@dataclass(frozen=True, eq=False)
class Events:
    """One row an event, sorted by start; see ``trnsim.timing.timeline``."""

    track: Ints
    opcode: Ints
    instruction: Ints
    start: Ints
    end: Ints
    done: Ints
    bytes: Ints


@dataclass(frozen=True, eq=False)
class Waits:
    """One row an interval in which a track waited."""

    track: Ints
    start: Ints
    end: Ints
    reason: Ints
    before: Ints
    released_by: Ints


@dataclass(frozen=True, eq=False)
class Instructions:
    """One row an instruction of a trace; ``operand`` is its first row in ``Operands``."""

    klass: Ints
    line: Ints
    operand: Ints


@dataclass(frozen=True, eq=False)
class Operands:
    """One row an operand of a trace."""

    storage: Ints
    start: Ints
    offset: Ints
    form: Ints


@dataclass(frozen=True, eq=False)
class TraceView:
    """A trace with its columns taken out once."""

    trace: TraceLike
    instructions: Instructions
    operands: Operands
    line: Ints  # of each instruction, in View.lines; -1 unknown


@dataclass(frozen=True)
class SourceLine:
    """A line of the kernel, with its text where the file can be read."""

    file: str
    line: int
    function: str = ""
    text: str = ""

    @property
    def short(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"


@dataclass(frozen=True)
class Operand:
    """One operand of one instruction; ``offset`` is a byte in each partition (on chip) or in the storage (HBM)."""

    name: str
    role: str
    storage: str
    memory: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    partitions: int
    offset: int
    bytes: int

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        where = f"{self.memory} +{self.offset}"
        if self.memory != "hbm":
            where += f", partitions {self.start}..{self.start + self.partitions - 1}"
        return f"{self.storage} {self.dtype} {shape} ({where}; {self.bytes} bytes)"


@dataclass(frozen=True, eq=False)
class View:
    """Events and waits within [0, total]; ``lines`` of all traces; ``core`` and ``line`` (-1 none) of each event."""

    call: KernelCall
    total: int
    tracks: Sequence[TrackLike]
    events: Events
    waits: Waits
    traces: Sequence[TraceView]
    lines: Sequence[SourceLine]
    core: Ints
    line: Ints

    @classmethod
    def of(cls, call: KernelCall) -> View:
        timeline = call.timeline
        total = int(timeline.total_ps)
        events = _table(Events, timeline.events, total)
        lines, traces = _traces(call)
        cores = np.array([t.core for t in timeline.tracks], np.int64)
        core = cores[events.track] if len(cores) else np.zeros(0, np.int64)
        line = np.full(len(core), -1, np.int64)
        for i, trace in enumerate(traces):
            mine = np.flatnonzero((core == i) & (events.instruction >= 0))
            line[mine] = trace.line[events.instruction[mine]]
        waits = _table(Waits, timeline.waits, total)
        return cls(call, total, timeline.tracks, events, waits, traces, lines, core, line)

    def operands(self, event: int) -> list[Operand]:
        """The operands of the instruction behind ``event``; empty without one."""
        row, core = int(self.events.instruction[event]), int(self.core[event])
        if row < 0 or core >= len(self.traces):
            return []
        view = self.traces[core]
        klass = view.trace.classes[int(view.instructions.klass[row])]
        first = int(view.instructions.operand[row])
        return [_operand(view, first + i, described.name, described.role) for i, described in enumerate(klass.operands)]

    def instruction_name(self, event: int) -> str:
        """``nki.isa.nc_matmul``; empty if the event has no instruction."""
        row, core = int(self.events.instruction[event]), int(self.core[event])
        if row < 0 or core >= len(self.traces):
            return ""
        view = self.traces[core]
        return str(view.trace.classes[int(view.instructions.klass[row])].instruction.name)

    def written_storage(self, event: int) -> str:
        """Name of the first storage that the event's instruction writes; empty if it is not known."""
        return next((o.storage for o in self.operands(event) if o.role != "read"), "")

    def touches_hbm(self) -> NDArray[np.bool_]:
        """For each event, whether it moves bytes to or from HBM; without a trace every transfer is taken to do so."""
        result = np.array([t.kind == "dma" for t in self.tracks], bool)[self.events.track]
        for i, view in enumerate(self.traces):
            forms = view.trace.forms
            hbm = np.zeros(len(view.operands.form) + 1, np.int64)
            used = np.unique(view.operands.form)
            named = {int(f): forms[int(f)].memory == "hbm" for f in used}
            hbm[1:] = np.cumsum([named[f] for f in view.operands.form.tolist()], dtype=np.int64)
            mine = np.flatnonzero((self.core == i) & (self.events.instruction >= 0) & result)
            rows = self.events.instruction[mine]
            counts = np.array([len(c.operands) for c in view.trace.classes], np.int64)
            first = view.instructions.operand[rows]
            last = first + counts[view.instructions.klass[rows]]
            result[mine] = hbm[last] > hbm[first]
        return result


def form_partitions(form: Any) -> int:
    """Partitions an access touches; 1 in HBM."""
    return 1 if form.memory == "hbm" else int(form.shape[0])


def form_bytes(form: Any) -> int:
    """Bytes moved when the access is made once."""
    return math.prod(int(n) for n in form.shape) * int(form.dtype.itemsize)


def _operand(view: TraceView, row: int, name: str, role: str) -> Operand:
    columns = view.operands
    form = view.trace.forms[int(columns.form[row])]
    storage = int(columns.storage[row])
    return Operand(
        name=name,
        role=role,
        storage=str(view.trace.storages[storage].name) if storage >= 0 else "",
        memory=str(form.memory),
        dtype=str(form.dtype),
        shape=tuple(int(n) for n in form.shape),
        start=int(columns.start[row]),
        partitions=form_partitions(form),
        offset=int(columns.offset[row]),
        bytes=form_bytes(form),
    )


def _table(kind: type[Table], columns: Any, total: int | None = None) -> Table:
    """``columns`` (arrays by name, as items or attributes) as a ``kind``, with start and end within [0, total]."""
    by_name = isinstance(columns, Mapping) or getattr(getattr(columns, "dtype", None), "names", None)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    values = {n: np.asarray(columns[n] if by_name else getattr(columns, n), dtype=np.int64) for n in names}
    if total is not None:
        values["start"] = np.clip(values["start"], 0, total)
        values["end"] = np.clip(values["end"], values["start"], total)
    return kind(**values)


def _traces(call: KernelCall) -> tuple[list[SourceLine], list[TraceView]]:
    table: dict[tuple[str, int], int] = {}
    lines: list[SourceLine] = []
    views = []
    for trace in getattr(call.timeline, "traces", ()) or call.traces:
        numbers = [-1]  # for an instruction whose line is -1
        for where in trace.lines:
            key = (where.file, where.line)
            if where.line <= 0:
                numbers.append(-1)
                continue
            if key not in table:
                table[key] = len(lines)
                text = linecache.getline(where.file, where.line).strip()
                lines.append(SourceLine(where.file, where.line, where.function, text))
            numbers.append(table[key])
        instructions = _table(Instructions, trace.instructions)
        line = np.array(numbers, np.int64)[instructions.line + 1]
        views.append(TraceView(trace, instructions, _table(Operands, trace.operands), line))
    return lines, views
