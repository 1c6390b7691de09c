"""Rules of ``subset.toml``: which published rows count, and how what they omit is filled."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.errors import InternalError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("subset.toml")
_KEYS = {"reason", "where", "any_of", "matches", "empty", "below", "at_least", "unknown", "test", "limit", "exact"}
_OTHER = {
    "name",
    "title",
    "family",
    "gradient_dtype",
    "after",
    "release_of",
    "release_spread",
    "like",
    "graphs",
    "above",
    "fused_loss",
}


@dataclass(frozen=True)
class PublishedRow:
    """One published run; texts as in the file."""

    values: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return (self.values.get(name) or "").strip()

    def number(self, name: str) -> float | None:
        """A column as a number; None where it is empty or has words."""
        try:
            return float(self[name])
        except ValueError:
            return None


@cache
def subset(name: str) -> Mapping[str, Any]:
    """The rules for a kind of rows, such as ``training``."""
    with FILE.open("rb") as file:
        found: Mapping[str, Any] = tomllib.load(file)[name]
    return found


def holds(
    rule: Mapping[str, Any], row: PublishedRow, tables: Mapping[str, Any], test: Callable[[str, float], bool]
) -> bool:
    """Whether all that a rule says is so of a row.

    Args:
        tables: of the same kind of rows, that ``unknown`` names.
        test: whether a named test, with its limit, holds of the row.
    """
    if unknown := set(rule) - _KEYS - _OTHER:
        raise InternalError(f"{FILE.name}: a rule has no {', '.join(sorted(unknown))}")
    flags = 0 if rule.get("exact") else re.IGNORECASE
    said = [bool(re.search(text, row[column], flags)) for column, text in rule.get("where", {}).items()]
    if "any_of" in rule:
        said.append(any(re.search(rule["matches"], row[column], flags) for column in rule["any_of"]))
    if "empty" in rule:
        said.append(row.number(rule["empty"]) is None)
    said += [(row.number(column) or 0.0) < limit for column, limit in rule.get("below", {}).items()]
    said += [(row.number(column) or 0.0) >= limit for column, limit in rule.get("at_least", {}).items()]
    said += [row[column] not in tables[table] for column, table in rule.get("unknown", {}).items()]
    if "test" in rule:
        said.append(test(rule["test"], float(rule.get("limit", 0.0))))
    return all(said)


def first(
    rules: list[Mapping[str, Any]], row: PublishedRow, tables: Mapping[str, Any], test: Callable[[str, float], bool]
) -> Mapping[str, Any] | None:
    """The first rule that holds; None: none does."""
    return next((rule for rule in rules if holds(rule, row, tables, test)), None)
