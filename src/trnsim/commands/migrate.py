"""``trnsim migrate``: a model that is served on one system, moved to others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, table, write_json
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.planner.migration import Migration, Move
    from trnsim.planner.serving import ServingEstimate

SCHEMA = "trnsim-migrate-1"


def migrate(
    source: Annotated[str, typer.Option("--from", help="The system that serves the model now.")],
    model: Annotated[str, typer.Option("--model", help="A model's name as published, or a config.json.")],
    to: Annotated[str, typer.Option("--to", help="Systems to move to: A,B,...; default: the Trainium line.")] = "",
    concurrency: Annotated[int, typer.Option("--concurrency", help="Users in a closed loop.", min=1)] = 16,
    isl: Annotated[int, typer.Option("--isl", help="Tokens of a prompt.", min=1)] = 1024,
    osl: Annotated[int, typer.Option("--osl", help="Tokens of an output.", min=1)] = 256,
    dtype: Annotated[str, typer.Option("--dtype", help="Of weights: bf16, fp8 ...; or as shipped.")] = "bf16",
    stack: Annotated[str, typer.Option("--stack", help="Serving stack of all; default: each chip's usual.")] = "",
    implementation: Annotated[
        str, typer.Option("--implementation", help="Of operators: compiler, kernel, best; default: compiler.")
    ] = "",
    ttft_ms: Annotated[float | None, typer.Option("--ttft-ms", help="TTFT at most.")] = None,
    tpot_ms: Annotated[float | None, typer.Option("--tpot-ms", help="TPOT at most.")] = None,
    price: Annotated[str, typer.Option("--price", help="Type that both must have; default: the first shared.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="What if: CHIP.PATH=VALUE, such as trn3.hbm.bandwidth=6TB/s.")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the migration to FILE, or - for output.")] = None,
) -> None:
    """What it costs to serve a model elsewhere: each pair of systems within one price type and date.

    Where two systems share no price type and date, the cost is refused and the break-even price is told.

    Example: trnsim migrate --from inf2.48xlarge --model llama-3.1-8b
    """
    from trnsim.commands.plan_serve import make_plan
    from trnsim.hardware.whatif import systems_with
    from trnsim.planner.migration import PREFERRED, TARGETS
    from trnsim.planner.migration import migrate as moved
    from trnsim.planner.serving_search import Load

    if price and price not in PREFERRED:
        raise InputError(f"no price type {price!r}", operand="--price", value=price, limit=PREFERRED)
    targets = [name.strip() for name in to.split(",") if name.strip()] or list(TARGETS)
    source, *targets = systems_with([source, *targets], set_)
    load = Load(
        users=concurrency,
        input_tokens=isl,
        output_tokens=osl,
        ttft=None if ttft_ms is None else ttft_ms / 1e3,
        tpot=None if tpot_ms is None else tpot_ms / 1e3,
    )
    plan = make_plan(model, source, dtype, "bf16", isl + osl, stack, implementation)
    found = moved(plan, source, targets, load, price)
    if json is not None:
        write_json(to_json(plan.model.name, load, found), json)
    if json != "-":
        title = f"{plan.model.name}: {concurrency} users, {isl:,} tokens in, {osl:,} out; weights {dtype}"
        _show(title, found)


def to_json(model: str, load: Any, found: Migration) -> dict[str, Any]:
    """The migration as plain data."""
    from trnsim.commands.plan_serve_report import plan_json

    return {
        "schema": SCHEMA,
        "model": model,
        "load": {"users": load.users, "input_tokens": load.input_tokens, "output_tokens": load.output_tokens},
        "source": {"system": found.source, "plan": plan_json(found.best)},
        "targets": [
            {
                "system": move.system,
                "why": move.why,
                "plan": None if move.best is None else plan_json(move.best),
                "cost": None if move.money is None else {
                    "price_type": move.money.basis.type,
                    "price_date": move.money.basis.date,
                    "source_usd_per_hour": move.money.source_hourly,
                    "target_usd_per_hour": move.money.target_hourly,
                    "source_usd_per_million_output_tokens": move.money.source_million,
                    "target_usd_per_million_output_tokens": move.money.target_million,
                },
                "break_even": None if move.break_even is None else [
                    {"price_type": basis.type, "price_date": basis.date, "usd_per_hour": hourly}
                    for basis, hourly in move.break_even.items()
                ],
            }
            for move in found.moves
        ],
    }  # fmt: skip


def _show(title: str, found: Migration) -> None:
    out = console()
    rows = [_figures(found.source + " (now)", found.best)]
    rows += [_figures(move.system, move.best) for move in found.moves]
    heads = ["system", "layout", "chips", "TTFT ms", "TPOT ms", "tokens/s", "a chip", "support"]
    out.print(table(title, heads, rows))
    costs = [_costs(found.source, move) for move in found.moves if move.money is not None]
    if costs:
        heads = ["to", "basis", "USD/h now", "USD/h there", "USD/M now", "USD/M there", "change"]
        out.print(table("A million output tokens, each pair on its own basis", heads, costs))
    for move in found.moves:
        if move.best is None:
            out.print(f"{move.system}: {move.why}", highlight=False)
        if move.others:
            also = ", ".join(f"{basis.type} of {basis.date}" for basis in move.others)
            out.print(f"{move.system} shares {also} too: --price", highlight=False)
        if move.break_even is not None:
            even = ", ".join(f"{hourly:,.2f} ({b.type}, {b.date})" for b, hourly in move.break_even.items())
            out.print(
                f"{move.system} shares no price type and date with {found.source}: its cost is refused; a token "
                f"costs as much as now at USD an hour of {even}", highlight=False,
            )  # fmt: skip
    said = dict.fromkeys(reason for move in found.moves if move.best is not None for reason in move.best.reasons)
    for reason in list(said)[:3]:
        out.print(f"assumed: {reason}", highlight=False)


def _figures(name: str, best: ServingEstimate | None) -> list[str]:
    from trnsim.commands.plan_serve_report import describe, uncertain

    if best is None:
        return [name, "none", *[""] * 6]
    return [
        name, describe(best), f"{best.chips:g}", f"{best.state.ttft * 1e3:,.0f}", f"{best.state.tpot * 1e3:,.1f}",
        f"{best.output_tokens_per_second:,.0f}", f"{best.output_tokens_per_second_per_chip:,.0f}", uncertain(best),
    ]  # fmt: skip


def _costs(source: str, move: Move) -> list[str]:
    money = move.money
    assert money is not None
    return [
        f"{source} to {move.system}", f"{money.basis.type}, {money.basis.date}", f"{money.source_hourly:,.2f}",
        f"{money.target_hourly:,.2f}", f"{money.source_million:,.2f}", f"{money.target_million:,.2f}",
        f"{money.target_million / money.source_million - 1:+.0%}",
    ]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(migrate)
