"""Topologies against what the catalogue says, their routes against shortest paths of another implementation."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from trnsim.errors import InputError, UnsupportedError
from trnsim.fabric.group import group
from trnsim.fabric.measures import bisection, cut_of_graph, cuts, diameter
from trnsim.fabric.routing import routes
from trnsim.fabric.topology import topology
from trnsim.hardware import system_names

GB = 1e9
# name, systems, ranks, levels with (kind, members, GB/s one way)
SYSTEMS = [
    ("trn1.32xlarge", 1, 32, {"chip": ("star", 2, 272), "server": ("grid", 16, 48)}),
    ("trn1n.32xlarge", 1, 32, {"server": ("grid", 16, 96)}),
    ("trn2.48xlarge", 1, 64, {"chip": ("star", 4, 736), "server": ("grid", 16, 128)}),
    ("trn2.48xlarge", 3, 192, {"cluster": ("star", 3, 25)}),
    ("trn2-ultraserver", 1, 256, {"server": ("grid", 16, 128), "ultraserver": ("grid", 4, 64)}),
    ("trn3-ultraserver-gen1", 1, 256, {"server": ("star", 16, 256), "ultraserver": ("star", 4, 320)}),
    ("trn3-ultraserver-gen2", 1, 576, {"server": ("star", 4, 256), "ultraserver": ("star", 36, 320)}),
    ("p5.48xlarge", 2, 16, {"server": ("star", 8, 450), "cluster": ("star", 2, 50)}),
    ("gb300-nvl72", 1, 72, {"server": ("none", 4, 0), "ultraserver": ("star", 18, 900)}),
    ("inf2.48xlarge", 1, 24, {"server": ("grid", 12, 51.539607552)}),
]


@pytest.mark.parametrize(("name", "systems", "ranks", "levels"), SYSTEMS)
def test_levels(name, systems, ranks, levels):
    made = topology(name, systems)
    assert made.rank_count == ranks
    for level, (kind, members, rate) in levels.items():
        found = made.level(level)
        assert (found.kind, found.members) == (kind, members)
        assert found.bytes_per_second == pytest.approx(rate * GB)


@pytest.mark.parametrize("name", system_names())
def test_every_system_of_the_catalogue_has_a_topology(name):
    made = topology(name)
    assert made.chip_count == made.system.chip_count
    assert len(made.links) == made.link_count


def _distances(made, source):
    """Fewest links from a node to each other, by breadth-first search."""
    onward = {}
    for a, b in zip(made.links.source.tolist(), made.links.target.tolist(), strict=True):
        if a != b:
            onward.setdefault(a, []).append(b)
    found, queue = {source: 0}, deque([source])
    while queue:
        node = queue.popleft()
        for to in onward.get(node, ()):
            if to not in found:
                found[to] = found[node] + 1
                queue.append(to)
    return found


def _pairs(n):
    return (x.reshape(-1) for x in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))


def _walk(made, found, a, b):
    """Follow each route link by link."""
    first = made.first_node("rank" if made.levels[0].kind == "star" else "chip")
    at = first + a
    for column in found.links.T:
        used = column >= 0
        assert (made.links.source[column[used]] == at[used]).all()
        at = np.where(used, made.links.target[column], at)
    assert (at == first + b).all()
    return first


@pytest.mark.parametrize(
    ("name", "systems"),
    [("trn1.32xlarge", 1), ("trn2.48xlarge", 2), ("trn2-ultraserver", 1), ("trn3-ultraserver-gen1", 1),
     ("p5.48xlarge", 2), ("inf2.48xlarge", 1), ("inf1.24xlarge", 1), ("gb300-nvl72", 1)],
)  # fmt: skip
def test_routes_are_shortest_paths(name, systems):
    made = topology(name, systems)
    n = min(made.rank_count, 128)
    a, b = _pairs(n)
    found = routes(made, a, b)
    first = _walk(made, found, a, b)
    for rank in range(0, n, 7):
        distance = _distances(made, first + rank)
        assert [distance[first + other] for other in range(n)] == found.hops[a == rank].tolist()


@pytest.mark.parametrize("name", ["trn1.32xlarge", "trn2.48xlarge", "trn2-ultraserver", "p5.48xlarge"])
def test_everyone_to_everyone_loads_all_links_of_a_level_alike(name):
    made = topology(name)
    a, b = _pairs(made.rank_count)
    links = routes(made, a, b).links
    load = np.bincount(links[links >= 0], minlength=made.link_count)
    for level in np.unique(made.links.level):
        assert len(set(load[made.links.level == level].tolist())) == 1


def test_half_a_million_chips_are_described_without_laying_them_out():
    made = topology("trn2-ultraserver", 7813)
    big = group(made, 1000, stride=512)
    assert made.chip_count == 500_032
    assert big.spread.counts == (1, 1, 1, 1000)
    with pytest.raises(UnsupportedError, match="folded"):
        _ = made.links


@pytest.mark.parametrize(
    ("ranks", "stride", "counts"),
    [
        (64, 1, (4, 16, 1, 1)),
        (16, 4, (1, 16, 1, 1)),
        (4, 1, (4, 1, 1, 1)),
        (256, 1, (4, 16, 4, 1)),
        (8, 64, (1, 1, 4, 2)),
    ],
)
def test_spread_of_a_group(ranks, stride, counts):
    assert group(topology("trn2-ultraserver", 2), ranks, stride=stride).spread.counts == counts


def test_an_irregular_group_has_no_spread():
    assert group("trn2.48xlarge", [0, 1, 4]).spread is None


# -- what failed -------------------------------------------------------------------------------------------------------


def test_routes_go_round_a_failed_link():
    whole = topology("trn2.48xlarge")
    cut = whole.without(links=whole.link_between(0, 1))
    a, b = _pairs(whole.rank_count)
    found = routes(cut, a, b)
    _walk(cut, found, a, b)
    assert not np.isin(found.links, whole.link_between(0, 1)).any()
    assert routes(cut, 0, 4).hops[0] == routes(whole, 0, 4).hops[0] + 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.without(chips=(1,)), r"rank 4 cannot be reached: chip 1 has failed"),
        (lambda t: t.without(links=[i for o in (0, 2, 5, 13) for i in t.link_between(1, o)]), r"rank 4 .*be reached"),
    ],
)  # fmt: skip
def test_what_cannot_be_reached_is_named(change, match):
    with pytest.raises(InputError, match=match):
        routes(change(topology("trn2.48xlarge")), 0, 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: topology("trn9"), "unknown system"),
        (lambda: topology("trn2.48xlarge", 0), "at least one system"),
        (lambda: topology("trn2.48xlarge", lnc=4), "no such logical core"),
        (lambda: group("trn2.48xlarge", 65, systems=1), "cannot hold"),
        (lambda: group("gb300-nvl72", 0), "at least one rank"),
        (lambda: group("trn2.48xlarge", [0, 0]), "once"),
        (lambda: routes(topology("trn2.48xlarge"), 0, 64), "no such rank"),
        (lambda: topology("trn2.48xlarge").without(chips=(16,)), "no such chip"),
        (lambda: topology("trn2.48xlarge").slowed_to(0.0, (0,)), "keeps more than none"),
        (lambda: topology("trn2.48xlarge").link_between(0, 5), "no link between"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(InputError, match=match):
        call()


def test_a_link_of_zero_bandwidth_is_refused(tmp_path):
    path = tmp_path / "zero.toml"
    path.write_text('name = "zero"\nbase = "trn2.48xlarge"\n[topology]\nbandwidth = "0 GB/s"\n')
    with pytest.raises(InputError, match=r"topology\.bandwidth"):
        topology(str(path))


@pytest.mark.parametrize(
    ("name", "systems", "gigabytes", "links"),
    [
        ("trn2.48xlarge", 1, 8 * 128, 4),  # two rings of four rows or columns
        ("trn2-ultraserver", 1, 32 * 64, 6),  # two Z links of each of 16 rings, less than 32 links within the servers
        ("trn1.32xlarge", 1, 8 * 48, 4),
        ("inf2.48xlarge", 1, 2 * 51.539607552, 6),
        ("inf1.24xlarge", 1, 8.589934592, 15),
        ("p5.48xlarge", 1, 4 * 450, 2),
        ("p5.48xlarge", 4, 2 * 400, 4),
        ("trn3-ultraserver-gen2", 1, 72 * 320, 2),
        ("trn2.48xlarge", 10, 5 * 400, 4),
    ],
)
def test_bisection_and_diameter(name, systems, gigabytes, links):
    made = topology(name, systems)
    assert bisection(made).bytes_per_second == pytest.approx(gigabytes * GB)
    assert diameter(made) == links


@pytest.mark.parametrize("name", ["trn2.48xlarge", "trn2-ultraserver", "p5.48xlarge", "inf1.24xlarge", "inf2.48xlarge"])
@pytest.mark.parametrize("systems", [1, 2])
def test_measures_of_the_graph_agree_with_the_regular_ones(name, systems):
    try:
        made = topology(name, systems)
    except UnsupportedError:
        pytest.skip("no source for its network")
    least = min(cut_of_graph(made, side) for _, side in cuts(made))
    assert least == pytest.approx(bisection(made).bytes_per_second)
    a, b = (x * made.ranks_per_chip for x in _pairs(made.chip_count))
    far = int(routes(made, a, b).hops.max()) - (2 if made.levels[0].kind == "star" else 0)
    assert far == diameter(made)


def test_measures_count_what_failed():
    made = topology("trn2.48xlarge")
    cut = made.without(links=made.link_between(0, 1))
    assert bisection(cut).bytes_per_second == pytest.approx(7 * 128 * GB)
    assert diameter(cut) == 4  # the way round is three, others are as far
    lonely = made.without(links=[i for o in (0, 2, 5, 13) for i in made.link_between(1, o)])
    with pytest.raises(InputError, match="chip 1 cannot be reached from chip 0"):
        diameter(lonely)
