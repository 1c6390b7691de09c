"""Neuron Explorer's Parquet tables: ``Instruction``, ``DmaPacket``, ``Throttle``, ``Metadata``.

Their schema is public: tools/neuron-explorer/profile-schema-reference.rst of aws-neuron-sdk, version 7.4.0 of SDK 2.31.
A profile is a folder with a file ``<Table>.parquet`` a table. Times are nanoseconds. Reading needs pyarrow, an extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError
from trnsim.profiles.fields import Row
from trnsim.profiles.neuron_json import engine_number, line_number
from trnsim.profiles.profile import NEURON_EXPLORER, NOT_KNOWN, Builder, Profile

if TYPE_CHECKING:
    from pathlib import Path

INSTRUCTION, PACKET, THROTTLE, METADATA = "Instruction", "DmaPacket", "Throttle", "Metadata"


def is_explorer(folder: Path) -> bool:
    """True if the folder has the table of instructions."""
    return (folder / f"{INSTRUCTION}.parquet").is_file()


def read_explorer(folder: Path) -> Profile:
    """The profile whose tables stand in ``folder``.

    Raises:
        InputError: pyarrow is not installed; a file is not Parquet; a table or field is missing or has another type.
    """
    builder = Builder()
    kernel = False
    for row in _table(folder, INSTRUCTION, required=True):
        of_kernel = row.has("compiler_pc")
        kernel |= of_kernel
        builder.instruction(
            core=row.integer("pcore_idx", 0),
            engine=engine_number(row, row.text("engine")),
            opcode=builder.text("opcodes", row.text("opcode")),
            operands=builder.text("operands", row.text("operands").strip()),
            line=line_number(builder, row, "nki_source_location", "bir_debug_info_source_location"),
            start_ps=row.integer("start_ts") * 1000,
            duration_ps=row.integer("duration_ns") * 1000,
            waited_ps=row.integer("evt_wait_time_ns", NOT_KNOWN) * 1000 if row.has("evt_wait_time_ns") else NOT_KNOWN,
            bytes=row.integer("hbm_read_bytes", 0) + row.integer("hbm_write_bytes", 0),
            pc=row.integer("pc"),
            kernel=int(of_kernel),
        )
    if not kernel:
        raise InputError(
            f"{folder}: no row of {INSTRUCTION} has compiler_pc, so the kernel cannot be told from the runtime",
            operand="compiler_pc",
        )
    for row in _table(folder, PACKET, required=False):
        builder.packet(
            core=row.integer("pcore_idx", 0),
            engine=row.integer("engine_idx", NOT_KNOWN),
            queue=builder.text("queues", str(row.integer("queue_idx", NOT_KNOWN))),
            kind=builder.text("kinds", row.text("queue_type")),
            start_ps=row.integer("start_ts") * 1000,
            duration_ps=row.integer("duration_ns") * 1000,
            bytes=row.integer("transfer_bytes"),
        )
    throttle = sorted(
        (row.integer("pcore_idx", 0), row.integer("timestamp") * 1000, row.real("k") / row.real("n"))
        for row in _table(folder, THROTTLE, required=False)
    )
    metadata = [row.values for row in _table(folder, METADATA, required=False)]
    return builder.profile(
        str(folder), NEURON_EXPLORER, throttle=throttle, metadata=dict(metadata[0]) if metadata else {}
    )


def _table(folder: Path, name: str, *, required: bool) -> list[Row]:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        if required:
            raise InputError(f"{folder}: no {name}.parquet", operand=name)
        return []
    return [Row(str(path), name, number, values) for number, values in enumerate(_read(path))]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow, which is not installed: pip install 'trnsim[parquet]'"
        ) from error
    try:
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from error
    return found
