"""Matrix multiplication in 8-bit floats at twice the rate of bfloat16 (double rows, NeuronCore-v3 on).

The array takes two rows of the contraction at once, a pair in a partition. Blocks are those of ``matmul``, with twice
its contraction: the same bytes. Scales multiply the float32 sums of the last block.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels import matmul as blocked
from trnsim.kernels.blocks import in_pairs
from trnsim.kernels.contract import Axis, Contract, Limit, Problem
from trnsim.kernels.matmul import same_sides, shares_columns, sides
from trnsim.kernels.shapes import array
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
    by_column: int | None = None,
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
        by_column: whether cores share columns (1) or rows (0) of the result; None: whichever are more.

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
    if n_size >= m_size if by_column is None else by_column:
        columns = share(n_size, TILE_N)
    else:
        rows = share(m_size, TILE_M)
    left, right = in_pairs(lhs, contract_lhs), in_pairs(rhs, contract_rhs)
    formats, scales = (lhs.dtype, rhs.dtype), (lhs_scale, rhs_scale)
    blocked.multiply(result, left, right, (contract_lhs, contract_rhs), rows, columns, formats, scales)
    return result


_V3 = ("float8_e4m3", "float8_e5m2")
_LIMIT = KEPT_BYTES // (2 * BLOCK_N) * TILE_K + TILE_K


def _keeps(problem: Problem) -> Any:
    return problem.sizes["k"] < _LIMIT


def _axes(problem: Problem) -> tuple[Axis, ...]:
    rows, columns = sides(problem, BLOCK_M, BLOCK_N)
    if _keeps(problem):
        return rows, Axis("k", TILE_K, BLOCK_K, low=128, high=_LIMIT - 1, grain=64), columns
    return rows, Axis("k", TILE_K, BLOCK_K, low=_LIMIT, grain=64), columns


def _arguments(problem: Problem) -> tuple[Any, ...]:
    m, k, n = (problem.sizes[name] for name in "mkn")
    scales: tuple[Any, ...] = (None, None)
    if problem.options["scaled"]:
        scales = array(m, 1, dtype="float32"), array(1, n, dtype="float32")
    contract = problem.options["contract_lhs"], problem.options["contract_rhs"]
    lhs, rhs = ((m, k) if contract[0] else (k, m)), ((n, k) if contract[1] else (k, n))
    operands = array(*lhs, dtype=problem.dtype), array(*rhs, dtype=problem.dtype)
    return *operands, *scales, nl.bfloat16, *contract, problem.sizes.get("by_column")


CONTRACTS = (
    Contract(
        name="matmul_fp8",
        kernel=matmul_fp8,
        sizes=("m", "k", "n"),
        dtypes={"v2": (), "v3": _V3, "v4": (*_V3, "float8_e4m3fn")},
        options={"scaled": (1, 0), "contract_lhs": (0, 1), "contract_rhs": (0, 1)},
        limits=lambda _: {"k": Limit(low=2, multiple=2)},
        arguments=_arguments,
        regime=lambda p: (shares_columns(p), _keeps(p)),
        axes=_axes,
        placed=same_sides,
        flops=lambda p: 2 * p.sizes["m"] * p.sizes["k"] * p.sizes["n"],
        bytes=lambda p: (
            (p.sizes["m"] + p.sizes["n"]) * p.sizes["k"]
            + 2 * p.sizes["m"] * p.sizes["n"]
            + 4 * int(p.options["scaled"]) * (p.sizes["m"] + p.sizes["n"])
        ),
        summary="lhs.T @ rhs in double rows, to bfloat16; either transposed; scales for rows and columns",
    ),
)
