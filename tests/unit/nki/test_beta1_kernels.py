"""NKI 0.1 (``neuronxcc.nki``): kernels, unplaced results, masks, index expressions, grids, allocators, launchers."""

from __future__ import annotations

import numpy as np
import pytest

import trnsim
from trnsim.errors import CompilerError, UnsupportedError
from trnsim.nki.versions import beta1 as nki
from trnsim.nki.versions.beta1 import compiler as ncc
from trnsim.nki.versions.beta1 import isa as nisa
from trnsim.nki.versions.beta1 import language as nl


def data(*shape, dtype=np.float32):
    return (np.random.default_rng(0).random(shape) * 4 - 2).astype(dtype)


def recorded(kernel, *args):
    """The names of the instructions that a call records, and what it returns."""
    session = trnsim.Session(trnsim.SimulationOptions(chip="trn2"))
    with session.active():
        result = kernel(*args)
    trace = session.calls[-1].traces[0]
    return [trace.classes[k].name.removeprefix("nki.isa.") for k in trace.instructions["klass"]], result


# -- unplaced results --------------------------------------------------------------------------------------------------


def test_assignment_makes_its_target_the_destination():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        tile = nl.load(a)
        half = nl.ndarray((128, 64), dtype=nl.bfloat16)
        half[...] = nl.exp(tile)
        nl.store(out, nl.add(half, 1.0))
        return out

    names, result = recorded(kernel, data(128, 64))
    assert names == ["dma_copy", "activation", "tensor_scalar", "dma_copy"]
    np.testing.assert_allclose(result, np.exp(data(128, 64)) + 1, rtol=2**-8)


@pytest.mark.parametrize("other", [(128, 12), (128, 12, 1), (128, 1, 12), (128, 3, 4), (128, 2, 6), (128, 4, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_tiles_of_as_many_elements_a_partition_go_element_by_element(other, masked):
    """``nisa.tensor_tensor`` asks for the same number of elements a partition, in whatever shape."""

    @nki.jit
    def kernel(a, b):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        x, y = nl.load(a), nl.load(b)
        tile = nl.zeros(a.shape, dtype=a.dtype)
        i_x = nl.mgrid[0:128, 0:4, 0:3].x
        tile[...] = nisa.tensor_tensor(x, y, op=nl.subtract, mask=(i_x < 3) if masked else None)
        nl.store(out, tile)
        return out

    a, b = data(128, 4, 3), data(*other)
    expected = a - b.reshape(a.shape)
    if masked:
        expected[:, 3] = 0
    names, result = recorded(kernel, a, b)
    assert [n for n in names if n != "dma_copy"] == ["memset", "tensor_tensor"]
    np.testing.assert_array_equal(result, expected)


def test_products_accumulate_in_psum_without_memset_or_add():
    @nki.jit
    def kernel(a, b):
        out = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.shared_hbm)
        total = nl.zeros((64, 32), dtype=nl.float32, buffer=nl.psum)
        for k in nl.affine_range(2):
            total += nisa.nc_matmul(nl.load(a[nl.ds(k * 128, 128)]), nl.load(b[nl.ds(k * 128, 128)]))
        nl.store(out, total)
        return out

    a, b = data(256, 64), data(256, 32)
    names, result = recorded(kernel, a, b)
    assert [n for n in names if n != "dma_copy"] == ["nc_matmul", "nc_matmul.accumulate", "tensor_copy"]
    np.testing.assert_allclose(result, a.T @ b, atol=256 * 4 * 2**-24)


def test_zeros_in_psum_are_zeros_where_nothing_multiplies():
    @nki.jit
    def kernel():
        out = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.zeros((64, 32), dtype=nl.float32, buffer=nl.psum))
        return out

    names, result = recorded(kernel)
    assert names[0] == "memset"
    assert not result.any()


def test_results_are_computed_in_the_order_of_the_program():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        tile = nl.load(a)
        doubled = nl.multiply(tile, 2.0)
        tile[...] = 0
        nl.store(out, doubled)
        return out

    np.testing.assert_array_equal(kernel(data(8, 8)), 2 * data(8, 8))


def test_a_call_is_recorded_with_its_own_line():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        tile = nl.load(a)
        result = nl.exp(tile)
        nl.store(out, result)
        return out

    session = trnsim.Session()
    with session.active():
        kernel(data(8, 8))
    trace = session.calls[-1].traces[0]
    lines = [trace.lines[i].line for i in trace.instructions["line"]]
    assert lines == sorted(lines)
    assert len(set(lines)) == 3


# -- masks and index expressions ---------------------------------------------------------------------------------------


def test_masked_elements_stay():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        i, j = nl.mgrid[0:128, 0:64]
        tile = nl.full((128, 64), 7.0, dtype=nl.float32)
        tile[i, j] = nl.load(a[i, j], mask=(i < 32) & (j >= 60))
        nl.store(out, tile)
        return out

    expected = np.full((128, 64), 7, np.float32)
    expected[:32, 60:] = data(128, 64)[:32, 60:]
    np.testing.assert_array_equal(kernel(data(128, 64)), expected)


def test_a_mask_makes_an_access_beyond_the_tensor_legal():
    @nki.jit
    def kernel(a, masked):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        i, j = nl.mgrid[0:128, 0:512]
        for n in nl.affine_range(2):
            keep = (n * 512 + j < 700) if masked else None
            nl.store(out[i, n * 512 + j], nl.load(a[i, n * 512 + j], mask=keep), mask=keep)
        return out

    np.testing.assert_array_equal(kernel(data(128, 700), True), data(128, 700))
    with pytest.raises(IndexError, match=r"index range \[512, 1023\] exceed dimension size of 700"):
        kernel(data(128, 700), False)


def test_a_mask_that_is_no_rectangle():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        i, j = nl.mgrid[0:16, 0:16]
        tile = nl.zeros((16, 16), dtype=nl.float32)
        tile[i, j] = nl.load(a[i, j], mask=i >= j)
        nl.store(out, tile)
        return out

    np.testing.assert_array_equal(kernel(data(16, 16)), np.tril(data(16, 16)))


def test_and_of_predicates_is_their_conjunction():
    i, j = nl.mgrid[0:8, 0:8]
    from trnsim.nki.versions.beta1.index import merged

    mask = merged(i < 4 and j < 2)
    assert mask.boxes((8, 8)) == [((0, 4), (0, 2))]
    with pytest.raises(CompilerError, match="control flow"):
        if i < 4:
            pass


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (lambda i: 3 * i + 1, lambda n: 3 * n + 1),
        (lambda i: (4 * i + 2) // 2, lambda n: (4 * n + 2) // 2),
        (lambda i: (8 * i + 3) % 4, lambda n: (8 * n + 3) % 4),
        (lambda i: 5 - i, lambda n: 5 - n),
    ],
)
def test_index_arithmetic(expression, expected):
    np.testing.assert_array_equal(expression(nl.arange(10)).array(), expected(np.arange(10)))


