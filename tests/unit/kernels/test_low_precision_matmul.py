"""Matmuls of 8-bit floats and of MX operands against NumPy in float64, over drawn shapes and formats."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import BF16, PLACES, assert_close, drawn, normal, run, share_of_peak

import trnsim
from trnsim.errors import HardwareError
from trnsim.kernels.matmul_fp8 import matmul_fp8
from trnsim.kernels.matmul_mx import matmul_mx
from trnsim.numerics import as_dtype, mx

FP8 = [ml_dtypes.float8_e4m3, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn]  # the last on trn3
MX = ["float8_e4m3fn_x4", "float8_e5m2_x4", "float4_e2m1fn_x4"]


@given(
    st.integers(1, 1300), st.integers(1, 300), st.integers(1, 700), st.integers(0, 2), st.integers(0, 2),
    st.booleans(), st.booleans(), st.integers(0, 1), st.integers(0, 1),
    st.sampled_from([place for place in PLACES if place[0] != "trn1"]),
)  # fmt: skip
@drawn(20)
def test_fp8(half, m, n, left, right, scale_rows, scale_columns, contract_lhs, contract_rhs, where):
    left, right = (FP8[number if where[0] == "trn3" else number % 2] for number in (left, right))
    if {left, right} == {FP8[0], FP8[2]}:
        right = left  # these do not mix
    lhs = normal(1, (m, 2 * half) if contract_lhs else (2 * half, m), left)
    rhs = normal(2, (n, 2 * half) if contract_rhs else (2 * half, n), right)
    rng = np.random.default_rng(3)
    row = rng.random((m, 1), np.float32) if scale_rows else None
    column = rng.random((1, n), np.float32) if scale_columns else None
    named = {"contract_lhs": contract_lhs, "contract_rhs": contract_rhs, "label": np.dtype(left).name}
    found = run(matmul_fp8, where, lhs, rhs, row, column, **named)
    one, other = (x.astype(np.float64) for x in (lhs, rhs))
    wanted = (one if contract_lhs else one.T) @ (other.T if contract_rhs else other)
    wanted = wanted * (1 if row is None else row) * (1 if column is None else column)
    assert_close(found, wanted, BF16, 1.01)


@given(
    st.integers(1, 40), st.integers(1, 130), st.integers(1, 700), st.sampled_from(MX), st.sampled_from(MX),
    st.integers(1, 2),
)  # fmt: skip
@drawn(15)
def test_mx(quadrants, half, n, left, right, cores):
    check_mx(32 * quadrants, 2 * half, n, left, right, cores)


def check_mx(rows, m, n, left, right, cores):
    """Products of ``rows`` packed rows."""
    rng = np.random.default_rng(rows * m + n)
    operands, values = [], []
    for columns, name in ((m, left), (n, right)):
        data = rng.standard_normal((rows, 4 * columns)).astype(np.float32)
        packed, scales = mx.quantize(data, as_dtype(name))
        operands += [packed, scales]
        # An element packs four rows of the contraction.
        exact = mx.dequantize(packed, scales, as_dtype(name)).astype(np.float64)
        values.append(exact.reshape(rows, columns, 4).transpose(0, 2, 1).reshape(4 * rows, columns))
    found = run(matmul_mx, ("trn3", cores), *operands, left, right, label=left)
    assert_close(found, values[0].T @ values[1], BF16, 1.01)


@pytest.mark.parametrize("contract", [(0, 1), (1, 0)])
def test_many_blocks_of_fp8(contract, monkeypatch):
    """Several blocks each way, smaller ones than usual, the last not whole, and scales."""
    for name, value in (("BLOCK_M", 256), ("BLOCK_N", 512), ("BLOCK_K", 128), ("KEPT_BYTES", 0)):
        monkeypatch.setattr(f"trnsim.kernels.matmul.{name}", value)
    lhs, rhs = normal(1, (600, 700), FP8[0]), normal(2, (600, 1100), FP8[0])
    scales = (
        np.random.default_rng(3).random((700, 1), np.float32),
        np.random.default_rng(4).random((1, 1100), np.float32),
    )
    given_lhs, given_rhs = (np.ascontiguousarray(x.T) if c else x for x, c in zip((lhs, rhs), contract, strict=True))
    named = {"contract_lhs": contract[0], "contract_rhs": contract[1], "label": "float8_e4m3"}
    found = run(matmul_fp8, ("trn2", 2), given_lhs, given_rhs, *scales, **named)
    wanted = lhs.astype(np.float64).T @ rhs.astype(np.float64) * scales[0] * scales[1]
    assert_close(found, wanted, BF16, 1.01)


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_many_blocks_of_mx(kept, monkeypatch):
    for name, value in (("BLOCK_M", 256), ("BLOCK_N", 512), ("BLOCK_K", 64), ("KEPT_BYTES", kept)):
        monkeypatch.setattr(f"trnsim.kernels.matmul_mx.{name}", value)
    check_mx(160, 600, 1100, MX[0], MX[2], 2)


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
    """At 4096^3."""
    size = 4096
    operand = np.zeros((size // 4, size), integer), np.zeros((size // 32, size), np.uint8)
    assert share_of_peak(matmul_mx, ("trn3", cores), name, 2 * size**3, *operand, *operand, name, name) >= 0.85


@pytest.mark.parametrize("contract", [(0, 0), (1, 1)])
@pytest.mark.parametrize("where", [("trn2", 1), ("trn3", 2)])
def test_share_of_peak(where, contract):
    """At 4096^3, however the operands lie."""
    data = np.zeros((4096, 4096), FP8[0])
    named = dict(zip(("contract_lhs", "contract_rhs"), contract, strict=True))
    assert share_of_peak(matmul_fp8, where, "float8_e4m3", 2 * 4096**3, data, data, **named) >= 0.9
