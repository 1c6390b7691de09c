"""What the two cores of a logical core do together: ``sendrecv`` in every layout, ``core_barrier``, and limits."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim import nki
from trnsim.errors import DeadlockError, HardwareError
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

DTYPES = [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.int32, np.uint8]


@nki.jit
def exchange(x, rounds, ranks, step, in_place, engine):
    """Each core sends every ``step``-th column of its rows; rounds alternate between two pipes."""
    me = nl.program_id(0)
    _, p, f = x.shape
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    mine = nl.ndarray((p, f), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=mine, src=x[me])
    other = mine if in_place else nl.ndarray((p, f), dtype=x.dtype, buffer=nl.sbuf)
    if not in_place:
        nisa.dma_copy(dst=other, src=x[me])
    for turn in range(rounds):
        to = ranks[turn % len(ranks)][me]
        source = ranks[turn % len(ranks)].index(me)
        src, dst = (mine, other) if turn % 2 == 0 else (other, mine)
        nisa.sendrecv(src[:, ::step], dst[:, ::step], to, source, turn % 2, engine)
    nisa.dma_copy(dst=out[me], src=other if rounds % 2 else mine)
    return out


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(DTYPES), st.sampled_from([1, 7, 128]), st.sampled_from([1, 3]), st.integers(1, 3),
    st.lists(st.sampled_from([(1, 0), (0, 1)]), min_size=1, max_size=2), st.booleans(),
    st.sampled_from(["dma", "gpsimd_dma"]), st.sampled_from(["trn2", "trn3"]),
)  # fmt: skip
def test_tiles_are_exchanged(kind, partitions, step, rounds, ranks, in_place, engine, chip):
    """``ranks[i][c]``: to whom core c sends in a round; (0, 1) is to itself."""
    x = np.random.default_rng(step).integers(0, 100, (2, partitions, 9)).astype(kind)
    result = trnsim.simulate(exchange[2], x, rounds, ranks, step, in_place, nisa.dma_engine[engine], chip=chip)
    mine = [x[0].copy(), x[1].copy()]
    other = mine if in_place else [x[0].copy(), x[1].copy()]
    for turn in range(rounds):
        src, dst = (mine, other) if turn % 2 == 0 else (other, mine)
        sent = [s[:, ::step].copy() for s in src]
        for core in range(2):
            dst[ranks[turn % len(ranks)][core]][:, ::step] = sent[core]
    np.testing.assert_array_equal(result, np.stack(other if rounds % 2 else mine))


def tile(shape=(4, 8), dtype=nl.float32, buffer=nl.sbuf):
    x = nl.ndarray(shape, dtype=dtype, buffer=buffer)
    if buffer is not nl.shared_hbm:
        nisa.memset(x, 0)
    return x


def swap(src, dst, to=None, source=None, engine=nisa.dma_engine.dma):
    other = 1 - nl.program_id(0)
    nisa.sendrecv(src, dst, other if to is None else to, other if source is None else source, 0, engine)


ON_CHIP = nisa.dma_engine.gpsimd_dma
RULES = [
    ("src", lambda: swap(tile(buffer=nl.psum), tile())),
    ("dst", lambda: swap(tile(), tile(buffer=nl.psum))),
    ("src", lambda: swap(tile(buffer=nl.shared_hbm), tile())),
    ("dst", lambda: swap(tile(), tile(dtype=nl.bfloat16))),
    ("dst", lambda: swap(tile(), tile((4, 2, 4)))),
    ("dst", lambda: swap(tile(), tile((4, 9)))),
    ("dst", lambda: swap(tile(), tile((5, 8)))),
    ("send_to_rank", lambda: swap(tile(), tile(), to=2)),
    ("src", lambda: swap(tile((4, 257)), tile((4, 257)), engine=ON_CHIP)),
    ("src", lambda: swap(tile((4, 257), nl.bfloat16), tile((4, 257), nl.bfloat16), engine=ON_CHIP)),
    ("src", lambda: swap(tile((4, 257), nl.int8), tile((4, 257), nl.int8), engine=ON_CHIP)),
    ("cores", lambda: nisa.core_barrier(tile(), (0,))),
    ("cores", lambda: nisa.core_barrier(tile(), (1, 0))),
    ("cores", lambda: nisa.core_barrier(tile(), (0, 1, 2))),
]


@pytest.mark.parametrize(("operand", "call"), RULES)
def test_rules(operand, call):
    @nki.jit
    def kernel():
        call()

    with pytest.raises(HardwareError) as caught:
        trnsim.simulate(kernel[2], chip="trn2")
    error = caught.value
    assert error.operand == operand
    assert error.instruction in ("sendrecv", "core_barrier")
    assert error.value is not None
    assert error.limit is not None
    assert "NeuronCore-v3" in str(error)


@pytest.mark.parametrize("size", [(256, nl.float32), (256, nl.bfloat16), (256, nl.int8)])
def test_the_limit_of_gpsimd_is_allowed(size):
    @nki.jit
    def kernel():
        shape, dtype = (4, size[0]), size[1]
        swap(tile(shape, dtype), tile(shape, dtype), engine=ON_CHIP)

    trnsim.simulate(kernel[2], chip="trn2")


@pytest.mark.parametrize("cores", [0, (0,), [0]])
def test_a_core_alone_waits_for_nobody(cores):
    @nki.jit
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, x)
        nisa.core_barrier(out, cores)
        return out

    x = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(trnsim.simulate(kernel, x, chip="trn2"), x)
    with pytest.raises(HardwareError, match="does not exist on NeuronCore-v2"):
        trnsim.simulate(kernel, x, chip="trn1")


def test_pipes_that_differ_do_not_meet():
    @nki.jit
    def kernel():
        me = nl.program_id(0)
        nisa.sendrecv(tile(), tile(), 1 - me, 1 - me, me)

    with pytest.raises(DeadlockError, match="pipe 1"):
        trnsim.simulate(kernel[2], chip="trn2")
