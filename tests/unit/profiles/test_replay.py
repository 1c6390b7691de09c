"""Replays of small profiles: our times, the profile's order, semaphores and throttle phase."""

from __future__ import annotations

import numpy as np
import pytest
from profile_documents import Document, copy, load, store

from trnsim.errors import DeadlockError, InputError, UnsupportedError
from trnsim.hardware import load_chip, load_timing
from trnsim.profiles.read import read
from trnsim.profiles.replay import replay

TIMING = load_timing(load_chip("trn2"))
V, S, T, D = TIMING.vector, TIMING.scalar, TIMING.tensor, TIMING.dma


@pytest.fixture
def times(tmp_path):
    """Replays a document: predicted (start, duration) of each instruction, in the order of engine and queue."""

    def run(document):
        found = replay(read(document.write(tmp_path / "p.json")), TIMING)
        rows = found.profile.instructions
        order = np.lexsort((rows.pc[found.rows], rows.engine[found.rows]))
        start, duration = found.start_ps[order], found.duration_ps[order]
        return found, list(zip((start - found.start_ps.min()).tolist(), duration.tolist(), strict=True))

    return run


def test_a_semaphore_between_engines(times):
    document = (
        Document()
        .add("Vector", "COPY", copy(raises="S[6] (Vector)++@complete"), start=100, duration=1)
        .add("Scalar", "COPY", copy(waits="S[6] (Vector)>=1"), start=900, duration=1)
    )
    _, (vector, scalar) = times(document)
    assert vector == (0, V.duration(512))
    assert scalar == (V.duration(512) + S.semaphore_ps, S.duration(512))


def test_back_to_back_instructions_overlap(times):
    document = Document()
    for start in (0, 700, 1300):
        document.add("Vector", "COPY", copy(), start=start, duration=600)
    found, predicted = times(document)
    assert [p[0] for p in predicted] == [0, V.interval(512), 2 * V.interval(512)]
    busy = found.engines[0]
    assert busy.name == "vector"
    assert busy.measured_ps == 1_800_000  # with a pause of 100 ns
    assert busy.predicted_ps == 2 * V.interval(512) + V.duration(512)
    assert found.span.measured_ps == 1_900_000


def test_a_load_and_who_waits_for_it(times):
    document = (
        Document()
        .add("Sync", "DMA_DIRECT2D", load(2048, semaphore=8), start=10, duration=520)
        .add("Vector", "COPY", copy(waits="S[8] (qSync)>=16"), start=4000, duration=1)
        .packet(1300, 1500, 4)
    )
    found, (vector, trigger) = times(document)
    issue = D.hardware_issue(128)
    assert trigger == (0, issue)
    last = issue + D.hardware_first_packet_ps + D.read_latency_ps + D.read_start(2048) + 8 * D.packet(2048)
    assert vector[0] == last + D.transfer_ps + D.completion_ps
    assert found.span.measured_ps == 3_991_000


def test_a_store_needs_no_data_from_hbm(times):
    wait = "S[6] (Vector)>=1"
    document = (
        Document()
        .add("Vector", "COPY", copy(raises="S[6] (Vector)++@complete"), start=0, duration=1)
        .add("Scalar", "DMA_DIRECT2D", store(4096, waits=wait), start=800, duration=520)
    )
    found, (_, trigger) = times(document)
    assert trigger[0] == V.duration(512) + S.semaphore_ps
    first = D.hardware_issue(128) + D.hardware_first_packet_ps
    assert found.span.predicted_ps == trigger[0] + first + 8 * D.packet(4096) + D.transfer_ps


def test_a_wait_of_the_sequencers_own_costs_its_time(times):
    document = (
        Document()
        .add("Scalar", "COPY", copy(raises="S[4] (Scalar)++@complete"), start=0, duration=1)
        .add("Vector", "EVENT_SEMAPHORE", "S[4] (Scalar)>=1 setter=0", start=600, duration=23)
        .add("Vector", "COPY", copy(), start=700, duration=1)
    )
    found, (vector, _) = times(document)
    assert vector[0] == S.duration(512) + V.semaphore_ps + TIMING.sequencer_ps("vector")
    assert sum(e.count for e in found.engines) == 2  # the sequencer's are not counted


