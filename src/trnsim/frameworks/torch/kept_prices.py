"""Prices of uses that earlier runs found, in the user's folder for caches.

A file is named by what its prices came from: the sizes and times of trnsim's own files. Where any of these has changed
since, prices are found anew; the files of a few states are kept, for those who have several checkouts.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

import trnsim

# What decides a kernel's time.
_DECIDING = (
    "numerics",
    "hardware",
    "releases",
    "machine",
    "isa",
    "timing",
    "nki",
    "kernels",
    "operators",
    "session.py",
)
_STATES = 4
_T = TypeVar("_T")


class _File(msgspec.Struct, Generic[_T]):
    sources: str
    prices: dict[str, _T]


class KeptPrices(Generic[_T]):
    """The prices of one chip and implementation; ``kind`` is their dataclass."""

    def __init__(self, folder: Path, name: str, kind: type[_T]) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        self._folder, self._digest = folder, digest
        self._kind = kind
        self._prices: dict[str, _T] | None = None
        self._changed = False

    def get(self, key: str) -> _T | None:
        """The price of a use, if an earlier run found it."""
        if self._prices is None:
            self._prices = self._read()
        return self._prices.get(key)

    def put(self, key: str, price: _T) -> None:
        """Keep a price; ``save`` writes it."""
        if self._prices is None:
            self._prices = self._read()
        self._prices[key] = price
        self._changed = True

    def save(self) -> None:
        """Write what is new. A folder that cannot be written keeps nothing."""
        if not self._changed or self._prices is None:
            return
        self._changed = False
        found = _File(_sources(), {**self._read(), **self._prices})
        path = self._path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(msgspec.msgpack.encode(found))
            part.replace(path)  # whole or not at all, whoever else writes
            files = sorted(self._folder.glob(f"prices-{self._digest}-*.msgpack"), key=lambda file: file.stat().st_mtime)
            for old in files[:-_STATES]:
                old.unlink(missing_ok=True)
        except OSError:
            return

    def _path(self) -> Path:
        return self._folder / f"prices-{self._digest}-{_sources()[:16]}.msgpack"

    def _read(self) -> dict[str, _T]:
        try:
            found = msgspec.msgpack.decode(self._path().read_bytes(), type=_File[self._kind])  # type: ignore[name-defined]
        except (OSError, msgspec.MsgspecError):
            return {}
        return found.prices if found.sources == _sources() else {}


@cache
def _sources() -> str:
    """A hash of the names, sizes and times of all files that decide a price."""
    root = Path(trnsim.__file__).parent
    digest = hashlib.sha256()
    for name in _DECIDING:
        path = root / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".toml", ".bin", ".txt"):
                stat = file.stat()
                digest.update(f"{file.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
