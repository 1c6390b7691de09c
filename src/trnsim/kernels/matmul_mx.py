"""Matrix multiplication of microscaled operands, MXFP8 or MXFP4, at four times the rate of bfloat16 (NeuronCore-v4).

An element in SBUF packs four of the contraction, so a product of 128 partitions contracts 512. A scale serves 32 of
them: 8 partitions; the scales of 32 partitions lie in the first four. Blocks are those of ``matmul``, half
as long and four times as deep, and loaded a step ahead.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Axis, Contract, Limit, Problem
from trnsim.kernels.matmul import same_sides, shares_columns, sides
from trnsim.kernels.shapes import array
from trnsim.kernels.tiles import pieces, share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

BLOCK_M, BLOCK_N, BLOCK_K = 1024, 1024, 1024  # K in packed rows
TILE_K, TILE_M, TILE_N = 128, 128, 512
QUADRANT, SCALES = 32, 4  # partitions, and those of them that hold scales
# Bytes a partition that columns of rhs may hold while all rows of lhs pass.
KEPT_BYTES = 64 * 1024


@nki.jit
def matmul_mx(
    lhs: Any,
    lhs_scale: Any,
    rhs: Any,
    rhs_scale: Any,
    lhs_format: str,
    rhs_format: str,
    dtype: Any = nl.bfloat16,
    by_column: int | None = None,
) -> Any:
    """lhs.T @ rhs of MX operands.

    Args:
        lhs: [K / 4, M] in HBM, fours of the contraction packed in an element of ``lhs_format``, or an unsigned integer
            of its size. K a multiple of 128, M even.
        lhs_scale: [K / 32, M] uint8, encodings of float8_e8m0fnu.
        rhs: [K / 4, N], packed as ``rhs_format``.
        rhs_scale: [K / 32, N] uint8.
        lhs_format: ``float8_e4m3fn_x4``, ``float8_e5m2_x4`` or ``float4_e2m1fn_x4``.
        rhs_format: the same or another.
        dtype: of the result.
        by_column: whether cores share columns (1) or rows (0) of the result; None: whichever are more.

    Returns:
        [M, N], accumulated in float32.
    """
    k_size, m_size = lhs.shape
    n_size = rhs.shape[1]
    assert rhs.shape[0] == k_size, f"lhs contracts {4 * k_size} elements, rhs {4 * rhs.shape[0]}"
    assert k_size % QUADRANT == 0, f"a contraction of {4 * k_size} elements is no multiple of {4 * QUADRANT}"
    assert m_size % 2 == 0, f"{m_size} columns of lhs are odd"
    assert lhs_scale.shape == (k_size // 8, m_size), f"lhs_scale is {lhs_scale.shape}, not {(k_size // 8, m_size)}"
    assert rhs_scale.shape == (k_size // 8, n_size), f"rhs_scale is {rhs_scale.shape}, not {(k_size // 8, n_size)}"
    left_format, right_format = _format(lhs_format), _format(rhs_format)
    lhs = lhs if lhs.dtype == left_format else lhs.view(left_format)
    rhs = rhs if rhs.dtype == right_format else rhs.view(right_format)
    result = nl.ndarray((m_size, n_size), dtype=dtype, buffer=nl.shared_hbm)
    columns, rows = (0, n_size), (0, m_size)
    if n_size >= m_size if by_column is None else by_column:
        columns = share(n_size, TILE_N)
    else:
        rows = share(m_size, TILE_M)
    depths = pieces(0, k_size, BLOCK_K)
    keep = -(-k_size // TILE_K) * BLOCK_N * 5 <= KEPT_BYTES
    steps = []
    for n_first, n_length in pieces(columns[0], columns[1], BLOCK_N):
        for m_first, m_length in pieces(rows[0], rows[1], BLOCK_M):
            for k_first, k_length in depths:
                new = not keep or m_first == rows[0]
                steps.append((n_first, n_length, m_first, m_length, k_first, k_length, new))
    loaded: list[Any] = []  # operands of this step and the next: TensorE is too fast for loads that begin with a step
    kept: list[Any] = []
    sums: list[Any] = []
    for number in range(len(steps) + 1):
        if number < len(steps):
            n_first, n_length, m_first, m_length, k_first, k_length, new = steps[number]
            left = _load(lhs, lhs_scale, k_first, k_length, m_first, m_length)
            if new:
                kept.append(_load(rhs, rhs_scale, k_first, k_length, n_first, n_length))
                kept = kept[-2 * len(depths) :]
            right = kept[-1] if new else kept[len(kept) - len(depths) + k_first // BLOCK_K]
            loaded.append((left, right))
        if number > 0:
            left, right = loaded.pop(0)
            sums = _multiply(steps[number - 1], left, right, sums, k_size, result)
    return result


def _multiply(step: Any, left: list[Any], right: list[Any], partial: list[Any], k_size: int, result: Any) -> list[Any]:
    """Products of a block, added to those of the blocks of the contraction before it; the last go to ``result``."""
    n_first, n_length, m_first, m_length, k_first, k_length, _ = step
    last = k_first + k_length == k_size
    sums: list[Any] = []
    for m, m_tile in pieces(0, m_length, TILE_M):
        for n, n_tile in pieces(0, n_length, TILE_N):
            product = nl.ndarray((m_tile, n_tile), dtype=nl.float32, buffer=nl.psum)
            for k in range(len(left)):
                nisa.nc_matmul_mx(
                    dst=product,
                    stationary=left[k][0][:, m : m + m_tile],
                    moving=right[k][0][:, n : n + n_tile],
                    stationary_scale=left[k][1][:, m : m + m_tile],
                    moving_scale=right[k][1][:, n : n + n_tile],
                )
            total = nl.ndarray((m_tile, n_tile), dtype=result.dtype if last else nl.float32, buffer=nl.sbuf)
            if k_first:
                nisa.tensor_tensor(dst=total, data1=product, data2=partial[len(sums)], op=nl.add)
            else:
                nisa.tensor_copy(dst=total, src=product)
            sums.append(total)
            if last:
                row, column = m_first + m, n_first + n
                nisa.dma_copy(dst=result[row : row + m_tile, column : column + n_tile], src=total)
    return sums


def _format(name: str) -> Any:
    formats = {
        "float8_e4m3fn_x4": nl.float8_e4m3fn_x4,
        "float8_e5m2_x4": nl.float8_e5m2_x4,
        "float4_e2m1fn_x4": nl.float4_e2m1fn_x4,
    }
    assert name in formats, f"{name!r} is no packed format: float8_e4m3fn_x4, float8_e5m2_x4, float4_e2m1fn_x4"
    return formats[name]


def _load(source: Any, scale: Any, k_first: int, k_length: int, first: int, length: int) -> list[Any]:
    """[data, scales] of tiles of a block in SBUF, [128, length] each."""
    tiles = []
    whole = k_length // TILE_K
    if whole:
        scales = nl.ndarray((TILE_K, whole, length), dtype=nl.uint8, buffer=nl.sbuf)
        each = TILE_K // 8
        rows = scale[k_first // 8 : k_first // 8 + whole * each, first : first + length]
        rows = rows.reshape_dim(0, (whole, each)).permute((1, 0, 2))
        for quadrant in range(TILE_K // QUADRANT):
            at = quadrant * QUADRANT
            nisa.dma_copy(dst=scales[at : at + SCALES, :, :], src=rows[quadrant * SCALES : (quadrant + 1) * SCALES])
        for number in range(whole):
            tile = nl.ndarray((TILE_K, length), dtype=source.dtype, buffer=nl.sbuf)
            k = k_first + number * TILE_K
            nisa.dma_copy(dst=tile, src=source[k : k + TILE_K, first : first + length])
            tiles.append([tile, scales[:, number, :]])
    rest = k_length - whole * TILE_K
    if rest:
        k = k_first + whole * TILE_K
        scales = nl.ndarray((rest, length), dtype=nl.uint8, buffer=nl.sbuf)
        for quadrant in range(rest // QUADRANT):
            row = k // 8 + quadrant * SCALES
            at = quadrant * QUADRANT
            nisa.dma_copy(dst=scales[at : at + SCALES, :], src=scale[row : row + SCALES, first : first + length])
        tile = nl.ndarray((rest, length), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=source[k : k + rest, first : first + length])
        tiles.append([tile, scales])
    return tiles


_PACKED = ("float8_e4m3fn_x4", "float8_e5m2_x4", "float4_e2m1fn_x4")
_FOUR = 4  # elements in a packed one
_LIMIT = _FOUR * TILE_K * (KEPT_BYTES // (5 * BLOCK_N)) + 1


def _keeps(problem: Problem) -> Any:
    return problem.sizes["k"] < _LIMIT


def _axes(problem: Problem) -> tuple[Axis, ...]:
    rows, columns = sides(problem, BLOCK_M, BLOCK_N, grain=2)
    tile, block = _FOUR * TILE_K, _FOUR * BLOCK_K
    if _keeps(problem):
        return rows, Axis("k", tile, block, low=128, high=_LIMIT - 1, grain=128), columns
    return rows, Axis("k", tile, block, low=_LIMIT, grain=128), columns


def _arguments(problem: Problem) -> tuple[Any, ...]:
    m, k, n = (problem.sizes[name] for name in "mkn")
    packed, name = problem.dtype, str(problem.dtype)
    lhs, rhs = array(k // 4, m, dtype=packed), array(k // 4, n, dtype=packed)
    left, right = array(k // 32, m, dtype="uint8"), array(k // 32, n, dtype="uint8")
    return lhs, left, rhs, right, name, name, nl.bfloat16, problem.sizes.get("by_column")


CONTRACTS = (
    Contract(
        name="matmul_mx",
        kernel=matmul_mx,
        sizes=("m", "k", "n"),
        dtypes={"v2": (), "v3": (), "v4": _PACKED},
        limits=lambda _: {"k": Limit(low=128, multiple=128), "m": Limit(low=2, multiple=2)},
        arguments=_arguments,
        regime=lambda p: (shares_columns(p), _keeps(p)),
        axes=_axes,
        placed=same_sides,
        flops=lambda p: 2 * p.sizes["m"] * p.sizes["k"] * p.sizes["n"],
        bytes=lambda p: (
            (p.sizes["m"] + p.sizes["n"]) * p.sizes["k"] * (17 if "float4" in p.dtype else 33) // 32
            + 2 * p.sizes["m"] * p.sizes["n"]
        ),
        summary="lhs.T @ rhs of MXFP8 or MXFP4, to bfloat16",
    ),
)
