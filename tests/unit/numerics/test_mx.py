"""MX formats against float64 arithmetic, group by group."""

import math

import ml_dtypes
import numpy as np
import pytest

from trnsim.errors import HardwareError, InputError
from trnsim.numerics import formats, mx

PACKED = [formats.float8_e4m3fn_x4, formats.float8_e5m2_x4, formats.float4_e2m1fn_x4]
LARGEST_EXPONENT = {"float8_e4m3fn": 8, "float8_e5m2": 15, "float4_e2m1fn": 2}
RULES = ["neuron", "ocp"]

every_packed = pytest.mark.parametrize("dtype", PACKED, ids=str)
every_rule = pytest.mark.parametrize("rule", RULES)


def reference_group(values, element, rule):
    """Elements (as float64) and scale encoding of 32 values, from the definition."""
    values = np.asarray(values, np.float64)
    largest = np.abs(values).max()
    if not np.isfinite(largest):
        return np.zeros(32), 0xFF
    if largest == 0:
        return values, 0
    exponent = math.frexp(largest)[1] - 1 - (LARGEST_EXPONENT[element] - (rule == "neuron"))
    exponent = max(exponent, -127)
    limit = float(ml_dtypes.finfo(element.numpy).max)
    scaled = np.clip(values / 2.0**exponent, -limit, limit)
    return scaled.astype(element.numpy).astype(np.float64), exponent + 127


