"""Softmax, cross-entropy and embedding against PyTorch in float64, over drawn shapes and formats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_harness import assert_close, assert_same, drawn, dtypes, normal, places, run

from trnsim.errors import TrnsimError
from trnsim.kernels.cross_entropy import cross_entropy, cross_entropy_backward
from trnsim.kernels.embedding import embedding, embedding_backward
from trnsim.kernels.softmax import softmax, softmax_backward

torch = pytest.importorskip("torch", reason="PyTorch is an extra")


def double(array):
    return torch.tensor(np.asarray(array, np.float64), requires_grad=True)


@given(
    st.integers(1, 400), st.integers(1, 700), st.sampled_from([1.0, 0.25]), st.sampled_from([0, 200]), dtypes, places
)
@drawn(40)
def test_softmax(rows, width, scale, mean, dtype, where):
    x, arrived = (normal(1, (rows, width), np.float32) * 4 + mean).astype(dtype), normal(2, (rows, width), dtype)
    wanted = torch.softmax(scale * double(x), -1).detach()
    assert_close(
        run(softmax, where, x, scale), wanted, dtype, 2, max(1e-3, wanted.max().item()) * (1 + 20 * (mean > 0))
    )
    weights = np.asarray(wanted).astype(dtype)
    exact, back = double(weights).detach(), double(arrived).detach()
    gradient = scale * exact * (back - (exact * back).sum(-1, keepdim=True))
    found = run(softmax_backward, where, arrived, weights, scale)
    assert_close(found, gradient, dtype, 4, scale * max(1, np.abs(arrived).max().astype(float)))


@given(st.integers(1, 200), st.sampled_from([1, 7, 300, 5000, 9001, 17000]), dtypes, places)
@drawn(40)
def test_cross_entropy(rows, width, dtype, where):
    logits = (normal(1, (rows, width), np.float32) * 5).astype(dtype)
    logits[:, -1:] += 10  # what comes last is the largest of many rows
    targets = np.random.default_rng(2).integers(0, width, rows).astype(np.int32)
    arrived = normal(3, rows, np.float32)
    leaf = double(logits)
    wanted = torch.nn.functional.cross_entropy(leaf, torch.tensor(targets).long(), reduction="none")
    wanted.backward(double(arrived).detach())
    losses, logs = run(cross_entropy, where, logits, targets)
    assert_close(losses, wanted.detach(), np.float32, 1, 40)
    assert_close(logs, torch.logsumexp(leaf, -1).detach(), np.float32, 1, 40)
    found = run(cross_entropy_backward, where, logits, targets, logs, arrived)
    assert_close(found, leaf.grad, dtype, 2, 4 * max(1, np.abs(arrived).max()))


@given(st.integers(1, 400), st.integers(1, 60), st.sampled_from([1, 3, 64, 300, 600]), dtypes, places)
@drawn(40)
def test_embedding(tokens, rows, width, dtype, where):
    table, arrived = normal(1, (rows, width), dtype), normal(2, (tokens, width), dtype)
    numbers = np.random.default_rng(3).integers(0, rows, tokens).astype(np.int32)
    leaf = double(table)
    wanted = torch.nn.functional.embedding(torch.tensor(numbers).long(), leaf)
    wanted.backward(double(arrived).detach())
    assert_same(run(embedding, where, numbers, table), table[numbers])
    size = max(3, leaf.grad.abs().max().item())  # of what is added up, which may cancel
    assert_close(run(embedding_backward, where, arrived, numbers, rows), leaf.grad, np.float32, 1, size)


def test_number_beyond_the_table():
    with pytest.raises(TrnsimError, match="out of bounds"):
        run(embedding, ("trn2", 1), np.array([0, 9], np.int32), np.zeros((5, 8), np.float32))


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        (softmax, (np.zeros((2, 3), np.float32), -1.0), "scale is -1.0: it must be positive"),
        (cross_entropy, (np.zeros((2, 3), np.float32), np.zeros(3, np.int32)), r"targets is \(3,\)"),
        (cross_entropy, (np.zeros((2, 3), np.float32), np.zeros(2, np.uint32)), "targets is uint32: it must be int32"),
        (embedding, (np.zeros(3, np.int32), np.zeros((2, 9000), np.float32)), "SBUF holds up to 8192"),
        (embedding_backward, (np.zeros((3, 2), np.float32), np.zeros(3, np.int32), 2**25), "rows: there must be 1 to"),
    ],
)
def test_refused(kernel, arguments, message):
    with pytest.raises(AssertionError, match=message):
        run(kernel, ("trn2", 1), *arguments)
