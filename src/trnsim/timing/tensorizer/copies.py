"""Copies from PSUM: left out where their readers may read PSUM, else joined up to a bank.

The public profiles: a copy whose readers are VectorE or ScalarE is gone, as long as what then stays in PSUM is at most
half of it; copies of tiles that are narrower than a bank, one after the other into neighbouring columns of one tile,
became one copy of a whole bank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.machine.form import PSUM, SBUF, Form
from trnsim.timing.tensorizer.rows import Operand, Row, Rows, extent

if TYPE_CHECKING:
    from trnsim.hardware.model import Core

COPY, ACTIVATION = "nki.isa.tensor_copy", "nki.isa.activation"
# Engines whose instructions may take an operand from PSUM.
_PSUM_ENGINES = ("vector", "scalar")
# The share of PSUM's banks that tiles read in place may hold: four of eight in the public profiles.
_SHARE_IN_PLACE = 2


def propagate_copies(rows: Rows, core: Core) -> None:
    """Leave out copies from PSUM to SBUF whose readers can read PSUM."""
    users = rows.users()
    banks_free = core.psum.banks // _SHARE_IN_PLACE
    ends: list[tuple[int, int]] = []  # (last reader, banks) of tiles read in place
    removed: set[int] = set()
    for number, row in enumerate(rows.rows):
        readers = _readers(rows, users, number, row)
        if readers is None:
            continue
        ends = [(last, held) for last, held in ends if last > number]
        source = _source(row)
        held = -(-(source.offset % core.psum.bytes_per_bank + source.form.span) // core.psum.bytes_per_bank)
        if sum(b for _, b in ends) + held > banks_free:
            continue
        target = row.operand("dst")
        for reader, position in readers:
            _redirect(rows, rows.rows[reader], position, source.storage, source.offset - target.offset)
            users[source.storage].append((reader, position))
        ends.append((max(r for r, _ in readers), held))
        removed.add(number)
    if removed:
        rows.rows = [row for number, row in enumerate(rows.rows) if number not in removed]


def _is_plain_activation(row: Row) -> bool:
    """ScalarE's copy of a product of a row and ones, which is how a row comes into all partitions."""
    return row.name == ACTIVATION and row.klass.attributes["op"] == "identity" and len(row.operands) == 2


def _source(row: Row) -> Operand:
    return row.operand("src" if row.name == COPY else "data")


def _readers(
    rows: Rows, users: dict[int, list[tuple[int, int]]], number: int, row: Row
) -> list[tuple[int, int]] | None:
    """Who reads what the copy in ``row`` writes, if all of them may read its source instead."""
    if row.name != COPY and not _is_plain_activation(row):
        return None
    source, target = _source(row), row.operand("dst")
    if not (
        source.form.memory == PSUM
        and target.form.memory == SBUF
        and source.form.dtype == target.form.dtype
        and source.form.contiguous
        and target.form.contiguous
        and not source.form.indirect
        and not target.form.indirect
        and source.start == target.start
        and source.form.partitions == target.form.partitions
        and rows.is_tile(source.storage)
        and rows.is_tile(target.storage)
    ):
        return None
    box = extent(target)
    readers = []
    for other, position in users[target.storage]:
        found = rows.rows[other]
        at = extent(found.operands[position])
        if other == number or at[0] >= box[1] or at[1] <= box[0] or at[2] >= box[3] or at[3] <= box[2]:
            continue
        inside = at[0] >= box[0] and at[1] <= box[1] and at[2] >= box[2] and at[3] <= box[3]
        if other < number or not inside or not _may_read_psum(found, position):
            return None
        readers.append((other, position))
    if not readers:
        return None
    last = max(r for r, _ in readers)
    for other, position in users[source.storage]:
        written = rows.rows[other].klass.operands[position].role != "read"
        if written and number < other <= last:
            return None
    return readers


def _may_read_psum(row: Row, position: int) -> bool:
    """The operand is streamed by VectorE or ScalarE, and no other operand of the instruction is in PSUM."""
    role = row.klass.operands[position].role
    others = [o for p, o in enumerate(row.operands) if p != position and row.klass.operands[p].role == "read"]
    return (
        role == "read"
        and bool(set(row.klass.engines) & set(_PSUM_ENGINES))
        and row.operands[position].form.elements > 1
        and not row.operands[position].form.indirect
        and not any(o.form.memory == PSUM for o in others)
    )


