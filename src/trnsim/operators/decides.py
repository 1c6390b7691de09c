"""What decides a trace, and what decides its time: hashes by which stored and shipped results are found, or are stale.

A *trace* is decided by the kernel's own file and what that imports from ``kernels``, by the front end below them
(``_TRACE``), and by the generation of the cores. Its *time* is decided by the timing model (``_TIME``), and by those
facts and constants of the chip that the model reads. A *surface* is decided by both and by the code that makes it
(``_SURFACE``).

Hashes are of what the code does, not of how it is written: of the syntax tree without comments, docstrings and
positions. So another wording makes nothing stale, and the same code has the same hash on every version of Python.
Parsing everything takes longer than a look-up may, so the file ``sources.txt`` beside the shipped surfaces lists each
source file with the hash of its bytes and that of its code, and only files whose bytes are others are parsed. Its
lines merge as those of any text do: two branches that changed different files have no conflict there.

A hash of behaviour (times of reference samples) cannot tell a user that a surface is stale without simulating, and
tells nothing about the sizes that it leaves out. The tests check it besides, for what hashes of code could miss.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.hardware.timing_constants import load_timing
from trnsim.timing.simulate import hbm_stretch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trnsim.hardware import Chip
    from trnsim.kernels.contract import Contract, Problem

ROOT = Path(__file__).parents[1]
SOURCES = Path(__file__).with_name("shipped") / "sources.txt"
_TRACE = ("numerics", "releases", "machine", "isa", "nki", "session.py")
_TIME = ("timing", "units.py", "hardware/model.py", "hardware/timing_constants.py", "operators/samples.py")
_SURFACE = ("operators/building.py", "operators/surface.py", "operators/basis.py")
# Older releases, which our kernels do not use, and what reads saved traces of other generations.
_NOT = ("nki/versions/", "isa/retarget.py")
_DIGITS = 16


def trace_key(contract: Contract, problem: Problem, chip: Chip) -> str:
    """Of the trace of one use of a kernel; chips of one generation share it."""
    core = chip.core
    assert core is not None
    return _digest(code_of(trace_files(contract)), core.version, core.sbuf, core.psum, contract.name, _plain(problem))


def time_key(chip: Chip) -> str:
    """Of what makes a time of a trace on ``chip``."""
    return _digest(code_of(_files(_TIME)), facts_of(chip))


def surface_key(contract: Contract, chip: Chip, plain: Chip) -> str:
    """Of what a surface of this kernel on ``chip`` comes from, which has the knots of that on ``plain``."""
    return _digest(code_of(surface_files(contract)), facts_of(chip), facts_of(plain))


def facts_of(chip: Chip) -> str:
    """Hash of the facts of ``chip`` that times depend on, with its timing constants.

    HBM's bandwidth is one only where it is less than what the DMA engines of a logical core can ask for.
    """
    return _facts(chip)


_NO_TIMES = ("constants", "error_percent", "tensorizer_error_percent")
"""Of ``Timing``: what is told beside times, and the constants that its other fields hold."""


@cache
def _facts(chip: Chip) -> str:
    core, timing = chip.core, load_timing(chip)
    assert core is not None
    constants = [getattr(timing, f.name) for f in fields(timing) if f.name not in _NO_TIMES]
    clocks = sorted((name, engine.clock_hz) for name, engine in core.engines.items())
    return _digest(
        core.version,
        clocks,
        core.sbuf,
        core.psum,
        core.dma.engines,
        [hbm_stretch(chip, timing, cores) for cores in (1, 2)],
        constants,
        timing.support,
    )


def trace_files(contract: Contract) -> tuple[str, ...]:
    """The source files that decide traces of this kernel, relative to the package."""
    return tuple(sorted({*_files(_TRACE), *_kernel_files(_modules(contract))}))


def surface_files(contract: Contract) -> tuple[str, ...]:
    """The source files that decide surfaces of this kernel."""
    return tuple(sorted({*trace_files(contract), *_files(_TIME), *_files(_SURFACE)}))


def code_of(files: Iterable[str]) -> str:
    """Hash of the code of files."""
    return _digest(*((file, code_hash(file)) for file in files))


@cache
def code_hash(file: str) -> str:
    """Hash of what a source file does, by its path within the package."""
    data = _read(file)
    if data is None:
        return "missing"
    known = listed().get(file)
    return known[1] if known is not None and known[0] == bytes_hash(data) else parsed_hash(data)


@cache
def listed() -> dict[str, tuple[str, str]]:
    """The hashes of bytes and of code that ``sources.txt`` lists, by file."""
    try:
        lines = SOURCES.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return {file: (raw, code) for file, raw, code in (row for row in rows if len(row) == 3)}


def list_sources(files: Iterable[str]) -> str:
    """The text of ``sources.txt`` for ``files`` as they are now."""
    found = [(file, data) for file in sorted(set(files)) if (data := _read(file)) is not None]
    head = "# Source files behind the surfaces here: hash of bytes, hash of code. Written by make surfaces.\n"
    return head + "".join(f"{file} {bytes_hash(data)} {parsed_hash(data)}\n" for file, data in found)


def bytes_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def parsed_hash(data: bytes) -> str:
    """Hash of the syntax tree without docstrings, comments and positions."""
    digest = hashlib.sha256()
    _feed(digest, ast.parse(data))
    return digest.hexdigest()[:_DIGITS]


def _feed(digest: Any, node: Any) -> None:
    """Fields in alphabetical order, those that are empty left out: versions of Python differ in these."""
    if isinstance(node, ast.AST):
        digest.update(type(node).__name__.encode() + b"(")
        for name in sorted(node._fields):
            value = getattr(node, name, None)
            if name == "body" and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                value = [item for item in node.body if not _is_text(item)]
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment"):
                digest.update(name.encode() + b"=")
                _feed(digest, value)
        digest.update(b")")
    elif isinstance(node, list):
        for item in node:
            _feed(digest, item)
            digest.update(b",")
    else:
        digest.update(repr(node).encode())


def _is_text(node: ast.AST) -> bool:
    """A docstring, of a module, class, function or attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _modules(contract: Contract) -> frozenset[str]:
    """The files in ``kernels`` that hold the kernel and what its contract computes."""
    parts = [inspect.unwrap(getattr(contract, f.name)) for f in fields(contract)]
    names = {getattr(getattr(part, "function", part), "__module__", "") for part in parts if callable(part)}
    return frozenset(f"kernels/{n.rpartition('.')[2]}.py" for n in names if n and n.startswith("trnsim.kernels."))


@cache
def _kernel_files(files: frozenset[str]) -> frozenset[str]:
    """Files of ``kernels`` and those of ``kernels`` that they import, and so on."""
    found: set[str] = set()
    pending = list(files)
    while pending:
        one = pending.pop()
        data = _read(one) if one not in found else None
        if data is None:
            continue
        found.add(one)
        for node in ast.walk(ast.parse(data)):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module == "trnsim.kernels":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trnsim.kernels."):
                names = [(node.module or "").rpartition(".")[2]]
            pending += [f"kernels/{name}.py" for name in names]
    return frozenset(found)


@cache
def _files(places: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for place in places:
        path = ROOT / place
        files = path.rglob("*.py") if path.is_dir() else [path] if path.is_file() else []
        found += [file.relative_to(ROOT).as_posix() for file in files]
    return tuple(sorted(file for file in found if not file.startswith(_NOT)))


@cache
def _read(file: str) -> bytes | None:
    try:
        return (ROOT / file).read_bytes().replace(b"\r\n", b"\n")
    except OSError:
        return None


def _plain(problem: Problem) -> bytes:
    return msgspec.json.encode(msgspec.to_builtins(problem), order="sorted", enc_hook=int)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:_DIGITS]