def _multiply(start, dtype="bfloat16", waits="", rows=128, mode=""):
    return (
        ("LDWEIGHTS", f"{waits} {mode} transpose_mode=DISABLED src={dtype}@0x36bf4[-1,0,0][128,1,1] 128*128", start),
        (
            "MATMUL",
            f"{mode} src={dtype}@0x36500[1,0,0][{rows},1,1] dst=0x2000000[1,0,0][{rows},1,1] 128*128",
            start + 1,
        ),
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "fp32"])
def test_loads_run_behind_multiplies(times, dtype):
    wide = dtype == "fp32"
    document = Document().limit(0, 8)
    for i in range(3):
        for opcode, operands, start in _multiply(1000 * i, dtype, rows=512, mode="fp32_mode=LOW" if wide else ""):
            document.add("Tensor", opcode, operands, start=start, duration=1)
    _, predicted = times(document)
    first, second = predicted[1][0], predicted[3][0]
    # No window was busy yet: the low limit.
    slow, streamed = T.throttle_slowdown, T.cycles(512 * (T.float32_cycles_per_row if wide else 1))
    assert second - first == pytest.approx(slow * streamed, abs=2 * T.throttle_burst_ps)
    load_time = T.load(128, T.load_float32 if wide else 1)
    assert predicted[2][1] == pytest.approx(slow * load_time + T.load_tail_ps, abs=2)
    assert 0 < first <= slow * load_time


def test_engines_enter_when_they_did(times):
    document = Document()
    for engine, start, bank in (("Vector", 100, 0x2000000), ("Scalar", 300, 0x2000800)):
        document.add(engine, "SET_ORDERING_MODE", "ordering_mode=relaxed", start=start, duration=50)
        document.add(engine, "COPY", copy(source=bank), start=start + 60, duration=1)
    _, (vector, scalar) = times(document)
    assert scalar[0] - vector[0] == 200_000


def test_the_phase_of_the_throttle_is_the_profiles(times):
    window = T.throttle_window_ps
    document = Document().add("Vector", "COPY", copy(), start=1000, duration=1)
    document.limit(1000 + 2 * window // 1000 + 77, 8)
    found, _ = times(document)
    assert found.phase_ps == (77_000 + 2 * window // 1000 * 1000) % window


def test_the_order_is_that_of_program_counters(times):
    document = (
        Document()
        .add("Vector", "COPY", copy(elements=512), start=500, duration=1)
        .add("Vector", "COPY", copy(elements=4), start=100, duration=1)
    )
    _, (first, second) = times(document)
    assert (first[0], second[0]) == (0, V.interval(512))


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (
            Document().add("Vector", "COPY", copy(waits="S[6] (Vector)>=2", raises="S[6] (Vector)++@complete")),
            InputError,
            "waits for semaphore 6 >= 2, which only reaches 1",
        ),
        (Document().add("Vector", "SORT", copy()), UnsupportedError, "SORT at 0 ns: no NKI instruction"),
        (Document().add("Scalar", "ACTIVATE", f"WIGGLE {copy()}"), UnsupportedError, "'WIGGLE' is not known"),
        (
            Document().add("Vector", "COPY", copy()).add("Scalar", "COPY", copy(), subgraph="sg01"),
            UnsupportedError,
            "replaying 2 cores",
        ),
        (
            Document()
            .add("Vector", "COPY", copy(waits="S[4] (Scalar)>=1", raises="S[6] (Vector)++@complete"))
            .add("Scalar", "COPY", copy(waits="S[6] (Vector)>=1", raises="S[4] (Scalar)++@complete")),
            DeadlockError,
            "wait for each other",
        ),
    ],
)
def test_what_cannot_be_replayed(times, document, error, message):
    with pytest.raises(error, match=message):
        times(document)
