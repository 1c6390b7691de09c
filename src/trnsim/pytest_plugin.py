"""``pytest -p trnsim``: run a suite that was written for the vendor's packages on simulated NeuronCores.

It puts trnsim's modules in place (``nki``, ``nki_cpu_simulator``, ``neuron_dtypes``, ...), bounds the time of a test,
and writes what happened as JSON. With pytest-xdist it works in every worker; the main process writes the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trnsim.report.files import write_text_atomic

_OURS = "trnsim.pytest_plugin"
_EVERY = 10.0  # seconds between partial summaries
_STATUS = Path("/proc/self/statm")  # Linux: pages, of them resident
_MUCH_MEMORY = 1 << 30
_counts = {"collected": 0, "deselected": 0, "done_before": 0}
_done: set[str] = set()
_late: set[str] = set()


def install_modules(nki_version: str | None = None) -> list[str]:
    """Put trnsim's modules where no real package has the name; returns the names. Idempotent.

    ``nki_version``: the release of NKI that the suite is written for; see ``trnsim.install``.
    """
    from trnsim import compat, installation

    if "nki" not in sys.modules and importlib.util.find_spec("nki") is None:
        installation.install(nki_version=nki_version)
    placed: list[str] = []
    modules = compat.modules(nki_version)
    real = {r for r in {n.partition(".")[0] for n in modules} if _is_real(r)}
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if name in sys.modules or name.partition(".")[0] in real:
            continue
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            continue
        sys.modules[name] = module
        if parent:
            setattr(sys.modules[parent], last, module)
        placed.append(name)
    return placed


def _is_real(root: str) -> bool:
    """Whether a package of this name is installed that is not trnsim's."""
    found = sys.modules[root] if root in sys.modules else importlib.util.find_spec(root)
    if found is None:
        return False
    place = getattr(found, "__file__", None) or getattr(found, "origin", None) or ""
    return bool(place) and "trnsim" not in Path(place).parts


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trnsim")
    group.addoption("--trnsim-timeout", type=float, default=0, metavar="SECONDS", help="fail a test that takes longer")
    group.addoption("--trnsim-json", metavar="FILE", help="write counts, failures with reasons, and times")
    group.addoption(
        "--trnsim-resume", action="store_true", help="tests whose outcome is in that file are counted, not run again"
    )
    group.addoption(
        "--trnsim-memory", type=float, default=0, metavar="GIB", help="a process's address space: more is a MemoryError"
    )
    group.addoption("--trnsim-chip", metavar="CHIP", help="the chip where neither the suite nor the kernel names one")
    group.addoption("--trnsim-nki-version", metavar="VERSION", help="the release of NKI the suite is written for")
    group.addoption("--trnsim-seed", type=int, metavar="N", help="seed random and numpy.random before each test")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Modules must be in place before the suite's conftest imports them; workers learn of us by the environment."""
    version = getattr(early_config.known_args_namespace, "trnsim_nki_version", None)
    install_modules(version)
    if version:
        os.environ["TRNSIM_NKI_VERSION"] = version
    plugins = [p for p in os.environ.get("PYTEST_PLUGINS", "").split(",") if p]
    if _OURS not in plugins:
        os.environ["PYTEST_PLUGINS"] = ",".join([*plugins, _OURS])


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    install_modules()
    chip = config.getoption("--trnsim-chip", None)
    if chip:
        from trnsim.compat import simulator

        simulator.default_chip = chip
        os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", chip)
    if hasattr(config, "workerinput"):
        _done.update(config.workerinput.get("trnsim_done", ()))
    else:
        summary = _Summary(config)
        _done.update(summary.tests)
        config.pluginmanager.register(summary, "trnsim-summary")
    gib = config.getoption("--trnsim-memory", 0) or 0
    if gib:
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30), resource.getrlimit(resource.RLIMIT_AS)[1]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what a run before this one has done; every worker was told the same, also one that replaces another."""
    left = [item for item in items if item.nodeid not in _done]
    if len(left) < len(items):
        _counts["done_before"] = len(items) - len(left)
        items[:] = left


def pytest_collection_finish(session: pytest.Session) -> None:
    _counts["collected"] = len(session.items) + _counts["done_before"]


def pytest_deselected(items: list[pytest.Item]) -> None:
    _counts["deselected"] += len(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Make a test that draws from the global generators repeatable."""
    seed = item.config.getoption("--trnsim-seed", None)
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the suite draws from the global generator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Bound the time of one test, set-up and tear-down included."""
    try:
        return (yield from _bounded(item))
    finally:
        give_memory_back()


def _bounded(item: pytest.Item) -> Generator[None, Any, Any]:
    seconds = item.config.getoption("--trnsim-timeout", 0) or 0
    if not seconds or not hasattr(signal, "SIGALRM"):
        return (yield)

    def expired(signum: int, frame: Any) -> None:
        del signum, frame
        _late.add(item.nodeid)
        pytest.fail(f"trnsim: the test took longer than {seconds:g} s", pytrace=False)

    before = signal.signal(signal.SIGALRM, expired)
    # Again every second: an exception raised while an object is being destroyed is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def give_memory_back(above: int = _MUCH_MEMORY) -> None:
    """Free what a test left, if the process holds more than ``above`` bytes: workers share a machine's memory.

    pytest keeps the last failure, whose frames hold its arrays, until the next test; cycles wait for Python's
    collector; and the allocator keeps freed pages, which within a test is what makes it fast.
    """
    if not _STATUS.exists():
        return
    resident = int(_STATUS.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident <= above:
        return
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report: Any = yield
    report.trnsim_marks = sorted({mark.name for mark in item.iter_markers()})
    report.trnsim_simulated, report.trnsim_peak = _simulated(), _peak_bytes()
    if call.when == "call" and item.nodeid in _late and report.outcome != "failed":
        report.outcome, report.longrepr = "failed", "trnsim: the test took too long, and caught that"
    if call.excinfo is not None and report.outcome == "failed":
        report.trnsim_reason = _reason(call.excinfo.value)
    return report


_simulated_before = 0.0


def _simulated() -> float:
    """Seconds in kernels since the last call."""
    global _simulated_before
    session = sys.modules.get("trnsim.session")
    now = session.stopwatch.seconds if session is not None else 0.0
    before, _simulated_before = _simulated_before, now
    return now - before


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["trnsim"] = {**_counts, "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reason(error: BaseException) -> str:
    """The error a failure began with, by its class and first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:400]


