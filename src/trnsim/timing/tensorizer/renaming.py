"""Tiles that a loop fills anew: each time they are another tile.

The compiler assigns addresses after this, so a buffer that is declared once and loaded in every iteration holds up no
load: a convolution whose only input buffer is loaded 2,664 times ran at 90 % of TensorE's rate on trn2
(xaviergonzalez/asst4-trainium2, measured 2025-11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.timing.tensorizer.rows import Operand, Rows, extent

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes and partitions at which the boxes of a tile begin or end divide it into at most so many cells.
_CELLS = 1 << 14


def rename_tiles(rows: Rows) -> None:
    """A tile of which nothing is read that was written before becomes a new one there."""
    for storage, uses in rows.users().items():
        if not rows.is_tile(storage) or not _written_again(rows, uses):
            continue
        by_row: dict[int, list[int]] = {}
        for number, position in uses:
            by_row.setdefault(number, []).append(position)
        now = storage
        begins = _begins(rows, uses, by_row)
        for number, positions in by_row.items():
            row = rows.rows[number]
            before = now
            if number in begins:
                now = rows.add_storage(rows.storages[storage])
            for position in positions:
                row.operands[position].storage = now if row.klass.operands[position].role == "write" else before


def _written_again(rows: Rows, uses: list[tuple[int, int]]) -> bool:
    """Whether something is written after something was read."""
    was_read = False
    for number, position in uses:
        role = rows.rows[number].klass.operands[position].role
        if role == "write" and was_read:
            return True
        was_read = was_read or role != "write"
    return False


def _begins(rows: Rows, uses: list[tuple[int, int]], by_row: dict[int, list[int]]) -> set[int]:
    """The rows that write to a tile whose bytes nothing reads any more as they were, but for the first."""
    cells = _cells([extent(rows.rows[number].operands[position]) for number, position in uses])
    if cells is None:
        return set()
    found: set[int] = set()
    needed = 0  # cells that are read before they are written
    for number, positions in reversed(by_row.items()):
        row = rows.rows[number]
        roles = [row.klass.operands[p].role for p in positions]
        for position, role in zip(positions, roles, strict=True):
            if role == "write" and not row.klass.partial and _dense(row.operands[position]):
                needed &= ~cells(row.operands[position])
        if "write" in roles and not needed:
            found.add(number)
        for position, role in zip(positions, roles, strict=True):
            if role != "write" or row.klass.partial:
                needed |= cells(row.operands[position])
    found.discard(next(iter(by_row)))
    return found


def _dense(at: Operand) -> bool:
    """Whether the operand touches every byte of its box."""
    form = at.form
    return not form.indirect and len(form.levels) == 1 and form.partition_span == form.partitions


def _cells(boxes: list[tuple[int, int, int, int]]) -> Callable[[Operand], int] | None:
    """The cells of a tile that an operand touches, as bits of an integer; None if there are too many."""
    partitions = sorted({edge for box in boxes for edge in box[:2]})
    edges = sorted({edge for box in boxes for edge in box[2:]})
    if len(partitions) * len(edges) > _CELLS:
        return None
    row_of = {edge: i for i, edge in enumerate(partitions)}
    column_of = {edge: i for i, edge in enumerate(edges)}
    known: dict[tuple[int, int, int, int], int] = {}

    def bits(at: Operand) -> int:
        box = extent(at)
        if box not in known:
            first, last, low, high = row_of[box[0]], row_of[box[1]], column_of[box[2]], column_of[box[3]]
            run = ((1 << (high - low)) - 1) << low
            known[box] = sum(run << (row * len(edges)) for row in range(first, last))
        return known[box]

    return bits
