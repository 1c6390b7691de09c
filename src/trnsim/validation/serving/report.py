"""Published TPOT beside predictions, and the errors by set, as one value."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.planner.serving import ServingCase
from trnsim.planner.serving_stack import product_format
from trnsim.validation.serving.fit import Floats, Point, Predicted, folds
from trnsim.validation.serving.neuron import OVER, NeuronCase, is_neuron, neuron_cases
from trnsim.validation.serving.parts import null_parts, tpot_parts
from trnsim.validation.serving.rows import FULL, Row, try_case
from trnsim.validation.serving.rules import Rules, stack_of

SCHEMA = "trnsim-serving-validation-2"
SPREAD = 0.15
SPREAD_RULE = "equal configurations that are spread over 15 %"
DENSE_LIMIT, EXPERTS_LIMIT, NEURON_LIMIT, SHARE_LIMIT = 0.12, 0.18, 0.25, 0.95


@dataclass(frozen=True)
class Target:
    """A figure and its limit."""

    name: str
    value: float | None
    limit: float
    least: bool = False

    @property
    def met(self) -> bool:
        """Without a value there was nothing to miss it by."""
        if self.value is None:
            return True
        return self.value >= self.limit if self.least else self.value <= self.limit


@dataclass(frozen=True)
class Validation:
    """Cases, the stacks' constants, and what became of every row: predicted, refused (why) or excluded (rule)."""

    cases: tuple[Predicted, ...]
    fits: dict[str, Floats]
    neuron: tuple[NeuronCase, ...]
    fates: dict[str, tuple[str, str]]
    seconds: float

    @property
    def excluded(self) -> list[tuple[str, int]]:
        """Rules, with how many rows each left out."""
        return Counter(why for fate, why in self.fates.values() if fate == "excluded").most_common()

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Rows that pass the rules and could not be predicted, and why."""
        return [(row, why) for row, (fate, why) in self.fates.items() if fate == "refused"]

    @property
    def predicted(self) -> int:
        """Rows."""
        return sum(fate == "predicted" for fate, _ in self.fates.values())

    @property
    def predicted_share(self) -> float:
        """Of the rows that pass the rules."""
        passed = self.predicted + len(self.refused)
        return self.predicted / passed if passed else 0.0

    @property
    def most_over(self) -> float | None:
        """How far the ideal stack's prediction exceeds a Neuron measurement at most, relative."""
        return max((c.over for c in self.neuron if c.over is not None), default=None)

    def neuron_errors(self, kind: str) -> list[float]:
        """Absolute relative errors of Neuron cases of a kind; end to end: of stacks that could be fitted."""
        mine = [c for c in self.neuron if c.kind == kind]
        return [abs(c.error) for c in mine if kind == "device" or c.left_out_ms is not None]

    @property
    def breakdown_errors(self) -> list[float]:
        """Absolute relative errors of the parts of steps that were published."""
        return [abs(told / measured - 1) for c in self.neuron for _, measured, told in c.breakdown]

    @property
    def targets(self) -> tuple[Target, ...]:
        found = sets(self.cases)
        values = {name: errors(found[name])["mape"] if name in found else None for name in ("dense", "experts")}
        device, whole = self.neuron_errors("device"), self.neuron_errors("end to end")
        return (
            Target("Nvidia, dense: TPOT", values["dense"], DENSE_LIMIT),
            Target("Nvidia, experts: TPOT", values["experts"], EXPERTS_LIMIT),
            Target("Neuron, ideal stack: the most over a measurement", self.most_over, OVER),
            Target("Neuron, time of the device: mean", _mean(device), NEURON_LIMIT),
            Target("Neuron, parts of steps: mean", _mean(self.breakdown_errors), NEURON_LIMIT),
            Target("Neuron, end to end: median", float(np.median(whole)) if whole else None, NEURON_LIMIT),
            Target("rows that pass the rules and are predicted", self.predicted_share, SHARE_LIMIT, least=True),
        )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def validate(rows: Sequence[Row]) -> Validation:
    """Predict every row that passes the rules; refit for every fold."""
    begin = time.perf_counter()
    rules = Rules(rows)
    fates: dict[str, tuple[str, str]] = {}
    groups: dict[tuple[Any, ...], list[tuple[Row, ServingCase]]] = {}
    devices: list[Row] = []
    for row in rows:
        why = rules.excluded(row)
        if why is not None:
            fates[row["id"]] = ("excluded", why)
        elif is_neuron(row):
            devices.append(row)
        else:
            case, why = try_case(row)
            if case is not None:
                groups.setdefault(_key(row, case), []).append((row, case))
            elif "GiB more than" in why:
                fates[row["id"]] = ("excluded", "weights that do not fit")
            else:
                fates[row["id"]] = ("excluded" if why == FULL else "refused", why)
    points = []
    for members in groups.values():
        measured = [row.number("tpot_ms") or 0.0 for row, _ in members]
        fate = ("predicted", "")
        if max(measured) / min(measured) - 1 > SPREAD:
            fate = ("excluded", SPREAD_RULE)
        else:
            try:
                points.append(point_of([row for row, _ in members], members[0][1]))
            except TrnsimError as error:
                fate = ("refused", str(error))
        fates |= {row["id"]: fate for row, _ in members}
    cases, fits = folds(points)
    neuron, unknown = neuron_cases(devices)
    fates |= {row["id"]: ("predicted", "") for row in devices} | {row: ("refused", why) for row, why in unknown}
    seconds = time.perf_counter() - begin
    return Validation(tuple(cases), fits, tuple(neuron), {row["id"]: fates[row["id"]] for row in rows}, seconds)


