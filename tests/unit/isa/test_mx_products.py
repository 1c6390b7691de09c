"""``nc_matmul_mx`` and ``quantize_mx`` by their definition: every format, every place in the array, every scale.

Elements are decoded here from the OCP Microscaling specification, v1.0: 4-bit elements by their table of values,
8-bit ones by ml_dtypes, scales as powers of two. A group is 8 partitions by 4 packed elements; the scales of a quadrant
of 32 partitions lie in its first four.
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import draws, given_tensor, read, running, tensor

from trnsim.isa import tensor as pe
from trnsim.isa import vector, vector_search

FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
FORMATS = ["float8_e5m2_x4", "float8_e4m3fn_x4", "float4_e2m1fn_x4"]
BYTES = {"float8_e5m2_x4": ml_dtypes.float8_e5m2, "float8_e4m3fn_x4": ml_dtypes.float8_e4m3fn}


def decoded(codes, form):
    """Values ``(K, F, 4)`` of packed elements ``(K, F)``, the first in the lowest bits."""
    if form == "float4_e2m1fn_x4":
        nibbles = (codes[..., None] >> (4 * np.arange(4, dtype=np.uint16))) & 15
        return FOUR_BITS[nibbles]
    parts = ((codes[..., None] >> (8 * np.arange(4, dtype=np.uint32))) & 255).astype(np.uint8)
    return parts.view(BYTES[form]).astype(np.float64)


class Operand:
    """Random packed data and their scales at some partitions of wider tensors."""

    def __init__(self, core, rng, form, start, k, columns, scale_kind, scales=None):
        stored = np.uint16 if form == "float4_e2m1fn_x4" else np.uint32
        codes = rng.integers(0, 2**32, (128, columns), np.uint64).astype(stored)
        values = decoded(codes, form)
        codes[~np.isfinite(values).all(axis=2)] = 0  # special values have a test of their own
        values = decoded(codes, form)
        exponents = rng.integers(120, 135, (k // 8, columns)) if scales is None else scales
        tile = rng.integers(0, 255, (128, columns)).astype(np.uint8)
        for group in range(k // 8):
            tile[start + group // 4 * 32 + group % 4] = exponents[group]
        if scale_kind != "uint8":
            tile = tile.view(ml_dtypes.float8_e8m0fnu)
        rows = slice(start, start + k)
        self.data = given_tensor(core, codes, form)[rows]
        last = start + (4 if k == 32 else k)
        self.scale = given_tensor(core, tile, scale_kind)[start:last]
        powers = np.where(exponents == 255, np.nan, 2.0 ** (exponents.astype(np.float64) - 127))
        self.exact = values[rows] * powers.repeat(8, 0)[..., None]

    def matrix(self):
        """``(4 K, F)``."""
        return self.exact.transpose(0, 2, 1).reshape(-1, self.exact.shape[1])


def assert_product(actual, a, b, extra=0.0):
    expected = a.matrix().T @ b.matrix() + extra
    size = np.abs(a.matrix()).T @ np.abs(b.matrix()) + np.abs(extra)
    rounding = 2.0**-8 if actual.dtype != np.float32 else 0
    assert (np.abs(actual.astype(np.float64) - expected) <= size * (2.0**-20 + rounding)).all()


@draws
@given(
    st.integers(0, 999), st.sampled_from(FORMATS), st.sampled_from(FORMATS),
    st.sampled_from([(0, 32), (32, 32), (64, 32), (96, 32), (0, 64), (64, 64), (0, 96), (0, 128)]),
    st.sampled_from([2, 6, 128]), st.sampled_from([1, 5]), st.sampled_from(["uint8", "float8_e8m0fnu"]),
    st.sampled_from(["float32", "bfloat16"]), st.booleans(),
)  # fmt: skip
def test_product(seed, left, right, place, m, n, scale_kind, out, tiled):
    rng = np.random.default_rng(seed)
    start, k = place
    tile = {"tile_position": (start, 0), "tile_size": (k, 128)} if tiled and k != 96 else {}
    with running("v4") as core:
        a = Operand(core, rng, left, start, k, m, scale_kind)
        b = Operand(core, rng, right, start, k, n, scale_kind)
        dst = tensor(core, out, m, n, "psum")
        for accumulate, extra in ((None, 0), (None, 1), (False, 0), (True, 1)):
            before = read(dst).astype(np.float64)
            pe.nc_matmul_mx(dst, a.data, b.data, a.scale, b.scale, accumulate=accumulate, **tile)
            assert_product(read(dst), a, b, before if extra else 0.0)
        vector.memset(dst, 7.0)
        pe.nc_matmul_mx(dst, a.data, b.data, a.scale, b.scale, **tile)
        assert_product(read(dst), a, b)


def test_a_scale_of_all_ones_is_nan():
    """It makes the products with its group NaN, and no others."""
    rng = np.random.default_rng(1)
    scales = np.full((4, 3), 127)
    scales[2, 1] = 255
    with running("v4") as core:
        a = Operand(core, rng, "float4_e2m1fn_x4", 0, 32, 2, "uint8")
        b = Operand(core, rng, "float4_e2m1fn_x4", 0, 32, 3, "uint8", scales)
        dst = tensor(core, "float32", 2, 3, "psum")
        pe.nc_matmul_mx(dst, a.data, b.data, a.scale, b.scale)
        assert np.isnan(read(dst)).tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("form", ["float8_e5m2_x4", "float8_e4m3fn_x4"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("partitions", [32, 64, 96, 128])
def test_quantized_tiles_multiply_to_nearly_the_product(form, kind, partitions):
    """What ``quantize_mx`` writes is what ``nc_matmul_mx`` reads, within the rounding of the elements."""
    rng = np.random.default_rng(partitions)
    dtype = ml_dtypes.bfloat16 if kind == "bfloat16" else np.float16
    with running("v4") as core:
        operands = []
        for columns in (6, 5):
            values = (rng.standard_normal((partitions, 4 * columns)) * 2.0 ** rng.integers(-9, 9)).astype(dtype)
            data = core.ndarray((partitions, columns), form)
            scale = core.ndarray((4 if partitions == 32 else partitions, columns), "float8_e8m0fnu")
            vector_search.quantize_mx(data, given_tensor(core, values, kind), scale)
            matrix = values.astype(np.float64).reshape(partitions, columns, 4).transpose(0, 2, 1)
            operands.append((data, scale, matrix.reshape(4 * partitions, columns)))
        (a, sa, x), (b, sb, y) = operands
        dst = tensor(core, "float32", 6, 5, "psum")
        pe.nc_matmul_mx(dst, a, b, sa, sb)
        # elements of 3 or 2 bits of mantissa err by a 16th or an 8th of their size at most, and small ones of a group
        # by as much of its largest, 2**-9 or less
        limit = (
            np.abs(x).T @ np.abs(y) * (0.27 if "e5m2" in form else 0.13) + 2.0**-5 * np.abs(x).max() * np.abs(y).max()
        )
        assert (np.abs(read(dst) - x.T @ y) <= limit).all()


@pytest.mark.parametrize(("form", "shift"), [("float8_e5m2_x4", 14), ("float8_e4m3fn_x4", 7)])
@pytest.mark.parametrize("power", [-133, -126, -120, -113, -100, 0, 100, 127])
def test_scales_from_the_smallest_to_the_largest(form, shift, power):
    """2**(floor(log2 a) - (Emax - 1)), not below 2**-127; the values come back exactly where they fit."""
    with running("v4") as core:
        values = np.full((32, 4), 2.0**power).astype(ml_dtypes.bfloat16)
        data, scale = core.ndarray((32, 1), form), core.ndarray((4, 1), "uint8")
        vector_search.quantize_mx(data, given_tensor(core, values, "bfloat16"), scale)
        expected = max(power - shift, -127)
        assert (read(scale) == expected + 127).all()
        assert (decoded(read(data), form) * 2.0**expected == 2.0**power).all()
