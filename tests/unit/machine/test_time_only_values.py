"""Values that a time-only run needs: told from what they depend on, on two cores too, and refused elsewhere."""

import numpy as np
import pytest

import trnsim
import trnsim.nki.isa as nisa
import trnsim.nki.language as nl
from trnsim.errors import UnsupportedError
from trnsim.numerics import as_dtype
from trnsim.session import ShapeOnly


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


def reuses_bytes(data, steps):
    """The register is loaded from bytes that held a tile of ``data`` before, and hold others between."""
    out = nl.ndarray((2, 1), dtype=nl.float32, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    first = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf, address=(0, 0))
    for turn in range(2):
        nisa.dma_copy(first, data[core : core + 1])
        nisa.dma_copy(out[core : core + 1], first)
        second = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf, address=(0, 0))
        nisa.dma_copy(second, steps[core : core + 1])
        nisa.tensor_scalar(second, second, nl.add, turn)
        register = nisa.register_alloc(second)
        for _ in range(int(register)):
            nisa.tensor_scalar(second, second, nl.add, 1)
        row = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf, address=(0, 0))
        nisa.memset(row, turn)
        nisa.dma_copy(first, data.ap([[1, 1], [1, 1]], scalar_offset=row, indirect_dim=0))
    return out


@pytest.mark.parametrize("lnc", [1, 2])
def test_reused_bytes_need_no_data(lnc):
    steps = np.array([[3], [1]], np.int32)
    recorded = []
    for data, numeric in ((np.ones((2, 1), np.float32), True), (ShapeOnly((2, 1), as_dtype("float32")), False)):
        options = trnsim.SimulationOptions(chip="trn2", numeric=numeric, lnc=lnc)
        session = trnsim.Session(options)
        with session.active():
            trnsim.simulate(reuses_bytes, data, steps, options=options)
        recorded.append([(len(t), t.operand_rows.tolist()) for t in session.calls[-1].traces])
    assert recorded[0] == recorded[1]
