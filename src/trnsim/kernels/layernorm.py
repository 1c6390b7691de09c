"""Layer normalisation of rows, forward and backward.

Moments come from two engines at once: VectorE's statistics of the first columns, and sums by ScalarE of what the others
deviate from their mean, and of the squares of that. Nothing cancels, however far the mean is from zero.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Contract, Problem
from trnsim.kernels.shapes import array, moved, row_limits, rows_axis
from trnsim.kernels.tiles import (
    GROUP_BYTES,
    add_columns,
    check_norm,
    check_rows,
    column_totals,
    filled,
    groups_ahead,
    in_parts,
    item_bytes,
    load_ahead,
    load_to_all,
    mean_of_parts,
    over_parts,
    own_groups,
    parts_of_rows,
    pieces,
    row_groups,
    share,
    store_columns,
    store_group,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

STATISTICS = 512
"""Elements that VectorE describes at once."""


def _column(lanes: int, count: int) -> Any:
    return nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)


def _multiply(result: Any, first: Any, second: Any) -> None:
    nisa.tensor_tensor(dst=result, data1=first, data2=second, op=nl.multiply, engine=nisa.engine.vector)


def _head(width: int, part: float) -> int:
    """Columns whose moments VectorE finds: about ``part`` of them, whole pieces. It also applies what is found."""
    return min(width, max(1, int(width * part) // STATISTICS) * STATISTICS)


def _moments(data: Any, scratch: Any, epsilon: Any, head: int, over: Any = None) -> tuple[Any, Any]:
    """Mean and 1 / sqrt(variance + epsilon) of each row of a group, the first ``head`` columns by VectorE.

    ``over`` is ``mean_of_parts`` where rows are in several partitions.
    """
    lanes, count, width = data.shape
    parts = pieces(0, head, STATISTICS)
    moments = nl.ndarray((lanes, count, 2), dtype=nl.float32, buffer=nl.sbuf)
    for row in range(count):
        statistics = nl.ndarray((lanes, len(parts), 6), dtype=nl.float32, buffer=nl.sbuf)
        for part, (at, size) in enumerate(parts):
            nisa.bn_stats(dst=statistics[:, part, :], data=data[:, row, at : at + size])
        nisa.bn_aggr(dst=moments[:, row, :], data=statistics)
    mean, variance = moments[:, :, 0], moments[:, :, 1]
    if head < width:
        opposite, first, second = _column(lanes, count), _column(lanes, count), _column(lanes, count)
        nisa.tensor_scalar(dst=opposite, data=mean, op0=nl.multiply, operand0=-1.0)
        for row in range(count):
            for op, sums in ((nl.copy, first), (nl.square, second)):
                nisa.activation_reduce(
                    dst=scratch[:, row, head:width],
                    op=op,
                    data=data[:, row, head:width],
                    bias=opposite[:, row : row + 1],
                    reduce_op=nl.add,
                    reduce_res=sums[:, row : row + 1],
                )
        # Deviations from the head's mean: their mean is first / width, the mean of their squares the rest.
        shift, squares, spread = _column(lanes, count), _column(lanes, count), _column(lanes, count)
        nisa.tensor_scalar(dst=shift, data=first, op0=nl.multiply, operand0=1.0 / width)
        whole_mean = _column(lanes, count)
        nisa.tensor_tensor(dst=whole_mean, data1=mean, data2=shift, op=nl.add)
        nisa.scalar_tensor_tensor(
            dst=squares, data=variance, op0=nl.multiply, operand0=float(head), op1=nl.add, operand1=second
        )
        _multiply(shift, shift, shift)
        nisa.scalar_tensor_tensor(
            dst=spread, data=squares, op0=nl.multiply, operand0=1.0 / width, op1=nl.subtract, operand1=shift
        )
        mean, variance = whole_mean, spread
    if over is not None:
        mean, variance = _whole_rows(mean, variance, over)
    inverse = _column(lanes, count)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=variance, bias=epsilon[0:lanes, :])
    return mean, inverse


def _whole_rows(mean: Any, variance: Any, over: Any) -> tuple[Any, Any]:
    """Mean and variance of rows from those of their parts, [lanes, 1] each: theirs, and how far their means deviate."""
    lanes, count = mean.shape
    whole, squares = _column(lanes, count), _column(lanes, count)
    nisa.tensor_copy(dst=whole, src=over_parts(mean, over))
    nisa.tensor_tensor(dst=squares, data1=mean, data2=whole, op=nl.subtract)
    _multiply(squares, squares, squares)
    nisa.tensor_tensor(dst=squares, data1=squares, data2=variance, op=nl.add)
    return whole, over_parts(squares, over)


def _scale(result: Any, start: int, data: Any, mean: Any, inverse: Any, out: Any, scale: Any, offset: Any) -> None:
    """(data - mean) * inverse * scale + offset of a group, by way of ``out`` to its rows of ``result``."""
    lanes, count = inverse.shape
    for row in range(count):
        nisa.scalar_tensor_tensor(
            dst=out[:, row, :],
            data=data[:, row, :],
            op0=nl.subtract,
            operand0=mean[:, row : row + 1],
            op1=nl.multiply,
            operand1=scale[0:lanes, :],
        )
        nisa.scalar_tensor_tensor(
            dst=out[:, row, :],
            data=out[:, row, :],
            op0=nl.multiply,
            operand0=inverse[:, row : row + 1],
            op1=nl.add,
            operand1=offset[0:lanes, :],
        )
    store_group(result, start, out)


@nki.jit
def layernorm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, row by row.

    Args:
        x: [rows, width] in HBM, float32, bfloat16 or float16. A row has 32 KiB at most.
        weight, bias: [width] in that format.
        eps: added to the variance.

    Returns:
        [rows, width] in that format. Arithmetic is float32; the deviations times the weight are rounded to the format
        before they are scaled. Two cores share the rows, and few of them the partitions.
    """
    check_norm(x, weight)
    check_rows("bias", bias, weight.shape, x.dtype)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    parts = parts_of_rows(*x.shape)
    rows, target, width = in_parts(x, parts), in_parts(result, parts), x.shape[1] // parts
    scale, offset = load_to_all(weight, parts), load_to_all(bias, parts)
    epsilon, over = filled((128, 1), eps), mean_of_parts(parts)
    head = _head(width, 0.25 if nisa.get_nc_version() == nisa.nc_version.gen3 else 0.0)
    first, last = share(x.shape[0], 128 if parts == 1 else 1)
    waiting: list[Any] = []
    groups = row_groups(first * parts, last * parts, width, x.dtype)
    ahead = groups_ahead(width, x.dtype, 1, 5)
    loaded: list[Any] = []
    for index in range(len(groups)):
        load_ahead(loaded, groups, index + ahead + 1, [rows])
        start, data = groups[index][0], loaded[index][0]
        out = nl.ndarray(data.shape, dtype=x.dtype, buffer=nl.sbuf)
        mean, inverse = _moments(data, out, epsilon, head, over)
        # A group is scaled after the moments of the next one have begun, so that no engine waits for the other.
        for at, group, found, deviations, scaled in waiting:
            _scale(target, at, group, found, deviations, scaled, scale, offset)
        waiting = [(start, data, mean, inverse, out)]
    for at, group, found, deviations, scaled in waiting:
        _scale(target, at, group, found, deviations, scaled, scale, offset)
    return result


