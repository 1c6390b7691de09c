"""A model of memory as bytes, and views of it as arrays of byte addresses: what any program should leave behind.

Every view is made twice: by trnsim's methods, and here as the address of each of its elements. An instruction reads
all of its operands, computes, and writes. Nothing is put off and nothing is cached.
"""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from isa_harness import NUMPY

from trnsim.machine import core as machine

KINDS = {**NUMPY, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}
STARTS = (0, 32, 64, 96)


class Twin:
    """A view of the code under test and the byte address of each of its elements in ``memory``."""

    def __init__(self, view, memory, at, dtype):
        self.view, self.memory, self.at, self.dtype = view, memory, at, dtype

    def __repr__(self):
        strides = [int(np.diff(self.at, axis=d).flat[0]) if n > 1 else 0 for d, n in enumerate(self.at.shape)]
        return f"{self.view.name} {self.dtype} {self.at.shape} byte {self.at.flat[0]} strides {strides}"

    @property
    def kind(self):
        return np.dtype(KINDS[self.dtype])

    def bytes_at(self):
        """``(*shape, itemsize)`` addresses."""
        return self.at[..., None] + np.arange(self.kind.itemsize)

    def read(self):
        """The elements, ``(partitions, elements)``; a tensor in HBM is one partition."""
        data = np.ascontiguousarray(self.memory[self.bytes_at()])
        return data.view(self.kind).reshape(self.at.shape)

    def flat(self):
        return self.read().reshape(self.at.shape[0], -1)

    def write(self, values):
        values = np.ascontiguousarray(np.asarray(values, self.kind).reshape(self.at.shape))
        self.memory[self.bytes_at()] = values[..., None].view(np.uint8)

    def write_numbers(self, values):
        """As ``write``; of NaN, whose sign and payload no document gives, the bits are those under test."""
        values = np.array(values, self.kind).reshape(self.at.shape)
        if self.kind.kind not in "iu" and np.isnan(values).any():
            machine.current().force(self.view)
            actual = self.view.array()
            both = np.isnan(values) & np.isnan(actual)
            values[both] = actual[both]
        self.write(values)

    def made(self, view, at, dtype=None):
        at = np.asarray(at).reshape(view.shape)
        return Twin(view, self.memory, at, dtype or self.dtype)

    def __getitem__(self, key):
        return self.made(self.view[key], self.at[key])

    def permuted(self, dims):
        return self.made(self.view.permute(dims), self.at.transpose(dims))

    def reshaped(self, shape):
        return self.made(self.view.reshape(shape), self.at.reshape(shape))

    def repeated(self, size):
        """A last dimension of ``size`` times the same element."""
        view = self.view.expand_dim(len(self.view.shape)).broadcast(-1, size)
        return self.made(view, np.repeat(self.at[..., None], size, axis=-1))

    def seen_as(self, dtype):
        """The bytes of the last, contiguous dimension as another dtype."""
        size = np.dtype(KINDS[dtype]).itemsize
        if size == self.kind.itemsize:
            return self.made(self.view.view(dtype), self.at, dtype)
        first = self.at[..., :1]
        count = self.at.shape[-1] * self.kind.itemsize // size
        return self.made(self.view.view(dtype), first + np.arange(count) * size, dtype)

    def pattern(self, pattern, offset):
        """``.ap`` on a whole tensor: partitions step by whole ones, the rest are elements."""
        origin = self.at.reshape(-1)[0]
        per_partition = int(np.prod(self.at.shape[1:]))
        pitch = int(self.at.reshape(self.at.shape[0], -1)[1, 0] - origin) if self.at.shape[0] > 1 else 0
        start, free = divmod(offset, per_partition)
        at = np.array(origin + start * pitch + free * self.kind.itemsize)
        for index, (stride, count) in enumerate(pattern):
            step = stride // per_partition * pitch if index == 0 else stride * self.kind.itemsize
            at = at[..., None] + np.arange(count) * step
        return self.made(self.view.ap([list(p) for p in pattern], offset=offset), at)


