"""Published training steps: rules, what rows omit, fits on made-up points, and all rows where they are at hand."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.planner.stack import FILE, load_training_stack
from trnsim.planner.training import TrainingPlan, estimate, pieces_of, prices_of, with_layout
from trnsim.validation.training.calculon import Calculon, read, run_calculon
from trnsim.validation.training.fit import EXPECTATION, Factors, Point, fit, time_us
from trnsim.validation.training.paper import memory
from trnsim.validation.training.report import errors, sets, to_json, validate
from trnsim.validation.training.rows import COLUMNS, excluded, fits, framework, plan_of, read_rows, step_seconds
from trnsim.workloads import Layout, load_model

GOOD = dict.fromkeys(COLUMNS, "") | {
    "id": "a", "model": "LLAMA3_8B", "seq_len": "8192", "chip": "H100", "n_chips": "8", "tp": "1", "pp": "1",
    "cp": "2", "micro_batch": "1", "global_batch": "128", "dtype": "BF16", "software": "NeMo", "step_time_s": "4.4",
    "metric": "step time", "date": "2025-10", "source": "s",
}  # fmt: skip


def _read(tmp_path, *changes):
    file = tmp_path / "training.csv"
    lines = [",".join(COLUMNS)]
    lines += [",".join(f'"{(GOOD | change)[c]}"' for c in COLUMNS) for change in changes]
    file.write_text("\n".join(lines) + "\n")
    return read_rows(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chip": "TPU v5p"}, "a chip that the catalogue has no system of"),
        ({"model": "LLAMA3_8B LoRA"}, "fine-tuning of some weights"),
        ({"model": "LLAMA3_8B (SFT)"}, None),
        ({"notes": "CHECK: tp*pp differs"}, "does not multiply"),
        ({"notes": "embedding of the Meta checkpoint"}, None),
        ({"zero_fsdp": "FSDP=64 (0)"}, "two configurations"),
        ({"zero_fsdp": "DDP (FSDP column absent)"}, None),
        ({"n_chips": "0.5"}, "part of a chip"),
        ({"source": "arXiv 2407.21783", "metric": "TFLOP/s", "hidden": "16384", "seq_len": "131072"}, "nobody names"),
        ({"source": "arXiv 2407.21783", "metric": "TFLOP/s", "hidden": "16384", "seq_len": "8192"}, None),
        ({"global_batch": ""}, "no batch"),
        ({"seq_len": ""}, "no sequence length"),
        ({"metric": "relative speed"}, "no measurement"),
        ({}, None),
    ],
)
def test_rules(tmp_path, change, reason):
    found = excluded(_read(tmp_path, change)[0])
    assert found is None if reason is None else reason in str(found)


def test_what_rows_omit(tmp_path):
    rows = _read(
        tmp_path,
        {},
        {"dtype": "FP8", "zero_fsdp": "FSDP"},
        {"id": "p", "tp": "8", "pp": "4", "cp": "", "n_chips": "64", "vp": "4"},
        {"id": "q", "tp": "8", "pp": "4", "cp": "", "n_chips": "64"},
        {"chip": "A100-80GB", "date": "2021-08"},
    )
    first, shared, _, filled, old = (plan_of(row).layout for row in rows)
    assert (first.dp, first.cp, first.zero, first.recompute, first.gradient_dtype) == (4, 2, 1, "none", "bfloat16")
    assert (shared.zero, shared.product_dtype) == (3, "fp8")
    # As the other row of the same model, chip and pipeline.
    assert filled.vpp == 4
    assert (old.flash, old.sequence_parallel, old.recompute) == (False, False, "full")
    assert [framework(row) for row in (rows[0], rows[4])] == ["megatron-core", "megatron-2021"]


README = {
    "model": "GPT 177B", "layers": "96", "hidden": "12288", "seq_len": "4096", "n_chips": "2304", "tp": "8", "pp": "6",
    "cp": "", "micro_batch": "", "global_batch": "1152", "step_time_s": "", "metric": "MFU", "value": "44",
    "software": "", "date": "2024-07", "source": "https://github.com/NVIDIA/Megatron-LM README.md",
}  # fmt: skip


def test_what_sources_say_of_their_rows(tmp_path):
    rows = _read(
        tmp_path,
        README,
        README | {"id": "s", "pp": "", "n_chips": "4608", "value": "42"},
        README
        | {
            "id": "l",
            "source": "arXiv 2407.21783",
            "model": "llama-3.1-405b",
            "layers": "126",
            "hidden": "16384",
            "pp": "16",
            "n_chips": "8192",
            "global_batch": "2048",
        },
        README | {"id": "o", "source": "elsewhere"},
    )
    plans = [plan_of(row) for row in rows]
    one, strong, llama, other = (plan.layout for plan in plans)
    assert [framework(row) for row in rows[:3]] == ["megatron-lm", "megatron-lm", "llama-3"]
    # A layer a chunk; stages as the other row of the model; a micro-batch that divides and fits.
    assert (one.vpp, one.gradient_dtype, one.fused_loss) == (16, "float32", False)
    assert (strong.pp, strong.vpp, strong.dp) == (6, 16, 96)
    assert (llama.vpp, llama.chunks(126)[0], llama.chunks(126)[-1]) == (8, 0, 0)
    assert other.vpp == 1
    assert all(one.micro_batches % one.pp == 0 and fits(plan, "H100") for plan in plans[:1])
    # MFU of 989.5 TFLOPS.
    flops = 72 * 1152 * 4096 * 96 * 12288**2 * (1 + 4096 / (6 * 12288) + plans[0].model.vocabulary / (12 * 96 * 12288))
    assert step_seconds(rows[0], plans[0]) == pytest.approx(flops / (0.44 * 989.5e12) / 2304, rel=1e-3)


def test_a_tuned_micro_batch_is_the_fastest_that_fits(tmp_path):
    row = _read(tmp_path, {"model": "LLAMA3_8B", "micro_batch": "", "n_chips": "64", "cp": "1", "global_batch": "512"})[
        0
    ]
    plan, ideal = plan_of(row), load_training_stack("ideal")
    times = {}
    for size in (1, 2, 4, 8):
        for how in ("none", "selective", "full"):
            other = with_layout(plan, replace(plan.layout, micro_batch=size, recompute=how))
            if fits(other, "H100"):
                times[size] = estimate(other, ideal).step_us
                break
    assert plan.layout.micro_batch == min(times, key=times.__getitem__)


def test_weights_that_leave_no_room_are_shared(tmp_path):
    change = {"model": "LLAMA3_70B", "chip": "GB300", "cp": "1", "n_chips": "64", "global_batch": "256"}
    rows = _read(tmp_path, change, change | {"tp": "4"})
    assert [plan_of(row).layout.zero for row in rows] == [3, 1]


def test_later_prints_correct_earlier_ones(tmp_path):
    first = {"id": "a", "value": "7", "date": "2023-08", "tp": "8", "cp": "1", "software": "s"}
    later = first | {"id": "b", "date": "2023-09", "pp": "1", "tp": "4"}
    other = first | {"id": "c", "value": "8"}
    rows = _read(tmp_path, first, later, other)
    assert [excluded(row) is None for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"chip": "Trainium1", "model": "HuggingFace BERT-large"}, "neuronx-bert"),
        ({"chip": "Trainium1"}, "neuronx-distributed"),
        ({"chip": "A100-80GB", "zero_fsdp": "ZeRO-3"}, "deepspeed-2021"),
        ({"chip": "A100-80GB", "source": "arXiv 2205.05198 table"}, "megatron-2022"),
        ({"chip": "A100-80GB", "source": "arXiv 2201.11990"}, "megatron-deepspeed"),
        ({"model": "Llama3-70B (MaxText FSDP)"}, "maxtext"),
        ({"model": "LLAMA3_70B (SFT)"}, "megatron-bridge-sft"),
        ({"chip": "GB300", "dtype": "MXFP8", "moe": "yes", "date": "NeMo 26.08"}, "megatron-core-graphs"),
        ({"chip": "GB300", "dtype": "MXFP8", "moe": "yes", "date": "NeMo 26.04"}, "megatron-core"),
        ({"chip": "B300", "dtype": "MXFP8", "moe": "yes", "date": "NeMo 26.08"}, "megatron-core"),
    ],
)
def test_frameworks(tmp_path, change, name):
    assert framework(_read(tmp_path, change)[0]) == name


def test_the_paper_s_other_points_join(tmp_path):
    change = {"source": "arXiv 2205.05198", "chip": "A100-80GB", "cp": ""}
    rows = _read(tmp_path, change)
    assert [row["model"] for row in rows[1:]] == ["turing-530B", "turing-530B"]
    plans = [plan_of(row).layout for row in rows[1:]]
    assert [(p.tp, p.pp, p.vpp, p.dp, p.micro_batches, p.recompute) for p in plans] == [
        (8, 35, 3, 1, 280, "full"),
        (8, 35, 3, 1, 280, "selective"),
    ]


def test_published_memory():
    assert max(abs(point.error) for point in memory()) < 0.05


PRINTED = """\
*Params & Opt,|,none,,,|,seqsel,,,
Model,|,Profile,Calc,Delta,|,Profile,Calc,Delta,
megatron-22B,|,45.5,40.5,11%,|,45.5,41,10%,
Ave,,8.49%
Activations,|,none,,,|,seq,,,|,sel,,,|,seqsel,,,|,full,,,
megatron-22B,|,100.0%,100.00%,0.00%,|,66.84%,66.92%,-0.11%,|,49.42%,43.17%,12.66%,|,16%,17%,-8%,|,7%,9%,-3%,
Ave,,6.69%
End-to-end,|,full,,,,|,seqsel,,,,
Model,|,Profile,Calc,Delta,GiB,|,Profile,Calc,Delta,GiB,
megatron-22B,|,1.42,1.40,1.72%,48.15,|,1.1,1.14,-3.33%,52.08,
"""


def test_calculon_s_tables():
    found = read(PRINTED)
    assert found == {
        ("states", "megatron-22B", "none"): (45.5, 40.5),
        ("states", "megatron-22B", "selective"): (45.5, 41.0),
        ("steps", "megatron-22B", "full"): (1.42, 1.40),
        ("steps", "megatron-22B", "selective"): (1.1, 1.14),
    }
    assert Calculon(found).errors("steps") == pytest.approx([1.40 / 1.42 - 1, 1.14 / 1.1 - 1])


def test_calculon_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("TRNSIM_CALCULON", raising=False)
    assert "TRNSIM_CALCULON" in run_calculon().why
    assert "bin/calculon" in run_calculon(str(tmp_path)).why
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "calculon").write_text("raise SystemExit('no such thing')")
    assert "no such thing" in run_calculon(str(tmp_path)).why


@pytest.mark.skipif(not os.environ.get("TRNSIM_CALCULON"), reason="TRNSIM_CALCULON names no checkout")
def test_calculon_runs():
    found = run_calculon()
    assert not found.why
    assert len(found.errors("steps")) == 8
    assert all(point.calculon in {model for _, model, _ in found.values} for point in memory())


def test_missing_columns(tmp_path):
    (tmp_path / "training.csv").write_text("id,model\n")
    with pytest.raises(InputError, match="has no column"):
        read_rows(tmp_path)


def _points(truth: Factors) -> list[Point]:
    found = []
    for model in ("llama-3.1-8b", "llama-3.1-70b"):
        for tp, cp, size in ((1, 1, 1), (2, 1, 2), (4, 2, 1), (8, 1, 4), (8, 2, 2)):
            layout = Layout(tp=tp, cp=cp, dp=32 // tp // cp, zero=1, micro_batch=size, global_batch=256)
            plan = TrainingPlan(model=load_model(model), system="dgx-h100", layout=layout, sequence=8192)
            point = Point(
                key="", ids=("a",), framework="f", generation="hopper", strain=1.0, chip="h100", model=model,
                narrow=False, moe=False, plan=plan, pieces=pieces_of(prices_of(plan), layout), measured_us=1.0,
                model_flops=1.0,
            )  # fmt: skip
            found.append(replace(point, measured_us=time_us(point, truth)))
    return found


def test_fit_finds_the_factors_that_made_the_steps():
    truth = Factors(
        {**EXPECTATION.values, "attention": 1.05, "moves": 1.2, "tp": 0.45},
        {"hopper": {"products": 1.25, "narrow": 1.1}},
    )
    points = _points(truth)
    found = fit(points)
    assert found.generations["hopper"]["products"] == pytest.approx(1.25, rel=0.02)
    assert [time_us(p, found) / p.measured_us for p in points] == pytest.approx(np.ones(len(points)), rel=0.01)


@pytest.fixture(scope="module")
def published():
    data = os.environ.get("TRNSIM_DATA")
    if not data:
        pytest.skip("TRNSIM_DATA names no folder with training.csv")
    return validate(read_rows(data))


def test_published_steps(published):
    assert published.predicted_share >= 0.95
    assert not published.unfit
    grouped = sets(published.cases)
    dense, paper = errors(grouped["Nvidia, dense"]), errors(grouped["A100, Megatron of 2022"])
    assert dense["mape"] < 0.05
    assert dense["mape"] < 0.8 * dense["null_mape"]
    assert paper["cases"] == 8
    assert paper["mape"] < 0.04
    assert paper["worst"] < 0.09
    assert errors(grouped["Trainium, decoders"])["mape"] < 0.08
    assert errors(grouped["Nvidia, experts"])["mape"] < 0.16
    assert len(to_json(published)["cases"]) == len(published.cases)


def test_shipped_stacks_are_fitted_on_these(published):
    from trnsim.planner.stack import load_training_stack

    assert FILE.exists()
    for name, factors in published.fits.items():
        held = load_training_stack(name)
        for kind, value in factors.values.items():
            assert held.factors[kind] == pytest.approx(value, rel=2e-3, abs=2e-3)
