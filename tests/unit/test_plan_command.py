"""``trnsim plan train`` and ``trnsim validate training`` as a user calls them."""

from __future__ import annotations

import json

import pytest

from trnsim.cli import _guarded, app
from trnsim.commands.plan_report import _NAMES
from trnsim.planner.pricing import KINDS


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.delenv("TRNSIM_DATA", raising=False)

    def call(*arguments):
        status = _guarded(lambda: app([*arguments], standalone_mode=True))
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


COMMON = ("plan", "train", "--model", "llama-3.1-8b", "--global-batch", "64", "--seq", "4096")
TRN2 = (*COMMON, "--system", "trn2.48xlarge", "--chips", "16", "--tp", "8", "--pp", "1", "--micro-batch", "1")


def test_every_kind_of_work_has_a_name():
    assert set(KINDS) <= set(_NAMES)


def test_one_layout(run):
    status, out, _ = run(*TRN2, "--tokens", "100B", "--mtbf", "20000", "--explain")
    assert status == 0
    for text in ("LNC 2", "MFU", "goodput", "capacity-block", "energy (assumed)", "Where a step of", "pruned"):
        assert text in out


def test_json(run):
    status, out, _ = run(*TRN2, "--tokens", "15T", "--json", "-", "--top", "2")
    assert status == 0
    found = json.loads(out)
    (plan, *_) = found["plans"]
    assert found["tokens"] == 15e12
    assert plan["layout"]["lnc"] == 2
    assert plan["implementation"] == "compiler"
    assert plan["tokens_per_s"] == pytest.approx(64 * 4096 / plan["step_time_s"])
    assert plan["memory"]["total"] <= plan["memory"]["capacity"]
    assert plan["cost"]["price_type"] == "capacity-block"
    assert plan["energy"]["support"] == "assumed"


def test_a_system_without_a_price(run):
    status, out, _ = run(*COMMON, "--system", "trn2u.48xlarge", "--chips", "16", "--tp", "8", "--pp", "1",
                         "--against", "p5.48xlarge", "--price", "capacity-block")  # fmt: skip
    assert status == 0
    assert "no cost" in out
    assert "break-even: $" in out


def test_what_if(run):
    fixed = ("--system", "dgx-h100", "--chips", "8", "--tp", "1", "--pp", "1", "--cp", "1", "--micro-batch", "1")
    times = []
    for more in ((), ("--set", "hbm.bandwidth=1TB/s")):
        _, out, _ = run(*COMMON, *fixed, *more, "--json", "-")
        times.append(json.loads(out)["plans"][0])
    assert times[1]["step_time_s"] > times[0]["step_time_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tp", "0"), "at least 1"),
        (("--dtype", "int3"), "no format"),
        (("--recompute", "some"), "no such recomputation"),
        (("--tokens", "many"), "--tokens"),
        (("--implementation", "gpu"), "no implementation"),
        (("--dp", "7"), "do not multiply"),
    ],
)
def test_bad_input_is_named(run, arguments, message):
    status, _, err = run(*COMMON, "--system", "trn2.48xlarge", "--chips", "16", *arguments)
    assert status not in (0, None)
    assert message in err


def test_validation_needs_data(run):
    status, _, err = run("validate", "training")
    assert status not in (0, None)
    assert "TRNSIM_DATA" in err
