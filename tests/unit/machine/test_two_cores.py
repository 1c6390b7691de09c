"""The order in which two cores of a logical core touch shared HBM."""

from __future__ import annotations

import numpy as np
import pytest

import trnsim
from trnsim.errors import IndexRangeError

trnsim.install()
import nki  # noqa: E402
import nki.isa as nisa  # noqa: E402
import nki.language as nl  # noqa: E402


@nki.jit
def clear_then_fill(values, extra):
    """Both cores clear all of the output and then write their half, without a barrier; core 0 does more before."""
    out = nl.ndarray((256, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    zeros = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=zeros, value=0.0)
    for half in range(2):
        nisa.dma_copy(dst=out[half * 128 : half * 128 + 128], src=zeros)
    mine = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    for _ in range(extra if core == 0 else 0):
        nisa.memset(dst=mine, value=1.0)
    nisa.dma_copy(dst=mine, src=values[core * 128 : core * 128 + 128])
    nisa.dma_copy(dst=out[core * 128 : core * 128 + 128], src=mine)
    return out


@pytest.mark.parametrize("extra", [0, 1, 7])
def test_accesses_are_in_the_order_of_the_programs(extra):
    values = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    assert np.array_equal(nki.simulate(clear_then_fill[2])(values, extra), values)


@nki.jit
def one_waits(values):
    """Core 0 goes ahead in HBM while core 1 waits for it in a barrier: no deadlock."""
    core = nl.program_id(0)
    shared = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    out = nl.ndarray((2, 128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    if core == 0:
        for _ in range(3):
            nisa.dma_copy(dst=tile, src=values)
        nisa.dma_copy(dst=shared, src=tile)
    nisa.core_barrier(data=shared, cores=(0, 1))
    nisa.dma_copy(dst=tile, src=shared)
    nisa.dma_copy(dst=out[core], src=tile)
    return out


def test_a_core_that_waits_is_not_waited_for():
    values = np.random.default_rng(1).standard_normal((128, 64)).astype(np.float32)
    assert np.array_equal(nki.simulate(one_waits[2])(values), np.stack([values, values]))


@nki.jit
def uneven(a, read):
    """Core 0 has no share of one row, and makes a view of it all the same."""
    out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
    share = nl.ds(0, nl.program_id(0))
    mine, given = out[share], a[share]
    if nl.program_id(0) == 1 or read:
        nisa.dma_copy(dst=mine, src=given)
    return out


def test_a_view_of_no_elements_may_be_made_and_not_accessed():
    row = np.ones((1, 4), np.float32)
    assert np.array_equal(nki.simulate(uneven[2])(row, False), row)
    with pytest.raises(IndexRangeError, match="has no elements to access"):
        nki.simulate(uneven[2])(row, True)
    with pytest.raises(IndexRangeError):
        nki.simulate(lambda a: a[nl.ds(2, 0)])(row)


@nki.jit
def sends_what_it_never_wrote(a):
    out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
    mine = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.sbuf)
    theirs = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=mine[0:32], src=a[0:32])
    other = 1 - nl.program_id(0)
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
    nisa.dma_copy(dst=out, src=theirs)
    return out


def test_unwritten_bytes_arrive_as_they_are_read_elsewhere():
    for attempt in range(3):
        other = np.full((64, 16), 7.0 + attempt, np.float32)  # leaves its numbers in memory that is used again
        nki.simulate(clear_then_fill[2])(np.full((256, 64), 5.0, np.float32), 0)
        found = nki.simulate(sends_what_it_never_wrote[2])(other)
        assert np.array_equal(found[:32], other[:32])
        assert np.isnan(found[32:]).all()
