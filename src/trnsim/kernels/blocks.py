"""Blocks of matrices in SBUF, with the contraction in partitions, as TensorE multiplies them.

A block is loaded 512 columns at a time, each in a tile of its own: products begin with the first of them, and its place
is free as soon as it is used. What has the contraction in its rows in HBM is loaded as it lies; what has it in its
columns is transposed on the way, by the DMA engines where they can (two bytes, NeuronCore-v3 on), else by TensorE. They
take sixteen rows at a time: where there are others, the last sixteen are transposed besides, some of them again.

Operands of double rows (8-bit floats) have two elements of the contraction in a partition, neighbours in HBM. As pairs
they lie [contraction / 2, 2, columns] there, or, transposed, as integers of 16 bits, which DMA engines transpose.
"""

from __future__ import annotations

from typing import Any

from trnsim.kernels.tiles import item_bytes, pieces
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

TILE_K, TILE_M, TILE_N = 128, 128, 512
TOGETHER = 4  # blocks of 128 of the contraction that a DMA loads


def in_pairs(source: Any, contract: int) -> Any:
    """A matrix of 8-bit floats in HBM as pairs of its contraction, which is its dimension ``contract``."""
    if contract == 1:
        return source.view(nl.uint16)
    return source.reshape((source.shape[0] // 2, 2, source.shape[1]))


def load_block(
    source: Any,
    contract: int,
    k_first: int,
    k_length: int,
    first: int,
    length: int,
    pairs: Any = None,
    group: int = TILE_N,
    together: int = TOGETHER,
    in_order: bool = False,
) -> list[list[Any]]:
    """A block in SBUF: for each ``group`` of its columns, tiles of [128 of the contraction, columns].

    Args:
        source: a matrix in HBM, or what ``in_pairs`` makes of it.
        contract: the dimension of the contraction.
        k_first, k_length: of the contraction, in pairs where there are any.
        first, length: columns of the block.
        pairs: format of elements of pairs, None if there are none; tiles are [128, 2, columns] then.
        group, together: how many columns, and blocks of 128 of the contraction, a DMA loads of what lies as it should.
        in_order: all by SyncE's ring (NeuronCore-v3 on), one DMA after the other.
    """
    depths = pieces(0, k_length, TILE_K)
    by_dma = nisa.get_nc_version() >= nisa.nc_version.gen3 and item_bytes(source.dtype) == 2
    groups = []
    for at, size in pieces(first, first + length, group):
        if contract == 0:
            shape = (TILE_K, len(depths), size) if pairs is None else (TILE_K, len(depths), 2, size)
            tile = nl.ndarray(shape, dtype=source.dtype, buffer=nl.sbuf)
            _load_rows(tile, source, k_first, k_length, at, size, together, in_order)
        else:
            tile = nl.ndarray((TILE_K, len(depths), size), dtype=source.dtype, buffer=nl.sbuf)
            sixteens = size // 16 * 16 if by_dma else 0
            for part, rows in pieces(0, sixteens, TILE_M):
                _transpose_by_dma(tile[:, :, part : part + rows], source, at + part, k_first, k_length)
            if 0 < sixteens < size:  # the last sixteen, some of them again
                _transpose_by_dma(tile[:, :, size - 16 : size], source, at + size - 16, k_first, k_length)
            elif sixteens < size:
                _transpose_by_tensor(tile, source, at, k_first, k_length)
            if pairs is not None:
                tile = tile.view(pairs).reshape((TILE_K, len(depths), size, 2)).permute((0, 1, 3, 2))
        if pairs is None:
            groups.append([tile[0:k_tile, number, :] for number, (_, k_tile) in enumerate(depths)])
        else:
            groups.append([tile[0:k_tile, number, :, :] for number, (_, k_tile) in enumerate(depths)])
    return groups


def columns_of(block: list[list[Any]], k: int, at: int, size: int, pairs: Any = None) -> Any:
    """Columns of a block's tile ``k`` that do not cross a multiple of its ``group``."""
    group = block[0][k].shape[-1]
    tile, at = block[at // group][k], at % group
    return tile[:, at : at + size] if pairs is None else tile[:, :, at : at + size]


def _load_rows(
    tile: Any, source: Any, k_first: int, k_length: int, at: int, size: int, together: int, in_order: bool
) -> None:
    """``size`` columns of ``source`` from ``at`` on to ``tile``, [128 of the contraction, blocks of it, columns]."""
    ring = {}
    if in_order:
        ring = {"dge_mode": nisa.dge_mode.hwdge, "engine": nisa.engine.sync}
    whole = k_length // TILE_K
    paired = len(source.shape) == 3
    for block, count in pieces(0, whole, together):
        k = k_first + block * TILE_K
        last = k + count * TILE_K
        here = source[k:last, :, at : at + size] if paired else source[k:last, at : at + size]
        here = here.reshape_dim(0, (count, TILE_K)).permute((1, 0, 2, 3) if paired else (1, 0, 2))
        nisa.dma_copy(dst=tile[:, block : block + count], src=here, **ring)
    rest = k_length - whole * TILE_K
    if rest:
        k, last = k_first + whole * TILE_K, k_first + k_length
        here = source[k:last, :, at : at + size] if paired else source[k:last, at : at + size]
        nisa.dma_copy(dst=tile[0:rest, whole], src=here, **ring)


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
