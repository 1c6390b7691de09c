"""Published training steps: rows of ``training.csv``, which are left out by rule, and the plan that each is a run of.

What a row omits is filled by written rules: no recomputation named is none if that fits, else selective, else full; a
degree of parallelism that is not given is 1, but chunks of a stage are those that all other rows of the same model,
chip and pipeline have; no micro-batch is 1; before the papers that brought them (May 2022: FlashAttention, sequence
parallelism and selective recomputation) a run has none of the three, and recomputes layers (arXiv 2104.04473, 3.5);
weights are shared (ZeRO 3) where FSDP is named without a pipeline, optimiser states (ZeRO 1) elsewhere: with a
pipeline, weights are gathered once a step (arXiv 2407.21783, 3.3.2); a rank of Trainium is a logical core of the chip's
default size.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.planner.training import TrainingPlan, ranks_per_chip
from trnsim.workloads import Layout, Model, load_model, training_memory

FILE = "training.csv"
COLUMNS = (
    "id", "model", "layers", "hidden", "seq_len", "chip", "n_chips", "tp", "pp", "vp", "cp", "ep", "dp", "zero_fsdp",
    "act_recompute", "micro_batch", "global_batch", "dtype", "software", "metric", "value", "step_time_s", "quality",
    "source", "date", "notes",
)  # fmt: skip
# The system that the chips of a row stand in. Coherent host memory (bytes of a chip's share) takes activations that
# the chip has no room for.
SYSTEMS = {
    "A100-80GB": "dgx-a100",
    "H100": "dgx-h100",
    "H200": "dgx-h200",
    "B200": "dgx-b200",
    "B300": "dgx-b300",
    "GB200": "u-p6e-gb200x72",
    "GB300": "gb300-nvl72",
    "Trainium1": "trn1.32xlarge",
    "Trainium2": "trn2.48xlarge",
}
_COHERENT = ("GB200", "GB300")
# What rows ran on (``framework``), and the chips that it is for if not Nvidia's.
TITLES = {
    "neuronx-distributed": "NeuronX Distributed, and transformers-neuronx before it, compiled by neuronx-cc",
    "megatron-2021": "Megatron-LM of 2021 (arXiv 2104.04473)",
    "megatron-2022": "Megatron-LM of 2022 with sequence parallelism (arXiv 2205.05198)",
    "deepspeed-2021": "DeepSpeed with ZeRO 3, of 2021 (arXiv 2104.04473)",
    "megatron-core": "Megatron-Core with Transformer Engine: NeMo and Megatron-Bridge, 2024 to 2026",
    "maxtext": "MaxText on GPUs, with XLA",
}
FAMILIES = {"neuronx-distributed": "trainium"}
# Formats of gradients as recipes have them: Megatron-Bridge's set ``grad_reduce_in_fp32 = False``.
GRADIENTS = {"megatron-core": "bfloat16", "maxtext": "bfloat16"}
_FORMATS = (
    (r"NVFP4", "bfloat16", "nvfp4"),
    (r"MXFP8", "bfloat16", "mxfp8"),
    (r"FP8", "bfloat16", "fp8"),
    (r"^FP32$", "float32", ""),
    (r"^FP16$", "float16", ""),
    (r"BF16|MIXED|AUTOCAST", "bfloat16", ""),
)


@dataclass(frozen=True)
class Row:
    """One published run; texts as in the file."""

    values: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return (self.values.get(name) or "").strip()

    def number(self, name: str) -> float | None:
        try:
            return float(self[name])
        except ValueError:
            return None

    def count(self, name: str, default: int = 1) -> int:
        found = self.number(name)
        return default if found is None else int(found)


@dataclass(frozen=True)
class Rule:
    """A reason to leave a row out. ``reason`` is what reports count."""

    reason: str
    holds: Callable[[Row], bool]


def _says(column: str, pattern: str) -> Callable[[Row], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda row: bool(compiled.search(row[column]))


RULES: tuple[Rule, ...] = (
    Rule("a chip that the catalogue has no system of", lambda row: row["chip"] not in SYSTEMS),
    Rule("no measurement of a run", _says("metric", r"relative|configuration only")),
    Rule("fine-tuning: not all weights are trained, or samples of other lengths", _says("model", r"lora|sft")),
    Rule("no language model", _says("model", r"ViT|CLIP|Perc?e?r?v?eiver|Perveriver")),
    Rule("its layout does not multiply to its devices", _says("notes", r"CHECK")),
    Rule("two configurations in one row", lambda row: any("(" in row[c] for c in ("tp", "pp", "vp", "micro_batch"))),
    Rule("part of a chip", lambda row: (row.number("n_chips") or 0) < 1),
    Rule("no batch", lambda row: row.number("global_batch") is None),
    Rule("no sequence length", lambda row: row.number("seq_len") is None),
    Rule("no pipeline degree where a share of devices has none", lambda row: _share(row) is None),
)


def excluded(row: Row) -> str | None:
    """The reason why a row is left out, or None."""
    return next((rule.reason for rule in RULES if rule.holds(row)), None)


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
            return _completed([Row(values) for values in reader])
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _completed(rows: list[Row]) -> list[Row]:
    """A pipeline whose chunks a row omits has those that all other rows of the same model, chip and pipeline have."""
    held: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        if row["vp"]:
            held.setdefault((row["model"], row["chip"], row["pp"]), set()).add(row["vp"])
    found = []
    for row in rows:
        same = held.get((row["model"], row["chip"], row["pp"]), set())
        fill = not row["vp"] and row.count("pp") > 1 and len(same) == 1
        found.append(Row({**row.values, "vp": next(iter(same))}) if fill else row)
    return found


def framework(row: Row) -> str:
    """The stack that a row ran on, by its chip and software."""
    if row["chip"].startswith("Trainium"):
        return "neuronx-distributed"
    if row["chip"].startswith("A100"):
        if "ZERO-3" in row["zero_fsdp"].upper():
            return "deepspeed-2021"
        return "megatron-2022" if "2205.05198" in row["source"] else "megatron-2021"
    return "maxtext" if "maxtext" in row["model"].lower() or "maxtext" in row["source"].lower() else "megatron-core"


def _share(row: Row) -> int | None:
    """Data-parallel degree: what the other degrees leave of the devices."""
    system = load_system(SYSTEMS[row["chip"]])
    ranks = round((row.number("n_chips") or 0) * ranks_per_chip(system))
    each = row.count("tp") * row.count("pp") * row.count("cp")
    given = row.number("dp")
    if ranks % each or (given is not None and row["metric"] == "MFU"):
        return None
    if not row["pp"] and row["metric"] == "MFU":
        return None
    return ranks // each


def plan_of(row: Row) -> TrainingPlan:
    """The plan that a row is a run of.

    Raises:
        TrnsimError: unknown model, or a layout that does not fit it.
    """
    layers, hidden = row.number("layers"), row.number("hidden")
    model = load_model(row["model"], layers=int(layers) if layers else None, hidden=int(hidden) if hidden else None)
    dtype, narrow = next(
        ((dtype, narrow) for pattern, dtype, narrow in _FORMATS if re.search(pattern, row["dtype"].upper())),
        ("bfloat16", ""),
    )
    shared = row["zero_fsdp"].upper()
    whole = ("FSDP" in shared and "FSDP=0" not in shared and "ABSENT" not in shared) or "ZERO-3" in shared
    pp, share = row.count("pp"), _share(row)
    assert share is not None
    year = re.search(r"20\d\d(-\d\d)?", row["date"])
    old = year is not None and str(year[0]) <= "2022-05"
    named = "sequence" in row["act_recompute"].lower()
    layout = Layout(
        flash=not old,
        sequence_parallel=not old or named,
        dp=share,
        tp=row.count("tp"),
        pp=pp,
        cp=row.count("cp"),
        ep=row.count("ep"),
        vpp=row.count("vp") if pp > 1 else 1,
        zero=(3 if pp == 1 else 1) if whole or "FSDP" in row["model"] else 1,
        micro_batch=row.count("micro_batch"),
        global_batch=row.count("global_batch"),
        dtype=dtype,
        product_dtype=narrow,
        gradient_dtype=GRADIENTS.get(framework(row), "float32"),
    )
    sequence = row.count("seq_len")
    layout = _recomputed(row, model, layout, sequence)
    return TrainingPlan(model=model, system=SYSTEMS[row["chip"]], layout=layout, sequence=sequence)


def _recomputed(row: Row, model: Model, layout: Layout, sequence: int) -> Layout:
    named = row["act_recompute"].lower()
    if "full" in named or "selective" in named:
        return replace(layout, recompute="full" if "full" in named else "selective")
    system = load_system(SYSTEMS[row["chip"]])
    room = system.chip.hbm.capacity_bytes / ranks_per_chip(system)
    if row["chip"] in _COHERENT:
        room *= 2
    for how in ("none", "selective", "full") if layout.flash else ("full",):
        tried = replace(layout, recompute=how)
        if max(stage.total for stage in training_memory(model, tried, sequence)) <= room:
            return tried
    return replace(layout, recompute="full")


def step_seconds(row: Row, plan: TrainingPlan) -> float | None:
    """Measured time of a step. Where only FLOPs a second were published, by the formula that they were counted with."""
    found = row.number("step_time_s")
    if found is not None:
        return found
    value, metric = row.number("value"), row["metric"]
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