@nki.jit
def layernorm_backward(gradient: Any, x: Any, weight: Any, eps: float = 1e-5) -> Any:
    """Gradients of ``layernorm`` with respect to ``x``, ``weight`` and ``bias``.

    Args:
        gradient: [rows, width], the gradient of the result, in the format of ``x``.
        x, weight, eps: what ``layernorm`` was given; the moments are computed again.

    Returns:
        The gradients of x, [rows, width], of weight and of bias, [width], in the format of ``x``. Products are rounded
        to it before they are added up, in float32.
    """
    check_norm(x, weight)
    check_rows("gradient", gradient, x.shape, x.dtype)
    width = x.shape[1]
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    of_weight = nl.ndarray((width,), dtype=x.dtype, buffer=nl.shared_hbm)
    of_bias = nl.ndarray((width,), dtype=x.dtype, buffer=nl.shared_hbm)
    scale = load_to_all(weight)
    epsilon = filled((128, 1), eps)
    ones = filled((128, 1), 1.0, x.dtype)
    totals, plain = column_totals(width), column_totals(width)
    groups = own_groups(x)
    ahead = groups_ahead(width, x.dtype, 2, 9)
    loaded: list[Any] = []
    # Groups that have their moments, and their sums: one of each is in flight, where SBUF holds them, so that the steps
    # of one group wait for ScalarE while VectorE has others to do.
    begun: list[Any] = []
    summed: list[Any] = []
    for index in range(len(groups)):
        load_ahead(loaded, groups, index + ahead + 1, [x, gradient])
        for group in begun:
            _backward_products(scale, group)
        for group in summed:
            _backward_result(result, group)
        begun, summed = [_backward_moments(groups[index][0], loaded[index], plain, scale, epsilon, ones)], begun
        for group in summed:
            _backward_sums(totals, group)
        if width * item_bytes(x.dtype) > 2 * GROUP_BYTES:
            _backward_products(scale, begun[0])
            _backward_sums(totals, begun[0])
            _backward_result(result, begun[0])
            begun = []
    for group in begun:
        _backward_products(scale, group)
    for group in summed:
        _backward_result(result, group)
    for group in begun:
        _backward_sums(totals, group)
        _backward_result(result, group)
    store_columns(of_weight, totals, len(groups) > 0, 0)
    store_columns(of_bias, plain, len(groups) > 0, 1)
    return result, of_weight, of_bias


