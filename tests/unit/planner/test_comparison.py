"""Systems side by side: one price basis, and break-even prices where there is none."""

import json

import pytest
from typer.testing import CliRunner

from trnsim.cli import app
from trnsim.commands.plan_serve import make_plan
from trnsim.errors import InputError
from trnsim.hardware import load_system
from trnsim.planner.comparison import basis_of, compare
from trnsim.planner.serving_search import Load

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
    done = CliRunner().invoke(app, [*words, "--systems", "trn2.48xlarge,p5.48xlarge"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [s["system"] for s in document["systems"]] == ["trn2.48xlarge", "p5.48xlarge"]
    assert all(s["plan"]["tpot_ms"] > 0 for s in document["systems"])
