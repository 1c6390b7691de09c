"""``trnsim validate training``: published training steps beside predicted ones, with the folds of the fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trnsim.commands.output import console, percent, table, write_json
from trnsim.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from trnsim.validation.training.report import Validation
    from trnsim.validation.training.targets import Target

_WORST = 12


def training(
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="TRNSIM_DATA", help="training.csv or its folder; default TRNSIM_DATA."),
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Compare predicted with published training steps, refitting the stacks without each model in turn.

    Exit status 1 if a target of the model is missed or a row could not be predicted.

    Example: trnsim validate training --data training.csv --json -
    """
    from trnsim.validation.training.report import to_json, validate
    from trnsim.validation.training.rows import read_rows

    if data is None:
        raise InputError("no published steps: give --data FILE, or set TRNSIM_DATA to the folder with training.csv")
    found = validate(read_rows(data))
    if not found.cases:
        reasons = "; ".join(f"{count} {rule}" for rule, count in found.excluded)
        raise InputError(f"{data} has no row that can be compared: {reasons}")
    if json is not None:
        write_json(to_json(found), json)
    if json != "-":
        _show(found)
    raise typer.Exit(int(bool(found.refused) or not all(t.met for t in found.targets)))


def _show(found: Validation) -> None:
    from trnsim.validation.training.report import errors, sets

    out = console()
    grouped = sets(found.cases)
    rows = []
    for name, cases in grouped.items():
        e = errors(cases)
        figures = ("mape_fitted", "mape", "median", "worst", "mape_where_null", "null_mape")
        rows.append([name, str(e["rows"]), str(e["cases"]), *(_share(e[key]) for key in figures)])
    columns = ["", "rows", "cases", "fitted", "left out", "median", "worst", "with a null", "null"]
    out.print(table("Mean absolute error of a step", columns, rows))
    out.print(
        "cases: rows that differ in data parallelism or release only are one, the median. left out: without the\n"
        "model; median and worst of these. null: one MFU for a chip and format, in the same folds.",
        highlight=False,
    )
    out.print(table("Targets", ["", "cases", "value", "limit", "met"], [
        [t.name, str(t.cases or ""), _value(t), f"{'>=' if t.least else '<='} {t.limit:.0%}", "yes" if t.met else "NO"]
        for t in found.targets
    ]))  # fmt: skip
    worst = sorted(found.cases, key=lambda c: -abs(c.error))[:_WORST]
    out.print(table("Worst", ["", "measured s", "predicted s", "error", "fitted"], [
        [
            c.point.key,
            f"{c.point.measured_us / 1e6:,.3f}",
            f"{c.left_out_us / 1e6:,.3f}",
            percent(c.error),
            percent(c.fitted_us / c.point.measured_us - 1),
        ]
        for c in worst
    ]))  # fmt: skip
    _show_calculon(found, out)
    for rule, count in found.excluded:
        out.print(f"{count:5} rows left out: {rule}", highlight=False)
    for name, why in found.refused:
        out.print(f"refused: {name}: {why}", highlight=False)
    rows_used = sum(len(c.point.ids) for c in found.cases)
    out.print(f"{rows_used} of {found.rows} rows predicted, in {found.seconds:.1f} s", highlight=False)


def _show_calculon(found: Validation, out: Console) -> None:
    """Calculon beside ours on the points that both have."""
    from trnsim.validation.training.paper import memory
    from trnsim.validation.training.report import errors, sets

    other = found.calculon
    if other.why:
        out.print(f"Calculon was not run beside: {other.why}", highlight=False)
        return
    ours: dict[str, list[float]] = {}
    for point in memory():
        ours.setdefault(point.kind, []).append(abs(point.error))
    paper = sets(found.cases)["A100, Megatron of 2022"]
    e = errors(paper)
    rows = [["steps", str(len(paper)), _share(e["mape"]), _share(e["worst"]), _share(e["mape_fitted"])]]
    rows += [[kind, str(len(v)), _share(sum(v) / len(v)), _share(max(v)), ""] for kind, v in ours.items()]
    for number, row in enumerate(rows):
        theirs = [abs(value) for value in other.errors(row[0])]
        rows[number] = [*row, *([_share(sum(theirs) / len(theirs)), _share(max(theirs))] if theirs else ["", ""])]
    columns = ["", "points", "mean", "worst", "fitted", "Calculon mean", "worst"]
    out.print(table("Megatron of 2022 (arXiv 2205.05198), beside Calculon", columns, rows))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _value(target: Target) -> str:
    return "" if target.value is None else f"{target.value:.1%}"


def register(validate_app: typer.Typer) -> None:
    """Add the command to ``trnsim validate``."""
    validate_app.command()(training)
