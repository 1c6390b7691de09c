"""Published decoding on Neuron devices: bounded by the ideal stack, and predicted with the row's own.

Rows are of two kinds. *Device*: a decode step alone, as a profiler or an engine timed it; no host, the compiler's
operators as they are. *End to end*: TPOT of requests with the row's stack, refitted without each configuration in turn.
What rows omit is filled as ``subset.toml`` says; a server's batch goes before the users; heads are padded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.hardware import load_system
from trnsim.planner.serving import ServingCase, ServingPlan
from trnsim.planner.serving_costs import Parts
from trnsim.planner.training import ranks_per_chip
from trnsim.serving import Step
from trnsim.validation.serving.fit import ALL_FACTORS, ONE_FACTOR, Point, fitted, null_predicted, predicted
from trnsim.validation.serving.parts import null_parts, tpot_parts
from trnsim.validation.serving.rules import FILL, GRAPHS, SYSTEMS, stack_of
from trnsim.workloads import Layout, load_model

if TYPE_CHECKING:
    from trnsim.validation.serving.rows import Row

# Ideal predictions may exceed measurements by this share.
OVER = 0.10


@dataclass(frozen=True)
class NeuronCase:
    """One configuration. Milliseconds.

    Attributes:
        kind: ``device`` or ``end to end``.
        point: its parts, and what was measured.
        ideal_ms: with the ideal stack; None: it could not be predicted (``ideal_refused``).
        unfitted_ms: with the row's stack as the catalogue has it, or of the device alone.
        left_out_ms, null_ms: by fits without this configuration; None: the stack has too few.
        other_models_ms: by the fit of graphs of all other models on the same chip, whatever their stack; None: too few.
        breakdown: (part of a step, measured, predicted) where a profile was published; as ``other_models_ms`` if there
            are such, else unfitted.
    """

    kind: str
    point: Point
    ideal_ms: float | None
    ideal_refused: str
    unfitted_ms: float
    support: str
    left_out_ms: float | None = None
    null_ms: float | None = None
    other_models_ms: float | None = None
    breakdown: tuple[tuple[str, float, float], ...] = ()

    @property
    def predicted_ms(self) -> float:
        return self.unfitted_ms if self.left_out_ms is None else self.left_out_ms

    @property
    def error(self) -> float:
        return self.predicted_ms / self.point.measured_ms - 1

    @property
    def over(self) -> float | None:
        """How far the ideal stack's time exceeds the measured one."""
        return None if self.ideal_ms is None else self.ideal_ms / self.point.measured_ms - 1


def is_neuron(row: Row) -> bool:
    """Whether a row ran on Neuron devices."""
    return row["chip"] in SYSTEMS and load_system(SYSTEMS[row["chip"]]).chip.core is not None


def neuron_cases(rows: Sequence[Row]) -> tuple[list[NeuronCase], list[tuple[str, str]]]:
    """(cases, rows that could not be predicted and why); rows that differ in release and date alone are one case."""
    merged: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        merged.setdefault(_same(row), []).append(row)
    found: list[NeuronCase] = []
    refused: list[tuple[str, str]] = []
    for members in merged.values():
        try:
            found.append(_device(members) if _is_device(members[0]) else _end_to_end(members))
        except TrnsimError as error:
            refused += [(row["id"], str(error)) for row in members]
    return _other_models(_left_out(found)), refused


def _same(row: Row) -> tuple[str, ...]:
    columns = ("model", "chip", "tp", "dp", "batch_or_concurrency", "input_len", "output_len", "max_seq_len")
    weights = "int8" if row["weight_dtype"] == "int8" else ""
    return (*(row[c] for c in columns), weights, stack_of(row)[0], str(_is_device(row)))


def _is_device(row: Row) -> bool:
    return "decode step" in row["mode"] or row.counters is not None


