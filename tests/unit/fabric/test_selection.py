"""Which algorithm and protocol: NCCL's estimate by hand, and the rule of the Neuron documentation."""

from __future__ import annotations

import numpy as np
import pytest

from trnsim.errors import InputError, UnsupportedError
from trnsim.fabric.algorithms import schedule
from trnsim.fabric.closed import time_ps
from trnsim.fabric.flow import time_alone
from trnsim.fabric.group import group
from trnsim.fabric.nccl_constants import tuner_of
from trnsim.fabric.neuron import neuron_program, plan
from trnsim.fabric.program import from_schedule
from trnsim.fabric.selection import nccl_choice, neuron_algorithm

KIB, MIB = 1 << 10, 1 << 20
RATE = {"NVLink 3": 300e9, "NVLink 4": 450e9, "NVLink 5": 900e9}


@pytest.mark.parametrize(
    ("links", "collective", "ranks", "switches"),
    [
        # By hand, all_gather of 8 over NVLink 5: LL 6.6 + 7 x 0.6 us, 282 x 8/7 GB/s; LL128 14 + 7 x 1.9 us, 662 x 8/7.
        ("NVLink 5", "all_gather", 8, {16 * MIB: "ring LL128", 64 * MIB: "ring Simple"}),
        ("NVLink 5", "all_reduce", 8, {4 * MIB: "nvls Simple"}),
        ("NVLink 5", "all_reduce", 4, {8 * MIB: "ring LL128", 32 * MIB: "ring Simple"}),
        ("NVLink 4", "all_reduce", 8, {2 * MIB: "nvls Simple"}),
        ("NVLink 4", "all_reduce", 2, {2 * MIB: "ring Simple"}),
        ("NVLink 3", "all_reduce", 8, {4 * MIB: "ring LL128", 32 * MIB: "ring Simple"}),
        ("NVLink 3", "reduce_scatter", 2, {2 * MIB: "ring Simple"}),
    ],
)
def test_nccl_switches_at_these_sizes(links, collective, ranks, switches):
    found, last = {}, "ring LL"
    for exponent in range(9, 31):
        choice = nccl_choice(tuner_of(links), collective, ranks, 1 << exponent, RATE[links])
        name = f"{choice.algorithm} {choice.protocol}"
        if name != last:
            found[1 << exponent] = last = name
    assert found == switches


def test_nccl_estimate_by_hand():
    choice = nccl_choice(tuner_of("NVLink 4"), "all_gather", 4, 1_000_000, 450e9)
    assert choice.protocol == "LL"
    assert choice.estimate_us == pytest.approx(6.6 + 3 * 0.6 + 1_000_000 / (141e3 * 4 / 3))


def test_unknown_links_are_refused():
    with pytest.raises(UnsupportedError, match="NVLink 9"):
        tuner_of("NVLink 9")


@pytest.mark.parametrize(
    ("nbytes", "chips", "whole", "grid", "algorithm"),
    [
        (999_999, 16, True, True, "mesh"),
        (1_000_000, 16, True, True, "rdh"),
        (56_000_000, 16, True, True, "rdh"),
        (56_000_001, 16, True, True, "kangaring"),
        (56_000_001, 16, False, True, "ring"),
        (56_000_001, 16, True, False, "ring"),
        (2_000_000, 144, True, False, "mesh"),
        (2_000_000, 64, True, False, "rdh"),
        (2_000_000, 12, True, True, "kangaring"),
        (1 << 30, 1, True, True, "mesh"),
    ],
)
def test_neuron_rule(nbytes, chips, whole, grid, algorithm):
    assert neuron_algorithm(nbytes, chips=chips, whole_chips=whole, grid=grid) == algorithm


def test_neuron_rule_refuses_negative_sizes():
    with pytest.raises(InputError):
        neuron_algorithm(-1, chips=16, whole_chips=True, grid=True)


def test_mesh_has_a_stage_between_chips_and_one_within():
    """All_gather two steps, all_reduce four, as documented."""
    for collective, steps in (("all_gather", 2), ("reduce_scatter", 2), ("all_reduce", 4)):
        program, name = neuron_program(group("trn2.48xlarge", 64), collective, 8 * KIB)
        assert (program.steps, name) == (steps, "mesh")


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize(("system", "ranks"), [("trn1.32xlarge", 32), ("trn2.48xlarge", 64), ("trn2.48xlarge", 128)])
@pytest.mark.parametrize("nbytes", [8 * KIB, 8 * MIB, 256 * MIB])
def test_the_schedule_takes_as_long_as_its_closed_form(collective, system, ranks, nbytes):
    where = group(system, ranks)
    chosen = plan(where, collective, nbytes)
    options = {"inner": chosen.inner, "inner_algorithm": chosen.inner_algorithm,
               "outer_algorithm": chosen.outer_algorithm, "outer_orders": chosen.outer_orders,
               "orders": chosen.orders}  # fmt: skip
    made = schedule(collective, chosen.algorithm, ranks, nbytes, **options)
    found = time_ps(neuron_program(where, collective, nbytes)[0])
    assert time_alone(from_schedule(made, where)).end_ps == pytest.approx(found, rel=1e-6)


def test_halving_uses_a_link_of_its_own_for_each_axis_and_place():
    """On the 4x4 torus all partners are neighbours, and the four ranks of a chip cross different links in a step."""
    where = group("trn2.48xlarge", 64)
    program, _ = neuron_program(where, "all_gather", 8 * MIB)
    grid = [i for i, level in enumerate(where.topology.levels) if level.kind == "grid"]
    between = [d for d in program.demands if np.isin(where.topology.links.level[d.links], grid)[d.links >= 0].any()]
    assert len(between) == 4
    for demand in between:
        crossed = demand.links[(demand.links >= 0) & np.isin(where.topology.links.level[demand.links], grid)]
        assert len(crossed) == 64  # 64 ranks, one link each
        assert len(np.unique(crossed)) == 64


def test_orders_are_checked():
    with pytest.raises(InputError, match="2 orders"):
        schedule("all_gather", "hierarchical", 8, 64, inner=2, outer_orders=[[0, 1, 2, 3]])
    with pytest.raises(InputError, match="name all"):
        schedule("all_gather", "hierarchical", 8, 64, inner=2, outer_orders=[[0, 1, 2, 3], [0, 1, 2, 2]])


def test_between_servers_it_is_hierarchical():
    names = [plan(group("trn2.48xlarge", 128), "all_reduce", n).name for n in (8 * KIB, 8 * MIB, 256 * MIB)]
    assert names == ["mesh within, mesh between", "rdh within, rdh between", "ring within, ring between"]


def test_irregular_groups_are_refused():
    with pytest.raises(UnsupportedError, match="different numbers"):
        plan(group("trn2.48xlarge", [0, 1, 2, 4]), "all_reduce", KIB)
