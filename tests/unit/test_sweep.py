"""Sweeps: what may vary, resuming from a file however it ended, workers, and the ranking."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from trnsim.errors import InputError
from trnsim.sweep.parameters import BODY, KEYWORD, MODULE, KernelFile, parse_parameters, split_values, variants
from trnsim.sweep.store import Result, Store, source_digests

KERNEL = """
import os, signal, time
import nki, nki.isa as nisa, nki.language as nl
from helper import repeat

REPEATS = 2
TWICE: int = 2 * REPEATS
CHANGED = 1
CHANGED = 2
ENGINE = nisa.engine.vector


@nki.jit
def kernel(x, scale=2.0, die=False, slow=False):
    WIDTH = 64
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    if slow:
        time.sleep(0.2)
    half = WIDTH // 2
    assert x.shape[1] % WIDTH == 0, f"{x.shape[1]} columns in parts of {WIDTH}"
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    for _ in repeat(TWICE):
        for i in range(x.shape[1] // WIDTH):
            part = tile[:, i * WIDTH : (i + 1) * WIDTH]
            nisa.tensor_scalar(dst=part, data=part, op0=nl.multiply, operand0=scale, engine=ENGINE)
    nl.store(out, value=tile)
    return out
"""
HELPER = "def repeat(n):\n    return range(n)\n"
ARG = ("--arg", "f32[128,256]")


def trnsim(*arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "NEURON_PLATFORM_TARGET_OVERRIDE"}
    command = [sys.executable, "-m", "trnsim.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "k.py").write_text(KERNEL)
    (tmp_path / "helper.py").write_text(HELPER)
    return tmp_path


def swept(folder, *arguments, status=0):
    result = trnsim("sweep", "k.py:kernel", *ARG, "--json", "-", "--workers", 2, *arguments, cwd=folder)
    assert result.returncode == status, result.stderr
    return json.loads(result.stdout), result.stderr


def time_of(folder, **changes):
    """Time of the kernel with its source changed by hand: the independent reference."""
    text = KERNEL
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    (folder / "changed.py").write_text(text)
    result = trnsim("profile", "changed.py:kernel", *ARG, "--json", "-", cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["calls"][0]["time_us"]


KINDS = {"scale": KEYWORD, "x": KEYWORD, "REPEATS": MODULE, "TWICE": MODULE, "ENGINE": MODULE, "WIDTH": BODY}


@pytest.mark.parametrize("name", KINDS)
def test_what_may_vary(name, folder):
    assert KernelFile(str(folder / "k.py"), "kernel").kind(name) == KINDS[name]


@pytest.mark.parametrize("name", ["CHANGED", "out", "part", "repeat", "_", "WIDTHS"])
def test_what_may_not_vary_lists_candidates(name, folder):
    with pytest.raises(InputError, match=r"no such name.*arguments x, scale.*WIDTH, half.*constants REPEATS, TWICE"):
        KernelFile(str(folder / "k.py"), "kernel").kind(name)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]), ("f32[2,3],f32[4,5]", ["f32[2,3]", "f32[4,5]"]), ("'a,b',(1, 2)", ["'a,b'", "(1, 2)"]),
        ("", [""]), ("1,,2", ["1", "", "2"]),
    ],
)  # fmt: skip
def test_values(text, values):
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["REPEATS", "REPEATS=", "=1", "REPEATS=1,,2", "RE PEATS=1", "REPEATS=1,2+"])
def test_bad_parameters(text, folder):
    with pytest.raises(InputError, match="--param"):
        parse_parameters([text], KernelFile(str(folder / "k.py"), "kernel"))


def test_the_product_of_all_values(folder):
    found = parse_parameters(["REPEATS=1,2,2", "WIDTH=32,64"], KernelFile(str(folder / "k.py"), "kernel"))
    assert [tuple(v.values()) for v in variants(found)] == [("1", "32"), ("1", "64"), ("2", "32"), ("2", "64")]


def test_ranking(folder):
    report, _ = swept(folder, "--param", "REPEATS=1,3", "--param", "WIDTH=64,100,128", status=0)
    assert report["schema"] == "trnsim.sweep/1"
    assert report["parameters"]["REPEATS"] == {"kind": "module constant", "values": ["1", "3"]}
    assert (report["variants"], report["timed"]) == (6, 4)
    times = {tuple(r["params"].values()): r["time_us"] for r in report["ranking"]}
    assert list(times.values()) == sorted(times.values())
    for (repeats, width), found in times.items():
        expected = time_of(folder, a=("REPEATS = 2", f"REPEATS = {repeats}"), b=("WIDTH = 64", f"WIDTH = {width}"))
        assert found == expected
    assert [f["params"]["WIDTH"] for f in report["failed"]] == ["100", "100"]
    assert "256 columns in parts of 100" in report["failed"][0]["error"]
    assert report["ranking"][1]["slower"] == report["ranking"][1]["time_us"] / report["ranking"][0]["time_us"]


def test_keyword_arguments_shapes_and_expressions(folder):
    found, _ = swept(folder, "--param", "ENGINE=nisa.engine.vector,nisa.engine.scalar", "--param", "scale=1.0,2.0")
    assert found["timed"] == 4
    assert len({r["time_us"] for r in found["ranking"]}) == 2
    result = trnsim("sweep", "k.py:kernel", "--param", "x=f32[128,64],bf16[64,128]", "--json", "-", cwd=folder)
    shapes = {r["arguments"][0] for r in json.loads(result.stdout)["ranking"]}
    assert shapes == {"float32 128x64", "bfloat16 64x128"}


def test_the_table(folder):
    options = ("--param", "REPEATS=1,2,3", "--param", "WIDTH=64,100", "--top", 2)
    result = trnsim("sweep", "k.py:kernel", *ARG, *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    failed = "failed  REPEATS=1, WIDTH=100; REPEATS=2, WIDTH=100; REPEATS=3, WIDTH=100\n"
    said = ("6 variants, 3 timed, 3 failed", "WIDTH: constant in the kernel; 64, 100", "and 1 slower ones")
    for text in (*said, "float32 128x256", failed):
        assert text in result.stdout
    assert "\x1b" not in result.stdout + result.stderr


def test_all_failing_is_status_one(folder):
    assert swept(folder, "--param", "WIDTH=100", status=1)[0]["timed"] == 0


def test_a_worker_that_dies_takes_only_its_variant(folder):
    report, _ = swept(folder, "--param", "die=False,True", "--param", "REPEATS=1,2", "--out", "out.jsonl")
    assert report["timed"] == 2
    assert all("killed by SIGKILL" in f["error"] for f in report["failed"])
    _, errors = swept(folder, "--param", "die=False,True", "--param", "REPEATS=1,2", "--out", "out.jsonl")
    assert "2 of 4 variants are in out.jsonl already" in errors  # what died is tried again


PARAMS = ("--param", "REPEATS=1,2,3,4")


def test_resuming(folder):
    first, errors = swept(folder, *PARAMS, "--out", "out.jsonl")
    assert "already" not in errors
    again, errors = swept(folder, *PARAMS, "--out", "out.jsonl")
    assert "4 of 4 variants are in out.jsonl already" in errors
    assert again == first
    more, errors = swept(folder, "--param", "REPEATS=4,5", "--out", "out.jsonl")
    assert "1 of 2" in errors
    assert more["timed"] == 2


@pytest.mark.parametrize("left", [b"", b"{", b'{"key": "a", "par', b'{"key":"a","params":{}}'])
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_half_written_line_is_ignored(left, lines, tmp_path):
    path = tmp_path / "out.jsonl"
    results = [Result(key=f"k{i}", params={"a": str(i)}, time_us=float(i)) for i in range(4)]
    with closing(Store(path)) as store:
        for result in results:
            store.add(result)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:lines]) + (left if lines else whole[0][: len(left)]))
    known = max(0, lines - 1)
    with closing(Store(path)) as store:
        assert list(store.results.values()) == results[:known]
        for result in results[known:]:
            store.add(result)
    assert path.read_bytes() == b"".join(whole)


def test_killed_and_continued(folder):
    command = [sys.executable, "-m", "trnsim.cli", "sweep", "k.py:kernel", *ARG, *PARAMS, "--param", "slow=True"]
    process = subprocess.Popen(
        [*command, "--out", "out.jsonl", "--workers", "1"], cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    path = folder / "out.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    report, errors = swept(folder, *PARAMS, "--param", "slow=True", "--out", "out.jsonl")
    assert report["timed"] == 4
    assert "of 4 variants are in out.jsonl already" in errors


CHANGES = {
    "the kernel's file": lambda folder: (folder / "k.py").write_text(KERNEL + "\n"),
    "a file that it imports": lambda folder: (folder / "helper.py").write_text(HELPER + "\n"),
    "the chip": lambda folder: ("--chip", "trn3"),
    "the schedule": lambda folder: ("--schedule", "program"),
    "the arguments": lambda folder: ("--arg", "scale=3.0"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_makes_a_result_stale(case, folder):
    swept(folder, "--param", "REPEATS=1", "--out", "out.jsonl")
    more = CHANGES[case](folder)
    _, errors = swept(folder, "--param", "REPEATS=1", "--out", "out.jsonl", *(more if isinstance(more, tuple) else ()))
    assert "already" not in errors


def test_other_files_are_left_alone(folder):
    path = folder / "notes.txt"
    for text in ("hello", "hello\nworld\n", '{"schema": "other"}\n'):
        path.write_text(text)
        with pytest.raises(InputError, match="is not the file of a sweep"):
            Store(path)
        assert path.read_text() == text


def test_a_damaged_line_in_the_middle_is_an_error(folder):
    path = folder / "out.jsonl"
    with closing(Store(path)) as store:
        store.add(Result(key="a", params={}))
        store.add(Result(key="b", params={}))
        with pytest.raises(InputError, match="another sweep is writing"):
            Store(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{\n" + lines[2])
    with pytest.raises(InputError, match=r"out.jsonl:2 is damaged"):
        Store(path)


def test_files_that_a_kernel_imports(folder):
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text("from . import inner\n")
    (folder / "pack" / "inner.py").write_text("import numpy\n")
    (folder / "helper.py").write_text("import pack\n")
    assert list(source_digests(folder / "k.py")) == ["helper.py", "k.py", "pack/__init__.py", "pack/inner.py"]


BAD_COMMANDS = {
    "unknown name": (("--param", "WIDE=1"), "WIDE: k.py has no such name for kernel; it has keyword arguments x,"),
    "twice": (("--param", "REPEATS=1", "--param", "REPEATS=2"), "REPEATS is given twice"),
    "not a file of a sweep": (("--param", "REPEATS=1", "--out", "k.py"), "k.py is not the file of a sweep"),
    "no folder": (("--param", "REPEATS=1", "--out", "no/out.jsonl"), "cannot write no/out.jsonl"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case, folder):
    arguments, message = BAD_COMMANDS[case]
    result = trnsim("sweep", "k.py:kernel", *ARG, *arguments, cwd=folder)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
