"""The function tables of ScalarE: the first that a kernel needs is loaded before anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trnsim.isa.work import Work
from trnsim.machine.trace import InstructionClass
from trnsim.timing.tensorizer.rows import Row, Rows, interned

if TYPE_CHECKING:
    from trnsim.hardware.timing_constants import Timing


@dataclass(frozen=True)
class _Preload:
    """Asks ScalarE for a table and does nothing else."""

    table: str
    name: str = "preload"

    def cost(self, _timing: Timing, _klass: InstructionClass, _engine: str) -> tuple[Work, ...]:
        return (Work("scalar", "NOP", 0, 0, table=self.table),)


def preload_table(rows: Rows, timing: Timing) -> None:
    """Ask for the table of the first instruction of ScalarE that has one."""
    seen: set[int] = set()
    for row in rows.rows:
        if row.klass.id in seen or row.klass.engines != ("scalar",):
            continue
        seen.add(row.klass.id)
        for piece in row.klass.instruction.cost(timing, row.klass, "scalar"):
            if isinstance(piece, Work) and piece.table:
                klass = _class_of(_Preload(piece.table), row.klass.generation)
                rows.rows.insert(0, Row(klass, [], row.source, row.line, 0, 0, -1))
                return


def _class_of(asked: _Preload, generation: str) -> InstructionClass:
    return interned(
        (asked, generation), lambda number: InstructionClass(asked, generation, {}, (), ("scalar",), number)
    )