class _Summary:
    """What the main process adds up from the reports of all workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.file = config.getoption("--trnsim-json", None)
        self.started = self.written = time.time()
        self.workers: list[dict[str, int]] = []
        self.tests: dict[str, dict[str, Any]] = {}
        self.collection_errors: dict[str, str] = {}
        self.peak = 0
        self.before = 0.0  # seconds of the runs that this one resumes
        if config.getoption("--trnsim-resume", False):
            self._resume()

    def _resume(self) -> None:
        """Take over what is in the file, if there is one."""
        if not self.file:
            raise pytest.UsageError("--trnsim-resume goes on with the file of --trnsim-json, which is not given")
        if not Path(self.file).exists():
            return
        try:
            known = json.loads(Path(self.file).read_text(encoding="utf-8"))
            self.tests, self.before = known["tests"], float(known["wall_seconds"])
            self.peak = int(known["peak_bytes_a_process"])
        except (ValueError, KeyError, TypeError) as error:
            raise pytest.UsageError(f"--trnsim-resume: {self.file} is no file of --trnsim-json: {error!r}") from error

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["trnsim_done"] = sorted(_done)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            lines = str(report.longrepr).strip().splitlines()
            self.collection_errors[report.nodeid] = lines[-1] if lines else ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        found = getattr(node, "workeroutput", {}).get("trnsim")
        if found:
            self.workers.append(found)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        entry = self.tests.setdefault(
            report.nodeid,
            {"outcome": "passed", "seconds": 0.0, "simulated": 0.0, "marks": getattr(report, "trnsim_marks", [])},
        )
        entry["seconds"] += report.duration
        entry["simulated"] += getattr(report, "trnsim_simulated", 0.0)
        peak = getattr(report, "trnsim_peak", 0)
        if peak > self.peak:
            self.peak = entry["peak_bytes"] = peak
        if report.failed:
            entry["outcome"] = "failed"
            entry["reason"] = getattr(report, "trnsim_reason", "") or str(report.longrepr)[-400:]
        elif report.skipped and entry["outcome"] != "failed":
            place, reason = _skip(report)
            if hasattr(report, "wasxfail"):
                entry["outcome"] = "xfailed"
            else:
                entry["outcome"] = "skipped by trnsim" if "trnsim" in place else "skipped by the suite"
            entry["reason"] = reason
        elif report.when == "call" and hasattr(report, "wasxfail"):
            entry["outcome"] = "xpassed"
        if time.time() - self.written > _EVERY:
            self.pytest_sessionfinish()

    def pytest_sessionfinish(self) -> None:
        """Write the file; also now and then before, so that a run that is killed leaves what it had."""
        self.written = time.time()
        if self.file:
            write_text_atomic(self.file, json.dumps(self.summary(), indent=1, sort_keys=True) + "\n")

    def summary(self) -> dict[str, Any]:
        """Counts, and every test that did not pass with its reason; times in seconds."""
        known = self.workers or [{**_counts, "peak_bytes": _peak_bytes()}]
        outcomes: dict[str, int] = {}
        for entry in self.tests.values():
            outcomes[entry["outcome"]] = outcomes.get(entry["outcome"], 0) + 1
        return {
            "collected": max(w["collected"] for w in known),
            "deselected": max(w["deselected"] for w in known),
            "done_before": max(w["done_before"] for w in known),
            "run": sum(outcomes.get(o, 0) for o in ("passed", "failed", "xfailed", "xpassed")),
            **{o: outcomes.get(o, 0) for o in ("passed", "failed", "xfailed", "xpassed")},
            "skipped_by_suite": outcomes.get("skipped by the suite", 0),
            "skipped_by_trnsim": outcomes.get("skipped by trnsim", 0),
            "collection_errors": self.collection_errors,
            "peak_bytes_a_process": max(self.peak, *(w["peak_bytes"] for w in known)),
            "seconds_in_tests": round(sum(e["seconds"] for e in self.tests.values()), 1),
            "seconds_in_kernels": round(sum(e["simulated"] for e in self.tests.values()), 1),
            "wall_seconds": round(self.before + time.time() - self.started, 1),
            "tests": {
                name: {**entry, "seconds": round(entry["seconds"], 3), "simulated": round(entry["simulated"], 3)}
                for name, entry in sorted(self.tests.items())
            },
        }


def _skip(report: pytest.TestReport) -> tuple[str, str]:
    if isinstance(report.longrepr, tuple):
        path, _, reason = report.longrepr
        return str(path), str(reason)
    return "", str(report.longrepr)[-400:]
