"""What ``trnsim plan train`` prints and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trnsim.commands.output import console, table, write_json
from trnsim.errors import TrnsimError, UnsupportedError

if TYPE_CHECKING:
    from trnsim.planner.economics import Run
    from trnsim.planner.search import Found
    from trnsim.planner.training import TrainingEstimate

SCHEMA = "trnsim-plans-1"
GIB = 2**30
_NAMES = {
    "products": "products in 16 bits", "narrow": "products in 8 bits and less", "attention": "attention",
    "moves": "element-wise work", "loss": "loss", "casts": "casts", "experts": "products of experts",
    "experts_narrow": "products of experts in 8 bits and less", "between": "between products of experts",
    "groups": "starting and casting for each expert", "routing": "routing of tokens", "scans": "scans of states",
    "tp": "exchanges of tp that nothing can hide", "cp": "exchanges of cp that nothing can hide",
    "tp_alone": "exchanges of tp beside nothing", "sends": "sending between stages beside passes",
    "ep": "exchanges of ep that nothing can hide", "ep_far": "exchanges of ep between systems that nothing can hide",
    "gather": "weights gathered, that nothing can hide",
    "pp": "sending between stages", "dp": "gradients and weights that nothing can hide", "optimizer": "optimiser",
    "late": "gradients and weights longer than what could hide them", "host": "the host, once a step",
    "exposed": "exchanges longer than what could hide them", "bubble": "of these, waiting for other stages",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a run besides its layout."""

    tokens: float
    mtbf_hours: float | None
    checkpoint_seconds: float
    restart_seconds: float
    price: str | None
    price_date: str
    against: str | None
    explain: bool

    def run(self, found: TrainingEstimate) -> Run:
        """The whole run of a plan."""
        from trnsim.planner.economics import run_of

        return run_of(found, self.tokens, self.mtbf_hours, self.checkpoint_seconds, self.restart_seconds)


def report(found: Found, asked: Asked, json: str | None) -> None:
    """Print the plans, and write them where ``json`` says."""
    money = _money(found, asked)
    if json is not None:
        write_json(to_json(found, asked, money), json)
    if json != "-":
        _show(found, asked, money)


def to_json(found: Found, asked: Asked, money: dict[str, Any]) -> dict[str, Any]:
    """``plans[]``, the search, and what the cost rests on."""
    wanted = found.wanted
    system = wanted.plan(wanted.base).on
    return {
        "schema": SCHEMA,
        "model": wanted.model.name,
        "system": system.name,
        "chips": wanted.chips,
        "sequence": wanted.sequence,
        "global_batch": wanted.global_batch,
        "tokens": asked.tokens,
        "search": {"evaluated": found.evaluated, "pruned": dict(found.pruned), "seconds": found.seconds},
        "plans": [plan_json(one, asked) for one in found.best],
        **money,
    }


def plan_json(found: TrainingEstimate, asked: Asked) -> dict[str, Any]:
    """One plan."""
    from trnsim.planner.pricing import logical_cores
    from trnsim.planner.search import capacity

    plan, layout, run = found.plan, found.plan.layout, asked.run(found)
    system, memory = plan.on, found.largest_memory
    names = ("tp", "pp", "vpp", "cp", "ep", "dp", "zero", "recompute", "micro_batch", "global_batch", "dtype",
             "product_dtype")  # fmt: skip
    return {
        "layout": {name: getattr(layout, name) for name in names} | {"lnc": logical_cores(system, plan.lnc)},
        "schedule": "interleaved" if layout.vpp > 1 else plan.schedule,
        "implementation": _implementation(found),
        "stack": found.stack.name,
        "step_time_s": found.step_us / 1e6,
        "tokens_per_s": found.tokens_per_second,
        "tokens_per_s_per_chip": found.tokens_per_second_per_chip,
        "mfu": found.mfu,
        "hfu": found.hfu,
        "peak_flops_per_chip": found.peak_flops,
        "parts_s": {name: value / 1e6 for name, value in found.parts.items()},
        "memory": {
            **{kind: float(value) for kind, value in memory.by_kind().items()},
            "total": float(memory.total),
            "capacity": capacity(system, plan.lnc),
        },
        "run": {
            "steps": run.steps,
            "seconds": run.wall_seconds,
            "goodput": 1.0 if run.long is None else run.long.goodput,
            "checkpoint_interval_s": None if run.long is None else run.long.interval,
        },
        "cost": _cost_json(found, asked, run),
        "energy": _energy_json(found, run),
        "support": found.support,
        "reasons": list(found.reasons),
        "error_percent": found.error_percent,
    }


