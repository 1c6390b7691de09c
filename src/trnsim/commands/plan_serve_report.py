"""What ``trnsim plan serve`` prints and writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trnsim.commands.output import console, table, write_json
from trnsim.commands.plan_serve_more import draw_frontier, explanation_json, show_explanation, show_frontier
from trnsim.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from trnsim.planner.serving import ServingEstimate
    from trnsim.planner.serving_disaggregated import PooledEstimate
    from trnsim.planner.serving_explain import Explanation
    from trnsim.planner.serving_search import Found, Load
    from trnsim.serving import ServingResult
    from trnsim.workloads import Layout

SCHEMA = "trnsim-serving-plans-2"
_GIB = 2**30
_BOUNDS = {
    "users": "users",
    "max_num_seqs": "sequences",
    "cache": "cache",
    "max_num_batched_tokens": "tokens",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked besides the load."""

    against: str | None
    top: int
    dtype: str
    kv_dtype: str


@dataclass(kw_only=True)
class More:
    """What is told besides the plans."""

    simulated: ServingResult | None = None
    explanation: Explanation | None = None
    frontier: tuple[ServingEstimate, ...] | None = None


def report(
    found: Found, load: Load, asked: Asked, more: More | None = None, json: str | None = None, plot: Path | None = None
) -> None:
    """Print the plans, write them where ``json`` says, and draw the frontier where ``plot`` says."""
    more = more or More()
    even = _break_even(found.best[0], load, asked) if asked.against is not None else None
    if json is not None:
        write_json(to_json(found, load, asked, even, more), json)
    if json != "-":
        _show(found, load, asked, even, more)
    if plot is not None and more.frontier is not None:
        best = found.best[0]
        title = f"{best.plan.model.name} on {best.plan.system}, {load.input_tokens:,} in, {load.output_tokens:,} out"
        draw_frontier(plot, title, more.frontier, lambda one: replica_text(one.plan.layout))


def describe(one: ServingEstimate) -> str:
    """A layout as tables name it."""
    return layout_text(one.plan.layout)


def layout_text(layout: Layout) -> str:
    """A layout of replicas as tables name it."""
    return f"{replica_text(layout)} x {layout.dp}"


def replica_text(layout: Layout) -> str:
    """A layout of one replica as tables name it."""
    stages = f" pp{layout.pp}" if layout.pp > 1 else ""
    shared = f" ep{layout.ep}" if layout.ep > 1 else ""
    return f"tp{layout.tp}{stages}{shared}"


def uncertain(one: ServingEstimate) -> str:
    """How a plan's times are known."""
    return one.support if one.error_percent is None else f"{one.support}, ±{one.error_percent:.0f} %"


def briefly(one: ServingEstimate | PooledEstimate) -> str:
    """The error of a plan's times on published runs, or that they are not known so well."""
    return one.support if one.error_percent is None else f"±{one.error_percent:.0f} %"


def to_json(found: Found, load: Load, asked: Asked, even: dict[str, Any] | None, more: More) -> dict[str, Any]:
    """``plans[]``, the search, and what the cost rests on."""
    best = found.best[0]
    return {
        "schema": SCHEMA,
        "model": best.plan.model.name,
        "system": best.plan.system,
        "load": {"users": load.users, "input_tokens": load.input_tokens, "output_tokens": load.output_tokens},
        "search": {"evaluated": found.evaluated, "pruned": found.pruned, "seconds": found.seconds},
        "plans": [plan_json(one) for one in found.best[: asked.top]],
        **({"break_even": even} if even is not None else {}),
        "pareto": [describe(one) for one in found.pareto],
        **({"simulated": more.simulated.summary()} if more.simulated is not None else {}),
        **({"explanation": explanation_json(more.explanation)} if more.explanation is not None else {}),
        **({"frontier": [plan_json(one) for one in more.frontier]} if more.frontier is not None else {}),
    }


