"""Ranks of a collective program, as coroutines in one thread.

Each rank is a kernel call of its own, with its own launch and storages, on one or two cores. A rank runs until it must
wait in a collective; then the next in rank order runs. Core ``c`` of a rank meets core ``c`` of the other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trnsim.errors import DeadlockError
from trnsim.machine import core as machine

if TYPE_CHECKING:
    from trnsim.errors import Location
    from trnsim.machine.core import Core
    from trnsim.machine.launch import Program


@dataclass
class Meeting:
    """One core of a rank at a collective.

    ``members`` are the ranks it waits for, itself included; ``terms`` what all of them must agree on, by name;
    ``given`` what it brings; ``found`` what every member brought, by rank, once all are there.
    """

    call: str
    rank: int
    core: int
    members: tuple[int, ...]
    terms: dict[str, Any]
    given: Any
    location: Location
    found: dict[int, Any] = field(default_factory=dict)
    done: bool = False


class World:
    """The ranks that run together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.placement: Any = None
        """Where the ranks sit in a system (``nki.placement.Placement``), if the caller said."""
        self.hub: Any = None
        self.finished: set[int] = set()
        self._waiting: dict[tuple[int, int], Meeting] = {}
        self._ready: set[int] = set()

    def run(self, bodies: Sequence[Callable[[], Any]]) -> list[Any]:
        """Call each rank's body; returns their results in rank order.

        Raises:
            DeadlockError: ranks wait for each other in calls that do not match, or for one that has finished.
        """
        import greenlet

        results: list[Any] = [None] * self.size
        self.hub = greenlet.getcurrent()

        def start(rank: int) -> None:
            results[rank] = bodies[rank]()
            self.finished.add(rank)

        tasks = [greenlet.greenlet(lambda r=r: start(r)) for r in range(self.size)]
        before = machine.set_current(None)
        try:
            self._ready = set(range(self.size))
            while len(self.finished) < self.size:
                rank = min(self._ready - self.finished, default=None)
                if rank is None:
                    raise self._deadlock()
                self._ready.discard(rank)
                machine.set_current(None)
                tasks[rank].switch()
        finally:
            for task in tasks:
                if not task.dead:
                    task.throw(greenlet.GreenletExit)
            machine.set_current(before)
        return results

    def arrive(self, core: Core, meeting: Meeting) -> dict[int, Any]:
        """Bring what ``meeting`` holds, wait for the other members, and return what each of them brought."""
        self._waiting[meeting.rank, meeting.core] = meeting
        others = [self._waiting.get((rank, meeting.core)) for rank in meeting.members]
        if all(o is not None and o.call == meeting.call and o.terms == meeting.terms for o in others):
            found = {o.rank: o.given for o in others if o is not None}
            for other in others:
                assert other is not None
                other.found, other.done = found, True
                self._ready.add(other.rank)
                del self._waiting[other.rank, other.core]
        if not meeting.done:
            program: Program = core.launch  # type: ignore[assignment]
            program.meet(core, meeting)
        return meeting.found

    def rest(self, program: Program) -> bool:
        """Called by a rank whose cores all wait: let the others run. False if none of its cores is in a collective."""
        if not any(isinstance(key, Meeting) for key, _, _ in program.waiting.values()):
            return False
        self.hub.switch()
        return True

    def _deadlock(self) -> DeadlockError:
        meeting = self._waiting[min(self._waiting)]
        what = f"rank {meeting.rank} waits in {meeting.call} at {meeting.location}"
        reasons = []
        for rank in meeting.members:
            other = self._waiting.get((rank, meeting.core))
            if other is None:
                state = "has finished without it" if rank in self.finished else "does not come to it"
                reasons.append(f"rank {rank} {state}")
            elif other.call != meeting.call:
                reasons.append(f"rank {rank} waits in {other.call} at {other.location}")
            elif other.terms != meeting.terms:
                differing = [
                    f"{name} {other.terms.get(name)} instead of {value}"
                    for name, value in meeting.terms.items()
                    if other.terms.get(name) != value
                ]
                reasons.append(f"rank {rank} calls it with {', '.join(differing)} at {other.location}")
        return DeadlockError(f"{what}, but " + "; ".join(reasons), instruction=meeting.call, location=meeting.location)
