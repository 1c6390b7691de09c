"""TensorE's modes: tiles of the array, double rows, transposes by a permutation, bfloat16 results; in any layout."""

import numpy as np
import pytest
from byte_model import Memory, draw_view
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_harness import NUMPY, assert_same, draw_values, given_tensor, read, rounded, running, single, tensor, upcast

from trnsim.isa import tensor as pe
from trnsim.isa.constants import matmul_perf_mode

modes = settings(max_examples=60, deadline=None, derandomize=True)
FP8 = ["float8_e4m3", "float8_e5m2"]


def small(rng, shape, kind):
    """Integers whose products and sums float32 holds exactly."""
    return rng.integers(-4, 5, shape).astype(NUMPY[kind])


@modes
@given(
    st.data(), st.integers(0, 999), st.sampled_from(["v2", "v3", "v4"]), st.sampled_from([32, 64, 128]),
    st.sampled_from([32, 64, 128]), st.sampled_from(["bfloat16", "float32", "float8_e5m2"]),
)  # fmt: skip
def test_tiles_of_the_array(data, seed, generation, rows, columns, kind):
    """Which rows and columns of the array multiply changes no number; operands lie at the partitions of the tile."""
    if generation == "v2" and 32 in (rows, columns):
        return
    rng = np.random.default_rng(seed)
    row = data.draw(st.integers(0, 128 // rows - 1)) * rows
    column = data.draw(st.integers(0, 128 // columns - 1)) * columns
    k, m, n = (data.draw(st.integers(1, limit)) for limit in (rows, columns, 20))
    with running(generation) as core:
        memory = Memory(core)
        a = memory.tensor((128, 128), kind, fill=small(rng, (128, 128), kind))[row : row + k, :m]
        b = memory.tensor((128, 40), kind, fill=small(rng, (128, 40), kind))[row : row + k, 3 : 3 + n]
        whole = memory.tensor((128, 40), "float32", "psum", fill=small(rng, (128, 40), "float32"))
        dst = whole[column : column + m, 1 : 1 + 2 * n : 2] if 2 * n < 40 else whole[column : column + m, :n]
        expected = a.flat().astype(np.float64).T @ b.flat().astype(np.float64)
        place = {"tile_position": (row, column), "tile_size": (rows, columns)}
        for count in (1, 2):
            pe.nc_matmul(dst.view, a.view, b.view, **place)
            dst.write(count * expected)
            memory.check([whole])


@modes
@given(st.data(), st.integers(0, 999), st.sampled_from(["v3", "v4"]), st.sampled_from([1, 33, 128]),
       st.sampled_from(FP8), st.sampled_from(FP8), st.sampled_from([None, False, True]))  # fmt: skip
def test_double_rows(data, seed, generation, k, left, right, accumulate):
    """``dst[m, n]`` is the sum over partitions and over the two rows of each."""
    rng = np.random.default_rng(seed)
    m, n = data.draw(st.sampled_from([1, 5, 64])), data.draw(st.sampled_from([1, 7, 30]))
    with running(generation) as core:
        memory = Memory(core)
        a = memory.tensor((128, 2, 70), left, fill=small(rng, (128, 2, 70), left))[:k, :, :m]
        b = memory.tensor((128, 31, 2), right, fill=small(rng, (128, 31, 2), right))[:k, :n].permuted((0, 2, 1))
        dst = memory.tensor((m, n), "float32", "psum", fill=small(rng, (m, n), "float32"))
        expected = np.einsum("krm,krn->mn", a.read().astype(np.float64), b.read().astype(np.float64))
        before = dst.read().astype(np.float64)
        pe.nc_matmul(dst.view, a.view, b.view, perf_mode=matmul_perf_mode.double_row, accumulate=accumulate)
        dst.write(expected + (before if accumulate else 0))
        memory.check([dst])
        pe.nc_matmul(dst.view, a.view, b.view, perf_mode="double_row")
        dst.write(2 * expected + (before if accumulate else 0))
        memory.check([dst])


@modes
@given(st.data(), st.integers(0, 999), st.sampled_from(["v3", "v4"]),
       st.sampled_from(["float32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2"]), st.booleans())  # fmt: skip
def test_a_permutation_moves_bits(data, seed, generation, kind, wide):
    """``is_transpose`` with ones and zeros as ``moving``: every bit pattern passes, those of NaN too."""
    rng = np.random.default_rng(seed)
    k, m = data.draw(st.sampled_from([(1, 1), (5, 30), (128, 7), (33, 128)]))
    size = np.dtype(NUMPY[kind]).itemsize
    bits = rng.integers(0, 2 ** (8 * size), (k, m), np.uint64).astype(f"u{size}").view(NUMPY[kind])
    order = rng.permutation(k)
    ones = np.zeros((k, k), NUMPY[kind])
    ones[order, np.arange(k)] = 1
    out = "float32" if wide else kind
    with running(generation) as core:
        source = given_tensor(
            core, bits, kind, "sbuf", data.draw(st.sampled_from(["plain", "step", "cube", "swapped"]))
        )
        expected = read(source)[order].T
        dst = tensor(core, out, m, k, "psum", data.draw(st.sampled_from(["plain", "step", "placed"])))
        pe.nc_matmul(dst, source, given_tensor(core, ones, kind), is_transpose=True)
        if out == kind:
            assert read(dst).tobytes() == np.ascontiguousarray(expected).tobytes()
        else:
            assert_same(read(dst), expected.astype(np.float32))


@modes
@given(st.data(), st.integers(0, 999), st.sampled_from(["float32", "bfloat16"]))
def test_transposes_accumulate(data, seed, kind):
    """A product with the identity that is added is an addition; on NeuronCore-v2 it is an ordinary product."""
    rng = np.random.default_rng(seed)
    with running("v2" if data.draw(st.booleans()) else "v4") as core:
        x = small(rng, (20, 9), kind)
        dst = tensor(core, "float32", 9, 20, "psum")
        operands = given_tensor(core, x, kind), given_tensor(core, np.eye(20).astype(NUMPY[kind]), kind)
        for count in (1, 2, 3):
            pe.nc_matmul(dst, *operands, is_transpose=True)
            assert_same(read(dst), count * x.T.astype(np.float32))


@modes
@given(st.data(), st.integers(0, 999), st.sampled_from([None, True, False]), st.integers(1, 4))
def test_bfloat16_results_round_at_each_product(data, seed, accumulate, count):
    rng = np.random.default_rng(seed)
    with running("v4") as core:
        memory = Memory(core)
        whole = memory.tensor((64, 60), "bfloat16", "psum", fill=draw_values(seed, "bfloat16", 64, 60))
        dst = draw_view(data.draw, whole, 9, 2, 10, target=True)
        total = upcast(dst.flat())
        for index in range(count):
            a, b = small(rng, (16, 9), "bfloat16"), small(rng, (16, 20), "bfloat16")
            adds = bool(accumulate) if accumulate is not None else index > 0
            product = upcast(a).T @ upcast(b)
            total = upcast(rounded(single(product + total * adds), "bfloat16"))
            operands = given_tensor(core, a, "bfloat16"), given_tensor(core, b, "bfloat16")
            pe.nc_matmul(dst.view, *operands, accumulate=accumulate)
        dst.write(total)
        memory.check([whole])


@pytest.mark.parametrize(("generation", "dtype", "columns"), [("v2", "float32", 512), ("v3", "float32", 512),
                         ("v4", "float32", 4096), ("v4", "bfloat16", 8192)])  # fmt: skip
def test_the_widest_result(generation, dtype, columns):
    rng = np.random.default_rng(0)
    with running(generation) as core:
        a, b = small(rng, (8, 3), "bfloat16"), small(rng, (8, columns), "bfloat16")
        dst = core.ndarray((3, columns), dtype, "psum")
        pe.nc_matmul(dst, given_tensor(core, a, "bfloat16"), given_tensor(core, b, "bfloat16"))
        assert_same(read(dst), rounded(single(upcast(a).T @ upcast(b)), dtype))
