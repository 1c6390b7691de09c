"""``trnsim replay``, ``diff`` and ``validate instructions`` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from profile_documents import Document, copy


def trnsim(*arguments):
    command = [sys.executable, "-m", "trnsim.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def measured(tmp_path):
    document = (
        Document()
        .add("Vector", "COPY", copy(raises="S[6] (Vector)++@complete"), start=100, duration=680)
        .add("Scalar", "COPY", copy(waits="S[6] (Vector)>=1"), start=820, duration=584)
    )
    return document.write(tmp_path / "measured.json.gz")


def test_replay_and_diff(measured, tmp_path):
    target = tmp_path / "replay.json"
    shown = trnsim("replay", measured, "--json", target)
    assert shown.returncode == 0, shown.stderr
    assert "predicted us" in shown.stdout
    replay = json.loads(target.read_text())
    assert replay["schema"] == "trnsim-replay-1"
    assert {e["name"] for e in replay["engines"]} == {"vector", "scalar"}
    assert replay["span"]["error"] == pytest.approx(replay["span"]["predicted_us"] / replay["span"]["measured_us"] - 1)
    compared = trnsim("diff", measured, target, "--json", "-")
    assert compared.returncode == 0, compared.stderr
    document = json.loads(compared.stdout)
    assert document["aligned_by"].startswith("engine, opcode")
    assert document["span"]["b_us"] == replay["span"]["predicted_us"]
    assert len(document["instructions"]) == 2
    assert "Single instructions" in trnsim("diff", measured, target).stdout


def test_our_own_reports_can_be_compared(tmp_path):
    kernel = tmp_path / "k.py"
    kernel.write_text(
        "import nki, nki.isa as nisa, nki.language as nl\n\n@nki.jit\ndef k(x):\n"
        "    tile = nl.ndarray(x.shape, x.dtype, buffer=nl.sbuf)\n    nisa.dma_copy(tile, x)\n"
        "    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)\n    nisa.dma_copy(out, tile)\n    return out\n"
    )
    for name, shape in (("a", "f32[128,64]"), ("b", "f32[128,512]")):
        done = trnsim("profile", f"{kernel}:k", "--arg", shape, "--json", tmp_path / f"{name}.json")
        assert done.returncode == 0, done.stderr
    document = json.loads(trnsim("diff", tmp_path / "a.json", tmp_path / "b.json", "--json", "-").stdout)
    assert document["aligned_by"] == "source line"
    assert {line["name"] for line in document["lines"]} == {"k.py:6", "k.py:8"}
    assert document["span"]["change_us"] > 0


def test_validate_instructions(tmp_path):
    table = tmp_path / "t.csv"
    header = (
        "engine,opcode,src0(dtype:mem:free_elems[:stride]),src1,dst,detail,channels,n,dur_min_ns,dur_median_ns,"
        "dur_max_ns,n_back_to_back,ii_min_ns,ii_median_ns,ii_max_ns\n"
    )
    table.write_text(f"{header}Vector,COPY,fp32:PSUM:512,,fp32:SBUF:512,,128,45,679,690,691,0,,,\n")
    fine = trnsim("validate", "instructions", "--data", table, "--json", "-")
    assert fine.returncode == 0, fine.stderr
    (group,) = json.loads(fine.stdout)["summary"]
    assert (group["group"], group["cases"], group["within_10_percent"]) == ("duration", 1, 1)
    table.write_text(f"{header}Vector,COPY,fp32:PSUM:512,,fp32:SBUF:512,,128,45,679,1690,691,0,,,\n")
    assert trnsim("validate", "instructions", "--data", table).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("replay", "none.json"), "cannot read none.json"),
        (("diff", "none.json", "none.json"), "cannot read none.json"),
        (("validate", "instructions"), "give --data, --dma or both"),
        (("validate", "instructions", "--data", "none.csv"), "cannot read none.csv"),
    ],
)
def test_bad_input(arguments, message):
    done = trnsim(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
