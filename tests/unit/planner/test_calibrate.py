"""``trnsim calibrate``: stack profiles of a user's own measurements."""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from trnsim.commands.calibrate import calibrate
from trnsim.errors import InputError
from trnsim.hardware.stack import load_stack
from trnsim.planner.serving import ServingCase
from trnsim.planner.serving_costs import Parts
from trnsim.validation.serving.calibrate import NEEDED, read_measured
from trnsim.validation.serving.parts import tpot_parts

TRUE = (0.8, 1.5, 1.2, 0.7)


def rows(count: int, factors: tuple[float, float, float, float] = TRUE) -> list[dict[str, str]]:
    """Runs of Llama 3.1 8B on trn1 whose TPOT is made of known factors and milliseconds of host time a step."""
    found = []
    for number in range(count):
        row = {
            "model": "Meta-Llama-3.1-8B", "chip": "Trainium1", "tp": str(2 ** (1 + number % 4)), "tpot_ms": "1",
            "batch_or_concurrency": str(1 + 3 * (number // 4)), "input_len": "256", "output_len": "128",
        }  # fmt: skip
        found.append(row)
    for row, one in zip(found, measured(found), strict=True):
        parts, _ = tpot_parts(ServingCase(one.plan, factors=Parts(1.0, 1.0, 1.0)), *one.load)
        row["tpot_ms"] = str(sum(f * p for f, p in zip(factors, parts, strict=True)))
    return found


def measured(found: list[dict[str, str]]) -> list:
    with tempfile.TemporaryDirectory() as folder:
        return read_measured(write(Path(folder) / "runs.csv", found), "nxdi", None)[0]


def write(file: Path, found: list[dict[str, str]]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, NEEDED)
        writer.writeheader()
        writer.writerows(found)
    return file


def test_factors_are_found_again_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "runs.csv", rows(12))
    calibrate([file], stack="mine", json=str(tmp_path / "found.json"))
    summary = json.loads((tmp_path / "found.json").read_text())["summary"]
    # Fixed times and host time are alike for one model.
    assert summary["work"] == pytest.approx(TRUE[0], rel=0.05)
    assert summary["error"] < 0.02 < summary["error_unfitted"]
    fit = load_stack(tmp_path / "mine.toml").fit
    assert fit is not None
    assert (fit.work, fit.cases) == (pytest.approx(summary["work"], abs=1e-4), 12)
    # A plan with this stack has the measured time.
    one = measured(rows(12))[0]
    plan = replace(one.plan, stack=str(tmp_path / "mine.toml"))
    tpot = ServingCase(plan).estimate(*one.load).state.tpot * 1e3
    assert tpot == pytest.approx(one.tpot_ms, rel=0.05)


def test_few_configurations_fit_one_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    calibrate([write(tmp_path / "runs.csv", rows(4, (0.5, 0.5, 0.5, 0.0)))], stack="mine", json=str(tmp_path / "f"))
    summary = json.loads((tmp_path / "f").read_text())["summary"]
    assert summary["work"] == summary["fixed"] == pytest.approx(0.5, abs=0.01)
    assert summary["host_ms"] is None


def test_results_of_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    files = []
    for users in (1, 4, 16):
        files.append(tmp_path / f"{users}.json")
        files[-1].write_text(json.dumps({
            "model_id": "m", "completed": 10 * users, "duration": 9.0, "request_rate": "inf", "max_concurrency": users,
            "total_input_tokens": 10240 * users, "total_output_tokens": 2560 * users, "request_throughput": 1.0,
            "output_throughput": 99.0, "mean_ttft_ms": 99.0, "mean_tpot_ms": 9.0 + users / 10,
        }))  # fmt: skip
    with pytest.raises(InputError, match="give --model"):
        calibrate(files, stack="mine")
    calibrate(files, stack="mine", model="llama-3.1-8b", system="dgx-h100", tp=1, json=str(tmp_path / "f"))
    assert len(json.loads((tmp_path / "f").read_text())["cases"]) == 3


@pytest.mark.parametrize(
    ("count", "stack", "change", "message"),
    [
        (2, "mine", {}, "2 different configurations are too few"),
        (3, "nxdi", {}, "has a stack 'nxdi'"),
        (3, "mine", {"chip": "TPU7x"}, "no system of this chip"),
        (3, "mine", {"tpot_ms": ""}, "no TPOT"),
        (3, "mine", {"model": "unheard-of"}, "unheard-of"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count, stack, change, message):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "runs.csv", [{**row, **change} for row in rows(count)])
    with pytest.raises(InputError, match=message):
        calibrate([file], stack=stack)
    # Nothing is written.
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]
