"""Stack profiles fitted to a user's own measurements.

Measurements are rows with the columns of ``inference.csv`` or the results of ``vllm bench serve`` and guidellm, each
with the plan that it is a run of. A TPOT is split into the columns that stacks are fitted on (``parts``); three
configurations fit one factor on all times of the device, eight fit each constant. Each is also predicted by a fit of
the others, and by the null model of the same fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.hardware.stack import load_stack, stack_names
from trnsim.planner.benchmarks import MeasuredServing, read_guidellm, read_vllm_bench
from trnsim.planner.fields import read_json
from trnsim.planner.serving import ServingCase, ServingPlan, default_serving_stack
from trnsim.planner.serving_costs import Parts
from trnsim.planner.serving_stack import product_format
from trnsim.validation.serving import neuron, rows
from trnsim.validation.serving.fit import ALL_FACTORS, ONE_FACTOR, Point, fitted, null_predicted, predicted
from trnsim.validation.serving.parts import null_parts, tpot_parts
from trnsim.validation.serving.rows import Row, read_rows
from trnsim.validation.serving.rules import SYSTEMS, stack_of

if TYPE_CHECKING:
    from trnsim.validation.serving.fit import Floats

# Columns that a user's file cannot do without; what others omit is filled as in validation.
NEEDED = ("model", "chip", "tp", "batch_or_concurrency", "input_len", "output_len", "tpot_ms")


@dataclass(frozen=True)
class Measured:
    """A measured configuration: the plan, (users, tokens in, tokens out), TPOT in milliseconds."""

    name: str
    plan: ServingPlan
    load: tuple[int, int, int]
    tpot_ms: float


@dataclass(frozen=True)
class Held:
    """A configuration with its TPOT by fits without it: ours and the null model's, in milliseconds."""

    point: Point
    left_out_ms: float
    null_ms: float
    unfitted_ms: float

    @property
    def error(self) -> float:
        return self.left_out_ms / self.point.measured_ms - 1


@dataclass(frozen=True)
class Calibration:
    """Constants of a stack that is ``like`` one of the catalogue, and what they are known by."""

    name: str
    like: str
    constants: Floats
    cases: tuple[Held, ...]
    refused: tuple[tuple[str, str], ...]
    source: str

    @property
    def factors(self) -> tuple[float, float, float]:
        """Of operators' work, of their fixed times and of exchanges."""
        found = [float(f) for f in self.constants]
        return (found[0], found[1], found[2]) if len(found) > 1 else (found[0],) * 3

    @property
    def host_ms(self) -> float | None:
        """Host time a step; None: too few configurations to tell it from the device's."""
        return float(self.constants[3]) if len(self.constants) > 1 else None

    @property
    def error(self) -> float:
        """Mean absolute relative error of configurations that were left out."""
        return float(np.mean([abs(case.error) for case in self.cases]))

    @property
    def null_error(self) -> float:
        """The null model's, in the same folds."""
        return float(np.mean([abs(c.null_ms / c.point.measured_ms - 1) for c in self.cases]))

    @property
    def unfitted_error(self) -> float:
        """Without any fit."""
        return float(np.mean([abs(c.unfitted_ms / c.point.measured_ms - 1) for c in self.cases]))

    def toml(self, date: str) -> str:
        """The stack profile: a file for ``--stack``."""
        work, fixed, exchanges = self.factors
        why = f"{len(self.cases)} configurations of {self.source}; each was predicted without it"

        def fact(value: str) -> str:
            return f'{{ value = {value}, source = "{_quoted(self.source)}", date = {date}, why = "{_quoted(why)}" }}'

        host = [] if self.host_ms is None else ["host_time = " + fact(f'"{1e3 * self.host_ms:.1f} us"')]
        lines = [
            f"# Fitted by trnsim calibrate on {len(self.cases)} configurations. Mean absolute error of TPOT, each left",
            f"# out of the fit: {self.error:.1%}; by bytes and FLOPs over rates alone: {self.null_error:.1%}.",
            "",
            f'base = "{self.like}"',
            f'name = "{self.name}"',
            f'title = "{self.name}, calibrated"',
            "",
            "[fit]",
            f"work = {fact(f'{work:.4f}')}",
            f"fixed = {fact(f'{fixed:.4f}')}",
            f"exchanges = {fact(f'{exchanges:.4f}')}",
            *host,
            f"cases = {fact(str(len(self.cases)))}",
            f"error = {fact(f'{self.error:.4f}')}",
        ]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")


