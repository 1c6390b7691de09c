"""VectorE: means and variances, and what else works on its accumulator registers.

Documented in the NKI reference (``nki.isa``, release 0.6). Arithmetic is float32. The accumulators, one float32 a lane,
are those of ``tensor_scalar_reduce`` and ``range_select`` (``isa/reductions.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import ALU, AluOp
from trnsim.isa.constants import reduce_cmd as ReduceCmd
from trnsim.isa.costs import pair_cycles, streamed, tensors, work
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
from trnsim.isa.operators import compute, forbid_two_psum, member_name, require_operand, scalar_operand
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

_STATE = "vector_accumulator"

# Limits and dtypes: nki.isa.
_BN_STATS_ELEMENTS = 512
_BN_AGGR_CYCLES = 13  # a (count, mean, variance * count): cost formula of bn_aggr, SDK 2.21 to 2.26
_EXPONENTIALS_PER_CYCLE = 4  # Trainium3 architecture guide: 4 times ScalarE, which does one
_PREDICATES = ("int8", "uint8", "int16", "uint16")
_CUMULATIVE_OPS = ("add", "subtract", "multiply", "maximum", "minimum")
_EXPONENTIAL_FLOATS = ("float8_e4m3", "float8_e5m2", "float16", "bfloat16", "float32")
_EXPONENTIAL_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16")


# -- mean and variance -------------------------------------------------------------------------------------------------


@instruction("nki.isa.bn_stats", engines="vector")
def bn_stats(dst: Out, data: In) -> None:
    """dst[p] = count, mean and variance * count of the even elements of data[p], then those of the odd ones.

    Of no elements (one has no odd ones) all three are 0.
    """
    require_numbers(dst=dst, data=data)
    require(
        data.elements <= _BN_STATS_ELEMENTS,
        "too many elements a partition",
        "data",
        data.elements,
        _BN_STATS_ELEMENTS,
    )
    _require_elements(dst, data, 6)


@bn_stats.meaning
def _(data: NkiTensor) -> NDArray[np.float32]:
    values = data.as_float32().reshape(data.shape[0], -1)
    return np.concatenate([_moments(values[:, 0::2]), _moments(values[:, 1::2])], axis=1)


def _moments(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(partitions, 3)``: count, mean, and variance * count, the sum of the squared deviations."""
    result = np.zeros((len(values), 3), np.float32)
    count = values.shape[1]
    if count:
        result[:, 0] = count
        result[:, 1] = np.sum(values, axis=1) / np.float32(count)
        deviations = values - result[:, 1:2]
        result[:, 2] = np.sum(deviations * deviations, axis=1)
    return result


@bn_stats.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


@instruction("nki.isa.bn_aggr", engines="vector")
def bn_aggr(dst: Out, data: In) -> None:
    """dst[p] = mean and variance of what the (count, mean, variance * count) of data[p] describe."""
    require_numbers(dst=dst, data=data)
    require(
        data.elements % 3 == 0,
        "elements a partition must be a multiple of 3",
        "data",
        data.elements,
        "a multiple of 3",
    )
    _require_elements(dst, data, 2)


@bn_aggr.meaning
def _(data: NkiTensor) -> NDArray[np.float32]:
    triples = data.as_float32().reshape(data.shape[0], -1, 3)
    count, mean, squares = triples[:, :, 0], triples[:, :, 1], triples[:, :, 2]
    total = np.sum(count, axis=1)
    common = np.sum(count * mean, axis=1) / total
    deviations = mean - common[:, None]
    variance = np.sum(squares + count * deviations * deviations, axis=1) / total
    return np.stack([common, variance], axis=1)


@bn_aggr.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine) / 3 * _BN_AGGR_CYCLES),)


def _require_elements(dst: Form, data: Form, elements: int) -> None:
    require(
        dst.partitions == data.partitions and dst.elements == elements,
        f"dst must have {elements} elements in each partition of data",
        "dst",
        dst.shape,
        (data.partitions, elements),
    )


# -- accumulators ------------------------------------------------------------------------------------------------------


def _require_command(reduce_cmd: Any, *allowed: str) -> str:
    cmd = member_name(reduce_cmd)
    require(cmd in allowed, "this command is not supported here", "reduce_cmd", cmd, allowed)
    return cmd


def _started(core: Core, data: NkiTensor, cmd: str, op: AluOp, initial: Any = None) -> NDArray[np.float32]:
    """The accumulators of the lanes of ``data``, reset or loaded as ``cmd`` says."""
    registers = accumulator(core, data)
    if cmd == "reset_reduce":
        registers[:] = op.identity
    elif cmd == "load_reduce":
        registers[:] = np.reshape(column(initial, data), -1)
    return registers


def _reduce(
    core: Core,
    data: NkiTensor,
    values: NDArray[np.float32],
    cmd: str,
    op: AluOp,
    initial: Any = None,
) -> NDArray[np.float32]:
    """Reduce ``values`` into the accumulators as ``cmd`` says, and return those.

    ``idle`` leaves them as they are here; on hardware they are undefined then. Comes before anything is written, which
    may be where ``initial`` is.
    """
    registers = _started(core, data, cmd, op, initial)
    if cmd != "idle":
        registers[:] = op(registers, op.reduce.reduce(values, axis=1))
    return registers


