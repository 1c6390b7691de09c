"""Making and moving tensors with ``nki.language``."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from trnsim.errors import CompilerError, HardwareError, InputError, UnsupportedError
from trnsim.nki import language as nl

sys.path.insert(0, str(Path(__file__).parent))
from test_language_harness import as_stored, run

RNG = np.random.default_rng(3)
X = RNG.normal(size=(16, 24)).astype(np.float32)
DTYPES = [
    "float32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2", "float8_e4m3fn", "int8", "int16", "int32", "uint8",
    "uint16", "uint32",
]  # fmt: skip


# -- creation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("buffer", [nl.sbuf, nl.psum, nl.private_hbm, nl.shared_hbm])
def test_filled_tensors(dtype, buffer):
    kind = getattr(nl, dtype)
    got = run(
        lambda: (
            nl.zeros((8, 3, 5), kind, buffer),
            nl.ones((8, 3, 5), kind, buffer),
            nl.full((8, 3, 5), 6.0, kind, buffer),
        )
    )
    for tensor, values, number in zip(got.tensor, got.values, (0, 1, 6), strict=True):
        assert (tensor.shape, tensor.dtype, tensor.buffer) == ((8, 3, 5), dtype, buffer)
        assert (values.astype(np.float32) == number).all()
    assert not got.findings


@pytest.mark.parametrize("shape", [(7,), (3, 5000), (1000, 300), (2, 3, 4, 5), (128, 2048), (129, 2049)])
def test_hbm_of_any_size_is_filled(shape):
    got = run(lambda: nl.full(shape, 2.5, nl.float32, buffer=nl.shared_hbm))
    assert (got.values == 2.5).all()
    assert got.values.shape == shape
    assert not got.findings


def test_packed_formats_are_filled_with_zero_only():
    assert (run(lambda: nl.zeros((32, 4), nl.float8_e4m3fn_x4)).values == 0).all()
    with pytest.raises(HardwareError, match="0 only"):
        run(lambda: nl.ones((32, 4), nl.float8_e4m3fn_x4))


def test_an_integer_tile_takes_no_fraction():
    with pytest.raises(CompilerError, match="takes an integer"):
        run(lambda: nl.full((4, 4), 0.5, nl.int32))
    with pytest.raises(CompilerError, match="must be a number"):
        run(lambda t: nl.full((4, 4), t, nl.int32), X)


def test_like():
    def function(t):
        other = nl.ndarray((4, 5), nl.bfloat16, nl.psum)
        return nl.zeros_like(t), nl.zeros_like(t, nl.int8, nl.psum), nl.empty_like(other), nl.empty_like(t, nl.int8)

    zeros, psum_zeros, empty, small = run(function, X).tensor
    assert (zeros.shape, zeros.dtype, zeros.buffer) == ((16, 24), "float32", nl.sbuf)
    assert (psum_zeros.dtype, psum_zeros.buffer) == ("int8", nl.psum)
    assert (empty.shape, empty.dtype, empty.buffer) == ((4, 5), "bfloat16", nl.psum)
    assert (small.dtype, small.buffer) == ("int8", nl.sbuf)


def test_ndarray_passes_everything_on():
    got = run(lambda: nl.ndarray((4, 5), dtype=nl.float32, buffer=nl.psum, name="acc", address=(32, 2048)))
    assert (got.tensor.name, got.tensor.address) == ("acc", (32, 2048))
    with pytest.raises(HardwareError, match="partition size 129 exceeds 128"):
        run(lambda: nl.ndarray((129, 4), nl.float32))


def test_shared_constant(tmp_path):
    np.save(tmp_path / "constant.npy", X)
    for given in (X, tmp_path / "constant.npy", str(tmp_path / "constant.npy")):
        got = run(lambda given=given: nl.shared_constant(given))
        np.testing.assert_array_equal(got.values, X)
        assert got.tensor.buffer is nl.shared_hbm
    got = run(lambda: (nl.shared_constant(X), nl.shared_constant(X.copy())))
    assert got.tensor[0].storage is got.tensor[1].storage
    with pytest.raises(InputError, match="cannot read"):
        run(lambda: nl.shared_constant(str(tmp_path / "missing.npy")))
    with pytest.raises(CompilerError, match="NumPy array"):
        run(lambda: nl.shared_constant(3))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_shared_identity_matrix(dtype):
    kind = getattr(nl, dtype)
    got = run(lambda: (nl.shared_identity_matrix(32, kind), nl.shared_identity_matrix(n=32, dtype=kind)))
    assert got.tensor[0] is got.tensor[1]
    assert got.instructions == ["dma_copy"]
    np.testing.assert_array_equal(got.values[0].astype(np.float32), np.eye(32))
    assert run(lambda: nl.shared_identity_matrix(8)).tensor.dtype == nl.uint8

    def into():
        tile = nl.ndarray((16, 16), kind)
        return nl.shared_identity_matrix(16, kind, dst=tile)

    np.testing.assert_array_equal(run(into).values.astype(np.float32), np.eye(16))


@pytest.mark.parametrize("buffer", [nl.sbuf, nl.psum, nl.shared_hbm])
def test_rand(buffer):
    got = run(lambda: nl.rand((128, 256), nl.float32, buffer))
    assert got.tensor.buffer is buffer
    assert 0 <= got.values.min() < 0.01
    assert 0.99 < got.values.max() < 1
    assert abs(got.values.mean() - 0.5) < 0.01
    assert run(lambda: nl.rand((4, 4), nl.bfloat16)).tensor.dtype == nl.bfloat16
    with pytest.raises(CompilerError, match="float dtype"):
        run(lambda: nl.rand((4, 4), nl.int32))


def test_equal_seeds_give_equal_numbers():
    def function(seed):
        nl.random_seed(seed)
        first = nl.rand((16, 16), nl.float32)
        nl.random_seed(seed)
        return first, nl.rand((16, 16), nl.float32), nl.rand((16, 16), nl.float32)

    first, second, third = run(function, np.full((1, 1), 42, np.int32)).values
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


# -- movement ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_and_store(dtype):
    data = as_stored(np.round(X * 3).clip(0), dtype)

    def function(t):
        tile = nl.load(t[0:8])
        out = nl.ndarray((8, 24), tile.dtype, nl.shared_hbm)
        nl.store(out, value=tile)
        return out

    got = run(function, data, load=False)
    np.testing.assert_array_equal(got.values, data[:8])
    assert got.instructions == ["dma_copy", "dma_copy"]


def test_load_converts():
    got = run(lambda t: nl.load(t, dtype=nl.bfloat16), X, load=False)
    np.testing.assert_array_equal(got.values, X.astype(ml_dtypes.bfloat16))


def test_load_and_store_check_their_memories():
    with pytest.raises(HardwareError, match=r"partition size 256 exceeds 128 \(nl.load src"):
        run(nl.load, np.ones((256, 4), np.float32), load=False)
    with pytest.raises(HardwareError, match="src must be in HBM"):
        run(nl.load, X)
    with pytest.raises(CompilerError, match="tensor in HBM, not ndarray"):
        run(lambda t: nl.load(X), X)
    with pytest.raises(HardwareError, match="dst must be in HBM"):
        run(lambda t: nl.store(t, t), X)
    with pytest.raises(HardwareError, match="value is in HBM"):
        run(lambda t: nl.store(t, t), X, load=False)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, ml_dtypes.bfloat16])
def test_copy(dtype):
    data = (X * 1e6).astype(dtype)
    got = run(nl.copy, data)
    np.testing.assert_array_equal(got.values, data)
    assert got.instructions == ["tensor_copy"]
    assert run(lambda t: nl.copy(t, nl.float16), data).tensor.dtype == nl.float16


def test_copy_is_exact_for_large_integers():
    data = np.array([[2**31 - 1, 2**24 + 1, -(2**31)]], np.int32)
    np.testing.assert_array_equal(run(nl.copy, data).values, data)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_load_transpose2d(dtype):
    data = X.astype(dtype)
    got = run(nl.load_transpose2d, data, load=False)
    np.testing.assert_array_equal(got.values, data.T)
    assert got.tensor.buffer is nl.sbuf
    assert run(lambda t: nl.load_transpose2d(t, nl.float32), data, load=False).tensor.dtype == nl.float32


@pytest.mark.parametrize("index", [np.uint32, np.int32, np.uint16])
def test_gather_flattened(index):
    data, at = RNG.normal(size=(8, 4, 6)).astype(np.float32), RNG.integers(0, 24, (8, 10)).astype(index)
    got = run(nl.gather_flattened, data, at)
    np.testing.assert_array_equal(got.values, np.take_along_axis(data.reshape(8, 24), at.astype(int), axis=1))
    with pytest.raises(UnsupportedError, match="axis 0"):
        run(lambda d, i: nl.gather_flattened(d, i, axis=1), data, at)


@pytest.mark.parametrize("dtype", [*DTYPES[:5], "int32", "uint8"])
@pytest.mark.parametrize(
    ("shape", "to"),
    [((1, 24), (128, 24)), ((1, 24), (100, 24)), ((1, 1300), (128, 1300)), ((1, 4, 1), (16, 4, 5)), ((8, 1), (8, 7)),
     ((8, 1, 3), (8, 5, 3)), ((1, 1), (128, 64)), ((1, 600, 1), (64, 600, 2))],
)  # fmt: skip
def test_broadcast_to(dtype, shape, to):
    data = as_stored(np.round(RNG.normal(size=shape) * 20), dtype)
    got = run(lambda t: nl.broadcast_to(t, to), data)
    np.testing.assert_array_equal(got.values, np.broadcast_to(data, to))
    assert got.tensor.buffer is nl.sbuf
    assert not got.findings


def test_broadcast_to_the_same_shape():
    def function(t):
        return t, nl.broadcast_to(t, (16, 24)), nl.broadcast_to(t, (16, 24), dtype=nl.bfloat16)

    got = run(function, X)
    assert got.tensor[0] is got.tensor[1]
    assert got.tensor[2].dtype == nl.bfloat16
    for shape in ((16, 25), (24,), (2, 16, 24)):
        with pytest.raises(CompilerError, match="does not broadcast"):
            run(lambda t, shape=shape: nl.broadcast_to(t, shape), X)


def test_partitions_are_broadcast_by_tensor_engine():
    got = run(lambda t: (nl.broadcast_to(t, (128, 24)), nl.broadcast_to(t, (64, 24))), X[:1].copy())
    assert got.instructions == ["memset", "nc_matmul", "activation", "nc_matmul", "activation"]
    got = run(lambda t: nl.broadcast_to(t, (128, 24)), X[:1].astype(np.int32))
    assert got.instructions == ["nc_stream_shuffle"] * 4


def test_expand_dims():
    assert run(lambda t: nl.expand_dims(t, 1), X).tensor.shape == (16, 1, 24)
    assert run(lambda t: nl.expand_dims(t, -1), X).tensor.shape == (16, 24, 1)
    assert run(lambda t: nl.expand_dims(t, 0), X, load=False).tensor.shape == (1, 16, 24)
    with pytest.raises(HardwareError, match="partition"):
        run(lambda t: nl.expand_dims(t, 0), X)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3"])
@pytest.mark.parametrize("shape", [(16, 24), (128, 128), (128, 3)])
def test_transpose(dtype, shape):
    data = as_stored(RNG.normal(size=shape), dtype)
    got = run(nl.transpose, data)
    np.testing.assert_array_equal(got.values, data.T)
    assert (got.tensor.buffer, got.tensor.dtype) == (nl.psum, dtype)


def test_transpose_converts_and_checks():
    got = run(lambda t: nl.transpose(t, dtype=nl.bfloat16), X)
    np.testing.assert_array_equal(got.values, X.T.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(run(lambda t: nl.transpose(nl.transpose(t)), X).values, X)
    with pytest.raises(HardwareError, match="partition size 200 exceeds 128"):
        run(nl.transpose, np.ones((8, 200), np.float32))
    with pytest.raises(CompilerError, match="two dimensions"):
        run(nl.transpose, np.ones((8, 2, 3), np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize("generation", ["v2", "v3", "v4"])
def test_matmul(dtype, transpose_x, generation):
    x, y = as_stored(RNG.normal(size=(24, 32)), dtype), as_stored(RNG.normal(size=(32, 40)), dtype)
    given = np.ascontiguousarray(x.T) if transpose_x else x
    got = run(lambda a, b: nl.matmul(a, b, transpose_x=transpose_x), given, y, generation=generation)
    assert (got.tensor.buffer, got.tensor.dtype, got.tensor.shape) == (nl.psum, nl.float32, (24, 40))
    # 32 products, summed in float32.
    np.testing.assert_allclose(got.values, x.astype(np.float64) @ y.astype(np.float64), rtol=1e-5, atol=1e-5)
    assert got.instructions == (["nc_matmul"] if transpose_x else ["nc_transpose", "tensor_copy", "nc_matmul"])


def test_matmul_takes_tiles_in_sbuf():
    with pytest.raises(HardwareError, match="SBUF"):
        run(lambda t: nl.matmul(t, nl.transpose(t)), X)
