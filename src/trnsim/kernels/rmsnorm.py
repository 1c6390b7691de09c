"""Root-mean-square normalisation of rows, forward and backward.

ScalarE squares and adds up while VectorE scales what came before; sums over rows for the weight's gradient are products
with a column on TensorE.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Contract, Problem
from trnsim.kernels.shapes import array, moved, row_limits, rows_axis
from trnsim.kernels.tiles import (
    add_columns,
    check_norm,
    check_rows,
    column_totals,
    filled,
    groups_ahead,
    in_parts,
    load_ahead,
    load_to_all,
    mean_of_parts,
    over_parts,
    own_groups,
    parts_of_rows,
    row_groups,
    share,
    store_columns,
    store_group,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl


def _inverse(data: Any, scratch: Any, epsilon: Any, mean: Any = None) -> Any:
    """1 / sqrt(mean of squares + epsilon) of each row of a group; ``scratch`` receives the squares.

    ``mean`` is ``mean_of_parts`` where rows are in several partitions.
    """
    lanes, count, width = data.shape
    squares = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
    for row in range(count):
        nisa.activation_reduce(
            dst=scratch[:, row, :],
            op=nl.square,
            data=data[:, row, :],
            reduce_op=nl.add,
            reduce_res=squares[:, row : row + 1],
        )
    inverse = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
    squares = over_parts(squares, mean)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=squares, bias=epsilon[0:lanes, :], scale=1.0 / width)
    return inverse


@nki.jit
def rmsnorm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Rows of x over their root mean square: x / sqrt(mean(x^2) + eps) * weight.

    Args:
        x: [rows, width] in HBM, float32, bfloat16 or float16. A row has 32 KiB at most.
        weight: [width] in that format.
        eps: added to the mean of squares.

    Returns:
        [rows, width] in that format; arithmetic is float32. Two cores share the rows, and few of them the partitions.
    """
    check_norm(x, weight)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    parts = parts_of_rows(*x.shape)
    rows, target, width = in_parts(x, parts), in_parts(result, parts), x.shape[1] // parts
    scale, epsilon, mean = load_to_all(weight, parts), filled((128, 1), eps), mean_of_parts(parts)
    first, last = share(x.shape[0], 128 if parts == 1 else 1)
    groups = row_groups(first * parts, last * parts, width, x.dtype)
    ahead = groups_ahead(width, x.dtype, 1, 2)
    loaded: list[Any] = []
    for index, (start, lanes, count) in enumerate(groups):
        load_ahead(loaded, groups, index + ahead + 1, [rows])
        data = loaded[index][0]
        out = nl.ndarray(data.shape, dtype=x.dtype, buffer=nl.sbuf)
        inverse = _inverse(data, out, epsilon, mean)
        for row in range(count):
            nisa.scalar_tensor_tensor(
                dst=out[:, row, :],
                data=data[:, row, :],
                op0=nl.multiply,
                operand0=inverse[:, row : row + 1],
                op1=nl.multiply,
                operand1=scale[0:lanes, :],
            )
        store_group(target, start, out)
    return result


@nki.jit
def rmsnorm_backward(gradient: Any, x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """Gradients of ``rmsnorm`` with respect to ``x`` and ``weight``.

    Args:
        gradient: [rows, width], the gradient of the result, in the format of ``x``.
        x, weight, eps: what ``rmsnorm`` was given; the root mean squares are computed again.

    Returns:
        The gradient of x, [rows, width], and that of weight, [width], in the format of ``x``. Products are rounded to
        it before they are added up, in float32.
    """
    check_norm(x, weight)
    check_rows("gradient", gradient, x.shape, x.dtype)
    width = x.shape[1]
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    of_weight = nl.ndarray((width,), dtype=x.dtype, buffer=nl.shared_hbm)
    scale = load_to_all(weight)
    epsilon = filled((128, 1), eps)
    totals = column_totals(width)
    groups = own_groups(x)
    ahead = groups_ahead(width, x.dtype, 2, 3)
    loaded: list[Any] = []
    for index, (start, lanes, count) in enumerate(groups):
        load_ahead(loaded, groups, index + ahead + 1, [x, gradient])
        data, arrived = loaded[index]
        product = nl.ndarray(data.shape, dtype=x.dtype, buffer=nl.sbuf)
        out = nl.ndarray(data.shape, dtype=x.dtype, buffer=nl.sbuf)
        inverse = _inverse(data, out, epsilon)
        weights = nl.ndarray((lanes, count), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=weights, src=inverse)
        nisa.tensor_tensor(dst=product, data1=arrived, data2=data, op=nl.multiply, engine=nisa.engine.vector)
        along = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        for row in range(count):
            add_columns(totals, product[:, row, :], weights[:, row : row + 1])
            nisa.tensor_tensor(
                dst=out[:, row, :],
                data1=product[:, row, :],
                data2=scale[0:lanes, :],
                op=nl.multiply,
                engine=nisa.engine.vector,
            )
            nisa.activation_reduce(
                dst=product[:, row, :],
                op=nl.copy,
                data=out[:, row, :],
                reduce_op=nl.add,
                reduce_res=along[:, row : row + 1],
            )
        # The part of the gradient along x: -sum(gradient weight x) / width / rms^3.
        square = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=square, data1=inverse, data2=inverse, op=nl.multiply, engine=nisa.engine.vector)
        cube = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=cube, data1=square, data2=inverse, op=nl.multiply, engine=nisa.engine.vector)
        back = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=back, data=along, op0=nl.multiply, operand0=-1.0 / width, op1=nl.multiply, operand1=cube
        )
        for row in range(count):
            nisa.scalar_tensor_tensor(
                dst=arrived[:, row, :],
                data=arrived[:, row, :],
                op0=nl.multiply,
                operand0=inverse[:, row : row + 1],
                op1=nl.multiply,
                operand1=scale[0:lanes, :],
            )
            nisa.scalar_tensor_tensor(
                dst=out[:, row, :],
                data=data[:, row, :],
                op0=nl.multiply,
                operand0=back[:, row : row + 1],
                op1=nl.add,
                operand1=arrived[:, row, :],
            )
        store_group(result, start, out)
    store_columns(of_weight, totals, len(groups) > 0, 0)
    return result, of_weight


def _arguments(problem: Problem) -> tuple[Any, ...]:
    rows, width, dtype = problem.sizes["rows"], problem.sizes["width"], problem.dtype
    return array(rows, width, dtype=dtype), array(width, dtype=dtype)


def _backward_arguments(problem: Problem) -> tuple[Any, ...]:
    x, weight = _arguments(problem)
    gradient = array(*x.shape, dtype=problem.dtype)
    return gradient, x, weight


CONTRACTS = (
    Contract(
        name="rmsnorm",
        kernel=rmsnorm,
        sizes=("rows", "width"),
        fixed=("width",),
        limits=row_limits,
        arguments=_arguments,
        axes=lambda p: rows_axis(p, p.sizes["width"]),
        flops=lambda p: 4 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, 2 * p.sizes["rows"] * p.sizes["width"], p.sizes["width"]),
        summary="x / sqrt(mean(x^2) + eps) * weight of each row",
    ),
    Contract(
        name="rmsnorm_backward",
        kernel=rmsnorm_backward,
        sizes=("rows", "width"),
        fixed=("width",),
        limits=row_limits,
        arguments=_backward_arguments,
        axes=lambda p: rows_axis(p, p.sizes["width"]),
        flops=lambda p: 12 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, 3 * p.sizes["rows"] * p.sizes["width"], 2 * p.sizes["width"]),
        summary="gradients of rmsnorm with respect to x and weight",
    ),
)
