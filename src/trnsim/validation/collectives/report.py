"""Predictions beside published collectives, and the errors by size, chip and fold, as one value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trnsim.fabric.group import group
from trnsim.fabric.predict import Prediction, predict
from trnsim.hardware import load_system

from . import fit, neuron
from .rows import Row, excluded, system_of

SCHEMA = "trnsim-collectives-1"
LIMITS = {
    "held_out_large": 0.12,
    "held_out_small": 0.15,
    "chip_left_out": 0.25,
    "two_nodes_large": 0.20,
}
"""What the model has to reach, as shares."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A published collective with its prediction. Times in microseconds, bandwidths in GB/s."""

    id: str
    set: str
    """``one node``, ``two nodes``, ``neuron``, or ``other``: runs of other tools, on which nothing was fitted."""
    chip: str
    system: str
    collective: str
    ranks: int
    nodes: int
    nbytes: int
    stat: str
    unit: str
    measured: float
    predicted: float
    algorithm: str
    support: str
    reason: str
    source: str

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def large(self) -> bool:
        return self.nbytes >= fit.LARGE


@dataclass(frozen=True)
class Target:
    """Something the model has to reach."""

    name: str
    value: float
    low: float
    high: float
    unit: str

    @property
    def met(self) -> bool:
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class Validation:
    """Everything that was compared, and what was not and why."""

    cases: tuple[Case, ...]
    failed: tuple[tuple[str, str], ...]
    """Rows that could not be predicted: id and reason."""
    excluded: tuple[tuple[str, tuple[str, ...]], ...]
    folds: tuple[fit.Fold, ...]
    targets: tuple[Target, ...]
    seconds: float


def validate(rows: Sequence[Row]) -> Validation:
    """Compare all rows that are a collective of a catalogued system."""
    started = time.perf_counter()
    left: dict[str, list[str]] = {}
    used = []
    for row in rows:
        reason = excluded(row)
        if reason is None:
            used.append(row)
        else:
            left.setdefault(reason, []).append(row.id)
    cases, failed = [], []
    from trnsim.errors import TrnsimError

    for row in used:
        try:
            cases.append(_case(row))
        except TrnsimError as error:
            failed.append((row.id, str(error)))
    folds = _folds(used)
    return Validation(
        tuple(cases),
        tuple(failed),
        tuple((reason, tuple(ids)) for reason, ids in left.items()),
        folds,
        tuple(_targets(cases, folds)),
        round(time.perf_counter() - started, 2),
    )


def _case(row: Row) -> Case:
    name = system_of(row)
    assert name is not None
    assert row.ranks is not None
    assert row.nodes is not None
    chip = load_system(name).chip.name
    what = _set(row, chip)
    if what == "neuron":
        measured, predicted, unit, nbytes, found = neuron.compare(row, name)
    else:
        assert row.nbytes is not None
        nbytes, unit = row.nbytes, "us"
        found = predict_row(row)
        measured, predicted = float(row.microseconds or 0), found.time_ps / 1e6
    return Case(
        id=row.id,
        set=what,
        chip=chip,
        system=name,
        collective=row.collective,
        ranks=row.ranks,
        nodes=row.nodes,
        nbytes=nbytes,
        stat=row.stat,
        unit=unit,
        measured=measured,
        predicted=predicted,
        algorithm=found.algorithm,
        support=found.support,
        reason=found.reason,
        source=row.source,
    )


def predict_row(row: Row) -> Prediction:
    """Our time of a published run: its ranks on as many systems as it had nodes."""
    name = system_of(row)
    assert name is not None
    assert row.ranks is not None
    assert row.nodes is not None
    assert row.nbytes is not None
    return predict(group(name, row.ranks, systems=row.nodes), row.collective, row.nbytes)


def _set(row: Row, chip: str) -> str:
    if chip.startswith("trn"):
        return "neuron"
    if row.nodes == 2 and row.op == "all_reduce":
        return "two nodes"
    return "one node" if "AIConfigurator" in row.quality else "other"