def plan_json(one: ServingEstimate) -> dict[str, Any]:
    """One plan."""
    from trnsim.hardware import load_system
    from trnsim.planner.pricing import logical_cores
    from trnsim.planner.serving import default_serving_stack

    plan, layout, state = one.plan, one.plan.layout, one.state
    system = load_system(plan.system)
    energy = one.joules_per_output_token
    cost = one.usd_per_million_output_tokens
    return {
        "layout": {
            "tp": layout.tp,
            "pp": layout.pp,
            "ep": layout.ep,
            "replicas": layout.dp,
            "lnc": None if system.chip.core is None else logical_cores(system, plan.lnc),
            "weights": dict(plan.formats),
            "cache": plan.cache_dtype,
            "max_model_len": plan.max_model_len,
        },
        "implementation": plan.implementation or ("gpu" if system.chip.core is None else "compiler"),
        "stack": plan.stack or default_serving_stack(system),
        "chips": one.chips,
        "users": one.users,
        "batch": state.batch,
        "bound": state.bound,
        "ttft_ms": state.ttft * 1e3,
        "tpot_ms": state.tpot * 1e3,
        "e2e_ms": state.e2e * 1e3,
        "tokens_per_s": one.output_tokens_per_second,
        "tokens_per_s_per_chip": one.output_tokens_per_second_per_chip,
        "mfu": one.mfu,
        "memory": {
            **{kind: float(value) for kind, value in one.memory.by_kind().items() if value},
            "capacity": one.capacity_bytes,
            "cache_tokens": one.cache_tokens,
        },
        "cost": None
        if cost is None or one.price is None
        else {
            "usd_per_million_output_tokens": cost,
            "usd_per_hour": one.usd_per_hour,
            "price_type": one.price.type,
            "price_date": str(one.price.date),
            "source": one.price.source,
        },
        "energy": None
        if energy is None
        else {"joules_per_output_token": energy, "watts_per_chip": one.watts_per_chip, "support": "assumed"},
        "support": one.support,
        "error_percent": one.error_percent,
        "reasons": list(one.reasons),
    }


def _break_even(best: ServingEstimate, load: Load, asked: Asked) -> dict[str, Any]:
    """The price of the system at which the best plan's tokens cost what they do on another system's best plan."""
    from trnsim.hardware import load_system
    from trnsim.planner.serving_search import search

    assert asked.against is not None
    other = load_system(asked.against)
    plan = replace(best.plan, system=other.name, stack="", implementation="", lnc=None, max_num_seqs=None)
    there = search(plan, load).best[0]
    cost = there.usd_per_million_output_tokens
    if cost is None or there.price is None:
        raise InputError(
            f"{other.name} has no public price to compare with", operand="--against", value=asked.against,
            limit=sorted({p.type for p in (*other.prices, *other.chip.prices)}) or "no price",
        )  # fmt: skip
    hourly = cost / 1e6 * best.output_tokens_per_second_per_chip * 3600
    return {
        "system": best.plan.system,
        "usd_per_chip_hour": hourly,
        "usd_per_system_hour": hourly * load_system(best.plan.system).chip_count,
        "against": other.name,
        "against_layout": describe(there),
        "against_usd_per_million_output_tokens": cost,
        "price_type": there.price.type,
        "price_date": str(there.price.date),
    }


