"""The catalogue on a screen and as JSON."""

import json

from rich.console import Console

from trnsim.hardware import chip_names, load_chip
from trnsim.report.chips import chip_details, chips_json, chips_table


def render(item, width=100):
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(item)
    return capture.get()


def test_the_table_shows_all_chips_in_100_columns():
    text = render(chips_table(), width=200)
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert "…" not in text
    assert text.isascii()
    for name in chip_names():
        assert any(line.startswith(f"{name} ") for line in lines)
    assert "2.4/0.96/1.2/1.2" in text


def test_the_table_of_some_chips():
    text = render(chips_table(["Trainium2", "h100"]))
    assert "trn2" in text
    assert "trn3" not in text


def test_details_give_source_date_alternatives_and_reason():
    text = render(chip_details("trn3"))
    assert max(map(len, text.splitlines())) <= 100
    for part in ("2560 GB/s", "2048 GiB/s", "704 GB/s", "contradict", "trn3-arch.rst", "2026-03-09", "bfloat16 629.1"):
        assert part in text
    assert "rental-3y: 1.3 USD/h on 2026-04-03" in render(chip_details(load_chip("h100")))


def test_json_is_plain_and_complete():
    data = json.loads(json.dumps(chips_json()))["chips"]
    assert set(data) == set(chip_names())
    trn2 = data["trn2"]
    assert trn2["core"]["engines"]["vector"]["clock_hz"] == 960_000_000
    assert trn2["matmul_flops"]["bfloat16"] == 2 * 128 * 128 * 2.4e9 * 8
    assert trn2["facts"]["hbm.bandwidth"]["alternatives"][0]["value"] == "3 TB/s"
    assert "path" not in trn2
    assert set(chips_json(["trn1"])["chips"]) == {"trn1"}
