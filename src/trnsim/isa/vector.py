"""VectorE: filling, copying and element-wise arithmetic.

Documented in the NKI reference (``nki.isa``, release 0.6). Each partition is a lane; arithmetic is float32 whatever the
dtypes of the operands, and results are rounded to the destination. Instructions that GpSimdE or ScalarE can run as well
(copies, ``tensor_tensor``, ``tensor_scalar``) are here too, with the engines that each call may use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.alu import ALU, AluOp
from trnsim.isa.constants import engine as Engine
from trnsim.isa.costs import copy_rate, in_psum, pair_cycles, streamed, tensors, work
from trnsim.isa.instruction import (
    Immediate,
    In,
    Out,
    Update,
    Vector,
    instruction,
    require,
    require_number,
    require_numbers,
    require_on_chip,
    require_same_size,
    require_vector,
    target,
    without,
)
from trnsim.isa.work import Work
from trnsim.machine import core as machine
from trnsim.machine.form import PSUM, SBUF, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass
from trnsim.numerics import as_dtype, from_float32, to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.numerics import DType

from trnsim.isa.operators import (
    EXACT,
    INTEGERS,
    WORDS,
    apply,
    compute,
    compute_bits,
    compute_exact,
    forbid_two_psum,
    is_address,
    member_name,
    require_binary,
    require_bits,
    require_operand,
    scalar_bits,
    scalar_operand,
    vector_gpsimd,
)

# -- filling and copying -----------------------------------------------------------------------------------------------


@instruction("nki.isa.memset", engines="vector gpsimd")
def memset(dst: Out, value: Immediate, engine: Any = Engine.unknown) -> tuple[str, ...]:
    """dst[p, i] = value, a number of dst's kind; packed formats take 0 only."""
    del engine
    require_on_chip(dst=dst)
    require_number(value, "value")
    _require_number(value, dst.dtype)
    return vector_gpsimd(dst)


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


def _require_number(value: Any, dtype: DType) -> None:
    """An integer tile takes an integer. Since NKI 0.3 the type must match; public kernels for it pass 0.0 all the same.

    Asked by the rule, once a class of calls, and for each value.
    """
    if isinstance(value, (float, np.floating)) and dtype.kind in ("int", "uint") and not float(value).is_integer():
        raise CompilerError(
            "value must have dst's type: an integer tile takes an integer", operand="value", value=value, limit=dtype
        )


def _number(value: Any, dtype: DType) -> Any:
    """A number in ``dtype``: integers saturate, floats are rounded."""
    if dtype.kind in ("int", "uint"):
        _require_number(value, dtype)
        value = int(value)
    if dtype.kind == "packed":
        if value != 0:
            raise HardwareError(
                "packed formats take 0 only", instruction="memset", operand="value", value=value, limit=0
            )
        return dtype.numpy.type(0)
    if dtype.kind in ("int", "uint") and isinstance(value, (int, np.integer)):
        return dtype.numpy.type(min(max(int(value), int(dtype.min)), int(dtype.max)))
    return from_float32(np.array([value], np.float32), dtype)[0]


@instruction("nki.isa.tensor_copy", engines="vector scalar gpsimd", indirect="dst src")
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
    away = PSUM in (dst.memory, src.memory) or dst.reach or src.reach  # GpSimdE copies without indirection
    return without(engines, "gpsimd") if away else engines


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


@instruction("nki.isa.tensor_copy_predicated", engines="vector", indirect="dst predicate")
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
        forbid_two_psum("src", src, "predicate", predicate)
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


@instruction("nki.isa.tensor_tensor", engines="vector gpsimd", indirect="dst data1")
def tensor_tensor(dst: Out, data1: In, data2: In, op: AluOp, engine: Any = Engine.unknown) -> tuple[str, ...]:
    """dst[p, i] = op(data1[p, i], data2[p, i]).

    In float32; bit for bit if ``op`` is bitvec; in exact integers, wrapping around, on GpSimdE, which is the engine if
    all operands are int32 or uint32 in SBUF and none is asked for. ``nl.power`` runs on GpSimdE.
    """
    require_numbers(dst=dst, data1=data1, data2=data2)
    require_same_size(dst, data1, data2, names=("data1", "data2"))
    forbid_two_psum("data1", data1, "data2", data2)
    require_binary(op, "op")
    engines = vector_gpsimd(dst, data1, data2)
    if op.kind == "bitvec":
        require_bits(op, dst=dst, data1=data1, data2=data2)
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
    if "gpsimd" in engines and all(x.dtype in WORDS for x in (dst, data1, data2)) and member_name(engine) != "vector":
        return ("gpsimd",)
    return engines