def read_measured(path: Path, like: str, plan: ServingPlan | None) -> tuple[list[Measured], list[tuple[str, str]]]:
    """(configurations of a file, rows that cannot be and why): CSV, or JSON of one of the benchmarks.

    Args:
        like: the stack of the catalogue that describes what was measured.
        plan: what a benchmark ran, which its file does not say; of CSV, rows do.

    Raises:
        InputError: a file that does not hold; JSON without a plan.
    """
    if path.suffix.lower() == ".csv":
        return _of_rows(read_rows(path, NEEDED), like)
    if plan is None:
        raise InputError(
            f"{path} does not say what it ran on: give --model, --system and --tp", operand="FILE", value=str(path)
        )
    data = read_json(path)
    many = isinstance(data, dict) and "benchmarks" in data
    found, refused = [], []
    for number, one in enumerate(read_guidellm(path) if many else [read_vllm_bench(path)]):
        name = f"{path.name}[{number}]" if many else path.name
        try:
            found.append(_of_benchmark(name, one, replace(plan, stack=like)))
        except InputError as error:
            refused.append((name, str(error)))
    return found, refused


def _of_rows(found: Sequence[Row], like: str) -> tuple[list[Measured], list[tuple[str, str]]]:
    made: list[Measured] = []
    refused: list[tuple[str, str]] = []
    for number, row in enumerate(found, start=2):
        name = row["id"] or f"line {number}"
        tpot = row.number("tpot_ms")
        try:
            if not tpot or tpot < 0:
                raise InputError("no TPOT", operand="tpot_ms", value=row["tpot_ms"])
            if row["chip"] not in SYSTEMS:
                raise InputError("no system of this chip", operand="chip", value=row["chip"], limit=[*SYSTEMS])
            stack = like or stack_of(row)[1] or default_serving_stack(load_system(SYSTEMS[row["chip"]]))
            if neuron.is_neuron(row):
                plan, load = neuron.plan_of(row, stack)
            else:
                plan = rows.plan_of(row, stack)
                load = (row.count("batch_or_concurrency"), row.count("input_len"), row.count("output_len"))
            made.append(Measured(name, plan, load, tpot))
        except TrnsimError as error:
            refused.append((name, str(error)))
    return made, refused


def _of_benchmark(name: str, one: MeasuredServing, plan: ServingPlan) -> Measured:
    if one.concurrency is None:
        raise InputError(f"{name}: not a closed loop (max_concurrency): the batch that ran is not known")
    tpot = one.tpot.get("mean", one.tpot.get("median"))
    if not tpot or not one.requests or one.input_tokens is None or one.output_tokens is None:
        raise InputError(f"{name}: no TPOT, or no requests that were answered")
    prompt, output = max(round(one.input_tokens / one.requests), 1), max(round(one.output_tokens / one.requests), 2)
    each = -(-one.concurrency // plan.layout.dp)
    longest = max(plan.max_model_len, prompt + output)
    sized = replace(plan, max_model_len=longest, max_num_seqs=plan.max_num_seqs or each)
    return Measured(name, sized, (one.concurrency, prompt, output), tpot * 1e3)


def calibrate(name: str, measured: Sequence[Measured], refused: Sequence[tuple[str, str]], source: str) -> Calibration:
    """Fit a stack.

    Raises:
        InputError: too few configurations, those of several stacks, or a name that the catalogue has.
    """
    if name in stack_names():
        raise InputError(f"the catalogue has a stack {name!r}: choose another name", operand="--stack", value=name)
    likes = sorted({one.plan.stack for one in measured})
    if len(likes) > 1:
        raise InputError(
            "measurements of chips with different stacks make no one profile: give --like, or a file of one of them",
            operand="FILE", value=", ".join(likes),
        )  # fmt: skip
    points: dict[str, Point] = {}
    missed = list(refused)
    for one in measured:
        try:
            point = _point(name, one)
        except TrnsimError as error:
            missed.append((one.name, str(error)))
            continue
        before = points.get(point.key)
        # Runs of one configuration count once.
        points[point.key] = point if before is None else replace(before, ids=(*before.ids, *point.ids))
    held = list(points.values())
    if len(held) < ONE_FACTOR:
        why = "; ".join(f"{row}: {reason}" for row, reason in missed[:3])
        raise InputError(
            f"{len(held)} different configurations are too few to fit the stack {name}: one factor needs "
            f"{ONE_FACTOR}, all constants {ALL_FACTORS}{'; ' if why else ''}{why}",
            operand="FILE", value=source,
        )  # fmt: skip
    cases = []
    for number, point in enumerate(held):
        others = held[:number] + held[number + 1 :]
        cases.append(Held(point, predicted(point, others), null_predicted(point, others), point.unfitted_ms))
    return Calibration(name, load_stack(likes[0]).name, fitted(held), tuple(cases), tuple(missed), source)


def _point(name: str, one: Measured) -> Point:
    case = ServingCase(one.plan, factors=Parts(1.0, 1.0, 1.0))
    parts, ttft = tpot_parts(case, *one.load)
    plan = one.plan
    return Point(
        ids=(one.name,),
        model=plan.model.name,
        moe=plan.model.mixture,
        chip=case.system.chip.name,
        tp=plan.layout.tp,
        stack=name,
        parts=parts,
        null=null_parts(case, *one.load),
        measured_ms=one.tpot_ms,
        ttft_ms=ttft,
        ttft_measured_ms=None,
        users=one.load[0],
        lengths=one.load[1:],
        format=product_format(plan, case.system.chip),
    )
