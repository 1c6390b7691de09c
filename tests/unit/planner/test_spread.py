"""A search over processes or over a Ray cluster finds what it finds on one."""

from __future__ import annotations

import pytest

from trnsim.errors import InputError
from trnsim.planner.search import Wanted, search
from trnsim.planner.spread import processes, ray_cluster
from trnsim.workloads import Layout, load_model

MODEL = load_model("llama-3.1-8b")


def wanted(system="dgx-h100", chips=8):
    return Wanted(model=MODEL, system=system, chips=chips, sequence=4096, global_batch=32, base=Layout(zero=1))


def assert_same(found, alone):
    assert [(c.layout, c.step_us, c.memory) for c in found.candidates] == [
        (c.layout, c.step_us, c.memory) for c in alone.candidates
    ]
    assert [e.step_us for e in found.best] == [e.step_us for e in alone.best]
    assert (found.evaluated, found.pruned) == (alone.evaluated, alone.pruned)


@pytest.mark.parametrize("count", [1, 2])
def test_processes(count):
    assert_same(search(wanted(), 3, processes(count)), search(wanted(), 3))


def test_ray():
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'trnsim[ray]'")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        assert_same(search(wanted(), 3, ray_cluster()), search(wanted(), 3))
    finally:
        ray.shutdown()


def test_errors_are_the_same():
    big = Wanted(model=load_model("llama-3.1-405b"), system="dgx-h100", chips=8, sequence=4096, global_batch=32)
    said = []
    for spread in (None, processes(1)):
        with pytest.raises(InputError) as error:
            search(big, 3, spread)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "the smallest number of its chips that holds it is" in said[0]


def test_bad_input():
    with pytest.raises(InputError):
        processes(0)
