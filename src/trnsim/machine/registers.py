"""Scalar registers of the engines' sequencers.

Each write to a register makes a new ``Cell``, so that a time-only run can compute a value later, when control flow or
an address needs it, whatever was written to the register since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.errors import CompilerError, UndefinedBehaviorError

if TYPE_CHECKING:
    from trnsim.machine.core import Core


class Cell:
    """One value of a register: known, or to be computed by row ``row`` of the trace."""

    __slots__ = ("core", "row", "value")

    def __init__(self, value: int | None = None, row: int = -1, core: Core | None = None) -> None:
        self.value, self.row, self.core = value, row, core

    def read(self) -> int:
        if self.value is None:
            if self.core is None:
                raise UndefinedBehaviorError("a register is read before anything was moved or loaded into it")
            self.core.force_row(self.row)
            assert self.value is not None
        return self.value


class VirtualRegister:
    """A 32-bit scalar register, made by ``nisa.register_alloc``."""

    __slots__ = ("cell", "frozen")

    def __init__(self, state: Any = None, frozen: bool = False) -> None:
        self.cell = state if isinstance(state, Cell) else Cell(None if state is None else wrap32(int(state)))
        self.frozen = frozen

    def assign(self, cell: Cell) -> None:
        if self.frozen:
            raise CompilerError("a loop's index register cannot be written")
        self.cell = cell

    def __index__(self) -> int:
        return self.cell.read()

    def __int__(self) -> int:
        return self.cell.read()

    def __bool__(self) -> bool:
        return self.cell.read() != 0

    def __repr__(self) -> str:
        return f"VirtualRegister({'?' if self.cell.value is None else self.cell.value})"

    # Arithmetic on a register's value is what loop bodies do with their index; it is done by the sequencer.
    def __add__(self, other: Any) -> int:
        return int(self) + int(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> int:
        return int(self) - int(other)

    def __rsub__(self, other: Any) -> int:
        return int(other) - int(self)

    def __mul__(self, other: Any) -> int:
        return int(self) * int(other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> int:
        return int(self) // int(other)

    def __mod__(self, other: Any) -> int:
        return int(self) % int(other)

    def __lt__(self, other: Any) -> bool:
        return int(self) < int(other)

    def __le__(self, other: Any) -> bool:
        return int(self) <= int(other)

    def __gt__(self, other: Any) -> bool:
        return int(self) > int(other)

    def __ge__(self, other: Any) -> bool:
        return int(self) >= int(other)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (int, VirtualRegister)):
            return int(self) == int(other)
        return NotImplemented

    __hash__ = object.__hash__


def wrap32(value: int) -> int:
    """``value`` as the signed 32-bit integer with the same bits."""
    return (value + 2**31) % 2**32 - 2**31
