"""Conversions, bit for bit against ml_dtypes and NumPy, and against float64 arithmetic where those have none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trnsim.errors import HardwareError, InputError
from trnsim.numerics import DTYPES, cast, formats, from_float32, to_float32

PACKED = [dtype for dtype in DTYPES if dtype.kind == "packed"]
PLAIN = [dtype for dtype in DTYPES if dtype.kind != "packed"]
INTEGERS = [dtype for dtype in DTYPES if dtype.kind in ("int", "uint")]
NARROW = [formats.float4_e2m1fn] + [
    dtype for dtype in DTYPES if dtype.kind in ("float", "scale") and dtype.numpy != np.float32
]
FLOATS = [*NARROW, formats.tfloat32]

bit_patterns = hnp.arrays(np.uint32, st.integers(1, 40)).map(lambda bits: bits.view(np.float32))
draws = settings(max_examples=60, deadline=None)


def bits(array):
    return array.view(f"u{array.itemsize}")


def assert_same(actual, expected):
    """Same type, shape and bits; any NaN equals any other."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    with np.errstate(invalid="ignore"):
        both_nan = np.isnan(actual.astype(np.float32)) & np.isnan(expected.astype(np.float32))
    same = (bits(actual) == bits(expected)) | both_nan
    assert same.all(), (actual[~same][:5], expected[~same][:5])


def float_reference(values, dtype):
    """Convert with ml_dtypes or NumPy; to tfloat32 in float64, where its rounding to 11 bits is one np.rint.

    Releases of ml_dtypes differ in the ties of float8_e8m0fnu, so those too are decided here.
    """
    with np.errstate(all="ignore"):
        if dtype == "float8_e8m0fnu":
            mantissa, exponent = np.frexp(np.abs(values.astype(np.float64)))
            code = np.maximum(exponent - 1 + 127 + (mantissa >= 0.75), 0)
            valid = (values > 0) & (values < 1.5 * 2.0**127)
            return np.where(valid, code, 0xFF).astype(np.uint8).view(dtype.numpy)
        if dtype != "tfloat32":
            return values.astype(dtype.numpy)
        mantissa, exponent = np.frexp(values.astype(np.float64))
        digits = np.minimum(11, 11 + (exponent + 125))  # of subnormals, the last digit stays 2**-136
        return np.ldexp(np.rint(np.ldexp(mantissa, digits)), exponent - digits).astype(np.float32)


def integer_reference(values, dtype):
    wide = np.rint(values.astype(np.float64))
    return np.array([0 if np.isnan(v) else int(min(max(v, dtype.min), dtype.max)) for v in wide.flat], dtype.numpy)


def reference(values, dtype):
    if dtype == "float32":
        return values
    if dtype == "bool":
        return (values != 0).astype(np.uint8)
    return integer_reference(values, dtype) if dtype in INTEGERS else float_reference(values, dtype)


def hard_values(dtype):
    """Every value of a format, every midpoint of neighbours, and the float32 next to each."""
    with np.errstate(all="ignore"):
        if dtype == "tfloat32":  # all binades with some mantissas; all mantissas in some binades
            high = np.arange(1 << 19, dtype=np.uint32) << np.uint32(13)
            mantissa = high >> np.uint32(13) & np.uint32(0x3FF)
            binade = high >> np.uint32(23) & np.uint32(0xFF)
            few = (mantissa < 3) | (mantissa > 1020) | np.isin(binade, [0, 1, 127, 253, 254])
            values = high[few].view(np.float32)
        else:
            codes = np.arange(1 << (8 * dtype.itemsize), dtype=np.uint32).astype(f"u{dtype.itemsize}")
            if dtype == "float4_e2m1fn":
                codes = codes[:16]
            values = codes.view(dtype.numpy).astype(np.float32)
    finite = np.unique(values[np.isfinite(values)].astype(np.float64))
    step = finite[-1] - finite[-2]
    beyond = finite[-1] + step * np.array([0.25, 0.5, 0.75, 1, 1.5, 2, 4])
    tiny = finite[finite > 0][0] * np.array([0.25, 0.5, 0.75, 1.25, 1.5, 1.75])
    middles = (finite[1:] + finite[:-1]) / 2
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-149, 2.0**-126, 2.0**127, np.finfo(np.float32).max]
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.concatenate([finite, middles, beyond, -beyond, tiny, -tiny, special]).astype(np.float32)
        around = [exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))]
    signalling = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    return np.concatenate([*around, signalling])


def hard_integers(dtype):
    limits = np.array([dtype.min, dtype.max, 0, 2**24, 2**31, 2**32], np.float64)
    exact = (limits[:, None] + np.array([-257, -129, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 128, 256])).ravel()
    near = exact.astype(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e38, -3e38], np.float32)
    up, down = np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))
    return np.concatenate([near, up, down, special])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
