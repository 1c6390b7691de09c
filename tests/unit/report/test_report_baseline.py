"""Comparison with an earlier report: what is slower, missing, new or not comparable."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from report_samples import make_call

from trnsim.errors import InputError
from trnsim.report.baseline import Baseline, parse_percent
from trnsim.report.json_report import write_json

A = make_call(50, kernel="a", arguments=("float32 4x4",))
B = make_call(80, kernel="b", arguments=("float32 8x8",))
US = A.timeline.total_ps / 1e6


def slower(call, factor):
    return replace(call, timeline=replace(call.timeline, total_ps=round(call.timeline.total_ps * factor)))


CASES = {
    "the same": ([A, B], [A, B], []),
    "faster": ([A], [slower(A, 0.5)], []),
    "just within": ([A], [slower(A, 1.0499)], []),
    "slower": ([A], [slower(A, 1.06)], [rf"^a\(float32 4x4\): .* us, was {US:,.3f} us \(\+6.0%; at most \+5.0%\)$"]),
    "each slower one": ([A, B], [slower(A, 2), slower(B, 2)], [r"^a\(.*\+100.0%", r"^b\("]),
    "order of others does not matter": ([A, B], [B, A], []),
    "the second call": ([A, slower(A, 2)], [A, slower(A, 3)], [r"^a\(float32 4x4\), call 2: .*\+50.0%"]),
    "new": ([A], [A, B], [r"^b\(float32 8x8\): is not in "]),
    "missing": ([A, B], [A], [r"^b\(float32 8x8\): is in .* but did not run$"]),
    "one of two is missing": ([A, A], [A], [r"^a\(.*\(1 of 2 calls\)$"]),
    "other shapes": (
        [A], [replace(A, arguments=("float32 4x8",))], [r"^a\(float32 4x8\): is not in", r"^a\(float32 4x4\): is in"],
    ),
    "other chip": ([A], [replace(A, chip="trn3")], [rf"cannot be compared, its chip was {A.chip} and is trn3"]),
    "other schedule": ([A], [replace(A, schedule="program")], ["its schedule was"]),
    "other clock": ([A], [replace(A, clock="span")], ["its clock was"]),
    "other cores": ([A], [replace(A, cores=2)], [r"^a\[2\]\(.* is not in", r"^a\(.* did not run"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_failures(case, tmp_path):
    before, now, expected = CASES[case]
    write_json(before, tmp_path / "before.json")
    found = Baseline.read(tmp_path / "before.json", 0.05).failures(now)
    assert len(found) == len(expected), found
    for text, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, text), text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON report"),
        ("[]", "is not a JSON report"),
        ('{"schema": "trnsim.report/1"}', "is not a JSON report"),
        ('{"schema": "other/1", "calls": []}', "another schema"),
    ],
)
def test_bad_reports(content, message, tmp_path):
    path = tmp_path / "before.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Baseline.read(path, 0.05)
    with pytest.raises(InputError, match="cannot read"):
        Baseline.read(tmp_path / "none.json", 0.05)


def test_reports_of_later_minor_versions_are_read(tmp_path):
    path = tmp_path / "before.json"
    write_json([A], path)
    content = json.loads(path.read_text())
    content["calls"][0]["new_field"] = 1
    path.write_text(json.dumps(content))
    assert not Baseline.read(path, 0).failures([A])


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0 %", 0.0), ("12.5%", 0.125), ("100%", 1.0)])
def test_percent(text, value):
    assert parse_percent(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "-1%", "x%", "", "%", "5%%", "nan%", "inf%"])
def test_bad_percent(text):
    with pytest.raises(InputError, match="percentage"):
        parse_percent(text)
