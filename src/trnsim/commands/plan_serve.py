"""``trnsim plan serve``: replicas of a model under a load, one layout or the best of all that fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trnsim.commands.plan_train import IMPLEMENTATION
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.planner.serving import ServingPlan


def serve(
    model: Annotated[str, typer.Option("--model", help="A model's name as published, or a config.json.")],
    system: Annotated[str, typer.Option("--system", help="A system of the catalogue, or its TOML file.")],
    concurrency: Annotated[int, typer.Option("--concurrency", help="Users in a closed loop.", min=1)] = 64,
    isl: Annotated[int, typer.Option("--isl", help="Tokens of a prompt.", min=1)] = 1024,
    osl: Annotated[int, typer.Option("--osl", help="Tokens of an output.", min=1)] = 1024,
    tp: Annotated[
        int | None, typer.Option("--tp", help="Ranks of a replica: logical cores on Trainium; default: search.", min=1)
    ] = None,
    ep: Annotated[int | None, typer.Option("--ep", help="Ranks that share the experts.", min=1)] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="How many replicas.", min=1)] = None,
    chips: Annotated[int | None, typer.Option("--chips", help="Chips that replicas fill.", min=1)] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of weights: shipped, bf16, fp8, mxfp4, nvfp4 ...")] = "shipped",
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="Of keys and values: bf16, fp8.")] = "bf16",
    stack: Annotated[str, typer.Option("--stack", help="Serving stack; default: the chip's usual.")] = "",
    implementation: Annotated[str, typer.Option("--implementation", help=IMPLEMENTATION)] = "",
    lnc: Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core; default: the chip's.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Tokens of a request at most; default: what the load needs.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", help="Sequences of a step at most.")] = None,
    ttft_ms: Annotated[float | None, typer.Option("--ttft-ms", help="TTFT at most.")] = None,
    tpot_ms: Annotated[float | None, typer.Option("--tpot-ms", help="TPOT at most.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Simulate arrivals of a file: Mooncake JSONL, Azure CSV.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Simulate Poisson arrivals, requests a second.")] = None,
    requests: Annotated[int, typer.Option("--requests", help="Of --rate; the first of --trace.", min=1)] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of arrivals.")] = 0,
    price: Annotated[str, typer.Option("--price", help="Type: on-demand, capacity-block, spot.")] = "",
    against: Annotated[
        str | None, typer.Option("--against", help="A system with a price, for the break-even price of one without.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="What if: PATH=VALUE of the chip, as for trnsim op. Repeat.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many layouts to show.", min=1)] = 8,
    json: Annotated[str | None, typer.Option("--json", help="Write the plans to FILE, or - for output.")] = None,
) -> None:
    """Plan the serving of a model: with --tp that layout, without it the best by output tokens a second and chip.

    Users send equal requests one after the other (steady state in closed form); with --trace or --rate the engine is
    simulated for the best plan, with distributions.

    Example: trnsim plan serve --model llama-3.3-70b --system trn2.48xlarge --concurrency 64 --isl 1024 --osl 1024
    """
    from trnsim.commands.plan_serve_report import Asked, report
    from trnsim.hardware.whatif import systems_with
    from trnsim.planner.serving_search import Load, search

    if trace is not None and rate is not None:
        raise InputError("--trace and --rate are two kinds of arrivals: give one")
    if replicas is not None and chips is not None and tp is not None:
        raise InputError("--tp, --replicas and --chips: two of them say the third")
    longest = max_model_len or isl + osl
    (system,) = systems_with([system], set_)
    wanted = make_plan(model, system, dtype, kv_dtype, longest, stack, implementation, lnc, max_num_seqs)
    load = Load(
        users=concurrency,
        input_tokens=isl,
        output_tokens=osl,
        ttft=None if ttft_ms is None else ttft_ms / 1e3,
        tpot=None if tpot_ms is None else tpot_ms / 1e3,
        price_type=price,
    )
    fixed = {name: value for name, value in (("tp", tp), ("ep", ep), ("dp", replicas)) if value is not None}
    found = search(wanted, load, chips, fixed)
    simulated = None
    if trace is not None or rate is not None:
        from trnsim.planner.serving_run import arrivals, run

        simulated = run(found.best[0].plan, arrivals(trace, rate, requests, isl, osl, seed))
    report(found, load, Asked(against=against, top=top, dtype=dtype, kv_dtype=kv_dtype), simulated, json)


def make_plan(
    model: str,
    system: str,
    dtype: str = "shipped",
    kv_dtype: str = "bf16",
    max_model_len: int = 8192,
    stack: str = "",
    implementation: str = "",
    lnc: int | None = None,
    max_num_seqs: int | None = None,
) -> ServingPlan:
    """The plan that options ask for, its layout open.

    Raises:
        InputError: unknown names or formats.
    """
    from trnsim.hardware import load_system
    from trnsim.planner.serving import CACHE_FORMATS, ServingPlan, weight_parts
    from trnsim.workloads import Layout, entry, load_model, weight_formats

    if kv_dtype not in CACHE_FORMATS:
        raise InputError(
            f"no format {kv_dtype!r} of keys and values", operand="--kv-dtype", value=kv_dtype, limit=[*CACHE_FORMATS]
        )
    loaded = load_model(model)
    shipped = weight_formats(loaded.config) if model.endswith(".json") or Path(model).is_dir() else entry(model).formats
    return ServingPlan(
        model=loaded,
        system=load_system(system).name,
        layout=Layout(),
        formats=weight_parts(dtype, shipped),
        cache_dtype=CACHE_FORMATS[kv_dtype],
        max_model_len=max_model_len,
        stack=stack,
        implementation=implementation,
        lnc=lnc,
        max_num_seqs=max_num_seqs,
    )


def register(plan_app: typer.Typer) -> None:
    """Add the command to ``trnsim plan``."""
    plan_app.command()(serve)
