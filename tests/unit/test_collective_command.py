"""``trnsim collective`` and ``trnsim validate collectives`` as a user calls them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from trnsim.cli import _guarded, app


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.delenv("TRNSIM_DATA", raising=False)

    def call(*arguments):
        status = _guarded(lambda: app([*arguments], standalone_mode=True))
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


def test_table(run):
    status, out, _ = run(
        "collective", "all_reduce", "--system", "trn2.48xlarge", "--ranks", "64", "--sizes", "8KiB:64KiB"
    )
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if "KiB" in line and "mesh" in line] == [
        "8.0", "16.0", "32.0", "64.0",
    ]  # fmt: skip
    assert "extrapolated" in out


def test_json_and_skew(run):
    common = ("collective", "all-reduce", "--system", "trn2.48xlarge", "--ranks", "64", "--sizes", "8KiB", "--skew")
    status, out, _ = run(*common, "--json", "-", "--seed", "5")
    value = json.loads(out)
    (entry,) = value["times"]
    assert (status, value["seed"], entry["nbytes"]) == (0, 5, 8192)
    assert entry["time_us"] < entry["median_us"] < entry["p90_us"]
    assert run(*common, "--json", "-", "--seed", "5")[1] == out


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_plot(run, tmp_path, suffix):
    file = tmp_path / f"plot{suffix}"
    status, _, err = run("collective", "all_gather", "--system", "p5.48xlarge", "--ranks", "8", "--plot", str(file))
    assert (status, "wrote" in err) == (0, True)
    text = file.read_text()
    svg = text[text.index("<svg") : text.index("</svg>") + 6]
    lines = [e for e in ET.fromstring(svg).iter() if e.tag.endswith("polyline")]
    assert len(lines) >= 2  # one chart of times, one of bandwidths
    assert "bus bandwidth" in text


def test_published_times_stand_beside(run, tmp_path):
    columns = ("id,system,chip,library,op,n_ranks,n_nodes,size_bytes,time_us,algbw_GBps,algorithm,stat,quality,source,"
               "date,notes")  # fmt: skip
    (tmp_path / "collectives.csv").write_text(
        f"{columns}\nmine,s,H100,NCCL,all_reduce,8,1,1048576,25.4,,,mean,,s,2026,\n"
    )
    common = ("collective", "all_reduce", "--system", "p5.48xlarge", "--ranks", "8", "--sizes", "1MiB")
    _, out, _ = run(*common, "--data", str(tmp_path))
    assert "25.4 (" in out
    status, out, _ = run("validate", "collectives", "--data", str(tmp_path), "--json", "-")
    assert status == 0
    assert [c["id"] for c in json.loads(out)["cases"]] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "trn9", "--ranks", "8"), "trn9"),
        (("--system", "trn2.48xlarge", "--ranks", "1"), "at least two ranks"),
        (("--system", "trn2.48xlarge", "--ranks", "65", "--systems", "1"), "cannot hold these ranks"),
        (("--system", "trn2.48xlarge", "--ranks", "65"), "different numbers"),
        (("--system", "p5.48xlarge", "--ranks", "8", "--sizes", "1GiB:1KiB"), "from the smaller"),
        (("--system", "p5.48xlarge", "--ranks", "8", "--sizes", "many"), "--sizes"),
        (("--system", "p5.48xlarge", "--ranks", "8", "--sizes", "0"), "at least one byte"),
        (("--system", "p5.48xlarge", "--ranks", "8", "--plot", "a.doc"), ".svg or .html"),
        (("--system", "p5.48xlarge", "--ranks", "8", "--data", "none.csv"), "none.csv"),
    ],
)
def test_bad_input_is_named(run, arguments, message):
    status, _, err = run("collective", "all_reduce", *arguments)
    assert status == 2
    assert message in err


def test_validation_needs_data(run):
    status, _, err = run("validate", "collectives")
    assert status == 2
    assert "TRNSIM_DATA" in err
