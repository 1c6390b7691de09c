"""``trnsim validate serving``: published TPOT beside predicted, with the folds of the fits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, percent, table, write_json
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.validation.serving.report import Validation

_WORST = 12


def serving(
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="TRNSIM_DATA", help="inference.csv or its folder; default TRNSIM_DATA."),
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Print what became of every row.")] = False,
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Compare predicted with published TPOT, refitting the stacks without each chip and tensor parallelism in turn.

    Exit status 1 if a target is missed.

    Example: trnsim validate serving --data inference.csv --json -
    """
    from trnsim.validation.serving.report import to_json, validate
    from trnsim.validation.serving.rows import read_rows

    if data is None:
        raise InputError("no published runs: give --data FILE, or set TRNSIM_DATA to the folder with inference.csv")
    found = validate(read_rows(data))
    if not found.cases and not found.neuron:
        reasons = "; ".join(f"{count} {rule}" for rule, count in found.excluded)
        raise InputError(f"{data} has no row that can be compared: {reasons}")
    if json is not None:
        write_json(to_json(found), json)
    if json != "-":
        _show(found, rows)
    raise typer.Exit(int(not all(t.met for t in found.targets)))


def _show(found: Validation, every: bool) -> None:
    out = console()
    if found.cases:
        _show_nvidia(out, found)
    else:
        out.print("no rows of Nvidia GPUs", highlight=False)
    _show_targets(out, found)
    if found.neuron:
        _show_neuron(out, found)
    for rule, count in found.excluded:
        out.print(f"{count:5} rows excluded: {rule}", highlight=False)
    for why, count in Counter(why for _, why in found.refused).most_common():
        out.print(f"{count:5} rows refused: {why}", highlight=False)
    if every:
        for row, (fate, why) in found.fates.items():
            out.print(f"{row}: {fate}{': ' if why else ''}{why}", highlight=False)
    out.print(
        f"{found.predicted} of {len(found.fates)} rows predicted, {len(found.refused)} refused, the rest excluded by "
        f"rule, in {found.seconds:.1f} s{'' if every else '; --rows prints each'}",
        highlight=False,
    )


def _show_targets(out: Any, found: Validation) -> None:
    out.print(table("Targets", ["", "value", "limit", "met"], [
        [
            t.name,
            _share(t.value),
            f"{'>=' if t.least else '<='} {t.limit:.0%}",
            "no rows" if t.value is None else "yes" if t.met else "NO",
        ]
        for t in found.targets
    ]))  # fmt: skip


def _show_nvidia(out: Any, found: Validation) -> None:
    from trnsim.validation.serving.report import errors, sets

    rows = []
    for name, cases in sets(found.cases).items():
        e = errors(cases)
        figures = ("mape_unfitted", "bias_unfitted", "mape_fitted", "mape", "median", "worst", "mape_null")
        rows.append([name, str(e["rows"]), str(e["cases"]), *(_share(e[k]) for k in figures), _share(e["ttft_median"])])
        for model in sorted({c.point.model for c in cases}):
            mine = [c for c in cases if c.point.model == model]
            e = errors(mine)
            shown = [*(_share(e[k]) for k in figures), _share(e["ttft_median"])]
            rows.append([f"  {model}", str(e["rows"]), str(e["cases"]), *shown])
    columns = ["", "rows", "cases", "unfitted", "bias", "fitted", "left out", "median", "worst", "null", "TTFT"]
    out.print(table("Nvidia GPUs: mean absolute error of TPOT", columns, rows))
    out.print(
        "unfitted: kernels and exchanges as they are, no host time. left out: stacks fitted without the chip's runs\n"
        "of the same tensor parallelism; median and worst of these. null: bytes and FLOPs over rates plus a constant, "
        "in the\nsame folds. TTFT: median, unfitted: the rows omit arrivals and chunks.",
        highlight=False,
    )
    out.print(table("Constants of stacks", ["", "work", "fixed", "exchanges", "host ms"], [
        [name, *(f"{value:.2f}" for value in factors)] for name, factors in sorted(found.fits.items())
    ]))  # fmt: skip
    worst = sorted(found.cases, key=lambda c: -abs(c.error))[:_WORST]
    out.print(table("Worst", ["", "measured ms", "predicted ms", "error", "fitted"], [
        [
            c.point.key,
            f"{c.point.measured_ms:,.2f}",
            f"{c.left_out_ms:,.2f}",
            percent(c.error),
            percent(c.fitted_ms / c.point.measured_ms - 1),
        ]
        for c in worst
    ]))  # fmt: skip


def _show_neuron(out: Any, found: Validation) -> None:
    from statistics import median

    from trnsim.validation.serving.neuron import OVER

    rows = []
    groups = dict.fromkeys((c.kind, c.point.stack) for c in found.neuron)
    for kind, stack in sorted(groups):
        mine = [c for c in found.neuron if (c.kind, c.point.stack) == (kind, stack)]
        left = [c for c in mine if c.left_out_ms is not None]
        nulls = [abs(c.null_ms / c.point.measured_ms - 1) for c in left if c.null_ms is not None]
        others = [abs(c.other_models_ms / c.point.measured_ms - 1) for c in mine if c.other_models_ms is not None]
        overs = [c.over for c in mine if c.over is not None]
        rows.append([
            stack, kind, str(len(mine)),
            _share(max(overs, default=None)), str(sum(o > OVER for o in overs)),
            _share(median(abs(c.unfitted_ms / c.point.measured_ms - 1) for c in mine)),
            _share(median(abs(c.error) for c in left)) if left else "assumed",
            _share(median(others)) if others else "",
            _share(median(nulls)) if nulls else "",
        ])  # fmt: skip
    columns = ["", "time", "cases", "ideal at most", "over 10 %", "unfitted", "left out", "other models", "null"]
    out.print(table("Neuron devices, TPOT", columns, rows))
    out.print(
        "ideal at most: how far a step with the ideal stack exceeds the measured one at most, and how many by more\n"
        "than 10 %. unfitted, left out, null: median errors; left out: the stack fitted without the configuration;\n"
        "assumed: fewer than three configurations. other models: graphs of NxD Inference and vLLM Neuron on the chip,\n"
        "fitted without the model.",
        highlight=False,
    )
    parts = [
        [f"{c.point.key}: {name}", f"{measured:,.2f}", f"{told:,.2f}", percent(told / measured - 1)]
        for c in found.neuron
        for name, measured, told in c.breakdown
    ]
    if parts:
        out.print(
            table("Parts of steps, fitted without the model", ["", "measured ms", "predicted ms", "error"], parts)
        )
    worst = sorted(found.neuron, key=lambda c: -abs(c.error))[:_WORST]
    out.print(table("Worst", ["", "measured ms", "ideal ms", "predicted ms", "error"], [
        [
            f"{c.point.key} ({c.kind})",
            f"{c.point.measured_ms:,.2f}",
            "" if c.ideal_ms is None else f"{c.ideal_ms:,.2f}",
            f"{c.predicted_ms:,.2f}",
            percent(c.error),
        ]
        for c in worst
    ]))  # fmt: skip


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def register(validate_app: typer.Typer) -> None:
    """Add the command to ``trnsim validate``."""
    validate_app.command()(serving)
