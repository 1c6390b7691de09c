"""``trnsim validate instructions``: costs of single instructions and DMAs beside published tables of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, percent, table, write_json
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.profiles.tables import Case

_SHOWN = 12


def instructions(
    data: Annotated[
        Path | None, typer.Option("--data", help="Instructions: a table like trn2_instr_timing.csv.")
    ] = None,
    dma: Annotated[Path | None, typer.Option("--dma", help="DMAs: a table like trn2_dma_timing.csv.")] = None,
    chip: Annotated[str, typer.Option("--chip", help="The chip whose constants are used.")] = "trn2",
    json: Annotated[
        str | None, typer.Option("--json", help="Write the cases to FILE, or - for standard output.")
    ] = None,
) -> None:
    """Compare the costs of instructions and DMAs with measured ones.

    Exit status 1 if fewer than 90 % of the durations or of the intervals are within 10 %.

    Example: trnsim validate instructions --data trn2_instr_timing.csv --dma trn2_dma_timing.csv
    """
    from trnsim.hardware import load_chip, load_timing
    from trnsim.profiles.tables import dma_cases, instruction_cases

    if data is None and dma is None:
        raise InputError("nothing to compare with: give --data, --dma or both")
    timing = load_timing(load_chip(chip))
    cases = instruction_cases(data, timing) if data is not None else []
    cases += dma_cases(dma, timing) if dma is not None else []
    summary = summarize(cases)
    if json is not None:
        write_json({"chip": chip, "summary": summary, "cases": [_case(c) for c in cases]}, json)
    if json != "-":
        _show(cases, summary, chip)
    low = [g for g in summary if g["group"] in ("duration", "interval") and g["within_10_percent"] < 0.9]
    raise typer.Exit(int(bool(low)))


def summarize(cases: list[Case]) -> list[dict[str, Any]]:
    """Of each group: how many cases, the share within 10 %, mean absolute error and the worst."""
    from trnsim.profiles.tables import share_within

    found = []
    for group in dict.fromkeys(c.group for c in cases):
        mine = [c for c in cases if c.group == group]
        worst = max(mine, key=lambda c: abs(c.error))
        found.append(
            {
                "group": group,
                "cases": len(mine),
                "within_10_percent": share_within(mine),
                "mean_absolute_error": sum(abs(c.error) for c in mine) / len(mine),
                "worst": worst.name,
                "worst_error": worst.error,
            }
        )
    return found


def _case(case: Case) -> dict[str, Any]:
    return {
        "group": case.group,
        "name": case.name,
        "measured_ns": case.measured,
        "predicted_ns": case.predicted,
        "error": case.error,
        "count": case.count,
    }


def _show(cases: list[Case], summary: list[dict[str, Any]], chip: str) -> None:
    out = console()
    out.print(table(f"Measured and predicted, {chip}", ["", "cases", "within 10 %", "mean error", "worst"], [
        [g["group"], str(g["cases"]), f"{g['within_10_percent']:.0%}", f"{g['mean_absolute_error']:.1%}",
         percent(g["worst_error"])] for g in summary
    ]))  # fmt: skip
    beyond = sorted((c for c in cases if not c.within), key=lambda c: -abs(c.error))
    free = [c for c in beyond if "contended" not in c.group][:_SHOWN]
    out.print(table("Beyond 10 %, without other DMAs in the way", ["", "measured ns", "predicted ns", "error"], [
        [f"{c.group}: {c.name}", f"{c.measured:,.1f}", f"{c.predicted:,.1f}", percent(c.error)] for c in free
    ]))  # fmt: skip


def register(validate_app: typer.Typer) -> None:
    """Add the command to ``trnsim validate``."""
    validate_app.command()(instructions)
