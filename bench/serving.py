"""Simulated steps of serving and estimates of pipelines a second, against the same without their shortcuts.

``python bench/run.py serving``. The peer of the engine is the engine taking one step at a time; that of a pipeline's
closed form is the replay of its operations. Both give the same answers, which is checked here too.
"""

from __future__ import annotations

import time

import numpy as np

from trnsim.planner.pipeline import Schedule, Times, simulate
from trnsim.planner.pipeline_forms import step_time
from trnsim.serving import AffineCost, CacheSettings, Pool, ReplicaSettings, SchedulerSettings, closed_loop, lengths
from trnsim.serving import simulate as serve
from trnsim.serving.closed_form import steady_state

COST = AffineCost(fixed_ps=5e9, per_token_ps=2e7, per_context_ps=2e4, per_pair_ps=1e3)
LOADS = {
    # name: users, requests, input, output, spread of both, steps a second that are asked for
    "256 sequences, 4000 tokens each": (256, 512, 128, 4000, 0.0, 100_000),
    "256 sequences, 512 tokens each": (256, 4000, 1024, 512, 0.0, None),
    "256 sequences, 256 to 768 tokens each": (256, 4000, 1024, 512, 0.5, None),
}


def bench_serving(row):
    """``row`` prints a line: name, value, unit, limit, ratio, the most that the ratio may be."""
    pool = Pool(
        cost=COST,
        settings=ReplicaSettings(
            cache=CacheSettings(capacity_bytes=10**7, elements_per_token=1), scheduler=SchedulerSettings()
        ),
    )
    for name, (users, count, prompt, output, spread, wanted) in LOADS.items():
        load = closed_loop(users, lengths(prompt, count, spread=spread), lengths(output, count, spread=spread, seed=1))
        rates, ends = [], []
        for skip in (True, False):
            start = time.perf_counter()
            result = serve(load, pool, skip_ahead=skip)
            rates.append(result.steps["end_ps"].size / (time.perf_counter() - start))
            ends.append(result.finish_ps)
        assert np.array_equal(*ends)
        ratio = None if wanted is None else wanted / rates[0]
        row(f"serving {name}, steps", rates[0] / 1e3, "k/s", rates[1] / 1e3, ratio, None if wanted is None else 1.0)
    start = time.perf_counter()
    for _ in range(200):
        steady_state(COST, pool.settings, users=64, input_tokens=1000, output_tokens=500)
    row("serving steady state", (time.perf_counter() - start) / 200 * 1e3, "ms", None)
    rng = np.random.default_rng(0)
    for name, chunks, plans in (
        ("gpipe", 1, 20_000),
        ("1f1b", 1, 20_000),
        ("zb-h1", 1, 20_000),
        ("interleaved", 4, 2000),
    ):
        forward = rng.uniform(0.8, 1.2, (plans, 8 * chunks))
        times = Times(forward, 2 * forward, forward if name == "zb-h1" else None, send=0.05)
        schedule = Schedule(name, 8, 256, chunks)
        took, found = [], []
        for function in (step_time, lambda s, t: simulate(s, t).total):
            start = time.perf_counter()
            found.append(function(schedule, times))
            took.append((time.perf_counter() - start) / plans * 1e6)
        assert np.allclose(*found, rtol=0.01)
        row(f"pipeline {name}, 8 x {chunks} stages, 256 micro-batches, a plan", took[0], "us", took[1])
