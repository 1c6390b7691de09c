"""Reading profiles: each form, and errors that name file and field."""

from __future__ import annotations

import builtins
import json

import pytest
from profile_documents import Document, copy

from trnsim.errors import InputError
from trnsim.profiles.profile import NEURON_EXPLORER, NEURON_PROFILE, REPLAY, REPORT
from trnsim.profiles.read import read


@pytest.fixture
def document():
    return (
        Document()
        .add("Vector", "NOTIFY", start=1, kernel=False)
        .add("Vector", "COPY", copy(), start=100, duration=690, nki_source_location="['k.py:7']")
        .add("Sync", "DMA_DIRECT2D", start=50, duration=524, hbm_read_bytes=64)
        .packet(1300, 27, 512)
        .limit(3000, 8)
    )


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_neuron_profile(tmp_path, document, name):
    profile = read(document.write(tmp_path / name))
    assert profile.kind == NEURON_PROFILE
    assert profile.timed
    assert [profile.opcode_of(r) for r in range(3)] == ["NOTIFY", "DMA_DIRECT2D", "COPY"]
    assert [profile.opcode_of(r) for r in profile.body] == ["DMA_DIRECT2D", "COPY"]
    assert profile.instructions.start_ps.tolist() == [1_000, 50_000, 100_000]
    assert profile.instructions.bytes.tolist() == [0, 64, 0]
    assert profile.line_of(2) == "k.py:7"
    assert profile.packets.bytes.tolist() == [512]
    assert profile.throttle == [(0, 3_000_000, 1.0)]


def _without(document, field):
    for row in document.instructions:
        row.pop(field, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.instructions[1].pop("opcode"), r"instruction\[1\] has no field 'opcode'"),
        (lambda d: d.instructions[1].update(timestamp="soon"), r"instruction\[1\].timestamp is not an integer"),
        (lambda d: d.instructions[1].update(timestamp=1.5), r"instruction\[1\].timestamp is not an integer"),
        (lambda d: d.instructions[1].update(subgroup="Quantum"), r"instruction\[1\]: no engine 'Quantum'"),
        (lambda d: d.instructions[1].update(subgraph="core 0"), r"instruction\[1\].subgraph is not sgNN"),
        (lambda d: d.packets[0].pop("transfer_size"), r"dma\[0\] has no field 'transfer_size'"),
        (lambda d: d.throttle[0].update(k="eight"), r"ham\[0\].k is not a number"),
        (lambda d: _without(d, "compiler_pc"), "no row of instruction has compiler_pc"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, document, change, message):
    change(document)
    path = document.write(tmp_path / "p.json")
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b"{", "not JSON"),
        ("p.json.gz", b"plain", "not gzip"),
        ("p.json", b"[1, 2]", "not a profile that is known; it holds list"),
        ("p.json", b'{"tables": []}', "not a profile that is known; it holds tables"),
        ("p.json", b'{"instruction": 3}', "instruction is not a list"),
        ("p.json", b'{"instruction": [3]}', r"instruction\[0\] is not an object"),
    ],
)
def test_what_is_no_profile(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(path)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "p.json")
    with pytest.raises(InputError, match="a folder without Instruction"):
        read(tmp_path)


EXPLORER = {
    "start_ts": 100, "end_ts": 790, "duration_ns": 690, "engine": "vector", "opcode": "COPY", "operands": copy(),
    "id": 1, "pc": 4, "compiler_pc": 2, "bir_id": "", "pcore_idx": 0, "evt_wait_time_ns": 20,
    "nki_source_location": "['k.py:7']",
}  # fmt: skip
PACKET = {
    "start_ts": 5, "end_ts": 9, "duration_ns": 4, "engine_idx": 64, "queue_idx": 1, "transfer_bytes": 512,
    "queue_type": "hardware_dynamic",
}  # fmt: skip


def _explorer(folder, **tables):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, rows in tables.items():
        parquet.write_table(arrow.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def test_neuron_explorer(tmp_path):
    throttle = {"timestamp": 7, "duration": 3, "k": 4, "n": 8, "type": "activity_1"}
    folder = _explorer(tmp_path, Instruction=[EXPLORER], DmaPacket=[PACKET], Throttle=[throttle])
    for path in (folder, folder / "Instruction.parquet"):
        profile = read(path)
        assert profile.kind == NEURON_EXPLORER
        assert profile.instructions.start_ps.tolist() == [100_000]
        assert profile.instructions.waited_ps.tolist() == [20_000]
        assert profile.line_of(0) == "k.py:7"
        assert profile.packets.bytes.tolist() == [512]
        assert profile.throttle == [(0, 7_000, 0.5)]


def test_a_wrong_field_of_neuron_explorer_is_named(tmp_path):
    folder = _explorer(tmp_path, Instruction=[{k: v for k, v in EXPLORER.items() if k != "opcode"}])
    with pytest.raises(InputError, match=r"Instruction\[0\] has no field 'opcode'"):
        read(folder)
    (folder / "Instruction.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        read(folder)


def test_parquet_needs_an_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / "Instruction.parquet").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"needs pyarrow, which is not installed: pip install 'trnsim\[parquet\]'"):
        read(tmp_path)


CLASS = {
    "core": 0, "engine": "vector", "opcode": "COPY", "line": "k.py:7", "count": 3, "busy_us": 1.5, "waiting_us": 0.5,
    "bytes": 0,
}  # fmt: skip
CALL = {
    "kernel": "k", "chip": "trn2", "time_us": 4.0, "engines": {"vector": {"busy_us": 1.25}},
    "instruction_classes": [CLASS],
}  # fmt: skip


def _json(tmp_path, value):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(value))
    return path


def test_our_report(tmp_path):
    profile = read(_json(tmp_path, {"calls": [CALL]}))
    assert profile.kind == REPORT
    assert not profile.timed
    assert profile.instructions.count.tolist() == [3]
    assert profile.instructions.duration_ps.tolist() == [1_500_000]
    assert profile.reported_span_ps == 4_000_000
    assert profile.reported_busy_ps == {"vector": 1_250_000}


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"calls": []}, "a report of 0 kernel calls"),
        ({"calls": [CALL, CALL]}, r"a report of 2 kernel calls \(k, k\)"),
        ({"calls": [{**CALL, "instruction_classes": None}]}, "no table 'instruction_classes'"),
        ({"calls": [{**CALL, "engines": 3}]}, r"calls\[0\] has no engines"),
    ],
)
def test_a_report_that_cannot_be_compared(tmp_path, report, message):
    with pytest.raises(InputError, match=message):
        read(_json(tmp_path, report))


def test_our_replay(tmp_path):
    row = {
        "engine": "vector", "opcode": "COPY", "operands": "", "line": "", "pc": 1, "predicted_start_us": 2.0,
        "predicted_us": 0.5,
    }  # fmt: skip
    document = {"schema": "trnsim-replay-1", "chip": "trn2", "span": {"predicted_us": 3.0}, "instructions": [row]}
    profile = read(_json(tmp_path, document))
    assert profile.kind == REPLAY
    assert profile.timed
    assert profile.reported_span_ps == 3_000_000
    del document["span"]
    with pytest.raises(InputError, match=r"span\[0\] is not an object"):
        read(_json(tmp_path, document))
