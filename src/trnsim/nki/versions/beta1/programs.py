"""The programs of a launch grid, as coroutines (greenlets) in one thread.

Each program has its own ids and its own state (``tensor.State``). Programs run in the order of their numbers; one that
must wait (for the others in ``nl.all_reduce``, or for bytes of a shared HBM tensor that another program writes) lets
the next one run. ``nl.nc(n)`` in the grid distributes programs over the cores of a logical core; without it they share
one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, DeadlockError
from trnsim.machine import core as machine
from trnsim.machine.coverage import Coverage
from trnsim.machine.form import HBM
from trnsim.machine.regions import MemoryRegion
from trnsim.machine.storage import box
from trnsim.nki.versions.beta1 import index
from trnsim.nki.versions.beta1.tensor import State, state

if TYPE_CHECKING:
    from trnsim.machine.core import Core
    from trnsim.machine.launch import Program as Launch
    from trnsim.machine.tensor import NkiTensor


@dataclass
class Wait:
    """What a program waits for.

    ``order`` says in which order programs whose wait is over go on; it is the same on all cores.
    """

    what: str
    line: int
    ready: Callable[[], bool]
    memory: bool = False
    order: int = 0


@dataclass
class Meeting:
    """The programs of a group at one of their ``nl.all_reduce`` calls: what each brought, by program number."""

    members: tuple[int, ...]
    terms: dict[str, Any]
    brought: dict[int, Any] = field(default_factory=dict)
    totals: dict[int, Any] = field(default_factory=dict)
    order: int = 0

    @property
    def done(self) -> bool:
        """All have come."""
        return len(self.brought) == len(self.members)


class Program:
    """One program of a grid: its ids, its coroutine, and what of its core's state is its own."""

    def __init__(self, number: int, ids: tuple[int, ...], core: Core, own: State, group: Programs) -> None:
        self.number, self.ids, self.core, self.own, self.group = number, ids, core, own, group
        self.task: Any = None
        self.wait: Wait | None = None
        self.calls: dict[Any, int] = {}
        self._kept: tuple[Any, ...] = (0, 0, {}, [])

    def enter(self) -> None:
        """Make its state that of the core."""
        core = self.core
        core.state["beta1"] = self.own
        core.pinned_line, core.region, core.tensor_names, asked = self._kept
        index._asked[:] = asked

    def leave(self) -> None:
        """Keep its state while others run."""
        core = self.core
        self._kept = (core.pinned_line, core.region, core.tensor_names, list(index._asked))
        index._asked.clear()


class _Elsewhere:
    """What a core with no program that can go on waits for: something that another core's programs do."""

    def __init__(self, programs: Programs, core: int) -> None:
        self.programs, self.core = programs, core

    @property
    def done(self) -> bool:
        return self.programs.can_go_on(self.core)


class Programs:
    """All programs of one launch, on all its cores.

    Args:
        grid: the sizes of the launch grid.
        core_of: the core of each program, by number.
    """

    def __init__(self, grid: tuple[int, ...], core_of: list[int]) -> None:
        self.grid, self.core_of = grid, core_of
        self.cores = max(core_of) + 1
        self.running: list[list[Program]] = [[] for _ in range(self.cores)]
        self.started: set[int] = set()
        self.asleep: set[int] = set()
        self.meetings: dict[Any, Meeting] = {}
        self.unordered: dict[tuple[int, int], Coverage] = {}  # by storage and core, since the cores last met
        self._orders = 0
        self._hubs: dict[int, Any] = {}

    def run(self, body: Callable[[], Any]) -> Any:
        """Call ``body`` once for each program of the running core; the result of its first."""
        core = machine.current()
        core.legalizes = True
        mine = [number for number, where in enumerate(self.core_of) if where == core.index]
        self.started.add(core.index)
        if not mine:
            return None
        shared: list[Any] = []
        programs = []
        for number in mine:
            ids = tuple(int(i) for i in np.unravel_index(number, self.grid)) if self.grid else ()
            own = State(core)
            own.grid, own.ids, own.shared = self.grid, ids, shared
            programs.append(Program(number, ids, core, own, self))
        if len(self.core_of) == 1:
            programs[0].enter()
            return body()
        return self._run(core, programs, body)

    def _run(self, core: Core, programs: list[Program], body: Callable[[], Any]) -> Any:
        import greenlet

        results: dict[int, Any] = {}
        self._hubs[core.index] = greenlet.getcurrent()

        def start(program: Program) -> None:
            results[program.number] = body()

        for program in programs:
            program.own.program = program
            program.task = greenlet.greenlet(lambda p=program: start(p))
        waiting = self.running[core.index]
        waiting.extend(programs)
        try:
            while waiting:
                program = self._next(core.index) or self._released(core)
                program.wait = None
                program.enter()
                program.task.switch()
                program.leave()
                if program.task.dead:
                    waiting.remove(program)
        finally:
            for program in programs:
                if not program.task.dead and program.task:
                    program.task.throw(greenlet.GreenletExit)
        return results[programs[0].number]

    def _next(self, core: int) -> Program | None:
        """The program to go on with: first those whose wait is over, in the order of what they waited for."""
        ready = [p for p in self.running[core] if p.wait is None or p.wait.ready()]
        return min(ready, key=lambda p: (p.wait.order if p.wait else math.inf, p.number), default=None)

    def _released(self, core: Core) -> Program:
        """A program to go on with when all of a core's wait: after another core's turn, or one that reads memory."""
        self.asleep.add(core.index)
        if not self.can_go_on(core.index):
            others = [c for c in range(self.cores) if self.running[c] or c not in self.started]
            if all(c in self.asleep for c in others) and not any(self.can_go_on(c) for c in others):
                raise self._deadlock()
            launch: Launch = core.launch  # type: ignore[assignment]
            first = self.running[core.index][0]
            assert first.wait is not None
            launch.wait_until(core, _Elsewhere(self, core.index), first.wait.what)
        self.asleep.discard(core.index)
        found = self._next(core.index)
        if found is not None:
            return found
        return next(p for p in self.running[core.index] if p.wait is not None and p.wait.memory)

    def can_go_on(self, core: int) -> bool:
        """Whether a program of ``core`` can go on: where all wait, the first that reads what nothing will write."""
        if self._next(core) is not None:
            return True
        alive = [c for c in range(self.cores) if self.running[c] or c not in self.started]
        if any(c not in self.asleep or self._next(c) is not None for c in alive):
            return False
        stuck = [c for c in alive if any(p.wait is not None and p.wait.memory for p in self.running[c])]
        return bool(stuck) and stuck[0] == core

    def wait(self, program: Program, wait: Wait) -> None:
        """Let other programs run until ``wait`` is over."""
        program.wait = wait
        self._hubs[program.core.index].switch()

    def meet(self, program: Program, key: Any, members: tuple[int, ...], terms: dict[str, Any], value: Any) -> Meeting:
        """Bring ``value`` to the meeting ``key`` of ``members``, and wait until all of them have come.

        Raises:
            CompilerError: another program came with other terms.
        """
        meeting = self.meetings.setdefault(key, Meeting(members, terms))
        for name, given in terms.items():
            if meeting.terms[name] != given:
                raise CompilerError(
                    f"program {program.ids} calls nl.all_reduce with another {name} than the programs it meets",
                    instruction="nl.all_reduce",
                    operand=name,
                    value=given,
                    limit=meeting.terms[name],
                )
        meeting.brought[program.number] = value
        if meeting.done:
            del self.meetings[key]
            if len({self.core_of[number] for number in members}) > 1:
                self.unordered.clear()
            self._orders += 1
            meeting.order = self._orders
            for core in self.running:
                for other in core:
                    if other.number in members and other.wait is not None:
                        other.wait.order = meeting.order
        wait = Wait(f"nl.all_reduce of {len(members)} programs", program.core.caller_line(), lambda: meeting.done)
        wait.order = meeting.order
        self.wait(program, wait)
        return meeting

    def _deadlock(self) -> DeadlockError:
        lines = machine.current().launch.lines.locations
        sides = []
        location = None
        for number, core in enumerate(self.core_of):
            ids = tuple(int(i) for i in np.unravel_index(number, self.grid))
            program = next((p for p in self.running[core] if p.number == number), None)
            if program is None or program.wait is None:
                sides.append(f"program {ids} has finished")
                continue
            location = location or lines[program.wait.line]
            sides.append(f"program {ids} waits in {program.wait.what} at {lines[program.wait.line]}")
        return DeadlockError(
            "the programs of the grid wait for each other forever: " + "; ".join(sides), location=location
        )


