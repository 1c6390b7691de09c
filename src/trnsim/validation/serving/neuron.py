"""Published decoding on Neuron devices beside predictions with the ideal stack and with the row's own.

What a row omits is filled by written rules: prompts of 1,024 tokens and outputs of 128; the batch that a server was
compiled for where it is named, else the users; weights in bfloat16 unless they are in 8-bit integers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trnsim.errors import TrnsimError
from trnsim.planner.serving import ServingCase, ServingPlan
from trnsim.validation.serving.rows import Row
from trnsim.workloads import Layout, load_model

SYSTEMS = {"Trainium1": "trn1.32xlarge", "Trainium2": "trn2.48xlarge", "Inferentia2": "inf2.48xlarge"}
# Ideal predictions may exceed measurements by this share.
OVER = 0.10


@dataclass(frozen=True)
class NeuronCase:
    """TPOT of a row in milliseconds: measured, with the ideal stack, and with that of the row."""

    id: str
    measured_ms: float
    ideal_ms: float
    stack: str
    stack_ms: float
    support: str


def neuron_cases(rows: Sequence[Row]) -> tuple[list[NeuronCase], list[tuple[str, str]]]:
    """(cases, rows that could not be predicted and why)."""
    found, refused = [], []
    for row in rows:
        if row["chip"] not in SYSTEMS or _excluded(row):
            continue
        try:
            found.append(_case(row))
        except TrnsimError as error:
            refused.append((row["id"], str(error)))
    return found, refused


def _excluded(row: Row) -> bool:
    """No TPOT, or one that counts other tokens; speculation; ports that their makers call unoptimised."""
    other = "input+output" in row["notes"] or bool(row["spec_decode"]) or "contrib" in row["quality"]
    return other or not row.number("tpot_ms") or row.number("tp") is None


def _case(row: Row) -> NeuronCase:
    dp, prompt, output = row.count("dp"), _first(row["input_len"], 1024), max(_first(row["output_len"], 128), 2)
    users = _first(row["batch_or_concurrency"], 1)
    server = re.search(r"server batch (\d+)", row["batch_or_concurrency"])
    batch = int(server[1]) if server else -(-users // dp)
    stack = "transformers-neuronx" if "Transformers NeuronX" in row["framework"] else "nxdi"
    stack = "vllm-neuron" if row["framework"].startswith("vllm-neuron") else stack
    times = []
    support = ""
    for name in ("ideal", stack):
        plan = ServingPlan(
            model=load_model(row["model"]),
            system=SYSTEMS[row["chip"]],
            layout=Layout(tp=row.count("tp"), dp=dp),
            formats={"default": "int8" if row["weight_dtype"] == "int8" else "bfloat16"},
            stack=name,
            max_model_len=max(prompt + output, row.count("max_seq_len", 0)),
            max_num_seqs=batch,
        )
        estimate = ServingCase(plan).estimate(max(users, dp), prompt, output)
        times.append(estimate.state.tpot * 1e3)
        support = estimate.support
    return NeuronCase(row["id"], row.number("tpot_ms") or 0.0, times[0], stack, times[1], support)


def _first(text: str, default: int) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found and int(found[0]) else default
