"""The levels of a system, nearest first: what joins the cores of a chip, the chips of a server, servers, systems.

A level is a *star* (each member has one uplink and one downlink to a switch that does not block) or a *grid* (each chip
has a link each way to its neighbours in each dimension). Rates are one way. The catalogue says of most NeuronLink
figures not which directions they count; they are then read as both ways together, half each way, as the vendor counts
where it says (the connectivity of Trn3). Nvidia's figures are one way.
"""

from __future__ import annotations

from dataclasses import dataclass

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware.model import Chip, System

LEVELS = ("chip", "server", "ultraserver", "cluster")
"""Names of the levels, nearest first: what each joins lies within one of these."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level."""

    name: str
    """One of ``LEVELS``: the container."""
    kind: str
    """``star``, ``grid``, or ``none``: its members meet at the level above only."""
    members: int
    """Of the level below (ranks of a chip, chips of a server, servers of an UltraServer) in one container."""
    technology: str = ""
    """Of its links: the name of their model in ``links.toml``."""
    bytes_per_second: float = 0.0
    """One way: of one link of a grid, of the uplink of one member (chip, core, adapter) of a star."""
    latency_ps: int | None = None
    """Of a step between two members, software included, as the catalogue says. None: no source."""
    shape: tuple[int, ...] = ()
    """Of a grid."""
    wraps: bool = True
    """A torus or ring rather than a chain."""
    adapters: int = 0
    """Cluster: network adapters of one system, shared by its chips."""


def one_way(rate: float, direction: str) -> float:
    """The rate each way of links whose figure counts ``direction``; both ways where that is not stated."""
    return rate if direction == "one way" else rate / 2


def ranks_per_chip(chip: Chip, lnc: int | None = None) -> int:
    """Logical cores of a chip with LNC (default: the chip's); 1 for a GPU.

    Raises:
        InputError: the chip has no such setting.
    """
    if chip.core is None:
        if lnc not in (None, 1):
            raise InputError(f"{chip.name} has no logical cores", operand="lnc", value=lnc, limit=1)
        return 1
    lnc = chip.default_lnc if lnc is None else lnc
    if lnc not in chip.logical_core.settings:
        raise InputError(f"{chip.name} has no such logical core", operand="lnc", value=lnc,
                         limit=chip.logical_core.settings)  # fmt: skip
    return chip.core_count // lnc


def levels_of(system: System, systems: int, lnc: int | None) -> tuple[Level, ...]:
    """The levels of ``systems`` systems of one kind that share a network."""
    found = [_chip_level(system.chip, lnc), *_scale_up(system)]
    if systems > 1:
        found.append(_cluster(system, systems))
    return tuple(found)


def _chip_level(chip: Chip, lnc: int | None) -> Level:
    ranks = ranks_per_chip(chip, lnc)
    if chip.core is None or ranks == 1:
        return Level(name="chip", kind="none", members=ranks)
    # A rank moves data with the DMA engines of its cores; neighbours on a chip share its HBM.
    cores = chip.core_count // ranks
    return Level(
        name="chip",
        kind="star",
        members=ranks,
        technology=f"DMA {chip.core.version}",
        bytes_per_second=float(cores * chip.core.dma.bytes_per_second),
        latency_ps=chip.scale_up.hop_latency_ps,
    )


def _scale_up(system: System) -> list[Level]:
    kind, chips, servers = system.topology.kind, system.server.chip_count, system.server_count
    technology, latency = system.chip.scale_up.name, system.chip.scale_up.hop_latency_ps
    if kind == "none":
        if system.chip_count > 1:
            raise UnsupportedError(f"{system.name}: no source for the links between its {system.chip_count} chips")
        return [Level(name="server", kind="none", members=1)]
    if system.topology.domain != system.chip_count:
        raise UnsupportedError(
            f"{system.name}: its links join only {system.topology.domain} of {system.chip_count} chips: not modelled"
        )
    if kind == "switched":
        return _switched(system)
    shape = system.topology.shape or (chips * servers,)
    inside = _inside(shape, chips, system)
    wraps = kind != "chain"
    names = ("server",) if servers == 1 else ("server", "ultraserver")
    parts = {"server": inside, "ultraserver": shape[len(inside) :]}
    levels = []
    for name in names:
        rate, direction = _level_rate(system, name, alone=servers == 1)
        links = (2 if wraps else 1) * len(parts[name]) if name == "server" else 2 * len(parts[name])
        if not wraps:
            links = 2  # a chip within a chain has two neighbours
        levels.append(
            Level(
                name=name,
                kind="grid",
                members=chips if name == "server" else servers,
                technology=technology,
                bytes_per_second=one_way(rate / links, direction),
                latency_ps=latency,
                shape=parts[name],
                wraps=wraps,
            )
        )
    return levels


def _inside(shape: tuple[int, ...], chips: int, system: System) -> tuple[int, ...]:
    """The dimensions of a torus that lie within a server."""
    size = 1
    for i, n in enumerate(shape):
        if size == chips:
            return shape[:i]
        size *= n
    if size == chips or size == system.chip_count == chips:
        return shape
    if system.server_count > 1:
        raise UnsupportedError(f"{system.name}: its torus {shape} does not divide into servers of {chips} chips")
    return shape


def _level_rate(system: System, name: str, *, alone: bool) -> tuple[float, str]:
    """A chip's rate at a level and which directions it counts."""
    scale_up = system.chip.scale_up
    found = scale_up.levels.get(name)
    if alone or found is None:
        return float(system.scale_up_bytes_per_second), scale_up.direction
    return float(found.bytes_per_second), found.direction or scale_up.direction


def _switched(system: System) -> list[Level]:
    """A switch for each server below one for all where the chip has links to both, else one for all."""
    scale_up, chips, servers = system.chip.scale_up, system.server.chip_count, system.server_count
    star = {"kind": "star", "technology": scale_up.name, "latency_ps": scale_up.hop_latency_ps}
    if servers == 1:
        rate = one_way(float(system.scale_up_bytes_per_second), scale_up.direction)
        return [Level(name="server", members=chips, bytes_per_second=rate, **star)]  # type: ignore[arg-type]
    near, far = scale_up.levels.get("server"), scale_up.levels.get("rack")
    if near is None or far is None:
        rate = one_way(float(system.scale_up_bytes_per_second), scale_up.direction)
        return [
            Level(name="server", kind="none", members=chips),
            Level(name="ultraserver", members=servers, bytes_per_second=rate, **star),  # type: ignore[arg-type]
        ]
    return [
        Level(
            name=name,
            members=members,
            bytes_per_second=one_way(float(level.bytes_per_second), level.direction or scale_up.direction),
            **star,  # type: ignore[arg-type]
        )
        for name, members, level in (("server", chips, near), ("ultraserver", servers, far))
    ]


def _cluster(system: System, systems: int) -> Level:
    out = system.scale_out
    if out.bytes_per_second is None:
        raise UnsupportedError(f"{system.name}: no source for the bandwidth of its network ({out.name})")
    adapters = min(out.adapters or system.chip_count, system.chip_count)
    while system.chip_count % adapters:
        adapters -= 1
    return Level(
        name="cluster",
        kind="star",
        members=systems,
        technology=out.name,
        bytes_per_second=out.bytes_per_second / adapters,
        latency_ps=out.latency_ps,
        adapters=adapters,
    )