class Memory:
    """The tensors of a core and their twins."""

    def __init__(self, core):
        self.core = core
        self.arenas = {}

    def tensor(self, shape, dtype, memory="sbuf", address=None, fill=None):
        """A tensor, its bytes those of ``fill`` (a generator of numbers) as if they had been written."""
        view = self.core.ndarray(shape, dtype, memory, address=address)
        size = np.dtype(KINDS[dtype]).itemsize
        row = int(np.prod(shape[1:])) * size
        if address is None:
            data, pitch, origin = np.zeros(shape[0] * row, np.uint8), row, 0
        else:
            pitch = view.storage.pitch
            data = self.arenas.setdefault(memory, np.zeros(128 * pitch, np.uint8))
            origin = address[0] * pitch + address[1]
        at = origin + np.arange(shape[0])[:, None] * pitch + np.arange(row // size) * size
        twin = Twin(view, data, at.reshape(shape), dtype)
        if fill is not None:
            twin.write(fill)
            view.array()[...] = twin.read()
            view.storage.coverage.full = view.storage.full = True
        return twin

    def check(self, twins):
        for twin in twins:
            self.core.force(twin.view)
            actual = np.ascontiguousarray(twin.view.array())
            expected = twin.read()
            if actual.tobytes() == expected.tobytes():
                continue
            same = actual.view(f"u{actual.itemsize}") == expected.view(f"u{actual.itemsize}")
            if twin.kind.kind not in "iu":
                a, b = actual.astype(np.float64), expected.astype(np.float64)
                same |= np.isnan(a) & np.isnan(b)
            assert same.all(), (twin.view, np.argwhere(~same)[:4], actual[~same][:4], expected[~same][:4])


def values(draw, shape, dtype, limit=4):
    """Small integers: sums and products of a few of them are exact in float32."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    low = 0 if dtype.startswith("uint") else -limit
    return rng.integers(low, limit, shape, endpoint=True).astype(KINDS[dtype])


def draw_view(draw, base, partitions, a, b, *, target=False):
    """A view of the whole tensor ``base`` with ``partitions`` partitions of ``a * b`` elements, of any layout."""
    rows, free = base.at.shape[0], int(np.prod(base.at.shape[1:]))
    starts = [
        s for s in STARTS if s + partitions <= rows and (partitions <= 32 or s in (0, 64)[: 2 - partitions // 65])
    ]
    start = draw(st.sampled_from(starts))
    n = a * b
    kinds = ["plain", "step", "pattern", "swapped"] + ([] if target else ["repeated", "stopped"])
    how = draw(st.sampled_from(kinds))
    flat = base if base.at.ndim == 2 else base.reshaped((rows, free))
    gap = draw(st.sampled_from([1, 1, 2])) if start + 2 * partitions <= rows and partitions <= 16 else 1
    part = flat[start : start + gap * partitions : gap]
    if how == "step" and free >= 2 * n:
        step = draw(st.integers(2, free // n))
        first = draw(st.integers(0, free - ((n - 1) * step + 1)))
        return part[:, first : first + (n - 1) * step + 1 : step]
    if how == "repeated" and free >= a:
        first = draw(st.integers(0, free - a))
        return part[:, first : first + a].repeated(b)
    if how == "stopped":
        element = draw(st.integers(0, free - 1))
        return flat.pattern([[gap * free, partitions], [0, a], [0, b]], start * free + element)
    if how == "pattern" and free >= n:
        spare = free - n
        inner = draw(st.integers(1, 1 + spare // max(1, n)))
        outer = (
            b * inner + draw(st.integers(0, (free - (b - 1) * inner - 1) // max(1, a - 1) - b * inner))
            if (a > 1 and (free - (b - 1) * inner - 1) // (a - 1) >= b * inner)
            else b * inner
        )
        reach = (a - 1) * outer + (b - 1) * inner
        if reach < free:
            first = draw(st.integers(0, free - 1 - reach))
            return flat.pattern([[gap * free, partitions], [outer, a], [inner, b]], start * free + first)
    first = draw(st.integers(0, free - n))
    view = part[:, first : first + n]
    return view.reshaped((partitions, b, a)).permuted((0, 2, 1)) if how == "swapped" else view
