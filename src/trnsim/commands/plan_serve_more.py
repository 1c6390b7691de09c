"""What ``trnsim plan serve`` tells besides its plans: why the best is the best, and throughput against latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from trnsim.commands.output import said, table

if TYPE_CHECKING:
    from pathlib import Path

    from trnsim.planner.serving import ServingEstimate
    from trnsim.planner.serving_disaggregated import PooledEstimate
    from trnsim.planner.serving_explain import Explanation

    Describe = Callable[[ServingEstimate], str]

Frontier = TypeVar("Frontier", "ServingEstimate", "PooledEstimate")

_BINDS = {
    "users": "all users run at once",
    "max_num_seqs": "--max-num-seqs keeps more sequences from running at once",
    "cache": "the memory for the cache keeps more sequences from running at once",
    "max_num_batched_tokens": "the tokens of a step keep more sequences from running at once",
}
_ADVICE = {
    "products and norms": "weights are read from HBM, or multiplied: narrower weights, or more ranks",
    "attention over the cache": "keys and values are read: --kv-dtype fp8, shorter contexts, or more ranks",
    "what operators take however small": "too little work an operator: fewer ranks a replica, or more users",
    "exchanges": "ranks wait for each other: fewer ranks a replica",
    "host and launch": "the device waits for the host: a stack with less host time, or more work a step",
}


def explanation_json(found: Explanation) -> dict[str, Any]:
    """The explanation as a value."""
    best, next_ = found.best, found.runner_up
    without = found.without_limits
    return {
        "step_ms": dict(found.step_ms),
        "step_bytes_ms": found.bytes_ms,
        "largest": found.largest,
        "request_ms": {"decode steps": found.steps_ms, "prompts and waiting": found.prompts_ms},
        "bound": found.bound,
        "twice_the_users": found.more_users,
        "over_runner_up": None if next_ is None else _ratio(best, next_),
        "limit": None
        if without is None
        else {"name": found.limit, "tokens_per_s_per_chip_without": without.output_tokens_per_second_per_chip},
    }


def show_explanation(out: Any, found: Explanation, describe: Describe) -> None:
    """Print the explanation."""
    best = found.best
    total = sum(found.step_ms.values())
    out.print(table(f"A decode step of {describe(best)}, {best.state.batch} sequences", ["", "ms", ""], [
        [name, f"{value:,.2f}", f"{value / total:.0%}"] for name, value in found.step_ms.items()
    ]))  # fmt: skip
    out.print(
        f"{total:,.2f} ms in all; reading weights and cache once at HBM's rate takes {found.bytes_ms:,.2f} ms "
        f"({found.bytes_ms / total:.0%}). Of a request's {best.state.e2e * 1e3:,.0f} ms, {found.steps_ms:,.0f} are "
        f"decode steps, the rest its prompt, those of others, and waiting.",
        highlight=False,
    )
    lines = []
    if found.runner_up is not None:
        next_ = found.runner_up
        lines.append(
            f"best: {_ratio(best, next_) - 1:+.0%} output tokens a second and chip over {describe(next_)}, whose TPOT "
            f"is {next_.state.tpot * 1e3:,.2f} ms"
        )
    else:
        lines.append("best: the only plan that holds the limits")
    lines.append(f"binds: most of a step is {found.largest} ({_ADVICE[found.largest]})")
    text = _BINDS.get(found.bound, found.bound)
    if found.more_users is not None:
        text += f"; twice the users: {found.more_users - 1:+.0%} tokens a second and chip"
    lines.append(f"binds: {text}")
    if found.without_limits is not None:
        without = found.without_limits
        lines.append(
            f"binds: the limit of {found.limit}; without it {describe(without)} has "
            f"{_ratio(without, best) - 1:+.0%} tokens a second and chip"
        )
    for line in lines:
        out.print(line, highlight=False)


def _ratio(one: ServingEstimate, other: ServingEstimate) -> float:
    return one.output_tokens_per_second_per_chip / other.output_tokens_per_second_per_chip


def show_frontier(
    out: Any, plans: Sequence[Frontier], describe: Callable[[Frontier], str], error: Callable[[Frontier], str]
) -> None:
    """Print throughput against latency."""
    rows = []
    for one in plans:
        cost = one.usd_per_million_output_tokens
        rows.append([
            describe(one), f"{one.users:,}", f"{one.chips:g}", f"{one.output_tokens_per_second_per_chip:,.1f}",
            f"{1 / one.state.tpot:,.1f}", f"{one.state.tpot * 1e3:,.2f}", f"{one.state.ttft * 1e3:,.0f}",
            "" if cost is None else f"{cost:,.2f}", error(one),
        ])  # fmt: skip
    columns = ["layout", "users", "chips", "tokens/s/chip", "tokens/s/user", "TPOT ms", "TTFT ms", "USD/M", "error"]
    out.print(table("Throughput against latency: plans that no other beats in both", columns, rows))


def draw_frontier(file: Path, title: str, plans: Sequence[Frontier], layout: Callable[[Frontier], str]) -> None:
    """Draw output tokens a second and chip over those of one user, a colour for each ``layout``."""
    from trnsim.report.charts import Chart, Series, html, svg
    from trnsim.report.files import write_text_atomic

    def series(name: str, some: Sequence[Frontier], **style: Any) -> Series:
        rates = [one.output_tokens_per_second_per_chip for one in some]
        return Series(name, [1 / one.state.tpot for one in some], rates, **style)

    drawn = [series("frontier", plans)]
    for number, name in enumerate(dict.fromkeys(layout(one) for one in plans), start=1):
        drawn.append(series(name, [one for one in plans if layout(one) == name], line=False, color=number % 6))
    chart = Chart(
        title=title,
        x_title="output tokens/s of a user (1 / TPOT)",
        y_title="output tokens/s/chip",
        series=drawn,
        x_tick=lambda value: f"{value:g}",
        y_tick=lambda value: f"{value:g}",
    )
    notes = dict.fromkeys(f"{one.support}: {reason}" for one in plans for reason in one.reasons[:2])
    write_text_atomic(file, svg([chart]) if file.suffix == ".svg" else html(chart.title, [chart], list(notes)))
    said(f"wrote {file}")
