"""What it takes to ask for the cost of an operator, warm: microseconds a use.

    python bench/operators.py

A use that was asked for before, one of new sizes whose samples are there, and many at once as arrays.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.operators.kernel_costs import KernelCosts

if TYPE_CHECKING:
    from collections.abc import Callable

# What is asked for, by operator: fixed sizes, and values of the one that varies.
CASES: dict[str, tuple[dict[str, int], str, range]] = {
    "rmsnorm": ({"width": 4096}, "rows", range(4096, 12_288, 128)),
    "rope": ({"heads": 32, "depth": 128}, "tokens", range(4096, 12_288, 128)),
    "matmul": ({"k": 4096, "n": 4096}, "m", range(2048, 4097, 128)),
}
# Rounds are short, so that some of them are not interrupted.
ROUNDS, USES, MANY = 50, 100, 200_000


def main() -> None:
    print(f"{'operator':12s} {'again':>8s} {'new size':>9s} {'in arrays':>10s}   us a use")
    for operator, (fixed, name, values) in CASES.items():
        again, new, many = _warm(operator, fixed, name, values)
        print(f"{operator:12s} {again:8.2f} {new:9.2f} {many:10.2f}")


def _warm(operator: str, fixed: dict[str, int], name: str, values: range) -> tuple[float, float, float]:
    """Microseconds of a use again, of a new one, and of one of many."""
    costs = KernelCosts("trn2")

    def ask(value: int) -> Any:
        return costs.cost(operator, "bfloat16", **fixed, **{name: value})

    def ask_anew(value: int) -> Any:
        costs.forget()
        return ask(value)

    for value in values:
        ask(value)
    drawn = np.random.default_rng(0).choice(np.array(values), MANY)
    again, new = _best(ask, values), _best(ask_anew, values)
    begin = time.perf_counter()
    costs.costs(operator, "bfloat16", **fixed, **{name: drawn})
    return again, new, (time.perf_counter() - begin) / MANY * 1e6


def _best(ask: Callable[[int], Any], values: range) -> float:
    """Microseconds of a use, in the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for number in range(USES):
            ask(values[number % len(values)])
        best = min(best, (time.perf_counter() - begin) / USES * 1e6)
    return best


if __name__ == "__main__":
    main()
