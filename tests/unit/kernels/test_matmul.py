"""Our matmul against NumPy, over drawn shapes, formats and layouts."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim.hardware import load_chip
from trnsim.kernels.matmul import matmul

# Largest error over the largest result: half a step of the format, and float32 sums in another order.
FORMATS = {np.dtype(np.float32): 1e-6, np.dtype(ml_dtypes.bfloat16): 2**-8, np.dtype(np.float16): 2**-11}


@given(
    st.integers(1, 1300), st.integers(1, 300), st.integers(1, 700), st.sampled_from(list(FORMATS)),
    st.integers(0, 1), st.integers(0, 1), st.sampled_from([("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 2)]),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_results(k, m, n, dtype, contract_lhs, contract_rhs, where):
    chip, cores = where
    rng = np.random.default_rng(k * m + n)
    lhs = rng.standard_normal((m, k) if contract_lhs else (k, m)).astype(dtype)
    rhs = rng.standard_normal((n, k) if contract_rhs else (k, n)).astype(dtype)
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    found = trnsim.simulate(matmul[cores], lhs, rhs, contract_lhs, contract_rhs, options=options)
    left = lhs.astype(np.float64) if contract_lhs else lhs.astype(np.float64).T
    right = rhs.astype(np.float64).T if contract_rhs else rhs.astype(np.float64)
    wanted = left @ right
    assert np.asarray(found).dtype == dtype
    error = np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max()
    assert error <= 1.01 * FORMATS[dtype] + 1e-6


def test_sizes_that_do_not_fit():
    with pytest.raises(AssertionError, match="lhs contracts 128 elements, rhs 256"):
        trnsim.simulate(matmul, np.zeros((128, 8), np.float32), np.zeros((256, 8), np.float32))


@pytest.mark.parametrize(("chip", "cores"), [("trn2", 1), ("trn2", 2), ("trn3", 2)])
def test_share_of_peak(chip, cores):
    """At 4096^3 in bfloat16 at least 85 % of TensorE's rate, by our own timing."""
    size = 4096
    data = np.zeros((size, size), ml_dtypes.bfloat16)
    options = trnsim.SimulationOptions(chip=chip, numeric=False)
    call = trnsim.profile(matmul[cores], data, data, options=options)
    peak = load_chip(chip).core.tensor.flops("bfloat16") * cores
    assert 2 * size**3 / (call.timeline.total_ps * 1e-12) >= 0.85 * peak
