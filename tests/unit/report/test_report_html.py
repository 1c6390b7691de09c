"""The HTML report: one file with everything in it."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import make_call

from trnsim.report.html_report import render_html, write_html
from trnsim.report.json_report import report_json
from trnsim.report.packing import Packer, unpack


def parts(page):
    description = re.search(r'<script type="application/json" id="description">(.*?)</script>', page, re.DOTALL)
    data = re.findall(r'<script type="text/plain" id="data-\d+">(.*?)</script>', page, re.DOTALL)
    return json.loads(description[1]), data


def test_self_contained(tmp_path):
    page = render_html([make_call(folder=tmp_path)])
    assert "://" not in page
    assert not re.search(r"<(link|img|iframe|object|embed)\b|\bsrc=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "{{" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_sources_cannot_end_the_script(tmp_path):
    page = render_html([make_call(folder=tmp_path, kernel="</script><b>&")])
    description, _ = parts(page)
    texts = [line["text"] for line in description["calls"][0]["report"]["lines"]]
    assert any("</script>" in text for text in texts)
    assert "<b>" not in page


@pytest.mark.parametrize("cores", [1, 2])
def test_all_data_present(cores, tmp_path):
    call = make_call(3000, folder=tmp_path, cores=cores)
    description, data = parts(render_html([call, make_call(100)]))
    assert len(data) == len(description["calls"]) == 2
    page = description["calls"][0]
    columns = unpack(page["columns"], data[0])
    assert page["report"] == json.loads(json.dumps(report_json([call])["calls"][0]))
    events, waits = call.timeline.events, call.timeline.waits
    order = np.lexsort((events.start, events.track))
    assert (columns["events.start"] == events.start[order]).all()
    assert (columns["events.length"] == (events.end - events.start)[order]).all()
    assert (columns["events.latency"] == (events.done - events.end)[order]).all()
    assert (columns["events.bytes"] == events.bytes[order]).all()
    assert (columns["events.instruction"] == events.instruction[order] + 1).all()
    counts = [t["events"] for t in page["tracks"]]
    assert (np.repeat(np.arange(len(counts)), counts) == events.track[order]).all()
    wait_order = np.lexsort((waits.start, waits.track))
    released = waits.released_by[wait_order]
    known = released >= 0
    assert (order[columns["waits.released"][known] - 1] == released[known]).all()
    assert (columns["waits.released"][~known] == 0).all()
    lines = page["report"]["lines"]
    tensor = columns["events.line"][columns["events.opcode"] == 2]
    assert {lines[i - 1]["line"] for i in tensor.tolist()} == {13}
    assert columns["bandwidth"].sum() == pytest.approx(int(events.bytes.sum()), rel=1e-4)
    assert (columns["memory0.bytes"] == call.timeline.memory[0].bytes).all()


def test_operands_are_those_of_the_trace():
    description, data = parts(render_html([make_call(500)]))
    page = description["calls"][0]
    columns = unpack(page["columns"], data[0])
    event = int(np.flatnonzero(columns["events.opcode"] == 2)[0])
    row = int(columns["events.instruction"][event]) - 1
    trace = page["traces"][0]
    klass = trace["classes"][columns["trace0.class"][row]]
    first = int(columns["trace0.operand"][row])
    names = [trace["storages"][columns["trace0.storage"][first + i] - 1] for i in range(len(klass["operands"]))]
    forms = [trace["forms"][columns["trace0.form"][first + i]] for i in range(len(klass["operands"]))]
    assert klass["name"] == "nki.isa.nc_matmul"
    assert names == ["res_psum", "lhsT_tile", "rhs_tile"]
    assert [f["shape"] for f in forms] == [[128, 512], [128, 128], [128, 512]]
    assert forms[1]["bytes"] == 128 * 128 * 4


def test_too_many_events_are_said():
    description, data = parts(render_html([make_call(1000)], max_events=300))
    page = description["calls"][0]
    columns = unpack(page["columns"], data[0])
    assert len(columns["events.start"]) == 300
    assert page["leftOut"] + 300 == page["report"]["tracks"][0]["events"] + sum(
        t["events"] for t in page["report"]["tracks"][1:]
    )
    assert columns["waits.before"].max() <= 300


@pytest.mark.parametrize("calls", [[], [make_call(0)], [make_call(50, traces=False)]])
def test_little_to_show(calls, tmp_path):
    write_html(calls, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@given(st.lists(st.integers(-(2**52), 2**52)), st.lists(st.integers(0, 300)), st.booleans())
def test_packing(wide, narrow, delta):
    packer = Packer()
    packer.add("wide", wide, delta=delta)
    packer.add("narrow", narrow, delta=delta)
    columns = unpack(packer.manifest(), packer.text())
    assert columns["wide"].tolist() == wide
    assert columns["narrow"].tolist() == narrow