def plan_of(row: Row, stack: str) -> tuple[ServingPlan, tuple[int, int, int]]:
    """(the plan that a row is a run of, (users, tokens in, tokens out)).

    Raises:
        TrnsimError: unknown names, or a layout that does not fit.
    """
    dp = row.count("dp")
    prompt = _first(row["input_len"], FILL["input_tokens"])
    output = max(_first(row["output_len"], FILL["output_tokens"]), 2)
    users = _first(row["batch_or_concurrency"], FILL["users"])
    server = re.search(r"server batch (\d+)", row["batch_or_concurrency"])
    batch = int(server[1]) if server else -(-users // dp)
    users = max(users, batch * dp if server else 1)
    ep = int(found[1]) if (found := re.search(r"moe_ep=(\d+)", row["framework"])) else 1
    plan = ServingPlan(
        model=load_model(row["model"]),
        system=SYSTEMS[row["chip"]],
        layout=Layout(tp=row.count("tp"), dp=dp, ep=ep),
        formats={"default": "int8" if row["weight_dtype"] == "int8" else FILL["neuron_weights"]},
        stack=stack,
        max_model_len=max(prompt + output, row.count("max_seq_len", 0)),
        max_num_seqs=batch,
    )
    return plan, (max(users, dp), prompt, output)


def _first(text: str, default: int) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found and int(found[0]) else default


def _end_to_end(members: Sequence[Row]) -> NeuronCase:
    row = members[0]
    name, like = stack_of(row)
    plan, load = plan_of(row, like)
    case = ServingCase(plan, factors=Parts(1.0, 1.0, 1.0))
    parts, _ = tpot_parts(case, *load)
    each = -(-load[0] // plan.layout.dp)
    measured = float(np.median([r.number("tpot_ms") or 0.0 for r in members]))
    point = _point(members, name, case, parts, load, measured)
    state = case.estimate(*load).state
    ideal, why = _ideal(plan, min(each, plan.max_num_seqs or each), load[1] + load[2] // 2)
    return NeuronCase("end to end", point, ideal, why, state.tpot * 1e3, "assumed", breakdown=_breakdown(row, parts))


def _breakdown(row: Row, parts: tuple[float, float, float, float]) -> tuple[tuple[str, float, float], ...]:
    """Exchanges, and all else that the device does: profiles and predictions cut the rest differently."""
    told = row.breakdown
    exchanges = sum(value for name, value in told.items() if name.startswith(("all-", "reduce-", "exchange")))
    if not exchanges:
        return ()
    return (
        ("exchanges", exchanges, parts[2]),
        ("operators", sum(told.values()) - exchanges, parts[0] + parts[1]),
    )


def _device(members: Sequence[Row]) -> NeuronCase:
    row = members[0]
    name, like = stack_of(row)
    plan, load = plan_of(row, like)
    context = row.count("max_seq_len", load[1] + load[2])
    if row.counters is not None:
        # Graphs read all that they are compiled for.
        plan = replace(plan, max_model_len=context)
        system = load_system(plan.system)
        rate = system.chip.hbm.bytes_per_second / ranks_per_chip(system, plan.lnc)
        measured = row.counters[1].milliseconds(rate)
    else:
        measured = row.number("tpot_ms") or 0.0
    each = plan.max_num_seqs or 1
    step = Step(decode_context=np.full(each, context - 1, np.int64))
    case = ServingCase(plan, factors=Parts(1.0, 1.0, 1.0))
    padded = case.settings.shapes.pad(step)
    one = (Parts(work=1.0), Parts(fixed=1.0), Parts(exchange=1.0))
    parts = [case.costs.with_factors(factors).step_ps(padded) / 1e9 for factors in one]
    point = _point(members, name, case, (parts[0], parts[1], parts[2], 0.0), load, measured)
    ideal, why = _ideal(plan, each, context - 1)
    return NeuronCase("device", point, ideal, why, sum(parts), "assumed")


def _point(
    members: Sequence[Row],
    name: str,
    case: ServingCase,
    parts: tuple[float, float, float, float],
    load: tuple[int, int, int],
    measured: float,
) -> Point:
    row, plan = members[0], case.plan
    return Point(
        ids=tuple(r["id"] for r in members),
        model=plan.model.name,
        moe=plan.model.mixture,
        chip=row["chip"],
        tp=plan.layout.tp,
        stack=name,
        parts=parts,
        null=null_parts(case, *load),
        measured_ms=measured,
        ttft_ms=None,
        ttft_measured_ms=None,
        users=load[0],
        lengths=load[1:],
        format=plan.formats["default"],
    )


def _ideal(plan: ServingPlan, sequences: int, context: int) -> tuple[float | None, str]:
    """(milliseconds of a decode step with the ideal stack, "") or (None, why not)."""
    try:
        case = ServingCase(replace(plan, stack="ideal", max_num_seqs=sequences))
        return case.costs.step_ps(Step(decode_context=np.full(sequences, context, np.int64))) / 1e9, ""
    except TrnsimError as error:
        return None, str(error)


def graphs_of(cases: Sequence[NeuronCase], chips: Collection[str]) -> list[Point]:
    """End-to-end points of compiled graphs on some chips, of all stacks that make them alike."""
    return [c.point for c in cases if c.kind != "device" and c.point.chip in chips and c.point.stack in GRAPHS]


def _other_models(cases: Sequence[NeuronCase]) -> list[NeuronCase]:
    """Cases of compiled graphs with predictions by the fit of other models on the same chip."""
    found = []
    for case in cases:
        pool = graphs_of(cases, {case.point.chip})
        others = [p for p in pool if p.model != case.point.model]
        if case.point not in pool or len(others) < ALL_FACTORS:
            found.append(case)
            continue
        parts = [float(f) * p for f, p in zip(fitted(others), case.point.parts, strict=True)]
        told = {"exchanges": parts[2], "operators": parts[0] + parts[1]}
        breakdown = tuple((name, measured, told[name]) for name, measured, _ in case.breakdown)
        found.append(replace(case, other_models_ms=sum(parts), breakdown=breakdown))
    return found


def _left_out(cases: Sequence[NeuronCase]) -> list[NeuronCase]:
    """Cases with predictions by fits of others: end to end, of their stack's other configurations; of the device, of
    graphs of all other models.
    """
    found = []
    for case in cases:
        mine = [c for c in cases if c.kind == case.kind]
        if case.kind == "device":
            others = [c.point for c in mine if c.point.model != case.point.model]
        else:
            others = [c.point for c in mine if c.point.stack == case.point.stack and c is not case]
        if len(others) + 1 < ONE_FACTOR:
            found.append(case)
            continue
        found.append(
            replace(
                case,
                left_out_ms=predicted(case.point, others),
                null_ms=null_predicted(case.point, others),
            )
        )
    return found
