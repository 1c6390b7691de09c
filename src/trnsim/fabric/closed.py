"""Times of collectives in closed form, for groups that lie regularly: the cost does not grow with the number of chips.

All flows of a step are of one size, so the first link to be full is the busiest, its flows are the slowest, and the
step takes ``latency + bytes * max(flows on a link / its rate)``. The flows are those of one system of the cluster with
all copies of the group in it (every system does the same); what leaves it goes to a second one that stands for all
others.
An algorithm is a few kinds of steps and how often each occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from trnsim.errors import UnsupportedError

from .algorithms import outer_order_table
from .group import Group
from .links import LinkModel
from .program import Demand, Floats, Program, Wires, make
from .topology import Ints, Topology

Steps = list[tuple[int, "Hop", float]]
"""How often, who sends to whom, and the bytes each sends."""


@dataclass(frozen=True, eq=False)
class Hop:
    """Who sends to whom in one kind of step, as a function of the member (its number in its group).

    ``to`` gives the members that the members ``i`` send to, one column a target. ``all_others``: each sends to all.
    """

    to: Callable[[Ints], Ints] | None = None
    all_others: bool = False
    shares: tuple[float, ...] = (1.0,)
    """Of the bytes of the step, by column of targets, over and over."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One system of a cluster with the members of all copies of a group that lie in it."""

    topology: Topology
    """At most two systems: the one that is looked at, and one that stands for the rest."""
    group: Group
    member: Ints
    """Number in its group of each of these members, ``copy`` which of the group's copies it belongs to."""
    copy: Ints
    offset: Ints
    """Of each copy: what is added to the places of the first."""
    room: int
    """Ranks of one system."""

    @property
    def places(self) -> Ints:
        return self.group.places[self.member] + self.offset[self.copy]

    def seen(self, member: Ints, copy: Ints) -> Ints:
        """Where members stand: in this system, or at the same place of the one that stands for all others."""
        place = self.group.places[member] + self.offset[copy]
        return np.where(place < self.room, place, self.room + place % self.room)


def fold(group: Group) -> Fold:
    """The first system of the group's cluster.

    Raises:
        UnsupportedError: links or chips have failed, or the group lies irregularly: then systems differ.
    """
    topology = group.topology
    if topology.failed_chips or topology.failed_links or topology.slowed:
        raise UnsupportedError(f"{topology.name} has failed links or chips: its systems differ, so they are not folded")
    room = topology.rank_count // topology.systems
    if group.size > 1 and not _alike(group, room):
        raise UnsupportedError(
            f"{group.copies} x {group.size} ranks {group.stride} apart lie differently in the systems of {room} ranks "
            f"of {topology.name}, so they are not folded: simulate the schedule of one group"
        )
    small = topology if topology.systems <= 2 else _two_systems(topology)
    offsets = group.offsets[group.offsets + group.places.min() < room]  # copies beyond hold nothing here
    held = [np.flatnonzero((group.places + o >= 0) & (group.places + o < room)) for o in offsets]
    copy = np.repeat(np.arange(len(offsets)), [len(h) for h in held])
    return Fold(small, group, np.concatenate(held), copy, offsets, room)


def _alike(group: Group, room: int) -> bool:
    """Whether every system holds the same of the group and its copies."""
    if group.copies == 1:
        return group.spread is not None
    reach = group.stride * group.size
    if room % reach == 0:
        return True
    return reach % room == 0 and (room % group.stride == 0 or group.stride % room == 0)


@lru_cache(maxsize=64)
def _two_systems(topology: Topology) -> Topology:
    levels = (*topology.levels[:-1], replace(topology.levels[-1], members=2))
    return replace(topology, systems=2, levels=levels, name=f"{topology.name} (folded)")


def program(
    collective: str,
    algorithm: str,
    group: Group,
    nbytes: float,
    *,
    inner: int | None = None,
    inner_algorithm: str = "ring",
    outer_algorithm: str = "ring",
    outer_orders: Sequence[Sequence[int]] | Ints | None = None,
    orders: Sequence[Sequence[int]] | Ints | None = None,
    models: dict[str, LinkModel] | None = None,
    name: str = "",
) -> Program:
    """A collective of a group and its copies, folded. Arguments as ``algorithms.schedule``.

    Raises:
        UnsupportedError: this algorithm has no closed form for this number of ranks: simulate its schedule.
    """
    folded = fold(group)
    wires = Wires(folded.topology, nbytes, models)
    n, size_ = group.size, float(nbytes)
    if algorithm == "hierarchical" and collective != "all_to_all" and n > 1:
        steps = _hierarchical(collective, n, size_, inner, inner_algorithm, outer_algorithm, outer_orders)
    else:
        steps = _steps(collective, algorithm, n, size_, orders)
    keys: dict[bytes, Demand] = {}
    demands: list[Demand] = []
    order, repeats = [], []
    known: dict[tuple[int, float], int] = {}
    for count, hop, size in steps:
        if count < 1 or size <= 0:
            continue
        key = (id(hop), size)
        if key not in known:
            known[key] = len(demands)
            demands.append(_demand(folded, hop, size, wires, keys))
        order.append(known[key])
        repeats.append(count)
    return make(
        name or f"{collective} {algorithm}", group, wires, demands, order, repeats, places=np.unique(folded.places)
    )


