"""Running a kernel function on the cores of one logical core, as coroutines in one thread.

Each core runs until it must wait for the other in ``sendrecv`` or ``core_barrier``, or until it would touch HBM while
another is behind it: accesses to HBM happen in the order of the instructions' numbers in their programs, those of equal
number in the order of the cores, as they roughly do on cores that start together. Then the next in rank order runs. If
none can, that is a deadlock, and the error names what each waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import DeadlockError, TrnsimError
from trnsim.machine import core as machine
from trnsim.machine.core import Core, Launch
from trnsim.machine.ranks import Meeting

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trnsim.machine.ranks import World
    from trnsim.machine.tensor import NkiTensor

_STEP = object()  # what a core waits for that would touch HBM ahead of the others


class Program(Launch):
    """A launch whose cores can meet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exchange = self
        self.waiting: dict[int, tuple[Any, str, int]] = {}
        self.arrived: dict[Any, set[int]] = {}
        self.mail: dict[Any, NDArray[Any]] = {}
        self.finished: set[int] = set()
        self._hub: Any = None
        self._paused: dict[int, Any] = {}
        self.rank = 0
        self.world: World | None = None

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call ``function`` once a core; returns each core's result.

        Raises:
            DeadlockError: the cores wait for each other in ways that never meet.
        """
        before = machine.set_current(self.cores[0])
        try:
            self.quiet = True
            if self.lnc == 1:
                with np.errstate(all="ignore"):
                    return [function(*args, **kwargs)]
            return self._run_cores(function, args, kwargs)
        except TrnsimError as error:
            running = machine._current
            if error.location is None and running is not None:
                error.location = _location(error, running)
            raise
        finally:
            self.quiet = False
            machine.set_current(before)

    def _run_cores(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        import greenlet

        results: list[Any] = [None] * self.lnc
        self._hub = greenlet.getcurrent()

        def body(index: int) -> None:
            with np.errstate(all="ignore"):  # a greenlet has NumPy's settings to itself
                results[index] = function(*args, **kwargs)

        tasks = [greenlet.greenlet(lambda i=i: body(i)) for i in range(self.lnc)]
        while True:
            progressed = False
            for index, task in enumerate(tasks):
                if task.dead or (index in self.waiting and not self._complete(self.waiting[index][0], index)):
                    continue
                self.waiting.pop(index, None)
                machine.set_current(self.cores[index])
                self._paused.pop(index, task).switch()
                if task.dead:
                    self.finished.add(index)
                progressed = True
            if all(task.dead for task in tasks):
                return results
            if not progressed and not (self.world is not None and self.world.rest(self)):
                raise self._deadlock(tasks)

    def _complete(self, key: Any, index: int) -> bool:
        if key is _STEP:
            return self._leads(index)
        done = getattr(key, "done", None)
        return len(self.arrived.get(key, ())) == self.lnc if done is None else bool(done)

    def _leads(self, index: int) -> bool:
        """Whether no core that can go on is behind core ``index``."""
        row = len(self.cores[index].trace)
        for other in range(self.lnc):
            if other == index or other in self.finished:
                continue
            behind = len(self.cores[other].trace)
            if behind < row or (behind == row and other < index):
                wait = self.waiting.get(other)
                if wait is None or self._complete(wait[0], other):
                    return False
        return True

    def keep_step(self, core: Core) -> None:
        """Wait until no core that can go on is behind ``core``."""
        if not self._leads(core.index):
            self.wait_until(core, _STEP, "an access to HBM")

    def _deadlock(self, tasks: list[Any]) -> DeadlockError:
        sides = []
        location = None
        for index, task in enumerate(tasks):
            if task.dead:
                sides.append(f"core {index} has finished")
                continue
            _, what, line = self.waiting[index]
            location = location or self.lines.locations[line]
            sides.append(f"core {index} waits in {what} at {self.lines.locations[line]}")
        return DeadlockError("the cores wait for each other forever: " + "; ".join(sides), location=location)

    def post(self, core: Core, key: Any, tensor: NkiTensor) -> None:
        """Leave a copy of ``tensor`` for the other cores under ``key``."""
        if self.numeric:
            self.mail[key, core.index] = np.array(tensor.array())

    def received(self, key: Any, rank: int) -> NDArray[Any]:
        """What core ``rank`` posted under ``key``."""
        return self.mail[key, rank]

    def meet(self, core: Core, meeting: Meeting) -> None:
        """Wait until the other ranks have come to ``meeting``."""
        assert self.world is not None
        if self.lnc > 1:
            self.wait_until(core, meeting, f"{meeting.call} of rank {self.rank}")
            return
        while not meeting.done:
            self.world.hub.switch()
        machine.set_current(core)

    def rendezvous(self, core: Core, key: Any, what: str) -> None:
        """Wait until every core has come to ``key``."""
        self.arrived.setdefault(key, set()).add(core.index)
        if self._complete(key, core.index):
            return
        self.wait_until(core, key, what)

    def wait_until(self, core: Core, key: Any, what: str) -> None:
        """Let the other cores run until ``key`` is done: every core has come to it, or its ``done`` is true.

        The core goes on in the coroutine that waits, which may be one of several on this core.
        """
        import greenlet

        self.waiting[core.index] = (key, what, core.caller_line())
        self._paused[core.index] = greenlet.getcurrent()
        self._hub.switch()


def _location(error: TrnsimError, core: Core) -> Any:
    """The kernel line an error came from: the innermost frame of its traceback outside this package."""
    found = None
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith((machine._PACKAGE, "<nki.")):
            found = (code, trace.tb_lineno)
        trace = trace.tb_next
    if found is None:
        return None
    return core.launch.lines.locations[core.launch.lines.of(*found)]