def _sum_rows(sums: Any, source: Any, scratch: Any) -> None:
    for row in range(source.shape[1]):
        nisa.activation_reduce(
            dst=scratch[:, row, :],
            op=nl.copy,
            data=source[:, row, :],
            reduce_op=nl.add,
            reduce_res=sums[:, row : row + 1],
        )


def _backward_moments(start: int, loaded: Any, plain: Any, scale: Any, epsilon: Any, ones: Any) -> Any:
    """A group with its moments, the gradient times the weight, and the sum of that in each row."""
    data, arrived = loaded
    lanes, count, width = data.shape
    # NeuronCore-v2 lets VectorE or GpSimdE reach SBUF, not both.
    alone = nisa.get_nc_version() == nisa.nc_version.gen2
    third = nisa.engine.vector if alone else nisa.engine.gpsimd
    weighted = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf)
    product = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf)
    for row in range(count):
        nisa.tensor_tensor(
            dst=weighted[:, row, :], data1=arrived[:, row, :], data2=scale[0:lanes, :], op=nl.multiply, engine=third
        )
        add_columns(plain, arrived[:, row, :], ones[0:lanes, :])
    mean, inverse = _moments(data, product, epsilon, width)
    level, along = _column(lanes, count), _column(lanes, count)
    _sum_rows(level, weighted, product)
    return start, data, arrived, weighted, product, mean, inverse, level, along


def _backward_products(scale: Any, group: Any) -> None:
    """Gradient times deviation, and the sum of that times the weight in each row."""
    _, data, arrived, _, product, mean, _, _, along = group
    lanes, count, _ = data.shape
    for row in range(count):
        nisa.scalar_tensor_tensor(
            dst=product[:, row, :],
            data=data[:, row, :],
            op0=nl.subtract,
            operand0=mean[:, row : row + 1],
            op1=nl.multiply,
            operand1=arrived[:, row, :],
        )
        # In the place of what arrived, which is not needed any more.
        _multiply(arrived[:, row, :], product[:, row, :], scale[0:lanes, :])
    _sum_rows(along, arrived, arrived)


