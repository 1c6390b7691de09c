"""Comparing two profiles."""

from __future__ import annotations

import json

import pytest
from profile_documents import Document, copy

from trnsim.errors import InputError
from trnsim.profiles.diff import diff
from trnsim.profiles.read import read


@pytest.fixture
def profile(tmp_path):
    def make(name, *rows, lines=False):
        document = Document()
        for engine, opcode, operands, start, duration, line in rows:
            more = {"nki_source_location": line} if lines else {}
            document.add(engine, opcode, operands, start=start, duration=duration, **more)
        return read(document.write(tmp_path / f"{name}.json"))

    return make


A = (
    ("Vector", "COPY", copy(512), 0, 690, "x/k.py:7"),
    ("Vector", "COPY", copy(512), 700, 690, "x/k.py:8"),
    ("Vector", "COPY", copy(4), 1400, 160, "x/k.py:8"),
    ("Scalar", "EVENT_SEMAPHORE", "", 0, 900, "x/k.py:9"),
)
B = (
    ("Vector", "COPY", copy(512), 0, 680, "y/k.py:7"),
    ("Vector", "COPY", copy(512), 1000, 500, "y/k.py:8"),
    ("Scalar", "COPY", copy(512), 1000, 300, "y/k.py:10"),
)


def test_by_opcode_shape_and_order(profile):
    found = diff(profile("a", *A), profile("b", *B))
    assert found.aligned == "engine, opcode, operand shape and order"
    assert (found.span.a_ps, found.span.b_ps) == (1_560_000, 1_500_000)
    engines = {p.name: p for p in found.engines}
    assert (engines["vector"].a_ps, engines["vector"].b_ps) == (1_540_000, 1_180_000)
    assert (engines["vector"].a_waited_ps, engines["vector"].b_waited_ps) == (20_000, 320_000)
    assert (engines["scalar"].a_count, engines["scalar"].b_count) == (0, 1)
    assert [p.name for p in found.opcodes] == ["vector COPY", "scalar COPY"]
    assert [p.change_ps for p in found.opcodes] == [-360_000, 300_000]
    assert not found.lines
    assert [m.change_ps for m in found.instructions] == [-190_000, -10_000]
    assert (found.unmatched_a, found.unmatched_b) == (1, 1)


def test_by_source_line_where_both_have_one(profile):
    found = diff(profile("a", *A, lines=True), profile("b", *B, lines=True))
    assert found.aligned == "source line"
    lines = {p.name: (p.a_ps, p.b_ps, p.a_count, p.b_count) for p in found.lines}
    assert lines == {
        "k.py:7": (690_000, 680_000, 1, 1),
        "k.py:8": (850_000, 500_000, 2, 1),
        "k.py:10": (0, 300_000, 0, 1),
    }
    only_one = diff(profile("a", *A, lines=True), profile("b", *B))
    assert only_one.aligned.startswith("engine, opcode")


def test_a_profile_with_itself_differs_in_nothing(profile):
    a = profile("a", *A)
    found = diff(a, a)
    pairs = [found.span, *found.engines, *found.opcodes, *found.classes]
    assert all(p.change_ps == 0 and p.a_count == p.b_count for p in pairs)
    assert not any(m.change_ps for m in found.instructions)
    assert (found.unmatched_a, found.unmatched_b) == (0, 0)


def test_measured_against_a_report(profile, tmp_path):
    rows = [
        {"core": 0, "engine": "vector", "opcode": "COPY", "line": "", "count": 2, "busy_us": 1.0, "waiting_us": 0.25,
         "bytes": 0},
        {"core": 0, "engine": "sync", "opcode": "DMA_TRIGGER", "line": "", "count": 1, "busy_us": 0.5,
         "waiting_us": 0.0, "bytes": 0},
    ]  # fmt: skip
    call = {
        "kernel": "k", "chip": "trn2", "time_us": 2.0, "instruction_classes": rows,
        "engines": {"vector": {"busy_us": 0.75}, "sync": {"busy_us": 0.5}},
    }  # fmt: skip
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"calls": [call]}))
    found = diff(profile("a", *A), read(path))
    assert found.aligned == "engine and opcode"
    assert found.span.b_ps == 2_000_000
    vector = next(p for p in found.engines if p.name == "vector")
    assert (vector.b_ps, vector.b_count, vector.b_waited_ps) == (750_000, 2, 250_000)
    assert {p.name for p in found.opcodes} == {"vector COPY", "sync DMA_DIRECT2D"}
    assert not found.instructions


def test_nothing_to_compare(profile):
    empty = profile("a", ("Vector", "NOP", "", 0, 1, ""))
    with pytest.raises(InputError, match="no instruction of a kernel"):
        diff(empty, empty)
