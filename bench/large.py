"""Both stages of timing, after tracing, on large traces: a tiled product of 4096^3 after itself many times.

``python bench/run.py timing``: a million instructions against 2 s; ten million against 1.5 times the time of a million
for each instruction, and 8 GiB (the trace and its storages included). Each size runs in a process of its own. Compiled
loops are loaded before: compiling them is done once and cached on disk.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

import trnsim
from trnsim.hardware import load_chip
from trnsim.machine.trace import StorageInfo
from trnsim.timing import simulate
from trnsim.timing.simulate import run_stages

SECONDS, GROWTH, MEMORY = 2.0, 1.5, 8.0


def repeated(trace, times):
    """``trace`` after itself ``times`` times: on-chip tiles are new ones each time, tensors in HBM the same."""
    infos, rows = trace.storages, len(trace)
    on_chip = np.array([s.memory != "hbm" for s in infos])
    number, count = np.cumsum(on_chip) - 1, int(on_chip.sum())
    storages = list(infos)
    tiles = [astuple(s) for s in infos if s.memory != "hbm"]
    for _ in range(times - 1):
        storages.extend(StorageInfo(*t) for t in tiles)
    instructions = {n: np.tile(c, times) for n, c in trace.instructions.items()}
    operands = {n: np.tile(c, times) for n, c in trace.operands.items()}
    width = len(operands["storage"]) // times
    instructions["operand"] += np.repeat(np.arange(times) * width, rows)
    again = np.repeat(np.arange(times), width)
    storage = operands["storage"]
    moved = on_chip[storage] & (again > 0)
    operands["storage"] = np.where(moved, len(infos) + (again - 1) * count + number[storage], storage)
    return replace(trace.with_columns(instructions, operands), storages=storages)


def measure(wanted):
    """Instructions, seconds of both stages and of the whole with its timeline, CPU seconds of the stages, peak GiB."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    trnsim.install()
    from matmul import tiled_matmul

    chip = load_chip("trn2")
    small = trnsim.profile(tiled_matmul, "f32[4096,4096]", "f32[4096,4096]", chip="trn2").traces[0]
    run_stages([small], chip, compiled=True)
    trace = repeated(small, -(-wanted // len(small)))
    start, cpu = time.perf_counter(), time.process_time()
    run_stages([trace], chip)
    stages, cpu = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    simulate([trace], chip)
    whole = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(len(trace), stages, cpu, whole, peak)


def bench_timing():
    """Seconds and memory of both sizes against the limits."""
    alone = None
    for wanted in (1_000_000, 10_000_000):
        command = [sys.executable, __file__, str(wanted)]
        count, stages, cpu, whole, peak = map(
            float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        )
        each = stages / count
        alone = alone or each
        limits = (
            f"at most {SECONDS:g} s {'ok' if stages <= SECONDS else 'MISSED'}"
            if alone is each
            else f"{each / alone:.2f} times a million's for each (at most {GROWTH:g}) "
            f"{'ok' if each <= GROWTH * alone else 'MISSED'}; at most {MEMORY:g} GiB "
            f"{'ok' if peak <= MEMORY else 'MISSED'}"
        )
        print(
            f"both stages, {count:,.0f} instructions: {stages:.2f} s ({cpu:.2f} s of CPU), with the timeline "
            f"{whole:.2f} s, peak {peak:.2f} GiB; {limits}",
            flush=True,
        )


if __name__ == "__main__":
    measure(int(sys.argv[1]))