def _backward_sums(totals: Any, group: Any) -> None:
    """What x contributes to its gradient, in the place of what arrived, and the sums for the weight."""
    _, data, arrived, _, product, mean, inverse, level, along = group
    lanes, count, width = data.shape
    slope, offset = _backward_line(mean, inverse, along, level, width)
    weights = nl.ndarray((lanes, count), dtype=data.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=weights, src=inverse)
    for row in range(count):
        nisa.activation(
            dst=arrived[:, row, :],
            op=nl.copy,
            data=data[:, row, :],
            scale=slope[:, row : row + 1],
            bias=offset[:, row : row + 1],
        )
        add_columns(totals, product[:, row, :], weights[:, row : row + 1])


def _backward_result(result: Any, group: Any) -> None:
    """The gradient of x to its rows of ``result``."""
    start, _, arrived, weighted, _, _, inverse, _, _ = group
    for row in range(inverse.shape[1]):
        nisa.scalar_tensor_tensor(
            dst=weighted[:, row, :],
            data=weighted[:, row, :],
            op0=nl.multiply,
            operand0=inverse[:, row : row + 1],
            op1=nl.add,
            operand1=arrived[:, row, :],
        )
    store_group(result, start, weighted)


def _backward_line(mean: Any, inverse: Any, along: Any, level: Any, width: int) -> tuple[Any, Any]:
    """What x contributes to its gradient in each row, slope x + offset.

    The slope is -along / width / deviation^3, the offset -slope mean - level / width / deviation; ``along`` sums
    gradient weight (x - mean), ``level`` gradient weight.
    """
    lanes, count = inverse.shape
    square, cube, slope, offset = (
        _column(lanes, count),
        _column(lanes, count),
        _column(lanes, count),
        _column(lanes, count),
    )
    _multiply(square, inverse, inverse)
    _multiply(cube, square, inverse)
    nisa.scalar_tensor_tensor(
        dst=slope, data=along, op0=nl.multiply, operand0=-1.0 / width, op1=nl.multiply, operand1=cube
    )
    nisa.scalar_tensor_tensor(
        dst=square, data=level, op0=nl.multiply, operand0=-1.0 / width, op1=nl.multiply, operand1=inverse
    )
    _multiply(cube, slope, mean)
    nisa.tensor_tensor(dst=offset, data1=square, data2=cube, op=nl.subtract)
    return slope, offset


def _arguments(problem: Problem) -> tuple[Any, ...]:
    rows, width, dtype = problem.sizes["rows"], problem.sizes["width"], problem.dtype
    return array(rows, width, dtype=dtype), array(width, dtype=dtype), array(width, dtype=dtype)


def _backward_arguments(problem: Problem) -> tuple[Any, ...]:
    x, weight, _ = _arguments(problem)
    gradient = array(*x.shape, dtype=problem.dtype)
    return gradient, x, weight


CONTRACTS = (
    Contract(
        name="layernorm",
        kernel=layernorm,
        sizes=("rows", "width"),
        fixed=("width",),
        limits=row_limits,
        arguments=_arguments,
        axes=lambda p: rows_axis(p, p.sizes["width"]),
        flops=lambda p: 8 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, 2 * p.sizes["rows"] * p.sizes["width"], 2 * p.sizes["width"]),
        summary="(x - mean) / sqrt(variance + eps) * weight + bias of each row",
    ),
    Contract(
        name="layernorm_backward",
        kernel=layernorm_backward,
        sizes=("rows", "width"),
        fixed=("width",),
        limits=row_limits,
        arguments=_backward_arguments,
        axes=lambda p: rows_axis(p, p.sizes["width"]),
        flops=lambda p: 18 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, 3 * p.sizes["rows"] * p.sizes["width"], 3 * p.sizes["width"]),
        summary="gradients of layernorm with respect to x, weight and bias",
    ),
)
