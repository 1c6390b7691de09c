"""Searches of GpSimdE and activate2 of ScalarE, against Python loops and NumPy."""

import ml_dtypes
import numpy as np
import pytest
from isa_harness import (
    GENERATIONS,
    act,
    assert_close,
    assert_refused,
    assert_same,
    draw_values,
    given_tensor,
    nl,
    only_writes,
    read,
    rounded,
    running,
    tensor,
)

import trnsim.nki.isa as nisa
from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware import load_timing
from trnsim.isa.searches import nonzero_with_count, sequence_bounds, topk

# -- nonzero_with_count ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("partitions", [1, 16, 40, 128])
def test_nonzero_with_count(dtype, partitions):
    rng = np.random.default_rng(partitions)
    values = (rng.integers(0, 2, (partitions, 8)) * rng.integers(1, 9, (partitions, 8))).astype(dtype)
    with running() as core:
        src = given_tensor(core, values, dtype)
        dst = given_tensor(core, np.full((partitions, 9), 77, np.int32), "int32")
        nonzero_with_count(dst, src, index_offset=16, padding_val=-1)
        expected = np.full((partitions, 9), 77, np.int32)
        for p in range(0, partitions, 16):
            places = [i + 16 for i in range(8) if values[p, i] != 0]
            expected[p] = [*places, *[-1] * (8 - len(places)), len(places)]
        assert_same(read(dst), expected)


def test_nonzero_with_count_as_documented():
    with running() as core:
        src = given_tensor(core, np.float32([[0, 1, 1, 0, 0, 1, 0, 0]]), "float32")
        dst = tensor(core, "int32", 1, 9)
        nonzero_with_count(dst, src, 16, -1)
        assert read(dst).tolist() == [[17, 18, 21, -1, -1, -1, -1, -1, 3]]


def test_nonzero_with_count_limits():
    with running("v2") as core:
        src, dst = tensor(core, "float32", 16, 8), tensor(core, "int32", 16, 9)
        with pytest.raises(HardwareError, match="does not exist"):
            nonzero_with_count(dst, src)
    with running() as core:
        src, dst = tensor(core, "float32", 16, 8), tensor(core, "int32", 16, 9)
        for operand, call in (
            ("src", lambda: nonzero_with_count(dst, tensor(core, "bfloat16", 16, 8))),
            ("dst", lambda: nonzero_with_count(tensor(core, "float32", 16, 9), src)),
            ("dst", lambda: nonzero_with_count(tensor(core, "int32", 16, 8), src)),
            ("src", lambda: nonzero_with_count(dst, tensor(core, "float32", 16, 8, "psum"))),
            ("dst", lambda: nonzero_with_count(tensor(core, "int32", 32, 9), src)),
            ("padding_val", lambda: nonzero_with_count(dst, src, 0, 0.5)),
        ):
            assert_refused(HardwareError, operand, call)


