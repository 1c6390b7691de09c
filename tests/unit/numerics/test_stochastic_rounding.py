"""Stochastic rounding: neighbours only, with the right mean; exact values unchanged."""

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.numerics import DTYPES, Xorwow, formats, from_float32, from_float32_stochastic, to_float32

NARROW = [dtype for dtype in DTYPES if dtype.kind == "float" and dtype != "float32"]


def stochastic(values, dtype, rng):
    return to_float32(from_float32_stochastic(values, dtype, rng), dtype)


def grid_step(value, dtype):
    """Distance of a format's neighbours around a value, in float64."""
    smallest = 2 - 2 ** (dtype.exponent_bits - 1)
    exponent = max(int(np.floor(np.log2(abs(value)))), smallest)
    return 2.0 ** (exponent - dtype.mantissa_bits)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
class TestEveryFormat:
    def test_exact_values_are_unchanged(self, dtype):
        codes = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
        with np.errstate(invalid="ignore"):
            exact = to_float32(from_float32(codes.view(np.float32), dtype), dtype)
        result = stochastic(exact, dtype, np.random.default_rng(0))
        np.testing.assert_array_equal(result, exact)
        np.testing.assert_array_equal(np.signbit(result)[~np.isnan(exact)], np.signbit(exact)[~np.isnan(exact)])

    @pytest.mark.parametrize("value", [1.03, -3.3, 0.777, 13.9, "tiny", "subnormal", "near max"])
    def test_mean_and_neighbours(self, dtype, value):
        smallest = 2.0 ** (2 - 2 ** (dtype.exponent_bits - 1) - dtype.mantissa_bits)
        named = {"tiny": 0.3 * smallest, "subnormal": 1.8 * smallest, "near max": 0.99 * dtype.max}
        if dtype.exponent_bits == 8:  # the smallest float32 are too coarse to be between its subnormals
            named |= {"tiny": 0.25 * smallest, "subnormal": 1.75 * smallest}
        value = np.float32(named.get(value, value))
        count = 40_000
        result = stochastic(np.full((8, count // 8), value), dtype, np.random.default_rng(5)).astype(np.float64)
        step = grid_step(value, dtype)
        down = np.floor(float(value) / step) * step
        assert set(np.unique(result)) <= {down, down + step}
        up = (float(value) - down) / step
        five_sigma = 5 * np.sqrt(up * (1 - up) / count)
        assert abs((result == down + step).mean() - up) <= five_sigma + 1e-12

    def test_infinities_and_nan(self, dtype):
        special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
        bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
        values = np.concatenate([special, bits, np.float32([3.4e38, -3.4e38])])
        for seed in range(20):
            result = stochastic(values, dtype, np.random.default_rng(seed))
            assert np.isnan(result[[2, 5, 6, 7]]).all()
            assert (np.signbit(result[3:5]) == [False, True]).all()
            if dtype.has_inf:
                assert result[:2].tolist() == [np.inf, -np.inf]
            else:
                assert np.isnan(result[:2]).all()

    def test_overflow_is_what_rounds_beyond_the_largest(self, dtype):
        step = grid_step(dtype.max, dtype)
        count = 40_000
        value = np.float32(dtype.max + 0.25 * step) if dtype.exponent_bits < 8 else None
        if value is None:  # a quarter of a step beyond the largest, short of 2**128
            bits = np.array([dtype.max], np.float32).view(np.uint32) + np.uint32(1 << (21 - dtype.mantissa_bits))
            value = bits.view(np.float32)[0]
        with np.errstate(invalid="ignore"):
            result = stochastic(np.full(count, value, np.float32), dtype, np.random.default_rng(2))
        kept = result == np.float32(dtype.max)
        assert (np.isinf(result[~kept]) if dtype.has_inf else np.isnan(result[~kept])).all()
        assert abs((~kept).mean() - 0.25) <= 5 * np.sqrt(0.25 * 0.75 / count)

    def test_deterministic(self, dtype):
        values = np.random.default_rng(0).normal(0, 2, (16, 40)).astype(np.float32)
        first = stochastic(values, dtype, Xorwow.from_seed(7, 16))
        np.testing.assert_array_equal(first, stochastic(values, dtype, Xorwow.from_seed(7, 16)))
        assert (first != stochastic(values, dtype, Xorwow.from_seed(8, 16))).any()

    def test_strides_and_destination(self, dtype):
        values = np.random.default_rng(0).normal(0, 2, (8, 6, 5)).astype(np.float32)
        expected = from_float32_stochastic(values[:, ::2, 1:].copy(), dtype, np.random.default_rng(3))
        target = np.zeros((8, 6, 8), dtype.numpy)[:, ::2, ::2]
        result = from_float32_stochastic(values[:, ::2, 1:], dtype, np.random.default_rng(3), target)
        assert result is target
        np.testing.assert_array_equal(target.astype(np.float32), expected.astype(np.float32))


def test_lanes_of_a_hardware_generator():
    values = np.full((4, 3, 100), 1.3, np.float32)
    whole = Xorwow.from_seed(1, 8)
    result = from_float32_stochastic(values, formats.bfloat16, whole.lanes(2, 6))
    alone = from_float32_stochastic(values[1:2], formats.bfloat16, Xorwow.from_seed(1, 8).lanes(3, 4))
    np.testing.assert_array_equal(result[1:2].astype(np.float32), alone.astype(np.float32))
    with pytest.raises(InputError, match="another number of lanes"):
        from_float32_stochastic(values, formats.bfloat16, whole)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype.kind != "float"], ids=str)
def test_only_floats(dtype):
    with pytest.raises(InputError, match="floating formats"):
        from_float32_stochastic(np.ones(3, np.float32), dtype, np.random.default_rng(0))


def test_float32_is_unchanged():
    values = np.float32([1.1, np.pi])
    np.testing.assert_array_equal(from_float32_stochastic(values, formats.float32, np.random.default_rng(0)), values)
    with pytest.raises(InputError, match="float64 does not hold float32"):
        from_float32_stochastic(np.zeros(3), formats.bfloat16, np.random.default_rng(0))
    with pytest.raises(InputError, match="no lanes"):
        from_float32_stochastic(np.array(1, np.float32), formats.bfloat16, Xorwow.from_seed(0))
