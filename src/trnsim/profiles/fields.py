"""Reading fields of files that others wrote: a clear error names file, table, row and field."""

from __future__ import annotations

from typing import Any, TypeVar

from trnsim.errors import InputError

T = TypeVar("T")


class Row:
    """One row of a table; ``get`` checks that a field is there and has its type."""

    __slots__ = ("number", "path", "table", "values")

    def __init__(self, path: str, table: str, number: int, values: Any) -> None:
        self.path, self.table, self.number = path, table, number
        if not isinstance(values, dict):
            raise InputError(f"{path}: {table}[{number}] is not an object", value=type(values).__name__)
        self.values: dict[str, Any] = values

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer, written as one or as its digits."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, str, float)):
            raise self._wrong(name, value, "an integer")
        try:
            number = int(value)
        except ValueError:
            raise self._wrong(name, value, "an integer") from None
        if isinstance(value, float) and number != value:
            raise self._wrong(name, value, "an integer")
        return number

    def real(self, name: str, default: float | None = None) -> float:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, value, "a number")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "text")
        return value

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise InputError(f"{self.path}: {self.table}[{self.number}] has no field {name!r}", operand=name)
            return default
        return value

    def _wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.path}: {self.table}[{self.number}].{name} is not {wanted}", operand=name, value=value)


def rows(path: str, document: dict[str, Any], table: str, *, required: bool) -> list[Row]:
    """The rows of a table of a JSON document.

    Raises:
        InputError: a required table is missing, or what stands there is no list.
    """
    found = document.get(table)
    if found is None:
        if required:
            raise InputError(f"{path}: no table {table!r}", operand=table)
        return []
    if not isinstance(found, list):
        raise InputError(f"{path}: {table} is not a list", operand=table, value=type(found).__name__)
    return [Row(path, table, number, values) for number, values in enumerate(found)]
