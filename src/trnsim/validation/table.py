"""The comparison for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from trnsim.validation.fit import Fit, Left
from trnsim.validation.report import Compared, Validation
from trnsim.validation.summary import Errors


def render(found: Validation, console: Console, *, every_case: bool = True) -> None:
    """Print cases, families, the summary, and what was left out."""
    if every_case:
        for family in found.families:
            _cases(family.name, [c for c in found.compared if c.case.family == family.name], console)
    _families(found, console)
    _worst(found, console)
    _left_out(found, console)


def render_fit(fitted: Fit, left: Sequence[Left], console: Console) -> None:
    """Print the refitted constants, and the error of each family that was not seen."""
    table = _table("refitted: MAPE", ("family",), ("on all", "without the family", "without its source"), ())
    for item in left:
        shares = (item.fitted, item.without_family, item.without_source)
        table.add_row(item.family, *("" if s is None else f"{s:.1%}" for s in shares))
    console.print(table)
    constants = [f"{name} x {factor:.2f}" for name, factor in fitted.factors.items()]
    constants += [f"clock {name} {shift:+.1f} us" for name, shift in fitted.shifts.items()]
    console.print("on all: " + ", ".join(constants), highlight=False)


def _cases(title: str, compared: Sequence[Compared], console: Console) -> None:
    table = _table(
        title, ("kernel", "clock"), ("measured us", "predicted us", "error", "spread us"), ("support", "schedule")
    )
    for c in sorted(compared, key=lambda c: c.case.name):
        table.add_row(
            c.case.name,
            c.case.clock,
            f"{c.case.measured_us:,.1f}",
            f"{c.predicted_us:,.1f}",
            f"{c.error:+.1%}",
            f"{c.prediction.spread_us:,.1f}",
            c.prediction.support,
            c.prediction.schedule,
        )
    console.print(table)


def _families(found: Validation, console: Console) -> None:
    numbers = (
        "cases",
        "MAPE",
        "median",
        "worst",
        "bias",
        "pairs in order",
        "best kernel",
        "busiest engine",
        "DMA + compute",
    )
    table = _table("by family; the last two are MAPE of the naive models", ("family",), numbers, ())
    for f in found.families:
        table.add_row(f.name, *_numbers(f.ours), f"{f.busiest.mape:.1%}", f"{f.sum.mape:.1%}")
    if (summary := found.summary) is not None:
        table.add_section()
        naive = [sum(getattr(f, m).mape for f in found.families) / len(found.families) for m in ("busiest", "sum")]
        table.add_row("over families", *_numbers(summary), *(f"{n:.1%}" for n in naive))
    console.print(table)


def _numbers(e: Errors) -> list[str]:
    order = e.pairs_in_order
    return [
        str(e.cases),
        f"{e.mape:.1%}",
        f"{e.median:.1%}",
        f"{e.worst:.1%}",
        f"{e.bias:+.1%}",
        "" if order is None else f"{order:.1%} of {e.pairs}",
        "" if e.choice is None else f"+{e.choice:.1%}",
    ]


def _worst(found: Validation, console: Console, count: int = 5) -> None:
    if not found.compared:
        return
    console.print("worst cases", style="bold")
    for c in sorted(found.compared, key=lambda c: -abs(c.error))[:count]:
        console.print(f"  {c.error:+.1%}  {c.case.name} ({c.case.family}): {c.prediction.bound_by}", highlight=False)


def _left_out(found: Validation, console: Console) -> None:
    if found.excluded:
        console.print("rows left out by rule", style="bold")
        for reason, ids in found.excluded:
            console.print(f"  {len(ids):5}  {reason}", highlight=False)
    reasons: dict[str, int] = {}
    for _, reason in found.not_run:
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        console.print("cases not run", style="bold")
        for reason, number in reasons.items():
            console.print(f"  {number:5}  {reason}", highlight=False)
    if found.failed:
        console.print("cases that failed", style="bold")
        for case, reason in found.failed:
            console.print(f"  {case.name} ({case.family}): {reason}", highlight=False)
    console.print(f"{len(found.compared)} cases in {found.seconds:.0f} s", highlight=False)


def _table(title: str, first: Sequence[str], numbers: Sequence[str], last: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), show_edge=False)
    for name in first:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, no_wrap=True)
    return table
