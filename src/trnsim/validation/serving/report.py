"""Published TPOT beside predictions, and the errors by set, as one value."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.planner.serving import ServingCase
from trnsim.planner.serving_costs import Parts
from trnsim.planner.serving_stack import product_format
from trnsim.planner.training import peak_flops
from trnsim.serving.closed_form import steady_state
from trnsim.validation.serving.fit import Floats, Point, Predicted, folds
from trnsim.validation.serving.neuron import OVER, NeuronCase, neuron_cases
from trnsim.validation.serving.rows import Row, excluded, try_case
from trnsim.workloads import Layout
from trnsim.workloads.memory import serving_cache

SCHEMA = "trnsim-serving-validation-1"
SPREAD = 0.15
_FULL = "the cache does not hold all users at once"
DENSE_LIMIT, EXPERTS_LIMIT, SHARE_LIMIT = 0.12, 0.18, 0.95


@dataclass(frozen=True)
class Target:
    """A figure and its limit."""

    name: str
    value: float | None
    limit: float
    least: bool = False

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.least else self.value <= self.limit


@dataclass(frozen=True)
class Validation:
    """Cases, the stacks' constants, rows left out by rule, and rows that could not be predicted."""

    cases: tuple[Predicted, ...]
    fits: dict[str, Floats]
    excluded: tuple[tuple[str, int], ...]
    spread: tuple[str, ...]
    neuron: tuple[NeuronCase, ...]
    refused: tuple[tuple[str, str], ...]
    neuron_refused: tuple[tuple[str, str], ...]
    rows: int
    seconds: float

    @property
    def predicted_share(self) -> float:
        """Of the rows that pass the rules."""
        passed = self.rows - sum(count for _, count in self.excluded)
        return 1 - len(self.refused) / passed if passed else 0.0

    @property
    def most_over(self) -> float | None:
        """How far the ideal stack's prediction exceeds a Neuron measurement at most, relative."""
        return max((c.ideal_ms / c.measured_ms - 1 for c in self.neuron), default=None)

    @property
    def targets(self) -> tuple[Target, ...]:
        found = sets(self.cases)
        values = {name: errors(found[name])["mape"] if name in found else None for name in ("dense", "experts")}
        return (
            Target("Nvidia, dense: TPOT", values["dense"], DENSE_LIMIT),
            Target("Nvidia, experts: TPOT", values["experts"], EXPERTS_LIMIT),
            Target("Neuron, ideal stack: the most over a measurement", self.most_over, OVER),
            Target("rows that pass the rules and are predicted", self.predicted_share, SHARE_LIMIT, least=True),
        )


def validate(rows: Sequence[Row]) -> Validation:
    """Predict every row that passes the rules; refit for every fold."""
    begin = time.perf_counter()
    left_out: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    groups: dict[tuple[Any, ...], list[tuple[Row, ServingCase]]] = {}
    for row in rows:
        why = excluded(row)
        case = None
        if why is None:
            case, why = try_case(row)
            if case is None and "GiB more than" in why:
                why = "weights that do not fit"
            if case is None and why not in (_FULL, "weights that do not fit"):
                refused.append((row["id"], why))
                continue
        if case is None:
            left_out[why or ""] += 1
            continue
        groups.setdefault(_key(row, case), []).append((row, case))
    points, spread = [], []
    for members in groups.values():
        measured = [row.number("tpot_ms") or 0.0 for row, _ in members]
        if max(measured) / min(measured) - 1 > SPREAD:
            spread += [row["id"] for row, _ in members]
            continue
        try:
            points.append(point_of([row for row, _ in members], members[0][1]))
        except TrnsimError as error:
            refused += [(row["id"], str(error)) for row, _ in members]
    left_out["equal configurations that are spread over 15 %"] += len(spread)
    cases, fits = folds(points)
    neuron, unknown = neuron_cases(rows)
    return Validation(
        tuple(cases),
        fits,
        tuple(left_out.most_common()),
        tuple(spread),
        tuple(neuron),
        tuple(refused),
        tuple(unknown),
        len(rows),
        time.perf_counter() - begin,
    )


def _key(row: Row, case: ServingCase) -> tuple[Any, ...]:
    """Equal configurations, releases apart or not, have one key."""
    plan = case.plan
    formats = tuple(sorted(plan.formats.items()))
    lengths = (row.count("input_len"), row.count("output_len"), row.count("batch_or_concurrency"))
    return (plan.model.name, row["chip"], row.stack, plan.layout, formats, *lengths)


