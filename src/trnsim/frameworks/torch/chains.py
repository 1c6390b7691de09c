"""Element-wise aten calls as instructions: one pass through SBUF, in float32 between them, rounded at the end.

A *chain* is steps on tiles: ``(instruction, operand, ...)``, where an operand is the number of a value (inputs first,
then results of steps) or a float. Instructions are those of VectorE's arithmetic (``nisa.tensor_tensor``,
``nisa.tensor_scalar``) and ScalarE's functions (``nisa.activation``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trnsim import nki
from trnsim.kernels.blocks import TILE_M, TILE_N
from trnsim.kernels.elementwise import flat_tiles, flat_view, load_flat
from trnsim.kernels.matmul import multiply
from trnsim.kernels.tiles import share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

Step = tuple[Any, ...]
Steps = tuple[Step, ...]

_FUNCTIONS = frozenset(
    ("exp", "log", "tanh", "sigmoid", "sqrt", "rsqrt", "erf", "silu", "gelu", "gelu_apprx_tanh", "square", "abs")
)


@nki.jit
def chain(tensors: Any, steps: Steps, dtype: Any) -> Any:
    """The last of ``steps`` on ``tensors``, element by element.

    Args:
        tensors: a tuple of tensors of one shape in HBM, float32, bfloat16 or float16.
        steps: as the module says; at least one.
        dtype: of the result.

    Returns:
        A tensor of that shape. Two cores share the elements.
    """
    result = nl.ndarray(tensors[0].shape, dtype=dtype, buffer=nl.shared_hbm)
    for tile in flat_tiles(tensors[0]):
        values = [load_flat(tensor, tile) for tensor in tensors]
        for number, (name, *operands) in enumerate(steps):
            kind = dtype if number == len(steps) - 1 else nl.float32
            out = nl.ndarray((tile[1], tile[2]), dtype=kind, buffer=nl.sbuf)
            _step(out, name, [values[o] if isinstance(o, int) else o for o in operands])
            values.append(out)
        nisa.dma_copy(dst=flat_view(result, tile), src=values[-1])
    return result


def _step(out: Any, name: str, operands: list[Any]) -> None:
    first = operands[0]
    if name in _FUNCTIONS:
        nisa.activation(dst=out, op=getattr(nl, name), data=first)
    elif name == "reciprocal":
        nisa.reciprocal(dst=out, data=first)
    elif isinstance(operands[1], float):
        nisa.tensor_scalar(dst=out, data=first, op0=getattr(nl, name), operand0=operands[1], engine=nisa.engine.vector)
    elif isinstance(first, float):
        op = getattr(nl, name)
        nisa.tensor_scalar(dst=out, data=operands[1], op0=op, operand0=first, reverse0=True, engine=nisa.engine.vector)
    else:
        nisa.tensor_tensor(dst=out, data1=first, data2=operands[1], op=getattr(nl, name), engine=nisa.engine.vector)


@nki.jit
def product(lhs: Any, rhs: Any, contract_lhs: int, contract_rhs: int, dtype: Any) -> Any:
    """``kernels.matmul.matmul`` with a format of its result's own, as casts on the way to TensorE want it."""
    m_size, n_size = lhs.shape[1 - contract_lhs], rhs.shape[1 - contract_rhs]
    result = nl.ndarray((m_size, n_size), dtype=dtype, buffer=nl.shared_hbm)
    columns, rows = (0, n_size), (0, m_size)
    if n_size >= m_size:
        columns = share(n_size, TILE_N)
    else:
        rows = share(m_size, TILE_M)
    multiply(result, lhs, rhs, (contract_lhs, contract_rhs), rows, columns)
    return result


class Unmatched(Exception):  # noqa: N818
    """These arguments have no chain; the message says why."""


def _number(value: Any, name: str = "operand") -> float:
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, (int, float)):
        raise Unmatched(f"{name} is a {type(value).__name__}")
    return float(value)


def _scaled(op: str) -> Callable[..., tuple[list[Any], Steps]]:
    """What makes a op (alpha * b), where b may be a number."""

    def make(a: Any, b: Any, alpha: Any = 1) -> tuple[list[Any], Steps]:
        if not _is_tensor(b):
            return [a], ((op, 0, _number(b) * _number(alpha)),)
        if alpha == 1:
            return [a, b], ((op, 0, 1),)
        return [a, b], (("multiply", 1, _number(alpha)), (op, 0, 2))

    return make


