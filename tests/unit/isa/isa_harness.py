"""One core to run instructions on, tensors in every layout, and references independent of the code under test."""

from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from trnsim.errors import CompilerError, TrnsimError
from trnsim.hardware import load_chip
from trnsim.isa.alu import ACTIVATIONS, ALU
from trnsim.machine import core as machine
from trnsim.machine.core import Launch

CHIPS = {"v2": "trn1", "v3": "trn2", "v4": "trn3"}
GENERATIONS = tuple(CHIPS)
NUMPY = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    **{name: getattr(np, name) for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
}
FLOATS = ("float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
LAYOUTS = ("plain", "step", "cube", "swapped", "low", "placed", "broadcast")

nl = SimpleNamespace(**ALU)
act = SimpleNamespace(**ACTIVATIONS)
draws = settings(max_examples=60, deadline=None, derandomize=True)


@cache
def chip(generation):
    return load_chip(CHIPS[generation])


@contextmanager
def running(generation="v3", *, numeric=True):
    """A core that runs, for the instructions called inside."""
    launch = Launch(chip(generation), numeric=numeric)
    before = machine.set_current(launch.cores[0])
    try:
        yield launch.cores[0]
    finally:
        machine.set_current(before)


def tensor(core, dtype, partitions, elements, memory="sbuf", layout="plain"):
    """A tensor of ``partitions`` x ``elements`` in one of the layouts, its storage filled with a pattern of bytes."""
    if layout == "broadcast" or (layout == "low" and partitions > 32):
        layout = "plain"
    a = next((n for n in (4, 3, 2) if elements % n == 0), 1)
    b = elements // a
    if layout == "step":
        whole = core.ndarray((partitions, 2 * elements + 3), dtype, memory)
        view = whole[:, 2 : 2 * elements + 2 : 2]
    elif layout == "cube":
        whole = core.ndarray((partitions, a, b + 1), dtype, memory)
        view = whole[:, :, 1:]
    elif layout == "swapped":
        whole = core.ndarray((partitions, b, a), dtype, memory)
        view = whole.permute([0, 2, 1])
    elif layout == "low":
        whole = core.ndarray((partitions + 32, elements), dtype, memory)
        view = whole[32:]
    else:
        address = None
        if layout == "placed":
            slots = core.state["test slots"] = core.state.get("test slots", 0) + 1
            address = (0, 2048 * slots)
        whole = view = core.ndarray((partitions, elements), dtype, memory, address=address)
    assert view.form.elements == elements
    area = window(whole)
    area[...] = (np.arange(area.size, dtype=np.int32) * 37 % 251).astype(np.uint8).reshape(area.shape)
    return view


def window(view):
    """The bytes of a storage, or what is around it in the memory where its address is explicit."""
    data, storage = view.storage.bytes(), view.storage
    if storage.address is None:
        return data
    start, offset = storage.address
    return data.reshape(-1, storage.pitch)[start : start + storage.rows, offset - 32 : offset + storage.row_bytes + 32]


def given_tensor(core, values, dtype, memory="sbuf", layout="plain"):
    """A tensor that holds ``values``, ``(partitions, elements)`` in its dtype, as if an instruction had written them.

    ``broadcast`` keeps only the first element of each partition and repeats it with a stride of zero.
    """
    values = np.asarray(values)
    assert values.dtype == NUMPY.get(dtype, values.dtype)
    if layout == "broadcast":
        values[...] = values[:, :1]
        whole = given_tensor(core, values[:, :1], dtype, memory)
        return whole.broadcast(1, values.shape[1])
    view = tensor(core, dtype, *values.shape, memory, layout)
    view.array()[...] = values.reshape(view.shape)
    view.storage.coverage.full = True
    return view


def read(view):
    return view.array().reshape(view.shape[0], -1).copy()


@contextmanager
def only_writes(*views):
    """The block changes bytes of these views only."""
    before = [window(v).copy() for v in views]
    yield
    for view, bytes_before in zip(views, before, strict=True):
        after = window(view)
        written = view.array().copy()
        fresh = after.copy()
        after[...] = bytes_before
        view.array()[...] = written
        same = np.array_equal(after, fresh)
        after[...] = fresh
        assert same, f"bytes outside {view!r} changed"


def rounded(values, dtype):
    """float32 ``values`` in ``dtype``: to nearest even, integers saturate, NaN gives the integer 0."""
    values = np.asarray(values, np.float32)
    kind = NUMPY[dtype]
    with np.errstate(all="ignore"):
        if dtype in INTEGERS:
            limits = np.iinfo(kind)
            exact = np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30))
            return np.clip(exact, limits.min, limits.max).astype(np.int64).astype(kind)
        return values.astype(kind)


