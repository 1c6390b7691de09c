"""What predictions of training steps have to reach, and ratios between published steps beside predicted ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from trnsim.validation.training.fit import Member, Point, Predicted, time_us

if TYPE_CHECKING:
    from trnsim.planner.training import TrainingPlan
    from trnsim.validation.training.paper import MemoryPoint
    from trnsim.workloads import Layout

# Rank-microseconds of a sequence that two layouts must differ by for the sign of the difference to count.
APART = 0.10


@dataclass(frozen=True)
class Target:
    """Something the model has to reach: ``value`` at most ``limit``, or at least where ``least``."""

    name: str
    value: float | None
    limit: float
    cases: int
    least: bool = False

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.least else self.value <= self.limit


def targets(sets: Mapping[str, Sequence[Predicted]], predicted_share: float) -> tuple[Target, ...]:
    """Every target that there are cases for."""
    found = [Target("rows that pass the rules and are predicted", predicted_share, 0.95, 0, least=True)]
    dense = list(sets.get("Nvidia, dense", ()))
    if dense:
        found += [
            Target("Nvidia, dense: mean", _mean(dense), 0.05, len(dense)),
            Target("Nvidia, dense: worst", _worst(dense), 0.12, len(dense)),
            Target("Nvidia, dense: mean over the null model's", _over_null(dense), 0.8, len(dense)),
            Target("Nvidia, dense: ratios of scale-out", *_mean_of(scale_out(dense), 0.05)),
            Target("Nvidia, dense: ratios of 8 bits to bfloat16", *_mean_of(narrow(dense), 0.05)),
        ]
    for name, limit in (("Nvidia, experts", 0.15), ("A100, Megatron of 2022", 0.04), ("Trainium, decoders", 0.08)):
        if sets.get(name):
            found.append(Target(f"{name}: mean", _mean(sets[name]), limit, len(sets[name])))
    paper = sets.get("A100, Megatron of 2022")
    if paper:
        found.append(Target("A100, Megatron of 2022: worst", _worst(paper), 0.09, len(paper)))
    right = signs([case for cases in sets.values() for case in cases])
    if right:
        found.append(
            Target("layouts that differ by 10 %: right signs", float(np.mean(right)), 1.0, len(right), least=True)
        )
    return tuple(found)


def memory_targets(points: Sequence[MemoryPoint], unfit: Sequence[str], rows: int) -> tuple[Target, ...]:
    """What predictions of memory have to reach."""
    found = [
        Target("memory: published runs that are judged to fit", 1 - len(unfit) / max(rows, 1), 1.0, rows, least=True)
    ]
    for kind, name in (("states", "parameters and optimiser"), ("activations", "activations")):
        errors = [abs(p.error) for p in points if p.kind == kind]
        found.append(Target(f"memory of Megatron of 2022: {name}, worst", max(errors), 0.05, len(errors)))
    return tuple(found)


def _mean(cases: Sequence[Predicted]) -> float:
    return float(np.mean([abs(c.error) for c in cases]))


def _worst(cases: Sequence[Predicted]) -> float:
    return max(abs(c.error) for c in cases)


def _mean_of(errors: Sequence[float], limit: float) -> tuple[float | None, float, int]:
    return (float(np.mean(np.abs(errors))) if errors else None), limit, len(errors)


def _over_null(cases: Sequence[Predicted]) -> float | None:
    both = [c for c in cases if c.null_us is not None]
    if not both:
        return None
    null = float(np.mean([abs((c.null_us or 0) / c.point.measured_us - 1) for c in both]))
    return _mean(both) / null


def _work(plan: TrainingPlan, microseconds: float) -> float:
    """Rank-microseconds of a sequence."""
    layout = plan.layout
    return microseconds * layout.ranks / (layout.micro_batches * layout.micro_batch * layout.dp)


def scale_out(cases: Sequence[Predicted]) -> list[float]:
    """Relative errors of how a step's rank-time changes with data parallelism alone, from the fewest ranks on."""
    found = []
    for case in cases:
        members = sorted(case.point.members, key=lambda m: m.plan.layout.ranks)
        if not members or members[-1].plan.layout.ranks == members[0].plan.layout.ranks:
            continue
        first = members[0]
        base = _both(case, first)
        for member in members[1:]:
            if member.plan.layout.ranks > first.plan.layout.ranks:
                ratio = _both(case, member)
                found.append(ratio[0] / base[0] / (ratio[1] / base[1]) - 1)
    return found


def _both(case: Predicted, member: Member) -> tuple[float, float]:
    """(predicted, measured) work of a member."""
    return _work(member.plan, time_us(case.point, case.factors, member.plan)), _work(member.plan, member.measured_us)


def narrow(cases: Sequence[Predicted]) -> list[float]:
    """Relative errors of how much longer a step in bfloat16 takes than in 8 bits, on the same chip and release."""
    found = []
    for one, other in combinations(cases, 2):
        formats = {_format(one.point), _format(other.point)}
        if _alike(one.point) == _alike(other.point) and "bfloat16" in formats and formats & {"fp8", "mxfp8"}:
            found += [a[0] / b[0] / (a[1] / b[1]) - 1 for a, b in _together(one, other)]
    return found


def signs(cases: Sequence[Predicted]) -> list[bool]:
    """Whether of two layouts of one chip, model, format and release that differ by more than 10 % the faster one is
    named.
    """
    found = []
    for one, other in combinations(cases, 2):
        a, b = one.point, other.point
        if _alike(a) != _alike(b) or _format(a) != _format(b) or _without_batch(a) == _without_batch(b):
            continue
        for first, second in _together(one, other):
            measured = first[1] / second[1] - 1
            if abs(measured) > APART:
                found.append((first[0] / second[0] > 1) == (measured > 0))
    return found


def _without_batch(point: Point) -> Layout:
    return replace(point.plan.layout, dp=1, global_batch=None)


def _together(one: Predicted, other: Predicted) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """(predicted, measured) work of both, for each release that both ran on."""
    for release in sorted({m.release for m in one.point.members} & {m.release for m in other.point.members}):
        yield _of(one, release), _of(other, release)


def _of(case: Predicted, release: str) -> tuple[float, float]:
    """(predicted, measured) work of the median run of a release."""
    members = sorted(
        (m for m in case.point.members if m.release == release), key=lambda m: _work(m.plan, m.measured_us)
    )
    return _both(case, members[len(members) // 2])


def _alike(point: Point) -> tuple[object, ...]:
    return point.chip, point.model, point.plan.sequence, point.framework


def _format(point: Point) -> str:
    return point.plan.layout.product_dtype or point.plan.layout.dtype
