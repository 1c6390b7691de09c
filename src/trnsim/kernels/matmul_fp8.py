"""Matrix multiplication in 8-bit floats at twice the rate of bfloat16 (double rows, NeuronCore-v3 on).

The array takes two rows of the contraction at once, a pair in a partition. Blocks are those of ``matmul``, with twice
its contraction: the same bytes. Scales multiply the float32 sums of the last block.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels import matmul as blocked
from trnsim.kernels.blocks import in_pairs
from trnsim.kernels.tiles import share
from trnsim.nki import language as nl

BLOCK_M, BLOCK_N, BLOCK_K = blocked.BLOCK_M, blocked.BLOCK_N, 2 * blocked.BLOCK_K
TILE_K, TILE_M, TILE_N = 256, 128, 512
KEPT_BYTES = blocked.KEPT_BYTES


@nki.jit
def matmul_fp8(
    lhs: Any,
    rhs: Any,
    lhs_scale: Any = None,
    rhs_scale: Any = None,
    dtype: Any = nl.bfloat16,
    contract_lhs: int = 0,
    contract_rhs: int = 0,
) -> Any:
    """The product of two matrices of 8-bit floats over the dimension that each names, times scales.

    Args:
        lhs: [K, M], or [M, K] with ``contract_lhs=1``, in HBM, float8_e4m3, float8_e5m2 or, on NeuronCore-v4,
            float8_e4m3fn; K even.
        rhs: [K, N], or [N, K] with ``contract_rhs=1``, the same or another of these; float8_e4m3 and float8_e4m3fn do
            not mix.
        lhs_scale: of rows of the result, [M, 1] in float32; None: 1.
        rhs_scale: of columns of the result, [1, N] in float32; None: 1.
        dtype: of the result.
        contract_lhs, contract_rhs: which dimension is the contraction; 1 costs a transposition by the DMA engines, two
            elements at a time.

    Returns:
        [M, N], accumulated in float32. Multiples of 256 (K), 128 (M) and 512 (N) run best.
    """
    k_size, m_size = lhs.shape[contract_lhs], lhs.shape[1 - contract_lhs]
    n_size = rhs.shape[1 - contract_rhs]
    assert rhs.shape[contract_rhs] == k_size, f"lhs contracts {k_size} elements, rhs {rhs.shape[contract_rhs]}"
    assert k_size % 2 == 0, f"a contraction of {k_size} elements is odd"
    assert lhs_scale is None or lhs_scale.shape == (m_size, 1), f"lhs_scale is not {(m_size, 1)}"
    assert rhs_scale is None or rhs_scale.shape == (1, n_size), f"rhs_scale is not {(1, n_size)}"
    result = nl.ndarray((m_size, n_size), dtype=dtype, buffer=nl.shared_hbm)
    columns, rows = (0, n_size), (0, m_size)
    if n_size >= m_size:
        columns = share(n_size, TILE_N)
    else:
        rows = share(m_size, TILE_M)
    left, right = in_pairs(lhs, contract_lhs), in_pairs(rhs, contract_rhs)
    formats, scales = (lhs.dtype, rhs.dtype), (lhs_scale, rhs_scale)
    blocked.multiply(result, left, right, (contract_lhs, contract_rhs), rows, columns, formats, scales)
    return result
