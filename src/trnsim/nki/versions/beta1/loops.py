"""The loops of NKI 0.1: ``affine_range`` and ``sequential_range``, whose body was compiled once, and ``static_range``.

The compiler of NKI 0.1 called a loop's body once, with a symbolic index. So a number of Python's that the body changes
was not carried from one iteration to the next, and kernels rely on it (``address += size`` beside an allocation). Here
every iteration is executed; such numbers start each one from their value before the loop, and a finding says so.
"""

from __future__ import annotations

import ctypes
import dis
import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from trnsim.machine import core as machine

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Self

_BETWEEN = {"EXTENDED_ARG", "CACHE", "NOP", "CALL", "GET_ITER"}  # from a call to the loop over what it returns


class LoopIndex(int):
    """The index of a loop, which knows whether it is in its first iteration."""

    first: bool

    def __new__(cls, value: int, first: bool) -> Self:
        made = super().__new__(cls, value)
        made.first = first
        return made


def starts(loop_indices: Any) -> bool:
    """True in the first iteration of all these loops."""
    given = loop_indices if isinstance(loop_indices, (tuple, list)) else (loop_indices,)
    return all(i.first if isinstance(i, LoopIndex) else int(i) == 0 for i in given)


def affine_range(*args: Any, **_: Any) -> Iterator[LoopIndex]:
    """``range``: every iteration is executed in turn, each from the numbers that held before the loop."""
    return _loop(range(*(int(a) for a in args)), sys._getframe(1), "affine_range")


def sequential_range(*args: Any, **_: Any) -> Iterator[LoopIndex]:
    """As ``affine_range``, with iterations that depend on each other through tensors."""
    return _loop(range(*(int(a) for a in args)), sys._getframe(1), "sequential_range")


def static_range(*args: Any, **_: Any) -> Iterator[LoopIndex]:
    """``range``: unrolled, so that numbers are carried from one iteration to the next."""
    return _plain(range(*(int(a) for a in args)))


def _plain(numbers: range) -> Iterator[LoopIndex]:
    return (LoopIndex(i, n == 0) for n, i in enumerate(numbers))


def _loop(numbers: range, frame: FrameType, kind: str) -> Iterator[LoopIndex]:
    current = machine.current().state.get("beta1") if machine.running() else None
    body = _body(frame.f_code, frame.f_lasti)
    if current is None or body is None:
        return _plain(numbers)
    if frame.f_code is current.code:
        current.loops.add(body)
    names = _carried(frame.f_code, body) if len(numbers) > 1 else {}
    return _traced(numbers, frame, names, kind) if names else _plain(numbers)


def _traced(numbers: range, frame: FrameType, names: dict[str, int], kind: str) -> Iterator[LoopIndex]:
    before = frame.f_locals
    kept = {name: before[name] for name in names if isinstance(before.get(name), (int, float))}
    for n, i in enumerate(numbers):
        if n and kept:
            now = frame.f_locals
            changed = {name: value for name, value in kept.items() if now.get(name) is not value}
            if changed:
                now.update(changed)
                if sys.version_info < (3, 13):  # from then on f_locals writes through (PEP 667)
                    ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
                for name in changed:
                    _report(name, frame.f_code, names[name], kind)
        yield LoopIndex(i, n == 0)


def _report(name: str, code: CodeType, line: int, kind: str) -> None:
    launch = machine.current().launch
    launch.add_finding(
        "number-not-carried",
        f"{name!r} is changed in a loop of {kind}, whose body NKI 0.1 compiled once: every iteration starts from its "
        "value before the loop, and the loop leaves it changed once; plain Python, nl.static_range and NKI since 0.2 "
        "carry it from one iteration to the next",
        launch.lines.of(code, line),
        severity="info",
        variable=name,
    )


def report_ranges(code: CodeType) -> None:
    """Report numbers that the kernel's loops over Python's ``range`` carry, as the vendor's compiler did not."""
    launch = machine.current().launch
    for name, line in _counted(code):
        launch.add_finding(
            "number-carried",
            f"{name!r} is carried from one iteration of a loop over range to the next, as in NKI since 0.2; NKI 0.1 "
            "compiled the body once, so there the loop changed it once (nl.static_range carries it)",
            launch.lines.of(code, line),
            severity="info",
            variable=name,
        )


@cache
def _counted(code: CodeType) -> list[tuple[str, int]]:
    """Variables that begin as a number and are carried by loops over Python's ``range``, and the lines that set them.

    What they hold is not known before the kernel runs, so only those that a constant is assigned to are found.
    """
    instructions = list(dis.get_instructions(code))
    numbers = _numbers(instructions)
    ranges = {_line(code, i.offset) for i in instructions if i.opname == "LOAD_GLOBAL" and i.argval == "range"}
    found = {}
    for item in instructions:
        if item.opname == "FOR_ITER" and _line(code, item.offset) in ranges:
            carried = _carried(code, (item.offset, item.argval))
            found.update({name: line for name, line in carried.items() if name in numbers})
    return list(found.items())


def _numbers(instructions: list[dis.Instruction]) -> set[str]:
    """Variables that a constant number is assigned to, alone or in a tuple."""
    found: set[str] = set()
    values: list[Any] = []
    for item in instructions:
        if item.opname == "LOAD_CONST":
            values = list(item.argval) if isinstance(item.argval, tuple) else [item.argval]
        elif item.opname not in ("UNPACK_SEQUENCE", "COPY", "DUP_TOP"):
            names = [name for stores, name in _accesses(item.opname, item.argval) if stores]
            found.update(n for n, v in zip(names, values, strict=False) if type(v) in (int, float))
            values = values[len(names) :] if names else []
    return found


@cache
def _body(code: CodeType, call: int) -> tuple[int, int] | None:
    """Where in a function the body of a loop is, offsets of its instructions; None if no loop begins at ``call``.

    ``call`` is an offset in the call whose result the loop is over (Python 3.11 makes one in two instructions).
    """
    instructions = list(dis.get_instructions(code))
    at = sum(1 for i in instructions if i.offset <= call)
    while at < len(instructions) and instructions[at].opname in _BETWEEN:
        at += 1
    if at >= len(instructions) or instructions[at].opname != "FOR_ITER":
        return None
    return instructions[at].offset, instructions[at].argval


@cache
def _carried(code: CodeType, body: tuple[int, int]) -> dict[str, int]:
    """Local variables that a loop's body reads before it sets them, each with the line that sets it."""
    begin, end = body
    read: set[str] = set()
    first: set[str] = set()
    found: dict[str, int] = {}
    for item in dis.get_instructions(code):
        if not begin < item.offset < end:
            continue
        for stores, name in _accesses(item.opname, item.argval):
            if not stores and name not in first:
                read.add(name)
            elif stores:
                first.add(name)
                if name in read:
                    found.setdefault(name, _line(code, item.offset))
    return found


def _accesses(opname: str, argval: Any) -> Iterator[tuple[bool, str]]:
    """Local variables that an instruction loads (False) or stores (True); one may do two such things."""
    words = opname.split("_")
    kinds = [word == "STORE" for word in words if word in ("LOAD", "STORE")]
    if not kinds or not {"FAST", "DEREF"} & set(words):
        return
    names = argval if isinstance(argval, tuple) else (argval,) * len(kinds)
    yield from zip(kinds, names, strict=True)


def _line(code: CodeType, offset: int) -> int:
    return next((line for begin, end, line in code.co_lines() if begin <= offset < end and line), code.co_firstlineno)
