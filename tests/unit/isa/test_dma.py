"""DMA instructions that compute or transpose, and registers that are stored, against NumPy."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_harness import assert_refused, assert_same, draw_values, given_tensor, nl, read, running, single, tensor

import trnsim.nki.isa as nisa
from trnsim.errors import HardwareError
from trnsim.hardware.load import load_chip
from trnsim.hardware.timing_constants import load_timing


def hbm(core, values, dtype, memory="hbm"):
    view = core.ndarray(values.shape, dtype, memory)
    view.array()[...] = values
    view.storage.full = True
    return view


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("memory", ["hbm", "sbuf"])
def test_dma_compute_adds(count, memory):
    parts = [draw_values(i, "float32", 16, 12) for i in range(count)]
    with running() as core:
        sources = [hbm(core, p, "float32") for p in parts]
        dst = core.ndarray((16, 12), "float32", memory)
        nisa.dma_compute(dst, sources, nl.add)
        expected = parts[0]
        for part in parts[1:]:
            expected = single(expected.astype(np.float64) + part)
        assert_same(read(dst), expected)


def test_dma_compute_adds_to_chosen_rows():
    base, rows = draw_values(7, "float32", 10, 8), draw_values(8, "float32", 4, 8)
    chosen = np.array([[7], [0], [3], [9]], np.int32)
    with running() as core:
        table, source = hbm(core, base, "float32"), given_tensor(core, rows, "float32")
        index = given_tensor(core, chosen, "int32")
        view = table.ap([[8, 4], [1, 8]], vector_offset=index)
        nisa.dma_compute(view, [view, source], nl.add)
        expected = base.copy()
        expected[chosen[:, 0]] += rows
        assert_same(table.array(), expected)


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from([[[1, 8]], [[2, 4]], [[0, 3], [1, 8]], [[4, 2], [1, 3]], [[1, 4], [4, 2]], [[1, 12]]]),
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    outside=st.booleans(),
    dtypes=st.sampled_from([("float32", "float32"), ("bfloat16", "float32"), ("int32", "uint32")]),
)
def test_dma_copy_gathers_and_scatters_any_pattern(pattern, rows, outside, dtypes):
    """``[[0, 3], ...]`` repeats, ``[[1, 12]]`` reaches into the next row: rows overlap."""
    kind = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int32": np.int32, "uint32": np.uint32}
    table = np.arange(12 * 8).reshape(12, 8).astype(kind[dtypes[0]])
    picked = [*rows, 12] if outside else rows
    free = np.zeros(1, int)
    for stride, count in pattern:
        free = (free[:, None] + np.arange(count) * stride).ravel()
    shape = (len(picked), *(count for _, count in pattern))
    with running() as core:
        source = hbm(core, table, dtypes[0])
        index = given_tensor(core, np.array(picked, np.int32)[:, None], "int32")
        dst = hbm(core, np.zeros(shape, kind[dtypes[1]]), dtypes[1], "sbuf")
        view = source.ap([[8, len(picked)], *pattern], vector_offset=index)
        nisa.dma_copy(dst, view, oob_mode=nisa.oob_mode.skip)
        expected = np.zeros((len(picked), free.size), kind[dtypes[1]])
        for i, row in enumerate(rows):
            expected[i] = table.reshape(-1)[row * 8 + free].astype(kind[dtypes[1]])
        assert_same(dst.array(), expected.reshape(shape))

        values = (100 + np.arange(np.prod(shape))).reshape(shape).astype(kind[dtypes[0]])
        nisa.dma_copy(view, hbm(core, values, dtypes[0], "sbuf"), oob_mode=nisa.oob_mode.skip)
        expected = table.reshape(-1).copy()
        for i, row in enumerate(rows):
            expected[row * 8 + free] = values[i].reshape(-1)
        assert_same(source.array(), expected.reshape(12, 8))


def test_dma_compute_limits():
    with running() as core:
        x = hbm(core, draw_values(9, "float32", 4, 4), "float32")
        dst = core.ndarray((4, 4), "float32", "hbm")
        for operand, call in (
            ("reduce_op", lambda: nisa.dma_compute(dst, [x], nl.multiply)),
            ("srcs", lambda: nisa.dma_compute(dst, [x] * 17, nl.add)),
            ("scales", lambda: nisa.dma_compute(dst, [x], nl.add, scales=[2.0])),
        ):
            with pytest.raises(HardwareError) as caught:
                call()
            assert caught.value.operand == operand


@pytest.mark.parametrize(
    ("shape", "order"), [((12, 20), (1, 0)), ((3, 4, 20), (2, 1, 0)), ((3, 2, 4, 20), (3, 1, 2, 0))]
)
def test_dma_transpose(shape, order):
    values = np.random.default_rng(10).integers(-99, 99, shape).astype(np.float32)
    with running() as core:
        source = hbm(core, values, "float32")
        dst = core.ndarray(tuple(shape[a] for a in order), "float32")
        nisa.dma_transpose(dst, source)
        assert_same(dst.array(), values.transpose(order))


@pytest.mark.parametrize(
    ("shape", "tiles"),
    [((128, 1024), 64), ((128, 512), 32), ((64, 512), 32), ((128, 1000), 63), ((128, 8), 1), ((100, 20), 2)],
)
def test_a_transposition_takes_the_time_of_its_tiles(shape, tiles):
    """128 partitions by 16 elements at 90 % of the engines' rate, full or not; runs of the source do not matter."""
    timing = load_timing(load_chip("trn2"))
    with running("v3") as core:
        partitions, columns = shape
        source = hbm(core, np.zeros((columns, partitions), np.float32), "bfloat16")
        nisa.dma_transpose(core.ndarray(shape, "bfloat16"), source)
        klass = core.trace.classes[-1]
        (transfer,) = klass.instruction.cost(timing, klass, "dma")
    total = sum(n * t for (_, n), t in zip(transfer.descriptors, transfer.engine_ps, strict=True))
    assert total == pytest.approx(tiles * 4096 / (0.9 * 23.0) * 1000, rel=1e-3)
    assert sum(size * n for size, n in transfer.descriptors) == tiles * 4096


def test_dma_transpose_limits():
    with running() as core:
        source = hbm(core, draw_values(11, "float32", 4, 6), "float32")
        dst = tensor(core, "float32", 6, 4)
        assert_refused(HardwareError, "dst", lambda: nisa.dma_transpose(tensor(core, "float32", 4, 6), source))
        assert_refused(HardwareError, "axes", lambda: nisa.dma_transpose(dst, source, axes=(0, 1)))


@pytest.mark.parametrize("value", [0, 7, -5, 2**31 - 1])
def test_registers_are_stored(value):
    with running() as core:
        register = nisa.register_alloc(value)
        dst = tensor(core, "int32", 1, 1)
        nisa.register_store(dst, register)
        assert read(dst).tolist() == [[value]]
        loaded = nisa.register_alloc()
        nisa.register_load(loaded, dst)
        assert int(loaded) == value


def test_the_silicon_revision():
    with running():
        assert nisa.get_nc_sub_version() == 0
