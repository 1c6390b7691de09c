"""Surfaces of the catalogued chips that come with the package: one file, of which a look-up reads what it needs.

``surfaces.bin`` begins with a table: which facts each chip had (``decides.facts_of``), and for each of these and each
operator where its entries stand, compressed. Chips with the same facts share entries. The code that they come from is
listed beside it, in ``sources.txt``. What comes from other code or other facts than there are now is not given out: it
would be stale. ``make surfaces`` writes both.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.hardware import load_chip
from trnsim.operators.decides import (
    SOURCES,
    bytes_hash,
    code_hash,
    facts_of,
    list_sources,
    listed,
    surface_files,
)
from trnsim.report.files import write_bytes_atomic, write_text_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trnsim.hardware import Chip
    from trnsim.kernels.contract import Contract

FILE = SOURCES.with_name("surfaces.bin")
_MAGIC = b"trnsim surfaces 1\n"
_LENGTH = 4
# Raw LZMA2: the entries need no container of their own.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9}]


class Entry(msgspec.Struct, array_like=True):
    """A surface, and the use that it was made for; ``key`` is equal for uses that may have the same surface."""

    key: str
    cores: int
    dtype: str
    options: dict[str, Any]
    sizes: dict[str, int]
    surface: msgspec.Raw


class _Part(msgspec.Struct, array_like=True):
    offset: int
    length: int


class _Table(msgspec.Struct):
    facts: dict[str, str]
    parts: dict[str, dict[str, _Part]]


@dataclass(frozen=True)
class Shipped:
    """The file, its table read."""

    path: Path
    start: int
    table: _Table

    def entries(self, contract: Contract, chip: Chip) -> list[Entry]:
        """What is there of an operator on a chip, or on one whose facts decide the same times, and not stale."""
        part = self._part(contract.name, facts_of(chip))
        if part is None or changed_files(contract):
            return []
        with self.path.open("rb") as file:
            file.seek(self.start + part.offset)
            data = lzma.decompress(file.read(part.length), lzma.FORMAT_RAW, filters=_FILTERS)
        return msgspec.msgpack.decode(data, type=list[Entry])

    def stale(self, contracts: Iterable[Contract]) -> list[str]:
        """What is out of date: chips, and source files of the operators that are there."""
        found = [f"chip {name}" for name, facts in self.table.facts.items() if facts != facts_of(load_chip(name))]
        by_file: dict[str, list[str]] = {}
        for contract in (c for c in contracts if any(c.name in parts for parts in self.table.parts.values())):
            for file in changed_files(contract):
                by_file.setdefault(file, []).append(contract.name)
        found += [f"{file} ({', '.join(names)})" for file, names in sorted(by_file.items())]
        if listed().get(self.path.name, ("",))[0] != bytes_hash(self.path.read_bytes()):
            found.append(f"{self.path.name}, which is not the one that {SOURCES.name} was written with")
        return found

    def _part(self, operator: str, facts: str) -> _Part | None:
        return self.table.parts.get(facts, {}).get(operator)


def changed_files(contract: Contract) -> list[str]:
    """Source files of an operator whose code is not that of the shipped surfaces."""
    known = listed()
    return [f for f in surface_files(contract) if f not in known or known[f][1] != code_hash(f)]


def shipped(path: Path = FILE) -> Shipped | None:
    """The file of the package; None where there is none, or one of another format."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@cache
def _read(path: Path, changed: int) -> Shipped | None:
    del changed  # a file that is written again is read again
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        length = int.from_bytes(file.read(_LENGTH), "big")
        table = msgspec.msgpack.decode(file.read(length), type=_Table)
    return Shipped(path, len(_MAGIC) + _LENGTH + length, table)


def write(
    found: Mapping[tuple[str, str], Sequence[Entry]], contracts: Mapping[str, Contract], path: Path = FILE
) -> bool:
    """Write entries by chip and operator, and the list of sources; whether the entries are others than before.

    The same entries give the same bytes.
    """
    facts = {chip: facts_of(load_chip(chip)) for chip, _ in sorted(found)}
    parts: dict[str, dict[str, _Part]] = {}
    blobs: list[bytes] = []
    offset = 0
    for (chip, operator), entries in sorted(found.items()):
        if operator in parts.setdefault(facts[chip], {}):
            continue
        ordered = sorted(entries, key=lambda e: (e.cores, e.dtype, e.key, sorted(e.sizes.items())))
        blob = lzma.compress(msgspec.msgpack.encode(ordered), lzma.FORMAT_RAW, filters=_FILTERS)
        parts[facts[chip]][operator] = _Part(offset, len(blob))
        blobs.append(blob)
        offset += len(blob)
    table = msgspec.msgpack.encode(_Table(facts, parts))
    data = b"".join((_MAGIC, len(table).to_bytes(_LENGTH, "big"), table, *blobs))
    before = path.read_bytes() if path.is_file() else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {file for operator in {name for _, name in found} for file in surface_files(contracts[operator])}
    if data != before:
        write_bytes_atomic(path, data)
    own = f"{path.name} {bytes_hash(data)} -\n"
    write_text_atomic(path.with_name(SOURCES.name), list_sources(files) + own)
    return data != before
