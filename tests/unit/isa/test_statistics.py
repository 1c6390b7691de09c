"""Statistics and accumulating instructions of VectorE against float64 NumPy, rounded once an operation where exact."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import (
    FLOATS,
    GENERATIONS,
    NUMPY,
    assert_close,
    assert_refused,
    assert_same,
    chip,
    draw_values,
    draws,
    generations,
    given_tensor,
    layouts,
    memories,
    nl,
    only_writes,
    output_layouts,
    read,
    rounded,
    running,
    seeds,
    single,
    sizes,
    tensor,
    upcast,
)

from trnsim.errors import CompilerError, HardwareError
from trnsim.hardware import load_timing
from trnsim.isa import reductions
from trnsim.isa import statistics as S
from trnsim.isa.constants import reduce_cmd
from trnsim.machine import core as machine

EPS = 2.0**-23
dtypes = st.sampled_from([*FLOATS, "int8", "uint8", "int32", "uint32"])
short_dtypes = st.sampled_from([*FLOATS, "int8", "uint8", "int16", "uint16"])
float_dtypes = st.sampled_from(FLOATS)

BINARY = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "greater": operator.gt,
    "abs_max": lambda x, y: np.where(np.abs(x) > np.abs(y), x, y),
}
NEUTRAL = {"add": 0.0, "subtract": 0.0, "multiply": 1.0, "maximum": -math.inf, "minimum": math.inf}


def number(values, column):
    """What a scalar operand stands for: a column, or its first element for all partitions."""
    return values if column else np.repeat(values[:1], len(values), 0)


def scalar(core, values, column, kind="float32"):
    return given_tensor(core, values, kind) if column else float(values[0, 0])


class TestMeanAndVariance:
    @draws
    @given(generations, sizes, seeds, dtypes, memories, memories, layouts, output_layouts)
    def test_bn_stats(self, generation, size, seed, kind, place1, place, layout1, layout):
        x = draw_values(seed, kind, *size)
        with running(generation) as core:
            data = given_tensor(core, x, kind, place1, layout1)
            x = upcast(read(data))
            dst = tensor(core, "float32", size[0], 6, place, layout)
            with only_writes(dst):
                S.bn_stats(dst, data)
            for half in (0, 1):
                values, (count, mean, squares) = x[:, half::2], read(dst)[:, 3 * half : 3 * half + 3].T
                n = values.shape[1]
                assert (count == n).all()
                if n == 0:
                    assert (mean == 0).all()
                    assert (squares == 0).all()
                    continue
                top = np.abs(values).max(1)
                assert (np.abs(mean - values.mean(1)) <= n * EPS * top).all()
                expected = ((values - values.mean(1, keepdims=True)) ** 2).sum(1)
                # deviations are as far off as the mean, which matters where they are small
                assert (np.abs(squares - expected) <= 8 * n * EPS * (expected + n * EPS * top**2)).all()

    def test_statistics_are_exact_where_float32_is(self):
        x = np.array([[2, 10, 4, 20, 6, 30], [1, 0, 1, 0, 1, 0]], np.float32)
        with running() as core:
            for kind in ("float32", "bfloat16"):
                dst, total = tensor(core, kind, 2, 6), tensor(core, "float32", 2, 2)
                S.bn_stats(dst, given_tensor(core, x, "float32"))
                expected = np.array([[3, 4, 8, 3, 20, 200], [3, 1, 0, 3, 0, 0]], np.float32)
                assert_same(read(dst), expected.astype(NUMPY[kind]))
                S.bn_aggr(total, dst)
                assert_close(read(total), np.stack([x.mean(1), x.astype(float).var(1)], 1), "float32", 4)

    @draws
    @given(generations, sizes, seeds, st.sampled_from(["float32", "bfloat16"]), memories, layouts, output_layouts)
    def test_bn_aggr(self, generation, size, seed, kind, place, layout1, layout):
        partitions, groups = size
        rng = np.random.default_rng(seed)
        triples = np.stack(
            [
                rng.integers(1, 129, (partitions, groups)),
                rng.standard_normal((partitions, groups)),
                rng.random((partitions, groups)) * 100,
            ],
            2,
        ).astype(NUMPY[kind])
        triples[:, groups // 2, 0] = 1 if groups == 1 else 0
        with running(generation) as core:
            data = given_tensor(core, triples.reshape(partitions, -1), kind, place, layout1)
            dst = tensor(core, "float32", partitions, 2, "sbuf", layout)
            count, mean, squares = upcast(read(data)).reshape(partitions, groups, 3).transpose(2, 0, 1)
            with only_writes(dst):
                S.bn_aggr(dst, data)
            if layout1 == "broadcast":
                return  # counts, means and squares are one number there
            total = count.sum(1)
            common = (count * mean).sum(1) / total
            variance = (squares + count * (mean - common[:, None]) ** 2).sum(1) / total
            assert (np.abs(read(dst)[:, 0] - common) <= (groups + 4) * EPS * np.abs(mean).max(1)).all()
            assert (np.abs(read(dst)[:, 1] - variance) <= 4 * (groups + 4) * EPS * (variance + 4)).all()

    @pytest.mark.parametrize("elements", [1, 2, 511, 512, 513, 1500])
    def test_both_give_mean_and_variance_of_any_length(self, elements):
        x = draw_values(elements, "float32", 128, elements) + np.float32(3)
        with running() as core:
            tiles = range(0, elements, 512)
            stats, dst = core.ndarray((128, 6 * len(tiles)), "float32"), core.ndarray((128, 2), "float32")
            data = given_tensor(core, x, "float32")
            for i, start in enumerate(tiles):
                S.bn_stats(stats[:, 6 * i : 6 * i + 6], data[:, start : min(start + 512, elements)])
            S.bn_aggr(dst, stats)
            mean, variance = upcast(x).mean(1), upcast(x).var(1)
            size = np.abs(x).max(1)
            assert (np.abs(read(dst)[:, 0] - mean) <= 30 * EPS * size).all()
            assert (np.abs(read(dst)[:, 1] - variance) <= 60 * EPS * (variance + size)).all()


class TestSelectReduce:
    @draws
    @given(
        generations,
        sizes,
        seeds,
        st.sampled_from(["int8", "uint8", "int16", "uint16"]),
        short_dtypes,
        dtypes,
        st.booleans(),
        st.booleans(),
        memories,
        layouts,
        output_layouts,
    )
    def test_select(self, generation, size, seed, mask, kind, out, column, reverse, place, layout1, layout):
        x, choice = draw_values(seed, kind, *size), draw_values(seed + 1, mask, *size, 1)
        other = draw_values(seed + 2, "float32", size[0], 1)
        with running(generation) as core:
            on_true = given_tensor(core, x, kind, place, layout1)
            predicate = given_tensor(core, choice, mask, "sbuf")
            dst, top = tensor(core, out, *size, "sbuf", layout), tensor(core, "float32", size[0], 1, "psum")
            with only_writes(dst, top):
                S.select_reduce(
                    dst,
                    predicate,
                    on_true,
                    scalar(core, other, column),
                    top,
                    reduce_cmd.reset_reduce,
                    nl.maximum,
                    reverse,
                )
            taken = (choice == 0) if reverse else (choice != 0)
            expected = np.where(taken, read(on_true).astype(np.float32), number(other, column))
            assert_same(read(dst), rounded(expected, out))
            assert_same(read(top), expected.max(1, keepdims=True))

    def test_maxima_continue(self):
        parts = [draw_values(i, "float32", 32, 10) for i in range(3)]
        with running() as core:
            out, top = tensor(core, "float32", 32, 10), tensor(core, "bfloat16", 32, 1)
            ones = given_tensor(core, np.ones((32, 10), np.uint8), "uint8")
            tiles = [given_tensor(core, p, "float32") for p in parts]
            S.select_reduce(out, ones, tiles[0], 0, reduce_cmd=reduce_cmd.reset_reduce)
            S.select_reduce(out, ones, tiles[1], 0, reduce_cmd=reduce_cmd.reduce)
            S.select_reduce(out, ones, tiles[2], 0, top, reduce_cmd=reduce_cmd.reduce)
            expected = np.concatenate(parts, 1).max(1, keepdims=True)
            assert_same(read(top), rounded(expected, "bfloat16"))
            assert not core.launch.findings

    def test_reading_idle_accumulators_is_reported(self):
        with running() as core:
            data, top = given_tensor(core, np.ones((8, 4), np.float32), "float32"), tensor(core, "float32", 8, 1)
            mask = given_tensor(core, np.ones((8, 4), np.uint8), "uint8")
            S.select_reduce(data, mask, data, 0.0)
            assert not core.launch.findings
            S.select_reduce(data, mask, data, 0.0, top)
            assert [f.kind for f in core.launch.findings.values()] == ["accumulator-undefined"]


class TestCumulative:
    @draws
    @given(
        generations,
        sizes,
        seeds,
        st.sampled_from(sorted(BINARY)),
        st.sampled_from(sorted(NEUTRAL)),
        st.booleans(),
        st.booleans(),
        short_dtypes,
        short_dtypes,
        memories,
        layouts,
        output_layouts,
    )
    def test_each_step_rounds_once(
        self, generation, size, seed, name0, name1, column, load, kind, out, place, layout1, layout
    ):
        x = draw_values(seed, kind, *size, 3)
        a, b = draw_values(seed + 1, "float32", size[0], 1), draw_values(seed + 2, "float32", size[0], 1)
        with running(generation) as core:
            src = given_tensor(core, x, kind, place, layout1)
            dst = tensor(core, out, *size, "sbuf", layout)
            with only_writes(dst):
                S.tensor_scalar_cumulative(
                    dst,
                    src,
                    getattr(nl, name0),
                    getattr(nl, name1),
                    scalar(core, a, column),
                    scalar(core, b, column) if load else None,
                    reduce_cmd.load_reduce if load else reduce_cmd.reset_reduce,
                )
            values = single(BINARY[name0](upcast(read(src)), number(upcast(a), column)))
            register = number(upcast(b), column)[:, 0] if load else np.full(size[0], NEUTRAL[name1])
            columns = []
            for i in range(size[1]):
                with np.errstate(all="ignore"):
                    register = upcast(single(BINARY[name1](upcast(values[:, i]), register)))
                columns.append(register)
            assert_same(read(dst), rounded(np.stack(columns, 1), out))

    def test_continues_where_the_last_one_stopped(self):
        x = draw_values(4, "float32", 32, 24)
        with running() as core:
            src, whole = given_tensor(core, x, "float32"), tensor(core, "float32", 32, 24)
            parts = tensor(core, "float32", 32, 24)
            for name in sorted(NEUTRAL):
                op = getattr(nl, name)
                S.tensor_scalar_cumulative(whole, src, nl.multiply, op, 2.0)
                S.tensor_scalar_cumulative(parts[:, :8], src[:, :8], nl.multiply, op, 2.0)
                S.tensor_scalar_cumulative(parts[:, 8:], src[:, 8:], nl.multiply, op, 2.0, reduce_cmd=reduce_cmd.reduce)
                assert_same(read(parts), read(whole))

    def test_the_accumulators_are_those_of_tensor_scalar_reduce(self):
        x = draw_values(4, "float32", 32, 24)
        expected = single(upcast(x) + 2).max(1, keepdims=True)
        with running() as core:
            src, out, top = (
                given_tensor(core, x, "float32"),
                tensor(core, "float32", 32, 24),
                tensor(core, "float32", 32, 1),
            )
            reductions.tensor_scalar_reduce(out, src, nl.add, 2.0, nl.maximum)
            S.tensor_scalar_cumulative(out, src, nl.add, nl.maximum, 1.0, reduce_cmd=reduce_cmd.reduce)
            assert_same(read(out), np.repeat(expected, 24, 1))
            S.tensor_scalar_cumulative(out, src, nl.add, nl.maximum, 2.0)
            reductions.tensor_scalar_reduce(out, src, nl.add, 1.0, nl.maximum, top, reduce_cmd=reduce_cmd.reduce)
            assert_same(read(top), expected)

    def test_unary_operators_take_no_operand(self):
        x = draw_values(4, "float32", 8, 5)
        with running() as core:
            dst = tensor(core, "float32", 8, 5)
            S.tensor_scalar_cumulative(dst, given_tensor(core, x, "float32"), nl.abs, nl.maximum, None)
            assert_same(read(dst), np.maximum.accumulate(np.abs(x), axis=1))


class TestExponential:
    @draws
    @given(
        sizes,
        seeds,
        st.sampled_from([*FLOATS, "int8", "int16", "uint8"]),
        float_dtypes,
        st.booleans(),
        memories,
        memories,
        layouts,
        output_layouts,
    )
    def test_values_and_sums(self, size, seed, kind, out, column, place1, place, layout1, layout):
        x = draw_values(seed, kind, *size, 4)
        with running("v4") as core:
            src = given_tensor(core, x, kind, place1, layout1)
            x = upcast(read(src))
            top = np.maximum(x.max(1, keepdims=True), 0).astype(np.float32)
            dst, total = tensor(core, out, *size, place, layout), tensor(core, "float32", size[0], 1)
            with only_writes(dst, total):
                S.exponential(dst, src, scalar(core, top, column), total, reduce_cmd.reset_reduce)
            difference = single(x - number(upcast(top), column))
            expected = np.exp(upcast(difference))
            # a few float32 roundings before that to dst's dtype, which is monotone
            low, high = (rounded(single(expected * (1 + e)), out).astype(np.float64) for e in (-4 * EPS, 4 * EPS))
            assert ((low <= read(dst)) & (read(dst) <= high)).all()
            sums = expected.sum(1)
            assert (np.abs(read(total)[:, 0] - sums) <= (size[1] + 4) * EPS * sums).all()

    def test_sums_continue(self):
        parts = [-np.abs(draw_values(i, "float32", 32, 10)) for i in range(3)]
        start = np.abs(draw_values(7, "float32", 32, 1))
        with running("v4") as core:
            out, total = tensor(core, "bfloat16", 32, 10), tensor(core, "float32", 32, 1)
            tiles = [given_tensor(core, p, "float32") for p in parts]
            S.exponential(out, tiles[0], reduce_cmd=reduce_cmd.reset_reduce)
            S.exponential(out, tiles[1], reduce_cmd=reduce_cmd.reduce)
            S.exponential(out, tiles[2], 0.0, total, reduce_cmd.reduce)
            assert_close(read(total), np.exp(upcast(np.concatenate(parts, 1))).sum(1, keepdims=True), "float32", 40)
            for initial, value in ((given_tensor(core, start, "float32"), upcast(start)), (2.5, 2.5)):
                S.exponential(out, tiles[0], 0.0, total, reduce_cmd.load_reduce, initial)
                assert_close(read(total), value + np.exp(upcast(parts[0])).sum(1, keepdims=True), "float32", 40)
            assert not core.launch.findings

    def test_idle_only_computes(self):
        x = np.array([[0, 1, -1, np.inf, -np.inf, np.nan, 100]], np.float32)
        with running("v4") as core:
            dst = tensor(core, "float32", 1, 7)
            S.exponential(dst, given_tensor(core, x, "float32"))
            assert_close(read(dst)[:, :3], np.exp(upcast(x[:, :3])), "float32", 2)
            assert_same(read(dst)[:, 3:], np.array([[np.inf, 0, np.nan, np.inf]], np.float32))
            S.exponential(dst, given_tensor(core, x, "float32"), 0.0, tensor(core, "float32", 1, 1))
            assert [f.kind for f in core.launch.findings.values()] == ["accumulator-undefined"]


def tile(dtype="float32", partitions=8, elements=16, memory="sbuf"):
    made = machine.current().ndarray((partitions, elements), dtype, memory)
    made.storage.bytes()[:] = 0
    made.storage.coverage.full = True
    return made


def select(**changes):
    arguments = {"dst": tile(), "predicate": tile("uint8"), "on_true": tile(), "on_false": 0.0}
    S.select_reduce(**(arguments | changes))


def cumulate(**changes):
    arguments = {"dst": tile(), "src": tile(), "op0": nl.add, "op1": nl.add, "imm0": 0.0}
    S.tensor_scalar_cumulative(**(arguments | changes))


def exponentiate(**changes):
    S.exponential(**({"dst": tile(), "src": tile()} | changes))


psum = {"memory": "psum"}
RULES = [
    (HardwareError, "data", lambda: S.bn_stats(tile(elements=6), tile(elements=513))),
    (HardwareError, "data", lambda: S.bn_stats(tile(elements=6), tile(memory="hbm"))),
    (HardwareError, "dst", lambda: S.bn_stats(tile(elements=5), tile())),
    (HardwareError, "dst", lambda: S.bn_stats(tile("float32", 4, 6), tile())),
    (HardwareError, "data", lambda: S.bn_stats(tile(elements=6), tile("float8_e4m3fn_x4"))),
    (HardwareError, "data", lambda: S.bn_aggr(tile(elements=2), tile(elements=4))),
    (HardwareError, "dst", lambda: S.bn_aggr(tile(elements=3), tile(elements=6))),
    (HardwareError, "predicate", lambda: select(predicate=tile("uint32"))),
    (HardwareError, "predicate", lambda: select(predicate=tile())),
    (HardwareError, "predicate", lambda: select(predicate=tile("uint8", 8, 8))),
    (HardwareError, "on_true", lambda: select(on_true=tile("int32"))),
    (HardwareError, "on_true", lambda: select(on_true=tile("tfloat32"))),
    (HardwareError, "on_true", lambda: select(on_true=tile("float32", 8, 15))),
    (HardwareError, "on_true", lambda: select(on_true=tile(**psum), predicate=tile("uint8", **psum))),
    (HardwareError, "on_false", lambda: select(on_false=tile())),
    (CompilerError, "on_false", lambda: select(on_false=None)),
    (HardwareError, "reduce_res", lambda: select(reduce_res=tile())),
    (HardwareError, "reduce_res", lambda: select(reduce_res=tile("int32", 8, 1))),
    (HardwareError, "reduce_cmd", lambda: select(reduce_cmd=reduce_cmd.load_reduce)),
    (HardwareError, "reduce_op", lambda: select(reduce_op=nl.add)),
    (HardwareError, "dst", lambda: cumulate(dst=tile("int32"))),
    (HardwareError, "src", lambda: cumulate(src=tile("uint32"))),
    (HardwareError, "src", lambda: cumulate(src=tile("tfloat32"))),
    (HardwareError, "src", lambda: cumulate(src=tile(elements=8))),
    (HardwareError, "op0", lambda: cumulate(op0=nl.bitwise_and)),
    (HardwareError, "op1", lambda: cumulate(op1=nl.abs_max)),
    (HardwareError, "imm0", lambda: cumulate(imm0=tile("bfloat16", 8, 1))),
    (CompilerError, "imm0", lambda: cumulate(imm0=None)),
    (CompilerError, "imm1", lambda: cumulate(imm1=1.0)),
    (CompilerError, "imm1", lambda: cumulate(reduce_cmd=reduce_cmd.load_reduce)),
    (HardwareError, "imm1", lambda: cumulate(imm1=tile(), reduce_cmd=reduce_cmd.load_reduce)),
    (HardwareError, "reduce_cmd", lambda: cumulate(reduce_cmd=reduce_cmd.idle)),
    (HardwareError, "dst", lambda: exponentiate(dst=tile("uint32"))),
    (HardwareError, "src", lambda: exponentiate(src=tile("tfloat32"))),
    (HardwareError, "src", lambda: exponentiate(src=tile().reshape(8, 2, 2, 2, 2))),
    (HardwareError, "max_value", lambda: exponentiate(max_value=tile("bfloat16", 8, 1))),
    (CompilerError, "max_value", lambda: exponentiate(max_value=None)),
    (HardwareError, "reduce_res", lambda: exponentiate(reduce_res=tile("int32", 8, 1))),
    (HardwareError, "reduce_res", lambda: exponentiate(reduce_res=tile())),
    (HardwareError, "reduce_cmd", lambda: exponentiate(reduce_cmd=reduce_cmd.reset)),
    (CompilerError, "reduce_init", lambda: exponentiate(reduce_init=1.0)),
    (CompilerError, "reduce_init", lambda: exponentiate(reduce_init=tile("float32", 8, 1))),
    (CompilerError, "reduce_init", lambda: exponentiate(reduce_init=None, reduce_cmd=reduce_cmd.load_reduce)),
]


@pytest.mark.parametrize(("kind", "operand", "call"), RULES)
def test_rules(kind, operand, call):
    with running("v4") as core:
        assert_refused(kind, operand, call)
        assert len(core.trace) == 0


def test_exponential_needs_v4():
    for generation in GENERATIONS[:2]:
        with running(generation):
            with pytest.raises(HardwareError, match=f"exponential does not exist on NeuronCore-{generation}"):
                exponentiate()


def test_time_only_runs_accumulate_in_order():
    results = []
    for numeric in (True, False):
        with running("v4", numeric=numeric) as core:
            x = given_tensor(core, draw_values(3, "float32", 8, 6), "float32")
            out, total = core.ndarray((8, 6), "float32"), core.ndarray((8, 1), "float32")
            S.exponential(out, x, reduce_cmd=reduce_cmd.reset_reduce)
            S.tensor_scalar_cumulative(out, x, nl.add, nl.add, 1.0, reduce_cmd=reduce_cmd.reduce)
            S.exponential(x, x, 1.0, total, reduce_cmd.reduce)
            core.force(total)
            results.append(read(total))
    assert_same(results[1], results[0])


# cycles of a streaming VectorE instruction; those that read the accumulators out have a second one of 64
COSTS = [
    ("v3", 500, False, 0, lambda: S.bn_stats(tile(elements=6), tile(elements=500))),
    ("v3", 13 * 40, False, 0, lambda: S.bn_aggr(tile(elements=2), tile(elements=120))),
    ("v3", 13 * 2, False, 0, lambda: S.bn_aggr(tile(elements=2), tile(elements=6))),
    ("v3", 1000, True, 0, lambda: cumulate(dst=tile(elements=1000), src=tile(elements=1000))),
    ("v3", 32, True, 64, lambda: select(reduce_res=tile(elements=1))),
    ("v3", 16, True, 0, lambda: select(on_true=tile(**psum))),
    ("v4", 250, True, 0, lambda: exponentiate(dst=tile(elements=1000), src=tile(elements=1000))),
    (
        "v4",
        250,
        True,
        64,
        lambda: exponentiate(dst=tile(elements=1000), src=tile(elements=1000), reduce_res=tile(elements=1)),
    ),
]


@pytest.mark.parametrize(("generation", "cycles", "arithmetic", "extra", "call"), COSTS)
def test_costs(generation, cycles, arithmetic, extra, call):
    with running(generation) as core:
        call()
        klass = core.trace.classes[core.trace.instructions["klass"][-1]]
    vector = load_timing(chip(generation)).vector
    (work,) = klass.instruction.cost(load_timing(chip(generation)), klass, "vector")
    latency = vector.cycles(cycles) + vector.fixed_ps + (vector.arithmetic_ps if arithmetic else 0)
    assert work.latency_ps == latency + vector.cycles(extra)
    assert work.busy_ps == max(vector.cycles(64), latency - vector.overlap_ps) + vector.cycles(extra)