def _implementation(found: TrainingEstimate) -> str:
    """Whose operators: as asked for, else the chip's usual ones."""
    return found.plan.implementation or ("gpu" if found.plan.on.chip.core is None else "compiler")


def _cost_json(found: TrainingEstimate, asked: Asked, run: Run) -> dict[str, Any] | None:
    from trnsim.planner.economics import cost_of

    try:
        cost = cost_of(found, run, asked.price, asked.price_date)
    except UnsupportedError:
        return None
    return {
        "usd": cost.usd,
        "usd_per_million_tokens": cost.usd_per_million_tokens,
        "price_type": cost.price.type,
        "price_date": cost.price.date,
        "price_usd_per_hour": cost.price.usd_per_hour,
        "price_of": cost.of,
        "units": cost.units,
        "source": cost.price.source,
    }


def _energy_json(found: TrainingEstimate, run: Run) -> dict[str, Any] | None:
    from trnsim.planner.economics import energy_of

    energy = energy_of(found, run)
    if energy is None:
        return None
    return {"kwh": energy.kwh, "watts_per_chip": energy.watts_per_chip, "all_in": energy.all_in, "support": "assumed"}


def _money(found: Found, asked: Asked) -> dict[str, Any]:
    """Why there is no cost, and what price would make the best plan as cheap as on another system."""
    from trnsim.planner.economics import break_even, cost_of, price_of

    best = found.best[0]
    money: dict[str, Any] = {}
    try:
        price_of(best.plan.on, asked.price, asked.price_date)
    except UnsupportedError as error:
        money["cost_refused"] = str(error)
    if asked.against is not None:
        other = _other(found, asked.against)
        cost = cost_of(other, asked.run(other), asked.price, asked.price_date)
        money["break_even"] = {
            "system": best.plan.on.name,
            "usd_per_hour": break_even(best, asked.run(best), cost.usd_per_million_tokens),
            "against": other.plan.on.name,
            "against_usd_per_hour": cost.price.usd_per_hour,
            "against_chips": other.chips,
            "price_of": cost.of,
            "price_type": cost.price.type,
            "price_date": cost.price.date,
        }
    return money


def _other(found: Found, name: str) -> TrainingEstimate:
    """The best plan of the same run on another system, on as many of its chips."""
    from dataclasses import replace

    from trnsim.hardware import load_system
    from trnsim.planner.search import search
    from trnsim.planner.stack import load_training_stack
    from trnsim.planner.training import default_stack

    system = load_system(name)
    stack = load_training_stack(default_stack(system))
    count = max(round(found.wanted.chips / system.chip_count), 1) * system.chip_count
    base = replace(found.wanted.base, gradient_dtype=stack.gradient_dtype)
    wanted = replace(
        found.wanted, system=system, chips=count, fixed={}, base=base, implementation="", stack=stack.name, lnc=None
    )
    return search(wanted, 1).best[0]


def _show(found: Found, asked: Asked, money: dict[str, Any]) -> None:
    from trnsim.planner.pricing import logical_cores
    from trnsim.planner.search import capacity, describe

    out = console()
    wanted, best = found.wanted, found.best[0]
    operators = _implementation(best)
    system = best.plan.on
    cores = logical_cores(system, wanted.lnc)
    lnc = f", LNC {cores}" if system.chip.core is not None else ""
    form = wanted.base.product_dtype or wanted.base.dtype
    out.print(
        f"{wanted.model.name} on {wanted.chips} chips of {system.name}{lnc}: {wanted.global_batch} sequences of "
        f"{wanted.sequence:,} tokens a step, {form}; operators: {operators}, stack: {best.stack.name}",
        highlight=False,
    )
    room = capacity(system, wanted.lnc)
    rows = []
    for one in found.best:
        run = asked.run(one)
        cost = _cost_json(one, asked, run)
        rows.append([
            describe(one.plan.layout), f"{one.step_us / 1e6:,.3f}", f"{one.tokens_per_second_per_chip:,.0f}",
            f"{one.mfu:.1%}", f"{one.hfu:.1%}", f"{float(one.largest_memory.total) / GIB:,.1f}",
            f"{run.wall_seconds / 86400:,.1f}", "" if cost is None else f"{cost['usd']:,.0f}",
            _uncertain(one),
        ])  # fmt: skip
    columns = ["layout", "step s", "tokens/s/chip", "MFU", "HFU", "GiB", "days", "USD", "support"]
    out.print(table(f"Fastest of {found.evaluated:,} layouts that fit", columns, rows))
    pruned = "; ".join(f"{count:,} {reason}" for reason, count in found.pruned.items())
    out.print(f"{found.evaluated:,} evaluated in {found.seconds:.2f} s; pruned: {pruned or 'none'}", highlight=False)
    parts = ", ".join(f"{k} {float(v) / GIB:,.1f}" for k, v in best.largest_memory.by_kind().items() if v)
    out.print(f"memory of a rank, GiB: {parts}; of {room / GIB:,.1f}", highlight=False)
    _show_run(out, best, asked, money)
    for reason in best.reasons[:4]:
        out.print(f"{best.support}: {reason}", highlight=False)
    if asked.explain:
        _explain(out, found)


