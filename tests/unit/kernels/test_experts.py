"""Router and grouped matmul of a mixture of experts against PyTorch in float64, over drawn shapes and formats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import assert_close, drawn, dtypes, normal, places, run

import trnsim
from trnsim.kernels.grouped_gradient import grouped_weight_gradient
from trnsim.kernels.grouped_matmul import grouped_matmul
from trnsim.kernels.router import router

torch = pytest.importorskip("torch", reason="PyTorch is an extra")


def tensor(array):
    return torch.from_numpy(np.asarray(array, np.float64))


@given(
    st.integers(1, 300), st.integers(1, 700), st.integers(1, 600), st.integers(1, 20), st.booleans(), st.booleans(),
    st.sampled_from(["softmax", "sigmoid"]), st.sampled_from([1.0, 2.5]), dtypes, places,
)  # fmt: skip
@drawn(20)
def test_router(size, tokens, experts, k, biased, normalized, function, scale, dtype, where):
    k = min(k, experts)
    x = normal(1, (size, tokens), dtype)
    w = (normal(2, (size, experts), np.float32) * size**-0.5).astype(dtype)
    bias = normal(3, (1, experts), np.float32) if biased else None
    found = run(router, where, x, w, k, bias, function, normalized, scale, label=dtype.name)
    weights, chosen = (np.asarray(part) for part in found)
    logits = tensor(x).T @ tensor(w)
    scores = torch.sigmoid(logits) if function == "sigmoid" else torch.softmax(logits, 1)
    ranked = scores if bias is None else scores + tensor(bias)
    best, _ = torch.topk(ranked, k, 1)
    # Which of two nearly equal experts comes first is rounding's choice; what they score is not.
    places = torch.from_numpy(chosen.astype(np.int64))
    assert (torch.sort(places, 1).values.diff(dim=1) > 0).all()
    assert torch.allclose(ranked.gather(1, places), best, rtol=0, atol=1e-6)
    wanted = scores.gather(1, places)
    if normalized:
        wanted = wanted / wanted.sum(1, keepdim=True)
    assert_close(weights, scale * wanted, np.float32, 0, 1, sums=1e-5)


@given(
    st.integers(1, 900), st.integers(1, 260), st.integers(1, 700), st.sampled_from([1, 2, 7, 40, 150]),
    st.sampled_from([128, 256, 512]), st.integers(0, 1), dtypes, places, st.integers(0, 99),
)  # fmt: skip
@drawn(15)
def test_grouped_matmul(tokens, size, width, experts, block, contract_w, dtype, where, seed):
    """Any division of the tokens, experts without any among them; and the gradient of the weights."""
    x, w = normal(1, (tokens, size), dtype), normal(2, (experts, size, width), dtype)
    given_w = np.ascontiguousarray(w.transpose(0, 2, 1)) if contract_w else w
    gradient = normal(3, (tokens, width), dtype)
    inner = np.sort(np.random.default_rng(seed).integers(0, tokens + 1, experts - 1))
    offsets = np.array([[0, *inner, tokens]], np.int32)
    found = run(grouped_matmul, where, x, given_w, offsets, block, contract_w)
    parts = list(zip(offsets[0, :-1], offsets[0, 1:], tensor(w), strict=True))
    wanted = torch.cat([tensor(x)[first:last] @ each for first, last, each in parts]).numpy()
    assert_close(found, wanted, dtype, 1.01)
    found = run(grouped_weight_gradient, where, x, gradient, offsets, block)
    wanted = torch.stack([tensor(x)[first:last].T @ tensor(gradient)[first:last] for first, last, _ in parts])
    assert_close(found, wanted, dtype, 1.01)


@pytest.mark.parametrize("contract_w", [0, 1])
def test_long_contraction(contract_w):
    """So long that 512 columns of an expert's weights would leave no room for the next."""
    x, w = normal(1, (40, 4224), np.float32), normal(2, (2, 4224, 600), np.float32)
    given_w = np.ascontiguousarray(w.transpose(0, 2, 1)) if contract_w else w
    found = run(grouped_matmul, ("trn2", 1), x, given_w, np.array([[0, 25, 40]], np.int32), 128, contract_w)
    assert_close(found, np.concatenate([tensor(x)[:25] @ tensor(w)[0], tensor(x)[25:] @ tensor(w)[1]]), x.dtype, 1.01)


def test_sizes_that_do_not_fit():
    x, w = np.zeros((8, 4), np.float32), np.zeros((8, 3), np.float32)
    with pytest.raises(AssertionError, match="k is 4, not 1 to 3"):
        trnsim.simulate(router, x, w, 4)
    with pytest.raises(AssertionError, match="function is 'tanh', not softmax or sigmoid"):
        trnsim.simulate(router, x, w, 2, None, "tanh")
    experts, offsets = np.zeros((2, 4, 3), np.float32), np.zeros((1, 3), np.int32)
    with pytest.raises(AssertionError, match="block is 100, not 128, 256 or 512"):
        trnsim.simulate(grouped_matmul, x, experts, offsets, 100)
    with pytest.raises(AssertionError, match="x has 4 elements a token, w 5"):
        trnsim.simulate(grouped_matmul, x, np.zeros((2, 5, 3), np.float32), offsets)
