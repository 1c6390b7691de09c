"""The compiler stage: order, repeated loads, placement, spills."""

from __future__ import annotations

import numpy as np
import pytest
from timing_programs import Program, chip, events, tiled_matmul, timing, waits

from trnsim.errors import CompilerError, HardwareError, InputError
from trnsim.timing import TimingOptions, simulate
from trnsim.timing.options import BALANCE_ENGINES, MERGE_COPIES, REMOVE_REPEATED_LOADS, REORDER, passes_of
from trnsim.timing.spilling import NEAR

KIB = 1024


def rows(timeline, name):
    return [e[0] for e in events(timeline, name)]


def run(program, *passes, **options):
    return simulate([program.trace], chip(), TimingOptions(passes=frozenset(passes), **options))


def two_chains():
    """Two chains over two engines, recorded one after the other: program order lets VectorE idle."""
    p = Program()
    for i in range(2):
        a, b, c = (p.tile(f"{n}{i}", (128, 8)) for n in "abc")
        p.work("scalar", writes=[a], busy=10_000)
        p.work("vector", reads=[a], writes=[b], busy=10_000)
        p.work("scalar", reads=[b], writes=[c], busy=10_000)
    return p


def test_reordering_fills_idle_time():
    kept, moved = run(two_chains()), run(two_chains(), REORDER)
    assert rows(kept, "scalar") == [0, 2, 3, 5]
    assert rows(moved, "scalar") == [0, 3, 2, 5]
    assert moved.total_ps < kept.total_ps


def test_no_reorder_regions_keep_program_order():
    p = two_chains()
    p.trace.instruction_rows[4::6] = type(p.trace.instruction_rows)("q", [1] * len(p.trace))
    assert rows(run(p, REORDER), "scalar") == [0, 2, 3, 5]


def test_explicit_edges_are_honoured():
    p = Program()
    a, b = p.tile("a", (128, 8)), p.tile("b", (128, 8))
    p.work("vector", writes=[a], busy=1000)
    p.work("vector", writes=[b], busy=1000)
    p.trace.edges.append((0, 1))
    assert rows(run(p, REORDER), "vector") == [1, 0]
    with pytest.raises(CompilerError):
        run(p)
    p.trace.edges.append((1, 0))
    with pytest.raises(CompilerError):
        run(p, REORDER)


def test_explicit_edges_between_engines_wait():
    p = Program()
    p.work("vector", writes=[p.tile("a", (128, 8))], busy=9000)
    p.work("scalar", writes=[p.tile("b", (128, 8))], busy=1000)
    p.trace.edges.append((1, 0))
    timeline = run(p)
    assert events(timeline, "scalar")[0][1] > 9000
    assert waits(timeline, "scalar")[0][0] == "explicit order"


def test_engines_are_balanced():
    p = Program()
    for i in range(6):
        p.work(("vector", "scalar"), writes=[p.tile(f"t{i}", (128, 8))], busy=1000)
    assert len(rows(run(p), "vector")) == 6
    balanced = run(p, BALANCE_ENGINES)
    assert len(rows(balanced, "vector")) == len(rows(balanced, "scalar")) == 3


@pytest.mark.parametrize(
    ("shape", "removed"),
    # TIMING.md: 512 of 1,024 loads of lhsT and all of rhs are left at 2048^3; every repeat goes at K256 M512 N1024.
    [((2048, 2048, 2048), 512), ((256, 512, 1024), 16 - 8 + 16 - 4)],
)
def test_repeated_loads(shape, removed):
    timeline = simulate([tiled_matmul(*shape)], chip(), TimingOptions(throttle_phases=1))
    assert timeline.totals.removed_loads == removed
    kept = simulate([tiled_matmul(*shape)], chip(), TimingOptions(passes=frozenset({BALANCE_ENGINES, REORDER})))
    assert kept.totals.removed_loads == 0


