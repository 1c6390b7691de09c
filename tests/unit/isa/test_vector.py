"""VectorE: each instruction against float64 arithmetic rounded once an operation, in every layout, dtype and memory."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import (
    FLOATS,
    GENERATIONS,
    INTEGERS,
    NUMPY,
    assert_close,
    assert_refused,
    assert_same,
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
from trnsim.isa import reductions, vector, vector_search
from trnsim.isa.constants import engine, reduce_cmd

dtypes = st.sampled_from([*FLOATS, "int8", "uint8", "int32", "uint32"])
float_dtypes = st.sampled_from(FLOATS)
words = st.sampled_from(["int32", "uint32"])

REFERENCE = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "abs_max": lambda x, y: np.where(np.abs(x) > np.abs(y), x, y),
    "abs_min": lambda x, y: np.where(np.abs(x) < np.abs(y), x, y),
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "logical_and": lambda x, y: (x != 0) & (y != 0),
    "logical_or": lambda x, y: (x != 0) | (y != 0),
    "logical_xor": lambda x, y: (x != 0) ^ (y != 0),
}
UNARY = {"abs": np.abs, "square": np.square, "relu": lambda x: np.maximum(x, 0), "reciprocal": lambda x: 1 / x}
BITS = {
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "left_shift": lambda x, y: x << y if 0 <= y < 64 else 0,
    "right_shift": lambda x, y: x >> y if 0 <= y < 64 else 0,
}
operators = st.sampled_from(sorted(REFERENCE))


def op(name):
    return getattr(nl, name)


def apply(name, x, y, reverse=False):
    """An operation of the engine on float32 values held in float64."""
    with np.errstate(all="ignore"):
        if name in UNARY:
            return single(UNARY[name](x)).astype(np.float64)
        return single(REFERENCE[name](y, x) if reverse else REFERENCE[name](x, y)).astype(np.float64)


def wrapped(values, dtype):
    """Python integers reduced to the bits of an integer dtype."""
    bits = 8 * np.dtype(NUMPY[dtype]).itemsize
    flat = [int(v) % 2**bits for v in np.asarray(values, object).ravel()]
    return np.array(flat, np.uint64).astype(f"u{bits // 8}").view(NUMPY[dtype]).reshape(np.shape(values))


class TestElementwise:
    @draws
    @given(generations, sizes, seeds, operators, dtypes, dtypes, dtypes, memories, memories, layouts, output_layouts)
    def test_tensor_tensor(self, generation, size, seed, name, kind1, kind2, out, place1, place, layout1, layout):
        x, y = draw_values(seed, kind1, *size), draw_values(seed + 1, kind2, *size)
        with running(generation) as core:
            data1 = given_tensor(core, x, kind1, place1, layout1)
            data2 = given_tensor(core, y, kind2)
            dst = tensor(core, out, *size, place, layout)
            with only_writes(dst):
                vector.tensor_tensor(dst, data1, data2, op(name), engine=engine.vector)
            assert_same(read(dst), rounded(apply(name, upcast(x), upcast(y)), out))

    @draws
    @given(generations, sizes, seeds, operators, words, words, words, layouts, output_layouts)
    def test_words_are_exact_on_gpsimd(self, generation, size, seed, name, kind1, kind2, out, layout1, layout):
        x, y = draw_values(seed, kind1, *size), draw_values(seed + 1, kind2, *size)
        with running(generation) as core:
            data1 = given_tensor(core, x, kind1, "sbuf", layout1)
            data2 = given_tensor(core, y, kind2)
            dst = tensor(core, out, *size, "sbuf", layout)
            vector.tensor_tensor(dst, data1, data2, op(name))
            expected = REFERENCE[name](x.astype(object), y.astype(object))
            assert_same(read(dst), wrapped(expected, out))
            assert core.trace.classes[core.trace.instructions["klass"][-1]].engines == ("gpsimd",)

    def test_magnitudes_of_the_least_word(self):
        x = np.array([[-(2**31), 2**31 - 1, -5]], np.int32)
        with running("v4") as core:
            data, other = given_tensor(core, x, "int32"), given_tensor(core, x[:, ::-1].copy(), "int32")
            for name in ("abs_max", "abs_min"):
                dst = tensor(core, "int32", 1, 3)
                vector.tensor_tensor(dst, data, other, op(name))
                assert_same(read(dst), REFERENCE[name](x.astype(object), x[:, ::-1].astype(object)).astype(np.int32))

    def test_words_go_through_float32_elsewhere(self):
        x = np.full((4, 3), 2**24 + 1, np.int32)
        with running() as core:
            data = given_tensor(core, x, "int32")
            in_psum = given_tensor(core, x, "int32", "psum")
            dst = tensor(core, "int32", 4, 3)
            for call in (
                lambda: vector.tensor_tensor(dst, in_psum, data, nl.add),
                lambda: vector.tensor_tensor(dst, data, data, nl.add, engine=engine.vector),
            ):
                call()
                assert_same(read(dst), np.full((4, 3), 2**25, np.int32))

    def test_power_runs_on_gpsimd(self):
        x = draw_values(1, "float32", 8, 12)
        with running() as core:
            data = given_tensor(core, np.abs(x), "float32")
            dst = tensor(core, "float32", 8, 12)
            vector.tensor_tensor(dst, data, given_tensor(core, x, "float32"), nl.power)
            assert_close(read(dst), upcast(np.abs(x)) ** upcast(x), "float32", 4)
            assert core.trace.classes[core.trace.instructions["klass"][-1]].engines == ("gpsimd",)

    @draws
    @given(sizes, seeds, st.sampled_from(sorted(BITS)), st.sampled_from(INTEGERS), memories, layouts, output_layouts)
    def test_bits(self, size, seed, name, kind, place, layout1, layout):
        bits = 8 * np.dtype(NUMPY[kind]).itemsize
        unsigned = f"uint{bits}"
        x = draw_values(seed, kind, *size)
        y = draw_values(seed + 1, kind, *size)
        if "shift" in name:
            y = (draw_values(seed + 1, "uint8", *size) % (bits + 3)).astype(NUMPY[kind])
        with running() as core:
            data1 = given_tensor(core, x, kind, place, layout1)
            dst = tensor(core, kind, *size, "sbuf", layout)
            vector.tensor_tensor(dst, data1, given_tensor(core, y, kind), op(name))
            a, b = (v.view(NUMPY[unsigned]).astype(object) for v in (x, y))
            reference = np.vectorize(
                lambda i, j: 0 if "shift" in name and j >= bits else BITS[name](i, j), otypes=[object]
            )
            expected = wrapped(reference(a, b), kind)
            assert_same(read(dst), expected)
            scalar = int(y[0, 0])
            vector.tensor_scalar(dst, data1, op(name), scalar)
            assert_same(read(dst), wrapped(reference(a, b[:1, :1]), kind))
            vector.tensor_scalar(dst, data1, nl.invert, None, False, op(name), scalar)
            assert_same(read(dst), wrapped(reference((~x).view(NUMPY[unsigned]).astype(object), b[:1, :1]), kind))

    @draws
    @given(
        generations,
        sizes,
        seeds,
        st.sampled_from([*sorted(REFERENCE), *UNARY]),
        st.none() | operators,
        st.booleans(),
        st.booleans(),
        st.tuples(st.booleans(), st.booleans()),
        dtypes,
        dtypes,
        memories,
        layouts,
        output_layouts,
    )
    def test_tensor_scalar(
        self, generation, size, seed, name0, name1, reverse0, reverse1, columns, kind, out, place, layout1, layout
    ):
        x = draw_values(seed, kind, *size)
        c = [draw_values(seed + 1 + i, "float32", size[0], 1) for i in range(2)]
        with running(generation) as core:
            operands = []
            for i, name in enumerate((name0, name1)):
                if name is None or name in UNARY:
                    operands.append(None)
                elif columns[i]:
                    operands.append(given_tensor(core, c[i], "float32", place))
                else:
                    c[i] = c[i][:1]
                    operands.append(float(c[i][0, 0]))
            data = given_tensor(core, x, kind, place, layout1)
            dst = tensor(core, out, *size, "sbuf", layout)
            with only_writes(dst):
                vector.tensor_scalar(
                    dst, data, op(name0), operands[0], reverse0, name1 and op(name1), operands[1], reverse1
                )
            expected = apply(name0, upcast(x), upcast(c[0]), reverse0)
            if name1:
                expected = apply(name1, expected, upcast(c[1]), reverse1)
            assert_same(read(dst), rounded(expected, out))

    @draws
    @given(seeds, words, words, st.integers(-(2**31), 2**31), st.integers(-9, 9), st.booleans(), st.booleans())
    def test_addresses_are_exact(self, seed, kind, out, first, second, reverse0, reverse1):
        x = draw_values(seed, kind, 4, 6)
        with running() as core:
            data, dst = given_tensor(core, x, kind), tensor(core, out, 4, 6)
            vector.tensor_scalar(dst, data, nl.multiply, second, reverse0, nl.subtract, first, reverse1)
            product = x.astype(object) * second
            assert_same(read(dst), wrapped(first - product if reverse1 else product - first, out))
            vector.tensor_scalar(dst, data, nl.add, 1.0)
            assert_same(read(dst), rounded(apply("add", upcast(x), np.float64(1)), out))

    @draws
    @given(
        generations,
        sizes,
        seeds,
        operators,
        operators,
        st.booleans(),
        st.booleans(),
        st.booleans(),
        dtypes,
        dtypes,
        memories,
        layouts,
        output_layouts,
    )
    def test_scalar_tensor_tensor(
        self, generation, size, seed, name0, name1, reverse0, reverse1, column, kind, out, place, layout1, layout
    ):
        x, y = draw_values(seed, kind, *size), draw_values(seed + 1, "bfloat16", *size)
        c = draw_values(seed + 2, "bfloat16", size[0], 1)
        with running(generation) as core:
            data = given_tensor(core, x, kind, place, layout1)
            dst = tensor(core, out, *size, "sbuf", layout)
            operand = given_tensor(core, c, "bfloat16") if column else float(c[0, 0])
            c = c if column else c[:1]
            vector.scalar_tensor_tensor(
                dst, data, op(name0), operand, op(name1), given_tensor(core, y, "bfloat16"), reverse0, reverse1
            )
            expected = apply(name1, apply(name0, upcast(x), upcast(c), reverse0), upcast(y), reverse1)
            assert_same(read(dst), rounded(expected, out))

    @draws
    @given(generations, sizes, seeds, dtypes, dtypes, memories, layouts, output_layouts)
    def test_reciprocal(self, generation, size, seed, kind, out, place, layout1, layout):
        x = draw_values(seed, kind, *size)
        with running(generation) as core:
            dst = tensor(core, out, *size, "sbuf", layout)
            vector.reciprocal(dst, given_tensor(core, x, kind, place, layout1))
            with np.errstate(divide="ignore"):
                assert_same(read(dst), rounded(single(1 / upcast(x)), out))

    def test_in_place(self):
        x, c = draw_values(1, "float32", 8, 12), draw_values(2, "float32", 8, 1)
        with running() as core:
            data = given_tensor(core, x, "float32")
            vector.tensor_tensor(data, data, data, nl.multiply)
            vector.tensor_scalar(data, data, nl.add, data[:, 3:4], False, nl.multiply, data[:, 5:6])
            s = single(upcast(x) ** 2)
            expected = single(upcast(single(upcast(s) + upcast(s[:, 3:4]))) * upcast(s[:, 5:6]))
            assert_same(read(data), expected)
            column = given_tensor(core, c, "float32")
            vector.tensor_scalar(column, column, nl.subtract, column, False, nl.add, column)
            assert_same(read(column), c)
            reversed_view = data.ap([[12, 8], [1, 6]], offset=1)
            vector.tensor_copy(reversed_view, data[:, 0:6])
            assert_same(read(reversed_view), expected[:, 0:6])


class TestCopies:
    @draws
    @given(generations, sizes, seeds, dtypes, dtypes, memories, memories, layouts, output_layouts)
    def test_tensor_copy(self, generation, size, seed, kind, out, place1, place, layout1, layout):
        x = draw_values(seed, kind, *size)
        with running(generation) as core:
            src, dst = given_tensor(core, x, kind, place1, layout1), tensor(core, out, *size, place, layout)
            with only_writes(dst):
                vector.tensor_copy(dst, src, dtype=out)
            assert_same(read(dst), x if kind == out else rounded(x.astype(np.float32), out))

    def test_another_dtype_than_that_of_dst_is_reported(self):
        with running() as core:
            get = tiles(core)
            vector.tensor_copy(get("bfloat16"), get(), dtype="bfloat16")
            assert not core.launch.findings
            vector.tensor_copy(get("bfloat16"), get(), dtype="float16")
            assert [f.kind for f in core.launch.findings.values()] == ["ignored-dtype"]

    def test_packed_formats_are_copied_bit_for_bit(self):
        x = draw_values(3, "uint32", 32, 5)
        with running("v4") as core:
            src = given_tensor(core, x, "float8_e4m3fn_x4")
            dst = tensor(core, "float8_e4m3fn_x4", 32, 5)
            vector.tensor_copy(dst, src)
            assert_same(read(dst), x)
            vector.memset(dst, 0)
            assert_same(read(dst), np.zeros_like(x))

    @pytest.mark.parametrize(
        ("generation", "place", "expected"),
        [
            ("v2", "sbuf", ("vector", "gpsimd")),
            ("v2", "psum", ("vector",)),
            ("v3", "sbuf", ("vector", "scalar", "gpsimd")),
            ("v3", "psum", ("vector", "scalar")),
            ("v4", "sbuf", ("vector", "scalar", "gpsimd")),
        ],
    )
    def test_engines_of_a_copy(self, generation, place, expected):
        with running(generation) as core:
            dst = tensor(core, "float32", 4, 4, place)
            vector.tensor_copy(dst, given_tensor(core, np.ones((4, 4), np.float32), "float32"))
            assert core.trace.classes[core.trace.instructions["klass"][-1]].engines == expected

    @draws
    @given(
        sizes,
        seeds,
        st.sampled_from([*FLOATS, *INTEGERS]),
        st.sampled_from(["uint8", "uint16", "uint32"]),
        st.booleans(),
        st.booleans(),
        memories,
        layouts,
        output_layouts,
    )
    def test_tensor_copy_predicated(self, size, seed, kind, predicate, reverse, number, place, layout1, layout):
        x, old = draw_values(seed, kind, *size), draw_values(seed + 1, kind, *size)
        p = draw_values(seed + 2, "uint8", *size) % 3
        with running() as core:
            dst = given_tensor(core, old, kind, place, layout)
            src = 3 if number else given_tensor(core, x, kind, place, layout1)
            with only_writes(dst):
                vector.tensor_copy_predicated(dst, src, given_tensor(core, p.astype(predicate), predicate), reverse)
            chosen = np.full_like(x, 3) if number else x
            assert_same(read(dst), np.where((p == 0) == reverse, chosen, old).astype(x.dtype))

    @draws
    @given(sizes, st.floats(width=32, allow_nan=False), st.integers(-(2**40), 2**40), memories, output_layouts)
    def test_memset(self, size, number, integer, place, layout):
        for kind in (*FLOATS, *INTEGERS):
            with running() as core:
                dst = tensor(core, kind, *size, place, layout)
                value = integer if kind in INTEGERS else number
                with only_writes(dst):
                    vector.memset(dst, value)
                if kind in INTEGERS:
                    limits = np.iinfo(NUMPY[kind])
                    expected = np.full(size, min(max(value, limits.min), limits.max), NUMPY[kind])
                else:
                    expected = rounded(np.full(size, value, np.float32), kind)
                assert_same(read(dst), expected)


class TestReductions:
    SHAPES = (((2, 3, 4), 3), ((2, 3, 4), (2, 3)), ((5, 4), [1, 2]), ((6,), -1), ((2, 3, 4), (-2, -1)), ((3, 4), (2,)))

    @draws
    @given(
        generations,
        st.sampled_from([1, 32, 128]),
        st.sampled_from(SHAPES),
        seeds,
        st.sampled_from(
            ["add", "multiply", "maximum", "minimum", "subtract", "logical_and", "logical_or", "logical_xor"]
        ),
        st.sampled_from(["float32", "bfloat16", "float8_e4m3", "int8"]),
        float_dtypes,
        st.booleans(),
        st.booleans(),
    )
    def test_tensor_reduce(self, generation, partitions, case, seed, name, kind, out, negate, permuted):
        shape, axis = case
        axes = tuple(a % (len(shape) + 1) for a in ((axis,) if isinstance(axis, int) else axis))
        x = draw_values(seed, kind, partitions, math.prod(shape), 5).reshape(partitions, *shape)
        kept = math.prod(shape[: axes[0] - 1])
        with running(generation) as core:
            if permuted and len(shape) > 1:
                turned = [0, *range(len(shape), 0, -1)]
                data = given_tensor(core, x.transpose(turned).reshape(partitions, -1).copy(), kind)
                data = data.reshape(partitions, *shape[::-1]).permute(turned)
            else:
                data = given_tensor(core, x.reshape(partitions, -1), kind).reshape(partitions, *shape)
            dst = tensor(core, out, partitions, kept)
            reductions.tensor_reduce(dst, op(name), data, axis, negate, keepdims=negate)
            rows = upcast(x).reshape(partitions, kept, -1)
            size = np.abs(rows).sum(-1) if name in ("add", "subtract") else None
            expected = rows[..., 0] != 0 if name.startswith("logical") else rows[..., 0]
            for i in range(1, rows.shape[2]):
                expected = REFERENCE[name](expected, rows[..., i])
            expected = np.asarray(expected, np.float64) * (-1 if negate else 1)
            if size is None and name != "multiply":
                assert_same(read(dst), rounded(single(expected), out))
            else:
                with np.errstate(invalid="ignore"):
                    near = np.abs(read(dst).astype(np.float64) - rounded(single(expected), out).astype(np.float64))
                step = {"float32": 0, "float16": 2**-10, "bfloat16": 2**-7, "float8_e4m3": 2**-3, "float8_e5m2": 2**-2}
                limit = (
                    (np.abs(expected) if size is None else size) * 24 * 2.0**-23 + np.abs(expected) * step[out] + 2e-3
                )
                same = read(dst) == rounded(single(expected), out)
                assert (same | (near <= limit)).all()

    def test_sums_are_float32(self):
        x = draw_values(5, "float32", 128, 1000)
        with running() as core:
            dst = tensor(core, "float32", 128, 1)
            reductions.tensor_reduce(dst, nl.add, given_tensor(core, x, "float32"), 1)
            error = np.abs(read(dst)[:, 0] - upcast(x).sum(1))
            assert (error <= np.abs(upcast(x)).sum(1) * 10 * 2.0**-24).all()
            assert (error > 0).any()

    @draws
    @given(sizes, seeds, st.sampled_from(["bitwise_and", "bitwise_or", "bitwise_xor"]), st.sampled_from(INTEGERS))
    def test_bits(self, size, seed, name, kind):
        x = draw_values(seed, kind, *size)
        with running() as core:
            dst = tensor(core, kind, size[0], 1)
            reductions.tensor_reduce(dst, op(name), given_tensor(core, x, kind), 1)
            expected = x[:, :1].copy()
            for i in range(1, size[1]):
                expected[:, 0] = BITS[name](expected[:, 0], x[:, i])
            assert_same(read(dst), expected)

    @draws
    @given(
        generations,
        sizes,
        seeds,
        st.sampled_from(["add", "multiply", "maximum", "subtract", "greater"]),
        st.sampled_from(["add", "multiply", "minimum", "subtract"]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        dtypes,
        float_dtypes,
        memories,
        layouts,
        output_layouts,
    )
    def test_scan(
        self, generation, size, seed, name0, name1, reverse0, reverse1, column, kind, out, place, layout1, layout
    ):
        x, y = draw_values(seed, kind, *size, 3), draw_values(seed + 1, "bfloat16", *size)
        c = draw_values(seed + 2, "float32", size[0], 1)
        with running(generation) as core:
            dst = tensor(core, out, *size, "sbuf", layout)
            initial = given_tensor(core, c, "float32") if column else float(c[0, 0])
            reductions.tensor_tensor_scan(
                dst,
                given_tensor(core, x, kind, place, layout1),
                given_tensor(core, y, "bfloat16"),
                initial,
                op(name0),
                op(name1),
                reverse0,
                reverse1,
            )
            state = upcast(c if column else np.repeat(c[:1], size[0], 0))[:, 0]
            columns = []
            for i in range(size[1]):
                state = apply(name1, apply(name0, upcast(x)[:, i], state, reverse0), upcast(y)[:, i], reverse1)
                columns.append(state)
            assert_same(read(dst), rounded(np.stack(columns, 1), out))

    def test_reductions_continue_in_the_accumulators(self):
        parts = [draw_values(i, "float32", 32, 10) for i in range(3)]
        start = draw_values(7, "float32", 32, 1)
        with running() as core:
            out, result = tensor(core, "bfloat16", 32, 10), tensor(core, "float32", 32, 1)
            tiles = [given_tensor(core, p, "float32") for p in parts]
            for name in ("add", "maximum", "minimum", "multiply"):
                reduce = {"add": np.sum, "maximum": np.max, "minimum": np.min, "multiply": np.prod}[name]
                reductions.tensor_scalar_reduce(out, tiles[0], nl.multiply, 2.0, op(name))
                reductions.tensor_scalar_reduce(
                    out, tiles[1], nl.multiply, 2.0, op(name), None, False, reduce_cmd=reduce_cmd.reduce
                )
                reductions.tensor_scalar_reduce(
                    out,
                    tiles[2],
                    nl.multiply,
                    2.0,
                    op(name),
                    result,
                    reduce_cmd=reduce_cmd.reduce,
                    reduce_res_negate=True,
                )
                everything = np.concatenate([2 * upcast(p) for p in parts], 1)
                assert_close(-read(result), reduce(everything, axis=1, keepdims=True), "float32", 600)
                assert_same(read(out), rounded(2 * parts[2], "bfloat16"))
            reductions.tensor_scalar_reduce(
                out,
                tiles[0],
                nl.add,
                1.0,
                nl.add,
                result,
                False,
                reduce_cmd.load_reduce,
                given_tensor(core, start, "float32"),
            )
            assert_close(read(result), upcast(start) + (upcast(parts[0]) + 1).sum(1, keepdims=True), "float32", 100)

    @draws
    @given(
        st.sampled_from(["v3", "v4"]),
        sizes,
        seeds,
        st.sampled_from(["greater_equal", "greater", "equal"]),
        st.sampled_from(["less", "less_equal"]),
        st.integers(0, 50),
        float_dtypes,
        float_dtypes,
        layouts,
        output_layouts,
    )
    def test_range_select(self, generation, size, seed, name0, name1, start, kind, out, layout1, layout):
        x = draw_values(seed, kind, *size)
        low = draw_values(seed, "uint8", size[0], 1).astype(np.float32) % 60
        high = low + draw_values(seed + 1, "uint8", size[0], 1).astype(np.float32) % 30
        with running(generation) as core:
            dst, total = tensor(core, out, *size, "sbuf", layout), tensor(core, "float32", size[0], 1)
            reductions.range_select(
                dst,
                on_true_tile=given_tensor(core, x, kind, "sbuf", layout1),
                comp_op0=op(name0),
                comp_op1=op(name1),
                bound0=given_tensor(core, low, "float32"),
                bound1=given_tensor(core, high, "float32"),
                reduce_res=total,
                range_start=start,
                on_false_value=-3.4028235e38,
            )
            index = start + np.arange(size[1])
            mask = REFERENCE[name0](index, low) & REFERENCE[name1](index, high)
            expected = np.where(mask, x.astype(np.float32), np.finfo(np.float32).min)
            assert_same(read(dst), rounded(expected, out))
            assert_same(read(total), expected.max(1, keepdims=True))


class TestSearches:
    @draws
    @given(st.sampled_from([1, 32, 128]), st.integers(8, 40), seeds, float_dtypes, float_dtypes, layouts)
    def test_max8(self, partitions, elements, seed, kind, out, layout):
        x = draw_values(seed, kind, partitions, elements)
        with running() as core:
            dst = tensor(core, out, partitions, 8)
            vector_search.max8(dst, given_tensor(core, x, kind, "psum", layout))
            expected = [sorted(row.tolist(), reverse=True)[:8] for row in x.astype(np.float32)]
            assert_same(read(dst), rounded(np.array(expected, np.float32), out))

    @draws
    @given(st.integers(1, 4), st.sampled_from([1088, 1157, 4058, 16384]), seeds, st.sampled_from([2, 40, 4000]))
    def test_wide_rows(self, partitions, elements, seed, kinds):
        rng = np.random.default_rng(seed)
        x = rng.integers(0, kinds, (partitions, elements)).astype(np.float32)
        x[rng.random(x.shape) < 0.01] = -np.inf
        with running() as core:
            data, top = given_tensor(core, x, "float32"), tensor(core, "float32", partitions, 8)
            places, rest = tensor(core, "uint32", partitions, 8), tensor(core, "float32", partitions, elements)
            vector_search.max8(top, data)
            vector_search.nc_match_replace8(rest, data, top, -7.0, places)
            assert np.array_equal(read(top), np.sort(x, axis=1)[:, :-9:-1])
            for row, largest, at, left in zip(x, read(top), read(places), read(rest), strict=True):
                order = np.argsort(-row, kind="stable")[:8]  # of equal values the first is found first, by the last val
                assert sorted(at.tolist()) == sorted(order.tolist())
                assert np.array_equal(row[at], largest)
                expected = row.copy()
                expected[order] = -7.0
                assert np.array_equal(left, expected)

    @draws
    @given(st.sampled_from([1, 32, 128]), st.integers(8, 40), seeds, st.sampled_from(["uint16", "uint32"]), layouts)
    def test_find_and_replace(self, partitions, elements, seed, kind, layout):
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 12, (partitions, elements)).astype(np.float32)
        v = rng.integers(0, 14, (partitions, 8)).astype(np.float32)
        with running() as core:
            data, vals = given_tensor(core, x, "float32", "sbuf", layout), given_tensor(core, v, "float32")
            x = read(data)
            found, places = tensor(core, kind, partitions, 8), tensor(core, kind, partitions, 8)
            replaced = tensor(core, "bfloat16", partitions, elements)
            vector_search.nc_find_index8(found, data, vals)
            vector_search.nc_match_replace8(replaced, data, vals, -5.0, places)
            none = np.iinfo(NUMPY[kind]).max
            for p in range(partitions):
                for result, order in ((read(found)[p], range(8)), (read(places)[p], range(7, -1, -1))):
                    row, expected = x[p].tolist(), [none] * 8
                    for k in order:
                        if v[p, k] in row:
                            expected[k] = row.index(v[p, k])
                            row[expected[k]] = None
                    assert result.tolist() == expected
                assert read(replaced)[p].tolist() == [-5.0 if r is None else r for r in row]

    def test_documented_example_of_duplicates(self):
        x = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], np.float32)
        v = np.array([[3, 8, 8, 8, 8, 8, 8, 8]], np.float32)
        with running() as core:
            places, out = tensor(core, "uint32", 1, 8), tensor(core, "float32", 1, 11)
            data, vals = given_tensor(core, x, "float32"), given_tensor(core, v, "float32")
            vector_search.nc_match_replace8(out, data, vals, 0.0, places)
            assert read(places).tolist() == [[2, 10, 9, 8, 7, 6, 5, 4]]
            vector_search.nc_find_index8(places, data, vals)
            assert read(places).tolist() == [[2, 4, 5, 6, 7, 8, 9, 10]]
            vector_search.nc_match_replace8(data, data, vals, 0.0)
            assert read(data).tolist() == [[1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0]]


class TestAcrossPartitions:
    @draws
    @given(
        st.sampled_from([1, 31, 32, 64, 128]), st.integers(1, 6), seeds, st.sampled_from([*FLOATS, *INTEGERS]), memories
    )
    def test_shuffle(self, partitions, elements, seed, kind, place):
        rng = np.random.default_rng(seed)
        reach = min(partitions, 32)
        mask = [255 if rng.random() < 0.2 else int(rng.integers(0, reach)) for _ in range(32)]
        x, old = draw_values(seed, kind, partitions, elements), draw_values(seed + 1, kind, partitions, elements)
        with running() as core:
            src, dst = given_tensor(core, x, kind, place), given_tensor(core, old, kind)
            expected = old.copy()
            for i in range(partitions):
                if mask[i % 32] != 255:
                    expected[i] = x[i // 32 * 32 + mask[i % 32]]
            vector_search.nc_stream_shuffle(dst, src, mask)
            assert_same(read(dst), expected)
            vector_search.nc_stream_shuffle(src, src, [m if m != 255 else 0 for m in mask])
            assert_same(read(src), x[[i // 32 * 32 + mask[i % 32] * (mask[i % 32] != 255) for i in range(partitions)]])

    def test_one_partition_is_broadcast(self):
        x = draw_values(1, "bfloat16", 64, 5)
        with running() as core:
            src, dst = given_tensor(core, x, "bfloat16"), tensor(core, "bfloat16", 32, 5)
            vector_search.nc_stream_shuffle(dst=dst, src=src[32:33], shuffle_mask=[0] * 32)
            assert_same(read(dst), np.repeat(x[32:33], 32, 0))
            assert not core.launch.findings

    @draws
    @given(
        st.sampled_from([32, 64, 128]),
        st.integers(1, 5),
        seeds,
        st.sampled_from(["bfloat16", "float16"]),
        st.sampled_from([("float8_e4m3fn_x4", 8, 448.0), ("float8_e5m2_x4", 15, 57344.0)]),
        st.sampled_from(["uint8", "float8_e8m0fnu"]),
    )
    def test_quantize_mx(self, partitions, columns, seed, kind, target, scale_kind):
        import ml_dtypes

        packed, largest_exponent, limit = target
        x = draw_values(seed, kind, partitions, 4 * columns)
        x[:8, :4] = 0
        with running("v4") as core:
            dst, scale = tensor(core, packed, partitions, columns), tensor(core, scale_kind, partitions, columns)
            with only_writes(dst, scale):
                vector_search.quantize_mx(dst, given_tensor(core, x, kind), scale)
            scales = read(scale).view(np.uint8)
            element = ml_dtypes.float8_e4m3fn if largest_exponent == 8 else ml_dtypes.float8_e5m2
            codes = read(dst).view(np.uint8).view(element).astype(np.float64)
            for p in range(0, partitions, 8):
                for f in range(columns):
                    group = upcast(x)[p : p + 8, 4 * f : 4 * f + 4]
                    top = np.abs(group).max()
                    exponent = -127 if top == 0 else math.floor(math.log2(top)) - (largest_exponent - 1)
                    row = p // 32 * 32 + p % 32 // 8
                    assert scales[row, f] == exponent + 127
                    expected = np.clip(group / 2.0**exponent, -limit, limit).astype(np.float32).astype(element)
                    assert np.array_equal(codes[p : p + 8, 4 * f : 4 * f + 4], expected.astype(np.float64))


def tiles(core):
    """One tensor of each kind that a broken rule needs."""
    made = {}

    def get(dtype="float32", partitions=8, elements=16, memory="sbuf"):
        key = (dtype, partitions, elements, memory)
        if key not in made:
            made[key] = core.ndarray((partitions, elements), dtype, memory)
            made[key].storage.bytes()[:] = 0
            made[key].storage.coverage.full = True
        return made[key]

    return get


V = vector
RULES = [
    ("v3", CompilerError, "value", lambda t: V.memset(t("int32"), 1.5)),
    ("v4", HardwareError, "value", lambda t: V.memset(t("float8_e4m3fn_x4"), 1)),
    ("v3", HardwareError, "engine", lambda t: V.memset(t(memory="psum"), 0.0, engine.gpsimd)),
    ("v3", HardwareError, "engine", lambda t: V.memset(t(), 0.0, engine.scalar)),
    ("v3", HardwareError, "dst", lambda t: V.memset(t(memory="hbm"), 0.0)),
    ("v3", HardwareError, "src", lambda t: V.tensor_copy(t(), t(partitions=4))),
    ("v3", HardwareError, "src", lambda t: V.tensor_copy(t(), t(elements=8))),
    ("v3", HardwareError, "src", lambda t: V.tensor_copy(t(), t(memory="hbm"))),
    ("v2", HardwareError, "engine", lambda t: V.tensor_copy(t(), t(), engine.scalar)),
    ("v3", HardwareError, "engine", lambda t: V.tensor_copy(t(), t(memory="psum"), engine.gpsimd)),
    ("v4", HardwareError, "src", lambda t: V.tensor_copy(t(), t("float8_e4m3fn_x4"))),
    ("v3", HardwareError, "predicate", lambda t: V.tensor_copy_predicated(t(), t(), t("int8"))),
    ("v3", HardwareError, "predicate", lambda t: V.tensor_copy_predicated(t(), t(), t("uint8", 4))),
    ("v3", HardwareError, "src", lambda t: V.tensor_copy_predicated(t(), t("bfloat16"), t("uint8"))),
    (
        "v3",
        HardwareError,
        "predicate",
        lambda t: V.tensor_copy_predicated(t(), t(memory="psum"), t("uint8", memory="psum")),
    ),
    ("v3", HardwareError, "data2", lambda t: V.tensor_tensor(t(), t(memory="psum"), t(memory="psum"), nl.add)),
    ("v3", HardwareError, "data2", lambda t: V.tensor_tensor(t(), t(), t(elements=8), nl.add)),
    ("v3", HardwareError, "data1", lambda t: V.tensor_tensor(t("int32"), t(), t("int32"), nl.bitwise_and)),
    ("v3", HardwareError, "op", lambda t: V.tensor_tensor(t(), t(), t(memory="psum"), nl.power)),
    ("v3", HardwareError, "op", lambda t: V.tensor_tensor(t(), t(), t(), nl.abs)),
    ("v3", HardwareError, "engine", lambda t: V.tensor_tensor(t(), t(), t(), nl.add, engine.scalar)),
    ("v3", HardwareError, "engine", lambda t: V.tensor_tensor(t(memory="psum"), t(), t(), nl.add, engine.gpsimd)),
    ("v4", HardwareError, "data1", lambda t: V.tensor_tensor(t(), t("float8_e5m2_x4"), t(), nl.add)),
    (
        "v3",
        HardwareError,
        "op1",
        lambda t: V.tensor_scalar(t("int32"), t("int32"), nl.bitwise_and, 1, False, nl.add, 1),
    ),
    ("v3", HardwareError, "data", lambda t: V.tensor_scalar(t("int32"), t(), nl.bitwise_and, 1)),
    ("v3", HardwareError, "operand0", lambda t: V.tensor_scalar(t("int32"), t("int32"), nl.bitwise_and, 1.5)),
    ("v3", HardwareError, "operand0", lambda t: V.tensor_scalar(t(), t(), nl.add, t("bfloat16", 8, 1))),
    ("v3", HardwareError, "operand0", lambda t: V.tensor_scalar(t(), t(), nl.add, t("float32", 4, 1))),
    ("v3", HardwareError, "operand1", lambda t: V.tensor_scalar(t(), t(), nl.add, 1, False, nl.add, t())),
    ("v2", HardwareError, "engine", lambda t: V.tensor_scalar(t(), t(), nl.multiply, 1.0, engine=engine.scalar)),
    ("v3", HardwareError, "engine", lambda t: V.tensor_scalar(t(), t(), nl.maximum, 1.0, engine=engine.scalar)),
    ("v3", HardwareError, "engine", lambda t: V.tensor_scalar(t(), t(), nl.add, 1.0, engine=engine.gpsimd)),
    ("v3", HardwareError, "rsqrt", lambda t: V.tensor_scalar(t(), t(memory="psum"), nl.rsqrt, None)),
    ("v3", CompilerError, "operand1", lambda t: V.tensor_scalar(t(), t(), nl.add, 1.0, operand1=1.0)),
    ("v3", CompilerError, "operand0", lambda t: V.tensor_scalar(t(), t(), nl.abs, t("float32", 8, 1))),
    (
        "v3",
        HardwareError,
        "operand1",
        lambda t: V.scalar_tensor_tensor(t(), t(memory="psum"), nl.add, 1.0, nl.add, t(memory="psum")),
    ),
    ("v3", HardwareError, "op1", lambda t: V.scalar_tensor_tensor(t(), t(), nl.add, 1.0, nl.bitwise_or, t())),
    ("v3", HardwareError, "axis", lambda t: reductions.tensor_reduce(t(elements=1), nl.add, t(), 0)),
    ("v3", HardwareError, "axis", lambda t: reductions.tensor_reduce(t(elements=4), nl.add, t().reshape(8, 4, 4), 1)),
    ("v3", HardwareError, "dst", lambda t: reductions.tensor_reduce(t(elements=4), nl.add, t(), 1)),
    ("v3", HardwareError, "dst", lambda t: reductions.tensor_reduce(t(partitions=4, elements=1), nl.add, t(), 1)),
    ("v3", HardwareError, "op", lambda t: reductions.tensor_reduce(t(elements=1), nl.greater, t(), 1)),
    (
        "v3",
        HardwareError,
        "negate",
        lambda t: reductions.tensor_reduce(t("int8", 8, 1), nl.bitwise_or, t("int8"), 1, True),
    ),
    (
        "v3",
        HardwareError,
        "data1",
        lambda t: reductions.tensor_tensor_scan(t(), t(memory="psum"), t(memory="psum"), 0.0, nl.add, nl.add),
    ),
    ("v3", HardwareError, "initial", lambda t: reductions.tensor_tensor_scan(t(), t(), t(), t(), nl.add, nl.add)),
    ("v3", HardwareError, "reduce_op", lambda t: reductions.tensor_scalar_reduce(t(), t(), nl.add, 1.0, nl.subtract)),
    (
        "v3",
        HardwareError,
        "reduce_cmd",
        lambda t: reductions.tensor_scalar_reduce(t(), t(), nl.add, 1.0, nl.add, reduce_cmd=reduce_cmd.idle),
    ),
    ("v3", HardwareError, "reduce_res", lambda t: reductions.tensor_scalar_reduce(t(), t(), nl.add, 1.0, nl.add, t())),
    (
        "v3",
        CompilerError,
        "reduce_init",
        lambda t: reductions.tensor_scalar_reduce(t(), t(), nl.add, 1.0, nl.add, reduce_init=1.0),
    ),
    ("v3", HardwareError, "src", lambda t: vector_search.max8(t(elements=8), t(elements=7))),
    ("v3", HardwareError, "src", lambda t: vector_search.max8(t("float32", 1, 8), t("uint8", 1, 16385))),
    ("v3", HardwareError, "dst", lambda t: vector_search.max8(t(elements=9), t())),
    ("v3", HardwareError, "dst", lambda t: vector_search.nc_find_index8(t("int32", 8, 8), t(), t(elements=8))),
    ("v3", HardwareError, "vals", lambda t: vector_search.nc_find_index8(t("uint32", 8, 8), t(), t(elements=4))),
    (
        "v3",
        HardwareError,
        "dst_idx",
        lambda t: vector_search.nc_match_replace8(t(), t(), t(elements=8), 0.0, t("float32", 8, 8)),
    ),
    ("v3", HardwareError, "shuffle_mask", lambda t: vector_search.nc_stream_shuffle(t(), t(), [0] * 31)),
    ("v3", HardwareError, "shuffle_mask", lambda t: vector_search.nc_stream_shuffle(t(), t(), [9] * 32)),
    ("v3", HardwareError, "dst", lambda t: vector_search.nc_stream_shuffle(t("bfloat16"), t(), [0] * 32)),
    (
        "v3",
        HardwareError,
        "src",
        lambda t: vector_search.nc_stream_shuffle(t(partitions=64), t(partitions=128)[32:64], [0] * 32),
    ),
    (
        "v4",
        HardwareError,
        "src",
        lambda t: vector_search.quantize_mx(t("float8_e4m3fn_x4", 32, 4), t("float32", 32), t("uint8", 32, 4)),
    ),
    (
        "v4",
        HardwareError,
        "src",
        lambda t: vector_search.quantize_mx(t("float8_e4m3fn_x4", 8, 4), t("bfloat16"), t("uint8", 8, 4)),
    ),
    (
        "v4",
        HardwareError,
        "dst_scale",
        lambda t: vector_search.quantize_mx(t("float8_e4m3fn_x4", 64, 4), t("bfloat16", 64), t("uint8", 32, 4)),
    ),
]


@pytest.mark.parametrize(("generation", "kind", "operand", "call"), RULES)
def test_rules(generation, kind, operand, call):
    with running(generation) as core:
        get = tiles(core)
        assert_refused(kind, operand, lambda: call(get))
        assert len(core.trace) == (1 if operand == "value" and generation == "v4" else 0)


def range_select(t, **changes):
    arguments = {
        "dst": t(),
        "on_true_tile": t(),
        "comp_op0": nl.greater_equal,
        "comp_op1": nl.less,
        "bound0": t("float32", 8, 1),
        "bound1": t("float32", 8, 1),
    }
    reductions.range_select(**(arguments | changes))


@pytest.mark.parametrize(
    ("operand", "change"),
    [
        ("on_true_tile", lambda t: t("int32")),
        ("comp_op1", lambda t: nl.not_equal),
        ("bound0", lambda t: t("bfloat16", 8, 1)),
        ("bound1", lambda t: t()),
        ("reduce_op", lambda t: nl.add),
        ("reduce_cmd", lambda t: reduce_cmd.load_reduce),
        ("on_false_value", lambda t: -1.0),
    ],
)
def test_rules_of_range_select(operand, change):
    with running("v3") as core:
        get = tiles(core)
        assert_refused(HardwareError, operand, lambda: range_select(get, **{operand: change(get)}))


def test_generations():
    with running("v2") as core:
        with pytest.raises(HardwareError, match="range_select does not exist on NeuronCore-v2"):
            range_select(tiles(core))
    for generation in GENERATIONS[:2]:
        with running(generation) as core:
            get = tiles(core)
            with pytest.raises(HardwareError, match=f"quantize_mx does not exist on NeuronCore-{generation}"):
                vector_search.quantize_mx(get("float8_e4m3fn_x4", 32, 4), get("bfloat16", 32), get("uint8", 32, 4))


def test_time_only_runs_compute_what_is_needed():
    """The same trace, and the same value once it is needed, accumulators included."""
    results, traces = [], []
    for numeric in (True, False):
        with running(numeric=numeric) as core:
            x, out, total = (core.ndarray(s, "float32") for s in ((4, 8), (4, 8), (4, 1)))
            vector.memset(x, 2.0)
            reductions.tensor_scalar_reduce(out, x, nl.add, 1.0, nl.add)
            vector.tensor_tensor(x, x, out, nl.multiply)
            reductions.tensor_scalar_reduce(out, x, nl.add, 1.0, nl.add, total, reduce_cmd=reduce_cmd.reduce)
            core.force(total)
            results.append(read(total))
            traces.append([core.trace.instructions["klass"].tolist(), core.trace.operands["offset"].tolist()])
    assert (results[0] == 8 * 3 + 8 * 7).all()
    assert_same(results[1], results[0])
    assert traces[0] == traces[1]
