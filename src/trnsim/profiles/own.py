"""Our own files: the JSON report of predicted calls, and the JSON of a replay.

A report keeps sums by engine, opcode and source line, not single instructions: its rows have a count and no start. A
replay keeps every instruction of the profile that it replayed, with the predicted times.
"""

from __future__ import annotations

from typing import Any

from trnsim.errors import InputError
from trnsim.profiles.fields import Row, rows
from trnsim.profiles.neuron_json import engine_number
from trnsim.profiles.profile import NOT_KNOWN, REPLAY, REPORT, Builder, Profile

REPLAY_SCHEMA = "trnsim-replay-1"


def is_own(document: Any) -> bool:
    """True if the document is a report or a replay."""
    return isinstance(document, dict) and ("calls" in document or document.get("schema") == REPLAY_SCHEMA)


def read_own(path: str, document: dict[str, Any]) -> Profile:
    """The profile of a report's only call, or of a replay.

    Raises:
        InputError: the report has no call or several; a field is missing or has another type.
    """
    return _replay(path, document) if document.get("schema") == REPLAY_SCHEMA else _report(path, document)


def _ps(row: Row, name: str) -> int:
    return round(row.real(name) * 1e6)


def _report(path: str, document: dict[str, Any]) -> Profile:
    calls = rows(path, document, "calls", required=True)
    if len(calls) != 1:
        names = ", ".join(c.text("kernel") for c in calls[:5])
        raise InputError(
            f"{path}: a report of {len(calls)} kernel calls ({names}); a comparison needs one", operand="calls"
        )
    call = calls[0]
    builder = Builder()
    for row in rows(path, call.values, "instruction_classes", required=True):
        line = row.text("line", "")
        builder.instruction(
            core=row.integer("core"),
            engine=engine_number(row, row.text("engine")),
            opcode=builder.text("opcodes", row.text("opcode")),
            line=builder.text("lines", line) if line else NOT_KNOWN,
            duration_ps=_ps(row, "busy_us"),
            waited_ps=_ps(row, "waiting_us"),
            count=row.integer("count"),
            bytes=row.integer("bytes"),
        )
    busy = call.values.get("engines")
    if not isinstance(busy, dict):
        raise InputError(f"{path}: calls[0] has no engines", operand="engines")
    reported = {name: _ps(Row(path, f"calls[0].engines.{name}", 0, values), "busy_us") for name, values in busy.items()}
    return builder.profile(
        path,
        REPORT,
        reported_span_ps=_ps(call, "time_us"),
        reported_busy_ps=reported,
        metadata={"chip": call.text("chip")},
    )


def _replay(path: str, document: dict[str, Any]) -> Profile:
    builder = Builder()
    for row in rows(path, document, "instructions", required=True):
        line = row.text("line", "")
        builder.instruction(
            engine=engine_number(row, row.text("engine")),
            opcode=builder.text("opcodes", row.text("opcode")),
            operands=builder.text("operands", row.text("operands")),
            line=builder.text("lines", line) if line else NOT_KNOWN,
            start_ps=_ps(row, "predicted_start_us"),
            duration_ps=_ps(row, "predicted_us"),
            pc=row.integer("pc"),
            bytes=row.integer("bytes", 0),
        )
    span = document.get("span")
    return builder.profile(
        path, REPLAY, reported_span_ps=_ps(Row(path, "span", 0, span), "predicted_us"),
        metadata={"chip": Row(path, "replay", 0, document).text("chip")},
    )  # fmt: skip