def test_hbm_bytes_of_the_tiled_matmul_are_those_measured():
    timeline = simulate([tiled_matmul(2048, 2048, 2048)], chip(), TimingOptions(throttle_phases=1))
    assert timeline.totals.hbm_read_bytes + timeline.totals.hbm_write_bytes == 318_767_104


@pytest.mark.parametrize("change", ["source", "first", "second"])
def test_a_changed_tile_is_loaded_again(change):
    p = Program()
    source = p.tile("x", (128, 64), "hbm", kind="input")
    first, second = p.tile("a", (128, 64)), p.tile("b", (128, 64))
    p.dma(first, source)
    if change == "source":
        p.dma(source, p.tile("c", (128, 64)))
    if change == "first":
        p.work("vector", writes=[first])
    p.dma(second, source)
    if change == "second":
        p.work("vector", writes=[second])
    p.work("vector", reads=[second], writes=[p.tile("d", (128, 8))])
    assert run(p, REMOVE_REPEATED_LOADS).totals.removed_loads == 0


def double_buffered(tiles, kib):
    """Loads of large tiles, each used once by VectorE: how far loads run ahead is a matter of space."""
    p = Program()
    columns = kib * KIB // 4
    for i in range(tiles):
        source, tile = p.tile(f"x{i}", (128, columns), "hbm"), p.tile(f"t{i}", (128, columns))
        p.dma(tile, source, queue="sync")
        p.work("vector", reads=[tile], writes=[p.tile(f"s{i}", (128, 1))], busy=400_000_000)
    return p


def test_loads_run_ahead_as_far_as_sbuf_allows():
    roomy, tight = run(double_buffered(4, 16)), run(double_buffered(4, 100))
    assert "sbuf space" not in dict(waits(roomy, "sync"))
    reasons = dict(waits(tight, "sync"))
    assert reasons["sbuf space"] > 0
    # Two tiles of 100 KiB fit: the third load begins when VectorE is done with the first.
    first_use, third_load = events(tight, "vector")[0], events(tight, "sync")[2]
    assert third_load[1] >= first_use[3]
    assert not tight.findings
    memory = next(m for m in tight.memory if m.memory == "sbuf")
    assert 200 * KIB <= memory.peak <= memory.capacity


def test_psum_space():
    p = Program()
    w, x = p.tile("w", (128, 128), dtype="bfloat16"), p.tile("x", (128, 512), dtype="bfloat16")
    for i in range(10):
        acc = p.tile(f"acc{i}", (128, 512), "psum")
        p.matmul(acc, w, x, add=False)
        p.work("vector", reads=[acc], writes=[p.tile(f"o{i}", (128, 8))], busy=5_000_000)
    timeline = run(p)
    assert "psum space" in dict(waits(timeline, "tensor"))
    memory = next(m for m in timeline.memory if m.memory == "psum")
    assert memory.peak == memory.capacity == 16 * KIB


def over_capacity(loaded=False, uses=1, fills=False):
    p = Program()
    columns = 30 * KIB // 4
    tiles = [p.tile(f"t{i}", (128, columns)) for i in range(8)]
    seed = p.tile("seed", (128, 1))
    for i, tile in enumerate(tiles):
        if loaded:
            p.dma(tile, p.tile(f"x{i}", (128, columns), "hbm"), queue="sync")
        else:
            p.work("gpsimd", reads=[] if fills else [seed], writes=[tile])
    for use in range(uses):
        for i, tile in enumerate(tiles):
            p.work("vector", reads=[tile], writes=[p.tile(f"s{use}{i}", (128, 1))], busy=1000)
    return p


