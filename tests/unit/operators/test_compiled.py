"""The ``compiler`` implementation, and the command that shows implementations side by side."""

import json

import pytest
from typer.testing import CliRunner

from trnsim.cli import app
from trnsim.errors import InputError, UnsupportedError
from trnsim.operators.compiled import CompilerCosts, Fit, Rates, predict

SIZES = {"m": 512, "k": 1024, "n": 2048}


def test_times_add_up_as_squares():
    rates = Rates(1e12, 1e11)
    assert predict(Fit(5, 0.5, 0.5), rates, 1.5e6, 2e5) == pytest.approx(5 + 5)  # 3 us and 4 us
    assert predict(Fit(5, 1, 1), rates, 0, 0) == 5


def test_support():
    here = CompilerCosts("trn3", 2).cost("matmul", "bfloat16", **SIZES)
    assert (here.support, here.error_percent) == ("calibrated", 5.79)
    there = CompilerCosts("trn2", 2).cost("matmul", "bfloat16", **SIZES)
    assert (there.support, there.error_percent) == ("extrapolated", None)
    assert "trn3" in there.reason
    assert there.time_ps > here.time_ps


def test_what_is_not_known():
    with pytest.raises(InputError, match="no NeuronCore"):
        CompilerCosts("h100")
    with pytest.raises(UnsupportedError, match="no measurements of compiled attention"):
        CompilerCosts("trn2").cost("attention", "bfloat16", q=1)


def invoke(*arguments):
    return CliRunner().invoke(app, ["op", *arguments])


def test_side_by_side(tmp_path):
    cache = tmp_path / "costs.db"
    arguments = [f"--{name}={size}" for name, size in SIZES.items()]
    done = invoke("matmul", *arguments, "--chip", "trn2", "--cache", str(cache), "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [c["implementation"] for c in found["costs"]] == ["kernel", "compiler"]
    assert found["costs"][0]["bound"] == "tensor"
    shown = invoke("matmul", "--m", "512", "--k", "1024", "--n", "2048", "--cache", str(cache))
    assert shown.exit_code == 0
    assert "kernel" in shown.stdout
    assert "extrapolated" in shown.stdout


def test_list():
    found = json.loads(invoke("list", "--json", "-").stdout)
    assert {"matmul"} <= {o["operator"] for o in found["operators"]}
    assert "--contract-lhs 0|1" in invoke("list").stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["matmul", "--m", "512"], "no k, n"),
        (["matmul", "--m", "x"], "--m needs an integer"),
        (["matmul", "12"], "sizes"),
        (["dance", "--m", "1"], "no kernel for 'dance'"),
    ],
)
def test_bad_input(arguments, text):
    done = invoke(*arguments)
    assert done.exit_code != 0
    assert text in str(done.exception)


def test_what_if(tmp_path):
    arguments = ["matmul", *(f"--{name}={size}" for name, size in SIZES.items()), "--cache", str(tmp_path / "costs.db")]
    done = invoke(*arguments, "--set", "trn3.dma.sustained_bytes_per_ns=4GB/s", "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["chip"] == "trn3[dma.sustained_bytes_per_ns=4GB/s]"
    kernel, compiler = found["costs"]
    assert kernel["time_us"] > 2 * kernel["unchanged_time_us"]
    assert compiler["time_us"] == compiler["unchanged_time_us"]  # its HBM is as it was
    assert {c["support"] for c in found["costs"]} == {"what-if"}
    shown = invoke(*arguments, "--set", "trn3.dma.sustained_bytes_per_ns=4GB/s")
    assert "unchanged us" in shown.stdout
    refused = invoke(*arguments, "--set", "trn3.dma.sustained=4GB/s")
    assert "the nearest are dma.sustained_bytes_per_ns" in str(refused.exception)
