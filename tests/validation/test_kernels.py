"""What ``trnsim validate kernels`` finds, family by family; each needs the checkout that it names.

A bound is the error that was found, with room for small changes of the model; targets that are not met are strict
expected failures, with the measured figure.
"""

from __future__ import annotations

import os

import pytest

from trnsim.validation import checkouts
from trnsim.validation.cases import Selection, of_family, select
from trnsim.validation.report import runnable, validation
from trnsim.validation.rows import read_rows
from trnsim.validation.run import run_cases

ROOTS = checkouts.roots({})


def compare(family):
    chosen = Selection(tuple(of_family(select(read_rows()).cases, family)), ())
    ready, not_run = runnable(chosen, ROOTS)
    if not_run:
        pytest.skip(not_run[0][1])
    results = run_cases(ready, ROOTS, max(1, (os.cpu_count() or 2) // 2), lambda *_: None)
    found = validation(chosen, not_run, results, 0.0)
    assert not found.failed
    return found.families[0]


@pytest.fixture(scope="module")
def families():
    found = {}
    return lambda name: found[name] if name in found else found.setdefault(name, compare(name))


BOUNDS = {
    "matmul, SDK how-to, trn2": 0.08,
    "matmul, KernelTune, trn2": 0.08,
    "matmul, nki-autotune, trn2": 0.09,
    "mlp_tkg, nki-library, trn2": 0.09,
    "relu, Tilebench, trn2": 0.03,
    "matrix copy, Tilebench, trn2": 0.03,
    "softmax, Tilebench, trn2": 0.05,
    "rmsnorm, Tilebench, trn2": 0.14,
    "batched matmul, Tilebench, trn2": 0.08,
    "interleave, Tilebench, trn2": 0.07,
    "rope, Tilebench, trn2": 0.12,
    "quantize global, Tilebench, trn2": 0.06,
    "jacobi stencil 2d, Tilebench, trn2": 0.07,
    "reverse array, Tilebench, trn2": 0.14,
    "rmsnorm_tkg, nki-library, trn2": 0.15,
    "rmsnorm_quant, nki-library, trn2": 0.17,
    "attention_cte, nki-library, trn2": 0.09,
    "qkv_tkg, nki-library, trn2": 0.19,
    "convolution, asst4-trainium2, trn2": 0.02,
    "convolution, asst4-trainium, trn1": 0.08,
    "matmul, SDK tutorial, trn1": 0.08,
    "matmul, autocomp, trn1": 0.12,
    "attention, autocomp, trn1": 0.18,
    "attention, head of 64, autocomp, trn1": 0.09,
    "layernorm, autocomp, trn1": 0.14,
    "selective scan, autocomp, trn1": 0.05,
    "norm and product, AccelOpt, trn1": 0.09,
    "mlp, AccelOpt, trn1": 0.06,
}
NAIVE = (
    "matmul, KernelTune, trn2", "qkv_tkg, nki-library, trn2", "matmul, SDK tutorial, trn1", "attention, autocomp, trn1",
    "attention, head of 64, autocomp, trn1", "selective scan, autocomp, trn1", "matmul, nki-autotune, trn2",
    "mlp_tkg, nki-library, trn2", "attention_cte, nki-library, trn2", "relu, Tilebench, trn2",
    "matrix copy, Tilebench, trn2", "softmax, Tilebench, trn2", "rmsnorm, Tilebench, trn2", "swiglu, Tilebench, trn2",
    "batched matmul, Tilebench, trn2", "matmul fp32 fp16 fp8, Tilebench, trn2", "jacobi stencil 2d, Tilebench, trn2",
    "interleave, Tilebench, trn2", "reverse array, Tilebench, trn2", "rope, Tilebench, trn2",
    "quantize global, Tilebench, trn2", "kl divergence, Tilebench, trn2", "dequantize rowwise, Tilebench, trn2",
    "moe topk gating, Tilebench, trn2",
)  # fmt: skip

LIBRARY = ("mlp_cte", "qkv_tkg", "mlp_tkg", "rmsnorm_tkg", "rmsnorm_quant", "attention_cte")


@pytest.mark.parametrize("name", BOUNDS)
def test_mean_error(name, families):
    assert families(name).ours.mape <= BOUNDS[name]


@pytest.mark.parametrize(
    "name",
    [
        *NAIVE,
        pytest.param(
            "rmsnorm_tkg, nki-library, trn2", marks=pytest.mark.xfail(reason="13.1 % against 9.5", strict=True)
        ),
        pytest.param(
            "rmsnorm_quant, nki-library, trn2", marks=pytest.mark.xfail(reason="15.0 % against 10.9", strict=True)
        ),
        pytest.param("matmul, autocomp, trn1", marks=pytest.mark.xfail(reason="10.6 % against 9.1", strict=True)),
    ],
)
def test_better_than_the_naive_models(name, families):
    found = families(name)
    assert found.ours.mape < min(found.busiest.mape, found.sum.mape)


@pytest.mark.parametrize(
    ("name", "measure", "target"),
    [
        pytest.param("matmul, SDK how-to, trn2", "mape", 0.08),
        pytest.param("matmul, SDK how-to, trn2", "worst", 0.20),
        pytest.param("matmul, KernelTune, trn2", "mape", 0.08),
        pytest.param(
            "matmul, KernelTune, trn2", "worst", 0.20, marks=pytest.mark.xfail(reason="20.4 %, 1/1/1", strict=True)
        ),
        pytest.param("matmul, nki-autotune, trn2", "mape", 0.08),
        pytest.param(
            "matmul, nki-autotune, trn2",
            "worst",
            0.20,
            marks=pytest.mark.xfail(reason="28.9 %, two products", strict=True),
        ),
        *(pytest.param(f"{kernel}, nki-library, trn2", "mape", 0.20) for kernel in LIBRARY),
    ],
)
def test_targets(name, measure, target, families):
    assert getattr(families(name).ours, measure) <= target


@pytest.mark.parametrize(
    "name", ["qkv_tkg, nki-library, trn2", "matmul, KernelTune, trn2", "matmul, nki-autotune, trn2"]
)
def test_kernels_are_ranked(name, families):
    assert families(name).ours.pairs_in_order >= 0.95


def test_what_an_attention_kernel_spills():
    """bmm_softmax of NKIBench: its profile on trn1 counts 756.5 MB loaded and 753.7 MB stored."""
    (case,) = [c for c in of_family(select(read_rows()).cases, "attention, AccelOpt") if "bmm_softmax" in c.name]
    reason = runnable(Selection((case,), ()), ROOTS)[1]
    if reason:
        pytest.skip(reason[0][1])
    from trnsim.validation.run import _launch

    totals = _launch(case, case.recipe.calls[0], ROOTS, frozenset()).timeline.totals
    inputs, outputs = 2 * 16 * 4096 * 64 * 4, 16 * 4096 * 4096 * 4
    assert totals.hbm_read_bytes - inputs == pytest.approx(756.5e6, rel=0.05)
    assert totals.hbm_write_bytes - outputs == pytest.approx(753.7e6, rel=0.05)
