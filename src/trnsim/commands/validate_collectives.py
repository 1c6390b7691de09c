"""``trnsim validate collectives``: published collectives beside ours, with the folds of the fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trnsim.commands.output import console, percent, table, write_json
from trnsim.errors import InputError
from trnsim.units import format_bytes

if TYPE_CHECKING:
    from trnsim.validation.collectives.report import Case, Validation

_WORST = 8


def collectives(
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="TRNSIM_DATA", help="collectives.csv or its folder; default TRNSIM_DATA."),
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Compare predicted with published times of collectives, refitting for every fold.

    Exit status 1 if a target of the model is missed or a row could not be predicted.

    Example: trnsim validate collectives --data collectives.csv --json -
    """
    from trnsim.validation.collectives.report import to_json, validate
    from trnsim.validation.collectives.rows import read_rows

    if data is None:
        raise InputError("no published times: give --data FILE, or set TRNSIM_DATA to the folder with collectives.csv")
    found = validate(read_rows(data))
    if not found.cases:
        raise InputError(f"{data} has no row that can be compared: " + _reasons(found))
    if json is not None:
        write_json(to_json(found), json)
    if json != "-":
        _show(found)
    raise typer.Exit(int(bool(found.failed) or not all(t.met for t in found.targets)))


def _reasons(found: Validation) -> str:
    texts = [f"{len(ids)} {reason}" for reason, ids in found.excluded]
    return "; ".join([*texts, *(reason for _, reason in found.failed[:3])])


def _show(found: Validation) -> None:
    from trnsim.validation.collectives.report import mean_errors

    out = console()
    rows = []
    for name in dict.fromkeys(c.set for c in found.cases):
        mine = [c for c in found.cases if c.set == name]
        groups = [("", mine)] + [
            (chip, [c for c in mine if c.chip == chip]) for chip in dict.fromkeys(c.chip for c in mine)
        ]
        for chip, cases in groups if len(groups) > 2 else groups[:1]:
            e = mean_errors(cases)
            rows.append(
                [f"  {chip}" if chip else name, str(e["cases"]), *(_share(e[k]) for k in ("all", "large", "small"))]
            )
    out.print(table("Mean absolute error", ["", "cases", "all", "1 MiB and above", "below"], rows))
    rows = []
    for fold in found.folds:
        groups2 = [("", list(fold.predicted))]
        groups2 += [
            (c, [p for p in fold.predicted if p.chip == c]) for c in dict.fromkeys(p.chip for p in fold.predicted)
        ]
        for chip, points in groups2:
            f = fold.errors(points)
            rows.append(
                [f"  {chip}" if chip else fold.name, str(f.points), _share(f.all), _share(f.large), _share(f.small)]
            )
    if rows:
        out.print(table("Refitted for each fold", ["", "points", "all", "1 MiB and above", "below"], rows))
    out.print(table("Targets", ["", "value", "limit", "met"], [
        [t.name, _value(t.value, t.unit), _limits(t.low, t.high, t.unit), "yes" if t.met else "NO"]
        for t in found.targets
    ]))  # fmt: skip
    neuron = [c for c in found.cases if c.set in ("neuron", "other") and (c.set == "neuron" or abs(c.error) > 1)]
    if neuron:
        out.print(table("Neuron, and others far off", ["", "measured", "predicted", "error", "support"], [
            [c.id, f"{c.measured:,.2f} {c.unit}", f"{c.predicted:,.2f}", percent(c.error), c.support] for c in neuron
        ]))  # fmt: skip
    worst = sorted(found.cases, key=lambda c: -abs(c.error))[:_WORST]
    out.print(table("Worst", ["", "measured", "predicted", "error"], [
        [_name(c), f"{c.measured:,.1f}", f"{c.predicted:,.1f}", percent(c.error)] for c in worst
    ]))  # fmt: skip
    for reason, ids in found.excluded:
        out.print(f"{len(ids):5} rows left out: {reason}", highlight=False)
    for name, reason in found.failed:
        out.print(f"failed: {name}: {reason}", highlight=False)
    out.print(f"{len(found.cases)} cases in {found.seconds:.1f} s", highlight=False)


def _name(c: Case) -> str:
    return f"{c.id}: {c.collective} of {c.ranks} {c.chip}, {format_bytes(c.nbytes)}, {c.algorithm}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _value(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if unit else f"{value:.1%}"


def _limits(low: float, high: float, unit: str) -> str:
    return f"{low:g} to {high:g} {unit}" if unit else f"{high:.0%}"


def register(validate_app: typer.Typer) -> None:
    """Add the command to ``trnsim validate``."""
    validate_app.command()(collectives)
