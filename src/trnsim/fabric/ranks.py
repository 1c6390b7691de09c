"""Programs of many ranks, one coroutine each, in one process: their collectives move real data and take simulated time.

``run(program, ranks=64, system="trn2.48xlarge")`` calls ``program(rank)`` once a rank. A rank runs until it waits for a
collective, then the next in rank order runs; when all wait, simulated time goes on until the next collective ends.
Collectives that run at the same time share the links (``flow.py``). The k-th call of a rank among some ranks meets the
k-th call of each of the others among the same ranks; calls that do not match are an error that names rank, call and
line. Results are the same on every run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import DeadlockError, InputError, Location

from .algorithms import schedule
from .data import execute
from .flow import Engine, Run
from .group import Group, group
from .neuron import Plan, neuron_support, plan
from .program import Program, from_schedule
from .rings import ring_orders
from .schedule import Schedule
from .skew import Skew
from .topology import Topology, topology

Array = NDArray[Any]
_HERE = str(Path(__file__).parent)


@dataclass(eq=False)
class Pending:
    """A collective that has begun: ``rank.wait`` returns what it brings to this rank."""

    call: str
    rank: int
    members: tuple[int, ...]
    terms: dict[str, Any]
    given: Array | None
    location: Location
    ready_ps: int
    options: dict[str, Any]
    number: int = -1
    """Of its run, once all members have called."""
    result: Array | None = None
    end_ps: int = -1


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One collective of a run."""

    call: str
    algorithm: str
    members: tuple[int, ...]
    nbytes: int
    ready_ps: int
    """When its last rank came."""
    start_ps: int
    end_ps: int
    support: str
    """``calibrated``, ``extrapolated`` or ``assumed``, and why (``reason``)."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class RanksResult:
    """What the ranks returned, and when each had finished."""

    results: list[Any]
    end_ps: list[int]
    collectives: list[Spent] = field(repr=False)

    @property
    def total_ps(self) -> int:
        return max(self.end_ps)


class Rank:
    """One rank of a program: its number, its clock, and what it can ask of the others."""

    def __init__(self, world: _World, number: int) -> None:
        self._world = world
        self.number = number
        self.size = world.size
        self.now_ps = 0

    def compute(self, ps: float) -> None:
        """Spend time without the others."""
        if ps < 0:
            raise InputError("time does not go back", operand="ps", value=ps, limit=0)
        self.now_ps += round(ps)

    def begin(
        self, call: str, array: Array | None = None, *, among: Sequence[int] | None = None, **options: Any
    ) -> Pending:
        """Begin a collective and go on; ``wait`` for it later.

        Args:
            call: ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all``, ``broadcast`` or ``permute``.
            array: what this rank brings, as ``data.execute`` takes it.
            among: the ranks that take part, in the order of the group; default: all.
            options: ``op``; ``root`` and ``pairs`` (places in the group), ``counts``, ``algorithm`` and the other
                arguments of ``algorithms.schedule``.
        """
        return self._world.begin(self, call, array, among, options)

    def wait(self, pending: Pending) -> Any:
        """What the collective brings to this rank; it goes on when that has ended."""
        return self._world.wait(self, pending)

    def all_reduce(self, array: Array, op: str = "add", **options: Any) -> Array:
        """The reduction of all ranks' arrays, in their shape."""
        return self.wait(self.begin("all_reduce", array, op=op, **options))  # type: ignore[no-any-return]

    def reduce_scatter(self, array: Array, op: str = "add", **options: Any) -> Array:
        """The rank's share (flat) of the reduction of all ranks' arrays."""
        return self.wait(self.begin("reduce_scatter", array, op=op, **options))  # type: ignore[no-any-return]

    def all_gather(self, array: Array, **options: Any) -> Array:
        """All ranks' arrays after each other, flat. Their sizes may differ."""
        return self.wait(self.begin("all_gather", array, **options))  # type: ignore[no-any-return]

    def all_to_all(self, array: Array, counts: Sequence[int] | None = None, **options: Any) -> Array:
        """What all have for this rank, in their order, flat; ``counts``: elements for each rank (default: even)."""
        return self.wait(self.begin("all_to_all", array, counts=counts, **options))  # type: ignore[no-any-return]

    def broadcast(self, array: Array | None, root: int = 0, **options: Any) -> Array:
        """The array of the rank at place ``root`` of the group."""
        return self.wait(self.begin("broadcast", array, root=root, **options))  # type: ignore[no-any-return]

    def permute(self, array: Array, pairs: Sequence[tuple[int, int]], **options: Any) -> Array | None:
        """What the source of this rank sends; None if no pair names it as a target."""
        return self.wait(self.begin("permute", array, pairs=tuple(pairs), **options))  # type: ignore[no-any-return]

    def send(self, array: Array, to: int) -> None:
        """Send to one rank, which calls ``receive``."""
        self.wait(self.begin("permute", array, among=(self.number, to), pairs=((0, 1),)))

    def receive(self, source: int) -> Array:
        """What a rank sends to this one, flat."""
        return self.wait(self.begin("permute", None, among=(source, self.number), pairs=((0, 1),)))  # type: ignore[no-any-return]

    def barrier(self, **options: Any) -> None:
        """Wait for the others: an all_reduce of one byte."""
        self.all_reduce(np.zeros(1, np.uint8), **options)


