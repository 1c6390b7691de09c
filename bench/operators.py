"""What it takes to ask for the cost of an operator: microseconds a use, of every operator that has surfaces shipped.

    python bench/operators.py [--chip trn2] [--cores 1]

Cold: the first shipped use of an operator, its surface read from the package. Warm: a use that was asked for before,
one of new sizes whose samples are there, and many at once as arrays. New sizes lie between those that are shipped,
along the axis that has most of them; where no size can change alone (causal attention), the shipped uses in turn.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.prepare import allowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from trnsim.kernels.contract import Contract
    from trnsim.operators.cost import OperatorCost

# Rounds are short, so that some of them are not interrupted.
ROUNDS, USES, MANY = 50, 100, 100_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--chip", default="trn2")
    options.add_argument("--cores", type=int, default=1)
    chosen = options.parse_args()
    heads = ("cold ms", "again", "new size", "in arrays")
    print(f"{'operator':28s} {heads[0]:>8s} {heads[1]:>8s} {heads[2]:>9s} {heads[3]:>10s}   us a use, warm")
    for name, contract in contracts().items():
        found = _warm(chosen.chip, chosen.cores, name, contract)
        if found is not None:
            cold, again, new, many = found
            print(f"{name:28s} {cold:8.1f} {again:8.2f} {new:9.2f} {many:10.2f}")


def _warm(chip: str, cores: int, operator: str, contract: Contract) -> tuple[float, float, float, float] | None:
    """Milliseconds of the first use, microseconds of a use again, of a new one, and of one of many."""
    held = KernelCosts(chip, cores)
    uses = [use for use in allowed(held, contract) if _is_told(held.known(operator, use[0].dtype, **use[1]))]
    if not uses:
        return None
    costs, dtype = KernelCosts(chip, cores), uses[0][0].dtype
    begin = time.perf_counter()
    costs.cost(operator, dtype, **uses[0][1])
    cold = (time.perf_counter() - begin) * 1e3
    here = [g for p, g in uses if p.dtype == dtype]
    given = max(here, key=lambda g: _sizes_of(contract, g))
    values, name = _between(costs, contract, dtype, given)
    # Where one size cannot change alone, the uses that are shipped.
    several = [{**given, name: value} for value in values] if len(values) > 1 else here

    def ask(use: dict[str, Any]) -> Any:
        return costs.cost(operator, dtype, **use)

    def ask_anew(use: dict[str, Any]) -> Any:
        costs.forget()
        return ask(use)

    for use in several:
        ask(use)
    again, new = _best(ask, several), _best(ask_anew, several)
    if len(values) < 2:
        return cold, again, new, float("nan")
    drawn = np.random.default_rng(0).choice(np.array(values), MANY)
    begin = time.perf_counter()
    costs.costs(operator, dtype, **{**given, name: drawn})
    return cold, again, new, (time.perf_counter() - begin) / MANY * 1e6


def _is_told(known: OperatorCost | None) -> bool:
    """Whether a use is never simulated: its samples are shipped, and tell it well."""
    return known is not None and (known.error_percent or 0.0) <= 0.5


def _sizes_of(contract: Contract, given: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(given[name]) for name in contract.sizes if name in given)


def _between(costs: KernelCosts, contract: Contract, dtype: str, given: dict[str, Any]) -> tuple[list[int], str]:
    """Sizes whose samples are there, of the size that has most of them, and its name."""
    best: tuple[list[int], str] = [], ""
    for name in (n for n in contract.sizes if n in given and n not in contract.fixed):
        step = max(128, int(given[name]) // 64)
        found = []
        for value in range(step, int(given[name]) + 1, step):
            try:
                problem = contract.problem(dtype, costs.cores, {**given, name: value}, costs.generation)
            except InputError:
                continue
            if costs.source.known(contract, repr(costs.key(contract, problem))) is None:
                continue
            held, point = costs.surface(contract, problem)
            if (
                held.covers(point)
                and not held.missing(point)
                and costs.cost(contract.name, dtype, **{**given, name: value}).how == "surface"
            ):
                found.append(value)
        if len(found) > len(best[0]):
            best = found, name
    return best


def _best(ask: Callable[[dict[str, Any]], Any], uses: list[dict[str, Any]]) -> float:
    """Microseconds of a use, in the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for number in range(USES):
            ask(uses[number % len(uses)])
        best = min(best, (time.perf_counter() - begin) / USES * 1e6)
    return best


if __name__ == "__main__":
    main()
