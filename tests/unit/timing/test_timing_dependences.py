"""Accesses to HBM against sets of bytes: instructions that share a byte wait for each other, others do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import trnsim
from trnsim import nki
from trnsim.hardware import load_chip
from trnsim.hardware.timing_constants import load_timing
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.timing.accesses import find_accesses
from trnsim.timing.dependences import RAW, WAR, WAW, find_dependences
from trnsim.timing.tables import ClassTables


def edges(shape, copies, compiled=False):
    """Kinds of dependence by (producer, consumer) of DMAs between slices of two tensors ``shape``: a write each."""

    @nki.jit
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        for read, write in copies:
            source = x if read[0] == "x" else out
            nisa.dma_copy(dst=out[write[1]], src=source[read[1]])
        return out

    session = trnsim.Session(trnsim.SimulationOptions(chip="trn2", numeric=False))
    with session.active():
        kernel(np.zeros(shape, np.float32))
    trace = session.calls[-1].traces[0]
    tables, timing = ClassTables(), load_timing(load_chip("trn2"))
    klass = np.array([tables.add(trace.classes[int(c)], timing) for c in trace.column("klass")])
    found, _ = find_dependences(find_accesses(trace, klass, tables, compiled), compiled)
    return dict(
        zip(zip(found.producer.tolist(), found.consumer.tolist(), strict=True), found.kind.tolist(), strict=True)
    )


def cells(shape, index):
    return set(np.arange(np.prod(shape)).reshape(shape)[index].ravel().tolist())


@st.composite
def boxes(draw):
    """A shape of three or four dimensions and slices of one size in it."""
    shape = tuple(draw(st.lists(st.integers(2, 7), min_size=3, max_size=4)))
    sizes = [draw(st.integers(1, n)) for n in shape]

    def box():
        starts = [draw(st.integers(0, n - size)) for n, size in zip(shape, sizes, strict=True)]
        return tuple(slice(s, s + size) for s, size in zip(starts, sizes, strict=True))

    return shape, box(), box()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(boxes(), st.sampled_from([RAW, WAW]))
def test_slices_of_hbm_that_share_bytes_wait_for_each_other(case, kind):
    shape, first, second = case
    meet = bool(cells(shape, first) & cells(shape, second))
    # Where the second reads what the first wrote, it writes what nothing else touches: only then is there one edge.
    other = tuple(slice(0, s.stop - s.start) for s in second)
    if kind == RAW:
        assume(not cells(shape, other) & (cells(shape, first) | cells(shape, second)))
    second_copy = (("x", second), ("out", second)) if kind == WAW else (("out", second), ("out", other))
    found = edges(shape, [(("x", first), ("out", first)), second_copy])
    if meet:
        assert found == {(0, 1): kind}
    elif len(shape) == 3:  # rows and bytes have one stride each at most: the boxes are exact
        assert not found


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_of_an_image_are_stored_independently(compiled):
    """A row of all channels at a time, as a convolution stores its result; then all of it is read, and overwritten."""
    shape = (16, 6, 8)
    rows = [(("x", np.s_[:, h]), ("out", np.s_[:, h])) for h in range(6)]
    found = edges(shape, [*rows, (("out", np.s_[:, 2]), ("out", np.s_[:, 2])), *rows[1:4]], compiled)
    assert found == {(2, 6): RAW, (1, 7): WAW, (6, 8): WAR, (3, 9): WAW}


@pytest.mark.parametrize("compiled", [False, True])
def test_heads_are_stored_independently(compiled):
    """[sequence, heads, depth] by blocks of the sequence and pairs of heads."""
    index = [np.s_[8 * s : 8 * s + 8, 2 * h : 2 * h + 2] for s in range(2) for h in range(3)]
    copies = [(("x", at), ("out", at)) for at in index]
    assert edges((16, 6, 4), copies, compiled) == {}
    whole = (("x", np.s_[:]), ("out", np.s_[:]))
    assert edges((16, 6, 4), [*copies, whole], compiled) == {(i, 6): WAW for i in range(6)}


def test_a_write_after_a_read_of_the_same_rows_waits():
    take, put = np.s_[:, 1:3, 2:5], np.s_[:, 0:2, 4:7]
    assert edges((5, 6, 8), [(("out", take), ("out", np.s_[:, 4:6, 0:3])), (("x", put), ("out", put))]) == {(0, 1): WAR}
    apart = np.s_[:, 3:4, 2:5]
    assert edges((5, 6, 8), [(("out", take), ("out", np.s_[:, 4:6, 0:3])), (("x", apart), ("out", apart))]) == {}


def flat_edges(shape, runs, compiled=False):
    """Kinds of dependence between DMAs that each store a block of 4 rows of so many elements from some element on."""

    @nki.jit
    def kernel(x):
        out = nl.ndarray(shape, dtype=x.dtype, buffer=nl.shared_hbm)
        for start, length in runs:
            tile = nl.ndarray((4, length), dtype=x.dtype, buffer=nl.sbuf)
            nisa.memset(dst=tile, value=0.0)
            nisa.dma_copy(dst=out.ap(pattern=[[length, 4], [1, length]], offset=start), src=tile)
        return out

    session = trnsim.Session(trnsim.SimulationOptions(chip="trn2", numeric=False))
    with session.active():
        kernel(np.zeros((1, 1), np.float32))
    trace = session.calls[-1].traces[0]
    tables, timing = ClassTables(), load_timing(load_chip("trn2"))
    klass = np.array([tables.add(trace.classes[int(c)], timing) for c in trace.column("klass")])
    found, _ = find_dependences(find_accesses(trace, klass, tables, compiled), compiled)
    stores = {1 + 2 * i: i for i in range(len(runs))}
    return {
        (stores[p], stores[c])
        for p, c in zip(found.producer.tolist(), found.consumer.tolist(), strict=True)
        if p in stores and c in stores
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(3, 40), st.integers(1, 25), st.data())
def test_blocks_that_begin_within_rows_wait_only_for_their_own_bytes(columns, length, data):
    """A copy of so many elements a DMA, as of a flat tensor, whatever the rows of the tensor are."""
    rows = 2 + 12 * length // columns
    starts = data.draw(st.lists(st.integers(0, rows * columns - 4 * length), min_size=2, max_size=2))
    first, second = (set(range(s, s + 4 * length)) for s in starts)
    assert flat_edges((rows, columns), [(s, length) for s in starts]) == ({(0, 1)} if first & second else set())


@pytest.mark.parametrize("compiled", [False, True])
def test_a_tensor_that_is_copied_block_after_block_is_stored_without_waiting(compiled):
    assert not flat_edges((30, 10), [(i * 28, 7) for i in range(10)], compiled)
