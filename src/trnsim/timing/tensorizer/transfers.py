"""DMAs: neighbours are joined, and each gets its descriptors and its ring.

The public profiles: loads of inputs and stores of outputs have software descriptors (GpSimdE); intermediates in HBM
are stored over ScalarE's ring and loaded, like constants, over SyncE's; transfers of neighbouring iterations were
joined as long as they moved at most 512 KiB; a transposition on TensorE multiplies by an identity that was loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.machine.form import HBM, SBUF, Form
from trnsim.machine.trace import INSTRUCTIONS, InstructionClass, OperandClass, StorageInfo
from trnsim.timing.tensorizer.rows import Operand, Row, Rows

if TYPE_CHECKING:
    from trnsim.numerics import DType

COPY, TRANSPOSE = "nki.isa.dma_copy", "nki.isa.nc_transpose"
LARGEST_TRANSFER = 512 * 1024
# What of that is in one partition, where all are used.
LARGEST_ROW = LARGEST_TRANSFER // 128


def choose_descriptors(rows: Rows, *, static: bool = False) -> None:
    """Name the descriptors and the ring of each DMA that leaves them to the compiler; ``static``: made before."""
    for row in rows.rows:
        if row.name != COPY or str(row.klass.attributes["dge_mode"]) != "unknown":
            continue
        if row.klass.indirect:
            continue
        source, target = row.operand("src"), row.operand("dst")
        other = rows.storages[source.storage if source.form.memory == HBM else target.storage]
        if static:
            given = {"dge_mode": "none"}
        elif other.kind in ("input", "output") or source.form.dtype != target.form.dtype:
            given = {"dge_mode": "swdge"}
        else:
            given = {"dge_mode": "hwdge", "engine": "scalar" if target.form.memory == HBM else "sync"}
        row.klass = rows.changed(row.klass, row.operands, attributes={**row.klass.attributes, **given})


def load_identities(rows: Rows) -> None:
    """The identity that TensorE multiplies by in order to transpose, loaded once for each format."""
    made: dict[DType, int] = {}
    loads = []
    for row in rows.rows:
        if row.name != TRANSPOSE or "tensor" not in row.klass.engines or row.klass.has("identity"):
            continue
        data = row.operand("data")
        if data.form.dtype not in made:
            load = _identity(rows, row, data.form.dtype)
            loads.append(load)
            made[data.form.dtype] = load.operand("dst").storage
        form = _square(SBUF, data.form.dtype)
        row.operands = [*row.operands, Operand(made[data.form.dtype], 0, 0, form)]
        row.klass = rows.changed(
            row.klass,
            row.operands,
            names=(*(o.name for o in row.klass.operands), "identity"),
            roles=(*(o.role for o in row.klass.operands), "read"),
        )
    rows.rows = loads + rows.rows


def _square(memory: str, dtype: DType) -> Form:
    return Form.of(memory, dtype, (128, 128), (128, 1) if memory == HBM else (1, 1))


def _identity(rows: Rows, row: Row, dtype: DType) -> Row:
    size = 128 * dtype.itemsize
    places = []
    for memory in (SBUF, HBM):
        like = StorageInfo(
            0, "identity", memory, str(dtype), (128, 128), 128, size, None, "constant" if memory == HBM else "local",
            False, 0, row.line,
        )  # fmt: skip
        places.append(Operand(rows.add_storage(like), 0, 0, _square(memory, dtype)))
    attributes = {"priority": None, "oob_mode": "error", "dge_mode": "unknown", "engine": "unknown"}
    klass = InstructionClass(
        INSTRUCTIONS[COPY],
        row.klass.generation,
        attributes,
        (OperandClass("dst", "write", places[0].form), OperandClass("src", "read", places[1].form)),
        ("dma",),
        -1,
        roles=("write", "read"),
    )
    return Row(rows.changed(klass, places), places, -1, row.line, 0, 0, -1)


def coalesce(rows: Rows) -> None:
    """Join DMAs of one line whose places in HBM, and tiles, follow each other."""
    users = rows.users()
    open_runs: dict[tuple[int, int], list[int]] = {}
    runs: list[list[int]] = []
    for number, row in enumerate(rows.rows):
        if not _joinable(rows, users, row):
            continue
        key = (row.klass.id, row.line)
        run = open_runs.get(key)
        if run is not None and _follows(rows, users, run, number):
            run.append(number)
        else:
            open_runs[key] = run = [number]
            runs.append(run)
    gone: set[int] = set()
    own = len(rows.storages)
    for run in runs:
        # A tile that another run has joined already stays as it is.
        if len(run) > 1 and all(_sides(rows.rows[n])[0].storage < own for n in run):
            gone |= _join(rows, users, run)
    rows.rows = [row for number, row in enumerate(rows.rows) if number not in gone]


def _sides(row: Row) -> tuple[Operand, Operand, bool]:
    """The operand in SBUF, that in HBM, and whether it is a load."""
    source, target = row.operand("src"), row.operand("dst")
    return (target, source, True) if source.form.memory == HBM else (source, target, False)


def _joinable(rows: Rows, users: dict[int, list[tuple[int, int]]], row: Row) -> bool:
    """A DMA between HBM and all of an automatic tile, which (for a load) nothing else writes."""
    if row.name != COPY or row.klass.indirect or row.region or row.rendezvous >= 0:
        return False
    if {row.operand("src").form.memory, row.operand("dst").form.memory} != {SBUF, HBM}:
        return False
    tile, _, load = _sides(row)
    info = rows.storages[tile.storage]
    if not rows.is_tile(tile.storage) or not tile.form.contiguous or tile.offset or tile.form.span != info.row_bytes:
        return False
    writers = [r for r, p in users[tile.storage] if rows.rows[r].klass.operands[p].role != "read"]
    return not load or len(writers) == 1


def _follows(rows: Rows, users: dict[int, list[tuple[int, int]]], run: list[int], number: int) -> bool:
    """Whether the DMA in row ``number`` can be moved together with those of ``run``."""
    last, row = rows.rows[run[-1]], rows.rows[number]
    (tile, place, load), (tile_before, place_before, _) = _sides(row), _sides(last)
    if place.storage != place_before.storage or tile.storage == tile_before.storage:
        return False
    step = place.offset - place_before.offset
    if len(run) > 1 and step != place_before.offset - _sides(rows.rows[run[-2]])[1].offset:
        return False
    many = len(run) + 1
    if (
        step <= 0
        or many * tile.form.bytes > LARGEST_TRANSFER
        or many * tile.form.span > max(LARGEST_ROW, tile.form.span)
    ):
        return False
    # Loads move to the first, stores to the last: nothing between may touch what they then pass.
    for other, position in users[place.storage]:
        if run[0] < other < number and other not in run:
            at = rows.rows[other].operands[position]
            written = rows.rows[other].klass.operands[position].role != "read"
            if (written or not load) and _meets(at, run, rows):
                return False
            if written and load and _overlaps(at, place):
                return False
    if not load:
        for index in run:
            held = _sides(rows.rows[index])[0]
            for other, position in users[held.storage]:
                if index < other < number and rows.rows[other].klass.operands[position].role != "read":
                    return False
    return True


def _meets(at: Operand, run: list[int], rows: Rows) -> bool:
    return any(_overlaps(at, _sides(rows.rows[n])[1]) for n in run)


def _overlaps(a: Operand, b: Operand) -> bool:
    return a.offset < b.offset + b.form.span and b.offset < a.offset + a.form.span


def _join(rows: Rows, users: dict[int, list[tuple[int, int]]], run: list[int]) -> set[int]:
    """One DMA for those of ``run``, between one tile and one pattern of HBM; the rows that go."""
    found = [rows.rows[n] for n in run]
    load = _sides(found[0])[2]
    kept = found[0] if load else found[-1]
    tiles = [_sides(row)[0] for row in found]
    places = [_sides(row)[1] for row in found]
    info = rows.storages[tiles[0].storage]
    width = info.row_bytes
    joined = rows.add_storage(
        info,
        row_bytes=width * len(run),
        shape=(*info.shape[:-1], info.shape[-1] * len(run)),
        declared=min(rows.storages[t.storage].declared for t in tiles),
    )
    for index, storage in enumerate([t.storage for t in tiles]):
        for number, position in users[storage]:
            at = rows.rows[number].operands[position]
            at.storage, at.offset = joined, at.offset + index * width
    form, place = tiles[0].form, places[0].form
    tile = Operand(
        joined,
        tiles[0].start,
        0,
        Form.of(SBUF, form.dtype, (form.shape[0], form.elements * len(run)), (form.strides[0], 1), form.start),
    )
    step = (places[1].offset - places[0].offset) // place.dtype.itemsize
    target = Operand(
        places[0].storage,
        places[0].start,
        places[0].offset,
        Form.of(HBM, place.dtype, (len(run), *place.shape), (step, *place.strides)),
    )
    kept.operands = [tile, target] if load else [target, tile]
    kept.klass = rows.changed(kept.klass, kept.operands)
    return {n for n in run if rows.rows[n] is not kept}
