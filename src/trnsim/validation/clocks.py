"""What a published time includes beside the kernel: each way to measure has its own named clock.

A prediction counts from the first instruction to the last DMA (clock ``kernel``). A published number has fixed parts of
the runtime and the measuring tool around that; they are ``[clocks]`` of ``hardware/timing/<version>.toml``, each with
its source, and are added to the prediction, never subtracted from the measurement.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trnsim.hardware.timing_constants import Timing

# What the metric of a row must say, and the clock it then is. The first that matches counts.
_METRICS: tuple[tuple[str, str], ...] = (
    (r"TpbSgCyclesSum", "tpb_cycles"),
    (r"CycleCount", "cycle_count"),
    (r"total_time", "profiler_total"),
    (r"p50", "benchmark_p50"),
    (r"\b[Pp]99\b", "benchmark_p99"),
    (r"device timer", "device_timer"),
    (r"nc_exec_running", "nc_exec"),
    (r"^kernel span\b", "kernel"),
    (r"^latency$", "profiler_total"),
)
NAMES = {
    "kernel": "first instruction to last DMA",
    "profiler_total": "total time of the profiler",
    "benchmark_p50": "median of nki.benchmark",
    "benchmark_p99": "99th percentile of nki.benchmark",
    "cycle_count": "CycleCount of neuron-profile show-session",
    "tpb_cycles": "TpbSgCyclesSum of nki-library's tests",
    "tpb_cycles_two_cores": "the same on a logical core of two",
    "device_timer": "device timer",
    "nc_exec": "nc_exec_running of the runtime's trace",
}


def clock_of(metric: str, cores: int = 1) -> str | None:
    """The clock that the metric of a row names; None if it is no time of a whole kernel."""
    found = next((clock for pattern, clock in _METRICS if re.search(pattern, metric)), None)
    return "tpb_cycles_two_cores" if found == "tpb_cycles" and cores == 2 else found


def fixed_us(timing: Timing, clock: str) -> float | None:
    """Microseconds that ``clock`` shows beside the kernel; None if they are not known on this generation."""
    if clock == "kernel":
        return 0.0
    fixed = timing.clocks.get(clock)
    return None if fixed is None else fixed / 1e6