def single(values):
    """Float64 results rounded once to float32, as an operation of the engines does."""
    with np.errstate(all="ignore"):
        return np.asarray(values, np.float64).astype(np.float32)


def upcast(values):
    """What an engine reads: float32 (integers of more than 24 bits are rounded), given in float64."""
    with np.errstate(all="ignore"):
        return values.astype(np.float32).astype(np.float64)


def assert_same(actual, expected):
    """Equal bits; any NaN equals any other, and zeros their negatives."""
    expected = np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    with np.errstate(all="ignore"):
        a, b = actual.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    assert same.all(), (actual[~same][:5], expected[~same][:5])


def assert_close(actual, expected, dtype, terms=1):
    """Within the rounding of ``dtype`` and of ``terms`` float32 operations on values of the size of ``expected``."""
    mantissa = {"float32": 23, "float16": 10, "bfloat16": 7, "float8_e4m3": 3, "float8_e5m2": 2}[dtype]
    a = actual.astype(np.float64)
    size = np.maximum(np.abs(expected), 1e-3)
    error = np.abs(a - expected)
    limit = size * (2.0 ** -(mantissa + 1) * 1.01 + terms * 2.0**-23)
    worst = np.nanmax(error / limit)
    assert worst <= 1, f"{worst:.3g} times the tolerance"


def draw_values(seed, dtype, partitions, elements, spread=None):
    """Random numbers of a dtype; integers over all of their range, floats of mixed magnitudes with zeros and ones."""
    rng = np.random.default_rng(seed)
    shape = (partitions, elements)
    kind = NUMPY[dtype]
    if dtype in INTEGERS:
        limits = np.iinfo(kind)
        low, high = (limits.min, limits.max) if spread is None else (max(limits.min, -spread), min(limits.max, spread))
        return rng.integers(low, high, shape, np.int64, endpoint=True).astype(kind)
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-3, 4, shape)
    pick = rng.random(shape)
    values = np.where(pick < 0.05, 0.0, np.where(pick < 0.1, 1.0, values))
    return values.astype(np.float32).astype(kind)


sizes = st.tuples(st.sampled_from([1, 2, 16, 31, 32, 100, 128]), st.sampled_from([1, 2, 7, 12, 24, 40]))
seeds = st.integers(0, 2**16)
layouts = st.sampled_from(LAYOUTS)
output_layouts = st.sampled_from([x for x in LAYOUTS if x != "broadcast"])
memories = st.sampled_from(["sbuf", "psum"])
generations = st.sampled_from(GENERATIONS)


def assert_refused(kind, operand, call):
    """``call`` raises ``kind``, whose text names instruction, operand and, if hardware forbids it, value and limit."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    text = str(error)
    assert isinstance(error, TrnsimError)
    assert error.operand == operand, text
    assert error.instruction
    assert error.instruction in text
    assert error.operand in text
    assert error.generation in text
    if kind is not CompilerError:
        assert error.value is not None, text
        assert error.limit is not None, text
        assert str(error.value) in text
        assert str(error.limit) in text
