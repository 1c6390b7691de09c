"""Collectives on simulated ranks, against NumPy on the ranks' arrays."""

import ml_dtypes
import numpy as np
import pytest

import trnsim.nki.collectives as ncc
import trnsim.nki.isa as nisa
import trnsim.nki.language as nl
from trnsim import profile, simulate, simulate_ranks
from trnsim.errors import CompilerError, DeadlockError, HardwareError, InputError, UnsupportedError
from trnsim.fabric.data import execute
from trnsim.machine import core as machine
from trnsim.nki.placement import Placement
from trnsim.session import Session, SimulationOptions


def inputs(ranks, shape, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.integers(-20, 20, shape).astype(dtype) for _ in range(ranks)]


def run(kernel, arrays, *extra, **options):
    return [np.asarray(r) for r in simulate_ranks(kernel, [(a, *extra) for a in arrays], **options)]


def group_of(ranks):
    return ncc.ReplicaGroup([list(range(ranks))])


def copied(x):
    src = nl.ndarray(x.shape, x.dtype, buffer=nl.private_hbm)
    nisa.dma_copy(src, x)
    return src


def output(shape, dtype):
    return nl.ndarray(shape, dtype, buffer=nl.shared_hbm)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32])
@pytest.mark.parametrize("name", ["add", "minimum", "maximum"])
@pytest.mark.parametrize("memory", ["hbm", "sbuf"])
def test_all_reduce(dtype, name, memory):
    def kernel(x):
        out = output(x.shape, x.dtype)
        if memory == "hbm":
            ncc.all_reduce([x], [out], group_of(3), getattr(nl, name))
        else:
            src, dst = nl.load(x), nl.ndarray(x.shape, x.dtype, buffer=nl.sbuf)
            ncc.all_reduce([src], [dst], group_of(3), getattr(nl, name))
            nisa.dma_copy(out, dst)
        return out

    arrays = inputs(3, (16, 10), dtype=dtype)
    expected = getattr(np, name).reduce([a.astype(np.float64) for a in arrays])
    for found in run(kernel, arrays):
        assert found.dtype == dtype
        assert np.array_equal(found.astype(np.float64), expected)


def test_subgroups_and_coalesced_tensors_in_place():
    def kernel(x):
        a, b = copied(x), copied(x)
        pairs = ncc.ReplicaGroup([[0, 2], [1, 3]])
        ncc.all_reduce(srcs=[a, b], dsts=[a, b], replica_group=pairs, op=nl.add)
        ncc.all_reduce(srcs=[b], dsts=[b], replica_group=group_of(4), op=nl.add)
        return a, b

    arrays = inputs(4, (8, 4))
    results = simulate_ranks(kernel, [(a,) for a in arrays])
    for rank, (a, b) in enumerate(results):
        assert np.array_equal(a, arrays[rank] + arrays[(rank + 2) % 4])
        assert np.array_equal(b, 2 * sum(arrays))


@pytest.mark.parametrize(("memory", "dim"), [("hbm", 0), ("sbuf", 0), ("sbuf", 1)])
def test_all_gather(memory, dim):
    def kernel(x):
        shape = list(x.shape)
        shape[dim] *= 4
        out = output(tuple(shape), x.dtype)
        if memory == "hbm":
            ncc.all_gather([x], [out], group_of(4), collective_dim=dim)
        else:
            dst = nl.ndarray(tuple(shape), x.dtype, buffer=nl.sbuf)
            ncc.all_gather([nl.load(x)], [dst], group_of(4), collective_dim=dim)
            nisa.dma_copy(out, dst)
        return out

    arrays = inputs(4, (8, 6))
    for found in run(kernel, arrays):
        assert np.array_equal(found, np.concatenate(arrays, axis=dim))


