"""Feed-forward networks against PyTorch in float64, over drawn shapes and formats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import BF16, assert_close, drawn, dtypes, normal, places, run, share_of_peak

from trnsim.kernels.mlp import gated_mlp, mlp

torch = pytest.importorskip("torch", reason="PyTorch is an extra")
F = torch.nn.functional

FUNCTIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


@given(
    st.integers(1, 700), st.integers(1, 300), st.integers(1, 300), st.integers(1, 300),
    st.sampled_from(list(FUNCTIONS)), st.booleans(), dtypes, places,
)  # fmt: skip
@drawn(40)
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


@pytest.mark.parametrize(("where", "least"), [(("trn1", 1), 0.75), (("trn2", 2), 0.9)])
def test_share_of_peak(where, least):
    """At 2048 tokens, 2048 x 5504, in bfloat16. TensorE of trn1 takes 1.155 cycles a row."""
    tokens, width, hidden = 2048, 2048, 5504
    x, gate, down = (np.zeros(shape, BF16) for shape in ((tokens, width), (width, hidden), (hidden, width)))
    share = share_of_peak(gated_mlp, where, "bfloat16", 6 * tokens * width * hidden, x, gate, gate.copy(), down)
    assert share >= least


@pytest.mark.parametrize("where", [("trn1", 1), ("trn2", 2)])
@pytest.mark.parametrize("tokens", [40, 600])
def test_many_blocks(tokens, where, monkeypatch):
    """Several blocks, smaller ones than usual, of tokens, of features, of outputs and of both contractions."""
    for name, value in (("BLOCK_TOKENS", 256), ("BLOCK_K", 128), ("BANKS", 2)):
        monkeypatch.setattr(f"trnsim.kernels.mlp.{name}", value)
    shapes = (tokens, 200), (200, 600), (200, 600), (600, 1100)
    x, gate, up, down = (normal(seed, shape, np.float32) * shape[0] ** -0.5 for seed, shape in enumerate(shapes))
    x, gate, up, down = (a.astype(BF16) for a in (x * tokens**0.5, gate, up, down))
    token, first, second, last = (torch.tensor(a.astype(np.float64)) for a in (x, gate, up, down))
    hidden = F.silu(token @ first) * (token @ second)
    assert_close(run(gated_mlp, where, x, gate, up, down), hidden @ last, BF16, 3, max(1, (hidden @ last).abs().max()))
    wanted = F.gelu(token @ second) @ last
    assert_close(run(mlp, where, x, up, down), wanted, BF16, 3, max(1, wanted.abs().max().item()))


@pytest.mark.parametrize("where", [("trn1", 1), ("trn2", 2)])
def test_tokens_that_do_not_fit(where, monkeypatch):
    """Blocks of 128 tokens; with few of them two cores exchange each block's hidden layer."""
    monkeypatch.setattr("trnsim.kernels.mlp.FIT_BYTES", 4 * 128 * 4)
    x, gate, up, down = (normal(seed, (300, 200), np.float32)[: (300, 200, 200, 200)[seed]] for seed in range(4))
    token, first, second, last = (torch.tensor(a.astype(np.float64)) for a in (x, gate, up, down))
    wanted = (F.silu(token @ first) * (token @ second)) @ last
    assert_close(run(gated_mlp, where, x, gate, up, down), wanted, np.float32, 3)


def test_refused():
    x, weight = np.zeros((4, 8), np.float32), np.zeros((8, 16), np.float32)
    with pytest.raises(AssertionError, match=r"the first weight is \(8, 16\): it must be \(8, 8\)"):
        run(mlp, ("trn2", 1), x, weight, weight)
    with pytest.raises(AssertionError, match="no activation tanh"):
        run(mlp, ("trn2", 1), x, weight, weight.T.copy(), None, None, "tanh")
