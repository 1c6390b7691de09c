"""VectorE: reductions and scans along the free dimensions, and its accumulator registers.

Documented in the NKI reference (``nki.isa``, release 0.6). Sums are float32; the accumulators are one float32 a lane
and keep their values between instructions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import ALU, AluOp
from trnsim.isa.constants import reduce_cmd as ReduceCmd
from trnsim.isa.costs import streamed, work
from trnsim.isa.instruction import (
    Immediate,
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
from trnsim.isa.work import Work
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.core import Core

from trnsim.isa.operators import (
    COMPARISONS,
    FP32_MIN,
    LANES,
    comparison,
    compute,
    forbid_two_psum,
    member_name,
    require_binary,
    require_bits,
    require_operand,
    scalar_operand,
)

# -- reductions and scans ----------------------------------------------------------------------------------------------


@instruction("nki.isa.tensor_reduce", engines="vector", indirect="dst data")
def tensor_reduce(dst: Out, op: AluOp, data: In, axis: Any, negate: bool = False, keepdims: bool = False) -> None:
    """The last free dimensions of ``data``, those in ``axis``, reduced with ``op``; ``negate`` changes the sign.

    Arithmetic is float32, bitvec operators take integers bit for bit. ``keepdims`` only says how dst is shaped.
    """
    del keepdims
    require_numbers(dst=dst, data=data)
    require(
        op.reduce is not None and op.name != "average",
        "this operator does not reduce",
        "op",
        op,
        "a reduction operator",
    )
    axes = _axes(axis, len(data.shape))
    kept = math.prod(data.shape[1 : axes[0]])
    require(dst.partitions == data.partitions, "dst and data differ in partitions", "dst", dst.shape, data.shape)
    require(
        dst.elements == kept,
        "dst must have the elements that are left of data",
        "dst",
        dst.elements,
        f"{kept} elements a partition",
    )
    if op.kind == "bitvec":
        require_bits(op, dst=dst, data=data)
        require(not negate, "bitvec results cannot be negated", "negate", negate, "arithmetic operators")


@tensor_reduce.meaning
def _(dst: NkiTensor, op: AluOp, data: NkiTensor, axis: Any, negate: bool) -> NDArray[Any]:
    axes = _axes(axis, len(data.shape))
    if op.kind == "bitvec":
        return np.asarray(op.reduce.reduce(data.array(), axis=axes)).astype(dst.dtype.numpy)
    result = _reduce(op, data.as_float32(), axes)
    return np.negative(result) if negate else result


@tensor_reduce.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    narrow = all(o.form.dtype == "bfloat16" for o in k.operands)
    if narrow and k.attributes["op"] in ("add", "maximum"):
        n /= 2
    return (work(t, k, engine, n),)


def _axes(axis: Any, rank: int) -> tuple[int, ...]:
    """The reduced dimensions, ascending: the last free ones."""
    given = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    if all(isinstance(a, (int, np.integer)) for a in given):
        axes = tuple(sorted(int(a) + rank if a < 0 else int(a) for a in given))
    else:
        axes = ()
    if not axes or axes != tuple(range(rank - len(axes), rank)) or axes[0] == 0:
        raise HardwareError(
            "axis must be the last free dimensions",
            operand="axis",
            value=axis,
            limit=f"consecutive dimensions from 1 on that end with {rank - 1}",
        )
    return axes


def _reduce(op: AluOp, values: NDArray[Any], axes: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """Reduce in float32 over ``axes``, all free dimensions by default."""
    over = tuple(range(1, values.ndim)) if axes is None else axes
    if op.kind == "logical":
        values = values != 0
        if op.name == "logical_xor":
            values = values.reshape(*values.shape[: over[0]], -1)
            over = (over[0],)
    elif op.name == "subtract":
        values = values.reshape(*values.shape[: over[0]], -1)
        over = (over[0],)
    return np.asarray(op.reduce.reduce(values, axis=over)).astype(np.float32, copy=False)


@instruction("nki.isa.tensor_tensor_scan", engines="vector")
def tensor_tensor_scan(
    dst: Out,
    data0: In,
    data1: In,
    initial: Vector,
    op0: AluOp,
    op1: AluOp,
    reverse0: bool = False,
    reverse1: bool = False,
) -> None:
    """dst[p, i] = op1(op0(data0[p, i], dst[p, i - 1]), data1[p, i]) in float32, from dst[p, -1] = initial."""
    del reverse0, reverse1
    require_numbers(dst=dst, data0=data0, data1=data1)
    require_same_size(dst, data0, data1, names=("data0", "data1"))
    forbid_two_psum("data0", data0, "data1", data1)
    for op, name in ((op0, "op0"), (op1, "op1")):
        require(op.kind != "bitvec", "bitvec operators are not supported", name, op, "arithmetic operators")
        require_binary(op, name)
    if initial is None:
        raise CompilerError("initial must be a number or a tensor", operand="initial", value=None)
    require_vector(initial, data0, "initial")


@tensor_tensor_scan.meaning
def _(
    data0: NkiTensor, data1: NkiTensor, initial: Any, op0: AluOp, op1: AluOp, reverse0: bool, reverse1: bool
) -> NDArray[np.float32]:
    lanes = data0.shape[0]
    x = np.ascontiguousarray(data0.as_float32().reshape(lanes, -1).T)
    y = np.ascontiguousarray(data1.as_float32().reshape(lanes, -1).T)
    result = np.empty(x.shape, np.float32)
    state = np.empty(lanes, np.float32)
    state[:] = column(initial, data0).reshape(-1) if initial.__class__ is NkiTensor else np.float32(initial)
    first, second = op0.function, op1.function
    if first.__class__ is np.ufunc and second.__class__ is np.ufunc:
        between = np.empty(lanes, np.float32)
        for a, b, out in zip(x, y, result, strict=True):
            if reverse0:
                first(state, a, out=between)
            else:
                first(a, state, out=between)
            if reverse1:
                second(b, between, out=out)
            else:
                second(between, b, out=out)
            state = out
    else:
        for a, b, out in zip(x, y, result, strict=True):
            value = first(state, a) if reverse0 else first(a, state)
            out[...] = second(b, value) if reverse1 else second(value, b)
            state = out
    return result.T


@tensor_tensor_scan.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine) * t.vector.two_input_streams),)


def accumulator(core: Core, data: NkiTensor, name: str = "vector_accumulator") -> NDArray[np.float32]:
    """The accumulator registers of the lanes of ``data``: one float32 a partition."""
    registers = core.state.get(name)
    if registers is None:
        registers = core.state[name] = np.zeros(LANES, np.float32)
    start = data.form.start
    lanes: NDArray[np.float32] = registers[start : start + data.form.partition_span : data.form.strides[0]]
    return lanes


def _accumulate(
    core: Core, data: NkiTensor, op: AluOp, values: NDArray[np.float32], cmd: str, initial: Any = None
) -> NDArray[np.float32]:
    """Reduce ``values`` into the accumulators of their lanes as ``cmd`` says, and return those."""
    registers = accumulator(core, data)
    if cmd in ("reset", "reset_reduce"):
        registers[:] = op.identity
    elif cmd == "load_reduce":
        registers[:] = column(initial, data).reshape(-1)
    if cmd.endswith("reduce"):
        registers[:] = op(registers, _reduce(op, values))
    return registers


@instruction("nki.isa.tensor_scalar_reduce", engines="vector", state="vector_accumulator", indirect="dst data")
def tensor_scalar_reduce(
    dst: Out,
    data: In,
    op0: AluOp,
    operand0: Vector,
    reduce_op: AluOp,
    reduce_res: OptionalOut = None,
    reverse0: bool = False,
    reduce_cmd: Any = ReduceCmd.reset_reduce,
    reduce_init: Vector = None,
    reduce_res_negate: bool = False,
) -> None:
    """dst[p, i] = op0(data[p, i], operand0[p]) in float32, reduced over i into the lane's accumulator.

    ``reduce_cmd`` resets the accumulators first, or continues, or loads ``reduce_init``; ``reduce_res``, one element a
    partition, receives them (negated by ``reduce_res_negate``, which leaves the registers as they are).
    """
    del reduce_res_negate
    if reverse0:
        raise CompilerError("NKI does not support reverse0 here yet", operand="reverse0", value=reverse0, limit=False)
    require_numbers(dst=dst, data=data, reduce_res=reduce_res)
    require_same_size(dst, data, names=("data",))
    require(op0.kind != "bitvec", "bitvec operators are not supported", "op0", op0, "arithmetic operators")
    require_operand(op0, "op0", operand0, "operand0")
    require_vector(operand0, data, "operand0", ("float32",))
    allowed = ("add", "multiply", "maximum", "minimum")
    require(reduce_op.name in allowed, "this operator does not reduce here", "reduce_op", reduce_op, allowed)
    commands = ("reset_reduce", "reduce", "load_reduce")
    cmd = member_name(reduce_cmd)
    require(cmd in commands, "this command is not supported here", "reduce_cmd", cmd, commands)
    if (reduce_init is not None) != (cmd == "load_reduce"):
        raise CompilerError("reduce_init goes with load_reduce", operand="reduce_init", value=reduce_init, limit=cmd)
    require_vector(reduce_init, data, "reduce_init", ("float32",))
    require_vector(reduce_res, data, "reduce_res")


@tensor_scalar_reduce.meaning
def _(
    core: Core,
    dst: NkiTensor,
    data: NkiTensor,
    op0: AluOp,
    operand0: Any,
    reduce_op: AluOp,
    reduce_res: NkiTensor | None,
    reduce_cmd: Any,
    reduce_init: Any,
    reduce_res_negate: bool,
) -> None:
    second = scalar_operand(op0, operand0, data, "operand0", "tensor_scalar_reduce")
    values = compute(op0, data.as_float32(), second)
    total = _accumulate(core, data, reduce_op, values, member_name(reduce_cmd), reduce_init)
    write(dst, values)
    if reduce_res is not None:
        write(reduce_res, np.negative(total) if reduce_res_negate else total)


@tensor_scalar_reduce.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # Reading the accumulators out is a second, short instruction.
    extra = t.vector.cycles(t.vector.minimum_cycles) if k.has("reduce_res") else 0
    return (work(t, k, engine, streamed(t, k, engine), arithmetic=True, extra_ps=extra),)


@instruction("nki.isa.range_select", engines="vector", generations="v3 v4", state="vector_accumulator")
def range_select(
    dst: Out,
    on_true_tile: In,
    comp_op0: AluOp,
    comp_op1: AluOp,
    bound0: In,
    bound1: In,
    reduce_cmd: Any = ReduceCmd.reset_reduce,
    reduce_res: OptionalOut = None,
    reduce_op: AluOp = ALU["maximum"],
    range_start: Immediate = 0,
    on_false_value: Any = ...,
) -> None:
    """dst[p, i] = on_true_tile[p, i] where range_start + i compares true with both bounds of p, else the least float32.

    Indices and bounds compare in float32. The maximum over i goes to the lane's accumulator, and from there to
    ``reduce_res``.
    """
    require_numbers(dst=dst, on_true_tile=on_true_tile, bound0=bound0, bound1=bound1, reduce_res=reduce_res)
    require_same_size(dst, on_true_tile, names=("on_true_tile",))
    require(on_true_tile.dtype.kind == "float", "must be a float", "on_true_tile", on_true_tile.dtype, "a float dtype")
    for name, bound in (("bound0", bound0), ("bound1", bound1)):
        require_vector(bound, on_true_tile, name, ("float32",), more=True)
    for name, op in (("comp_op0", comp_op0), ("comp_op1", comp_op1)):
        require(op.name in COMPARISONS, "this operator does not compare here", name, op, COMPARISONS)
    require(reduce_op.name == "maximum", "only the maximum is supported", "reduce_op", reduce_op, "nl.maximum")
    commands = ("idle", "reset", "reset_reduce", "reduce")
    cmd = member_name(reduce_cmd)
    require(cmd in commands, "this command is not supported here", "reduce_cmd", cmd, commands)
    require_vector(reduce_res, on_true_tile, "reduce_res")
    require(
        on_false_value is ... or np.float32(on_false_value) == FP32_MIN,
        "on_false_value must be the least float32",
        "on_false_value",
        on_false_value,
        str(FP32_MIN),
    )
    if not isinstance(range_start, (int, np.integer)):
        raise CompilerError("range_start must be an integer", operand="range_start", value=range_start)


@range_select.meaning
def _(
    core: Core,
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: AluOp,
    comp_op1: AluOp,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: Any,
    reduce_res: NkiTensor | None,
    reduce_op: AluOp,
    range_start: int,
) -> None:
    values = on_true_tile.as_float32().reshape(on_true_tile.shape[0], -1)
    index = (range_start + np.arange(values.shape[1])).astype(np.float32)
    rows = on_true_tile.shape[0]
    low, high = (bound.as_float32().reshape(-1, 1)[:rows] for bound in (bound0, bound1))
    mask = comparison(comp_op0)(index, low) & comparison(comp_op1)(index, high)
    result = np.where(mask, values, FP32_MIN)
    total = _accumulate(core, on_true_tile, reduce_op, result, member_name(reduce_cmd))
    write(dst, result)
    if reduce_res is not None:
        write(reduce_res, total)


@range_select.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    extra = t.vector.cycles(t.vector.minimum_cycles) if k.has("reduce_res") else 0
    return (work(t, k, engine, streamed(t, k, engine), arithmetic=True, extra_ps=extra),)
