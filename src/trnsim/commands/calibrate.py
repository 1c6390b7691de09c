"""``trnsim calibrate``: a serving stack fitted to a user's own measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, percent, said, table, write_json

if TYPE_CHECKING:
    from trnsim.validation.serving.calibrate import Calibration

SCHEMA = "trnsim-calibration-1"


def calibrate(
    files: Annotated[
        list[Path], typer.Argument(help="CSV with the columns of inference.csv; JSON of vllm bench serve or guidellm.")
    ],
    stack: Annotated[str, typer.Option("--stack", help="Name of the stack that is made.")],
    like: Annotated[
        str, typer.Option("--like", help="The stack that it is like in all but time; default: the chip's usual.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="The profile; default: NAME.toml.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="For JSON: the model.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="For JSON: the system.")] = None,
    tp: Annotated[int, typer.Option("--tp", help="For JSON: ranks of a replica.", min=1)] = 1,
    ep: Annotated[int, typer.Option("--ep", help="For JSON: ranks that share the experts.", min=1)] = 1,
    replicas: Annotated[int, typer.Option("--replicas", help="For JSON: how many.", min=1)] = 1,
    dtype: Annotated[str, typer.Option("--dtype", help="For JSON: of weights.")] = "shipped",
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="For JSON: of keys and values.")] = "bf16",
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Fit a stack profile to measured TPOT and write it, with the error on configurations that were left out.

    Three configurations fit one factor on all times of the device; eight fit operators, exchanges and host time each.
    The profile is then a --stack of ``trnsim plan serve``.

    Example: trnsim calibrate runs.csv --stack mine
    """
    import datetime as dt
    from dataclasses import replace

    from trnsim.commands.plan_serve import make_plan
    from trnsim.planner.serving import default_serving_stack
    from trnsim.report.files import write_text_atomic
    from trnsim.validation.serving import calibrate as calibration
    from trnsim.workloads import Layout

    plan = None
    if model is not None and system is not None:
        plan = make_plan(model, system, dtype, kv_dtype, 1)
        plan = replace(plan, layout=Layout(tp=tp, ep=ep, dp=replicas))
        if not like:
            from trnsim.hardware import load_system

            like = default_serving_stack(load_system(system))
    measured, refused = [], []
    for file in files:
        some, others = calibration.read_measured(file, like, plan)
        measured += some
        refused += others
    found = calibration.calibrate(stack, measured, refused, ", ".join(file.name for file in files))
    target = out or Path(f"{stack}.toml")
    write_text_atomic(target, found.toml(str(dt.datetime.now(dt.timezone.utc).date())))
    said(f"wrote {target}")
    if json is not None:
        write_json(to_json(found), json)
    if json != "-":
        _show(found, target)


def to_json(found: Calibration) -> dict[str, Any]:
    """``cases[]`` and ``summary``."""
    work, fixed, exchanges = found.factors
    return {
        "schema": SCHEMA,
        "cases": [
            {
                "ids": list(c.point.ids),
                "name": c.point.key,
                "measured_ms": c.point.measured_ms,
                "unfitted_ms": c.unfitted_ms,
                "predicted_ms": c.left_out_ms,
                "null_ms": c.null_ms,
                "error": c.error,
            }
            for c in found.cases
        ],
        "refused": [{"id": row, "why": why} for row, why in found.refused],
        "summary": {
            "stack": found.name,
            "like": found.like,
            "work": work,
            "fixed": fixed,
            "exchanges": exchanges,
            "host_ms": found.host_ms,
            "cases": len(found.cases),
            "error": found.error,
            "error_null": found.null_error,
            "error_unfitted": found.unfitted_error,
        },
    }


def _show(found: Calibration, target: Path) -> None:
    out = console()
    columns = ["", "measured ms", "unfitted", "predicted", "error", "null"]
    out.print(table(f"TPOT of {len(found.cases)} configurations, each predicted without it", columns, [
        [
            c.point.key,
            *(f"{value:,.2f}" for value in (c.point.measured_ms, c.unfitted_ms, c.left_out_ms)),
            percent(c.error),
            percent(c.null_ms / c.point.measured_ms - 1),
        ]
        for c in found.cases
    ]))  # fmt: skip
    out.print(
        f"mean absolute error: {found.error:.1%}, unfitted {found.unfitted_error:.1%}; null model (bytes and FLOPs "
        f"over rates, in the same folds) {found.null_error:.1%}",
        highlight=False,
    )
    work, fixed, exchanges = found.factors
    host = "as the stack has it (eight configurations would tell)"
    if found.host_ms is not None:
        host = f"{found.host_ms:.2f} ms"
    out.print(
        f"stack {found.name}, like {found.like}: operators' work x {work:.2f}, fixed times x {fixed:.2f}, exchanges x "
        f"{exchanges:.2f}; host time a step {host}",
        highlight=False,
    )
    for row, why in found.refused:
        out.print(f"left out: {row}: {why}", highlight=False)
    if found.error > found.null_error:
        out.print("the null model is no worse: these measurements say little about the stack", highlight=False)
    out.print(f"trnsim plan serve --stack {target} uses it", highlight=False)


def register(app: typer.Typer) -> None:
    """Add the command to ``trnsim``."""
    app.command()(calibrate)
