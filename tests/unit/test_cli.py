"""The commands as a user runs them: output, exit status, and clear errors for bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import numpy as np
import nki, nki.isa as nisa, nki.language as nl
"""
KERNEL = (
    HEAD
    + """
@nki.jit
def double(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    nl.store(out, value=nl.multiply(tile, 2.0))
    return out

if __name__ == "__main__":
    x = np.ones((128, 64), np.float32)
    assert (np.asarray(double(x)) == 2).all()
"""
)


def trnsim(*arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "NEURON_PLATFORM_TARGET_OVERRIDE"}
    return subprocess.run(
        [sys.executable, "-m", "trnsim.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )


@pytest.fixture
def script(tmp_path):
    def write(text, name="script.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_run_reports_each_call(script, tmp_path):
    path = script(KERNEL)
    result = trnsim("run", "--json", "report.json", "--html", "report.html", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "double" in result.stdout
    assert "trn2" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    call = report["calls"][0]
    assert call["kernel"] == "double"
    assert call["time_us"] > 0
    for key in ("chip", "support", "bound_by", "engines", "hbm_read_bytes", "hbm_write_bytes", "sbuf_peak_bytes"):
        assert key in call
    assert call["hbm_read_bytes"] == 128 * 64 * 4
    assert "<html" in (tmp_path / "report.html").read_text()


def test_json_to_standard_output_is_only_json(script, tmp_path):
    result = trnsim("run", "--json", "-", script(KERNEL), cwd=tmp_path)
    assert json.loads(result.stdout)["calls"]


def test_perfetto(script, tmp_path):
    pytest.importorskip("perfetto")
    result = trnsim("run", "--perfetto", "trace.pftrace", script(KERNEL), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "trace.pftrace").stat().st_size > 100


def test_time_only_has_the_same_time(script, tmp_path):
    path = script(KERNEL)
    times = []
    for option in ([], ["--time-only"]):
        result = trnsim("run", *option, "--json", "-", path, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        times.append(json.loads(result.stdout)["calls"][0]["time_us"])
    assert times[0] == times[1]


def test_profile_needs_no_script(script, tmp_path):
    path = script(KERNEL)
    result = trnsim("profile", f"{path}:double", "--arg", "f32[128,64]", "--json", "-", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["calls"][0]["numeric"] is False
    named = trnsim("profile", f"{path}:double", "--arg", "x=bf16[128,64]", cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert "bfloat16" in named.stdout


def test_a_users_chip(script, tmp_path):
    slow = 'base = "trn2"\nname = "slow"\n'
    slow += "".join(f'[core.engines.{e}]\nclock = "0.1 GHz"\n' for e in ("vector", "scalar"))
    (tmp_path / "slow.toml").write_text(slow)
    path = script(KERNEL)
    times = [
        json.loads(trnsim("run", "--chip", c, "--json", "-", path, cwd=tmp_path).stdout)["calls"][0]["time_us"]
        for c in ("trn2", "slow.toml")
    ]
    assert times[1] > times[0]


def test_a_recording_is_timed_again(script, tmp_path):
    path = script(KERNEL)
    assert trnsim("run", "--trace", "one.trace", "--json", "one.json", path, cwd=tmp_path).returncode == 0
    again = trnsim("time", "one.trace", "--json", "-", "--html", "one.html", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (json.loads(text)["calls"][0] for text in ((tmp_path / "one.json").read_text(), again.stdout))
    changed = {"numeric", "wall_seconds"}
    assert {k: v for k, v in first.items() if k not in changed} == {k: v for k, v in second.items() if k not in changed}
    assert (tmp_path / "one.html").exists()
    other = trnsim("time", "one.trace", "--chip", "trn3", "--schedule", "program", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert "trn3" in other.stdout
    assert "schedule program" in other.stdout
    assert "recorded on trn2" in other.stderr
    path.write_text(KERNEL + "\n")
    assert "has changed since it was recorded" in trnsim("time", "one.trace", cwd=tmp_path).stderr


def test_a_baseline_for_continuous_integration(script, tmp_path):
    path = script(KERNEL)
    assert trnsim("run", "--json", "before.json", "--trace", "one.trace", path, cwd=tmp_path).returncode == 0
    compare = ("--baseline", "before.json", "--fail-if-slower", "5%")
    kernel = ("profile", f"{path}:double", "--arg", "f32[128,64]")
    for command in (("run", *compare, path), (*kernel, *compare), ("time", "one.trace", *compare)):
        result = trnsim(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "no call is slower than in before.json by more than 5.0%" in result.stderr
    path.write_text(KERNEL.replace("nl.multiply(tile, 2.0)", "nl.multiply(nl.multiply(tile, 2.0), 1.0)"))
    for command in (("run", *compare, path), (*kernel, *compare)):
        result = trnsim(*command, cwd=tmp_path)
        assert result.returncode == 1, result.stderr
        assert re.search(r"slower: double\(float32 128x64\): .* us, was .* us \(\+", result.stderr)
        assert "double" in result.stdout
    missing = trnsim("profile", f"{path}:double", "--arg", "f32[64,64]", *compare, cwd=tmp_path)
    assert missing.returncode == 1
    assert "is not in before.json" in missing.stderr
    assert "did not run" in missing.stderr


def test_explain(script, tmp_path):
    path = script(KERNEL)
    result = trnsim("explain", f"{path}:double", "--arg", "f32[128,64]", "--json", "out.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in ("critical path", "from the end to the start", "what would help most", "bfloat16", "script.py:9"):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "\x1b" not in result.stdout + result.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["schema"] == "trnsim.explain/1"
    assert report["changes"][0]["saved_us"] > 0
    time = json.loads(trnsim("profile", f"{path}:double", "--arg", "f32[128,64]", "--json", "-", cwd=tmp_path).stdout)
    assert report["time_us"] == time["calls"][0]["time_us"]


def test_chips(tmp_path):
    result = trnsim("chips", cwd=tmp_path)
    assert result.returncode == 0
    for name in ("trn1", "trn2", "trn3", "inf2", "h100", "gb200"):
        assert name in result.stdout
    one = trnsim("chips", "trn2", cwd=tmp_path)
    assert "trainium2_arch" in one.stdout
    assert json.loads(trnsim("chips", "--json", "-", cwd=tmp_path).stdout)


def test_the_module_runs_and_tells_its_version(tmp_path):
    done = subprocess.run([sys.executable, "-m", "trnsim", "--version"], check=True, capture_output=True, cwd=tmp_path)
    assert done.stdout.startswith(b"trnsim ")


def test_help_shows_an_example(tmp_path):
    for command in ("run", "profile", "time", "sweep", "explain", "chips"):
        assert "Example: trnsim" in trnsim(command, "--help", cwd=tmp_path).stdout


def body(lines):
    return (
        HEAD
        + "\n@nki.jit\ndef kernel(x):\n"
        + "".join(f"    {line}\n" for line in lines.split("\n"))
        + ("\nkernel(np.ones((128, 512), np.float32))\n")
    )


BAD_KERNELS = {
    "partition size": (
        "t = nl.ndarray((256, 4), dtype=nl.float32, buffer=nl.sbuf)",
        r"partition size 256 exceeds 128",
    ),
    "psum as a dma source": (
        "p = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)\n"
        "out = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.shared_hbm)\n"
        "nisa.dma_copy(dst=out, src=p)",
        r"(?s)not PSUM.*dma_copy src.*psum",
    ),
    "mismatched shapes": (
        "a = nl.load(x)\nb = nl.ndarray((128, 256), dtype=nl.float32, buffer=nl.sbuf)\n"
        "nisa.tensor_tensor(dst=b, data1=a, data2=a, op=nl.add)",
        r"(?s)tensor_tensor.*512.*256",
    ),
    "mismatched dtypes": (
        "a = nl.load(x)\nb = nl.load(x[:, 0:128], dtype=nl.bfloat16)\n"
        "p = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)\n"
        "nisa.nc_matmul(dst=p, stationary=b, moving=a)",
        r"float32 and tfloat32 multiply only with each other",
    ),
    "larger than SBUF": (
        "t = nl.ndarray((128, 100000), dtype=nl.float32, buffer=nl.sbuf)",
        r"400000 bytes a partition.*229376",
    ),
    "address beyond SBUF": (
        "t = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf, address=(0, 229000))",
        r"(?s)runs beyond SBUF.*229376 bytes a partition",
    ),
    "instruction of another generation": (
        "a = nl.load(x, dtype=nl.bfloat16)\n"
        "q = nl.ndarray((128, 128), dtype=nl.float8_e5m2_x4, buffer=nl.sbuf)\n"
        "s = nl.ndarray((128, 128), dtype=nl.uint8, buffer=nl.sbuf)\n"
        "nisa.quantize_mx(dst=q, src=a, dst_scale=s)",
        r"quantize_mx does not exist on NeuronCore-v3.*v4",
    ),
    "index out of range": ("t = x[0:129, 0:4]", r"0:129 is out of range"),
    "wrong keyword": ("nisa.dma_copy(dst=x, source=x)", r"nki.isa.dma_copy of NKI 0.6 has no keyword 'source'"),
}


@pytest.mark.parametrize("case", BAD_KERNELS)
def test_bad_kernels(case, script, tmp_path):
    lines, message = BAD_KERNELS[case]
    path = script(body(lines))
    result = trnsim("run", "--json", "out.json", "--html", "out.html", path, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert re.search(message, result.stderr), result.stderr
    source_line = 7 + lines.count("\n")
    assert re.search(rf"{re.escape(str(path))}(:|\", line ){source_line}\b", result.stderr), result.stderr
    assert "This is a bug in trnsim" not in result.stderr
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "out.html").exists()


BAD_COMMANDS = {
    "script raises": (["run", "{raises}"], 2, r"(?s)raised ZeroDivisionError.*raises.py\", line 1"),
    "no python": (["run", "{no_python}"], 2, r"no_python.py:1 is not valid Python"),
    "binary": (["run", "{binary}"], 2, r"is not (valid Python|a Python file)"),
    "missing": (["run", "nothing.py"], 2, r"nothing.py is not a file"),
    "unknown chip": (["run", "--chip", "trn9", "{good}"], 2, r"trn9"),
    "unknown chip shown": (["chips", "trn9"], 2, r"trn9"),
    "unknown schedule": (["run", "--schedule", "best", "{good}"], 2, r"unknown schedule 'best'"),
    "unknown option": (["chips", "--nothing"], 2, r"(?i)no such option"),
    "no kernel of that name": (["profile", "{good}:triple"], 2, r"no kernel 'triple'; it has double"),
    "no kernel named": (["profile", "{good}"], 2, r"FILE.py:KERNEL"),
    "bad argument": (["profile", "{good}:double", "--arg", "f32[a]"], 2, r"cannot read argument 'f32\[a\]'"),
    "bad dtype": (["profile", "{good}:double", "--arg", "f99[2,2]"], 2, r"f99"),
    "missing array": (["profile", "{good}:double", "--arg", "nothing.npy"], 2, r"cannot read nothing.npy"),
    "bad assumption": (["run", "--assume", "n", "{good}"], 2, r"NAME=INTEGER"),
    "no recording": (["time", "{good}"], 2, r"good.py .*recording"),
    "missing recording": (["time", "nothing.trace"], 2, r"nothing.trace.*No such file"),
    "unknown clock again": (["time", "--clock", "wall", "{good}"], 2, r"unknown clock 'wall'"),
    "half a baseline": (["run", "--baseline", "b.json", "{good}"], 2, r"are given together"),
    "other half": (["run", "--fail-if-slower", "5%", "{good}"], 2, r"are given together"),
    "no baseline": (["run", "--baseline", "b.json", "--fail-if-slower", "5%", "{good}"], 2, r"cannot read baseline"),
    "folder that is not there": (["run", "--json", "no/such/dir.json", "{good}"], 2, r"no/such"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case, script, tmp_path):
    arguments, status, message = BAD_COMMANDS[case]
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    files = {
        "good": script(KERNEL, "good.py"),
        "raises": script("1 / 0\n", "raises.py"),
        "no_python": script("def (\n", "no_python.py"),
        "binary": tmp_path / "binary.py",
    }
    result = trnsim(*[a.format(**files) for a in arguments], cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback (most recent call last)" not in result.stderr
    left = {p.name for p in tmp_path.iterdir()} - {Path(f).name for f in files.values()} - {"__pycache__"}
    assert not left


def test_findings_give_status_one(script, tmp_path):
    path = script(
        body(
            "t = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf)\n"
            "out = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.shared_hbm)\n"
            "nisa.dma_copy(dst=out, src=t)\nreturn out"
        )
    )
    result = trnsim("run", path, cwd=tmp_path)
    assert result.returncode == 1
    assert "nothing was written" in " ".join(result.stdout.split())


def test_models_lists_what_is_known(tmp_path):
    result = trnsim("models", cwd=tmp_path)
    assert result.returncode == 0
    assert re.search(r"llama-3\.1-70b +70\.55 B", result.stdout)
    listed = json.loads(trnsim("models", "--json", "-", cwd=tmp_path).stdout)
    assert listed["schema"] == "trnsim-models-1"
    by_name = {model["name"]: model for model in listed["models"]}
    assert by_name["gpt-oss-120b"]["parameters"] == 116_829_156_672
    assert by_name["gpt-oss-120b"]["source"].startswith("https://")


def test_models_shows_one(tmp_path):
    result = trnsim("models", "deepseek-ai/DeepSeek-R1", cwd=tmp_path)
    assert result.returncode == 0
    assert "671,026,404,352" in result.stdout
    assert "37,552,282,624" in result.stdout
    assert "arXiv 2412.19437" in result.stdout
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = json.loads(trnsim("models", "./config.json", "--json", "-", cwd=tmp_path).stdout)
    assert shown["parameters"] == 2 * 100 * 64 + 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 128)
    assert shown["kv_bytes"]["2048"] == 2048 * 2 * 2 * 32 * 2
    assert shown["flops_per_token"]["training"] == 3 * shown["flops_per_token"]["forward"]


def test_models_that_do_not_hold(tmp_path):
    for name, message in (
        ("llma-3.1-70b", "the nearest: llama-3"),
        ("GPT 1.7B", "megatron-gpt-1.7b"),
        ("config.json", "No such file"),
    ):
        result = trnsim("models", name, cwd=tmp_path)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr
