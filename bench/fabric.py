"""Collectives: time to tell a time, memory, and moving data against NumPy's own sums and copies.

``python bench/run.py fabric``: a 64-rank all-reduce of 1 GiB in at most 50 ms; a step of 100,000 ranks (tensor,
pipeline, data and expert groups at once) in at most 2 s and 2 GiB, in a process of its own; moving data in at most 3
times the time of the same sums and copies in NumPy.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from trnsim.fabric import closed
from trnsim.fabric.algorithms import schedule
from trnsim.fabric.data import execute
from trnsim.fabric.flow import Run, simulate, time_alone
from trnsim.fabric.group import group
from trnsim.fabric.neuron import plan
from trnsim.fabric.program import from_schedule
from trnsim.fabric.rings import ring_orders
from trnsim.fabric.topology import topology

MIB = 1 << 20
SECONDS, GIBIBYTES, MILLISECONDS, RATIO = 2.0, 2.0, 50.0, 3.0


def one_collective(algorithm):
    """Seconds to make the schedule of a 64-rank 1 GiB all-reduce of trn2, and to simulate it."""
    where = group("trn2.48xlarge", 64)
    options = {"inner": 4, "inner_algorithm": "mesh", "outer_algorithm": "rdh"} if algorithm == "hierarchical" else {}
    if algorithm in ("ring", "kangaring"):
        options = {"orders": ring_orders(where)}
    return time_alone(from_schedule(schedule("all_reduce", algorithm, 64, 1 << 30, itemsize=2, **options), where))


def whole_step(system, systems, tensor, pipeline, expert):
    """Ranks, seconds and peak GiB of a training step's collectives at once."""
    start = time.perf_counter()
    made = topology(system, systems)
    data = made.rank_count // (tensor * pipeline)
    ranks = tensor * pipeline * data

    def copies(size, stride):
        return ranks // (size * stride) * stride

    # Ring or hierarchical as the number of data ranks allows: a ring of thousands has as many steps.
    programs = [
        closed.program("all_reduce", "ring", group(made, tensor, copies=copies(tensor, 1)), 32 * MIB),
        closed.program(
            "permute", "mesh", group(made, pipeline, stride=tensor, copies=copies(pipeline, tensor)), 32 * MIB
        ),
        closed.program(
            "all_reduce", "ring", group(made, data, stride=tensor * pipeline, copies=tensor * pipeline), 512 * MIB
        ),
        closed.program(
            "all_to_all", "mesh", group(made, expert, stride=tensor, copies=copies(expert, tensor)), 64 * MIB
        ),
    ]
    found = simulate([Run(program=program) for program in programs])
    took = time.perf_counter() - start
    print(ranks, made.chip_count, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, found.end_ps)


def numpy_only(made, work):
    """The sums and copies of a schedule, row by row."""
    item = made.itemsize
    columns = (made.source, made.target, made.source_offset // item, made.target_offset // item, made.bytes // item,
               made.reduce)  # fmt: skip
    for source, target, at, to, size, reduce in zip(*(c.tolist() for c in columns), strict=True):
        part, into = work[source, at : at + size], work[target, to : to + size]
        if reduce:
            np.add(into, part, out=into)
        else:
            into[...] = part


def moving(algorithm, dtype, ranks, elements):
    """Seconds of ``execute`` and of NumPy alone, best of three."""
    values = np.random.default_rng(0).standard_normal((ranks, elements)).astype(dtype)
    made = schedule("all_reduce", algorithm, ranks, values[0].nbytes, itemsize=values.itemsize, inner=4)
    times = ([], [])
    for _ in range(3):
        start = time.perf_counter()
        execute(made, list(values))
        times[0].append(time.perf_counter() - start)
        start = time.perf_counter()
        numpy_only(made, values.copy())
        times[1].append(time.perf_counter() - start)
    return min(times[0]), min(times[1])


def _said(value, limit):
    return "ok" if value <= limit else "MISSED"


def bench_fabric():
    """Figures against their limits."""
    chosen = plan(group("trn2.48xlarge", 64), "all_reduce", 1 << 30).name
    for algorithm in ("kangaring", "ring", "rdh", "mesh", "hierarchical"):
        walls, busy = [], []
        for _ in range(5):
            start, used = time.perf_counter(), time.process_time()
            one_collective(algorithm)
            walls.append((time.perf_counter() - start) * 1e3)
            busy.append((time.process_time() - used) * 1e3)
        mark = " (the runtime's choice)" if algorithm == chosen else ""
        figures = f"{min(busy):.1f} ms of processor ({min(walls):.1f} ms passed)"
        text = f"at most {MILLISECONDS:g} ms {_said(min(busy), MILLISECONDS)}"
        print(f"64-rank 1 GiB all_reduce of trn2, {algorithm}{mark}: {figures}, {text}")
    for arguments in (
        ("trn2.48xlarge", 1563, 64, 8, 8), ("trn2-ultraserver", 391, 64, 8, 8), ("p5.48xlarge", 12500, 8, 8, 8),
        ("trn2-ultraserver", 7813, 64, 16, 64), ("trn3-ultraserver-gen2", 3473, 64, 9, 9),
    ):  # fmt: skip
        command = [sys.executable, __file__, *map(str, arguments)]
        ranks, chips, took, peak, end = map(
            float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        )
        figures = f"{took:.2f} s {_said(took, SECONDS)}, {peak:.2f} GiB {_said(peak, GIBIBYTES)}"
        print(
            f"step of {ranks:,.0f} ranks on {chips:,.0f} chips ({arguments[0]}): {figures}; ends at {end / 1e9:.1f} ms"
        )
    for algorithm in ("ring", "kangaring", "mesh", "rdh", "tree", "hierarchical"):
        for dtype in (np.float32, ml_dtypes.bfloat16):
            ours, peer = moving(algorithm, dtype, 64, 1 << 18)
            figures = f"{ours * 1e3:.0f} ms, NumPy {peer * 1e3:.0f} ms, ratio {ours / peer:.2f}"
            name = f"all_reduce of 64 x {1 << 18} {np.dtype(dtype).name}, {algorithm}"
            print(f"{name}: {figures}, at most {RATIO:g} {_said(ours / peer, RATIO)}")


if __name__ == "__main__":
    whole_step(sys.argv[1], *map(int, sys.argv[2:]))
