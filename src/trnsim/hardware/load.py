"""Chips and systems by name, alias or path of a file.

``load_chip("trn2")``, ``load_chip("Trainium2")`` and ``load_chip("my-trn2.toml")`` give the same kind of object. A
user's file may build on a known chip and say only what differs::

    name = "trn2-big-sbuf"
    base = "trn2"

    [core.sbuf]
    bytes_per_partition = "448 KiB"
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError

from .document import ROOT, Document, find, names_in, read
from .model import (
    Chip,
    Core,
    DmaSpec,
    EngineSpec,
    GpSimdSpec,
    Hbm,
    LinkLevel,
    LogicalCoreSettings,
    OnChipMemory,
    Power,
    PsumMemory,
    ScaleOut,
    ScaleUp,
    Server,
    System,
    Table,
    TensorEngineSpec,
    Topology,
)
from .rules import CHIP_SCHEMA, FORMATS, LEVELS, SYSTEM_SCHEMA

if TYPE_CHECKING:
    from pathlib import Path


def chip_names() -> tuple[str, ...]:
    """The chips of the catalogue: the AWS line by generation, then the others."""
    ours = ("inf1", "inf2", "trn1", "trn2", "trn3")
    known = names_in(CHIP_SCHEMA.folder)
    return tuple(n for n in ours if n in known) + tuple(n for n in known if n not in ours)


def system_names() -> tuple[str, ...]:
    """The instances, UltraServers and racks of the catalogue."""
    return names_in(SYSTEM_SCHEMA.folder)


def load_chip(name_or_path: str | Path) -> Chip:
    """A chip by name or alias (case does not matter) or from a user's TOML file.

    ``trn3[hbm.bandwidth=6TB/s]`` is a chip with changes: see ``whatif.what_if``. Built-in chips are read once; a user's
    file is read each time. Raises ``InputError`` for an unknown name, or a file that does not hold, with file, key,
    value and limit.
    """
    if isinstance(name_or_path, str) and name_or_path.endswith("]"):
        from .whatif import load_changed

        return load_changed(name_or_path)
    path = find(name_or_path, CHIP_SCHEMA)
    return _built_in_chip(path) if ROOT in path.parents else chip_of(read(path, CHIP_SCHEMA))


def load_system(name_or_path: str | Path) -> System:
    """An instance, UltraServer or rack by name or alias, or from a user's TOML file; as ``load_chip``.

    ``trn2.48xlarge[hbm.bandwidth=6TB/s]`` is a system whose chip has changes.
    """
    if isinstance(name_or_path, str) and name_or_path.endswith("]"):
        return _changed_system(name_or_path)
    path = find(name_or_path, SYSTEM_SCHEMA)
    return _built_in_system(path) if ROOT in path.parents else _system(read(path, SYSTEM_SCHEMA))


@cache
def _changed_system(name: str) -> System:
    from .whatif import changes_of, what_if

    base, changes = changes_of(name)
    found = load_system(base)
    chip = what_if(found.chip, changes)
    inside = ",".join(f"{change.path}={change.value}" for change in chip.changes)
    return replace(found, name=f"{found.name}[{inside}]", chip=chip)


@cache
def _built_in_chip(path: Path) -> Chip:
    return chip_of(read(path, CHIP_SCHEMA))


@cache
def _built_in_system(path: Path) -> System:
    return _system(read(path, SYSTEM_SCHEMA))


def _formats(values: dict[str, Any], table: str) -> Table[float]:
    return Table({f: values[f"{table}.{f}"] for f in FORMATS if f"{table}.{f}" in values})


def chip_of(document: Document) -> Chip:
    """The chip that a checked file describes."""
    v, names = document.values, document.names
    chip = Chip(
        name=names["name"],
        title=names["title"],
        vendor=names["vendor"],
        family=names["family"],
        generation=names["generation"],
        aliases=tuple(names.get("aliases", ())),
        core_count=v.get("core_count", 0),
        core=_core(document) if "core.name" in names else None,
        logical_core=LogicalCoreSettings(
            default=v.get("logical_core.default", 1), settings=v.get("logical_core.settings", (1,))
        ),
        hbm=Hbm(
            kind=v["hbm.kind"],
            capacity_bytes=v["hbm.capacity"],
            bytes_per_second=v["hbm.bandwidth"],
            stacks=v.get("hbm.stacks"),
        ),
        flops=_formats(v, "flops"),
        sparse_flops=v.get("sparse_flops"),
        scale_up=ScaleUp(
            name=v["scale_up.name"],
            bytes_per_second=v["scale_up.bandwidth"],
            direction=v["scale_up.direction"],
            links=v.get("scale_up.links"),
            hop_latency_ps=v.get("scale_up.hop_latency"),
            levels=Table(
                {
                    level: LinkLevel(
                        bytes_per_second=v[f"scale_up.levels.{level}.bandwidth"],
                        links=v.get(f"scale_up.levels.{level}.links"),
                        direction=v.get(f"scale_up.levels.{level}.direction"),
                    )
                    for level in LEVELS
                    if f"scale_up.levels.{level}.bandwidth" in v
                }
            ),
        ),
        power=Power(tdp_watts=v.get("power.tdp"), all_in_watts=v.get("power.all_in")),
        dma_engines=v.get("dma_engines"),
        dma_bytes_per_second=v.get("dma_bandwidth"),
        collective_cores=v.get("collective_cores"),
        clock_hz=v.get("clock"),
        cache_bytes=v.get("cache"),
        prices=document.prices,
        path=str(document.path),
        facts=Table(document.facts),
    )
    _check_chip(chip)
    return chip


def _core(document: Document) -> Core:
    v, names = document.values, document.names

    def engine(name: str) -> dict[str, Any]:
        at = f"core.engines.{name}."
        widths = {k: v[at + k] for k in ("lanes", "elements_per_cycle", "elements_per_cycle_narrow") if at + k in v}
        return {"name": name, "clock_hz": v[at + "clock"], "float32_flops": v.get(at + "float32_flops"), **widths}

    tensor = TensorEngineSpec(
        **engine("tensor"),
        rows=v["core.engines.tensor.rows"],
        columns=v["core.engines.tensor.columns"],
        products=_formats(v, "core.engines.tensor.products"),
    )
    gpsimd = GpSimdSpec(
        **engine("gpsimd"),
        processors=v["core.engines.gpsimd.processors"],
        bits_per_processor=v["core.engines.gpsimd.bits_per_processor"],
        local_bytes_per_processor=v.get("core.engines.gpsimd.local_bytes_per_processor"),
        dma_bytes_per_second=v.get("core.engines.gpsimd.dma_bandwidth"),
    )
    size, reserved = v["core.sbuf.bytes_per_partition"], v["core.sbuf.reserved_bytes_per_partition"]
    if reserved >= size:
        raise InputError(
            f"{document.path}: core.sbuf.reserved_bytes_per_partition: leaves nothing to use",
            value=reserved,
            limit=size,
        )
    return Core(
        name=names["core.name"],
        version=names["core.version"],
        engines=Table(
            {
                "tensor": tensor,
                "vector": EngineSpec(**engine("vector")),
                "scalar": EngineSpec(**engine("scalar")),
                "gpsimd": gpsimd,
                "sync": EngineSpec(**engine("sync")),
            }
        ),
        sbuf=OnChipMemory(
            partitions=v["core.sbuf.partitions"],
            bytes_per_partition=size,
            usable_bytes_per_partition=size - reserved,
        ),
        psum=PsumMemory(
            partitions=v["core.psum.partitions"],
            banks=v["core.psum.banks"],
            bytes_per_bank=v["core.psum.bytes_per_bank"],
        ),
        dma=DmaSpec(
            engines=v["core.dma.engines"],
            bytes_per_second_per_engine=v["core.dma.bandwidth_per_engine"],
            peak_bytes_per_second_per_engine=v["core.dma.peak_bandwidth_per_engine"],
            descriptor_generators=v["core.dma.descriptor_generators"],
        ),
    )


def _check_chip(chip: Chip) -> None:
    lnc = chip.logical_core
    if lnc.default not in lnc.settings:
        raise InputError(
            f"{chip.path}: logical_core.default: not one of the settings", value=lnc.default, limit=lnc.settings
        )
    if chip.core is None:
        return
    if chip.core_count == 0:
        raise InputError(f"{chip.path}: core_count: missing (a chip with cores needs it)")
    for key, parts in (("logical_core.settings", max(lnc.settings)), ("hbm.stacks", chip.hbm.stacks or 1)):
        if chip.core_count % parts:
            raise InputError(
                f"{chip.path}: {key}: does not divide the cores of the chip",
                value=parts,
                limit=f"core_count {chip.core_count}",
            )


def _system(document: Document) -> System:
    v, names = document.values, document.names
    chip_path = find(names["chip"], CHIP_SCHEMA, document.path)
    shape = v.get("topology.shape", ())
    system = System(
        name=names["name"],
        title=names["title"],
        vendor=names["vendor"],
        kind=names["kind"],
        aliases=tuple(names.get("aliases", ())),
        chip=load_chip(chip_path),
        server=Server(
            chip_count=v["server.chip_count"],
            vcpus=v.get("server.vcpus"),
            host_memory_bytes=v.get("server.host_memory"),
        ),
        server_count=v["server_count"],
        topology=Topology(
            kind=v["topology.kind"],
            domain=v["topology.domain"],
            shape=shape,
            bytes_per_second=v.get("topology.bandwidth"),
        ),
        scale_out=ScaleOut(
            name=v["scale_out.name"],
            bytes_per_second=v.get("scale_out.bandwidth"),
            adapters=v.get("scale_out.adapters"),
            latency_ps=v.get("scale_out.latency"),
        ),
        prices=document.prices,
        path=str(document.path),
        facts=Table(document.facts),
    )
    if system.topology.domain > system.chip_count:
        raise InputError(
            f"{system.path}: topology.domain: more chips than the system has",
            value=system.topology.domain,
            limit=system.chip_count,
        )
    if shape and math.prod(shape) != system.topology.domain:
        raise InputError(
            f"{system.path}: topology.shape: does not hold the chips of the domain",
            value=shape,
            limit=system.topology.domain,
        )
    return system
