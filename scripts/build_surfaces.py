"""Rebuild the surfaces that come with the package: ``make surfaces``.

Samples whose traces the user's cache holds are timed again at most; a run that was stopped goes on where it was.
Prints what was done, the size of the file and the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trnsim.hardware import load_chip
from trnsim.operators import shipped
from trnsim.operators.decides import facts_of
from trnsim.operators.kernel_costs import contracts
from trnsim.operators.prepare import Prepared, prepare
from trnsim.operators.store import FILE, Store, cache_folder

CHIPS = ("trn1", "trn2", "trn3", "inf2")
LIMIT_BYTES = 5_000_000


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--workers", type=int, default=0, help="processes; default: one a core of this machine")
    options.add_argument("--fresh", action="store_true", help="use neither the cache nor what is shipped now")
    chosen = options.parse_args()
    console, started = Console(soft_wrap=True), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / FILE if chosen.fresh else cache_folder() / FILE
        found = _prepared(store, chosen.workers, fresh=chosen.fresh, console=console)
        with_traces = Store(store)
        with_traces.trim()
        counts = with_traces.counts()
        with_traces.close()
    errors = [error for prepared in found.values() for error in prepared.errors]
    for error in errors:
        console.print(error, style="red", highlight=False, markup=False)
    if errors:
        return 1
    entries = {(chip, name): rows for chip, prepared in found.items() for name, rows in prepared.entries.items()}
    changed = shipped.write(entries, contracts())
    size = shipped.FILE.stat().st_size
    console.print(
        f"{shipped.FILE.name}: {size / 1e6:.2f} MB, {'changed' if changed else 'as before'}; "
        f"{time.perf_counter() - started:.0f} s; {store.name} holds {counts['traces']:,} traces",
        highlight=False,
    )
    if size > LIMIT_BYTES:
        console.print(f"more than {LIMIT_BYTES / 1e6:.0f} MB", style="red")
        return 1
    return 0


def _prepared(store: Path, workers: int, *, fresh: bool, console: Console) -> dict[str, Prepared]:
    """By chip; one with the facts of another has its surfaces."""
    found: dict[str, Prepared] = {}
    same: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for chip in CHIPS:
            twin = same.setdefault(facts_of(load_chip(chip)), chip)
            if twin != chip:
                found[chip] = found[twin]
                console.print(f"{chip}: as {twin}", highlight=False)
                continue
            began = time.perf_counter()
            bar = bars.add_task(chip, total=None)

            def show(done: int, total: int, what: str, bar: object = bar, chip: str = chip) -> None:
                bars.update(bar, completed=done, total=total, description=f"{chip} {what}")  # type: ignore[arg-type]

            found[chip] = prepare(chip, store, workers=workers, use_shipped=not fresh, progress=show)
            bars.remove_task(bar)
            one = found[chip]
            console.print(
                f"{chip}: {one.surfaces} surfaces, {one.made} of them made; {one.timed:,} samples timed, "
                f"{one.traced:,} of them traced; {time.perf_counter() - began:.1f} s",
                highlight=False,
            )
    return found


if __name__ == "__main__":
    sys.exit(main())
