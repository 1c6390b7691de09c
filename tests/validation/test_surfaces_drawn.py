"""Surfaces against whole simulations over drawn uses: a few always, all 200 where ``TRNSIM_SURFACE_USES`` says so.

``TRNSIM_SURFACE_USES=200 pytest tests/validation/test_surfaces_drawn.py`` takes hours on a laptop;
``scripts/check_surfaces.py`` runs the same in parts.
"""

import os

import pytest

from trnsim.operators import checks
from trnsim.operators.draws import Draws
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.store import Store

COUNT = int(os.environ.get("TRNSIM_SURFACE_USES", "0"))
QUICK = ("adam", "gated_mlp", "reduce_rows", "rmsnorm", "softmax_backward")


def rows_of(draws, count, store):
    places = {}
    rows = []
    for number in range(count):
        chip, cores, *_ = draws.use(number)
        costs = places.setdefault((chip, cores), KernelCosts(chip, cores, store))
        rows.append(checks.check(costs, draws, number))
    return rows


def test_a_few():
    rows = rows_of(Draws(2, 10_000, 12_000, QUICK), len(QUICK), None)
    assert checks.good(rows), checks.table(rows)
    assert {row["operator"] for row in rows} == set(QUICK)
    assert all(9_000 <= row["instructions"] <= 14_000 for row in rows)


@pytest.mark.skipif(not COUNT, reason="takes hours: TRNSIM_SURFACE_USES=200 asks for it")
def test_all(tmp_path):
    rows = rows_of(Draws(0, 10_000, 1_000_000), COUNT, Store(tmp_path / "store.db"))
    assert checks.good(rows), checks.table(rows)


def test_operators_take_turns():
    names = sorted(contracts())
    draws = Draws(0, 10_000, 1_000_000)
    places = {}
    for number in range(5 * len(names)):
        chip, cores, operator, *_ = draws.use(number)
        places.setdefault(operator, set()).add((chip, cores))
    assert sorted(places) == names
    assert len(places["matmul"]) == 5
    assert places["matmul_mx"] == {("trn3", 1), ("trn3", 2)}


def test_what_is_not_good():
    fine = {"how": "surface", "error": 0.002}
    assert checks.good([fine, {"how": "simulated", "error": 0.0}])
    for bad in ([], [fine, {"how": "surface", "error": -0.05}], [fine, {"how": "refused"}],
                [{"how": "surface", "error": 0.02}]):  # fmt: skip
        assert not checks.good(bad)