def _read_out(core: Core, registers: NDArray[np.float32], cmd: str, result: NkiTensor | None) -> None:
    """The accumulators go to ``result``, if there is one; it is reported if ``idle`` left them undefined."""
    if result is None:
        return
    if cmd == "idle":
        core.launch.add_finding(
            "accumulator-undefined",
            "reduce_res reads accumulators that reduce_cmd idle leaves undefined",
            core.caller_line(),
        )
    write(result, registers)


def _read_ps(t: Timing, k: InstructionClass) -> int:
    """Reading the accumulators out is a second, short instruction, as after ``tensor_scalar_reduce``."""
    return t.vector.cycles(t.vector.minimum_cycles) if k.has("reduce_res") else 0


@instruction("nki.isa.select_reduce", engines="vector", state=_STATE)
def select_reduce(
    dst: Out,
    predicate: In,
    on_true: In,
    on_false: Vector,
    reduce_res: OptionalOut = None,
    reduce_cmd: Any = ReduceCmd.idle,
    reduce_op: AluOp = ALU["maximum"],
    reverse_pred: bool = False,
) -> None:
    """dst[p, i] = on_true[p, i] where predicate[p, i] is not 0 (``reverse_pred``: is 0), else on_false[p].

    The maximum over i can go to the lane's accumulator, and from there to ``reduce_res``.
    """
    del reverse_pred
    require_numbers(dst=dst, predicate=predicate, on_true=on_true, reduce_res=reduce_res)
    require_same_size(dst, predicate, on_true, names=("predicate", "on_true"))
    require(predicate.dtype in _PREDICATES, "must be a short integer", "predicate", predicate.dtype, _PREDICATES)
    require(
        on_true.dtype not in ("tfloat32", "int32", "uint32"),
        "this dtype is not supported here",
        "on_true",
        on_true.dtype,
        "not tfloat32, int32 or uint32",
    )
    forbid_two_psum("predicate", predicate, "on_true", on_true)
    if on_false is None:
        raise CompilerError("on_false must be a number or a tensor", operand="on_false", value=None)
    require_vector(on_false, on_true, "on_false")
    require_vector(reduce_res, on_true, "reduce_res")
    if reduce_res is not None:
        require(reduce_res.dtype.kind == "float", "must be a float", "reduce_res", reduce_res.dtype, "a float dtype")
    _require_command(reduce_cmd, "idle", "reset_reduce", "reduce")
    require(reduce_op.name == "maximum", "only the maximum is supported", "reduce_op", reduce_op, "nl.maximum")


@select_reduce.meaning
def _(
    core: Core,
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: Any,
    reduce_res: NkiTensor | None,
    reduce_cmd: Any,
    reduce_op: AluOp,
    reverse_pred: bool,
) -> None:
    values = on_true.as_float32().reshape(on_true.shape[0], -1)
    chosen = (predicate.array() != 0).reshape(values.shape)
    result = np.where(chosen ^ reverse_pred, values, np.reshape(column(on_false, on_true), (-1, 1)))
    cmd = member_name(reduce_cmd)
    registers = _reduce(core, on_true, result, cmd, reduce_op)
    write(dst, result)
    _read_out(core, registers, cmd, reduce_res)


@select_reduce.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # No published cost: assumed to stream its two inputs as tensor_tensor does.
    n = pair_cycles(t.vector, [k.operand("predicate"), k.operand("on_true")], tensors(k), streamed(t, k, engine))
    return (work(t, k, engine, n, arithmetic=True, extra_ps=_read_ps(t, k)),)


@instruction("nki.isa.tensor_scalar_cumulative", engines="vector", state=_STATE, indirect="dst src")
def tensor_scalar_cumulative(
    dst: Out,
    src: In,
    op0: AluOp,
    op1: AluOp,
    imm0: Vector,
    imm1: Vector = None,
    reduce_cmd: Any = ReduceCmd.reset_reduce,
) -> None:
    """dst[p, i] = register = op1(op0(src[p, i], imm0[p]), register) in float32, where register is p's accumulator.

    It starts from op1's neutral element (0 if that is subtract), from where the last instruction left it, or from
    ``imm1``, by ``reduce_cmd``. ``imm0`` and ``imm1`` are numbers or one float32 a partition.
    """
    require_numbers(dst=dst, src=src)
    require_same_size(dst, src, names=("src",))
    for name, form in (("dst", dst), ("src", src)):
        kind, size = form.dtype.kind, form.dtype.itemsize
        known = kind in ("float", "int", "uint") and (size <= 2 or form.dtype == "float32")
        require(known, "this dtype is not supported here", name, form.dtype, "float32, or 16 or 8 bits")
    require(op0.kind != "bitvec", "bitvec operators are not supported", "op0", op0, "arithmetic operators")
    require_operand(op0, "op0", imm0, "imm0")
    require(op1.name in _CUMULATIVE_OPS, "this operator does not accumulate here", "op1", op1, _CUMULATIVE_OPS)
    cmd = _require_command(reduce_cmd, "reset_reduce", "reduce", "load_reduce")
    if (imm1 is not None) != (cmd == "load_reduce"):
        raise CompilerError("imm1 goes with load_reduce", operand="imm1", value=imm1, limit=cmd)
    require_vector(imm0, src, "imm0", ("float32",))
    require_vector(imm1, src, "imm1", ("float32",))


