"""The errors that reports show are the means over the families of docs/validation.md."""

from pathlib import Path

import pytest

from trnsim.hardware import load_chip, load_timing

PAGE = Path(__file__).parents[3] / "docs" / "validation.md"
OLD = (
    "attention, trainium-kernel-fusion, trn2", "mlp, trainium-kernel-fusion, trn2",
    "convolution, asst4-trainium2, trn2", "transposition, asst4-trainium2, trn2", "sum, asst4-trainium2, trn2",
)  # fmt: skip


def errors():
    rows = [
        line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    return {r[0].strip(): float(r[2].strip().rstrip("%")) for r in rows if r[0].strip().endswith("trn2")}


@pytest.mark.parametrize("old", [False, True])
def test_shown_errors(old):
    found = [error for family, error in errors().items() if (family in OLD) is old]
    timing = load_timing(load_chip("trn2"))
    assert len(found) == (5 if old else 24)
    shown = timing.tensorizer_error_percent if old else timing.error_percent
    assert shown == pytest.approx(sum(found) / len(found), abs=0.3)


def test_a_pass_that_does_not_exist():
    from typer.testing import CliRunner

    from trnsim.cli import app

    done = CliRunner().invoke(app, ["validate", "kernels", "--without", "magic"])
    assert "no pass magic" in str(done.exception)
