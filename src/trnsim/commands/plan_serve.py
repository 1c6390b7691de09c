"""``trnsim plan serve``: replicas of a model under a load, one layout or the best of all that fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trnsim.commands.plan_train import IMPLEMENTATION
from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.planner.exchange import ServingLayout
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
    like: Annotated[
        str | None,
        typer.Option("--from", help="Another tool's: neuron_config.json of NxDI, or 'vllm serve ...' arguments."),
    ] = None,
    pp: Annotated[
        int | None, typer.Option("--pp", help="Stages of a replica; default: 1 where the model fits.", min=1)
    ] = None,
    ep: Annotated[
        int | None,
        typer.Option("--ep", help="Ranks that share the experts: of a replica, or of all (tp x replicas).", min=1),
    ] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="How many replicas.", min=1)] = None,
    chips: Annotated[int | None, typer.Option("--chips", help="Chips that replicas fill.", min=1)] = None,
    disaggregated: Annotated[
        bool, typer.Option("--disaggregated", help="Prompts on replicas of their own; --tp ... decode.")
    ] = False,
    prefill_tp: Annotated[
        int | None, typer.Option("--prefill-tp", help="Ranks of a replica for prompts.", min=1)
    ] = None,
    prefill_replicas: Annotated[
        int | None, typer.Option("--prefill-replicas", help="How many replicas for prompts.", min=1)
    ] = None,
    prefill_pp: Annotated[
        int | None, typer.Option("--prefill-pp", help="Stages of a replica for prompts.", min=1)
    ] = None,
    prefill_ep: Annotated[
        int | None,
        typer.Option("--prefill-ep", help="Ranks that share the experts, for prompts.", min=1),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of weights: shipped, bf16, fp8, mxfp4, nvfp4 ...")] = "shipped",
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="Of keys and values: bf16, fp8.")] = "bf16",
    stack: Annotated[str, typer.Option("--stack", help="Serving stack; default: the chip's usual.")] = "",
    implementation: Annotated[str, typer.Option("--implementation", help=IMPLEMENTATION)] = "",
    lnc: Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core; default: the chip's.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Tokens of a request at most; default: what the load needs.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", help="Sequences of a step at most.")] = None,
    draft_tokens: Annotated[
        int | None, typer.Option("--draft-tokens", help="Speculation: tokens of a draft.", min=1)
    ] = None,
    acceptance: Annotated[
        float | None, typer.Option("--acceptance", help="Speculation: share of drafted tokens that is accepted.")
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option("--draft-model", help="Makes the drafts, on the same ranks; default: they cost nothing."),
    ] = None,
    prefix_tokens: Annotated[
        int,
        typer.Option("--prefix-tokens", help="Tokens that all prompts begin with, reused where the stack can.", min=0),
    ] = 0,
    ttft_ms: Annotated[float | None, typer.Option("--ttft-ms", help="TTFT at most.")] = None,
    tpot_ms: Annotated[float | None, typer.Option("--tpot-ms", help="TPOT at most.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Simulate arrivals of a file: Mooncake JSONL, Azure CSV.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Simulate Poisson arrivals, requests a second.")] = None,
    burstiness: Annotated[float, typer.Option("--burstiness", help="Of --rate: below 1 in bursts, 1 Poisson.")] = 1.0,
    requests: Annotated[int, typer.Option("--requests", help="Of --rate; the first of --trace.", min=1)] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of arrivals.")] = 0,
    price: Annotated[str, typer.Option("--price", help="Type: on-demand, capacity-block, spot.")] = "",
    against: Annotated[
        str | None, typer.Option("--against", help="A system with a price, for the break-even price of one without.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="What if: PATH=VALUE of the chip, as for trnsim op. Repeat.")
    ] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Throughput against latency, from 1 user up to those given.")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the frontier: SVG or HTML.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Why the best plan is the best, and what binds it.")
    ] = False,
    top: Annotated[int, typer.Option("--top", help="How many layouts to show.", min=1)] = 8,
    json: Annotated[str | None, typer.Option("--json", help="Write the plans to FILE, or - for output.")] = None,
) -> None:
    """Plan the serving of a model: with --tp that layout, without it the best by output tokens a second and chip.

    Users send equal requests one after the other (steady state in closed form); with --trace or --rate the engine is
    simulated for the best plan, with distributions.

    Example: trnsim plan serve --model llama-3.3-70b --system trn2.48xlarge --concurrency 64 --isl 1024 --osl 1024
    """
    from trnsim.commands.plan_serve_report import Asked, More, report
    from trnsim.hardware.whatif import systems_with
    from trnsim.planner.serving import CACHE_FORMATS
    from trnsim.planner.serving_search import Load, search

    if trace is not None and rate is not None:
        raise InputError("--trace and --rate are two kinds of arrivals: give one")
    if replicas is not None and chips is not None and tp is not None and not disaggregated:
        raise InputError("--tp, --replicas and --chips: two of them say the third")
    prompts = _given(tp=prefill_tp, pp=prefill_pp, ep=prefill_ep, dp=prefill_replicas)
    if prompts and not disaggregated:
        raise InputError("--prefill-tp, --prefill-pp, --prefill-ep and --prefill-replicas are for --disaggregated")
    theirs = None
    if like is not None:
        theirs = _described(like)
        if tp is None and pp is None and ep is None and replicas is None:
            tp, pp, ep, replicas = theirs.tensor, theirs.pipeline, theirs.expert, replicas or theirs.data
        lnc, max_num_seqs = lnc or theirs.lnc, max_num_seqs or theirs.max_num_seqs
        max_model_len = max_model_len or theirs.max_model_len
        draft_tokens = draft_tokens or theirs.speculation_length or None
    longest = max_model_len or isl + osl
    (system,) = systems_with([system], set_)
    wanted = make_plan(model, system, dtype, kv_dtype, longest, stack, implementation, lnc, max_num_seqs)
    if theirs is not None:
        wanted = _as_described(wanted, theirs)
    wanted = _speculating(wanted, draft_tokens, acceptance, draft_model, seed)
    load = Load(
        users=concurrency,
        input_tokens=isl,
        output_tokens=osl,
        ttft=None if ttft_ms is None else ttft_ms / 1e3,
        tpot=None if tpot_ms is None else tpot_ms / 1e3,
        price_type=price,
        cached_tokens=prefix_tokens,
    )
    kv_dtype = next((name for name, form in CACHE_FORMATS.items() if form == wanted.cache_dtype), wanted.cache_dtype)
    asked = Asked(against=against, top=top, dtype=dtype, kv_dtype=kv_dtype)
    come = None
    if trace is not None or rate is not None:
        from trnsim.planner.serving_run import arrivals

        come = arrivals(trace, rate, requests, isl, osl, seed, burstiness=burstiness, cached=prefix_tokens)
    fixed = _given(tp=tp, pp=pp, ep=ep, dp=replicas)
    if disaggregated:
        from trnsim.commands.plan_serve_pools import report_pools
        from trnsim.planner.serving_disaggregated import frontier_pools, search_pools

        for option, given in (("--prefix-tokens", prefix_tokens or None), ("--against", against)):
            if given is not None:
                raise InputError(f"{option} does not go with --disaggregated", operand=option, value=given)
        if explain:
            raise InputError("--explain does not go with --disaggregated")
        pools = search_pools(wanted, load, chips, prompts, fixed)
        points = frontier_pools(wanted, load, chips, prompts, fixed) if frontier or plot is not None else None
        report_pools(pools, load, asked, come, json, points, plot)
        return
    found = search(wanted, load, chips, fixed)
    more = More()
    if come is not None:
        from trnsim.planner.serving_run import run

        more.simulated = run(found.best[0].plan, come)
    if explain:
        from trnsim.planner import serving_explain

        more.explanation = serving_explain.explain(found, load, wanted)
    if frontier or plot is not None:
        from trnsim.planner import serving_search

        more.frontier = serving_search.frontier(wanted, load, chips, fixed)
    report(found, load, asked, more, json, plot)


def _described(text: str) -> ServingLayout:
    """Another tool's configuration, from its file or its command line.

    Raises:
        InputError: neither.
    """
    from trnsim.commands.output import said
    from trnsim.planner.exchange import read_nxdi, read_vllm_arguments

    found = read_nxdi(text) if text.endswith(".json") else read_vllm_arguments(text)
    if found.unread:
        said(f"{found.source}: not read: {', '.join(found.unread)}")
    if found.context > 1:
        raise InputError("serving over context parallelism is not supported", operand="--from", value=found.context)
    return found


def _as_described(plan: ServingPlan, theirs: ServingLayout) -> ServingPlan:
    from dataclasses import replace

    return replace(
        plan,
        described=theirs,
        cache_dtype=theirs.cache_dtype or plan.cache_dtype,
        max_num_batched_tokens=theirs.max_num_batched_tokens,
    )


def _given(**options: int | None) -> dict[str, int]:
    return {name: value for name, value in options.items() if value is not None}


def _speculating(
    plan: ServingPlan, length: int | None, acceptance: float | None, draft: str | None, seed: int
) -> ServingPlan:
    """The plan with speculation, if that is asked for.

    Raises:
        InputError: drafts without acceptance, or the other way round.
    """
    from dataclasses import replace

    from trnsim.serving.settings import Speculation
    from trnsim.workloads import load_model

    if length is None and acceptance is None and draft is None:
        return plan
    if length is None or acceptance is None:
        raise InputError(
            "speculation needs --draft-tokens and --acceptance", operand="--draft-tokens", value=length,
            limit="both, or neither",
        )  # fmt: skip
    small = None if draft is None else load_model(draft)
    return replace(plan, speculation=Speculation(length=length, acceptance=acceptance, seed=seed), draft=small)


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
