"""Router and grouped matmul of a mixture of experts against PyTorch in float64, over drawn shapes and formats."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim.kernels.grouped_matmul import grouped_matmul
from trnsim.kernels.router import router

torch = pytest.importorskip("torch")

FORMATS = {np.dtype(np.float32): 1e-6, np.dtype(ml_dtypes.bfloat16): 2**-8, np.dtype(np.float16): 2**-11}
PLACES = [("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 2)]


def tensor(array):
    return torch.from_numpy(np.asarray(array, np.float64))


@given(
    st.integers(1, 300), st.integers(1, 700), st.integers(1, 600), st.integers(1, 20), st.booleans(), st.booleans(),
    st.sampled_from(["softmax", "sigmoid"]), st.sampled_from([1.0, 2.5]), st.sampled_from(list(FORMATS)),
    st.sampled_from(PLACES),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_router(size, tokens, experts, k, biased, normalized, function, scale, dtype, where):
    chip, cores = where
    k = min(k, experts)
    rng = np.random.default_rng(size * tokens + experts)
    x = rng.standard_normal((size, tokens)).astype(dtype)
    w = (rng.standard_normal((size, experts)) * size**-0.5).astype(dtype)
    bias = rng.standard_normal((1, experts)).astype(np.float32) if biased else None
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    found = trnsim.simulate(router[cores], x, w, k, bias, function, normalized, scale, options=options)
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
    assert np.abs(weights - scale * wanted.numpy()).max() <= 1e-5


@given(
    st.integers(1, 900), st.integers(1, 260), st.integers(1, 700), st.integers(1, 150),
    st.sampled_from([128, 256, 512]), st.sampled_from(list(FORMATS)), st.sampled_from(PLACES), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_grouped_matmul(tokens, size, width, experts, block, dtype, where, seed):
    """Any division of the tokens, experts without any among them."""
    chip, cores = where
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, size)).astype(dtype)
    w = rng.standard_normal((experts, size, width)).astype(dtype)
    inner = np.sort(rng.integers(0, tokens + 1, experts - 1))
    offsets = np.array([[0, *inner, tokens]], np.int32)
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    found = np.asarray(trnsim.simulate(grouped_matmul[cores], x, w, offsets, block, options=options))
    parts = zip(offsets[0, :-1], offsets[0, 1:], tensor(w), strict=True)
    wanted = torch.cat([tensor(x)[first:last] @ each for first, last, each in parts]).numpy()
    assert found.dtype == dtype
    assert np.abs(found.astype(np.float64) - wanted).max() <= (1.01 * FORMATS[dtype] + 1e-6) * np.abs(wanted).max()


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
