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
