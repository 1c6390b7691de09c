"""The machine stage: order, semaphores, resources, throttle, rendezvous."""

from __future__ import annotations

import pytest
from timing_programs import Program, chip, events, timing, waits

from trnsim.errors import DeadlockError, InputError
from trnsim.isa.work import Work
from trnsim.timing import TimingOptions, simulate

PROGRAM = TimingOptions(schedule="program")


def run(*programs, options=PROGRAM, name="trn2"):
    return simulate([p.trace for p in programs], chip(name), options)


def test_an_engine_keeps_its_order_and_overlaps_latency():
    p = Program()
    a, b = p.tile("a", (128, 8)), p.tile("b", (128, 8))
    p.work("vector", writes=[a], busy=1000, latency=5000)
    p.work("vector", writes=[b], busy=2000, latency=5000)
    assert events(run(p), "vector") == [(0, 0, 1000, 5000), (1, 1000, 3000, 6000)]


def test_semaphore_latency_follows_the_result():
    p = Program()
    a, b = p.tile("a", (128, 8)), p.tile("b", (128, 8))
    p.work("vector", writes=[a], busy=1000, latency=5000)
    p.work("scalar", reads=[a], writes=[b])
    t = timing()
    timeline = run(p)
    assert events(timeline, "scalar")[0][1] == 5000 + t.scalar.semaphore_ps
    assert waits(timeline, "scalar") == [("data from vector", 5000), ("semaphore latency", t.scalar.semaphore_ps)]


@pytest.mark.parametrize(
    ("first", "second", "waits_for_result"),
    [("write", "read", True), ("write", "write", False), ("read", "write", False)],
)
def test_one_engine_waits_only_for_data(first, second, waits_for_result):
    p = Program()
    a, b, c = (p.tile(n, (128, 8)) for n in "abc")
    p.work(
        "vector", **({"writes": [a]} if first == "write" else {"reads": [a], "writes": [b]}), busy=1000, latency=5000
    )
    p.work("vector", **({"writes": [a]} if second == "write" else {"reads": [a], "writes": [c]}))
    expected = 5000 + timing().vector.semaphore_ps if waits_for_result else 1000
    assert events(run(p), "vector")[1][1] == expected


def test_the_next_stationary_loads_behind_the_multiply():
    p = Program()
    w, x, out = (
        p.tile("w", (128, 128), dtype="bfloat16"),
        p.tile("x", (128, 512), dtype="bfloat16"),
        p.tile("o", (128, 512), "psum"),
    )
    for i in range(3):
        p.matmul(out, w, x, add=i > 0)
    t = timing("trn1").tensor  # not throttled
    one = t.multiply(512)
    load = t.load(128) - t.load_lead_ps
    starts = [e[1] for e in events(run(p, name="trn1"), "tensor")]
    assert starts == [load, load + one, load + 2 * one]
    assert waits(run(p, name="trn1"), "tensor")[0] == ("stationary load", load)


def test_float32_takes_four_cycles_a_row():
    p = Program()
    w, x, out = p.tile("w", (128, 128)), p.tile("x", (128, 512)), p.tile("o", (128, 512), "psum")
    p.matmul(out, w, x, add=False)
    t = timing("trn1").tensor
    (event,) = events(run(p, name="trn1"), "tensor")
    assert event[2] - event[1] == 2 * t.multiply(512, cycles_per_row=2)
    assert event[3] - event[2] == t.tail_ps


def test_throttle_starts_low_and_rises_after_a_busy_window():
    t = timing().tensor
    p = Program()
    out = p.tile("o", (128, 512), "psum")
    p.work("tensor", writes=[out], busy=100_000_000)
    timeline = run(p, options=TimingOptions(schedule="program", throttle_phases=1))
    # The first edge comes after half a window, of which half was busy: below the 80 % that raise the limit. The next
    # raises it.
    low = t.throttle_window_ps // 2 + t.throttle_window_ps
    # After a pause it may do a little more than the limit allows.
    done = low // 2 + t.throttle_burst_ps
    streamed = 100_000_000 - t.issue_ps
    assert timeline.drawn_ps == pytest.approx(low + (streamed - done), abs=2)
    assert timeline.totals.throttled_ps == pytest.approx(low - done - t.issue_ps, abs=2)


def test_throttle_falls_in_an_idle_window():
    t = timing().tensor
    p = Program()
    a, b = p.tile("a", (128, 512), "psum"), p.tile("b", (128, 8))
    p.work("tensor", writes=[a], busy=20_000_000)
    p.work("vector", reads=[a], writes=[b], busy=40_000_000)
    p.work("tensor", reads=[b], writes=[a], busy=1_000_000)
    timeline = run(p, options=TimingOptions(schedule="program", throttle_phases=1))
    last = events(timeline, "tensor")[1]
    assert last[2] - last[1] == 2 * (1_000_000 - t.issue_ps - t.throttle_burst_ps)
    assert t.throttle_slowdown == 2


