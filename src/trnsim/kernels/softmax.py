"""Softmax of rows, forward and backward."""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Contract, Problem
from trnsim.kernels.shapes import array, moved, row_limits, rows_axis
from trnsim.kernels.tiles import check_format, check_rows, check_width, load_group, own_groups, store_group
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl


@nki.jit
def softmax(x: Any, scale: float = 1.0) -> Any:
    """exp(scale * x) over its sum, row by row.

    Args:
        x: [rows, width] in HBM, float32, bfloat16 or float16. A row has 32 KiB at most.
        scale: a positive number.

    Returns:
        [rows, width] in that format; what is scaled by the sum is rounded to it first. Two cores share the rows.
    """
    assert len(x.shape) == 2, f"x is {tuple(x.shape)}: it must be [rows, width]"
    assert scale > 0, f"scale is {scale}: it must be positive"
    check_format("x", x.dtype)
    check_width(x.shape[1], x.dtype)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for start, lanes, count in own_groups(x):
        data = load_group(x, start, lanes, count)
        out = nl.ndarray(data.shape, dtype=x.dtype, buffer=nl.sbuf)
        largest = nl.ndarray((lanes, count), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=largest, op=nl.maximum, data=data, axis=2)
        shift = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=shift, data=largest, op0=nl.multiply, operand0=-scale)
        total = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        for row in range(count):
            nisa.activation_reduce(
                dst=out[:, row, :],
                op=nl.exp,
                data=data[:, row, :],
                bias=shift[:, row : row + 1],
                scale=scale,
                reduce_op=nl.add,
                reduce_res=total[:, row : row + 1],
            )
        inverse = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.reciprocal(dst=inverse, data=total)
        for row in range(count):
            nisa.tensor_scalar(
                dst=out[:, row, :],
                data=out[:, row, :],
                op0=nl.multiply,
                operand0=inverse[:, row : row + 1],
                engine=nisa.engine.vector,
            )
        store_group(result, start, out)
    return result


@nki.jit
def softmax_backward(gradient: Any, result: Any, scale: float = 1.0) -> Any:
    """Gradient of ``softmax`` with respect to ``x``: scale * result * (gradient - sum(gradient * result)).

    Args:
        gradient: [rows, width], of the result, float32, bfloat16 or float16. A row has 32 KiB at most.
        result: what ``softmax`` returned, in that format.
        scale: what ``softmax`` was given.

    Returns:
        [rows, width] in that format; products are rounded to it before they are added up in float32.
    """
    assert len(result.shape) == 2, f"result is {tuple(result.shape)}: it must be [rows, width]"
    check_format("result", result.dtype)
    check_rows("gradient", gradient, result.shape, result.dtype)
    check_width(result.shape[1], result.dtype)
    back = nl.ndarray(result.shape, dtype=result.dtype, buffer=nl.shared_hbm)
    for start, lanes, count in own_groups(result):
        arrived, weights = load_group(gradient, start, lanes, count), load_group(result, start, lanes, count)
        product = nl.ndarray(weights.shape, dtype=result.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=product, data1=arrived, data2=weights, op=nl.multiply, engine=nisa.engine.vector)
        mean = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        for row in range(count):
            nisa.activation_reduce(
                dst=product[:, row, :],
                op=nl.copy,
                data=product[:, row, :],
                reduce_op=nl.add,
                reduce_res=mean[:, row : row + 1],
            )
        for row in range(count):
            nisa.scalar_tensor_tensor(
                dst=arrived[:, row, :],
                data=arrived[:, row, :],
                op0=nl.subtract,
                operand0=mean[:, row : row + 1],
                op1=nl.multiply,
                operand1=weights[:, row, :],
            )
        if scale != 1.0:
            nisa.tensor_scalar(dst=arrived, data=arrived, op0=nl.multiply, operand0=scale, engine=nisa.engine.vector)
        store_group(back, start, arrived)
    return back


def _x(problem: Problem) -> Any:
    return array(problem.sizes["rows"], problem.sizes["width"], dtype=problem.dtype)


CONTRACTS = (
    Contract(
        name="softmax",
        kernel=softmax,
        sizes=("rows", "width"),
        fixed=("width",),
        limits=row_limits,
        arguments=lambda p: (_x(p),),
        axes=lambda p: rows_axis(p, p.sizes["width"]),
        flops=lambda p: 5 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, 2 * p.sizes["rows"] * p.sizes["width"]),
        summary="softmax of each row",
    ),
    Contract(
        name="softmax_backward",
        kernel=softmax_backward,
        sizes=("rows", "width"),
        fixed=("width",),
        limits=row_limits,
        arguments=lambda p: (_x(p), _x(p)),
        axes=lambda p: rows_axis(p, p.sizes["width"]),
        flops=lambda p: 4 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, 3 * p.sizes["rows"] * p.sizes["width"]),
        summary="gradient of softmax with respect to x",
    ),
)
