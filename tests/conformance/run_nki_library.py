"""Run nki-library's own suite on trnsim, from a checkout of commit d2ad3a5; see docs/dev/conformance.md.

A repaired copy is made in a temporary directory (``repair_nki_library.py``); the checkout is not touched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from repair_nki_library import repair


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="a clone of aws-neuron/nki-library")
    parser.add_argument("--chip", default="trn2", choices=["trn2", "trn3"])
    parser.add_argument("--json", type=Path, required=True, help="where the counts go")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a test")
    parser.add_argument("rest", nargs="*", default=[], help="tests to run, relative to the checkout (default: test)")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "nki-library"
        for file, reason in repair(options.checkout, copy):
            print(f"repaired {file}: {reason}")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(copy / "src"), str(copy), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "PYTHONHASHSEED": "0",
            "NEURON_PYTHONHASHSEED": "0",
        }
        command = [
            sys.executable, "-m", "pytest", "-p", "trnsim", "-p", "no:cacheprovider", "-q",
            "--test-mode", "simulation", "--platform-target", options.chip, "--force-local-cleanup",
            "--output-directory", str(Path(scratch) / "out"), "--trnsim-timeout", str(options.timeout),
            "--trnsim-json", str(options.json.resolve()), *(["-n", str(options.workers)] if options.workers else []),
            *(options.rest or ["test"]),
        ]  # fmt: skip
        return subprocess.run(command, cwd=copy, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
