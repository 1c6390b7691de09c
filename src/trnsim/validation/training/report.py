"""Published training steps beside predictions, and the errors by set, as one value."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.planner.stack import architecture, strain
from trnsim.planner.training import TrainingPlan, model_flops, pieces_of, prices_of
from trnsim.validation.training.calculon import Calculon, run_calculon
from trnsim.validation.training.fit import NOISE, Factors, Member, Point, Predicted, base_name, folds
from trnsim.validation.training.paper import memory
from trnsim.validation.training.rows import FRAMEWORKS, Row, excluded, fits, framework, product, step_seconds, try_plan
from trnsim.validation.training.targets import Target, memory_targets, targets

Run = tuple[Row, TrainingPlan, float]
SCHEMA = "trnsim-training-1"
DECODERS = "Trainium, decoders"
# What cases of a framework are compared as; those of others by whether they have experts. Frameworks that one model was
# published of stand apart: without that model nothing is left to fit them on.
SETS = {
    "maxtext": "Nvidia, MaxText",
    "llama-3": "Nvidia, Llama 3 of 2024",
    "megatron-bridge-sft": "Nvidia, fine-tuning",
    "neuronx-distributed": DECODERS,
    "neuronx-bert": "Trainium, encoders",
    "megatron-2022": "A100, Megatron of 2022",
    "megatron-2021": "A100, Megatron of 2021",
    "megatron-deepspeed": "A100, Megatron-DeepSpeed of 2022",
    "deepspeed-2021": "A100, ZeRO 3 of 2021",
}


@dataclass(frozen=True)
class Validation:
    """Cases, rows left out by rule, rows that could not be predicted, and the wall time.

    ``unfit``: rows that are judged not to fit; ``fitted_on``: rows and models that a stack's fit saw.
    """

    cases: tuple[Predicted, ...]
    fits: dict[str, Factors]
    excluded: tuple[tuple[str, int], ...]
    refused: tuple[tuple[str, str], ...]
    rows: int
    seconds: float
    unfit: tuple[str, ...] = ()
    fitted_on: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    calculon: Calculon = field(default_factory=Calculon)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the model has to reach."""
        found = targets(sets(self.cases), self.predicted_share)
        return (*found, *memory_targets(memory(), self.unfit, sum(len(c.point.ids) for c in self.cases)))

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
    unfit: list[str] = []
    groups: dict[str, list[Run]] = {}
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
        try:
            pieces_of(prices_of(plan), plan.layout)
        except TrnsimError as error:
            refused.append((row["id"], str(error)))
            continue
        groups.setdefault(_key(row, plan), []).append((row, plan, seconds))
        if not fits(plan, row["chip"]):
            unfit.append(row["id"])
    runs = [(key, case) for key, members in groups.items() for case in _cases(members)]
    points = [_point(key, case) for key, case in runs]
    samples = [_point(key, some) for key, case in runs for some in _by_framework(case)]
    after = {name: held["after"] for name, held in FRAMEWORKS.items() if "after" in held}
    cases, fitted = folds(points, samples, after)
    paper = any(c.point.framework == "megatron-2022" for c in cases)
    return Validation(
        cases=tuple(cases),
        fits=fitted,
        excluded=tuple(left_out.most_common()),
        refused=tuple(refused),
        rows=len(rows),
        seconds=time.perf_counter() - begin,
        unfit=tuple(unfit),
        fitted_on={name: _counted([s for s in samples if s.framework == name]) for name in fitted},
        calculon=run_calculon() if paper else Calculon(why="none of its points is among the rows"),
    )


def _counted(samples: Sequence[Point]) -> tuple[int, int]:
    """(rows, models)."""
    return sum(len(s.ids) for s in samples), len({base_name(s.model) for s in samples})


def _cases(members: list[Run]) -> list[list[Run]]:
    """Runs of a layout that differ in data parallelism or release only: as many micro-batches, or as large batches."""
    found: list[list[Run]] = []
    for run in members:
        layout = run[1].layout
        same = [
            case for case in found
            if any(layout.micro_batches == o.layout.micro_batches or layout.global_batch == o.layout.global_batch
                   for _, o, _ in case)
        ]  # fmt: skip
        found = [case for case in found if case not in same] + [[*(r for case in same for r in case), run]]
    return found


def _by_framework(members: Sequence[Run]) -> list[list[Run]]:
    """Runs of a case by what they ran on: fits see each."""
    found: dict[str, list[Run]] = {}
    for run in members:
        found.setdefault(framework(run[0]), []).append(run)
    return list(found.values())


def _key(row: Row, plan: TrainingPlan) -> str:
    """Rows that differ in data-parallel size or release only have one key."""
    one = plan.layout
    lay = f"tp{one.tp} pp{one.pp} vpp{one.vpp} cp{one.cp} ep{one.ep} zero{one.zero}"
    batch = f"mb{one.micro_batch} {one.recompute}"
    names = (
        row["chip"],
        plan.model.name,
        one.product_dtype or one.dtype,
        f"{plan.sequence}",
        lay,
        batch,
        product(framework(row)),
    )
    return " ".join(n for n in names if n)


def _point(key: str, members: list[Run]) -> Point:
    """The group's median run, by time for a rank's work."""
    ordered = sorted(members, key=lambda m: m[2] / (m[1].layout.micro_batches * m[1].layout.micro_batch))
    row, plan, seconds = ordered[len(ordered) // 2]
    found = tuple(Member(r["id"], f"{r['software']} {r['date']}", p, time * 1e6) for r, p, time in members)
    spread = float(FRAMEWORKS[framework(row)].get("release_spread", 0.0))
    chip = plan.on.chip
    return Point(
        key=f"{key} x{plan.layout.micro_batches}",
        ids=tuple(row["id"] for row, _, _ in members),
        framework=framework(row),
        generation=architecture(chip),
        strain=strain(chip),
        chip=chip.name,
        model=plan.model.name,
        narrow=bool(plan.layout.product_dtype),
        moe=plan.model.mixture,
        plan=plan,
        pieces=pieces_of(prices_of(plan), plan.layout),
        measured_us=seconds * 1e6,
        model_flops=model_flops(plan),
        members=found,
        noise=float(np.hypot(NOISE, spread / np.sqrt(len({m.release for m in found})))),
    )


def sets(cases: Sequence[Predicted]) -> dict[str, list[Predicted]]:
    """Cases by what they are compared as: by vendor, dense or with experts, Megatron's paper of 2022 apart."""
    found: dict[str, list[Predicted]] = {}
    for case in cases:
        p = case.point
        name = SETS.get(p.framework, "")
        if name == DECODERS and p.releases < 2:
            name += " of one release"
        name = name or f"Nvidia, {'experts' if p.moe else 'dense'}"
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
        "memory": [asdict(point) | {"error": point.error} for point in memory()],
        "does_not_fit": list(found.unfit),
        "calculon": {
            "why_not": found.calculon.why,
            "values": [
                {"kind": kind, "model": model, "recompute": mode, "measured": held, "predicted": told}
                for (kind, model, mode), (held, told) in found.calculon.values.items()
            ],
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
