"""The trace of one core: every instruction that ran, as rows of integers.

What repeats (forms of access, classes of instruction, source lines) is interned in tables, so an instruction costs six
integers and each operand four. Time, hazards and reports are functions of the trace; a saved one can be timed again on
another chip (``trnsim.isa.retarget``).
"""

from __future__ import annotations

import linecache
import os
import re
import tempfile
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import msgspec
import numpy as np

from trnsim.errors import InputError, Location
from trnsim.machine.form import HBM, Form
from trnsim.numerics import as_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType

    from numpy.typing import NDArray

INSTRUCTION_COLUMNS = ("klass", "line", "immediate", "operand", "region", "rendezvous")
OPERAND_COLUMNS = ("storage", "start", "offset", "form")

VERSION = 4  # of a saved trace
# What the source or the options of a call may ask of the compiler; see ``Trace.directives``.
SKIP_MIDDLE_END, STATIC_DESCRIPTORS = DIRECTIVES = ("skip-middle-end", "static-descriptors")
READ, WRITE, UPDATE = "read", "write", "update"
MEMORIES = ("sbuf", "psum", "hbm")
STORAGE_COLUMNS = ("memory", "row_bytes", "partitions", "start", "low")


@dataclass(frozen=True)
class OperandClass:
    """One operand of an instruction class: its name, what is done to it, and its form."""

    name: str
    role: str
    form: Form


@dataclass(frozen=True, eq=False)
class InstructionClass:
    """An instruction with all that decides its rules and cost: attributes and the forms of its operands.

    ``engines`` are the engines that can run it, the preferred first. ``attributes`` are plain values by name. ``state``
    names engine state that it changes (accumulators, random generators). ``call`` calls its meaning with its
    arguments. ``indirect``: an operand has tensor indirection. ``in_hbm``: an operand is in HBM.
    ``partial``: indices at run time may leave part of a destination as it is. ``seen`` is what its rules saw.
    """

    instruction: Any
    generation: str
    attributes: dict[str, Any]
    operands: tuple[OperandClass, ...]
    engines: tuple[str, ...]
    id: int = -1
    state: tuple[str, ...] = ()
    call: Any = None
    roles: tuple[str, ...] = ()
    is_matmul: bool = False
    indirect: bool = False
    in_hbm: bool = False
    partial: bool = False
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.instruction.name)

    def operand(self, name: str) -> Form:
        """The form of the operand called ``name``; KeyError if it is absent."""
        for item in self.operands:
            if item.name == name:
                return item.form
        raise KeyError(name)

    def has(self, name: str) -> bool:
        return any(item.name == name for item in self.operands)


_ASSIGNMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*(?::[^=]+)?=[^=]")

CLASSES: list[InstructionClass] = []
INSTRUCTIONS: dict[str, Any] = {}  # by name; isa/ enters each instruction here
# Classes of saved traces, by all that they hold; so many at most.
_loaded: dict[tuple[Any, ...], InstructionClass] = {}
_LOADED = 20_000


@dataclass(slots=True)
class StorageInfo:
    """What a trace remembers of a storage. See ``docs/dev/ARCHITECTURE.md``."""

    id: int
    name: str
    memory: str
    dtype: str
    shape: tuple[int, ...]
    partitions: int
    row_bytes: int
    address: tuple[int, int] | None
    kind: str
    shared: bool
    declared: int
    line: int


class LineTable:
    """Source lines, interned by code object and line number."""

    def __init__(self) -> None:
        self._index: dict[tuple[CodeType, int], int] = {}
        self._variables: dict[int, str] = {}
        self.locations: list[Location] = [Location("<unknown>", 0)]

    def variable(self, index: int) -> str:
        """The variable that line ``index`` assigns to, if it is a plain assignment; else an empty string."""
        name = self._variables.get(index)
        if name is None:
            location = self.locations[index]
            match = _ASSIGNMENT.match(linecache.getline(location.file, location.line))
            name = self._variables[index] = match[1] if match else ""
        return name

    def of(self, code: CodeType, line: int) -> int:
        key = (code, line)
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self.locations)
            self.locations.append(Location(code.co_filename, line, code.co_name))
        return index


