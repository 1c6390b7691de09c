"""Published training steps: rules, what rows omit, fits on made-up points, and all rows where they are at hand."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.planner.stack import FILE
from trnsim.planner.training import TrainingPlan, pieces_of, prices_of
from trnsim.validation.training.fit import EXPECTATION, Factors, Point, fit, time_us
from trnsim.validation.training.report import errors, sets, to_json, validate
from trnsim.validation.training.rows import COLUMNS, excluded, framework, plan_of, read_rows
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
        ({"model": "LLAMA3_8B LoRA"}, "fine-tuning"),
        ({"notes": "CHECK"}, "does not multiply"),
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
                key="", ids=("a",), framework="f", generation="hopper", chip="h100", model=model, narrow=False,
                moe=False, plan=plan, pieces=pieces_of(prices_of(plan), layout), measured_us=1.0, model_flops=1.0,
            )  # fmt: skip
            found.append(replace(point, measured_us=time_us(point, truth)))
    return found


def test_fit_finds_the_factors_that_made_the_steps():
    truth = Factors(
        {**EXPECTATION.values, "attention": 1.1, "moves": 1.6, "tp": 0.6}, {"hopper": {"products": 1.25, "narrow": 1.1}}
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
    grouped = sets(published.cases)
    dense, paper = errors(grouped["Nvidia, dense"]), errors(grouped["A100, Megatron of 2022"])
    assert dense["mape"] < 0.8 * dense["null_mape"]
    assert paper["mape"] < 0.04
    assert paper["worst"] < 0.09
    assert len(to_json(published)["cases"]) == len(published.cases)


def test_shipped_stacks_are_fitted_on_these(published):
    from trnsim.planner.stack import load_training_stack

    assert FILE.exists()
    for name, factors in published.fits.items():
        held = load_training_stack(name)
        for kind, value in factors.values.items():
            assert held.factors[kind] == pytest.approx(value, rel=2e-3, abs=2e-3)
