"""Surfaces against whole simulations, and the store they are kept in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError, UnsupportedError
from trnsim.kernels.contract import Contract
from trnsim.operators import samples, surface
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.samples import QUANTITIES
from trnsim.operators.store import Store

MATMUL = contracts()["matmul"]


def synthetic(blocks=None, regime=lambda _: (), flops=1):
    """A kernel of two loops, blocks of 10 and 20."""
    blocks = blocks or {"a": 10, "b": 20}
    return Contract(
        name="synthetic", kernel=None, sizes=("a", "b"), dtypes=("float32",), arguments=lambda _: (),
        blocks=lambda _: blocks, regime=regime, flops=lambda _: flops, bytes=lambda _: 1,
    )  # fmt: skip


def sample_of(late):
    asked = []

    def sample(problem):
        a, b = problem.sizes["a"] // 10, problem.sizes["b"] // 20
        rest = problem.sizes["a"] % 10 + 3 * (problem.sizes["b"] % 20)
        whole = 1e6 + 1000 * a + 2000 * b + 70 * a * b + rest + 1e5 * min(a, late)
        asked.append((a, b))
        return np.array([whole] + [a * b] * (len(QUANTITIES) - 1), float), "assumed", "made up"

    return sample, asked


@given(st.integers(1, 400), st.integers(1, 800), st.integers(0, 2))
@settings(deadline=None)
def test_a_bilinear_time_is_found_again(a, b, late):
    contract = synthetic()
    sample, asked = sample_of(late)
    problem = contract.problem("float32", 1, {"a": a, "b": b})
    made = surface.build(contract, problem, sample)
    assert made.covers(problem)
    assert made.evaluate(problem)[0] == pytest.approx(sample(problem)[0][0])
    assert max((x for x, _ in asked[:-1]), default=0) <= max(surface.SETTLING + 3, a // 10)


def test_a_surface_covers_what_differs_in_iterations_only():
    contract = synthetic()
    made = surface.build(contract, contract.problem("float32", 1, {"a": 105, "b": 205}), sample_of(0)[0])
    for a, b, covered in ((205, 1005, True), (204, 1005, False), (205, 1006, False), (15, 25, True), (5, 205, False)):
        assert made.covers(contract.problem("float32", 1, {"a": a, "b": b})) is covered


def test_no_surface_reaches_into_another_regime():
    contract = synthetic(regime=lambda p: (p.sizes["a"] >= 50,))
    sample, asked = sample_of(0)
    surface.build(contract, contract.problem("float32", 1, {"a": 200, "b": 25}), sample)
    assert min(a for a, _ in asked) >= 5 or {a for a, _ in asked} == {20}


def test_what_never_settles_is_simulated_whole():
    contract = synthetic()

    def sample(problem):
        return np.array([float(problem.sizes["a"]) ** 3] * len(QUANTITIES)), "assumed", ""

    problem = contract.problem("float32", 1, {"a": 200, "b": 7})
    made = surface.build(contract, problem, sample)
    assert not made.blocks
    assert made.evaluate(problem)[0] == 200.0**3


@pytest.mark.parametrize(
    ("cores", "sizes"),
    [
        (1, {"m": 6400, "k": 640, "n": 3200}),
        (2, {"m": 512, "k": 6016, "n": 2048}),
        (1, {"m": 300, "k": 700, "n": 4000}),
    ],
)
def test_matmul(cores, sizes):
    found = KernelCosts("trn2", cores).cost("matmul", "bfloat16", **sizes)
    whole, support, _ = samples.run(MATMUL, MATMUL.problem("bfloat16", cores, sizes), "trn2")
    assert found.time_ps == pytest.approx(whole[0], rel=0.01)
    assert found.hbm_bytes == whole[1]
    assert found.support == support
    assert found.bound == "tensor"


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ({"m": 1, "k": 1}, "no n"),
        ({"m": 1, "k": 1, "n": 1, "o": 1}, "unknown o"),
        ({"m": 0, "k": 1, "n": 1}, "at least 1"),
        ({"m": 1, "k": 1, "n": 1, "contract_lhs": 2}, "contract_lhs"),
    ],
)  # fmt: skip
def test_bad_uses(given_, text):
    with pytest.raises(InputError, match=text):
        KernelCosts("trn2").cost("matmul", "bfloat16", **given_)


def test_bad_places():
    with pytest.raises(InputError, match="no float8"):
        KernelCosts("trn2").cost("matmul", "float8_e4m3", m=1, k=1, n=1)
    with pytest.raises(InputError, match="no kernel for 'matmool'"):
        KernelCosts("trn2").cost("matmool", "bfloat16")
    with pytest.raises(InputError, match="logical cores of 2"):
        KernelCosts("trn1", 2)
    with pytest.raises(InputError, match="no NeuronCore"):
        KernelCosts("h100")


def test_what_is_too_large():
    contract = synthetic(flops=10**15)
    with pytest.raises(UnsupportedError, match="too large"):
        surface.build(contract, contract.problem("float32", 1, {"a": 5, "b": 7}), sample_of(0)[0])


def test_a_store_gives_back_what_it_got(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "surfaces.db"
    sizes = {"m": 300, "k": 700, "n": 4000}
    first = KernelCosts("trn2", 1, Store(path), use_shipped=False).cost("matmul", "bfloat16", **sizes)
    monkeypatch.setattr(surface, "build", lambda *_: pytest.fail("made again"))
    assert KernelCosts("trn2", 1, Store(path), use_shipped=False).cost("matmul", "bfloat16", **sizes) == first
    monkeypatch.setattr("trnsim.operators.decides.code_of", lambda files: "another")
    with pytest.raises(pytest.fail.Exception):
        KernelCosts("trn2", 1, Store(path), use_shipped=False).cost("matmul", "bfloat16", **sizes)
