"""Element-wise operators that travel through SBUF once: bias, scale, activation, residual, and their gradients."""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Axis, Contract, Problem
from trnsim.kernels.shapes import array, flat_axis, moved, row_limits, rows_axis
from trnsim.kernels.tiles import (
    FLAT,
    check_format,
    check_rows,
    check_width,
    load_group,
    load_to_all,
    own_groups,
    pieces,
    share,
    store_group,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

# Of the approximation of GeLU by tanh (Hendrycks and Gimpel, arXiv 1606.08415): 2 sqrt(2 / pi), and of the cube.
TANH_LINEAR, TANH_CUBIC = 1.5957691216057308, 0.044715


def activation_of(name: str) -> Any:
    """ScalarE's function of a name: identity, relu, silu, gelu (exact), gelu_tanh or sigmoid."""
    assert name in ("identity", "relu", "silu", "gelu", "gelu_tanh", "sigmoid"), (
        f"no activation {name}: there are identity, relu, silu, gelu, gelu_tanh and sigmoid"
    )
    if name == "relu":
        return nl.relu
    if name == "silu":
        return nl.silu
    if name == "gelu":
        return nl.gelu
    if name == "gelu_tanh":
        return nl.gelu_apprx_tanh
    return nl.sigmoid if name == "sigmoid" else nl.copy


def check_slope(name: str) -> None:
    """Refuse an activation whose derivative there is not."""
    known = ("relu", "silu", "gelu", "gelu_tanh", "sigmoid")
    assert name in known, f"no derivative of {name}: there are relu, silu, gelu, gelu_tanh and sigmoid"


def slope_of(data: Any, name: str) -> Any:
    """The derivative of an activation at ``data``, a tile in SBUF, in its format, as is what it is made of.

    That of gelu_tanh(x) = x s(u), where s is the sigmoid and u = x (l + c x^2), is s + s (1 - s) x (l + 3 c x^2).
    """
    if name == "relu":
        slope = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=slope, data=data, op0=nl.greater, operand0=0.0, engine=nisa.engine.vector)
        return slope
    if name in ("silu", "gelu"):
        return active(data, nl.silu_dx if name == "silu" else nl.gelu_dx)
    if name == "sigmoid":
        value = active(data, nl.sigmoid)
        return combined(value, active(value, nl.square), nl.subtract)
    cube = active(data, nl.square, (TANH_LINEAR * TANH_CUBIC) ** 0.5)
    inner, rise = (nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf) for _ in range(2))
    for polynomial, factor in ((inner, 1.0), (rise, 3.0)):
        nisa.tensor_scalar(
            dst=polynomial,
            data=cube,
            op0=nl.multiply,
            operand0=factor,
            op1=nl.add,
            operand1=TANH_LINEAR,
            engine=nisa.engine.vector,
        )
        combined(polynomial, data, nl.multiply)
    value = active(inner, nl.sigmoid)
    bell = active(value, nl.square)
    nisa.tensor_tensor(dst=bell, data1=value, data2=bell, op=nl.subtract, engine=nisa.engine.vector)
    return combined(combined(bell, rise, nl.multiply), value, nl.add)


def active(data: Any, op: Any, scale: float = 1.0) -> Any:
    """ScalarE's function ``op`` of scale * data, a tile, in its format."""
    result = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf)
    nisa.activation(dst=result, op=op, data=data, scale=scale)
    return result


def combined(first: Any, second: Any, op: Any) -> Any:
    """``first`` op ``second``, tiles, in the place of the first."""
    nisa.tensor_tensor(dst=first, data1=first, data2=second, op=op, engine=nisa.engine.vector)
    return first


