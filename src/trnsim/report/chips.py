"""The hardware catalogue on a screen and as JSON: all chips side by side, or one chip with the source of each fact.

Empty cells are facts that no source gives. Peak rates are the vendors' dense figures for the chip; what their tensor
engines can do by array and clock, the base of MFU, stands in the details and in the JSON (``matmul_flops``).
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from trnsim.hardware.load import chip_names, load_chip
from trnsim.hardware.model import Chip, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rich.console import Group
    from rich.table import Table as RichTable

    from trnsim.hardware.model import Fact, Price

WIDTH = 100


def chips_table(names: Iterable[str | Path] | None = None) -> RichTable:
    """All chips (or those named) side by side, in at most 100 columns."""
    from rich.table import Table as RichTable

    table = RichTable(
        box=None,
        padding=(0, 1, 0, 0),
        caption="TFLOPS dense, as the vendor states them (FP8, FP4: block-scaled where the chip has it); "
        "GHz of tensor/vector/scalar/gpsimd engine, or boost; empty: no source",
        caption_justify="left",
    )
    for heading in ("chip", "cores", "GHz"):
        table.add_column(heading, no_wrap=True)
    for heading in ("BF16", "FP8", "FP4", "FP32", "SRAM\nMiB", "HBM\nGiB", "HBM\nTB/s", "scale-up\nGB/s", "TDP\nW"):
        table.add_column(heading, justify="right", no_wrap=True)
    for chip in (load_chip(name) for name in names or chip_names()):
        table.add_row(*_row(chip))
    return table


def _row(chip: Chip) -> tuple[str, ...]:
    flops = chip.flops
    return (
        chip.name,
        _cores(chip),
        _clocks(chip),
        _scaled(flops.get("bfloat16"), 1e12),
        _scaled(flops.get("mxfp8", flops.get("float8")), 1e12),
        _scaled(flops.get("mxfp4", flops.get("float4")), 1e12),
        _scaled(flops.get("float32"), 1e12),
        _scaled(chip.on_chip_bytes, 2**20),
        _scaled(chip.hbm.capacity_bytes, 2**30),
        _scaled(chip.hbm.bytes_per_second, 1e12, digits=2),
        _scaled(chip.scale_up.bytes_per_second, 1e9),
        _scaled(chip.power.tdp_watts, 1),
    )


def _cores(chip: Chip) -> str:
    if not chip.core_count:
        return ""
    kind = chip.core.version if chip.core else "SM" if chip.family == "nvidia" else "v1"
    return f"{chip.core_count} {kind}"


def _clocks(chip: Chip) -> str:
    if chip.core is None:
        return _scaled(chip.clock_hz, 1e9, digits=2)
    engines = chip.core.engines
    return "/".join(f"{engines[e].clock_hz / 1e9:g}" for e in ("tensor", "vector", "scalar", "gpsimd"))


def _scaled(value: float | None, unit: float, digits: int = 0) -> str:
    if value is None:
        return ""
    scaled = value / unit
    if scaled != round(scaled) and scaled < 100 and digits == 0:
        digits = 1
    return f"{scaled:.{digits}f}"


def chip_details(chip: Chip | str | Path) -> Group:
    """Every fact of a chip: value, source, date; beside it what other sources say, and why this value was chosen."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    chip = chip if isinstance(chip, Chip) else load_chip(chip)
    sources: dict[str, int] = {}
    table = RichTable(box=None, width=WIDTH, padding=(0, 2, 0, 0))
    for heading in ("fact", "value", "source", "date"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "source" else "left")
    table.add_column("note", ratio=1)
    section = ""
    for key in sorted(chip.facts, key=lambda key: key.startswith("core.")):
        fact = chip.facts[key]
        head, _, leaf = key.rpartition(".")
        if head != section:
            section = head
            table.add_row(Text(head, style="bold"))
        number = sources.setdefault(fact.source, len(sources) + 1)
        note = Text(_note(fact, sources))
        table.add_row(Text(f"  {leaf}" if head else leaf), Text(fact.value), Text(f"[{number}]"), Text(fact.date), note)
    lines = [*_matmul_lines(chip), *(_price_line(price) for price in chip.prices)]
    return Group(
        Text(f"{chip.title} ({chip.name}), {chip.vendor}", style="bold"),
        *(Text(line) for line in lines),
        Text(""),
        table,
        Text(""),
        *(Text(f"[{number}] {source}") for source, number in sources.items()),
    )


def _note(fact: Fact, sources: dict[str, int]) -> str:
    """Confidence, what other sources say, and the reason of the choice, in one line."""
    notes = [] if fact.confidence == "published" else [fact.confidence]
    for other in fact.alternatives:
        number = sources.setdefault(other.source, len(sources) + 1)
        notes.append(f"or {other.value} [{number}] {other.date}")
    return "; ".join([*notes, fact.why] if fact.why else notes)


def _matmul_lines(chip: Chip) -> list[str]:
    if chip.core is None:
        return []
    rates = ", ".join(f"{f} {_scaled(chip.matmul_flops(f), 1e12, digits=1)}" for f in chip.core.tensor.products)
    return [f"TFLOPS by array, clock and cores (base of MFU): {rates}"]


def _price_line(price: Price) -> str:
    note = f"; {price.note}" if price.note else ""
    return f"{price.type}: {price.usd_per_hour:g} USD/h on {price.date or 'no date'} ({price.source}{note})"


def chips_json(names: Iterable[str | Path] | None = None) -> dict[str, Any]:
    """``{"chips": {name: {...}}}`` in base units, with the provenance of each fact under ``facts``."""
    return {"chips": {chip.name: _chip_json(chip) for chip in (load_chip(name) for name in names or chip_names())}}


def _chip_json(chip: Chip) -> dict[str, Any]:
    data = _plain(chip)
    assert isinstance(data, dict)
    formats = chip.core.tensor.products if chip.core else chip.flops
    data["matmul_flops"] = {f: chip.matmul_flops(f) for f in formats}
    data["facts"] = _facts_json(chip.facts)
    return data


def _facts_json(facts: Mapping[str, Fact]) -> dict[str, Any]:
    rows = {}
    for key, fact in facts.items():
        row = _plain(fact)
        rows[key] = {k: v for k, v in row.items() if v not in ("", [])}
    return rows


def _plain(value: Any) -> Any:
    """Dataclasses, tables and tuples as dictionaries and lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in {"facts", "path"}}
    if isinstance(value, Table):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
