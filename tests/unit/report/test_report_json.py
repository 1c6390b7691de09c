"""The JSON report: its schema, its sums, and files that are whole or absent."""

import json
import os

import msgspec
import pytest
from report_samples import WAIT_REASONS, make_call

from trnsim.errors import Finding, InputError
from trnsim.report.files import write_bytes_atomic, write_text_atomic
from trnsim.report.json_report import report_json, write_json
from trnsim.report.schema import SCHEMA_FILE, Report, schema_text

PROMISED = """
    kernel chip time_us support bound_by engines hbm_read_bytes hbm_write_bytes sbuf_peak_bytes psum_peak_bytes findings
    generation cores schedule arguments mfu flops spread_us instructions lines numeric seed
"""


def check(value, schema, defs, path="$"):
    """The parts of JSON Schema that msgspec writes."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        kinds = [s for s in schema["anyOf"] if matches(value, s)]
        assert kinds, (path, value)
        schema = kinds[0]
    if "enum" in schema:
        assert value in schema["enum"], path
    if "type" in schema:
        assert matches(value, schema), (path, value, schema)
    if "minimum" in schema:
        assert value >= schema["minimum"], path
    if "maximum" in schema:
        assert value <= schema["maximum"], path
    for name in schema.get("required", ()):
        assert name in value, (path, name)
    for name, part in schema.get("properties", {}).items():
        if name in value:
            check(value[name], part, defs, f"{path}.{name}")
    if "items" in schema:
        for i, item in enumerate(value):
            check(item, schema["items"], defs, f"{path}[{i}]")
    if isinstance(schema.get("additionalProperties"), dict):
        for name, item in value.items():
            check(item, schema["additionalProperties"], defs, f"{path}.{name}")


def matches(value, schema):
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return kind is None or isinstance(value, kinds[kind])


@pytest.mark.parametrize(
    "changes",
    [{}, {"cores": 2}, {"traces": False}, {"findings": (), "seed": None, "error_percent": None, "peak_flops": 0.0}],
)
def test_schema(changes, tmp_path):
    report = json.loads(json.dumps(report_json([make_call(folder=tmp_path, **changes), make_call(0)])))
    schema = json.loads(SCHEMA_FILE.read_text())
    check(report, schema, schema["$defs"])
    check({"schema": "trnsim.report/1", "versions": {}, "calls": []}, schema, schema["$defs"])
    with pytest.raises(AssertionError):
        check({**report, "schema": "other"}, schema, schema["$defs"])
    msgspec.convert(report, Report)
    assert report["schema"] == "trnsim.report/1"
    assert set(PROMISED.split()) <= set(report["calls"][0])


def test_schema_file_is_up_to_date():
    assert SCHEMA_FILE.read_text() == schema_text()


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_totals(cores, seed):
    call = make_call(3000, cores=cores, seed=seed)
    report = report_json([call])["calls"][0]
    total = report["time_us"]
    assert total == call.timeline.total_ps / 1e6
    for use in report["engines"].values():
        # Means over cores are rounded down to a picosecond, once for each reason.
        spent = use["busy_us"] + sum(use["waiting_us"].values())
        assert spent == pytest.approx(total, abs=(len(WAIT_REASONS) + 1) * 1e-6)
    for track in report["tracks"]:
        assert track["busy_us"] + sum(track["waiting_us"].values()) == pytest.approx(total, abs=1e-9)
    events = call.timeline.events
    instructions = sum(line["instructions"] for line in report["lines"])
    assert instructions == report["instructions"]
    assert sum(line["events"] for line in report["lines"]) == len(events.start)
    assert sum(line["busy_us"] for line in report["lines"]) == pytest.approx((events.end - events.start).sum() / 1e6)
    assert all(line["active_us"] <= total for line in report["lines"])
    assert all(line["active_us"] <= line["busy_us"] + 1e-9 for line in report["lines"])
    assert report["hbm_bytes_per_second"] * total * 1e-6 == pytest.approx(
        report["hbm_read_bytes"] + report["hbm_write_bytes"]
    )


def test_lines_have_text_and_blame(tmp_path):
    report = report_json([make_call(folder=tmp_path)])["calls"][0]
    loads = {line["line"]: line for line in report["lines"]}
    assert loads[12]["text"].startswith("rhs_tile = nl.load(")
    assert loads[12]["engines"] == ["sync", "dma"]
    assert loads[12]["caused_waiting_us"] > 0
    assert report["bound_by"] == "dma"
    assert "matmul.py:12" in report["bound_by_text"]


def test_details_that_json_lacks():
    call = make_call(100, findings=[Finding("x", "y", details={"a": 1, "b": object(), "c": [1, 2]})])
    details = report_json([call])["calls"][0]["findings"][0]["details"]
    assert details["a"] == 1
    assert details["c"] == [1, 2]
    assert details["b"].startswith("<object")


def test_write(tmp_path, capsys):
    calls = [make_call(200)]
    write_json(calls, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report_json(calls)
    write_json(calls, "-")
    assert json.loads(capsys.readouterr().out) == report_json(calls)


def test_deterministic():
    assert report_json([make_call(500)]) == report_json([make_call(500)])


@pytest.mark.parametrize("existing", [None, "before"])
def test_failing_write_changes_nothing(existing, tmp_path, monkeypatch):
    target = tmp_path / "out"
    if existing:
        target.write_text(existing)

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write_text_atomic(target, "after")
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if existing else [])
    assert not existing or target.read_text() == existing


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomic(tmp_path / "out", b"x")
    assert not list(tmp_path.iterdir())


def test_write_replaces_and_keeps_mode(tmp_path):
    target = tmp_path / "out"
    write_text_atomic(target, "one")
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    target.chmod(0o640)
    write_text_atomic(target, "zwei")
    assert target.read_text() == "zwei"
    assert target.stat().st_mode & 0o777 == 0o640


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_bytes_atomic(tmp_path / "nowhere" / "out", b"")
