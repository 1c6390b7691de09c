"""Published collectives: the targets of the model, and that the constants are what the data gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from measurements import DATA, REASON

from trnsim.validation.collectives import fit
from trnsim.validation.collectives.report import LIMITS, validate
from trnsim.validation.collectives.rows import excluded, read_rows

pytestmark = pytest.mark.skipif(DATA is None, reason=REASON)
SCRIPT = Path(__file__).parents[2] / "scripts" / "fit_collectives.py"


@pytest.fixture(scope="module")
def found():
    return validate(read_rows(DATA))


def test_every_row_is_compared_or_left_out_by_a_rule(found):
    left = sum(len(ids) for _, ids in found.excluded)
    assert len(found.cases) + left == len(read_rows(DATA))
    assert not found.failed
    assert sum(c.set == "one node" for c in found.cases) == 1596


def test_targets(found):
    assert len(found.targets) == 16
    assert [t for t in found.targets if not t.met] == []


def test_limits_are_not_loosened():
    assert LIMITS == {"held_out_large": 0.12, "held_out_small": 0.15, "chip_left_out": 0.25, "two_nodes_large": 0.20}


def test_folds_leave_out_what_they_predict(found):
    by_name = {fold.name: fold for fold in found.folds}
    held = by_name[fit.HELD_OUT].predicted
    assert {p.ranks for p in held} == {4}
    assert {p.chip for p in held} == {"a100", "h100", "h200", "b200", "b300"}
    assert len(held) == 420
    assert len(by_name[fit.LEFT_OUT].predicted) == 1596


def test_everything_on_neuron_is_marked(found):
    seen = {c.id.rsplit("-", 1)[0]: c.support for c in found.cases if c.set == "neuron"}
    assert seen["trn2-64r-ar-8k"] == "extrapolated"


def test_files_are_what_the_data_gives():
    spec = importlib.util.spec_from_file_location("fit_collectives", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.made(str(DATA))
    for name, text in made.items():
        assert (module.FABRIC / name).read_text(encoding="utf-8") == text, name


def test_points_are_those_of_the_rows():
    rows = [r for r in read_rows(DATA) if excluded(r) is None]
    assert len(fit.database_points(rows)) == 1596
    assert len(fit.network_points(rows)) == 68