def _redirect(rows: Rows, row: Row, position: int, storage: int, shift: int) -> None:
    """Let an operand read ``storage`` in PSUM, ``shift`` bytes from where it read SBUF."""
    old = row.operands[position]
    form = Form.of(PSUM, old.form.dtype, old.form.shape, old.form.strides, old.form.start, old.form.phase)
    row.operands[position] = Operand(storage, old.start, old.offset + shift, form)
    engines = tuple(e for e in row.klass.engines if e in _PSUM_ENGINES)
    row.klass = rows.changed(row.klass, row.operands, engines=engines)


def merge_copies(rows: Rows, core: Core) -> None:
    """Join copies of neighbouring tiles of PSUM into one tile of SBUF, up to a bank."""
    users = rows.users()
    # Narrower formats share a bank just so, but one copy takes no more elements than a bank of float32 has.
    limit = core.psum.bytes_per_bank // 4
    gone: set[int] = set()
    run: list[int] = []
    for number in range(len(rows.rows)):
        if not _mergeable(rows, users, number):
            continue
        if run and not _continues(rows, users, run, number, core.psum.bytes_per_bank):
            gone |= _merge(rows, users, run, limit)
            run = []
        run.append(number)
    gone |= _merge(rows, users, run, limit)
    if gone:
        rows.rows = [row for number, row in enumerate(rows.rows) if number not in gone]


def _mergeable(rows: Rows, users: dict[int, list[tuple[int, int]]], number: int) -> bool:
    """A copy of all of an automatic tile of PSUM, which nothing reads but this copy."""
    row = rows.rows[number]
    if row.name != COPY:
        return False
    source, target = row.operand("src"), row.operand("dst")
    if not (
        source.form.memory == PSUM
        and target.form.memory == SBUF
        and source.form.contiguous
        and target.form.contiguous
        and source.offset == 0
        and rows.is_tile(source.storage)
        and source.form.span == rows.storages[source.storage].row_bytes
    ):
        return False
    readers = {r for r, p in users[source.storage] if rows.rows[r].klass.operands[p].role == "read"}
    return readers == {number}


def _continues(rows: Rows, users: dict[int, list[tuple[int, int]]], run: list[int], number: int, bank: int) -> bool:
    """The copy in row ``number`` goes on where the last of ``run`` ended, and nothing between minds that all wait."""
    first, last, row = rows.rows[run[0]], rows.rows[run[-1]], rows.rows[number]
    before, target = last.operand("dst"), row.operand("dst")
    if not (
        row.klass is last.klass
        and row.line == last.line
        and row.region == last.region
        and target.storage == before.storage
        and target.start == before.start
        and target.offset == before.offset + before.form.span
        and row.operand("src").start == last.operand("src").start
        and (len(run) + 1) * row.operand("src").form.bytes // row.operand("src").form.partitions <= bank
    ):
        return False
    low, high = first.operand("dst").offset, target.offset
    for other, position in users[target.storage]:
        if run[0] < other < number and other not in run:
            at = extent(rows.rows[other].operands[position])
            if at[2] < high and at[3] > low:
                return False
    return True


def _merge(rows: Rows, users: dict[int, list[tuple[int, int]]], run: list[int], limit: int) -> set[int]:
    """Give the tiles of the copies in ``run`` one tile, let the last copy all of it; the rows that go."""
    copies = [rows.rows[n] for n in run]
    sources = [row.operand("src") for row in copies]
    if len(run) < 2 or sum(s.form.elements for s in sources) > limit:
        return set()
    info = rows.storages[sources[0].storage]
    joined = rows.add_storage(
        info,
        row_bytes=info.row_bytes * len(run),
        shape=(*info.shape[:-1], info.shape[-1] * len(run)),
        declared=min(rows.storages[s.storage].declared for s in sources),
    )
    for index, source in enumerate(sources):
        for number, position in users[source.storage]:
            at = rows.rows[number].operands[position]
            at.storage, at.offset = joined, at.offset + index * info.row_bytes
    last, target = copies[-1], copies[0].operand("dst")
    held = [
        Operand(o.storage, o.start, o.offset if name == "src" else target.offset, _widened(o.form, len(run)))
        for name, o in (("dst", last.operand("dst")), ("src", sources[-1]))
    ]
    held[1].offset = 0
    order = {o.name: i for i, o in enumerate(last.klass.operands)}
    operands = list(last.operands)
    operands[order["dst"]], operands[order["src"]] = held
    last.operands = operands
    last.klass = rows.changed(last.klass, operands)
    return set(run[:-1])


def _widened(form: Form, times: int) -> Form:
    """``form``, contiguous in its free dimensions, ``times`` as long."""
    return Form.of(
        form.memory, form.dtype, (form.shape[0], form.elements * times), (form.strides[0], 1), form.start, form.phase
    )