# -- topk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(42, 8), (16, 16), (8, 1), (300, 37)])
@pytest.mark.parametrize("partitions", [16, 64])
def test_topk(n, k, partitions):
    rng = np.random.default_rng(n)
    columns = -(-n // 16) + 1
    values = rng.standard_normal((partitions, columns)).astype(ml_dtypes.bfloat16)
    with running() as core:
        src = given_tensor(core, values, "bfloat16")
        largest, places = tensor(core, "bfloat16", partitions, k), tensor(core, "uint32", partitions, k)
        with only_writes(largest, places):
            topk(largest, places, src, n)
        for first in range(0, partitions, 16):
            snake = [values[first + i % 16, i // 16] for i in range(n)]
            best = sorted(range(n), key=lambda i: (-float(snake[i]), i))[:k]
            best.sort(key=lambda i: (float(snake[i]), i))
            for p in range(first, first + 16):
                assert read(places)[p].tolist() == best
                assert_same(read(largest)[p], np.array([snake[i] for i in best]))


def test_topk_limits():
    with running() as core:
        src = tensor(core, "bfloat16", 16, 4)
        values, places = tensor(core, "bfloat16", 16, 8), tensor(core, "uint32", 16, 8)
        for operand, call in (
            ("src", lambda: topk(values, places, tensor(core, "float32", 16, 4), 42)),
            ("val_dst", lambda: topk(tensor(core, "float32", 16, 8), places, src, 42)),
            ("idx_dst", lambda: topk(values, tensor(core, "int32", 16, 8), src, 42)),
            ("idx_dst", lambda: topk(values, tensor(core, "uint32", 16, 9), src, 42)),
            ("src", lambda: topk(values, places, tensor(core, "bfloat16", 8, 8), 42)),
            ("n", lambda: topk(values, places, src, 7)),
            ("n", lambda: topk(values, places, tensor(core, "bfloat16", 16, 4096), 65536)),
            ("src", lambda: topk(values, places, src, 65)),
            ("val_dst", lambda: topk(tensor(core, "bfloat16", 16, 12), tensor(core, "uint32", 16, 12), src, 8)),
        ):
            assert_refused(HardwareError, operand, call)


def test_topk_costs_what_the_reference_says():
    with running() as core:
        topk(tensor(core, "bfloat16", 16, 8), tensor(core, "uint32", 16, 8), tensor(core, "bfloat16", 16, 64), 1000)
        topk(tensor(core, "bfloat16", 16, 8), tensor(core, "uint32", 16, 8), tensor(core, "bfloat16", 16, 64), 500)
        timing = load_timing(core.launch.chip)
        long, short = (core.trace.classes[core.trace.instruction_rows[6 * i]] for i in range(2))
        busy = [k.instruction.cost(timing, k, "gpsimd")[0].busy_ps for k in (long, short)]
        assert abs(busy[0] - busy[1] - timing.gpsimd.cycles(2000)) <= 1


# -- sequence_bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_sequence_bounds(dtype):
    rng = np.random.default_rng(1)
    for ids in ([0], [3], [1, 1, 2, 2, 2, 0, 0, 5], np.repeat(rng.integers(0, 4, 20), rng.integers(1, 6, 20))):
        n = len(ids)
        with running() as core:
            src = given_tensor(core, np.array([ids], dtype), dtype)
            dst = core.ndarray((1, 2, n), dtype)
            sequence_bounds(dst, src)
            expected = np.zeros((2, n), dtype)
            for i in range(n):
                low, high = i, i + 1
                while low > 0 and ids[low - 1] == ids[i]:
                    low -= 1
                while high < n and ids[high] == ids[i]:
                    high += 1
                expected[:, i] = (n, -1) if ids[i] == 0 else (low, high)
            assert_same(dst.array()[0], expected)


def test_sequence_bounds_limits():
    with running() as core:
        ids, dst = tensor(core, "int32", 1, 8), core.ndarray((1, 2, 8), "int32")
        for operand, call in (
            ("segment_ids", lambda: sequence_bounds(dst, tensor(core, "int16", 1, 8))),
            ("segment_ids", lambda: sequence_bounds(dst, tensor(core, "int32", 2, 8))),
            ("dst", lambda: sequence_bounds(core.ndarray((1, 8), "int32"), ids)),
            ("dst", lambda: sequence_bounds(core.ndarray((1, 2, 8), "int32", "psum"), ids)),
        ):
            assert_refused(HardwareError, operand, call)


# -- activate2 ---------------------------------------------------------------------------------------------------------

_BOTH = [
    (nl.multiply, nl.add, lambda x, a, b: x * a + b),
    (nl.multiply, nl.subtract, lambda x, a, b: x * a - b),
    (nl.multiply, nl.bypass, lambda x, a, b: x * a),
    (nl.add, nl.bypass, lambda x, a, b: x + a),
    (nl.subtract, nl.bypass, lambda x, a, b: x - a),
    (nl.bypass, nl.bypass, lambda x, a, b: x),
]


@pytest.mark.parametrize(("op0", "op1", "reference"), _BOTH)
@pytest.mark.parametrize("vectors", [False, True])
def test_activate2_pairs(op0, op1, reference, vectors):
    values = draw_values(3, "float32", 32, 20)
    a, b = draw_values(4, "float32", 32, 1), draw_values(5, "float32", 32, 1)
    with running("v4") as core:
        data, dst = given_tensor(core, values, "float32"), tensor(core, "bfloat16", 32, 20)
        imm0 = given_tensor(core, a, "float32") if vectors else 1.5
        imm1 = given_tensor(core, b, "float32") if vectors else -0.25
        nisa.activate2(dst, act.relu, data, imm0, imm1, op0, op1)
        x = reference(values, *((a, b) if vectors else (np.float32(1.5), np.float32(-0.25))))
        assert_same(read(dst), rounded(np.maximum(x, 0), "bfloat16"))


def test_activate2_reversed_and_prelu():
    values = draw_values(6, "float32", 16, 10)
    with running("v4") as core:
        data, dst = given_tensor(core, values, "float32"), tensor(core, "float32", 16, 10)
        nisa.activate2(dst, act.copy, data, 2.0, 3.0, nl.multiply, nl.subtract, reverse1=True)
        assert_same(read(dst), np.float32(3) - values * np.float32(2))
        nisa.activate2(dst, act.copy, data, 2.0, None, nl.subtract, nl.bypass, reverse0=True)
        assert_same(read(dst), np.float32(2) - values)
        nisa.activate2(dst, act.prelu, data, None, None, nl.bypass, nl.bypass, relu_param=0.25)
        assert_same(read(dst), np.where(values > 0, values, values * np.float32(0.25)))


@pytest.mark.parametrize("name", ["add", "maximum", "minimum", "abs_max", "abs_min"])
def test_activate2_reduces(name):
    values = draw_values(7, "float32", 32, 12)
    more = draw_values(8, "float32", 32, 12)
    both = np.concatenate((values, more), axis=1).astype(np.float64)
    expected = {
        "add": lambda: both.sum(axis=1),
        "maximum": lambda: both.max(axis=1),
        "minimum": lambda: both.min(axis=1),
        "abs_max": lambda: np.array([max(row, key=abs) for row in both]),
        "abs_min": lambda: np.array([min(row, key=abs) for row in both]),
    }[name]()
    with running("v4") as core:
        dst, total = tensor(core, "float32", 32, 12), tensor(core, "float32", 32, 1)
        pair, op = (nl.bypass, nl.bypass), getattr(nl, name)
        first, second = given_tensor(core, values, "float32"), given_tensor(core, more, "float32")
        nisa.activate2(dst, act.copy, first, 0, 0, *pair, reduce_op=op, reduce_cmd=nisa.reduce_cmd.reset_reduce)
        nisa.activate2(
            dst, act.copy, second, 0, 0, *pair, reduce_op=op, reduce_cmd=nisa.reduce_cmd.reduce, reduce_res=total
        )
        found = read(total)[:, 0]
        if name == "add":
            assert_close(found, expected, "float32", terms=24 * 8)
        elif name.startswith("abs"):
            assert_same(np.abs(found), np.abs(expected).astype(np.float32))
        else:
            assert_same(found, expected.astype(np.float32))


def test_activate2_gathers_and_scatters():
    values = draw_values(9, "float32", 32, 20)
    with running("v4") as core:
        data = given_tensor(core, values, "float32")
        target = given_tensor(core, np.zeros((64, 20), np.float32), "float32")[32:64]
        index = given_tensor(core, np.resize(np.arange(16) * 3 % 20, (32,)).astype(np.int32)[:, None], "int32")
        total = given_tensor(core, np.zeros((64, 1), np.float32), "float32")[32:64]
        nisa.activate2(
            target.indirect(index, 5), act.copy, data.indirect(index, 5), 2.0, None, nl.multiply, nl.bypass,
            reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reset_reduce, reduce_res=total,
        )  # fmt: skip
        expected = np.zeros((32, 20), np.float32)
        expected[:, [0, 3, 6, 9, 12]] = values[:, [0, 3, 6, 9, 12]] * np.float32(2)
        assert_same(read(target), expected)
        assert_close(read(total)[:, 0], expected.astype(np.float64).sum(axis=1), "float32", terms=40)


@pytest.mark.parametrize("generation", GENERATIONS[:2])
def test_activate2_needs_v4(generation):
    with running(generation) as core, pytest.raises(HardwareError, match="does not exist"):
        x = tensor(core, "float32", 16, 4)
        nisa.activate2(x, act.copy, x, None, None, nl.bypass, nl.bypass)


def test_activate2_limits():
    with running("v4") as core:
        x, y = tensor(core, "float32", 16, 4), tensor(core, "float32", 16, 4)
        a, b = tensor(core, "float32", 16, 1), tensor(core, "bfloat16", 16, 1)

        def call(*args, **options):
            return lambda: nisa.activate2(y, act.copy, x, *args, **options)

        for kind, operand, refused in (
            (HardwareError, "op1", call(1.0, 1.0, nl.add, nl.multiply)),
            (HardwareError, "op1", call(1.0, 1.0, nl.bypass, nl.add)),
            (CompilerError, "reverse0", call(1.0, 1.0, nl.bypass, nl.bypass, reverse0=True)),
            (CompilerError, "reverse1", call(1.0, 1.0, nl.add, nl.bypass, reverse1=True)),
            (CompilerError, "imm0", call(None, 1.0, nl.add, nl.bypass)),
            (HardwareError, "imm1", call(a, b, nl.multiply, nl.add)),
            (HardwareError, "imm0", call(x, 1.0, nl.add, nl.bypass)),
            (
                HardwareError, "reduce_op",
                call(1.0, 1.0, nl.add, nl.bypass, reduce_op=nl.multiply, reduce_cmd=nisa.reduce_cmd.reset_reduce),
            ),
            (CompilerError, "reduce_op", call(1.0, 1.0, nl.add, nl.bypass, reduce_cmd=nisa.reduce_cmd.reset)),
            (HardwareError, "reduce_cmd", call(1.0, 1.0, nl.add, nl.bypass, reduce_cmd=nisa.reduce_cmd.load_reduce)),
            (HardwareError, "reduce_res", call(1.0, 1.0, nl.add, nl.bypass, reduce_res=x)),
        ):  # fmt: skip
            assert_refused(kind, operand, refused)
