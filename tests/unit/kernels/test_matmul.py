"""Our matmul against NumPy, over drawn shapes, formats and layouts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import BF16, assert_close, drawn, dtypes, normal, places, run, share_of_peak

import trnsim
from trnsim.kernels.matmul import matmul


@given(
    st.integers(1, 1300), st.integers(1, 300), st.integers(1, 700), dtypes, st.integers(0, 1), st.integers(0, 1), places
)  # fmt: skip
@drawn(20)
def test_results(k, m, n, dtype, contract_lhs, contract_rhs, where):
    lhs = normal(1, (m, k) if contract_lhs else (k, m), dtype)
    rhs = normal(2, (n, k) if contract_rhs else (k, n), dtype)
    found = run(matmul, where, lhs, rhs, contract_lhs, contract_rhs)
    left = lhs.astype(np.float64) if contract_lhs else lhs.astype(np.float64).T
    right = rhs.astype(np.float64).T if contract_rhs else rhs.astype(np.float64)
    assert_close(found, left @ right, dtype, 1.01)


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("contract", [(0, 0), (1, 1)])
@pytest.mark.parametrize("where", [("trn1", 1), ("trn2", 2)])
def test_many_blocks(where, contract, kept, monkeypatch):
    """Several blocks each way, smaller ones than usual, the last not whole; rhs that stays and that does not."""
    for name, value in (("BLOCK_M", 256), ("BLOCK_N", 512), ("BLOCK_K", 256), ("KEPT_BYTES", kept)):
        monkeypatch.setattr(f"trnsim.kernels.matmul.{name}", value)
    lhs, rhs = normal(1, (700, 600) if contract[0] else (600, 700), BF16), normal(2, (1100, 600), BF16)
    wanted = (lhs if contract[0] else lhs.T).astype(np.float64) @ rhs.astype(np.float64).T
    found = run(matmul, where, lhs, rhs if contract[1] else np.ascontiguousarray(rhs.T), *contract)
    assert_close(found, wanted, BF16, 1.01)


def test_sizes_that_do_not_fit():
    with pytest.raises(AssertionError, match="lhs contracts 128 elements, rhs 256"):
        trnsim.simulate(matmul, np.zeros((128, 8), np.float32), np.zeros((256, 8), np.float32))


@pytest.mark.parametrize("contract", [(0, 0), (1, 1)])
@pytest.mark.parametrize("where", [("trn2", 1), ("trn2", 2), ("trn3", 2)])
def test_share_of_peak(where, contract):
    """At 4096^3 in bfloat16, however the operands lie."""
    data = np.zeros((4096, 4096), BF16)
    assert share_of_peak(matmul, where, "bfloat16", 2 * 4096**3, data, data, *contract) >= 0.94
