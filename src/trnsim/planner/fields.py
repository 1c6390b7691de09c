"""Fields of foreign JSON and YAML files, read one by one with errors that name file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trnsim.errors import InputError


def read_json(path: str | Path) -> Any:
    """The content of a JSON file."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file: {error}") from None


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Needs the package ``pyyaml`` (extra ``yaml``)."""
    try:
        import yaml
    except ImportError:
        raise InputError(f"{path}: reading YAML needs the package pyyaml: pip install 'trnsim[yaml]'") from None
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {error}") from None


class Fields:
    """The keys of one table of a file; ``where`` names it in errors. Keys that are None count as absent."""

    def __init__(self, where: str, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise InputError(f"{where}: must be a table of keys", value=type(data).__name__)
        self.where = where
        self.data: Mapping[str, Any] = data

    def has(self, key: str) -> bool:
        """Whether the key is there and not None."""
        return self.data.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it is; ``InputError`` if it is absent."""
        if not self.has(key):
            raise InputError(f"{self.where}: {key}: missing")
        return self.data[key]

    def table(self, key: str) -> Fields:
        """A table below."""
        return Fields(f"{self.where}: {key}", self.raw(key))

    def number(self, key: str, default: float | None = None, *, low: float = 0.0) -> float:
        """A number of at least ``low``."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(key, "must be a number", value)
        if not low <= value:
            self.fail(key, f"must be {low:g} or more", value)
        return float(value)

    def count(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """A whole number of at least ``low``."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, "must be a whole number", value)
        if value < low:
            self.fail(key, f"must be {low} or more", value)
        return int(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """A truth value."""
        if not self.has(key):
            return default
        value = self.raw(key)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false", value)
        return bool(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if not isinstance(value, str):
            self.fail(key, "must be text", value)
        return str(value)

    def counts(self, key: str) -> tuple[int, ...]:
        """Ascending whole numbers; none if the key is absent."""
        if not self.has(key):
            return ()
        value = self.raw(key)
        if not isinstance(value, list) or not all(
            isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in value
        ):
            self.fail(key, "must be a list of whole numbers, 1 or more", value)
        return tuple(sorted(value))

    def fail(self, key: str, problem: str, value: Any) -> None:
        """Raise ``InputError`` for a key."""
        raise InputError(f"{self.where}: {key}: {problem}", value=repr(value)[:80])
