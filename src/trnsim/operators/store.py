"""Surfaces on disk: a SQLite file that several processes may read and write, and that a kill leaves whole.

A surface is found again only while nothing that it came from has changed: its key holds a hash of the source of the
kernels, of everything below them, and of the chip's facts and timing constants.
"""

from __future__ import annotations

import hashlib
import sqlite3
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.hardware.timing_constants import load_timing
from trnsim.operators.samples import QUANTITIES
from trnsim.operators.surface import Surface

if TYPE_CHECKING:
    from trnsim.kernels.contract import Problem

_SOURCE = Path(__file__).parents[1]
_PACKAGES = ("numerics", "releases", "machine", "isa", "timing", "nki", "kernels", "operators")
_TABLE = """CREATE TABLE IF NOT EXISTS surfaces
(what TEXT NOT NULL, base TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (what, base))"""
# Seconds that a process waits for another's transaction, which takes milliseconds.
_PATIENCE = 30.0


class _Saved(msgspec.Struct):
    remainders: dict[str, int]
    blocks: dict[str, int]
    base: dict[str, int]
    corners: list[float]
    support: str
    reason: str


class Store:
    """Surfaces in the file ``path``, which is made if need be."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"{path} is no store of surfaces: {error}") from error

    def find(self, chip: str, cores: int, key: tuple[Any, ...], problem: Problem) -> Surface | None:
        """A surface that covers ``problem``, if there is one."""
        rows = self._database.execute("SELECT value FROM surfaces WHERE what = ?", (_what(chip, cores, key),))
        for (value,) in rows.fetchall():
            saved = msgspec.msgpack.decode(value, type=_Saved)
            shape = (*(2,) * len(saved.blocks), len(QUANTITIES))
            corners = np.array(saved.corners).reshape(shape)
            found = Surface(saved.remainders, saved.blocks, saved.base, corners, saved.support, saved.reason)
            if found.covers(problem):
                return found
        return None

    def add(self, chip: str, cores: int, key: tuple[Any, ...], surface: Surface) -> None:
        """Keep ``surface``; one for the same uses is replaced."""
        saved = _Saved(
            dict(surface.remainders), dict(surface.blocks), dict(surface.base), surface.corners.ravel().tolist(),
            surface.support, surface.reason,
        )  # fmt: skip
        base = repr((sorted(saved.remainders.items()), sorted(saved.blocks.items()), sorted(saved.base.items())))
        self._database.execute(
            "INSERT OR REPLACE INTO surfaces VALUES (?, ?, ?)",
            (_what(chip, cores, key), base, msgspec.msgpack.encode(saved)),
        )

    def close(self) -> None:
        self._database.close()


def _what(chip: str, cores: int, key: tuple[Any, ...]) -> str:
    return repr((content_hash(), _chip_hash(chip), cores, key))


@cache
def content_hash() -> str:
    """Of the code that decides what a kernel costs."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((_SOURCE / package).rglob("*.py")):
            digest.update(file.relative_to(_SOURCE).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _chip_hash(chip: str) -> str:
    """Of the chip's facts and timing constants."""
    loaded = load_chip(chip)
    return hashlib.sha256(repr((loaded, load_timing(loaded))).encode()).hexdigest()[:16]
