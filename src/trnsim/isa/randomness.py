"""Random numbers: the generators of VectorE and GpSimdE, their seeds and states.

Documented in the NKI reference (``nki.isa``, release 0.6) and in the Trainium3 architecture guide, "XORWOW-based PRNG".
Each lane has its own generator, which advances when the lane makes numbers. A lane of GpSimdE (NeuronCore-v3 on) has
one XORWOW state of 6 words, one of NeuronCore-v4's VectorE four of them. Before, VectorE has an LFSR that is not
public; XORWOW stands for it. A core starts with generators seeded from the launch, so runs repeat; the streams are not
a device's (``trnsim.numerics.random``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, HardwareError, UndefinedBehaviorError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.constants import engine as Engine
from trnsim.isa.costs import streamed, work
from trnsim.isa.instruction import (
    In,
    Out,
    Vector,
    column,
    instruction,
    require,
    require_memory,
    require_numbers,
    require_on_chip,
    require_same_size,
    require_vector,
)
from trnsim.isa.operators import LANES, member_name
from trnsim.isa.work import Work
from trnsim.machine import core as machine
from trnsim.machine.form import PSUM, SBUF, Form
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass
from trnsim.numerics import Xorwow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.isa.instruction import NkiInstruction
    from trnsim.machine.core import Core

_STATE_WORDS = {"vector": 24, "gpsimd": 6}  # a lane's words of state: nki.isa.rand_set_state
_WORDS_PER_CYCLE = 4  # numbers a lane and cycle of VectorE's XORWOW: Trainium3 architecture guide
_SEED_STEP = 0x9E3779B9  # 2**32 over the golden ratio: seeds of cores and engines far apart
_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32")
_RAND2 = ("float8_e4m3", "float8_e5m2", "float16", "bfloat16", "float32", "tfloat32", *_INTEGERS)


# -- the generators of a core ------------------------------------------------------------------------------------------


def _generator(core: Core, engine: str) -> Xorwow:
    """The generators of an engine's 128 lanes; at first seeded from the launch, the core and the engine."""
    name = f"{engine}_random"
    generator: Xorwow | None = core.state.get(name)
    if generator is None:
        seed = (core.launch.seed + _SEED_STEP * (2 * core.index + (engine == "gpsimd"))) % 2**32
        generator = core.state[name] = Xorwow.from_seed(seed, LANES, _STATE_WORDS[engine])
    return generator


def _lanes(core: Core, engine: str, form: Form) -> Xorwow:
    """The generators of the lanes from the first to the last partition of ``form``."""
    return _generator(core, engine).lanes(form.start, form.start + form.partition_span)


def _uniform(core: Core, form: Form) -> NDArray[np.float32]:
    """A number in [0, 1) for each element of ``form``, by VectorE: ``(partitions, elements)``."""
    return _lanes(core, "vector", form).uniform(form.elements)[:: form.strides[0]]


def _chosen(engine: Any, default: str) -> str:
    """The engine that a call asks for, ``default`` if it leaves the choice."""
    return default if engine in (None, Engine.unknown) else member_name(engine)