def time_ps(program_: Program) -> int:
    """The closed form of a program that has the links for itself."""
    if not len(program_.order):
        return program_.launch_ps
    capacity = program_.topology.links.bytes_per_second
    each = []
    for demand in program_.demands:
        valid = demand.links >= 0
        wire = (demand.usage * demand.bytes[:, None])[valid]
        load = np.bincount(demand.links[valid], weights=wire, minlength=len(capacity))
        each.append(demand.latency_ps + float((load / capacity).max(initial=0.0)) * 1e12)
    return round(program_.launch_ps + float(np.array(each)[program_.order] @ program_.repeats))


def collective_time(collective: str, algorithm: str, group: Group, nbytes: float, **options: object) -> int:
    """Picoseconds of a collective of a regular group and its copies, alone on the links. Options as ``program``."""
    return time_ps(program(collective, algorithm, group, nbytes, **options))  # type: ignore[arg-type]


def _demand(folded: Fold, hop: Hop, size: float, wires: Wires, keys: dict[bytes, Demand]) -> Demand:
    member, copy, n = folded.member, folded.copy, folded.group.size
    if hop.all_others:
        source, target, weight = _everyone(folded)
    else:
        assert hop.to is not None
        to = hop.to(member).reshape(len(member), -1)
        keep = ((to >= 0) & (to < n)).reshape(-1)
        source = np.repeat(folded.places, to.shape[1])[keep]
        target = folded.seen(to.reshape(-1)[keep], np.repeat(copy, to.shape[1])[keep])
        sizes = size * np.resize(np.array(hop.shares), to.size)[keep]
        return wires.demand(source, target, sizes, np.ones(len(source)), keys)
    return wires.demand(source, target, np.full(len(source), size), weight, keys)


def _everyone(folded: Fold) -> tuple[Ints, Ints, Floats]:
    """Each member here to each other one of its copy; those in other systems are one flow that weighs as many."""
    source, target, weight = [], [], []
    for copy in np.unique(folded.copy):
        places = folded.places[folded.copy == copy]
        i, j = (x.reshape(-1) for x in np.meshgrid(places, places, indexing="ij"))
        source.append(i[i != j])
        target.append(j[i != j])
        weight.append(np.ones((i != j).sum()))
        outside = folded.group.size - len(places)
        if outside:
            source.append(places)
            target.append(places + folded.room)
            weight.append(np.full(len(places), float(outside)))
    return np.concatenate(source), np.concatenate(target), np.concatenate(weight)


# -- algorithms as kinds of steps --------------------------------------------------------------------------------------


def _steps(collective: str, algorithm: str, n: int, nbytes: float, orders: object) -> Steps:
    if n == 1:
        return []
    if collective in ("all_reduce", "reduce_scatter", "all_gather"):
        if algorithm == "single_step_mesh":
            return [(1, Hop(all_others=True), nbytes)]
        if algorithm == "kangaring":
            return _kangaring(collective, n, nbytes / n, orders)
        half = _half(collective, algorithm, n, nbytes / n, orders)
        return half[::-1] + half if collective == "all_reduce" else half
    if collective == "all_to_all" and algorithm == "mesh":
        return [(1, Hop(all_others=True), nbytes / n)]
    if collective == "all_to_all" and algorithm == "ring":
        return [(1, Hop(lambda i, k=k: (i + k) % n), nbytes / n) for k in range(1, n)]  # type: ignore[misc]
    if collective == "permute":
        return [(1, Hop(lambda i: (i + 1) % n), nbytes)]
    raise _no_form(collective, algorithm, n)


