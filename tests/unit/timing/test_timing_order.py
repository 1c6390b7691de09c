"""What is ordered and left out before engines wait: loads by their first use, fills that products overwrite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing_programs import Program, chip, events

import trnsim
from trnsim import SimulationOptions, profile
from trnsim.timing import TimingOptions, simulate
from trnsim.timing.dependences import Edges
from trnsim.timing.options import ONE_RING, REORDER, passes_of
from trnsim.timing.schedule import LOADS_AHEAD, LOOK_AHEAD, by_first_use


def loads_first(uses):
    """All loads, then their uses by VectorE in the order ``uses``."""
    p = Program()
    tiles = [p.tile(f"t{i}", (128, 64)) for i in range(len(uses))]
    for i, tile in enumerate(tiles):
        p.dma(tile, p.tile(f"x{i}", (128, 64), "hbm"), queue="sync")
    for i in uses:
        p.work("vector", reads=[tiles[i]], writes=[p.tile(f"s{i}", (128, 1))], busy=1_000_000)
    return p


def test_loads_come_in_the_order_of_their_first_use():
    uses = [(7 * i) % 60 for i in range(60)]
    timeline = simulate([loads_first(uses).trace], chip(), TimingOptions(passes=frozenset({REORDER})))
    assert [e[0] for e in events(timeline, "sync")] == uses
    in_order = simulate([loads_first(uses).trace], chip(), TimingOptions(schedule="program"))
    assert [e[0] for e in events(in_order, "sync")] == list(range(60))
    assert timeline.total_ps < in_order.total_ps


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_the_order_by_first_use_keeps_all_edges(data):
    """Loads of a queue share their places, after what they need and before what needs them, the soonest used first."""
    count = data.draw(st.integers(2, 24))
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, count - 2), st.integers(1, count - 1)).filter(lambda p: p[0] < p[1]))
    )
    producer, consumer = (np.array([p[i] for p in pairs], np.int64) for i in range(2))
    queue = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), np.int64)
    loads = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    edges = Edges(producer, consumer, np.zeros(len(pairs), np.int64))
    order = by_first_use(edges, queue, loads, compiled=False)
    assert sorted(order.tolist()) == list(range(count))
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    assert (place[edges.producer] < place[edges.consumer]).all()
    assert (order[~loads] == np.flatnonzero(~loads)).all()
    assert (queue[order] == queue).all()
    assert (order == by_first_use(edges, queue, loads, compiled=True)).all()
    used = np.full(count, count)
    np.minimum.at(used, edges.producer, edges.consumer)
    needs = np.full(count, -1)
    np.maximum.at(needs, edges.consumer, edges.producer)
    for slot in np.flatnonzero(loads).tolist():
        # None that could have come here is used sooner.
        for other in np.flatnonzero(loads & (queue == queue[slot]) & (place > slot)).tolist():
            assert needs[other] >= slot or used[order[slot]] <= used[other]


def a_load_after(stores, address):
    """How many of ``stores``, one after each work, come before a load to ``address`` (None: none is given)."""
    p = Program()
    out, tile = p.tile("out", (128, 8), address=(0, 64)), p.tile("tile", (128, 64), address=address)
    for _ in range(stores):
        p.work("vector", writes=[out], busy=1_000_000)
        p.dma(p.tile("y", (128, 8), "hbm"), out, queue="sync")
    load = p.dma(tile, p.tile("x", (128, 64), "hbm"), queue="sync")
    p.work("scalar", reads=[tile], updates=[out], busy=1_000)
    timeline = simulate([p.trace], chip(), TimingOptions(passes=frozenset({REORDER})))
    return [e[0] for e in events(timeline, "sync")].index(load)


def test_a_load_to_an_address_that_the_kernel_gives_comes_as_soon_as_it_may():
    assert a_load_after(100, (0, 4096)) == 0
    assert a_load_after(100, None) >= 100 - LOOK_AHEAD // 2 - 1
    assert a_load_after(200, (0, 4096)) == pytest.approx(200 - LOADS_AHEAD // 2, abs=1)


def test_loads_to_given_addresses_keep_their_order():
    p = Program()
    used = [p.tile(f"t{i}", (128, 64), address=(0, 4096 + 256 * i)) for i in range(100)]
    for tile in used:
        p.dma(tile, p.tile("x", (128, 64), "hbm"), queue="sync")
        p.work("vector", reads=[tile], writes=[p.tile("s", (128, 1), address=(0, 0))], busy=2_000_000)
    timeline = simulate([p.trace], chip(), TimingOptions(passes=frozenset({REORDER})))
    loads = [e[0] for e in events(timeline, "sync")]
    assert loads == sorted(loads)
    assert events(timeline, "sync")[-1][1] < 100_000_000  # the last long before the 200 us of its use


def filled_sums(read_between=False, columns=512, repeats=2):
    import nki
    import nki.isa as nisa
    import nki.language as nl

    @nki.jit
    def kernel(a, b):
        out = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.shared_hbm)
        x, y = (nl.ndarray((128, 512), dtype=nl.bfloat16, buffer=nl.sbuf) for _ in range(2))
        nisa.dma_copy(x, a)
        nisa.dma_copy(y, b)
        p = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
        s = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf)
        for _ in range(repeats):
            nisa.memset(p, 0.0)
            if read_between:
                nisa.tensor_copy(s, p)
            for at in range(0, 513 - columns, columns):
                for _ in range(2):
                    nisa.nc_matmul(p[:, at : at + columns], x[:, 0:128], y[:, at : at + columns])
            nisa.tensor_copy(s, p)
        nisa.dma_copy(out, s)
        return out

    return kernel


def memsets(schedule, **options):
    trnsim.install()
    arguments = SimulationOptions(chip="trn2", numeric=False, schedule=schedule)
    timeline = profile(filled_sums(**options), "bf16[128,512]", "bf16[128,512]", options=arguments).timeline
    opcodes = [timeline.traces[0].classes[c].name for c in timeline.traces[0].column("klass").tolist()]
    ran = {i for i in timeline.events.instruction.tolist() if i >= 0}
    return sum(opcodes[i] == "nki.isa.memset" for i in ran)


@pytest.mark.parametrize("columns", [512, 128])
def test_a_fill_that_products_overwrite_goes(columns):
    assert memsets("program", columns=columns) == 2
    assert memsets("nki", columns=columns) == 0


def test_a_fill_that_is_read_stays():
    assert memsets("nki", read_between=True) == 2


def test_a_fill_that_products_overwrite_in_part_stays():
    assert memsets("nki", columns=384) == 2


@pytest.mark.parametrize(("rows", "slower"), [(1, True), (512, False)])
def test_a_stationary_matrix_of_columns_far_apart_bounds_a_product_of_few_rows(rows, slower):
    """Its loads do not keep up with products of one row, and hide behind those of 512."""
    import nki
    import nki.isa as nisa
    import nki.language as nl

    trnsim.install()

    def span(step):
        @nki.jit
        def kernel(a, b):
            out = nl.ndarray((128, rows), dtype=nl.float32, buffer=nl.shared_hbm)
            x = nl.ndarray((128, 128 * step), dtype=nl.bfloat16, buffer=nl.sbuf)
            y = nl.ndarray((128, rows), dtype=nl.bfloat16, buffer=nl.sbuf)
            nisa.dma_copy(x, a)
            nisa.dma_copy(y, b)
            p = nl.ndarray((128, rows), dtype=nl.float32, buffer=nl.psum)
            s = nl.ndarray((128, rows), dtype=nl.float32, buffer=nl.sbuf)
            for i in range(64):
                at = i % step
                nisa.nc_matmul(p, x[:, at : at + 127 * step + 1 : step], y)
            nisa.tensor_copy(s, p)
            nisa.dma_copy(out, s)
            return out

        options = SimulationOptions(chip="trn2", numeric=False, schedule="program")
        timeline = profile(kernel, f"bf16[128,{128 * step}]", f"bf16[128,{rows}]", options=options).timeline
        found = events(timeline, "tensor")
        return found[-1][2] - found[0][1]

    assert span(8) == pytest.approx(span(1), rel=0.02)  # 16 bytes apart: as fast as contiguous ones
    assert (span(16) > 1.2 * span(8)) is slower


def streamed(dtype_in, dtype_out, op):
    """Total time and events of 24 instructions ``op`` on tiles in SBUF, on VectorE unless the compiler moves them."""
    from trnsim import nki
    from trnsim.nki import isa as nisa
    from trnsim.nki import language as nl

    @nki.jit
    def kernel(x):
        a = nl.ndarray((128, 1024), dtype=dtype_in, buffer=nl.sbuf)
        b = nl.ndarray((128, 1024), dtype=dtype_out, buffer=nl.sbuf)
        nisa.memset(dst=a, value=0.0)
        nisa.memset(dst=b, value=0.0)
        for _ in range(24):
            if op == "scalar":
                c = nl.ndarray((128, 1024), dtype=dtype_out, buffer=nl.sbuf)
                nisa.tensor_scalar(dst=c, data=a, op0=nl.multiply, operand0=2.0)
            else:
                c = nl.ndarray((128, 1024), dtype="float32", buffer=nl.sbuf)
                nisa.tensor_tensor(dst=c, data1=a, data2=b, op=nl.add, engine=nisa.vector_engine)
        out = nl.ndarray((128, 1024), dtype=c.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=c)
        return out

    def run(chip_name, **options):
        found = profile(kernel, "f32[1,1]", options=SimulationOptions(chip=chip_name, numeric=False, **options))
        timeline = found.timeline
        opcode = timeline.opcodes.index("TENSOR_SCALAR" if op == "scalar" else "TENSOR_TENSOR")
        mine = timeline.events.opcode == opcode
        names = {timeline.tracks[t].name for t in timeline.events.track[mine]}
        return names, int(np.median((timeline.events.end - timeline.events.start)[mine]))

    return run


def test_tensor_scalar_stays_on_the_engine_that_its_shape_chooses():
    """The documentation: its engine is chosen by the shape of the tile, that of a copy by the engines' work."""
    assert streamed("float32", "float32", "scalar")("trn2")[0] == {"vector"}