def sample(partitions, columns, seed=0):
    """Values over all of float32's range, some groups within one binade, some zero, tiny, or with infinities or NaN."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (partitions, 4 * columns))
    groups = values.reshape(partitions // 8, 8, columns, 4)
    groups *= 2.0 ** rng.integers(-140, 126, (partitions // 8, 1, columns, 1))
    groups[0, :, 0] = 0
    groups[0, :, 1] = rng.uniform(1, 2, (8, 4)) * rng.choice([-1, 1], (8, 4))
    groups[0, :, 2] = 2.0**-149
    groups[0, :, 3] = -0.0
    groups[-1, 3, 0, 2] = np.inf
    groups[-1, 4, 1, 1] = np.nan
    groups[-1, 0, 2, 0] = -np.inf
    groups[-1, :, 3] = np.finfo(np.float32).max
    groups[-1, :, 4] = 2.0**-130 * rng.normal(0, 1, (8, 4))
    return values.astype(np.float32)


@every_rule
@every_packed
class TestQuantize:
    @pytest.mark.parametrize(("partitions", "columns"), [(32, 64), (128, 128), (8, 5)])
    def test_definition(self, dtype, rule, partitions, columns):
        values = sample(partitions, columns)
        packed, scales = mx.quantize(values, dtype, rule)
        assert (packed.shape, packed.dtype) == ((partitions, columns), dtype.numpy)
        assert (scales.shape, scales.dtype) == ((partitions // 8, columns), np.uint8)
        elements = mx.unpack(packed, dtype).reshape(partitions // 8, 8, columns, 4)
        groups = values.reshape(partitions // 8, 8, columns, 4)
        for row in range(partitions // 8):
            for column in range(columns):
                expected, scale = reference_group(groups[row, :, column].ravel(), dtype.element, rule)
                assert scales[row, column] == scale
                np.testing.assert_array_equal(elements[row, :, column].ravel(), expected)

    def test_blocks(self, dtype, rule):
        values = sample(16, 24).reshape(-1, 2, 96)
        elements, scales = mx.quantize_blocks(values, dtype.element, rule)
        assert (elements.shape, elements.dtype) == (values.shape, dtype.element.numpy)
        assert (scales.shape, scales.dtype) == ((*values.shape[:-1], 3), np.uint8)
        wide = elements.astype(np.float64).reshape(-1, 32)
        for group, actual, scale in zip(values.reshape(-1, 32), wide, scales.ravel(), strict=True):
            expected, expected_scale = reference_group(group, dtype.element, rule)
            assert scale == expected_scale
            np.testing.assert_array_equal(actual, expected)

    def test_round_trip(self, dtype, rule):
        """No value is off by more than half a step; what was dequantized quantizes to itself."""
        values = np.random.default_rng(1).normal(0, 3, (32, 64)).astype(np.float32)
        packed, scales = mx.quantize(values, dtype, rule)
        once = mx.dequantize(packed, scales, dtype)
        packed_again, scales_again = mx.quantize(once, dtype, rule)
        kept = scales == scales_again  # where the largest was not rounded to the next binade
        assert kept.mean() > 0.5
        assert (packed_again == packed)[kept.repeat(8, axis=0)].all()

        element = dtype.element
        scale = (2.0 ** (scales.astype(np.float64) - 127)).repeat(4, axis=1).repeat(8, axis=0)
        scaled = np.abs(values) / scale
        smallest_normal = 2.0 ** (2 - 2 ** (element.exponent_bits - 1))
        half_step = np.maximum(scaled, smallest_normal) * 2.0 ** -(element.mantissa_bits + 1)
        cut = scaled > element.max
        assert (np.abs(once - values) / scale <= half_step)[~cut].all()
        assert rule == "ocp" or not cut.any()


@every_packed
class TestDequantize:
    def test_definition(self, dtype):
        rng = np.random.default_rng(0)
        packed = rng.integers(0, 1 << 16, (32, 40), dtype=np.uint16).astype(dtype.numpy) * dtype.numpy.type(
            65537 & 0xFFFF
        )
        packed ^= rng.integers(0, 1 << 16, (32, 40), dtype=np.uint16).astype(dtype.numpy) << dtype.numpy.type(3)
        scales = rng.integers(0, 255, (4, 40), dtype=np.uint8)
        scales[0, :3] = [0, 254, 255]
        actual = mx.dequantize(packed, scales, dtype)
        assert (actual.shape, actual.dtype) == ((32, 160), np.float32)
        elements = mx.unpack(packed, dtype).astype(np.float64)
        exponents = scales.astype(np.float64).repeat(8, axis=0).repeat(4, axis=1) - 127
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (elements * 2.0**exponents).astype(np.float32)
        expected[exponents == 128] = np.nan
        np.testing.assert_array_equal(actual, expected)
        typed = scales.view(ml_dtypes.float8_e8m0fnu)
        np.testing.assert_array_equal(mx.dequantize(packed, typed, dtype), expected)

    def test_special_groups(self, dtype):
        values = np.ones((8, 12), np.float32)
        values[2, 1], values[3, 5] = np.nan, -np.inf
        packed, scales = mx.quantize(values, dtype)
        assert scales.tolist()[0][:2] == [0xFF, 0xFF]
        actual = mx.dequantize(packed, scales, dtype)
        assert np.isnan(actual[:, :8]).all()
        assert (actual[:, 8:] == 1).all()

    def test_blocks(self, dtype):
        values = np.random.default_rng(2).normal(0, 3, (5, 64)).astype(np.float32)
        values[4, 0] = np.nan
        elements, scales = mx.quantize_blocks(values, dtype.element)
        actual = mx.dequantize_blocks(elements, scales, dtype.element)
        expected = elements.astype(np.float64) * 2.0 ** (scales.astype(np.float64).repeat(32, axis=1) - 127)
        expected[4, :32] = np.nan
        np.testing.assert_array_equal(actual, expected.astype(np.float32))


@every_packed
class TestPack:
    def test_first_element_is_lowest(self, dtype):
        width = 8 * dtype.itemsize // 4
        codes = np.random.default_rng(0).integers(0, 1 << width, (3, 5, 8), dtype=np.uint8)
        packed = mx.pack(codes.view(dtype.element.numpy), dtype)
        assert (packed.shape, packed.dtype) == ((3, 5, 2), dtype.numpy)
        for index in np.ndindex(packed.shape):
            four = codes[index[0], index[1], 4 * index[2] : 4 * index[2] + 4]
            assert packed[index] == sum(int(code) << (width * i) for i, code in enumerate(four))

    def test_unpack_reverses(self, dtype):
        width = 8 * dtype.itemsize // 4
        codes = np.random.default_rng(0).integers(0, 1 << width, (6, 80), dtype=np.uint8)
        elements = codes.view(dtype.element.numpy)
        packed = mx.pack(elements, dtype)
        with np.errstate(invalid="ignore"):
            expected = elements.astype(np.float32)
        np.testing.assert_array_equal(mx.unpack(packed, dtype), expected)
        np.testing.assert_array_equal(
            mx.unpack(packed[:, ::2], dtype).reshape(6, 10, 4), expected.reshape(6, 20, 4)[:, ::2]
        )

    def test_refuses(self, dtype):
        with pytest.raises(InputError, match="packed in fours"):
            mx.pack(np.zeros((2, 6), dtype.element.numpy), dtype)
        with pytest.raises(InputError, match="does not hold"):
            mx.pack(np.zeros((2, 8), np.float32), dtype)
        with pytest.raises(InputError, match="does not hold"):
            mx.unpack(np.zeros((2, 8), np.int8), dtype)


class TestScaleLayout:
    @pytest.mark.parametrize("partitions", [32, 64, 128])
    def test_first_partitions_of_each_quadrant(self, partitions):
        scales = np.arange(1, partitions // 8 + 1, dtype=np.uint8)[:, None] + np.zeros((1, 3), np.uint8)
        tile = mx.spread_scales(scales)
        assert tile.shape == (partitions, 3)
        for quadrant in range(partitions // 32):
            rows = tile[32 * quadrant : 32 * quadrant + 32, 0]
            assert rows[:4].tolist() == [4 * quadrant + i for i in (1, 2, 3, 4)]
            assert not rows[4:].any()
        np.testing.assert_array_equal(mx.gather_scales(tile, partitions), scales)

    def test_into_part_of_a_tile(self):
        tile = np.full((128, 8), 9, np.uint8)
        scales = np.arange(12, dtype=np.uint8).reshape(4, 3)
        view = tile[4:36, 2:5]  # nki-library keeps several sets of scales at offsets in a quadrant
        assert mx.spread_scales(scales, view) is view
        np.testing.assert_array_equal(tile[4:8, 2:5], scales)
        assert (tile == 9).sum() >= tile.size - 12
        np.testing.assert_array_equal(mx.gather_scales(tile[4:8, 2:5], 32), scales)


class TestRefuses:
    def test_formats_that_are_not_packed(self):
        for call in (
            lambda: mx.quantize(np.zeros((32, 8), np.float32), formats.float8_e5m2),
            lambda: mx.dequantize(np.zeros((32, 2), np.uint32), np.zeros((4, 2), np.uint8), formats.uint32),
            lambda: mx.unpack(np.zeros((32, 2), np.uint32), formats.uint32),
        ):
            with pytest.raises(HardwareError, match="packed in fours"):
                call()

    @pytest.mark.parametrize("shape", [(31, 8), (32, 6), (32,)])
    def test_broken_groups(self, shape):
        with pytest.raises(HardwareError, match="whole groups"):
            mx.quantize(np.zeros(shape, np.float32), formats.float8_e5m2_x4)

    def test_scales_of_another_shape(self):
        with pytest.raises(HardwareError, match="one scale"):
            mx.dequantize(np.zeros((32, 2), np.uint32), np.zeros((32, 2), np.uint8), formats.float8_e5m2_x4)

    def test_others(self):
        with pytest.raises(InputError, match="blocks have 32"):
            mx.quantize_blocks(np.zeros((2, 40), np.float32), formats.float8_e5m2)
        with pytest.raises(InputError, match="rules"):
            mx.quantize(np.zeros((32, 8), np.float32), formats.float8_e5m2_x4, "other")
        with pytest.raises(InputError, match="does not hold float32"):
            mx.quantize(np.zeros((32, 8)), formats.float8_e5m2_x4)


def test_quantize_does_not_change_its_input():
    values = sample(32, 8)
    before = values.copy()
    mx.quantize(values, formats.float8_e4m3fn_x4)
    np.testing.assert_array_equal(values, before)
    strided = np.asfortranarray(values)
    for actual, expected in zip(
        mx.quantize(strided, formats.float8_e4m3fn_x4), mx.quantize(values, formats.float8_e4m3fn_x4), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
