"""What reports of models show: sums against the regions they are made of, and every figure in every format."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_report import US, made_report, region
from rich.console import Console

from trnsim.errors import InputError
from trnsim.frameworks.torch.report import MemoryUse, StepTime
from trnsim.frameworks.torch.reporting import tables
from trnsim.frameworks.torch.reporting.drawing import memory_chart, step_chart, steps_chart


@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (4, 3), (12, 2)])
def test_module_tree_adds_up(layers, steps):
    report = made_report(layers, steps)
    tree = tables.module_tree(report)
    for _, node in [(0, tree), *tables.rows(tree, 99)]:
        inside = [
            r.time_ps * n for r, n in report.every_region() if f"{r.module}.".startswith(f"{node.path}.".lstrip("."))
        ]
        assert node.time_ps == pytest.approx(sum(inside))
        assert node.time_ps == pytest.approx(node.own_ps + sum(c.time_ps for c in node.children.values()))
        assert node.time_ps == pytest.approx(sum(node.phases.values()))
    assert tree.time_ps == pytest.approx(report.total_ps)
    assert tree.nbytes == sum(h.nbytes for h in report.memory.holders)


def test_numbered_modules_are_one_row_with_the_same_sums():
    tree = tables.module_tree(made_report(8))
    together = tables.grouped(tree)
    assert together.time_ps == tree.time_ps
    layers = together.children["model"].children["layers"]
    assert list(layers.children) == ["[0-7]"]
    assert layers.children["[0-7]"].alike == 8
    one = layers.children["[0-7]"].children["mlp"]
    each = [c.children["mlp"] for c in tree.children["model"].children["layers"].children.values()]
    assert one.time_ps == pytest.approx(sum(c.time_ps for c in each))
    assert one.bytes == {"weight": sum(c.bytes["weight"] for c in each)}
    # Two beside each other stay two.
    assert set(tables.grouped(tables.module_tree(made_report(2))).children["model"].children["layers"].children) == {
        "0",
        "1",
    }


def test_operators_add_up_and_tell_the_weakest_support():
    report = made_report(4, 3)
    found = {one.name: one for one in tables.operators(report)}
    assert sum(one.time_ps for one in found.values()) == pytest.approx(report.total_ps)
    assert found["attention"].count == 4 * 2 * 3
    assert found["adam"].support == "assumed"
    assert found["fallback cumsum"].time_ps == pytest.approx(3 * 40 * US)
    assert sum(tables.supports(report).values()) == pytest.approx(1)


@pytest.mark.parametrize("count", [5, 97, 600])
def test_busy_bins_hold_the_busy_time(count):
    regions = [region("a", "m", "forward", 0, 10), region("b", "m", "forward", 30, 70)]
    total = 100 * US
    for engine, shares in tables.busy_bins(regions, total, count).items():
        busy = sum(r.busy_ps[engine] for r in regions)
        assert shares.sum() * total / count == pytest.approx(busy, rel=1e-9), engine
        assert shares.max() <= 1


def test_memory_bins_keep_the_peak():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(1, 100, 5000)).astype(float)
    held = {kind: rng.integers(0, 1000, 5000) for kind in ("weight", "activation", "input")}
    total = sum(held.values())
    memory = MemoryUse(1 << 20, "chip", tuple(times), {k: tuple(map(int, v)) for k, v in held.items()},
                       int(total.max()), float(times[total.argmax()]), {}, ())  # fmt: skip
    at, binned = tables.memory_bins(memory, 50)
    assert len(at) <= 50
    assert sum(binned.values()).max() == total.max()
    assert np.all(np.diff(at) > 0)


class _Tags(HTMLParser):
    """Fails where tags do not nest; keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in {"meta", "br", "line", "path", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in {"line", "path", "rect"}:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("over", [False, True])
def test_every_format_is_written_and_says_the_same(tmp_path, over):
    report = made_report(4, 3, over=over)
    stream = io.StringIO()
    report.print(Console(file=stream, width=100))
    terminal = stream.getvalue()
    report.save(tmp_path / "x.html")
    report.save(tmp_path / "x.json")
    page = _Tags()
    page.feed((tmp_path / "x.html").read_text())
    assert page.open == []
    html = " ".join(page.text)
    times = (tables.short_time(report.total_ps), tables.short_time(report.unfused_ps))
    for text in ("gated_mlp", "aten.cumsum.default", "no kernel scans", "interpolated", "2.2 GiB", "TensorE", *times):
        assert text in terminal, text
        assert text in html, text
    assert ("256.0 MiB more" in terminal) is over
    assert ("256.0 MiB do not fit" in html) is over
    data = json.loads((tmp_path / "x.json").read_text())
    assert data["total_ps"] == report.total_ps
    assert sum(g["runs"] * sum(r["time_ps"] for r in g["regions"]) for g in data["graphs"]) == pytest.approx(
        report.total_ps
    )
    assert data["memory"]["over_bytes"] == report.memory.over_bytes
    assert all(line.isascii() and len(line) <= 100 for line in terminal.splitlines())


def test_charts_are_xml_and_draw_all_of_the_step():
    report = made_report(4, 3)
    for text in (memory_chart(report.memory, report.total_ps), step_chart(report.regions[0], report.total_ps / 3),
                 steps_chart(report)):  # fmt: skip
        svg = ET.fromstring(text.partition("</svg>")[0] + "</svg>")
        assert svg.tag == "svg"
    long = report.total_ps / 3
    svg = ET.fromstring(step_chart(report.regions[0], long).partition("</svg>")[0] + "</svg>")
    widths = [float(r.get("width")) for r in svg.iter("rect") if r.get("y") == "4"]
    assert sum(widths) == pytest.approx(1180 - 84 - 14, abs=0.1)  # the phases fill the step


def test_perfetto_has_slices_of_steps_modules_and_engines(tmp_path):
    pytest.importorskip("perfetto")
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

    report = made_report(2, 2)
    report.save(tmp_path / "x.pftrace")
    trace = protos.Trace()
    trace.ParseFromString((tmp_path / "x.pftrace").read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor.name for p in trace.packet if p.HasField("track_descriptor")}
    begun, ended, busy, last = {}, {}, {}, {}
    for packet in trace.packet:
        event = packet.track_event
        if not packet.HasField("track_event"):
            continue
        name = tracks[event.track_uuid]
        if event.type == protos.TrackEvent.TYPE_SLICE_BEGIN:
            begun[name] = begun.get(name, 0) + 1
            last[name] = packet.timestamp
        elif event.type == protos.TrackEvent.TYPE_SLICE_END:
            ended[name] = ended.get(name, 0) + 1
            busy[name] = busy.get(name, 0) + packet.timestamp - last[name]
    assert begun == ended
    assert begun["steps"] == 2
    assert busy["TensorE"] == pytest.approx(report.times("engine")["tensor"] / 1e3, abs=begun["TensorE"])
    assert {"modules", "VectorE", "DMA", "HBM all", "HBM weight"} <= set(tracks.values())


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="format"):
        made_report().save(tmp_path / "x.txt")


def test_progress_counts_steps_and_simulated_time():
    from trnsim.frameworks.torch.reporting.progress import StepProgress

    stream = io.StringIO()
    bar = StepProgress("trn2 bf16", 3, Console(file=stream, width=120, force_terminal=True))
    bar.start()
    for time in (1e9, 2e9, 3e9):
        bar.step(time)
    bar.stop()
    assert "3 steps, 6.00 ms simulated, last 3.00 ms" in stream.getvalue()
    assert "3/3" in stream.getvalue()


def test_a_page_draws_a_graph_of_each_kind_of_step():
    regions = (made_report(2).regions[0], made_report(3).regions[0], made_report(1).regions[0])
    steps = [StepTime(name, graph, 0.0, time) for name, graph, time in
             (("prefill", 0, 5e9), ("decode", 1, 1e9), ("decode", 2, 9e8), ("decode", 1, 1e9))]  # fmt: skip
    report = replace(made_report(), regions=regions, runs=(1, 2, 1), steps=tuple(steps))
    assert tables.graphs_to_draw(report) == [(0, "prefill", 5e9, 1), (1, "decode", 1e9, 2)]
    assert report.step_times("decode") == [1e9, 9e8, 1e9]
