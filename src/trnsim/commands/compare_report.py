"""What ``trnsim compare`` prints and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trnsim.commands.output import console, said, table, write_json
from trnsim.planner.serving import ServingEstimate
from trnsim.planner.training import TrainingEstimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.planner.comparison import Basis, Compared
    from trnsim.planner.search import Wanted
    from trnsim.planner.serving_search import Load

SCHEMA = "trnsim-compare-2"
NAMES = {"as-shipped": "as shipped", "best-kernel": "best kernel"}
DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A comparison of serving. ``asked``: the model's name as the user wrote it, where one stands for several."""

    model: str
    asked: str
    load: Load
    dtype: str

    @property
    def title(self) -> str:
        load = self.load
        name = self.model if self.asked in (self.model, "") or "/" in self.asked else f"{self.asked} ({self.model})"
        return (
            f"{name}: {load.users} users, {load.input_tokens:,} tokens in, {load.output_tokens:,} out; weights "
            f"{self.dtype}"
        )

    @property
    def unit(self) -> str:
        return "output tokens"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A comparison of training."""

    wanted: Wanted
    tokens: float

    @property
    def title(self) -> str:
        wanted = self.wanted
        form = wanted.base.product_dtype or wanted.base.dtype
        return (
            f"{wanted.model.name}, trained: {wanted.global_batch} sequences of {wanted.sequence:,} tokens a step, "
            f"{form}, {self.tokens:.3g} tokens"
        )

    @property
    def unit(self) -> str:
        return "tokens"


def report(what: Served | Trained, rows: Sequence[Compared], basis: Basis, json: str | None, plot: str | None) -> None:
    """Print the comparison, write and draw it where that is asked for."""
    if json is not None:
        write_json(to_json(what, rows, basis), json)
    if json != "-":
        _show(what, rows, basis)
    if plot is not None:
        from trnsim.commands.compare_plot import draw

        draw(what, rows, basis, plot)
        said(f"wrote {plot}")


def layout_of(row: Compared) -> str:
    """The best plan's layout as tables name it."""
    from trnsim.commands.plan_serve_report import describe as of_serving
    from trnsim.planner.search import describe as of_training

    best = row.best
    if isinstance(best, TrainingEstimate):
        return of_training(best.plan.layout)
    return "none" if best is None else of_serving(best)


def days(what: Trained, row: Compared) -> float:
    """Of the whole run."""
    assert isinstance(row.best, TrainingEstimate)
    return what.tokens / row.best.tokens_per_second / DAY


def to_json(what: Served | Trained, rows: Sequence[Compared], basis: Basis) -> dict[str, Any]:
    """The comparison as plain data."""
    load: dict[str, Any]
    if isinstance(what, Served):
        model = what.model
        load = {
            "users": what.load.users,
            "input_tokens": what.load.input_tokens,
            "output_tokens": what.load.output_tokens,
        }
    else:
        model = what.wanted.model.name
        load = {
            "global_batch": what.wanted.global_batch,
            "sequence": what.wanted.sequence,
            "chips": what.wanted.chips,
            "tokens": what.tokens,
        }
    return {
        "schema": SCHEMA,
        "model": model,
        "kind": "serving" if isinstance(what, Served) else "training",
        "load": load,
        "price_basis": {"type": basis.type, "date": basis.date},
        "systems": [_row(what, row) for row in rows],
    }


def _row(what: Served | Trained, row: Compared) -> dict[str, Any]:
    return {
        "system": row.system,
        "variant": row.variant,
        "why": row.why,
        "plan": _plan(what, row.best),
        f"usd_per_million_{what.unit.replace(' ', '_')}": row.usd_per_million,
        "break_even_usd_per_system_hour": None if row.break_even is None else dict(row.break_even),
        "curve": [
            {"users": e.users, "tpot_ms": e.state.tpot * 1e3, "ttft_ms": e.state.ttft * 1e3,
             "tokens_per_s_per_chip": e.output_tokens_per_second_per_chip} for e in row.curve
        ],
    }  # fmt: skip


def _plan(what: Served | Trained, best: Any) -> dict[str, Any] | None:
    if best is None:
        return None
    if isinstance(best, ServingEstimate):
        from trnsim.commands.plan_serve_report import plan_json

        return plan_json(best)
    from trnsim.commands.plan_report import Asked
    from trnsim.commands.plan_report import plan_json as trained_json

    assert isinstance(what, Trained)
    asked = Asked(
        tokens=what.tokens, mtbf_hours=None, checkpoint_seconds=0, restart_seconds=0, price=None, price_date="",
        against=None, explain=False,
    )  # fmt: skip
    return trained_json(best, asked)


def _show(what: Served | Trained, rows: Sequence[Compared], basis: Basis) -> None:
    out = console()
    served = isinstance(what, Served)
    cells = [cells_of(what, row) for row in rows]
    middle = ["TTFT ms", "TPOT ms", "tokens/s"] if served else ["step s", "days", "MFU"]
    heads = ["system", "operators", "layout", "chips", *middle, "a chip", "USD/M", "support"]
    out.print(table(what.title, heads, cells))
    if basis.date:
        rule = "the plan with the most output tokens a chip" if served else "the fastest layout"
        out.print(f"prices: {basis.type}, {basis.date}, US dollars; of each system {rule}", highlight=False)
    else:
        out.print("no system has a public price", highlight=False)
    for row in rows:
        name = f"{row.system} ({NAMES[row.variant]})"
        if row.best is None:
            out.print(f"{name}: {row.why}", highlight=False)
        elif row.break_even is not None:
            said_ = ", ".join(f"{other} at {hourly:,.2f}" for other, hourly in row.break_even.items())
            out.print(
                f"{name} has no price of {basis.type}, {basis.date}: its cost is refused; US dollars an hour to break "
                f"even with {said_}", highlight=False,
            )  # fmt: skip
    for row in rows:
        if row.best is not None and row.variant == "best-kernel":
            named = [r for r in row.best.reasons if "no kernel that was simulated stands for it" in r]
            if named:
                operators = ", ".join(dict.fromkeys(r.partition(":")[0] for r in named))
                out.print(f"{row.system}: no simulated kernel of {operators}: compiled code instead", highlight=False)


def cells_of(what: Served | Trained, row: Compared) -> list[str]:
    best, name = row.best, NAMES[row.variant]
    if best is None:
        return [row.system, name, "none", *[""] * 7]
    if isinstance(best, ServingEstimate):
        state = best.state
        middle = [f"{state.ttft * 1e3:,.0f}", f"{state.tpot * 1e3:,.1f}", f"{best.output_tokens_per_second:,.0f}"]
    else:
        assert isinstance(what, Trained)
        middle = [f"{best.step_us / 1e6:,.2f}", f"{days(what, row):,.1f}", f"{best.mfu:.1%}"]
    money = "refused" if row.usd_per_million is None else f"{row.usd_per_million:,.2f}"
    error = best.support if row.error_percent is None else f"{best.support}, ±{row.error_percent:.0f} %"
    each = f"{row.tokens_per_second_per_chip:,.0f}"
    return [row.system, name, layout_of(row), f"{best.chips:g}", *middle, each, money, error]
