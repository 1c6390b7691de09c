"""Moving a served model: each pair of systems on a price basis of its own."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from trnsim.cli import app
from trnsim.commands.plan_serve import make_plan
from trnsim.errors import InputError
from trnsim.hardware import load_system
from trnsim.planner.migration import migrate, shared_bases
from trnsim.planner.serving_search import Load

LOAD = Load(users=16, input_tokens=512, output_tokens=128)


def moved(source="inf2.48xlarge", targets=("trn1.32xlarge", "trn2.48xlarge", "trn3-ultraserver-gen2"), kind=""):
    return migrate(make_plan("llama-3.1-8b", source, "bf16", max_model_len=640), source, targets, LOAD, kind)


@pytest.mark.parametrize(
    ("target", "type_", "date"),
    [("trn1.32xlarge", "on-demand", "2026-07-20"), ("trn2.48xlarge", "spot", "2026-10-03")],
)
def test_each_pair_shares_a_basis(target, type_, date):
    (move,) = moved(targets=(target,)).moves
    assert (move.money.basis.type, str(move.money.basis.date)) == (type_, date)
    for name, hourly in (("inf2.48xlarge", move.money.source_hourly), (target, move.money.target_hourly)):
        assert any(
            p.type == type_ and str(p.date) == date and p.usd_per_hour == hourly for p in load_system(name).prices
        )


def test_costs_are_of_the_chips_share():
    found = moved(targets=("trn2.48xlarge",))
    money = found.moves[0].money
    for best, system, hourly, cost in (
        (found.best, "inf2.48xlarge", money.source_hourly, money.source_million),
        (found.moves[0].best, "trn2.48xlarge", money.target_hourly, money.target_million),
    ):
        seconds = 1e6 / best.output_tokens_per_second
        assert cost == pytest.approx(seconds / 3600 * hourly * best.chips / load_system(system).chip_count)


def test_without_a_shared_price_the_break_even_one_is_told():
    found = moved(targets=("trn3-ultraserver-gen2",))
    (move,) = found.moves
    assert move.money is None
    for basis, hourly in move.break_even.items():
        price = load_system("inf2.48xlarge").price(basis.type)
        now = price.usd_per_hour / 12 / found.best.output_tokens_per_second_per_chip
        there = hourly / 144 / move.best.output_tokens_per_second_per_chip
        assert there == pytest.approx(now)


def test_no_basis_is_averaged():
    shared = shared_bases(load_system("inf2.48xlarge"), load_system("trn1.32xlarge"))
    assert [(b.type, str(b.date)) for b in shared] == [
        ("on-demand", "2026-07-20"), ("spot", "2026-10-03"), ("reserved-3y", "2025-10-17"),
    ]  # fmt: skip
    assert not shared_bases(load_system("inf2.48xlarge"), load_system("trn2.48xlarge"), "on-demand")


@pytest.mark.parametrize(
    ("source", "kind"), [("trn3-ultraserver-gen2", ""), ("inf2.48xlarge", "capacity-block"), ("trn9", "")]
)
def test_bad_input(source, kind):
    with pytest.raises(InputError):
        moved(source=source if source != "trn9" else "inf2.48xlarge",
              targets=("trn9",) if source == "trn9" else ("trn1.32xlarge",), kind=kind)  # fmt: skip


def test_command():
    words = ["migrate", "--from", "inf2.48xlarge", "--model", "llama-3.1-8b", "--isl", "512", "--osl", "128"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for text in ("on-demand, 2026-07-20", "spot, 2026-10-03", "its cost is refused"):
        assert text in done.output
    document = json.loads(CliRunner().invoke(app, [*words, "--json", "-"]).stdout)
    assert [t["system"] for t in document["targets"] if t["cost"]] == ["trn1.32xlarge", "trn2.48xlarge"]
    assert all(t["break_even"] for t in document["targets"] if not t["cost"])
