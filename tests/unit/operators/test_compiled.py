"""The ``compiler`` implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.operators.compiled import CompilerCosts, Fit, Rates, predict
from trnsim.operators.work import OPERATORS

SIZES = {"m": 512, "k": 1024, "n": 2048}
SIZE = st.integers(1, 20_000)


def test_times_add_up_as_squares():
    rates = Rates(1e12, 1e11)
    assert predict(Fit(5, 0.5, 0.5), rates, 1.5e6, 2e5) == pytest.approx(5 + 5)  # 3 us and 4 us
    assert predict(Fit(5, 1, 1), rates, 0, 0) == 5


def test_support():
    here = CompilerCosts("trn3", 2).cost("matmul", "bfloat16", **SIZES)
    assert (here.support, here.error_percent) == ("calibrated", 5.79)
    there = CompilerCosts("trn2", 2).cost("matmul", "bfloat16", **SIZES)
    assert (there.support, there.error_percent) == ("extrapolated", None)
    assert "trn3" in there.reason
    assert there.time_ps > here.time_ps
    other = CompilerCosts("trn3", 2).cost("rmsnorm", "bfloat16", rows=4096, width=4096)
    assert (other.support, other.error_percent) == ("assumed", None)
    assert "no compiled rmsnorm has been published" in other.reason


@pytest.mark.parametrize("name", sorted(OPERATORS))
@pytest.mark.parametrize(("chip", "cores"), [("trn1", 1), ("inf2", 1), ("trn2", 2), ("trn3", 2)])
def test_every_operator_takes_at_least_its_roofline(name, chip, cores):
    costs = CompilerCosts(chip, cores)
    sizes = dict.fromkeys(OPERATORS[name].sizes, 512)
    cost = costs.cost(name, "bfloat16", **sizes)
    assert cost.time_ps > max(cost.busy_ps.values()) > 0
    many = costs.costs(name, "bfloat16", **{n: np.full(3, v) for n, v in sizes.items()})
    np.testing.assert_allclose(many.time_ps, [cost.time_ps] * 3)
    assert many.hbm_bytes.tolist() == [cost.hbm_bytes] * 3


@given(SIZE, SIZE, SIZE)
@settings(deadline=None, max_examples=50)
def test_more_never_takes_less(m, k, n):
    sizes = {"m": [m, m + 1, m, m], "k": [k, k, k + 1, k], "n": [n, n, n, n + 1]}
    times = CompilerCosts("trn2").costs("matmul", "bfloat16", **sizes).time_ps
    assert (times >= times[0]).all()


@pytest.mark.parametrize(
    ("chip", "cores", "name", "dtype", "text"),
    [
        ("h100", 1, "matmul", "bfloat16", "no NeuronCore"),
        ("trn1", 2, "matmul", "bfloat16", "no logical cores of 2"),
        ("trn2", 1, "matmul", "float4_e2m1fn_x4", "TensorE of trn2 has no float4"),
        ("trn2", 1, "dance", "bfloat16", "no operator 'dance'"),
    ],
)
def test_what_is_not_known(chip, cores, name, dtype, text):
    with pytest.raises(InputError, match=text):
        CompilerCosts(chip, cores).cost(name, dtype, **SIZES)
