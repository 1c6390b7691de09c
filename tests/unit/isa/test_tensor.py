"""TensorE: products against float64, accumulation by region, transposes bit for bit, MX formats, and each limit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import (
    NUMPY,
    assert_refused,
    draw_values,
    draws,
    generations,
    given_tensor,
    layouts,
    only_writes,
    output_layouts,
    read,
    running,
    seeds,
    tensor,
    upcast,
)

from trnsim.errors import CompilerError, HardwareError
from trnsim.isa import tensor as pe
from trnsim.isa import vector
from trnsim.isa.constants import engine, matmul_perf_mode

narrow = st.sampled_from(["bfloat16", "float16", "float8_e4m3", "float8_e5m2"])


def assert_product(actual, a, b, steps=1, rounding=2.0**-24):
    """``a.T @ b`` within what float32 sums of that many products lose, in any order."""
    exact = a.T @ b
    size = np.abs(a).T @ np.abs(b)
    limit = size * (a.shape[0] + steps) * 2.0**-24 + np.abs(exact) * rounding + 1e-30
    assert (np.abs(actual.astype(np.float64) - exact) <= limit).all()


class TestMatmul:
    @draws
    @given(
        generations,
        st.sampled_from([1, 32, 100, 128]),
        st.sampled_from([1, 12, 128]),
        st.sampled_from([1, 24, 40]),
        seeds,
        st.tuples(narrow, narrow) | st.just(("float32", "float32")),
        layouts,
        layouts,
        output_layouts,
    )
    def test_product(self, generation, k, m, n, seed, kinds, layout1, layout2, layout):
        a, b = draw_values(seed, kinds[0], k, m), draw_values(seed + 1, kinds[1], k, n)
        with running(generation) as core:
            stationary = given_tensor(core, a, kinds[0], "sbuf", layout1)
            moving = given_tensor(core, b, kinds[1], "sbuf", layout2)
            dst = tensor(core, "float32", m, n, "psum", layout)
            with only_writes(dst):
                pe.nc_matmul(dst, stationary, moving)
            assert_product(read(dst), upcast(read(stationary)), upcast(read(moving)))

    @draws
    @given(st.sampled_from([None, True]), seeds, st.integers(2, 4))
    def test_accumulation(self, accumulate, seed, count):
        """None: the first product overwrites, later ones add. True adds from the second on."""
        a = [draw_values(seed + i, "bfloat16", 32, 16) for i in range(count)]
        b = [draw_values(seed + 9 + i, "bfloat16", 32, 20) for i in range(count)]
        with running() as core:
            dst = core.ndarray((16, 20), "float32", "psum")
            for i in range(count):
                pair = [given_tensor(core, x[i], "bfloat16") for x in (a, b)]
                pe.nc_matmul(dst, *pair, accumulate=accumulate if i else None)
            assert_product(read(dst), upcast(np.concatenate(a)), upcast(np.concatenate(b)), count)
            pe.nc_matmul(dst, *pair, accumulate=False)
            assert_product(read(dst), upcast(a[-1]), upcast(b[-1]))
            assert not core.launch.findings

    def test_regions_accumulate_on_their_own(self):
        """A second region of the tile starts anew; one that another engine wrote starts anew, too."""
        x, y = draw_values(1, "bfloat16", 32, 16), draw_values(2, "bfloat16", 32, 20)
        with running() as core:
            a, b = given_tensor(core, x, "bfloat16"), given_tensor(core, y, "bfloat16")
            dst = core.ndarray((16, 40), "float32", "psum")
            for _ in range(2):
                pe.nc_matmul(dst[:, 0:20], a, b)
            pe.nc_matmul(dst[:, 20:40], a, b)
            assert_product(read(dst)[:, :20] / 2, upcast(x), upcast(y))
            assert_product(read(dst)[:, 20:], upcast(x), upcast(y))
            vector.memset(dst, 7.0)
            pe.nc_matmul(dst[:, 0:20], a, b)
            assert_product(read(dst)[:, :20], upcast(x), upcast(y))
            assert (read(dst)[:, 20:] == 7).all()

    def test_overlapping_regions_add_where_they_meet(self):
        x, y = draw_values(1, "bfloat16", 32, 16), draw_values(2, "bfloat16", 32, 20)
        with running() as core:
            a, b = given_tensor(core, x, "bfloat16"), given_tensor(core, y, "bfloat16")
            dst = core.ndarray((16, 30), "float32", "psum")
            pe.nc_matmul(dst[:, 0:20], a, b)
            pe.nc_matmul(dst[:, 10:30], a, b)
            product = upcast(x).T @ upcast(y)
            expected = np.zeros((16, 30))
            expected[:, 0:20] += product
            expected[:, 10:30] += product
            assert np.abs(read(dst) - expected).max() <= 2.0**-16 * np.abs(expected).max()

    def test_double_row(self):
        """Two rows of the contraction in one pass: operands ``[K, 2, ...]``."""
        a, b = draw_values(1, "float8_e4m3", 64, 2 * 24), draw_values(2, "float8_e4m3", 64, 2 * 40)
        with running("v3") as core:
            stationary = given_tensor(core, a, "float8_e4m3").reshape(64, 2, 24)
            moving = given_tensor(core, b, "float8_e4m3").reshape(64, 2, 40)
            dst = tensor(core, "float32", 24, 40, "psum")
            pe.nc_matmul(dst, stationary, moving, perf_mode=matmul_perf_mode.double_row)
            pairs = [upcast(x).reshape(128, -1) for x in (a, b)]
            assert_product(read(dst), *pairs)

    def test_results_are_bfloat16_on_v4(self):
        a, b = draw_values(1, "bfloat16", 64, 24), draw_values(2, "bfloat16", 64, 1000)
        with running("v4") as core:
            dst = core.ndarray((24, 1000), "bfloat16", "psum")
            pair = given_tensor(core, a, "bfloat16"), given_tensor(core, b, "bfloat16")
            pe.nc_matmul(dst, *pair)
            assert_product(read(dst), upcast(a), upcast(b), rounding=2.0**-8)
            pe.nc_matmul(dst, *pair)
            assert_product(read(dst), upcast(2 * a), upcast(b), 2, rounding=3 * 2.0**-8)


class TestTranspose:
    @draws
    @given(
        st.sampled_from(["v3", "v4"]),
        st.sampled_from([1, 32, 100]),
        st.sampled_from([1, 12, 40]),
        seeds,
        st.sampled_from(["float32", "bfloat16", "float8_e5m2", "int32", "uint8"]),
        layouts,
        output_layouts,
    )
    def test_bits(self, generation, p, f, seed, kind, layout1, layout):
        bits = draw_values(seed, f"uint{8 * np.dtype(NUMPY[kind]).itemsize}", p, f)
        with running(generation) as core:
            data = given_tensor(core, bits.view(NUMPY[kind]), kind, "sbuf", layout1)
            expected = read(data).T
            for place in ("psum",) if max(p, f) > 32 else ("psum", "sbuf"):
                dst = tensor(core, kind, f, p, place, layout)
                with only_writes(dst):
                    pe.nc_transpose(dst, data)
                assert read(dst).tobytes() == expected.tobytes()

    @pytest.mark.parametrize(
        ("shape", "place", "expected"),
        [((32, 32), "sbuf", ("vector",)), ((32, 32), "psum", ("vector", "tensor")), ((33, 32), "psum", ("tensor",))],
    )
    def test_engines(self, shape, place, expected):
        with running() as core:
            data = given_tensor(core, draw_values(1, "bfloat16", *shape), "bfloat16")
            pe.nc_transpose(tensor(core, "bfloat16", *shape[::-1], place), data)
            assert core.trace.classes[core.trace.instructions["klass"][-1]].engines == expected

    def test_by_the_identity(self):
        """``is_transpose`` passes NaN and infinities through from NeuronCore-v3 on."""
        x = np.array([[np.nan, np.inf, -0.0], [1.0, -np.inf, 2.0]], np.float32)
        with running() as core:
            data, eye = given_tensor(core, x, "float32"), given_tensor(core, np.eye(2, dtype=np.float32), "float32")
            dst = tensor(core, "float32", 3, 2, "psum")
            pe.nc_matmul(dst, data, eye, is_transpose=True)
            assert read(dst).tobytes() == x.T.tobytes()


@draws
@given(st.sampled_from([32, 64, 128]), st.sampled_from([2, 24]), st.integers(1, 9), seeds, st.booleans(), st.booleans())
def test_mx_product(k, m, n, seed, e5m2, accumulate):
    """Operands of 4 packed elements, a scale for 8 partitions, laid out in the first 4 partitions of each quadrant."""
    element, kind = (ml_dtypes.float8_e5m2, "float8_e5m2_x4") if e5m2 else (ml_dtypes.float8_e4m3fn, "float8_e4m3fn_x4")
    rng = np.random.default_rng(seed)
    operands = []
    with running("v4") as core:
        for columns in (m, n):
            values = rng.standard_normal((k, 4 * columns)).astype(np.float32).astype(element)
            exponents = rng.integers(120, 134, (k // 8, columns)).astype(np.uint8)
            tile = rng.integers(0, 255, (k, columns)).astype(np.uint8)
            for g in range(k // 8):
                tile[g // 4 * 32 + g % 4] = exponents[g]
            data = given_tensor(core, values.view(np.uint8).view(np.uint32), kind)
            exact = upcast(values) * 2.0 ** (exponents.astype(np.float64).repeat(8, 0).repeat(4, 1) - 127)
            exact = exact.reshape(k, columns, 4).transpose(0, 2, 1).reshape(4 * k, columns)
            operands.append((data, given_tensor(core, tile, "uint8"), exact))
        (a, sa, x), (b, sb, y) = operands
        dst = tensor(core, "float32", m, n, "psum")
        pe.nc_matmul_mx(dst, a, b, sa, sb)
        assert_product(read(dst), x, y)
        if accumulate:
            pe.nc_matmul_mx(dst, a, b, sa, sb)
            assert_product(read(dst), 2 * x, y, 2)


def tiles(core):
    def tile(dtype="bfloat16", partitions=64, elements=32, memory="sbuf"):
        view = core.ndarray((partitions, elements), dtype, memory)
        view.storage.bytes()[:] = 0
        view.storage.coverage.full = True
        return view

    return tile


def matmul(t, **changes):
    arguments = {"dst": t("float32", 32, 32, "psum"), "stationary": t(), "moving": t()}
    pe.nc_matmul(**(arguments | changes))


def mx(t, **changes):
    x4 = "float8_e5m2_x4"
    arguments = {"dst": t("float32", 32, 32, "psum"), "stationary": t(x4), "moving": t(x4)}
    arguments |= {"stationary_scale": t("uint8"), "moving_scale": t("uint8")}
    pe.nc_matmul_mx(**(arguments | changes))


RULES = [
    ("v3", HardwareError, "dst", lambda t: matmul(t, dst=t("float32", 32, 32))),
    ("v3", HardwareError, "stationary", lambda t: matmul(t, stationary=t(memory="psum"))),
    ("v3", HardwareError, "moving", lambda t: matmul(t, moving=t(memory="hbm"))),
    ("v3", HardwareError, "moving", lambda t: matmul(t, moving=t("int8"))),
    ("v3", HardwareError, "moving", lambda t: matmul(t, moving=t("float32"))),
    ("v3", HardwareError, "moving", lambda t: matmul(t, moving=t("float8_e4m3fn"))),
    ("v4", HardwareError, "moving", lambda t: matmul(t, stationary=t("float8_e4m3"), moving=t("float8_e4m3fn"))),
    ("v3", HardwareError, "moving", lambda t: matmul(t, moving=t(partitions=32))),
    ("v3", HardwareError, "dst", lambda t: matmul(t, dst=t("bfloat16", 32, 32, "psum"))),
    ("v3", HardwareError, "dst", lambda t: matmul(t, dst=t("float32", 32, 16, "psum"))),
    ("v3", HardwareError, "stationary", lambda t: matmul(t, stationary=t(elements=129))),
    ("v3", HardwareError, "moving", lambda t: matmul(t, dst=t("float32", 32, 513, "psum"), moving=t(elements=513))),
    ("v4", HardwareError, "moving", lambda t: matmul(t, dst=t("float32", 32, 4096, "psum"), moving=t(elements=4097))),
    ("v3", HardwareError, "dst", lambda t: matmul(t, dst=t("float32", 32, 528, "psum")[:, 496:])),
    ("v2", HardwareError, "perf_mode", lambda t: matmul(t, perf_mode=matmul_perf_mode.double_row)),
    ("v3", HardwareError, "stationary", lambda t: matmul(t, perf_mode=matmul_perf_mode.double_row)),
    ("v3", CompilerError, "tile_size", lambda t: matmul(t, tile_position=(0, 32))),
    ("v3", HardwareError, "tile_size", lambda t: matmul(t, tile_position=(0, 0), tile_size=(16, 128))),
    ("v2", HardwareError, "tile_size", lambda t: matmul(t, tile_position=(0, 0), tile_size=(32, 128))),
    ("v3", HardwareError, "tile_position", lambda t: matmul(t, tile_position=(16, 0), tile_size=(64, 128))),
    ("v3", HardwareError, "stationary", lambda t: matmul(t, tile_position=(0, 0), tile_size=(32, 128))),
    ("v3", HardwareError, "dst", lambda t: pe.nc_transpose(t("bfloat16", 32, 32, "psum"), t())),
    ("v3", HardwareError, "dst", lambda t: pe.nc_transpose(t("float32", 32, 64, "psum"), t())),
    ("v3", HardwareError, "dst", lambda t: pe.nc_transpose(t("bfloat16", 32, 64), t())),
    ("v3", HardwareError, "engine", lambda t: pe.nc_transpose(t("bfloat16", 32, 64, "psum"), t(), engine.vector)),
    ("v4", HardwareError, "stationary", lambda t: mx(t, stationary=t())),
    ("v4", HardwareError, "moving_scale", lambda t: mx(t, moving_scale=t("int8"))),
    ("v4", HardwareError, "moving_scale", lambda t: mx(t, moving_scale=t("uint8", 32))),
    ("v4", HardwareError, "dst", lambda t: mx(t, dst=t("float16", 32, 32, "psum"))),
    ("v4", HardwareError, "dst", lambda t: mx(t, dst=t("float32", 32, 32))),
    ("v4", HardwareError, "moving", lambda t: mx(t, moving=t("float8_e5m2_x4", 32))),
    ("v4", HardwareError, "stationary", lambda t: mx(t, stationary=t("float8_e5m2_x4", 64, 31))),
    ("v4", HardwareError, "stationary", lambda t: mx(t, stationary=t("float8_e5m2_x4", 48))),
    ("v4", HardwareError, "tile_size", lambda t: mx(t, tile_position=(0, 32), tile_size=(64, 64))),
]


@pytest.mark.parametrize(("generation", "kind", "operand", "call"), RULES)
def test_rules(generation, kind, operand, call):
    with running(generation) as core:
        tile = tiles(core)
        assert_refused(kind, operand, lambda: call(tile))
        assert len(core.trace) == 0


def test_mx_needs_v4():
    with running("v3") as core, pytest.raises(HardwareError, match="does not exist on NeuronCore-v3"):
        mx(tiles(core))


def test_undefined_accumulation_is_found():
    """Adding to what no matmul wrote is undefined before NeuronCore-v4; it is computed, and reported."""
    with running("v3") as core:
        tile = tiles(core)
        dst = tile("float32", 32, 32, "psum")
        vector.memset(dst, 2.0)
        pe.nc_matmul(dst, tile(), tile(), accumulate=True)
        assert (read(dst) == 2).all()
        assert [f.kind for f in core.launch.findings.values()] == ["accumulate-after-non-matmul"]
