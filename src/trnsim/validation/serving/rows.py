"""Published serving runs: rows of ``inference.csv``, and the plan that each is a run of.

What a row omits is filled by written rules: keys and values are in 16 bits on vLLM and SGLang, whose default is that of
activations, and in 8 bits on TensorRT-LLM where weights have 8 bits or less, as ModelOpt's checkpoints name both;
``max_model_len`` is what the lengths need; a stack that computes prompts whole takes one beside all users that decode
(``max_num_tokens`` as InferenceX sets it: prompt, users and 64, up to a multiple of 64); a "4-bit" checkpoint of a
model whose experts are shipped in MXFP4 is that one; ranks of data parallelism have equal shares of the users.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware.stack import load_stack
from trnsim.planner.serving import ServingCase, ServingPlan, weight_parts
from trnsim.validation.serving.rules import SYSTEMS, stack_of
from trnsim.validation.subset import PublishedRow
from trnsim.workloads import Layout, entry, load_model

FILE = "inference.csv"
FULL = "the cache does not hold all users at once"
COLUMNS = (
    "id", "model", "system", "chip", "n_chips", "tp", "pp", "ep", "dp", "batch_or_concurrency", "input_len",
    "output_len", "weight_dtype", "kv_dtype", "framework", "mode", "ttft_ms", "tpot_ms", "spec_decode", "quality",
    "notes",
)  # fmt: skip
_FORMATS = {"fp8": "fp8", "nvfp4/fp4": "nvfp4", "bf16": "bf16", "int4": "int4"}


@dataclass(frozen=True)
class Row(PublishedRow):
    """A published serving run."""

    def count(self, name: str, default: int = 1) -> int:
        found = self.number(name)
        return default if found is None else int(found)

    @property
    def moe(self) -> tuple[int, int] | None:
        """(ranks that share an expert, ranks that share the experts) as the notes have them."""
        found = re.search(r"moe_tp=(\d+) moe_ep=(\d+)", self["notes"])
        return None if found is None else (int(found[1]), int(found[2]))

    @property
    def counters(self) -> tuple[Counters, Counters] | None:
        """Counters of a prompt's graph and of a decode step's, as a profiler gave them; None: there are none."""
        rates = re.search(r"MBU[^:]*: CTE ([\d.]+) / TKG ([\d.]+)", self["notes"])
        moved = re.search(r"HBM Read: CTE ([\d.]+) (\wB) / TKG ([\d.]+) (\wB)", self["notes"])
        if rates is None or moved is None or not float(rates[1]) or not float(rates[2]):
            return None
        units = {"GB": 1e9, "MB": 1e6, "KB": 1e3}
        pairs = ((rates[1], moved[1], moved[2]), (rates[2], moved[3], moved[4]))
        prompt, step = (Counters(float(share), float(size) * units[unit]) for share, size, unit in pairs)
        return prompt, step

    @property
    def breakdown(self) -> dict[str, float]:
        """Milliseconds of a decode step by part, where a profile in the notes says so; {}: there is none."""
        profile = re.search(r"profile: (.*)", self["notes"])
        found = re.findall(r"([A-Za-z][A-Za-z -]*?) ~([\d.]+) ms", profile[1]) if profile else []
        return {name.strip(): float(value) for name, value in found}


@dataclass(frozen=True)
class Counters:
    """``share`` of HBM's rate that a graph used on a core, and bytes that it read."""

    share: float
    read_bytes: float

    def milliseconds(self, bytes_per_second: float) -> float:
        """Time of the graph on a core with so much of HBM's rate."""
        return self.read_bytes / (self.share * bytes_per_second) * 1e3


def read_rows(path: str | Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """Rows of ``inference.csv`` or of the folder that has it.

    Raises:
        InputError: no such file, or one without these columns.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = sorted(set(columns) - set(reader.fieldnames or ()))
            if missing:
                raise InputError(f"{file} has no column {', '.join(missing)}", operand="data", limit=columns)
            return [Row(values) for values in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def plan_of(row: Row, stack: str = "") -> ServingPlan:
    """The plan that a row is a run of; ``stack`` of the catalogue, "": that of its framework.

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
    expert_tp, ep = row.moe or (row.count("tp"), 1)
    stack = stack or stack_of(row)[1]
    narrow = stack == "trtllm-gpu" and format_ != "bf16"
    layout = Layout(tp=row.count("tp"), dp=dp, pp=row.count("pp"))
    if model.mixture:
        layout = Layout(tp=row.count("tp"), dp=dp, pp=row.count("pp"), ep=ep, expert_tp=expert_tp)
    prompt = row.count("input_len")
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
            return None, FULL
        return case, ""
    except TrnsimError as error:
        return None, str(error)
