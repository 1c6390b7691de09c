"""What VectorE's instructions share: which engines, which operands, and how an operator is applied to tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.isa.alu import AluOp
from trnsim.isa.instruction import (
    Vector,
    column,
    require,
    target,
)
from trnsim.machine import core as machine
from trnsim.machine.form import PSUM, Form
from trnsim.machine.tensor import NkiTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


INTEGERS = ("int", "uint", "bool")
WORDS = ("int32", "uint32")
COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")
FP32_MIN = np.finfo(np.float32).min
LANES = 128

# Operators that GpSimdE computes on 32-bit integers exactly; sums and products wrap around.
EXACT = {
    "add", "subtract", "multiply", "maximum", "minimum", "abs_max", "abs_min", "equal", "not_equal", "less",
    "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "logical_xor",
}  # fmt: skip
ADDRESS = ("add", "subtract", "multiply")


# -- shared ------------------------------------------------------------------------------------------------------------


def member_name(member: Any) -> str:
    """The name of an enum's member, or of what stands for it."""
    return str(getattr(member, "name", member))


def vector_gpsimd(*forms: Form) -> tuple[str, ...]:
    """GpSimdE does not reach PSUM."""
    return ("vector",) if any(x.memory == PSUM for x in forms) else ("vector", "gpsimd")


def forbid_two_psum(name1: str, form1: Form, name2: str, form2: Form) -> None:
    require(
        not (form1.memory == form2.memory == PSUM),
        f"{name1} and {name2} cannot both be in PSUM",
        name2,
        "PSUM",
        "one input in PSUM",
    )


def require_binary(op: AluOp, name: str) -> None:
    require(not op.unary and op.name != "average", "a binary operator is needed", name, op, "a binary operator")


def require_operand(op: AluOp, name: str, operand: Vector, label: str) -> None:
    """A binary operator has an operand, a unary one has none (or the number 0)."""
    require(
        op.name not in ("average", "bypass"),
        "this operator is not supported here",
        name,
        op,
        "an operator of two operands or one",
    )
    if op.unary and isinstance(operand, Form):
        raise CompilerError(f"{op.name} takes no second operand", operand=label, value=str(operand), limit="None or 0")
    if not op.unary and operand is None:
        raise CompilerError(f"{op.name} needs a second operand", operand=label, value=None, limit="number or tensor")


def require_bits(op: AluOp, **forms: Form) -> None:
    """Bitvec operators take integers; the inputs have one size."""
    inputs = [form for name, form in forms.items() if name != "dst"]
    for name, form in forms.items():
        require(form.dtype.kind in INTEGERS, f"{op.name} takes integers", name, form.dtype, "an integer dtype")
        require(
            name == "dst" or form.dtype.itemsize == inputs[0].dtype.itemsize,
            "inputs of a bitvec operator have one size",
            name,
            form.dtype,
            inputs[0].dtype,
        )


def scalar_operand(op: AluOp, operand: Any, data: NkiTensor, label: str, instruction: str) -> Any:
    """The second operand of ``op`` in float32, ready to broadcast; None for a unary one.

    Raises:
        CompilerError: a unary operator is given a number other than 0, which it would ignore.
    """
    if not op.unary:
        return column(operand, data)
    if operand:
        raise CompilerError(
            f"{op.name} takes no second operand",
            instruction=instruction,
            operand=label,
            value=operand,
            limit="None or 0",
            generation=machine.current().generation,
        )
    return None


def compute(op: AluOp, x: Any, y: Any, reverse: bool = False) -> NDArray[np.float32]:
    """A new array ``op(x, y)``, or ``op(y, x)``."""
    result: NDArray[np.float32] = op.function(y, x) if reverse and not op.unary else op.function(x, y)
    return result


def apply(op: AluOp, x: Any, y: Any, dst: NkiTensor, reverse: bool = False) -> NDArray[np.float32] | None:
    """``op(x, y)``, or ``op(y, x)``, written into dst at once where that is float32 (NumPy minds overlaps)."""
    if reverse and not op.unary:
        x, y = y, x
    function = op.function
    if function.__class__ is np.ufunc and dst.dtype == "float32" and dst.shape in (x.shape, y.shape):
        function(x, y, out=target(dst))
        return None
    result: NDArray[np.float32] = function(x, y)
    return result


def compute_bits(dst: NkiTensor, op: AluOp, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """A bitvec operator on the bits of integers of one size; the result is cut or extended to dst."""
    result: NDArray[Any] = op(x, y.view(x.dtype) if y.ndim and y.dtype != x.dtype else y)
    return result.astype(dst.dtype.numpy, copy=False)


def scalar_bits(dst: NkiTensor, data: NkiTensor, steps: Any) -> NDArray[Any]:
    value = data.array()
    for op, operand, reverse in steps:
        if op is None:
            continue
        if op.unary:
            value = op(value)
            continue
        if operand.__class__ is NkiTensor:
            other = operand.array().reshape(-1, *(1,) * (value.ndim - 1)).view(value.dtype)
        else:
            other = np.array([int(operand) & 0xFFFFFFFF]).astype(value.dtype)
        value = op(np.broadcast_to(other, value.shape), value) if reverse else op(value, other)
    return value.astype(dst.dtype.numpy, copy=False)


def compute_exact(dst: NkiTensor, op: AluOp, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any] | None:
    """32-bit integer arithmetic that wraps around; mixed signs compare by value."""
    if x.dtype != y.dtype or op.name in ("abs_max", "abs_min"):  # the magnitude of -2**31 is no int32
        x, y = x.astype(np.int64), y.astype(np.int64)
    elif op.function.__class__ is np.ufunc and x.dtype == dst.dtype.numpy and x.shape == dst.shape:
        op.function(x, y, out=target(dst))
        return None
    result: NDArray[Any] = op(x, y)
    return result.astype(dst.dtype.numpy, copy=False)


def is_address(dst: NkiTensor, data: NkiTensor, op: AluOp, operand: Any) -> bool:
    """Whether a step of ``tensor_scalar`` is integer arithmetic of addresses."""
    return dst.dtype in WORDS and data.dtype in WORDS and op.name in ADDRESS and isinstance(operand, (int, np.integer))


def comparison(op: AluOp) -> Any:
    """The ufunc of a comparison, with truth values for results."""
    return getattr(np, op.name)
