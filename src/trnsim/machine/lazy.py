"""Time-only runs are lazy, not blind: a needed value's backward slice is executed, and no more.

The slice of a row holds every earlier row, not executed yet, that writes what it reads, or that must come before
because it reads or writes bytes that the slice overwrites. Where those others need data that are not there, the
value is worked out from what it depends on alone, and the bytes are put back.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import NeedsDataError, UnsupportedError
from trnsim.machine.form import HBM, Form
from trnsim.machine.tensor import Indirect, NkiTensor
from trnsim.machine.trace import CLASSES, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from trnsim.machine.core import Core
    from trnsim.machine.storage import Storage
    from trnsim.machine.trace import InstructionClass

Box = tuple[int, int, int, int]

# Instructions that write every element of dst.
_WRITES_ALL = frozenset(("dma_copy", "tensor_copy", "memset", "tensor_scalar", "tensor_tensor", "iota", "activation"))


def execute_slice(core: Core, *, rows: list[int] | None = None, tensors: list[NkiTensor] | None = None) -> None:
    """Execute ``rows`` and whatever the bytes of ``tensors`` depend on.

    Where bytes are reused, what came before must be executed too, which may need data that are not there. Then
    registers are told from what they depend on alone, and the bytes are put back.

    Raises:
        NeedsDataError: a value depends on an input without data.
        UnsupportedError: it depends on what another core does.
    """
    count = len(core.trace)
    if core.executed is None or len(core.executed) < count:
        done = np.zeros(max(1024, 2 * count), bool)
        if core.executed is not None:
            done[: len(core.executed)] = core.executed
        core.executed = done
    try:
        chosen = _select(core, rows or [], tensors or [], reused=True)
    except (NeedsDataError, UnsupportedError):
        if tensors:
            raise
        chosen = _select(core, rows or [], [], reused=False)
        if any(_is_lasting(core, row) for row in chosen):
            raise
        _peek(core, chosen, None)
        return
    for row in chosen:
        core.executed[row] = True
        _execute(core, row, views(core, row))


def read(core: Core, tensor: NkiTensor) -> NDArray[Any]:
    """The elements of ``tensor``, worked out as ``execute_slice`` does for registers; raises what that raises."""
    try:
        execute_slice(core, tensors=[tensor])
    except (NeedsDataError, UnsupportedError):
        chosen = _select(core, [], [tensor], reused=False)
        if any(_is_lasting(core, row) for row in chosen):
            raise
        return _peek(core, chosen, tensor)
    return tensor.array()


class _Rows:
    """Which rows touch which storages and states of engines, so that a slice looks at those that it may hold only."""

    def __init__(self) -> None:
        self.count = 0
        self.touching: dict[int, list[int]] = {}
        self.writing: dict[int, list[int]] = {}
        self.changing: dict[str, list[int]] = {}

    def extend(self, core: Core) -> None:
        """Take in the rows that came since."""
        instructions, operands = core.trace.instruction_rows, core.trace.operand_rows
        storages = core.launch.storages
        for row in range(self.count, len(core.trace)):
            klass = CLASSES[instructions[6 * row]]
            first = instructions[6 * row + 3]
            for state in klass.state:
                self.changing.setdefault(state, []).append(row)
            for index, role in enumerate(klass.roles):
                storage = storages[operands[4 * (first + index)]]
                assert storage is not None
                key = _key(storage)
                for table in (self.touching,) if role == READ else (self.touching, self.writing):
                    rows = table.setdefault(key, [])
                    if not rows or rows[-1] != row:
                        rows.append(row)
        self.count = len(core.trace)


class _Pending:
    """Rows that a slice may hold, the last first."""

    def __init__(self, executed: NDArray[np.bool_]) -> None:
        self._executed = executed
        self._heap: list[int] = []
        self._seen: set[int] = set()
        self._added: set[tuple[int, Any]] = set()

    def add(self, table: dict[Any, list[int]], key: Any, before: int) -> None:
        """Rows of ``table`` before ``before``, unless they were added. Executed ones leave the table for good."""
        if (id(table), key) in self._added or key not in table:
            return
        self._added.add((id(table), key))
        rows = table[key] = [row for row in table[key] if not self._executed[row]]
        self.add_rows(row for row in rows if row < before)

    def add_rows(self, rows: Iterable[int]) -> None:
        for row in rows:
            if row not in self._seen:
                self._seen.add(row)
                heappush(self._heap, -row)

    def __iter__(self) -> Iterator[int]:
        while self._heap:
            yield -heappop(self._heap)


def _select(core: Core, rows: list[int], tensors: list[NkiTensor], *, reused: bool) -> list[int]:
    """The rows to execute, in order. ``reused``: also those that use, before, bytes which these overwrite."""
    launch, executed, count = core.launch, core.executed, len(core.trace)
    if core.rows is None:
        core.rows = _Rows()
    known: _Rows = core.rows
    known.extend(core)
    pending = _Pending(executed)
    wanted = {r for r in rows if not executed[r]}
    pending.add_rows(wanted)
    reads: dict[int, list[Box]] = {}
    writes: dict[int, list[Box]] = {}
    states: set[str] = set()
    for tensor in tensors:
        if tensor.storage.kind == "input":
            core.require_data(tensor.storage, "a value that is needed")
        _require_own(core, tensor.storage)
        start, offset = tensor.place()
        _add(reads, tensor.storage, tensor.form, start, offset)
        pending.add(known.writing, _key(tensor.storage), count)
    instructions, operands = core.trace.instruction_rows, core.trace.operand_rows
    storages = launch.storages
    chosen: list[int] = []
    for row in pending:
        klass = CLASSES[instructions[6 * row]]
        first = instructions[6 * row + 3]
        boxes = []
        take = row in wanted or any(s in states for s in klass.state)
        for index, operand in enumerate(klass.operands):
            at = 4 * (first + index)
            storage = storages[operands[at]]
            assert storage is not None
            where = _box(storage, Form.table[operands[at + 3]], operands[at + 1], operands[at + 2])
            boxes.append((operand.role, storage, where))
            if not take:
                key = _key(storage)
                if operand.role != READ:
                    take = _meets(reads.get(key), where)
                take = take or _meets(writes.get(key), where)
        if take:
            chosen.append(row)
            states.update(klass.state)
            for state in klass.state:
                pending.add(known.changing, state, row)
            if launch.lnc > 1 and instructions[6 * row + 5] >= 0:
                raise _depends_on_others(f"what {klass.name} gets from the other core")
            if not reused:
                _settle(reads, klass, boxes)
            for role, storage, where in boxes:
                _require_own(core, storage)
                key = _key(storage)
                if role != WRITE:
                    if storage.kind == "input":
                        core.require_data(storage, "a value that is needed")
                    reads.setdefault(key, []).append(where)
                    pending.add(known.writing, key, row)
                if role != READ and reused:
                    writes.setdefault(key, []).append(where)
                    pending.add(known.touching, key, row)
    chosen.reverse()
    return chosen


def _settle(reads: dict[int, list[Box]], klass: InstructionClass, boxes: list[tuple[str, Storage, Box]]) -> None:
    """Drop from ``reads`` what a row writes whole: nothing before it matters there."""
    if klass.instruction.short not in _WRITES_ALL or any(o.form.indirect for o in klass.operands):
        return
    for operand, (role, storage, (a, b, c, d)) in zip(klass.operands, boxes, strict=True):
        form = operand.form
        found = reads.get(_key(storage))
        if (
            role == WRITE
            and found
            and form.memory != HBM
            and form.contiguous
            and form.partition_span == form.partitions
        ):
            reads[_key(storage)] = [x for x in found if x[0] < a or x[1] > b or x[2] < c or x[3] > d]


def _execute(core: Core, row: int, operands: tuple[NkiTensor, ...]) -> None:
    if row in core.clears:
        storage, missing = core.clears[row]
        storage.clear(missing)
    instructions = core.trace.instruction_rows
    klass = CLASSES[instructions[6 * row]]
    klass.instruction.execute(core, klass, operands, core.immediates[instructions[6 * row + 2]])


def _is_lasting(core: Core, row: int) -> bool:
    """Whether executing a row changes more than the bytes of its plain operands, or may need another slice."""
    klass = CLASSES[core.trace.instruction_rows[6 * row]]
    moved = any(o.form.indirect and o.role != READ for o in klass.operands)
    return bool(klass.state) or moved or row in core.clears or klass.instruction.short == "register_store"


def _peek(core: Core, rows: list[int], tensor: NkiTensor | None) -> NDArray[Any]:
    """Execute ``rows`` for the registers they load and the elements of ``tensor``; put back the bytes they write."""
    before: list[tuple[NkiTensor, Any]] = []
    try:
        for row in rows:
            operands = views(core, row)
            klass = CLASSES[core.trace.instruction_rows[6 * row]]
            for operand, role in zip(operands, klass.roles, strict=True):
                if role != READ:
                    before.append((operand, operand.array().copy()))
            _execute(core, row, operands)
        return np.zeros(0) if tensor is None else tensor.array().copy()
    finally:
        for operand, data in reversed(before):
            operand.store(data)


def views(core: Core, row: int) -> tuple[NkiTensor, ...]:
    """The operands of a recorded instruction, rebuilt from the trace."""
    trace, storages = core.trace, core.launch.storages
    klass = CLASSES[trace.instruction_rows[6 * row]]
    first = trace.instruction_rows[6 * row + 3]
    result: list[NkiTensor] = []
    for index in range(len(klass.operands)):
        at = 4 * (first + index)
        number, start, offset, form_id = trace.operand_rows[at : at + 4]
        storage, form = storages[number], Form.table[form_id]
        assert storage is not None
        size = form.dtype.itemsize
        if form.memory == HBM:
            strides, place = form.strides, offset // size
        else:
            per_partition = storage.row_bytes // size
            strides = (form.strides[0] * per_partition, *form.strides[1:])
            place = (start * storage.row_bytes + offset) // size
        result.append(NkiTensor(form.shape, form.dtype, storage, strides, place, form))
    named: dict[str, Any] = {o.name: t for o, t in zip(klass.operands, result, strict=True)}
    for operand, tensor in zip(klass.operands, result, strict=True):
        if operand.form.indirect < 0:
            tensor.indirection = Indirect("outside", None, 0, 0)
        elif operand.form.reach:
            tensor.indirection = Indirect("snake", named[operand.name + ".index"], 0, operand.form.reach)
        elif operand.form.indirect:
            shape = tensor.storage.shape
            stride = int(np.prod(shape[1:], dtype=np.int64))
            tensor.indirection = Indirect("vector", named[operand.name + ".index"], stride, shape[0])
    return tuple(result)


def _require_own(core: Core, storage: Storage) -> None:
    """Of several cores, only what a core computes from its own memory and from inputs nobody wrote can be told here."""
    if core.launch.lnc > 1 and core.launch.infos[storage.id].shared:
        given = storage.kind in ("input", "constant") and storage.writers <= 0
        if not given:
            raise _depends_on_others(f"{storage.name!r}, which both cores may write")


def _depends_on_others(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"a value that control flow, an address or the caller needs depends on {what}: a time-only run on several "
        "cores cannot compute it; run it with numbers instead"
    )


def _key(storage: Storage) -> int:
    """Storages in one arena alias, so they share a key."""
    return storage.id if storage.arena is None else -1 - (storage.core * 2 + (storage.memory == "psum"))


def _box(storage: Storage, form: Form, start: int, offset: int) -> Box:
    if form.indirect:
        return (0, storage.rows, 0, storage.row_bytes)
    if form.memory == HBM:
        low = offset + sum(min(0, (n - 1) * s) for n, s in zip(form.shape, form.byte_strides, strict=True))
        first, last = low // storage.row_bytes, (low + form.span - 1) // storage.row_bytes
        if first == last:
            return (first, last + 1, low % storage.row_bytes, low % storage.row_bytes + form.span)
        columns = [s * (n - 1) for n, s in zip(form.shape, form.byte_strides, strict=True) if s % storage.row_bytes]
        begin = low % storage.row_bytes
        end = begin + sum(columns) + form.dtype.itemsize
        return (first, last + 1, begin, end) if end <= storage.row_bytes else (first, last + 1, 0, storage.row_bytes)
    if storage.address is not None:
        start, offset = start + storage.address[0], offset + storage.address[1]
    return (start, start + form.partition_span, offset, offset + form.span)


def _add(table: dict[int, list[Box]], storage: Storage, form: Form, start: int, offset: int) -> None:
    table.setdefault(_key(storage), []).append(_box(storage, form, start, offset))


def _meets(boxes: list[Box] | None, where: Box) -> bool:
    if not boxes:
        return False
    a, b, c, d = where
    return any(a < q and p < b and c < s and r < d for p, q, r, s in boxes)
