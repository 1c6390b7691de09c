"""DMA instructions that compute or transpose, and registers that are stored, against NumPy."""

import numpy as np
import pytest
from isa_harness import assert_refused, assert_same, draw_values, given_tensor, nl, read, running, single, tensor

import trnsim.nki.isa as nisa
from trnsim.errors import HardwareError


def hbm(core, values, dtype):
    view = core.ndarray(values.shape, dtype, "hbm")
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