def test_phases_give_a_mean_and_a_spread():
    p = Program()
    out = p.tile("o", (128, 512), "psum")
    p.work("tensor", writes=[out], busy=10_000_000)
    timeline = run(p, options=TimingOptions(schedule="program", throttle_phases=8))
    assert timeline.spread_ps > 0
    assert abs(timeline.drawn_ps - timeline.total_ps) <= timeline.spread_ps


def test_function_table_loads_once_and_ahead_of_the_data():
    t = timing().scalar
    p = Program()
    a, b, c = (p.tile(n, (128, 8)) for n in "abc")
    p.work("vector", writes=[a], busy=5_000_000)
    p.work("scalar", reads=[a], writes=[b], table="exp")
    p.work("scalar", reads=[a], writes=[c], table="exp")
    timeline = run(p)
    found = events(timeline, "scalar")
    assert found[0][1:3] == (0, t.table_load_ps)
    assert found[1][1] == 5_000_000 + t.semaphore_ps
    assert found[2][1] == found[1][2]
    assert [timeline.opcodes[o] for o in timeline.events.opcode].count("ACT_TABLE_LOAD") == 1


@pytest.mark.parametrize(("name", "conflict"), [("trn1", True), ("trn2", False)])
def test_vector_excludes_gpsimd_on_sbuf_of_v2(name, conflict):
    p = Program()
    a, b = p.tile("a", (128, 8)), p.tile("b", (128, 8))
    p.work("vector", writes=[a], busy=7000)
    p.work("gpsimd", writes=[b], busy=1000)
    timeline = run(p, name=name)
    assert events(timeline, "gpsimd")[0][1] == (7000 if conflict else 0)
    assert (waits(timeline, "gpsimd")[:1] == [("port conflict", 7000)]) is conflict


def test_a_port_is_free_again_when_the_tensor_has_passed():
    p = Program()
    a, b = p.tile("a", (128, 8), "psum"), p.tile("b", (128, 8), "psum")
    pieces = (Work("", "WORK", 9000, 9000, streams_ps=4000),)
    p.emit("work", lambda timing, klass, engine: pieces, [("write", a)], ("vector",), "streams")
    p.work("scalar", writes=[b])
    timeline = run(p, name="trn1")
    assert events(timeline, "scalar")[0][1] == 4000


@pytest.mark.parametrize(
    ("name", "columns", "conflict"), [("trn2", 64, True), ("trn2", 512, False), ("trn1", 64, False)]
)
def test_two_engines_in_one_psum_bank_collide(name, columns, conflict):
    p = Program()
    size = 4 * columns
    a = p.tile("a", (128, columns), "psum", address=(0, 0))
    b = p.tile("b", (128, columns), "psum", address=(0, size))
    p.work("tensor", writes=[a], busy=7000)
    p.work("vector", writes=[b], busy=1000)
    timeline = run(p, name=name, options=TimingOptions(schedule="program", throttle_phases=1))
    start = events(timeline, "vector")[0][1]
    assert start == (events(timeline, "tensor")[0][2] if conflict else 0)


def test_a_transfer_is_dealt_out_over_the_engines():
    d = timing().dma
    p = Program()
    source, tile = p.tile("x", (128, 512), "hbm"), p.tile("t", (128, 512))
    p.dma(tile, source, queue="sync")
    p.work("vector", reads=[tile], writes=[p.tile("u", (128, 8))])
    timeline = run(p)
    issue = d.hardware_issue(128)
    first = issue + d.hardware_first_packet_ps + d.read_latency_ps
    done = first + d.read_start(2048) + 8 * d.packet(2048) + d.transfer_ps
    assert events(timeline, "sync")[0][1:3] == (0, issue)
    assert events(timeline, "dma sync 0")[0][1:] == (first, done, done)
    assert events(timeline, "vector")[0][1] == done + d.completion_ps
    assert timeline.totals.hbm_read_bytes == 128 * 2048


def test_static_descriptors_take_no_engine_time():
    p = Program()
    source, tile = p.tile("x", (128, 512), "hbm"), p.tile("t", (128, 512))
    p.dma(tile, source)
    timeline = run(p, name="trn1")
    assert not any(events(timeline, name) for name in ("sync", "scalar", "gpsimd"))
    assert events(timeline, "dma in 0")[0][1] == timing("trn1").dma.static_first_packet_ps


