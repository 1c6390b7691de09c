"""Published measurements of collectives: rows of ``collectives.csv``, and what each is a run of.

Columns that are read: ``id``, ``system``, ``chip``, ``library``, ``op``, ``n_ranks``, ``n_nodes``, ``size_bytes``,
``time_us``, ``algbw_GBps``, ``algorithm``, ``stat``, ``quality``, ``source``, ``date``, ``notes``. A row is left out by
the first rule of ``RULES`` that holds; no row is left out by name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trnsim.errors import InputError

COLUMNS = (
    "id", "system", "chip", "library", "op", "n_ranks", "n_nodes", "size_bytes", "time_us", "algbw_GBps", "algorithm",
    "stat", "quality", "source", "date", "notes",
)  # fmt: skip
FILE = "collectives.csv"


@dataclass(frozen=True)
class Row:
    """One published figure. Texts as in the file; numbers None where the file has none."""

    id: str
    system: str
    chip: str
    library: str
    op: str
    ranks: int | None
    nodes: int | None
    nbytes: int | None
    microseconds: float | None
    gigabytes_per_second: float | None
    """Bandwidth of the algorithm: bytes over time."""
    algorithm: str
    stat: str
    quality: str
    source: str
    date: str
    notes: str

    @property
    def collective(self) -> str:
        """The operation as ``fabric`` names it."""
        return {"alltoall": "all_to_all", "collective_permute": "permute", "p2p write": "permute"}.get(self.op, self.op)


@dataclass(frozen=True)
class Rule:
    """A reason to leave a row out. ``reason`` is what reports count."""

    reason: str
    holds: Callable[[Row], bool]


CATALOGUE = {
    "A100-SXM4-80GB": "p4de.24xlarge",
    "A100-80GB": "p4de.24xlarge",
    "A100-40GB": "p4d.24xlarge",
    "H100": "p5.48xlarge",
    "H200": "p5e.48xlarge",
    "B200": "p6-b200.48xlarge",
    "B300": "p6-b300.48xlarge",
    "GB200": "u-p6e-gb200x72",
    "GB300": "gb300-nvl72",
    "Trainium1": "trn1.32xlarge",
    "Trainium2": "trn2.48xlarge",
}
"""The system of the catalogue that a chip's published runs used: of several instances the plain one."""


def system_of(row: Row) -> str | None:
    """Name of the row's system in the catalogue; None if it is not there or not stated."""
    if row.chip.startswith("unstated") or row.chip == "Trainium1 likely":
        # 32 ranks of one instance are all cores of a trn1.32xlarge, and of nothing else that ran nccom-test by 2025.
        return "trn1.32xlarge" if row.ranks == 32 and row.nodes == 1 else None
    if "(AKS)" in row.system:
        return None
    return CATALOGUE.get(row.chip.split(" (")[0])


def _note(*patterns: str) -> Callable[[Row], bool]:
    pattern = re.compile("|".join(patterns), re.IGNORECASE)
    return lambda row: bool(pattern.search(f"{row.quality} {row.notes}"))


STATEMENTS = ("doc statement", "Neuron runtime algorithm selection")

RULES: tuple[Rule, ...] = (
    Rule("not a collective", lambda row: "(not a collective)" in row.op),
    Rule("no single time or bandwidth", lambda row: row.microseconds is None and row.gigabytes_per_second is None),
    Rule("a statement or a fit, no measurement", lambda row: "fitted model" in row.stat or row.library in STATEMENTS),
    Rule("a chip that is not in the catalogue", lambda row: row.chip.startswith("TPU")),
    Rule("an early runtime (2023)", lambda row: row.library == "nccom-test" and row.date.startswith("2023")),
    Rule("its source says that the time is not the collective's", _note("not representative", "stream overhead")),
    Rule("ranks or nodes are not stated", lambda row: row.ranks is None or row.nodes is None),
    Rule("the system is not stated, or not in the catalogue", lambda row: system_of(row) is None),
    Rule("no bytes", lambda row: row.nbytes == 0),
    Rule("a configuration that its source calls slow",
         lambda row: "known slow config for >2 nodes" in row.quality and (row.nodes or 0) > 2),
)  # fmt: skip


def excluded(row: Row) -> str | None:
    """Why ``row`` is left out; None if it is used."""
    return next((rule.reason for rule in RULES if rule.holds(row)), None)


def find(path: str | Path) -> Path:
    """``collectives.csv``, given it or the folder it is in."""
    found = Path(path)
    return found / FILE if found.is_dir() else found


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file with the columns above.

    Raises:
        InputError: the file cannot be read, lacks a column, or has no rows.
    """
    file = find(path)
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{file} lacks the columns {', '.join(missing)}")
            rows = [_row(entry) for entry in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    if not rows:
        raise InputError(f"{file} has no rows")
    return rows


def _row(entry: dict[str, str | None]) -> Row:
    text = {c: (entry[c] or "").strip() for c in COLUMNS}
    return Row(
        id=text["id"],
        system=text["system"],
        chip=text["chip"],
        library=text["library"],
        op=text["op"],
        ranks=_whole(text["n_ranks"]),
        nodes=_whole(text["n_nodes"]),
        nbytes=_whole(text["size_bytes"]),
        microseconds=_number(text["time_us"]),
        gigabytes_per_second=_number(text["algbw_GBps"]),
        algorithm=text["algorithm"],
        stat=text["stat"],
        quality=text["quality"],
        source=text["source"],
        date=text["date"],
        notes=text["notes"],
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    value = _number(text)
    return None if value is None else int(value)
