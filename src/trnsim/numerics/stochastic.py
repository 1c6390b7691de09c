"""Stochastic rounding: up or down with probabilities proportional to the distance from the other neighbour.

NeuronCores offer it beside rounding to nearest even when they convert float32 to a narrower float (NKI's Trainium3
architecture guide on results in PSUM). The mean of the rounded values is the value, and a value that the format has
is unchanged. The random bits are not a device's, see ``trnsim.numerics.random``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trnsim.errors import InputError
from trnsim.numerics.casts import from_float32

if TYPE_CHECKING:
    from trnsim.numerics.formats import DType
    from trnsim.numerics.random import Words

Array = np.ndarray[Any, np.dtype[Any]]


class LaneGenerator(Protocol):
    """One of the hardware's generators (``random.Xorwow``)."""

    def next(self, n: int) -> Words:
        """Return the next ``n`` words of each lane."""


def from_float32_stochastic(
    array: Array, dtype: DType, rng: LaneGenerator | np.random.Generator, out: Array | None = None
) -> Array:
    """Return float32 ``array`` rounded stochastically to ``dtype``, a floating format.

    Between the largest finite value and the next step beyond it, a value is rounded to either; what is rounded beyond
    becomes an infinity or NaN as in ``from_float32``. Each element takes one word of ``rng``; the first dimension of
    ``array`` is a hardware generator's lanes. ``out`` as in ``from_float32``. Raises ``InputError`` for other formats.
    """
    if dtype.kind != "float":
        raise InputError(f"stochastic rounding is for floating formats, not {dtype}")
    if array.dtype != np.float32:
        raise InputError(f"an array of {array.dtype} does not hold float32")
    words = _words(array, rng)
    rounded = _wide(array, dtype, words) if dtype.exponent_bits == 8 else _narrow(array, dtype, words)
    return from_float32(rounded, dtype, out)


def _words(array: Array, rng: LaneGenerator | np.random.Generator) -> Words:
    if isinstance(rng, np.random.Generator):
        return np.asarray(rng.integers(0, 1 << 32, size=array.shape, dtype=np.uint32))
    if array.ndim == 0:
        raise InputError("an array without dimensions has no lanes")
    words = rng.next(math.prod(array.shape[1:]))
    if len(words) != len(array):
        raise InputError("the generator has another number of lanes than the array", value=len(words), limit=len(array))
    return words.reshape(array.shape)


def _wide(array: Array, dtype: DType, words: Words) -> Array:
    """Round to a format with float32's exponents: add random bits below its last one, then drop them."""
    below = np.uint32((1 << (23 - dtype.mantissa_bits)) - 1)
    bits = (words & below) + array.view(np.uint32)
    bits &= ~below
    rounded = bits.view(np.float32)
    nan = np.isnan(array)
    if nan.any():
        rounded[nan] = np.nan
    return rounded


def _narrow(array: Array, dtype: DType, words: Words) -> Array:
    """Round to a format with fewer exponents, whose subnormals are not float32's; exact in float64."""
    smallest = 2 - (1 << (dtype.exponent_bits - 1))  # exponent of the smallest normal number
    exponent = ((array.view(np.uint32) >> np.uint32(23)) & np.uint32(0xFF)).astype(np.int64) - 127
    np.maximum(exponent, smallest, out=exponent)
    step = ((exponent + (1023 - dtype.mantissa_bits)) << 52).view(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the largest float32; signalling NaN
        steps = np.abs(array, dtype=np.float64)
        steps /= step
        steps += words * 2.0**-32
        np.floor(steps, out=steps)
        steps *= step
        return np.asarray(np.copysign(steps, array), np.float32)
