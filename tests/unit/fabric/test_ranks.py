"""Programs of simulated ranks: their data, their clocks and their errors."""

from __future__ import annotations

import numpy as np
import pytest

from trnsim.errors import DeadlockError, InputError
from trnsim.fabric import ranks
from trnsim.fabric.group import group
from trnsim.fabric.predict import predict
from trnsim.fabric.skew import Skew
from trnsim.fabric.topology import topology


def _value(rank, n=12):
    return np.arange(n, dtype=np.float32) + 100 * rank


@pytest.mark.parametrize(
    ("system", "size"), [("trn2.48xlarge", 64), ("trn2.48xlarge", 4), ("p5.48xlarge", 16), ("trn1", 1)]
)
def test_collectives_of_all_ranks(system, size):
    def program(rank):
        mine = _value(rank.number)
        return {
            "sum": rank.all_reduce(mine.reshape(3, 4)),
            "highest": rank.all_reduce(mine, "maximum"),
            "gathered": rank.all_gather(mine[:2]),
            "root": rank.broadcast(mine if rank.number == size - 1 else None, root=size - 1),
            "turned": rank.permute(mine, [(r, (r + 1) % rank.size) for r in range(rank.size)]),
        }

    found = ranks.run(program, size, system)
    every = np.stack([_value(r) for r in range(size)])
    for r, got in enumerate(found.results):
        np.testing.assert_array_equal(got["sum"], every.sum(axis=0).reshape(3, 4))
        np.testing.assert_array_equal(got["highest"], every[-1])
        np.testing.assert_array_equal(got["gathered"], every[:, :2].reshape(-1))
        np.testing.assert_array_equal(got["root"], every[-1])
        np.testing.assert_array_equal(got["turned"], every[r - 1])
    assert len(set(found.end_ps)) == 1
    assert all(one.support == ("assumed" if system.startswith("p5") else "extrapolated") for one in found.collectives)
    assert [one.call for one in found.collectives] == ["all_reduce", "all_reduce", "all_gather", "broadcast", "permute"]


def test_a_sharded_product_equals_the_whole_one():
    generator = np.random.default_rng(0)
    x, w = generator.integers(-9, 9, (8, 32)).astype(np.float32), generator.integers(-9, 9, (32, 6)).astype(np.float32)

    def program(rank):
        part = slice(rank.number * 8, rank.number * 8 + 8)
        rank.compute(5e6)
        mine = x[:, part] @ w[part]
        share = rank.reduce_scatter(mine)
        return rank.all_gather(share).reshape(8, 6)

    found = ranks.run(program, 4)
    for got in found.results:
        np.testing.assert_array_equal(got, x @ w)
    assert found.total_ps > 5e6


def test_uneven_all_to_all_and_groups():
    def program(rank):
        row = rank.number // 2 * 2
        pair = rank.all_reduce(np.full(3, rank.number, np.int32), among=(row, row + 1))
        counts = [(rank.number + j) % 3 for j in range(4)]
        sent = np.concatenate([np.full(c, 10 * rank.number + j, np.int32) for j, c in enumerate(counts)])
        return pair[0], rank.all_to_all(sent, counts)

    for r, (pair, got) in enumerate(ranks.run(program, 4).results):
        assert pair == (1 if r < 2 else 5)
        expected = [v for i in range(4) for v in [10 * i + r] * ((i + r) % 3)]
        assert got.tolist() == expected


def test_send_and_receive():
    def program(rank):
        if rank.number == 0:
            rank.compute(1e6)
            rank.send(np.arange(5), 3)
            return None
        return rank.receive(0).tolist() if rank.number == 3 else None

    found = ranks.run(program, 4)
    assert found.results[3] == [0, 1, 2, 3, 4]
    assert found.end_ps[0] == found.end_ps[3] > 1e6
    assert found.end_ps[1] == 0


def test_communication_beside_computation():
    big = np.zeros(1 << 18, np.float32)

    def beside(rank):
        pending = rank.begin("all_reduce", big)
        rank.compute(2e7)
        return rank.wait(pending)[0]

    def after(rank):
        found = rank.all_reduce(big)
        rank.compute(2e7)
        return found[0]

    both, one = ranks.run(beside, 16), ranks.run(after, 16)
    alone = one.total_ps - 20_000_000
    assert both.total_ps == max(alone, 20_000_000)
    slowed = ranks.run(after, 16, background={"chip": 0.9, "server": 0.5})
    assert slowed.total_ps > one.total_ps


