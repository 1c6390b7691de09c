"""``neuronxcc.nki.language.constants``: what kernels take from it."""

from __future__ import annotations

from typing import Any

from trnsim.numerics import as_dtype


def sizeinbytes(dtype: Any) -> int:
    """Bytes of an element."""
    return as_dtype(dtype).itemsize
