"""Matrix multiplication with blocks that stay in SBUF.

A block of the result, 2,048 x 1,024 at most, is built over blocks of 1,024 of the contraction: each product of 128 x
512 accumulates in PSUM over one block of the contraction and is then added to what SBUF holds, in float32. So a column
of either operand that comes from HBM is used for 1,024 or 2,048 columns of the other, which TensorE needs longer for
than the DMAs. Two cores share the longer side of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Contract, Problem
from trnsim.kernels.tiles import item_bytes, load_to_all, pieces, share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.numerics import as_dtype
from trnsim.session import ShapeOnly

BLOCK_M, BLOCK_N, BLOCK_K = 2048, 1024, 1024
TILE_K, TILE_M, TILE_N = 128, 128, 512
TOGETHER = 4  # blocks of 128 of the contraction that a DMA loads
# Bytes a partition that columns of rhs may hold while all rows of lhs pass.
KEPT_BYTES = 64 * 1024


@nki.jit
def matmul(lhs: Any, rhs: Any, contract_lhs: int = 0, contract_rhs: int = 0) -> Any:
    """The product of two matrices over the dimension that each names.

    Args:
        lhs: [K, M], or [M, K] with ``contract_lhs=1``, in HBM, of any format that TensorE multiplies.
        rhs: [K, N], or [N, K] with ``contract_rhs=1``, in HBM, of the same format.
        contract_lhs: which dimension of ``lhs`` is the contraction. TensorE wants it in the partitions: 1 costs a
            transposition of all that is loaded, by the DMA engines (two bytes, NeuronCore-v3 on) or on TensorE.
        contract_rhs: the same of ``rhs``.

    Returns:
        [M, N] in that format, accumulated in float32. Any sizes; multiples of 128 (K, M) and 512 (N) run best.
    """
    k_size, m_size = lhs.shape[contract_lhs], lhs.shape[1 - contract_lhs]
    n_size = rhs.shape[1 - contract_rhs]
    assert k_size == rhs.shape[contract_rhs], f"lhs contracts {k_size} elements, rhs {rhs.shape[contract_rhs]}"
    result = nl.ndarray((m_size, n_size), dtype=lhs.dtype, buffer=nl.shared_hbm)
    columns, rows = (0, n_size), (0, m_size)
    if n_size >= m_size:
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
    bias: Any = None,
) -> None:
    """Rows and columns (first, last) of ``matmul``'s result, plus ``bias``, [N] in HBM, if there is one."""
    k_size = lhs.shape[contract[0]]
    depths = pieces(0, k_size, BLOCK_K)
    keep = k_size // TILE_K * BLOCK_N * (4 if lhs.dtype == nl.float32 else 2) <= KEPT_BYTES
    for n_first, n_length in pieces(columns[0], columns[1], BLOCK_N):
        kept: list[Any] = []
        offsets = load_to_all(bias[n_first : n_first + n_length]) if bias is not None else None
        for m_first, m_length in pieces(rows[0], rows[1], BLOCK_M):
            sums: list[Any] = []
            for block, (k_first, k_length) in enumerate(depths):
                if not keep or len(kept) == block:  # not before: what comes first is multiplied first
                    kept.append(load_block(rhs, contract[1], k_first, k_length, n_first, n_length))
                right = kept[block] if keep else kept.pop()
                left = load_block(lhs, contract[0], k_first, k_length, m_first, m_length)
                last = block == len(depths) - 1
                partial, sums = sums, []
                for m, m_tile in pieces(0, m_length, TILE_M):
                    for n, n_tile in pieces(0, n_length, TILE_N):
                        product = nl.ndarray((m_tile, n_tile), dtype=nl.float32, buffer=nl.psum)
                        for k in range(len(left[0])):
                            nisa.nc_matmul(
                                dst=product,
                                stationary=columns_of(left, k, m, m_tile),
                                moving=columns_of(right, k, n, n_tile),
                            )
                        total = nl.ndarray((m_tile, n_tile), dtype=lhs.dtype if last else nl.float32, buffer=nl.sbuf)
                        if block:
                            nisa.tensor_tensor(dst=total, data1=product, data2=partial[len(sums)], op=nl.add)
                        elif offsets is not None:
                            nisa.tensor_tensor(
                                dst=total, data1=product, data2=offsets[0:m_tile, n : n + n_tile], op=nl.add
                            )
                        else:
                            nisa.tensor_copy(dst=total, src=product)
                        sums.append(total)
                        if last:
                            row, column = m_first + m, n_first + n
                            nisa.dma_copy(dst=result[row : row + m_tile, column : column + n_tile], src=total)


def load_block(source: Any, contract: int, k_first: int, k_length: int, first: int, length: int) -> list[list[Any]]:
    """A block in SBUF: for each 512 of its columns, tiles of [128 of the contraction, columns].

    With ``contract=1`` the rows of ``source`` are transposed on the way: by the DMA engines where they can (two bytes,
    NeuronCore-v3 on, sixteen rows), else by TensorE.
    """
    depths = pieces(0, k_length, TILE_K)
    by_dma = nisa.get_nc_version() >= nisa.nc_version.gen3 and item_bytes(source.dtype) == 2
    groups = []
    for at, size in pieces(first, first + length, TILE_N):  # a tile for each, whose place is free as soon as it is used
        tile = nl.ndarray((TILE_K, len(depths), size), dtype=source.dtype, buffer=nl.sbuf)
        sixteens = size // 16 * 16 if by_dma else 0
        if contract == 0:
            _load_rows(tile, source, k_first, k_length, at)
            sixteens = size
        for part, rows in pieces(0, sixteens, TILE_M) if contract else []:
            _transpose_by_dma(tile[:, :, part : part + rows], source, at + part, k_first, k_length)
        if sixteens < size:
            _transpose_by_tensor(tile[:, :, sixteens:size], source, at + sixteens, k_first, k_length)
        groups.append([tile[0:k_tile, number, :] for number, (_, k_tile) in enumerate(depths)])
    return groups


