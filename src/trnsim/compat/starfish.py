"""``neuronxcc.starfish.support.dtype`` and ``.util``: helpers that public tests import from the compiler's package."""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim.compat.neuron_dtypes import bfloat16, static_cast


def allclose(
    a: Any,
    b: Any,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
    **kwargs: Any,
) -> bool:
    """``np.allclose`` in float32; ``verbose`` and the like are accepted."""
    del kwargs
    first, second = (np.asarray(x).astype(np.float32) for x in (a, b))
    return bool(np.allclose(first, second, rtol=rtol, atol=atol, equal_nan=equal_nan))


__all__ = ["allclose", "bfloat16", "static_cast"]
