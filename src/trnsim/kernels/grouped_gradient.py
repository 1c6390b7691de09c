"""Gradient of the experts' weights: products of the tokens of each expert with the gradients of what came of them.

Blocks of tokens (``expert_blocks``) are the contraction as they lie. An expert's sums grow in SBUF, in float32, from
block to block, and begin anew where the expert changes; what they are after each block goes to HBM, so that the last
stands. Every expert has a block, an empty one if no token is its. Cores share the rows of the weights.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.expert_blocks import ROWS, block_count, check_offsets, gathered, lanes_of, locate, rows_of, tile_of
from trnsim.kernels.tiles import check_format, check_rows, pieces, share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

BANK = 512
# Bytes a partition of the sums of an expert; more columns pass one after the other.
SUM_BYTES = 64 * 1024


@nki.jit
def grouped_weight_gradient(x: Any, gradient: Any, offsets: Any, block: int = 512) -> Any:
    """x[rows of e]^T @ gradient[rows of e] for each expert e, whose rows are offsets[e] to offsets[e + 1].

    Args:
        x: [tokens, K] in HBM, what ``grouped_matmul`` was given; float32, bfloat16 or float16.
        gradient: [tokens, N] of that format, of its result.
        offsets: [1, experts + 1] int32, from 0 to tokens, ascending.
        block: 128, 256 or 512 tokens whose products are added up before they pass through SBUF. 512 experts at most.

    Returns:
        [experts, K, N] in that format, accumulated in float32; zeros for experts without tokens.
    """
    tokens, size = x.shape
    experts, width = offsets.shape[1] - 1, gradient.shape[1]
    check_format("x", x.dtype)
    check_rows("gradient", gradient, (tokens, width), x.dtype)
    check_offsets(offsets, experts, block, tokens)
    result = nl.ndarray((experts, size, width), dtype=x.dtype, buffer=nl.shared_hbm)
    count = block_count(tokens, experts, block, 1)
    blocks, lanes = locate(offsets, experts, block, count, 1), lanes_of()
    goes_on = tile_of(count)  # 1 where a block has the expert of the one before it
    nisa.memset(dst=goes_on, value=0.0)
    if count > 1:
        before, after = blocks.number[:, 0 : count - 1], blocks.number[:, 1:count]
        nisa.tensor_tensor(dst=goes_on[:, 1:count], data1=before, data2=after, op=nl.equal)
    first, last = share(size, ROWS)
    rows = pieces(first, last, ROWS)
    step = max(BANK, SUM_BYTES // (4 * max(1, len(rows))) // BANK * BANK)
    for column, length in pieces(0, width, step) if rows else []:
        sums = [tile_of(length) for _ in rows]
        for tile in sums:
            nisa.memset(dst=tile, value=0.0)
        ahead = _load(x, gradient, blocks, lanes, 0, block, first, last, column, length)
        for number in range(count):
            loaded = ahead
            if number + 1 < count:
                ahead = _load(x, gradient, blocks, lanes, number + 1, block, first, last, column, length)
            kept, expert = goes_on[:, number : number + 1], blocks.expert[0:1, number : number + 1]
            for part, (row, lines) in enumerate(rows):
                _add(sums[part][0:lines, :], loaded, kept[0:lines, :], row - first)
                _store(result, expert, sums[part][0:lines, :], row, column)
    return result


def _load(
    x: Any,
    gradient: Any,
    blocks: Any,
    lanes: Any,
    number: int,
    block: int,
    first: int,
    last: int,
    column: int,
    length: int,
) -> list[tuple[Any, Any]]:
    """Elements ``first`` to ``last`` of x, and columns of the gradient, of each 128 tokens of a block."""
    found = []
    for start in range(0, block, ROWS):
        index = rows_of(blocks, lanes, number, start, x.shape[0])
        found.append((gathered(x, index, first, last - first), gathered(gradient, index, column, length)))
    return found


def _add(sums: Any, loaded: list[tuple[Any, Any]], kept: Any, at: int) -> None:
    """Times ``kept``, plus the products of a block."""
    lines, width = sums.shape
    for start, length in pieces(0, width, BANK):
        product = nl.ndarray((lines, length), dtype=nl.float32, buffer=nl.psum)
        for tokens, gradients in loaded:
            nisa.nc_matmul(
                dst=product, stationary=tokens[:, at : at + lines], moving=gradients[:, start : start + length]
            )
        here = sums[:, start : start + length]
        nisa.scalar_tensor_tensor(dst=here, data=here, op0=nl.multiply, operand0=kept, op1=nl.add, operand1=product)


def _store(result: Any, expert: Any, sums: Any, row: int, column: int) -> None:
    """Rows of an expert's weights from ``row`` on, columns from ``column`` on."""
    lines, length = sums.shape
    width = result.shape[2]
    out = sums
    if result.dtype != nl.float32:
        out = nl.ndarray((lines, length), dtype=result.dtype, buffer=nl.sbuf)
        nisa.activation(dst=out, op=nl.copy, data=sums)
    pattern = [[width, lines], [1, length]]
    target = result.ap(pattern=pattern, offset=row * width + column, scalar_offset=expert, indirect_dim=0)
    nisa.dma_copy(dst=target, src=out)
