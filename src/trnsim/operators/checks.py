"""Surfaces against whole simulations, over drawn uses: a row for each, and a table of them all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError, TrnsimError
from trnsim.operators.kernel_costs import contracts
from trnsim.operators.samples import QUANTITIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.operators.draws import Draws
    from trnsim.operators.kernel_costs import KernelCosts

# What surfaces must reach over all drawn uses: the median error and the worst.
MEDIAN, WORST = 0.01, 0.04
_INSTRUCTIONS = QUANTITIES.index("instructions")
# How often a use is made larger or smaller until it has instructions enough and not too many.
_TRIES = 6

Row = dict[str, Any]


def check(costs: KernelCosts, draws: Draws, number: int) -> Row:
    """One drawn use by its surface and simulated whole.

    Returns:
        The use; ``how`` its cost was found: by a ``surface``, ``simulated`` because the surface is not known to be good
        there, or ``refused``; ``error``, of the time in proportion; ``us``, ``instructions`` and ``simulate_s`` of the
        whole simulation; ``samples`` and ``build_s`` of the surface. Seconds are those of the processor.
    """
    chip, cores, operator, dtype, given = draws.use(number)
    contract = contracts()[operator]
    row: Row = {"number": number, "chip": chip, "cores": cores, "operator": operator, "dtype": dtype, "given": given}
    begin = time.process_time()
    try:
        problem = contract.problem(dtype, cores, given, costs.generation)
        problem = _sized(costs, contract, problem, draws.least, draws.most)
        row["given"] = given = _given(contract, problem)
        found = costs.cost(operator, dtype, **given)
        built = time.process_time()
        whole = costs.sample(contract, problem)
    except TrnsimError as error:
        return {**row, "how": "refused", "reason": str(error)}
    surface, point = costs.surface(contract, problem)
    return {
        **row,
        "how": "simulated" if point in surface.samples else found.how,
        "error": found.time_ps / float(whole[0]) - 1,
        "told": found.error_percent,
        "us": float(whole[0]) / 1e6,
        "instructions": round(float(whole[_INSTRUCTIONS])),
        "samples": len(surface.samples),
        "build_s": round(built - begin, 2),
        "simulate_s": round(time.process_time() - built, 2),
    }


def _given(contract: Contract, problem: Problem) -> dict[str, Any]:
    return {name: size for name, size in problem.sizes.items() if name in contract.sizes} | dict(problem.options)


def _sized(costs: KernelCosts, contract: Contract, problem: Problem, least: int, most: int) -> Problem:
    """The use, made larger or smaller along one axis of its regime where its instructions are too few or too many."""
    found, _ = costs.surface(contract, problem)
    free = [axis for axis in found.axes if axis.high is None]
    for _ in range(_TRIES if free else 0):
        point = costs.surface(contract, problem)[1]
        if not found.covers(point):
            break
        instructions = costs.quantities(contract, problem)[0][_INSTRUCTIONS]
        if least <= instructions <= most:
            break
        axis = max(free, key=lambda one: one.degree)
        wanted = (least if instructions < least else most / 1.2) * 1.1
        size = contract.coordinates(problem)[axis.name] * (wanted / instructions) ** (1 / axis.degree)
        grown = contract.placed(problem, {axis.name: max(axis.low, round(size / axis.grain) * axis.grain)})
        given = _given(contract, problem.resized(grown))
        try:
            again = contract.problem(problem.dtype, problem.cores, given, problem.generation)
        except InputError:  # larger than the kernel takes
            break
        if costs.key(contract, again) != costs.key(contract, problem):
            break
        problem = again
    return problem


def line(row: Mapping[str, Any]) -> str:
    """A row to read."""
    what = f"{row['number']:3d} {row['operator']:26s} {row['dtype']:12s} {row['chip']} x{row['cores']}"
    sizes = " ".join(f"{name}={value}" for name, value in row["given"].items())
    if "error" not in row:
        return f"{what} {row['how']}: {row['reason'].splitlines()[0]} | {sizes}"
    found = f"{row['how']:9s} {row['error']:+8.2%} of {row['us']:10.1f} us, {row['instructions']} instructions"
    return f"{what} {found} | {sizes}"


def good(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether surfaces are within the limits, and none was refused."""
    rows = list(rows)
    errors = _errors(rows)
    none_refused = all(row["how"] != "refused" for row in rows)
    return len(errors) > 0 and none_refused and float(np.median(errors)) <= MEDIAN and float(errors.max()) <= WORST


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Median and worst error by operator, of the uses whose cost a surface gave; the others are counted."""
    rows = list(rows)
    lines = [f"{'operator':28s} surface  whole refused   median    worst"]
    for operator in (*sorted({row["operator"] for row in rows}), "all"):
        some = [row for row in rows if operator in ("all", row["operator"])]
        counts = [sum(row["how"] == how for row in some) for how in ("surface", "simulated", "refused")]
        errors = _errors(some)
        shown = f"{np.median(errors):8.2%} {errors.max():8.2%}" if len(errors) else f"{'-':>8s} {'-':>8s}"
        lines.append(f"{operator:28s} {counts[0]:7d} {counts[1]:6d} {counts[2]:7d} {shown}")
    errors = _errors(rows)
    if len(errors):
        lines.append(f"90 % of the errors are below {np.quantile(errors, 0.9):.2%}")
        worst = sorted((row for row in rows if row["how"] == "surface"), key=lambda row: -abs(row["error"]))[:10]
        lines += ["", "worst:", *map(line, worst)]
    return "\n".join(lines)


def _errors(rows: Iterable[Mapping[str, Any]]) -> Any:
    return np.abs([row["error"] for row in rows if row["how"] == "surface"])


__all__ = ["MEDIAN", "WORST", "Row", "check", "good", "line", "table"]
