"""Reading a Hugging Face ``config.json``: fields by name, and what is missing said by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trnsim.errors import InputError


@dataclass(frozen=True)
class Fields:
    """Fields of a config; ``source`` names it in errors.

    ``defaults``: what its class in transformers has for fields that a config leaves out. Fields that make a model's
    size must be there all the same, unless the text model is ``nested`` in a larger one, whose configs leave them out
    by habit.
    """

    values: Mapping[str, Any]
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    nested: bool = False

    def need(self, *names: str) -> Any:
        """The first of these fields that is there.

        Raises:
            InputError: none is there, or it is null; names the field.
        """
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        for name in names if self.nested else ():
            if name in self.defaults:
                return self.defaults[name]
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise InputError(f"{self.source} has no field {names[0]!r}{others}", operand=names[0])

    def integer(self, *names: str) -> int:
        """A positive integer."""
        value = self.need(*names)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            found = next((name for name in names if self.values.get(name) is not None), names[0])
            raise InputError(f"{self.source}: {found} must be a positive integer", operand=found, value=value)
        return value

    def optional(self, name: str, default: int = 0) -> int:
        """An integer that may be missing; where it is null, ``default``."""
        value = self.get(name)
        return default if value is None else int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.get(name, default))

    def get(self, name: str, default: Any = None) -> Any:
        """A field, else what its class has, else ``default``."""
        return self.values[name] if name in self.values else self.defaults.get(name, default)

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