def _load_rows(tile: Any, source: Any, k_first: int, k_length: int, at: int) -> None:
    """Columns of ``source`` from ``at`` on to ``tile``, [128 of the contraction, blocks of it, columns]."""
    size, whole = tile.shape[2], k_length // TILE_K
    for block, count in pieces(0, whole, TOGETHER):
        k = k_first + block * TILE_K
        rows = source[k : k + count * TILE_K, at : at + size].reshape_dim(0, (count, TILE_K))
        nisa.dma_copy(dst=tile[:, block : block + count, :], src=rows.permute((1, 0, 2)))
    rest = k_length - whole * TILE_K
    if rest:
        here = source[k_first + whole * TILE_K : k_first + k_length, at : at + size]
        nisa.dma_copy(dst=tile[0:rest, whole, :], src=here)


def columns_of(block: list[list[Any]], k: int, at: int, size: int) -> Any:
    """Columns of a block's tile ``k`` that do not cross a multiple of 512."""
    return block[at // TILE_N][k][:, at % TILE_N : at % TILE_N + size]


def _transpose_by_dma(turned: Any, source: Any, first: int, k_first: int, k_length: int) -> None:
    """Rows of ``source`` from ``first`` on to ``turned``, [128 of the contraction, blocks of it, rows]."""
    rows, whole = turned.shape[2], k_length // TILE_K
    here = source[first : first + rows, k_first : k_first + k_length]
    if whole:
        nisa.dma_transpose(dst=turned[:, 0:whole, :], src=here[:, 0 : whole * TILE_K].reshape_dim(1, (whole, TILE_K)))
    if k_length > whole * TILE_K:
        rest = k_length - whole * TILE_K
        nisa.dma_transpose(dst=turned[0:rest, whole, :], src=here[:, whole * TILE_K : k_length])


def _transpose_by_tensor(turned: Any, source: Any, first: int, k_first: int, k_length: int) -> None:
    """The same, up to 512 rows: a bank of PSUM at a time."""
    length = turned.shape[2]
    rows = []
    for part, size in pieces(0, length, TILE_M):
        row = nl.ndarray((size, k_length), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=row, src=source[first + part : first + part + size, k_first : k_first + k_length])
        rows.append(row)
    for number, (k, k_tile) in enumerate(pieces(0, k_length, TILE_K)):
        bank = nl.ndarray((k_tile, length), dtype=source.dtype, buffer=nl.psum)
        for index, (part, size) in enumerate(pieces(0, length, TILE_M)):
            nisa.nc_transpose(dst=bank[:, part : part + size], data=rows[index][:, k : k + k_tile])
        nisa.tensor_copy(dst=turned[0:k_tile, number, :], src=bank)


def _shares_columns(problem: Problem) -> bool:
    return problem.sizes["n"] >= problem.sizes["m"]


def _arguments(problem: Problem) -> tuple[Any, ...]:
    m, k, n = (problem.sizes[name] for name in "mkn")
    contract_lhs, contract_rhs = problem.options["contract_lhs"], problem.options["contract_rhs"]
    dtype = as_dtype(problem.dtype)
    lhs, rhs = ((m, k) if contract_lhs else (k, m)), ((n, k) if contract_rhs else (k, n))
    return ShapeOnly(lhs, dtype), ShapeOnly(rhs, dtype), contract_lhs, contract_rhs


def _blocks(problem: Problem) -> Mapping[str, int]:
    columns = _shares_columns(problem)
    blocks = {
        "m": BLOCK_M * (1 if columns else problem.cores),
        "n": BLOCK_N * (problem.cores if columns else 1),
    }
    return blocks if _keeps(problem) else {**blocks, "k": BLOCK_K}


def _keeps(problem: Problem) -> bool:
    return problem.sizes["k"] // TILE_K * BLOCK_N * (4 if problem.dtype == "float32" else 2) <= KEPT_BYTES


CONTRACT = Contract(
    name="matmul",
    kernel=matmul,
    sizes=("m", "k", "n"),
    dtypes=("bfloat16", "float16", "float32"),
    options={"contract_lhs": (0, 1), "contract_rhs": (0, 1)},
    arguments=_arguments,
    blocks=_blocks,
    regime=lambda problem: (_shares_columns(problem), _keeps(problem)),
    flops=lambda p: 2 * p.sizes["m"] * p.sizes["k"] * p.sizes["n"],
    bytes=lambda p: (
        (p.sizes["m"] * p.sizes["k"] + p.sizes["k"] * p.sizes["n"] + p.sizes["m"] * p.sizes["n"])
        * as_dtype(p.dtype).itemsize
    ),
)