def test_reordering_does_not_outgrow_sbuf_where_it_can_help_it():
    p = Program()
    for i in range(8):
        tile = p.tile(f"t{i}", (128, 30 * KIB // 4))
        p.dma(tile, p.tile(f"x{i}", (128, 30 * KIB // 4), "hbm"))
        p.work("vector", reads=[tile], writes=[p.tile(f"s{i}", (128, 1))], busy=1_000_000_000)
    assert not run(p, REORDER).findings


def test_fills_wait_for_room():
    """What an instruction makes from nothing is made before its first use, as the compiler may."""
    assert run(over_capacity(fills=True)).totals.spills > 0
    assert not run(over_capacity(fills=True), REORDER).findings


@pytest.mark.parametrize("tiles", [1, 12])
def test_what_is_loaded_takes_the_lowest_bytes(tiles):
    """A load waits for the reader of the one whose bytes it takes, though SBUF is nearly empty."""
    program = double_buffered(tiles, 1)
    waiting = dict(waits(run(program, REORDER), "sync")).get("sbuf space", 0)
    assert (waiting > 0) == (tiles > 1)
    assert "sbuf space" not in dict(waits(run(program, *passes_of("program")), "sync"))


@pytest.mark.parametrize("passes", [(), (REORDER,)])
def test_live_tiles_over_capacity_spill(passes):
    p = over_capacity()
    timeline = run(p, *passes)
    (finding,) = timeline.findings
    assert finding.kind == "capacity"
    assert finding.details["holders"][0][1] == 30 * KIB
    assert timeline.totals.spills > 0
    assert timeline.totals.spill_bytes == timeline.totals.spills * 128 * 30 * KIB
    assert timeline.support == "extrapolated"
    names = {timeline.opcodes[o] for o in timeline.events.opcode}
    assert {"SPILL", "RELOAD"} <= names
    with pytest.raises(HardwareError, match="live tiles"):
        run(p, *passes, strict_capacity=True)


TILE = 128 * 30 * KIB


@pytest.mark.parametrize(
    ("passes", "uses", "reads"),
    [
        ((), 1, 10),  # six fit: two are dropped for the last two loads, and loaded again
        ((REORDER,), 1, 8),  # the last two loads wait for room
        ((REORDER,), 2, 10),
    ],
)
def test_loads_over_capacity_are_repeated_and_never_written(passes, uses, reads):
    timeline = run(over_capacity(loaded=True, uses=uses), *passes)
    assert timeline.totals.hbm_write_bytes == 0
    assert timeline.totals.hbm_read_bytes == reads * TILE
    assert timeline.totals.spill_bytes == (reads - 8) * TILE
    assert [f.kind for f in timeline.findings] == ["capacity"] * (reads > 8)


def test_a_spill_writes_what_changed():
    p = Program()
    wide = [p.tile(f"t{i}", (128, 30 * KIB // 4)) for i in range(7)]
    for tile in wide:
        p.work("gpsimd", writes=[tile])
    for _ in range(12):
        for i, tile in enumerate(wide):
            p.work("vector", reads=[p.view(tile, columns=(0, 4))], writes=[p.view(tile, columns=(64 * i, 64 * i + 64))])
        something_else(p)
    timeline = run(p)
    is_spill = np.array(timeline.opcodes)[timeline.events.opcode] == "SPILL"
    assert set(timeline.events.bytes[is_spill & (timeline.events.bytes > 0)]) == {TILE, 128 * 64 * 4}


def something_else(p):
    """So much that what is touched before and after does not share a piece."""
    tile = p.tile("other", (128, 4))
    for _ in range(NEAR + 1):
        p.work("vector", writes=[tile], busy=10)


def accumulators(tiles, columns, steps, rounds=2):
    """Tiles of 30 KiB to which instructions add, ``columns`` at a time, one tile after the other, and then again."""
    p = Program()
    sums = [p.tile(f"sum{i}", (128, 30 * KIB // 4)) for i in range(tiles)]
    for total in sums:
        p.work("gpsimd", writes=[total])
    for _ in range(rounds):
        for step in range(steps):
            for total in sums:
                part = p.view(total, columns=(step * columns, (step + 1) * columns))
                p.work("vector", reads=[part], writes=[part], busy=1000)
    return p


def moved(timeline, name):
    """Events of an opcode in HBM's direction, as (start, done, bytes)."""
    e = timeline.events
    chosen = (np.array(timeline.opcodes)[e.opcode] == name) & (e.bytes > 0)
    return list(zip(e.start[chosen].tolist(), e.done[chosen].tolist(), e.bytes[chosen].tolist(), strict=True))


def test_a_spilled_tile_moves_what_instructions_touch():
    """Seven tiles of 30 KiB, six of which fit: one is stored whole once, then moves in pieces of 64 columns, which are
    not stored when they are read for the last time.
    """
    timeline = run(accumulators(7, 64, 12), REORDER)
    assert sorted(size for _, _, size in moved(timeline, "SPILL")) == [128 * 256] * 12 + [TILE]
    assert [size for _, _, size in moved(timeline, "RELOAD")] == [128 * 256] * 24


def test_pieces_of_spilled_tiles_follow_each_other():
    """Under ``nki`` they take the same bytes: each is loaded when the one before it is stored. Not the first that comes
    after a tile that stays has taken those.
    """
    program = accumulators(12, 64, 5)
    timeline = run(program, *passes_of("nki"), schedule="nki")
    stores, loads = moved(timeline, "SPILL"), moved(timeline, "RELOAD")
    pieces = sorted(done for _, done, size in stores if size < TILE)
    assert len(loads) == 2 * len(pieces) > 24
    late = [start >= done for (start, _, _), done in zip(sorted(loads)[1:], pieces, strict=False)]
    assert late.count(False) <= 1


def test_the_tiles_that_move_least_are_spilled():
    """Of tiles that live as long, those of which instructions touch little."""
    p = Program()
    tiles = [p.tile(f"t{i}", (128, 30 * KIB // 4)) for i in range(8)]
    for tile in tiles:
        p.work("gpsimd", writes=[tile])
    for _ in range(4):
        for i, tile in enumerate(tiles):
            p.work(
                "vector", reads=[p.view(tile, columns=(0, 8)) if i in (2, 5) else tile], writes=[p.tile("o", (128, 1))]
            )
    timeline = run(p)
    assert {size for _, _, size in moved(timeline, "RELOAD")} == {128 * 32}


def test_a_piece_that_nothing_reads_before_it_is_written_is_not_loaded():
    p = Program()
    tiles = [p.tile(f"t{i}", (128, 30 * KIB // 4)) for i in range(8)]
    for tile in tiles:
        p.work("gpsimd", writes=[p.view(tile, columns=(0, 64))])
    for tile in tiles:
        p.work("vector", writes=[p.view(tile, columns=(64, 128))])
    something_else(p)
    for tile in tiles:
        p.work("vector", reads=[p.view(tile, columns=(0, 64))], writes=[p.tile("o", (128, 1))])
    timeline = run(p)
    assert {size for _, _, size in moved(timeline, "SPILL")} == {128 * 256}
    assert len(moved(timeline, "RELOAD")) == len(moved(timeline, "SPILL"))


def test_what_is_read_at_once_is_not_loaded_for_it():
    """Tiles that are written, read at once, and read again much later: stored once, loaded once. Six fit, five beside
    a piece of another."""
    p = Program()
    tiles = [p.tile(f"t{i}", (128, 30 * KIB // 4)) for i in range(8)]
    for tile in tiles:
        p.work("gpsimd", writes=[tile])
        p.work("vector", reads=[tile], writes=[p.tile("o", (128, 1))])
    something_else(p)
    for tile in tiles:
        p.work("vector", reads=[tile], writes=[p.tile("o", (128, 1))])
    timeline = run(p)
    assert len(moved(timeline, "SPILL")) == len(moved(timeline, "RELOAD")) == 3


@pytest.mark.parametrize(
    ("memory", "columns", "address"),
    [("sbuf", 60 * KIB, None), ("psum", 5 * KIB, None), ("sbuf", KIB, (0, 223 * KIB))],
)
def test_one_storage_that_cannot_fit_is_an_error(memory, columns, address):
    p = Program()
    tile = p.tile("big", (128, columns), memory, address=address)
    p.work("vector", writes=[tile])
    with pytest.raises(HardwareError, match="big"):
        run(p)


def test_overlapping_addresses_depend():
    p = Program()
    a = p.tile("a", (128, 64), address=(0, 1024))
    b = p.tile("b", (128, 64), address=(0, 1024 + 128))
    c = p.tile("c", (128, 64), address=(0, 1024 + 256))
    p.work("vector", writes=[a], busy=5000)
    p.work("scalar", writes=[b], busy=1000)
    p.work("gpsimd", writes=[c], busy=1000)
    timeline = run(p)
    assert events(timeline, "scalar")[0][1] > 5000
    assert events(timeline, "gpsimd")[0][1] > events(timeline, "scalar")[0][1]


@pytest.mark.parametrize(
    ("columns", "step", "meets"),
    [((0, 32), 1, True), ((32, 64), 1, False), ((1, 64), 2, False), ((2, 64), 2, True), ((1, 64), 3, True)],
)
def test_strided_patterns_conflict_only_where_they_meet(columns, step, meets):
    p = Program()
    a = p.tile("a", (128, 64))
    first = p.view(a, columns=(0, 64), step=2) if step == 2 else p.view(a, columns=(0, 32))
    p.work("vector", writes=[first], busy=5000)
    p.work("scalar", reads=[p.view(a, columns=columns, step=step)], writes=[p.tile("b", (128, 1))], busy=1000)
    assert (events(run(p), "scalar")[0][1] > 5000) is meets


def test_partitions_and_hbm_boxes_do_not_conflict():
    p = Program()
    a, out = p.tile("a", (128, 64)), p.tile("out", (256, 256), "hbm")
    p.work("vector", writes=[p.view(a, rows=(0, 64))], busy=5000)
    p.work("scalar", writes=[p.view(a, rows=(64, 128))], busy=1000)
    assert events(run(p), "scalar")[0][1] == 0
    for i in range(2):
        tile = p.tile(f"t{i}", (128, 128))
        p.dma(p.view(out, (0, 128), (128 * i, 128 * i + 128)), tile, queue="sync")
    triggers = events(run(p), "sync")
    assert triggers[1][1] == triggers[0][1] + timing().dma.hardware_interval_ps  # not for the first's data


def test_memory_peak_names_its_holders():
    timeline = run(double_buffered(2, 64))
    sbuf = next(m for m in timeline.memory if m.memory == "sbuf")
    assert [h[:2] for h in sbuf.holders[:2]] == [("t0", 64 * KIB), ("t1", 64 * KIB)]
    assert (np.diff(sbuf.times) > 0).all()
    assert sbuf.bytes[-1] == 0


def test_unknown_options():
    for wrong in (
        {"schedule": "best"},
        {"clock": "wall"},
        {"passes": frozenset({"magic"})},
        {"schedule": "nki", "passes": frozenset({MERGE_COPIES})},
        {"throttle_phases": 0},
    ):
        with pytest.raises(InputError):
            TimingOptions(**wrong)


def test_vector_work_is_not_moved_to_gpsimd_where_the_two_exclude_each_other():
    """NeuronCore-v2: public profiles of mamba_v1 have all of its element-wise work on VectorE, 98.7 % busy."""
    p = Program()
    for i in range(4):
        p.work(("vector", "gpsimd"), reads=[p.tile(f"a{i}", (128, 8))], writes=[p.tile(f"b{i}", (128, 8))])
    for name, moved in (("trn1", False), ("trn2", True)):
        timeline = simulate([p.trace], chip(name), TimingOptions())
        busy = {s.name: s.busy_ps for s in timeline.engine_summary()}
        assert (busy["gpsimd"] > 0) == moved