def test_groups_on_the_same_links_slow_each_other():
    def program(rank):
        half = tuple(range(rank.number % 2, 16, 2))
        rank.all_reduce(np.zeros(1 << 20, np.float32), among=half, algorithm="ring")

    def alone(rank):
        if rank.number % 2 == 0:
            program(rank)

    assert ranks.run(program, 16).total_ps > 1.2 * ranks.run(alone, 16).total_ps


def test_the_last_rank_sets_the_time_and_runs_repeat():
    def program(rank):
        rank.compute(1e6 * rank.number)
        rank.barrier()
        return rank.now_ps

    found = ranks.run(program, 8)
    assert len(set(found.results)) == 1
    assert found.collectives[0].ready_ps == 7_000_000
    assert found.results[0] > 7_000_000
    assert ranks.run(program, 8).end_ps == found.end_ps
    skewed = [ranks.run(program, 8, skew=Skew(probability=0.5, mean_ps=1e7), seed=s).end_ps for s in (1, 1, 2)]
    assert skewed[0] == skewed[1] != skewed[2]
    assert skewed[0][0] > found.end_ps[0]


def test_failed_links_take_longer_and_failed_chips_are_named():
    whole = topology("trn2.48xlarge")

    def program(rank):
        rank.all_gather(np.zeros(1 << 12, np.float32), algorithm="ring")

    cut = whole.without(links=whole.link_between(0, 1))
    assert ranks.run(program, 64, cut).total_ps > ranks.run(program, 64, whole).total_ps
    with pytest.raises(InputError, match="chip 2 has failed"):
        ranks.run(program, 64, whole.without(chips=(2,)))


def _mismatched(rank):
    if rank.number == 1:
        return rank.all_gather(np.zeros(4))
    return rank.all_reduce(np.zeros(4))


def _ragged(rank):
    return rank.all_reduce(np.zeros(4 + rank.number))


def _operators(rank):
    return rank.all_reduce(np.zeros(4), "add" if rank.number else "maximum")


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (_mismatched, r"rank 1 calls all_gather, but rank 0 calls all_reduce at .*test_ranks.py:\d+ in _mismatched"),
        (_ragged, r"rank 1 calls all_reduce with shape \(5,\), but rank 0 calls it with shape \(4,\)"),
        (_operators, "op add, but rank 0 calls it with op maximum"),
        (lambda rank: rank.all_reduce(np.zeros(4), among=(0, 9)), "numbers below 2"),
        (lambda rank: rank.all_reduce(np.zeros(4), algorithm="gossip"), "no algorithm"),
        (lambda rank: rank.all_to_all(np.zeros(4), counts=[1, 1]), "brings 32 bytes"),
        (lambda rank: rank.compute(-1), "time does not go back"),
    ],
)
def test_errors_name_rank_call_and_line(program, match):
    with pytest.raises(InputError, match=match):
        ranks.run(program, 2)


def test_a_rank_that_does_not_come_is_named():
    def program(rank):
        if rank.number != 2:
            rank.barrier()

    with pytest.raises(DeadlockError, match=r"rank 0 waits in all_reduce at .*, but rank 2 has finished without it"):
        ranks.run(program, 3, "trn2.48xlarge")


def test_ranks_that_a_system_cannot_hold():
    with pytest.raises(InputError, match="cannot hold"):
        ranks.run(lambda rank: None, 65, "trn2.48xlarge", systems=1)


@pytest.mark.parametrize("nbytes", [8192, 1 << 21])
def test_a_collective_alone_takes_what_is_predicted(nbytes):
    found = ranks.run(lambda rank: rank.all_reduce(np.zeros(nbytes // 4, np.float32)).nbytes, 64, "trn2.48xlarge")
    assert found.total_ps == pytest.approx(predict(group("trn2.48xlarge", 64), "all_reduce", nbytes).time_ps, abs=2)
