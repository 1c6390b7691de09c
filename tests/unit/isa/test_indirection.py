"""Tensor indirection: gather and scatter of columns by an index, against fancy indexing in NumPy."""

import numpy as np
import pytest
from isa_harness import (
    NUMPY,
    act,
    assert_close,
    assert_refused,
    assert_same,
    draw_values,
    given_tensor,
    nl,
    read,
    rounded,
    running,
    tensor,
)

import trnsim.nki
import trnsim.nki.isa as nisa
import trnsim.nki.language as lang
from trnsim import SimulationOptions
from trnsim.errors import CompilerError, HardwareError, UnsupportedError
from trnsim.hardware import load_timing
from trnsim.machine.lazy import execute_slice
from trnsim.nki.kernel import Kernel


def offsets_of(index, count, group):
    """Offset i of partition p, spelled out."""
    found = np.zeros((len(index), count), np.int64)
    for p in range(len(index)):
        for i in range(count):
            found[p, i] = index[p // group * group + i % group, i // group]
    return found


def make_index(core, seed, partitions, columns, limit, count, group=16, *, unique=False, address=None):
    """An index whose groups agree, and the offsets it stands for."""
    rng = np.random.default_rng(seed)
    size = min(group, partitions) * columns
    values = rng.permutation(limit)[:size] if unique else rng.integers(0, limit, size)
    values = np.resize(values, size)
    one = values.reshape(columns, -1).T
    rows = np.resize(one, (partitions, columns)).astype(np.uint32)
    if address is None:
        index = given_tensor(core, rows, "uint32")
    else:
        index = core.ndarray(rows.shape, "uint32", "sbuf", address=address)
        index.array()[...] = rows
        index.storage.full = True
    return index, offsets_of(rows, count, group)


@pytest.mark.parametrize("partitions", [8, 16, 32, 128])
@pytest.mark.parametrize(("dtype", "memory"), [("float32", "sbuf"), ("bfloat16", "psum"), ("int32", "sbuf")])
def test_copies_gather_and_scatter(partitions, dtype, memory):
    with running("v4") as core:
        count = min(partitions, 16) * 2 - 3 if partitions >= 16 else 7
        values = draw_values(1, dtype, partitions, 60)
        data = given_tensor(core, values, dtype, memory)
        index, where = make_index(core, 2, partitions, 2, 60, count, unique=True)
        out = tensor(core, dtype, partitions, count)
        nisa.tensor_copy(out, data.indirect(index, count))
        assert_same(read(out), np.take_along_axis(values, where, 1))
        target = given_tensor(core, values, dtype, memory)
        nisa.tensor_copy(target.indirect(index, count), out, engine=nisa.engine.vector)
        expected = values.copy()
        np.put_along_axis(expected, where, read(out), 1)
        assert_same(read(target), expected)
        assert not core.launch.findings


def test_each_group_of_partitions_reads_its_own_rows_and_a_finding_says_so():
    with running("v4") as core:
        rows = (np.arange(64).reshape(32, 2) * 7 % 40).astype(np.int32)
        data = given_tensor(core, draw_values(3, "float32", 32, 40), "float32")
        index = given_tensor(core, rows, "int32")
        out = tensor(core, "float32", 32, 20)
        nisa.tensor_copy(out, data.indirect(index, 20))
        assert_same(read(out), np.take_along_axis(read(data), offsets_of(rows, 20, 16), 1))
        assert [f.kind for f in core.launch.findings.values()] == ["indirect-groups"]


def test_a_part_of_a_tensor_and_the_gathered_copy_of_array():
    with running("v4") as core:
        values = draw_values(4, "float32", 32, 50)
        data = given_tensor(core, values, "float32")
        index, where = make_index(core, 5, 32, 1, 20, 16)
        view = data[:, 10:30].indirect(index, 16)
        assert view.shape == (32, 16)
        assert view.is_indirect()
        assert_same(view.array(), np.take_along_axis(values[:, 10:30], where, 1))
        assert data.indirect(index[0:32]).shape == (32, 32)


def test_arithmetic_reads_and_writes_through_indices():
    with running("v4") as core:
        p, n = 64, 24
        a, b = draw_values(6, "float32", p, 40), draw_values(7, "float32", p, n)
        data, other = given_tensor(core, a, "float32"), given_tensor(core, b, "float32")
        index, where = make_index(core, 8, p, 2, 40, n, unique=True)
        picked = np.take_along_axis(a, where, 1)

        def scattered(values, dtype="float32"):
            expected = np.zeros((p, 40), NUMPY[dtype])
            np.put_along_axis(expected, where, rounded(values, dtype), 1)
            return expected

        def zeros(dtype="float32"):
            return given_tensor(core, np.zeros((p, 40), NUMPY[dtype]), dtype)

        dst = zeros()
        nisa.tensor_tensor(dst.indirect(index, n), data.indirect(index, n), other, nl.add)
        assert_same(read(dst), scattered(picked + b))
        dst = zeros("bfloat16")
        nisa.tensor_scalar(dst.indirect(index, n), other, nl.multiply, 3.0)
        assert_same(read(dst), scattered(b * np.float32(3), "bfloat16"))
        out = tensor(core, "float32", p, 1)
        nisa.tensor_reduce(out, nl.maximum, data.indirect(index, n), 1)
        assert_same(read(out), picked.max(axis=1, keepdims=True))
        dst = zeros()
        nisa.activation(dst.indirect(index, n), act.relu, data.indirect(index, n), scale=2.0)
        assert_same(read(dst), scattered(np.maximum(picked * np.float32(2), 0)))
        dst, total = zeros(), tensor(core, "float32", p, 1)
        nisa.tensor_scalar_reduce(dst.indirect(index, n), other, nl.add, 1.0, nl.add, total)
        assert_same(read(dst), scattered(b + np.float32(1)))
        predicate = np.random.default_rng(9).integers(0, 2, (p, n)).astype(np.uint8)
        dst = given_tensor(core, a.copy(), "float32")
        nisa.tensor_copy_predicated(dst.indirect(index, n), 5.0, given_tensor(core, predicate, "uint8"))
        expected = a.copy()
        np.put_along_axis(expected, where, np.where(predicate != 0, np.float32(5), picked), 1)
        assert_same(read(dst), expected)


def test_matmul_gathers_in_groups_of_32_and_scatters():
    with running("v4") as core:
        k, m, n = 128, 32, 40
        a, b = draw_values(10, "bfloat16", k, 64), draw_values(11, "bfloat16", k, 64)
        stationary, moving = given_tensor(core, a, "bfloat16"), given_tensor(core, b, "bfloat16")
        left, at = make_index(core, 12, k, 1, 64, m, 32, unique=True)
        right, by = make_index(core, 13, k, 2, 64, n, 32, unique=True)
        out, to = make_index(core, 14, m, 2, 60, n, 32, unique=True)
        x = np.take_along_axis(a, at, 1).astype(np.float64)
        y = np.take_along_axis(b, by, 1).astype(np.float64)
        dst = given_tensor(core, np.zeros((m, 60), np.float32), "float32", "psum")
        for _ in range(2):  # the first overwrites, the second adds
            nisa.nc_matmul(dst.indirect(out, n), stationary.indirect(left, m), moving.indirect(right, n))
        expected = np.zeros((m, 60))
        np.put_along_axis(expected, to, 2 * (x.T @ y), 1)
        scale = np.zeros((m, 60))
        np.put_along_axis(scale, to, 2 * (abs(x).T @ abs(y)), 1)
        assert (np.abs(read(dst) - expected) <= 2.0**-23 * k * np.maximum(scale, 1e-30)).all()
        other, _ = make_index(core, 15, m, 2, 60, n, 32, unique=True)
        with pytest.raises(UnsupportedError, match="accumulate"):
            nisa.nc_matmul(dst.indirect(other, n), stationary.indirect(left, m), moving.indirect(right, n))
        nisa.nc_matmul(
            dst.indirect(other, n), stationary.indirect(left, m), moving.indirect(right, n), accumulate=False
        )


def test_a_matmul_put_off_is_done_before_its_operand_is_scattered_to():
    with running("v4") as core:
        ones = np.ones((32, 32), NUMPY["bfloat16"])
        stationary, moving = given_tensor(core, ones, "bfloat16"), given_tensor(core, ones.copy(), "bfloat16")
        dst = core.ndarray((32, 32), "float32", "psum")
        nisa.nc_matmul(dst, stationary, moving)
        index, _ = make_index(core, 16, 32, 1, 32, 16)
        nisa.tensor_copy(moving.indirect(index, 16), given_tensor(core, ones[:, :16] * 0, "bfloat16"))
        assert (read(dst) == 32).all()


def indirect_kernel(x, index):
    data, where = lang.load(x), lang.load(index)
    out = lang.ndarray((32, 20), x.dtype, buffer=lang.sbuf)
    nisa.memset(out, 0.0)
    picked = lang.ndarray((32, 16), x.dtype, buffer=lang.sbuf)
    nisa.activation(picked, lang.copy, data.indirect(where, 16))
    nisa.tensor_scalar(out.indirect(where, 16), picked, lang.add, 1.0)
    result = lang.ndarray(out.shape, x.dtype, buffer=lang.shared_hbm)
    nisa.dma_copy(result, out)
    return result


def test_time_only_runs_rebuild_the_view_and_cost_the_same():
    x = draw_values(17, "float32", 32, 20)
    index = np.resize((np.arange(16) * 3 % 20)[:, None], (32, 1)).astype(np.int32)
    where = offsets_of(index, 16, 16)
    expected = np.zeros((32, 20), np.float32)
    np.put_along_axis(expected, where, np.take_along_axis(x, where, 1) + np.float32(1), 1)
    lazy = Kernel(indirect_kernel).launch((x, index), {}, SimulationOptions(chip="trn3", numeric=False, timed=False))
    assert_same(np.asarray(lazy), expected)
    eager = Kernel(indirect_kernel).launch((x, index), {}, SimulationOptions(chip="trn3", timed=False))
    assert_same(eager, expected)
    times = [
        trnsim.profile(indirect_kernel, x, index, chip="trn3", numeric=numeric).timeline.total_ps
        for numeric in (False, True)
    ]
    assert times[0] == times[1] > 0


def test_the_index_is_an_operand_and_the_whole_view_is_touched():
    with running("v4", numeric=False) as core:
        data, out = core.ndarray((32, 50), "bfloat16"), core.ndarray((32, 16), "bfloat16")
        index = core.ndarray((32, 1), "int32")
        nisa.tensor_copy(out, data.indirect(index, 16))
        nisa.tensor_copy(data.indirect(index, 16), out)
        gather, scatter = (core.trace.classes[core.trace.instruction_rows[6 * i]] for i in range(2))
        assert [(o.name, o.role) for o in gather.operands] == [("dst", "write"), ("src", "read"), ("src.index", "read")]
        assert [(o.name, o.role) for o in scatter.operands] == [
            ("dst", "write"), ("dst.index", "read"), ("src", "read"),
        ]  # fmt: skip
        assert gather.operand("src").span == 50 * 2
        assert gather.operand("src").elements == 16
        plain = core.ndarray((32, 16), "bfloat16")
        nisa.tensor_copy(out, plain)
        straight = core.trace.classes[core.trace.instruction_rows[12]]
        timing = load_timing(core.launch.chip)
        busy = [k.instruction.cost(timing, k, "vector")[0].busy_ps for k in (gather, straight)]
        assert busy[0] == busy[1]


def test_a_slice_of_a_time_only_run_includes_what_is_scattered():
    with running("v4", numeric=False) as core:
        data, values, index = core.ndarray((16, 8), "float32"), core.ndarray((16, 4), "float32"), core.ndarray(
            (16, 1), "int32"
        )  # fmt: skip
        nisa.memset(data, 1.0)
        nisa.memset(values, 2.0)
        nisa.iota(index, [[1, 1]], channel_multiplier=2)
        nisa.tensor_copy(data.indirect(index, 4), values)
        execute_slice(core, tensors=[data])
        assert_same(data.array(), np.tile(np.float32([2, 1]), (16, 4)))


def test_what_hardware_forbids():
    with running("v4") as core:
        data, out = tensor(core, "float32", 32, 40), tensor(core, "float32", 32, 16)
        psum = tensor(core, "float32", 32, 40, "psum")
        index, _ = make_index(core, 20, 32, 1, 40, 16)
        view = data.indirect(index, 16)
        assert_refused(HardwareError, "data2", lambda: nisa.tensor_tensor(out, out, view, nl.add))
        assert_refused(HardwareError, "src", lambda: nisa.tensor_copy(out, data.indirect(index)))
        assert_refused(HardwareError, "src", lambda: nisa.max8(tensor(core, "float32", 32, 8), view))
        assert_refused(HardwareError, "dst", lambda: nisa.memset(view, 0.0))
        assert_refused(HardwareError, "dst", lambda: nisa.activation(psum.indirect(index, 16), act.copy, out))
        assert_refused(HardwareError, "engine", lambda: nisa.tensor_copy(out, view, engine=nisa.engine.gpsimd))
        ints = tensor(core, "int32", 32, 40)
        counts = tensor(core, "int32", 32, 16)
        assert_refused(HardwareError, "data", lambda: nisa.tensor_scalar(counts, ints.indirect(index, 16), nl.add, 1))
        assert_refused(HardwareError, "src", lambda: nisa.dma_copy(out, view))
        index.array()[3] = 40
        assert_refused(HardwareError, "index 'whole'", lambda: nisa.tensor_copy(out, view))
        index.array()[3] = 0
        half = tensor(core, "bfloat16", 32, 40)
        moving = half.indirect(index, 16)
        into = tensor(core, "bfloat16", 40, 16, "psum")
        assert_refused(
            HardwareError, "tile_position",
            lambda: nisa.nc_matmul(into, half, moving, tile_position=(32, 0), tile_size=(32, 128)),
        )  # fmt: skip
        assert_refused(HardwareError, "moving", lambda: nisa.nc_matmul(into, half, moving, is_transpose=True))
        assert_refused(HardwareError, "stationary", lambda: nisa.nc_matmul(
            tensor(core, "float32", 16, 40, "psum"), view, data))  # fmt: skip


def test_base_partitions_of_manually_allocated_operands():
    with running("v4") as core:
        quadrant, _ = make_index(core, 21, 16, 1, 20, 16, address=(32, 0))
        data = core.ndarray((16, 20), "float32", "sbuf", address=(0, 4096))
        beside = core.ndarray((16, 20), "float32", "sbuf", address=(32, 4096))
        out = core.ndarray((16, 16), "float32", "sbuf", address=(32, 8192))
        for item in (data, beside, out):
            nisa.memset(item, 0.0)
        nisa.tensor_copy(out, beside.indirect(quadrant))
        assert_refused(HardwareError, "src", lambda: nisa.tensor_copy(out, data.indirect(quadrant)))
        nisa.tensor_copy(beside.indirect(quadrant), out)
        away = core.ndarray((16, 16), "float32", "sbuf", address=(64, 8192))
        nisa.memset(away, 0.0)
        assert_refused(HardwareError, "dst.index", lambda: nisa.tensor_copy(beside.indirect(quadrant), away))


def test_what_makes_no_view():
    with running("v4") as core:
        data, index = tensor(core, "float32", 32, 40), tensor(core, "int32", 32, 1)
        for operand, kind, call in (
            ("index", HardwareError, lambda: data.indirect(tensor(core, "float32", 32, 1))),
            ("index", HardwareError, lambda: data.indirect(tensor(core, "int32", 32, 1, "psum"))),
            ("index", CompilerError, lambda: data.indirect(tensor(core, "int32", 16, 1))),
            ("num_elem", CompilerError, lambda: data.indirect(index, 33)),
            ("whole", CompilerError, lambda: data[:, ::2].indirect(index)),
            ("whole", CompilerError, lambda: data.indirect(index).indirect(index)),
        ):
            assert_refused(kind, data.name if operand == "whole" else operand, call)
        with pytest.raises(CompilerError, match="cannot be viewed again"):
            data.indirect(index)[:, 0:4]
        with pytest.raises(CompilerError, match="cannot be viewed again"):
            data.indirect(index).reshape(32, 4, 8)


@pytest.mark.parametrize("generation", ["v2", "v3"])
def test_generations_before_v4_have_no_indirection(generation):
    with running(generation) as core:
        data, index = tensor(core, "float32", 32, 40), tensor(core, "int32", 32, 1)
        assert_refused(HardwareError, data.name, lambda: data.indirect(index))


def test_reading_columns_that_were_never_written_is_a_finding():
    with running("v4") as core:
        data, out = core.ndarray((16, 20), "float32"), core.ndarray((16, 4), "float32")
        nisa.memset(data[:, 0:10], 0.0)
        index = given_tensor(core, np.arange(16, dtype=np.int32)[:, None], "int32")
        nisa.tensor_copy(out, data.indirect(index, 4))
        assert not core.launch.findings
        nisa.tensor_copy(core.ndarray((16, 12), "float32"), data.indirect(index, 12))
        assert [f.kind for f in core.launch.findings.values()] == ["uninitialized-read"]


def test_mx_operands_gather_with_their_scales():
    rng = np.random.default_rng(30)
    with running("v4") as core:

        def packed(columns):
            values = rng.integers(0, 2**32, (32, columns), np.uint32) & np.uint32(0x3F3F3F3F)
            scales = np.full((32, columns), 127, np.uint8)
            return (given_tensor(core, values, "float8_e4m3fn_x4"), given_tensor(core, scales, "uint8"))

        (a, sa), (b, sb) = packed(12), packed(20)
        index, where = make_index(core, 31, 32, 1, 20, 10, 32)
        dst, plain = core.ndarray((12, 10), "float32", "psum"), core.ndarray((12, 10), "float32", "psum")
        nisa.nc_matmul_mx(dst, a, b.indirect(index, 10), sa, sb.indirect(index, 10))
        picked = given_tensor(core, np.take_along_axis(read(b), where, 1), "float8_e4m3fn_x4")
        scales = given_tensor(core, np.take_along_axis(read(sb), where, 1), "uint8")
        nisa.nc_matmul_mx(plain, a, picked, sa, scales)
        assert_close(read(dst), read(plain).astype(np.float64), "float32", terms=128)
        assert_refused(
            HardwareError, "moving_scale", lambda: nisa.nc_matmul_mx(dst, a, b.indirect(index, 10), sa, sb[:, 0:10])
        )
