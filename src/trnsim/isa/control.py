"""Scalar registers, and what the two cores of a logical core do together.

Each engine's sequencer has 64 registers of 32 bits; NKI's are virtual and may live in any of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.constants import dma_engine as DmaEngine
from trnsim.isa.constants import engine as Engine
from trnsim.isa.costs import reads_and_writes
from trnsim.isa.instruction import Immediate, In, NkiInstruction, Out, instruction, require
from trnsim.isa.work import Transfer, Work
from trnsim.machine import core as machine
from trnsim.machine.core import Core
from trnsim.machine.form import HBM, SBUF
from trnsim.machine.registers import Cell, VirtualRegister, wrap32
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass


def register_alloc(x: Any = None) -> VirtualRegister:
    """A register: uninitialised, or holding an integer (or the one element of a tensor)."""
    if isinstance(x, NkiTensor):
        register = VirtualRegister()
        register_load(register, x)
        return register
    if x is None or isinstance(x, (int, np.integer)):
        register = VirtualRegister(None)
        if x is not None:
            register_move(register, int(x))
        return register
    if isinstance(x, VirtualRegister):
        return VirtualRegister(x.cell)
    raise CompilerError("register_alloc takes None, an integer or a one-element tensor", operand="x", value=x)


def _register(value: Any, name: str) -> VirtualRegister:
    if not isinstance(value, VirtualRegister):
        raise CompilerError(f"{name} must be a register", operand=name, value=type(value).__name__)
    return value


@instruction("nki.isa.register_move", engines="sync")
def _move(value: Immediate) -> None:
    """A constant or a register's value into a register."""


@_move.meaning
def _() -> None:
    return None


@_move.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (Work(engine, "MOVE", t.sync.register_move_ps, t.sync.register_move_ps),)


def register_move(dst: VirtualRegister, src: Any) -> NkiInstruction:
    """Move an integer, or another register's value, into ``dst``."""
    register = _register(dst, "dst")
    if isinstance(src, VirtualRegister):
        register.assign(src.cell)
    elif isinstance(src, (int, np.integer)):
        if not -(2**31) <= int(src) < 2**32:
            raise HardwareError("a register holds 32 bits", operand="src", value=src, limit="32 bits")
        register.assign(Cell(wrap32(int(src))))
    else:
        raise CompilerError("src must be an integer or a register", operand="src", value=type(src).__name__)
    return _move(0)


@instruction("nki.isa.register_load", engines="sync")
def _load(src: In, cell: Immediate) -> None:
    """One element of SBUF or HBM into a register."""
    require(src.size == 1, "src must have exactly one element", "src", src.shape, 1)
    require(src.memory in (SBUF, HBM), "src must be in SBUF or HBM", "src", src.memory, (SBUF, HBM))
    require(src.dtype.itemsize <= 4, "a register holds 32 bits", "src", src.dtype, "4 bytes")


@_load.meaning
def _(src: NkiTensor, cell: Cell) -> None:
    value = src.array().reshape(-1)[0]
    cell.value = wrap32(int(value))


@_load.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (Work(engine, "TENSOR_LOAD", t.sync.register_load_ps, t.sync.register_load_ps, reads=(0,)),)


def register_load(dst: VirtualRegister, src: NkiTensor) -> NkiInstruction:
    """Load the one element of ``src`` into register ``dst``."""
    register = _register(dst, "dst")
    core = machine.current()
    cell = Cell(core=core, row=len(core.trace))
    if not core.numeric and isinstance(src, NkiTensor) and src.name in core.launch.assume:
        cell.value = wrap32(core.launch.assume[src.name])
    handle = _load(src, cell)
    register.assign(cell)
    return handle


@instruction("nki.isa.register_store", engines="sync")
def _store(dst: Out, cell: Immediate) -> None:
    """A register's value into one element of SBUF or HBM."""
    require(dst.size == 1, "dst must have exactly one element", "dst", dst.shape, 1)
    require(dst.memory in (SBUF, HBM), "dst must be in SBUF or HBM", "dst", dst.memory, (SBUF, HBM))


@_store.meaning
def _(dst: NkiTensor, cell: Cell) -> NDArray[Any]:
    value = cell.read()
    if dst.dtype.kind == "uint":
        value %= 2**32
    return (
        np.full(dst.shape, value, np.int64)
        if dst.dtype.kind in ("int", "uint")
        else np.full(dst.shape, value, np.float32)
    )


@_store.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (Work(engine, "TENSOR_STORE", t.sync.register_load_ps, t.sync.register_load_ps, writes=(0,)),)


def register_store(dst: NkiTensor, src: VirtualRegister) -> NkiInstruction:
    """Store the value of register ``src`` into the one element of ``dst``."""
    return _store(dst, _register(src, "src").cell)


# -- two cores ---------------------------------------------------------------------------------------------------------

_GPSIMD_DMA_LIMIT = {4: 1024, 2: 512, 1: 256}


