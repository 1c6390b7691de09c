"""Number formats: float32 to MXFP4, their conversions and roundings, block scaling, and random generators."""

from trnsim.numerics import mx
from trnsim.numerics.casts import cast, from_float32, to_float32
from trnsim.numerics.formats import DTYPES, DType, as_dtype
from trnsim.numerics.random import Xorwow, seed_states
from trnsim.numerics.stochastic import from_float32_stochastic

__all__ = [
    "DTYPES",
    "DType",
    "Xorwow",
    "as_dtype",
    "cast",
    "from_float32",
    "from_float32_stochastic",
    "mx",
    "seed_states",
    "to_float32",
]
