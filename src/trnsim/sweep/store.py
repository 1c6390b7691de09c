"""The file of a sweep: a line of JSON for each variant that is done, so that a sweep that was stopped goes on.

Each line is one write. What a kill left behind of the last one is cut off when the file is opened again. A variant is
known by a key: the content of the kernel's file and of the files beside it that it imports, the kernel, its arguments,
parameters and options, the chip and trnsim itself.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import trnsim
from trnsim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = "trnsim.sweep/1"


class Result(msgspec.Struct, kw_only=True, omit_defaults=False):
    """A variant that is done. Times are microseconds, sizes bytes; ``error`` is empty for one that was timed."""

    key: str
    params: dict[str, str]
    error: str = ""
    time_us: float | None = None
    spread_us: float | None = None
    bound_by: str = ""
    bound_by_text: str = ""
    support: str = ""
    mfu: float | None = None
    instructions: int = 0
    hbm_read_bytes: int = 0
    hbm_write_bytes: int = 0
    sbuf_peak_bytes: int = 0
    psum_peak_bytes: int = 0
    spills: int = 0
    findings: dict[str, int] = {}
    arguments: list[str] = []
    chip: str = ""
    cores: int = 1
    wall_seconds: float = 0.0


class Store:
    """The results that are kept in the file ``path``, or in memory only; to be closed.

    Raises:
        InputError: the file cannot be opened, holds something else, or another sweep writes to it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self._file = -1
        if path is None:
            return
        import fcntl

        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self.close()
            raise InputError(f"another sweep is writing to {path}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self) -> None:
        assert self.path is not None
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].splitlines()
        first = lines[0] if lines else data
        header = _header()
        if data and (first != header if lines else not header.startswith(first)):
            raise InputError(f"{self.path} is not the file of a sweep; its first line should be {header.decode()}")
        for number, line in enumerate(lines[1:], 2):
            try:
                result = msgspec.json.decode(line, type=Result)
            except msgspec.DecodeError as error:
                raise InputError(f"{self.path}:{number} is damaged: {error}") from error
            self.results[result.key] = result
        if whole < len(data):
            os.ftruncate(self._file, whole)
        if not lines:
            os.write(self._file, header + b"\n")

    def add(self, result: Result) -> None:
        """Keep ``result``; it is on disk when this returns."""
        self.results[result.key] = result
        if self._file >= 0:
            os.write(self._file, msgspec.json.encode(result) + b"\n")
            os.fsync(self._file)


def _header() -> bytes:
    return json.dumps({"schema": SCHEMA}).encode()


def key_of(facts: Mapping[str, Any]) -> str:
    """A digest of everything that decides a variant's time."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def trnsim_digest() -> str:
    """A digest of trnsim's own code and data: results of another version are not taken for this one's."""
    root = Path(trnsim.__file__).parent
    digest = hashlib.sha256(trnsim.__version__.encode())
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".toml")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def source_digests(path: Path) -> dict[str, str]:
    """SHA-256 of a Python file and of the files beside it that it imports, directly or not, by their relative path."""
    folder = path.resolve().parent
    found: dict[str, str] = {}
    pending = [path.resolve()]
    while pending:
        file = pending.pop()
        name = os.path.relpath(file, folder)
        if name in found:
            continue
        source = file.read_bytes()
        found[name] = hashlib.sha256(source).hexdigest()
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        pending += [p for module in _imported(tree) for p in _files(module, folder, file.parent)]
    return dict(sorted(found.items()))


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {base, *(f"{base}{'' if base.endswith('.') else '.'}{a.name}" for a in node.names)}
    return names


def _files(module: str, folder: Path, own: Path) -> list[Path]:
    """Files that importing ``module`` runs, if they lie in ``folder`` (or, for relative imports, from ``own`` on)."""
    dots = len(module) - len(module.lstrip("."))
    for _ in range(max(0, dots - 1)):
        own = own.parent
    at = own if dots else folder
    found = []
    for part in filter(None, module.lstrip(".").split(".")):
        at = at / part
        found += [p for p in (at.with_name(at.name + ".py"), at / "__init__.py") if p.is_file()]
    return found