def _uncertain(one: TrainingEstimate) -> str:
    return one.support if one.error_percent is None else f"{one.support}, ±{one.error_percent:.0f} %"


def _show_run(out: Any, best: TrainingEstimate, asked: Asked, money: dict[str, Any]) -> None:
    from trnsim.planner.economics import energy_of

    run = asked.run(best)
    text = f"{asked.tokens:.3g} tokens: {run.steps:,} steps, {run.wall_seconds / 86400:,.1f} days"
    if run.long is not None:
        text += f", goodput {run.long.goodput:.1%} with a checkpoint every {run.long.interval / 60:,.0f} minutes"
    out.print(text, highlight=False)
    cost = _cost_json(best, asked, run)
    if cost is not None:
        out.print(
            f"cost: ${cost['usd']:,.0f}, ${cost['usd_per_million_tokens']:.4f} a million tokens, at "
            f"${cost['price_usd_per_hour']:,.2f} an hour and {cost['price_of']} ({cost['price_type']}, "
            f"{cost['price_date']})",
            highlight=False,
        )
    else:
        out.print(f"no cost: {money['cost_refused']}", highlight=False)
        if asked.against is None:
            out.print("--against SYSTEM prints the price at which it would cost the same as there", highlight=False)
    even = money.get("break_even")
    if even is not None:
        out.print(
            f"break-even: ${even['usd_per_hour']:,.2f} an hour of {even['system']} costs as much a token as "
            f"{even['against']} at ${even['against_usd_per_hour']:,.2f} ({even['price_type']}, {even['price_date']})",
            highlight=False,
        )
    energy = energy_of(best, run)
    if energy is not None:
        what = "with host, network and cooling" if energy.all_in else "the chips alone"
        out.print(
            f"energy (assumed): {energy.kwh:,.0f} kWh at {energy.watts_per_chip:,.0f} W a chip, {what}", highlight=False
        )


def _explain(out: Any, found: Found) -> None:
    """Where the best plan's time goes, and what each other choice would have cost."""
    from trnsim.planner.search import DEGREES, describe

    best = found.best[0]
    parts = sorted(((k, v) for k, v in best.parts.items() if k != "bubble"), key=lambda item: -item[1])
    rows = [[_NAMES[k], f"{v / 1e6:,.3f}", f"{v / best.step_us:.1%}"] for k, v in parts if v / best.step_us > 5e-4]
    rows.append([_NAMES["bubble"], f"{best.parts['bubble'] / 1e6:,.3f}", f"{best.parts['bubble'] / best.step_us:.1%}"])
    out.print(table(f"Where a step of {describe(best.plan.layout)} goes", ["", "s", "share"], rows))
    rows = []
    for name in DEGREES:
        mine = getattr(best.plan.layout, name)
        others = [c for c in found.candidates if getattr(c.layout, name) != mine]
        if not others:
            continue
        other = others[0]
        rows.append([
            f"{name} {getattr(other.layout, name)} instead of {mine}", describe(other.layout),
            f"{other.step_us / best.step_us - 1:+.1%}", _why(found, other),
        ])  # fmt: skip
    if rows:
        out.print(table("The best with another choice", ["", "layout", "step", "mostly"], rows))
    if found.pruned.get("do not fit in memory"):
        out.print(f"memory rules out {found.pruned['do not fit in memory']:,} layouts", highlight=False)


def _why(found: Found, other: Any) -> str:
    """The part of a step that grows the most from the best plan to another."""
    from trnsim.planner.training import estimate

    try:
        there = estimate(found.wanted.plan(other.layout), found.best[0].stack)
    except TrnsimError:
        return ""
    best = found.best[0].parts
    kinds = set(best) | set(there.parts)
    grown = {k: there.parts.get(k, 0.0) - best.get(k, 0.0) for k in kinds if k != "bubble"}
    kind = max(grown, key=lambda k: grown[k])
    return f"{_NAMES[kind]} {grown[kind] / 1e6:+,.2f} s" if grown[kind] > 0 else ""