def test_index_arithmetic_that_is_not_affine():
    with pytest.raises(UnsupportedError, match="not affine"):
        nl.arange(10) // 3


def test_gather_through_an_index_tile():
    @nki.jit
    def kernel(table, rows):
        out = nl.ndarray((64, 32), dtype=table.dtype, buffer=nl.shared_hbm)
        i, j = nl.arange(64)[:, None], nl.arange(32)[None, :]
        index = nl.load(rows[i])
        nl.store(out, nl.load(table[index[i, 0], j]))
        return out

    rows = np.random.default_rng(1).permutation(100)[:64].astype(np.int32)
    np.testing.assert_array_equal(kernel(data(100, 32), rows), data(100, 32)[rows])


def test_affine_select_and_iota():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        i, j = nl.mgrid[0:32, 0:32]
        kept = nisa.affine_select(pred=(i >= j) & (j > 2), on_true_tile=nl.load(a), on_false_value=-1.0)
        nl.store(out, kept + nisa.iota(2 * i + j, dtype=nl.float32))
        return out

    i, j = np.mgrid[0:32, 0:32]
    np.testing.assert_allclose(kernel(data(32, 32)), np.where((i >= j) & (j > 2), data(32, 32), -1) + 2 * i + j)


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_block_dimensions():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        tiles = nl.zeros((2, 3, nl.par_dim(64), 16), dtype=a.dtype)
        for b in nl.affine_range(2):
            row = tiles[b]
            for c in nl.affine_range(3):
                row[c] = nl.load(a[b, c])
                row[c, :, 0:1] = 5
                nl.store(out[b, c], tiles[b, c, :, :])
        return out

    expected = data(2, 3, 64, 16)
    expected[..., 0] = 5
    np.testing.assert_array_equal(kernel(data(2, 3, 64, 16)), expected)


def test_python_operators_and_broadcasting():
    @nki.jit
    def kernel(a, row):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        x, y = nl.load(a), nl.load(row)
        z = -((x - y) * 2 / (1 + x * x)) + (x > 0)
        z += nl.sum(x, axis=1, keepdims=True)
        nl.store(out, z)
        return out

    a, row = data(64, 32), data(1, 32)
    expected = -((a - row) * 2 / (1 + a * a)) + (a > 0) + a.sum(1, keepdims=True)
    np.testing.assert_allclose(kernel(a, row), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [("int32", 2, "int32"), ("int32", 2.5, "float32"), ("bfloat16", 2.5, "bfloat16"), ("int8", "uint16", "int32"),
     ("float16", "bfloat16", "float32"), ("float8_e4m3", "float8_e5m2", "bfloat16")],
)  # fmt: skip
def test_promotion(x, y, expected):
    found = []

    @nki.jit
    def kernel():
        a = nl.zeros((4, 4), dtype=x)
        found.append((a * (nl.zeros((4, 4), dtype=y) if isinstance(y, str) else y)).kind)

    kernel()
    assert found == [expected]