class TestFloats:
    def test_hard_values(self, dtype):
        values = hard_values(dtype)
        assert_same(from_float32(values, dtype), float_reference(values, dtype))

    def test_any_value(self, dtype):
        @draws
        @given(bit_patterns)
        def check(values):
            assert_same(from_float32(values, dtype), float_reference(values, dtype))

        check()

    def test_random_values(self, dtype):
        values = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
        assert_same(from_float32(values, dtype), float_reference(values, dtype))
        normal = np.random.default_rng(1).normal(0, 10, 100_000).astype(np.float32)
        assert_same(from_float32(normal, dtype), float_reference(normal, dtype))

    def test_round_trip(self, dtype):
        values = hard_values(dtype)
        once = to_float32(from_float32(values, dtype), dtype)
        assert_same(to_float32(from_float32(once, dtype), dtype), once)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_encoding_to_float32(dtype):
    codes = np.arange(16 if dtype == "float4_e2m1fn" else 1 << (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}")
    stored = codes.view(dtype.numpy)
    with np.errstate(invalid="ignore"):
        assert_same(to_float32(stored, dtype), stored.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        # What NKI documents or its libraries rely on, spelled out
        ("float8_e4m3", 240.0, 240.0),
        ("float8_e4m3", 247.9, 240.0),
        ("float8_e4m3", 248.0, np.inf),
        ("float8_e4m3fn", 448.0, 448.0),
        ("float8_e4m3fn", 464.0, 448.0),
        ("float8_e4m3fn", 464.1, np.nan),
        ("float8_e4m3fn", np.inf, np.nan),
        ("float8_e5m2", 61440.0, np.inf),
        ("float8_e3m4", 15.7, 15.5),
        ("float16", 65520.0, np.inf),
        ("bfloat16", 3.4e38, np.inf),
        ("tfloat32", 3.4028e38, np.inf),
        ("tfloat32", 1 + 2.0**-11, 1.0),
        ("tfloat32", 1 + 3 * 2.0**-11, 1 + 2.0**-9),
        ("float8_e8m0fnu", 3.0, 4.0),
        ("float8_e8m0fnu", -1.0, np.nan),
        ("int8", 2.5, 2),
        ("int8", -3.5, -4),
        ("int8", 200.0, 127),
        ("uint8", -1.0, 0),
        ("int32", 2.0**31, 2**31 - 1),
        ("int32", -(2.0**31), -(2**31)),
        ("uint32", 2.0**32, 2**32 - 1),
        ("int16", np.nan, 0),
        ("bool", np.nan, 1),
        ("bool", -0.0, 0),
        ("bool", 1e-45, 1),
    ],
)
def test_documented(dtype, value, expected):
    dtype = formats.DType(dtype)
    result = from_float32(np.array([value], np.float32), dtype)
    assert result.dtype == dtype.numpy
    np.testing.assert_equal(result.astype(np.float64)[0], np.float64(expected))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