def _two(op: str) -> Callable[..., tuple[list[Any], Steps]]:
    def make(a: Any, b: Any) -> tuple[list[Any], Steps]:
        if not _is_tensor(b):
            return [a], ((op, 0, _number(b)),)
        if not _is_tensor(a):
            return [b], ((op, _number(a), 0),)
        return [a, b], ((op, 0, 1),)

    return make


def _one(op: str) -> Callable[..., tuple[list[Any], Steps]]:
    return lambda a: ([a], ((op, 0),))


def _divide(a: Any, b: Any, rounding_mode: Any = None) -> tuple[list[Any], Steps]:
    if rounding_mode is not None:
        raise Unmatched(f"rounding_mode {rounding_mode}")
    return _two("divide")(a, b)


def _power(a: Any, b: Any) -> tuple[list[Any], Steps]:
    if _is_tensor(a) and not _is_tensor(b) and b == 2:
        return [a], (("square", 0),)
    return _two("power")(a, b)


def _rsub(a: Any, b: Any, alpha: Any = 1) -> tuple[list[Any], Steps]:
    if _is_tensor(b) or alpha != 1:
        return _scaled("subtract")(b, a, alpha)
    return [a], (("subtract", _number(b), 0),)


def _third(op: str) -> Callable[..., tuple[list[Any], Steps]]:
    """What makes a + value * (b op c)."""

    def make(a: Any, b: Any, c: Any, value: Any = 1) -> tuple[list[Any], Steps]:
        return [a, b, c], ((op, 1, 2), ("multiply", 3, _number(value)), ("add", 0, 4))

    return make


def _lerp(a: Any, b: Any, weight: Any) -> tuple[list[Any], Steps]:
    if _is_tensor(weight):
        return [a, b, weight], (("subtract", 1, 0), ("multiply", 3, 2), ("add", 0, 4))
    return [a, b], (("subtract", 1, 0), ("multiply", 2, _number(weight)), ("add", 0, 3))


def _clamp(a: Any, low: Any = None, high: Any = None) -> tuple[list[Any], Steps]:
    steps: list[Step] = []
    for op, limit in (("maximum", low), ("minimum", high)):
        if limit is not None:
            steps.append((op, len(steps), _number(limit)))
    if not steps:
        raise Unmatched("no limits")
    return [a], tuple(steps)


def _gelu(a: Any, approximate: str = "none") -> tuple[list[Any], Steps]:
    return [a], (("gelu" if approximate == "none" else "gelu_apprx_tanh", 0),)


def _sigmoid_backward(gradient: Any, y: Any) -> tuple[list[Any], Steps]:
    return [gradient, y], (("square", 1), ("subtract", 1, 2), ("multiply", 0, 3))


def _tanh_backward(gradient: Any, y: Any) -> tuple[list[Any], Steps]:
    return [gradient, y], (("square", 1), ("subtract", 1.0, 2), ("multiply", 0, 3))


def _threshold_backward(gradient: Any, x: Any, threshold: Any) -> tuple[list[Any], Steps]:
    return [gradient, x], (("greater", 1, _number(threshold)), ("multiply", 0, 2))


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dim") and value.dim() > 0


#: Operators of aten by name: what makes (tensors, steps) of their arguments.
CHAINS: dict[str, Callable[..., tuple[list[Any], Steps]]] = {
    **{name: _one(name) for name in ("exp", "log", "tanh", "sigmoid", "sqrt", "erf", "abs", "rsqrt", "reciprocal")},
    "neg": lambda a: ([a], (("multiply", 0, -1.0),)),
    "square": _one("square"),
    "silu": _one("silu"),
    "gelu": _gelu,
    "add": _scaled("add"),
    "sub": _scaled("subtract"),
    "rsub": _rsub,
    "mul": _two("multiply"),
    "div": _divide,
    "maximum": _two("maximum"),
    "minimum": _two("minimum"),
    "pow": _power,
    "addcmul": _third("multiply"),
    "addcdiv": _third("divide"),
    "lerp": _lerp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda a, high: _clamp(a, None, high),
    "sigmoid_backward": _sigmoid_backward,
    "tanh_backward": _tanh_backward,
    "threshold_backward": _threshold_backward,
}