@dataclass
class Trace:
    """What one core did. Columns are NumPy views; see ``docs/dev/ARCHITECTURE.md`` for their meaning.

    ``directives`` are what the kernel or its call asks of the schedule ``tensorizer``: ``skip-middle-end``
    (``nki.compiler.skip_middle_end_transformations``), ``static-descriptors`` (``--disable-dge``).
    """

    core: int
    generation: str
    chip: str
    kernel: str = ""
    lnc: int = 1
    lines: list[Location] = field(default_factory=list)
    classes: Sequence[InstructionClass] = field(default_factory=lambda: CLASSES)
    forms: Sequence[Form] = field(default_factory=lambda: Form.table)
    storages: Sequence[StorageInfo] = field(default_factory=list)
    rendezvous: list[tuple[Any, ...]] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    directives: tuple[str, ...] = ()
    instruction_rows: array[int] = field(default_factory=lambda: array("q"))
    operand_rows: array[int] = field(default_factory=lambda: array("q"))
    _storage_columns: dict[str, NDArray[np.int64]] | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.instruction_rows) // len(INSTRUCTION_COLUMNS)

    @property
    def instructions(self) -> dict[str, NDArray[np.int64]]:
        """Columns by name, one row an instruction."""
        return _columns(self.instruction_rows, INSTRUCTION_COLUMNS)

    @property
    def operands(self) -> dict[str, NDArray[np.int64]]:
        """Columns by name, one row an operand."""
        return _columns(self.operand_rows, OPERAND_COLUMNS)

    @property
    def storage_columns(self) -> dict[str, NDArray[np.int64]]:
        """What timing needs of the storages, as columns: ``memory`` (of ``MEMORIES``), ``row_bytes``, ``partitions``,
        and ``start`` and ``low``: partition and byte of an explicit address, -1 where there is none.
        """
        if self._storage_columns is None or len(self._storage_columns["memory"]) != len(self.storages):
            infos = self.storages
            self._storage_columns = infos.columns if isinstance(infos, LazyStorages) else _storage_columns(infos)
        return self._storage_columns

    def set_column(self, name: str, values: NDArray[np.int64]) -> None:
        """Replace one column of the instructions; the trace then has rows of its own."""
        columns = {**self.instructions, name: values}
        self.instruction_rows = _rows(columns, INSTRUCTION_COLUMNS)

    def with_columns(self, instructions: dict[str, NDArray[np.int64]], operands: dict[str, NDArray[np.int64]]) -> Trace:
        """The trace with other rows."""
        return replace(
            self,
            instruction_rows=_rows(instructions, INSTRUCTION_COLUMNS),
            operand_rows=_rows(operands, OPERAND_COLUMNS),
        )

    def column(self, name: str) -> NDArray[np.int64]:
        """One column of the instructions, or of the operands."""
        if name in INSTRUCTION_COLUMNS:
            return _column(self.instruction_rows, INSTRUCTION_COLUMNS, name)
        return _column(self.operand_rows, OPERAND_COLUMNS, name)

    def operand_range(self, row: int) -> range:
        """Rows of ``operands`` that belong to instruction ``row``."""
        width = len(INSTRUCTION_COLUMNS)
        first = self.instruction_rows[row * width + 3]
        klass = self.classes[self.instruction_rows[row * width]]
        return range(first, first + len(klass.operands))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to ``path``, whole or not at all."""
        data = msgspec.msgpack.encode(self.packed())
        target = Path(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent or ".", prefix=target.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace written by ``save``.

        Raises:
            InputError: the file is no trace, or of another version.
        """
        try:
            data = Path(path).read_bytes()
            version = msgspec.msgpack.decode(data, type=_Header).version
            if version != VERSION:
                raise InputError(f"{path} has trace version {version}", limit=VERSION)
            return cls.unpacked(msgspec.msgpack.decode(data, type=SavedTrace))
        except (msgspec.DecodeError, OSError) as error:
            raise InputError(f"{path} is not a saved trace: {error}") from error

    def packed(self) -> SavedTrace:
        """The trace as plain values and bytes."""
        columns, operands = self.instructions, self.operands
        used_classes, klass = np.unique(columns["klass"], return_inverse=True)
        classes = [self.classes[int(c)] for c in used_classes]
        used_forms = np.unique(operands["form"])
        by_id = {self.forms[int(f)].id: self.forms[int(f)] for f in used_forms}
        by_id.update({o.form.id: o.form for c in classes for o in c.operands})
        form_index = {f: i for i, f in enumerate(sorted(by_id))}
        place = np.array([form_index[self.forms[int(f)].id] for f in used_forms] or [0], np.int64)
        return SavedTrace(
            version=VERSION,
            core=self.core,
            generation=self.generation,
            chip=self.chip,
            kernel=self.kernel,
            lnc=self.lnc,
            lines=[(x.file, x.line, x.function) for x in self.lines],
            forms=[_save_form(by_id[f]) for f in form_index],
            classes=[_save_class(c, form_index) for c in classes],
            storages=msgspec.Raw(msgspec.msgpack.encode(list(self.storages))),
            storage_columns={n: _pack(c) for n, c in self.storage_columns.items()},
            rendezvous=[list(r) for r in self.rendezvous],
            edges=self.edges,
            names=self.names,
            directives=list(self.directives),
            instructions={n: _pack(klass if n == "klass" else c) for n, c in columns.items()},
            operands={
                n: _pack(place[np.searchsorted(used_forms, c)] if n == "form" else c) for n, c in operands.items()
            },
        )

    @classmethod
    def unpacked(cls, saved: SavedTrace) -> Trace:
        """The trace that was packed; its classes and forms are tables of its own.

        Raises:
            InputError: it does not hold together, or names an instruction that this version does not have.
        """
        try:
            forms = [
                Form.of(m, as_dtype(d), tuple(shape), tuple(strides), start, phase, indirect, reach)
                for m, d, shape, strides, start, phase, indirect, reach in saved.forms
            ]
            classes = [_load_class(c, i, forms) for i, c in enumerate(saved.classes)]
            columns = {n: _unpack(c) for n, c in saved.instructions.items()}
            operands = {n: _unpack(c) for n, c in saved.operands.items()}
            trace = cls(
                core=saved.core,
                generation=saved.generation,
                chip=saved.chip,
                kernel=saved.kernel,
                lnc=saved.lnc,
                lines=[Location(*x) for x in saved.lines],
                classes=classes,
                forms=forms,
                storages=LazyStorages(saved.storages, {n: _unpack(c) for n, c in saved.storage_columns.items()}),
                rendezvous=[_hashable(r) for r in saved.rendezvous],
                edges=[(a, b) for a, b in saved.edges],
                names=saved.names,
                directives=tuple(saved.directives),
                instruction_rows=_rows(columns, INSTRUCTION_COLUMNS),
                operand_rows=_rows(operands, OPERAND_COLUMNS),
            )
            trace.check()
        except (KeyError, IndexError, ValueError, TypeError, zlib.error) as error:
            raise InputError(f"a saved trace is damaged: {type(error).__name__}: {error}") from error
        return trace

    def check(self) -> None:
        """Raise IndexError where a column points outside of what it numbers."""
        columns, operands = self.instructions, self.operands
        limits = (
            ("class", columns["klass"], len(self.classes), 0),
            ("line", columns["line"], len(self.lines), 0),
            ("rendezvous", columns["rendezvous"], len(self.rendezvous), -1),
            ("storage", operands["storage"], len(self.storages), 0),
            ("form", operands["form"], len(self.forms), 0),
        )
        for name, column, limit, least in limits:
            if len(column) and (int(column.max()) >= limit or int(column.min()) < least):
                raise IndexError(f"{name} outside of its table")
        if len(self):
            counts = np.array([len(c.operands) for c in self.classes], np.int64)
            end = columns["operand"] + counts[columns["klass"]]
            if int(columns["operand"].min()) < 0 or int(end.max()) > len(operands["form"]):
                raise IndexError("operands outside of their table")


