"""The comparison as one value: what ``--json`` writes and the tables show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trnsim.hardware import load_chip, load_timing
from trnsim.validation.cases import Case, Selection
from trnsim.validation.checkouts import missing
from trnsim.validation.clocks import fixed_us
from trnsim.validation.run import Failure, Prediction
from trnsim.validation.summary import Errors, Point, error, errors, overall

SCHEMA = "trnsim.validation/1"


@dataclass(frozen=True)
class Compared:
    """A case with its prediction, on the clock of its measurement."""

    case: Case
    prediction: Prediction
    fixed_us: float
    """The fixed parts of the clock, once a launch."""

    def _on_clock(self, span_us: float) -> float:
        return span_us + self.prediction.launches * self.fixed_us

    @property
    def predicted_us(self) -> float:
        return self._on_clock(self.prediction.span_us)

    @property
    def error(self) -> float:
        return error(self.predicted_us, self.case.measured_us)

    @property
    def span_error(self) -> float | None:
        """Of the kernel without the fixed parts, where the clock is a profiler's and has them apart."""
        if self.case.clock not in ("profiler_total", "kernel"):
            return None
        measured = self.case.measured_us - self.prediction.launches * self.fixed_us
        return error(self.prediction.span_us, measured) if measured > 0 else None

    def point(self, model: str = "ours") -> Point:
        span = {
            "ours": self.prediction.span_us,
            "busiest": self.prediction.busiest_us,
            "sum": self.prediction.sum_us,
        }[model]
        return Point(self._on_clock(span), self.case.measured_us, self.case.clock, self.case.recipe.problem)


@dataclass(frozen=True)
class Family:
    """One operation of one source on one chip."""

    name: str
    group: str
    ours: Errors
    busiest: Errors
    sum: Errors


@dataclass(frozen=True)
class Validation:
    """Everything that was compared, and what was not and why."""

    compared: tuple[Compared, ...]
    failed: tuple[tuple[Case, str], ...]
    not_run: tuple[tuple[Case, str], ...]
    excluded: tuple[tuple[str, tuple[str, ...]], ...]
    families: tuple[Family, ...]
    seconds: float

    @property
    def summary(self) -> Errors | None:
        return overall(f.ours for f in self.families) if self.families else None


def runnable(selection: Selection, roots: Mapping[str, Path]) -> tuple[list[Case], list[tuple[Case, str]]]:
    """Cases that can run with these checkouts and have a known clock; the others with the reason."""
    ready: list[Case] = []
    left: list[tuple[Case, str]] = []
    for case in selection.cases:
        reasons = [r for call in case.recipe.calls if (r := missing(call.source, roots)) is not None]
        if fixed_us(load_timing(load_chip(case.chip)), case.clock) is None:
            reasons.append(f"the fixed part of clock {case.clock} is not known on {case.chip}")
        if reasons:
            left.append((case, reasons[0]))
        else:
            ready.append(case)
    return ready, left


def validation(
    selection: Selection,
    not_run: Sequence[tuple[Case, str]],
    results: Mapping[Case, Prediction | Failure],
    seconds: float,
) -> Validation:
    """Compare ``results`` with what was measured."""
    compared, failed = [], []
    for case in selection.cases:
        found = results.get(case)
        if isinstance(found, Failure):
            failed.append((case, found.reason))
        elif found is not None:
            fixed = fixed_us(load_timing(load_chip(case.chip)), case.clock)
            assert fixed is not None
            compared.append(Compared(case, found, fixed))
    names = dict.fromkeys(c.case.family for c in compared)
    families = []
    for name in names:
        mine = [c for c in compared if c.case.family == name]
        found_errors = [errors([c.point(model) for c in mine]) for model in ("ours", "busiest", "sum")]
        families.append(Family(name, mine[0].case.recipe.group, *found_errors))
    return Validation(
        tuple(compared), tuple(failed), tuple(not_run), selection.excluded, tuple(families), round(seconds, 1)
    )


def to_json(found: Validation) -> dict[str, Any]:
    """Plain dicts and lists. Errors are shares of the measured time (of 50 us where that is longer)."""
    summary = found.summary
    return {
        "schema": SCHEMA,
        "summary": None if summary is None else _errors(summary),
        "families": [
            {
                "name": f.name,
                "group": f.group,
                **_errors(f.ours),
                "naive": {"busiest": _errors(f.busiest), "sum": _errors(f.sum)},
            }
            for f in found.families
        ],
        "cases": [_case(c) for c in found.compared],
        "failed": [{**_what(case), "reason": reason} for case, reason in found.failed],
        "not_run": [{**_what(case), "reason": reason} for case, reason in found.not_run],
        "excluded": [{"reason": reason, "rows": len(ids), "ids": list(ids)} for reason, ids in found.excluded],
        "wall_seconds": found.seconds,
    }


def _errors(e: Errors) -> dict[str, Any]:
    return {
        "cases": e.cases,
        "mape": e.mape,
        "median": e.median,
        "worst": e.worst,
        "bias": e.bias,
        "pairs_in_order": e.pairs_in_order,
        "pairs": e.pairs,
        "ordered": e.ordered,
        "choice": e.choice,
    }


def _what(case: Case) -> dict[str, Any]:
    call = case.recipe.calls[0]
    return {
        "name": case.name,
        "family": case.family,
        "group": case.recipe.group,
        "kernel": case.recipe.label,
        "problem": case.recipe.problem,
        "chip": case.chip,
        "setting": case.recipe.setting,
        "cores": case.cores,
        "clock": case.clock,
        "rows": [row.id for row in case.rows],
        "source": f"{call.source.checkout}:{call.source.path}"
        + (f"@{call.source.revision}" if call.source.revision else ""),
        "measured_by": case.rows[0].source,
        "measured_us": case.measured_us,
    }


def _case(c: Compared) -> dict[str, Any]:
    p = c.prediction
    return {
        **_what(c.case),
        "predicted_us": c.predicted_us,
        "error": c.error,
        "support": p.support,
        "support_reason": p.support_reason,
        "schedule": p.schedule,
        "fixed_us": p.launches * c.fixed_us,
        "span_us": p.span_us,
        "span_error": c.span_error,
        "spread_us": p.spread_us,
        "naive": {
            model: {"predicted_us": c.point(model).predicted_us, "error": c.point(model).error}
            for model in ("busiest", "sum")
        },
        "bound_by": p.bound_by,
        "instructions": p.instructions,
        "spills": p.spills,
        "findings": p.findings,
        "seconds": p.seconds,
    }
