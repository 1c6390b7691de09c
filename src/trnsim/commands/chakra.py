"""``trnsim chakra``: what an execution trace of MLCommons Chakra holds, and how long it takes on other links."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, table, write_json
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.planner.chakra import Node, Trace

SCHEMA = "trnsim-chakra-1"


def chakra(
    file: Annotated[Path, typer.Argument(help="An execution trace (.et) of one rank.")],
    system: Annotated[
        str | None, typer.Option("--system", help="A system on whose links collectives are timed instead.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="Of collectives that do not say how many take part.", min=2)
    ] = None,
    lnc: Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core; default: the chip's.")] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the summary to FILE, or - for output.")] = None,
) -> None:
    """Read an execution trace of MLCommons Chakra: its operators and exchanges, and how long the rank takes.

    Computation runs in one queue, exchanges in another; each node starts once what it waits for is done.

    Example: trnsim chakra llama.0.et --system trn2.48xlarge
    """
    from trnsim.planner.chakra import length_us, read

    trace = read(file)
    times = {} if system is None else _timed(trace, system, ranks, lnc)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "file": str(file),
        "version": trace.version,
        "metadata": {k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in trace.metadata.items()},
        "kinds": _kinds(trace, times),
        "length_s": length_us(trace) / 1e6,
        "length_on_system_s": length_us(trace, times) / 1e6 if system is not None else None,
        "system": system,
    }
    if json is not None:
        write_json(found, json)
    if json != "-":
        _show(found)


def _timed(trace: Trace, system: str, ranks: int | None, lnc: int | None) -> dict[int, float]:
    """Microseconds of the collectives on the links of a system, by node."""
    from trnsim.hardware import load_system
    from trnsim.planner.chakra import COLLECTIVE
    from trnsim.planner.groups import ExchangeCosts

    costs = ExchangeCosts(load_system(system), lnc)
    found = {}
    for node in trace.nodes:
        if node.kind != COLLECTIVE:
            continue
        count, apart = _whole(node, "pg_size", ranks or 0), _whole(node, "pg_stride", 1)
        if not count:
            raise InputError(
                f"the trace does not say how many ranks take part in {node.name}: give --ranks", operand="--ranks"
            )
        used = costs.used(count * apart)
        found[node.number] = costs.cost(node.collective, count, apart, _whole(node, "comm_size", 0), used).microseconds
    return found


def _whole(node: Node, name: str, otherwise: int) -> int:
    value = node.attributes.get(name, otherwise)
    if not isinstance(value, int):
        raise InputError(f"{node.name}: {name} is no number", value=value)
    return value


def _kinds(trace: Trace, times: dict[int, float]) -> list[dict[str, Any]]:
    from trnsim.planner.chakra import KINDS

    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node in trace.nodes:
        one = rows[node.collective or KINDS[node.kind]]
        one["nodes"] += 1
        one["seconds"] += node.duration_us / 1e6
        one["seconds_on_system"] += times.get(node.number, node.duration_us) / 1e6
        one["flops"] += _whole(node, "num_ops", 0)
        one["bytes"] += _whole(node, "comm_size", 0)
    return [{"kind": kind, **values} for kind, values in rows.items()]


def _show(found: dict[str, Any]) -> None:
    out = console()
    elsewhere = found["system"] is not None
    rows = []
    for one in found["kinds"]:
        cells = [one["kind"], f"{one['nodes']:,.0f}", f"{one['seconds']:,.3f}"]
        cells += [f"{one['seconds_on_system']:,.3f}"] if elsewhere else []
        rows.append([*cells, f"{one['flops'] / 1e12:,.1f}", f"{one['bytes'] / 1e9:,.2f}"])
    heads = ["", "nodes", "s", *([f"s on {found['system']}"] if elsewhere else []), "TFLOP", "GB exchanged"]
    out.print(table(f"{found['file']} (Chakra {found['version']})", heads, rows))
    out.print(f"this rank takes {found['length_s']:,.3f} s as it was recorded", highlight=False)
    if elsewhere:
        out.print(f"{found['length_on_system_s']:,.3f} s with the links of {found['system']}", highlight=False)


def write_steps(plan: Any, folder: Path) -> list[Path]:
    """The step of a training plan, a file a stage of its pipeline; the files.

    Raises:
        UnsupportedError: the package ``protobuf`` is not installed.
        InputError: a folder that cannot be made.
    """
    from trnsim.planner.chakra import messages, write
    from trnsim.planner.chakra_steps import trace_of

    messages()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--chakra {folder}: {error.strerror}", operand="--chakra") from error
    found = []
    for stage in range(plan.layout.pp):
        trace = trace_of(plan, stage)
        path = folder / f"{plan.model.name}.{trace.metadata['rank']!s}.et"
        write(trace, path)
        found.append(path)
    return found


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chakra)