class LazyStorages(Sequence[StorageInfo]):
    """The storages of a saved trace: there are many, and timing needs their columns only, so the others wait in bytes.

    Raises ``InputError`` when they are read and damaged.
    """

    def __init__(self, data: msgspec.Raw, columns: dict[str, NDArray[np.int64]]) -> None:
        self.columns = columns
        if set(columns) != set(STORAGE_COLUMNS) or len({len(c) for c in columns.values()}) != 1:
            raise ValueError("storages")
        self._data = data

    def __len__(self) -> int:
        return len(self.columns["memory"])

    @overload
    def __getitem__(self, index: int) -> StorageInfo: ...
    @overload
    def __getitem__(self, index: slice) -> list[StorageInfo]: ...
    def __getitem__(self, index: int | slice) -> StorageInfo | list[StorageInfo]:
        return self._infos[index]

    @cached_property
    def _infos(self) -> list[StorageInfo]:
        try:
            found = msgspec.msgpack.decode(self._data, type=list[StorageInfo])
        except msgspec.DecodeError as error:
            raise InputError(f"a saved trace is damaged: {error}") from error
        if len(found) != len(self):
            raise InputError("a saved trace is damaged: storages", value=len(found), limit=len(self))
        return found


def _storage_columns(infos: Sequence[StorageInfo]) -> dict[str, NDArray[np.int64]]:
    number, memory = len(infos), {name: i for i, name in enumerate(MEMORIES)}
    start, low = np.full(number, -1, np.int64), np.full(number, -1, np.int64)
    for i, address in enumerate(map(attrgetter("address"), infos)):
        if address is not None:
            start[i], low[i] = address
    found = (
        np.fromiter(map(memory.__getitem__, map(attrgetter("memory"), infos)), np.int64, number),
        np.fromiter(map(attrgetter("row_bytes"), infos), np.int64, number),
        np.fromiter(map(attrgetter("partitions"), infos), np.int64, number),
        start,
        low,
    )
    return dict(zip(STORAGE_COLUMNS, found, strict=True))


