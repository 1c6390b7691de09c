"""Published training steps beside predictions, and the errors by set, as one value."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.planner.training import TrainingPlan, model_flops, pieces_of, prices_of
from trnsim.validation.training.fit import Factors, Point, Predicted, base_name, folds
from trnsim.validation.training.rows import Row, excluded, framework, step_seconds, try_plan
from trnsim.validation.training.targets import Target, targets

SCHEMA = "trnsim-training-1"


@dataclass(frozen=True)
class Validation:
    """Cases, rows left out by rule, rows that could not be predicted, and the wall time."""

    cases: tuple[Predicted, ...]
    fits: dict[str, Factors]
    excluded: tuple[tuple[str, int], ...]
    refused: tuple[tuple[str, str], ...]
    rows: int
    seconds: float

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the model has to reach."""
        return targets(sets(self.cases), self.predicted_share)

    @property
    def predicted_share(self) -> float:
        """Of the rows that pass the rules."""
        passed = self.rows - sum(count for _, count in self.excluded)
        return 1 - len(self.refused) / passed if passed else 0.0


def validate(rows: Sequence[Row]) -> Validation:
    """Predict every row that passes the rules; refit for every fold."""
    begin = time.perf_counter()
    left_out: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    groups: dict[str, list[tuple[Row, TrainingPlan, float]]] = {}
    for row in rows:
        why = excluded(row)
        if why is not None:
            left_out[why] += 1
            continue
        plan, why = try_plan(row)
        seconds = step_seconds(row, plan) if plan is not None else None
        if plan is None or seconds is None:
            refused.append((row["id"], why or "no time of a step"))
            continue
        groups.setdefault(_key(row, plan), []).append((row, plan, seconds))
    points = []
    for key, members in groups.items():
        try:
            points.append(_point(key, members))
        except TrnsimError as error:
            refused += [(row["id"], str(error)) for row, _, _ in members]
    cases, fits = folds(points)
    return Validation(
        tuple(cases), fits, tuple(left_out.most_common()), tuple(refused), len(rows), time.perf_counter() - begin
    )


def _key(row: Row, plan: TrainingPlan) -> str:
    """Rows that differ in data-parallel size or release only have one key."""
    one = plan.layout
    lay = f"tp{one.tp} pp{one.pp} vpp{one.vpp} cp{one.cp} ep{one.ep} zero{one.zero}"
    batch = f"mb{one.micro_batch} x{one.micro_batches} {one.recompute}"
    names = (
        row["chip"],
        plan.model.name,
        one.product_dtype or one.dtype,
        f"{plan.sequence}",
        lay,
        batch,
        framework(row),
    )
    return " ".join(n for n in names if n)


def _point(key: str, members: list[tuple[Row, TrainingPlan, float]]) -> Point:
    """The group's median run, by time for a rank's work."""
    ordered = sorted(members, key=lambda m: m[2] / (m[1].layout.micro_batches * m[1].layout.micro_batch))
    _, plan, seconds = ordered[len(ordered) // 2]
    chip = plan.on.chip
    return Point(
        key=key,
        ids=tuple(row["id"] for row, _, _ in members),
        framework=framework(members[0][0]),
        generation=chip.generation or chip.name,
        chip=chip.name,
        model=plan.model.name,
        narrow=bool(plan.layout.product_dtype),
        moe=plan.model.mixture,
        plan=plan,
        pieces=pieces_of(prices_of(plan), plan.layout),
        measured_us=seconds * 1e6,
        model_flops=model_flops(plan),
        members=tuple((row["id"], member, time * 1e6) for row, member, time in members),
    )


def sets(cases: Sequence[Predicted]) -> dict[str, list[Predicted]]:
    """Cases by what they are compared as: by vendor, dense or with experts, Megatron's paper of 2022 apart."""
    found: dict[str, list[Predicted]] = {}
    for case in cases:
        p = case.point
        if p.framework == "neuronx-distributed":
            name = "Trainium, decoders" if p.plan.model.causal else "Trainium, encoders"
        elif p.framework == "megatron-2022":
            name = "A100, Megatron of 2022"
        elif p.framework == "megatron-2021":
            name = "A100, Megatron of 2021"
        elif p.framework == "deepspeed-2021":
            name = "A100, ZeRO 3 of 2021"
        elif p.framework == "maxtext":
            name = "Nvidia, MaxText"
        else:
            name = "Nvidia, experts" if p.moe else "Nvidia, dense"
        found.setdefault(name, []).append(case)
    return found


def errors(cases: Sequence[Predicted]) -> dict[str, float | int | None]:
    """Mean and worst absolute relative errors of the fit, without the model, and of the null model."""
    fitted = [abs(c.fitted_us / c.point.measured_us - 1) for c in cases]
    left = [c.left_out_us / c.point.measured_us - 1 for c in cases]
    null = [abs(c.null_us / c.point.measured_us - 1) for c in cases if c.null_us is not None]
    same = [abs(c.left_out_us / c.point.measured_us - 1) for c in cases if c.null_us is not None]
    return {
        "cases": len(cases),
        "rows": sum(len(c.point.ids) for c in cases),
        "mape_fitted": float(np.mean(fitted)),
        "mape": float(np.mean(np.abs(left))),
        "median": float(np.median(np.abs(left))),
        "worst": float(np.max(np.abs(left))),
        "bias": float(np.mean(left)),
        "null_cases": len(null),
        "null_mape": float(np.mean(null)) if null else None,
        "mape_where_null": float(np.mean(same)) if same else None,
    }


def to_json(found: Validation) -> dict[str, Any]:
    """``cases[]`` and ``summary`` of the comparison."""
    return {
        "schema": SCHEMA,
        "cases": [_case(name, c) for name, cases in sets(found.cases).items() for c in cases],
        "summary": {
            "sets": {name: errors(cases) for name, cases in sets(found.cases).items()},
            "predicted_share": found.predicted_share,
            "targets": [asdict(t) | {"met": t.met} for t in found.targets],
            "seconds": found.seconds,
        },
        "excluded": [{"rule": rule, "rows": count} for rule, count in found.excluded],
        "refused": [{"id": row, "why": why} for row, why in found.refused],
    }


def _case(name: str, case: Predicted) -> dict[str, Any]:
    p = case.point
    return {
        "set": name,
        "name": p.key,
        "ids": list(p.ids),
        "model": p.model,
        "left_out_model": base_name(p.model),
        "chip": p.chip,
        "measured_s": p.measured_us / 1e6,
        "fitted_s": case.fitted_us / 1e6,
        "predicted_s": case.left_out_us / 1e6,
        "null_s": None if case.null_us is None else case.null_us / 1e6,
        "error": case.left_out_us / p.measured_us - 1,
    }
