"""Attention of one query a sequence over a paged cache, against PyTorch in float64, over drawn shapes and formats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import assert_close, drawn, dtypes, places, run

import trnsim
from trnsim.kernels.decode_attention import decode_attention

torch = pytest.importorskip("torch", reason="PyTorch is an extra")


def reference(q, k_cache, table, lengths, v_cache, scale, window, value_size):
    """Sequence by sequence in float64, the blocks joined and cut to length."""
    results = []
    for query, blocks, (length,) in zip(q, table, lengths, strict=True):
        first = max(0, length - window) if window else 0
        k = torch.from_numpy(k_cache[blocks].astype(np.float64)).flatten(0, 1)[first:length]
        v = k[..., :value_size]
        if v_cache is not None:
            v = torch.from_numpy(v_cache[blocks].astype(np.float64)).flatten(0, 1)[first:length]
        shared = q.shape[2] // k_cache.shape[2]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        scores = scale * torch.einsum("dh,thd->ht", torch.from_numpy(query.astype(np.float64)), k)
        results.append(torch.einsum("ht,the->he", torch.softmax(scores, 1), v).numpy())
    return np.array(results)


@given(
    st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (16, 1), (4, 4), (6, 3)]), st.sampled_from([1, 8, 12, 16, 64]),
    st.integers(1, 40), st.sampled_from([(64, 64, False), (128, 40, False), (17, 17, False), (576, 512, True)]),
    st.sampled_from([0, 1, 100]), dtypes, places, st.integers(0, 99),
)  # fmt: skip
@drawn(25)
def test_results(sequences, heads, block_length, width, sizes, window, dtype, where, seed):
    depth, value_size, latent = sizes
    rng = np.random.default_rng(seed)
    blocks = sequences * width + 2
    q = rng.standard_normal((sequences, depth, heads[0])).astype(dtype)
    k = rng.standard_normal((blocks, block_length, heads[1], depth)).astype(dtype)
    v = None if latent else rng.standard_normal((blocks, block_length, heads[1], value_size)).astype(dtype)
    table = rng.permutation(blocks)[: sequences * width].reshape(sequences, width).astype(np.int32)
    lengths = rng.integers(1, width * block_length + 1, (sequences, 1)).astype(np.int32)
    arguments = (v, depth**-0.5, window, value_size if latent else 0)
    wanted = reference(q, k, table, lengths, *arguments)
    found = run(decode_attention, where, q, k, table, lengths, *arguments)
    # Steps of the format in weights and result.
    assert_close(found, wanted, dtype, 4, max(1, np.abs(wanted).max()), sums=2e-5)


@pytest.mark.parametrize("window", [0, 300])
def test_context_in_parts(window):
    """A context whose keys and scores do not fit at once: running maxima and sums; one sequence ends in the first."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 64, 16)).astype(np.float32)
    k, v = (rng.standard_normal((160, 128, 8, 64)).astype(np.float32) for _ in range(2))
    table = rng.permutation(160).reshape(2, 80).astype(np.int32)[:, :20]
    lengths = np.array([[2500], [130]], np.int32)
    options = trnsim.SimulationOptions(timed=False)
    found = trnsim.simulate(decode_attention, q, k, table, lengths, v, 1.0, window, options=options)
    assert np.abs(found - reference(q, k, table, lengths, v, 1.0, window, 0)).max() <= 1e-3


@pytest.mark.parametrize(
    ("q", "k", "arguments", "message"),
    [
        ((1, 64, 2), (4, 8, 1, 32), {"value_size": 8}, "q has head dimension 64, k_cache 32"),
        ((1, 64, 3), (4, 8, 2, 64), {"value_size": 8}, "3 heads are no multiple of 2 key heads"),
        ((1, 64, 2), (4, 8, 1, 64), {"value_size": 65}, "value_size 65 is not 1 to 64"),
        ((2, 64, 2), (4, 8, 1, 64), {"value_size": 8}, "2 sequences, table has 1"),
    ],
)
def test_sizes_that_do_not_fit(q, k, arguments, message):
    table, lengths = np.zeros((1, 2), np.int32), np.ones((1, 1), np.int32)
    with pytest.raises(AssertionError, match=message):
        trnsim.simulate(decode_attention, np.zeros(q, np.float32), np.zeros(k, np.float32), table, lengths, **arguments)
