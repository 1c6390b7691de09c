#!/usr/bin/env python
"""Surfaces of operators against whole simulations: drawn uses of 10^4 to 10^6 instructions.

    python scripts/check_surfaces.py --count 200 --results surfaces-check.jsonl

Every use is a line of the results as soon as it is done; a run that is started again goes on where the last one
stopped. Surfaces and samples are kept in the store (``--store``). At the end there is a table by operator, the worst
uses, and exit status 1 where the median is above 1 % or the worst above 4 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.operators import draws
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.store import Store

MEDIAN, WORST = 0.01, 0.04


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("surfaces-check.jsonl"))
    parser.add_argument("--store", type=Path, default=None, help="keeps surfaces and samples between runs")
    parser.add_argument("--chip", action="append", help="only this one; may be repeated")
    parser.add_argument("--operator", action="append", help="only this one; may be repeated")
    parser.add_argument("--least", type=int, default=10_000, help="instructions of a use, at least")
    parser.add_argument("--most", type=int, default=1_000_000, help="and at most")
    parser.add_argument("--report", action="store_true", help="only show the results there are")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.is_file() else []
    if not options.report:
        rows = _run(options, rows)
    return _report(rows)


def _run(options: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    store = Store(options.store) if options.store is not None else None
    costs: dict[tuple[str, int], KernelCosts] = {}
    done = {row["number"] for row in rows}
    draw = draws.Draws(options.seed, options.least, options.most)
    for number in range(options.count):
        chip, cores, operator, dtype, given = draw.use(number)
        if number in done or (options.chip and chip not in options.chip):
            continue
        if options.operator and operator not in options.operator:
            continue
        on = costs.setdefault((chip, cores), KernelCosts(chip, cores, store))
        row = _compared(on, operator, dtype, given)
        row = {
            "number": number,
            "chip": chip,
            "cores": cores,
            "operator": operator,
            "dtype": dtype,
            "given": given,
            **row,
        }
        rows.append(row)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(_line(row), flush=True)
    return rows


def _compared(on: KernelCosts, operator: str, dtype: str, given: dict[str, Any]) -> dict[str, Any]:
    contract = contracts()[operator]
    problem = contract.problem(dtype, on.cores, given, on.generation)
    try:
        begin = time.perf_counter()
        found = on.cost(operator, dtype, **given)
        built = time.perf_counter()
        whole = on.simulated(operator, dtype, **given)
        end = time.perf_counter()
    except TrnsimError as error:
        return {"how": "refused", "reason": str(error)}
    surface, _ = on.surface(contract, problem)
    return {
        "how": found.how,
        "error": found.time_ps / whole.time_ps - 1,
        "us": whole.time_ps / 1e6,
        "instructions": draws.instructions(on, contract, problem),
        "samples": len(surface.samples),
        "build_s": round(built - begin, 2),
        "simulate_s": round(end - built, 2),
    }


def _line(row: dict[str, Any]) -> str:
    what = f"{row['number']:3d} {row['operator']:26s} {row['dtype']:12s} {row['chip']} x{row['cores']}"
    sizes = " ".join(f"{name}={value}" for name, value in row["given"].items())
    if "error" not in row:
        return f"{what} {row['how']}: {row['reason'].splitlines()[0]} | {sizes}"
    found = f"{row['how']:9s} {row['error']:+8.2%} of {row['us']:10.1f} us, {row['instructions']} instructions"
    return f"{what} {found} | {sizes}"


def _report(rows: list[dict[str, Any]]) -> int:
    surfaces = [row for row in rows if row.get("how") == "surface"]
    whole = sum(row["how"] == "simulated" for row in rows)
    refused = sum(row["how"] == "refused" for row in rows)
    print(f"\n{len(rows)} uses: {len(surfaces)} by surfaces; {whole} simulated whole, as checks failed or no regime")
    print(f"covers them; {refused} refused")
    if not surfaces:
        return 1
    print(f"\n{'operator':28s} uses  median    worst")
    for operator in sorted({row["operator"] for row in surfaces}):
        errors = np.abs([row["error"] for row in surfaces if row["operator"] == operator])
        print(f"{operator:28s} {len(errors):4d} {np.median(errors):8.2%} {errors.max():8.2%}")
    errors = np.abs([row["error"] for row in surfaces])
    print(f"{'all':28s} {len(errors):4d} {np.median(errors):8.2%} {errors.max():8.2%}")
    print(f"90 % below {np.quantile(errors, 0.9):.2%}")
    print("\nworst:")
    for row in sorted(surfaces, key=lambda row: -abs(row["error"]))[:12]:
        print(_line(row))
    return 0 if np.median(errors) <= MEDIAN and errors.max() <= WORST else 1


if __name__ == "__main__":
    sys.exit(main())
