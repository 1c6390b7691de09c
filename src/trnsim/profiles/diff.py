"""What differs between two profiles, measured or predicted: time by engine, opcode, source line and class, and waits.

Instructions are aligned by source line where both profiles have lines; else by engine, opcode and operand shape, and
within such a class by their order. A report that keeps no single instructions is aligned by what it keeps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError
from trnsim.profiles.costs import DMA
from trnsim.profiles.operands import parse
from trnsim.profiles.profile import ENGINES, NOT_KNOWN, Profile, union_ps
from trnsim.profiles.streams import ENTRY, SEQUENCER, kernel_packets

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Column = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """One thing in both profiles: summed durations, how many instructions, and waiting before them (-1 unknown)."""

    name: str
    a_ps: int
    b_ps: int
    a_count: int
    b_count: int
    a_waited_ps: int = NOT_KNOWN
    b_waited_ps: int = NOT_KNOWN

    @property
    def change_ps(self) -> int:
        return self.b_ps - self.a_ps


@dataclass(frozen=True)
class Matched:
    """Two instructions that correspond: rows of the profiles."""

    name: str
    a_row: int
    b_row: int
    change_ps: int


@dataclass(frozen=True)
class Difference:
    """The result; every list has the largest change first. ``aligned`` says by what instructions were aligned."""

    a: Profile
    b: Profile
    aligned: str
    span: Pair
    engines: list[Pair]
    opcodes: list[Pair]
    lines: list[Pair]
    classes: list[Pair]
    instructions: list[Matched]
    unmatched_a: int
    unmatched_b: int


def diff(a: Profile, b: Profile) -> Difference:
    """Align ``a`` and ``b``.

    Raises:
        InputError: one of them has no instruction of the kernel.
    """
    for profile in (a, b):
        if not len(_rows(profile)):
            raise InputError(f"{profile.path}: no instruction of a kernel to compare")
    by_line = bool(_lines(a) & _lines(b))
    shapes = a.timed and b.timed

    def line(p: Profile, row: int) -> str:
        return _line(p, row) or "(no line)"

    def opcode(p: Profile, row: int) -> str:
        return f"{_engine(p, row)} {_opcode(p, row)}"

    def klass(p: Profile, row: int) -> str:
        shape = parse(p.operands_of(row)).shape if shapes else ""
        return f"{opcode(p, row)} {shape}".strip()

    def aligned(p: Profile, row: int) -> str:
        return f"{line(p, row)} {opcode(p, row)}" if by_line else klass(p, row)

    matched, alone_a, alone_b = _match(a, b, aligned) if a.timed and b.timed else ([], 0, 0)
    text = "source line" if by_line else "engine, opcode, operand shape and order" if shapes else "engine and opcode"
    span = Pair("span", _span(a), _span(b), 1, 1)
    return Difference(
        a, b, text, span, _engines(a, b), _sums(a, b, opcode), _sums(a, b, line) if by_line else [],
        _sums(a, b, aligned), matched, alone_a, alone_b,
    )  # fmt: skip


def _rows(profile: Profile) -> Column:
    """The kernel's rows that an engine carries out: not the runtime's entry, nor what a sequencer does alone."""
    left_out = {ENTRY, *SEQUENCER}
    return np.array([r for r in profile.body if profile.opcode_of(r) not in left_out], np.int64)


def _engine(profile: Profile, row: int) -> str:
    return ENGINES[int(profile.instructions.engine[row])]


# What our reports call the triggers of DMAs.
_OURS = {"DMA_TRIGGER": DMA}


def _opcode(profile: Profile, row: int) -> str:
    name = profile.opcode_of(row)
    return _OURS.get(name, name)


def _line(profile: Profile, row: int) -> str:
    """``file:line`` without folders, which differ between machines."""
    return profile.line_of(row).rsplit("/", 1)[-1]


def _lines(profile: Profile) -> set[str]:
    return {_line(profile, row) for row in _rows(profile)} - {""}


def _span(profile: Profile) -> int:
    if profile.reported_span_ps != NOT_KNOWN:
        return profile.reported_span_ps
    rows = _rows(profile)
    start = profile.instructions.start_ps[rows]
    end = start + profile.instructions.duration_ps[rows]
    last = int(end.max())
    if len(profile.packets):
        kernel = kernel_packets(profile)
        if len(kernel):
            last = max(last, int((profile.packets.start_ps[kernel] + profile.packets.duration_ps[kernel]).max()))
    return last - int(start.min())


def _engines(a: Profile, b: Profile) -> list[Pair]:
    """Busy time: the union of an engine's instructions without those of its sequencer."""
    found = []
    busy_a, busy_b = _busy(a), _busy(b)
    for name in ENGINES:
        # A profile without packets does not know how long its DMA engines were busy.
        if (name in busy_a and name in busy_b) or (name != "dma" and (name in busy_a or name in busy_b)):
            (ps_a, n_a, wait_a), (ps_b, n_b, wait_b) = (busy.get(name, (0, 0, 0)) for busy in (busy_a, busy_b))
            found.append(Pair(name, ps_a, ps_b, n_a, n_b, wait_a, wait_b))
    return sorted(found, key=lambda p: (-abs(p.change_ps), p.name))