def test_software_descriptors_are_made_one_after_another():
    d = timing().dma
    p = Program()
    source = p.tile("x", (128, 64), "hbm")
    for i in range(3):
        p.dma(p.tile(f"t{i}", (128, 64)), source, dge="swdge")
    timeline = run(p)
    starts = [e[1] for e in events(timeline, "dma gpsimd 0")]
    trigger = d.software_prepare_ps
    first = trigger + d.software_issue_ps + d.software_first_packet_ps + d.read_latency_ps
    # Their descriptors are written engine by engine, behind those of the transfer before.
    interval, behind = d.software_interval(128), d.software_service(128 * 64 * 4) - d.software_interval(128)
    assert behind < 0  # so small a transfer's are ready before the next trigger
    assert starts == [first + i * interval for i in range(3)]
    triggers = events(timeline, "gpsimd")
    assert [e[1] for e in triggers] == [trigger + i * interval for i in range(3)]
    pending = [0, 1, 1]  # the first is done before the third trigger
    assert [e[2] - e[1] for e in triggers] == [d.software_issue_ps + n * d.software_issue_pending_ps for n in pending]


def test_a_trigger_runs_ahead_of_its_engine():
    d = timing().dma
    p = Program()
    source = p.tile("x", (128, 512), "hbm")
    for i in range(2):
        p.work("scalar", writes=[p.tile(f"a{i}", (128, 8))], busy=3_000_000)
    p.dma(p.tile("t", (128, 512)), source, queue="scalar")
    p.work("scalar", writes=[p.tile("b", (128, 8))], busy=1_000_000)
    timeline = run(p)
    transfer = events(timeline, "dma scalar 0")[0]
    assert transfer[1] == d.hardware_issue(128) + d.hardware_first_packet_ps + d.read_latency_ps
    assert events(timeline, "scalar")[-1][1] == 6_000_000
    assert sum(length for _, length in waits(timeline, "scalar")) == timeline.drawn_ps - 7_000_000


def test_a_full_ring_holds_the_trigger():
    d = timing().dma
    p = Program()
    for i in range(6):
        p.dma(p.tile(f"x{i}", (128, 2048), "hbm"), p.tile(f"t{i}", (128, 2048)), queue="sync")
    timeline = run(p)
    each = d.ring_use(128, store=True)
    assert each == 2 * 9  # eight elements and the semaphore on each DMA engine, twice
    assert 3 * each <= d.ring_descriptors < 4 * each
    transfers, triggers = events(timeline, "dma sync 0"), events(timeline, "sync")
    assert triggers[3][1] == transfers[0][2]
    assert any(reason == "dma ring full" for reason, _ in waits(timeline, "sync"))


def test_cores_share_hbm():
    p = Program()
    source, tile = p.tile("x", (128, 2048), "hbm"), p.tile("t", (128, 2048))
    p.dma(tile, source, queue="sync")
    alone = run(p).total_ps
    crowded = run(p, options=TimingOptions(schedule="program", hbm_sharers=8)).total_ps
    stretch = 8 * 16 * timing().dma.sustained_bytes_per_ns * 1e9 / chip().hbm.bytes_per_second
    assert stretch > 1
    assert crowded > alone


def test_rendezvous_makes_cores_wait_for_each_other():
    cores = [Program(core=i) for i in range(2)]
    for i, p in enumerate(cores):
        tile = p.tile("a", (128, 8))
        p.work("vector", writes=[tile], busy=1000 if i else 9000)
        p.work("gpsimd", reads=[tile], writes=[p.tile("b", (128, 8))], rendezvous="swap")
    timeline = run(*cores)
    assert (
        events(timeline, "gpsimd", 0)[0][1]
        == events(timeline, "gpsimd", 1)[0][1]
        == 9000 + timing().gpsimd.semaphore_ps
    )
    assert "rendezvous" in [reason for reason, _ in waits(timeline, "gpsimd", 1)]


def test_cores_that_meet_in_different_order_deadlock():
    cores = [Program(core=i) for i in range(2)]
    for p, keys in zip(cores, ("ab", "ba"), strict=True):
        for key in keys:
            p.work("gpsimd", writes=[p.tile(key, (128, 8))], rendezvous=key)
    with pytest.raises(DeadlockError):
        run(*cores)


def test_work_on_two_engines_is_a_chain():
    from trnsim.isa.work import Work

    p = Program()
    a = p.tile("a", (128, 8))
    pieces = (Work("gpsimd", "FIRST", 3000, 3000), Work("sync", "SECOND", 2000, 2000))
    p.emit("two", lambda *_: pieces, [("write", a)], ("gpsimd",), "two")
    p.work("vector", reads=[a], writes=[p.tile("b", (128, 8))])
    t = timing()
    timeline = run(p)
    second = 3000 + t.sync.semaphore_ps
    assert events(timeline, "sync")[0][1] == second
    assert events(timeline, "vector")[0][1] == second + 2000 + t.vector.semaphore_ps


def test_the_span_adds_the_profilers_fixed_parts():
    p = Program()
    p.work("vector", writes=[p.tile("a", (128, 8))], busy=1000)
    t = timing()
    span = run(p, options=TimingOptions(schedule="program", clock="span"))
    assert span.total_ps == 1000 + t.clock_offset_ps + t.clock_tail_ps
    assert span.drawn_ps == 1000


def test_empty_traces():
    assert run(Program()).total_ps == 0
    with pytest.raises(InputError):
        simulate([], chip())
