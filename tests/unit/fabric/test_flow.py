"""Flow simulation against hand calculation, the closed form and the laws of sharing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError, UnsupportedError
from trnsim.fabric import closed
from trnsim.fabric.algorithms import algorithms, schedule
from trnsim.fabric.flow import Run, fair_rates, simulate, time_alone
from trnsim.fabric.group import group
from trnsim.fabric.links import LinkModel, Protocol
from trnsim.fabric.program import from_schedule
from trnsim.fabric.rings import ring_orders
from trnsim.fabric.topology import topology

MIB = 1 << 20
PLAIN = {
    name: LinkModel(technology=name, protocols=(Protocol(name="", step_latency_ps=latency, efficiency=efficiency),))
    for name, latency, efficiency in [
        ("NeuronLink-v2", 1_500_000, 1.0), ("NeuronLink-v3", 1_500_000, 0.8), ("NeuronLink-v4", 1_500_000, 1.0),
        ("DMA v2", 1_500_000, 1.0), ("DMA v3", 1_000_000, 1.0), ("DMA v4", 1_500_000, 0.9),
        ("NVLink 4", 2_000_000, 0.9),
        ("EFA", 15_000_000, 0.75), ("EFAv3", 15_000_000, 1.0),
    ]
}  # fmt: skip


def _program(system, ranks, collective, algorithm, nbytes, *, first=0, systems=None, **options):
    made = schedule(collective, algorithm, ranks, nbytes, **options)
    return from_schedule(made, group(system, range(first, first + ranks), systems=systems), models=PLAIN), made


def test_fair_rates_by_hand():
    # Flow 0 crosses both links, flows 1 and 2 one each: link 0 is shared by two, link 1 has 95 left for flow 2.
    links = np.array([[0, 1], [0, -1], [1, -1], [-1, -1]])
    usage = np.where(links >= 0, 1.0, 0.0)
    np.testing.assert_allclose(fair_rates(links, usage, np.array([10.0, 100.0])), [5, 5, 95, np.inf])


@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_fair_rates_are_max_min_fair(flows, count, seed):
    generator = np.random.default_rng(seed)
    links = np.array([np.append(np.sort(generator.permutation(count)[: max(1, count // 2)]), -1) for _ in range(flows)])
    usage = np.where(links >= 0, generator.uniform(0.5, 2, links.shape), 0.0)
    capacity = generator.uniform(1, 10, count)
    rates = fair_rates(links, usage, capacity)
    load = np.zeros(count)
    for flow in range(flows):
        for link, used in zip(links[flow], usage[flow], strict=True):
            load[link] += used * rates[flow] if link >= 0 else 0
    assert (load <= capacity * (1 + 1e-9)).all()
    for flow in range(flows):
        # Each flow has a full link on which no other is faster.
        mine = [link for link in links[flow] if link >= 0 and load[link] >= capacity[link] * (1 - 1e-9)]
        assert any(
            all(rates[other] <= rates[flow] * (1 + 1e-9) for other in range(flows) if link in links[other])
            for link in mine
        )


def test_one_transfer_by_hand():
    program, _ = _program("p5.48xlarge", 8, "permute", "mesh", 450 * 10**6, pairs=[(0, 1)])
    # 2 us, then 450 MB at 0.9 x 450 GB/s.
    assert time_alone(program).end_ps == 2_000_000 + round(10**9 / 0.9)


SYMMETRIC = [
    (system, ranks, systems, collective, algorithm, inner)
    for system, ranks, systems, inner in [
        ("trn1.32xlarge", 32, 1, 2), ("trn2.48xlarge", 64, 1, 4), ("trn2.48xlarge", 16, 1, 4), ("p5.48xlarge", 8, 1, 2),
        ("p5.48xlarge", 16, 2, 8), ("trn2.48xlarge", 128, 2, 64), ("trn3-ultraserver-gen1", 64, 1, 4),
    ]
    for collective, algorithm in [
        ("all_reduce", "ring"), ("all_reduce", "mesh"), ("all_reduce", "rdh"), ("all_reduce", "hierarchical"),
        ("all_reduce", "single_step_mesh"), ("all_reduce", "kangaring"), ("all_gather", "kangaring"),
        ("all_gather", "rdh"), ("reduce_scatter", "hierarchical"),
        ("all_to_all", "mesh"), ("all_to_all", "ring"), ("permute", "mesh"),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("system", "ranks", "systems", "collective", "algorithm", "inner"), SYMMETRIC)
def test_closed_form_equals_simulation(system, ranks, systems, collective, algorithm, inner):
    size = 128 * MIB
    options = {}
    if algorithm == "hierarchical":
        options = {"inner": inner, "inner_algorithm": "mesh", "outer_algorithm": "rdh"}
    pairs = {"pairs": [(i, (i + 1) % ranks) for i in range(ranks)]} if collective == "permute" else {}
    program, _ = _program(system, ranks, collective, algorithm, size, systems=systems, **options, **pairs)
    where = group(system, ranks, systems=systems)
    found = closed.collective_time(collective, algorithm, where, size, models=PLAIN, **options)
    assert found == pytest.approx(time_alone(program).end_ps, rel=1e-9, abs=2)


@pytest.mark.parametrize(
    ("system", "ranks", "systems"), [("trn2.48xlarge", 64, 1), ("p5.48xlarge", 16, 2), ("trn2.48xlarge", 128, 2)]
)
@pytest.mark.parametrize("algorithm", ["ring", "kangaring"])
def test_closed_form_equals_simulation_in_several_rings(system, ranks, systems, algorithm):
    where = group(system, ranks, systems=systems)
    orders = ring_orders(where)
    made = schedule("all_reduce", algorithm, ranks, 128 * MIB, orders=orders)
    simulated = time_alone(from_schedule(made, where, models=PLAIN)).end_ps
    found = closed.collective_time("all_reduce", algorithm, where, 128 * MIB, models=PLAIN, orders=orders)
    assert found == pytest.approx(simulated, rel=1e-9, abs=2)
    assert len({tuple(o) for o in orders.tolist()}) == len(orders)


def test_folded_copies_equal_all_copies_simulated():
    made = topology("trn2.48xlarge", 4)
    folded = closed.program("all_reduce", "ring", group(made, 4, stride=64, copies=64), 64 * MIB, models=PLAIN)
    one = schedule("all_reduce", "ring", 4, 64 * MIB)
    each = [Run(program=from_schedule(one, group(made, range(c, 256, 64)), models=PLAIN)) for c in range(64)]
    assert simulate(each).end_ps == pytest.approx(closed.time_ps(folded), rel=1e-9)
    assert time_alone(folded).end_ps == closed.time_ps(folded)


@given(
    st.sampled_from([("trn2.48xlarge", None), ("p5.48xlarge", None), ("trn1.32xlarge", None), ("inf2.48xlarge", None)]),
    st.sampled_from([(c, a) for c in ("all_reduce", "all_gather", "all_to_all", "broadcast") for a in algorithms(c)]),
    st.integers(1, 8), st.integers(0, 10**7), st.integers(1, 10**6),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_more_bytes_never_take_less_time_and_bytes_conserve(where, what, ranks, nbytes, more):
    system, systems = where
    collective, algorithm = what
    if algorithm == "kangaring" and ranks % 2 and ranks > 1:
        ranks += 1
    times = []
    for size in (nbytes, nbytes + more):
        options = {"inner": ranks} if algorithm == "hierarchical" else {}
        program, made = _program(system, min(ranks, 8), collective, algorithm, size, systems=systems, **options)
        found = time_alone(program)
        times.append(found.end_ps)
        _check_conservation(program, made, found)
    assert times[0] <= times[1]


def _check_conservation(program, made, found):
    """What crosses each link is what the schedule sends over it; what leaves a node is what came or begins there."""
    links = program.topology.links
    efficiency = np.array([
        1.0 if level.kind == "none" else PLAIN[level.technology].protocols[0].efficiency
        for level in program.topology.levels
    ])  # fmt: skip
    payload = found.link_bytes * efficiency[links.level]
    nodes = program.topology.node_count
    out = np.bincount(links.source, weights=payload, minlength=nodes)
    come = np.bincount(links.target, weights=payload, minlength=nodes)
    first = program.topology.first_node("rank" if program.topology.levels[0].kind == "star" else "chip")
    apart = made.source != made.target
    # No link carries more than it can in the time.
    room = links.bytes_per_second * found.end_ps * 1e-12
    assert (found.link_bytes <= room * (1 + 1e-6) + 1).all()
    begun = np.bincount(made.source[apart], weights=made.bytes[apart], minlength=made.ranks)
    ended = np.bincount(made.target[apart], weights=made.bytes[apart], minlength=made.ranks)
    balance = out - come
    expected = np.zeros(nodes)
    expected[first + program.places] = begun - ended
    np.testing.assert_allclose(balance, expected, atol=1e-6 * max(made.nbytes, 1) * made.ranks + 1e-3)
    if program.topology.levels[0].kind == "star":
        np.testing.assert_allclose(out[first + program.places], begun, rtol=1e-6)


# -- several at once ---------------------------------------------------------------------------------------------------


def _ring(first, nbytes=64 * MIB, ranks=16):
    return _program("trn2.48xlarge", ranks, "all_gather", "ring", nbytes, first=first)[0]


def test_collectives_on_other_chips_do_not_slow_each_other():
    alone = time_alone(_ring(0)).end_ps
    found = simulate([Run(program=_ring(0)), Run(program=_ring(16))])
    assert [run.end_ps for run in found.runs] == [alone, alone]


def test_two_equal_collectives_on_the_same_links_take_twice_the_transfer():
    program = _ring(0)
    latency = program.steps * max(d.latency_ps for d in program.demands)
    alone = time_alone(program).end_ps - latency
    found = simulate([Run(program=program), Run(program=_ring(0))])
    assert [run.end_ps - latency for run in found.runs] == pytest.approx([2 * alone, 2 * alone], rel=1e-6)


def test_one_that_begins_later_slows_the_first_from_then_on():
    program = _ring(0)
    alone = time_alone(program).end_ps
    found = simulate([Run(program=program), Run(program=_ring(0), ready_ps=alone // 2)])
    assert alone < found.runs[0].end_ps < found.runs[1].end_ps < 2 * alone + alone // 10
    late = simulate([Run(program=program), Run(program=_ring(0), ready_ps=3 * alone)])
    assert late.runs[0].end_ps == alone
    assert late.runs[1].end_ps == pytest.approx(4 * alone, abs=2)


def test_results_do_not_depend_on_chance():
    runs = [Run(program=_ring(0)), Run(program=_ring(8), ready_ps=1000), Run(program=_ring(4), ready_ps=5)]
    first, second = simulate(runs), simulate(runs)
    assert [r.end_ps for r in first.runs] == [r.end_ps for r in second.runs]
    np.testing.assert_array_equal(first.link_bytes, second.link_bytes)


def test_a_rank_without_a_free_cc_core_waits():
    # trn2: 16 CC-cores a chip, 4 ranks: a rank takes part in 4 collectives at once.
    assert topology("trn2.48xlarge").collective_cores_per_rank == 4
    found = simulate([Run(program=_ring(0, MIB)) for _ in range(5)])
    assert [run.start_ps for run in found.runs[:4]] == [0] * 4
    assert found.runs[4].start_ps == min(run.end_ps for run in found.runs[:4])
    free = simulate([Run(program=_ring(16 * (i % 2), MIB)) for i in range(5)])
    assert all(run.start_ps == 0 for run in free.runs)


def test_a_straggler_delays_all():
    ready = np.zeros(16, np.int64)
    ready[5] = 7_000_000
    found = simulate([Run(program=_ring(0), ready_ps=ready)])
    assert found.runs[0].start_ps == 7_000_000
    assert found.runs[0].duration_ps == time_alone(_ring(0)).end_ps


def test_what_kernels_load_meanwhile_slows_the_dma_engines():
    program, _ = _program("trn2.48xlarge", 4, "all_gather", "mesh", 64 * MIB)
    latency = program.demands[0].latency_ps
    alone = time_alone(program).end_ps - latency
    beside = simulate([Run(program=program)], background={"chip": 0.5}).end_ps - latency
    assert beside == pytest.approx(2 * alone, rel=1e-6)


@pytest.mark.parametrize("change", ["cut", "slow"])
def test_failed_and_slow_links_cost_time(change):
    whole = topology("trn2.48xlarge")
    between = whole.link_between(0, 1)
    hurt = whole.without(links=between) if change == "cut" else whole.slowed_to(0.25, between)
    made = schedule("all_gather", "ring", 64, 64 * MIB)
    times = [time_alone(from_schedule(made, group(t, 64), models=PLAIN)).end_ps for t in (whole, hurt)]
    assert times[0] < times[1]
    with pytest.raises(UnsupportedError, match="failed links"):
        closed.program("all_gather", "ring", group(hurt, 64), MIB)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: simulate([]), "no collective"),
        (lambda: simulate([Run(program=_ring(0))], background={"rack": 0.1}), "level of"),
        (lambda: simulate([Run(program=_ring(0))], background={"chip": 1.0}), "below 1"),
        (lambda: simulate([Run(program=_ring(0), ready_ps=np.zeros(3, np.int64))]), "for all ranks or for each"),
        (
            lambda: from_schedule(schedule("all_reduce", "ring", 4, 8), group("trn2.48xlarge", 8)),
            "another number of ranks",
        ),
        (lambda: Protocol(name="x", step_latency_ps=0, efficiency=0.0), "efficiency"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(InputError, match=match):
        call()


def test_what_has_no_closed_form_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="all_reduce by tree"):
        closed.program("all_reduce", "tree", group("p5.48xlarge", 8), MIB)
    with pytest.raises(UnsupportedError, match="lie differently"):
        closed.program("all_reduce", "ring", group(topology("trn2.48xlarge", 3), 48, copies=4), MIB)
