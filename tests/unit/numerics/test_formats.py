"""The formats' facts against ml_dtypes and NumPy, and what names them."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.numerics import DTYPES, DType, as_dtype, formats

SCALAR_TYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e3m4": ml_dtypes.float8_e3m4,
    "float8_e4m3": ml_dtypes.float8_e4m3,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "bool": np.bool_,
}
FLOATS = [dtype for dtype in (*DTYPES, formats.float4_e2m1fn) if dtype.kind == "float" and dtype != "tfloat32"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestEveryFormat:
    def test_is_its_name(self, dtype):
        assert isinstance(dtype, str)
        assert dtype == str(dtype)
        assert str(dtype) == dtype
        assert hash(dtype) == hash(str(dtype))
        assert {dtype: 1}[str(dtype)] == 1
        assert DType(str(dtype)) is dtype
        assert as_dtype(dtype) is dtype
        assert as_dtype(str(dtype)) is dtype

    def test_survives_copying(self, dtype):
        assert copy.copy(dtype) is dtype
        assert copy.deepcopy(dtype) is dtype
        assert pickle.loads(pickle.dumps(dtype)) is dtype

    def test_is_constant(self, dtype):
        with pytest.raises(AttributeError):
            dtype.max = 1
        with pytest.raises(AttributeError):
            del dtype.max

    def test_index_is_its_position(self, dtype):
        assert [other.index for other in DTYPES].count(dtype.index) == 1

    def test_storage(self, dtype):
        assert isinstance(dtype.numpy, np.dtype)
        assert dtype.itemsize == dtype.numpy.itemsize
        assert dtype.element.elements == 1

    def test_differs_from_the_others(self, dtype):
        assert [other for other in DTYPES if other == dtype] == [dtype]
        assert dtype != "float"
        assert dtype != None  # noqa: E711
        assert dtype != [1]
        assert dtype != object()


@pytest.mark.parametrize(("name", "scalar"), SCALAR_TYPES.items())
class TestTypesOfOtherLibraries:
    def test_equal(self, name, scalar):
        dtype = DType(name)
        assert dtype == scalar
        assert scalar == dtype
        assert dtype == np.dtype(scalar)
        assert as_dtype(scalar) is dtype
        assert as_dtype(np.dtype(scalar)) is dtype

    def test_one_format_a_type(self, name, scalar):
        assert [dtype for dtype in DTYPES if dtype == scalar] == [name]

    def test_torch(self, name, scalar):
        del scalar

        class Torch:
            __module__ = "torch"

            def __str__(self):
                return f"torch.{name}"

        assert as_dtype(Torch()) is DType(name)

    def test_jax(self, name, scalar):
        class Meta(type):
            dtype = np.dtype(scalar)

        class Jax(metaclass=Meta):
            pass

        assert as_dtype(Jax) is DType(name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_float_facts(dtype):
    info = ml_dtypes.finfo(dtype.numpy)
    assert (dtype.max, dtype.min) == (float(info.max), float(info.min))
    assert (dtype.exponent_bits, dtype.mantissa_bits) == (info.nexp, info.nmant)
    with np.errstate(all="ignore"):
        assert dtype.has_inf == bool(np.isinf(np.array([np.inf]).astype(dtype.numpy).astype(np.float32))[0])
        assert dtype.has_nan == bool(np.isnan(np.array([np.nan]).astype(dtype.numpy).astype(np.float32))[0])


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype.kind in ("int", "uint")], ids=str)
def test_integer_facts(dtype):
    info = np.iinfo(dtype.numpy)
    assert (dtype.max, dtype.min) == (info.max, info.min)
    assert (dtype.exponent_bits, dtype.mantissa_bits, dtype.has_inf, dtype.has_nan) == (0, 0, False, False)


def test_other_facts():
    assert (formats.tfloat32.itemsize, formats.tfloat32.exponent_bits, formats.tfloat32.mantissa_bits) == (4, 8, 10)
    assert formats.tfloat32 != np.float32
    assert formats.bool_.numpy == np.uint8
    assert as_dtype("bool_") is formats.bool_
    scale = formats.float8_e8m0fnu
    assert (scale.max, scale.min, scale.has_inf, scale.has_nan) == (2.0**127, 2.0**-127, False, True)


@pytest.mark.parametrize(
    ("name", "element", "itemsize"),
    [
        ("float8_e4m3fn_x4", "float8_e4m3fn", 4),
        ("float8_e5m2_x4", "float8_e5m2", 4),
        ("float4_e2m1fn_x4", "float4_e2m1fn", 2),
    ],
)
def test_packed(name, element, itemsize):
    dtype = DType(name)
    assert (dtype.kind, dtype.elements, dtype.itemsize, dtype.element) == ("packed", 4, itemsize, element)
    assert dtype.max == dtype.element.max
    assert dtype != dtype.numpy
    assert np.dtype(name) == dtype.host == np.dtype(dtype)
    assert as_dtype(dtype.host) is as_dtype(np.zeros(3, name).dtype) is dtype
    assert dtype.host.itemsize == dtype.numpy.itemsize
    with pytest.raises(TypeError):
        np.zeros(3, name).astype(np.float32)  # no number


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.float64, "NKI has no 64-bit types; use float32 instead of float64"),
        (np.dtype("int64"), "use int32 instead of int64"),
        ("uint64", "use uint32 instead of uint64"),
        (float, "Python's float does not say how many bits"),
        (int, "Python's int"),
        (bool, "Python's bool"),
        ("fp32", "fp32 is no number format of a NeuronCore; the formats are float32, tfloat32"),
        (ml_dtypes.float4_e2m1fn, "use float4_e2m1fn_x4"),
        ("float4_e2m1fn", "use float4_e2m1fn_x4"),
        (formats.float4_e2m1fn, "use float4_e2m1fn_x4"),
        (np.dtype(">f4"), ">f4 is no number format"),
        (np.complex64, "complex64 is no number format"),
        (None, "an object of type NoneType is no number format"),
        ([1], "an object of type list"),
        (np.zeros(3), "an object of type ndarray"),
        (str, "str is no number format"),
    ],
)
def test_refused(x, message):
    with pytest.raises(InputError, match=message):
        as_dtype(x)


def test_unknown_name():
    with pytest.raises(InputError, match="float7 is no number format"):
        DType("float7")
