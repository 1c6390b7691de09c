"""What kernels of public libraries (NKI 0.2 and 0.3) do beside the documentation's examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from trnsim import simulate
from trnsim.errors import CompilerError, HardwareError
from trnsim.nki import isa, jit
from trnsim.nki import language as nl


def output(shape, dtype=nl.float32):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)


def load(x):
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    isa.dma_copy(dst=tile, src=x)
    return tile


@dataclass
class Sizes(nl.NKIObject):
    rows: int
    left_out: int
    index = None  # no annotation, and still an argument
    factor: int | None = 3

    LIMITS = ()

    def doubled(self):
        return 2 * self.rows


def test_dataclass_fields_need_neither_annotation_nor_value():
    sizes = Sizes(rows=4, index=7)
    assert (sizes.rows, sizes.left_out, sizes.index, sizes.factor, sizes.doubled()) == (4, None, 7, 3, 8)
    with pytest.raises(TypeError):
        Sizes(rows=4, unknown=1)


@jit
def sum_of_squares(x):
    """The activated data go to a pattern with a stride of zero: only their sum is wanted."""
    tile = load(x)
    total = nl.ndarray((x.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    scratch = nl.ndarray((x.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    isa.activation_reduce(
        dst=scratch.ap(pattern=[[1, x.shape[0]], [0, x.shape[1]]]),
        op=nl.square, data=tile, reduce_op=nl.add, reduce_res=total,
    )  # fmt: skip
    out = output((x.shape[0], 1))
    isa.dma_copy(dst=out, src=total)
    return out


def test_a_sum_survives_a_zero_stride_destination():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_allclose(simulate(sum_of_squares, x, chip="trn2"), (x * x).sum(1, keepdims=True), rtol=1e-6)


@jit
def odd_partition(x):
    tile = nl.ndarray((8, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
    for row in range(8):
        isa.dma_copy(dst=tile[row : row + 1, :], src=x[7 - row : 8 - row, :], dge_mode=3)
    out = output(x.shape)
    isa.dma_copy(dst=out, src=tile)
    return out


def test_dma_starts_at_any_partition_and_takes_modes_by_number():
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.testing.assert_array_equal(simulate(odd_partition, x, chip="trn2"), x[::-1])


@jit
def gather_of_a_reshape(x, index):
    """The index counts rows of the reshaped tensor."""
    rows = x.reshape((x.shape[0] * 4, x.shape[1] // 4))
    indices = load(index)
    tile = nl.ndarray((index.shape[0], rows.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
    width = rows.shape[1]
    isa.dma_copy(dst=tile, src=rows.ap([[width, index.shape[0]], [1, width]], vector_offset=indices, indirect_dim=0))
    out = output(tile.shape)
    isa.dma_copy(dst=out, src=tile)
    return out


def test_indices_count_in_the_reshaped_tensor():
    x = np.arange(64, dtype=np.float32).reshape(4, 16)
    index = np.array([[15], [0], [6]], np.int32)
    found = simulate(gather_of_a_reshape, x, index, chip="trn2")
    np.testing.assert_array_equal(found, x.reshape(16, 4)[index[:, 0]])


@jit
def pattern_of_a_slice(x):
    tile = load(x)
    right = tile[:, 3:6]
    out = output((x.shape[0], 3))
    isa.dma_copy(dst=out, src=right.ap([[3, x.shape[0]], [1, 3]]))
    return out


def test_a_pattern_of_a_slice_counts_the_slices_own_partitions():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(simulate(pattern_of_a_slice, x, chip="trn2"), x[:, 3:])


@jit
def shape_of_an_outside_pattern(x, read=False):
    view = x.ap([[4, 128], [2, 2]], offset=1)
    tile = nl.ndarray(view.shape, dtype=x.dtype, buffer=nl.sbuf)
    isa.memset(tile, 1.0)
    if read:
        isa.dma_copy(dst=tile, src=view)
    out = output(tile.shape)
    isa.dma_copy(dst=out, src=tile)
    return out


def test_a_pattern_outside_hbm_may_be_asked_for_its_shape_only():
    x = np.zeros((8, 4), np.float32)
    assert simulate(shape_of_an_outside_pattern, x, chip="trn2").shape == (128, 2)
    with pytest.raises(HardwareError, match="leaves"):
        simulate(shape_of_an_outside_pattern, x, read=True, chip="trn2")


@jit
def optional(x, bias=None):
    tile = load(x)
    if bias:
        isa.tensor_tensor(dst=tile, data1=tile, data2=load(bias), op=nl.add)
    out = output(x.shape)
    isa.dma_copy(dst=out, src=tile)
    return out


def test_a_tensor_is_true():
    x = np.ones((4, 4), np.float32)
    np.testing.assert_array_equal(simulate(optional, x, x, chip="trn2"), x + x)
    np.testing.assert_array_equal(simulate(optional, x, chip="trn2"), x)


def test_bounds_of_range_select_may_have_more_partitions_than_the_tile():
    def kernel(x):
        tile = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
        low, high = (nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf) for _ in range(2))
        isa.dma_copy(dst=tile, src=x)
        isa.memset(low, 2.0)
        isa.memset(high, 5.0)
        out = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.shared_hbm)
        isa.range_select(tile, on_true_tile=tile, comp_op0=nl.greater_equal, comp_op1=nl.less, bound0=low, bound1=high)
        isa.dma_copy(dst=out, src=tile)
        return out

    x = np.arange(81 * 8, dtype=np.float32).reshape(81, 8)
    columns = np.arange(8)
    expected = np.where((columns >= 2) & (columns < 5), x, np.finfo(np.float32).min)
    np.testing.assert_array_equal(simulate(kernel, x), expected)


@pytest.mark.parametrize("loop", [range, nl.affine_range, nl.sequential_range, nl.static_range])
def test_a_range_is_an_index(loop):
    """nkipy's ``simple_nki_kernel``, which ran on trn2, indexes with what ``nl.affine_range`` returns."""

    def kernel(x):
        tile = load(x)
        out = output((4, 3))
        isa.dma_copy(dst=out[loop(4), loop(3)], src=tile[loop(4), loop(1, 6, 2)])
        return out

    x = np.arange(48, dtype=np.float32).reshape(4, 12)
    np.testing.assert_array_equal(simulate(kernel, x), x[:, 1:6:2])

    def outside(x):
        return load(x)[loop(4), loop(13)]

    with pytest.raises(IndexError, match="13"):
        simulate(outside, x)


def test_grid_of_nki_jit_is_that_of_calls_without():
    """A public kernel for trn3 says ``nki.jit(grid=[2])`` and launches with ``[2]`` too."""

    def kernel(x):
        out = output((1, 1), nl.int32)
        if nl.program_id(0) == 0:
            tile = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
            isa.memset(tile, nl.num_programs(0))
            isa.dma_copy(dst=out, src=tile)
        return out

    x = np.zeros((1, 1), np.float32)
    for grid in ([2], (2,), 2):
        both = jit(kernel, grid=grid)
        assert (both(x)[0, 0], both[1](x)[0, 0]) == (2, 1)
    assert jit(kernel)(x)[0, 0] == 1
    with pytest.raises(CompilerError, match="grids of several dimensions"):
        jit(kernel, grid=[2, 2])
    with pytest.raises(CompilerError, match="1 or 2 cores"):
        jit(grid=3)(kernel)
