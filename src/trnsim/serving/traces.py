"""Trace files of arrivals, as workloads.

- Mooncake's JSONL (``kvcache-ai/Mooncake``, ``*_trace.jsonl``): ``timestamp`` in milliseconds, ``input_length``,
  ``output_length``, and ``hash_ids``, one for each block of 512 tokens of the prompt, equal where everything up to the
  block's end is equal.
- The Azure LLM inference traces (``Azure/AzurePublicDataset``): CSV with ``TIMESTAMP`` (date and time),
  ``ContextTokens``, ``GeneratedTokens``.
- Any CSV with ``arrival_s``, ``input_tokens`` and ``output_tokens``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np

from trnsim.errors import InputError

from .workload import PS, Workload

MOONCAKE_BLOCK: Final = 512
"""Tokens of a block of ``hash_ids``: Mooncake paper, trace release."""
_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_PLAIN: Final = ("arrival_s", "input_tokens", "output_tokens")


def read_trace(path: str | Path, *, speed: float = 1.0, limit: int | None = None) -> Workload:
    """The workload of a trace file, by its content; times count from the first arrival.

    ``speed``: how many times faster it is replayed. ``limit``: only the first requests. Rows are sorted by arrival.
    Raises ``InputError`` with file, line, and column for what does not hold.
    """
    path = Path(path)
    if not (math.isfinite(speed) and speed > 0):
        raise InputError("read_trace: speed must be positive", value=speed)
    if limit is not None and limit < 1:
        raise InputError("read_trace: limit must be at least 1", value=limit)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            rows = list(_jsonl(path, file) if first.lstrip().startswith("{") else _csv(path, file, first))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file: {error}") from None
    if not rows:
        raise InputError(f"{path}: no requests")
    rows.sort(key=lambda row: row[0])
    rows = rows[:limit]
    start = rows[0][0]
    keys = [row[3] for row in rows]
    return Workload(
        arrival_ps=np.array([round((row[0] - start) / speed * PS) for row in rows], np.int64),
        input_tokens=np.array([row[1] for row in rows], np.int64),
        output_tokens=np.array([row[2] for row in rows], np.int64),
        prefix_keys=keys if any(keys) else None,
        prefix_block_tokens=MOONCAKE_BLOCK if any(keys) else 0,
    )


_Row = tuple[float, int, int, list[int]]


def _jsonl(path: Path, lines: Iterator[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be an object", value=line.strip()[:40])
        time = _field(where, row, "timestamp", _time) / 1e3
        prompt = _field(where, row, "input_length", _count)
        keys = row.get("hash_ids", [])
        if not (isinstance(keys, list) and all(isinstance(k, int) for k in keys)):
            raise InputError(f"{where}: hash_ids: must be a list of whole numbers")
        # The last block may be filled in part only: it is nobody else's.
        yield time, prompt, _field(where, row, "output_length", _count), keys[: prompt // MOONCAKE_BLOCK]


def _csv(path: Path, file: Any, header: str) -> Iterator[_Row]:
    columns = [name.strip() for name in next(csv.reader([header]), [])]
    known = next((names for names in (_AZURE, _PLAIN) if set(names) <= set(columns)), None)
    if known is None:
        wanted = " or ".join(", ".join(names) for names in (_AZURE, _PLAIN))
        raise InputError(f"{path}: unknown columns", value=", ".join(columns)[:120], limit=f"{wanted}; or JSON lines")
    time = _date if known is _AZURE else _time
    reader = csv.DictReader(file, fieldnames=columns)
    next(reader)
    for row in reader:
        where = f"{path}:{reader.line_num}"
        yield (
            _field(where, row, known[0], time),
            _field(where, row, known[1], _count),
            _field(where, row, known[2], _count),
            [],
        )


def _field(where: str, row: dict[str, Any], name: str, parse: Callable[[Any], Any]) -> Any:
    if row.get(name) is None:
        raise InputError(f"{where}: {name}: missing")
    try:
        return parse(row[name])
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {name}: {error}", value=repr(row[name])) from None


def _time(raw: Any) -> float:
    value = float(raw)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("must be a time, 0 or more")
    return value


def _count(raw: Any) -> int:
    value = float(raw)
    if value != int(value) or value < 1:
        raise ValueError("must be a whole number, 1 or more")
    return int(value)


def _date(raw: Any) -> float:
    text = str(raw).strip()
    # The traces give seven digits of a second; Python reads six.
    head, dot, digits = text.partition(".")
    zone = next((digits[i:] for i, c in enumerate(digits) if not c.isdigit()), "")
    digits = digits[: len(digits) - len(zone)]
    moment = datetime.fromisoformat(head + zone.replace("Z", "+00:00"))
    # Without a zone, any will do that has no summer time: only differences count.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return moment.timestamp() + (float(f"0.{digits}") if dot and digits else 0.0)