def _show(found: Found, load: Load, asked: Asked, even: dict[str, Any] | None, more: More) -> None:
    from trnsim.hardware import load_system
    from trnsim.planner.pricing import logical_cores
    from trnsim.planner.serving import default_serving_stack

    out = console()
    best = found.best[0]
    system = load_system(best.plan.system)
    lnc = "" if system.chip.core is None else f", LNC {logical_cores(system, best.plan.lnc)}"
    out.print(
        f"{best.plan.model.name} on {system.name}{lnc}: {load.users:,} users, {load.input_tokens:,} tokens in, "
        f"{load.output_tokens:,} out; weights {asked.dtype}, cache {asked.kv_dtype}, "
        f"stack {best.plan.stack or default_serving_stack(system)}",
        highlight=False,
    )
    rows = []
    pareto = found.pareto
    for one in found.best[: asked.top]:
        cost = one.usd_per_million_output_tokens
        rows.append([
            describe(one) + (" *" if one in pareto else ""), f"{one.chips:g}",
            f"{one.state.ttft * 1e3:,.0f}", f"{one.state.tpot * 1e3:,.2f}",
            f"{one.output_tokens_per_second:,.0f}", f"{one.output_tokens_per_second_per_chip:,.1f}",
            f"{one.state.batch}", _BOUNDS[one.state.bound], f"{_used(one) / _GIB:,.1f}",
            f"{one.mfu:.1%}", "" if cost is None else f"{cost:,.2f}", briefly(one),
        ])  # fmt: skip
    columns = ["layout", "chips", "TTFT ms", "TPOT ms", "tokens/s", "a chip", "batch", "bound by", "GiB", "MFU",
               "USD/M", "error"]  # fmt: skip
    out.print(table(f"Output tokens of {found.evaluated} plans evaluated, the most a chip first", columns, rows))
    pruned = "; ".join(f"{count} {reason}" for reason, count in found.pruned.items())
    out.print(
        f"evaluated in {found.seconds:.2f} s; left out: {pruned or 'none'}; * no plan has both more tokens a chip and "
        "a shorter TPOT",
        highlight=False,
    )
    kinds = ", ".join(f"{k} {float(v) / _GIB:,.1f}" for k, v in best.memory.by_kind().items() if v and k != "cache")
    cache = float(best.memory.cache) / _GIB
    out.print(
        f"memory of a rank, GiB: {kinds}; {cache:,.1f} left for the cache ({best.cache_tokens:,} tokens a replica); "
        f"of {best.capacity_bytes / _GIB:,.1f}",
        highlight=False,
    )
    _show_money(out, best, even)
    if best.joules_per_output_token is not None:
        out.print(
            f"energy (assumed): {best.joules_per_output_token:,.2f} J a token out at {best.watts_per_chip:,.0f} W a "
            "chip",
            highlight=False,
        )
    if more.explanation is not None:
        show_explanation(out, more.explanation, describe)
    if more.frontier is not None:
        show_frontier(out, more.frontier, describe, briefly)
    if more.simulated is not None:
        show_run(out, more.simulated)
    for reason in best.reasons[:4]:
        out.print(f"{best.support}: {reason}", highlight=False)


def _used(one: ServingEstimate) -> float:
    """Bytes of a rank with the cache of the requests that run."""
    whole = float(one.memory.total) - float(one.memory.cache)
    share = one.state.batch * (one.input_tokens + one.output_tokens) / max(one.cache_tokens, 1)
    return whole + float(one.memory.cache) * min(share, 1.0)


def _show_money(out: Any, best: ServingEstimate, even: dict[str, Any] | None) -> None:
    cost = best.usd_per_million_output_tokens
    if cost is not None and best.price is not None:
        out.print(
            f"cost: ${cost:,.2f} a million output tokens, at ${best.usd_per_hour or 0:,.2f} an hour for "
            f"{best.chips:g} chips ({best.price.type}, {best.price.date})",
            highlight=False,
        )
    else:
        out.print(f"no cost: {best.plan.system} has no public price", highlight=False)
        if even is None:
            out.print(
                "--against SYSTEM prints the price at which a token would cost the same as there", highlight=False
            )
    if even is not None:
        chip, there = f"${even['usd_per_chip_hour']:,.2f} a chip", f"{even['against_layout']} of {even['against']}"
        out.print(
            f"break-even: ${even['usd_per_system_hour']:,.2f} an hour of {even['system']} ({chip}) costs as much "
            f"a token as {there}, ${even['against_usd_per_million_output_tokens']:,.2f} a million "
            f"({even['price_type']}, {even['price_date']})",
            highlight=False,
        )


def show_run(out: Any, simulated: ServingResult) -> None:
    figures = simulated.summary()
    rows = []
    for name in ("ttft", "tpot", "itl", "e2e", "queue"):
        one = figures[name]
        if one is not None:
            rows.append([name.upper(), *(f"{one[f'{key}_ms']:,.2f}" for key in ("mean", "p50", "p90", "p99", "max"))])
    out.print(table("Simulated arrivals, best plan, ms", ["", "mean", "p50", "p90", "p99", "max"], rows))
    out.print(
        f"{figures['requests']:,} requests served, {figures['rejected']:,} rejected, in "
        f"{figures['duration_s']:,.1f} s: {figures['output_tokens_per_s']:,.0f} output tokens/s, "
        f"{figures['output_tokens_per_s_per_chip']:,.1f} a chip; "
        f"{figures['preemptions']:,} preemptions, cache at most {figures['cache_peak']:.0%} full",
        highlight=False,
    )