def _key(row: Row, case: ServingCase) -> tuple[Any, ...]:
    """Equal configurations, releases apart or not, have one key."""
    plan = case.plan
    formats = tuple(sorted(plan.formats.items()))
    lengths = (row.count("input_len"), row.count("output_len"), row.count("batch_or_concurrency"))
    return (plan.model.name, row["chip"], stack_of(row)[0], plan.layout, formats, *lengths)


def point_of(members: Sequence[Row], case: ServingCase) -> Point:
    """The parts of a group's TPOT, and its median.

    Raises:
        TrnsimError: an operator that nothing is known of.
    """
    row, plan = members[0], case.plan
    load = (row.count("batch_or_concurrency"), row.count("input_len"), row.count("output_len"))
    parts, ttft = tpot_parts(case, *load)
    measured = [r.number("tpot_ms") or 0.0 for r in members]
    first = [t for r in members if (t := r.number("ttft_ms"))]
    return Point(
        ids=tuple(r["id"] for r in members),
        model=plan.model.name,
        moe=plan.model.mixture,
        chip=row["chip"],
        tp=plan.layout.tp,
        stack=stack_of(row)[0],
        parts=parts,
        null=null_parts(case, *load),
        measured_ms=float(np.median(measured)),
        ttft_ms=ttft,
        ttft_measured_ms=float(np.median(first)) if first else None,
        users=load[0],
        lengths=(load[1], load[2]),
        format=product_format(plan, case.system.chip),
    )


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
        "rows": [{"id": row, "fate": fate, "why": why} for row, (fate, why) in found.fates.items()],
        "excluded": [{"rule": rule, "rows": count} for rule, count in found.excluded],
        "neuron": [_neuron(c) for c in found.neuron],
    }


def _neuron(case: NeuronCase) -> dict[str, Any]:
    p = case.point
    return {
        "kind": case.kind,
        "name": p.key,
        "ids": list(p.ids),
        "model": p.model,
        "chip": p.chip,
        "tp": p.tp,
        "stack": p.stack,
        "measured_ms": p.measured_ms,
        "ideal_ms": case.ideal_ms,
        "ideal_refused": case.ideal_refused,
        "unfitted_ms": case.unfitted_ms,
        "predicted_ms": case.predicted_ms,
        "null_ms": case.null_ms,
        "other_models_ms": case.other_models_ms,
        "error": case.error,
        "breakdown": [{"part": n, "measured_ms": m, "predicted_ms": v} for n, m, v in case.breakdown],
        "parts_ms": dict(zip(("work", "fixed", "exchanges", "host"), p.parts, strict=True)),
        "support": case.support if case.left_out_ms is None else "interpolated",
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
