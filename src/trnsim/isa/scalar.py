"""ScalarE: activation functions, with a scale and a bias before and a sum after.

Documented in the NKI reference (``nki.isa.activation``, release 0.6). Each partition is a lane with one float32
accumulator register. The function tables of the hardware are not public: results are those of IEEE float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import ACTIVATIONS, Activation, AluOp
from trnsim.isa.constants import reduce_cmd as ReduceCmd
from trnsim.isa.costs import streamed, tensors, work
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
    target,
    write,
)
from trnsim.isa.reductions import accumulator
from trnsim.isa.work import Work
from trnsim.machine import core as machine
from trnsim.machine.form import Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.isa.instruction import NkiInstruction
    from trnsim.machine.core import Core

_STATE = "scalar_accumulator"
_COMMANDS = ("idle", "reset", "reduce", "reset_reduce")


def _command(reduce_cmd: Any) -> str:
    return str(getattr(reduce_cmd, "name", reduce_cmd))


def _touched(seen: dict[str, Any]) -> str:
    """Only calls that reduce, reset or read take part in the order of the accumulators."""
    return "" if _command(seen["reduce_cmd"]) == "idle" and seen["reduce_res"] is None else _STATE


@instruction("nki.isa.activation", engines="scalar", state=_touched, indirect="dst data")
def activation(
    dst: Out,
    op: Activation,
    data: In,
    bias: Vector = None,
    scale: Vector = 1.0,  # type: ignore[assignment]
    reduce_op: AluOp | None = None,
    reduce_res: OptionalOut = None,
    reduce_cmd: Any = ReduceCmd.idle,
) -> None:
    """dst[p, i] = op(data[p, i] * scale[p] + bias[p]) in float32; the sum over i can go to the lane's accumulator.

    ``scale`` is a number or one float32 a partition; ``bias`` the same in any dtype but tfloat32, and no number on
    NeuronCore-v2. ``reduce_cmd`` resets the accumulators, adds to them, or both; ``reduce_res``, one element a
    partition, receives what they hold then. They keep it between calls.
    """
    generation = machine.current().generation
    require_numbers(dst=dst, data=data, reduce_res=reduce_res)
    require_same_size(dst, data, names=("data",))
    if scale is None:
        raise CompilerError("scale must be a number or a tensor", operand="scale", value=None)
    require_vector(scale, data, "scale", ("float32",))
    require_vector(bias, data, "bias")
    if isinstance(bias, Form):
        require_numbers(bias=bias)
        require(bias.dtype != "tfloat32", "bias cannot be tfloat32", "bias", bias.dtype, "another dtype")
    elif bias is not None:
        require(
            generation != "v2", "bias must be a tensor with one element a partition", "bias", "a number", "a tensor"
        )
    cmd = _command(reduce_cmd)
    require(cmd in _COMMANDS, "this command is not supported here", "reduce_cmd", cmd, _COMMANDS)
    if reduce_op is not None:
        require(reduce_op.name == "add", "ScalarE only adds up", "reduce_op", reduce_op, "nl.add")
    elif cmd in ("reduce", "reset_reduce"):
        raise CompilerError("a reduction needs reduce_op", operand="reduce_op", value=None, limit="nl.add")
    require_vector(reduce_res, data, "reduce_res")


@activation.meaning
def _(
    core: Core,
    dst: NkiTensor,
    op: Activation,
    data: NkiTensor,
    bias: Any,
    scale: Any,
    reduce_res: NkiTensor | None,
    reduce_cmd: Any,
) -> None:
    result = _activate(dst, op, data, bias, scale)
    if reduce_cmd is ReduceCmd.idle and reduce_res is None:
        return
    registers = accumulator(core, data, _STATE)
    cmd = _command(reduce_cmd)
    if cmd.startswith("reset"):
        registers[:] = 0
    if cmd.endswith("reduce"):
        registers += np.sum(result, axis=tuple(range(1, result.ndim)), dtype=np.float32)
    if reduce_res is not None:
        write(reduce_res, registers)


@activation.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return activation_work(t, k, engine, "ACTIVATE")


def activation_work(t: Timing, k: InstructionClass, engine: str, opcode: str) -> tuple[Work, ...]:
    """The work of an activation, and of reading the accumulators where ``reduce_res`` takes them."""
    n = streamed(t, k, engine)
    if all(f.dtype.itemsize <= 2 for f in tensors(k)):
        n /= t.scalar.narrow_mode
    table = ACTIVATIONS[k.attributes["op"]].table
    plain = k.attributes["op"] in ("copy", "identity")
    main = work(t, k, engine, n, opcode=opcode, extra_ps=0 if plain else t.scalar.activate_ps, table=table)
    if not k.has("reduce_res"):
        return (main,)
    result = tuple(i for i, o in enumerate(k.operands) if o.name == "reduce_res")
    main = replace(main, writes=tuple(i for i in main.writes if i not in result))
    read = t.scalar.cycles(t.scalar.accumulate_cycles)
    return (main, Work(engine, "ACT_READ_ACCUMULATOR", read, t.scalar.duration(t.scalar.accumulate_cycles), (), result))


def _activate(dst: NkiTensor, op: Activation, data: NkiTensor, bias: Any, scale: Any) -> NDArray[np.float32]:
    """Write the activated data to ``dst``; return them in float32."""
    x = data.as_float32()
    if scale.__class__ is NkiTensor or scale != 1:
        x = x * column(scale, data)
        if bias is not None:
            x += column(bias, data)
    elif bias.__class__ is NkiTensor or bias:
        x = x + column(bias, data)
    function = op.function
    # With a stride of zero dst keeps one value only, and the sum needs all of them.
    if dst.dtype == "float32" and dst.shape == x.shape and 0 not in dst.strides:
        out = target(dst)
        if function.__class__ is np.ufunc:
            function(x, out=out)
        else:
            out[...] = function(x)
        return out  # type: ignore[no-any-return]
    result: NDArray[np.float32] = function(x)
    if result is x and (dst.storage is data.storage or dst.storage.arena is not None):
        result = x.copy()  # a copy's result is data itself, which dst may overlap in another dtype
    dst.store_float32(result)
    return result


def activation_reduce(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    reduce_op: Any,
    reduce_res: NkiTensor | None,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> NkiInstruction:
    """``activation`` with the accumulators reset, summed into, and read out to ``reduce_res``."""
    return activation(dst, op, data, bias, scale, reduce_op, reduce_res, ReduceCmd.reset_reduce, name)