@pytest.mark.parametrize("op", ["scalar", "pair"])
def test_16_bits_beside_float32_stream_as_fast_as_float32_is_copied(op):
    wide, mixed = streamed("float32", "float32", op), streamed("float16", "float32", op)
    if op == "scalar":
        assert mixed("trn2")[1] == wide("trn2")[1]
    else:
        assert mixed("trn2")[1] < 0.62 * wide("trn2")[1]
    assert mixed("trn1")[1] == wide("trn1")[1]  # performance modes begin with NeuronCore-v3


def copies(count):
    """``count`` tiles, each loaded and stored."""
    p = Program()
    x, y = (p.tile(name, (128 * count, 64), "hbm") for name in "xy")
    for i in range(count):
        tile = p.tile(f"t{i}", (128, 64))
        p.dma(tile, p.view(x, (128 * i, 128 * (i + 1))))
        p.dma(p.view(y, (128 * i, 128 * (i + 1))), tile)
    return p


def test_one_ring_holds_loads_and_stores():
    """What NKI 0.7 does: no DMA comes sooner after the one before it than a ring lets it."""
    two = simulate([copies(12).trace], chip(), TimingOptions())
    one = simulate([copies(12).trace], chip(), TimingOptions(passes=passes_of("nki") | {ONE_RING}))
    assert (len(events(two, "sync")), len(events(two, "scalar"))) == (12, 12)
    assert (len(events(one, "sync")), len(events(one, "scalar"))) == (24, 0)
    assert one.total_ps > two.total_ps
    again = simulate([copies(12).trace], chip(), TimingOptions())
    assert again.total_ps == two.total_ps
