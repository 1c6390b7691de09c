"""Errors, naive models and fits, on tables small enough to check by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trnsim.hardware import load_chip, load_timing
from trnsim.validation.cases import Case, Recipe
from trnsim.validation.fit import cross_validate, fit
from trnsim.validation.naive import naive
from trnsim.validation.report import Compared
from trnsim.validation.rows import COLUMNS, Row
from trnsim.validation.run import Prediction
from trnsim.validation.summary import Point, error, errors, overall


@pytest.mark.parametrize(
    ("predicted", "measured", "expected"),
    [(110, 100, 0.1), (80, 100, -0.2), (30, 20, 0.2), (60, 50, 0.2), (45, 40, 0.1)],
)
def test_below_fifty_microseconds_the_error_is_against_fifty(predicted, measured, expected):
    assert error(predicted, measured) == pytest.approx(expected)


def test_a_family_by_hand():
    found = errors([Point(110, 100), Point(180, 200), Point(300, 300), Point(309, 306)])
    assert found.mape == pytest.approx((0.1 + 0.1 + 0 + 3 / 306) / 4)
    assert found.median == pytest.approx((0.1 + 3 / 306) / 2)
    assert found.worst == pytest.approx(0.1)
    assert found.bias == pytest.approx((0.1 - 0.1 + 0 + 3 / 306) / 4)
    assert (found.pairs, found.ordered) == (5, 5)  # 300 and 306 are within 5 %
    assert found.pairs_in_order == 1.0


def test_pairs_in_the_wrong_order_ties_and_other_clocks():
    found = errors([Point(100, 100), Point(100, 200), Point(90, 300), Point(1, 400, clock="other")])
    assert (found.pairs, found.ordered) == (3, 0)
    assert errors([Point(1, 100)]).pairs_in_order is None


def test_the_kernel_predicted_best_costs_what_it_is_slower():
    found = errors([Point(100, 130, "", "a"), Point(110, 100, "", "a"), Point(5, 90, "", "b")])
    assert found.choice == pytest.approx(0.3)
    assert errors([Point(5, 90, "", "b"), Point(5, 90, "", "c")]).choice is None


def test_families_count_the_same_over_all():
    small, large = errors([Point(120, 100)]), errors([Point(100, 100)] * 9)
    found = overall([small, large])
    assert found.mape == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.1)
    assert found.worst == pytest.approx(0.2)
    assert found.cases == 10


times = st.floats(1, 1e5)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=12))
def test_against_numpy(pairs):
    found = errors([Point(p, m) for p, m in pairs])
    predicted, measured = np.array(pairs).T
    signed = (predicted - measured) / np.maximum(measured, 50)
    assert found.mape == pytest.approx(np.abs(signed).mean())
    assert found.median == pytest.approx(np.median(np.abs(signed)))
    assert found.worst == pytest.approx(np.abs(signed).max())
    assert found.bias == pytest.approx(signed.mean())
    apart = [(a, b) for a, b in combinations(pairs, 2) if max(a[1], b[1]) > min(a[1], b[1]) * 1.05]
    assert found.pairs == len(apart)
    assert found.ordered == sum(np.sign(a[0] - b[0]) == np.sign(a[1] - b[1]) for a, b in apart)


def test_naive_models_of_a_kernel_by_hand():
    import trnsim
    from trnsim.nki import isa, language

    def kernel(x):
        tile = language.ndarray((128, 512), dtype=language.float32, buffer=language.sbuf)
        out = language.ndarray((128, 512), dtype=language.float32, buffer=language.shared_hbm)
        isa.dma_copy(dst=tile, src=x)
        for _ in range(10):
            isa.reciprocal(dst=tile, data=tile)
        isa.dma_copy(dst=out, src=tile)
        return out

    call = trnsim.profile(kernel, "f32[128,512]", chip="trn2")
    found = naive(call.traces, load_chip("trn2"))
    timing = load_timing(load_chip("trn2"))
    vector, dma = timing.vector, timing.dma
    # 8 cycles an element; each DMA engine takes 8 packets of 2 KiB for each of two transfers.
    busy = 10 * (vector.cycles(8 * 512) + vector.fixed_ps - vector.overlap_ps)
    moved = 2 * (8 * dma.packet(2048) + dma.transfer_ps)
    assert found.busiest_us == pytest.approx(busy / 1e6, rel=0.02)
    assert found.sum_us - found.busiest_us == pytest.approx(moved / 1e6, rel=1e-6)
    assert found.busiest_us < call.timeline.total_ps / 1e6


def compared(number, family, clock, span, slope, measured):
    """A case of ``family`` of source ``family[0]``; its time grows by ``slope`` with the constant twice as large."""
    recipe = Recipe(family, family[0], "new API", (), f"k{number}", "p")
    text = dict.fromkeys((c for c in COLUMNS if c not in ("source_url_or_repo_path", "value")), "")
    row = Row(**{**text, "unit": "us", "id": str(number)}, source="", value=measured)
    prediction = Prediction(
        span_us=span, spread_us=0, busiest_us=span, sum_us=span, schedule="nki", support="calibrated",
        support_reason="", bound_by="", launches=1, instructions=1, spills=0, findings=0, seconds=0,
        slopes=(("dma.transfer", slope),),
    )  # fmt: skip
    return Compared(Case(recipe, "trn2", 1, clock, (row,)), prediction, 0.0)


def made(factor, shift):
    """Twelve cases whose measured times have ``dma.transfer`` times ``factor``, and one clock ``shift`` later."""
    found = []
    for n in range(12):
        clock = "benchmark_p50" if n % 3 == 0 else "profiler_total"
        span, slope = 100.0 + 37 * n, 10.0 + 5 * (n % 4)
        measured = span + (factor - 1) * slope + (shift if n % 3 == 0 else 0)
        found.append(compared(n, ("A one", "A two", "B one")[n // 4], clock, span, slope, measured))
    return found


@given(st.floats(0.5, 2.0), st.floats(-20, 20))
def test_a_fit_finds_the_constants_that_made_the_times(factor, shift):
    found = fit(made(factor, shift))
    assert found.factors["dma.transfer"] == pytest.approx(factor, abs=1e-6)
    assert found.shifts == {"benchmark_p50": pytest.approx(shift, abs=1e-6)}


def test_families_and_sources_that_are_left_out_are_not_seen():
    cases = made(1.3, 5.0)
    odd = [compared(20 + n, "B odd", "profiler_total", 100.0, 0.0, 150.0) for n in range(3)]
    _, left = cross_validate([*cases, *odd])
    by_name = {item.family.partition(",")[0]: item for item in left}
    assert by_name["A one"].without_family == pytest.approx(0, abs=1e-9)
    assert by_name["A two"].without_source == pytest.approx(0, abs=1e-9)
    assert by_name["B odd"].fitted == pytest.approx(1 / 3)
    alone, (only,) = cross_validate(cases[:4])
    assert only.without_family is None
    assert only.without_source is None
    assert set(alone.shifts) == {"benchmark_p50"}


def test_kernels_of_other_generations_are_not_refitted():
    case = compared(1, "A one", "profiler_total", 100.0, 1.0, 100.0)
    assumed = Compared(case.case, Prediction(**{**vars(case.prediction), "slopes": ()}), 0.0)
    assert cross_validate([assumed])[1] == []
