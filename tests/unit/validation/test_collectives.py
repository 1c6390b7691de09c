"""Rows of published collectives, what is left out by which rule, and the fits on made-up points."""

from __future__ import annotations

import numpy as np
import pytest

from trnsim.errors import InputError
from trnsim.fabric.nccl_constants import nvlink
from trnsim.validation.collectives import fit
from trnsim.validation.collectives.least_squares import fit as least_squares
from trnsim.validation.collectives.report import to_json, validate
from trnsim.validation.collectives.rows import COLUMNS, Row, excluded, read_rows, system_of

GOOD = {
    "id": "a", "system": "H100 single node (8 GPUs)", "chip": "H100", "library": "NCCL", "op": "all_reduce",
    "n_ranks": "8", "n_nodes": "1", "size_bytes": "1048576", "time_us": "25.4", "algbw_GBps": "", "algorithm": "",
    "stat": "mean", "quality": "vendor-measured database (NVIDIA AIConfigurator)", "source": "s", "date": "2026",
    "notes": "",
}  # fmt: skip


def _read(tmp_path, *changes):
    file = tmp_path / "collectives.csv"
    lines = [",".join(COLUMNS)]
    lines += [",".join(f'"{(GOOD | change)[c]}"' for c in COLUMNS) for change in changes]
    file.write_text("\n".join(lines) + "\n")
    return read_rows(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"op": "GEMM (not a collective)"}, "not a collective"),
        ({"time_us": ""}, "no single time or bandwidth"),
        ({"library": "doc statement"}, "a statement or a fit, no measurement"),
        ({"chip": "TPU7x"}, "a chip that is not in the catalogue"),
        ({"library": "nccom-test", "date": "2023-05-01"}, "an early runtime (2023)"),
        ({"notes": "latency includes stream overhead"}, "its source says that the time is not the collective's"),
        ({"n_ranks": ""}, "ranks or nodes are not stated"),
        ({"chip": "unstated Neuron instance"}, "the system is not stated, or not in the catalogue"),
        ({"size_bytes": "0"}, "no bytes"),
        ({"n_nodes": "3", "quality": "known slow config for >2 nodes"}, "a configuration that its source calls slow"),
    ],
)
def test_rules(tmp_path, change, reason):
    (row,) = _read(tmp_path, change)
    assert excluded(row) == reason


def test_thirty_two_ranks_of_an_instance_are_trn1(tmp_path):
    (row,) = _read(tmp_path, {"chip": "unstated Neuron instance", "n_ranks": "32"})
    assert system_of(row) == "trn1.32xlarge"


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "short.csv").write_text("id,system\n1,2\n")
    with pytest.raises(InputError, match="lacks the columns"):
        read_rows(tmp_path / "short.csv")
    (tmp_path / "collectives.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(InputError, match="no rows"):
        read_rows(tmp_path)


def test_least_squares_finds_constants_and_ignores_an_outlier():
    x = np.arange(1.0, 40.0)
    measured = 3.0 + 0.25 * x
    measured[7] *= 5
    found = least_squares(lambda c: c[0] + c[1] * x, measured, np.array([1.0, 1.0]))
    assert found == pytest.approx([3.0, 0.25], rel=0.05)


def _points(scatter=0.0):
    rng = np.random.default_rng(0)
    points = [
        fit.Point(f"{c}{n}{e}", "h100", "NVLink 4", 450e9, c, n, 1, 1 << e, 1.0)
        for c in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
        for n in (2, 4, 8)
        for e in range(9, 30)
    ]
    times = fit.predict_node({"NVLink 4": nvlink("NVLink 4").values}, points)
    return [
        fit.Point(p.id, p.chip, p.technology, p.rate, p.collective, p.ranks, 1, p.nbytes,
                  us * float(np.exp(scatter * rng.standard_normal())))
        for p, us in times.items()
    ]  # fmt: skip


def test_fit_returns_the_constants_that_made_the_points():
    found = fit.fit_node(_points())["NVLink 4"]
    assert found == {name: pytest.approx(value, rel=1e-3) for name, value in nvlink("NVLink 4").values.items()}


def test_fold_does_not_see_what_it_predicts():
    """Four ranks that take ten times as long do not change the constants that predict them."""
    points = [
        fit.Point(p.id, p.chip, p.technology, p.rate, p.collective, p.ranks, 1, p.nbytes,
                  p.us * (10 if p.ranks == fit.HELD_RANKS else 1))
        for p in _points()
    ]  # fmt: skip
    found = fit.held_out_ranks(points).errors()
    assert found.points == 84
    assert found.all == pytest.approx(0.9, rel=1e-3)


def test_scatter_shows_as_error():
    # The mean absolute value of a normal deviate is 0.8 standard deviations.
    assert fit.held_out_ranks(_points(0.05)).errors().all == pytest.approx(0.04, rel=0.3)


def test_one_row_of_your_own(tmp_path):
    found = validate(_read(tmp_path, {}, {"id": "b", "op": "GEMM (not a collective)"}))
    (case,) = found.cases
    assert (case.chip, case.collective, case.support) == ("h100", "all_reduce", "calibrated")
    assert case.error == pytest.approx(case.predicted / 25.4 - 1)
    value = to_json(found)
    assert value["summary"]["folds"] == []
    assert value["excluded"] == [{"reason": "not a collective", "rows": 1, "ids": ["b"]}]


def test_a_row_that_cannot_be_predicted_is_reported(tmp_path):
    found = validate(_read(tmp_path, {"op": "all_around"}))
    assert [name for name, _ in found.failed] == ["a"]
    assert isinstance(found.cases, tuple)


def test_row_is_what_the_file_says(tmp_path):
    (row,) = _read(tmp_path, {"op": "alltoall"})
    assert isinstance(row, Row)
    assert (row.collective, row.ranks, row.nbytes, row.microseconds) == ("all_to_all", 8, 1 << 20, 25.4)
