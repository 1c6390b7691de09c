"""Chakra execution traces: what is written is read again, by Chakra's own schema too."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.planner.training import TrainingPlan, estimate
from trnsim.workloads import Layout, load_model

pytest.importorskip("google.protobuf", reason="protobuf is not installed: pip install 'trnsim[chakra]'")

from trnsim.planner.chakra import COLLECTIVE, COMPUTE, RECEIVE, SEND, Node, Trace, length_us, messages, read, write
from trnsim.planner.chakra_steps import trace_of

SCHEMA = "schema/protobuf/et_def.proto"
CHAKRA = os.environ.get("TRNSIM_CHAKRA")


def plan(**layout):
    given = {"tp": 8, "dp": 2, "zero": 1, "global_batch": 8, "micro_batch": 1, **layout}
    return TrainingPlan(model=load_model("llama-3.1-8b"), system="trn2.48xlarge", layout=Layout(**given), sequence=4096)


values = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(max_size=8), st.floats(allow_nan=False),
    st.binary(max_size=8), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3).map(tuple),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=9),
            st.integers(1, 7),
            st.integers(0, 2**40),
            st.dictionaries(st.text(min_size=1, max_size=5), values),
        ),
        max_size=8,
    )
)
def test_round_trip(tmp_path_factory, drawn):
    nodes = [
        Node(i, name, kind, tuple(range(max(i - 2, 0), i)), (), i, time, {f"x{k}": v for k, v in attributes.items()})
        for i, (name, kind, time, attributes) in enumerate(drawn)
    ]
    trace = Trace(tuple(nodes), {"made": "here", "count": 3})
    path = tmp_path_factory.mktemp("chakra") / "a.et"
    write(trace, path)
    assert read(path) == trace
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path) == trace


def test_length_overlaps_exchanges_with_computation():
    nodes = (
        Node(0, "a", COMPUTE, duration_us=10),
        Node(1, "sum", COLLECTIVE, (0,), duration_us=30),
        Node(2, "b", COMPUTE, (0,), duration_us=20),
        Node(3, "c", COMPUTE, (1,), duration_us=5),
    )
    assert length_us(Trace(nodes)) == 45
    assert length_us(Trace(nodes), {1: 5}) == 35
    with pytest.raises(InputError, match="wait for each other"):
        length_us(Trace((Node(0, "a", COMPUTE, (1,)), Node(1, "b", COMPUTE, (0,)))))


@pytest.mark.parametrize("layout", [{}, {"pp": 4, "dp": 1}, {"pp": 2, "vpp": 4, "dp": 1}])
def test_steps(layout):
    one = plan(**layout)
    traces = [trace_of(one, stage) for stage in range(one.layout.pp)]
    # Alone on its stage a rank takes the sum of its operators and exchanges, as the ideal plan prices them.
    found = estimate(one)
    times, ends = found.pieces.times, found.pieces.ends
    micro = one.layout.micro_batches
    for stage, trace in enumerate(traces):
        pieces = times.reshape(one.layout.vpp, one.layout.pp, 3, -1)[:, stage]
        expected = micro * pieces.sum() + ends[stage].sum()
        own = sum(node.duration_us for node in trace.nodes if node.kind in (COMPUTE, COLLECTIVE))
        assert own == pytest.approx(expected, rel=0.02)
    # What one sends another receives.
    names = ("comm_src", "comm_dst", "comm_tag")
    nodes = [node for trace in traces for node in trace.nodes]
    tags = {
        kind: sorted(tuple(n.attributes[name] for name in names) for n in nodes if n.kind == kind)
        for kind in (SEND, RECEIVE)
    }
    assert tags[SEND] == tags[RECEIVE]
    assert len(tags[SEND]) == 2 * micro * (one.layout.pp * one.layout.vpp - 1)


def test_split_backward_passes_are_whole():
    together, apart = (
        trace_of(TrainingPlan(model=plan().model, system="trn2.48xlarge", layout=plan(pp=4, dp=1).layout, sequence=4096,
                              schedule=schedule), 1) for schedule in ("1f1b", "zb-h1")
    )  # fmt: skip
    assert sum(n.duration_us for n in apart.nodes) == sum(n.duration_us for n in together.nodes)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x05ab", b"\x03\xff\xff\xff", b"\x00\x04\x08\x01\x28\x07"])
def test_bad_files(tmp_path, data):
    path = tmp_path / "bad.et"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read(path)
    with pytest.raises(InputError):
        read(tmp_path / "none.et")


@pytest.mark.skipif(not CHAKRA, reason="TRNSIM_CHAKRA names no checkout of mlcommons/chakra")
def test_fields_are_chakras():
    """Names, numbers and types of the fields, from its schema."""
    text = (Path(CHAKRA) / SCHEMA).read_text()
    for name, known in messages().items():
        body = re.search(rf"message {name} {{(.*?)\n}}", text, re.DOTALL)[1]
        theirs = {m[1]: int(m[2]) for m in re.finditer(r"(\w+) = (\d+);", body)}
        assert {f.name: f.number for f in known.DESCRIPTOR.fields} == theirs


@pytest.mark.skipif(not CHAKRA, reason="TRNSIM_CHAKRA names no checkout of mlcommons/chakra")
def test_chakras_own_schema_reads_it(tmp_path):
    """In a process of its own, whose messages are compiled from Chakra's schema."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: it compiles Chakra's schema")
    write(trace_of(plan(), 0), tmp_path / "step.et")
    compile_ = [sys.executable, "-m", "grpc_tools.protoc", f"-I{Path(CHAKRA) / 'schema/protobuf'}",
                f"--python_out={tmp_path}", "et_def.proto"]  # fmt: skip
    subprocess.run(compile_, check=True)
    script = """
import sys, et_def_pb2 as et
from google.protobuf.internal.decoder import _DecodeVarint32
data, at, nodes = open("step.et", "rb").read(), 0, []
while at < len(data):
    size, at = _DecodeVarint32(data, at)
    message = et.Node() if nodes else et.GlobalMetadata()
    message.ParseFromString(data[at : at + size])
    at += size
    nodes.append(message)
print(len(nodes) - 1, sum(n.duration_micros for n in nodes[1:]), {n.type for n in nodes[1:]} <= {4, 5, 6, 7})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    trace = read(tmp_path / "step.et")
    assert done.stdout.split() == [str(len(trace.nodes)), str(sum(n.duration_us for n in trace.nodes)), "True"]


def test_commands(tmp_path):
    from typer.testing import CliRunner

    from trnsim.cli import app

    words = ["plan", "train", "--model", "llama-3.1-8b", "--system", "trn2.48xlarge", "--chips", "16", "--seq", "4096",
             "--global-batch", "16", "--tp", "8", "--pp", "2", "--vpp", "1", "--cp", "1", "--micro-batch", "1",
             "--chakra", str(tmp_path)]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    files = sorted(tmp_path.glob("*.et"))
    assert len(files) == 2
    done = CliRunner().invoke(app, ["chakra", str(files[0]), "--system", "dgx-h100"])
    assert done.exit_code == 0, done.output
    for text in ("all_gather", "compute", "with the links of dgx-h100"):
        assert text in done.output
