"""Published tables of measured instructions and DMAs beside what our costs say of them.

The instruction table (``trn2_instr_timing.csv``) has a row a class: engine, opcode, operands, median duration and,
where instructions followed each other at once, the interval between them. The DMA table (``trn2_dma_timing.csv``) is
three tables one after the other: triggers, packets, semaphores.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError, UnsupportedError
from trnsim.isa.work import Work
from trnsim.machine.form import PSUM, SBUF
from trnsim.profiles import costs
from trnsim.profiles.costs import Access, Shape
from trnsim.profiles.operands import DmaSide
from trnsim.profiles.triggers import replay_triggers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trnsim.hardware.timing_constants import Timing

SOURCE, DESTINATION = "src0(dtype:mem:free_elems[:stride])", "dst"
_MEMORIES = {"PSUM": PSUM, "SBUF": SBUF}
WITHIN = 0.10
_FREE_ISSUE, _FREE_FIRST = 630, 1400
"""Nanoseconds that a trigger and its first packet take at most where no other DMA is in their way."""


@dataclass(frozen=True)
class Case:
    """One figure of a table: nanoseconds measured and predicted. ``group`` is what is counted together."""

    group: str
    name: str
    measured: float
    predicted: float
    count: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def within(self) -> bool:
        return abs(self.error) <= WITHIN


def share_within(cases: Sequence[Case]) -> float:
    """Share of the cases within 10 %."""
    return sum(c.within for c in cases) / len(cases) if cases else 1.0


def instruction_cases(path: Path, timing: Timing) -> list[Case]:
    """Durations and intervals of the classes that NKI emits.

    Raises:
        InputError: the file is not such a table; the message names the row and the field.
    """
    rows = _read(
        path, ("engine", "opcode", SOURCE, DESTINATION, "detail", "channels", "n", "dur_median_ns", "ii_median_ns")
    )
    cases = []
    for number, row in rows:
        if not costs.emitted(row["opcode"]):
            continue
        name = " ".join(x for x in (row["engine"], row["opcode"], row[SOURCE], row[DESTINATION], row["detail"]) if x)
        duration, interval = _predict(path, number, row, timing)
        count = _integer(path, number, row, "n")
        cases.append(Case("duration", name, _number(path, number, row, "dur_median_ns"), duration, count))
        if row["ii_median_ns"] and interval is not None:
            cases.append(Case("interval", name, _number(path, number, row, "ii_median_ns"), interval, count))
    return cases


def _predict(path: Path, number: int, row: dict[str, str], timing: Timing) -> tuple[float, float | None]:
    """Duration and interval in nanoseconds."""
    engine, opcode = row["engine"].lower(), row["opcode"]
    if opcode == costs.DMA:
        # A class of any size: a trigger of 128 descriptors, a partition each, on a free ring.
        issue = timing.dma.software_issue_ps if engine == "gpsimd" else timing.dma.hardware_issue(128)
        return issue / 1000, None
    shape = _shape(path, number, row)
    try:
        pieces = costs.costed(timing, shape).pieces
    except UnsupportedError as error:
        raise InputError(f"{path}: row {number}: {error.message}", value=error.value) from error
    work = pieces[0] if opcode != costs.MULTIPLY else pieces[-1]
    assert isinstance(work, Work)
    if engine != "tensor":
        return work.latency_ps / 1000, work.busy_ps / 1000
    slow = timing.tensor.throttle_slowdown if _throttled(row["detail"]) else 1
    if opcode == costs.LOAD:
        columns = work.latency_ps - timing.tensor.load_tail_ps
        return (columns * slow + timing.tensor.load_tail_ps) / 1000, None
    streamed = work.busy_ps - timing.tensor.issue_ps
    interval = max(work.busy_ps, streamed * slow)
    tail = work.latency_ps - work.busy_ps + timing.tensor.tail_streamed_ps * (slow - 1)
    return (interval + tail) / 1000, interval / 1000


def _throttled(detail: str) -> bool:
    return "util_limit=0.5" in detail


def _shape(path: Path, number: int, row: dict[str, str]) -> Shape:
    """The class of a row as its cost sees it."""
    engine, opcode, detail = row["engine"].lower(), row["opcode"], row["detail"]
    if opcode == costs.TABLE_LOAD:
        return Shape(engine, opcode)
    source = _access(path, number, row[SOURCE], "src0")
    result = _access(path, number, row[DESTINATION], "dst") if row[DESTINATION] else None
    if engine == "tensor":
        # fp32 passes through whole where the load says so; a multiply alone streams the same either way.
        return Shape(engine, opcode, (source, source), result, transpose="T=ENABLED" in detail)
    channels = _integer(path, number, row, "channels") if row["channels"] else 128
    return Shape(engine, opcode, (source,), result, channels, detail.split(",")[0])


def _access(path: Path, number: int, text: str, name: str) -> Access:
    parts = text.split(":")
    if len(parts) < 3 or parts[1] not in _MEMORIES or not parts[2].isdigit():
        raise InputError(f"{path}: row {number}: {name} is not dtype:memory:elements", operand=name, value=text)
    return Access(parts[0] or "fp32", _MEMORIES[parts[1]], int(parts[2]))


def dma_cases(path: Path, timing: Timing) -> list[Case]:
    """Triggers (how long each kept its engine, its first and last packet), packets, and semaphores without other waits.

    Triggers of one profile are run together through the machine at the times at which they began, so that they contend
    as they did. A semaphore's latency is the least that was measured between two engines: the others waited for
    something else too.

    Raises:
        InputError: the file is not such a table; the message names the row and the field.
    """
    sections = _sections(path)
    cases = _packet_cases(path, sections.get("packet", []), timing)
    cases += _trigger_cases(path, sections.get("trigger", []), timing)
    return cases + _semaphore_cases(path, sections.get("semaphore", []), timing)


def _packet_cases(path: Path, rows: list[tuple[int, dict[str, str]]], timing: Timing) -> list[Case]:
    """Packets of data; those that fetch instructions have no counterpart here."""
    cases = []
    for number, row in rows:
        if row["queue_type"] == "instruction":
            continue
        size = _integer(path, number, row, "packet_bytes")
        predicted = timing.dma.packet_alone(size) / 1000
        name = f"{row['queue_type']} packet of {size} B"
        cases.append(
            Case("packet", name, _number(path, number, row, "median_ns"), predicted, _integer(path, number, row, "n"))
        )
    return cases


def _trigger_cases(path: Path, rows: list[tuple[int, dict[str, str]]], timing: Timing) -> list[Case]:
    cases = []
    by_profile: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, row in rows:
        by_profile.setdefault(row["profile"], []).append((number, row))
    for profile, mine in by_profile.items():
        shapes, starts = [], []
        for number, row in mine:
            engine = row["trigger_engine"].lower()
            size = _integer(path, number, row, "elem_size_bytes")
            count = _integer(path, number, row, "total_bytes") // size
            shapes.append(Shape(engine, costs.DMA, sides=_sides(engine, row["index"], size, count)))
            starts.append(_integer(path, number, row, "trigger_start_ns") * 1000)
        found = replay_triggers(shapes, np.array(starts, np.int64), timing)
        for (number, row), times in zip(mine, found, strict=True):
            name = f"{profile} {row['trigger_engine']} {row['index']}"
            free = _alone(path, number, row, mine)
            fields = ("trigger_instr_duration_ns", "trigger_to_first_packet_ns", "trigger_to_last_packet_ns")
            for group, column, predicted in zip(("issue", "first packet", "last packet"), fields, times, strict=True):
                label = group if free else f"{group}, contended"
                cases.append(Case(label, name, _number(path, number, row, column), predicted / 1000, 1))
    return cases


def _alone(path: Path, number: int, row: dict[str, str], rows: list[tuple[int, dict[str, str]]]) -> bool:
    """True if no other trigger of the table was under way, nor, by its own times, one that the table leaves out."""

    def column(where: int, other: dict[str, str], name: str) -> float:
        return _number(path, where, other, name)

    start = column(number, row, "trigger_start_ns")
    end = start + column(number, row, "trigger_to_last_packet_ns")
    for where, other in rows:
        begin = column(where, other, "trigger_start_ns")
        if where != number and begin < end and begin + column(where, other, "trigger_to_last_packet_ns") > start:
            return False
    issue, first = column(number, row, "trigger_instr_duration_ns"), column(number, row, "trigger_to_first_packet_ns")
    return issue < _FREE_ISSUE and first < _FREE_FIRST


def _sides(engine: str, index: str, size: int, count: int) -> tuple[DmaSide, DmaSide]:
    """The table does not say which way a DMA went: ScalarE's were stores; of GpSimdE's the first three were loads."""
    store = engine == "scalar" or (engine == "gpsimd" and int(index) >= 3)
    hbm, chip = DmaSide("hbm", size, (size, 1), (count, 1)), DmaSide(SBUF, size, (1, 1), (count, 1))
    return (chip, hbm) if store else (hbm, chip)


def _semaphore_cases(path: Path, rows: list[tuple[int, dict[str, str]]], timing: Timing) -> list[Case]:
    cases = []
    for number, row in rows:
        consumer = row["consumer_engine"].lower()
        least = _number(path, number, row, "min_ns")
        direct = row["consumer_opcode"] not in ("EVENT_SEMAPHORE", costs.DMA)
        if least > 2 * timing.engine(consumer).semaphore_ps / 1000 or not direct:
            continue  # what was waited for last was something else
        name = f"{row['producer_engine']} {row['producer_opcode']} to {row['consumer_engine']} {row['consumer_opcode']}"
        predicted = timing.engine(consumer).semaphore_ps / 1000
        cases.append(Case("semaphore", name, least, predicted, _integer(path, number, row, "n")))
    return cases


def _sections(path: Path) -> dict[str, list[tuple[int, dict[str, str]]]]:
    """The stacked tables by the name in their first column; each has a header of its own."""
    sections: dict[str, list[tuple[int, dict[str, str]]]] = {}
    header: list[str] = []
    for number, line in enumerate(csv.reader(_text(path).splitlines()), start=1):
        if line and line[0] == "section":
            header = line
        elif line and header:
            if len(line) > len(header):
                raise InputError(
                    f"{path}: row {number} has more fields than its header", value=len(line), limit=len(header)
                )
            sections.setdefault(line[0], []).append((number, dict(zip(header, line, strict=False))))
    if not {"trigger", "packet", "semaphore"} & set(sections):
        raise InputError(f"{path}: no section named trigger, packet or semaphore", operand="section")
    return sections


def _read(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_text(path).splitlines())
    missing = [c for c in columns if c not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}", operand=missing[0])
    return [(number, {k: v or "" for k, v in row.items()}) for number, row in enumerate(reader, start=2)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text: {error}") from error


def _number(path: Path, number: int, row: dict[str, str], name: str) -> float:
    try:
        return float(row[name])
    except (KeyError, ValueError):
        raise InputError(f"{path}: row {number}: {name} is not a number", operand=name, value=row.get(name)) from None


def _integer(path: Path, number: int, row: dict[str, str], name: str) -> int:
    return int(_number(path, number, row, name))
