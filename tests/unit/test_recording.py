"""Recordings: what was recorded and timed again equals a fresh run; what cannot be timed again says why."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

import trnsim
from trnsim import nki
from trnsim.cli import app
from trnsim.errors import CompilerError, HardwareError, InputError
from trnsim.hardware import load_chip
from trnsim.machine.trace import _pack, _unpack
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.recording import VERSION, load_recording, save_recording, time_again

EXAMPLES = Path(__file__).parents[2] / "examples"


@nki.jit
def two_cores(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    mine = nl.load(x[core * 64 : core * 64 + 64])
    theirs = nl.ndarray(mine.shape, mine.dtype, buffer=nl.sbuf)
    nisa.sendrecv(dst=theirs, src=mine, send_to_rank=1 - core, recv_from_rank=1 - core, pipe_id=0)
    total = nl.ndarray(mine.shape, mine.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=total, data1=mine, data2=theirs, op=nl.add)
    nl.store(out[core * 64 : core * 64 + 64], value=total)
    return out


@nki.jit
def many_kinds(x):
    """Attributes of many types: operators, functions, engines, modes, numbers, tensors as scalars."""
    a = nl.load(x)
    b, c = (nl.ndarray(a.shape, nl.bfloat16, buffer=nl.sbuf) for _ in range(2))
    column = nl.ndarray((a.shape[0], 1), nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=column, op=nl.maximum, data=a, axis=1)
    nisa.activation(dst=b, op=nl.exp, data=a, bias=column, scale=2.0)
    nisa.tensor_scalar(dst=c, data=b, op0=nl.multiply, operand0=column, op1=nl.add, operand1=3.0)
    nisa.tensor_copy(dst=b, src=c, engine=nisa.engine.gpsimd)
    flipped = nl.ndarray((a.shape[1], a.shape[0]), nl.bfloat16, buffer=nl.psum)
    nisa.nc_transpose(dst=flipped, data=b)
    out = nl.ndarray(flipped.shape, nl.bfloat16, buffer=nl.shared_hbm)
    copied = nl.ndarray(flipped.shape, nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_copy(dst=copied, src=flipped)
    nisa.dma_copy(dst=out, src=copied, dge_mode=nisa.dge_mode.swdge)
    return out


@nki.jit
def only_new(x):
    a = nl.load(x)
    column = nl.ndarray((128, 1), nl.float32, buffer=nl.sbuf)
    out = nl.ndarray(a.shape, nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=column, op=nl.maximum, data=a, axis=1)
    nisa.exponential(dst=out, src=a, max_value=column)
    result = nl.ndarray(a.shape, nl.float32, buffer=nl.shared_hbm)
    nl.store(result, value=out)
    return result


def example(name, kernel):
    trnsim.install()
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, kernel)


CASES = {
    "matmul": (lambda: example("matmul", "tiled_matmul"), ("bf16[256,256]", "bf16[256,512]")),
    "rmsnorm": (lambda: example("rmsnorm", "rmsnorm"), ("f32[256,512]", "f32[512]")),
    "two cores": (lambda: two_cores[2], ("f32[128,64]",)),
    "many kinds": (lambda: many_kinds, ("f32[128,64]",)),
}


def profiled(case, **options):
    kernel, arguments = CASES[case]
    return trnsim.profile(kernel(), *arguments, options=trnsim.SimulationOptions(numeric=False, **options))


def recorded(call, path):
    save_recording([call], path)
    return load_recording(path).calls[0]


def assert_same(again, fresh):
    """All that a report says of the time: events, waits, memory, totals and what is said of them."""
    for columns in ("events", "waits"):
        for field in dataclasses.fields(getattr(fresh.timeline, columns)):
            one, other = (getattr(getattr(c.timeline, columns), field.name) for c in (again, fresh))
            if field.name == "opcode":  # numbered in the order in which classes were first seen
                one, other = (
                    np.array(c.timeline.opcodes)[n] for c, n in zip((again, fresh), (one, other), strict=True)
                )
            np.testing.assert_array_equal(one, other, err_msg=f"{columns}.{field.name}")
    for name in ("total_ps", "spread_ps", "totals", "support"):
        assert getattr(again.timeline, name) == getattr(fresh.timeline, name), name
    for name in (
        "kernel",
        "chip",
        "generation",
        "cores",
        "arguments",
        "schedule",
        "clock",
        "flops",
        "peak_flops",
        "hbm_bytes_per_second",
        "support",
        "support_reason",
        "error_percent",
        "nki_version",
        "source",
    ):
        assert getattr(again, name) == getattr(fresh, name), name  # fmt: skip
    assert [str(f) for f in again.findings] == [str(f) for f in fresh.findings]


@pytest.mark.parametrize("options", [{}, {"schedule": "program"}, {"clock": "span"}], ids=str)
@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("case", CASES)
def test_timed_again_as_a_fresh_run(case, chip, options, tmp_path):
    if case == "two cores" and chip == "trn1":
        pytest.skip("NeuronCore-v2 has no logical cores")
    saved = recorded(profiled(case, chip="trn2"), tmp_path / "one.trace")
    again = time_again(saved, chip=load_chip(chip), **options)
    assert_same(again, profiled(case, chip=chip, **options))


def test_defaults_are_those_of_the_recording(tmp_path):
    call = profiled("matmul", chip="trn3", schedule="program", clock="span")
    assert_same(time_again(recorded(call, tmp_path / "one.trace")), call)


def test_findings_of_the_kernel_are_kept(tmp_path):
    @nki.jit
    def unwritten(x):
        t = nl.ndarray(x.shape, nl.float32, buffer=nl.sbuf)
        out = nl.ndarray(x.shape, nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=t)
        return out

    call = trnsim.profile(unwritten, "f32[128,64]", chip="trn2")
    assert call.findings
    assert_same(time_again(recorded(call, tmp_path / "one.trace")), call)


def test_a_trace_that_cannot_run_there_says_why(tmp_path):
    call = trnsim.profile(only_new, "f32[128,64]", chip="trn3")
    saved = recorded(call, tmp_path / "one.trace")
    with pytest.raises(HardwareError, match=r"(?s)exponential does not exist on NeuronCore-v3.*test_recording.py:\d+"):
        time_again(saved, chip=load_chip("trn2"))
    saved = recorded(profiled("two cores"), tmp_path / "two.trace")
    with pytest.raises(CompilerError, match="logical core of 2 cores; NeuronCore-v2 has none"):
        time_again(saved, chip=load_chip("trn1"))
    with pytest.raises(InputError, match="no NeuronCore"):
        time_again(saved, chip=load_chip("h100"))


def other_version(data):
    content = msgspec.msgpack.decode(data)
    return msgspec.msgpack.encode({**content, "version": VERSION + 1})


BAD_FILES = {
    "other version": (other_version, rf"format {VERSION + 1}\..*this trnsim reads format {VERSION}\.\d+.*record"),
    "cut short": (lambda data: data[: len(data) // 2], "cannot be read as a recording"),
    "something else": (lambda data: msgspec.msgpack.encode({"version": 1}), "is not a recording"),
    "text": (lambda data: b"hello", "cannot be read as a recording"),
    "a field is gone": (
        lambda data: msgspec.msgpack.encode({k: v for k, v in msgspec.msgpack.decode(data).items() if k != "calls"}),
        "damaged",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tmp_path):
    change, message = BAD_FILES[case]
    path = tmp_path / "one.trace"
    recorded(profiled("many kinds"), path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_recording(path)


def test_damaged_columns_are_found(tmp_path):
    saved = recorded(profiled("many kinds"), tmp_path / "one.trace")
    trace = saved.traces[0]
    trace.storage_columns = {name: _pack(_unpack(column)[:-1]) for name, column in trace.storage_columns.items()}
    with pytest.raises(InputError, match="damaged: IndexError: storage outside of its table"):
        time_again(saved)


def test_a_recording_is_written_whole_or_not_at_all(tmp_path):
    call = profiled("many kinds")
    with pytest.raises(InputError, match="cannot write"):
        save_recording([call], tmp_path / "nowhere" / "one.trace")
    assert not list(tmp_path.iterdir())


def test_the_source_is_known(tmp_path):
    source = tmp_path / "kernel.py"
    text = (
        "import nki, nki.language as nl\n\n@nki.jit\ndef double(x):\n    out = nl.ndarray(x.shape, dtype=x.dtype, "
        "buffer=nl.shared_hbm)\n    nl.store(out, value=nl.multiply(nl.load(x), 2.0))\n    return out\n"
    )
    source.write_text(text)
    trnsim.install()
    spec = importlib.util.spec_from_file_location("kernel_of_a_file", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    saved = recorded(trnsim.profile(module.double, "f32[128,64]"), tmp_path / "one.trace")
    assert saved.source == str(source)
    assert not saved.source_changed
    source.write_text(text + "\n")
    assert saved.source_changed


def test_set_changes_the_chip_that_was_recorded(tmp_path):
    script = tmp_path / "copies.py"
    script.write_text(
        "import numpy as np\nfrom trnsim import nki\nfrom trnsim.nki import isa as nisa, language as nl\n\n"
        "@nki.jit\ndef copied(x):\n"
        "    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)\n    nisa.dma_copy(dst=tile, src=x)\n"
        "    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)\n    nisa.dma_copy(dst=out, src=tile)\n"
        "    return out\n\ncopied(np.zeros((128, 512), np.float32))\n"
    )
    file, fresh, again = tmp_path / "t.trace", tmp_path / "fresh.json", tmp_path / "again.json"
    change = ["--set", "trn3.dma.packet=1us"]
    invoke = CliRunner().invoke
    assert invoke(app, ["run", "--chip", "trn3", "--trace", str(file), str(script)]).exit_code == 0
    assert invoke(app, ["run", *change, "--json", str(fresh), str(script)]).exit_code == 0
    assert invoke(app, ["time", *change, "--json", str(again), str(file)]).exit_code == 0
    (first,), (second,) = (json.loads(f.read_text())["calls"] for f in (fresh, again))
    assert first["time_us"] == second["time_us"]
    assert first["chip"] == second["chip"] == "trn3[dma.packet=1us]"
    assert second["support"] == "what-if"
    assert "dma.packet = 1us (was 8.6 ns)" in second["support_reason"]
