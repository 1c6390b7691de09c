"""``trnsim compare``: one model and one load on several systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, table, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.planner.comparison import Basis, Compared

SCHEMA = "trnsim-compare-1"


def compare(
    model: Annotated[str, typer.Option("--model", help="A model's name as published, or a config.json.")],
    systems: Annotated[str, typer.Option("--systems", help="Systems of the catalogue, or TOML files: A,B,...")],
    concurrency: Annotated[int, typer.Option("--concurrency", help="Users in a closed loop.", min=1)] = 64,
    isl: Annotated[int, typer.Option("--isl", help="Tokens of a prompt.", min=1)] = 1024,
    osl: Annotated[int, typer.Option("--osl", help="Tokens of an output.", min=1)] = 1024,
    chips: Annotated[int | None, typer.Option("--chips", help="Chips that replicas fill.", min=1)] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of weights: shipped, bf16, fp8, mxfp4, nvfp4 ...")] = "shipped",
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="Of keys and values: bf16, fp8.")] = "bf16",
    stack: Annotated[str, typer.Option("--stack", help="Serving stack of all; default: each chip's usual.")] = "",
    ttft_ms: Annotated[float | None, typer.Option("--ttft-ms", help="TTFT at most.")] = None,
    tpot_ms: Annotated[float | None, typer.Option("--tpot-ms", help="TPOT at most.")] = None,
    price: Annotated[str, typer.Option("--price", help="Type: on-demand, capacity-block, spot; default: shared.")] = "",
    date: Annotated[str, typer.Option("--date", help="Of prices; default: the newest that most have.")] = "",
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Compare the best serving plan of several systems: throughput, latency and the cost of a million tokens.

    Costs are of one price type and date; a system without such a price gets the price at which it would break even.

    Example: trnsim compare --model llama-3.3-70b --systems trn2.48xlarge,p5.48xlarge,p6-b200.48xlarge --dtype bf16
    """
    from trnsim.commands.plan_serve import make_plan
    from trnsim.planner.comparison import compare as compared
    from trnsim.planner.serving_search import Load

    names = [name.strip() for name in systems.split(",") if name.strip()]
    load = Load(
        users=concurrency,
        input_tokens=isl,
        output_tokens=osl,
        ttft=None if ttft_ms is None else ttft_ms / 1e3,
        tpot=None if tpot_ms is None else tpot_ms / 1e3,
    )
    plan = make_plan(model, names[0] if names else "", dtype, kv_dtype, isl + osl, stack)
    rows, basis = compared(plan, names, load, chips, price, date)
    if json is not None:
        write_json(_to_json(plan.model.name, load, rows, basis), json)
    if json != "-":
        title = f"{plan.model.name}: {concurrency} users, {isl:,} tokens in, {osl:,} out; weights {dtype}"
        _show(title, rows, basis)
    if all(row.best is None for row in rows):
        raise typer.Exit(1)


def _to_json(model: str, load: Any, rows: Sequence[Compared], basis: Basis) -> dict[str, Any]:
    from trnsim.commands.plan_serve_report import plan_json

    return {
        "schema": SCHEMA,
        "model": model,
        "load": {"users": load.users, "input_tokens": load.input_tokens, "output_tokens": load.output_tokens},
        "price_basis": {"type": basis.type, "date": basis.date},
        "systems": [
            {
                "system": row.system,
                "why": row.why,
                "plan": None if row.best is None else plan_json(row.best),
                "usd_per_million_output_tokens": row.usd_per_million,
                "break_even_usd_per_system_hour": None if row.break_even is None else dict(row.break_even),
            }
            for row in rows
        ],
    }


def _show(title: str, rows: Sequence[Compared], basis: Basis) -> None:
    from trnsim.commands.plan_serve_report import describe, uncertain

    out = console()
    cells = []
    for row in rows:
        if row.best is None:
            cells.append([row.system, "none", *[""] * 7])
            continue
        one, state = row.best, row.best.state
        cells.append(
            [
                row.system, describe(one), f"{one.chips:g}", f"{state.ttft * 1e3:,.0f}", f"{state.tpot * 1e3:,.1f}",
                f"{one.output_tokens_per_second:,.0f}", f"{one.output_tokens_per_second_per_chip:,.0f}",
                "refused" if row.usd_per_million is None else f"{row.usd_per_million:,.2f}", uncertain(one),
            ]
        )  # fmt: skip
    heads = ["system", "layout", "chips", "TTFT ms", "TPOT ms", "tokens/s", "a chip", "USD/M", "support"]
    out.print(table(title, heads, cells))
    if basis.date:
        out.print(f"prices: {basis.type}, {basis.date}; of each system the plan with the most output tokens a chip")
    else:
        out.print("no system has a public price")
    for row in rows:
        if row.best is None:
            out.print(f"{row.system}: {row.why}")
        elif row.break_even is not None:
            said = ", ".join(f"{name} at {hourly:,.2f}" for name, hourly in row.break_even.items())
            out.print(f"{row.system} has no price of {basis.type}, {basis.date}; USD an hour to break even with {said}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)
