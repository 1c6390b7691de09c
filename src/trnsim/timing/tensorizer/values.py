"""Values that a loop computes again although nothing they come from has changed: computed once, and kept.

The published scans on trn1 multiply two tiles that do not depend on the loop they stand in. VectorE was active there
for as long as the rest of the body takes; where such a product reads tiles that each iteration loads, for as long as
all of it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from trnsim.machine.form import HBM, SBUF
from trnsim.timing.tensorizer.rows import Row, Rows

if TYPE_CHECKING:
    from trnsim.hardware.model import Core

# Engines whose results are kept: what TensorE and DMAs repeat is no tile in SBUF, or a load.
_ENGINES = {"vector", "scalar", "gpsimd"}


def keep_values(rows: Rows, core: Core) -> None:
    """Leave out what a line computes again, if the tiles that are then kept longer fit into SBUF."""
    while _keep_once(rows, core):  # what is computed from kept values may be kept too
        pass


def _keep_once(rows: Rows, core: Core) -> bool:
    users = rows.users()
    by_line: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for again, first in _repeats(rows, users).items():
        by_line[rows.rows[first].line].append((again, first))
    kept: dict[int, int] = {}
    for _, line in sorted((_cost(rows, users, pairs), line) for line, pairs in by_line.items()):
        more = kept | dict(by_line[line])
        if _peak(rows, _lives(rows, users, more)) <= core.sbuf.usable_bytes_per_partition:
            kept = more
    for again, first in kept.items():
        source = _target(rows.rows[first])
        for reader, position in users[_target(rows.rows[again])]:
            rows.rows[reader].operands[position].storage = source
    rows.rows = [row for number, row in enumerate(rows.rows) if number not in kept]
    return bool(kept)


def _cost(rows: Rows, users: dict[int, list[tuple[int, int]]], pairs: list[tuple[int, int]]) -> int:
    """Bytes a partition that the first results of a line take for longer, at most at once."""
    longer: dict[int, int] = {}
    for again, first in pairs:
        longer[first] = max(longer.get(first, 0), users[_target(rows.rows[again])][-1][0])
    targets = [(first, last, _target(rows.rows[first])) for first, last in longer.items()]
    return _peak(rows, [(users[target][-1][0], last, target) for _, last, target in targets])


def _lives(rows: Rows, users: dict[int, list[tuple[int, int]]], kept: dict[int, int]) -> list[tuple[int, int, int]]:
    """First and last use of each tile where the rows that ``kept`` names are left out for those it names instead."""
    instead = {_target(rows.rows[again]): _target(rows.rows[first]) for again, first in kept.items()}
    found: dict[int, tuple[int, int]] = {}
    for storage, uses in users.items():
        remaining = [number for number, _ in uses if number not in kept]
        if remaining:
            tile = instead.get(storage, storage)
            first, last = found.get(tile, (remaining[0], remaining[-1]))
            found[tile] = min(first, remaining[0]), max(last, remaining[-1])
    return [(first, last, storage) for storage, (first, last) in found.items()]


def _target(row: Row) -> int:
    return next(o.storage for c, o in zip(row.klass.operands, row.operands, strict=True) if c.role == "write")


def _repeats(rows: Rows, users: dict[int, list[tuple[int, int]]]) -> dict[int, int]:
    """For each row that computes what an earlier one of its line did, from the same values: that row."""
    writes: dict[int, int] = defaultdict(int)
    writers = {
        storage: sum(rows.rows[r].klass.operands[p].role != "read" for r, p in uses) for storage, uses in users.items()
    }
    bound = {number for edge in rows.trace.edges for number in edge}
    seen: dict[tuple[Any, ...], int] = {}
    found: dict[int, int] = {}
    for number, row in enumerate(rows.rows):
        roles = [c.role for c in row.klass.operands]
        if (
            roles.count("write") == 1
            and "update" not in roles
            and len(roles) > 1
            and set(row.klass.engines) <= _ENGINES
            and not row.klass.state
            and not row.klass.indirect
            and row.region == 0
            and row.rendezvous < 0
            and row.source not in bound
            and all(o.form.memory != HBM for o in row.operands)
        ):
            target = row.operands[roles.index("write")]
            if (
                target.form.memory == SBUF
                and rows.is_tile(target.storage)
                and writers[target.storage] == 1
                and users[target.storage][0][0] == number
            ):
                values = tuple(
                    (o.storage, writes[o.storage], o.start, o.offset, o.form.id)
                    for o, role in zip(row.operands, roles, strict=True)
                    if role == "read"
                )
                key = (row.klass.id, row.line, row.immediate, target.start, target.offset, target.form.id, values)
                first = seen.setdefault(key, number)
                if first != number:
                    found[number] = first
        for operand, role in zip(row.operands, roles, strict=True):
            if role != "read":
                writes[operand.storage] += 1
    return found


def _peak(rows: Rows, lives: list[tuple[int, int, int]]) -> int:
    """Most bytes a partition of SBUF that tiles hold at once, each from one row through another."""
    changes = []
    for begin, end, storage in lives:
        info = rows.storages[storage]
        if info.memory == SBUF and end > begin:
            changes += [(begin, info.row_bytes), (end + 1, -info.row_bytes)]
    peak = now = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak
