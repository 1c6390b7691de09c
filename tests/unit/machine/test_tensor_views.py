"""Views of a tensor against NumPy's views of the same elements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware import load_chip
from trnsim.machine import core as machine
from trnsim.machine.launch import Program
from trnsim.machine.regions import MemoryRegion


@pytest.fixture
def core():
    program = Program(load_chip("trn2"))
    before = machine.set_current(program.cores[0])
    yield program.cores[0]
    machine.set_current(before)


def make(core, shape, memory=MemoryRegion.sbuf, dtype="float32"):
    tensor = core.ndarray(shape, dtype, memory)
    values = np.arange(np.prod(shape)).reshape(shape).astype(tensor.dtype.numpy)
    tensor.array()[...] = values
    return tensor, values


def same(view, expected):
    assert view.shape == expected.shape
    np.testing.assert_array_equal(view.array(), expected)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(data=st.data())
def test_basic_indexing(data):
    program = Program(load_chip("trn2"))
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    memory = data.draw(st.sampled_from([MemoryRegion.sbuf, MemoryRegion.shared_hbm]))
    tensor, values = make(program.cores[0], shape, memory)
    keys, reference = [], []
    for dim, size in enumerate(shape[: data.draw(st.integers(1, len(shape)))]):
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, size - 1))
            stop = data.draw(st.integers(start + 1, size))
            step = data.draw(st.integers(1, 3))
            keys.append(slice(start, stop, step))
            reference.append(slice(start, stop, step))
        else:
            index = data.draw(st.integers(-size, size - 1))
            keys.append(index)
            first = index % size
            keep = dim == 0 and memory is MemoryRegion.sbuf
            reference.append(slice(first, first + 1) if keep else index)
    expected = values[tuple(reference)]
    least = 2 if memory is MemoryRegion.sbuf else 1
    while expected.ndim < least:
        expected = expected[..., None]
    same(tensor[tuple(keys)], expected)


def test_documented_corner_cases(core):
    tensor, values = make(core, (4, 3, 5))
    assert tensor[:, 0, 2].shape == (4, 1)
    assert tensor[0, 0, 2].shape == (1, 1)
    same(tensor[0], values[0:1])
    same(tensor[...], values)
    same(tensor[..., 1], values[..., 1])
    same(tensor[1:3][:, 1], values[1:3, 1])
    hbm, values = make(core, (4, 3), MemoryRegion.shared_hbm)
    same(hbm[2], values[2])
    assert hbm[2, 1].shape == (1,)


@pytest.mark.parametrize("key", [slice(0, 9), slice(3, 3), 4, -5, slice(2, 1)])
def test_out_of_range_is_an_error(core, key):
    tensor, _ = make(core, (4, 3))
    with pytest.raises(IndexError, match="out of range for dimension 0"):
        tensor[key]


def test_shape_views(core):
    tensor, values = make(core, (4, 2, 3, 5))
    same(tensor.permute((0, 2, 1, 3)), values.transpose(0, 2, 1, 3))
    same(tensor.reshape((4, 30)), values.reshape(4, 30))
    same(tensor.reshape((4, 5, 6)), values.reshape(4, 5, 6))
    same(tensor.flatten_dims(1, 2), values.reshape(4, 6, 5))
    same(tensor.reshape_dim(3, (5, -1)), values.reshape(4, 2, 3, 5, 1))
    same(tensor.expand_dim(1), values[:, None])
    same(tensor.expand_dim(1).squeeze_dim(1), values)
    same(tensor.expand_dim(2).broadcast(2, 7), np.broadcast_to(values[:, :, None], (4, 2, 7, 3, 5)))
    same(tensor.slice(3, 1, 5, 2), values[..., 1:5:2])
    same(tensor.select(2, 1), values[:, :, 1])
    same(
        tensor.rearrange(("p", "a", "b", "c"), ("p", "c", ("a", "b"))),
        values.transpose(0, 3, 1, 2).reshape(4, 5, 6),
    )


def test_views_that_do_not_exist(core):
    tensor, _ = make(core, (4, 2, 3))
    with pytest.raises(CompilerError, match="layout"):
        tensor.permute((0, 2, 1)).reshape((4, 6))
    with pytest.raises(CompilerError, match="contiguous"):
        tensor.permute((0, 2, 1)).flatten_dims(1, 2)
    with pytest.raises(HardwareError, match="partition dimension"):
        tensor.permute((1, 0, 2))
    with pytest.raises(HardwareError, match="partition dimension"):
        tensor.reshape((8, 3))
    with pytest.raises(HardwareError, match="partition dimension"):
        tensor.expand_dim(0)


def test_reinterpret(core):
    tensor, values = make(core, (4, 6))
    same(tensor.view("uint8"), values.view(np.uint8))
    same(tensor.view("int32"), values.view(np.int32))
    same(tensor.view("uint8")[:, 4:12].view("float32"), values[:, 1:3])
    with pytest.raises(CompilerError, match="contiguous"):
        tensor[:, ::2].view("uint8")


def test_access_patterns(core):
    tensor, values = make(core, (4, 24))
    same(tensor.ap([[24, 4], [6, 4], [1, 6]]), values.reshape(4, 4, 6))
    same(tensor.ap([[24, 2], [2, 5]], offset=24 + 3), values[1:3, 3:12:2])
    same(tensor.ap([[24, 4], [0, 3], [1, 2]]), np.broadcast_to(values[:, None, :2], (4, 3, 2)))
    same(
        tensor.ap([[48, 4], [1, 4]], dtype="bfloat16"),
        values.view(np.uint16)[:, :4].view(tensor.view("bfloat16").dtype.numpy),
    )
    same(tensor[:, 4:].ap([[24, 4], [1, 2]]), values[:, 4:6])
    with pytest.raises(HardwareError, match="leaves"):
        _ = tensor.ap([[24, 5], [1, 24]]).form  # an access, as instructions make it
    with pytest.raises(HardwareError, match="whole partitions"):
        tensor.ap([[1, 4], [24, 1]])
    with pytest.raises(HardwareError, match="past the partition"):
        _ = tensor.ap([[24, 3], [1, 24]], offset=1).form
    hbm, values = make(core, (6, 4), MemoryRegion.shared_hbm)
    same(hbm.ap([[1, 4], [4, 6]]), values.T)


def test_capacity_and_addresses(core):
    with pytest.raises(HardwareError, match="partition size 256 exceeds 128"):
        core.ndarray((256, 4), "float32")
    with pytest.raises(HardwareError, match="more than SBUF has"):
        core.ndarray((128, 70_000), "float32")
    with pytest.raises(HardwareError, match="runs beyond SBUF"):
        core.ndarray((128, 1024), "float32", address=(0, 229_000))
    with pytest.raises(HardwareError, match="cannot start at partition 32"):
        core.ndarray((64, 4), "float32", address=(32, 0))
    with pytest.raises(HardwareError, match="straddle banks"):
        core.ndarray((128, 512), "float32", MemoryRegion.psum, address=(0, 1024))


def test_explicit_addresses_alias(core):
    first = core.ndarray((64, 8), "float32", address=(64, 512))
    second = core.ndarray((32, 4), "uint32", address=(96, 528))
    first.array()[...] = np.arange(512, dtype=np.float32).reshape(64, 8)
    np.testing.assert_array_equal(second.array().view(np.float32), first.array()[32:, 4:])
