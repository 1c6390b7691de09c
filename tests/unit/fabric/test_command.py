"""``trnsim fabric``: what it says, its JSON and its pictures."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from trnsim.cli import app
from trnsim.fabric.drawing import draw
from trnsim.fabric.topology import topology

testing = pytest.importorskip("typer.testing")
SVG = "{http://www.w3.org/2000/svg}"


def _run(*words):
    result = testing.CliRunner().invoke(app, ["fabric", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_says_bisection_and_diameter():
    text = _run("trn2-ultraserver").stdout
    assert "2,048.0 GB/s one way" in text
    assert "diameter 6 links" in text
    assert "half each way" in text


def test_json_has_the_conflicts_of_sources():
    found = json.loads(_run("trn3-gen2", "--json", "-").stdout)
    assert found["chips"] == 144
    assert {level["name"] for level in found["levels"]} == {"chip", "server", "ultraserver"}
    (fact,) = [one for one in found["facts"] if one["key"] == "chip.scale_up.bandwidth"]
    assert {"2048 GiB/s", "704 GB/s"} <= {other["value"] for other in fact["alternatives"]}


def test_lists_all_systems():
    assert len(json.loads(_run("list", "--json", "-").stdout)["systems"]) >= 28


@pytest.mark.parametrize(
    ("name", "systems", "chips", "lines"),
    [
        ("trn2.48xlarge", 1, 16, 32),
        ("trn2-ultraserver", 1, 64, 4 * 32 + 64),
        ("p5.48xlarge", 2, 8, 8 + 1),
        ("inf2.48xlarge", 1, 12, 12),
        ("inf1.24xlarge", 1, 16, 15),
        ("gb300-nvl72", 1, 72, None),
        ("trn3-ultraserver-gen2", 1, 144, None),
    ],
)
def test_draws_every_chip_and_link(name, systems, chips, lines):
    root = ET.fromstring(draw(topology(name, systems)))
    assert sum("chip" in box.get("class", "") for box in root.iter(f"{SVG}rect")) == chips
    if lines is not None:
        assert len(list(root.iter(f"{SVG}path"))) == lines


def test_draws_what_failed_in_red():
    made = topology("trn2.48xlarge")
    root = ET.fromstring(draw(made.without(links=made.link_between(0, 1), chips=(6,))))
    assert sum(line.get("class") == "dead" for line in root.iter(f"{SVG}path")) == 5
    assert sum("gone" in box.get("class", "") for box in root.iter(f"{SVG}rect")) == 1


def test_failed_links_change_the_figures(tmp_path):
    file = tmp_path / "torus.svg"
    text = _run("trn2.48xlarge", "--fail", "0-1", "--svg", str(file)).stdout
    assert "896.0 GB/s" in text
    assert file.read_text().startswith("<svg")


@pytest.mark.parametrize(("words", "match"), [(("trn9",), "unknown system"), (("trn2", "--fail", "x"), "3-7")])
def test_bad_input(words, match):
    from trnsim.errors import InputError

    with pytest.raises(InputError, match=match):
        _run(*words)