def test_reduce_scatter_and_all_to_all():
    def kernel(x):
        share = output((x.shape[0] // 4, x.shape[1]), x.dtype)
        ncc.reduce_scatter([x], [share], group_of(4), collective_dim=0, op=nl.maximum)
        turned = output(x.shape, x.dtype)
        ncc.all_to_all([x], [turned], group_of(4), collective_dim=0)
        return share, turned

    arrays = inputs(4, (8, 5))
    stacked = np.stack(arrays).reshape(4, 4, 2, 5)
    for rank, (share, turned) in enumerate(simulate_ranks(kernel, [(a,) for a in arrays])):
        assert np.array_equal(share, stacked.max(axis=0)[rank])
        assert np.array_equal(turned, stacked[:, rank].reshape(8, 5))


def test_collective_permute():
    def kernel(x):
        out = output(x.shape, x.dtype)
        nisa.dma_copy(out, x)
        ncc.collective_permute([x], [out], [(0, 2), (2, 1)])
        return out

    arrays = inputs(4, (4, 4))
    found = run(kernel, arrays)
    for rank, origin in enumerate([0, 2, 0, 3]):
        assert np.array_equal(found[rank], arrays[origin])


def ring_kernel(x, ranks):
    """All-gather by a ring: each step's register says whose rows have come."""
    group = group_of(ranks)
    rows, columns = x.shape
    out = output((ranks * rows, columns), x.dtype)
    here, there = copied(x), nl.ndarray(x.shape, x.dtype, buffer=nl.private_hbm)
    for step in range(ranks):
        origin = ncc.collective_permute_implicit_current_processing_rank_id(step, group)
        nisa.dma_copy(out[nl.ds(origin * rows, rows)], here)
        if step < ranks - 1:
            ncc.collective_permute_implicit([[here]], [[there]], group)
            here, there = there, here
    return out


def test_ring_and_its_register():
    arrays = inputs(4, (2, 6))
    for found in run(ring_kernel, arrays, 4):
        assert np.array_equal(found, np.concatenate(arrays))


def test_ring_with_reduction_and_channels():
    def kernel(x):
        a, b = output(x.shape, x.dtype), output(x.shape, x.dtype)
        ncc.collective_permute_implicit_reduce(
            [[x], [x]], [[x], [x]], [[a], [b]], group_of(3), nl.add, channel_ids=[0, 1]
        )
        return a, b

    arrays = inputs(3, (4, 4))
    for rank, (a, b) in enumerate(simulate_ranks(kernel, [(x,) for x in arrays])):
        assert np.array_equal(a, 2 * arrays[rank - 1])
        assert np.array_equal(b, 2 * arrays[rank - 1])


@pytest.mark.parametrize("memory", ["hbm", "sbuf"])
def test_all_to_all_v(memory):
    counts = np.array([[1, 2, 0], [3, 0, 1], [2, 2, 2]])
    starts = np.array([[0, 1, 3], [0, 3, 3], [4, 2, 0]])

    def kernel(x, meta):
        out = output((12,), x.dtype)
        nisa.dma_copy(out, x)
        table = nl.load(meta.reshape((1, 3, 3))) if memory == "sbuf" else copied(meta)
        ncc.all_to_all_v([x], [out], group_of(3), table)
        back = output(table.shape, "uint32")
        nisa.dma_copy(back, table)
        return out, back

    arrays = inputs(3, (12,), 5)
    metas = [np.stack((counts[r], starts[r], [7, 7, 7])).astype(np.uint32) for r in range(3)]
    results = simulate_ranks(kernel, list(zip(arrays, metas, strict=True)))
    for me, (out, back) in enumerate(results):
        expected = arrays[me].copy()
        for source in range(3):
            n, at = counts[source, me], starts[source, me]
            expected[4 * source : 4 * source + n] = arrays[source][at : at + n]
        assert np.array_equal(out, expected)
        assert np.array_equal(back.reshape(3, 3)[2], counts[:, me])


def test_all_to_all_v_with_given_places():
    counts = np.array([[1, 2], [3, 0]])
    places = np.array([[5, 0], [2, 7]])

    def kernel(x, meta):
        out = output((8,), x.dtype)
        nisa.dma_copy(out, x)
        table = copied(meta)
        ncc.all_to_all_v([x], [out], group_of(2), table, recv_counts_known=True, has_rdispls=True)
        back = output(meta.shape, meta.dtype)
        nisa.dma_copy(back, table)
        return out, back

    arrays = inputs(2, (8,), 11)
    metas = [np.stack((counts[r], [0, 4], [9, 9], places[r])).astype(np.uint32) for r in range(2)]
    for me, (out, back) in enumerate(simulate_ranks(kernel, list(zip(arrays, metas, strict=True)), chip="trn3")):
        expected = arrays[me].copy()
        for source in range(2):
            n, at, to = counts[source, me], 4 * me, places[me, source]
            expected[to : to + n] = arrays[source][at : at + n]
        assert np.array_equal(out, expected)
        assert np.array_equal(back, metas[me])


@pytest.mark.parametrize(("count", "start", "operand"), [(5, 4, "metadata_tensor"), (5, 0, "dsts")])
def test_chunks_must_fit(count, start, operand):
    def kernel(x, meta):
        ncc.all_to_all_v([x], [output((8,), x.dtype)], group_of(2), meta)

    meta = np.array([[count, 0], [start, 0], [0, 0]], np.uint32)
    with pytest.raises(HardwareError) as caught:
        simulate_ranks(kernel, [(x, meta) for x in inputs(2, (8,))])
    assert caught.value.operand == operand


def gather_v_kernel(x, meta):
    out = output((16,), x.dtype)
    if nl.program_id(0) == 0:
        nisa.dma_copy(out, x)
    table = nl.ndarray(meta.shape, meta.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(table, meta)
    nisa.core_barrier(out, (0, 1))
    ncc.all_gather_v([x], [out], group_of(4), table)
    return out, table


def test_all_gather_v():
    arrays = inputs(4, (16,), 6)
    metas = [np.array([[r + 1, 0, 0, 0], [2 * r, 0, 0, 0], [9, 9, 9, 9]], np.uint32) for r in range(4)]
    results = simulate_ranks(gather_v_kernel, list(zip(arrays, metas, strict=True)), lnc=2)
    for me, (out, table) in enumerate(results):
        expected = arrays[me].copy()
        for r in range(4):
            expected[4 * r : 4 * r + r + 1] = arrays[r][2 * r : 3 * r + 1]
        assert np.array_equal(out, expected)
        assert table[2].tolist() == [1, 2, 3, 4]
    with pytest.raises(HardwareError, match="LNC=2"):
        simulate_ranks(
            lambda x, meta: ncc.all_gather_v([x], [x], group_of(4), meta), list(zip(arrays, metas, strict=True))
        )


def test_two_cores_a_rank():
    def kernel(x):
        core = nl.program_id(0)
        half = x.shape[0] // 2
        mine = nl.load(x[core * half : (core + 1) * half])
        total = nl.ndarray(mine.shape, x.dtype, buffer=nl.sbuf)
        ncc.all_reduce([mine], [total], group_of(3), nl.add)
        shared = output(x.shape, x.dtype)
        nisa.dma_copy(shared[core * half : (core + 1) * half], total)
        ncc.all_reduce([shared], [shared], group_of(3), nl.add)
        return shared

    arrays = inputs(3, (16, 4))
    for found in run(kernel, arrays, lnc=2):
        assert np.array_equal(found, 3 * sum(arrays))


def test_rank_id_selects():
    def kernel(x):
        out = output((1, x.shape[1]), x.dtype)
        nisa.dma_copy(out, x[nl.ds(ncc.rank_id(), 1)])
        return out

    x = inputs(1, (4, 6))[0]
    for rank, found in enumerate(run(kernel, [x] * 4)):
        assert np.array_equal(found[0], x[rank])


def test_ranks_have_memories_of_their_own():
    def kernel(x):
        ncc.all_reduce([x], [x], group_of(2), nl.add)
        return x

    x = np.ones((2, 2), np.float32)
    assert [r.tolist() for r in run(kernel, [x, x])] == [[[2, 2], [2, 2]]] * 2
    assert (x == 2).all()


def test_the_same_every_time():
    arrays = [np.random.default_rng(r).standard_normal((16, 16)).astype(np.float32) for r in range(4)]

    def kernel(x):
        out = output(x.shape, x.dtype)
        ncc.all_reduce([x], [out], group_of(4), nl.add)
        return out

    first, second = (run(kernel, arrays) for _ in range(2))
    assert all(np.array_equal(a, first[0]) for a in first + second)
    ordered = ((arrays[0] + arrays[1]) + arrays[2]) + arrays[3]
    assert np.array_equal(first[0], ordered)


# -- one rank ----------------------------------------------------------------------------------------------------------


def lonely(x):
    out = output(x.shape, x.dtype)
    ncc.all_reduce([x], [out], group_of(1), nl.add)
    return out


def test_a_kernel_that_is_called_alone_is_one_rank():
    x = inputs(1, (4, 4))[0]
    assert np.array_equal(simulate(lonely, x), x)

    def kernel(x):
        out = output(x.shape, x.dtype)
        ncc.all_reduce([x], [out], group_of(2), nl.add)
        return out

    with pytest.raises(CompilerError, match="simulate_ranks"):
        simulate(kernel, x)


def test_time_is_refused_by_name():
    with pytest.raises(
        UnsupportedError, match=r"the time of nki\.collectives\.all_reduce is not known here: .*system="
    ):
        profile(lonely, inputs(1, (4, 4))[0])


# -- in a system -------------------------------------------------------------------------------------------------------


def summed(x):
    out = output(x.shape, x.dtype)
    ncc.all_reduce([x], [out], ncc.ReplicaGroup([[0, 1, 2, 3], [4, 5, 6, 7]]), nl.add)
    return out


def timed(kernel, arrays, **options):
    with Session(SimulationOptions()).active() as session:
        simulate_ranks(kernel, [(a,) for a in arrays], **options)
    return session.calls


def test_time_in_a_system():
    arrays = inputs(8, (128, 4096))
    calls = timed(summed, arrays, system="trn2.48xlarge", lnc=2)
    nbytes = arrays[0].nbytes
    where = Placement("trn2.48xlarge", 8, 2)
    taken = where.time_ps("all_reduce", [[0, 1, 2, 3], [4, 5, 6, 7]], (0, 1, 2, 3), nbytes, 4)
    assert len(calls) == 8
    for call in calls:
        # The collective, and what any DMA has before its first and after its last packet.
        assert taken < call.timeline.total_ps < taken + 5_000_000
        assert call.timeline.support == "extrapolated"
    more = timed(summed, inputs(8, (128, 8192)), system="trn2.48xlarge", lnc=2)
    double = where.time_ps("all_reduce", [[0, 1, 2, 3], [4, 5, 6, 7]], (0, 1, 2, 3), 2 * nbytes, 4)
    assert more[0].timeline.total_ps - calls[0].timeline.total_ps == pytest.approx(double - taken, abs=1_000_000)


def test_sums_are_those_of_the_systems_algorithm():
    values = [(np.random.default_rng(r).standard_normal((8, 64)) * 100).astype(np.float32) for r in range(8)]
    alone = run(summed, values)
    placed = run(summed, values, system="trn2.48xlarge")
    made = Placement("trn2.48xlarge", 8, 1).schedule("all_reduce", (0, 1, 2, 3), values[0].nbytes, 4)
    expected = execute(made, [v.reshape(-1) for v in values[:4]])
    for rank in range(4):
        np.testing.assert_array_equal(placed[rank].reshape(-1), expected[rank])
        order = ((values[0] + values[1]) + values[2]) + values[3]
        np.testing.assert_array_equal(alone[rank], order)


def test_ranks_and_systems_that_do_not_fit():
    arrays = inputs(8, (4, 4))
    for options, match in [
        ({"system": "trn9"}, "unknown system"),
        ({"system": "p5.48xlarge"}, "no NeuronCores"),
        ({"system": "trn1.32xlarge", "chip": "trn2"}, "has trn1, not trn2"),
        ({"system": "trn1.32xlarge", "lnc": 2}, "no such logical core"),
    ]:
        with pytest.raises(InputError, match=match):
            simulate_ranks(summed, [(a,) for a in arrays], **options)


# -- ranks that do not match -------------------------------------------------------------------------------------------


def refused(kernel, ranks=2):
    arrays = inputs(ranks, (4, 4))
    with pytest.raises(DeadlockError) as caught:
        simulate_ranks(kernel, [(a, r) for r, a in enumerate(arrays)])
    text = str(caught.value)
    assert "nki.collectives." in text
    assert "test_collectives.py" in text
    return text


def test_ranks_that_call_different_functions():
    def kernel(x, rank):
        out = output(x.shape, x.dtype)
        if rank == 0:
            ncc.all_reduce([x], [out], group_of(2), nl.add)
        else:
            ncc.all_to_all([x], [out], group_of(2), 0)
        return out

    text = refused(kernel)
    assert "rank 0 waits in nki.collectives.all_reduce" in text
    assert "rank 1 waits in nki.collectives.all_to_all" in text


def test_ranks_that_differ_in_group_operator_or_shape():
    def by_group(x, rank):
        groups = [[0, 1], [2]] if rank == 1 else [[0, 1, 2]]
        ncc.all_reduce([x], [x], ncc.ReplicaGroup(groups), nl.add)

    def by_operator(x, rank):
        ncc.all_reduce([x], [x], group_of(2), nl.add if rank else nl.maximum)

    def by_shape(x, rank):
        view = x[0:2] if rank else x
        ncc.all_reduce([view], [view], group_of(2), nl.add)

    assert "replica_group" in refused(by_group, 3)
    assert "rank 1 calls it with op add instead of maximum" in refused(by_operator)
    assert "srcs [('float32', (2, 4))]" in refused(by_shape)


def test_a_rank_that_never_calls():
    def kernel(x, rank):
        if rank == 0:
            ncc.all_reduce([x], [x], group_of(2), nl.add)

    assert "rank 1 has finished without it" in refused(kernel)
    assert not machine.running()


def test_a_core_that_never_calls():
    def kernel(x):
        shared = output(x.shape, x.dtype)
        if nl.program_id(0) == 0:
            ncc.all_reduce([x], [shared], group_of(2), nl.add)
        return shared

    with pytest.raises(DeadlockError, match="core 1 has finished"):
        run(kernel, inputs(2, (4, 4)), lnc=2)


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "operand", "call"),
    [
        (HardwareError, "op", lambda x, g: ncc.all_reduce([x], [x], g, nl.multiply)),
        (HardwareError, "dsts", lambda x, g: ncc.all_reduce([x], [x[0:2]], g, nl.add)),
        (HardwareError, "dsts", lambda x, g: ncc.all_reduce([x, x], [x], g, nl.add)),
        (HardwareError, "srcs", lambda x, g: ncc.all_reduce([nl.load(x)] * 2, [nl.load(x)] * 2, g, nl.add)),
        (HardwareError, "dsts", lambda x, g: ncc.all_reduce([x], [nl.load(x)], g, nl.add)),
        (HardwareError, "priority", lambda x, g: ncc.all_reduce([x], [x], g, nl.add, priority=1)),
        (CompilerError, "srcs", lambda x, g: ncc.all_reduce(x, [x], g, nl.add)),
        (CompilerError, "replica_group", lambda x, g: ncc.all_reduce([x], [x], [[0]], nl.add)),
        (CompilerError, "groups", lambda x, g: ncc.all_reduce([x], [x], ncc.ReplicaGroup([[0], [0]]), nl.add)),
        (HardwareError, "collective_dim", lambda x, g: ncc.all_gather([x], [x], g, 1)),
        (HardwareError, "collective_dim", lambda x, g: ncc.reduce_scatter([nl.load(x)], [nl.load(x)], g, 1, nl.add)),
        (HardwareError, "srcs", lambda x, g: ncc.all_to_all([nl.load(x)], [nl.load(x)], g, 0)),
        (HardwareError, "srcs", lambda x, g: ncc.collective_permute([x, x], [x, x], [(0, 0)])),
        (HardwareError, "source_target_pairs", lambda x, g: ncc.collective_permute([x], [x], [(0, 0), (0, 0)])),
        (HardwareError, "channel_ids", lambda x, g: ncc.collective_permute_implicit([[x]], [[x]], g, [1])),
        (HardwareError, "srcs_by_channel", lambda x, g: ncc.collective_permute_implicit([[x]], [[x]], g, [0, 1])),
        (HardwareError, "has_rdispls", lambda x, g: ncc.all_to_all_v([x], [x], g, x, has_rdispls=True)),
        (CompilerError, "metadata_tensor", lambda x, g: ncc.all_to_all_v([x], [x], g, x)),
    ],
)
def test_rules(kind, operand, call):
    with pytest.raises(kind) as caught:
        simulate(lambda x: call(x, group_of(1)), np.zeros((4, 4), np.float32), chip="trn2")
    assert caught.value.operand == operand
    assert caught.value.location is not None


def test_arguments_by_name():
    def kernel(x, scale, *, lift):
        out = output(x.shape, x.dtype)
        ncc.all_reduce([x], [out], group_of(2), nl.add)
        tile = nl.load(out)
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=float(scale), op1=nl.add, operand1=lift)
        nisa.dma_copy(out, tile)
        return out

    a, b = inputs(2, (4, 4))
    found = simulate_ranks(kernel, [{"x": a, "scale": 2}, {"x": b, "scale": 3}], lift=1.0)
    assert np.array_equal(found[0], 2 * (a + b) + 1)
    assert np.array_equal(found[1], 3 * (a + b) + 1)