@instruction("nki.isa.sendrecv", engines="dma", generations="v3 v4")
def _exchange(
    dst: Out, src: In, send_to_rank: int, recv_from_rank: int, pipe_id: int, dma_engine: Any, key: Immediate
) -> None:
    """Send ``src`` to another core's ``dst`` and receive into ours."""
    del pipe_id
    require(src.memory == SBUF, "src must be in SBUF", "src", src.memory, SBUF)
    require(dst.memory == SBUF, "dst must be in SBUF", "dst", dst.memory, SBUF)
    require(src.dtype == dst.dtype, "src and dst must have the same dtype", "dst", dst.dtype, src.dtype)
    require(src.shape == dst.shape, "src and dst must have the same shape", "dst", dst.shape, src.shape)
    for name, rank in (("send_to_rank", send_to_rank), ("recv_from_rank", recv_from_rank)):
        require(rank in (0, 1), "a rank of the logical core is 0 or 1", name, rank, (0, 1))
    if str(getattr(dma_engine, "name", dma_engine)) == "gpsimd_dma":
        if machine.current().launch.release.version in ("0.2", "0.3"):
            whole = src.partitions % 16 == 0
            require(whole, "gpsimd_dma takes multiples of 16 partitions before 0.4", "src", src.partitions, 16)
        size = src.elements * src.dtype.itemsize
        limit = _GPSIMD_DMA_LIMIT[src.dtype.itemsize]
        require(size <= limit, f"{size} bytes a partition exceed {limit} for gpsimd_dma", "src", size, limit)


@_exchange.meaning
def _(core: Core, dst: NkiTensor, recv_from_rank: int, key: Any) -> NDArray[Any]:
    del dst
    exchange = core.launch.exchange
    assert exchange is not None
    values: NDArray[Any] = exchange.received(key, recv_from_rank)
    return values


@_exchange.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Transfer, ...]:
    """A copy from SBUF to SBUF, a run a partition; GpSimdE's own DMA engines take software descriptors."""
    src = k.operand("src")
    found = ((src.elements * src.dtype.itemsize, src.partitions),)
    mode = "swdge" if k.attributes["dma_engine"] == "gpsimd_dma" else "auto"
    times = tuple(t.dma.packet(size) for size, _ in found)
    reads, writes = reads_and_writes(k)
    return (Transfer(src.bytes, found, times, "copy", mode, "", "SENDRECV", reads, writes),)


def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: Any,
    recv_from_rank: Any,
    pipe_id: Any,
    dma_engine: Any = DmaEngine.dma,
    name: str | None = None,
) -> NkiInstruction:
    """Exchange tiles between the two cores of a logical core; both must call it with the same ``pipe_id``.

    Raises:
        HardwareError: LNC is 1, the tiles are not in SBUF or differ, or a rank is not 0 or 1.
        DeadlockError: the other core never makes the matching call.
    """
    core = machine.current()
    if core.launch.lnc < 2:
        raise HardwareError(
            "sendrecv needs two cores: launch the kernel with kernel[2]", instruction="sendrecv",
            operand="send_to_rank", value="LNC=1", limit="LNC=2", generation=core.generation,
        )  # fmt: skip
    pipe = int(pipe_id)
    count = core.pipes.get(pipe, 0)
    core.pipes[pipe] = count + 1
    key = ("sendrecv", pipe, count)
    exchange = core.launch.exchange
    assert exchange is not None
    core.settle(src, "nki.isa.sendrecv")
    exchange.post(core, key, src)
    exchange.rendezvous(core, key, f"sendrecv pipe {pipe}, call {count}")
    core.pending_rendezvous = key
    return _exchange(dst, src, int(send_to_rank), int(recv_from_rank), pipe, dma_engine, key, name)


@instruction("nki.isa.core_barrier", engines="gpsimd vector scalar tensor sync", generations="v3 v4")
def _barrier(data: In, cores: Any, engine: Any) -> None:
    """Wait on one engine until all cores have come here; a core alone waits for nobody."""
    both = machine.current().launch.lnc > 1
    limit = (0, 1) if both else (0,)
    require(tuple(cores) == limit, f"only cores {limit} can meet", "cores", cores, limit)


@_barrier.meaning
def _() -> None:
    return None


@_barrier.cost
def _(t: Timing, k: InstructionClass, engine: str) -> tuple[Work, ...]:
    return (Work(engine, "CORE_BARRIER", t.sync.barrier_ps, t.sync.barrier_ps, reads=(0,)),)


def core_barrier(
    data: NkiTensor, cores: Any = (0, 1), engine: Any = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Wait until both cores have reached this call, so that what each wrote to ``data`` may be read by the other.

    ``cores`` is (0, 1). A kernel on one core may name that core alone, (0,) or 0, as public kernels do.

    Raises:
        HardwareError: the kernel runs on one core, or ``cores`` are others.
        DeadlockError: the other core never makes the matching call.
    """
    core = machine.current()
    named = (int(cores),) if isinstance(cores, (int, np.integer)) else tuple(cores)
    if core.launch.lnc < 2:
        if len(named) > 1:
            raise HardwareError(
                "core_barrier needs two cores: launch the kernel with kernel[2]", instruction="core_barrier",
                operand="cores", value="LNC=1", limit="LNC=2", generation=core.generation,
            )  # fmt: skip
    elif named == (0, 1):
        count = core.pipes.get("barrier", 0)
        core.pipes["barrier"] = count + 1
        key = ("core_barrier", 0, count)
        assert core.launch.exchange is not None
        core.launch.exchange.rendezvous(core, key, f"core_barrier, call {count}")
        core.pending_rendezvous = key
    return _barrier(data, named, engine, name)
