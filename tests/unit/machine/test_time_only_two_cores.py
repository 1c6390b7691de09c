"""Values that a time-only run on two cores needs: told where they depend on a core's own work, refused elsewhere."""

import numpy as np
import pytest

import trnsim
import trnsim.nki.isa as nisa
import trnsim.nki.language as nl
from trnsim.errors import UnsupportedError


def count_down(steps):
    """Each core takes as many steps as its element of ``steps`` says, doubled in SBUF."""
    out = nl.ndarray((2, 1), dtype=nl.int32, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    tile = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(tile, steps[core : core + 1])
    nisa.tensor_scalar(tile, tile, nl.multiply, 2)
    register = nisa.register_alloc(tile)
    for _ in range(int(register)):
        nisa.tensor_scalar(tile, tile, nl.add, 1)
    nisa.dma_copy(out[core : core + 1], tile)
    return out


def reads_what_the_other_wrote(steps):
    shared = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.shared_hbm)
    nisa.dma_copy(shared, steps[0:1])
    nisa.core_barrier(shared, (0, 1))
    register = nisa.register_alloc(shared)
    for _ in range(int(register)):
        nisa.dma_copy(shared, steps[0:1])
    return shared


def traces(kernel, numeric):
    options = trnsim.SimulationOptions(chip="trn2", numeric=numeric, lnc=2)
    session = trnsim.Session(options)
    steps = np.array([[3], [1]], np.int32)
    with session.active():
        trnsim.simulate(kernel, steps, options=options)
    return session.calls[-1].traces


def test_each_core_tells_its_own_values():
    known, lazy = traces(count_down, True), traces(count_down, False)
    assert [len(t) for t in lazy] == [len(t) for t in known]
    assert len(known[0]) - len(known[1]) == 4


def test_what_both_cores_may_write_is_refused():
    with pytest.raises(UnsupportedError, match="both cores may write"):
        traces(reads_what_the_other_wrote, False)
