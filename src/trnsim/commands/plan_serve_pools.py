"""What ``trnsim plan serve --disaggregated`` prints and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.commands.output import console, table, write_json
from trnsim.commands.plan_serve_more import draw_frontier, show_frontier
from trnsim.commands.plan_serve_report import briefly, layout_text, replica_text, show_run

if TYPE_CHECKING:
    from pathlib import Path

    from trnsim.commands.plan_serve_report import Asked
    from trnsim.planner.serving import ServingPlan
    from trnsim.planner.serving_disaggregated import PooledEstimate, PooledFound
    from trnsim.planner.serving_search import Load
    from trnsim.serving import ServingResult, Workload
    from trnsim.workloads.memory import Memory

SCHEMA = "trnsim-disaggregated-plans-1"
_BINDS = {"users": "users", "prefill": "prompts", "decode": "decode"}


def report_pools(
    found: PooledFound,
    load: Load,
    asked: Asked,
    come: Workload | None,
    json: str | None,
    frontier: tuple[PooledEstimate, ...] | None = None,
    plot: Path | None = None,
) -> None:
    """Print the pairs of pools, write them where ``json`` says, and draw the frontier where ``plot`` says.

    With arrivals the best is simulated.
    """
    simulated = None
    if come is not None:
        from trnsim.planner.serving_run import run_pools

        simulated = run_pools(found.best[0].prefill, found.best[0].decode, come)
    if json is not None:
        write_json(_json(found, load, asked, simulated, frontier), json)
    if json != "-":
        _show(found, load, asked, simulated, frontier)
    if plot is not None and frontier is not None:
        draw_frontier(plot, _title(found.best[0], load), frontier, _replicas)


def _title(one: PooledEstimate, load: Load) -> str:
    where = f"{one.decode.model.name} on {one.decode.system}"
    return f"{where}, prompts apart, {load.input_tokens:,} in, {load.output_tokens:,} out"


def _replicas(one: PooledEstimate) -> str:
    return f"{replica_text(one.prefill.layout)} -> {replica_text(one.decode.layout)}"


def _described(one: PooledEstimate) -> str:
    return f"{layout_text(one.prefill.layout)} -> {layout_text(one.decode.layout)}"


def _json(
    found: PooledFound,
    load: Load,
    asked: Asked,
    simulated: ServingResult | None,
    frontier: tuple[PooledEstimate, ...] | None,
) -> dict[str, Any]:
    best = found.best[0]
    return {
        "schema": SCHEMA,
        "model": best.decode.model.name,
        "system": best.decode.system,
        "load": {"users": load.users, "input_tokens": load.input_tokens, "output_tokens": load.output_tokens},
        "search": {"evaluated": found.evaluated, "pruned": found.pruned, "seconds": found.seconds},
        "plans": [_plan(one) for one in found.best[: asked.top]],
        **({"simulated": simulated.summary()} if simulated is not None else {}),
        **({"frontier": [_plan(one) for one in frontier]} if frontier is not None else {}),
    }


def _plan(one: PooledEstimate) -> dict[str, Any]:
    state, cost = one.state, one.usd_per_million_output_tokens
    return {
        "layout": {"prefill": _layout(one.prefill), "decode": _layout(one.decode)},
        "chips": one.chips,
        "users": one.users,
        "batch": state.batch,
        "bound": state.bound,
        "ttft_ms": state.ttft * 1e3,
        "tpot_ms": state.tpot * 1e3,
        "e2e_ms": state.e2e * 1e3,
        "transfer": {
            "bytes": one.transfer_bytes,
            "ms": state.transfer * 1e3,
            "bytes_per_second": one.transfer.bytes_per_second,
        },
        "tokens_per_s": state.output_tokens_per_second,
        "tokens_per_s_per_chip": one.output_tokens_per_second_per_chip,
        "memory": {"prefill": _memory(one.prefill_memory), "decode": _memory(one.decode_memory)},
        "cost": None
        if cost is None or one.price is None
        else {
            "usd_per_million_output_tokens": cost,
            "usd_per_hour": one.usd_per_hour,
            "price_type": one.price.type,
            "price_date": str(one.price.date),
            "source": one.price.source,
        },
        "support": one.support,
        "error_percent": one.error_percent,
        "reasons": list(one.reasons),
    }


def _layout(plan: ServingPlan) -> dict[str, Any]:
    layout = plan.layout
    return {
        "tp": layout.tp,
        "pp": layout.pp,
        "ep": layout.ep,
        "replicas": layout.dp,
        "cache": plan.cache_dtype,
        "weights": dict(plan.formats),
    }


def _memory(memory: Memory) -> dict[str, float]:
    return {kind: float(value) for kind, value in memory.by_kind().items() if value}


def _show(
    found: PooledFound,
    load: Load,
    asked: Asked,
    simulated: ServingResult | None,
    frontier: tuple[PooledEstimate, ...] | None,
) -> None:
    out = console()
    best = found.best[0]
    out.print(
        f"{best.decode.model.name} on {best.decode.system}, prompts and decoding apart: {load.users:,} users, "
        f"{load.input_tokens:,} tokens in, {load.output_tokens:,} out; weights {asked.dtype}, cache {asked.kv_dtype}",
        highlight=False,
    )
    rows = []
    for one in found.best[: asked.top]:
        state, cost = one.state, one.usd_per_million_output_tokens
        rows.append([
            _described(one), f"{one.chips:g}", f"{state.ttft * 1e3:,.0f}", f"{state.tpot * 1e3:,.2f}",
            f"{state.transfer * 1e3:,.2f}",
            f"{state.output_tokens_per_second:,.0f}", f"{one.output_tokens_per_second_per_chip:,.1f}",
            f"{state.batch:,.1f}", _BINDS[state.bound], "" if cost is None else f"{cost:,.2f}",
            briefly(one),
        ])  # fmt: skip
    columns = ["prompts -> decode", "chips", "TTFT ms", "TPOT ms", "transfer", "tokens/s", "a chip", "batch", "bound",
               "USD/M", "error"]  # fmt: skip
    out.print(table(f"Output tokens of {found.evaluated} pairs evaluated, the most a chip first", columns, rows))
    pruned = "; ".join(f"{count} {reason}" for reason, count in found.pruned.items())
    out.print(f"evaluated in {found.seconds:.2f} s; left out: {pruned or 'none'}", highlight=False)
    out.print(
        f"the cache of a prompt: {best.transfer_bytes / 2**20:,.1f} MiB over the fabric in "
        f"{best.state.transfer * 1e3:,.2f} ms ({best.transfer.bytes_per_second / 1e9:,.1f} GB/s)",
        highlight=False,
    )
    if frontier is not None:
        show_frontier(out, frontier, _described, briefly)
    if simulated is not None:
        show_run(out, simulated)
    for reason in best.reasons[:4]:
        out.print(f"{best.support}: {reason}", highlight=False)
