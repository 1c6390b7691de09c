"""``trnsim compare``: one model and one load on several systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trnsim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Users of the curve of throughput against latency.
_USERS = tuple(4**n for n in range(6))


def compare(
    model: Annotated[str, typer.Option("--model", help="A model's name as published, or a config.json.")],
    systems: Annotated[str, typer.Option("--systems", help="Systems of the catalogue, or TOML files: A,B,...")],
    train: Annotated[bool, typer.Option("--train", help="Compare training; otherwise serving.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Users in a closed loop.", min=1)] = 64,
    isl: Annotated[int, typer.Option("--isl", help="Tokens of a prompt.", min=1)] = 1024,
    osl: Annotated[int, typer.Option("--osl", help="Tokens of an output.", min=1)] = 1024,
    chips: Annotated[
        int | None, typer.Option("--chips", help="Chips that replicas fill, or that train (whole systems).", min=1)
    ] = None,
    global_batch: Annotated[int, typer.Option("--global-batch", help="Sequences of a training step.", min=1)] = 1024,
    sequence: Annotated[int, typer.Option("--seq", help="Tokens of a sequence of training.", min=1)] = 8192,
    tokens: Annotated[str, typer.Option("--tokens", help="Of the whole training run, such as 15T.")] = "1T",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of weights: shipped, bf16, fp8, mxfp4, nvfp4 ...; of training: bf16, fp8.")
    ] = "",
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="Of keys and values: bf16, fp8.")] = "bf16",
    stack: Annotated[str, typer.Option("--stack", help="Of all, as shipped; default: each chip's usual.")] = "",
    only: Annotated[str, typer.Option("--only", help="as-shipped or best-kernel; default: both.")] = "",
    ttft_ms: Annotated[float | None, typer.Option("--ttft-ms", help="TTFT at most.")] = None,
    tpot_ms: Annotated[float | None, typer.Option("--tpot-ms", help="TPOT at most.")] = None,
    price: Annotated[str, typer.Option("--price", help="Type: on-demand, capacity-block, spot; default: shared.")] = "",
    date: Annotated[str, typer.Option("--date", help="Of prices; default: the newest that most have.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="What if: CHIP.PATH=VALUE, such as trn3.hbm.bandwidth=6TB/s.")
    ] = None,
    plot: Annotated[str | None, typer.Option("--plot", help="Draw it into FILE: .svg, .png or .html.")] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Compare the best plans of several systems: throughput, latency and the cost of a million tokens.

    As shipped: compiled operators on Trainium, and the usual stack. Best kernel: the faster of kernel and compiled code
    for each operator, and nothing that waits for a host. Costs are of one price type and date; a system without such a
    price gets the price at which it would break even.

    Example: trnsim compare --model llama-3.3-70b --systems trn2.48xlarge,p5.48xlarge,p6-b200.48xlarge --dtype bf16
    """
    from trnsim.commands.compare_report import Served, Trained, report
    from trnsim.hardware.whatif import systems_with
    from trnsim.planner.comparison import VARIANTS, compare_training
    from trnsim.planner.comparison import compare as compare_serving

    names = _names(systems)
    if len(names) < 2:
        raise InputError("a comparison is of at least two systems", operand="--systems", value=names)
    names = systems_with(names, set_)
    if only and only not in VARIANTS:
        raise InputError("--only is as-shipped or best-kernel", operand="--only", value=only, limit=tuple(VARIANTS))
    variants = (only,) if only else tuple(VARIANTS)
    if plot is not None:
        from trnsim.commands.compare_plot import check

        check(plot)
    what: Served | Trained
    if train:
        from trnsim.commands.plan_train import FORMATS, parse_tokens, wanted_of

        if dtype and dtype not in FORMATS:
            raise InputError(f"no format {dtype!r} of training", operand="--dtype", value=dtype, limit=sorted(FORMATS))
        wanted = wanted_of(
            model, names[0], chips or 64, sequence, global_batch, {}, dtype or "bf16", None, None, None, None
        )  # fmt: skip
        rows, basis = compare_training(wanted, names, price, date, variants)
        what = Trained(wanted=wanted, tokens=parse_tokens(tokens))
    else:
        from trnsim.commands.plan_serve import make_plan
        from trnsim.planner.serving_search import Load

        load = Load(
            users=concurrency,
            input_tokens=isl,
            output_tokens=osl,
            ttft=None if ttft_ms is None else ttft_ms / 1e3,
            tpot=None if tpot_ms is None else tpot_ms / 1e3,
        )
        plan = make_plan(model, names[0], dtype or "shipped", kv_dtype, isl + osl, stack)
        curve = _USERS if plot is not None else ()
        rows, basis = compare_serving(plan, names, load, chips, price, date, variants, curve)
        what = Served(model=plan.model.name, asked=model, load=load, dtype=dtype or "shipped")
    report(what, rows, basis, json, plot)
    if all(row.best is None for row in rows):
        raise typer.Exit(1)


def _names(systems: str) -> Sequence[str]:
    return [name.strip() for name in systems.split(",") if name.strip()]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)
