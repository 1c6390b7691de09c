"""Collectives as the trace sees them: a row for each tensor that a rank receives.

What the ranks exchange, and how long that takes in their system, is worked out by ``nki.collectives`` before the row is
recorded; the row writes the one and lasts the other, on one DMA engine of the core: the others stay free for its own
loads and stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trnsim.errors import UnsupportedError
from trnsim.hardware.timing_constants import Timing
from trnsim.isa.costs import reads_and_writes
from trnsim.isa.instruction import Immediate, In, InstructionFunction, OptionalIn, OptionalOut, Out, instruction
from trnsim.isa.work import Transfer
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import InstructionClass

NAMES = (
    "all_gather", "all_gather_v", "all_reduce", "all_to_all", "all_to_all_v", "collective_permute",
    "collective_permute_implicit", "collective_permute_implicit_reduce", "reduce_scatter",
)  # fmt: skip
VARIABLE = ("all_gather_v", "all_to_all_v")


def _define(name: str) -> Callable[..., Any]:
    full = f"nki.collectives.{name}"

    def rules(
        dst: Out,
        src: In,
        other: OptionalIn,
        metadata: OptionalIn,
        counts: OptionalOut,
        values: Immediate,
        time_ps: int | None,
    ) -> None:
        """``dst`` receives ``values``; ``counts``, if it is given, how many elements came from each rank."""

    definition: InstructionFunction = instruction(full, engines="dma")(rules)

    def meaning(dst: NkiTensor, counts: NkiTensor | None, values: Any) -> None:
        if values is None:
            raise UnsupportedError(f"a run without numbers cannot compute {full}", instruction=name)
        dst.store(values[0])
        if counts is not None:
            counts.store(values[1])

    def cost(t: Timing, k: InstructionClass, engine: str) -> tuple[Transfer, ...]:
        time_ps = k.attributes["time_ps"]
        if time_ps is None:
            raise UnsupportedError(
                f"the time of {full} is not known here: say where the ranks sit, as "
                'simulate_ranks(..., system="trn2.48xlarge")' if name not in VARIABLE else
                f"the time of {full}, whose lengths are known at run time only, is not modelled",
                instruction=name,
            )  # fmt: skip
        size = k.operands[0].form.bytes
        reads, writes = reads_and_writes(k)
        return (Transfer(size, ((size, 1),), (time_ps,), "copy", "auto", "", "COLLECTIVE", reads, writes),)

    definition.meaning(meaning)
    definition.cost(cost)
    return definition


INSTRUCTIONS: dict[str, Callable[..., Any]] = {name: _define(name) for name in NAMES}