@tensor_tensor.meaning
def _(dst: NkiTensor, data1: NkiTensor, data2: NkiTensor, op: AluOp, engine: Any) -> NDArray[Any] | None:
    if dst.dtype.kind in INTEGERS:
        if op.kind == "bitvec":
            return compute_bits(dst, op, data1.array(), data2.array().reshape(data1.shape))
        if (
            op.name in EXACT
            and all(x.dtype in WORDS and x.storage.memory == SBUF for x in (dst, data1, data2))
            and member_name(engine) != "vector"
        ):
            return compute_exact(dst, op, data1.array(), data2.array().reshape(data1.shape))
    x, y = data1.as_float32(), data2.as_float32()
    return apply(op, x, y if y.shape == x.shape else y.reshape(x.shape), dst)


@tensor_tensor.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    n = streamed(t, k, engine)
    if engine == "gpsimd":
        return (work(t, k, engine, n * t.vector.two_input_streams),)
    inputs = [k.operand("data1"), k.operand("data2")]
    return (work(t, k, engine, pair_cycles(t.vector, inputs, tensors(k), n)),)


@instruction("nki.isa.tensor_scalar", engines="vector scalar gpsimd", indirect="dst data")
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
        require_operand(op, name, operand, label)
        if not bits[0]:
            require_vector(operand, data, label, ("float32",))
        elif isinstance(operand, Form):
            require_vector(operand, data, label)
            require_bits(op, **{"dst": dst, "data": data, label: operand})
        elif operand is float and not op.unary:
            require(False, "bitvec operators take integers", label, "a float", "an integer")
    if bits[0]:
        require_bits(op0, dst=dst, data=data)
        return ("vector",)
    addresses = data.dtype in WORDS and dst.dtype in WORDS and all(o is int for _, _, o, _ in operators)
    if addresses and (dst.reach or data.reach):
        require(False, "arithmetic on addresses has no tensor indirection", "data", data.dtype, "other dtypes")
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
    if dst.dtype.kind in INTEGERS:
        if op0.kind == "bitvec":
            return scalar_bits(dst, data, ((op0, operand0, reverse0), (op1, operand1, reverse1)))
        if is_address(dst, data, op0, operand0) and (op1 is None or is_address(dst, data, op1, operand1)):
            value = data.array().astype(np.int64)
            value = op0(int(operand0), value) if reverse0 else op0(value, int(operand0))
            if op1 is not None:
                value = op1(int(operand1), value) if reverse1 else op1(value, int(operand1))
            return value.astype(dst.dtype.numpy)  # type: ignore[no-any-return]
    x = data.as_float32()
    if op1 is None:
        return apply(op0, x, scalar_operand(op0, operand0, data, "operand0", "tensor_scalar"), dst, reverse0)
    x = compute(op0, x, scalar_operand(op0, operand0, data, "operand0", "tensor_scalar"), reverse0)
    return apply(op1, x, scalar_operand(op1, operand1, data, "operand1", "tensor_scalar"), dst, reverse1)


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
    forbid_two_psum("data", data, "operand1", operand1)
    for op, name in ((op0, "op0"), (op1, "op1")):
        require(op.kind != "bitvec", "bitvec operators are not supported", name, op, "arithmetic operators")
    require_operand(op0, "op0", operand0, "operand0")
    require_binary(op1, "op1")
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
    second = scalar_operand(op0, operand0, data, "operand0", "scalar_tensor_tensor")
    x = compute(op0, data.as_float32(), second, reverse0)
    return apply(op1, x, operand1.as_float32().reshape(x.shape), dst, reverse1)


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
    return apply(ALU["divide"], np.float32(1), data.as_float32(), dst)


@reciprocal.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine) * t.vector.reciprocal_cycles),)
