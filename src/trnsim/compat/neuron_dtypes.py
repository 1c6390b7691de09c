"""``neuron_dtypes``: number formats for the host side of tests, as NumPy types.

The vendor's package is not public; this has the names that public tests use. The packed ``_x4`` formats are formats of
trnsim; their arrays have record types (``DType.host``), or are unsigned integers of the packed size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from trnsim.numerics import DTYPES, DType, as_dtype, from_float32, mx, to_float32

bfloat16 = ml_dtypes.bfloat16
float8_e3m4 = ml_dtypes.float8_e3m4
float8_e4m3 = ml_dtypes.float8_e4m3
float8_e4m3fn = ml_dtypes.float8_e4m3fn
float8_e5m2 = ml_dtypes.float8_e5m2
float8_e8m0fnu = ml_dtypes.float8_e8m0fnu
float8_e4m3fn_x4 = as_dtype("float8_e4m3fn_x4")
float8_e5m2_x4 = as_dtype("float8_e5m2_x4")
float4_e2m1fn_x4 = as_dtype("float4_e2m1fn_x4")

_NAMES = (
    "bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "bfloat16", "tfloat32",
    "float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fn_x4",
    "float8_e5m2_x4", "float4_e2m1fn_x4",
)  # fmt: skip
_BLOCK = 1 << 15  # elements
_THROUGH_FLOAT32 = (np.dtype(np.float32), np.dtype(np.float64))
_NARROW = tuple(np.dtype(t) for t in (float8_e3m4, float8_e4m3, float8_e4m3fn, float8_e5m2))


def name_packed_types() -> None:
    """Let ``str(array.dtype)`` of a packed format be the format's name: suites look formats up by it.

    NumPy prints a record type as the list of its fields, and a type with a text of its own takes a compiled extension.
    The one function of NumPy that prints records is therefore wrapped; types other than ours are printed as before.
    """
    from numpy._core import _dtype as printing

    inner = printing._struct_str
    if getattr(inner, "names_packed_types", False):
        return
    names = {dtype.host.type: str(dtype) for dtype in DTYPES if dtype.kind == "packed"}

    def text(dtype: np.dtype[Any], include_align: bool) -> str:
        return names.get(dtype.type) or str(inner(dtype, include_align))

    text.names_packed_types = True  # type: ignore[attr-defined]
    printing._struct_str = text


def formats() -> dict[str, DType]:
    """Every format by its name."""
    return {name: as_dtype(name) for name in _NAMES}


def _kind(dtype: Any) -> DType | None:
    """Our format for ``dtype``, or None for a NumPy type that hardware does not have (float64)."""
    if isinstance(dtype, DType):
        return dtype
    try:
        numpy_type = np.dtype(dtype)
    except TypeError:
        return as_dtype(dtype)
    return None if numpy_type.itemsize == 8 else as_dtype(numpy_type)


def static_cast(value: Any, dtype: Any) -> NDArray[Any]:
    """``value`` in another number format.

    Four numbers of the last dimension become one element of a packed format, and one becomes four numbers.

    Raises:
        InputError: no such format.
    """
    array = np.asarray(value)
    target = _kind(dtype)
    if array.dtype.kind == "V" and array.dtype.names:
        source = as_dtype(array.dtype)
        if target is source:
            return array
        array = mx.unpack(np.ascontiguousarray(array).view(source.numpy), source)
    if target is None:
        return array.astype(dtype)
    if target.kind == "packed":
        if target.numpy == array.dtype:
            return array.view(target.host)
        numbers = array.astype(np.float32)
        return mx.pack(from_float32(numbers, target.element), target).view(target.host)
    if target.itemsize == 1 and target.kind == "float" and array.dtype in _THROUGH_FLOAT32:
        # Several times faster than ml_dtypes, and the same numbers: it too goes through float32.
        return _in_blocks(
            array, target.numpy, lambda x, out: from_float32(x.astype(np.float32, copy=False), target, out)
        )
    if array.dtype in _NARROW and target.numpy == np.float32:
        source = as_dtype(array.dtype)
        return _in_blocks(array, target.numpy, lambda x, out: to_float32(x, source, out))
    return array.astype(target.numpy)


def _in_blocks(
    array: NDArray[Any], dtype: np.dtype[Any], convert: Callable[[NDArray[Any], NDArray[Any]], object]
) -> NDArray[Any]:
    """``convert(part, its result)`` over parts that stay in a core's cache."""
    result = np.empty(array.shape, dtype)
    source, target = np.ascontiguousarray(array).reshape(-1), result.reshape(-1)
    with np.errstate(over="ignore"):
        for start in range(0, source.size, _BLOCK):
            convert(source[start : start + _BLOCK], target[start : start + _BLOCK])
    return result


def sizeinbytes(dtype: Any) -> int:
    """Bytes of one stored element."""
    kind = _kind(dtype)
    return int(np.dtype(dtype).itemsize) if kind is None else kind.itemsize


def is_float_type(dtype: Any) -> bool:
    """Whether a format is a floating one."""
    kind = _kind(dtype)
    return bool(np.issubdtype(np.dtype(dtype), np.floating)) if kind is None else kind.kind in ("float", "packed")


def finfo(dtype: Any) -> Any:
    """Limits of a floating format."""
    kind = _kind(dtype)
    return ml_dtypes.finfo(np.dtype(dtype) if kind is None else kind.numpy)  # type: ignore[no-untyped-call]


__all__ = [
    "bfloat16", "finfo", "float4_e2m1fn_x4", "float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fn_x4",
    "float8_e5m2", "float8_e5m2_x4", "float8_e8m0fnu", "is_float_type", "sizeinbytes", "static_cast",
]  # fmt: skip
