"""Contracts against what kernels do: what must cross HBM does, each tensor for itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import drawn

from trnsim.errors import InputError
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.samples import QUANTITIES

ROWS = {"rows": 256, "width": 1024}
HEADS = {"heads": 2, "kv_heads": 1, "depth": 128}
# A use of each operator whose tensors are larger than what else it moves; all others take rows.
USES = {
    "matmul": {"m": 512, "k": 512, "n": 512},
    "matmul_fp8": {"m": 512, "k": 512, "n": 512},
    "matmul_mx": {"m": 512, "k": 512, "n": 512},
    "quantize_mxfp8": {"k": 512, "n": 512},
    "grouped_matmul": {"tokens": 1024, "experts": 4, "k": 512, "n": 512},
    "attention": {**HEADS, "queries": 512, "keys": 512},
    "attention_backward": {**HEADS, "queries": 512, "keys": 512},
    "decode_attention": {**HEADS, "sequences": 4, "context": 1024},
    "rope": {"tokens": 512, "heads": 4, "depth": 128},
    "mlp": {"tokens": 256, "width": 512, "hidden": 1024, "outputs": 512},
    "gated_mlp": {"tokens": 256, "width": 512, "hidden": 1024, "outputs": 512},
    "router": {"tokens": 512, "width": 1024, "experts": 64, "k": 8},
    "embedding": {"tokens": 512, "width": 1024, "rows": 4096},
    "embedding_backward": {"tokens": 512, "width": 1024, "rows": 4096},
    "cross_entropy": {"rows": 128, "vocabulary": 8192},
    "cross_entropy_backward": {"rows": 128, "vocabulary": 8192},
    "adam": {"elements": 1 << 20},
}


@pytest.mark.parametrize("name", contracts())
def test_tensors_cross_hbm(name):
    """A tensor that is given as two operands is loaded once, and the kernel would seem faster than it is."""
    costs, contract = KernelCosts("trn3", use_shipped=False), contracts()[name]
    dtype = contract.dtypes["v4"][0]
    problem = contract.problem(dtype, 1, USES.get(name, ROWS), costs.generation)
    arrays = [argument for argument in contract.arguments(problem) if hasattr(argument, "shape")]
    assert len({id(array) for array in arrays}) == len(arrays)
    moved = costs.sample(contract, problem)[QUANTITIES.index("hbm_bytes")]
    assert moved >= 0.99 * contract.bytes(problem)


@given(
    st.integers(1, 12000), st.integers(0, 12000), st.sampled_from([64, 96, 128]), st.sampled_from([1, 4]),
    st.sampled_from(["bfloat16", "float32"]), st.sampled_from([0, 1]), st.sampled_from([1, 2]),
)  # fmt: skip
@drawn(200)
def test_gradients_of_attention_fit_in_all_of_a_regime(queries, more, depth, group, dtype, causal, cores):
    """At the ends of all axes too: samples lie there."""
    costs, contract = KernelCosts("trn3", cores, use_shipped=False), contracts()["attention_backward"]
    sizes = {"heads": 2 * group, "kv_heads": 2, "queries": queries, "depth": depth, "causal": causal}
    sizes["keys"] = queries + more if causal else more + 1
    try:
        problem = contract.problem(dtype, cores, sizes, costs.generation)
    except InputError:
        return
    axes = contract.axes(problem)
    ends = {axis.name: axis.high or axis.low for axis in axes}
    given_ = {**sizes, **contract.placed(problem, ends)}
    contract.problem(dtype, cores, given_, costs.generation)
    many = problem.resized({name: np.array([size, size]) for name, size in problem.sizes.items()})
    for one, both in zip(contract.regime(problem), contract.regime(many), strict=True):
        assert np.all(both == one)
    at = contract.coordinates(problem)
    queries_end, keys_end = ends.get("queries", 0), ends.get("before", at["before"])
    if axes and at["queries"] <= queries_end:
        assert at["before"] <= keys_end


@pytest.mark.parametrize("rows", [32, 64, 128, 256])
@pytest.mark.parametrize("name", ["layernorm_backward", "rmsnorm_backward"])
def test_cores_that_exchange_tiles_meet_in_one_order(name, rows):
    """Sums over both cores' rows: with orders of their own the two cores waited for each other for ever."""
    contract = contracts()[name]
    problem = contract.problem("float32", 2, {"rows": rows, "width": 256}, "v3")
    assert KernelCosts("trn2", 2).sample(contract, problem)[QUANTITIES.index("time_ps")] > 0