def _folds(rows: Iterable[Row]) -> tuple[fit.Fold, ...]:
    rows = list(rows)
    node, network = fit.database_points(rows), fit.network_points(rows)
    found: list[fit.Fold] = []
    made: list[tuple[Callable[[Sequence[fit.Point]], fit.Fold], list[fit.Point], int]] = [
        (fit.held_out_ranks, node, len({p.chip for p in node if p.ranks == fit.HELD_RANKS})),
        (fit.left_out_chips, node, len({p.chip for p in node}) - 1),
        (fit.left_out_generations, node, len({p.technology for p in node}) - 1),
        (fit.held_out_sizes, network, len({p.nbytes for p in network}) - 20),
    ]
    for make, points, enough in made:
        if enough > 0:
            found.append(make(points))
    return tuple(fold for fold in found if fold.predicted)


def _targets(cases: Sequence[Case], folds: Sequence[fit.Fold]) -> list[Target]:
    found = []
    by_name = {fold.name: fold for fold in folds}
    if fit.HELD_OUT in by_name:
        held = by_name[fit.HELD_OUT].errors()
        found += [
            Target(f"{fit.HELD_OUT}: MAPE, 1 MiB and above", held.large or 0.0, 0, LIMITS["held_out_large"], ""),
            Target(f"{fit.HELD_OUT}: MAPE, below 1 MiB", held.small or 0.0, 0, LIMITS["held_out_small"], ""),
        ]
    if fit.LEFT_OUT in by_name:
        fold = by_name[fit.LEFT_OUT]
        for chip in dict.fromkeys(p.chip for p in fold.predicted):
            mine = fold.errors([p for p in fold.predicted if p.chip == chip])
            found.append(Target(f"{fit.LEFT_OUT}: MAPE, {chip}", mine.all, 0, LIMITS["chip_left_out"], ""))
    two = [abs(c.error) for c in cases if c.set == "two nodes" and c.large]
    if two:
        found.append(
            Target("all_reduce over two nodes: MAPE, 1 MiB and above", sum(two) / len(two), 0,
                   LIMITS["two_nodes_large"], "")
        )  # fmt: skip
    return found + [Target(*entry) for entry in neuron.targets((c.id, c.stat, c.nodes, c.measured, c.predicted)
                                                               for c in cases if c.set == "neuron")]  # fmt: skip


def to_json(found: Validation) -> dict[str, Any]:
    """Plain dicts and lists; errors are shares of the measured value."""
    return {
        "schema": SCHEMA,
        "summary": summary(found),
        "cases": [{**asdict(c), "error": c.error} for c in found.cases],
        "failed": [{"id": name, "reason": reason} for name, reason in found.failed],
        "excluded": [{"reason": reason, "rows": len(ids), "ids": list(ids)} for reason, ids in found.excluded],
        "wall_seconds": found.seconds,
    }


def summary(found: Validation) -> dict[str, Any]:
    """Mean absolute relative errors by set, size class and chip, the folds, the targets."""
    sets: dict[str, Any] = {}
    for name in dict.fromkeys(c.set for c in found.cases):
        mine = [c for c in found.cases if c.set == name]
        sets[name] = {
            **mean_errors(mine),
            "chips": {
                chip: mean_errors([c for c in mine if c.chip == chip]) for chip in dict.fromkeys(c.chip for c in mine)
            },
            "collectives": {
                name: mean_errors([c for c in mine if c.collective == name])
                for name in dict.fromkeys(c.collective for c in mine)
            },
        }
    return {
        "mape": sets,
        "folds": [
            {
                "name": fold.name,
                **asdict(fold.errors()),
                "chips": {
                    chip: asdict(fold.errors([p for p in fold.predicted if p.chip == chip]))
                    for chip in dict.fromkeys(p.chip for p in fold.predicted)
                },
            }
            for fold in found.folds
        ],
        "targets": [{**asdict(t), "met": t.met} for t in found.targets],
    }


def mean_errors(cases: Sequence[Case]) -> dict[str, Any]:
    """Of cases: how many, and the mean absolute error of all, of the large and of the small ones."""

    def mean(chosen: list[Case]) -> float | None:
        return sum(abs(c.error) for c in chosen) / len(chosen) if chosen else None

    return {
        "cases": len(cases),
        "all": mean(list(cases)),
        "large": mean([c for c in cases if c.large]),
        "small": mean([c for c in cases if not c.large]),
    }
