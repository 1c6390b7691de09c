"""Reductions and quantisation against NumPy in float64 and ml_dtypes, over drawn shapes and formats."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import BF16, assert_close, assert_same, drawn, dtypes, normal, places, record, run

from trnsim.errors import TrnsimError
from trnsim.kernels.quantization import quantize_mxfp8, quantize_rows, quantize_tensor
from trnsim.kernels.reductions import reduce_all, reduce_columns, reduce_rows
from trnsim.nki import language as nl

LARGEST = {ml_dtypes.float8_e4m3: 240, ml_dtypes.float8_e4m3fn: 448, ml_dtypes.float8_e5m2: 57344}
KINDS = {
    ml_dtypes.float8_e4m3: nl.float8_e4m3,
    ml_dtypes.float8_e4m3fn: nl.float8_e4m3fn,
    ml_dtypes.float8_e5m2: nl.float8_e5m2,
}
shapes = st.tuples(st.integers(1, 400), st.integers(1, 700))


@given(shapes, st.sampled_from(["sum", "mean", "max"]), dtypes, places)
@drawn(40)
def test_reductions(shape, operation, dtype, where):
    x = normal(1, shape, dtype) - dtype.type(1)
    exact, reduce = x.astype(np.float64), {"sum": np.sum, "mean": np.mean, "max": np.max}[operation]
    for kernel, axis in ((reduce_rows, 1), (reduce_columns, 0), (reduce_all, None)):
        wanted = np.reshape(reduce(exact, axis=axis), -1)
        size = 0 if operation == "max" else max(1, np.abs(wanted).max())
        found = run(kernel, where, x, operation)
        assert_close(found, wanted, np.float32, 0, size)


@given(shapes, st.sampled_from(list(LARGEST)), dtypes, places)
@drawn(40)
def test_quantisation(shape, kind, dtype, where):
    """Scales take the largest magnitude to the format's largest; values are rounded to it, once."""
    x = normal(1, shape, dtype)
    x[0] = 0
    exact = x.astype(np.float32)
    for kernel, axis in ((quantize_rows, 1), (quantize_tensor, None)):
        values, scales = run(kernel, where, x, KINDS[kind])
        magnitude = np.maximum(np.abs(exact).max(axis=axis, keepdims=True), 1e-30)
        assert np.allclose(scales, (magnitude / LARGEST[kind]).reshape(-1), rtol=1e-6, atol=0)
        scaled = exact.astype(np.float64) * (LARGEST[kind] / magnitude.astype(np.float64))
        found = np.asarray(values)
        assert found.dtype == kind
        # As near as the nearest number of the format; the scale may differ in its last bit.
        limit = np.abs(scaled.astype(kind).astype(np.float64) - scaled) + 1e-6 * np.abs(scaled)
        error = np.abs(found.astype(np.float64) - scaled)
        record(kind, (error / np.maximum(limit, 1e-30)).max(), error.max() / LARGEST[kind])
        assert (error <= limit).all()


@given(
    st.integers(1, 3), st.integers(1, 700), st.sampled_from([np.float16, BF16]), st.sampled_from([1, 2]),
    st.sampled_from(
        [(nl.float8_e4m3fn_x4, ml_dtypes.float8_e4m3fn, 7), (nl.float8_e5m2_x4, ml_dtypes.float8_e5m2, 14)]
    ),
)  # fmt: skip
@drawn(40)
def test_mxfp8(blocks, width, dtype, cores, kind):
    """The largest power of two that takes the largest of 32 elements no further than one exponent below the last."""
    name, element, exponent = kind
    x = normal(1, (128 * blocks, width), dtype)
    packed, scales = run(quantize_mxfp8, ("trn3", cores), x, name, label=np.dtype(element).name)
    exact = x.astype(np.float64).reshape(-1, 32, width)
    powers = np.floor(np.log2(np.abs(exact).max(1))) - exponent
    assert np.array_equal(np.asarray(scales).astype(np.int64) - 127, powers.astype(np.int64))
    wanted = (exact / 2.0 ** powers[:, None]).astype(np.float32).astype(element)
    found = np.ascontiguousarray(packed).view(np.uint8).reshape(-1, width, 4).transpose(0, 2, 1)
    assert_same(found, wanted.reshape(-1, 4, width).view(np.uint8))


def test_refused():
    x = np.zeros((128, 8), BF16)
    with pytest.raises(AssertionError, match="no operation prod: there are sum, mean and max"):
        run(reduce_rows, ("trn2", 1), x, "prod")
    with pytest.raises(AssertionError, match="no quantisation to int8"):
        run(quantize_rows, ("trn2", 1), x, nl.int8)
    with pytest.raises(AssertionError, match="K is 64: it must be a multiple of 128"):
        run(quantize_mxfp8, ("trn3", 1), x[:64])
    with pytest.raises(TrnsimError, match="NeuronCore-v4"):
        run(quantize_mxfp8, ("trn2", 1), x)