def _kangaring(collective: str, n: int, chunk: float, orders: object) -> Steps:
    """As ``patterns.kangaring``: the leaders are at the even places of an order; without orders roles change once."""
    if n % 2:
        raise _no_form(collective, "kangaring", n)
    table = (
        np.stack([np.arange(n), np.arange(n) ^ 1]) if orders is None else np.atleast_2d(np.asarray(orders, np.int64))
    )
    place = np.argsort(table, axis=1)
    channels = np.arange(len(table))[:, None]
    teams, part = n // 2, chunk / len(table)

    def to(leaders: int | None, aides: int | None) -> Callable[[Ints], Ints]:
        """Where leaders and aides send: so many places on, or nowhere."""

        def targets(member: Ints) -> Ints:
            at = place[:, member]
            on = np.where(at % 2 == 0, leaders or 0, aides or 0)
            return np.where(on == 0, -1, table[channels, (at + on) % n]).T

        return targets

    up, down, ring = to(None, -1), to(1, None), to(2, -1)

    def both(member: Ints) -> Ints:
        return np.stack([to(2, None)(member), down(member)], axis=2)

    scatter: Steps = [(1, Hop(up), 2 * part), (teams - 1, Hop(ring), 2 * part), (1, Hop(down), part)]
    gather: Steps = [(1, Hop(up), part)]
    if teams > 1:
        # A leader has its own team's data for the aide but for the aide's own part.
        gather += [(1, Hop(both, shares=(1.0, 0.5)), 2 * part), (teams - 2, Hop(both, shares=(1.0, 1.0)), 2 * part)]
    gather.append((1, Hop(down), 2 * part if teams > 1 else part))
    return {"reduce_scatter": scatter, "all_gather": gather, "all_reduce": scatter + gather}[collective]


def _no_form(collective: str, algorithm: str, n: int) -> UnsupportedError:
    return UnsupportedError(f"{collective} by {algorithm} of {n} ranks has no closed form: simulate its schedule")


def _half(collective: str, algorithm: str, n: int, chunk: float, orders: object = None) -> Steps:
    """The steps of an all-gather, in order of growing size; a reduce-scatter has the same in reverse."""
    if algorithm == "ring":
        if orders is None:
            return [(n - 1, Hop(lambda i: (i + 1) % n), chunk)]
        table = np.atleast_2d(np.asarray(orders, np.int64))
        onward = np.empty_like(table)
        for row, order in zip(onward, table, strict=True):
            row[order] = np.roll(order, -1)
        return [(n - 1, Hop(lambda i: onward[:, i].T), chunk / len(table))]
    if algorithm == "mesh":
        return [(1, Hop(all_others=True), chunk)]
    if algorithm == "rdh" and n & (n - 1) == 0:
        return [
            (1, Hop(lambda i, d=1 << e: i ^ d), chunk * (1 << e))  # type: ignore[misc]
            for e in range(n.bit_length() - 1)
        ]
    raise _no_form(collective, algorithm, n)


def _hierarchical(
    collective: str, n: int, nbytes: float, inner: int | None, within: str, between: str, outer_orders: object
) -> Steps:
    if inner is None or inner < 1 or n % inner:
        raise _no_form(collective, "hierarchical", n)
    i, o = inner, n // inner
    inside = [(c, _within(hop, i), size) for c, hop, size in _half(collective, within, i, nbytes / i)] if i > 1 else []
    table = None if outer_orders is None else outer_order_table(outer_orders, i, o)
    outside = (
        [(c, _between(hop, i, o, table), size) for c, hop, size in _half(collective, between, o, nbytes / n)]
        if o > 1
        else []
    )
    gather = outside + inside
    if collective == "all_gather":
        return gather
    return gather[::-1] if collective == "reduce_scatter" else gather[::-1] + gather


def _within(hop: Hop, inner: int) -> Hop:
    if hop.all_others:
        return Hop(to=lambda m: m[:, None] - m[:, None] % inner + _others(m % inner, inner))
    to = hop.to
    assert to is not None
    return Hop(to=lambda m: m - m % inner + to(m % inner))


def _between(hop: Hop, inner: int, outer: int, orders: Ints | None) -> Hop:
    if hop.all_others:
        return Hop(to=lambda m: _others(m // inner, outer) * inner + m[:, None] % inner)
    to = hop.to
    assert to is not None
    if orders is None:
        return Hop(to=lambda m: to(m // inner) * inner + m % inner)
    # The pattern numbers the servers in the order of the place within.
    number = np.argsort(orders, axis=1)
    return Hop(to=lambda m: orders[m % inner, to(number[m % inner, m // inner])] * inner + m % inner)


def _others(at: Ints, n: int) -> Ints:
    """All numbers below ``n`` but ``at``, one row for each."""
    return np.asarray((at[:, None] + np.arange(1, n)[None, :]) % n, np.int64)
