"""Published serving runs: rows of ``inference.csv``, which are left out by rule, and the plan that each is a run of.

What a row omits is filled by written rules: keys and values are in 16 bits on vLLM and SGLang, whose default is that of
activations, and in 8 bits on TensorRT-LLM where weights have 8 bits or less, as ModelOpt's checkpoints name both;
``max_model_len`` is what the lengths need; a stack that computes prompts whole takes one beside all users that decode
(``max_num_tokens`` as InferenceX sets it: prompt, users and 64, up to a multiple of 64); a "4-bit" checkpoint of a
model whose experts are shipped in MXFP4 is that one; ranks of data parallelism have equal shares of the users.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.hardware.stack import load_stack
from trnsim.planner.serving import ServingCase, ServingPlan, weight_parts
from trnsim.workloads import Layout, entry, load_model

FILE = "inference.csv"
COLUMNS = (
    "id", "model", "system", "chip", "n_chips", "tp", "pp", "ep", "dp", "batch_or_concurrency", "input_len",
    "output_len", "weight_dtype", "kv_dtype", "framework", "mode", "ttft_ms", "tpot_ms", "spec_decode", "quality",
    "notes",
)  # fmt: skip
# The system that the chips of a row stand in.
SYSTEMS = {
    "H100": "dgx-h100",
    "H200": "dgx-h200",
    "B200": "dgx-b200",
    "B300": "dgx-b300",
    "GB200": "u-p6e-gb200x72",
    "GB300": "gb300-nvl72",
}
STACKS = {"vllm": "vllm-gpu", "sglang": "sglang-gpu", "trtllm": "trtllm-gpu"}
LATE_MS = 10_000.0
_FORMATS = {"fp8": "fp8", "nvfp4/fp4": "nvfp4", "bf16": "bf16", "int4": "int4"}


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

    @property
    def stack(self) -> str:
        return STACKS.get(self["framework"].split(" ")[0].lower(), "")


@dataclass(frozen=True)
class Rule:
    """A reason to leave a row out. ``reason`` is what reports count."""

    reason: str
    holds: Callable[[Row], bool]


def _named(row: Row) -> tuple[int, int] | None:
    """(ranks that share an expert, ranks that share the experts) as the notes have them."""
    found = re.search(r"moe_tp=(\d+) moe_ep=(\d+)", row["notes"])
    return None if found is None else (int(found[1]), int(found[2]))


def _contradicts(row: Row) -> bool:
    """The degrees do not multiply to the chips, or those of experts to other ranks, or the name has other chips."""
    ranks = row.count("tp") * row.count("dp") * row.count("pp")
    moe = _named(row)
    named = re.search(r"_tp(\d+)_", row["id"])
    if named is not None and int(named[1]) != row.count("n_chips"):
        return True
    return ranks != row.count("n_chips") or (moe is not None and moe != (1, 1) and moe[0] * moe[1] != ranks)


def _beyond(row: Row) -> bool:
    """A replica of more chips than a system has: servers of eight are not joined so, and the columns are mistaken."""
    return row.count("n_chips") > load_system(SYSTEMS[row["chip"]]).chip_count


RULES: tuple[Rule, ...] = (
    Rule("a chip that the catalogue has no system of", lambda row: row["chip"] not in SYSTEMS),
    Rule("not aggregated serving", lambda row: row["mode"] != "aggregated serving"),
    Rule("not measured silicon", lambda row: "measured silicon" not in row["quality"]),
    Rule("a stack that the catalogue does not have", lambda row: not row.stack),
    Rule("speculation", lambda row: bool(row["spec_decode"])),
    Rule("no TPOT", lambda row: not row.number("tpot_ms")),
    Rule("no lengths or users", lambda row: not all(row.number(c) for c in COLUMNS[9:12])),
    Rule("TTFT over 10 s", lambda row: (row.number("ttft_ms") or 0.0) >= LATE_MS),
    Rule("its layout does not multiply to its chips, or its name has others", _contradicts),
    Rule("a replica over more than one system", _beyond),
)


def excluded(row: Row) -> str | None:
    """The reason why a row is left out, or None."""
    return next((rule.reason for rule in RULES if rule.holds(row)), None)


def read_rows(path: str | Path) -> list[Row]:
    """Rows of ``inference.csv`` or of the folder that has it.

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
            return [Row(values) for values in reader]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def plan_of(row: Row) -> ServingPlan:
    """The plan that a row is a run of.

    Raises:
        TrnsimError: unknown model or format, or a layout that does not fit the model.
    """
    model, shipped = load_model(row["model"]), dict(entry(row["model"]).formats)
    format_ = _FORMATS.get(row["weight_dtype"])
    if format_ is None:
        raise InputError("no such format of weights", operand="weight_dtype", value=row["weight_dtype"])
    as_shipped = format_ == "nvfp4" and shipped.get("experts") == "mxfp4"
    formats = shipped if as_shipped else weight_parts(format_, shipped)
    users, dp = row.count("batch_or_concurrency"), row.count("dp")
    expert_tp, ep = _named(row) or (row.count("tp"), 1)
    narrow = row.stack == "trtllm-gpu" and format_ != "bf16"
    layout = Layout(tp=row.count("tp"), dp=dp, pp=row.count("pp"))
    if model.mixture:
        layout = Layout(tp=row.count("tp"), dp=dp, pp=row.count("pp"), ep=ep, expert_tp=expert_tp)
    stack, prompt = row.stack, row.count("input_len")
    whole = None if load_stack(stack).chunks else -(-(prompt + users + 64) // 64) * 64
    return ServingPlan(
        model=model,
        system=SYSTEMS[row["chip"]],
        layout=layout,
        formats=formats,
        cache_dtype="float8_e4m3" if narrow else "bfloat16",
        max_model_len=prompt + row.count("output_len"),
        stack=stack,
        max_num_seqs=max(-(-users // dp), 1),
        max_num_batched_tokens=whole,
    )


def try_case(row: Row) -> tuple[ServingCase | None, str]:
    """(plan made ready, "") or (None, why not)."""
    try:
        case = ServingCase(plan_of(row))
        if case.slots(case.plan.max_model_len) < (case.plan.max_num_seqs or 1):
            return None, "the cache does not hold all users at once"
        return case, ""
    except TrnsimError as error:
        return None, str(error)
