"""Columns that grow: the steps of a replica, and where each request got its tokens."""

from __future__ import annotations

from typing import Final

import numpy as np

from .cost import Integers

STEP_COLUMNS: Final = (
    "start_ps",
    "end_ps",
    "prefill_tokens",
    "prefill_sequences",
    "decode_sequences",
    "context_tokens",
    "used_units",
    "output_tokens",
)
"""Of a step: when; prompt tokens and prompts; sequences that decode and the sum of their contexts before the step;
blocks (or slots) of the cache that sequences hold during it; output tokens that it yields."""


class Columns:
    """A table of int64 columns to which rows are added at the end."""

    def __init__(self, width: int) -> None:
        self._data: Integers = np.empty((width, 1024), np.int64)
        self.rows = 0

    def extend(self, count: int) -> Integers:
        """Add ``count`` rows and return the view [columns, count] to fill."""
        if self.rows + count > self._data.shape[1]:
            size = max(2 * self._data.shape[1], self.rows + count)
            grown = np.empty((self._data.shape[0], size), np.int64)
            grown[:, : self.rows] = self._data[:, : self.rows]
            self._data = grown
        view = self._data[:, self.rows : self.rows + count]
        self.rows += count
        return view

    def append(self, *row: int) -> None:
        """Add one row."""
        self.extend(1)[:, 0] = row

    @property
    def data(self) -> Integers:
        """int64 [columns, rows]."""
        return self._data[:, : self.rows]


class Emissions:
    """When each request got tokens.

    ``ends[i]`` is the end of the replica's decode step i. A request takes part in a range of decode steps at a time
    (``ranges``: request, first, last + 1); tokens that come out of a prompt's computation are
    ``single`` (request, time).
    """

    def __init__(self) -> None:
        self.ends = Columns(1)
        self.ranges = Columns(3)
        self.single = Columns(2)