@tensor_scalar_cumulative.meaning
def _(
    core: Core, dst: NkiTensor, src: NkiTensor, op0: AluOp, op1: AluOp, imm0: Any, imm1: Any, reduce_cmd: Any
) -> NDArray[np.float32]:
    registers = _started(core, src, member_name(reduce_cmd), op1, imm1)
    values = compute(op0, src.as_float32(), scalar_operand(op0, imm0, src, "imm0", "tensor_scalar_cumulative")).reshape(
        src.shape[0], -1
    )
    result = np.concatenate([registers[:, None], values], axis=1)
    if op1.name == "subtract":  # the element less the register, which accumulate() has the other way round
        for i in range(1, result.shape[1]):
            result[:, i] -= result[:, i - 1]
    else:
        result = op1.reduce.accumulate(result, axis=1)
    registers[:] = result[:, -1]
    return result[:, 1:]


@tensor_scalar_cumulative.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # No published cost: assumed to stream its one input as tensor_scalar_reduce does.
    return (work(t, k, engine, streamed(t, k, engine), arithmetic=True),)


def exponential(
    dst: NkiTensor,
    src: NkiTensor,
    max_value: Any = 0.0,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Any = ReduceCmd.idle,
    reduce_init: Any = 0.0,
    name: str | None = None,
) -> NkiInstruction:
    """dst[p, i] = exp(src[p, i] - max_value[p]) in float32; the sum over i can go to the lane's accumulator.

    ``max_value`` and ``reduce_init``, from where load_reduce sums, are numbers or one float32 a partition.
    ``reduce_res``, one element a partition, receives the accumulators. NeuronCore-v4.

    Raises:
        CompilerError: ``reduce_init`` without load_reduce.
        HardwareError: what the instruction cannot do.
    """
    loads = member_name(reduce_cmd) == "load_reduce"
    if not loads and (isinstance(reduce_init, NkiTensor) or reduce_init not in (None, 0)):
        raise CompilerError(
            "reduce_init goes with load_reduce",
            instruction="exponential",
            operand="reduce_init",
            value=reduce_init,
            limit=member_name(reduce_cmd),
            generation=machine.current().generation,
        )
    return _exponential(dst, src, max_value, reduce_res, reduce_cmd, reduce_init if loads else None, name)


@instruction("nki.isa.exponential", engines="vector", generations="v4", state=_STATE, indirect="dst src")
def _exponential(
    dst: Out, src: In, max_value: Vector, reduce_res: OptionalOut, reduce_cmd: Any, reduce_init: Vector
) -> None:
    """The instruction of ``exponential``."""
    floats, integers = _EXPONENTIAL_FLOATS, _EXPONENTIAL_INTEGERS
    require_numbers(dst=dst, src=src, reduce_res=reduce_res)
    require_same_size(dst, src, names=("src",))
    for name, form, allowed in (
        ("dst", dst, (*floats, "tfloat32", *integers)),
        ("src", src, (*floats, *integers, "uint32")),
        ("reduce_res", reduce_res, (*floats, "tfloat32")),
    ):
        if form is not None:
            require(form.dtype in allowed, "this dtype is not supported here", name, form.dtype, allowed)
            require(len(form.shape) <= 4, "has at most 4 dimensions", name, form.shape, 4)
    cmd = _require_command(reduce_cmd, "idle", "reset_reduce", "reduce", "load_reduce")
    for name, value in (("max_value", max_value), ("reduce_init", reduce_init)):
        if value is None and (name == "max_value" or cmd == "load_reduce"):
            raise CompilerError(f"{name} must be a number or a tensor", operand=name, value=None)
        require_vector(value, src, name, ("float32",))
    require_vector(reduce_res, src, "reduce_res")


@_exponential.meaning
def _(
    core: Core,
    dst: NkiTensor,
    src: NkiTensor,
    max_value: Any,
    reduce_res: NkiTensor | None,
    reduce_cmd: Any,
    reduce_init: Any,
) -> None:
    values = np.exp(src.as_float32() - column(max_value, src)).reshape(src.shape[0], -1)
    cmd = member_name(reduce_cmd)
    registers = _reduce(core, src, values, cmd, ALU["add"], reduce_init)
    write(dst, values)
    _read_out(core, registers, cmd, reduce_res)


@_exponential.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # The rate is documented, the fixed part assumed to be that of arithmetic with an operand.
    n = streamed(t, k, engine) / _EXPONENTIALS_PER_CYCLE
    return (work(t, k, engine, n, arithmetic=True, extra_ps=_read_ps(t, k)),)
