"""Functions of ``nki.language`` on views of every layout, dtype and memory, against NumPy.

What each function computes is checked value by value in ``test_language_elementwise.py``; here its operands are slices
with steps, permuted, broadcast, reshaped and reinterpreted views, at other partitions, in SBUF and PSUM.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.numerics import as_dtype

sys.path.insert(0, str(Path(__file__).parent))
from test_language_elementwise import BINARY, OF_POSITIVE, REDUCTIONS, UNARY
from test_language_harness import as_stored, run

views = settings(max_examples=40, deadline=None, derandomize=True)
P, A, B = 5, 4, 6
FLOATS = ["float32", "bfloat16", "float16"]
STEP = {"float32": 2.0**-22, "bfloat16": 2.0**-8, "float16": 2.0**-11}

# (shape of the tile, the view, the same of an array); each view is (P, A, B).
LAYOUTS = {
    "whole": ((P, A, B), lambda t: t, lambda a: a),
    "later partitions": ((64 + P, A, B), lambda t: t[64:], lambda a: a[64:]),
    "every second partition": ((2 * P, A, B), lambda t: t[::2], lambda a: a[::2]),
    "steps": ((P, 2 * A, 3 * B), lambda t: t[:, 1::2, ::3], lambda a: a[:, 1::2, ::3]),
    "permuted": ((P, B, A), lambda t: t.permute((0, 2, 1)), lambda a: a.transpose(0, 2, 1)),
    "an index": ((P, A, 3, B), lambda t: t[:, :, 1], lambda a: a[:, :, 1]),
    "reshaped": ((P, A * B), lambda t: t.reshape((P, A, B)), lambda a: a.reshape(P, A, B)),
    "columns": ((P, 40), lambda t: t[:, 9 : 9 + A * B].reshape_dim(1, (A, B)),
                lambda a: a[:, 9 : 9 + A * B].reshape(P, A, B)),
    "repeated": ((P, A, 1), lambda t: t.broadcast(2, B), lambda a: np.repeat(a, B, axis=2)),
    "pattern": ((P, 50), lambda t: t.ap([[50, P], [9, A], [2, B]], offset=3),
                lambda a: np.stack([a[:, 3 + 9 * i : 3 + 9 * i + 11 : 2] for i in range(A)], axis=1)),
    "bytes": ((P, A, B), lambda t: t.view("uint8").view(str(t.dtype)), lambda a: a),
}  # fmt: skip
layouts = st.sampled_from(sorted(LAYOUTS))
dtypes = st.sampled_from(FLOATS)
places = st.sampled_from(["sbuf", "psum"])


def drawn(layout, dtype, seed, *, low=-3.0, high=3.0):
    """The tile's values in their dtype and the view's in float64."""
    shape = LAYOUTS[layout][0]
    values = as_stored(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32), dtype)
    return values, LAYOUTS[layout][2](values).astype(np.float64)


def view(tile, layout, place):
    if place == "psum":
        copy = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.psum)
        nisa.tensor_copy(copy, tile)
        tile = copy
    return LAYOUTS[layout][1](tile)


def flattened(tile, layout):
    """A copy of the view as a matrix: not every layout can be reshaped as it is."""
    return nl.copy(view(tile, layout, "sbuf")).reshape((P, A * B))


def close(got, expected, dtype, size=1.0):
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=STEP[dtype] * 2, atol=STEP[dtype] * size)


@views
@given(st.sampled_from(sorted(BINARY)), layouts, layouts, dtypes, places, st.integers(0, 99))
@pytest.mark.parametrize("number", [False, True])
def test_binary(number, name, left, right, dtype, place, seed):
    low = 0.5 if name in ("power", "mod", "fmod", "divide") else -3.0
    a, x = drawn(left, dtype, seed, low=low)
    b, y = drawn(right, dtype, seed + 1, low=low)
    if name == "power":
        place = "sbuf"  # GpSimdE computes it
    if number:
        got = run(lambda s: getattr(nl, name)(view(s, left, place), 1.5), a)
        y = 1.5
    else:
        got = run(lambda s, t: getattr(nl, name)(view(s, left, place), view(t, right, "sbuf")), a, b)
    with np.errstate(all="ignore"):
        expected = BINARY[name](x, y).astype(np.float64)
    rounded = as_stored(expected, dtype).astype(np.float64)
    if name in ("mod", "fmod"):  # a quotient next to an integer may fall on either side
        near = np.abs(x / y - np.round(x / y)) < 1e-3
        assert (near | (np.abs(got.values.reshape(expected.shape) - rounded) <= 0.02)).all()
        return
    close(got.values.reshape(expected.shape), rounded, dtype, np.abs(rounded).max())


@views
@given(layouts, dtypes, places, st.integers(0, 99))
@pytest.mark.parametrize("name", [*UNARY, *OF_POSITIVE])
def test_unary(name, layout, dtype, place, seed):
    if name == "rsqrt":
        place = "sbuf"
    low, high = (0.1, 1.5) if name in OF_POSITIVE or name == "reciprocal" else (-3.0, 3.0)
    a, x = drawn(layout, dtype, seed, low=low, high=high)
    got = run(lambda t: getattr(nl, name)(view(t, layout, place)), a)
    expected = (UNARY.get(name) or OF_POSITIVE[name])(x)
    close(got.values.reshape(x.shape), as_stored(expected, dtype).astype(np.float64), dtype, 4)


@views
@given(layouts, dtypes, places, st.integers(0, 99), st.sampled_from([2, -1, (1, 2)]), st.booleans())
@pytest.mark.parametrize("name", [*REDUCTIONS, "var"])
def test_reductions(name, layout, dtype, place, seed, axis, keep):
    a, x = drawn(layout, dtype, seed, low=0.5 if name == "prod" else -3.0, high=1.5 if name == "prod" else 3.0)
    options = {} if name in ("var", "all") else {"keepdims": keep}
    got = run(lambda t: getattr(nl, name)(view(t, layout, place), axis=axis, **options), a)
    expected = np.asarray(np.var(x, axis=axis) if name == "var" else REDUCTIONS[name](x, axis=axis), np.float64)
    kind = str(got.tensor.dtype)
    assert kind == dtype
    actual = got.values.reshape(expected.shape)
    close(actual, as_stored(expected, kind).astype(np.float64), kind, 2 * np.abs(expected).max() + 1)


@views
@given(layouts, layouts, layouts, dtypes, st.integers(0, 99))
def test_where(mask, left, right, dtype, seed):
    (c, z), (a, x), (b, y) = (drawn(n, dtype, seed + i) for i, n in enumerate((mask, left, right)))
    c, z = (c > 0).astype(np.uint8), z > 0
    got = run(lambda s, t, u: nl.where(view(s, mask, "sbuf"), view(t, left, "sbuf"), view(u, right, "sbuf")), c, a, b)
    np.testing.assert_array_equal(got.values.astype(np.float64).reshape(x.shape), np.where(z, x, y))


@views
@given(layouts, dtypes, places, st.integers(0, 99))
@pytest.mark.parametrize("name", ["copy", "softmax", "transpose", "store", "matmul", "broadcast_to"])
def test_others(name, layout, dtype, place, seed):
    a, x = drawn(layout, dtype, seed)
    flat = x.reshape(P, -1)
    if name == "copy":
        got, expected = run(lambda t: nl.copy(view(t, layout, place)), a), x
    elif name == "softmax":
        got = run(lambda t: nl.softmax(view(t, layout, place), axis=-1), a)
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        expected = powers / powers.sum(axis=-1, keepdims=True)
    elif name == "transpose":
        got, expected = run(lambda t: nl.transpose(flattened(t, layout)), a), flat.T
    elif name == "store":

        def function(t):
            out = nl.ndarray((P + 2, A, 2 * B), dtype=t.dtype, buffer=nl.shared_hbm)
            nl.store(out[1 : 1 + P, :, ::2], view(t, layout, "sbuf"))
            return out[1 : 1 + P, :, ::2]

        got, expected = run(function, a), x
    elif name == "matmul":
        got = run(lambda t: nl.matmul(flattened(t, layout), flattened(t, layout), transpose_x=True), a)
        expected = flat.T @ flat
        np.testing.assert_allclose(got.values.astype(np.float64), expected, rtol=1e-5, atol=1e-5)
        return
    else:
        got = run(lambda t: nl.broadcast_to(view(t, layout, "sbuf")[:, :, :1], (P, A, 3)), a)
        expected = np.repeat(x[:, :, :1], 3, axis=2)
    rounded = as_stored(expected, dtype).astype(np.float64)
    close(got.values.reshape(expected.shape), rounded, dtype)
    assert as_dtype(dtype) == got.tensor.dtype
