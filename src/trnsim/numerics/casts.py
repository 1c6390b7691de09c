"""Conversions between number formats, through float32.

The engines of a NeuronCore compute in float32 and convert what they read and write; a DMA that casts does the same
(NKI documentation, "NKI data types" and ``nki.isa.dma_copy``). Rounding is to nearest, ties to even. Too large a value
becomes an infinity where the format has one, NaN where it has only that (``float8_e4m3fn``, ``float8_e8m0fnu``), and
the nearest limit in integers, which NKI rounds and saturates since its release 0.6. NaN becomes 0 in an integer.
``float8_e8m0fnu`` has powers of two only, no zero and no sign: a tie goes to the larger power, what is below 2**-127
becomes that, and zero and negative values become NaN.

Each conversion is the fastest exact one of those measured on 128 x 512 elements: ml_dtypes' own for bfloat16, NumPy's
to float16, a table of all encodings for the other narrow floats, integer arithmetic on float32's bits for tfloat32. A
NaN's sign and payload are not specified.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from trnsim.errors import HardwareError, InputError
from trnsim.numerics.formats import DType, bfloat16, bool_, float32, tfloat32

Array = np.ndarray[Any, np.dtype[Any]]

_FLOAT32 = np.dtype(np.float32)
_ONE = np.uint32(1)


def to_float32(array: Array, dtype: DType, out: Array | None = None) -> Array:
    """Return the values of ``array``, stored as ``dtype``, in float32.

    Exact, but for integers of more than 24 bits, which are rounded to nearest even as the hardware does. Of a
    ``bool``, any byte but 0 is 1. ``out`` is a float32 array of the same shape to write into, with any strides;
    without it the result may be ``array`` itself. Raises ``HardwareError`` for packed formats (see ``mx.unpack``).
    """
    _check(array, dtype, dtype.numpy)
    if dtype.numpy is _FLOAT32:
        return array if out is None else _store(array, out)
    if array.ndim == 0:  # NumPy's arithmetic turns arrays without dimensions into scalars
        return _store(to_float32(array.reshape(1), dtype).reshape(()), out)
    if dtype.kind in ("float", "scale") and dtype is not bfloat16:
        codes: np.ndarray[Any, np.dtype[np.uint16]] = array.view(f"u{dtype.itemsize}")
        # mode="wrap" saves the check of bounds: every code has its value
        return _store(_values(dtype).take(codes, mode="wrap"), out)
    if dtype is bool_:
        array = array.view(np.bool_) if array.dtype == np.bool_ else np.not_equal(array, 0)
    if out is None:
        return _compact(array).astype(np.float32)
    np.copyto(out, _compact(array), casting="unsafe")
    return out


def from_float32(array: Array, dtype: DType, out: Array | None = None) -> Array:
    """Return float32 ``array`` rounded to nearest even in ``dtype``; see the module for overflow and NaN.

    ``out`` is an array of type ``dtype.numpy`` and the same shape to write into, with any strides; without it the
    result is new, or ``array`` itself for float32. Raises ``HardwareError`` for packed formats.
    """
    _check(array, dtype, _FLOAT32)
    if array.ndim == 0:
        return _store(from_float32(array.reshape(1), dtype).reshape(()), out)
    if dtype is float32:
        return array if out is None else _store(array, out)
    if dtype.itemsize == 2 and dtype.kind == "float":
        return _to_half(array, dtype, out)
    if dtype is tfloat32:
        return _to_tfloat32(array, out)
    if dtype is bool_:
        if out is None:
            return np.not_equal(array, 0).view(np.uint8)
        np.not_equal(array, 0, out=out.view(np.bool_))
        return out
    if dtype.kind in ("int", "uint"):
        return _store(_to_integer(array, dtype), out)
    return _to_table(array, dtype, out)


def cast(array: Array, src: DType, dst: DType, out: Array | None = None) -> Array:
    """Convert ``array``, stored as ``src``, to ``dst``, as an engine or a DMA does.

    Equal formats are copied bit for bit. Any other pair goes through float32, so an int32 beyond 2**24 loses bits.
    ``out`` as in ``from_float32``; without it the result is new. Raises ``HardwareError`` when one format is packed and
    the other differs: such data is only copied, or converted by ``quantize_mx``.
    """
    if src is dst:
        if out is None:
            return array.copy()
        return _store(array, out)
    if src.kind == "packed" or dst.kind == "packed":
        raise HardwareError(f"cannot cast {src} to {dst}: packed formats are only copied", value=f"{src} to {dst}")
    if dst.numpy is _FLOAT32 and dst is not tfloat32:
        result = to_float32(array, src, out)
    else:
        result = from_float32(to_float32(array, src), dst, out)
    return result.copy() if result is array else result


def _check(array: Array, dtype: DType, stored: np.dtype[Any]) -> None:
    if dtype.kind == "packed":
        raise HardwareError(f"{dtype} holds four numbers in one element and is not cast", value=dtype)
    if array.dtype != stored and not (dtype is bool_ and array.dtype == np.bool_):
        raise InputError(f"an array of {array.dtype} does not hold {dtype if stored is dtype.numpy else 'float32'}")


def _store(result: Array, out: Array | None) -> Array:
    if out is None:
        return result
    np.copyto(out, result)
    return out


def _compact(array: Array) -> Array:
    """Copy of an array with gaps in its rows: ml_dtypes converts those seven times slower than contiguous ones."""
    return array if array.itemsize in array.strides else array.copy(order="K")


@cache
def _values(dtype: DType) -> Array:
    """Value of every encoding of a format of at most 16 bits."""
    codes = np.arange(1 << (8 * dtype.itemsize), dtype=np.uint32).astype(f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):  # signalling NaN
        return codes.view(dtype.numpy).astype(np.float32)


@cache
def _codes(dtype: DType) -> Array:
    """Encoding of each float32 that ``_to_table`` tells apart, for a format of 8 bits or fewer."""
    if dtype.kind == "scale":
        return _scale_codes()
    with np.errstate(all="ignore"):
        values = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
        return values.astype(dtype.numpy).view(np.uint8)


def _scale_codes() -> Array:
    """``_codes`` of ``float8_e8m0fnu``, which ml_dtypes 0.5 and 0.6 round differently.

    They differ in ties (0.5: to the even code; 0.6: up), and both round up all between 2**-127 and 2**-126.
    """
    index = np.arange(1 << 16)
    half = np.where(index < 1 << 7, 1 << 5, 1 << 6)  # 2**-127, the smallest scale, is subnormal in float32
    codes: np.ndarray[Any, np.dtype[np.int64]] = np.minimum((index + half) >> 7, 0xFF)
    codes[0] = 0xFF
    codes[1 << 15 :] = 0xFF
    return codes.astype(np.uint8)


def _to_table(array: Array, dtype: DType, out: Array | None) -> Array:
    """Round through a table of 2**16 entries.

    The index is the upper half of the float32, its last bit set when the lower half is not zero ("round to odd"). It
    keeps 7 bits of mantissa, where a value or a midpoint of these formats has at most 5: so it falls on the same side
    of every midpoint as the float32 does, and on it exactly when that does.
    """
    bits = array.view(np.uint32)
    index = bits & np.uint32(0xFFFF)
    index += np.uint32(0xFFFF)
    index |= bits
    index >>= np.uint32(16)
    return _store(_codes(dtype).take(index, mode="wrap").view(dtype.numpy), out)


def _to_half(array: Array, dtype: DType, out: Array | None) -> Array:
    """Round to float16 or bfloat16 with NumPy's or ml_dtypes' own conversion."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities; signalling NaN
        array = _compact(array)
        if out is not None and out.strides[-1] == out.itemsize and array.strides[-1] == array.itemsize:
            np.copyto(out, array, casting="unsafe")
            return out
        return _store(array.astype(dtype.numpy), out)


def _to_tfloat32(array: Array, out: Array | None) -> Array:
    nan = np.isnan(array)
    bits = array.view(np.uint32)
    rounded = bits >> np.uint32(13)
    rounded &= _ONE
    rounded += bits
    rounded += np.uint32(0xFFF)
    rounded &= np.uint32(0xFFFFE000)
    result = rounded.view(np.float32)
    if nan.any():
        result[nan] = np.nan
    return _store(result, out)


def _to_integer(array: Array, dtype: DType) -> Array:
    rounded: Array = np.rint(array)
    nan = np.isnan(rounded)
    if nan.any():
        rounded[nan] = 0
    # The limit of 32-bit integers lies between two float32: stop at the lower, and set what was beyond it.
    top = np.float32(dtype.max)
    if float(top) > dtype.max:
        top = np.nextafter(top, np.float32(0))
    beyond = rounded > top if dtype.itemsize == 4 else None
    np.clip(rounded, np.float32(dtype.min), top, out=rounded)
    result: Array = rounded.astype(dtype.numpy)
    if beyond is not None and beyond.any():
        result[beyond] = dtype.max
    return result
