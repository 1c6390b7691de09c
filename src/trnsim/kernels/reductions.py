"""Sums, means and maxima over rows, columns, or everything.

Sums along a row are shared by VectorE and ScalarE, sums over rows are products with ones on TensorE; maxima are
VectorE's.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Contract, Problem
from trnsim.kernels.elementwise import flat_tiles, load_flat
from trnsim.kernels.shapes import array, flat_axis, moved, row_limits, rows_axis
from trnsim.kernels.tiles import (
    PARTITIONS,
    add_columns,
    check_format,
    check_width,
    column_totals,
    filled,
    load_group,
    over_cores,
    own_groups,
    pieces,
    store_columns,
    write_columns,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl


def _check(x: Any, operation: str) -> None:
    assert len(x.shape) == 2, f"x is {tuple(x.shape)}: it must be [rows, width]"
    check_format("x", x.dtype)
    assert operation in ("sum", "mean", "max"), f"no operation {operation}: there are sum, mean and max"


def lowest(dtype: Any) -> float:
    """A number that no maximum is below."""
    return -65504.0 if dtype == nl.float16 else -3.38e38


def reduced(data: Any, operation: str) -> Any:
    """Each row of a group [lanes, count, width], or [lanes, width], to [lanes, count], [lanes, 1]; float32."""
    lanes, width = data.shape[0], data.shape[-1]
    if len(data.shape) == 2:
        data = data.reshape((lanes, 1, width))
    count = data.shape[1]
    result = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
    if operation == "max":
        # In the format of the data, whose maximum is exact, VectorE is twice as fast.
        same = nl.ndarray((lanes, count), dtype=data.dtype, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=same, op=nl.maximum, data=data, axis=2)
        nisa.tensor_copy(dst=result, src=same)
        return result
    head = width if width < 128 else width * 4 // 9  # as the clocks of VectorE and ScalarE are
    nisa.tensor_reduce(dst=result, op=nl.add, data=data[:, :, 0:head], axis=2)
    if head < width:
        rest = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        scratch = nl.ndarray((lanes, count, width - head), dtype=data.dtype, buffer=nl.sbuf)
        for row in range(count):
            nisa.activation_reduce(
                dst=scratch[:, row, :],
                op=nl.copy,
                data=data[:, row, head:width],
                reduce_op=nl.add,
                reduce_res=rest[:, row : row + 1],
            )
        nisa.tensor_tensor(dst=result, data1=result, data2=rest, op=nl.add, engine=nisa.engine.vector)
    return result


@nki.jit
def reduce_rows(x: Any, operation: str = "sum") -> Any:
    """The sum, mean or maximum of each row.

    Args:
        x: [rows, width] in HBM, float32, bfloat16 or float16. A row has 32 KiB at most.
        operation: ``sum``, ``mean`` or ``max``.

    Returns:
        [rows] float32. Two cores share the rows.
    """
    _check(x, operation)
    rows, width = x.shape
    check_width(width, x.dtype)
    result = nl.ndarray((rows,), dtype=nl.float32, buffer=nl.shared_hbm)
    for start, lanes, count in own_groups(x):
        found = reduced(load_group(x, start, lanes, count), operation)
        if operation == "mean":
            nisa.tensor_scalar(dst=found, data=found, op0=nl.multiply, operand0=1.0 / width)
        nisa.dma_copy(dst=result[start : start + lanes * count].reshape((lanes, count)), src=found)
    return result


@nki.jit
def reduce_columns(x: Any, operation: str = "sum") -> Any:
    """The sum, mean or maximum of each column.

    Args:
        x: [rows, width] in HBM, float32, bfloat16 or float16. A row has 32 KiB at most.
        operation: ``sum``, ``mean`` or ``max``.

    Returns:
        [width] float32. Two cores share the rows.
    """
    _check(x, operation)
    rows, width = x.shape
    check_width(width, x.dtype)
    result = nl.ndarray((width,), dtype=nl.float32, buffer=nl.shared_hbm)
    groups = own_groups(x)
    if operation == "max":
        write_columns(result, over_cores(_column_maxima(x, groups), nl.maximum, 0))
        return result
    weight = filled((PARTITIONS, 1), 1.0, x.dtype)
    totals = column_totals(width)
    for start, lanes, count in groups:
        data = load_group(x, start, lanes, count)
        for row in range(count):
            add_columns(totals, data[:, row, :], weight[0:lanes, :])
    store_columns(result, totals, len(groups) > 0, 0, 1.0 / rows if operation == "mean" else 1.0)
    return result


def _column_maxima(x: Any, groups: list[tuple[int, int, int]]) -> Any:
    """Of groups of rows, [128, blocks of 128 columns]."""
    width = x.shape[1]
    largest = filled((PARTITIONS, width), lowest(x.dtype), x.dtype)
    for start, lanes, count in groups:
        data = load_group(x, start, lanes, count)
        for row in range(count):
            nisa.tensor_tensor(
                dst=largest[0:lanes, :],
                data1=largest[0:lanes, :],
                data2=data[:, row, :],
                op=nl.maximum,
                engine=nisa.engine.vector,
            )
    parts = pieces(0, width, PARTITIONS)
    maxima = filled((PARTITIONS, len(parts)), lowest(x.dtype))
    for block, (at, size) in enumerate(parts):
        turned = nl.ndarray((size, PARTITIONS), dtype=x.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=largest[:, at : at + size], engine=nisa.engine.tensor)
        nisa.tensor_reduce(dst=maxima[0:size, block : block + 1], op=nl.maximum, data=turned, axis=1)
    return maxima


@nki.jit
def reduce_all(x: Any, operation: str = "sum") -> Any:
    """The sum, mean or maximum of all elements.

    Args:
        x: of any shape in HBM, float32, bfloat16 or float16.
        operation: ``sum``, ``mean`` or ``max``.

    Returns:
        [1] float32. Two cores share the elements.
    """
    check_format("x", x.dtype)
    assert operation in ("sum", "mean", "max"), f"no operation {operation}: there are sum, mean and max"
    result = nl.ndarray((1,), dtype=nl.float32, buffer=nl.shared_hbm)
    tiles = flat_tiles(x)
    parts = filled((PARTITIONS, max(1, len(tiles))), lowest(x.dtype) if operation == "max" else 0.0)
    for index, tile in enumerate(tiles):
        found = reduced(load_flat(x, tile), operation)
        nisa.tensor_copy(dst=parts[0 : tile[1], index : index + 1], src=found)
    total = over_cores(over_partitions(parts, operation), nl.maximum if operation == "max" else nl.add, 0)
    if operation == "mean":
        nisa.tensor_scalar(dst=total, data=total, op0=nl.multiply, operand0=1.0 / x.size)
    if nl.program_id(0) == 0:
        nisa.dma_copy(dst=result.reshape((1, 1)), src=total)
    return result


def over_partitions(parts: Any, operation: str) -> Any:
    """The sum or maximum of all of a float32 tile, [1, 1]."""
    op = nl.maximum if operation == "max" else nl.add
    column = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=column, op=op, data=parts, axis=1)
    row = nl.ndarray((1, PARTITIONS), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=row, data=column, engine=nisa.engine.tensor)
    single = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=single, op=op, data=row, axis=1)
    return single


def _arguments(problem: Problem) -> tuple[Any, ...]:
    x = array(problem.sizes["rows"], problem.sizes["width"], dtype=problem.dtype)
    return x, problem.options["operation"]


_OPERATIONS = ("sum", "mean", "max")
CONTRACTS = (
    *(
        Contract(
            name=f"reduce_{over}",
            kernel=kernel,
            sizes=("rows", "width"),
            fixed=("width",),
            options={"operation": _OPERATIONS},
            limits=row_limits,
            arguments=_arguments,
            axes=lambda p: rows_axis(p, p.sizes["width"]),
            flops=lambda p: p.sizes["rows"] * p.sizes["width"],
            bytes=lambda p: moved(p, p.sizes["rows"] * p.sizes["width"]),
            summary=f"sum, mean or maximum of the {over}",
        )
        for over, kernel in (("rows", reduce_rows), ("columns", reduce_columns))
    ),
    Contract(
        name="reduce_all",
        kernel=reduce_all,
        sizes=("rows", "width"),
        fixed=("width",),
        options={"operation": _OPERATIONS},
        arguments=_arguments,
        axes=flat_axis,
        flops=lambda p: p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, p.sizes["rows"] * p.sizes["width"]),
        summary="sum, mean or maximum of all elements",
    ),
)
