"""Published measurements: one row a measured run of a kernel, as in ``kernel_latency.csv``.

Columns: ``id``, ``source_url_or_repo_path``, ``chip``, ``cores``, ``kernel``, ``shapes``, ``dtype``, ``metric``,
``value``, ``unit``, ``how_obtained``, ``confidence``, ``notes``. ``same`` in ``kernel`` or ``shapes`` repeats the row
above. The tag or commit in the source is the date.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

from trnsim.errors import InputError

PUBLISHED = Path(__file__).with_name("kernel_latency.csv")
COLUMNS = (
    "id", "source_url_or_repo_path", "chip", "cores", "kernel", "shapes", "dtype", "metric", "value", "unit",
    "how_obtained", "confidence", "notes",
)  # fmt: skip
_MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True)
class Row:
    """One measurement. ``value`` is in ``unit``, None where the file has no single number; the rest as there."""

    id: str
    source: str
    chip: str
    cores: str
    kernel: str
    shapes: str
    dtype: str
    metric: str
    value: float | None
    unit: str
    how_obtained: str
    confidence: str
    notes: str

    @property
    def microseconds(self) -> float | None:
        """The measured time; None if the row is not a time."""
        factor = _MICROSECONDS.get(self.unit)
        return None if factor is None or self.value is None else self.value * factor

    @property
    def core_count(self) -> int:
        """Cores of the run, 1 unless the row says ``LNC=2`` or two cores."""
        found = re.search(r"LNC=(\d)", self.cores) or re.match(r"\s*(\d)\b", self.cores)
        return int(found[1]) if found else 1


def read_rows(path: str | Path | None = None) -> list[Row]:
    """The rows of a file with the columns above; without a path the published ones.

    Raises:
        InputError: the file cannot be read, or lacks a column.
    """
    file = PUBLISHED if path is None else Path(path)
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{file} lacks the columns {', '.join(missing)}")
            rows = [_row(entry) for entry in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    return _without_same(rows)


def _row(entry: dict[str, str | None]) -> Row:
    text = {c: (entry[c] or "").strip() for c in COLUMNS}
    value: float | None
    try:
        value = float(text["value"])
    except ValueError:
        value = None
    return Row(*(value if c == "value" else text[c] for c in COLUMNS))  # type: ignore[arg-type]


def _without_same(rows: list[Row]) -> list[Row]:
    found: list[Row] = []
    for row in rows:
        above = found[-1] if found else None
        repeated = {n: getattr(above, n) for n in ("kernel", "shapes") if above and getattr(row, n) == "same"}
        found.append(replace(row, **repeated))
    return found
