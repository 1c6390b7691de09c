"""Contracts against what kernels do: what must cross HBM does, each tensor for itself."""

import pytest

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
