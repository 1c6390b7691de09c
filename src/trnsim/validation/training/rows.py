"""Published training steps: rows of ``training.csv``, which are left out by rule, and the plan that each is a run of.

The rules are data, ``validation/subset.toml``: which rows count, what they ran on, and how what they omit is filled.
A rank of Trainium is a logical core of the chip's default size.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trnsim.errors import InputError, InternalError, TrnsimError
from trnsim.hardware import load_system
from trnsim.planner.stack import load_training_stack
from trnsim.planner.training import (
    TrainingPlan,
    default_stack,
    estimate,
    peak_flops,
    ranks_per_chip,
    with_layout,
)
from trnsim.validation.subset import PublishedRow, first, holds, subset
from trnsim.validation.training.paper import PAPER, steps
from trnsim.workloads import Layout, load_model, training_memory

FILE = "training.csv"
COLUMNS = (
    "id", "model", "layers", "hidden", "moe", "seq_len", "chip", "n_chips", "tp", "pp", "vp", "cp", "ep", "dp",
    "zero_fsdp", "act_recompute", "micro_batch", "global_batch", "dtype", "software", "metric", "value", "step_time_s",
    "quality", "source", "date", "notes",
)  # fmt: skip
# What a measurement is told by.
_MEASURED = ("model", "chip", "n_chips", "software", "metric", "value")
RULES = subset("training")
IDEAL = "ideal"
SYSTEMS: Mapping[str, str] = RULES["systems"]
FRAMEWORKS: Mapping[str, Mapping[str, Any]] = {held["name"]: held for held in RULES["frameworks"]}


@dataclass(frozen=True)
class Row(PublishedRow):
    """A published training run."""

    def count(self, name: str) -> int:
        found = self.number(name)
        return int(RULES["fill"]["count"] if found is None else found)


def excluded(row: Row) -> str | None:
    """The reason why a row is left out, or None."""
    tests: Mapping[str, Callable[[float], bool]] = {
        "corrected": lambda _: bool(row["corrected"]),
        "counted": lambda limit: _counted(row) > limit,
    }
    found = first(RULES["exclude"], row, RULES, lambda name, limit: tests[name](limit))
    return None if found is None else str(found["reason"])


def _counted(row: Row) -> float:
    """How much more FLOPs a step has where all scores of attention count than with those of a causal mask alone."""
    share = row.count("seq_len") / (6 * row.count("hidden"))
    return (1 + share) / (1 + share / 2) - 1


def read_rows(path: str | Path) -> list[Row]:
    """Rows of ``training.csv`` or of the folder that has it.

    Raises:
        InputError: no such file, or one without these columns.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = sorted(set(COLUMNS) - set(reader.fieldnames or ()))
            if missing:
                raise InputError(f"{file} has no column {', '.join(missing)}", operand="data", limit=COLUMNS)
            rows = [Row(values) for values in reader]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if any(PAPER in row["source"] for row in rows):
        # Where some points of the paper are, so are the others.
        held = {row["id"] for row in rows}
        rows += [Row(values) for values in steps() if values["id"] not in held]
    return _corrected(_completed(rows))


def _completed(rows: list[Row]) -> list[Row]:
    """Stages and chunks of pipelines that rows omit."""
    fill = RULES["fill"]
    rows = _like(rows, "pp", fill["stages_like"], lambda row: row["metric"] == "MFU")
    rows = _like(rows, "vp", fill["chunks_like"], lambda row: row.count("pp") > 1)
    return [_interleaved(row) for row in rows]


def _like(rows: list[Row], column: str, like: Sequence[str], wanted: Callable[[Row], bool]) -> list[Row]:
    """Rows with what they omit as all others have it that have the same in the columns ``like``."""
    held: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        if row[column]:
            held.setdefault(tuple(row[name] for name in like), set()).add(row[column])
    found = []
    for row in rows:
        same = held.get(tuple(row[name] for name in like), set())
        fill = not row[column] and len(same) == 1 and wanted(row)
        found.append(Row({**row.values, column: next(iter(same))}) if fill else row)
    return found


