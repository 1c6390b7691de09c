"""Every public tutorial kernel of NKI 0.6 runs unmodified and computes what its reference says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import trnsim
from trnsim.errors import HardwareError

_SPEC = importlib.util.spec_from_file_location("conformance_cases", Path(__file__).with_name("cases.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
cases = importlib.util.module_from_spec(_SPEC)
import sys  # noqa: E402

sys.modules["conformance_cases"] = cases
_SPEC.loader.exec_module(cases)


def needs(source):
    return pytest.mark.skipif(
        cases.ROOTS[source] is None,
        reason=f"{cases.VARIABLES[source]} does not name a checkout of the public kernels",
    )


@pytest.mark.parametrize("case", [pytest.param(c, marks=needs(c.source), id=c.name) for c in cases.CASES])
def test_kernel(case):
    arguments = case.arguments(np.random.default_rng(0))
    with cases.public_module(case.source, case.file) as module:
        session = trnsim.Session(trnsim.SimulationOptions(chip=case.chip))
        with session.active():
            result = getattr(module, case.kernel)(*arguments)
    expected = case.reference(*arguments)
    assert cases.largest_error(result, expected) <= case.tolerance
    call = session.calls[-1]
    assert call.timeline.total_ps > 0
    assert not [f for f in call.findings if f.kind == "uninitialized-read"]


@needs("sdk")
def test_layout_violation_fails_with_our_error():
    with cases.public_module("sdk", f"{cases.EXAMPLES}/layout-violation.py") as module:
        with pytest.raises(HardwareError, match="partition size 256 exceeds 128") as caught:
            trnsim.simulate(module.tensor_exp_kernel_, np.ones((256, 512), np.float32))
    assert caught.value.location.file.endswith("layout-violation.py")
    assert caught.value.location.line == 18


@needs("sdk")
@pytest.mark.parametrize(
    "script",
    ["simulate/nki_simulate_example.py", "getting_started_baremetal.py",
     "average_pool2d/average_pool2d_nki_kernels.py", "transpose2d/transpose2d_nki_kernels.py"],
)  # fmt: skip
def test_script_runs_from_the_command_line(script, capfd):
    from trnsim import cli

    status = cli._guarded(lambda: cli.app(["run", str(Path(cases.ROOTS["sdk"]) / cases.EXAMPLES / script)]))
    assert status == 0
    assert "us" in capfd.readouterr().out