def run(
    program: Callable[..., Any],
    ranks: int | None = None,
    system: str | Topology = "trn2.48xlarge",
    *,
    systems: int | None = None,
    lnc: int | None = None,
    places: Sequence[int] | None = None,
    skew: Skew | None = None,
    seed: int = 0,
    background: Mapping[str, float] | None = None,
) -> RanksResult:
    """Run ``program(rank)`` for each rank of a system.

    Args:
        program: a function of a ``Rank``.
        ranks: how many; default: all logical cores of the system. Rank ``r`` is logical core ``places[r]``
            (default ``r``).
        system: a system of the catalogue, with ``systems`` of them (as many as are needed) and ``lnc``; or a topology,
            which may have failed links or chips.
        skew: how late ranks come to their collectives, drawn with ``seed``.
        background: share of the rate of a level's links (``chip``: the DMA engines) that kernels take meanwhile.

    Raises:
        InputError: the system cannot hold the ranks; what ranks bring to a collective does not fit.
        DeadlockError: ranks wait in calls that do not match, or for one that has finished.
    """
    if places is None and ranks is None:
        made = system if isinstance(system, Topology) else topology(system, systems or 1, lnc)
        ranks = made.rank_count
        system = made
    where = group(system, places if places is not None else int(ranks or 0), systems=systems, lnc=lnc)
    if ranks is not None and ranks != where.size:
        raise InputError("there is a place for each rank", operand="places", value=where.size, limit=ranks)
    return _World(where, skew, seed, background).run(program)


