"""Matmuls of 8-bit floats and of MX operands against NumPy in float64, over drawn shapes and formats."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim.errors import HardwareError
from trnsim.hardware import load_chip
from trnsim.kernels.matmul_fp8 import matmul_fp8
from trnsim.kernels.matmul_mx import matmul_mx
from trnsim.numerics import as_dtype, mx

FP8 = [ml_dtypes.float8_e4m3, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn]  # the last on trn3
MX = ["float8_e4m3fn_x4", "float8_e5m2_x4", "float4_e2m1fn_x4"]
ROUNDED = 1.01 * 2**-8  # of the largest result in bfloat16


@given(
    st.integers(1, 1300), st.integers(1, 300), st.integers(1, 700), st.integers(0, 2), st.integers(0, 2),
    st.booleans(), st.booleans(), st.sampled_from([("trn2", 1), ("trn2", 2), ("trn3", 2)]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_fp8(half, m, n, left, right, scale_rows, scale_columns, where):
    chip, cores = where
    left, right = (FP8[number if chip == "trn3" else number % 2] for number in (left, right))
    if {left, right} == {FP8[0], FP8[2]}:
        right = left  # these do not mix
    rng = np.random.default_rng(half * m + n)
    lhs = rng.standard_normal((2 * half, m)).astype(left)
    rhs = rng.standard_normal((2 * half, n)).astype(right)
    row = rng.random((m, 1), np.float32) if scale_rows else None
    column = rng.random((1, n), np.float32) if scale_columns else None
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    found = np.asarray(trnsim.simulate(matmul_fp8[cores], lhs, rhs, row, column, options=options), np.float64)
    wanted = lhs.astype(np.float64).T @ rhs.astype(np.float64)
    wanted = wanted * (1 if row is None else row) * (1 if column is None else column)
    assert np.abs(found - wanted).max() <= ROUNDED * np.abs(wanted).max() + 1e-6


@given(
    st.integers(1, 40), st.integers(1, 130), st.integers(1, 700), st.sampled_from(MX), st.sampled_from(MX),
    st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_mx(quadrants, half, n, left, right, cores):
    rng = np.random.default_rng(quadrants * half + n)
    rows = 32 * quadrants
    operands, values = [], []
    for columns, name in ((2 * half, left), (n, right)):
        data = rng.standard_normal((rows, 4 * columns)).astype(np.float32)
        packed, scales = mx.quantize(data, as_dtype(name))
        operands += [packed, scales]
        # An element packs four rows of the contraction.
        exact = mx.dequantize(packed, scales, as_dtype(name)).astype(np.float64)
        values.append(exact.reshape(rows, columns, 4).transpose(0, 2, 1).reshape(4 * rows, columns))
    options = trnsim.SimulationOptions(chip="trn3", timed=False)
    found = trnsim.simulate(matmul_mx[cores], *operands, left, right, options=options)
    wanted = values[0].T @ values[1]
    assert np.abs(np.asarray(found, np.float64) - wanted).max() <= ROUNDED * np.abs(wanted).max() + 1e-6


def test_sizes_that_do_not_fit():
    fp8 = ml_dtypes.float8_e5m2
    with pytest.raises(AssertionError, match="lhs contracts 128 elements, rhs 256"):
        trnsim.simulate(matmul_fp8, np.zeros((128, 8), fp8), np.zeros((256, 8), fp8))
    with pytest.raises(AssertionError, match="a contraction of 7 elements is odd"):
        trnsim.simulate(matmul_fp8, np.zeros((7, 8), fp8), np.zeros((7, 8), fp8))
    data, scale = np.zeros((32, 8), np.uint32), np.zeros((4, 8), np.uint8)
    with pytest.raises(AssertionError, match="'float8' is no packed format"):
        trnsim.simulate(matmul_mx, data, scale, data, scale, "float8", MX[0])
    with pytest.raises(AssertionError, match=r"lhs_scale is \(8, 8\), not \(4, 8\)"):
        trnsim.simulate(matmul_mx, data, np.zeros((8, 8), np.uint8), data, scale, MX[0], MX[0])


def test_generations_without_them():
    fp8 = np.zeros((256, 8), ml_dtypes.float8_e5m2)
    with pytest.raises(HardwareError, match="double_row needs NeuronCore-v3"):
        trnsim.simulate(matmul_fp8, fp8, fp8, options=trnsim.SimulationOptions(chip="trn1"))
    data, scale = np.zeros((32, 8), np.uint32), np.zeros((4, 8), np.uint8)
    with pytest.raises(HardwareError, match="NeuronCore-v4"):
        trnsim.simulate(
            matmul_mx, data, scale, data, scale, MX[0], MX[0], options=trnsim.SimulationOptions(chip="trn2")
        )


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("name", "integer"), [("float8_e4m3fn_x4", np.uint32), ("float4_e2m1fn_x4", np.uint16)])
def test_share_of_peak_of_mx(name, integer, cores):
    """At 4096^3 at least 85 % of TensorE's rate for MX operands, by our own timing."""
    size = 4096
    operand = np.zeros((size // 4, size), integer), np.zeros((size // 32, size), np.uint8)
    options = trnsim.SimulationOptions(chip="trn3", numeric=False)
    call = trnsim.profile(matmul_mx[cores], *operand, *operand, name, name, options=options)
    peak = load_chip("trn3").core.tensor.flops(name) * cores
    assert 2 * size**3 / (call.timeline.total_ps * 1e-12) >= 0.85 * peak


@pytest.mark.parametrize(("chip", "cores"), [("trn2", 1), ("trn2", 2), ("trn3", 2)])
def test_share_of_peak(chip, cores):
    """At 4096^3 at least 85 % of TensorE's rate for 8-bit floats, by our own timing."""
    size = 4096
    data = np.zeros((size, size), ml_dtypes.float8_e4m3)
    options = trnsim.SimulationOptions(chip=chip, numeric=False)
    call = trnsim.profile(matmul_fp8[cores], data, data, options=options)
    peak = load_chip(chip).core.tensor.flops("float8_e4m3") * cores
    assert 2 * size**3 / (call.timeline.total_ps * 1e-12) >= 0.85 * peak
