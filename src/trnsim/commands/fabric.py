"""``trnsim fabric``: how the chips of a system are linked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, said, table, write_json
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.fabric.topology import Topology


def fabric(
    system: Annotated[str, typer.Argument(help="An instance, UltraServer or rack, or its TOML file; list: all.")],
    systems: Annotated[int, typer.Option("--systems", help="How many of them share a network.")] = 1,
    lnc: Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core (a rank).")] = None,
    fail: Annotated[
        list[str] | None, typer.Option("--fail", help="What has failed: a chip (3) or the links between two (3-7).")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw it to FILE.")] = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write it as JSON to FILE, or - for standard output.")
    ] = None,
) -> None:
    """Show how the chips of a system are linked: levels, rates, bisection bandwidth and diameter.

    Example: trnsim fabric trn2-ultraserver --svg ultraserver.svg
    """
    from trnsim.fabric.topology import topology

    if system == "list":
        _list(json)
        return
    made = topology(system, systems, lnc)
    for one in fail or []:
        made = _without(made, one)
    if json is not None:
        write_json(_as_json(made), json)
    if svg is not None:
        from trnsim.fabric.drawing import draw
        from trnsim.report.files import write_text_atomic

        write_text_atomic(svg, draw(made))
        said(f"wrote {svg}")
    if json != "-":
        _show(made)


def _without(made: Topology, text: str) -> Topology:
    match = re.fullmatch(r"(?:chip\s*)?(\d+)(?:-(?:chip\s*)?(\d+))?", text.strip())
    if match is None:
        raise InputError(
            "what has failed is a chip (3) or the links between two chips (3-7)", operand="--fail", value=text
        )
    if match[2] is None:
        return made.without(chips=(int(match[1]),))
    return made.without(links=made.link_between(int(match[1]), int(match[2])))


def _list(json: str | None) -> None:
    from trnsim.fabric.topology import topology
    from trnsim.hardware import system_names

    found = [topology(name) for name in system_names()]
    if json is not None:
        write_json({"schema": "trnsim-fabric-list-1", "systems": [_as_json(one) for one in found]}, json)
    if json == "-":
        return
    rows = []
    for one in found:
        cut = _cut(one)
        rows.append(
            (
                one.system.name,
                one.system.chip.name,
                str(one.chip_count),
                str(one.rank_count),
                one.system.topology.kind,
                f"{cut['gigabytes_per_second']:,.1f}" if cut else "",
                str(_diameter(one)),
            )
        )
    console().print(table("Systems", ("system", "chip", "chips", "ranks", "links", "bisection GB/s", "diameter"), rows))


def _cut(made: Topology) -> dict[str, Any] | None:
    from trnsim.fabric.measures import bisection

    cut = bisection(made)
    return None if cut is None else {"gigabytes_per_second": cut.bytes_per_second / 1e9, "across": cut.across}


def _diameter(made: Topology) -> int:
    from trnsim.fabric.measures import diameter

    return diameter(made)


def _as_json(made: Topology) -> dict[str, Any]:
    return {
        "schema": "trnsim-fabric-1",
        "name": made.name,
        "system": made.system.name,
        "systems": made.systems,
        "chips": made.chip_count,
        "ranks": made.rank_count,
        "ranks_per_chip": made.ranks_per_chip,
        "levels": [
            {
                "name": level.name,
                "kind": level.kind,
                "members": level.members,
                "technology": level.technology,
                "shape": list(level.shape),
                "gigabytes_per_second": level.bytes_per_second / 1e9,
                "latency_us": None if level.latency_ps is None else level.latency_ps / 1e6,
            }
            for level in made.levels
        ],
        "failed_links": sorted(made.failed_links),
        "failed_chips": sorted(made.failed_chips),
        "bisection": _cut(made),
        "diameter": _diameter(made),
        "facts": _facts(made),
    }


def _facts(made: Topology) -> list[dict[str, Any]]:
    """Where the rates come from, with what other sources say."""
    found = []
    for prefix, facts in (("chip", made.system.chip.facts), ("system", made.system.facts)):
        for key, fact in facts.items():
            if key.startswith(("scale_up.", "topology.", "scale_out.")):
                found.append(
                    {
                        "key": f"{prefix}.{key}",
                        "value": fact.value,
                        "source": fact.source,
                        "date": fact.date,
                        "confidence": fact.confidence,
                        "why": fact.why,
                        "alternatives": [{"value": a.value, "source": a.source} for a in fact.alternatives],
                    }
                )
    return found


_KINDS = {"star": "switched", "none": "none"}


def _show(made: Topology) -> None:
    out = console()
    out.print(f"{made.name}: {made.chip_count:,} chips, {made.rank_count:,} ranks ({made.ranks_per_chip} a chip)")
    if made.failed_chips or made.failed_links:
        pairs = len(made.failed_links) // 2
        out.print(f"failed: {len(made.failed_chips)} chips, and the links between {pairs} pairs of chips")
    rows = []
    for level in made.levels:
        if level.kind == "none":
            continue
        kind = _KINDS.get(level.kind) or ("torus " if level.wraps else "chain ") + "x".join(map(str, level.shape))
        if level.kind == "grid" and len(level.shape) == 1 and level.wraps:
            kind = f"ring of {level.shape[0]}"
        if level.name == "chip":
            kind = "through HBM"
        latency = "unknown" if level.latency_ps is None else f"{level.latency_ps / 1e6:g}"
        links = str(level.adapters) + " adapters" if level.adapters else ""
        rows.append((level.name, kind, str(level.members), level.technology, links,
                     f"{level.bytes_per_second / 1e9:,.4g}", latency))  # fmt: skip
    columns = ("within", "links", "members", "technology", "", "GB/s one way", "step us")
    out.print(table("", columns, rows))
    cut = _cut(made)
    if cut:
        out.print(f"bisection bandwidth {cut['gigabytes_per_second']:,.1f} GB/s one way, across {cut['across']}")
        out.print(f"diameter {_diameter(made)} links")
    direction = made.system.chip.facts.get("scale_up.direction")
    stated = any(level.direction for level in made.system.chip.scale_up.levels.values())
    if direction is not None and direction.value == "not stated" and not stated and made.chip_count > 1:
        out.print("direction of the chip's figures is not stated: read as both ways together, half each way")
    differing = [fact for fact in _facts(made) if fact["alternatives"]]
    if differing:
        out.print("\nSources differ:")
    for fact in differing:
        others = "; ".join(f"{other['value']} ({other['source']})" for other in fact["alternatives"])
        out.print(f"- {fact['key']}: {fact['value']}" + (f", {fact['why']}" if fact["why"] else ""))
        out.print(f"  others say {others}", style="dim")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fabric)
