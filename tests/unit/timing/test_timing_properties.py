"""What holds for every program: idle time is explained to the picosecond, dependences are kept, both ways of running
agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing_programs import Program, chip, tiled_matmul

from trnsim.timing import TimingOptions, simulate
from trnsim.timing.options import passes_of

ENGINES = ("vector", "scalar", "gpsimd", "tensor")

accesses = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 4), st.booleans())
instructions = st.lists(
    st.tuples(
        st.sampled_from((*ENGINES, "dma in", "dma out", "balanced")),
        st.lists(accesses, max_size=2),
        accesses,
        st.integers(100, 5_000_000),
        st.integers(0, 500_000),
    ),
    min_size=1,
    max_size=25,
)


def build(steps, tile_kib=1, region=False):
    """A random program over six tiles, of which parts are read and written."""
    p = Program()
    columns = 256 * tile_kib
    tiles = [p.tile(f"t{i}", (128, columns), "psum" if i == 5 and tile_kib <= 16 else "sbuf") for i in range(6)]
    hbm = p.tile("x", (128, 4 * columns), "hbm")

    def view(access):
        tile, start, length, strided = access
        low, high = start * columns // 4, min(4, start + length) * columns // 4
        return p.view(tiles[tile], columns=(low, high), step=2 if strided else 1)

    for number, (engine, reads, write, busy, tail) in enumerate(steps):
        p.region = int(region and number % 3 == 0)
        if engine.startswith("dma"):
            part = view((write[0] % 5, *write[1:3], False))
            width = part[3].shape[1]
            box = p.view(hbm, columns=(write[1] * columns // 4, write[1] * columns // 4 + width))
            p.dma(*((part, box) if engine == "dma in" else (box, part)))
        else:
            where = ("vector", "scalar") if engine == "balanced" else engine
            p.work(
                where,
                [view(a) for a in reads],
                [view(write)],
                busy=busy,
                latency=busy + tail,
                load=31_000 * (engine == "tensor"),
            )
    return p


def touched(trace, row):
    """Bytes of each operand: (storage, role, set of (partition, byte)) for one partition is enough, as all have 128."""
    found = []
    operands = trace.operands
    klass = trace.classes[trace.instructions["klass"][row]]
    for at, item in zip(trace.operand_range(row), klass.operands, strict=True):
        form = item.form
        step = form.dtype.itemsize * (form.strides[1] if len(form.strides) > 1 else 1)
        count = form.shape[1] if len(form.shape) > 1 else 1
        offset = int(operands["offset"][at])
        cells = {offset + k * step for k in range(count)}
        found.append((int(operands["storage"][at]), item.role, cells))
    return found


def conflicts(first, second):
    """``raw``, or ``other`` for an order that matters, or nothing."""
    found = ""
    for s, role, cells in first:
        for t, other, cells2 in second:
            if s == t and (role != "read" or other != "read") and cells & cells2:
                found = "raw" if role != "read" and other == "read" else found or "other"
    return found


def times(timeline, rows):
    """Of each instruction: its queue, start, and when its results are there."""
    start, done, queue = np.zeros(rows, np.int64), np.zeros(rows, np.int64), [""] * rows
    for i in range(len(timeline.events)):
        row = int(timeline.events.instruction[i])
        name = timeline.opcodes[timeline.events.opcode[i]]
        if row < 0 or name == "ACT_TABLE_LOAD":
            continue
        track = timeline.tracks[int(timeline.events.track[i])]
        if track.kind == "engine":
            start[row], queue[row] = timeline.events.start[i], "dma" if name == "DMA_TRIGGER" else track.name
        done[row] = max(done[row], timeline.events.done[i])
    return start, done, queue


@settings(max_examples=60, deadline=None, derandomize=True)
@given(instructions, st.sampled_from([frozenset(), passes_of("nki")]), st.sampled_from([1, 48]), st.booleans())
def test_every_program(steps, passes, tile_kib, region):
    p = build(steps, tile_kib, region)
    options = TimingOptions(passes=passes, throttle_phases=2)
    timeline = simulate([p.trace], chip(), options)
    for summary in timeline.engine_summary():
        assert summary.busy_ps + sum(summary.waiting_ps.values()) == timeline.drawn_ps
    for track in timeline.tracks:
        if track.kind != "engine":
            continue
        e, w = timeline.events, timeline.waits
        mine, idle = e.track == track.index, w.track == track.index
        starts = np.concatenate((e.start[mine], w.start[idle]))
        ends = np.concatenate((e.end[mine], w.end[idle]))
        order = np.lexsort((ends, starts))
        assert (starts[order][1:] == ends[order][:-1]).all()
    assert (np.diff(timeline.events.start) >= 0).all()
    assert timeline.events.done.max(initial=0) == timeline.drawn_ps
    count = len(p.trace)
    start, done, queue = times(timeline, count)
    boxes = [touched(p.trace, row) for row in range(count)]
    for j in range(count):
        for i in range(j):
            why = conflicts(boxes[i], boxes[j])
            if not why:
                continue
            one_engine = queue[i] == queue[j] != "dma"
            if one_engine and (why == "other" or queue[i] == "tensor"):
                assert start[j] >= start[i]
            else:
                assert start[j] >= done[i], (i, j, why)


def same(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(x):
            same(x, y)
        elif isinstance(x, np.ndarray):
            assert np.array_equal(x, y), field.name
        elif field.name not in ("memory", "lines", "line_of", "findings", "tracks"):
            assert x == y, field.name
    return True


@settings(max_examples=25, deadline=None, derandomize=True)
@given(instructions, st.sampled_from([1, 48]))
def test_compiled_loops_give_the_same_timeline(steps, tile_kib):
    pytest.importorskip("numba")
    p = build(steps, tile_kib)
    plain, fast = (simulate([p.trace], chip(), compiled=c) for c in (False, True))
    assert same(plain, fast)


def test_a_kernel_gives_the_same_timeline_compiled_and_again():
    trace = tiled_matmul(256, 512, 1024)
    first = simulate([trace], chip(), compiled=False)
    assert same(first, simulate([trace], chip(), compiled=True))
    assert same(first, simulate([trace], chip(), compiled=False))
