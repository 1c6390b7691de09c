"""Print, as Markdown, every public tutorial kernel: chip, result against its reference, predicted time.

``TRNSIM_SDK=... TRNSIM_SAMPLES=... python scripts/conformance_table.py > docs/conformance.md``
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np

import trnsim
from trnsim.errors import HardwareError

ROOT = Path(__file__).parents[1]


def load(name, path):
    """A test helper as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cases = load("conformance_cases", ROOT / "tests/conformance/cases.py")


def run(case):
    """Error against the reference, and the record of the call."""
    arguments = case.arguments(np.random.default_rng(0))
    with cases.public_module(case.source, case.file) as module:
        session = trnsim.Session(trnsim.SimulationOptions(chip=case.chip))
        with session.active():
            result = getattr(module, case.kernel)(*arguments)
    return cases.largest_error(result, case.reference(*arguments)), session.calls[-1]


def main():
    """Print the page."""
    print("# Public tutorial kernels\n")
    print("Written by `scripts/conformance_table.py`. Kernels run unmodified from local checkouts: `sdk` is")
    print("aws-neuron-sdk (NKI 0.6 examples), `samples` is nki-samples at 6905a68. The error is the largest difference")
    print("from a reference written here, over the largest value; time is the predicted kernel time.\n")
    print("| kernel | chip | arguments | error | allowed | result | time | support |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases.CASES:
        error, call = run(case)
        name = f"{case.source}: {Path(case.file).name} `{case.kernel}`" + (f" ({case.note})" if case.note else "")
        shapes = ", ".join(a for a in call.arguments if " " in a)
        verdict = "passes" if error <= case.tolerance else "**fails**"
        time = f"{call.timeline.total_ps / 1e6:,.1f} us"
        cells = (name, case.chip, shapes, f"{error:.1e}", f"{case.tolerance:.0e}", verdict, time, call.support)
        print(f"| {' | '.join(cells)} |")
    with cases.public_module("sdk", f"{cases.EXAMPLES}/layout-violation.py") as module:
        try:
            trnsim.simulate(module.tensor_exp_kernel_, np.ones((256, 512), np.float32))
        except HardwareError as failure:
            name = "sdk: layout-violation.py `tensor_exp_kernel_`"
            print(f"| {name} | trn2 | float32 256x512 | | | must fail, and does: {failure.message} | | |")
    print("\nNot run: `layout-dynamic-loop.py` (a SyntaxError) and `layout-loop.py` (an undefined name).\n")
    print("## Against measurements\n")
    print("[validation.md](validation.md) has predictions beside published measurements, family by family.")


if __name__ == "__main__":
    main()
