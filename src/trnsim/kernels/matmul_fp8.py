"""Matrix multiplication in 8-bit floats at twice the rate of bfloat16 (double rows, NeuronCore-v3 on).

The array takes two rows of the contraction at once: operands lie as [128, 2, columns]. Blocks are those of ``matmul``,
with twice its contraction: the same bytes. Scales multiply the float32 sums of the last block.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Axis, Contract, Limit, Problem
from trnsim.kernels.matmul import same_sides, shares_columns, sides
from trnsim.kernels.shapes import array
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

BLOCK_M, BLOCK_N, BLOCK_K = 2048, 1024, 2048
TILE_K, TILE_M, TILE_N = 256, 128, 512
# Bytes a partition that columns of rhs may hold while all rows of lhs pass.
KEPT_BYTES = 64 * 1024


def pieces(first: int, last: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of pieces of at most ``size`` from ``first`` to ``last``."""
    return [(at, min(size, last - at)) for at in range(first, last, size)]


def share(total: int, step: int) -> tuple[int, int]:
    """The part of ``total`` that is this core's, a multiple of ``step`` where there are several."""
    cores = nl.num_programs(0)
    part = -(-total // (cores * step)) * step if cores > 1 else total
    first = min(total, nl.program_id(0) * part)
    return first, min(total, first + part)


@nki.jit
def matmul_fp8(
    lhs: Any,
    rhs: Any,
    lhs_scale: Any = None,
    rhs_scale: Any = None,
    dtype: Any = nl.bfloat16,
    by_column: int | None = None,
) -> Any:
    """lhs.T @ rhs of 8-bit floats, times a scale for each row and column.

    Args:
        lhs: [K, M] in HBM, float8_e4m3, float8_e5m2 or, on NeuronCore-v4, float8_e4m3fn; K even.
        rhs: [K, N], the same or another of these; float8_e4m3 and float8_e4m3fn do not mix.
        lhs_scale: [M, 1] in float32; None: 1.
        rhs_scale: [1, N] in float32; None: 1.
        dtype: of the result.
        by_column: whether cores share columns (1) or rows (0) of the result; None: whichever are more.

    Returns:
        [M, N], accumulated in float32. Multiples of 256 (K), 128 (M) and 512 (N) run best.
    """
    k_size, m_size = lhs.shape
    n_size = rhs.shape[1]
    assert rhs.shape[0] == k_size, f"lhs contracts {k_size} elements, rhs {rhs.shape[0]}"
    assert k_size % 2 == 0, f"a contraction of {k_size} elements is odd"
    assert lhs_scale is None or lhs_scale.shape == (m_size, 1), f"lhs_scale is not {(m_size, 1)}"
    assert rhs_scale is None or rhs_scale.shape == (1, n_size), f"rhs_scale is not {(1, n_size)}"
    result = nl.ndarray((m_size, n_size), dtype=dtype, buffer=nl.shared_hbm)
    columns, rows = (0, n_size), (0, m_size)
    if n_size >= m_size if by_column is None else by_column:
        columns = share(n_size, TILE_N)
    else:
        rows = share(m_size, TILE_M)
    depths = pieces(0, k_size, BLOCK_K)
    keep = k_size // TILE_K * 2 * BLOCK_N <= KEPT_BYTES
    for n_first, n_length in pieces(columns[0], columns[1], BLOCK_N):
        kept = [_load(rhs, k, length, n_first, n_length) for k, length in depths] if keep else []
        factors = column_scales(rhs_scale, n_first, n_length)
        for m_first, m_length in pieces(rows[0], rows[1], BLOCK_M):
            sums: list[Any] = []
            for block, (k_first, k_length) in enumerate(depths):
                left = _load(lhs, k_first, k_length, m_first, m_length)
                right = kept[block] if keep else _load(rhs, k_first, k_length, n_first, n_length)
                partial, sums = sums, []
                for m, m_tile in pieces(0, m_length, TILE_M):
                    for n, n_tile in pieces(0, n_length, TILE_N):
                        product = nl.ndarray((m_tile, n_tile), dtype=nl.float32, buffer=nl.psum)
                        for k in range(len(left)):
                            nisa.nc_matmul(
                                dst=product,
                                stationary=left[k][:, :, m : m + m_tile],
                                moving=right[k][:, :, n : n + n_tile],
                                perf_mode=nisa.matmul_perf_mode.double_row,
                            )
                        scaled = block == len(depths) - 1 and (lhs_scale is not None or rhs_scale is not None)
                        total_type = dtype if block == len(depths) - 1 and not scaled else nl.float32
                        total = nl.ndarray((m_tile, n_tile), dtype=total_type, buffer=nl.sbuf)
                        if block:
                            nisa.tensor_tensor(dst=total, data1=product, data2=partial[len(sums)], op=nl.add)
                        else:
                            nisa.tensor_copy(dst=total, src=product)
                        sums.append(total)
                        if block == len(depths) - 1:
                            row, column = m_first + m, n_first + n
                            if scaled:
                                total = apply_scales(total, lhs_scale, factors, row, n, dtype)
                            nisa.dma_copy(dst=result[row : row + m_tile, column : column + n_tile], src=total)
    return result


def column_scales(scale: Any, first: int, length: int) -> Any:
    """Scales of some columns in all partitions, or None."""
    if scale is None:
        return None
    factors = nl.ndarray((TILE_M, length), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=factors, src=scale[:, first : first + length].broadcast(0, TILE_M))
    return factors


def apply_scales(total: Any, row_scale: Any, factors: Any, row: int, column: int, dtype: Any) -> Any:
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


def _load(source: Any, k_first: int, k_length: int, first: int, length: int) -> list[Any]:
    """Tiles of a block, [128, 2 of the contraction, length], in SBUF."""
    tiles = []
    for k, k_tile in pieces(k_first, k_first + k_length, TILE_K):
        tile = nl.ndarray((k_tile // 2, 2, length), dtype=source.dtype, buffer=nl.sbuf)
        rows = source[k : k + k_tile, first : first + length].reshape_dim(0, (2, k_tile // 2))
        nisa.dma_copy(dst=tile, src=rows.permute((1, 0, 2)))
        tiles.append(tile)
    return tiles


_V3 = ("float8_e4m3", "float8_e5m2")
_LIMIT = KEPT_BYTES // (2 * BLOCK_N) * TILE_K + TILE_K


def _keeps(problem: Problem) -> Any:
    return problem.sizes["k"] < _LIMIT


def _axes(problem: Problem) -> tuple[Axis, ...]:
    rows, columns = sides(problem, BLOCK_M, BLOCK_N)
    if _keeps(problem):
        return rows, Axis("k", TILE_K, BLOCK_K, low=TILE_K, high=_LIMIT - 1, grain=128), columns
    return rows, Axis("k", TILE_K, BLOCK_K, low=_LIMIT, grain=128), columns


def _arguments(problem: Problem) -> tuple[Any, ...]:
    m, k, n = (problem.sizes[name] for name in "mkn")
    scales: tuple[Any, ...] = (None, None)
    if problem.options["scaled"]:
        scales = array(m, 1, dtype="float32"), array(1, n, dtype="float32")
    lhs, rhs = array(k, m, dtype=problem.dtype), array(k, n, dtype=problem.dtype)
    return lhs, rhs, *scales, nl.bfloat16, problem.sizes.get("by_column")


CONTRACTS = (
    Contract(
        name="matmul_fp8",
        kernel=matmul_fp8,
        sizes=("m", "k", "n"),
        dtypes={"v2": (), "v3": _V3, "v4": (*_V3, "float8_e4m3fn")},
        options={"scaled": (1, 0)},
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
        summary="lhs.T @ rhs in double rows, to bfloat16; scales for rows and columns",
    ),
)
