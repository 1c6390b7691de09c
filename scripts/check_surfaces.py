#!/usr/bin/env python
"""Surfaces of operators against whole simulations: drawn uses of 10^4 to 10^6 instructions.

    python scripts/check_surfaces.py --count 200 --results surfaces-check.jsonl --store surfaces-check.db

Every use is a line of the results as soon as it is done; a run that is started again goes on where the last one
stopped. ``--part 2/4`` does every fourth use, the second of them first: parts write results of their own, and
``--report FILE ...`` shows them together. ``--within`` stops after so many seconds. At the end there is a table by
operator with the worst uses, and exit status 1 where the median is above 1 % or the worst above 4 %.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

from trnsim.operators import checks
from trnsim.operators.draws import Draws
from trnsim.operators.kernel_costs import KernelCosts
from trnsim.operators.store import Store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="1/1", help="I/N: the uses of one of N runs")
    parser.add_argument("--within", type=float, default=None, help="start no use after so many seconds")
    parser.add_argument("--smallest-first", action="store_true", help="uses of few instructions before others")
    parser.add_argument("--results", type=Path, default=Path("surfaces-check.jsonl"))
    parser.add_argument("--store", type=Path, default=None, help="keeps surfaces and samples between runs")
    parser.add_argument("--chip", action="append", help="only this one; may be repeated")
    parser.add_argument("--operator", action="append", help="only this one; may be repeated")
    parser.add_argument("--number", action="append", type=int, help="only this use; may be repeated")
    parser.add_argument("--least", type=int, default=10_000, help="instructions of a use, at least")
    parser.add_argument("--most", type=int, default=1_000_000, help="and at most")
    parser.add_argument("--report", nargs="+", type=Path, help="only show what these results hold")
    options = parser.parse_args()
    rows = [row for path in options.report or [options.results] for row in _read(path)]
    if not options.report:
        _run(options, rows)
    print(f"\n{checks.table(rows)}")
    return 0 if checks.good(rows) else 1


def _read(path: Path) -> list[checks.Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _run(options: argparse.Namespace, rows: list[checks.Row]) -> None:
    part, parts = (int(text) for text in options.part.split("/"))
    if not 1 <= part <= parts:
        sys.exit(f"--part {options.part}: the first number must be 1 to {parts}")
    store = Store(options.store) if options.store is not None else None
    places: dict[tuple[str, int], KernelCosts] = {}
    done = {row["number"] for row in rows}
    draws = Draws(options.seed, options.least, options.most)
    gc.set_threshold(100_000, 50, 100)  # traces are many objects that live together
    numbers = list(range(part - 1, options.count, parts))
    if options.smallest_first:
        numbers.sort(key=draws.size)
    begin = time.monotonic()
    for number in numbers:
        chip, cores, operator, *_ = draws.use(number)
        wanted = all(
            not only or one in only
            for only, one in ((options.chip, chip), (options.operator, operator), (options.number, number))
        )
        if number in done or not wanted:
            continue
        if options.within is not None and time.monotonic() - begin > options.within:
            print(f"stopped at use {number}, after {options.within:.0f} s", flush=True)
            return
        costs = places.setdefault((chip, cores), KernelCosts(chip, cores, store))
        row = checks.check(costs, draws, number)
        rows.append(row)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(checks.line(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
