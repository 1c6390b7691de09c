"""The time of collectives of Neuron devices: the algorithm that the runtime documents, timed on the links.

Within a server the runtime's mesh, and its recursive halving and doubling, have a stage between the chips and one
within each chip (intra-node collectives of the Neuron documentation); above 56 MB the KangaRing where all ranks of each
chip take part. Between servers a collective is hierarchical: mesh for small messages of few servers, recursive halving
and doubling to 56 MB, rings above; the documentation says so without sizes, which are those within a server. Links
reach the share of their rate that ``links.toml`` says.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trnsim.errors import UnsupportedError
from trnsim.hardware.quantity import SIZE

from . import closed
from .algorithms import schedule
from .group import Group
from .links import LinkModel, link_model
from .program import Program, from_schedule
from .rings import hypercube_orders, ring_orders
from .schedule import Ints
from .selection import HALVING_TO, MESH_BELOW, RING_COLLECTIVES, neuron_algorithm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MESH_SERVERS = 4
"""Servers up to which a small message goes to all at once; the documentation says small groups."""


@dataclass(frozen=True, eq=False)
class Plan:
    """An algorithm with the arguments of ``algorithms.schedule``."""

    name: str
    algorithm: str
    inner: int | None = None
    inner_algorithm: str = "ring"
    outer_algorithm: str = "ring"
    orders: Ints | None = None
    outer_orders: Ints | None = None


def plan(group: Group, collective: str, nbytes: int) -> Plan:
    """What the runtime takes for a collective of a group.

    Raises:
        UnsupportedError: the group has different numbers of ranks on its chips or servers.
    """
    spread = group.spread
    if collective == "broadcast":
        return Plan("mesh", "mesh") if nbytes < MESH_BELOW else Plan("tree", "tree")
    if collective not in RING_COLLECTIVES:
        return Plan("mesh", "mesh")
    if spread is None:
        raise UnsupportedError(
            f"{group.size} ranks with different numbers of them on their chips: no algorithm is documented",
            value=group.size,
        )
    if spread.systems > 1:
        return _between(group, spread.systems, nbytes)
    chips = spread.chips * spread.servers
    grid = any(level.kind == "grid" for level in group.topology.levels)
    name = neuron_algorithm(
        nbytes,
        chips=chips,
        whole_chips=spread.ranks == group.topology.ranks_per_chip and group.size % 2 == 0,
        grid=grid,
    )
    if name in ("mesh", "rdh") or not grid:
        # Rings over a switch join ranks at the same place of each chip: one of all ranks would have many more steps.
        if chips == 1 or spread.ranks == 1:
            return Plan(name, name)
        axes = hypercube_orders(group) if name == "rdh" else None
        return Plan(name, "hierarchical", spread.ranks, "mesh", name, outer_orders=axes)
    if name == "kangaring" and spread.servers > 1:
        name = "ring"  # documented within a server
    return Plan(name, name, orders=ring_orders(group))


def _between(group: Group, systems: int, nbytes: int) -> Plan:
    inner = group.size // systems
    outer = "ring"
    if nbytes < MESH_BELOW and systems <= MESH_SERVERS:
        outer = "mesh"
    elif nbytes <= HALVING_TO and systems & (systems - 1) == 0:
        outer = "rdh"
    if inner == 1:
        return Plan(outer, outer)
    within = "ring"
    if nbytes < MESH_BELOW:
        within = "mesh"
    elif nbytes <= HALVING_TO and inner & (inner - 1) == 0:
        within = "rdh"
    return Plan(f"{within} within, {outer} between", "hierarchical", inner, within, outer)


def neuron_program(
    group: Group, collective: str, nbytes: int, models: Mapping[str, LinkModel] | None = None
) -> tuple[Program, str]:
    """A collective on the links, and the name of its algorithm.

    Args:
        group: of ranks of Neuron devices; its copies take part.
        collective: one of ``COLLECTIVES``; a permute sends to the next rank.
        nbytes: as the size of the collective is counted.
        models: of links, in place of those of ``links.toml``, by technology.

    Raises:
        UnsupportedError: no algorithm is documented for such a group.
    """
    chosen = plan(group, collective, nbytes)
    given = dict(models or {})
    if collective == "broadcast":
        if group.copies > 1:
            raise UnsupportedError(
                f"{collective} by {chosen.name}: groups beside each other are not folded", value=group.copies, limit=1
            )
        made = schedule(collective, chosen.algorithm, group.size, nbytes, orders=chosen.orders)
        return from_schedule(made, group, models=given), chosen.name
    program = closed.program(
        collective,
        chosen.algorithm,
        group,
        nbytes,
        inner=chosen.inner,
        inner_algorithm=chosen.inner_algorithm,
        outer_algorithm=chosen.outer_algorithm,
        outer_orders=chosen.outer_orders,
        orders=chosen.orders,
        models=given,
    )
    return program, chosen.name


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Published collectives of Neuron devices on which constants were fitted."""

    system: str
    ranks: int
    collective: str
    largest_bytes: int
    error_percent: float
    """Of predictions for sizes that the fit did not see."""


@cache
def measured() -> tuple[Measured, ...]:
    """What ``links.toml`` says of them."""
    path = Path(__file__).with_name("links.toml")
    return tuple(
        Measured(
            system=entry["system"],
            ranks=entry["ranks"],
            collective=entry["collective"],
            largest_bytes=int(SIZE.parse(entry["largest"])),
            error_percent=entry["held_out_percent"],
        )
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("measured", [])
    )


def neuron_support(group: Group, collective: str, nbytes: int) -> tuple[str, str, float | None]:
    """How the time of a collective is known: support, reason, and error in percent where one was measured."""
    whole = group.size == group.topology.rank_count
    for one in measured():
        if (
            whole
            and group.topology.systems == 1
            and group.topology.system.name == one.system
            and (group.size, collective) == (one.ranks, one.collective)
            and nbytes <= one.largest_bytes
        ):
            return "calibrated", f"fitted on {one.collective} of {one.ranks} ranks of {one.system}", one.error_percent
    names = dict.fromkeys(level.technology for level in group.topology.levels[: group.level + 1] if level.technology)
    links = "; ".join(f"{name}: {link_model(name).reason}" for name in names)
    return "extrapolated", f"no time of such a collective is published; {links}", None
