"""A trace as rows that passes may change: instructions with their operands, and storages that may be added.

Instructions keep the row of the recorded trace that they come from. A changed operand or attribute makes another
instruction class, whose costs the definitions in ``isa`` give like those of any other.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trnsim.machine.form import HBM, Form
from trnsim.machine.trace import CLASSES, InstructionClass, OperandClass, StorageInfo, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_MADE: dict[tuple[Any, ...], InstructionClass] = {}


def interned(key: tuple[Any, ...], make: Callable[[int], InstructionClass]) -> InstructionClass:
    """The class for ``key``, made with its number in ``CLASSES`` on first sight: timing again adds no classes."""
    found = _MADE.get(key)
    if found is None:
        found = _MADE[key] = make(len(CLASSES))
        CLASSES.append(found)
    return found


@dataclass(slots=True)
class Operand:
    """Where an operand lies: its storage, first partition, first byte (see ``Trace.operands``), and its form."""

    storage: int
    start: int
    offset: int
    form: Form


@dataclass(slots=True, eq=False)
class Row:
    """One instruction."""

    klass: InstructionClass
    operands: list[Operand]
    source: int
    line: int
    immediate: int
    region: int
    rendezvous: int

    @property
    def name(self) -> str:
        return self.klass.name

    def operand(self, name: str) -> Operand:
        """The operand called ``name``."""
        for item, found in zip(self.klass.operands, self.operands, strict=True):
            if item.name == name:
                return found
        raise KeyError(name)


@dataclass
class Rows:
    """A trace taken apart. ``build`` puts it together again."""

    trace: Trace
    rows: list[Row]
    storages: list[StorageInfo]

    @classmethod
    def of(cls, trace: Trace) -> Rows:
        columns, operands = trace.instructions, trace.operands
        places = list(
            zip(
                operands["storage"].tolist(),
                operands["start"].tolist(),
                operands["offset"].tolist(),
                operands["form"].tolist(),
                strict=True,
            )
        )
        rows = []
        named = ("klass", "operand", "line", "immediate", "region", "rendezvous")
        for number, (klass, first, line, immediate, region, meeting) in enumerate(
            zip(*(columns[n].tolist() for n in named), strict=True)
        ):
            found = trace.classes[klass]
            held = [Operand(s, p, o, trace.forms[f]) for s, p, o, f in places[first : first + len(found.operands)]]
            rows.append(Row(found, held, number, line, immediate, region, meeting))
        return cls(trace, rows, [replace(s) for s in trace.storages])

    def build(self) -> Trace:
        """The trace of the rows. Explicit edges follow their instructions; those of removed ones go."""
        row_of = {row.source: number for number, row in enumerate(self.rows) if row.source >= 0}
        instructions, operands = array("q"), array("q")
        for row in self.rows:
            first = len(operands) // 4
            instructions.extend((row.klass.id, row.line, row.immediate, first, row.region, row.rendezvous))
            for at in row.operands:
                operands.extend((at.storage, at.start, at.offset, at.form.id))
        old = self.trace
        return Trace(
            core=old.core,
            generation=old.generation,
            chip=old.chip,
            kernel=old.kernel,
            lnc=old.lnc,
            lines=old.lines,
            storages=self.storages,
            rendezvous=old.rendezvous,
            edges=[(row_of[a], row_of[b]) for a, b in old.edges if a in row_of and b in row_of],
            names={n: row_of[r] for n, r in old.names.items() if r in row_of},
            directives=old.directives,
            instruction_rows=instructions,
            operand_rows=operands,
        )

    def add_storage(self, like: StorageInfo, **changes: Any) -> int:
        """A new automatic storage that is ``like`` another but for ``changes``; its number."""
        made = replace(like, id=len(self.storages), address=None, **changes)
        self.storages.append(made)
        return made.id

    def changed(
        self,
        klass: InstructionClass,
        operands: Iterable[Operand],
        *,
        names: tuple[str, ...] | None = None,
        roles: tuple[str, ...] | None = None,
        attributes: dict[str, Any] | None = None,
        engines: tuple[str, ...] | None = None,
    ) -> InstructionClass:
        """``klass`` with the forms of ``operands`` and what else is given."""
        forms = tuple(o.form for o in operands)
        names = names or tuple(o.name for o in klass.operands)
        roles = roles or tuple(o.role for o in klass.operands)
        given = klass.attributes if attributes is None else attributes
        able = klass.engines if engines is None else engines
        attributes_ = tuple((k, str(v)) for k, v in given.items())
        key = (klass.id, klass.name, klass.generation, tuple(f.id for f in forms), names, roles, attributes_, able)
        return interned(
            key,
            lambda number: InstructionClass(
                klass.instruction,
                klass.generation,
                given,
                tuple(OperandClass(n, r, f) for n, r, f in zip(names, roles, forms, strict=True)),
                able,
                number,
                klass.state,
                roles=roles,
                is_matmul=klass.is_matmul,
                indirect=klass.indirect,
                in_hbm=any(f.memory == HBM for f in forms),
                partial=klass.partial,
            ),
        )

    def users(self) -> dict[int, list[tuple[int, int]]]:
        """For each storage, who touches it: (row, operand) in order."""
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            for position, at in enumerate(row.operands):
                found[at.storage].append((number, position))
        return found

    def is_tile(self, storage: int) -> bool:
        """An automatic tile of SBUF or PSUM."""
        info = self.storages[storage]
        return info.memory != HBM and info.address is None and not info.shared


def extent(at: Operand) -> tuple[int, int, int, int]:
    """Box on chip that an operand touches: first partition, one after the last, first byte, one after the last."""
    return at.start, at.start + at.form.partition_span, at.offset, at.offset + at.form.span
