"""The JSON report, as types: schema ``trnsim.report/1``.

Fields are added within a version; one is removed, renamed or given another meaning only with a new version.
``report.schema.json`` is made from these types (``python -m trnsim.report.schema``); docs/reference/report-schema.md
explains them.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

SCHEMA: Literal["trnsim.report/1"] = "trnsim.report/1"
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")

Microseconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class EngineReport(Struct, frozen=True):
    """An engine (mean over the cores), or all DMA rings together. ``busy_us`` and ``waiting_us`` add up to the time."""

    busy_us: Microseconds
    waiting_us: dict[str, Microseconds]
    busy_fraction: Annotated[float, Meta(ge=0, le=1)]
    tracks: Count


class TrackReport(Struct, frozen=True):
    """One engine or DMA ring of one core."""

    core: Count
    name: str
    kind: Literal["engine", "dma"]
    busy_us: Microseconds
    waiting_us: dict[str, Microseconds]
    events: Count


class LineReport(Struct, frozen=True):
    """What a source line cost.

    ``active_us``: time with at least one of its instructions running (``fraction`` of the total); ``busy_us``: the same
    summed over engines and rings; ``caused_waiting_us``: engine time spent waiting for its instructions.
    """

    file: str
    line: int
    function: str
    text: str
    active_us: Microseconds
    fraction: Annotated[float, Meta(ge=0)]
    busy_us: Microseconds
    caused_waiting_us: Microseconds
    instructions: Count
    events: Count
    engines: list[str]


class ClassReport(Struct, frozen=True):
    """Instructions of one engine, opcode and source line (``file:line``), summed; ``engine`` is ``dma`` for
    transfers.
    """

    core: Count
    engine: str
    opcode: str
    line: str
    count: Count
    busy_us: Microseconds
    waiting_us: Microseconds
    bytes: Count


class HolderReport(Struct, frozen=True):
    """A storage that was live at the peak, and its bytes in a partition."""

    storage: str
    bytes_per_partition: Count
    declared_at: str


class MemoryReport(Struct, frozen=True):
    """SBUF or PSUM of one core."""

    core: Count
    memory: str
    peak_bytes_per_partition: Count
    capacity_bytes_per_partition: Count
    holders: list[HolderReport]


class FindingReport(Struct, frozen=True):
    """Legal to execute here, but wrong or unsafe on hardware. ``kind`` is a stable identifier."""

    kind: str
    severity: str
    message: str
    count: Count
    file: str | None
    line: int | None
    details: dict[str, Any]


class CallReport(Struct, frozen=True):
    """One kernel call. Times are microseconds, sizes bytes; None (null) where a number is not known."""

    kernel: str
    chip: str
    generation: str
    cores: Count
    arguments: list[str]
    schedule: str
    clock: str
    time_us: Microseconds
    spread_us: Microseconds
    support: str
    support_reason: str
    error_percent: float | None
    bound_by: str
    bound_by_text: str
    engines: dict[str, EngineReport]
    tracks: list[TrackReport]
    instructions: Count
    flops: Count
    mfu: float | None
    hbm_read_bytes: Count
    hbm_write_bytes: Count
    hbm_bytes_per_second: float
    hbm_utilization: float | None
    sbuf_peak_bytes: Count
    psum_peak_bytes: Count
    memory: list[MemoryReport]
    spills: Count
    lines: list[LineReport]
    instruction_classes: list[ClassReport]
    findings: list[FindingReport]
    numeric: bool
    seed: int | None
    nki_version: str
    nki_version_source: str
    wall_seconds: float


class Report(Struct, frozen=True):
    """The whole file. ``versions``: trnsim, Python and the libraries that results may depend on."""

    schema: Literal["trnsim.report/1"]
    versions: dict[str, str]
    calls: list[CallReport]


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the report."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        **_unindented(msgspec.json.schema(Report)),
    }


def _unindented(value: Any) -> Any:
    """Descriptions without their docstrings' indentation, which Python removes itself from 3.13 on."""
    if isinstance(value, dict):
        return {
            k: inspect.cleandoc(v) if k == "description" and isinstance(v, str) else _unindented(v)
            for k, v in value.items()
        }
    return [_unindented(v) for v in value] if isinstance(value, list) else value


def schema_text() -> str:
    """``json_schema()`` as it stands in ``report.schema.json``."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
