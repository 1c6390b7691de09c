"""The Perfetto trace, read back with its own protobuf classes."""

import sys
from collections import Counter, defaultdict

import pytest
from report_samples import make_call

from trnsim.errors import InputError
from trnsim.report.perfetto_report import perfetto_bytes, write_perfetto

protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


def read(data):
    trace = protos.Trace()
    trace.ParseFromString(data)
    names = defaultdict(dict)
    tracks, events = {}, []
    for packet in trace.packet:
        for table in ("event_names", "debug_annotation_names"):
            names[table].update({e.iid: e.name for e in getattr(packet.interned_data, table)})
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor
        if packet.HasField("track_event"):
            events.append((packet.timestamp, packet.track_event))
    return tracks, events, names


@pytest.mark.parametrize("cores", [1, 2])
def test_round_trip(cores, tmp_path):
    call = make_call(1500, folder=tmp_path, cores=cores)
    write_perfetto([call], tmp_path / "trace.pftrace")
    tracks, events, names = read((tmp_path / "trace.pftrace").read_bytes())
    processes = [t for t in tracks.values() if t.HasField("process")]
    assert [p.process.process_name for p in processes] == [f"nki_matmul_tiled_ core {i}" for i in range(cores)]
    used = {int(t) for t in call.timeline.events.track}
    lanes = [t for t in tracks.values() if t.parent_uuid and not t.HasField("counter")]
    assert len(lanes) == len(used)
    assert {"TensorE", "dma sync 0"} <= {t.name for t in lanes}
    assert {t.name for t in tracks.values() if t.HasField("counter")} == {
        "SBUF bytes a partition", "PSUM bytes a partition", "HBM bandwidth",
    }  # fmt: skip
    begun = [e for _, e in events if e.type == e.TYPE_SLICE_BEGIN]
    counts = Counter(names["event_names"][e.name_iid] for e in begun)
    timeline = call.timeline
    opcodes = Counter(timeline.opcodes[i] for i in timeline.events.opcode.tolist())
    assert {name: n for name, n in counts.items() if not name.startswith("wait: ")} == opcodes
    assert sum(n for name, n in counts.items() if name.startswith("wait: ")) == (timeline.waits.before >= 0).sum()


def test_slices_nest_and_say_why(tmp_path):
    call = make_call(800, folder=tmp_path)
    _, events, names = read(perfetto_bytes([call]))
    depth, last = Counter(), defaultdict(int)
    for time, event in events:
        if event.type == event.TYPE_COUNTER:
            continue
        assert time >= last[event.track_uuid]
        last[event.track_uuid] = time
        depth[event.track_uuid] += 1 if event.type == event.TYPE_SLICE_BEGIN else -1
        assert depth[event.track_uuid] in (0, 1)
    assert not any(depth.values())
    arguments = [
        {names["debug_annotation_names"][a.name_iid]: a.string_value or a.int_value for a in e.debug_annotations}
        for _, e in events
        if e.type == e.TYPE_SLICE_BEGIN and names["event_names"][e.name_iid] == "MATMUL"
    ]
    waited = next(a for a in arguments if "released_by" in a)
    assert waited["waited_for"] == "DMA"
    assert "matmul.py:1" in waited["released_by"]
    assert waited["stationary (read)"].startswith("lhsT_tile float32 128x128 (sbuf +")
    assert waited["source"].endswith("matmul.py:13")


def test_flows_are_paired():
    _, events, _ = read(perfetto_bytes([make_call(800), make_call(400)]))
    begun = Counter(f for _, e in events for f in e.flow_ids)
    ended = Counter(f for _, e in events for f in e.terminating_flow_ids)
    assert begun
    assert begun == ended
    assert set(begun.values()) == {1}


def test_overlapping_transfers_get_lanes():
    call = make_call(300)
    call.timeline.events.end[:] += 400_000
    tracks, _, _ = read(perfetto_bytes([call]))
    assert max(Counter(t.name for t in tracks.values()).values()) > 1


def test_missing_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace.perfetto_trace_pb2", None)
    with pytest.raises(InputError, match=r"trnsim\[perfetto\]"):
        write_perfetto([make_call(10)], tmp_path / "trace")
    assert not list(tmp_path.iterdir())
