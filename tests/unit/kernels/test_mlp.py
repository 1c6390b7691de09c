"""Feed-forward networks against PyTorch in float64, over drawn shapes and formats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import BF16, assert_close, dtypes, normal, places, run

import trnsim
from trnsim.hardware import load_chip
from trnsim.kernels.mlp import gated_mlp, mlp

torch = pytest.importorskip("torch", reason="PyTorch is an extra")
F = torch.nn.functional

FUNCTIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


@given(
    st.integers(1, 700), st.integers(1, 300), st.integers(1, 300), st.integers(1, 300),
    st.sampled_from(list(FUNCTIONS)), st.booleans(), dtypes, places,
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_results(tokens, width, hidden, outputs, name, biased, dtype, where):
    x = normal(1, (tokens, width), dtype)
    gate, up = (normal(seed, (width, hidden), dtype) for seed in (2, 3))
    down = normal(4, (hidden, outputs), dtype)
    bias_up, bias_down = (normal(5, hidden, dtype), normal(6, outputs, dtype)) if biased else (None, None)
    # Weights that keep the size of what they multiply: results of size 1.
    gate, up, down = (w * dtype.type(len(w) ** -0.5) for w in (gate, up, down))
    token, first, second, last = (torch.tensor(a.astype(np.float64)) for a in (x, gate, up, down))
    wanted = (FUNCTIONS[name](token @ first) * (token @ second)) @ last
    found = run(gated_mlp, where, x, gate, up, down, name)
    assert_close(found, wanted, dtype, 3, max(1, wanted.abs().max().item()))
    before, after = (0 if b is None else torch.tensor(b.astype(np.float64)) for b in (bias_up, bias_down))
    wanted = FUNCTIONS[name](token @ second + before) @ last + after
    found = run(mlp, where, x, up, down, bias_up, bias_down, name)
    assert_close(found, wanted, dtype, 3, max(1, wanted.abs().max().item()))


@pytest.mark.parametrize(("chip", "cores"), [("trn1", 1), ("trn2", 2)])
def test_share_of_peak(chip, cores):
    """At 2048 tokens, 2048 x 5504, in bfloat16 at least 80 % of TensorE's rate, by our own timing."""
    tokens, width, hidden = 2048, 2048, 5504
    x, gate = np.zeros((tokens, width), BF16), np.zeros((width, hidden), BF16)
    options = trnsim.SimulationOptions(chip=chip, numeric=False)
    call = trnsim.profile(gated_mlp[cores], x, gate, gate.copy(), np.zeros((hidden, width), BF16), options=options)
    peak = load_chip(chip).core.tensor.flops("bfloat16") * cores
    assert 6 * tokens * width * hidden / (call.timeline.total_ps * 1e-12) >= 0.8 * peak


def test_refused():
    x, weight = np.zeros((4, 8), np.float32), np.zeros((8, 16), np.float32)
    with pytest.raises(AssertionError, match=r"the first weight is \(8, 16\): it must be \(8, 8\)"):
        run(mlp, ("trn2", 1), x, weight, weight)
    with pytest.raises(AssertionError, match="no activation tanh"):
        run(mlp, ("trn2", 1), x, weight, weight.T.copy(), None, None, "tanh")
