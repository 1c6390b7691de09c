"""Programs of a launch grid in NKI 0.1: reductions over them, tensors that they share, cores that they run on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim.errors import CompilerError, DeadlockError
from trnsim.nki.versions import beta1 as nki
from trnsim.nki.versions.beta1 import language as nl


def data(*shape, dtype=np.float32):
    return (np.random.default_rng(0).random(shape) * 4 - 2).astype(dtype)


def profiled(kernel, *args, **options):
    """The record of a call, and what it returns."""
    session = trnsim.Session(trnsim.SimulationOptions(**{"chip": "trn2", **options}))
    with session.active():
        result = kernel(*args)
    return session.calls[-1], result


def names(trace):
    return [trace.classes[k].name.removeprefix("nki.isa.") for k in trace.instructions["klass"]]


@nki.jit
def reduce_kernel(a, op, axes, dtype=None):
    out = nl.ndarray(a.shape, dtype=dtype or a.dtype, buffer=nl.shared_hbm)
    ids = tuple(nl.program_id(axis) for axis in range(nl.program_ndim()))
    total = nl.all_reduce(nl.load(a[ids]), op, axes, dtype=dtype)
    nl.store(out[ids], total)
    return out


# -- nl.all_reduce -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "axes"),
    [((4,), 0), ((4,), (0,)), ((2, 3), 0), ((2, 3), 1), ((2, 3), (0, 1)), ((1, 3), 0), ((nl.nc(2),), 0),
     ((nl.nc(2) * 2, 2), 0), ((2 * nl.nc(2), 2), (0, 1)), ((2, nl.nc(2)), 0)],
)  # fmt: skip
@pytest.mark.parametrize(("op", "reference"), [(np.add, np.sum), (np.maximum, np.max), (nl.minimum, np.min)])
def test_all_reduce(grid, axes, op, reference):
    sizes = tuple(int(n) for n in grid)
    a = data(*sizes, 8, 16).astype(nl.bfloat16)
    expected = reference(a.astype(np.float64), axis=axes, keepdims=True)
    expected = np.broadcast_to(expected, a.shape).astype(np.float32).astype(nl.bfloat16)
    np.testing.assert_array_equal(reduce_kernel[grid](a, op, axes), expected)


@settings(max_examples=25, deadline=None)
@given(
    grid=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    chosen=st.sets(st.integers(0, 2), min_size=1),
    dtype=st.sampled_from(["int32", "float32"]),
)
def test_all_reduce_of_any_grid(grid, chosen, dtype):
    axes = tuple(sorted(axis for axis in chosen if axis < len(grid))) or (0,)
    a = np.random.default_rng(1).integers(-1000, 1000, (*grid, 2, 3)).astype(dtype)
    expected = np.broadcast_to(a.sum(axis=axes, keepdims=True), a.shape)
    np.testing.assert_array_equal(reduce_kernel[grid](a, np.add, axes), expected)


def test_all_reduce_with_a_mask_and_dtype():
    @nki.jit
    def kernel(a):
        out = nl.ndarray((3, 8, 16), dtype=nl.bfloat16, buffer=nl.shared_hbm)
        i, j = nl.mgrid[0:8, 0:16]
        total = nl.zeros((8, 16), dtype=nl.bfloat16)
        tile = nl.load(a[nl.program_id(0)])
        total[i, j] = nl.all_reduce(tile[i, j], np.add, 0, dtype=nl.bfloat16, mask=(i < 4))
        nl.store(out[nl.program_id(0)], total)
        return out

    a = data(3, 8, 16)
    expected = np.zeros((3, 8, 16), nl.bfloat16)
    expected[:, :4] = ((a[0] + a[1]) + a[2])[:4].astype(nl.bfloat16)
    np.testing.assert_array_equal(kernel[3](a), expected)


def test_all_reduce_over_cores_is_an_exchange():
    call, _ = profiled(reduce_kernel[nl.nc(2) * 2], data(4, 8, 16), np.add, 0)
    assert len(call.traces) == 2
    for trace in call.traces:
        assert names(trace).count("sendrecv") == 1
        assert len(trace.rendezvous) == 1
    assert call.timeline.total_ps > 0


def test_all_reduce_on_one_core():
    call, _ = profiled(reduce_kernel[3], data(3, 8, 16), np.add, 0)
    (trace,) = call.traces
    assert [n for n in names(trace) if n != "dma_copy"] == ["tensor_tensor"] * 2 + ["tensor_copy"] * 3


def test_a_program_that_never_comes_is_a_deadlock():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        tile = nl.load(a[nl.program_id(0)])
        if nl.program_id(0) != 1:
            tile = nl.all_reduce(tile, np.add, 0)
        nl.store(out[nl.program_id(0)], tile)
        return out

    for grid in (3, nl.spmd_dim(nl.nc(2), 2)):
        a = data(int(grid), 8, 16)
        with pytest.raises(DeadlockError) as caught:
            kernel[grid](a)
        text = str(caught.value)
        assert "program (0,) waits in nl.all_reduce of" in text
        assert "program (1,) has finished" in text
        assert caught.value.location.file == __file__


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda tile: nl.all_reduce(tile, np.add, 1), "no such axis"),
        (lambda tile: nl.all_reduce(tile, np.subtract, 0), "no reduction"),
        (lambda tile: nl.all_reduce(tile, np.add if nl.program_id(0) else np.max, 0), "another op"),
        (lambda tile: nl.all_reduce(tile[: 4 + nl.program_id(0)], np.add, 0), "another shape"),
    ],
)
def test_wrong_all_reduce(call, match):
    @nki.jit
    def kernel(a):
        call(nl.load(a))

    with pytest.raises(CompilerError, match=match):
        kernel[2](data(8, 16))


# -- shared tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4,), (nl.nc(2) * 2,), (2 * nl.nc(2),)])
@pytest.mark.parametrize("towards", [1, -1])
def test_programs_read_what_others_write(grid, towards):
    """Each program hands what it computes to its neighbour: in one direction the writer runs after the reader."""

    @nki.jit
    def kernel(a):
        box = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        me, count = nl.program_id(0), nl.num_programs(0)
        last = count - 1 if towards > 0 else 0
        mine = nl.load(a[me])
        if me != last:
            mine = mine + nl.load(box[me + towards])
        nl.store(box[me], mine)
        nl.store(out[me], mine)
        return out

    a = data(4, 8, 16)
    ordered = a[::-1] if towards > 0 else a
    expected = np.cumsum(ordered, axis=0, dtype=np.float32)
    expected = expected[::-1] if towards > 0 else expected
    call, result = profiled(kernel[grid], a)
    np.testing.assert_array_equal(result, expected)
    assert {f.kind for f in call.findings} == ({"unordered-cores"} if len(call.traces) > 1 else set())


@pytest.mark.parametrize("ordered", [False, True])
def test_cores_that_nothing_orders_are_reported(ordered):
    """Two cores exchange halves of a tensor: one reads what the other has written before, and the other way round."""

    @nki.jit
    def kernel(a):
        box = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        me = nl.program_id(0)
        nl.store(box[me], nl.load(a[me]))
        nl.store(out[me], nl.load(box[me]))
        if ordered:
            nl.store(out[me], nl.all_reduce(nl.load(a[me]), np.add, 0))
        nl.store(out[me], nl.load(box[1 - me]))
        return out

    call, result = profiled(kernel[nl.nc(2)], data(2, 8, 16))
    np.testing.assert_array_equal(result, data(2, 8, 16)[::-1])
    found = [(f.kind, f.count, f.details["bytes"]) for f in call.findings]
    assert found == ([] if ordered else [("unordered-cores", 2, 8 * 16 * 4)])


def test_what_no_program_writes_is_a_finding_not_a_deadlock():
    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        other = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        nl.load(other[nl.program_id(0)])
        nl.store(out[nl.program_id(0)], nl.load(a[nl.program_id(0)]))
        return out

    for grid in (2, nl.nc(2)):
        call, result = profiled(kernel[grid], data(2, 8, 16))
        assert [f.kind for f in call.findings] == ["uninitialized-read"]
        np.testing.assert_array_equal(result, data(2, 8, 16))


def test_each_program_has_its_own_state():
    """A result without a place, a predicate of ``and``, a name: what waits in one program is not seen by another."""

    @nki.jit
    def kernel(a):
        out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
        me = nl.program_id(0)
        i, j = nl.mgrid[0:8, 0:16]
        kept = nl.zeros((8, 16), dtype=a.dtype, name="kept")
        pending = nl.multiply(nl.load(a[me]), float(me + 1))
        kept[i, j] = nl.copy(nl.all_reduce(pending, np.add, 0)[i, j], mask=(i < 4 and j < 2 + me))
        nl.store(out[me], kept)
        return out

    a = data(2, 8, 16)
    expected = np.zeros_like(a)
    for me in range(2):
        expected[me, :4, : 2 + me] = (a[0] + 2 * a[1])[:4, : 2 + me]
    call, result = profiled(kernel[2], a)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert not call.findings


# -- cores -------------------------------------------------------------------------------------------------------------


@nki.jit
def core_kernel(a):
    out = nl.ndarray((nl.num_programs(), 1), dtype=nl.int32, buffer=nl.shared_hbm)
    me = nl.program_id(0) * nl.num_programs(1) + nl.program_id(1)
    nl.store(out[me], nl.full((1, 1), me, dtype=nl.int32))
    return out


@pytest.mark.parametrize(
    ("grid", "first"),
    [((4, 2), [0, 1, 2, 3, 4, 5, 6, 7]), ((nl.nc(2), 2), [0, 1]), ((nl.spmd_dim(nl.nc(2), 2), 2), [0, 1, 2, 3]),
     ((nl.spmd_dim(2, nl.nc(2)), 2), [0, 1, 4, 5]), ((2 * nl.nc(2), 2), [0, 1, 4, 5]), ((4, nl.nc(2)), [0, 2, 4, 6])],
)  # fmt: skip
def test_where_programs_run(grid, first):
    """The distribution that the reference of ``nl.nc`` and ``nl.spmd_dim`` gives."""
    count = int(grid[0]) * int(grid[1])
    call, result = profiled(core_kernel[grid], data(1, 1))
    np.testing.assert_array_equal(result[:, 0], np.arange(count))
    trace = call.traces[0]
    stored = [
        trace.operands["offset"][row] // 4
        for row, k in zip(trace.instructions["operand"], trace.instructions["klass"], strict=True)
        if trace.classes[k].name == "nki.isa.dma_copy"
    ]
    assert stored == first
    assert len(call.traces) == (1 if len(first) == count else 2)


def test_cores_that_the_options_ask_for():
    call, _ = profiled(core_kernel[4, 2], data(1, 1), lnc=2)
    assert [names(t).count("dma_copy") for t in call.traces] == [4, 4]
    call, _ = profiled(core_kernel[1, 1], data(1, 1), lnc=2)
    assert len(call.traces) == 1


def test_cores_that_the_environment_asks_for(monkeypatch):
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "2")
    for grid, cores in (((4, 2), 2), ((1, 1), 1), ((nl.nc(2), 1), 2)):
        call, result = profiled(core_kernel[grid], data(1, 1))
        assert len(call.traces) == cores
        np.testing.assert_array_equal(result[:, 0], np.arange(len(result)))
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "1")
    assert len(profiled(core_kernel[nl.nc(2), 1], data(1, 1))[0].traces) == 2


def test_cores_that_a_chip_does_not_have():
    with pytest.raises(CompilerError, match="NeuronCore-v2 has no logical cores"):
        trnsim.simulate(core_kernel[nl.nc(2), 2], data(1, 1), chip="trn1")
    with pytest.raises(CompilerError, match="at most 2 cores"):
        core_kernel[nl.nc(4), 2]


def test_programs_are_deterministic():
    first, a = profiled(reduce_kernel[2 * nl.nc(2)], data(4, 8, 16), np.add, 0)
    second, b = profiled(reduce_kernel[2 * nl.nc(2)], data(4, 8, 16), np.add, 0)
    np.testing.assert_array_equal(a, b)
    for one, other in zip(first.traces, second.traces, strict=True):
        np.testing.assert_array_equal(one.instruction_rows, other.instruction_rows)
        np.testing.assert_array_equal(one.operand_rows, other.operand_rows)
    assert first.timeline.total_ps == second.timeline.total_ps
