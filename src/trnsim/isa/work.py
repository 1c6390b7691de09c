"""What a cost function returns: the work that one instruction makes for the machine.

An instruction is one or several pieces of work. ``Work`` keeps one engine busy; ``Transfer`` is carried by the DMA
engines and costs its issuing engine only the trigger. Times are integer picoseconds at the engine's full rate; how
long they last in the end (throttling, waits, sharing) is the business of ``trnsim.timing``.
"""

from __future__ import annotations

from dataclasses import dataclass

DGE_MODES = ("auto", "hwdge", "swdge", "static")
TRANSFER_KINDS = ("copy", "transpose", "gather", "scatter", "accumulate")


@dataclass(frozen=True)
class Work:
    """A piece of work of one engine.

    ``queue`` is the engine, or ``""`` for the engine that the instruction was given. ``busy_ps`` is the initiation
    interval: until the next instruction may start on this engine. ``latency_ps`` is from the start until the results
    are visible to others. ``reads`` and ``writes`` are operand indices.

    ``background`` marks work that runs behind the one before it on this queue (LoadStationary behind MultiplyMoving):
    it only delays the engine when nothing else is in flight. ``table`` names the set of function tables that must be
    loaded first (ScalarE). ``flops`` counts what the algorithm asks for, two a product. ``streams_ps`` is how long the
    tensor passes through: so long the engine holds a port of SBUF or PSUM that it shares (0: ``busy_ps``).
    """

    queue: str
    opcode: str
    busy_ps: int
    latency_ps: int
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    table: str = ""
    background: bool = False
    flops: int = 0
    streams_ps: int = 0


@dataclass(frozen=True)
class Transfer:
    """A data movement by the DMA engines.

    ``descriptors`` are ``(bytes of an element, count)``: the contiguous runs it is split into, dealt out to the DMA
    engines in turn. ``engine_ps`` is the time on one DMA engine of one descriptor of each kind, in the order of
    ``descriptors`` (``DmaTiming.packet``). ``dge`` says who makes the descriptors; ``queue`` is the engine that must
    trigger it, ``""`` if the compiler may choose.
    """

    bytes: int
    descriptors: tuple[tuple[int, int], ...]
    engine_ps: tuple[int, ...]
    kind: str = "copy"
    dge: str = "auto"
    queue: str = ""
    opcode: str = "DMA"
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