def flat_tiles(tensor: Any) -> list[tuple[int, int, int]]:
    """(first element, partitions, elements a partition) of the tiles of this core's part of a tensor."""
    first, last = share(tensor.size, 128 * FLAT)
    tiles = []
    for at, length in pieces(first, last, 128 * FLAT):
        lanes = min(128, length)
        tiles.append((at, lanes, length // lanes))
        if length % lanes:
            tiles.append((at + length // lanes * lanes, length % lanes, 1))
    return tiles


def flat_view(tensor: Any, tile: tuple[int, int, int]) -> Any:
    """The elements of a tile in HBM, [partitions, elements a partition]."""
    at, lanes, length = tile
    return tensor.ap(pattern=[[length, lanes], [1, length]], offset=at)


def load_flat(tensor: Any, tile: tuple[int, int, int]) -> Any:
    """The elements of a tile in SBUF."""
    loaded = nl.ndarray((tile[1], tile[2]), dtype=tensor.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=flat_view(tensor, tile))
    return loaded


@nki.jit
def elementwise(
    x: Any, bias: Any = None, residual: Any = None, activation: str = "identity", scale: float = 1.0
) -> Any:
    """activation(scale * x + bias) + residual.

    Args:
        x: [rows, width] in HBM, float32, bfloat16 or float16. A row has 32 KiB at most where there is a bias.
        bias: [width] in that format, added to each row; or None.
        residual: as ``x``, added to the result; or None.
        activation: ``identity``, ``relu``, ``silu``, ``gelu``, ``gelu_tanh`` or ``sigmoid``.
        scale: a number.

    Returns:
        [rows, width] in that format; what is rounded to it on the way is scale * x + bias where there is a bias, and
        the activation where there is a residual. Two cores share the elements.
    """
    assert len(x.shape) == 2, f"x is {tuple(x.shape)}: it must be [rows, width]"
    check_format("x", x.dtype)
    if residual is not None:
        check_rows("residual", residual, x.shape, x.dtype)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    op = activation_of(activation)
    if bias is not None:
        check_rows("bias", bias, (x.shape[1],), x.dtype)
        check_width(x.shape[1], x.dtype)
        offset = load_to_all(bias)
        for start, lanes, count in own_groups(x):
            data = load_group(x, start, lanes, count)
            for row in range(count):
                nisa.scalar_tensor_tensor(
                    dst=data[:, row, :],
                    data=data[:, row, :],
                    op0=nl.multiply,
                    operand0=scale,
                    op1=nl.add,
                    operand1=offset[0:lanes, :],
                )
            added = load_group(residual, start, lanes, count) if residual is not None else None
            store_group(result, start, _finish(data, op, activation, 1.0, added))
        return result
    for tile in flat_tiles(x):
        data = load_flat(x, tile)
        added = load_flat(residual, tile) if residual is not None else None
        nisa.dma_copy(dst=flat_view(result, tile), src=_finish(data, op, activation, scale, added))
    return result


def _finish(data: Any, op: Any, activation: str, scale: float, added: Any) -> Any:
    """op(scale * data) + added, on as few engines as it takes."""
    if activation == "identity" and added is not None:
        out = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf)
        if scale == 1.0:
            nisa.tensor_tensor(dst=out, data1=data, data2=added, op=nl.add, engine=nisa.engine.vector)
        else:
            nisa.scalar_tensor_tensor(dst=out, data=data, op0=nl.multiply, operand0=scale, op1=nl.add, operand1=added)
        return out
    if activation == "identity" and scale == 1.0:
        return data
    out = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf)
    if activation == "identity":
        nisa.tensor_scalar(dst=out, data=data, op0=nl.multiply, operand0=scale)
    else:
        nisa.activation(dst=out, op=op, data=data, scale=scale)
    if added is not None:
        nisa.tensor_tensor(dst=out, data1=out, data2=added, op=nl.add, engine=nisa.engine.vector)
    return out


@nki.jit
def activation_backward(gradient: Any, x: Any, activation: str = "silu") -> Any:
    """The gradient of an activation's argument: gradient * activation'(x).

    Args:
        gradient, x: of one shape and format (float32, bfloat16 or float16) in HBM.
        activation: ``relu``, ``silu``, ``gelu`` (exact), ``gelu_tanh`` or ``sigmoid``.

    Returns:
        The gradient of x in that shape and format; the derivative, and what it is made of, is rounded to it first.
    """
    check_format("x", x.dtype)
    check_rows("gradient", gradient, x.shape, x.dtype)
    check_slope(activation)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for tile in flat_tiles(x):
        data, arrived = load_flat(x, tile), load_flat(gradient, tile)
        out = combined(slope_of(data, activation), arrived, nl.multiply)
        nisa.dma_copy(dst=flat_view(result, tile), src=out)
    return result


@nki.jit
def gated_activation(gate: Any, up: Any, activation: str = "silu") -> Any:
    """activation(gate) * up.

    Args:
        gate, up: of one shape and format (float32, bfloat16 or float16) in HBM.
        activation: as ``elementwise`` takes.

    Returns:
        The product in that shape and format; the activation is rounded to it first.
    """
    check_format("gate", gate.dtype)
    check_rows("up", up, gate.shape, gate.dtype)
    result = nl.ndarray(gate.shape, dtype=gate.dtype, buffer=nl.shared_hbm)
    op = activation_of(activation)
    for tile in flat_tiles(gate):
        first, second = load_flat(gate, tile), load_flat(up, tile)
        nisa.dma_copy(dst=flat_view(result, tile), src=combined(active(first, op), second, nl.multiply))
    return result


@nki.jit
def gated_activation_backward(gradient: Any, gate: Any, up: Any, activation: str = "silu") -> Any:
    """Gradients of ``gated_activation`` with respect to ``gate`` and ``up``.

    Args:
        gradient: of the result, in its shape and format.
        gate, up: what ``gated_activation`` was given.
        activation: ``relu``, ``silu``, ``gelu`` (exact), ``gelu_tanh`` or ``sigmoid``.

    Returns:
        (gradient * up * activation'(gate), gradient * activation(gate)) in that shape and format; factors are rounded
        to it.
    """
    check_format("gate", gate.dtype)
    check_rows("up", up, gate.shape, gate.dtype)
    check_rows("gradient", gradient, gate.shape, gate.dtype)
    of_gate = nl.ndarray(gate.shape, dtype=gate.dtype, buffer=nl.shared_hbm)
    of_up = nl.ndarray(gate.shape, dtype=gate.dtype, buffer=nl.shared_hbm)
    check_slope(activation)
    op = activation_of(activation)
    for tile in flat_tiles(gate):
        arrived, first, second = load_flat(gradient, tile), load_flat(gate, tile), load_flat(up, tile)
        for_up, for_gate = active(first, op), slope_of(first, activation)
        for factor in (for_up, for_gate):
            combined(factor, arrived, nl.multiply)
        combined(for_gate, second, nl.multiply)
        nisa.dma_copy(dst=flat_view(of_up, tile), src=for_up)
        nisa.dma_copy(dst=flat_view(of_gate, tile), src=for_gate)
    return of_gate, of_up


_ACTIVATIONS = ("identity", "relu", "silu", "gelu", "gelu_tanh", "sigmoid")
_SLOPES = ("silu", "gelu")


def _x(problem: Problem) -> Any:
    return array(problem.sizes["rows"], problem.sizes["width"], dtype=problem.dtype)


def _arguments(problem: Problem) -> tuple[Any, ...]:
    bias = array(problem.sizes["width"], dtype=problem.dtype) if problem.options["bias"] else None
    residual = _x(problem) if problem.options["residual"] else None
    return _x(problem), bias, residual, problem.options["activation"]


def _axes(problem: Problem) -> tuple[Axis, ...]:
    if problem.options["bias"]:
        return rows_axis(problem, problem.sizes["width"])
    return flat_axis(problem)


def _flat(name: str, kernel: Any, inputs: int, outputs: int, options: dict[str, Any], summary: str) -> Contract:
    """The contract of a kernel of ``inputs`` tensors of one shape and an activation."""
    return Contract(
        name=name,
        kernel=kernel,
        sizes=("rows", "width"),
        fixed=("width",),
        options=options,
        arguments=lambda p: (*(_x(p) for _ in range(inputs)), p.options["activation"]),
        axes=flat_axis,
        flops=lambda p: 2 * inputs * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, (inputs + outputs) * p.sizes["rows"] * p.sizes["width"]),
        summary=summary,
    )


CONTRACTS = (
    Contract(
        name="elementwise",
        kernel=elementwise,
        sizes=("rows", "width"),
        options={"activation": _ACTIVATIONS, "bias": (0, 1), "residual": (0, 1)},
        fixed=("width",),
        limits=lambda p: row_limits(p) if p.options["bias"] else {},
        arguments=_arguments,
        axes=_axes,
        flops=lambda p: 3 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: moved(p, (2 + int(p.options["residual"])) * p.sizes["rows"] * p.sizes["width"]),
        summary="activation(x + bias) + residual",
    ),
    _flat(
        "gated_activation", gated_activation, 2, 1, {"activation": ("silu", *(a for a in _ACTIVATIONS if a != "silu"))},
        "activation(gate) * up",
    ),
    _flat(
        "gated_activation_backward", gated_activation_backward, 3, 2, {"activation": _SLOPES},
        "gradients of gated_activation with respect to gate and up",
    ),
    _flat("activation_backward", activation_backward, 2, 1, {"activation": _SLOPES}, "gradient * activation'(x)"),
)  # fmt: skip
