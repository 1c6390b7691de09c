"""Predictions against published measurements of the four matrix multiplications of the SDK's tutorial."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import trnsim
from trnsim.hardware import load_chip, load_timing


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
golden = _load("validation_golden", HERE / "golden.py")
cases = _load("conformance_cases", HERE.parent / "conformance" / "cases.py")

needs_sdk = pytest.mark.skipif(
    cases.ROOTS["sdk"] is None, reason="TRNSIM_SDK does not name a checkout of the public kernels"
)


@pytest.fixture(scope="module")
def predicted():
    options = trnsim.SimulationOptions(chip="trn2", numeric=False, clock="span")
    with cases.public_module("sdk", golden.MATMUL) as module:
        return {
            m.kernel: trnsim.profile(
                getattr(module, m.kernel), "f32[2048,2048]", "f32[2048,2048]", options=options
            ).timeline
            for m in golden.GOLDEN
        }


@needs_sdk
@pytest.mark.parametrize("measured", golden.GOLDEN, ids=lambda m: m.kernel)
def test_within_a_quarter(measured, predicted):
    time = predicted[measured.kernel].total_ps / 1e6
    assert abs(time / measured.microseconds - 1) <= 0.25


@needs_sdk
@pytest.mark.xfail(reason="block_free_dimension is predicted -10.8 %, 1 % before fully_optimized (+1.7)", strict=True)
def test_in_the_right_order(predicted):
    times = [predicted[m.kernel].total_ps for m in sorted(golden.GOLDEN, key=lambda m: m.microseconds)]
    assert times == sorted(times)


@needs_sdk
def test_the_mean_error_is_no_more_than_the_one_that_reports_show(predicted):
    errors = [abs(predicted[m.kernel].total_ps / 1e6 / m.microseconds - 1) for m in golden.GOLDEN]
    shown = load_timing(load_chip("trn2")).error_percent
    assert 100 * sum(errors) / len(errors) <= shown
    assert load_timing(load_chip("trn3")).error_percent is None


@needs_sdk
def test_tiled_moves_the_bytes_that_were_measured(predicted):
    totals = predicted["nki_matmul_tiled_"].totals
    assert totals.hbm_read_bytes + totals.hbm_write_bytes == 318_767_104