class _World:
    def __init__(self, where: Group, skew: Skew | None, seed: int, background: Mapping[str, float] | None) -> None:
        self.where, self.size = where, where.size
        self.engine = Engine(where.topology, background)
        self.ranks = [Rank(self, number) for number in range(self.size)]
        self.delays = skew, seed
        self.calls: dict[tuple[int, tuple[int, ...]], int] = {}
        self.open: dict[tuple[tuple[int, ...], int], list[Pending]] = {}
        self.running: dict[int, list[Pending]] = {}
        self.waits: dict[int, Pending] = {}
        self.finished: set[int] = set()
        self.spent: list[tuple[int, Schedule, list[Pending]]] = []
        self.made: dict[tuple[Any, ...], tuple[Schedule, Program]] = {}
        self.hub: Any = None

    # -- ranks as coroutines -------------------------------------------------------------------------------------------

    def run(self, program: Callable[..., Any]) -> RanksResult:
        import greenlet

        results: list[Any] = [None] * self.size
        self.hub = greenlet.getcurrent()

        def start(rank: Rank) -> None:
            results[rank.number] = program(rank)
            self.finished.add(rank.number)

        tasks = [greenlet.greenlet(lambda r=rank: start(r)) for rank in self.ranks]
        ready = list(range(self.size))
        try:
            while len(self.finished) < self.size:
                for number in ready:
                    tasks[number].switch()
                ready = self._go_on()
                if not ready and len(self.finished) < self.size:
                    raise self._deadlock()
        finally:
            for task in tasks:
                if not task.dead:
                    task.throw(greenlet.GreenletExit)
        while self.engine.advance():
            pass  # begun and not waited for
        return RanksResult(
            results=results,
            end_ps=[rank.now_ps for rank in self.ranks],
            collectives=[self._spent(x) for x in self.spent],
        )

    def _go_on(self) -> list[int]:
        """Let time pass until ranks can go on; returns them."""
        while True:
            able = [n for n, p in sorted(self.waits.items()) if p.end_ps >= 0]
            if able:
                return able
            ended = self.engine.advance()
            if not ended:
                return []
            for number in ended:
                for pending in self.running.pop(number):
                    pending.end_ps = self.engine.end_ps(number)

    def _spent(self, entry: tuple[int, Schedule, list[Pending]]) -> Spent:
        number, made, pending = entry
        timed = self.engine.all[number]
        where = self._group(pending[0].members)
        if where.topology.system.chip.family == "nvidia":
            support, reason = "assumed", "the catalogue's rates and latency, without the protocols of NCCL"
        else:
            support, reason, _ = neuron_support(where, pending[0].call, made.nbytes)
        return Spent(
            support=support, reason=reason,
            call=pending[0].call, algorithm=made.algorithm, members=pending[0].members, nbytes=made.nbytes,
            ready_ps=timed.ready, start_ps=timed.start, end_ps=self.engine.end_ps(number),
        )  # fmt: skip

    # -- collectives ---------------------------------------------------------------------------------------------------

    def begin(
        self, rank: Rank, call: str, array: Array | None, among: Sequence[int] | None, options: dict[str, Any]
    ) -> Pending:
        location = _caller()
        members = tuple(range(self.size)) if among is None else tuple(int(m) for m in among)
        wrong = [m for m in members if not 0 <= m < self.size]
        if wrong or len(set(members)) != len(members) or rank.number not in members:
            raise InputError(
                f"{call}: its ranks are numbers below {self.size}, each once, with rank {rank.number} among them",
                value=members, location=location,
            )  # fmt: skip
        counted = self.calls.get((rank.number, members), 0)
        self.calls[rank.number, members] = counted + 1
        given = None if array is None else np.array(array)
        options = {name: value for name, value in options.items() if value is not None}
        op = options.pop("op", "add")
        terms = {"op": op, **{k: v for k, v in options.items() if k != "counts"}}
        if call in ("all_reduce", "reduce_scatter") and given is not None:
            terms |= {"shape": given.shape, "dtype": str(given.dtype)}
        pending = Pending(call, rank.number, members, terms, given, location, rank.now_ps, options)
        meeting = self.open.setdefault((members, counted), [])
        meeting.append(pending)
        if len(meeting) > 1:
            self._check(meeting[0], pending)
        if len(meeting) == len(members):
            del self.open[members, counted]
            self._start(sorted(meeting, key=lambda p: members.index(p.rank)))
        return pending

    def _check(self, first: Pending, second: Pending) -> None:
        if first.call != second.call:
            what = f"calls {second.call}"
            other = f"calls {first.call}"
        elif first.terms != second.terms:
            names = [k for k in {**first.terms, **second.terms} if first.terms.get(k) != second.terms.get(k)]
            what = f"calls {second.call} with " + ", ".join(f"{k} {second.terms.get(k)}" for k in names)
            other = "calls it with " + ", ".join(f"{k} {first.terms.get(k)}" for k in names)
        else:
            return
        raise InputError(
            f"calls do not match: rank {second.rank} {what}, but rank {first.rank} {other} at {first.location}",
            instruction=second.call, location=second.location,
        )  # fmt: skip

    def wait(self, rank: Rank, pending: Pending) -> Any:
        if pending.rank != rank.number:
            raise InputError(f"rank {rank.number} waits for a call of rank {pending.rank}", location=_caller())
        while pending.end_ps < 0:
            self.waits[rank.number] = pending
            self.hub.switch()
        self.waits.pop(rank.number, None)
        rank.now_ps = max(rank.now_ps, pending.end_ps)
        return pending.result

    def _start(self, meeting: list[Pending]) -> None:
        first = meeting[0]
        try:
            made, program = self._schedule(meeting)
            found = execute(made, [p.given for p in meeting], first.terms["op"])
        except InputError as error:
            raise InputError(f"{error} (ranks {_some(first.members)})", instruction=first.call,
                             location=first.location) from None  # fmt: skip
        for pending, result in zip(meeting, found, strict=True):
            pending.result = result
        ready = np.array([p.ready_ps for p in meeting], np.int64)
        skew, seed = self.delays
        if skew is not None:
            ready += np.rint(skew.delays(len(meeting), 1, seed + len(self.spent))[0]).astype(np.int64)
        ready = np.maximum(ready, round(self.engine.now))
        number = self.engine.add(Run(program=program, ready_ps=ready))
        self.running[number] = meeting
        self.spent.append((number, made, meeting))
        for pending in meeting:
            pending.number = number

    def _group(self, members: tuple[int, ...]) -> Group:
        return Group(self.where.topology, self.where.places[list(members)])

    def _schedule(self, meeting: list[Pending]) -> tuple[Schedule, Program]:
        first = meeting[0]
        options = dict(first.options)
        call, ranks = first.call, len(meeting)
        bringing = next((p.given for p in meeting if p.given is not None), None)
        if bringing is None:
            raise InputError(f"{call}: no rank brings anything")
        item = bringing.itemsize
        options.pop("counts", None)
        nbytes = bringing.nbytes
        if call == "broadcast":
            root = meeting[int(options.get("root", 0)) % ranks].given
            nbytes = root.nbytes if root is not None else nbytes
        if call == "all_gather":
            sizes = [0 if p.given is None else p.given.nbytes for p in meeting]
            options["counts"], nbytes = sizes, sum(sizes)
        if call == "all_to_all" and any("counts" in p.options for p in meeting):
            table = np.array([np.asarray(p.options["counts"]) * item for p in meeting], np.int64)
            options["counts"], nbytes = table, int(table.sum(axis=1).max())
        key = (call, first.members, nbytes, item, repr(options))
        if key not in self.made:
            where = self._group(first.members)
            if "algorithm" not in options:
                options = {**_arguments(_plan(where, call, nbytes), call, options), **options}
            made = schedule(call, options.pop("algorithm"), ranks, nbytes, itemsize=item, **options)
            self.made[key] = made, from_schedule(made, where)
        return self.made[key]

    def _deadlock(self) -> DeadlockError:
        reasons = []
        for number, pending in sorted(self.waits.items()):
            there = {p.rank for p in self.open.get(self._meeting_of(pending), [])}
            missing = [m for m in pending.members if m not in there]
            late = ", ".join(
                f"rank {m} " + ("has finished without it" if m in self.finished else "does not come to it")
                for m in missing[:3]
            )
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            reasons.append(f"rank {number} waits in {pending.call} at {pending.location}, but {late}{more}")
        shown = "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more ranks wait" if len(reasons) > 4 else "")
        first = self.waits[min(self.waits)]
        return DeadlockError(shown, instruction=first.call, location=first.location)

    def _meeting_of(self, pending: Pending) -> tuple[tuple[int, ...], int]:
        return next(key for key, meeting in self.open.items() if pending in meeting)


def _plan(where: Group, call: str, nbytes: int) -> Plan:
    """What the system's library takes: the Neuron runtime's choice; rings and direct sends for GPUs."""
    if call in ("permute", "all_to_all") or where.size == 1:
        return Plan("mesh", "mesh")
    if where.topology.system.chip.family != "nvidia":
        return plan(where, call, nbytes)
    return Plan("tree", "tree") if call == "broadcast" else Plan("ring", "ring", orders=ring_orders(where))


def _arguments(chosen: Plan, call: str, options: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"algorithm": chosen.algorithm}
    if chosen.algorithm == "hierarchical":
        found |= {"inner": chosen.inner}
        if call != "all_to_all":
            found |= {"inner_algorithm": chosen.inner_algorithm, "outer_algorithm": chosen.outer_algorithm}
            found["outer_orders"] = chosen.outer_orders
    if chosen.orders is not None and "orders" not in options:
        found["orders"] = chosen.orders
    return found


def _some(members: tuple[int, ...]) -> str:
    return ", ".join(map(str, members[:8])) + (f" and {len(members) - 8} more" if len(members) > 8 else "")


def _caller() -> Location:
    """The line of the program that called."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
