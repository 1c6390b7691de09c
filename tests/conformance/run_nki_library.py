"""Run nki-library's own suite on trnsim, from a checkout of d2ad3a5 or 0759719; see docs/dev/conformance.md.

A repaired copy is made in a temporary directory (``repair_nki_library.py``); the checkout is not touched. It runs with
the release of NKI that the commit was published for.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from repair_nki_library import release_of, repair

from trnsim.report.files import write_bytes_atomic

_KEPT_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="a clone of aws-neuron/nki-library")
    parser.add_argument("--chip", default="trn2", choices=["trn2", "trn3"])
    parser.add_argument("--json", type=Path, required=True, help="where the counts go")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--nki-version", help="a release of NKI other than that of the commit")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a test")
    parser.add_argument("--resume", action="store_true", help="go on with the run whose counts are in --json")
    parser.add_argument(
        "--release-memory", action="store_true", help="give freed memory back at once: slower, and tests hold less"
    )
    parser.add_argument(
        "--record", type=Path, help="the counts as .xz, written at the end; --resume starts from it without --json"
    )
    parser.add_argument("--memory", type=float, default=0, help="address space of a process, GiB (default: no limit)")
    parser.add_argument("rest", nargs="*", default=[], help="tests to run, relative to the checkout (default: test)")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    if options.resume and options.record and options.record.exists() and not options.json.exists():
        options.json.write_bytes(lzma.decompress(options.record.read_bytes()))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "nki-library"
        for file, reason in repair(options.checkout, copy):
            print(f"repaired {file}: {reason}")
        environment = {
            **os.environ,
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
            ),  # the suite runs ruff
            "PYTHONPATH": os.pathsep.join(
                [str(copy / "src"), str(copy), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "PYTHONHASHSEED": "0",
            "NEURON_PYTHONHASHSEED": "0",
        }
        # Memory that is freed stays with the process: the suite makes arrays of gigabytes one after the other, and the
        # pages that the system would clear for each anew are close to half of its time (glibc alone reads these).
        # One thread a worker (the suite says so when its libraries have already started more): the many small products
        # of a kernel lose more by waiting for a second one than the large ones gain, thirty times beside other work.
        # Under a limit it is given back: one test that runs into the limit would leave too little for all after it.
        kept = {} if options.release_memory or options.memory else _KEPT_MEMORY
        for name, value in {**kept, **dict.fromkeys(_THREADS, "1")}.items():
            environment.setdefault(name, value)
        # The suite skips tests of the attention block that it estimates above this, 20 GiB each if it is not told. What
        # they take is up to three times the estimate.
        environment.setdefault("TEST_ATTN_BLK_TKG_MAX_MEMORY_GB", f"{_memory() / max(1, options.workers) / 4:.1f}")
        command = [
            sys.executable, "-m", "pytest", "-p", "trnsim", "-p", "no:cacheprovider", "-q",
            "--test-mode", "simulation", "--platform-target", options.chip, "--force-local-cleanup",
            "--output-directory", str(Path(scratch) / "out"), "--trnsim-timeout", str(options.timeout),
            "--trnsim-nki-version", options.nki_version or release_of(options.checkout),
            "--trnsim-json", str(options.json.resolve()),
            *(["--trnsim-resume"] if options.resume else []),
            *(["--trnsim-memory", str(options.memory)] if options.memory else []),
            *(["-n", str(options.workers), "--dist", "worksteal"] if options.workers else []),
            *(options.rest or ["test"]),
        ]  # fmt: skip
        status = subprocess.run(command, cwd=copy, env=environment, check=False).returncode
    if options.json.is_file():
        if options.record:
            options.record.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(options.record, lzma.compress(options.json.read_bytes(), preset=9))
        print(report(json.loads(options.json.read_text(encoding="utf-8")), options.chip))
    return status


def _memory() -> float:
    """Memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def report(found: dict[str, Any], chip: str) -> str:
    """Counts, and what failed, grouped by its reason. Tests that the suite marks trace-only compile: they are apart."""
    tests = found["tests"]
    outcomes = Counter(t["outcome"] for t in tests.values() if "trace_only" not in t["marks"])
    ran = outcomes["passed"] + outcomes["failed"]
    share = 100 * outcomes["passed"] / max(1, ran)
    compiled = sum("trace_only" in t["marks"] for t in tests.values())
    lines = [
        f"nki-library on {chip}: {outcomes['passed']} of {ran} passed ({share:.2f} %), {outcomes['failed']} failed",
        f"skipped by the suite {outcomes['skipped by the suite']}, by trnsim {outcomes['skipped by trnsim']}; "
        f"xfailed {outcomes['xfailed']}; trace-only {compiled}",
        f"{found['wall_seconds']:.0f} s; of {found['seconds_in_tests']:.0f} s in tests "
        f"{found['seconds_in_kernels']:.0f} s in kernels; "
        f"peak memory of a process {found['peak_bytes_a_process'] / 2**30:.1f} GiB",
    ]
    reasons = Counter(
        t.get("reason", "") for t in tests.values() if t["outcome"] == "failed" and "trace_only" not in t["marks"]
    )
    for reason, count in reasons.most_common():
        example = next(n for n, t in tests.items() if t["outcome"] == "failed" and t.get("reason", "") == reason)
        lines.append(f"{count:5} {reason}\n      {example}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
