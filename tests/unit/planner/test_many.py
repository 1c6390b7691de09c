"""Layouts in arrays give what each gives alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from trnsim.planner import many
from trnsim.planner.search import Wanted, layouts
from trnsim.planner.stack import load_training_stack
from trnsim.planner.training import default_stack, estimate, prices_of
from trnsim.workloads import Layout, load_model

CASES = [
    ("llama-3.1-8b", "trn2.48xlarge", 32, {}),
    ("llama-3.1-8b", "dgx-h100", 16, {"product_dtype": "fp8"}),
    ("mixtral-8x7b", "dgx-h100", 32, {}),
    ("deepseek-v3", "p6-b200.48xlarge", 256, {"product_dtype": "fp8"}),
]


@pytest.mark.parametrize(("model", "system", "chips", "formats"), CASES)
def test_many_are_as_one(model, system, chips, formats):
    wanted = Wanted(model=load_model(model), system=system, chips=chips, sequence=4096, global_batch=128,
                    base=Layout(zero=1, **formats))  # fmt: skip
    every = list(layouts(wanted, Counter()))
    rng = np.random.default_rng(0)
    some = [every[i] for i in rng.choice(len(every), min(len(every), 60), replace=False)]
    some = [
        replace(one, recompute=how)
        for one, how in zip(some, rng.choice(["none", "selective", "full"], len(some)), strict=True)
    ]
    plan = wanted.plan(wanted.base)
    prices, stack = prices_of(plan), load_training_stack(default_stack(plan.on))
    bytes_ = many.memories(prices, some, stack.reserve_bytes)
    told = many.steps(prices, some, stack.weights(plan.on.chip))
    assert told.unknown is None
    for layout, size, step in zip(some, bytes_, told.step_us, strict=True):
        alone = estimate(wanted.plan(layout), stack, prices)
        assert size == pytest.approx(float(alone.largest_memory.total), rel=1e-9)
        assert step == pytest.approx(alone.step_us, rel=1e-9)


def test_the_least_recomputation_that_fits():
    wanted = Wanted(model=load_model("llama-3.1-8b"), system="dgx-h100", chips=8, sequence=4096, global_batch=32,
                    base=Layout(zero=1))  # fmt: skip
    every = list(layouts(wanted, Counter()))
    order = ("none", "selective", "full")
    prices = prices_of(wanted.plan(wanted.base))
    room = 60e9
    fit, used, without, more, least = many.fitting(prices, every, order, room, 1e9)
    assert len(fit) == len(used)
    assert without + more + len(fit) == 3 * len(every)
    sizes = {how: many.memories(prices, [replace(one, recompute=how) for one in every], 1e9) for how in order}
    expected = [
        replace(one, recompute=next(how for how in order if sizes[how][i] <= room))
        for i, one in enumerate(every)
        if any(sizes[how][i] <= room for how in order)
    ]
    assert fit == expected
    assert least[1] == min(size.min() for size in sizes.values())


def test_nothing_to_do():
    prices = prices_of(Wanted(model=load_model("llama-3.1-8b"), system="dgx-h100", chips=8, sequence=4096,
                              global_batch=32).plan(Layout()))  # fmt: skip
    assert many.fitting(prices, [], ("none",), 1.0, 0.0)[4] is None
