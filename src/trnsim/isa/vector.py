"""VectorE: element-wise arithmetic, reductions, scans and searches along the free dimensions.

Documented in the NKI reference (``nki.isa``, release 0.6). Each partition is a lane; arithmetic is float32 whatever the
dtypes of the operands, and results are rounded to the destination. Instructions that GpSimdE or ScalarE can run as well
(copies, ``tensor_tensor``, ``tensor_scalar``) are here too, with the engines that each call may use.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import ALU, AluOp
from trnsim.isa.constants import engine as Engine
from trnsim.isa.constants import reduce_cmd as ReduceCmd
from trnsim.isa.costs import copy_rate, in_psum, pair_cycles, streamed, tensors, work
from trnsim.isa.instruction import (
    Immediate,
    In,
    OptionalOut,
    Out,
    Update,
    Vector,
    column,
    instruction,
    require,
    require_memory,
    require_numbers,
    require_on_chip,
    require_same_size,
    require_vector,
    target,
    without,
    write,
)
from trnsim.isa.work import Work
from trnsim.machine import core as machine
from trnsim.machine.core import check_start_partition
from trnsim.machine.form import PSUM, SBUF, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass
from trnsim.numerics import as_dtype, from_float32, mx, to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.isa.instruction import NkiInstruction
    from trnsim.machine.core import Core
    from trnsim.numerics import DType

_INTEGERS = ("int", "uint", "bool")
_WORDS = ("int32", "uint32")
_COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")
_FP32_MIN = np.finfo(np.float32).min
_LANES = 128

# Operators that GpSimdE computes on 32-bit integers exactly; sums and products wrap around.
_EXACT = {
    "add", "subtract", "multiply", "maximum", "minimum", "abs_max", "abs_min", "equal", "not_equal", "less",
    "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "logical_xor",
}  # fmt: skip
_ADDRESS = ("add", "subtract", "multiply")


# -- filling and copying -----------------------------------------------------------------------------------------------


@instruction("nki.isa.memset", engines="vector gpsimd")
def memset(dst: Out, value: Immediate, engine: Any = Engine.unknown) -> tuple[str, ...]:
    """dst[p, i] = value, a number of dst's kind; packed formats take 0 only."""
    del engine
    require_on_chip(dst=dst)
    if isinstance(value, (float, np.floating)) and dst.dtype.kind in ("int", "uint"):
        raise CompilerError(
            "value must have dst's type: an integer tile takes an integer",
            operand="value",
            value=value,
            limit=dst.dtype,
        )
    return _vector_gpsimd(dst)


@memset.meaning
def _(dst: NkiTensor, value: Any) -> None:
    target(dst)[...] = _number(value, dst.dtype)


@memset.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    form = k.operands[0].form
    if k.attributes.get("zero") and form.dtype in ("bfloat16", "float16"):
        n /= 2
    return (work(t, k, engine, n),)


def _number(value: Any, dtype: DType) -> Any:
    """A number in ``dtype``: integers saturate, floats are rounded."""
    if dtype.kind == "packed":
        if value != 0:
            raise HardwareError(
                "packed formats take 0 only", instruction="memset", operand="value", value=value, limit=0
            )
        return dtype.numpy.type(0)
    if dtype.kind in ("int", "uint") and isinstance(value, (int, np.integer)):
        return dtype.numpy.type(min(max(int(value), int(dtype.min)), int(dtype.max)))
    return from_float32(np.array([value], np.float32), dtype)[0]


