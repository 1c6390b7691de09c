"""Products that accumulate are computed together, later: writes to their operands in between must not show."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim import nki
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

SIZE = 32


@nki.jit
def chains(stationary, moving, rewrites, together):
    """Each chain sums ``len`` products; before it, the parts that ``rewrites`` names take the next chain's values."""
    turns, parts, n, _ = moving.shape
    result = nl.ndarray((turns, n, n), dtype=nl.float32, buffer=nl.shared_hbm)
    if together:
        left = nl.ndarray((n, parts, n), dtype=nl.float32, buffer=nl.sbuf)
        right = nl.ndarray((n, parts, n), dtype=nl.float32, buffer=nl.sbuf)
        lefts = [left[:, i, :] for i in range(parts)]
        rights = [right[:, i, :] for i in range(parts)]
    else:
        lefts = [nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf) for _ in range(parts)]
        rights = [nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf) for _ in range(parts)]
    sums = []
    for turn in range(turns):
        for i in range(parts):
            if turn == 0 or (i, 0) in rewrites[turn]:
                nisa.dma_copy(dst=lefts[i], src=stationary[turn, i])
            if turn == 0 or (i, 1) in rewrites[turn]:
                nisa.dma_copy(dst=rights[i], src=moving[turn, i])
        total = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.psum)
        for i in range(parts):
            nisa.nc_matmul(dst=total, stationary=lefts[i], moving=rights[i])
        sums.append(total)
    for turn in range(turns):
        out = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=out, src=sums[turn])
        nisa.dma_copy(dst=result[turn], src=out)
    return result


@settings(deadline=None, max_examples=60)
@given(data=st.data(), turns=st.integers(2, 4), parts=st.integers(1, 3), together=st.booleans())
def test_a_chain_multiplies_what_its_operands_held(data, turns, parts, together):
    part = st.tuples(st.integers(0, parts - 1), st.integers(0, 1))
    rewrites = [data.draw(st.sets(part)) for _ in range(turns)]
    generator = np.random.default_rng(0)
    stationary, moving = generator.standard_normal((2, turns, parts, SIZE, SIZE)).astype(np.float32)
    result = trnsim.simulate(chains, stationary, moving, rewrites, together, chip="trn2")
    left, right = stationary[0].copy(), moving[0].copy()
    for turn in range(turns):
        for i, side in rewrites[turn] if turn else ():
            (right if side else left)[i] = (moving if side else stationary)[turn, i]
        np.testing.assert_allclose(result[turn], np.einsum("pki,pkj->ij", left, right), rtol=0, atol=1e-4)
