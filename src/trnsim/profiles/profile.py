"""A profile as columns: what ran on which engine when, whoever wrote it down.

Rows of ``Instructions`` are executions of instructions in a measured profile (``count`` 1), or sums over the executions
of one class in a report that keeps no more than that (``start_ps`` -1). Times are integer picoseconds on the profile's
own clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Column = NDArray[np.int64]

ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync", "dma")
NOT_KNOWN = -1

NEURON_PROFILE, NEURON_EXPLORER, REPORT, REPLAY = "neuron-profile", "neuron-explorer", "trnsim report", "trnsim replay"


@dataclass(frozen=True)
class Instructions:
    """Columns, one row an instruction (or a class of them). ``opcode``, ``operands``, ``line`` index the profile's
    lists.

    ``kernel`` is 1 for what the compiler emitted for the kernel, 0 for the runtime's own. ``waited_ps`` is what the
    engine waited before it, -1 where the profile does not say. ``bytes`` are moved by a DMA that the instruction
    triggers.
    """

    core: Column
    engine: Column
    opcode: Column
    operands: Column
    line: Column
    start_ps: Column
    duration_ps: Column
    waited_ps: Column
    count: Column
    bytes: Column
    pc: Column
    kernel: Column

    def __len__(self) -> int:
        return len(self.engine)


INSTRUCTION_COLUMNS = tuple(Instructions.__dataclass_fields__)


@dataclass(frozen=True)
class Packets:
    """Columns, one row a packet on a DMA engine; ``queue`` and ``kind`` index the profile's lists."""

    core: Column
    engine: Column
    queue: Column
    kind: Column
    start_ps: Column
    duration_ps: Column
    bytes: Column

    def __len__(self) -> int:
        return len(self.engine)


PACKET_COLUMNS = tuple(Packets.__dataclass_fields__)


@dataclass(frozen=True)
class Profile:
    """One profile. ``throttle`` holds (core, picoseconds, share of the full rate) at each change of TensorE's limit.

    ``engine_busy_ps`` is given by reports whose rows do not tell it; else it is the union of the rows' times.
    """

    path: str
    kind: str
    instructions: Instructions
    packets: Packets
    opcodes: list[str]
    operands: list[str]
    lines: list[str]
    queues: list[str]
    packet_kinds: list[str]
    throttle: list[tuple[int, int, float]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    reported_span_ps: int = NOT_KNOWN
    reported_busy_ps: dict[str, int] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        """True if the rows say when they ran."""
        return bool(len(self.instructions)) and bool((self.instructions.start_ps >= 0).all())

    @cached_property
    def body(self) -> Column:
        """Rows of the kernel itself, without the runtime's prologue and epilogue."""
        return np.flatnonzero(self.instructions.kernel == 1)

    def opcode_of(self, row: int) -> str:
        return self.opcodes[int(self.instructions.opcode[row])]

    def operands_of(self, row: int) -> str:
        at = int(self.instructions.operands[row])
        return self.operands[at] if at >= 0 else ""

    def line_of(self, row: int) -> str:
        at = int(self.instructions.line[row])
        return self.lines[at] if at >= 0 else ""


class Builder:
    """Collects rows and interns their texts."""

    def __init__(self) -> None:
        self.instructions: dict[str, list[int]] = {name: [] for name in INSTRUCTION_COLUMNS}
        self.packets: dict[str, list[int]] = {name: [] for name in PACKET_COLUMNS}
        self._tables: dict[str, dict[str, int]] = {n: {} for n in ("opcodes", "operands", "lines", "queues", "kinds")}

    def text(self, table: str, value: str) -> int:
        """Number of ``value`` in one of the lists."""
        known = self._tables[table]
        return known.setdefault(value, len(known))

    def instruction(self, **values: int) -> None:
        """Append a row; columns that are not given are unknown, ``count`` and ``kernel`` 1, ``core`` 0."""
        default = {"count": 1, "kernel": 1, "core": 0, "bytes": 0}
        for name, column in self.instructions.items():
            column.append(values.get(name, default.get(name, NOT_KNOWN)))

    def packet(self, **values: int) -> None:
        for name, column in self.packets.items():
            column.append(values[name])

    def profile(self, path: str, kind: str, **more: Any) -> Profile:
        """The profile, rows sorted by start."""
        instructions = {n: np.array(c, np.int64) for n, c in self.instructions.items()}
        packets = {n: np.array(c, np.int64) for n, c in self.packets.items()}
        order = np.lexsort((instructions["pc"], instructions["start_ps"]))
        dma = np.argsort(packets["start_ps"], kind="stable")
        tables = {name: list(known) for name, known in self._tables.items()}
        return Profile(
            path=path,
            kind=kind,
            instructions=Instructions(**{n: c[order] for n, c in instructions.items()}),
            packets=Packets(**{n: c[dma] for n, c in packets.items()}),
            opcodes=tables["opcodes"],
            operands=tables["operands"],
            lines=tables["lines"],
            queues=tables["queues"],
            packet_kinds=tables["kinds"],
            **more,
        )


def union_ps(start: Column, end: Column) -> int:
    """Length of the union of intervals."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reached = np.maximum.accumulate(end)
    before = np.concatenate((start[:1], reached[:-1]))
    return int(np.maximum(end - np.maximum(start, before), 0).sum())
