"""Published serving runs: rules, plans of rows, and fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.validation.serving.fit import Point, folds, solve
from trnsim.validation.serving.neuron import NeuronCase, neuron_cases
from trnsim.validation.serving.report import errors, sets, to_json, validate
from trnsim.validation.serving.rows import COLUMNS, Row, plan_of, read_rows
from trnsim.validation.serving.rules import Rules, stack_of

BASE = {
    "id": "a_tp4_ep1_1", "model": "meta-llama/Llama-3.1-70B", "system": "h200_sxm", "chip": "H200", "n_chips": "4",
    "tp": "4", "pp": "1", "ep": "1", "dp": "1", "batch_or_concurrency": "16", "input_len": "1024",
    "output_len": "1024", "weight_dtype": "fp8", "kv_dtype": "", "framework": "vllm 0.12.0",
    "mode": "aggregated serving", "ttft_ms": "126", "tpot_ms": "10.9", "spec_decode": "",
    "quality": "measured silicon", "notes": "moe_tp=1 moe_ep=1",
}  # fmt: skip
NEURON = {
    "id": "n", "model": "Qwen3-8B", "chip": "Trainium1", "n_chips": "1", "tp": "2", "mode": "", "notes": "",
    "framework": "Transformers NeuronX Neuron 2.18.0", "ttft_ms": "", "tpot_ms": "33", "max_seq_len": "512",
    "quality": "vendor table", "input_len": "128", "output_len": "128", "batch_or_concurrency": "1",
    "weight_dtype": "bf16",
}  # fmt: skip
COUNTERS = "MFU (%): CTE 0.16 / TKG 0.00; MBU (%): CTE 0.54 / TKG 0.59; HBM Read: CTE 7.72 GB / TKG 7.58 GB"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"chip": "MI300X"}, "a chip that"),
        (NEURON, None),
        ({**NEURON, "notes": "throughput counts input+output tokens"}, "input tokens"),
        ({**NEURON, "mode": "asynchronous@0.40 req/sec"}, "at a rate"),
        ({**NEURON, "tpot_ms": ""}, "no counters"),
        ({**NEURON, "tpot_ms": "", "notes": COUNTERS}, None),
        ({"mode": "disaggregated prefill/decode"}, "not aggregated"),
        ({"framework": "TensorRT 10"}, "a stack that"),
        ({"spec_decode": "EAGLE"}, "speculation"),
        ({"tpot_ms": ""}, "no TPOT"),
        ({"ttft_ms": "10001"}, "TTFT over"),
        ({"n_chips": "8"}, "does not multiply"),
        ({"n_chips": "2", "tp": "2"}, "its name has others"),
        ({"id": "x", "n_chips": "64", "tp": "64"}, "more than one system"),
    ],
)
def test_rules(changed: dict[str, str], reason: str | None):
    row = Row({**BASE, **changed})
    found = Rules([row]).excluded(row)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_what_rows_omit():
    vllm = plan_of(Row(BASE))
    assert (vllm.cache_dtype, vllm.max_num_batched_tokens, vllm.max_num_seqs) == ("bfloat16", None, 16)
    trt = plan_of(Row({**BASE, "framework": "trtllm 1.0"}))
    assert (trt.cache_dtype, trt.max_num_batched_tokens) == ("float8_e4m3", 1152)
    shipped = plan_of(Row({**BASE, "model": "openai/gpt-oss-120b", "weight_dtype": "nvfp4/fp4"}))
    assert shipped.formats["experts"] == "mxfp4"


def test_solve_finds_the_factors_of_made_up_runs():
    rng = np.random.default_rng(1)
    parts = rng.uniform(1, 10, (60, 4))
    measured = parts @ [0.8, 1.5, 0.5, 0.3]
    measured[:3] *= 5
    assert solve(parts.tolist(), measured.tolist()) == pytest.approx([0.8, 1.5, 0.5, 0.3], abs=0.06)
    # What is never there stays as it is measured.
    parts[:, 2] = 0
    assert solve(parts.tolist(), (parts @ [1, 1, 1, 0]).tolist(), (1.0, 1.0, 1.0))[2] == pytest.approx(1)


def test_folds_leave_out_a_chip_and_its_parallelism():
    def point(chip: str, tp: int, factor: float, n: int) -> Point:
        parts = (1.0 + n, 1.0, 0.5 * n, 1.0)
        return Point((f"{chip}{tp}{n}",), "m", False, chip, tp, "vllm-gpu", parts, (1.0 + n, 0.1, 1.0),
                     factor * sum(parts[:3]), None, None, 1, (1, 1), "fp8")  # fmt: skip

    points = [point(chip, tp, 2.0 if (chip, tp) == ("b", 8) else 1.0, n) for chip in "ab" for tp in (4, 8)
              for n in range(12)]  # fmt: skip
    cases, _ = folds(points)
    odd = [c for c in cases if (c.point.chip, c.point.tp) == ("b", 8)]
    assert all(c.error == pytest.approx(-0.5, abs=0.01) for c in odd)


def test_validation_of_a_file(tmp_path: Path):
    file = tmp_path / "inference.csv"
    rows = [{**BASE, "id": f"r{n}_tp4_", "batch_or_concurrency": str(2**n), "tpot_ms": str(9 + n)} for n in range(5)]
    rows += [{**rows[0], "id": "again_tp4_", "tpot_ms": "12"}, {**BASE, "model": "unheard-of-7b", "id": "u"}]
    lines = [",".join(COLUMNS), *(",".join(r[c] for c in COLUMNS) for r in rows)]
    file.write_text("\n".join(lines) + "\n")
    found = validate(read_rows(file))
    assert {name for name, (_, why) in found.fates.items() if "spread" in why} == {"r0_tp4_", "again_tp4_"}
    assert len(found.cases) == 4
    assert [name for name, _ in found.refused] == ["u"]
    assert {fate for fate, _ in found.fates.values()} == {"predicted", "refused", "excluded"}
    assert found.predicted_share == pytest.approx(4 / 5)
    assert errors(sets(found.cases)["dense"])["mape_unfitted"] < 0.4
    assert len(to_json(found)["cases"]) == 4
    file.write_text("id,model\n")
    with pytest.raises(InputError, match="has no column"):
        read_rows(file)


def test_a_repeated_tpot_counts_for_the_shortest_prompt():
    rows = [Row({**BASE, **NEURON, "id": str(n), "input_len": str(n), "tpot_stat": "mid of reported range"})
            for n in (8192, 2048, 32704)]  # fmt: skip
    rules = Rules(rows)
    assert [rules.excluded(row) is None for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    ("framework", "chip", "stack"),
    [
        ("vllm 0.12.0", "H100", ("vllm-gpu", "vllm-gpu")),
        ("vllm-neuron 0.24", "Trainium2", ("vllm-neuron", "vllm-neuron")),
        ("optimum-neuron vLLM, guidellm", "Trainium2", ("optimum-neuron", "nxdi")),
        ("vllm 0.12.0", "Trainium2", ("", "")),
    ],
)
def test_stacks_of_rows(framework: str, chip: str, stack: tuple[str, str]):
    assert stack_of(Row({**BASE, "framework": framework, "chip": chip})) == stack


def neuron(**changed: str) -> NeuronCase:
    cases, refused = neuron_cases([Row({**BASE, **NEURON, **changed})])
    assert not refused
    return cases[0]


def test_counters_give_the_time_of_the_device():
    found = neuron(tpot_ms="", notes=COUNTERS, quality="contrib", framework="NxD Inference contrib")
    assert found.kind == "device"
    # Half of a chip's 820 GB/s.
    assert found.point.measured_ms == pytest.approx(7.58e9 / (0.59 * 410e9) * 1e3)
    assert found.ideal_ms is not None
    assert found.ideal_ms < 1.1 * found.point.measured_ms < found.unfitted_ms * 1.5


def test_heads_are_padded_on_neuron_devices():
    # 32 heads over 24 ranks, as over 48 heads.
    assert neuron(chip="Inferentia2", tp="24").unfitted_ms > 0


def test_stacks_are_refitted_without_each_configuration():
    rows = [Row({**BASE, **NEURON, "id": str(n), "input_len": str(n), "max_seq_len": "4096"}) for n in (128, 512, 1024)]
    scaled = [Row({**row.values, "tpot_ms": str(1.5 * neuron_cases([row])[0][0].unfitted_ms)}) for row in rows]
    cases, _ = neuron_cases(scaled)
    assert all(abs(case.error) < 0.02 for case in cases)
    assert all(case.left_out_ms is None for case in neuron_cases(scaled[:2])[0])


def test_parts_of_a_step_from_a_profile():
    notes = "p50; profile: compute ~12 ms, all-reduce ~3 ms, weight reads ~3 ms, stragglers ~1 ms"
    assert Row({**BASE, "notes": notes}).breakdown == {
        "compute": 12.0, "all-reduce": 3.0, "weight reads": 3.0, "stragglers": 1.0
    }  # fmt: skip
    found = neuron(notes=notes).breakdown
    assert [(name, measured) for name, measured, _ in found] == [("exchanges", 3.0), ("operators", 16.0)]
    assert all(told > 0 for _, _, told in found)
