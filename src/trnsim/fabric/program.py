"""What a collective asks of the links, step by step: the common form of schedules and of folded clusters.

A program is a sequence of steps; steps that ask the same share one ``Demand``. A flow of a demand may stand for several
equal ones (``weight``), which is how a cluster is folded into one of its systems.

On each link a flow takes ``1 / efficiency`` of wire for each byte of payload: efficiency is the share of the link's
rate that payload reaches with the protocol of the collective's size (``links.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError, UnsupportedError

from .group import Group
from .links import LinkModel, Protocol, link_model
from .routing import known_routes
from .schedule import Schedule
from .topology import Ints, Topology

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Demand:
    """The flows of one step."""

    key: int
    """Equal for demands with equal routes and usage, whatever their bytes."""
    links: Ints
    """Links of each flow, padded with -1."""
    usage: Floats
    """Wire bytes on each of these links for a byte of the flow, all flows it stands for; 0 where padded."""
    bytes: Floats
    weight: Floats
    latency_ps: int
    """Before data flows: of the widest level that a flow crosses."""


@dataclass(frozen=True, eq=False)
class Program:
    """A collective on the links of a topology."""

    name: str
    topology: Topology
    demands: tuple[Demand, ...]
    order: Ints
    """Demand of each run of equal steps, ``repeats`` how many steps it has."""
    repeats: Ints
    launch_ps: int
    places: Ints
    """Of the ranks that take part (each needs a CC-core)."""

    @property
    def steps(self) -> int:
        return int(self.repeats.sum())


class Wires:
    """The link models of a topology's levels at one size of collective."""

    def __init__(self, topology: Topology, nbytes: float, models: dict[str, LinkModel] | None = None) -> None:
        self.topology = topology
        self.models: list[LinkModel | None] = []
        self.protocols: list[Protocol | None] = []
        for level in topology.levels:
            model = None
            if level.kind != "none":
                model = (models or {}).get(level.technology) or link_model(level.technology, level.latency_ps)
            self.models.append(model)
            self.protocols.append(None if model is None else model.protocol(nbytes))
        self.efficiency = np.array([1.0 if p is None else p.efficiency for p in self.protocols])

    def launch_ps(self, level: int) -> int:
        model = self.models[level]
        return 0 if model is None else model.launch_ps

    def latency_ps(self, level: int, hops: int) -> int:
        """Of a step whose widest level is ``level``, over ``hops`` links of grids."""
        model, protocol = self.models[level], self.protocols[level]
        return 0 if model is None or protocol is None else protocol.step_latency_ps + max(hops - 1, 0) * model.hop_ps

    def demand(self, source: Ints, target: Ints, nbytes: Floats, weight: Floats, keys: dict[bytes, Demand]) -> Demand:
        """The demand of a step between places; a pair of a place with itself moves within its memory, unseen here."""
        apart = source != target
        source, target, nbytes, weight = source[apart], target[apart], nbytes[apart], weight[apart]
        name = source.tobytes() + target.tobytes() + weight.tobytes()
        known = keys.get(name)
        if known is None:
            found = known_routes(self.topology, source, target)
            links = found.links
            rate = self.topology.links.bytes_per_second
            if (links >= 0).any() and not (rate[links[links >= 0]] > 0).all():
                raise InputError(f"{self.topology.name}: a link of zero bandwidth")
            level = np.where(links >= 0, self.topology.links.level[links], 0)
            usage = np.where(links >= 0, weight[:, None] / self.efficiency[level], 0.0)
            grids = [i for i, one in enumerate(self.topology.levels) if one.kind == "grid"]
            hops = (np.isin(level, grids) & (links >= 0)).sum(axis=1)
            latency = max(
                (self.latency_ps(int(one), int(hops[found.level == one].max())) for one in np.unique(found.level)),
                default=0,
            )
            known = Demand(len(keys), links, usage, nbytes, weight, latency)
            keys[name] = known
            return known
        return Demand(known.key, known.links, known.usage, nbytes, weight, known.latency_ps)


def from_schedule(
    schedule: Schedule, group: Group, name: str = "", models: dict[str, LinkModel] | None = None
) -> Program:
    """The program of a schedule on a group (of one copy; its copies are programs of their own).

    Raises:
        InputError: the group has another number of ranks, or a rank cannot be reached.
    """
    if schedule.ranks != group.size:
        raise InputError("the schedule is for another number of ranks than the group has", operand="ranks",
                         value=schedule.ranks, limit=group.size)  # fmt: skip
    wires = Wires(group.topology, schedule.nbytes, models)
    keys: dict[bytes, Demand] = {}
    seen: dict[bytes, int] = {}
    demands: list[Demand] = []
    order = []
    for begin, end in pairwise(schedule.starts.tolist()):
        source, target = schedule.source[begin:end], schedule.target[begin:end]
        nbytes = schedule.bytes[begin:end]
        pair, whole = _by_pair(target * schedule.ranks + source, nbytes, schedule.ranks)
        text = pair.tobytes() + whole.tobytes()
        if text not in seen:
            seen[text] = len(demands)
            target, source = np.divmod(pair, schedule.ranks)
            demands.append(wires.demand(group.places[source], group.places[target], whole, np.ones(len(pair)), keys))
        order.append(seen[text])
    return make(name or f"{schedule.collective} {schedule.algorithm}", group, wires, demands, order)


def _by_pair(pair: Ints, nbytes: Ints, ranks: int) -> tuple[Ints, Floats]:
    """The pairs of a step in order, and what each sends."""
    if ranks * ranks > 64 * len(pair):
        found, inverse = np.unique(pair, return_inverse=True)
        return found, np.bincount(inverse, weights=nbytes).astype(np.float64)
    sums = np.bincount(pair, weights=nbytes)
    found = np.flatnonzero(sums).astype(np.int64)
    return found, sums[found].astype(np.float64)


def make(
    name: str,
    group: Group,
    wires: Wires,
    demands: list[Demand],
    order: list[int],
    repeats: list[int] | None = None,
    places: Ints | None = None,
) -> Program:
    """A program; equal steps that follow each other are one run."""
    runs: list[int] = []
    counts: list[int] = []
    for demand, count in zip(order, repeats or [1] * len(order), strict=True):
        if runs and runs[-1] == demand:
            counts[-1] += count
        else:
            runs.append(demand)
            counts.append(count)
    return Program(
        name=name,
        topology=wires.topology,
        demands=tuple(demands),
        order=np.array(runs, np.int64),
        repeats=np.array(counts, np.int64),
        launch_ps=wires.launch_ps(group.level) if order else 0,
        places=group.places if places is None else places,
    )


def common_topology(programs: list[Program]) -> Topology:
    """The topology that programs share.

    Raises:
        UnsupportedError: they lie on different ones.
    """
    first = programs[0].topology
    for program in programs[1:]:
        if program.topology is not first and program.topology != first:
            raise UnsupportedError(
                f"{program.name} lies on {program.topology.name}, {programs[0].name} on {first.name}: "
                "collectives that run at the same time need one topology"
            )
    return first
