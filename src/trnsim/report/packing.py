"""Columns of integers in few bytes, for a page that unpacks them in the browser (``assets/data.js``).

A column is written as differences where it rises slowly, then as planes (all lowest bytes, then all second bytes, ...):
most planes are nearly constant, and deflate makes little of them.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


class Packer:
    """Collects columns; ``manifest()`` describes them in order and ``text()`` is all of them, deflated, as base64."""

    def __init__(self) -> None:
        self._manifest: list[dict[str, Any]] = []
        self._planes: list[bytes] = []

    def add(self, name: str, values: Any, *, delta: bool = False) -> None:
        """Add a column of integers; negative ones are kept, and cost eight bytes before compression."""
        column = np.asarray(values, dtype=np.int64)
        low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
        width = next((w for w in (1, 2, 4) if low >= 0 and high < 1 << 8 * w), 8)
        if delta:
            # Differences wrap around at the column's width, and so does the sum that undoes them.
            column = np.diff(column, prepend=0)
        raw = column.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
        self._manifest.append({"name": name, "width": width, "length": len(column), "delta": delta})
        self._planes.append(np.ascontiguousarray(raw.T).tobytes())

    def add_all(self, prefix: str, columns: Mapping[str, Any], deltas: tuple[str, ...] = ()) -> None:
        for name, values in columns.items():
            self.add(f"{prefix}.{name}", values, delta=name in deltas)

    def manifest(self) -> list[dict[str, Any]]:
        return self._manifest

    def text(self) -> str:
        return base64.b64encode(zlib.compress(b"".join(self._planes), 6)).decode()


def unpack(manifest: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """The columns back, as int64; what ``assets/data.js`` does."""
    data = zlib.decompress(base64.b64decode(text))
    result, at = {}, 0
    for column in manifest:
        width, length = column["width"], column["length"]
        raw = np.zeros((length, 8), np.uint8)
        raw[:, :width] = np.frombuffer(data, np.uint8, width * length, at).reshape(width, length).T
        values: Any = raw.view("<i8").ravel().astype(np.int64)
        if column["delta"]:
            values = np.cumsum(values)
            values = values if width == 8 else values & ((1 << 8 * width) - 1)
        result[column["name"]] = values
        at += width * length
    return result
