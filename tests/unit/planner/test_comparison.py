"""Systems side by side: one price basis, and break-even prices where there is none."""

import json

import pytest
from typer.testing import CliRunner

from trnsim.cli import app
from trnsim.commands.plan_serve import make_plan
from trnsim.errors import InputError
from trnsim.hardware import load_system
from trnsim.hardware.whatif import systems_with
from trnsim.planner.comparison import VARIANTS, basis_of, compare, compare_training
from trnsim.planner.search import Wanted
from trnsim.planner.serving_search import Load
from trnsim.workloads import Layout, load_model

LOAD = Load(users=16, input_tokens=512, output_tokens=128)
SYSTEMS = ("trn2.48xlarge", "p5.48xlarge", "trn3-ultraserver-gen2")


def rows(**options):
    return compare(make_plan("llama-3.1-8b", SYSTEMS[0], "bf16", max_model_len=640), SYSTEMS, LOAD, **options)


def test_costs_are_of_one_type_and_date():
    found, basis = rows()
    assert (basis.type, basis.date) == ("capacity-block", "2026-07-22")
    for row in found[:2]:
        assert row.price is not None
        assert (row.price.type, str(row.price.date)) == (basis.type, basis.date)
        hourly = row.price.usd_per_hour / load_system(row.system).chip_count
        assert row.usd_per_million == pytest.approx(hourly / 3600 / row.best.output_tokens_per_second_per_chip * 1e6)
    assert found[2].usd_per_million is None


def test_at_the_break_even_price_tokens_cost_the_same():
    found, _ = rows()
    trn3 = found[2]
    for row in found[:2]:
        hourly = trn3.break_even[row.system] / load_system(trn3.system).chip_count
        cost = hourly / 3600 / trn3.best.output_tokens_per_second_per_chip * 1e6
        assert cost == pytest.approx(row.usd_per_million)


def test_a_system_without_a_plan_says_why():
    plan = make_plan("llama-3.1-405b", "trn2.48xlarge", "bf16", max_model_len=640)
    found, _ = compare(plan, ("trn2.48xlarge", "inf2.xlarge"), LOAD)
    assert found[0].best is not None
    assert found[1].best is None
    assert "fit" in found[1].why


@pytest.mark.parametrize(
    ("systems", "kind", "date"),
    [(("trn2.48xlarge",), "", ""), (SYSTEMS, "on-demand", "1999-01-01"), (("trn2.48xlarge", "trn9"), "", "")],
)
def test_bad_input(systems, kind, date):
    with pytest.raises(InputError):
        compare(make_plan("llama-3.1-8b", "trn2.48xlarge"), systems, LOAD, None, kind, date)


def test_no_price_at_all():
    assert basis_of([load_system("trn3-ultraserver-gen1"), load_system("trn3-ultraserver-gen2")]).date == ""


def test_command():
    words = [
        "compare",
        "--model",
        "llama-3.1-8b",
        "--dtype",
        "bf16",
        "--concurrency",
        "8",
        "--isl",
        "256",
        "--osl",
        "64",
        "--json",
        "-",
    ]
    done = CliRunner().invoke(app, [*words, "--systems", "trn2.48xlarge,p5.48xlarge", "--only", "as-shipped"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [s["system"] for s in document["systems"]] == ["trn2.48xlarge", "p5.48xlarge"]
    assert document["kind"] == "serving"
    assert all(s["plan"]["tpot_ms"] > 0 for s in document["systems"])


def test_best_kernel_beside_as_shipped_and_curves():
    found, _ = rows(variants=tuple(VARIANTS), curve=(1, 8, 64))
    assert [(row.system, row.variant) for row in found] == [(s, v) for s in SYSTEMS for v in VARIANTS]
    for shipped, best in zip(found[::2], found[1::2], strict=True):
        assert best.tokens_per_second_per_chip >= shipped.tokens_per_second_per_chip
    for row in found:
        # A frontier: more throughput only for a longer TPOT.
        points = [(e.state.tpot, e.output_tokens_per_second_per_chip) for e in row.curve]
        assert points == sorted(points)
        assert [y for _, y in points] == sorted(y for _, y in points)
    # Each variant breaks even with the same variant of the others.
    even = [row for row in found if row.break_even is not None]
    assert [row.variant for row in even] == list(VARIANTS)
    assert even[0].break_even != even[1].break_even


def training(systems, **options):
    wanted = Wanted(
        model=load_model("llama-3.1-8b"), system="trn2.48xlarge", chips=16, sequence=4096, global_batch=64,
        base=Layout(zero=1), fixed={"tp": 8, "micro_batch": 1, "cp": 1},
    )  # fmt: skip
    return compare_training(wanted, systems, **options)


def test_training_pays_whole_systems():
    found, basis = training(("trn2.48xlarge", "p5.48xlarge", "trn2u.48xlarge"))
    assert (basis.type, basis.date) == ("capacity-block", "2026-07-22")
    for row in found[:2]:
        count = row.best.chips / load_system(row.system).chip_count
        assert count == int(count)
        hourly = row.price.usd_per_hour * count
        assert row.usd_per_million == pytest.approx(hourly / 3600 / row.best.tokens_per_second * 1e6)
    refused = found[2]
    assert refused.usd_per_million is None
    for row in found[:2]:
        cost = refused.break_even[row.system] * refused.systems / 3600 / refused.best.tokens_per_second * 1e6
        assert cost == pytest.approx(row.usd_per_million)


def test_what_if_of_one_of_them():
    names = systems_with(["trn2.48xlarge", "p5.48xlarge"], ["trn2.hbm.bandwidth=6TB/s"])
    assert names == ["trn2.48xlarge[hbm.bandwidth=6TB/s]", "p5.48xlarge"]
    changed, usual = (load_system(n) for n in (names[0], "trn2.48xlarge"))
    assert changed.chip.hbm.bytes_per_second == 6e12
    assert changed.prices == usual.prices
    with pytest.raises(InputError, match="none of the systems"):
        systems_with(["p5.48xlarge"], ["trn2.hbm.bandwidth=6TB/s"])


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_picture(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    target = tmp_path / f"compared.{suffix}"
    words = ["compare", "--train", "--model", "llama-3.1-8b", "--chips", "8", "--global-batch", "8", "--seq", "4096",
             "--only", "as-shipped", "--systems", "dgx-h100,dgx-b200", "--plot", str(target)]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    data = target.read_bytes()
    assert data.startswith({"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!doctype html"}[suffix])
    if suffix != "png":
        assert b"dgx-b200" in data
    assert CliRunner().invoke(app, words).exit_code == 0
    assert target.read_bytes() == data


def test_bad_picture():
    from trnsim.commands.compare_plot import check

    with pytest.raises(InputError):
        check("compared.pdf")
