"""DMA with addresses known at run time only, against loops over rows: gathers, scatters, and what is skipped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isa_harness import (
    FLOATS,
    INTEGERS,
    NUMPY,
    assert_refused,
    assert_same,
    draw_values,
    draws,
    given_tensor,
    nl,
    rounded,
    running,
    seeds,
    single,
    tensor,
    upcast,
)

import trnsim
import trnsim.nki.isa as nisa
from trnsim import nki
from trnsim.errors import CompilerError, HardwareError
from trnsim.isa.constants import dge_mode, engine, oob_mode
from trnsim.nki import language

NOWHERE = 2**32 - 1  # -1 in an index


def hbm(core, values, dtype):
    view = core.ndarray(values.shape, dtype, "hbm")
    view.array()[...] = values
    view.storage.full = view.storage.coverage.full = True
    return view


def converted(values, src, dst):
    """What a DMA writes: bits where dtypes agree or are integers of one size, else through float32."""
    if src == dst or (NUMPY[src](0).itemsize == NUMPY[dst](0).itemsize and {src, dst} <= set(INTEGERS)):
        return values.view(NUMPY[dst])
    return rounded(upcast(values), dst)


@st.composite
def places(draw, rows, count, unique=False):
    """Row numbers, some outside: at the end, far beyond, and -1."""
    inside = st.integers(0, rows - 1)
    found = draw(st.lists(inside, min_size=count, max_size=count, unique=unique))
    outside = draw(st.lists(st.sampled_from([None, None, None, rows, 2**31, NOWHERE]), min_size=count, max_size=count))
    return np.array([a if b is None else b for a, b in zip(found, outside, strict=True)], np.uint32)


dtypes = st.sampled_from([*FLOATS, *INTEGERS])
index_dtypes = st.sampled_from(["uint32", "int32"])


def indices(core, chosen, dtype):
    """A column of indices inside a wider tensor, as kernels keep them."""
    whole = given_tensor(core, np.repeat(chosen[:, None], 3, axis=1).view(NUMPY[dtype]), dtype)
    return whole[:, 1:2]


class TestRows:
    """``vector_offset``: a row a partition."""

    @draws
    @given(st.data(), seeds, dtypes, dtypes, index_dtypes, st.booleans(), st.booleans())
    def test_gather(self, data, seed, kind, out, index_kind, selected, in_hbm):
        rows, count, width = 9, data.draw(st.sampled_from([1, 5, 33])), data.draw(st.sampled_from([1, 4, 6]))
        chosen = data.draw(places(rows, count))
        table = draw_values(seed, kind, rows, 8)
        with running() as core:
            source, index = hbm(core, table, kind), indices(core, chosen, index_kind)
            if in_hbm:
                dst = hbm(core, draw_values(seed + 1, out, count, width), out)
            else:
                dst = given_tensor(core, draw_values(seed + 1, out, count, width), out, "sbuf", "step")
            first = data.draw(st.integers(0, 8 - width))
            view = source.ap([[8, count], [1, width]], offset=first, vector_offset=index)
            if selected:
                first, width_ = 0, 8
                view = source.vector_select(0, index)
                dst = given_tensor(core, draw_values(seed + 1, out, count, width_), out)
            expected = dst.array().copy()
            for i, row in enumerate(chosen):
                if row < rows:
                    expected[i] = converted(table[row, first : first + dst.shape[1]], kind, out)
            nisa.dma_copy(dst, view, oob_mode=oob_mode.skip)
            assert_same(dst.array(), expected)

    @draws
    @given(st.data(), seeds, dtypes, dtypes, index_dtypes)
    def test_scatter(self, data, seed, kind, out, index_kind):
        rows, count, width = 40, data.draw(st.sampled_from([1, 5, 33])), 4
        chosen = data.draw(places(rows, count, unique=True))
        values = draw_values(seed, kind, count, width)
        with running() as core:
            table = hbm(core, draw_values(seed + 1, out, rows, 6), out)
            expected = table.array().copy()
            for i, row in enumerate(chosen):
                if row < rows:
                    expected[row, 1:5] = converted(values[i], kind, out)
            view = table.ap([[6, count], [1, width]], offset=1, vector_offset=indices(core, chosen, index_kind))
            nisa.dma_copy(view, given_tensor(core, values, kind), oob_mode=oob_mode.skip)
            assert_same(table.array(), expected)

    @draws
    @given(st.data(), seeds, st.sampled_from(["float32", "bfloat16", "int32"]), st.booleans())
    def test_compute_adds_rows(self, data, seed, kind, scatter):
        rows, count, width = 40, data.draw(st.sampled_from([1, 5, 33])), 4
        chosen = data.draw(places(rows, count, unique=True))
        table, tile = draw_values(seed, kind, rows, width, 999), draw_values(seed + 1, kind, count, width, 999)
        with running() as core:
            far, near = hbm(core, table, kind), given_tensor(core, tile, kind)
            moved = far.ap([[width, count], [1, width]], vector_offset=indices(core, chosen, "uint32"))
            expected = (table if scatter else tile).copy()
            for i, row in enumerate(chosen):
                if row < rows:
                    expected[row if scatter else i] = rounded(single(upcast(table[row]) + upcast(tile[i])), kind)
            dst = moved if scatter else near
            sources = data.draw(st.permutations([moved, near]))
            nisa.dma_compute(dst, sources, nl.add, oob_mode=oob_mode.skip)
            assert_same((far if scatter else near).array(), expected)

    def test_an_index_outside_is_an_error(self):
        table, chosen = draw_values(1, "float32", 6, 4), np.array([0, 5, NOWHERE, 6], np.uint32)
        with running() as core:
            far, near = hbm(core, table, "float32"), given_tensor(core, table[:4], "float32")
            moved = far.ap([[4, 4], [1, 4]], vector_offset=indices(core, chosen, "uint32"))
            for call in (
                lambda: nisa.dma_copy(near, moved),
                lambda: nisa.dma_copy(moved, near),
                lambda: nisa.dma_compute(near, [near, moved], nl.add),
                lambda: nisa.dma_compute(moved, [near, moved], nl.add),
            ):
                with pytest.raises(HardwareError) as caught:
                    call()
                assert (caught.value.operand, caught.value.value, caught.value.limit) == ("vector_offset", NOWHERE, 6)

    @pytest.mark.parametrize("rank", [2, 3, 4])
    @pytest.mark.parametrize("count", [16, 64, 128, 256])
    @pytest.mark.parametrize("skip", [False, True])
    def test_transpose(self, rank, count, skip):
        """The indices of one column after the other, cut to as many rows as the pattern has."""
        rng = np.random.default_rng(count + rank)
        sizes = {2: (24,), 3: (3, 24), 4: (1, 3, 24)}[rank]
        table = rng.integers(0, 2**16, (40, *sizes)).astype(np.uint16)
        lanes = min(count, 128)
        index = rng.integers(0, 40, (lanes, -(-count // lanes))).astype(np.uint32)
        if skip:
            index[3, 0] = NOWHERE
        with running() as core:
            far = hbm(core, table, "uint16")
            steps = [int(np.prod(sizes[i:])) for i in range(len(sizes) + 1)]
            pattern = [[steps[0], count], *([s, n] for s, n in zip(steps[1:], sizes, strict=True))]
            view = far.ap(pattern, vector_offset=given_tensor(core, index, "uint32"))
            order = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}[rank]
            gathered = np.empty((count, *sizes), np.uint16)
            shape = tuple(gathered.shape[a] for a in order)
            before = rng.integers(0, 2**16, (shape[0], int(np.prod(shape[1:])))).astype(np.uint16)
            dst = given_tensor(core, before, "uint16").reshape(shape)
            expected = before.reshape(shape).copy()
            flat = index.T.ravel()
            for i in range(count):
                if flat[i] < 40:
                    expected[..., i] = table[flat[i]].transpose([a - 1 for a in order[:-1]])
            nisa.dma_transpose(dst, view, axes=order, oob_mode=oob_mode.skip if skip else oob_mode.error)
            assert_same(dst.array(), expected)


class TestScalars:
    """``scalar_offset`` and ``select``: one offset for the whole pattern, along any dimension."""

    @draws
    @given(
        seeds, st.integers(0, 2), st.integers(-1, 7), st.sampled_from(["register", "tensor", "select"]), st.booleans()
    )
    def test_move_the_pattern(self, seed, dim, value, how, write):
        table = draw_values(seed, "float32", 6, 35).reshape(6, 5, 7)
        inside = 0 <= value < table.shape[dim]
        with running() as core:
            far = hbm(core, table, "float32")
            cell = given_tensor(core, np.array([[value]], np.int32), "int32")
            source = nisa.register_alloc(value) if how == "register" else cell
            strides, sizes = [35, 7, 1], list(table.shape)
            if how == "select":
                view, sizes = far.select(dim, source), [n for d, n in enumerate(sizes) if d != dim]
            else:
                sizes[dim] = 1
                view = far.ap(
                    [[s, n] for s, n in zip(strides, sizes, strict=True)], scalar_offset=source, indirect_dim=dim
                )
            tile = draw_values(seed + 1, "float32", 1, int(np.prod(sizes)))
            near = given_tensor(core, tile, "float32")
            at = tuple(value if d == dim else slice(None) for d in range(3))
            arguments = (view, near) if write else (near, view)
            if not inside:
                with pytest.raises(HardwareError, match="out of bounds"):
                    nisa.dma_copy(*arguments)
            nisa.dma_copy(*arguments, oob_mode=oob_mode.skip)
            expected = table.copy()
            if write and inside:
                expected[at] = tile.reshape(expected[at].shape)
            assert_same(far.array(), expected)
            if not write:
                assert_same(near.array(), table[at].reshape(1, -1) if inside else tile)

    def test_a_sum_moves_with_it(self):
        """``dma_compute`` neither ignores an offset outside nor reads at another place."""
        table = draw_values(3, "float32", 6, 4)
        with running() as core:
            far, near = hbm(core, table, "float32"), given_tensor(core, table[:1], "float32")
            outside = far.ap([[4, 1], [1, 4]], scalar_offset=nisa.register_alloc(6))
            for dst, sources in ((near, [near, outside]), (outside, [near, outside])):
                with pytest.raises(HardwareError, match="out of bounds"):
                    nisa.dma_compute(dst, sources, nl.add)
                nisa.dma_compute(dst, sources, nl.add, oob_mode=oob_mode.skip)
            assert_same(far.array(), table)
            assert_same(near.array(), table[:1])

    @pytest.mark.parametrize(("value", "kind"), [(2**32 - 1, "uint32"), (-7, "int32"), (-7, "int16"), (200, "uint8")])
    def test_registers_keep_32_bits(self, value, kind):
        with running() as core:
            register = nisa.register_alloc(given_tensor(core, np.array([[value]], NUMPY[kind]), kind))
            other = nisa.register_alloc()
            nisa.register_move(other, register)
            nisa.register_move(register, 1)
            for out in ("uint32", "int32"):
                dst = tensor(core, out, 1, 1)
                nisa.register_store(dst, other)
                assert int(dst.array()[0, 0]) % 2**32 == value % 2**32


@draws
@given(seeds, st.integers(1, 16), dtypes, dtypes, st.sampled_from(["hbm", "sbuf"]))
def test_sums_round_once_an_addition(seed, count, kind, out, memory):
    parts = [draw_values(seed + i, kind, 8, 6) for i in range(count)]
    with running() as core:
        sources = [hbm(core, p, kind) if i % 2 else given_tensor(core, p, kind) for i, p in enumerate(parts)]
        dst = core.ndarray((8, 6), out, memory)
        nisa.dma_compute(dst, sources, nl.add)
        total = single(upcast(parts[0]))
        with np.errstate(all="ignore"):
            for part in parts[1:]:
                total = single(total.astype(np.float64) + upcast(part))
        assert_same(dst.array(), rounded(total, out))


def gathered(core, rows=16, columns=1, dtype="uint32", width=8, kind="bfloat16", count=None, memory="sbuf"):
    table = hbm(core, draw_values(1, kind, 64, width), kind)
    index = given_tensor(core, np.zeros((rows, columns), NUMPY[dtype]), dtype, memory)
    return table.ap([[width, rows * columns if count is None else count], [1, width]], vector_offset=index)


def transposed(core, view, **options):
    dst = core.ndarray((view.shape[1], view.shape[0]), view.dtype)
    nisa.dma_transpose(dst, view, axes=(1, 0), **options)


def plain(core, kind="bfloat16", rows=16, width=8):
    return hbm(core, draw_values(1, kind, rows, width), kind)


def sbuf(core, kind="bfloat16", rows=16, width=8, memory="sbuf"):
    return given_tensor(core, draw_values(2, kind, rows, width), kind, memory)


RULES = [
    ("v3", "src", lambda c: transposed(c, gathered(c, dtype="int32"))),
    ("v3", "src", lambda c: transposed(c, gathered(c, rows=24, count=16))),
    ("v3", "src", lambda c: transposed(c, gathered(c, rows=8, count=16))),
    ("v3", "src", lambda c: transposed(c, gathered(c, rows=64, columns=2))),
    ("v3", "src", lambda c: transposed(c, gathered(c, rows=32, count=48))),
    ("v3", "src", lambda c: transposed(c, gathered(c, rows=16, count=8))),
    ("v3", "src", lambda c: transposed(c, gathered(c, kind="float32"))),
    ("v3", "src", lambda c: nisa.dma_transpose(sbuf(c, rows=65, width=32), gathered(c, width=130))),
    ("v2", "src", lambda c: transposed(c, gathered(c))),
    ("v3", "dge_mode", lambda c: transposed(c, gathered(c), dge_mode=dge_mode.hwdge)),
    ("v3", "dge_mode", lambda c: transposed(c, plain(c), dge_mode=dge_mode.swdge)),
    ("v2", "dge_mode", lambda c: transposed(c, plain(c), dge_mode=dge_mode.hwdge)),
    ("v3", "src", lambda c: transposed(c, plain(c, "float32"), dge_mode=dge_mode.hwdge)),
    ("v3", "src", lambda c: transposed(c, plain(c, rows=32), dge_mode=dge_mode.hwdge)),
    ("v3", "src", lambda c: transposed(c, sbuf(c, memory="psum"))),
    ("v3", "src", lambda c: nisa.dma_copy(sbuf(c), sbuf(c, memory="psum"))),
    ("v3", "dst", lambda c: nisa.dma_copy(sbuf(c, memory="psum"), sbuf(c))),
    ("v3", "src", lambda c: nisa.dma_copy(sbuf(c), plain(c, rows=15))),
    ("v3", "dst", lambda c: nisa.dma_copy(sbuf(c), plain(c, "float32"), dge_mode=dge_mode.hwdge)),
    ("v2", "dge_mode", lambda c: nisa.dma_copy(sbuf(c), plain(c), dge_mode=dge_mode.hwdge)),
    ("v3", "dge_mode", lambda c: nisa.dma_copy(sbuf(c), gathered(c), dge_mode=dge_mode.hwdge)),
    ("v3", "dge_mode", lambda c: nisa.dma_copy(sbuf(c), gathered(c), dge_mode=dge_mode.none)),
    ("v3", "engine", lambda c: nisa.dma_copy(sbuf(c), plain(c), engine=engine.sync)),
    ("v3", "engine", lambda c: nisa.dma_copy(sbuf(c), plain(c), dge_mode=dge_mode.hwdge, engine=engine.vector)),
    ("v3", "priority", lambda c: nisa.dma_copy(sbuf(c), plain(c), priority=0)),
    ("v4", "priority", lambda c: nisa.dma_copy(sbuf(c), plain(c), priority=4)),
    ("v3", "src", lambda c: nisa.dma_copy(sbuf(c), gathered(c, rows=8, count=16))),
    ("v3", "dst", lambda c: nisa.dma_copy(gathered(c, rows=8, count=16), sbuf(c))),
    ("v3", "src", lambda c: nisa.dma_copy(sbuf(c, "float32"), gathered(c, kind="float32", memory="psum"))),
    ("v3", "src", lambda c: nisa.dma_copy(sbuf(c), gathered(c, dtype="float32"))),
    ("v3", "srcs1", lambda c: nisa.dma_compute(sbuf(c), [sbuf(c), sbuf(c, width=7)], nl.add)),
    ("v3", "srcs", lambda c: nisa.dma_compute(sbuf(c), [gathered(c), sbuf(c), sbuf(c)], nl.add)),
    ("v3", "srcs", lambda c: nisa.dma_compute(sbuf(c), [gathered(c), gathered(c)], nl.add)),
    ("v3", "srcs", lambda c: nisa.dma_compute(gathered(c), [sbuf(c), sbuf(c)], nl.add)),
    ("v3", "srcs", lambda c: nisa.dma_compute(gathered(c), [sbuf(c, width=4, rows=32), gathered(c, width=4, rows=32)],
                                              nl.add)),
    ("v3", "dst", lambda c: nisa.dma_compute(plain(c), [plain(c), gathered(c)], nl.add)),
    ("v3", "scales", lambda c: nisa.dma_compute(sbuf(c), [sbuf(c)], nl.add, scales=[1.0, 1.0])),
    ("v3", "unique_indices", lambda c: nisa.dma_compute(sbuf(c), [gathered(c), sbuf(c)], nl.add, unique_indices=False)),
    ("v3", "srcs1", lambda c: nisa.dma_compute(sbuf(c), [sbuf(c), sbuf(c, memory="psum")], nl.add)),
]  # fmt: skip


@pytest.mark.parametrize(("generation", "operand", "call"), RULES)
def test_rules(generation, operand, call):
    with running(generation) as core:
        assert_refused(HardwareError, operand, lambda: call(core))


@nki.jit
def copied(x, ring):
    tile = language.ndarray(x.shape, dtype=x.dtype, buffer=language.sbuf)
    result = language.ndarray(x.shape, dtype=x.dtype, buffer=language.shared_hbm)
    nisa.dma_copy(dst=tile, src=x, dge_mode=nisa.dge_mode.hwdge, engine=getattr(nisa.engine, ring))
    nisa.dma_copy(dst=result, src=tile, dge_mode=nisa.dge_mode.hwdge, engine=getattr(nisa.engine, ring))
    return result


@pytest.mark.parametrize("ring", ["sync", "scalar"])
@pytest.mark.parametrize("chip", ["trn2", "trn3"])
def test_a_copy_goes_by_the_ring_that_it_names(chip, ring):
    x = np.arange(128 * 64, dtype=np.float32).reshape(128, 64)
    np.testing.assert_array_equal(trnsim.simulate(copied, x, ring, chip=chip), x)
    timeline = trnsim.profile(copied, "f32[128,64]", ring, chip=chip).timeline
    rings = {track.name for track in timeline.tracks if track.kind == "dma" and track.index in timeline.events.track}
    assert rings == {f"dma {ring} 0"}


def test_indices_of_a_view():
    with running() as core:
        far, index = plain(core), given_tensor(core, np.zeros((4, 1), np.uint32), "uint32")
        register = nisa.register_alloc(0)
        with pytest.raises(CompilerError, match="exclude"):
            far.ap([[8, 4], [1, 8]], vector_offset=index, scalar_offset=register)
        for refused in (
            lambda: far.ap([[8, 4], [1, 8]], vector_offset=index, indirect_dim=1),
            lambda: sbuf(core).ap([[8, 4], [1, 8]], vector_offset=index),
        ):
            with pytest.raises(HardwareError, match="vector_offset"):
                refused()


def test_rows_that_are_skipped_may_lie_anywhere_in_dst():
    """Elements are counted in row-major order, whatever the shape of ``dst``."""
    table, chosen = draw_values(4, "float32", 6, 8), np.array([5, 6, 0], np.uint32)
    with running() as core:
        far = hbm(core, table, "float32")
        dst = given_tensor(core, np.zeros((1, 24), np.float32), "float32")
        nisa.dma_copy(dst, far.vector_select(0, indices(core, chosen, "uint32")), oob_mode=oob_mode.skip)
        assert_same(dst.array(), np.concatenate([table[5], np.zeros(8, np.float32), table[0]])[None])


def garbage(core, shape, memory):
    """A new tensor in memory that was used before."""
    view = core.ndarray(shape, "float32", memory)
    view.storage.bytes()[...] = 7
    return view


def test_what_a_skipped_row_leaves_of_a_new_tensor_is_no_garbage():
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    chosen = np.array([[3], [NOWHERE], [0], [5]], np.uint32)
    with running() as core:
        index = given_tensor(core, chosen, "uint32")
        gathered = garbage(core, (4, 8), "sbuf")
        rows = hbm(core, values, "float32").ap([[8, 4], [1, 8]], vector_offset=index, indirect_dim=0)
        nisa.dma_copy(gathered, rows, oob_mode=oob_mode.skip)
        found = gathered.array()
        assert np.array_equal(found[[0, 2, 3]], values[[3, 0, 5]])
        assert np.isnan(found[1]).all()

        scattered = garbage(core, (8, 8), "hbm")
        to = scattered.ap([[8, 4], [1, 8]], vector_offset=index, indirect_dim=0)
        nisa.dma_copy(to, given_tensor(core, values[:4], "float32"), oob_mode=oob_mode.skip)
        found = scattered.array()
        assert np.array_equal(found[[3, 0, 5]], values[[0, 2, 3]])
        assert np.isnan(found[[1, 2, 4, 6, 7]]).all()

        nowhere = garbage(core, (1, 8), "sbuf")
        row = hbm(core, values, "float32").ap([[8, 1], [1, 8]], scalar_offset=index[1:2], indirect_dim=0)
        nisa.dma_copy(nowhere, row, oob_mode=oob_mode.skip)
        assert np.isnan(nowhere.array()).all()
