"""Attention in float64 by PyTorch, and the cases that it is drawn for."""

import torch
from hypothesis import strategies as st
from kernel_harness import dtypes, normal, places

# (query heads, key heads), elements of a query, of a value, and the window: None is attention without a mask.
cases = st.tuples(
    st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]), st.sampled_from([64, 128, 17]), st.integers(1, 300),
    st.integers(0, 700), st.sampled_from([64, 128, 40]), st.sampled_from([None, 0, 1, 70, 300]), dtypes, places,
)  # fmt: skip


def arrays(heads, depth, queries, keys, width, dtype):
    """q, k and v of a format."""
    shapes = (heads[0], depth, queries), (heads[1], depth, keys), (heads[1], keys, width)
    return [normal(seed, shape, dtype) for seed, shape in enumerate(shapes)]


def attend(q, k, v, scale, causal=False, window=0, first_query=0):
    """Results, and logarithms of the sums, of tensors."""
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = scale * q.transpose(1, 2) @ k
    if causal:
        row = first_query + torch.arange(q.shape[2])[:, None]
        column = torch.arange(k.shape[2])
        hidden = column > row
        if window:
            hidden = hidden | (column <= row - window)
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)
