"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref

import pytest

from trnsim import pytest_plugin

SUITE = """
import time
import pytest
import nki
import nki.language as nl
import neuron_dtypes

def test_passes():
    assert nki.jit

def test_fails():
    try:
        raise ValueError("the cause")
    except ValueError as error:
        raise RuntimeError("outside") from error

def test_is_slow():
    try:
        time.sleep(30)
    except Exception:
        pass

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

@pytest.mark.xfail
def test_expected():
    assert False
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_reasons_and_timeouts(tmp_path, workers):
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "trnsim", "-p", "no:cacheprovider",
        "--trnsim-timeout", "1", "--trnsim-json", "out.json", "--deselect", "test_suite.py::none", "test_suite.py",
    ]  # fmt: skip
    if workers:
        command += ["-n", str(workers)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    counts = {k: found[k] for k in ("collected", "run", "passed", "failed", "xfailed", "skipped_by_suite")}
    assert counts == {"collected": 5, "run": 4, "passed": 1, "failed": 2, "xfailed": 1, "skipped_by_suite": 1}
    assert found["skipped_by_trnsim"] == 0
    assert found["tests"]["test_suite.py::test_fails"]["reason"] == "ValueError: the cause"
    assert "longer than 1 s" in found["tests"]["test_suite.py::test_is_slow"]["reason"]
    assert found["peak_bytes_a_process"] > 1 << 20


def test_seed_makes_draws_repeat(tmp_path):
    suite = tmp_path / "test_draws.py"
    suite.write_text(
        "import random\nimport numpy as np\nimport pytest\n"
        "seen = []\n"
        "@pytest.mark.parametrize('turn', [0, 1])\n"
        "def test_draw(turn):\n"
        "    seen.append((random.random(), np.random.random()))\n"
        "    assert len(set(seen)) == 1\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "trnsim", "-p", "no:cacheprovider", "-q", str(suite)]
    assert subprocess.run([*command, "--trnsim-seed", "5"], cwd=tmp_path, check=False).returncode == 0
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 1


MANY = """
import os
import numpy as np
import pytest

@pytest.mark.parametrize("number", range(6))
def test_counts(number):
    if number == 3 and os.environ.get("KILL"):
        os.kill(os.getpid(), 9)
    assert number != 1

def test_large():
    np.zeros(3 << 30, np.uint8)
"""


def plugin(folder, *options, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "trnsim", "-p", "no:cacheprovider", *options, "test_many.py"]
    return subprocess.run(
        command, cwd=folder, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_where_it_was_cut(tmp_path, workers):
    (tmp_path / "test_many.py").write_text(MANY)
    known = {"outcome": "passed", "seconds": 2.0, "simulated": 0.5, "marks": []}
    done = {"test_many.py::test_counts[0]": known, "test_many.py::test_counts[1]": known}
    (tmp_path / "out.json").write_text(
        json.dumps({"tests": done, "wall_seconds": 100.0, "peak_bytes_a_process": 5 << 30})
    )
    options = ["--trnsim-json", "out.json", "--trnsim-resume", "--trnsim-memory", "2.5"]
    if workers:
        options += ["-n", str(workers)]
    result = plugin(tmp_path, *options)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "4 passed, 1 failed" in result.stdout.replace("1 failed, 4 passed", "4 passed, 1 failed")
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["collected"], found["done_before"], found["run"], found["passed"]) == (7, 2, 7, 6)
    assert found["tests"]["test_many.py::test_counts[0]"] == known
    assert "MemoryError" in found["tests"]["test_many.py::test_large"]["reason"]
    assert found["wall_seconds"] >= 100
    assert found["peak_bytes_a_process"] == 5 << 30
    again = plugin(tmp_path, *options)
    assert again.returncode == 5, again.stdout  # nothing left to run
    assert json.loads((tmp_path / "out.json").read_text())["run"] == 7


def test_a_worker_that_is_killed_is_replaced_and_skips_what_was_done_before(tmp_path):
    (tmp_path / "test_many.py").write_text(MANY)
    done = {"test_many.py::test_counts[0]": {"outcome": "passed", "seconds": 2.0, "simulated": 0.5, "marks": []}}
    (tmp_path / "out.json").write_text(json.dumps({"tests": done, "wall_seconds": 1.0, "peak_bytes_a_process": 1}))
    options = ["--trnsim-json", "out.json", "--trnsim-resume", "--trnsim-memory", "2.5", "-n", "1"]
    plugin(tmp_path, *options, KILL="1")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["run"] == 7
    assert "crashed" in found["tests"]["test_many.py::test_counts[3]"]["reason"]
    assert found["tests"]["test_many.py::test_counts[5]"]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "is not given"), ("{}", "no file of --trnsim-json"), ("[", "no file of --trnsim-json")]
)
def test_what_cannot_be_resumed_is_said(tmp_path, content, said):
    (tmp_path / "test_many.py").write_text(MANY)
    options = ["--trnsim-resume"]
    if content is not None:
        (tmp_path / "out.json").write_text(content)
        options += ["--trnsim-json", "out.json"]
    result = plugin(tmp_path, *options)
    assert result.returncode == 4
    assert said in result.stderr
    assert content is None or (tmp_path / "out.json").read_text() == content


@pytest.mark.skipif(not pytest_plugin._STATUS.exists(), reason="reads /proc")
def test_what_a_failed_test_held_is_given_back():
    class HeldError(ValueError):
        pass

    held = HeldError()
    held.itself = held  # a cycle, as the frames of a traceback are
    alive = weakref.ref(held)
    sys.last_value = held
    del held
    pytest_plugin.give_memory_back(above=1 << 60)
    assert alive() is not None
    pytest_plugin.give_memory_back(above=0)
    assert alive() is None
    assert not hasattr(sys, "last_value")
