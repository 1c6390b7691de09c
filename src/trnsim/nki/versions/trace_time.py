"""``nki.tensor`` of NKI 0.2 (``nki.meta.tensor`` from SDK 2.28 on): constants made while a kernel is traced.

They are what ``nl.shared_constant`` takes, and here NumPy arrays, which have the arithmetic that the documentation
shows (stub of ``shared_constant`` at v2.28.0). Defaults and shapes are those of that release's public front end
(leanprover/KLR, ``KLR/Trace/Tensor.lean``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.numerics import as_dtype


def zeros(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Zeros of ``shape`` and ``dtype``."""
    return np.zeros(tuple(shape), as_dtype(dtype).numpy)


def identity(n: int, dtype: Any = "float32") -> NDArray[Any]:
    """The identity matrix of ``n`` rows and columns."""
    return np.eye(n).astype(as_dtype(dtype).numpy)


def arange(start: int, stop: int, step: int = 1, dtype: Any = "float32") -> NDArray[Any]:
    """``start``, ``start + step`` and so on below ``stop``, in one partition: shape (1, numbers)."""
    return np.arange(start, stop, step).astype(as_dtype(dtype).numpy)[np.newaxis]


__all__ = ["arange", "identity", "zeros"]