def _busy(profile: Profile) -> dict[str, tuple[int, int, int]]:
    """Of each engine: busy time, instructions, and the pauses between its first and its last instruction."""
    found = {}
    instructions, rows = profile.instructions, _rows(profile)
    for number, name in enumerate(ENGINES):
        mine = rows[instructions.engine[rows] == number]
        if not len(mine):
            continue
        count = int(instructions.count[mine].sum())
        if profile.timed:
            start = instructions.start_ps[mine]
            end = start + instructions.duration_ps[mine]
            busy = union_ps(start, end)
            found[name] = busy, count, int(end.max() - start.min()) - busy
        else:
            waited = instructions.waited_ps[mine]
            total = int(instructions.duration_ps[mine].sum())
            busy = profile.reported_busy_ps.get(name, total)
            found[name] = busy, count, int(waited.sum()) if (waited >= 0).all() else NOT_KNOWN
    if len(profile.packets):
        kernel = kernel_packets(profile)
        start = profile.packets.start_ps[kernel]
        transfers = sum(_opcode(profile, row) == DMA for row in rows)
        found["dma"] = union_ps(start, start + profile.packets.duration_ps[kernel]), transfers, NOT_KNOWN
    return found


def _sums(a: Profile, b: Profile, key: Callable[[Profile, int], str]) -> list[Pair]:
    sums: dict[str, list[int]] = {}
    for side, profile in enumerate((a, b)):
        for row in _rows(profile).tolist():
            entry = sums.setdefault(key(profile, row), [0, 0, 0, 0])
            entry[side] += int(profile.instructions.duration_ps[row])
            entry[2 + side] += int(profile.instructions.count[row])
    found = [Pair(name, *entry) for name, entry in sums.items()]
    return sorted(found, key=lambda p: (-abs(p.change_ps), p.name))


def _match(a: Profile, b: Profile, key: Callable[[Profile, int], str]) -> tuple[list[Matched], int, int]:
    """Instructions with one key correspond in order of their starts; what is left over on a side is counted."""
    sides = []
    for profile in (a, b):
        by_key: dict[str, list[int]] = {}
        rows = _rows(profile)
        for row in rows[np.argsort(profile.instructions.start_ps[rows], kind="stable")].tolist():
            by_key.setdefault(key(profile, row), []).append(row)
        sides.append(by_key)
    found: list[Matched] = []
    left: Counter[int] = Counter()
    for name in {**sides[0], **sides[1]}:
        rows_a, rows_b = (side.get(name, []) for side in sides)
        both = min(len(rows_a), len(rows_b))
        left[0] += len(rows_a) - both
        left[1] += len(rows_b) - both
        for row_a, row_b in zip(rows_a, rows_b, strict=False):
            change = int(b.instructions.duration_ps[row_b] - a.instructions.duration_ps[row_a])
            found.append(Matched(name, row_a, row_b, change))
    found.sort(key=lambda m: (-abs(m.change_ps), m.a_row))
    return found, left[0], left[1]