@instruction("nki.isa.tensor_copy", engines="vector scalar gpsimd")
def tensor_copy(dst: Out, src: In, engine: Any = Engine.unknown, dtype: Any = None) -> tuple[str, ...]:
    """``dst`` = ``src``, bit for bit if the dtypes are equal and through float32 if not.

    ScalarE copies from NeuronCore-v3 on; GpSimdE does not reach PSUM. ``dtype``, which NKI 0.2 had, does not
    override dst's.
    """
    del engine
    require_on_chip(dst=dst, src=src)
    require_same_size(dst, src, names=("src",))
    if dtype is not None and as_dtype(dtype) != dst.dtype:
        core = machine.current()
        core.launch.add_finding(
            "ignored-dtype",
            f"tensor_copy(dtype={dtype}) was NKI 0.2's; the copy has the dtype of dst, {dst.dtype}",
            core.caller_line(),
        )
    if dst.dtype != src.dtype:
        require_numbers(dst=dst, src=src)
    engines: tuple[str, ...] = ("vector", "scalar", "gpsimd")
    if machine.current().generation == "v2":
        engines = without(engines, "scalar")
    return without(engines, "gpsimd") if PSUM in (dst.memory, src.memory) else engines


@tensor_copy.meaning
def _(dst: NkiTensor, src: NkiTensor) -> NDArray[Any] | None:
    if dst.dtype is src.dtype:
        dst.store(src.array())
        return None
    if dst.dtype == "float32" and dst.shape == src.shape:
        to_float32(src.array(), src.dtype, target(dst))
        return None
    return src.as_float32()


@tensor_copy.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    if engine == "vector":
        n /= copy_rate(t.vector, tensors(k))
    return (work(t, k, engine, n, opcode="COPY" if k.operands[0].form.dtype == k.operands[1].form.dtype else "CAST"),)


@instruction("nki.isa.tensor_copy_predicated", engines="vector")
def tensor_copy_predicated(dst: Update, src: Vector, predicate: In, reverse_pred: bool = False) -> None:
    """dst[p, i] = src[p, i], or the number src, where predicate[p, i] is not 0 (``reverse_pred``: is 0)."""
    del reverse_pred
    require_on_chip(dst=dst, predicate=predicate)
    require_same_size(dst, predicate, names=("predicate",))
    require(
        predicate.dtype in ("uint8", "uint16", "uint32"),
        "predicate must be an unsigned integer",
        "predicate",
        predicate.dtype,
        ("uint8", "uint16", "uint32"),
    )
    if isinstance(src, Form):
        require_on_chip(src=src)
        require_same_size(dst, src, names=("src",))
        require(src.dtype == dst.dtype, "src must have the dtype of dst", "src", src.dtype, dst.dtype)
        _forbid_two_psum("src", src, "predicate", predicate)
    elif src is None:
        raise CompilerError("src must be a number or a tensor", operand="src", value=None)


@tensor_copy_predicated.meaning
def _(dst: NkiTensor, src: Any, predicate: NkiTensor, reverse_pred: bool) -> None:
    mask = predicate.array()
    mask = (mask == 0) if reverse_pred else (mask != 0)
    values = src.array() if src.__class__ is NkiTensor else _number(src, dst.dtype)
    if src.__class__ is NkiTensor:
        values = values.reshape(dst.shape)
    np.copyto(target(dst), values, where=mask.reshape(dst.shape))


@tensor_copy_predicated.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    return (work(t, k, engine, n if in_psum(k) else n * t.vector.two_input_streams),)


# -- element-wise arithmetic -------------------------------------------------------------------------------------------


@instruction("nki.isa.tensor_tensor", engines="vector gpsimd")
def tensor_tensor(dst: Out, data1: In, data2: In, op: AluOp, engine: Any = Engine.unknown) -> tuple[str, ...]:
    """dst[p, i] = op(data1[p, i], data2[p, i]).

    In float32; bit for bit if ``op`` is bitvec; in exact integers, wrapping around, on GpSimdE, which is the engine if
    all operands are int32 or uint32 in SBUF and none is asked for. ``nl.power`` runs on GpSimdE.
    """
    require_numbers(dst=dst, data1=data1, data2=data2)
    require_same_size(dst, data1, data2, names=("data1", "data2"))
    _forbid_two_psum("data1", data1, "data2", data2)
    _require_binary(op, "op")
    engines = _vector_gpsimd(dst, data1, data2)
    if op.kind == "bitvec":
        _require_bits(op, dst=dst, data1=data1, data2=data2)
        return ("vector",)
    if op.name == "power":
        require(
            "gpsimd" in engines,
            "power runs on GpSimdE, which does not reach PSUM",
            "op",
            "nl.power",
            "operands in SBUF",
        )
        return ("gpsimd",)
    if "gpsimd" in engines and all(x.dtype in _WORDS for x in (dst, data1, data2)) and _name(engine) != "vector":
        return ("gpsimd",)
    return engines


