"""Embedding: rows of a table by number, and the sum of gradients for each row of the table."""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Axis, Contract, Limit, Problem
from trnsim.kernels.shapes import array, item, moved, row_limits, rows_axis
from trnsim.kernels.tiles import PARTITIONS, check_format, check_rows, check_width, filled, pieces, row_groups, share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl


def _identifiers(numbers: Any, start: int, lanes: int, count: int) -> Any:
    """Numbers of a group of tokens, [lanes, count]."""
    tile = nl.ndarray((lanes, count), dtype=numbers.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=numbers[start : start + lanes * count].reshape((lanes, count)))
    return tile


def _rows(table: Any, numbers: Any, first: int, width: int) -> Any:
    """Columns ``first`` to ``first + width`` of the rows of a table that ``numbers``, [lanes, 1], name."""
    pattern = [[table.shape[1], numbers.shape[0]], [1, width]]
    return table.ap(pattern=pattern, offset=first, vector_offset=numbers, indirect_dim=0)


@nki.jit
def embedding(numbers: Any, table: Any) -> Any:
    """table[numbers].

    Args:
        numbers: [tokens] int32 in HBM, each in [0, rows of the table).
        table: [rows, width], float32, bfloat16 or float16. A row has 32 KiB at most; from 2 KiB on DMA runs well.

    Returns:
        [tokens, width] in the format of the table. Two cores share the tokens.
    """
    assert len(table.shape) == 2, f"table is {tuple(table.shape)}: it must be [rows, width]"
    check_format("table", table.dtype)
    check_rows("numbers", numbers, (numbers.shape[0],), nl.int32)
    width = table.shape[1]
    check_width(width, table.dtype)
    result = nl.ndarray((numbers.shape[0], width), dtype=table.dtype, buffer=nl.shared_hbm)
    first, last = share(numbers.shape[0], PARTITIONS)
    for start, lanes, count in row_groups(first, last, width, table.dtype):
        wanted = _identifiers(numbers, start, lanes, count)
        data = nl.ndarray((lanes, count, width), dtype=table.dtype, buffer=nl.sbuf)
        for row in range(count):
            nisa.dma_copy(dst=data[:, row, :], src=_rows(table, wanted[:, row : row + 1], 0, width))
        here = result[start : start + lanes * count, :].reshape((lanes, count, width))
        nisa.dma_copy(dst=here, src=data)
    return result


@nki.jit
def embedding_backward(gradient: Any, numbers: Any, rows: int) -> Any:
    """Gradient of ``embedding`` with respect to its table: rows of the same number are added up.

    Args:
        gradient: [tokens, width] in HBM, float32, bfloat16 or float16; finite.
        numbers: [tokens] int32, each in [0, rows); at most 2^24, where float32 ends to tell integers apart.
        rows: of the table.

    Returns:
        [rows, width] float32. Two cores share the columns: a row is added to by one of them.
    """
    assert len(gradient.shape) == 2, f"gradient is {tuple(gradient.shape)}: it must be [tokens, width]"
    check_format("gradient", gradient.dtype)
    tokens, width = gradient.shape
    check_rows("numbers", numbers, (tokens,), nl.int32)
    assert 0 < rows <= 2**24, f"{rows} rows: there must be 1 to {2**24}"
    check_width(width, nl.float32)
    result = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.shared_hbm)
    first, last = share(width, 4)
    if first < last:
        _clear(result, first, last)
        for start, lanes in pieces(0, tokens, PARTITIONS):
            _add_rows(result, gradient, numbers, start, lanes, first, last)
    return result


def _clear(result: Any, first: int, last: int) -> None:
    """Zeros in columns ``first`` to ``last``."""
    zeros = filled((PARTITIONS, last - first), 0.0)
    for start, lanes in pieces(0, result.shape[0], PARTITIONS):
        nisa.dma_copy(dst=result[start : start + lanes, first:last], src=zeros[0:lanes, :])


def _add_rows(result: Any, gradient: Any, numbers: Any, start: int, lanes: int, first: int, last: int) -> None:
    """Add the gradients of up to 128 tokens.

    Tokens of one number would overwrite each other: each receives the sum over all of them, a product with the matrix
    that says who is equal, and so all of them write the same.
    """
    wanted = _identifiers(numbers, start, lanes, 1)
    exact = nl.ndarray((lanes, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=exact, src=wanted)
    square = nl.ndarray((lanes, lanes), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=square, src=exact.broadcast(1, lanes))
    turned = nl.ndarray((lanes, lanes), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=square, engine=nisa.engine.tensor)
    equal = nl.ndarray((lanes, lanes), dtype=gradient.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=equal, data=turned, op0=nl.equal, operand0=exact)
    arrived = nl.ndarray((lanes, last - first), dtype=gradient.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=arrived, src=gradient[start : start + lanes, first:last])
    held = nl.ndarray((lanes, last - first), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=held, src=_rows(result, wanted, first, last - first))
    for at, size in pieces(0, last - first, 512):
        sums = nl.ndarray((lanes, size), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=sums, stationary=equal, moving=arrived[:, at : at + size])
        nisa.tensor_tensor(dst=held[:, at : at + size], data1=held[:, at : at + size], data2=sums, op=nl.add)
    nisa.dma_copy(dst=_rows(result, wanted, first, last - first), src=held)


def _arguments(problem: Problem) -> tuple[Any, ...]:
    tokens, width, rows = (problem.sizes[name] for name in ("tokens", "width", "rows"))
    return array(tokens, dtype="int32"), array(rows, width, dtype=problem.dtype)


def _backward_arguments(problem: Problem) -> tuple[Any, ...]:
    tokens, width, rows = (problem.sizes[name] for name in ("tokens", "width", "rows"))
    return array(tokens, width, dtype=problem.dtype), array(tokens, dtype="int32"), rows


def _backward_axes(_: Problem) -> tuple[Axis, ...]:
    # Clearing the table and adding to it follow each other: in long samples one hides little of the other.
    return Axis("tokens", PARTITIONS, 8 * PARTITIONS), Axis("rows", PARTITIONS, 32 * PARTITIONS, far=4)


CONTRACTS = (
    Contract(
        name="embedding",
        kernel=embedding,
        sizes=("tokens", "width", "rows"),
        fixed=("width",),
        limits=row_limits,
        arguments=_arguments,
        axes=lambda p: rows_axis(p, p.sizes["width"], "tokens"),
        flops=lambda p: 0 * p.sizes["tokens"],
        bytes=lambda p: moved(p, 2 * p.sizes["tokens"] * p.sizes["width"]) + 4 * p.sizes["tokens"],
        summary="rows of a table by number",
    ),
    Contract(
        name="embedding_backward",
        kernel=embedding_backward,
        sizes=("tokens", "width", "rows"),
        fixed=("width",),
        limits=lambda p: {**row_limits(p), "width": Limit(high=32 * 1024 // 4), "rows": Limit(high=2**24)},
        arguments=_backward_arguments,
        axes=_backward_axes,
        flops=lambda p: p.sizes["tokens"] * p.sizes["width"],
        bytes=lambda p: p.sizes["tokens"] * p.sizes["width"] * (8 + item(p)) + 4 * p.sizes["rows"] * p.sizes["width"],
        summary="gradient of embedding with respect to its table",
    ),
)
