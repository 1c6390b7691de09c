"""What a measured instruction costs: its opcode as the instruction of ``isa/`` that emits it, costed there.

``Shape`` is what a published table or a profile says of an instruction; ``costed`` gives the work of its cost function,
so replays, tables and kernels share one model. Opcodes that no NKI instruction emits (semaphores, branches) take
constants of ``[sequencer]`` in the timing file (``sequencer_ps``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

# Each module enters its instructions in the table.
import trnsim.isa.dma
import trnsim.isa.reductions
import trnsim.isa.scalar
import trnsim.isa.tensor
import trnsim.isa.vector  # noqa: F401
from trnsim.errors import UnsupportedError
from trnsim.isa.alu import ACTIVATIONS
from trnsim.isa.work import Transfer, Work
from trnsim.machine.form import HBM, Form
from trnsim.machine.trace import INSTRUCTIONS, READ, WRITE, InstructionClass, OperandClass
from trnsim.profiles.operands import DmaSide, Operands, dtype

if TYPE_CHECKING:
    from trnsim.hardware.timing_constants import Timing

LOAD, MULTIPLY, TABLE_LOAD, DMA = "LDWEIGHTS", "MATMUL", "ACT_TABLE_LOAD", "DMA_DIRECT2D"
REGISTER_LOAD = "TENSOR_LOAD"

_COPIES = ("COPY", "CAST")
_REDUCERS = {"ADD": "add", "MAX": "maximum", "MIN": "minimum", "MULTIPLY": "multiply"}
_PLAIN = {
    "TENSOR_REDUCE": "nki.isa.tensor_reduce",
    "TENSOR_SCALAR": "nki.isa.tensor_scalar",
    "TENSOR_TENSOR": "nki.isa.tensor_tensor",
    "RECIPROCAL": "nki.isa.reciprocal",
    "ACTIVATE": "nki.isa.activation",
    **dict.fromkeys(_COPIES, "nki.isa.tensor_copy"),
}
_NAMES = {
    "nki.isa.tensor_tensor": ("dst", "data1", "data2"),
    "nki.isa.tensor_copy": ("dst", "src"),
}
_MATMUL_ATTRIBUTES = {
    "perf_mode": "none",
    "is_stationary_onezero": False,
    "is_moving_onezero": False,
    "tile_size": (),
    "tile_position": (),
}


@dataclass(frozen=True)
class Access:
    """A tensor on chip: dtype as trnsim names it, memory, elements a partition, elements between neighbours."""

    dtype: str
    memory: str
    elements: int
    step: int = 1

    def form(self, channels: int) -> Form:
        """The form of the whole access."""
        return Form.of(self.memory, dtype(self.dtype), (channels, self.elements), (1, abs(self.step) or 1))


@dataclass(frozen=True)
class Shape:
    """An instruction as its cost sees it. ``what`` is the operator (EXP, MAX) where one matters.

    A pass of TensorE has its stationary side (``sources[0]``, if it is known) and its moving side (``moving``);
    ``passes`` says of how many a float32 product is made, ``transpose`` that data pass through bit for bit.
    """

    engine: str
    opcode: str
    sources: tuple[Access, ...] = ()
    result: Access | None = None
    channels: int = 128
    what: str = ""
    transpose: bool = False
    passes: int = 1
    sides: tuple[DmaSide, DmaSide] | None = field(default=None)
    dtypes: tuple[str, str] = ("uint8", "uint8")
    """Of a DMA that converts."""


def emitted(opcode: str) -> bool:
    """True if an instruction of NKI emits ``opcode``."""
    return opcode in _PLAIN or opcode in (LOAD, MULTIPLY, TABLE_LOAD, DMA)


def shape_of(engine: str, opcode: str, operands: Operands, sides: tuple[DmaSide, DmaSide] | None) -> Shape:
    """The shape of a profiled instruction; a MATMUL's is completed by the LDWEIGHTS before it (``with_load``)."""
    if opcode == DMA:
        found = operands.attributes
        kinds = (found.get("in_dtype", "uint8"), found.get("out_dtype", "uint8"))
        return Shape(engine, opcode, sides=sides, dtypes=kinds)
    sources = tuple(_access(t) for t in operands.tensors if t.name != "dst")
    result = operands.tensor("dst")
    words = [w for w in operands.words if w.isupper()]
    what = operands.attributes.get("op", operands.attributes.get("ops", words[0] if words else ""))
    single = bool(operands.attributes.get("fp32_mode"))
    return Shape(
        engine, opcode, sources, _access(result, sources[0].dtype) if result is not None and sources else None,
        operands.channels, what, operands.attributes.get("transpose_mode") == "ENABLED", 2 if single else 1,
    )  # fmt: skip


