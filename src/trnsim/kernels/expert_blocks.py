"""Blocks of tokens that belong to one expert each, where only offsets, known at run time, say which tokens are whose.

Tokens of an expert lie in a row. They are cut into blocks of 128, 256 or 512, the last of an expert not full: about
tokens / block + experts of them at most. VectorE finds each block's expert and rows; rows that are not the expert's are
out of bounds, and gathers and scatters skip them.
"""

from __future__ import annotations

from typing import Any

from trnsim.kernels.attention import identity
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

ROWS = 128


class Blocks(nl.NKIObject):
    """What is known of each block.

    [128, blocks] in float32: its first row, one past its expert's last, and its expert; [1, blocks] int32: its expert.
    """

    first: Any
    end: Any
    number: Any
    expert: Any


def lanes_of() -> Any:
    """The number of each partition, [128, 1] float32."""
    lanes = tile_of(1)
    nisa.iota(dst=lanes, pattern=[[0, 1]], channel_multiplier=1)
    return lanes


def gathered(source: Any, index: Any, first: int, length: int) -> Any:
    """Columns ``first`` to ``first + length`` of the rows of ``index``, [128, length]; zeros where it is beyond."""
    rows = nl.ndarray((ROWS, length), dtype=source.dtype, buffer=nl.sbuf)
    nisa.memset(dst=rows, value=0.0)
    pattern = [[source.shape[1], ROWS], [1, length]]
    nisa.dma_copy(
        dst=rows, src=source.ap(pattern=pattern, offset=first, vector_offset=index), oob_mode=nisa.oob_mode.skip
    )
    return rows


def tile_of(width: int, dtype: Any = nl.float32) -> Any:
    """[128, width] in SBUF."""
    return nl.ndarray((ROWS, width), dtype=dtype, buffer=nl.sbuf)


def rows_of(blocks: Blocks, lanes: Any, number: int, start: int, tokens: int) -> Any:
    """Rows of 128 tokens of a block, [128, 1] int32; those that are not the expert's are out of bounds."""
    row = tile_of(1)
    nisa.tensor_scalar(
        dst=row,
        data=lanes,
        op0=nl.add,
        operand0=blocks.first[:, number : number + 1],
        op1=nl.add,
        operand1=float(start),
    )
    beyond = tile_of(1)
    nisa.tensor_scalar(
        dst=beyond,
        data=row,
        op0=nl.greater_equal,
        operand0=blocks.end[:, number : number + 1],
        op1=nl.multiply,
        operand1=float(tokens),
    )
    index = tile_of(1, nl.int32)
    nisa.tensor_tensor(dst=index, data1=row, data2=beyond, op=nl.add)
    return index


def check_offsets(offsets: Any, experts: int, block: int, tokens: int) -> None:
    """Refuse offsets and sizes that ``locate`` cannot take."""
    assert offsets.shape == (1, experts + 1), f"offsets is {offsets.shape}, not {(1, experts + 1)}"
    assert offsets.dtype == nl.int32, f"offsets is {offsets.dtype}, not int32"
    assert block in (128, 256, 512), f"block is {block}, not 128, 256 or 512"
    assert experts <= 512, f"{experts} experts exceed 512"
    assert tokens < 2**23, f"{tokens} tokens are not less than {2**23}"


def block_count(tokens: int, experts: int, block: int, least: int = 0) -> int:
    """Blocks that no division of tokens among experts exceeds; ``least``: 1 where each expert has one at least."""
    return (tokens + experts * (block - 1 + least)) // block


