"""Where the ranks of a collective program sit in a system, and how long their collectives take there.

The algorithm is what the Neuron runtime documents for the group (``fabric/neuron.py``); the groups of one call run at
the same time and share the links. All ranks are taken to come to a collective at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trnsim.errors import InputError, UnsupportedError
from trnsim.fabric.algorithms import schedule
from trnsim.fabric.flow import Run, simulate
from trnsim.fabric.group import Group, group
from trnsim.fabric.neuron import Plan, plan
from trnsim.fabric.program import from_schedule
from trnsim.fabric.schedule import Schedule

COLLECTIVES = {
    "all_gather": "all_gather",
    "all_reduce": "all_reduce",
    "all_to_all": "all_to_all",
    "reduce_scatter": "reduce_scatter",
    "collective_permute": "permute",
    "collective_permute_implicit": "permute",
    "collective_permute_implicit_reduce": "permute",
}
"""Functions of ``nki.collectives`` whose time is known. Those whose lengths are known at run time only have none."""


class Placement:
    """Ranks of a program on the logical cores of a system."""

    def __init__(self, system: str, ranks: int, lnc: int) -> None:
        self.where = group(system, ranks, lnc=lnc)
        if self.where.topology.system.chip.core is None:
            raise InputError(f"{system} has no NeuronCores", operand="system", value=system)
        self._times: dict[tuple[object, ...], dict[tuple[int, ...], int]] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}

    @property
    def chip(self) -> str:
        return self.where.topology.system.chip.name

    def schedule(self, collective: str, members: tuple[int, ...], nbytes: int, itemsize: int) -> Schedule:
        """What moves the data of a collective of some ranks."""
        key = (collective, members, nbytes)
        if key not in self._plans:
            self._plans[key] = _plan(self._group(members), collective, nbytes)
        return _made(self._plans[key], collective, len(members), nbytes, itemsize, None)

    def time_ps(
        self,
        name: str,
        groups: Sequence[Sequence[int]],
        members: tuple[int, ...],
        nbytes: int,
        itemsize: int,
        pairs: tuple[tuple[int, int], ...] | None = None,
    ) -> int | None:
        """Picoseconds of a call of ``nki.collectives`` for the group of ``members``; None if they are not known.

        Args:
            groups: all that call it.
            nbytes: as the size of the collective is counted (``fabric/schedule.py``).
            itemsize: bytes of an element.
            pairs: of a permute, by place in the group; default: each rank to the next.
        """
        collective = COLLECTIVES.get(name)
        if collective is None:
            return None
        every = tuple(tuple(g) for g in groups)
        key = (collective, every, nbytes, itemsize, pairs)
        if key not in self._times:
            try:
                runs = [self._run(collective, one, nbytes, itemsize, pairs) for one in every]
            except UnsupportedError:
                return None  # no algorithm is documented for such a group: the time is refused by name
            found = simulate(runs).runs
            self._times[key] = {one: timed.end_ps for one, timed in zip(every, found, strict=True)}
        return self._times[key][members]

    def _group(self, members: tuple[int, ...]) -> Group:
        return Group(self.where.topology, self.where.places[np.array(members, np.int64)])

    def _run(
        self, collective: str, members: tuple[int, ...], nbytes: int, itemsize: int,
        pairs: tuple[tuple[int, int], ...] | None,
    ) -> Run:  # fmt: skip
        where = self._group(members)
        chosen = _plan(where, collective, nbytes)
        return Run(program=from_schedule(_made(chosen, collective, where.size, nbytes, itemsize, pairs), where))


def _plan(where: Group, collective: str, nbytes: int) -> Plan:
    return Plan("mesh", "mesh") if where.size == 1 else plan(where, collective, nbytes)


def _made(
    chosen: Plan, collective: str, ranks: int, nbytes: int, itemsize: int, pairs: tuple[tuple[int, int], ...] | None
) -> Schedule:
    if collective == "permute":
        ring = tuple((i, (i + 1) % ranks) for i in range(ranks))
        return schedule("permute", "mesh", ranks, nbytes, itemsize=itemsize, pairs=pairs or ring)
    return schedule(
        collective,
        chosen.algorithm,
        ranks,
        nbytes,
        itemsize=itemsize,
        orders=chosen.orders,
        inner=chosen.inner,
        inner_algorithm=chosen.inner_algorithm,
        outer_algorithm=chosen.outer_algorithm,
        outer_orders=chosen.outer_orders,
    )
