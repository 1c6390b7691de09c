"""What cost functions share: how an instruction's forms become cycles of an engine.

The forms of the formulas are those of the NKI reference of SDK 2.21 to 2.26 (its last with instruction costs) and of
the architecture guides; the constants come from ``hardware/timing``. N is the elements a partition.
"""

from __future__ import annotations

from trnsim.hardware.timing_constants import GpsimdTiming, StreamTiming, Timing, VectorTiming
from trnsim.isa.work import Work
from trnsim.machine.form import PSUM, SBUF, Form
from trnsim.machine.trace import READ, WRITE, InstructionClass

_NARROW = ("bfloat16", "float16")


def tensors(k: InstructionClass) -> list[Form]:
    """Forms of the operands that are streamed: more than one element a partition, or all if none is."""
    forms = [o.form for o in k.operands if not o.name.endswith(".index")]
    return [f for f in forms if f.elements > 1] or forms


def streamed(t: Timing, k: InstructionClass, engine: str) -> float:
    """Elements a partition of the longest operand; one with a wide step counts twice: its port reads at half rate."""
    e = t.engine(engine)
    assert isinstance(e, StreamTiming)
    return max(e.strided(f.elements, f.step_bytes) for f in tensors(k))


def reads_and_writes(k: InstructionClass) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Operand indices that are read, and that are written."""
    reads = tuple(i for i, o in enumerate(k.operands) if o.role != WRITE)
    writes = tuple(i for i, o in enumerate(k.operands) if o.role != READ)
    return reads, writes


def work(
    t: Timing,
    k: InstructionClass,
    engine: str,
    cycles: float,
    *,
    opcode: str = "",
    arithmetic: bool = False,
    extra_ps: int = 0,
    table: str = "",
) -> Work:
    """Work of an engine that streams for ``cycles``. GpSimdE starts slowly; ``extra_ps`` adds to the fixed part."""
    e = t.engine(engine)
    assert isinstance(e, StreamTiming)
    if isinstance(e, GpsimdTiming):
        cycles += e.start_cycles
    reads, writes = reads_and_writes(k)
    return Work(
        engine,
        opcode or k.name.rsplit(".", 1)[-1].upper(),
        e.interval(cycles, arithmetic=arithmetic) + extra_ps,
        e.duration(cycles, arithmetic=arithmetic) + extra_ps,
        reads,
        writes,
        table=table,
        streams_ps=e.cycles(cycles),
    )


def copy_rate(v: VectorTiming, forms: list[Form]) -> float:
    """Elements a cycle of VectorE's copies and tensor-scalar arithmetic: performance modes by dtype, memory and layout.

    trainium2_arch.rst, "Vector Engine Performance Mode"; float32 in SBUF was measured at 2 elements a cycle, and where
    one side has 16 bits it is no slower (softmax of float16 on trn2, Deep-Learning-Profiling-Tools/Tilebench).
    """
    in_sbuf = all(f.memory == SBUF for f in forms)
    if all(f.dtype in _NARROW for f in forms):
        contiguous = all(f.step_bytes == f.dtype.itemsize for f in forms)
        if in_sbuf and contiguous:
            return v.narrow_mode
        return v.narrow_mixed_mode if in_sbuf or contiguous else 1
    if in_sbuf and all(f.dtype == "float32" or f.dtype in _NARROW for f in forms):
        return v.float32_sbuf_mode
    return 1


def pair_cycles(v: VectorTiming, inputs: list[Form], forms: list[Form], n: float) -> float:
    """Cycles of two streamed inputs: one pass if they come from different memories, else two through one port.

    Where one of them has 16 bits and nothing is wider than float32, as many elements a cycle as float32 alone is copied
    (a stencil of float16 that sums in float32, on trn2: Deep-Learning-Profiling-Tools/Tilebench).
    """
    if len({f.memory for f in inputs}) > 1:
        return n
    in_sbuf, narrow = all(f.memory == SBUF for f in forms), [f.dtype in _NARROW for f in forms]
    if all(f.memory == SBUF for f in inputs) and all(narrow):
        return n / v.narrow_pair_mode
    floats = all(f.dtype == "float32" or f.dtype in _NARROW for f in forms)
    if in_sbuf and floats and any(f.dtype in _NARROW for f in inputs):
        return n * v.two_input_streams / v.float32_sbuf_mode
    return n * v.two_input_streams


def in_psum(k: InstructionClass) -> bool:
    """True if any operand is in PSUM."""
    return any(o.form.memory == PSUM for o in k.operands)
