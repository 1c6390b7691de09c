"""The JSON that neuron-profile writes: tables ``instruction``, ``dma``, ``ham`` (the throttle), ``metadata``.

Times are nanoseconds. A ``subgraph`` (``sg00``, ``sg01``) is a physical core of the logical one. Instructions that the
compiler emitted for the kernel have a ``compiler_pc``; the others are the runtime's prologue and epilogue.
"""

from __future__ import annotations

from typing import Any

from trnsim.errors import InputError
from trnsim.profiles.fields import Row, rows
from trnsim.profiles.profile import ENGINES, NEURON_PROFILE, NOT_KNOWN, Builder, Profile

_BYTES = ("hbm_read_bytes", "hbm_write_bytes")


def is_neuron_profile(document: Any) -> bool:
    """True if the document has this profiler's tables."""
    return isinstance(document, dict) and "instruction" in document


def read_neuron_json(path: str, document: dict[str, Any]) -> Profile:
    """The profile in ``document``.

    Raises:
        InputError: a table or field is missing or has another type; the message names it.
    """
    builder = Builder()
    kernel = False
    for row in rows(path, document, "instruction", required=True):
        of_kernel = row.has("compiler_pc")
        kernel |= of_kernel
        builder.instruction(
            core=core_of(row),
            engine=engine_number(row, row.text("subgroup")),
            opcode=builder.text("opcodes", row.text("opcode")),
            operands=builder.text("operands", row.text("operands").strip()),
            line=line_number(builder, row, "nki_source_location", "bir_debug_info_source_location"),
            start_ps=row.integer("timestamp") * 1000,
            duration_ps=row.integer("duration") * 1000,
            waited_ps=row.integer("evt_wait_time", NOT_KNOWN) * 1000 if row.has("evt_wait_time") else NOT_KNOWN,
            bytes=sum(row.integer(name, 0) for name in _BYTES),
            pc=row.integer("pc"),
            kernel=int(of_kernel),
        )
    if not kernel:
        raise InputError(
            f"{path}: no row of instruction has compiler_pc, so the kernel cannot be told from the runtime",
            operand="compiler_pc",
        )
    for row in rows(path, document, "dma", required=False):
        builder.packet(
            core=core_of(row),
            engine=row.integer("dma_engine"),
            queue=builder.text("queues", row.text("dma_queue")),
            kind=builder.text("kinds", row.text("queue_type")),
            start_ps=row.integer("timestamp") * 1000,
            duration_ps=row.integer("duration") * 1000,
            bytes=row.integer("transfer_size"),
        )
    throttle = sorted(
        (core_of(row), row.integer("timestamp") * 1000, row.real("k") / row.real("n"))
        for row in rows(path, document, "ham", required=False)
    )
    metadata = document.get("metadata") or [{}]
    return builder.profile(path, NEURON_PROFILE, throttle=throttle, metadata=dict(metadata[0]))


def core_of(row: Row) -> int:
    """``sg00`` is core 0."""
    name = row.text("subgraph", "sg00")
    if not (name.startswith("sg") and name[2:].isdigit()):
        raise InputError(f"{row.path}: {row.table}[{row.number}].subgraph is not sgNN", operand="subgraph", value=name)
    return int(name[2:])


_NAMES = {"pe": "tensor", "dve": "vector", "act": "scalar", "activation": "scalar", "pool": "gpsimd", "sp": "sync"}


def engine_number(row: Row, name: str) -> int:
    """Number of the engine called ``Tensor``, ``tensor`` or by its short name."""
    lower = name.lower()
    lower = _NAMES.get(lower, lower)
    if lower not in ENGINES:
        known = ", ".join(ENGINES)
        raise InputError(f"{row.path}: {row.table}[{row.number}]: no engine {name!r}", value=name, limit=known)
    return ENGINES.index(lower)


def line_number(builder: Builder, row: Row, *names: str) -> int:
    """Number of the first source line that one of the fields names; -1 where there is none."""
    for name in names:
        if row.has(name):
            text = row.text(name).strip().strip("[]").split(",")[0].strip().strip("'\"")
            if text:
                return builder.text("lines", text)
    return NOT_KNOWN