@tensor_tensor.meaning
def _(dst: NkiTensor, data1: NkiTensor, data2: NkiTensor, op: AluOp, engine: Any) -> NDArray[Any] | None:
    if dst.dtype.kind in _INTEGERS:
        if op.kind == "bitvec":
            return _bits(dst, op, data1.array(), data2.array().reshape(data1.shape))
        if (
            op.name in _EXACT
            and all(x.dtype in _WORDS and x.storage.memory == SBUF for x in (dst, data1, data2))
            and _name(engine) != "vector"
        ):
            return _exact(dst, op, data1.array(), data2.array().reshape(data1.shape))
    x, y = data1.as_float32(), data2.as_float32()
    return _apply(op, x, y if y.shape == x.shape else y.reshape(x.shape), dst)


@tensor_tensor.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    if engine == "gpsimd":
        return (work(t, k, engine, n * t.vector.two_input_streams),)
    inputs = [k.operand("data1"), k.operand("data2")]
    return (work(t, k, engine, pair_cycles(t.vector, inputs, tensors(k), n)),)


@instruction("nki.isa.tensor_scalar", engines="vector scalar gpsimd")
def tensor_scalar(
    dst: Out,
    data: In,
    op0: AluOp,
    operand0: Vector,
    reverse0: bool = False,
    op1: AluOp | None = None,
    operand1: Vector = None,
    reverse1: bool = False,
    engine: Any = Engine.unknown,
) -> tuple[str, ...]:
    """dst[p, i] = op1(op0(data[p, i], operand0), operand1), each operand a number or one float32 a partition.

    Both operators are bitvec or both arithmetic. ScalarE (NeuronCore-v3 on) multiplies and adds, GpSimdE does rsqrt.
    Addresses: if data and dst are int32 or uint32, the operands Python integers, and the operators add, subtract or
    multiply, the result is exact and wraps around, as ``tensor_scalar_addr`` of the NKI reference; otherwise float32.
    """
    del reverse0, reverse1, engine
    require_numbers(dst=dst, data=data)
    require_same_size(dst, data, names=("data",))
    if op1 is None and operand1 is not None:
        raise CompilerError("operand1 must be None where op1 is", operand="operand1", value=str(operand1))
    operators = [(op0, "op0", operand0, "operand0")] + ([(op1, "op1", operand1, "operand1")] if op1 is not None else [])
    bits = [op.kind == "bitvec" for op, *_ in operators]
    require(all(bits) or not any(bits), "both operators must be bitvec, or both arithmetic", "op1", op1, op0.kind)
    for op, name, operand, label in operators:
        _require_operand(op, name, operand, label)
        if not bits[0]:
            require_vector(operand, data, label, ("float32",))
        elif isinstance(operand, Form):
            require_vector(operand, data, label)
            _require_bits(op, **{"dst": dst, "data": data, label: operand})
        elif operand is float and not op.unary:
            require(False, "bitvec operators take integers", label, "a float", "an integer")
    if bits[0]:
        _require_bits(op0, dst=dst, data=data)
        return ("vector",)
    names = tuple(op.name for op, *_ in operators)
    if "rsqrt" in names:
        memories = {x.memory for x in (dst, data, operand0, operand1) if isinstance(x, Form)}
        require(PSUM not in memories, "rsqrt runs on GpSimdE, which does not reach PSUM", names[0], PSUM, SBUF)
        return ("gpsimd",)
    scalar = machine.current().generation != "v2" and names in (("multiply", "add"), ("multiply",), ("add",))
    return ("vector", "scalar") if scalar else ("vector",)