def will_read(view: NkiTensor) -> None:
    """Let other programs run until they have written the bytes of a shared HBM tensor that this one reads."""
    program = state().program
    storage = view.storage
    if program is None or not _is_shared(view):
        return
    if not storage.full and _missing(view):
        wait = Wait(
            f"a read of {storage.name!r}, which no program has written yet",
            program.core.caller_line(),
            lambda: not _missing(view),
            memory=True,
        )
        program.group.wait(program, wait)
    if program.group.cores > 1:
        _check_order(program, view)


def will_write(view: NkiTensor) -> None:
    """Remember which core writes a shared HBM tensor, where several do."""
    program = state().program
    if program is None or program.group.cores == 1 or not _is_shared(view):
        return
    key = (view.storage.id, program.core.index)
    known = program.group.unordered.get(key)
    if known is None:
        known = program.group.unordered[key] = Coverage(view.storage.rows, view.storage.row_bytes)
    row, row_end, intervals = _touched(view)
    for begin, end in intervals.tolist():
        known.add(row, row_end, begin, end)


def _check_order(program: Program, view: NkiTensor) -> None:
    """Report a read of what the other core writes: NKI 0.1 orders cores only in ``nl.all_reduce``."""
    known = program.group.unordered.get((view.storage.id, 1 - program.core.index))
    if known is None:
        return
    row, row_end, intervals = _touched(view)
    missing = known.missing(row, row_end, intervals)
    absent = sum((high - low) * int((part[:, 1] - part[:, 0]).sum()) for low, high, part in missing)
    count = (row_end - row) * int((intervals[:, 1] - intervals[:, 0]).sum()) - absent
    if count:
        program.core.launch.add_finding(
            "unordered-cores",
            f"a program reads {view.storage.name!r} where a program on the other core writes it, and nothing orders "
            "the cores on hardware (nl.all_reduce over both would); here the reader comes second, and the predicted "
            "time has no wait for it",
            program.core.caller_line(),
            bytes=count,
        )


def _is_shared(view: NkiTensor) -> bool:
    storage = view.storage
    return storage.memory == HBM and storage.buffer is MemoryRegion.shared_hbm and storage.kind in ("local", "output")


def _touched(view: NkiTensor) -> tuple[int, int, Any]:
    """Rows and byte intervals of a view; all of its storage where it is no such box or a run-time index chooses."""
    storage, form = view.storage, view.form
    found = None if form.indirect else box(storage, form, 0, view.offset * view.dtype.itemsize)
    return found or (0, storage.rows, np.array([[0, storage.row_bytes]], np.int64))


def _missing(view: NkiTensor) -> bool:
    """Whether bytes that ``view`` reads have not been written."""
    storage = view.storage
    if storage.full or not storage.coverage.exact:
        return False
    return bool(storage.coverage.missing(*_touched(view)))