class TestIntegers:
    def test_hard_values(self, dtype):
        values = hard_integers(dtype)
        assert_same(from_float32(values, dtype), integer_reference(values, dtype))

    def test_any_value(self, dtype):
        @draws
        @given(st.one_of(bit_patterns, hnp.arrays(np.float32, 8, elements=st.floats(-70000, 70000, width=32))))
        def check(values):
            assert_same(from_float32(values, dtype), integer_reference(values, dtype))

        check()

    def test_to_float32(self, dtype):
        values = np.array([dtype.min, dtype.max, dtype.max // 2 + 1, dtype.max - 1, 0, 1, 100], dtype.numpy)
        values = np.concatenate([values, (2**24 + np.arange(-3, 300)).astype(dtype.numpy)])
        assert_same(to_float32(values, dtype), values.astype(np.float64).astype(np.float32))


def test_bool_to_float32():
    expected = np.array([0, 1, 1], np.float32)
    assert_same(to_float32(np.array([0, 1, 7], np.uint8), formats.bool_), expected)
    assert_same(to_float32(np.array([False, True, True]), formats.bool_), expected)


SAMPLE = (np.random.default_rng(3).normal(0, 20, (8, 6, 10))).astype(np.float32)
SAMPLE[0, 0] = [np.nan, np.inf, -np.inf, 0, -0.0, 1e30, -1e30, 1e-30, 448, 300]
VIEWS = {
    "whole": lambda a: a,
    "rows": lambda a: a[:, :, 1:7],
    "steps": lambda a: a[:, ::2, ::3],
    "reversed": lambda a: a[::-1, :, ::-1],
    "transposed": lambda a: a.T,
    "column": lambda a: a[:, 0, 1:2],
    "broadcast": lambda a: np.broadcast_to(a[:, :1, :1], a.shape),
    "empty": lambda a: a[:, :0],
    "scalar": lambda a: a[0, 1, 2, ...],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
class TestLayouts:
    """Any strides, on the way in and on the way out."""

    def test_from_float32(self, dtype, view):
        values = view(SAMPLE)
        expected = reference(values.copy().ravel(), dtype).reshape(values.shape)
        before = SAMPLE.copy()
        result = from_float32(values, dtype)
        assert isinstance(result, np.ndarray)
        assert_same(result, expected)
        assert_same(SAMPLE, before)

    def test_from_float32_into(self, dtype, view):
        values = view(SAMPLE)
        expected = reference(values.copy().ravel(), dtype).reshape(values.shape)
        for target in (np.zeros(values.shape, dtype.numpy), self.with_gaps(values.shape, dtype.numpy)):
            assert from_float32(values, dtype, target) is target
            assert_same(np.ascontiguousarray(target).reshape(values.shape), expected)

    def test_to_float32(self, dtype, view):
        stored = view(reference(SAMPLE.ravel(), dtype).reshape(SAMPLE.shape))
        with np.errstate(invalid="ignore"):
            expected = stored.copy().astype(np.float32)
        result = to_float32(stored, dtype)
        assert isinstance(result, np.ndarray)
        assert_same(result, expected)
        for target in (np.zeros(stored.shape, np.float32), self.with_gaps(stored.shape, np.float32)):
            assert to_float32(stored, dtype, target) is target
            assert_same(np.ascontiguousarray(target).reshape(stored.shape), expected)

    @staticmethod
    def with_gaps(shape, dtype):
        return np.zeros([2 * n for n in shape], dtype)[(*(slice(None, None, 2) for _ in shape), ...)]


@pytest.mark.parametrize("dst", PLAIN, ids=str)
@pytest.mark.parametrize("src", PLAIN, ids=str)
def test_cast_goes_through_float32(src, dst):
    stored = reference(np.concatenate([hard_integers(formats.int16), SAMPLE.ravel()]), src)
    before = stored.copy()
    with np.errstate(invalid="ignore"):
        expected = stored if src is dst else reference(stored.astype(np.float32), dst)
    result = cast(stored, src, dst)
    assert_same(result, expected)
    result[...] = 0
    assert_same(stored, before)  # the result is new
    target = np.zeros((2, stored.size), dst.numpy).T[:, 0]
    assert cast(stored, src, dst, target) is target
    assert_same(target, expected)


def test_int32_loses_bits_beyond_float32():
    values = np.array([2**24 + 1, -(2**24) - 3, 2**31 - 1], np.int32)
    assert cast(values, formats.int32, formats.int32).tolist() == values.tolist()
    assert cast(values, formats.int32, formats.uint32).tolist() == [2**24, 0, 2**31]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_formats_are_copied_bit_for_bit(dtype):
    raw = np.random.default_rng(4).integers(0, 256, 64 * dtype.itemsize, dtype=np.uint8)
    raw[: 8 * dtype.itemsize] = 0xFF
    stored = raw.view(dtype.numpy)
    assert (bits(cast(stored, dtype, dtype)) == bits(stored)).all()
    target = np.zeros_like(stored)
    cast(stored, dtype, dtype, target)
    assert (bits(target) == bits(stored)).all()


@pytest.mark.parametrize("packed", PACKED, ids=str)
@pytest.mark.parametrize("other", DTYPES, ids=str)
def test_packed_formats_are_not_cast(packed, other):
    if other is packed:
        return
    with pytest.raises(HardwareError, match="packed"):
        cast(np.zeros(4, packed.numpy), packed, other)
    with pytest.raises(HardwareError, match="packed"):
        cast(np.zeros(4, other.numpy), other, packed)


def test_wrong_arrays():
    with pytest.raises(InputError, match="float64 does not hold float32"):
        from_float32(np.zeros(3), formats.bfloat16)
    with pytest.raises(InputError, match="float16 does not hold bfloat16"):
        to_float32(np.zeros(3, np.float16), formats.bfloat16)
    with pytest.raises(HardwareError, match="four numbers"):
        to_float32(np.zeros(3, np.uint32), formats.float8_e4m3fn_x4)
    with pytest.raises(HardwareError, match="four numbers"):
        from_float32(np.zeros(3, np.float32), formats.float8_e4m3fn_x4)


def test_float32_is_not_copied():
    values = np.ones(3, np.float32)
    assert to_float32(values, formats.float32) is values
    assert from_float32(values, formats.float32) is values


def test_converting_in_place():
    """A destination may be the source itself."""
    values = np.array([1 + 2.0**-11, 3.3, np.nan], np.float32)
    expected = float_reference(values, formats.tfloat32)
    from_float32(values, formats.tfloat32, values)
    assert_same(values, expected)