@tensor_scalar.meaning
def _(
    dst: NkiTensor,
    data: NkiTensor,
    op0: AluOp,
    operand0: Any,
    reverse0: bool,
    op1: AluOp | None,
    operand1: Any,
    reverse1: bool,
) -> NDArray[Any] | None:
    if dst.dtype.kind in _INTEGERS:
        if op0.kind == "bitvec":
            return _scalar_bits(dst, data, ((op0, operand0, reverse0), (op1, operand1, reverse1)))
        if _is_address(dst, data, op0, operand0) and (op1 is None or _is_address(dst, data, op1, operand1)):
            value = data.array().astype(np.int64)
            value = op0(int(operand0), value) if reverse0 else op0(value, int(operand0))
            if op1 is not None:
                value = op1(int(operand1), value) if reverse1 else op1(value, int(operand1))
            return value.astype(dst.dtype.numpy)  # type: ignore[no-any-return]
    x = data.as_float32()
    if op1 is None:
        return _apply(op0, x, _operand(op0, operand0, data), dst, reverse0)
    x = _compute(op0, x, _operand(op0, operand0, data), reverse0)
    return _apply(op1, x, _operand(op1, operand1, data), dst, reverse1)


@tensor_scalar.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    if engine == "vector":
        return (work(t, k, engine, n / copy_rate(t.vector, tensors(k)), arithmetic=True),)
    if engine == "gpsimd":
        return (work(t, k, engine, n * t.gpsimd.special_function_cycles),)
    return (work(t, k, engine, n, arithmetic=True),)


@instruction("nki.isa.scalar_tensor_tensor", engines="vector")
def scalar_tensor_tensor(
    dst: Out,
    data: In,
    op0: AluOp,
    operand0: Vector,
    op1: AluOp,
    operand1: In,
    reverse0: bool = False,
    reverse1: bool = False,
) -> None:
    """dst[p, i] = op1(op0(data[p, i], operand0[p]), operand1[p, i]) in float32; ``operand0`` may be a number."""
    del reverse0, reverse1
    require_numbers(dst=dst, data=data, operand1=operand1)
    require_same_size(dst, data, operand1, names=("data", "operand1"))
    _forbid_two_psum("data", data, "operand1", operand1)
    for op, name in ((op0, "op0"), (op1, "op1")):
        require(op.kind != "bitvec", "bitvec operators are not supported", name, op, "arithmetic operators")
    _require_operand(op0, "op0", operand0, "operand0")
    _require_binary(op1, "op1")
    require_vector(operand0, data, "operand0")


@scalar_tensor_tensor.meaning
def _(
    dst: NkiTensor,
    data: NkiTensor,
    op0: AluOp,
    operand0: Any,
    op1: AluOp,
    operand1: NkiTensor,
    reverse0: bool,
    reverse1: bool,
) -> NDArray[Any] | None:
    x = _compute(op0, data.as_float32(), _operand(op0, operand0, data), reverse0)
    return _apply(op1, x, operand1.as_float32().reshape(x.shape), dst, reverse1)


@scalar_tensor_tensor.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    inputs = [k.operand("data"), k.operand("operand1")]
    return (work(t, k, engine, pair_cycles(t.vector, inputs, tensors(k), n), arithmetic=True),)


@instruction("nki.isa.reciprocal", engines="vector")
def reciprocal(dst: Out, data: In) -> None:
    """dst[p, i] = 1 / data[p, i] in float32."""
    require_numbers(dst=dst, data=data)
    require_same_size(dst, data, names=("data",))


@reciprocal.meaning
def _(dst: NkiTensor, data: NkiTensor) -> NDArray[Any] | None:
    return _apply(_DIVIDE, np.float32(1), data.as_float32(), dst)


@reciprocal.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine) * t.vector.reciprocal_cycles),)


# -- reductions and scans ----------------------------------------------------------------------------------------------


@instruction("nki.isa.tensor_reduce", engines="vector")
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
        _require_bits(op, dst=dst, data=data)
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
    given = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    axes = tuple(sorted(int(a) + rank if a < 0 else int(a) for a in given))
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
    _forbid_two_psum("data0", data0, "data1", data1)
    for op, name in ((op0, "op0"), (op1, "op1")):
        require(op.kind != "bitvec", "bitvec operators are not supported", name, op, "arithmetic operators")
        _require_binary(op, name)
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
        registers = core.state[name] = np.zeros(_LANES, np.float32)
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


