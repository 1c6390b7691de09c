"""``trnsim op``: implementations and chips side by side, the list, and the roofline."""

import json

import pytest
from typer.testing import CliRunner

from trnsim.cli import app

SIZES = {"m": 512, "k": 1024, "n": 2048}
ARGUMENTS = [f"--{name}={size}" for name, size in SIZES.items()]


def invoke(*arguments):
    return CliRunner().invoke(app, ["op", *arguments])


SMALL = ["--rows=128", "--width=128"]  # what is simulated


def test_side_by_side(tmp_path):
    cache = tmp_path / "costs.db"
    chips = ["--chip", "trn2", "--chip", "h100", "--chip", "b200"]
    done = invoke("softmax", *SMALL, *chips, "--cache", str(cache), "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(c["chip"], c["implementation"]) for c in found["costs"]] == [
        ("trn2", "kernel"),
        ("trn2", "compiler"),
        ("h100", "gpu"),
        ("b200", "gpu"),
    ]
    assert all(c["bound"] for c in found["costs"])
    assert [c["cores"] for c in found["costs"]] == [1, 1, None, None]
    shown = invoke("softmax", "--rows", "128", "--width", "128", "--cache", str(cache), "--chip", "trn2")
    assert shown.exit_code == 0
    assert "trn2 (1 of 8 cores)" in shown.stdout
    assert "assumed" in shown.stdout


def test_a_refusal_stands_beside_what_works():
    done = invoke("matmul", *ARGUMENTS, "--chip", "a100", "--chip", "h100", "--dtype", "fp8")
    assert done.exit_code == 0, done.output
    assert "a100 gpu: refused, a100 has no float8_e4m3" in done.stdout
    assert "h100 gpu: matmul measured" in done.stdout


def test_what_if_of_one_of_several_chips():
    chips = ["--chip", "h100", "--chip", "b200", "--set", "h100.hbm.bandwidth=6.7TB/s"]
    sizes = ["--m=16", "--k=8192", "--n=8192"]
    changed, same = json.loads(invoke("matmul", *sizes, *chips, "--json", "-").stdout)["costs"]
    assert changed["support"] == "what-if"
    assert "3350 GB/s" in changed["reason"]
    assert changed["time_us"] < 0.7 * changed["unchanged_time_us"]
    assert same["support"] == "calibrated"
    assert "unchanged_time_us" not in same
    shown = invoke("matmul", *sizes, *chips).stdout
    assert "unchanged us" in shown
    alone = json.loads(invoke("matmul", *sizes, "--set", "h100.hbm.bandwidth=6.7TB/s", "--json", "-").stdout)["costs"]
    assert [c["time_us"] for c in alone] == [changed["time_us"]]


def test_what_if_of_timing_constants(tmp_path):
    arguments = ["matmul", *ARGUMENTS, "--cache", str(tmp_path / "costs.db")]
    done = invoke(*arguments, "--set", "trn3.dma.sustained_bytes_per_ns=4GB/s", "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["chips"] == ["trn3[dma.sustained_bytes_per_ns=4GB/s]"]
    kernel, compiler = found["costs"]
    assert kernel["time_us"] > 2 * kernel["unchanged_time_us"]
    assert compiler["time_us"] == compiler["unchanged_time_us"]  # its HBM is as it was
    assert {c["support"] for c in found["costs"]} == {"what-if"}
    refused = invoke(*arguments, "--set", "trn3.dma.sustained=4GB/s")
    assert "dma.sustained_bytes_per_ns" in str(refused.exception)


def test_options_that_are_words():
    sizes = ["--tokens=128", "--width=512", "--hidden=1024", "--outputs=512"]
    plain, chosen = (
        json.loads(invoke("gated_mlp", *sizes, *more, "--chip", "h100", "--json", "-").stdout)["costs"]
        for more in ([], ["--activation", "silu"])
    )
    assert plain == chosen


def test_list():
    found = {o["operator"]: o for o in json.loads(invoke("list", "--json", "-").stdout)["operators"]}
    assert {"matmul", "attention", "decode_attention", "moe", "rmsnorm", "adam"} <= set(found)
    assert found["matmul"]["implementations"] == ["kernel", "compiler", "gpu"]
    shown = invoke("list").stdout
    assert "--contract-lhs" in shown
    assert "b200       bfloat16" in shown


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("html", b"<!doctype html>")])
def test_roofline(tmp_path, suffix, start):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"roofline.{suffix}"
    done = invoke("matmul", *ARGUMENTS, "--chip", "h100", "--chip", "b200", "--plot", str(path))
    assert done.exit_code == 0, done.output
    content = path.read_bytes()
    assert content.startswith(start)
    if suffix == "html":
        assert b"<svg" in content


def test_roofline_lines_and_points():
    from trnsim.commands.roofline import peak

    flops, bandwidth = peak("h100", "bfloat16", 1)
    assert (flops, bandwidth) == pytest.approx((989e12, 3.35e12))
    assert peak("trn2", "bfloat16", 2)[0] == pytest.approx(2 * 78.64e12, rel=1e-3)
    assert peak("h100", "float8_e4m3", 1)[0] == pytest.approx(1979e12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["matmul", "--m", "512"], "no k, n"),
        (["matmul", "--m", "x"], "--m needs an integer"),
        (["matmul", "12"], "sizes"),
        (["dance", "--m", "1"], "no operator 'dance'"),
        (["atention", "--m", "1"], "nearest: attention"),
        (["matmul", *ARGUMENTS, "--chip", "h100", "--set", "b200.hbm.bandwidth=9TB/s"], "the chip is h100"),
        (["matmul", *ARGUMENTS, "--chip", "inf1"], "no timing constants"),
        (["matmul", *ARGUMENTS, "--chip", "h100", "--dtype", "mxfp4"], "the nearest that it has is float8"),
        (["matmul", *ARGUMENTS, "--chip", "h100", "--plot", "x.pdf"], "no such kind of picture"),
        (["embedding", "--tokens=8", "--width=8", "--rows=8", "--chip", "h100", "--plot", "x.svg"], "computes nothing"),
    ],
)
def test_bad_input(arguments, text):
    done = invoke(*arguments)
    assert done.exit_code != 0
    assert text in str(done.exception)