def _access(tensor: Any, default: str = "fp32") -> Access:
    longest = max(range(len(tensor.counts)), key=lambda i: (tensor.counts[i] > 1, -i)) if tensor.counts else 0
    step = tensor.strides[longest] if tensor.strides else 1
    return Access(tensor.dtype or default, tensor.memory, tensor.elements, step)


@dataclass(frozen=True)
class Costed:
    """The instruction class that a shape became, and its work; a pass of TensorE has its load and its multiply."""

    klass: InstructionClass
    pieces: tuple[Work | Transfer, ...]


def costed(timing: Timing, shape: Shape) -> Costed:
    """The work of ``shape``.

    Raises:
        UnsupportedError: no instruction here emits the opcode, or its operands are not known.
    """
    opcode, engine = shape.opcode, shape.engine
    if opcode == TABLE_LOAD:
        # An activation loads its table itself: the load alone has no instruction.
        table = timing.scalar.table_load_ps
        alone = InstructionClass(INSTRUCTIONS["nki.isa.activation"], timing.version, {}, (), (engine,))
        return Costed(alone, (Work("scalar", TABLE_LOAD, table, table),))
    if opcode == DMA:
        return _dma(timing, shape)
    if opcode in (LOAD, MULTIPLY):
        return _pass(timing, shape)
    name = _PLAIN.get(opcode)
    if name is None or not shape.sources:
        raise UnsupportedError(f"no NKI instruction is known to emit {opcode} on {engine}", instruction=opcode)
    attributes: dict[str, Any] = {}
    if name == "nki.isa.activation":
        attributes["op"] = _activation(shape.what)
    elif name == "nki.isa.tensor_reduce":
        attributes["op"] = _reducer(shape.what)
    result = shape.result or shape.sources[0]
    inputs = _NAMES.get(name, ("dst", "data"))
    operands = [OperandClass("dst", WRITE, result.form(shape.channels))]
    operands += [OperandClass(n, READ, s.form(shape.channels)) for n, s in zip(inputs[1:], shape.sources, strict=False)]
    return _cost(timing, name, attributes, tuple(operands), engine)


def _cost(
    timing: Timing, name: str, attributes: dict[str, Any], operands: tuple[OperandClass, ...], engine: str
) -> Costed:
    definition = INSTRUCTIONS[name]
    klass = InstructionClass(definition, timing.version, attributes, operands, (engine,))
    return Costed(klass, tuple(definition.cost(timing, klass, engine)))


def _activation(name: str) -> str:
    lower = name.lower()
    if lower not in ACTIVATIONS:
        raise UnsupportedError(f"activation function {name!r} is not known", instruction="ACTIVATE", value=name)
    return lower


def _reducer(name: str) -> str:
    if name not in _REDUCERS:
        raise UnsupportedError(f"reduction {name!r} is not known", instruction="TENSOR_REDUCE", value=name)
    return _REDUCERS[name]


def _pass(timing: Timing, shape: Shape) -> Costed:
    """Load and multiply of one pass. Columns of a load alone stand for its rows, which its cost does not see."""
    stationary = shape.sources[0]
    moving = shape.sources[-1]
    dst = shape.result or moving
    operands = (
        OperandClass("dst", WRITE, Form.of("psum", dtype("fp32"), (128, dst.elements), (1, 1))),
        OperandClass("stationary", READ, stationary.form(shape.channels)),
        OperandClass("moving", READ, moving.form(shape.channels)),
    )
    attributes = {**_MATMUL_ATTRIBUTES, "is_transpose": shape.transpose}
    found = _cost(timing, "nki.isa.nc_matmul", attributes, operands, "tensor")
    return Costed(found.klass, found.pieces[:2])


def _dma(timing: Timing, shape: Shape) -> Costed:
    if shape.sides is None:
        raise UnsupportedError("the sides of the DMA are not known", instruction=DMA)
    operands = []
    # Both sides count elements of the larger dtype.
    unit = max(dtype(d).itemsize for d in shape.dtypes)
    for name, role, side, kind in (
        ("dst", WRITE, shape.sides[1], dtype(shape.dtypes[1])), ("src", READ, shape.sides[0], dtype(shape.dtypes[0]))
    ):  # fmt: skip
        count = 1
        for n in side.counts:
            count *= n
        length = max(1, side.element_bytes // unit)
        if side.memory == HBM:
            # Rows that lie apart: what is contiguous is the element.
            form = Form.of(HBM, kind, (count, length), (2 * length, 1))
        else:
            form = Form.of("sbuf", kind, (128, max(1, length * count // 128)), (1, 1))
        operands.append(OperandClass(name, role, form))
    mode = "swdge" if shape.engine == "gpsimd" else "hwdge"
    attributes = {"dge_mode": mode, "engine": shape.engine}
    return _cost(timing, "nki.isa.dma_copy", attributes, tuple(operands), "dma")
