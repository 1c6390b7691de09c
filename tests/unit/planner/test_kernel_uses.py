"""Uses priced by kernels: a surface, a small simulation, nearest sizes, parts, and compiled code, which is named."""

from __future__ import annotations

import pytest

from trnsim.errors import InputError
from trnsim.operators.compiled import CompilerCosts
from trnsim.operators.kernel_costs import KernelCosts
from trnsim.planner import kernel_uses
from trnsim.planner.kernel_uses import KernelUses
from trnsim.planner.uses import UseCosts
from trnsim.workloads.operators import Use

PRODUCT = {"m": 2048, "k": 4096, "n": 4096, "contract_lhs": 1}


@pytest.fixture(scope="module")
def uses():
    found = KernelUses("trn2", 2)
    adam = found.kernels.contract("adam", "bfloat16")
    if not found.kernels.source.entries(adam):
        pytest.skip("the shipped surfaces are stale, which test_shipped.py reports: make surfaces")
    return found


def known_adam(kernels):
    """Elements of an optimiser step that a shipped surface has the samples for."""
    sizes = (2**n for n in range(16, 31))
    return next(size for size in sizes if kernels.known("adam", "bfloat16", elements=size) is not None)


@pytest.mark.parametrize(
    ("name", "sizes", "how", "support"),
    [
        # A shipped surface with its samples, as KernelCosts has it.
        ("adam", {}, "surface", None),
        # A decode product takes milliseconds to simulate.
        ("matmul", {"m": 3, "k": 512, "n": 384, "contract_lhs": 1}, "simulated", None),
        # Too large for that.
        ("rmsnorm", {"rows": 100_000, "width": 3072}, "neighbours", "extrapolated"),
        ("grouped_matmul", {"tokens": 4096, "k": 1024, "n": 512, "experts": 8}, "neighbours", "extrapolated"),
    ],
)
def test_how(uses, name, sizes, how, support):
    sizes = sizes or {"elements": known_adam(uses.kernels)}
    found = uses.cost(name, "bfloat16", **sizes)
    assert found.how == how
    assert found.implementation == "kernel"
    assert found.time_ps > 0
    if support is not None:
        assert found.support == support
        assert name in found.reason
    if how in ("surface", "simulated"):
        own = KernelCosts("trn2", 2)
        alone = own.cost(name, "bfloat16", **sizes) if how == "surface" else own.simulated(name, "bfloat16", **sizes)
        assert found.time_ps == alone.time_ps


def test_parts(uses):
    """What has kernels of its parts takes as long as they do, one after the other."""
    found = uses._parts("grouped_matmul", "bfloat16", {"tokens": 4096, "k": 1024, "n": 512, "experts": 8})
    one = uses.cost("matmul", "bfloat16", **kernel_uses._product(512, 1024, 512))
    assert (found.how, found.support) == ("parts", "extrapolated")
    assert found.time_ps == pytest.approx(8 * one.time_ps)


def test_what_no_kernel_stands_for_is_compiled_and_named(uses):
    sizes = {
        "heads": 4,
        "kv_heads": 4,
        "queries": 512,
        "keys": 512,
        "depth": 200,
        "causal": 1,
    }  # deeper than the kernel's
    found = uses.cost("attention_backward", "bfloat16", **sizes)
    assert found.time_ps == CompilerCosts("trn2", 2).cost("attention_backward", "bfloat16", **sizes).time_ps
    assert "attention_backward: no kernel" in found.reason


@pytest.mark.parametrize("dtype", ["mxfp4", "mxfp8", "float8"])
def test_narrow_formats_are_compiled_as_they_are(dtype):
    sizes = {"tokens": 4096, "k": 2880, "n": 720, "experts": 32}
    compiled = CompilerCosts("trn3", 2).cost("grouped_matmul", dtype, **sizes)
    assert KernelUses("trn3", 2, best=True).cost("grouped_matmul", dtype, **sizes).time_ps <= compiled.time_ps


def test_nothing_knows_it(uses):
    with pytest.raises(InputError):
        uses.cost("matmul", "bfloat16", m=0, k=1, n=1)


def test_best_is_the_faster(uses):
    best = KernelUses("trn2", 2, best=True)
    compiled = CompilerCosts("trn2", 2)
    for name, sizes in (
        ("matmul", PRODUCT),
        ("adam", {"elements": 2**24}),
        ("rmsnorm", {"rows": 100_000, "width": 3072}),
    ):
        others = {k: v for k, v in sizes.items() if k != "contract_lhs"}
        expected = min(uses.cost(name, "bfloat16", **sizes).time_ps, compiled.cost(name, "bfloat16", **others).time_ps)
        assert best.cost(name, "bfloat16", **sizes).time_ps == expected


@pytest.mark.parametrize(
    "sizes",
    [{"m": 3000, "k": 5000, "n": 3000}, {"m": 8192, "k": 4096, "n": 1536}, {"m": 1024, "k": 14336, "n": 4096}],
)
def test_near_sizes_are_near_the_simulation(uses, sizes):
    """The nearest sizes are told with their error between each other; large products keep within a fifth."""
    contract = uses.kernels.contract("matmul", "bfloat16")
    problem = contract.problem("bfloat16", 2, {**sizes, "contract_lhs": 1}, "v3")
    near = uses._near(contract, problem)
    whole = uses.kernels.simulated("matmul", "bfloat16", **sizes, contract_lhs=1)
    assert near.time_ps == pytest.approx(whole.time_ps, rel=0.2)


def test_gradients_contract_other_dimensions(monkeypatch):
    """Weights' gradients contract tokens, inputs' gradients the outputs."""
    asked = []
    costs = UseCosts("trn2", "kernel", 2)
    inner = costs._costs

    def cost(name, dtype, **given):
        asked.append((given["contract_lhs"], given["contract_rhs"]))
        return inner.cost(name, dtype, **given)

    class Spy:
        pass

    spy = Spy()
    spy.cost = cost
    monkeypatch.setattr(costs, "_costs", spy)
    monkeypatch.setattr(costs, "_known", {})
    for where in ("mlp.up", "mlp.up.input", "mlp.up.weight"):
        costs.cost(Use("matmul", {"m": 64, "k": 128, "n": 256}, "bfloat16", where))
    assert asked == [(1, 0), (1, 1), (0, 0)]


@pytest.mark.parametrize(("chip", "name"), [("trn2", "gpu"), ("h100", "kernel")])
def test_unknown_implementation(chip, name):
    with pytest.raises(InputError, match="no implementation"):
        UseCosts(chip, name, 1)