class _Header(msgspec.Struct):
    version: int


class SavedClass(msgspec.Struct):
    """A class of instructions as plain values; forms are numbers in the trace's table."""

    name: str
    generation: str
    attributes: dict[str, Any]
    operands: list[tuple[str, str, int]]
    engines: list[str]
    state: list[str]
    partial: bool
    seen: dict[str, list[Any]]


class SavedTrace(msgspec.Struct):
    """A trace as plain values and bytes: what a file holds."""

    version: int
    core: int
    generation: str
    chip: str
    kernel: str
    lnc: int
    lines: list[tuple[str, int, str]]
    forms: list[tuple[str, str, list[int], list[int], int, int, int, int]]
    classes: list[SavedClass]
    storages: msgspec.Raw
    storage_columns: dict[str, bytes]
    rendezvous: list[list[Any]]
    edges: list[tuple[int, int]]
    names: dict[str, int]
    instructions: dict[str, bytes]
    operands: dict[str, bytes]
    directives: list[str] = []


def _save_form(form: Form) -> tuple[str, str, list[int], list[int], int, int, int, int]:
    return (
        form.memory, str(form.dtype), list(form.shape), list(form.strides), form.start, form.phase, form.indirect,
        form.reach,
    )  # fmt: skip


def _save_class(klass: InstructionClass, forms: dict[int, int]) -> SavedClass:
    return SavedClass(
        klass.name,
        klass.generation,
        {k: _plain(v) for k, v in klass.attributes.items()},
        [(o.name, o.role, forms[o.form.id]) for o in klass.operands],
        list(klass.engines),
        list(klass.state),
        klass.partial,
        klass.instruction.pack_seen(klass.seen, forms) if klass.seen else {},
    )


def _load_class(saved: SavedClass, number: int, forms: Sequence[Form]) -> InstructionClass:
    definition = INSTRUCTIONS.get(saved.name)
    if definition is None:
        raise InputError(f"a saved trace has an instruction that this version does not have: {saved.name}")
    # Traces of one kernel have classes in common; with a class is kept what it was found to cost.
    used = [f for _, _, f in saved.operands]
    used += [f for kind, value in saved.seen.values() for f in _forms_in(kind, value)]
    key = (number, msgspec.msgpack.encode(saved), *(forms[f].id for f in used))
    found = _loaded.get(key)
    if found is None:
        if len(_loaded) >= _LOADED:
            _loaded.clear()
        found = _loaded[key] = _new_class(saved, number, forms, definition)
    return found


def _forms_in(kind: str, value: Any) -> list[int]:
    """The forms that a packed value names, by number."""
    return [value] if kind == "form" else value if kind == "forms" else []


def _new_class(saved: SavedClass, number: int, forms: Sequence[Form], definition: Any) -> InstructionClass:
    operands = tuple(OperandClass(n, r, forms[f]) for n, r, f in saved.operands)
    return InstructionClass(
        definition,
        saved.generation,
        saved.attributes,
        operands,
        tuple(saved.engines),
        number,
        tuple(saved.state),
        roles=tuple(o.role for o in operands),
        is_matmul=definition.is_matmul,
        indirect=any(o.form.reach for o in operands),
        in_hbm=any(o.form.memory == HBM for o in operands),
        partial=saved.partial,
        seen=definition.unpack_seen(saved.seen, forms) if saved.seen else {},
    )


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """An attribute as msgpack can hold it: names for operators and enums."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return str(getattr(value, "name", value))


def _pack(column: NDArray[np.int64]) -> bytes:
    return zlib.compress(np.ascontiguousarray(column, "<i8").tobytes(), 1)


def _unpack(data: bytes) -> NDArray[np.int64]:
    return np.frombuffer(zlib.decompress(data), "<i8").astype(np.int64)


def _rows(columns: dict[str, NDArray[np.int64]], names: Iterable[str]) -> array[int]:
    rows = array("q")
    rows.frombytes(np.stack([columns[n] for n in names], axis=1).astype(np.int64).tobytes())
    return rows


def _column(rows: array[int], names: Sequence[str], name: str) -> NDArray[np.int64]:
    if not len(rows):
        return np.zeros(0, np.int64)
    return np.array(np.frombuffer(rows, np.int64)[names.index(name) :: len(names)])


def _columns(rows: array[int], names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    table = np.array(np.frombuffer(rows, np.int64).reshape(-1, len(names)).T, order="C") if len(rows) else None
    return {n: np.zeros(0, np.int64) if table is None else table[i] for i, n in enumerate(names)}