def _interleaved(row: Row) -> Row:
    """A row with a chunk for each layer of a stage, where its source says that pipelines interleave, and no more."""
    rule = first(RULES["interleaved"], row, RULES, _no_test)
    layers, stages = row.number("layers"), row.count("pp")
    if row["vp"] or rule is None or layers is None or stages <= rule["above"]:
        return row
    return Row({**row.values, "vp": str(-(-int(layers) // stages))})


def _corrected(rows: list[Row]) -> list[Row]:
    """Marks rows of which a later one has the same measurement, and another layout."""
    held: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        held.setdefault(tuple(row[name] for name in _MEASURED), []).append(row)
    found = []
    for row in rows:
        same = held[tuple(row[name] for name in _MEASURED)]
        later = [r for r in same if r["date"] > row["date"] and any(r[n] != row[n] for n in ("tp", "pp"))]
        found.append(Row({**row.values, "corrected": later[-1]["id"]}) if row["value"] and later else row)
    return found


def framework(row: Row) -> str:
    """The stack that a row ran on."""
    found = first(RULES["frameworks"], row, RULES, _no_test)
    assert found is not None
    return str(found["name"])


def product(name: str) -> str:
    """The framework that a name is a release of: rows that differ in release only are one case."""
    return str(FRAMEWORKS[name].get("release_of", name))


def _no_test(name: str, limit: float) -> bool:
    raise InternalError(f"no test {name!r} of a framework, with limit {limit}")


def _share(row: Row) -> int:
    """Data-parallel degree: what the other degrees leave of the devices.

    Raises:
        InputError: they leave none.
    """
    system = load_system(SYSTEMS[row["chip"]])
    ranks = round((row.number("n_chips") or 0) * ranks_per_chip(system))
    each = row.count("tp") * row.count("pp") * row.count("cp")
    if ranks % each:
        raise InputError(f"{row['id']}: degrees of {each} ranks do not divide {ranks}", operand="layout", value=each)
    return ranks // each


def plan_of(row: Row) -> TrainingPlan:
    """The plan that a row is a run of.

    Raises:
        TrnsimError: unknown model, or a layout that does not fit it.
    """
    layers, hidden = row.number("layers"), row.number("hidden")
    model = load_model(row["model"], layers=int(layers) if layers else None, hidden=int(hidden) if hidden else None)
    form: Mapping[str, str] = next(
        (held for held in RULES["formats"] if re.search(held["matches"], row["dtype"].upper())), {}
    )
    dtype, narrow = form.get("dtype", "bfloat16"), form.get("products", "")
    whole = holds(RULES["fill"]["weights_shared"], row, RULES, _no_test)
    pp, share = row.count("pp"), _share(row)
    year = re.search(r"20\d\d(-\d\d)?", row["date"])
    old = year is not None and str(year[0]) <= RULES["fill"]["unfused_until"]
    named = "sequence" in row["act_recompute"].lower()
    layout = Layout(
        flash=not old,
        fused_loss=FRAMEWORKS[framework(row)].get("fused_loss", True),
        sequence_parallel=not old or named,
        dp=share,
        tp=row.count("tp"),
        pp=pp,
        cp=row.count("cp"),
        ep=row.count("ep"),
        vpp=row.count("vp") if pp > 1 else 1,
        zero=3 if whole and pp == 1 else 1,
        micro_batch=row.count("micro_batch"),
        global_batch=row.count("global_batch"),
        dtype=dtype,
        product_dtype=narrow,
        gradient_dtype=FRAMEWORKS[framework(row)].get("gradient_dtype", "float32"),
    )
    plan = TrainingPlan(model=model, system=SYSTEMS[row["chip"]], layout=layout, sequence=row.count("seq_len"))
    if pp == 1 and not _held(plan):
        plan = with_layout(plan, replace(layout, zero=3))
    return _recomputed(row, plan) if row["micro_batch"] else _tuned(row, plan)


def _held(plan: TrainingPlan) -> bool:
    """Whether weights, gradients and what full recomputation keeps have room on the chip."""
    least = with_layout(plan, replace(plan.layout, recompute="full"))
    reserve = load_training_stack(default_stack(plan.on)).reserve_bytes
    stages = training_memory(least.model, least.layout, least.sequence, reserve)
    return max(float(m.total) for m in stages) <= plan.on.chip.hbm.capacity_bytes / ranks_per_chip(plan.on)


def _tuned(row: Row, plan: TrainingPlan) -> TrainingPlan:
    """The plan with the micro-batch, of those that fit, with the fastest step under kernels alone; one sequence where
    none fits.
    """
    each = plan.layout.micro_batches
    found = _recomputed(row, plan)
    least = math.inf
    for size in (1 << power for power in range(each.bit_length())):
        layout = replace(plan.layout, micro_batch=size)
        if each % size or (layout.vpp > 1 and layout.micro_batches % layout.pp):
            continue
        one = _recomputed(row, with_layout(plan, layout))
        if not fits(one, row["chip"]):
            break
        step = estimate(one, load_training_stack(IDEAL)).step_us
        if step < least:
            found, least = one, step
    return found


def _recomputed(row: Row, plan: TrainingPlan) -> TrainingPlan:
    named = row["act_recompute"].lower()
    if "full" in named or "selective" in named:
        return with_layout(plan, replace(plan.layout, recompute="full" if "full" in named else "selective"))
    ways = RULES["fill"]["recompute" if plan.layout.flash else "recompute_unfused"]
    tried = [with_layout(plan, replace(plan.layout, recompute=how)) for how in ways]
    return next((one for one in tried if fits(one, row["chip"])), tried[-1])


def room(plan: TrainingPlan, chip: str) -> float:
    """Bytes of a rank: its share of the chip's memory, and of the host's where that is coherent."""
    system = plan.on
    found = system.chip.hbm.capacity_bytes / ranks_per_chip(system, plan.lnc)
    return found * 2 if re.search(RULES["fill"]["coherent"], chip) else found


def fits(plan: TrainingPlan, chip: str) -> bool:
    """Whether a run is judged to fit, with what the runtime takes."""
    reserve = load_training_stack(default_stack(plan.on)).reserve_bytes
    stages = training_memory(plan.model, plan.layout, plan.sequence, reserve)
    return bool(max(float(m.total) for m in stages) <= room(plan, chip))


def step_seconds(row: Row, plan: TrainingPlan) -> float | None:
    """Measured time of a step. Where only FLOPs a second were published, by the formula that they were counted with."""
    found = row.number("step_time_s")
    if found is not None:
        return found
    value, metric = row.number("value"), row["metric"]
    if value is not None and metric == "MFU":
        value, metric = value / 100 * peak_flops(plan.on, plan.layout) / 1e12, "model TFLOP/s"
    if value is None or "TFLOP/s" not in metric:
        return None
    m, s = plan.model, plan.sequence
    batch, layers, hidden = row.count("global_batch"), len(m.layers), m.hidden
    # Narayanan et al., arXiv 2104.04473, equation 3: with recomputation four passes; Megatron-LM counts three, and all
    # of attention.
    flops = 24.0 * batch * s * layers * hidden**2 * (1 + s / (6 * hidden) + m.vocabulary / (16 * layers * hidden))
    passes = 4 if "hardware" in metric else 3
    if "hardware" not in metric:
        flops = 24.0 * batch * s * layers * hidden**2 * (1 + s / (6 * hidden) + m.vocabulary / (12 * layers * hidden))
    return flops * passes / (value * 1e12) / (row.number("n_chips") or 1)


def try_plan(row: Row) -> tuple[TrainingPlan | None, str]:
    """(plan, "") or (None, why not)."""
    try:
        return plan_of(row), ""
    except TrnsimError as error:
        return None, str(error)