def test_dtypes_are_numpys():
    @nki.jit
    def kernel(a):
        assert a.dtype == nl.bfloat16
        assert a.dtype != nl.float32
        return nl.empty_like(a)

    assert kernel(data(4, 4, dtype=nl.bfloat16)).dtype == nl.bfloat16


def test_numbers_are_not_carried_between_iterations_of_a_traced_loop():
    seen = {"affine": [], "static": []}

    @nki.jit
    def kernel():
        offset = 16
        for _ in nl.affine_range(3):
            seen["affine"].append(offset)
            offset += 8
        for _ in nl.static_range(2):
            offset += 1
            seen["static"].append(offset)

    kernel()
    assert seen == {"affine": [16, 16, 16], "static": [25, 26]}


def test_loop_reduce():
    @nki.jit
    def kernel(a):
        out = nl.ndarray((64, 16), dtype=nl.float32, buffer=nl.shared_hbm)
        total = nl.ndarray((64, 16), dtype=nl.float32)
        for k in nl.affine_range(4):
            total[...] = nl.loop_reduce(nl.load(a[k]), op=np.add, loop_indices=[k])
        nl.store(out, total)
        return out

    np.testing.assert_allclose(kernel(data(4, 64, 16)), data(4, 64, 16).sum(0), rtol=1e-6, atol=1e-6)


def test_allocators_place_tiles():
    places = []

    @nki.jit
    def kernel():
        tiles = nl.ndarray(
            (4, nl.par_dim(32), 64), dtype=nl.float32, buffer=ncc.sbuf.mod_alloc(base_addr=1024, num_free_tiles=(2,))
        )
        banks = nl.ndarray((2, nl.par_dim(32), 64), dtype=nl.float32, buffer=ncc.psum.alloc(bank))
        places.extend(tiles[n].tile.address for n in range(4))
        places.append(banks[1].tile.address)

    def bank(idx, pdim_size, fdim_size):
        assert (pdim_size, fdim_size) == (32, 256)
        return 3 + idx[0], 0, 0

    kernel()
    assert places == [(0, 1024), (0, 1280), (0, 1024), (0, 1280), (0, 4 * 2048)]


# -- launching ---------------------------------------------------------------------------------------------------------


@nki.jit
def grid_kernel(a):
    out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
    i, j = nl.program_id(0), nl.program_id(1)
    nl.store(out[i, j], nl.load(a[i, j]) * (10 * i + j))
    assert (nl.num_programs(0), nl.num_programs(1), nl.program_ndim()) == (3, 2, 2)
    return out


@pytest.mark.parametrize("grid", [(3, 2), (nl.spmd_dim(nl.nc(1), 3), nl.nc(2))])
def test_grids(grid):
    a = data(3, 2, 16, 8)
    factor = 10 * np.arange(3)[:, None] + np.arange(2)
    np.testing.assert_allclose(grid_kernel[grid](a), a * factor[:, :, None, None], rtol=1e-6)


def test_wrappers_peel():
    a = data(3, 2, 16, 8)
    expected = grid_kernel[3, 2](a)
    np.testing.assert_array_equal(nki.simulate_kernel(nki.baremetal(grid_kernel)[3, 2], a), expected)
    np.testing.assert_array_equal(nki.simulate_kernel(nki.benchmark(grid_kernel)[3, 2], a), expected)


def test_legacy_kernels_write_their_arguments():
    @nki.trace
    def kernel(a, out):
        nl.store(out, nl.exp(nl.load(a)))

    out = np.zeros((16, 8), np.float32)
    nki.simulate_kernel(kernel, data(16, 8), out)
    np.testing.assert_allclose(out, np.exp(data(16, 8)), rtol=1e-6)


def test_benchmark_predicts_a_latency():
    @nki.benchmark(warmup=5, iters=10)
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        nl.store(out, nl.exp(nl.load(a)))
        return out

    assert kernel(data(128, 512)) is None
    latency = kernel.benchmark_result.nc_latency
    assert 1 < latency.get_latency_percentile(50) < 100
    assert latency.get_latency_percentile(99) == latency.get_latency_percentile(1)
    assert latency.clock == "kernel"
    assert latency.schedule == "tensorizer"


def test_imports():
    trnsim.install()
    import neuronxcc.nki
    import neuronxcc.nki.isa as first
    from neuronxcc.nki.isa.constants import dge_mode

    assert neuronxcc.nki is nki
    assert first is nisa
    assert dge_mode is nisa.dge_mode
    with pytest.raises(ModuleNotFoundError):
        import neuronxcc.nki.nothing
