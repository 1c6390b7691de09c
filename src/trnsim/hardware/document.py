"""One file of the hardware catalogue: read, checked key by key, and laid over the file it builds on (``base``).

A fact is an inline table ``{ value, source, date, alternatives, why, confidence }``. In a user's own file it may be
just the value: its source is then that file and its confidence ``what-if``. Every complaint is an ``InputError`` that
names file, key, value and limit.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

from trnsim.errors import InputError

from .model import Alternative, Fact, Price
from .quantity import Dimension
from .rules import CONFIDENCES, CORE_SCHEMA, Rule, Schema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT: Final = Path(__file__).parent
_FACT_KEYS: Final = ("value", "source", "date", "alternatives", "why", "confidence")
_PRICE_KEYS: Final = ("type", "usd_per_hour", "regions", "source", "date", "note")
_DATE: Final = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")
_ALIASES: Final = re.compile(r"^aliases\s*=\s*\[(.*)\]\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A checked file: names, prices, and for each key its fact and its value in base units."""

    path: Path
    names: dict[str, Any]
    prices: tuple[Price, ...]
    facts: dict[str, Fact]
    values: dict[str, Any]


def suggest(word: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` if one of the known words is close, else nothing."""
    import difflib

    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def names_in(folder: str) -> tuple[str, ...]:
    """The files of a folder of the catalogue, by name."""
    return tuple(sorted(p.name[: -len(".toml")] for p in (ROOT / folder).glob("*.toml")))


@cache
def aliases_in(folder: str) -> dict[str, str]:
    """Other names of the files of a folder, without parsing whole files."""
    found = {}
    for name in names_in(folder):
        match = _ALIASES.search((ROOT / folder / f"{name}.toml").read_text(encoding="utf-8"))
        if match:
            found.update(dict.fromkeys(re.findall(r'"([^"]+)"', match[1]), name))
    return found


def find(name_or_path: str | Path, schema: Schema, beside: Path | None = None) -> Path:
    """The file of a name or alias of the catalogue (case does not matter), or a user's own file.

    A relative path in a file (``beside``) is taken from that file's folder.
    """
    text = str(name_or_path)
    name = text.strip().lower()
    if isinstance(name_or_path, str) and "/" not in name and "\\" not in name:
        direct = ROOT / schema.folder / f"{name}.toml"
        if name and direct.is_file():
            return direct
        if name in (aliases := aliases_in(schema.folder)):
            return ROOT / schema.folder / f"{aliases[name]}.toml"
    path = (beside.parent if beside else Path()) / Path(text).expanduser()
    if path.suffix == ".toml" and path.is_file():
        return path.resolve()
    known = names_in(schema.folder)
    where = f"{beside}: " if beside else ""
    if isinstance(name_or_path, Path) or path.suffix == ".toml":
        raise InputError(f"{where}no such {schema.what} file: {path}")
    hint = suggest(name, [*known, *aliases_in(schema.folder)])
    raise InputError(
        f"{where}unknown {schema.what} {text!r}{hint} (known: {', '.join(known)}; or the path of a .toml file)"
    )


def read(path: Path, schema: Schema, chain: tuple[Path, ...] = ()) -> Document:
    """The document at ``path``, over its base if it names one."""
    if path in chain:
        raise InputError(
            f"{path}: base: files build on each other in a circle", value=" -> ".join(map(str, (*chain, path)))
        )
    own = _read_own(path, schema)
    chain = (*chain, path)
    parent = None
    if "base" in own.names:
        parent = read(find(own.names["base"], schema, path), schema, chain)
    facts, values = (dict(parent.facts), dict(parent.values)) if parent else ({}, {})
    names = dict(parent.names) if parent else {}
    names.pop("aliases", None)
    if "core.base" in own.names:
        core = read(find(own.names["core.base"], CORE_SCHEMA, path), CORE_SCHEMA)
        facts = {k: v for k, v in facts.items() if not k.startswith("core.")}
        values = {k: v for k, v in values.items() if not k.startswith("core.")}
        facts.update((f"core.{k}", v) for k, v in core.facts.items())
        values.update((f"core.{k}", v) for k, v in core.values.items())
        names.update((f"core.{k}", v) for k, v in core.names.items())
    names.update(own.names)
    if parent:
        names["name"] = own.names.get("name", path.stem)
        names["title"] = own.names.get("title", names["name"])
    merged = Document(
        path=path,
        names=names,
        prices=own.prices or (parent.prices if parent else ()),
        facts=facts | own.facts,
        values=values | own.values,
    )
    _check_complete(merged, schema)
    return merged


def _read_own(path: Path, schema: Schema) -> Document:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    reader = _Reader(path, schema)
    reader.table("", data)
    return Document(path=path, names=reader.names, prices=reader.prices, facts=reader.facts, values=reader.values)


class _Reader:
    """Walks one parsed file."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self.schema = schema
        self.built_in = ROOT in path.parents
        self.names: dict[str, Any] = {}
        self.prices: tuple[Price, ...] = ()
        self.facts: dict[str, Fact] = {}
        self.values: dict[str, Any] = {}

    def fail(self, key: str, problem: str, *, value: Any = None, limit: Any = None) -> NoReturn:
        raise InputError(f"{self.path}: {key}: {problem}", value=value, limit=limit)

    def table(self, prefix: str, data: dict[str, Any]) -> None:
        allowed = list(self.schema.children(prefix))
        for child, raw in data.items():
            key = f"{prefix}.{child}" if prefix else child
            if child not in allowed:
                self.fail(key, f"unknown key{suggest(child, allowed)} (known here: {', '.join(allowed)})")
            if key in self.schema.rules:
                self.fact(key, raw, self.schema.rules[key])
            elif key == "prices":
                self.prices = tuple(
                    self.price(f"prices[{i}]", row) for i, row in enumerate(self.list_of_tables(key, raw))
                )
            elif key in self.schema.names:
                self.name(key, raw)
            elif isinstance(raw, dict):
                self.table(key, raw)
            else:
                self.fail(key, "must be a table", value=raw)

    def name(self, key: str, raw: Any) -> None:
        wanted = key == "aliases"
        if wanted and not (isinstance(raw, list) and all(isinstance(x, str) for x in raw)):
            self.fail(key, "must be a list of strings", value=raw)
        if not wanted and not (isinstance(raw, str) and raw.strip()):
            self.fail(key, "must be a string", value=raw)
        if key in {"version", "core.version"} and raw not in {"v2", "v3", "v4"}:
            self.fail(key, "unknown NeuronCore", value=raw, limit="v2, v3, v4")
        self.names[key] = raw

    def fact(self, key: str, raw: Any, rule: Rule) -> None:
        if isinstance(raw, dict):
            self.check_keys(key, raw, _FACT_KEYS, ("value", "source", "date") if self.built_in else ("value",))
        elif self.built_in:
            self.fail(key, "a fact needs { value, source, date }", value=raw)
        else:
            raw = {"value": raw}
        alternatives = self.list_of_tables(f"{key}.alternatives", raw.get("alternatives", []))
        for one in alternatives:
            self.check_keys(f"{key}.alternatives", one, ("value", "source", "date"), ("value", "source", "date"))
        confidence = raw.get("confidence", "published" if "source" in raw else "what-if")
        if confidence not in CONFIDENCES:
            self.fail(f"{key}.confidence", "unknown confidence", value=confidence, limit=", ".join(CONFIDENCES))
        self.values[key] = self.value(key, raw["value"], rule)
        self.facts[key] = Fact(
            value=_text(raw["value"]),
            source=str(raw.get("source", self.path)),
            date=self.date(key, raw["date"]) if "date" in raw else "",
            alternatives=tuple(
                Alternative(
                    value=_text(a["value"]), source=str(a["source"]), date=self.date(f"{key}.alternatives", a["date"])
                )
                for a in alternatives
            ),
            why=str(raw.get("why", "")),
            confidence=confidence,
        )

    def value(self, key: str, raw: Any, rule: Rule) -> Any:
        if rule.kind == "text":
            if not (isinstance(raw, str) and raw.strip()):
                self.fail(key, "must be text", value=raw)
            if rule.choices and raw not in rule.choices:
                self.fail(
                    key, f"unknown value{suggest(raw, list(rule.choices))}", value=raw, limit=", ".join(rule.choices)
                )
            return raw
        if rule.kind == "counts":
            if not (isinstance(raw, list) and raw):
                self.fail(key, "must be a list of whole numbers", value=raw)
            return tuple(int(self.number(key, x, rule, whole=True)) for x in raw)
        if rule.kind == "count":
            return int(self.number(key, raw, rule, whole=True))
        if rule.kind == "ratio":
            return float(self.number(key, raw, rule, whole=False))
        assert isinstance(rule.kind, Dimension)
        if not isinstance(raw, str):
            self.fail(key, f"must be text with a unit of {rule.kind.name}, such as {rule.kind.example}", value=raw)
        try:
            value = rule.kind.parse(raw)
        except ValueError as error:
            self.fail(key, str(error), value=repr(raw))
        self.check_range(key, value, rule, shown=raw, unit=f" {rule.kind.base_unit}")
        return value

    def number(self, key: str, raw: Any, rule: Rule, *, whole: bool) -> float:
        kinds = (int,) if whole else (int, float)
        if isinstance(raw, bool) or not isinstance(raw, kinds) or not math.isfinite(raw):
            self.fail(key, "must be a whole number" if whole else "must be a number", value=repr(raw))
        self.check_range(key, raw, rule, shown=raw)
        return float(raw)

    def check_range(self, key: str, value: float, rule: Rule, *, shown: Any, unit: str = "") -> None:
        if not rule.low <= value <= rule.high:
            self.fail(key, "out of range", value=shown, limit=f"{rule.low:g} to {rule.high:g}{unit}")

    def price(self, key: str, row: dict[str, Any]) -> Price:
        required = ("type", "usd_per_hour", "source", "date") if self.built_in else ("type", "usd_per_hour")
        self.check_keys(key, row, _PRICE_KEYS, required)
        regions = row.get("regions", [])
        if not (isinstance(regions, list) and all(isinstance(x, str) for x in regions)):
            self.fail(f"{key}.regions", "must be a list of strings", value=regions)
        rule = Rule(kind="ratio", low=0.0, high=1e6)
        return Price(
            type=self.value(f"{key}.type", row["type"], Rule(kind="text")),
            usd_per_hour=self.value(f"{key}.usd_per_hour", row["usd_per_hour"], rule),
            regions=tuple(regions),
            date=self.date(key, row["date"]) if "date" in row else "",
            source=str(row.get("source", self.path)),
            note=str(row.get("note", "")),
        )

    def date(self, key: str, raw: Any) -> str:
        if isinstance(raw, date) and not isinstance(raw, datetime):
            return raw.isoformat()
        if not (isinstance(raw, str) and _DATE.fullmatch(raw)):
            self.fail(f"{key}.date", "must be a date such as 2025-12-01, or text such as '2025-12'", value=raw)
        return str(raw)

    def check_keys(self, key: str, data: dict[str, Any], known: tuple[str, ...], required: tuple[str, ...]) -> None:
        for child in data:
            if child not in known:
                self.fail(
                    f"{key}.{child}", f"unknown key{suggest(child, list(known))} (known here: {', '.join(known)})"
                )
        for child in required:
            if child not in data or data[child] == "":
                self.fail(f"{key}.{child}", "missing")

    def list_of_tables(self, key: str, raw: Any) -> list[dict[str, Any]]:
        if not (isinstance(raw, list) and all(isinstance(x, dict) for x in raw)):
            self.fail(key, "must be a list of tables", value=raw)
        return raw


def _check_complete(document: Document, schema: Schema) -> None:
    tables = {key.rsplit(".", n)[0] for key in document.values for n in range(1, key.count(".") + 1)}
    missing = [key for key in schema.required_names if key not in document.names]
    needed = list(schema.tables)
    if "core" in tables or "core.base" in document.names:
        missing += [f"core.{key}" for key in CORE_SCHEMA.required_names if f"core.{key}" not in document.names]
        needed += [f"core.{table}" for table in CORE_SCHEMA.tables]
    missing += [table for table in needed if table not in tables]
    for key, rule in schema.rules.items():
        parent = key.rpartition(".")[0]
        if rule.required and key not in document.values and (not parent or parent in tables):
            missing.append(key)
    if missing:
        hint = "" if "base" in document.names else '; a file with base = "NAME" needs only what differs'
        rest = f" (and {len(missing) - 1} more: {', '.join(missing[1:])})" if missing[1:] else ""
        raise InputError(f"{document.path}: {missing[0]}: missing{rest}{hint}")


def _text(raw: Any) -> str:
    return ", ".join(map(str, raw)) if isinstance(raw, list) else str(raw)
