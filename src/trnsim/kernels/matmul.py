"""Matrix multiplication with blocks that stay in SBUF.

A block of the result, 2,048 x 1,024 at most, is built over blocks of 1,024 of the contraction: each product of 128 x
512 accumulates in PSUM over one block of the contraction and is then added to what SBUF holds, in float32. So a column
of either operand that comes from HBM is used for 1,024 or 2,048 columns of the other, which TensorE needs longer for
than the DMAs. Two cores share the longer side of the result.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.blocks import TILE_K, TILE_M, TILE_N, columns_of, load_block
from trnsim.kernels.contract import Axis, Contract, Problem, Sizes
from trnsim.kernels.shapes import array, moved
from trnsim.kernels.tiles import pieces, share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.numerics import as_dtype

BLOCK_M, BLOCK_N, BLOCK_K = 2048, 1024, 1024
# Bytes a partition that columns of rhs may hold while all rows of lhs pass.
KEPT_BYTES = 64 * 1024


@nki.jit
def matmul(lhs: Any, rhs: Any, contract_lhs: int = 0, contract_rhs: int = 0, by_column: int | None = None) -> Any:
    """The product of two matrices over the dimension that each names.

    Args:
        lhs: [K, M], or [M, K] with ``contract_lhs=1``, in HBM, of any format that TensorE multiplies.
        rhs: [K, N], or [N, K] with ``contract_rhs=1``, in HBM, of the same format.
        contract_lhs: which dimension of ``lhs`` is the contraction. TensorE wants it in the partitions: 1 costs a
            transposition of all that is loaded, by the DMA engines (two bytes, NeuronCore-v3 on) or on TensorE.
        contract_rhs: the same of ``rhs``.
        by_column: whether cores share columns (1) or rows (0) of the result; None: whichever are more.

    Returns:
        [M, N] in that format, accumulated in float32. Any sizes; multiples of 128 (K, M) and 512 (N) run best.
    """
    k_size, m_size = lhs.shape[contract_lhs], lhs.shape[1 - contract_lhs]
    n_size = rhs.shape[1 - contract_rhs]
    assert k_size == rhs.shape[contract_rhs], f"lhs contracts {k_size} elements, rhs {rhs.shape[contract_rhs]}"
    result = nl.ndarray((m_size, n_size), dtype=lhs.dtype, buffer=nl.shared_hbm)
    columns, rows = (0, n_size), (0, m_size)
    if n_size >= m_size if by_column is None else by_column:
        columns = share(n_size, TILE_N)
    else:
        rows = share(m_size, TILE_M)
    multiply(result, lhs, rhs, (contract_lhs, contract_rhs), rows, columns)
    return result


def multiply(
    result: Any,
    lhs: Any,
    rhs: Any,
    contract: tuple[int, int],
    rows: tuple[int, int],
    columns: tuple[int, int],
    pairs: tuple[Any, Any] = (None, None),
    scales: tuple[Any, Any] = (None, None),
) -> None:
    """Rows and columns (first, last) of ``matmul``'s result.

    Args:
        pairs: formats of the elements of ``lhs`` and ``rhs`` where these are pairs of 8-bit floats (``in_pairs``).
        scales: of rows, [M, 1], and of columns, [1, N], float32 in HBM, of the result; None: 1.
    """
    k_size = lhs.shape[contract[0]]
    depths = pieces(0, k_size, BLOCK_K)
    keep = k_size // TILE_K * BLOCK_N * (4 if lhs.dtype == nl.float32 else 2) <= KEPT_BYTES
    mode = nisa.matmul_perf_mode.none if pairs[0] is None else nisa.matmul_perf_mode.double_row
    scaled = scales[0] is not None or scales[1] is not None
    for n_first, n_length in pieces(columns[0], columns[1], BLOCK_N):
        kept: list[Any] = []
        factors = _column_scales(scales[1], n_first, n_length)
        for m_first, m_length in pieces(rows[0], rows[1], BLOCK_M):
            sums: list[Any] = []
            for block, (k_first, k_length) in enumerate(depths):
                if not keep or len(kept) == block:  # not before: what comes first is multiplied first
                    kept.append(load_block(rhs, contract[1], k_first, k_length, n_first, n_length, pairs[1]))
                right = kept[block] if keep else kept.pop()
                left = load_block(lhs, contract[0], k_first, k_length, m_first, m_length, pairs[0])
                last = block == len(depths) - 1
                kind = result.dtype if last and not scaled else nl.float32
                partial, sums = sums, []
                for m, m_tile in pieces(0, m_length, TILE_M):
                    for n, n_tile in pieces(0, n_length, TILE_N):
                        product = nl.ndarray((m_tile, n_tile), dtype=nl.float32, buffer=nl.psum)
                        for k in range(len(left[0])):
                            nisa.nc_matmul(
                                dst=product,
                                stationary=columns_of(left, k, m, m_tile, pairs[0]),
                                moving=columns_of(right, k, n, n_tile, pairs[1]),
                                perf_mode=mode,
                            )
                        total = nl.ndarray((m_tile, n_tile), dtype=kind, buffer=nl.sbuf)
                        if block:
                            nisa.tensor_tensor(dst=total, data1=product, data2=partial[len(sums)], op=nl.add)
                        else:
                            nisa.tensor_copy(dst=total, src=product)
                        sums.append(total)
                        if last:
                            row, column = m_first + m, n_first + n
                            if scaled:
                                total = _apply_scales(total, scales[0], factors, row, n, result.dtype)
                            nisa.dma_copy(dst=result[row : row + m_tile, column : column + n_tile], src=total)


def _column_scales(scale: Any, first: int, length: int) -> Any:
    """Scales of some columns in all partitions, or None."""
    if scale is None:
        return None
    factors = nl.ndarray((TILE_M, length), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=factors, src=scale[:, first : first + length].broadcast(0, TILE_M))
    return factors


def _apply_scales(total: Any, row_scale: Any, factors: Any, row: int, column: int, dtype: Any) -> Any:
    """A tile of the result, times the scales of its rows and columns."""
    rows, columns = total.shape
    scaled = nl.ndarray((rows, columns), dtype=dtype, buffer=nl.sbuf)
    one: Any = 1.0
    if row_scale is not None:
        one = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=one, src=row_scale[row : row + rows, :])
    if factors is None:
        nisa.tensor_scalar(dst=scaled, data=total, op0=nl.multiply, operand0=one)
    else:
        nisa.scalar_tensor_tensor(
            dst=scaled,
            data=total,
            op0=nl.multiply,
            operand0=one,
            op1=nl.multiply,
            operand1=factors[0:rows, column : column + columns],
        )
    return scaled


def _arguments(problem: Problem) -> tuple[Any, ...]:
    m, k, n = (problem.sizes[name] for name in "mkn")
    contract_lhs, contract_rhs = problem.options["contract_lhs"], problem.options["contract_rhs"]
    lhs, rhs = ((m, k) if contract_lhs else (k, m)), ((n, k) if contract_rhs else (k, n))
    by_column = problem.sizes.get("by_column")
    return array(*lhs, dtype=problem.dtype), array(*rhs, dtype=problem.dtype), contract_lhs, contract_rhs, by_column


def shares_columns(problem: Problem) -> Any:
    """Whether cores share the columns of the result."""
    return (problem.sizes["n"] >= problem.sizes["m"]) | (problem.cores == 1)


def same_sides(problem: Problem, coordinates: Sizes) -> Sizes:
    """Sizes of a sample, which cores share as they do the problem."""
    sizes = {**problem.sizes, **coordinates}
    return {**sizes, "by_column": int(shares_columns(problem))} if problem.cores > 1 else sizes


def sides(problem: Problem, block_m: int, block_n: int, grain: int = 1) -> tuple[Axis, Axis]:
    """Rows (multiples of ``grain``) and columns of the result; cores share one. Columns are cut as finely as rows."""
    by_column, by_row = (problem.cores, 1) if shares_columns(problem) else (1, problem.cores)
    return (
        Axis("m", TILE_M * by_row, block_m * by_row, low=grain, grain=grain),
        Axis("n", TILE_M * by_column, block_n * by_column, low=128, grain=64),
    )


def keeps(problem: Problem, name: str = "k") -> Any:
    """Whether columns of rhs stay while all rows of lhs pass."""
    return problem.sizes[name] < _kept_depth(problem) + TILE_K


def _kept_depth(problem: Problem) -> int:
    return KEPT_BYTES // (BLOCK_N * as_dtype(problem.dtype).itemsize) * TILE_K


def depth_axis(problem: Problem, name: str = "k") -> Axis:
    """The contraction, where columns of rhs stay and where they do not."""
    limit = _kept_depth(problem) + TILE_K
    if keeps(problem, name):
        return Axis(name, TILE_K, BLOCK_K, low=TILE_K, high=limit - 1, grain=64)
    return Axis(name, TILE_K, BLOCK_K, low=limit, grain=64)


def _axes(problem: Problem) -> tuple[Axis, ...]:
    rows, columns = sides(problem, BLOCK_M, BLOCK_N)
    return rows, depth_axis(problem), columns


CONTRACT = Contract(
    name="matmul",
    kernel=matmul,
    sizes=("m", "k", "n"),
    options={"contract_lhs": (0, 1), "contract_rhs": (0, 1)},
    arguments=_arguments,
    axes=_axes,
    regime=lambda p: (shares_columns(p), keeps(p)),
    placed=same_sides,
    flops=lambda p: 2 * p.sizes["m"] * p.sizes["k"] * p.sizes["n"],
    bytes=lambda p: moved(p, p.sizes["m"] * p.sizes["k"], p.sizes["k"] * p.sizes["n"], p.sizes["m"] * p.sizes["n"]),
    summary="lhs.T @ rhs; either transposed",
)
CONTRACTS = (CONTRACT,)