def _only(name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Engines of a call: ``name`` alone if it is allowed, as its own generator makes the numbers."""
    return (name,) if name in allowed else allowed


# -- seeds and states --------------------------------------------------------------------------------------------------


@instruction("nki.isa.set_rng_seed", engines="vector", state="vector_random")
def set_rng_seed(src_seeds: In) -> None:
    """Seed the generators of all of VectorE's lanes with one element of 32 bits, taken as an unsigned integer."""
    require_numbers(src_seeds=src_seeds)
    require(src_seeds.dtype.itemsize == 4, "a seed has 32 bits", "src_seeds", src_seeds.dtype, "a 32-bit dtype")
    require(src_seeds.size == 1, "the seed is one element", "src_seeds", src_seeds.shape, (1, 1))


@set_rng_seed.meaning
def _(core: Core, src_seeds: NkiTensor) -> None:
    seed = int(src_seeds.array().reshape(-1).view(np.uint32)[0])
    core.state["vector_random"] = Xorwow.from_seed(seed, LANES, _STATE_WORDS["vector"])


@set_rng_seed.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # No published cost: assumed to be that of reading an element; expanding the seed is hidden.
    return (work(t, k, engine, streamed(t, k, engine)),)


def _require_states(form: Form, name: str, engine: str) -> tuple[str, ...]:
    """``form`` holds generator states of ``engine``, which must be an engine with states to load and store."""
    require(form.dtype == "uint32", "states are uint32", name, form.dtype, "uint32")
    require(len(form.shape) == 2, "states have 2 dimensions", name, form.shape, 2)
    allowed = ("gpsimd",) if machine.current().generation == "v3" else ("gpsimd", "vector")
    words = _STATE_WORDS.get(engine)
    require(
        engine not in allowed or form.elements == words,
        f"a state of {engine} has {words} words a partition",
        name,
        form.elements,
        words,
    )
    return _only(engine, allowed)


def _state_of(seen: dict[str, Any]) -> str:
    return f"{_chosen(seen['engine'], 'gpsimd')}_random"


def _part(form: Form) -> slice:
    return slice(form.start, form.start + form.partition_span, form.strides[0])


@instruction("nki.isa.rand_set_state", engines="gpsimd vector", generations="v3 v4", state=_state_of)
def rand_set_state(src_seeds: In, engine: Any = Engine.gpsimd) -> tuple[str, ...]:
    """Load XORWOW states, uint32, into the lanes of src_seeds' partitions: 6 words on GpSimdE, 24 on VectorE (v4)."""
    require_memory(SBUF, src_seeds=src_seeds)
    return _require_states(src_seeds, "src_seeds", _chosen(engine, "gpsimd"))


@rand_set_state.meaning
def _(core: Core, src_seeds: NkiTensor, engine: Any) -> None:
    name = _chosen(engine, "gpsimd")
    state = _generator(core, name).state
    state[_part(src_seeds.form)] = src_seeds.array()
    core.state[f"{name}_random"] = Xorwow(state)


@instruction("nki.isa.rand_get_state", engines="gpsimd vector", generations="v3 v4", state=_state_of)
def rand_get_state(dst: Out, engine: Any = Engine.gpsimd) -> tuple[str, ...]:
    """Store the XORWOW states of the lanes of dst's partitions, as ``rand_set_state`` takes them.

    GpSimdE does not reach PSUM.
    """
    require_on_chip(dst=dst)
    name = _chosen(engine, "gpsimd")
    require(name != "gpsimd" or dst.memory != PSUM, "GpSimdE does not reach PSUM", "dst", PSUM, SBUF)
    return _require_states(dst, "dst", name)


@rand_get_state.meaning
def _(core: Core, dst: NkiTensor, engine: Any) -> NDArray[np.uint32]:
    return _generator(core, _chosen(engine, "gpsimd")).state[_part(dst.form)]


@rand_set_state.cost
@rand_get_state.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # No published cost: a cycle a word of state is assumed.
    return (work(t, k, engine, streamed(t, k, engine)),)


# -- random numbers ----------------------------------------------------------------------------------------------------


@instruction("nki.isa.rng", engines="vector gpsimd", state=lambda seen: f"{_chosen(seen['engine'], 'vector')}_random")
def rng(dst: Out, engine: Any = Engine.vector) -> tuple[str, ...]:
    """``dst``, an integer tile = random bits: the low ones of 32 an element.

    VectorE, or GpSimdE from NeuronCore-v3 on, which does not reach PSUM.
    """
    require_on_chip(dst=dst)
    require(dst.dtype in _INTEGERS, "random bits go to an integer dtype", "dst", dst.dtype, _INTEGERS)
    alone = dst.memory == PSUM or machine.current().generation == "v2"
    return _only(_chosen(engine, "vector"), ("vector",) if alone else ("vector", "gpsimd"))


@rng.meaning
def _(core: Core, dst: NkiTensor, engine: Any) -> None:
    words = _lanes(core, _chosen(engine, "vector"), dst.form).next(dst.form.elements)[:: dst.form.strides[0]]
    low_bits = words.astype(np.dtype(f"u{dst.dtype.itemsize}"))
    dst.store(low_bits.view(dst.dtype.numpy))


@rng.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # No published cost: a cycle an element is assumed, as dropout, which draws as many numbers.
    return (work(t, k, engine, streamed(t, k, engine)),)


def rand2(dst: NkiTensor, min: Any, max: Any, name: str | None = None) -> NkiInstruction:
    """``dst`` = random numbers, uniform from ``min`` to ``max``: numbers, or one float32 a partition. NeuronCore-v4.

    Drawn in float32 as ``min + u (max - min)`` with u in [0, 1), and rounded to dst.

    Raises:
        HardwareError: ``min`` is not below ``max``, or what the instruction cannot do.
        UndefinedBehaviorError: the same of two tensors, or of a tensor and a number.
    """
    if isinstance(min, (int, float)) and isinstance(max, (int, float)) and not np.float32(min) < np.float32(max):
        raise HardwareError(
            "min must be below max",
            instruction="rand2",
            operand="min",
            value=min,
            limit=f"below {max}",
            generation=machine.current().generation,
        )
    return _rand2(dst, min, max, name)


@instruction("nki.isa.rand2", engines="vector", generations="v4", state="vector_random")
def _rand2(dst: Out, min: Vector, max: Vector) -> None:
    """The instruction of ``rand2``."""
    require_on_chip(dst=dst)
    require(dst.dtype in _RAND2, "dst has a dtype that the generator does not give", "dst", dst.dtype, _RAND2)
    for label, bound in (("min", min), ("max", max)):
        if bound is None:
            raise CompilerError(f"{label} must be a number or a tensor", operand=label, value=None)
        require_vector(bound, dst, label, ("float32",))


@_rand2.meaning
def _(core: Core, dst: NkiTensor, min: Any, max: Any) -> NDArray[np.float32]:
    low, high = _bound(min, dst), _bound(max, dst)
    wrong = np.flatnonzero(~(low < high))
    if wrong.size:
        raise UndefinedBehaviorError(
            f"min must be below max, in partition {wrong[0]} too",
            instruction="rand2",
            operand="min",
            value=low[wrong[0], 0],
            limit=f"below {high[wrong[0], 0]}",
            generation=core.generation,
        )
    numbers = _uniform(core, dst.form)
    numbers *= high - low
    numbers += low
    return numbers


def _bound(value: Any, dst: NkiTensor) -> NDArray[np.float32]:
    """A bound as ``(partitions, 1)``."""
    bound: NDArray[np.float32] = np.broadcast_to(np.reshape(column(value, dst), (-1, 1)), (dst.shape[0], 1))
    return bound


@_rand2.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    # The rate of the generators; that the engine stores as fast is assumed.
    return (work(t, k, engine, streamed(t, k, engine) / _WORDS_PER_CYCLE, arithmetic=True),)


@instruction("nki.isa.dropout", engines="vector", state="vector_random")
def dropout(dst: Out, data: In, prob: Vector) -> None:
    """dst[p, i] = 0 with probability prob[p], else data[p, i], bit for bit and not scaled.

    ``prob`` is a number or a tensor with one element a partition: float32 for integers, any float for floats.
    """
    require_numbers(dst=dst, data=data)
    require_same_size(dst, data, names=("data",))
    require(dst.dtype == data.dtype, "dst must have the dtype of data", "dst", dst.dtype, data.dtype)
    if prob is None:
        raise CompilerError("prob must be a number or a tensor", operand="prob", value=None)
    require_vector(prob, data, "prob")
    if isinstance(prob, Form) and data.dtype.kind == "float":
        require(prob.dtype.kind == "float", "prob must be a float", "prob", prob.dtype, "a float dtype")
    elif isinstance(prob, Form):
        require(prob.dtype == "float32", "prob of integers must be float32", "prob", prob.dtype, "float32")


@dropout.meaning
def _(core: Core, dst: NkiTensor, data: NkiTensor, prob: Any) -> None:
    probability = np.reshape(column(prob, data), (-1, 1))
    if not ((probability >= 0) & (probability <= 1)).all():
        core.launch.add_finding(
            "dropout-probability",
            "dropout has a prob outside 0 to 1: taken as 1 above, as 0 below",
            core.caller_line(),
        )
    dropped = _uniform(core, data.form) < probability
    values = data.array().reshape(dropped.shape)
    dst.store(np.where(dropped, values.dtype.type(0), values))


@dropout.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (work(t, k, engine, streamed(t, k, engine), arithmetic=True),)
