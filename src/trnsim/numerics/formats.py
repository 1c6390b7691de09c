"""The number formats of a NeuronCore.

The list, the names and the bit layouts are those of the NKI documentation (``nki.language`` data types; AWS Neuron SDK,
"NKI data types"), the block-scaled formats those of the OCP Microscaling (MX) specification v1.0. AWS's "configurable
fp8" (cFP8) is the choice among ``float8_e3m4``, ``float8_e4m3`` and ``float8_e5m2``. Storage types come from NumPy and
ml_dtypes, which agree bit for bit with the documented layouts; the packed ``_x4`` types, which neither has, are stored
in unsigned integers with element 0 in the lowest bits. Outside the machine their arrays have record types (``host``),
so that an array says which format it holds; ``np.dtype("float8_e4m3fn_x4")`` is one of them.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from trnsim.errors import InputError


class DType(str):
    """A number format. Its text is NKI's name, so it may be used wherever NKI 0.6 has a string.

    Each format exists once: ``DType("bfloat16") is bfloat16``, so formats are cheap keys. Besides strings, a format
    equals the NumPy or ml_dtypes type of the same name (``float32 == np.float32``).

    Attributes:
        itemsize: bytes of one element as stored (of four, for the packed types).
        numpy: ``np.dtype`` it is stored in. ``tfloat32`` is stored in float32, ``bool`` in uint8, the packed types in
            uint32 or uint16.
        host: ``np.dtype`` of arrays of this format outside the machine: that of ``numpy``, but for the packed types a
            record of bytes, which no arithmetic takes for a number.
        kind: ``"float"``, ``"int"``, ``"uint"``, ``"bool"``, ``"packed"`` or ``"scale"`` (``float8_e8m0fnu``).
        max, min: largest and smallest finite value (of one element, for the packed types).
        exponent_bits, mantissa_bits: 0 where there are none.
        has_inf, has_nan: whether the format encodes infinities and NaN.
        elements: numbers in one stored element: 4 for the packed types, else 1.
        element: the format of one packed element; the format itself where nothing is packed.
        index: position in ``DTYPES``; stable within a process.

    """

    __slots__ = (
        "element",
        "elements",
        "exponent_bits",
        "has_inf",
        "has_nan",
        "host",
        "index",
        "itemsize",
        "kind",
        "mantissa_bits",
        "max",
        "min",
        "numpy",
    )

    itemsize: int
    numpy: np.dtype[Any]
    host: np.dtype[Any]
    kind: str
    max: float
    min: float
    exponent_bits: int
    mantissa_bits: int
    has_inf: bool
    has_nan: bool
    elements: int
    element: DType
    index: int  # type: ignore[assignment]  # the number of a format is asked for more often than str.index

    def __new__(cls, name: str) -> DType:  # noqa: PYI034  # one object a format, so not a new self
        """Return the format of this name; raise ``InputError`` if there is none."""
        known = _BY_NAME.get(name)
        if known is None:
            raise _unknown(name)
        return known

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, str):
            return str.__eq__(self, other)
        try:
            return _BY_TYPE.get(other) is self
        except TypeError:  # not hashable, so no type
            return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self} is a constant: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self} is a constant: cannot delete {name}")

    def __reduce__(self) -> tuple[type[DType], tuple[str]]:
        return DType, (str(self),)


_BY_NAME: dict[str, DType] = {}
_BY_TYPE: dict[object, DType] = {}


def _define(
    name: str,
    numpy: Any,
    kind: str,
    limits: tuple[float, float],
    bits: tuple[int, int] = (0, 0),
    *,
    has_inf: bool = False,
    has_nan: bool = False,
    element: DType | None = None,
    own_type: bool = True,
    host: np.dtype[Any] | None = None,
) -> DType:
    """Make a format; ``own_type`` says that its storage type stands for this format and no other."""
    dtype = str.__new__(DType, name)
    storage: np.dtype[Any] = np.dtype(numpy)
    values: dict[str, object] = {
        "itemsize": storage.itemsize,
        "numpy": storage,
        "host": storage if host is None else host,
        "kind": kind,
        "min": limits[0],
        "max": limits[1],
        "exponent_bits": bits[0],
        "mantissa_bits": bits[1],
        "has_inf": has_inf,
        "has_nan": has_nan,
        "elements": 4 if element is not None else 1,
        "element": dtype if element is None else element,
        "index": len(_BY_NAME),
    }
    for attribute, value in values.items():
        object.__setattr__(dtype, attribute, value)
    _BY_NAME[name] = dtype
    if own_type:
        _BY_TYPE[storage] = dtype
        _BY_TYPE[storage.type] = dtype
    return dtype


def _float(
    name: str,
    numpy: Any,
    maximum: float,
    bits: tuple[int, int],
    *,
    has_inf: bool = True,
    has_nan: bool = True,
    own_type: bool = True,
) -> DType:
    limits = (-maximum, maximum)
    return _define(name, numpy, "float", limits, bits, has_inf=has_inf, has_nan=has_nan, own_type=own_type)


def _packed(name: str, storage: Any, element: DType) -> DType:
    host = _record(name, np.dtype(storage).itemsize)
    packed = _define(
        name,
        storage,
        "packed",
        (element.min, element.max),
        (element.exponent_bits, element.mantissa_bits),
        has_inf=element.has_inf,
        has_nan=element.has_nan,
        element=element,
        own_type=False,
        host=host,
    )
    _BY_TYPE[host] = _BY_TYPE[host.type] = packed
    # NumPy looks names up here, and takes dtypes too; ml_dtypes registers its types the same way.
    np.sctypeDict[name] = host  # type: ignore[assignment]
    return packed


def _record(name: str, itemsize: int) -> np.dtype[Any]:
    """A NumPy type of ``itemsize`` bytes whose scalar type has the name; unlike fields keep two of them unequal."""
    scalar = type(name, (np.void,), {"__module__": __name__, "__doc__": f"One packed element of {name}."})
    return np.dtype((scalar, [(f"{name}_{byte}", np.uint8) for byte in range(itemsize)]))


float32 = _float("float32", np.float32, (2 - 2.0**-23) * 2.0**127, (8, 23))
tfloat32 = _float("tfloat32", np.float32, (2 - 2.0**-10) * 2.0**127, (8, 10), own_type=False)
bfloat16 = _float("bfloat16", ml_dtypes.bfloat16, (2 - 2.0**-7) * 2.0**127, (8, 7))
float16 = _float("float16", np.float16, 65504.0, (5, 10))
float8_e3m4 = _float("float8_e3m4", ml_dtypes.float8_e3m4, 15.5, (3, 4))
float8_e4m3 = _float("float8_e4m3", ml_dtypes.float8_e4m3, 240.0, (4, 3))
float8_e4m3fn = _float("float8_e4m3fn", ml_dtypes.float8_e4m3fn, 448.0, (4, 3), has_inf=False)
float8_e5m2 = _float("float8_e5m2", ml_dtypes.float8_e5m2, 57344.0, (5, 2))
float8_e8m0fnu = _define(
    "float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, "scale", (2.0**-127, 2.0**127), (8, 0), has_nan=True
)
int8 = _define("int8", np.int8, "int", (-(2**7), 2**7 - 1))
int16 = _define("int16", np.int16, "int", (-(2**15), 2**15 - 1))
int32 = _define("int32", np.int32, "int", (-(2**31), 2**31 - 1))
uint8 = _define("uint8", np.uint8, "uint", (0, 2**8 - 1))
uint16 = _define("uint16", np.uint16, "uint", (0, 2**16 - 1))
uint32 = _define("uint32", np.uint32, "uint", (0, 2**32 - 1))
bool_ = _define("bool", np.uint8, "bool", (0, 1), own_type=False)
float8_e4m3fn_x4 = _packed("float8_e4m3fn_x4", np.uint32, float8_e4m3fn)
float8_e5m2_x4 = _packed("float8_e5m2_x4", np.uint32, float8_e5m2)

#: One element of ``float4_e2m1fn_x4``; no tensor has this format, so it is not in ``DTYPES``.
float4_e2m1fn = _float("float4_e2m1fn", ml_dtypes.float4_e2m1fn, 6.0, (2, 1), has_inf=False, has_nan=False)
float4_e2m1fn_x4 = _packed("float4_e2m1fn_x4", np.uint16, float4_e2m1fn)

for _storage in (np.bool_, np.dtype(np.bool_)):
    _BY_TYPE[_storage] = bool_

#: Every format a tensor may have.
DTYPES: tuple[DType, ...] = tuple(dtype for dtype in _BY_NAME.values() if dtype is not float4_e2m1fn)

_ALIASES = {**{str(dtype): dtype for dtype in DTYPES}, "bool_": bool_}

_SIXTY_FOUR_BITS = {"float64": "float32", "int64": "int32", "uint64": "uint32"}


def as_dtype(x: object) -> DType:
    """Return the format that ``x`` names.

    ``x`` may be a ``DType``, NKI's name for one (``"bool_"`` is ``"bool"``), a NumPy dtype or scalar type, an
    ml_dtypes or JAX type, or a PyTorch dtype (recognised by its text; PyTorch is not imported). Python's ``bool``,
    ``int`` and ``float`` have no size and are refused, as are the 64-bit types, which NKI does not have.
    Raises ``InputError``.
    """
    if isinstance(x, DType) and x is not float4_e2m1fn:
        return x
    if isinstance(x, str):
        found = _ALIASES.get(x)
    else:
        try:
            found = _BY_TYPE.get(x)
        except TypeError:  # not hashable, so no type
            found = None
        if found is None:
            found = _ALIASES.get(_name_of(x))
    if found is None or found is float4_e2m1fn:
        raise _unknown(x)
    return found


def _name_of(x: object) -> str:
    """Name of a type of another library, such as ``torch.bfloat16`` or ``jax.numpy.bfloat16``."""
    inner = getattr(x, "dtype", None)
    if isinstance(x, type) and isinstance(inner, np.dtype):
        return inner.name
    if type(x).__module__.partition(".")[0] == "torch":
        return str(x).removeprefix("torch.")
    return ""


def _unknown(x: object) -> InputError:
    if isinstance(x, str):
        name = x
    elif isinstance(x, type) and issubclass(x, np.generic):
        name = np.dtype(x).name
    elif isinstance(x, np.dtype):
        name = x.name if x.isnative else str(x)
    else:
        name = _name_of(x)
    if name in _SIXTY_FOUR_BITS:
        return InputError(f"NKI has no 64-bit types; use {_SIXTY_FOUR_BITS[name]} instead of {name}")
    if name == "float4_e2m1fn":
        return InputError("4-bit elements exist only packed in fours; use float4_e2m1fn_x4 instead of float4_e2m1fn")
    if isinstance(x, type) and issubclass(x, (int, float, complex)) and not name:
        return InputError(f"Python's {x.__name__} does not say how many bits; name a format: {_names()}")
    shown = name or (x.__name__ if isinstance(x, type) else f"an object of type {type(x).__name__}")
    return InputError(f"{shown} is no number format of a NeuronCore; the formats are {_names()}")


def _names() -> str:
    return ", ".join(DTYPES)