def locate(offsets: Any, experts: int, block: int, count: int, least: int = 0) -> Blocks:
    """Where each of ``count`` blocks has its rows, and whose they are; ``least`` as ``block_count`` was given.

    Blocks past the last have no rows, and the last expert.
    """
    given = tile_of(experts + 1, nl.int32)
    nisa.dma_copy(dst=given, src=offsets.broadcast(0, ROWS))
    at = tile_of(experts + 1)
    nisa.tensor_copy(dst=at, src=given)
    sizes = tile_of(experts, nl.int32)
    nisa.tensor_tensor(dst=sizes, data1=at[:, 1 : experts + 1], data2=at[:, 0:experts], op=nl.subtract)
    raised = tile_of(experts, nl.int32)
    nisa.tensor_scalar(
        dst=raised, data=sizes, op0=nl.maximum, operand0=float(least), op1=nl.add, operand1=float(block - 1)
    )
    whole = tile_of(experts, nl.int32)
    nisa.tensor_scalar(dst=whole, data=raised, op0=nl.right_shift, operand0=7 + (block > 128) + (block > 256))
    each = tile_of(experts)
    nisa.tensor_copy(dst=each, src=whole)
    ones = tile_of(experts)
    nisa.memset(dst=ones, value=1.0)
    ends = tile_of(experts)  # blocks of experts up to each
    nisa.tensor_tensor_scan(dst=ends, data0=ones, data1=each, initial=0.0, op0=nl.multiply, op1=nl.add)
    starts = tile_of(experts)
    nisa.tensor_tensor(dst=starts, data1=ends, data2=each, op=nl.subtract)
    base = tile_of(experts)  # row of block 0, were it the expert's too
    nisa.scalar_tensor_tensor(
        dst=base, data=starts, op0=nl.multiply, operand0=-float(block), op1=nl.add, operand1=at[:, 0:experts]
    )
    return _of_blocks(starts, ends, base, at[:, 1 : experts + 1], experts, block, count)


def _of_blocks(starts: Any, ends: Any, base: Any, last: Any, experts: int, block: int, count: int) -> Blocks:
    """What is known of experts, [128, experts] everywhere, for the blocks that are theirs.

    Args:
        starts, ends: numbers of an expert's first block and of the one after its last.
        base: row that block 0 would begin at, were it the expert's.
        last: one past the expert's last row.
    """
    one = identity(nl.float32)
    square = tile_of(ROWS)
    nisa.memset(dst=square, value=1.0)
    found = Blocks()
    found.first, found.end, found.number = tile_of(count), tile_of(count), tile_of(count)
    found.expert = nl.ndarray((1, count), dtype=nl.int32, buffer=nl.sbuf)
    for first in range(0, count, ROWS):
        some = min(ROWS, count - first)
        number = tile_of(1)
        nisa.iota(dst=number, pattern=[[0, 1]], offset=first, channel_multiplier=1)
        past = tile_of(experts)  # experts whose blocks all come before
        nisa.tensor_scalar(dst=past, data=ends, op0=nl.less_equal, operand0=number)
        begun = tile_of(experts)
        nisa.tensor_scalar(dst=begun, data=starts, op0=nl.less_equal, operand0=number)
        mine = tile_of(experts)
        nisa.tensor_tensor(dst=mine, data1=begun, data2=past, op=nl.subtract)
        columns = tile_of(3)
        nisa.tensor_reduce(dst=columns[:, 0:1], op=nl.add, data=past, axis=1)
        nisa.tensor_scalar(dst=columns[:, 0:1], data=columns[:, 0:1], op0=nl.minimum, operand0=float(experts - 1))
        for place, values in ((1, base), (2, last)):
            own = tile_of(experts)
            nisa.tensor_tensor(dst=own, data1=mine, data2=values, op=nl.multiply)
            nisa.tensor_reduce(dst=columns[:, place : place + 1], op=nl.add, data=own, axis=1)
        row = tile_of(1)
        nisa.tensor_scalar(dst=row, data=number, op0=nl.multiply, operand0=float(block))
        nisa.tensor_tensor(dst=columns[:, 1:2], data1=columns[:, 1:2], data2=row, op=nl.add)
        for place, target in ((0, found.number), (1, found.first), (2, found.end)):
            diagonal = tile_of(ROWS)
            nisa.tensor_scalar(dst=diagonal, data=one, op0=nl.multiply, operand0=columns[:, place : place + 1])
            everywhere = nl.ndarray((ROWS, some), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=everywhere, stationary=square, moving=diagonal[:, 0:some])
            nisa.tensor_copy(dst=target[:, first : first + some], src=everywhere)
    nisa.tensor_copy(dst=found.expert, src=found.number[0:1, :])
    return found