def point_of(members: Sequence[Row], case: ServingCase) -> Point:
    """The parts of a group's TPOT, and its median.

    Raises:
        TrnsimError: an operator that nothing is known of.
    """
    row, plan = members[0], case.plan
    load = (row.count("batch_or_concurrency"), row.count("input_len"), row.count("output_len"))
    each = -(-load[0] // plan.layout.dp)
    # Host time of a millisecond a step stands beside each part, since no step takes no time.
    host = replace(case.settings.host, step_ps=10**9, launch_ps=0, overlap="none")
    settings = replace(case.settings, host=host)
    times = []
    for factors in (Parts(), Parts(work=1.0), Parts(fixed=1.0), Parts(exchange=1.0), Parts(1.0, 1.0, 1.0)):
        costs = case.costs.with_factors(factors)
        times.append(steady_state(costs, settings, users=each, input_tokens=load[1], output_tokens=load[2]))
    beside = times[0].tpot
    parts = [*((one.tpot - beside) * 1e3 for one in times[1:4]), beside * 1e3]
    ttft = times[4].ttft * 1e3
    measured = [r.number("tpot_ms") or 0.0 for r in members]
    first = [t for r in members if (t := r.number("ttft_ms"))]
    return Point(
        ids=tuple(r["id"] for r in members),
        model=plan.model.name,
        moe=plan.model.mixture,
        chip=row["chip"],
        tp=plan.layout.tp,
        stack=row.stack,
        parts=(parts[0], parts[1], parts[2], parts[3]),
        null=null_parts(case, *load),
        measured_ms=float(np.median(measured)),
        ttft_ms=ttft,
        ttft_measured_ms=float(np.median(first)) if first else None,
        users=load[0],
        lengths=(load[1], load[2]),
        format=product_format(plan, case.system.chip),
    )


def null_parts(case: ServingCase, users: int, input_tokens: int, output_tokens: int) -> tuple[float, float, float]:
    """Milliseconds of a rank's bytes at HBM's rate and of its FLOPs at the peak, a token of each user, and 1."""
    plan, chip = case.plan, case.system.chip
    each = -(-users // plan.layout.dp)
    context = input_tokens + output_tokens / 2
    cache = float(serving_cache(plan.model, round(context), each, plan.cache_dtype, plan.layout.tp))
    read = float(case.memory.weights) + cache
    dtype = {"fp8": "float8_e4m3", "nvfp4": "nvfp4"}.get(plan.formats.get("default", ""), "")
    try:
        peak = peak_flops(case.system, Layout(product_dtype=dtype))
    except KeyError:
        peak = peak_flops(case.system, Layout())
    tokens = users * (1 + input_tokens / output_tokens)
    flops = 2 * float(plan.model.active_parameters) * tokens / (plan.layout.tp * plan.layout.dp)
    return read / chip.hbm.bytes_per_second * 1e3, flops / peak * 1e3, 1.0


def sets(cases: Sequence[Predicted]) -> dict[str, list[Predicted]]:
    """Dense models, and those with experts."""
    found: dict[str, list[Predicted]] = {}
    for case in cases:
        found.setdefault("experts" if case.point.moe else "dense", []).append(case)
    return found


def errors(cases: Sequence[Predicted]) -> dict[str, float]:
    """Mean, median and worst absolute relative errors: unfitted, fitted, left out, of the null model; of TTFT."""
    measured = np.array([c.point.measured_ms for c in cases])
    left = np.array([c.left_out_ms for c in cases]) / measured - 1
    found = {
        "cases": len(cases),
        "rows": sum(len(c.point.ids) for c in cases),
        "mape_unfitted": float(np.mean(np.abs(np.array([c.point.unfitted_ms for c in cases]) / measured - 1))),
        "bias_unfitted": float(np.mean(np.array([c.point.unfitted_ms for c in cases]) / measured - 1)),
        "mape_fitted": float(np.mean(np.abs(np.array([c.fitted_ms for c in cases]) / measured - 1))),
        "mape": float(np.mean(np.abs(left))),
        "median": float(np.median(np.abs(left))),
        "worst": float(np.max(np.abs(left))),
        "bias": float(np.mean(left)),
        "mape_null": float(np.mean(np.abs(np.array([c.null_ms for c in cases]) / measured - 1))),
    }
    ttft = [
        abs(c.point.ttft_ms / c.point.ttft_measured_ms - 1)
        for c in cases
        if c.point.ttft_ms is not None and c.point.ttft_measured_ms
    ]
    if ttft:
        found["ttft_median"] = float(np.median(ttft))
    return found


def to_json(found: Validation) -> dict[str, Any]:
    """``cases[]`` and ``summary`` of the comparison."""
    return {
        "schema": SCHEMA,
        "cases": [_case(name, c) for name, cases in sets(found.cases).items() for c in cases],
        "summary": {
            "sets": {name: errors(cases) for name, cases in sets(found.cases).items()},
            "predicted_share": found.predicted_share,
            "targets": [{"name": t.name, "value": t.value, "limit": t.limit, "met": t.met} for t in found.targets],
            "stacks": {
                name: {"work": float(f[0]), "fixed": float(f[1]), "exchanges": float(f[2]), "host_ms": float(f[3])}
                for name, f in found.fits.items()
            },
            "seconds": found.seconds,
        },
        "excluded": [{"rule": rule, "rows": count} for rule, count in found.excluded],
        "spread": list(found.spread),
        "neuron": [asdict(c) for c in found.neuron],
        "neuron_refused": [{"id": row, "why": why} for row, why in found.neuron_refused],
        "refused": [{"id": row, "why": why} for row, why in found.refused],
    }


def _case(name: str, case: Predicted) -> dict[str, Any]:
    p = case.point
    return {
        "set": name,
        "name": p.key,
        "ids": list(p.ids),
        "model": p.model,
        "chip": p.chip,
        "tp": p.tp,
        "stack": p.stack,
        "measured_ms": p.measured_ms,
        "unfitted_ms": p.unfitted_ms,
        "fitted_ms": case.fitted_ms,
        "predicted_ms": case.left_out_ms,
        "null_ms": case.null_ms,
        "error": case.error,
        "ttft_measured_ms": p.ttft_measured_ms,
        "ttft_unfitted_ms": p.ttft_ms,
    }
