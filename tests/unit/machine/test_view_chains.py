"""Chains of view methods against NumPy: the address of each element of a view, in HBM and on chip."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import CompilerError, TrnsimError
from trnsim.hardware import load_chip
from trnsim.machine.core import Launch

SIZES = {"float32": 4, "bfloat16": 2, "uint8": 1, "int16": 2, "uint32": 4}


@st.composite
def step(draw, shape, fixed):
    """One view method with its arguments, and the same on an array of addresses; ``fixed`` dimensions stay first."""
    rank = len(shape)
    kinds = ["slice", "permute", "expand", "squeeze", "reshape", "flatten", "broadcast", "index", "ds", "rearrange"]
    kind = draw(st.sampled_from(kinds))
    dim = draw(st.integers(fixed, rank - 1)) if fixed < rank else None
    if dim is None:
        return None
    size = shape[dim]
    if kind in ("slice", "ds"):
        start = draw(st.integers(0, size - 1))
        end, by = draw(st.integers(start + 1, size)), draw(st.integers(1, 3))
        key = (slice(None),) * dim + (slice(start, end, by),)
        how = draw(st.sampled_from(["key", "method"]))
        return (lambda v: v[key] if how == "key" else v.slice(dim, start, end, by)), lambda a: a[key]
    if kind == "permute":
        order = tuple(range(fixed)) + tuple(draw(st.permutations(range(fixed, rank))))
        return (lambda v: v.permute(order)), lambda a: a.transpose(order)
    if kind == "expand":
        at = draw(st.integers(fixed, rank))
        return (lambda v: v.expand_dim(at)), lambda a: np.expand_dims(a, at)
    if kind == "squeeze":
        if size != 1 or rank <= 1 + fixed:
            return None
        return (lambda v: v.squeeze_dim(dim)), lambda a: np.squeeze(a, dim)
    if kind == "reshape":
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        first = draw(st.sampled_from(divisors))
        sizes = (first, -1) if draw(st.booleans()) else (first, size // first)
        new = (*shape[:dim], first, size // first, *shape[dim + 1 :])
        return (lambda v: v.reshape_dim(dim, sizes)), lambda a: a.reshape(new)
    if kind == "flatten":
        if dim + 1 >= rank:
            return None
        new = (*shape[:dim], size * shape[dim + 1], *shape[dim + 2 :])
        how = draw(st.sampled_from(["flatten", "reshape"]))
        return (lambda v: v.flatten_dims(dim, dim + 1) if how == "flatten" else v.reshape(new)), lambda a: a.reshape(
            new
        )
    if kind == "broadcast":
        if size != 1:
            return None
        count = draw(st.integers(1, 3))
        new = (*shape[:dim], count, *shape[dim + 1 :])
        return (lambda v: v.broadcast(dim, count)), lambda a: np.broadcast_to(a, new)
    if kind == "index":
        if rank <= 1 + fixed:
            return None
        at = draw(st.integers(-size, size - 1))
        key = (slice(None),) * dim + (at,)
        how = at >= 0 and draw(st.booleans())
        return (lambda v: v.select(dim, at) if how else v[key]), lambda a: a[key]
    names = [f"d{i}" for i in range(rank)]
    order = names[:fixed] + list(draw(st.permutations(names[fixed:])))
    target = tuple(order.index(n) for n in order), tuple(names.index(n) for n in order)
    return (lambda v: v.rearrange(tuple(names), tuple(order))), lambda a: a.transpose(target[1])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(["hbm", "sbuf", "psum"]), st.sampled_from(sorted(SIZES)), st.booleans())
def test_chains(data, memory, dtype, placed):
    core = Launch(load_chip("trn2"), numeric=True).cores[0]
    shape = data.draw(st.sampled_from([(4, 6), (3, 4, 5), (2, 3, 4, 2), (5, 1, 6)]))
    address = (32, 2048) if placed and memory != "hbm" else None
    view = core.ndarray(shape, dtype, memory, address=address)
    count = int(np.prod(shape))
    # Each element's storage bytes hold its number (modulo what fits); addresses are numbers of elements.
    numbers = np.arange(count).reshape(shape)
    kind = view.array().dtype
    bits = numbers.astype(f"u{SIZES[dtype]}")
    view.array().view(bits.dtype)[...] = bits
    fixed = int(memory != "hbm")
    for _ in range(data.draw(st.integers(1, 6))):
        made = data.draw(step(view.shape, fixed))
        if made is None:
            continue
        method, mirror = made
        try:
            view = method(view)
        except CompilerError as error:
            if "cannot be viewed" in str(error) or "not contiguous" in str(error):
                continue  # a layout that no view has
            raise
        numbers = mirror(numbers)
        if numbers.ndim < view.ndim:  # on chip a view keeps two dimensions
            assert fixed
            assert view.ndim == 2
            numbers = numbers.reshape(view.shape)
        assert view.shape == numbers.shape
        assert view.array().dtype == kind
        found = np.ascontiguousarray(view.array()).view(bits.dtype).reshape(view.shape)
        np.testing.assert_array_equal(found, numbers.astype(bits.dtype))
        if fixed is False or not placed:
            at = view.offset + sum(i * s for i, s in zip(np.indices(view.shape), view.strides, strict=True))
            np.testing.assert_array_equal(at, numbers)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(["hbm", "sbuf"]), st.sampled_from([("float32", "uint8"), ("uint8", "int16"),
       ("bfloat16", "float32"), ("uint32", "int16"), ("int16", "bfloat16")]))  # fmt: skip
def test_bytes_as_another_dtype(data, memory, kinds):
    """``view`` of a slice, then a slice of the view: bytes where NumPy's are."""
    core = Launch(load_chip("trn2"), numeric=True).cores[0]
    first, second = kinds
    tensor = core.ndarray((6, 3, 8), first, memory)
    raw = tensor.storage.bytes()
    raw[:] = np.arange(len(raw)) % 251
    start = data.draw(st.sampled_from([0, 4]))
    rows = slice(data.draw(st.integers(0, 2)), 6, data.draw(st.integers(1, 2)))
    if memory == "sbuf":
        rows = slice(0, 6)
    columns = slice(start, start + 4)
    view = tensor[rows, :, columns].view(second)
    expected = np.ascontiguousarray(tensor.array()[rows, :, columns]).view(view.array().dtype)
    assert view.shape == expected.shape
    assert view.array().tobytes() == expected.tobytes()
    part = view[:, 1:3, 1:]
    assert np.ascontiguousarray(part.array()).tobytes() == np.ascontiguousarray(expected[:, 1:3, 1:]).tobytes()


@pytest.mark.parametrize("memory", ["hbm", "sbuf"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_patterns(memory, data):
    """``ap``: element ``(i, ...)`` lies at the offset plus the sum of steps; what leaves the tensor is an error."""
    core = Launch(load_chip("trn2"), numeric=True).cores[0]
    tensor = core.ndarray((4, 30), "int32", memory)
    tensor.array()[...] = np.arange(120).reshape(4, 30)
    flat = np.arange(120)
    pairs = [
        (data.draw(st.sampled_from([0, 1, 2, 5, 7, 30])), data.draw(st.integers(1, 4)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    offset = data.draw(st.integers(0, 40))
    if memory == "sbuf":
        pairs = [(30, data.draw(st.integers(1, 4))), *pairs]
        offset %= 30
    at = offset + sum(i * s for i, (s, _) in zip(np.indices([n for _, n in pairs]), pairs, strict=True))
    view = tensor.ap([list(p) for p in pairs], offset=offset)
    free = at.max() if memory == "hbm" else at[0].max()
    if free >= (120 if memory == "hbm" else 30) or at.max() >= 120:
        with pytest.raises(TrnsimError):
            view.array()
        return
    np.testing.assert_array_equal(view.array(), flat[at])
