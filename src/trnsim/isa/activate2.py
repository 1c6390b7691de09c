"""ScalarE of NeuronCore-v4: activation with a choice of operators before the function and of reductions after it.

Documented in the NKI reference (``nki.isa.activate2``, release 0.4). The accumulators are those of ``activation``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import Activation, AluOp
from trnsim.isa.constants import reduce_cmd as ReduceCmd
from trnsim.isa.instruction import (
    In,
    OptionalOut,
    Out,
    Vector,
    column,
    instruction,
    require,
    require_numbers,
    require_same_size,
    require_vector,
    write,
)
from trnsim.isa.reductions import accumulator
from trnsim.isa.scalar import activation_work
from trnsim.isa.work import Work
from trnsim.machine.form import Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.core import Core

_STATE = "scalar_accumulator"
_COMMANDS = ("idle", "reset", "reduce", "reset_reduce")
_REDUCTIONS = ("add", "maximum", "minimum", "abs_max", "abs_min")
_PAIRS = (
    ("multiply", "add"), ("multiply", "subtract"), ("multiply", "bypass"), ("add", "bypass"), ("subtract", "bypass"),
    ("bypass", "bypass"),
)  # fmt: skip


def _command(reduce_cmd: Any) -> str:
    return str(getattr(reduce_cmd, "name", reduce_cmd))


def _touched(seen: dict[str, Any]) -> str:
    return "" if _command(seen["reduce_cmd"]) == "idle" and seen["reduce_res"] is None else _STATE


@instruction("nki.isa.activate2", engines="scalar", generations="v4", state=_touched, indirect="dst data")
def activate2(
    dst: Out,
    op: Activation,
    data: In,
    imm0: Vector,
    imm1: Vector,
    op0: AluOp,
    op1: AluOp,
    relu_param: Vector = 0.0,  # type: ignore[assignment]
    reverse0: bool = False,
    reverse1: bool = False,
    reduce_op: AluOp | None = None,
    reduce_res: OptionalOut = None,
    reduce_cmd: Any = ReduceCmd.idle,
) -> None:
    """dst[p, i] = op(op1(op0(data[p, i], imm0[p]), imm1[p])) in float32, reduced over i into the lane's accumulator.

    Six pairs (op0, op1) exist; ``reverse0`` and ``reverse1`` swap the operands of one that is not ``bypass``.
    ``relu_param`` is prelu's slope below zero. ``reduce_cmd`` and ``reduce_res`` are as in ``activation``.
    """
    require_numbers(dst=dst, data=data, reduce_res=reduce_res)
    require_same_size(dst, data, names=("data",))
    pair = (op0.name, op1.name)
    require(pair in _PAIRS, "this pair of operators does not exist", "op1", pair, _PAIRS)
    for reverse, operator, name in ((reverse0, op0, "reverse0"), (reverse1, op1, "reverse1")):
        if reverse and operator.name == "bypass":
            raise CompilerError(f"{name} needs an operator", operand=name, value=True, limit="another than nl.bypass")
    for name, value, operator in (("imm0", imm0, op0), ("imm1", imm1, op1)):
        if value is None and operator.name != "bypass":
            raise CompilerError(f"{name} must be a number or a tensor", operand=name, value=None)
        require_vector(value, data, name)
        if isinstance(value, Form):
            require_numbers(**{name: value})
    if isinstance(imm0, Form) and isinstance(imm1, Form):
        require(imm0.dtype == imm1.dtype, "imm0 and imm1 must have the same dtype", "imm1", imm1.dtype, imm0.dtype)
    require_vector(relu_param, data, "relu_param")
    require_vector(reduce_res, data, "reduce_res")
    cmd = _command(reduce_cmd)
    require(cmd in _COMMANDS, "this command is not supported here", "reduce_cmd", cmd, _COMMANDS)
    if reduce_op is not None:
        require(reduce_op.name in _REDUCTIONS, "this operator does not reduce", "reduce_op", reduce_op, _REDUCTIONS)
    elif cmd != "idle":
        raise CompilerError("a reduction needs reduce_op", operand="reduce_op", value=None, limit=_REDUCTIONS)


@activate2.meaning
def _(
    core: Core,
    dst: NkiTensor,
    op: Activation,
    data: NkiTensor,
    imm0: Any,
    imm1: Any,
    op0: AluOp,
    op1: AluOp,
    relu_param: Any,
    reverse0: bool,
    reverse1: bool,
    reduce_op: AluOp | None,
    reduce_res: NkiTensor | None,
    reduce_cmd: Any,
) -> None:
    x = data.as_float32()
    for operator, value, reverse in ((op0, imm0, reverse0), (op1, imm1, reverse1)):
        if operator.name != "bypass":
            second = column(value, data)
            x = operator(second, x) if reverse else operator(x, second)
    x = np.where(x > 0, x, column(relu_param, data) * x) if op.name == "prelu" else op(x)
    x = np.asarray(x, np.float32)
    cmd = _command(reduce_cmd)
    if cmd == "idle" and reduce_res is None:
        dst.store_float32(x)
        return
    registers = accumulator(core, data, _STATE)
    if cmd.startswith("reset"):
        assert reduce_op is not None
        registers[:] = reduce_op.identity
    if cmd.endswith("reduce"):
        assert reduce_op is not None
        registers[:] = reduce_op(registers, _reduced(reduce_op, x.reshape(len(x), -1)))
    dst.store_float32(x)  # after the sum: x may be data itself, which dst may overlap
    if reduce_res is not None:
        write(reduce_res, registers)


def _reduced(op: AluOp, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """One value a partition. By magnitude the value itself is kept; of equal magnitudes, the last."""
    if op.reduce is not None:
        return np.asarray(op.reduce.reduce(values, axis=1), np.float32)
    magnitude = np.abs(values)[:, ::-1]
    place = values.shape[1] - 1 - (magnitude.argmax(axis=1) if op.name == "abs_max" else magnitude.argmin(axis=1))
    return np.asarray(np.take_along_axis(values, place[:, None], 1)[:, 0])


@activate2.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    """As ``activation``: no other cost is published."""
    return activation_work(t, k, engine, "ACTIVATE2")
