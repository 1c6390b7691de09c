"""GpSimdE: affine patterns, reductions across partitions and gathers, against Python loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import (
    FLOATS,
    INTEGERS,
    assert_close,
    assert_refused,
    assert_same,
    draw_values,
    draws,
    given_tensor,
    layouts,
    nl,
    only_writes,
    output_layouts,
    read,
    rounded,
    running,
    seeds,
    sizes,
    tensor,
    upcast,
)

from trnsim.errors import HardwareError, UndefinedBehaviorError
from trnsim.isa import gpsimd

steps = st.integers(-(2**20), 2**20)
patterns = st.lists(st.tuples(steps, st.integers(1, 5)).map(list), min_size=1, max_size=4)
small = st.integers(-40, 40)


def affine(pattern, partitions, offset, multiplier):
    """The documented loops, in integers of 32 bits that wrap around."""
    rows = []
    for channel in range(partitions):
        row = []
        for indices in itertools.product(*(range(n) for _, n in pattern)):
            value = offset + channel * multiplier + sum(i * s for i, (s, _) in zip(indices, pattern, strict=True))
            row.append((value + 2**31) % 2**32 - 2**31)
        rows.append(row)
    return np.array(rows, np.int64)


@draws
@given(patterns, st.sampled_from([1, 16, 100]), st.integers(-(2**31), 2**31 - 1), steps, output_layouts)
def test_iota(pattern, partitions, offset, multiplier, layout):
    expected = affine(pattern, partitions, offset, multiplier)
    for kind in ("int32", "uint32", "int16", "uint8", "float32", "bfloat16"):
        with running("v2") as core:
            dst = tensor(core, kind, partitions, expected.shape[1], "sbuf", layout)
            with only_writes(dst):
                gpsimd.iota(dst, pattern, offset, multiplier)
            if kind in ("int32", "uint32"):
                assert_same(read(dst), expected.astype(np.int32).view(kind))
            elif kind in INTEGERS:
                limits = np.iinfo(kind)
                assert_same(read(dst), np.clip(expected, limits.min, limits.max).astype(kind))
            else:
                assert_same(read(dst), rounded(expected.astype(np.float32), kind))


@draws
@given(
    st.lists(st.tuples(small, st.integers(1, 5)).map(list), min_size=1, max_size=4),
    st.sampled_from([1, 16, 100]),
    small,
    small,
    st.sampled_from(["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]),
    seeds,
    st.sampled_from([*FLOATS, "int32"]),
    st.sampled_from([*FLOATS, "int32"]),
    layouts,
    output_layouts,
)
def test_affine_select(pattern, partitions, offset, multiplier, name, seed, kind, out, layout1, layout):
    value = affine(pattern, partitions, offset, multiplier)
    x = draw_values(seed, kind, *value.shape)
    with running() as core:
        dst = tensor(core, out, *value.shape, "sbuf", layout)
        data = given_tensor(core, x, kind, "sbuf", layout1)
        with only_writes(dst):
            gpsimd.affine_select(dst, pattern, multiplier, data, -9984.0, getattr(nl, name), offset)
        chosen = x if kind == out else rounded(x.astype(np.float32), out)
        fill = rounded(np.full(value.shape, -9984.0), out)
        assert_same(read(dst), np.where(getattr(np, name)(value, 0), chosen, fill))
        if kind == out and layout1 != "broadcast":
            gpsimd.affine_select(data, pattern, multiplier, data, -9984.0, getattr(nl, name), offset)
            assert_same(read(data), read(dst))


def test_affine_select_compares_equal_by_default():
    with running() as core:
        dst, ones = tensor(core, "float32", 4, 4), given_tensor(core, np.ones((4, 4), np.float32), "float32")
        gpsimd.affine_select(dst=dst, pattern=[[-1, 4]], channel_multiplier=1, on_true_tile=ones, on_false_value=0.0)
        assert_same(read(dst), np.eye(4, dtype=np.float32))


@draws
@given(sizes, seeds, st.sampled_from(["add", "average", "maximum"]), st.sampled_from([*FLOATS, "int8"]), layouts)
def test_reduction_across_partitions(size, seed, name, kind, layout):
    x = draw_values(seed, kind, *size)
    with running() as core:
        dst = tensor(core, "float32", 1, size[1])
        gpsimd.tensor_partition_reduce(dst, getattr(nl, name), given_tensor(core, x, kind, "sbuf", layout))
        y = upcast(x[:, :1] if layout == "broadcast" else x)
        expected = {"add": y.sum(0), "average": y.mean(0), "maximum": y.max(0)}[name]
        assert_close(read(dst), np.broadcast_to(expected, (1, size[1])), "float32", 2000 if name != "maximum" else 0)


@draws
@given(sizes, seeds, st.sampled_from(["bitwise_or", "bitwise_and"]), st.sampled_from(INTEGERS))
def test_bits_across_partitions(size, seed, name, kind):
    x = draw_values(seed, kind, *size)
    with running() as core:
        dst = tensor(core, kind, 1, size[1])
        gpsimd.tensor_partition_reduce(dst, getattr(nl, name), given_tensor(core, x, kind))
        expected = x[0]
        for row in x[1:]:
            expected = expected | row if name == "bitwise_or" else expected & row
        assert_same(read(dst), expected[None])


@draws
@given(sizes, st.integers(1, 30), seeds, st.sampled_from([*FLOATS, *INTEGERS]), layouts, output_layouts)
def test_n_gather(size, count, seed, kind, layout1, layout):
    x = draw_values(seed, kind, *size)
    at = np.random.default_rng(seed).integers(0, size[1], (size[0], count)).astype(np.uint32)
    with running() as core:
        dst = tensor(core, kind, size[0], count, "sbuf", layout)
        with only_writes(dst):
            gpsimd.nc_n_gather(dst, given_tensor(core, x, kind, "sbuf", layout1), given_tensor(core, at, "uint32"))
        source = x[:, :1].repeat(size[1], 1) if layout1 == "broadcast" else x
        assert_same(read(dst), np.array([[source[p, i] for i in row] for p, row in enumerate(at)], x.dtype))


@draws
@given(
    st.sampled_from([16, 48, 128]),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 15),
    seeds,
    st.sampled_from(["float32", "bfloat16", "int8"]),
)
def test_local_gather(partitions, columns, width, spare, seed, kind):
    """As the NumPy equivalent in the NKI reference: 16 partitions share indices, in the order of columns."""
    x = draw_values(seed, kind, partitions, 24)
    index = np.random.default_rng(seed).integers(0, 24 - width + 1, (partitions, columns)).astype(np.uint16)
    count = 16 * columns - spare
    with running() as core:
        dst = tensor(core, kind, partitions, count * width)
        gpsimd.local_gather(
            dst, given_tensor(core, x, kind), given_tensor(core, index, "uint16"), width, count if spare else None
        )
        for p in range(partitions):
            group = p // 16 * 16
            flat = [index[group + q, c] for c in range(columns) for q in range(16)][:count]
            expected = [x[p, int(i) + e] for i in flat for e in range(width)]
            assert_same(read(dst)[p], np.array(expected, x.dtype))


def made(core):
    def tile(dtype="float32", partitions=16, elements=8, memory="sbuf", values=None):
        view = core.ndarray((partitions, elements), dtype, memory)
        view.storage.bytes()[:] = 0
        view.storage.coverage.full = True
        if values is not None:
            view.array()[...] = values
        return view

    return tile


def select(t, **changes):
    arguments = {"dst": t(), "pattern": [[1, 8]], "channel_multiplier": 0, "on_true_tile": t(), "on_false_value": 0.0}
    gpsimd.affine_select(**(arguments | changes))


G = gpsimd
RULES = [
    (HardwareError, "dst", lambda t: G.iota(t("int32", memory="psum"), [[1, 8]])),
    (HardwareError, "pattern", lambda t: G.iota(t("int32"), [[1, 7]])),
    (HardwareError, "pattern", lambda t: G.iota(t("int32"), [[1, 8], [1, 1], [1, 1], [1, 1], [1, 1]])),
    (HardwareError, "dst", lambda t: G.iota(t("float8_e5m2_x4"), [[1, 8]])),
    (HardwareError, "dst", lambda t: select(t, dst=t(memory="psum"))),
    (HardwareError, "on_true_tile", lambda t: select(t, on_true_tile=t(memory="psum"))),
    (HardwareError, "on_true_tile", lambda t: select(t, on_true_tile=t(partitions=8))),
    (HardwareError, "cmp_op", lambda t: select(t, cmp_op=nl.add)),
    (HardwareError, "pattern", lambda t: select(t, pattern=[[1, 9]])),
    (HardwareError, "op", lambda t: G.tensor_partition_reduce(t(partitions=1), nl.minimum, t())),
    (HardwareError, "dst", lambda t: G.tensor_partition_reduce(t(), nl.add, t())),
    (HardwareError, "dst", lambda t: G.tensor_partition_reduce(t(partitions=1, elements=4), nl.add, t())),
    (HardwareError, "data", lambda t: G.tensor_partition_reduce(t(partitions=1), nl.add, t(memory="psum"))),
    (HardwareError, "dst", lambda t: G.tensor_partition_reduce(t(partitions=1), nl.bitwise_or, t("int8"))),
    (HardwareError, "indices", lambda t: G.nc_n_gather(t(), t(), t("int32"))),
    (HardwareError, "dst", lambda t: G.nc_n_gather(t("bfloat16"), t(), t("uint32"))),
    (HardwareError, "data", lambda t: G.nc_n_gather(t(), t(partitions=8), t("uint32"))),
    (UndefinedBehaviorError, "indices", lambda t: G.nc_n_gather(t(), t(), t("uint32", values=8))),
    (HardwareError, "src_buffer", lambda t: G.local_gather(t("float32", 8, 128), t(partitions=8), t("uint16", 8))),
    (HardwareError, "num_elem_per_idx", lambda t: G.local_gather(t(elements=128), t(), t("uint16"), 3)),
    (HardwareError, "num_valid_indices", lambda t: G.local_gather(t(elements=128), t(), t("uint16"), 1, 129)),
    (HardwareError, "num_valid_indices", lambda t: G.local_gather(t(elements=128), t(), t("uint16", 16, 257))),
    (HardwareError, "index", lambda t: G.local_gather(t(elements=128), t(), t("uint32"))),
    (UndefinedBehaviorError, "index", lambda t: G.local_gather(t(elements=128), t(), t("uint16", values=8))),
]


@pytest.mark.parametrize(("kind", "operand", "call"), RULES)
def test_rules(kind, operand, call):
    with running() as core:
        tile = made(core)
        assert_refused(kind, operand, lambda: call(tile))


def test_pattern_sizes_multiply():
    with running() as core:
        dst = tensor(core, "int32", 2, 24)
        gpsimd.iota(dst, [[100, 2], [10, 3], [1, 4]])
        assert math.prod((2, 3, 4)) == 24
        assert read(dst)[1, -1] == 123
