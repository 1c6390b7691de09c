"""Reading a Hugging Face ``config.json``: fields by name, and what is missing said by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trnsim.errors import InputError


@dataclass(frozen=True)
class Fields:
    """Fields of a config; ``source`` names it in errors."""

    values: Mapping[str, Any]
    source: str

    def need(self, *names: str) -> Any:
        """The first of these fields that is there.

        Raises:
            InputError: none is there, or it is null; names the field.
        """
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise InputError(f"{self.source} has no field {names[0]!r}{others}", operand=names[0])

    def integer(self, *names: str) -> int:
        """A positive integer."""
        value = self.need(*names)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            found = next(name for name in names if self.values.get(name) is not None)
            raise InputError(f"{self.source}: {found} must be a positive integer", operand=found, value=value)
        return value

    def optional(self, name: str, default: int = 0) -> int:
        """An integer that may be missing or null."""
        return default if self.values.get(name) is None else int(self.values[name])

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.values.get(name, default))

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def kinds(self, name: str, count: int) -> list[Any] | None:
        """A list with one entry a layer, or None if the field is missing.

        Raises:
            InputError: it has fewer entries than there are layers.
        """
        value = self.values.get(name)
        if value is None:
            return None
        if len(value) < count:
            raise InputError(f"{self.source}: {name} has {len(value)} entries for {count} layers", operand=name)
        return list(value)[:count]
