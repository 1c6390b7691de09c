"""Line charts: names stay inside the picture, and every axis has ticks."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from trnsim.report.charts import WIDTH, Chart, Series, svg

NAMESPACE = {"s": "http://www.w3.org/2000/svg"}


def drawn(names: list[str], x: list[float]) -> ET.Element:
    series = [Series(name, x, [1.0 + n for n in range(len(x))], color=n) for n, name in enumerate(names)]
    chart = Chart("title", "x", "y", series, lambda v: f"{v:g}", lambda v: f"{v:g}")
    return ET.fromstring(svg([chart]))


def texts(root: ET.Element) -> dict[str, ET.Element]:
    return {one.text or "": one for one in root.findall(".//s:text", NAMESPACE)}


def test_names_that_do_not_fit_one_row_get_more():
    names = [f"tp{n} ep{64 * n} -> tp{n}" for n in range(1, 13)]
    places = texts(drawn(names, [1.0, 8.0]))
    ends = [float(places[name].get("x", "nan")) + 6.6 * len(name) for name in names]
    assert max(ends) <= WIDTH
    rows = {float(places[name].get("y", "nan")) for name in names}
    assert len(rows) > 1
    root = drawn(names, [1.0, 8.0])
    assert max(rows) - 15 <= min(
        float(line.get("y1", "inf")) for line in root.findall(".//s:line[@stroke='#ddd']", NAMESPACE)
    )


@pytest.mark.parametrize("x", [[23.5, 25.4], [1.0, 1.01], [30.0, 70.0], [1.0, 4096.0], [5.0]])
def test_axes_have_ticks(x: list[float]):
    root = drawn(["one"], x)
    low, high = min(x), max(x)
    numbers = [float(text) for text in texts(root) if re.fullmatch(r"[\d.e+-]+", text)]
    assert sum(low / 2 <= number <= high * 2 for number in numbers) >= 2
