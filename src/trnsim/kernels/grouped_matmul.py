"""Matrix products of groups of tokens, each with the weights of its expert.

How many tokens an expert has is known at run time only. Tokens are cut into blocks that hold one expert's tokens each:
about tokens / block + experts of them at most. VectorE finds each block's expert and rows from the offsets; rows are
gathered, those past the expert's last skipped, and the expert's weights are loaded for the block, all ahead of their
products. A block with no tokens takes as long as any other. Cores take turns with blocks.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.attention import identity, transposed
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

ROWS, BANK = 128, 512
STEP_BYTES = 48 * 1024  # of weights that a step loads in a partition
AHEAD_BYTES = 64 * 1024  # of those that may be loaded before they are needed


class _Blocks(nl.NKIObject):
    """[128, blocks] in float32: each block's first row, and one past its expert's last; [1, blocks]: its expert."""

    first: Any
    end: Any
    expert: Any


class _Step(nl.NKIObject):
    """A block's tokens, and the columns of weights that they are multiplied with."""

    tokens: Any
    column: int
    length: int
    weights: Any


@nki.jit
def grouped_matmul(x: Any, w: Any, offsets: Any, block: int = 256) -> Any:
    """x[offsets[e] : offsets[e + 1]] @ w[e] for each expert e.

    Args:
        x: [tokens, K] in HBM, the tokens of an expert in a row; bfloat16, float16 or float32. Up to 2^23 tokens.
        w: [experts, K, N] of that format.
        offsets: [1, experts + 1] int32, from 0 to tokens, ascending.
        block: 128, 256 or 512 tokens that share a load of weights. 512 experts at most.

    Returns:
        [tokens, N] in the format of x, accumulated in float32.
    """
    tokens, size = x.shape
    experts, _, width = w.shape
    assert w.shape[1] == size, f"x has {size} elements a token, w {w.shape[1]}"
    assert offsets.shape == (1, experts + 1), f"offsets is {offsets.shape}, not {(1, experts + 1)}"
    assert offsets.dtype == nl.int32, f"offsets is {offsets.dtype}, not int32"
    assert block in (128, 256, 512), f"block is {block}, not 128, 256 or 512"
    assert experts <= 512, f"{experts} experts exceed 512"
    assert tokens < 2**23, f"{tokens} tokens are not less than {2**23}"
    result = nl.ndarray((tokens, width), dtype=x.dtype, buffer=nl.shared_hbm)
    count = (tokens + experts * (block - 1)) // block  # no division of tokens among experts fills more
    blocks = _locate(offsets, experts, block, count)
    lanes = _tile(1)
    nisa.iota(dst=lanes, pattern=[[0, 1]], channel_multiplier=1)
    depths = [(at, min(ROWS, size - at)) for at in range(0, size, ROWS)]
    cores, core = nl.num_programs(0), nl.program_id(0)
    column_bytes = len(depths) * (4 if x.dtype == nl.float32 else 2)
    step = max(BANK, STEP_BYTES // column_bytes // BANK * BANK)  # wide: long descriptors, few in a ring
    early = max(1, min(3, AHEAD_BYTES // (min(step, width) * column_bytes)))
    waiting: list[Any] = []
    ahead = _tokens(x, blocks, lanes, core, block) if core < count else []
    for number in range(core, count, cores):
        tokens_of = ahead  # the next block's pass DMA queues before this block's weights
        if number + cores < count:
            ahead = _tokens(x, blocks, lanes, number + cores, block)
        for column in range(0, width, step):
            length = min(step, width - column)
            weights = _weights(w, blocks.expert, number, depths, column, length)
            waiting.append(_Step(tokens=tokens_of, column=column, length=length, weights=weights))
            if len(waiting) > early:
                _multiply(waiting.pop(0), result, depths)
    for late in waiting:
        _multiply(late, result, depths)
    return result


def _tokens(x: Any, blocks: _Blocks, lanes: Any, number: int, block: int) -> list[Any]:
    """[index, transposed rows] of each 128 tokens of a block."""
    tokens, size = x.shape
    found = []
    for start in range(0, block, ROWS):
        index = _rows(blocks, lanes, number, start, tokens)
        rows = nl.ndarray((ROWS, size), dtype=x.dtype, buffer=nl.sbuf)
        nisa.memset(dst=rows, value=0.0)
        nisa.dma_copy(
            dst=rows, src=x.ap(pattern=[[size, ROWS], [1, size]], vector_offset=index), oob_mode=nisa.oob_mode.skip
        )
        found.append([index, transposed(rows, ROWS, size)])
    return found


def _multiply(step: _Step, result: Any, depths: list[tuple[int, int]]) -> None:
    """A block's tokens with some columns of its expert's weights."""
    width = result.shape[1]
    for index, turned in step.tokens:
        final = nl.ndarray((ROWS, step.length), dtype=result.dtype, buffer=nl.sbuf)
        for start in range(0, step.length, BANK):
            end = min(start + BANK, step.length)
            product = nl.ndarray((ROWS, end - start), dtype=nl.float32, buffer=nl.psum)
            for part, (_, depth) in enumerate(depths):
                nisa.nc_matmul(
                    dst=product, stationary=turned[0:depth, part, :], moving=step.weights[part][:, start:end]
                )
            nisa.tensor_copy(dst=final[:, start:end], src=product)
        nisa.dma_copy(
            dst=result.ap(pattern=[[width, ROWS], [1, step.length]], offset=step.column, vector_offset=index),
            src=final,
            oob_mode=nisa.oob_mode.skip,
        )


def _weights(w: Any, expert: Any, number: int, depths: list[tuple[int, int]], column: int, length: int) -> list[Any]:
    """Columns of the weights of a block's expert: [128 of K, length] each."""
    width = w.shape[2]
    tiles = []
    for at, depth in depths:
        tile = nl.ndarray((depth, length), dtype=w.dtype, buffer=nl.sbuf)
        source = w.ap(
            pattern=[[width, depth], [1, length]],
            offset=at * width + column,
            scalar_offset=expert[0:1, number : number + 1],
            indirect_dim=0,
        )
        nisa.dma_copy(dst=tile, src=source)
        tiles.append(tile)
    return tiles


def _tile(width: int, dtype: Any = nl.float32) -> Any:
    """[128, width] in SBUF."""
    return nl.ndarray((ROWS, width), dtype=dtype, buffer=nl.sbuf)


def _rows(blocks: _Blocks, lanes: Any, number: int, start: int, tokens: int) -> Any:
    """Rows of 128 tokens of a block, [128, 1] int32; those that are not the expert's are out of bounds."""
    row = _tile(1)
    nisa.tensor_scalar(
        dst=row,
        data=lanes,
        op0=nl.add,
        operand0=blocks.first[:, number : number + 1],
        op1=nl.add,
        operand1=float(start),
    )
    beyond = _tile(1)
    nisa.tensor_scalar(
        dst=beyond,
        data=row,
        op0=nl.greater_equal,
        operand0=blocks.end[:, number : number + 1],
        op1=nl.multiply,
        operand1=float(tokens),
    )
    index = _tile(1, nl.int32)
    nisa.tensor_tensor(dst=index, data1=row, data2=beyond, op=nl.add)
    return index


def _locate(offsets: Any, experts: int, block: int, count: int) -> _Blocks:
    """Where each block's rows are, and whose: blocks in partitions, experts in the free dimension."""
    given = _tile(experts + 1, nl.int32)
    nisa.dma_copy(dst=given, src=offsets.broadcast(0, ROWS))
    at = _tile(experts + 1)
    nisa.tensor_copy(dst=at, src=given)
    sizes = _tile(experts, nl.int32)
    nisa.tensor_tensor(dst=sizes, data1=at[:, 1 : experts + 1], data2=at[:, 0:experts], op=nl.subtract)
    raised = _tile(experts, nl.int32)
    nisa.tensor_scalar(dst=raised, data=sizes, op0=nl.add, operand0=float(block - 1))
    whole = _tile(experts, nl.int32)
    nisa.tensor_scalar(dst=whole, data=raised, op0=nl.right_shift, operand0=7 + (block > 128) + (block > 256))
    each = _tile(experts)
    nisa.tensor_copy(dst=each, src=whole)
    ones = _tile(experts)
    nisa.memset(dst=ones, value=1.0)
    ends = _tile(experts)  # blocks of experts up to each
    nisa.tensor_tensor_scan(dst=ends, data0=ones, data1=each, initial=0.0, op0=nl.multiply, op1=nl.add)
    starts = _tile(experts)
    nisa.tensor_tensor(dst=starts, data1=ends, data2=each, op=nl.subtract)
    base = _tile(experts)  # row of block 0, were it the expert's too
    nisa.scalar_tensor_tensor(
        dst=base, data=starts, op0=nl.multiply, operand0=-float(block), op1=nl.add, operand1=at[:, 0:experts]
    )
    return _of_blocks(starts, ends, base, at[:, 1 : experts + 1], experts, block, count)


def _of_blocks(starts: Any, ends: Any, base: Any, last: Any, experts: int, block: int, count: int) -> _Blocks:
    """What is known of experts, [128, experts] everywhere, for the blocks that are theirs.

    Args:
        starts, ends: numbers of an expert's first block and of the one after its last.
        base: row that block 0 would begin at, were it the expert's.
        last: one past the expert's last row.
    """
    one = identity(nl.float32)
    square = _tile(ROWS)
    nisa.memset(dst=square, value=1.0)
    found = _Blocks()
    found.first = _tile(count)
    found.end = _tile(count)
    found.expert = nl.ndarray((1, count), dtype=nl.int32, buffer=nl.sbuf)
    for first in range(0, count, ROWS):
        some = min(ROWS, count - first)
        number = _tile(1)
        nisa.iota(dst=number, pattern=[[0, 1]], offset=first, channel_multiplier=1)
        past = _tile(experts)  # experts whose blocks all come before
        nisa.tensor_scalar(dst=past, data=ends, op0=nl.less_equal, operand0=number)
        begun = _tile(experts)
        nisa.tensor_scalar(dst=begun, data=starts, op0=nl.less_equal, operand0=number)
        mine = _tile(experts)
        nisa.tensor_tensor(dst=mine, data1=begun, data2=past, op=nl.subtract)
        columns = _tile(3)
        nisa.tensor_reduce(dst=columns[:, 0:1], op=nl.add, data=past, axis=1)
        nisa.tensor_scalar(dst=columns[:, 0:1], data=columns[:, 0:1], op0=nl.minimum, operand0=float(experts - 1))
        for place, values in ((1, base), (2, last)):
            own = _tile(experts)
            nisa.tensor_tensor(dst=own, data1=mine, data2=values, op=nl.multiply)
            nisa.tensor_reduce(dst=columns[:, place : place + 1], op=nl.add, data=own, axis=1)
        row = _tile(1)
        nisa.tensor_scalar(dst=row, data=number, op0=nl.multiply, operand0=float(block))
        nisa.tensor_tensor(dst=columns[:, 1:2], data1=columns[:, 1:2], data2=row, op=nl.add)
        for place, target in ((0, found.expert), (1, found.first), (2, found.end)):
            diagonal = _tile(ROWS)
            nisa.tensor_scalar(dst=diagonal, data=one, op0=nl.multiply, operand0=columns[:, place : place + 1])
            lanes = 1 if place == 0 else ROWS
            everywhere = nl.ndarray((lanes, some), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=everywhere, stationary=square[:, 0:lanes], moving=diagonal[:, 0:some])
            nisa.tensor_copy(dst=target[:, first : first + some], src=everywhere)
    return found
