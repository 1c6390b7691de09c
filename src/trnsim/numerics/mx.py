"""Block-scaled formats: OCP Microscaling (MX) v1.0, as NeuronCore-v4 lays them out.

Thirty-two elements share one scale, a power of two in ``float8_e8m0fnu``. On the chip a group is 8 partitions by 4
elements, the 4 packed in one ``_x4`` element (``nki.isa.quantize_mx``, ``nki.isa.nc_matmul_mx``; NKI's "MXFP matmul"
deep dive). Of 32 partitions, a quadrant, the 4 rows of scales are in the quadrant's first 4 partitions.

The scale of a group whose largest magnitude is ``a``, for an element format whose largest exponent is Emax (8 for
``float8_e4m3fn``, 15 for ``float8_e5m2``, 2 for ``float4_e2m1fn``), is at least 2**-127 and

* ``"neuron"``: 2**(floor(log2 a) - (Emax - 1)), what ``quantize_mx`` does since NKI 0.5 (Neuron 2.31 release notes).
  It leaves room to round the largest value up.
* ``"ocp"``: 2**(floor(log2 a) - Emax), the sample conversion of the MX specification, section 6.3, and of
  ``quantize_mx`` before. The largest values may saturate.

Elements are the values over the scale, rounded to nearest even and saturated. A group of zeros has the scale 2**-127.
What becomes of infinities and NaN is not documented: here their group gets the scale NaN (0xFF), by which the
specification makes all of it NaN, and elements 0.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

from trnsim.errors import HardwareError, InputError
from trnsim.numerics.casts import from_float32, to_float32
from trnsim.numerics.formats import DType, float4_e2m1fn

Array = np.ndarray[Any, np.dtype[Any]]
Rule = Literal["neuron", "ocp"]

#: Elements that share a scale; on the chip, partitions and elements of a partition.
GROUP = 32
GROUP_PARTITIONS = 8
GROUP_ELEMENTS = 4

#: Partitions of a quadrant, whose scales are in its first rows.
QUADRANT = 32

SCALE_NAN = 0xFF


def quantize(values: Array, dtype: DType, rule: Rule = "neuron") -> tuple[Array, Array]:
    """Quantize ``(P, 4 F)`` float32 to packed ``dtype``, in groups of 8 partitions by 4 elements.

    Returns the packed elements, ``(P, F)`` of ``dtype.numpy``, and the scales, ``(P / 8, F)`` uint8 (the encodings of
    ``float8_e8m0fnu``); ``spread_scales`` puts them where the hardware wants them. P is a multiple of 8.
    Raises ``HardwareError`` for formats that are not packed and shapes that do not divide into groups.
    """
    _require_packed(dtype)
    if values.ndim != 2 or values.shape[0] % GROUP_PARTITIONS or values.shape[1] % GROUP_ELEMENTS:
        raise HardwareError("MX data has whole groups of 8 partitions x 4 elements", value=values.shape, limit=(8, 4))
    partitions, elements = values.shape
    # Rows of a group stay whole until the last step: NumPy is slow over innermost dimensions of 4.
    groups = values.reshape(partitions // 8, 8, elements)
    largest = np.abs(groups).max(axis=1).reshape(partitions // 8, elements // 4, 4).max(axis=2)
    scales = _scales(largest, dtype.element, rule)
    codes = _elements(groups, scales.repeat(4, axis=1)[:, None, :], dtype.element)
    return pack(codes.reshape(partitions, elements), dtype), scales


def dequantize(packed: Array, scales: Array, dtype: DType) -> Array:
    """Return the float32 values ``(P, 4 F)`` of packed elements ``(P, F)`` with scales ``(P / 8, F)``, as uint8 or
    ``float8_e8m0fnu``.

    A product beyond float32's range is an infinity; one of a NaN scale is NaN.
    """
    _require_packed(dtype)
    partitions, columns = packed.shape
    expected = (partitions // GROUP_PARTITIONS, columns)
    if scales.shape != expected or partitions % GROUP_PARTITIONS:
        raise HardwareError("MX data has one scale for 8 partitions of a column", value=scales.shape, limit=expected)
    groups = unpack(packed, dtype).reshape(len(scales), 8, 4 * columns)
    with np.errstate(over="ignore", invalid="ignore"):
        groups *= _scale_values(scales).repeat(4, axis=1)[:, None, :]
    return groups.reshape(partitions, 4 * columns)


def quantize_blocks(values: Array, element: DType, rule: Rule = "neuron") -> tuple[Array, Array]:
    """Quantize float32 in groups of 32 along the last dimension, as checkpoints are stored.

    Returns the elements, of the shape of ``values`` and type ``element.numpy``, and the scales, uint8, a 32nd as many.
    """
    if values.ndim == 0 or values.shape[-1] % GROUP:
        raise InputError("blocks have 32 elements of the last dimension", value=values.shape, limit=GROUP)
    groups = values.reshape(*values.shape[:-1], values.shape[-1] // GROUP, GROUP)
    scales = _scales(np.abs(groups).max(axis=-1), element, rule)
    return _elements(groups, scales[..., None], element).reshape(values.shape), scales


def dequantize_blocks(elements: Array, scales: Array, element: DType) -> Array:
    """Return the float32 values of what ``quantize_blocks`` made."""
    groups = to_float32(elements, element).reshape(*scales.shape, GROUP)
    with np.errstate(over="ignore", invalid="ignore"):
        return (groups * _scale_values(scales)[..., None]).reshape(elements.shape)


def spread_scales(scales: Array, out: Array | None = None) -> Array:
    """Put scales ``(P / 8, F)`` where ``quantize_mx`` writes them: ``(rows, F)``, zeros where there are none.

    Scale row ``r`` goes to partition ``32 (r // 4) + r % 4``. ``out`` has that many partitions or more (of the last
    quadrant, those with scales suffice) and is written only there; without it the result has whole quadrants.
    """
    rows = _scale_rows(len(scales))
    if out is None:
        out = np.zeros((-(-len(scales) // 4) * QUADRANT, *scales.shape[1:]), scales.dtype)
    out[rows] = scales
    return out


def gather_scales(tile: Array, partitions: int) -> Array:
    """Return the scales ``(P / 8, F)`` of P = ``partitions`` partitions from a tile laid out by ``spread_scales``."""
    return np.asarray(tile[_scale_rows(partitions // GROUP_PARTITIONS)])


def pack(elements: Array, dtype: DType) -> Array:
    """Pack elements, ``(..., 4 F)`` of type ``dtype.element.numpy``, in fours: ``(..., F)``, first element lowest."""
    _require_packed(dtype)
    if elements.dtype != dtype.element.numpy:
        raise InputError(f"an array of {elements.dtype} does not hold {dtype.element}")
    if elements.ndim == 0 or elements.shape[-1] % 4:
        raise InputError("elements are packed in fours along the last dimension", value=elements.shape, limit=4)
    codes = np.ascontiguousarray(elements).view(np.uint8)
    if dtype.element is not float4_e2m1fn:
        return codes.view(dtype.numpy)
    pairs = codes[..., 0::2] & np.uint8(0xF) | codes[..., 1::2] << np.uint8(4)
    return pairs.view(dtype.numpy)


def unpack(packed: Array, dtype: DType) -> Array:
    """Return the float32 values of packed elements: ``(..., F)`` gives ``(..., 4 F)``, a new array."""
    _require_packed(dtype)
    if packed.dtype != dtype.numpy:
        raise InputError(f"an array of {packed.dtype} does not hold {dtype}")
    codes = np.ascontiguousarray(packed).view(np.uint8)
    shape = (*packed.shape[:-1], 4 * packed.shape[-1])
    if dtype.element is float4_e2m1fn:
        return _pair_values().take(codes, axis=0, mode="wrap").reshape(shape)
    return to_float32(codes.view(dtype.element.numpy), dtype.element).reshape(shape)


def _scales(largest: Array, element: DType, rule: Rule) -> Array:
    """Return the scales, uint8, of groups with these largest magnitudes."""
    # frexp has mantissas from 0.5 to 1, where formats have them from 1 to 2: its exponent is one more.
    exponents = np.frexp(largest)[1] - 1 - _shift(element, rule)
    exponents[largest == 0] = -127
    np.maximum(exponents, -127, out=exponents)
    exponents += 127
    exponents[~np.isfinite(largest)] = SCALE_NAN
    return exponents.astype(np.uint8)


def _elements(values: Array, scales: Array, element: DType) -> Array:
    """Return the elements of values with these scales, which broadcast to them."""
    special = scales == SCALE_NAN
    with np.errstate(invalid="ignore"):  # signalling NaN
        scaled: Array = values * _scale_values(np.where(special, np.uint8(127), np.uint8(254) - scales))
    if special.any():
        np.copyto(scaled, np.float32(0), where=special)
    limit = np.float32(element.max)
    return from_float32(np.clip(scaled, -limit, limit, out=scaled), element)


def _shift(element: DType, rule: Rule) -> int:
    """Return how far below the largest value's exponent the scale's is."""
    largest = int(np.frexp(element.max)[1]) - 1
    if rule == "neuron":
        return largest - 1
    if rule == "ocp":
        return largest
    raise InputError("the rules of MX scales are 'neuron' and 'ocp'", value=rule)


@cache
def _powers() -> Array:
    """Return the value of every encoding of a scale."""
    return np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan))


def _scale_values(scales: Array) -> Array:
    return _powers().take(scales.view(np.uint8), mode="wrap")


@cache
def _pair_values() -> Array:
    """Return the values of the two 4-bit elements of every byte."""
    codes = np.arange(256, dtype=np.uint8)
    nibbles = np.stack([codes & np.uint8(0xF), codes >> np.uint8(4)], axis=1)
    return nibbles.view(float4_e2m1fn.numpy).astype(np.float32)


def _scale_rows(count: int) -> Array:
    rows = np.arange(count)
    return rows // 4 * QUADRANT + rows % 4


def _require_packed(dtype: DType) -> None:
    if dtype.kind != "packed":
        raise HardwareError(f"MX elements are packed in fours; {dtype} is not", value=dtype)
