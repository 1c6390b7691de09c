"""Time-only runs are lazy, not blind: a needed value's backward slice is executed, and no more.

The slice of a row holds every earlier row, not executed yet, that writes what it reads, or that must come before
because it reads or writes bytes that the slice overwrites.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import UnsupportedError
from trnsim.machine.form import HBM, Form
from trnsim.machine.tensor import Indirect, NkiTensor
from trnsim.machine.trace import CLASSES, READ, WRITE

if TYPE_CHECKING:
    from trnsim.machine.core import Core
    from trnsim.machine.storage import Storage

Box = tuple[int, int, int, int]


def execute_slice(core: Core, *, rows: list[int] | None = None, tensors: list[NkiTensor] | None = None) -> None:
    """Execute ``rows`` and whatever the bytes of ``tensors`` depend on."""
    launch = core.launch
    count = len(core.trace)
    if core.executed is None or len(core.executed) < count:
        done = np.zeros(max(1024, 2 * count), bool)
        if core.executed is not None:
            done[: len(core.executed)] = core.executed
        core.executed = done
    executed = core.executed
    wanted = {r for r in rows or [] if not executed[r]}
    reads: dict[int, list[Box]] = {}
    writes: dict[int, list[Box]] = {}
    states: set[str] = set()
    for tensor in tensors or []:
        if tensor.storage.kind == "input":
            core.require_data(tensor.storage, "a value that is needed")
        _require_own(core, tensor.storage)
        start, offset = tensor.place()
        _add(reads, tensor.storage, tensor.form, start, offset)
    instructions, operands = core.trace.instruction_rows, core.trace.operand_rows
    storages = launch.storages
    chosen: list[int] = []
    for row in range(count - 1, -1, -1):
        if executed[row]:
            continue
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
            if launch.lnc > 1 and instructions[6 * row + 5] >= 0:
                raise _depends_on_others(f"what {klass.name} gets from the other core")
            for role, storage, where in boxes:
                _require_own(core, storage)
                if role != WRITE:
                    if storage.kind == "input":
                        core.require_data(storage, "a value that is needed")
                    reads.setdefault(_key(storage), []).append(where)
                if role != READ:
                    writes.setdefault(_key(storage), []).append(where)
    for row in reversed(chosen):
        executed[row] = True
        if row in core.clears:
            storage, missing = core.clears[row]
            storage.clear(missing)
        klass = CLASSES[instructions[6 * row]]
        klass.instruction.execute(core, klass, views(core, row), core.immediates[instructions[6 * row + 2]])


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
