"""Flow-level simulation: collectives on links that are shared max-min fairly.

A step of a collective begins when its last one has ended: a latency, then all its flows at once, each at its max-min
fair rate among everything that flows at the time; it ends when the last flow has. Collectives slow each other where
they share links. One that finds no CC-core free on one of its ranks waits for one, in order of start.

Max-min fair: all rates grow alike until a link is full; its flows keep their rate, the others go on growing. If the
flows of a step are of one size and alone, the step takes as long as its busiest link (``closed.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError, InternalError

from .program import Demand, Floats, Program, common_topology
from .topology import Ints, Topology

_TOGETHER = 1e-9
"""Share of a span by which the ends of two flows may differ and count as one: rates are floating point."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A program and when its ranks are ready for it."""

    program: Program
    ready_ps: int | Ints = 0
    """For all ranks, or for each (a straggler): it begins when the last one is."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """When a run began and ended, and each of its steps."""

    name: str
    ready_ps: int
    """When the last rank was ready."""
    start_ps: int
    """When it had its CC-cores."""
    end_ps: int
    step_end_ps: Ints
    """End of each run of equal steps."""

    @property
    def duration_ps(self) -> int:
        return self.end_ps - self.start_ps


@dataclass(frozen=True, kw_only=True)
class FlowResult:
    """What a simulation found."""

    runs: tuple[Timed, ...]
    end_ps: int
    link_bytes: Floats
    """Wire bytes that crossed each link."""
    rounds: int = field(default=0, compare=False)
    """Times that the rates were worked out anew."""


def fair_rates(links: Ints, usage: Floats, capacity: Floats) -> Floats:
    """Max-min fair rates in bytes a second.

    Args:
        links: links of each flow, padded with -1.
        usage: bytes each of these links carries for a byte of the flow.
        capacity: of all links.

    Returns:
        A rate a flow; infinite for one that crosses no link.
    """
    rates = np.full(len(links), np.inf)
    valid = links >= 0
    open_: NDArray[np.bool_] = np.asarray(valid.any(axis=1), bool)
    left = capacity.astype(float)
    index = np.where(valid, links, 0)
    while open_.any():
        live = open_[:, None] & valid
        load = np.bincount(index[live], weights=usage[live], minlength=len(capacity))
        used = load > 0
        share = np.full(len(capacity), np.inf)
        share[used] = np.maximum(left[used], 0) / load[used]
        level = share.min()
        full = share <= level * (1 + 1e-12)
        hit: NDArray[np.bool_] = open_ & np.asarray((full[index] & valid).any(axis=1), bool)
        rates[hit] = level
        fixed = hit[:, None] & valid
        left = left - np.bincount(index[fixed], weights=usage[fixed], minlength=len(capacity)) * level
        open_ &= ~hit
    return rates


class _Active:
    """A run on its way."""

    def __init__(self, number: int, run: Run) -> None:
        self.number, self.program = number, run.program
        ready = np.atleast_1d(np.asarray(run.ready_ps, np.int64))
        if len(ready) not in (1, len(run.program.places)) or (ready < 0).any():
            raise InputError(f"{run.program.name}: a time of at least 0 for all ranks or for each", operand="ready_ps",
                             value=len(ready), limit=len(run.program.places))  # fmt: skip
        self.ready = int(ready.max())
        self.start = -1
        self.at = 0  # which run of equal steps
        self.left = 0  # how many of them are to come, the current one included
        self.wait_until = 0.0  # end of the latency
        self.bytes: Floats = np.zeros(0)
        self.alive: NDArray[np.bool_] = np.zeros(0, bool)
        self.rates: Floats = np.zeros(0)
        self.flowing = False
        self.ends: list[int] = []

    @property
    def demand(self) -> Demand:
        return self.program.demands[int(self.program.order[self.at])]

    def begin_step(self, now: float) -> None:
        self.flowing = False
        self.wait_until = now + self.demand.latency_ps

    def begin_flow(self) -> None:
        demand = self.demand
        self.flowing = True
        self.bytes = demand.bytes.copy()
        self.alive = self.bytes > 0
        self.key: tuple[object, ...] = (id(self.program), demand.key, b"")


def simulate(runs: Sequence[Run], *, background: Mapping[str, float] | None = None) -> FlowResult:
    """When each of some collectives ends, and each of its steps.

    Args:
        runs: on one topology; those that begin at the same time in the order given.
        background: share of the links' rate, by level (``chip``: the DMA engines), that something else takes,
            such as loads and stores of kernels that run meanwhile.

    Raises:
        InputError: no runs, a share outside 0 to 1, or a level that the topology has not.
        UnsupportedError: the runs lie on different topologies.
    """
    if not runs:
        raise InputError("there is no collective to time", operand="runs")
    engine = Engine(common_topology([run.program for run in runs]), background)
    for run in runs:
        engine.add(run)
    while engine.advance():
        pass
    return engine.result()


class Engine:
    """A simulation that goes on as collectives are added: nothing is added that begins before ``now``."""

    def __init__(self, topology: Topology, background: Mapping[str, float] | None = None) -> None:
        self.topology = topology
        self.capacity = topology.links.bytes_per_second.copy()
        for name, share in (background or {}).items():
            index = next((i for i, level in enumerate(topology.levels) if level.name == name), None)
            if index is None or not 0 <= share < 1:
                raise InputError(
                    f"background names a level of {topology.name} and a share below 1", operand=name, value=share,
                    limit=", ".join(level.name for level in topology.levels),
                )  # fmt: skip
            self.capacity[topology.links.level == index] *= 1 - share
        self.cores = topology.collective_cores_per_rank
        self.all: list[_Active] = []
        self.waiting: list[_Active] = []
        self.active: list[_Active] = []
        self.now = 0.0
        self.link_bytes = np.zeros(len(self.capacity))
        self.loads: dict[int, Floats] = {}  # of demands, which their programs keep alive
        self.cache: dict[tuple[object, ...], list[Floats]] = {}
        self.rounds = 0
        self.held = np.zeros(topology.rank_count, np.int64)

    def add(self, run: Run) -> int:
        """A run that begins now or later; returns its number."""
        one = _Active(len(self.all), run)
        if one.ready < round(self.now):
            raise InternalError(f"{run.program.name} would begin at {one.ready} ps, before {self.now} ps")
        self.all.append(one)
        self.waiting.append(one)
        self.waiting.sort(key=lambda w: (w.ready, w.number))
        return one.number

    def advance(self) -> list[int]:
        """Go on until the next run ends; returns the numbers of those that end then, none if there are none left."""
        ended: list[int] = []
        waiting, active = self.waiting, self.active
        while not ended and (waiting or active):
            ended += self._admit()
            if not active:
                self.now = max(self.now, float(waiting[0].ready)) if waiting and not ended else self.now
                continue
            if len(active) == 1 and self._skip(active[0], waiting):
                continue
            flowing = [one for one in active if one.flowing]
            self._rates(flowing)
            event = min(
                [one.wait_until for one in active if not one.flowing]
                + [one.ready for one in waiting if one.ready > self.now],
                default=math.inf,
            )
            self._advance(flowing, event)
            for one in active.copy():
                if one.flowing and not one.alive.any():
                    ended += self._end_step(one)
                elif not one.flowing and one.wait_until <= self.now:
                    one.begin_flow()
        return ended

    def end_ps(self, number: int) -> int:
        """When a run that has ended did so."""
        one = self.all[number]
        return one.ends[-1] if one.ends else one.start

    def result(self) -> FlowResult:
        """Of all runs, which have ended."""
        return FlowResult(
            runs=tuple(
                Timed(name=one.program.name, ready_ps=one.ready, start_ps=one.start, end_ps=self.end_ps(one.number),
                      step_end_ps=np.array(one.ends, np.int64))
                for one in self.all
            ),
            end_ps=max(self.end_ps(one.number) for one in self.all),
            link_bytes=self.link_bytes,
            rounds=self.rounds,
        )  # fmt: skip

    def _admit(self) -> list[int]:
        """Start those that are ready and find a CC-core on each of their ranks; those before them come first.

        Returns those that have nothing to move and end at once.
        """
        waiting, empty = self.waiting, []
        queued = np.zeros_like(self.held)
        for one in waiting.copy():
            if one.ready > self.now:
                break
            places = one.program.places
            if self.cores is not None and (self.held[places] + queued[places] >= self.cores).any():
                queued[places] += 1
                continue
            self.held[places] += 1
            waiting.remove(one)
            one.start = round(self.now)
            if len(one.program.order):
                one.left = int(one.program.repeats[0])
                one.begin_step(self.now + one.program.launch_ps)
                self.active.append(one)
            else:
                self.held[places] -= 1
                empty.append(one.number)
        return empty

    def _rates(self, flowing: list[_Active]) -> None:
        if not flowing:
            return
        key = tuple(one.key for one in flowing)
        if key not in self.cache:
            self.rounds += 1
            width = max(one.demand.links.shape[1] for one in flowing)
            parts = []
            for one in flowing:
                links, usage = one.demand.links[one.alive], one.demand.usage[one.alive]
                pad = ((0, 0), (0, width - links.shape[1]))
                parts.append((np.pad(links, pad, constant_values=-1), np.pad(usage, pad)))
            rates = fair_rates(
                np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), self.capacity
            )
            self.cache[key] = np.split(rates, np.cumsum([len(p[0]) for p in parts])[:-1])
        for one, rates in zip(flowing, self.cache[key], strict=True):
            one.rates = rates

    def _advance(self, flowing: list[_Active], event: float = math.inf) -> None:
        """Go on to the end of the next flow, or to ``event`` if that is sooner."""
        # Times are counted from now: the clock itself may be too large for the last bits of a small flow.
        lasts = [(one.bytes[one.alive] / one.rates) * 1e12 for one in flowing]
        soonest = min((float(last.min()) if len(last) else 0.0 for last in lasts), default=math.inf)
        span = min(soonest, max(event - self.now, 0.0))
        for one, last in zip(flowing, lasts, strict=True):
            if not len(last):
                continue
            # Flows that end together but for rounding move all they have.
            ends = last <= span * (1 + _TOGETHER)
            left = one.bytes[one.alive]
            moved = left.copy()
            moved[~ends] = one.rates[~ends] * (span * 1e-12)
            one.bytes[one.alive] = left - moved
            if ends.any():
                one.alive = one.bytes > 0
                one.key = (id(one.program), one.demand.key, np.packbits(one.alive).tobytes())
        self.now = event if span < soonest else self.now + span

    def _count(self, demand: Demand, steps: int) -> None:
        """Wire bytes of whole steps."""
        load = self.loads.get(id(demand))
        if load is None:
            valid = demand.links >= 0
            wire = (demand.usage * demand.bytes[:, None])[valid]
            load = np.bincount(demand.links[valid], weights=wire, minlength=len(self.capacity)).astype(np.float64)
            self.loads[id(demand)] = load
        self.link_bytes += load * steps

    def _skip(self, one: _Active, waiting: list[_Active]) -> bool:
        """Equal steps of a run that is alone take equal times: all but the last at once."""
        if one.flowing or one.left < 3 or one.wait_until - one.demand.latency_ps != self.now:
            return False
        begin = self.now
        probe = self.now + one.demand.latency_ps
        one.begin_flow()
        self.now = probe
        while one.alive.any():
            self._rates([one])
            self._advance([one])
        each = self.now - begin
        count = one.left - 1
        upcoming = min((w.ready for w in waiting if w.ready > begin), default=None)
        if upcoming is not None and each:
            count = min(count, int((upcoming - begin) / each))
        self._count(one.demand, count)
        self.now = begin + each * count
        one.left -= count
        one.begin_step(self.now)
        return count > 0

    def _end_step(self, one: _Active) -> list[int]:
        """Go to the next step of a run; returns its number if it was the last."""
        self._count(one.demand, 1)
        one.left -= 1
        if one.left:
            one.begin_step(self.now)
            return []
        one.ends.append(round(self.now))
        one.at += 1
        if one.at < len(one.program.order):
            one.left = int(one.program.repeats[one.at])
            one.begin_step(self.now)
            return []
        self.active.remove(one)
        self.held[one.program.places] -= 1
        return [one.number]


def time_alone(program: Program) -> FlowResult:
    """One program with nothing beside it."""
    return simulate([Run(program=program)])
