"""``trnsim op all``: every shipped use of a chip, also of one that the user changed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trnsim.commands import common
from trnsim.commands.output import console, microseconds, table, write_json
from trnsim.errors import InputError
from trnsim.hardware import load_chip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trnsim.operators.prepare import Prepared
    from trnsim.operators.store import Store


def show_all(chip: str, lnc: int, store: Store | None, json: str | None) -> None:
    """Time all uses of ``uses.toml`` on ``chip``, by several processes, and show the largest of each operator.

    For a chip with changes the times of the chip as it is stand beside them.

    Raises:
        InputError: there is no store to keep the times in, or a use cannot be timed.
    """
    if store is None:
        raise InputError("trnsim op all needs a file for what it simulates: name one with --cache")
    began = time.perf_counter()
    prepared = _prepared(chip, store)
    if prepared.errors:
        raise InputError("; ".join(prepared.errors))
    seconds = time.perf_counter() - began
    rows = list(_rows(chip, lnc, store))
    same = _same_times(chip)
    if json is not None:
        found = {"surfaces": prepared.surfaces, "made": prepared.made, "traced": prepared.traced, "seconds": seconds}
        write_json({"schema": "trnsim-op-all-1", "chip": chip, "cores": lnc, **found, "same": same, "uses": rows}, json)
    if json == "-":
        return
    changed = any("unchanged_time_us" in row for row in rows)
    columns = ("operator", "time us", *(("unchanged us", "change") if changed else ()), "bound")
    shown = []
    for row in rows:
        before = row.get("unchanged_time_us")
        more = (microseconds(before * 1e6), f"{row['time_us'] / before - 1:+.1%}") if before is not None else ()
        what = " ".join([row["operator"], row["dtype"], *(f"{name}={value}" for name, value in row["sizes"].items())])
        shown.append((what, microseconds(row["time_us"] * 1e6), *more, row["bound"]))
    console().print(table(escape(f"{chip}, {lnc} core{'s' * (lnc > 1)}"), columns, shown))
    console().print(
        f"{prepared.surfaces} surfaces, {prepared.made} of them made from {prepared.timed:,} samples "
        f"({prepared.traced:,} traced) in {seconds:.1f} s",
        highlight=False,
    )
    if same:
        console().print(escape(same), highlight=False)


def _same_times(chip: str) -> str:
    """Why no operator takes another time than on the chip as it is; empty where that is not so."""
    from trnsim.operators.decides import facts_of

    loaded, base = load_chip(chip), chip.partition("[")[0]
    if not loaded.changes or facts_of(loaded) != facts_of(load_chip(base)):
        return ""
    why = f"all times are those of {base}: nothing that was set decides one"
    if any(change.path == "hbm.bandwidth" for change in loaded.changes):
        why += "; HBM gives more than the DMA engines of a logical core can move, before and after"
    return why


def _prepared(chip: str, store: Store) -> Prepared:
    from trnsim.operators.prepare import prepare

    error = common.error_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error, transient=True, disable=not error.is_terminal) as bars:
        bar = bars.add_task(chip, total=None)

        def show(done: int, total: int, what: str) -> None:
            bars.update(bar, completed=done, total=total, description=what)

        return prepare(chip, store.path, progress=show)


def _rows(chip: str, lnc: int, store: Store) -> Iterator[dict[str, Any]]:
    """The largest use of each operator and format, with its time before changes if there are any."""
    from trnsim.operators.kernel_costs import KernelCosts, contracts
    from trnsim.operators.prepare import allowed

    costs = KernelCosts(chip, lnc, store)
    base = KernelCosts(chip.partition("[")[0], lnc, store) if load_chip(chip).changes else None
    for name, contract in contracts().items():
        largest = {problem.dtype: given for problem, given in allowed(costs, contract)}
        for dtype, given in largest.items():
            cost = costs.cost(name, dtype, **given)
            row = {
                "operator": name,
                "dtype": dtype,
                "sizes": given,
                "time_us": cost.microseconds,
                "bound": cost.bound,
                "support": cost.support,
            }
            if base is not None:
                row["unchanged_time_us"] = base.cost(name, dtype, **given).microseconds
            yield row