@instruction("nki.isa.tensor_scalar_reduce", engines="vector", state="vector_accumulator")
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
    del reverse0, reduce_res_negate
    require_numbers(dst=dst, data=data, reduce_res=reduce_res)
    require_same_size(dst, data, names=("data",))
    require(op0.kind != "bitvec", "bitvec operators are not supported", "op0", op0, "arithmetic operators")
    _require_operand(op0, "op0", operand0, "operand0")
    require_vector(operand0, data, "operand0", ("float32",))
    allowed = ("add", "multiply", "maximum", "minimum")
    require(reduce_op.name in allowed, "this operator does not reduce here", "reduce_op", reduce_op, allowed)
    commands = ("reset_reduce", "reduce", "load_reduce")
    cmd = _name(reduce_cmd)
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
    reverse0: bool,
    reduce_cmd: Any,
    reduce_init: Any,
    reduce_res_negate: bool,
) -> None:
    values = _compute(op0, data.as_float32(), _operand(op0, operand0, data), reverse0)
    total = _accumulate(core, data, reduce_op, values, _name(reduce_cmd), reduce_init)
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
        require_vector(bound, on_true_tile, name, ("float32",))
    for name, op in (("comp_op0", comp_op0), ("comp_op1", comp_op1)):
        require(op.name in _COMPARISONS, "this operator does not compare here", name, op, _COMPARISONS)
    require(reduce_op.name == "maximum", "only the maximum is supported", "reduce_op", reduce_op, "nl.maximum")
    commands = ("idle", "reset", "reset_reduce", "reduce")
    cmd = _name(reduce_cmd)
    require(cmd in commands, "this command is not supported here", "reduce_cmd", cmd, commands)
    require_vector(reduce_res, on_true_tile, "reduce_res")
    require(
        on_false_value is ... or np.float32(on_false_value) == _FP32_MIN,
        "on_false_value must be the least float32",
        "on_false_value",
        on_false_value,
        str(_FP32_MIN),
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
    low, high = bound0.as_float32().reshape(-1, 1), bound1.as_float32().reshape(-1, 1)
    mask = _comparison(comp_op0)(index, low) & _comparison(comp_op1)(index, high)
    result = np.where(mask, values, _FP32_MIN)
    total = _accumulate(core, on_true_tile, reduce_op, result, _name(reduce_cmd))
    write(dst, result)
    if reduce_res is not None:
        write(reduce_res, total)


@range_select.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    extra = t.vector.cycles(t.vector.minimum_cycles) if k.has("reduce_res") else 0
    return (work(t, k, engine, streamed(t, k, engine), arithmetic=True, extra_ps=extra),)


# -- searches ----------------------------------------------------------------------------------------------------------


def _require_searchable(form: Form, name: str) -> None:
    require_numbers(**{name: form})
    require(
        8 <= form.elements <= 16384,
        "must have 8 to 16384 elements a partition",
        name,
        form.elements,
        "8 to 16384",
    )
    require(len(form.shape) <= 3, "has at most 3 dimensions", name, form.shape, 3)


def _require_eight(form: Form, data: Form, name: str) -> None:
    require_numbers(**{name: form})
    require(
        form.partitions == data.partitions and form.elements == 8,
        "must have 8 elements in each partition of data",
        name,
        form.shape,
        (data.partitions, 8),
    )


@instruction("nki.isa.max8", engines="vector")
def max8(dst: Out, src: In) -> None:
    """dst[p, :8] = the eight largest of src[p, :], descending."""
    _require_searchable(src, "src")
    _require_eight(dst, src, "dst")


@max8.meaning
def _(src: NkiTensor) -> NDArray[np.float32]:
    values = src.as_float32().reshape(src.shape[0], -1)
    top = np.partition(values, values.shape[1] - 8, axis=1)[:, -8:]
    return np.sort(top, axis=1)[:, ::-1]


@max8.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


@instruction("nki.isa.nc_find_index8", engines="vector")
def nc_find_index8(dst: Out, data: In, vals: In) -> None:
    """dst[p, k] = where vals[p, k] first is in data[p, :]; of equal vals the next takes the next place; or all ones."""
    _require_searchable(data, "data")
    _require_eight(vals, data, "vals")
    _require_eight(dst, data, "dst")
    require(dst.dtype in ("uint16", "uint32"), "indices are uint16 or uint32", "dst", dst.dtype, ("uint16", "uint32"))


@nc_find_index8.meaning
def _(dst: NkiTensor, data: NkiTensor, vals: NkiTensor) -> NDArray[Any]:
    return _find(data, vals, range(8))[0].astype(dst.dtype.numpy)


@nc_find_index8.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


def _find(data: NkiTensor, vals: NkiTensor, order: range) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Indices ``(P, 8)`` of ``vals`` in ``data``, taken in ``order``, no place found twice; and the places found."""
    values = data.as_float32().reshape(data.shape[0], -1)
    wanted = vals.as_float32().reshape(data.shape[0], 8)
    free = np.ones(values.shape, bool)
    indices = np.empty(wanted.shape, np.uint32)
    lanes = np.arange(len(values))
    for k in order:
        match = (values == wanted[:, k : k + 1]) & free
        at = match.argmax(axis=1)
        found = match[lanes, at]
        indices[:, k] = np.where(found, at, 0xFFFFFFFF)
        free[lanes[found], at[found]] = False
    return indices, ~free


@instruction("nki.isa.nc_match_replace8", engines="vector")
def nc_match_replace8(dst: Out, data: In, vals: In, imm: Immediate, dst_idx: OptionalOut = None) -> None:
    """To ``dst`` goes ``data`` with the first place of each of the 8 vals of a partition replaced by ``imm``.

    ``dst_idx`` receives those places, all ones for what was not found. Vals are taken from the last to the first, so of
    equal ones the last has the first place.
    """
    del imm
    _require_searchable(data, "data")
    _require_eight(vals, data, "vals")
    require_numbers(dst=dst)
    require_same_size(dst, data, names=("data",))
    if dst_idx is not None:
        _require_eight(dst_idx, data, "dst_idx")
        allowed = ("uint16", "uint32")
        require(dst_idx.dtype in allowed, "indices are uint16 or uint32", "dst_idx", dst_idx.dtype, allowed)


@nc_match_replace8.meaning
def _(dst: NkiTensor, data: NkiTensor, vals: NkiTensor, imm: float, dst_idx: NkiTensor | None) -> None:
    indices, found = _find(data, vals, range(7, -1, -1))
    values = np.where(found, np.float32(imm), data.as_float32().reshape(found.shape))
    write(dst, values)
    if dst_idx is not None:
        dst_idx.store(indices.astype(dst_idx.dtype.numpy))


@nc_match_replace8.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine)),)


# -- across partitions -------------------------------------------------------------------------------------------------


def nc_stream_shuffle(dst: NkiTensor, src: NkiTensor, shuffle_mask: Any, name: str | None = None) -> NkiInstruction:
    """Partition ``i`` of a quadrant of dst = partition ``shuffle_mask[i]`` of that quadrant of src; 255 leaves it."""
    mask = tuple(int(x) for x in shuffle_mask)
    function = _shuffle_some if 255 in mask[: dst.shape[0]] else _shuffle
    return function(dst, src, mask, name)


def _shuffle_rules(dst: Form, src: Form, shuffle_mask: tuple[int, ...]) -> None:
    require_on_chip(dst=dst, src=src)
    require(dst.dtype == src.dtype, "dst must have the dtype of src", "dst", dst.dtype, src.dtype)
    require(
        dst.elements == src.elements, "src and dst differ in elements a partition", "src", src.elements, dst.elements
    )
    require(len(shuffle_mask) == 32, "the mask has 32 elements", "shuffle_mask", len(shuffle_mask), 32)
    active = -(-max(src.partitions, dst.partitions) // 32) * 32
    for name, form in (("dst", dst), ("src", src)):
        check_start_partition(form.start, active, "nc_stream_shuffle", name, machine.current().generation)
    for index, source in _sources(dst.partitions, shuffle_mask):
        legal = 0 <= shuffle_mask[index % 32] < 32
        require(
            legal and source < src.partitions,
            f"partition {index} of dst takes a partition that src does not have",
            "shuffle_mask",
            shuffle_mask[index % 32],
            f"below {min(32, src.partitions - index // 32 * 32)}, or 255",
        )


def _sources(partitions: int, mask: tuple[int, ...]) -> list[tuple[int, int]]:
    """``(partition of dst, partition of src)`` of all that are written."""
    return [(i, i // 32 * 32 + mask[i % 32]) for i in range(partitions) if mask[i % 32] != 255]


@instruction("nki.isa.nc_stream_shuffle", engines="vector")
def _shuffle(dst: Out, src: In, shuffle_mask: Any) -> None:
    """A shuffle that writes every partition of ``dst``."""
    _shuffle_rules(dst, src, shuffle_mask)


@instruction("nki.isa.nc_stream_shuffle.partial", engines="vector")
def _shuffle_some(dst: Update, src: In, shuffle_mask: Any) -> None:
    """A shuffle that leaves some partitions of ``dst``."""
    _shuffle_rules(dst, src, shuffle_mask)


@_shuffle.meaning
@_shuffle_some.meaning
def _(dst: NkiTensor, src: NkiTensor, shuffle_mask: tuple[int, ...]) -> None:
    pairs = np.array(_sources(dst.shape[0], shuffle_mask), np.intp).reshape(-1, 2)
    values = src.array()[pairs[:, 1]]
    target(dst)[pairs[:, 0]] = values.reshape(-1, *dst.shape[1:])


@_shuffle.cost
@_shuffle_some.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine), opcode="STREAM_SHUFFLE"),)


@instruction("nki.isa.quantize_mx", engines="vector", generations="v4")
def quantize_mx(dst: Out, src: In, dst_scale: Out) -> None:
    """Groups of 8 partitions by 4 elements of ``src`` as MXFP8: packed elements to ``dst``, scales to ``dst_scale``.

    The scales of a quadrant of 32 partitions lie in its first 4 partitions (``numerics.mx``).
    """
    require_memory(SBUF, dst=dst, src=src, dst_scale=dst_scale)
    formats, scales = ("float8_e5m2_x4", "float8_e4m3fn_x4"), ("float8_e8m0fnu", "uint8")
    require(src.dtype in ("float16", "bfloat16"), "src is a 16-bit float", "src", src.dtype, ("float16", "bfloat16"))
    require(dst.dtype in formats, "dst is packed MXFP8", "dst", dst.dtype, formats)
    require(dst_scale.dtype in scales, "scales have 8 bits", "dst_scale", dst_scale.dtype, scales)
    require(src.partitions % 32 == 0, "partitions must be a multiple of 32", "src", src.partitions, 32)
    require(src.elements % 4 == 0, "elements a partition must be a multiple of 4", "src", src.elements, 4)
    columns = src.elements // 4
    require(
        dst.partitions == src.partitions and dst.elements == columns,
        "dst has src's partitions and a quarter of its elements",
        "dst",
        dst.shape,
        (src.partitions, columns),
    )
    rows = src.partitions - 28
    require(
        dst_scale.partitions >= rows and dst_scale.elements == columns,
        "scales need 4 partitions in each quadrant, and dst's elements",
        "dst_scale",
        dst_scale.shape,
        (rows, columns),
    )


@quantize_mx.meaning
def _(dst: NkiTensor, src: NkiTensor, dst_scale: NkiTensor) -> None:
    packed, scales = mx.quantize(src.as_float32().reshape(src.shape[0], -1), dst.dtype)
    dst.store(packed)
    tile = dst_scale.array().view(np.uint8).reshape(dst_scale.shape[0], -1).copy()
    dst_scale.store(mx.spread_scales(scales, out=tile).view(dst_scale.dtype.numpy))


@quantize_mx.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # Four elements a partition and cycle (Trainium3 architecture guide).
    return (work(t, k, engine, k.operand("src").elements / 4),)


# -- shared ------------------------------------------------------------------------------------------------------------


_DIVIDE = AluOp("divide", "arithmetic", np.divide)


def _name(member: Any) -> str:
    """The name of an enum's member, or of what stands for it."""
    return str(getattr(member, "name", member))


def _vector_gpsimd(*forms: Form) -> tuple[str, ...]:
    """GpSimdE does not reach PSUM."""
    return ("vector",) if any(x.memory == PSUM for x in forms) else ("vector", "gpsimd")


def _forbid_two_psum(name1: str, form1: Form, name2: str, form2: Form) -> None:
    require(
        not (form1.memory == form2.memory == PSUM),
        f"{name1} and {name2} cannot both be in PSUM",
        name2,
        "PSUM",
        "one input in PSUM",
    )


def _require_binary(op: AluOp, name: str) -> None:
    require(not op.unary and op.name != "average", "a binary operator is needed", name, op, "a binary operator")


def _require_operand(op: AluOp, name: str, operand: Vector, label: str) -> None:
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


def _require_bits(op: AluOp, **forms: Form) -> None:
    """Bitvec operators take integers; the inputs have one size."""
    inputs = [form for name, form in forms.items() if name != "dst"]
    for name, form in forms.items():
        require(form.dtype.kind in _INTEGERS, f"{op.name} takes integers", name, form.dtype, "an integer dtype")
        require(
            name == "dst" or form.dtype.itemsize == inputs[0].dtype.itemsize,
            "inputs of a bitvec operator have one size",
            name,
            form.dtype,
            inputs[0].dtype,
        )


def _operand(op: AluOp, operand: Any, data: NkiTensor) -> Any:
    return None if op.unary else column(operand, data)


def _compute(op: AluOp, x: Any, y: Any, reverse: bool = False) -> NDArray[np.float32]:
    """A new array ``op(x, y)``, or ``op(y, x)``."""
    result: NDArray[np.float32] = op.function(y, x) if reverse and not op.unary else op.function(x, y)
    return result


def _apply(op: AluOp, x: Any, y: Any, dst: NkiTensor, reverse: bool = False) -> NDArray[np.float32] | None:
    """``op(x, y)``, or ``op(y, x)``, written into dst at once where that is float32 (NumPy minds overlaps)."""
    if reverse and not op.unary:
        x, y = y, x
    function = op.function
    if function.__class__ is np.ufunc and dst.dtype == "float32" and dst.shape in (x.shape, y.shape):
        function(x, y, out=target(dst))
        return None
    result: NDArray[np.float32] = function(x, y)
    return result


def _bits(dst: NkiTensor, op: AluOp, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """A bitvec operator on the bits of integers of one size; the result is cut or extended to dst."""
    result: NDArray[Any] = op(x, y.view(x.dtype) if y.ndim and y.dtype != x.dtype else y)
    return result.astype(dst.dtype.numpy, copy=False)


def _scalar_bits(dst: NkiTensor, data: NkiTensor, steps: Any) -> NDArray[Any]:
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


def _exact(dst: NkiTensor, op: AluOp, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any] | None:
    """32-bit integer arithmetic that wraps around; mixed signs compare by value."""
    if x.dtype != y.dtype:
        x, y = x.astype(np.int64), y.astype(np.int64)
    elif op.function.__class__ is np.ufunc and x.dtype == dst.dtype.numpy and x.shape == dst.shape:
        op.function(x, y, out=target(dst))
        return None
    result: NDArray[Any] = op(x, y)
    return result.astype(dst.dtype.numpy, copy=False)


def _is_address(dst: NkiTensor, data: NkiTensor, op: AluOp, operand: Any) -> bool:
    """Whether a step of ``tensor_scalar`` is integer arithmetic of addresses."""
    return (
        dst.dtype in _WORDS and data.dtype in _WORDS and op.name in _ADDRESS and isinstance(operand, (int, np.integer))
    )


def _comparison(op: AluOp) -> Any:
    """The ufunc of a comparison, with truth values for results."""
    return getattr(np, op.name)
