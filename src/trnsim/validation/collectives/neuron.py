"""Constants of Neuron links from the few published collectives and transfers, and the comparison with them.

Launch and efficiency of NeuronLink-v2: all-gathers of all 32 ranks of a trn1.32xlarge, four sizes. Efficiency of
NeuronLink-v3: the bandwidth in a published fit of traced all-reduces of 64 ranks of trn2. Efficiency of EFA: two
published bandwidths of writes from HBM to HBM. Skew: median and 90th percentile of a trace of all-reduces. Step
latencies are the documentation's. No fit sees the run of the profiler's guide, or the least and largest time of the
trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trnsim.errors import InputError
from trnsim.fabric.algorithms import schedule
from trnsim.fabric.closed import time_ps
from trnsim.fabric.group import Group, group
from trnsim.fabric.links import LinkModel, Protocol
from trnsim.fabric.neuron import neuron_program
from trnsim.fabric.predict import Prediction, predict
from trnsim.fabric.program import from_schedule
from trnsim.fabric.skew import Skew, fitted, published

from .least_squares import Floats
from .least_squares import fit as least_squares
from .rows import Row

SERIES = re.compile(r"^nccom-32r-allg-new-")
PROFILER = "nccom-profiler-32r-allg-512K"
TRACE = re.compile(r"over (\d+) traced collectives")
WRITE_BYTES = 1 << 30
"""Large enough that latency does not count in a sustained bandwidth."""
SEED, DRAWS = 0, 20_000
STEP_PS = 1_500_000
"""About 1 to 2 us a step (neuron-runtime/explore/intranode-collective-comm): the middle, as in the catalogue."""
LIMITS = {"gather": 0.25, "write": 0.15, "skew": 0.30}
QUIET = (9.0, 17.5)
"""Microseconds: what data of a traced 8 KiB all-reduce took after the last rank had come, and the shortest of them."""


def link(technology: str, launch_ps: float, efficiency: float, step_ps: int = STEP_PS) -> LinkModel:
    """A link model of one protocol."""
    protocol = Protocol(name="", step_latency_ps=step_ps, efficiency=min(float(efficiency), 1.0))
    return LinkModel(technology=technology, protocols=(protocol,), launch_ps=round(launch_ps))


# -- fits --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinkFit:
    """Launch and efficiency of NeuronLink-v2 with the largest error and that of sizes left out one by one."""

    launch_ps: float
    efficiency: float
    error: float
    held_out: float


def series(rows: Iterable[Row]) -> list[Row]:
    """The all-gathers of 32 ranks that are fitted."""
    return [r for r in rows if SERIES.match(r.id)]


def fit_link(rows: Sequence[Row]) -> LinkFit:
    """From ``series``."""
    launch, efficiency = _fit_link(rows)
    held = [abs(_gather_us(*_fit_link([r for r in rows if r is not row]), row) / _us(row) - 1) for row in rows]
    errors = [abs(_gather_us(launch, efficiency, row) / _us(row) - 1) for row in rows]
    return LinkFit(launch, efficiency, float(np.mean(errors)), float(np.mean(held)))


def _fit_link(rows: Sequence[Row]) -> tuple[float, float]:
    def times(x: Floats) -> Floats:
        return np.array([_gather_us(x[0], x[1], row) for row in rows])

    found = least_squares(times, np.array([_us(r) for r in rows]), np.array([3e6, 0.5]))
    return float(found[0]), float(found[1])


def _gather_us(launch_ps: float, efficiency: float, row: Row) -> float:
    assert row.nbytes is not None
    models = {"NeuronLink-v2": link("NeuronLink-v2", launch_ps, efficiency)}
    return time_ps(neuron_program(_trn1(), "all_gather", row.nbytes, models)[0]) / 1e6


@lru_cache
def _trn1() -> Group:
    return group("trn1.32xlarge", 32)


def _us(row: Row) -> float:
    assert row.microseconds is not None
    return row.microseconds


def fit_v3_efficiency(rows: Iterable[Row]) -> float:
    """From the bandwidth of the published fit, ``17.5 us + bytes/100 GB/s``."""
    stat = next((r.stat for r in rows if "fitted model" in r.stat), "")
    found = re.search(r"bytes/([\d.]+) GB/s", stat)
    if found is None:
        raise InputError("no row has the published fit of all-reduces on trn2", operand="stat")
    wanted = 1e12 / (float(found[1]) * 1e9)
    where, sizes = group("trn2.48xlarge", 64), (1 << 18, 1 << 19)

    def slope(efficiency: float) -> float:
        models = {"NeuronLink-v3": link("NeuronLink-v3", 0, efficiency)}
        times = [time_ps(neuron_program(where, "all_reduce", n, models)[0]) for n in sizes]
        return (times[1] - times[0]) / (sizes[1] - sizes[0])

    # Time is a constant plus one over the efficiency.
    half, whole = slope(0.5), slope(1.0)
    inverse = 1 + (wanted - whole) / (half - whole)
    return min(1 / inverse, 1.0)


def fit_efa(rows: Iterable[Row]) -> tuple[float, float]:
    """Efficiency of EFA adapters: the geometric mean over the published writes of measured over the adapters' rate.

    Beside it the mean error of each from the others.
    """
    shares = [
        float(np.log(row.gigabytes_per_second / _write_gb_per_second(row, 1.0)))
        for row in rows
        if row.op == "p2p write" and row.gigabytes_per_second
    ]
    if len(shares) < 2:
        raise InputError("no two writes over EFA to fit on", operand="op", value=len(shares), limit=2)
    others = [np.mean(shares[:i] + shares[i + 1 :]) for i in range(len(shares))]
    held = [abs(np.exp(other - share) - 1) for other, share in zip(others, shares, strict=True)]
    return float(np.exp(np.mean(shares))), float(np.mean(held))


def _write_gb_per_second(row: Row, efficiency: float | None = None) -> float:
    """Writes from chips of one trn2.48xlarge to those at the same place of another, a rank each."""
    assert row.ranks is not None
    devices = row.ranks // 2
    where = group("trn2.48xlarge", 2 * devices, systems=2)
    room = where.topology.rank_count // 2
    per = where.topology.ranks_per_chip
    chips = per * np.arange(devices)
    where = group(where.topology, np.concatenate([chips, room + chips]).tolist())
    made = schedule("permute", "mesh", 2 * devices, WRITE_BYTES, pairs=[(i, devices + i) for i in range(devices)])
    models = None if efficiency is None else {"EFAv3": link("EFAv3", 0, efficiency, 0)}
    return devices * WRITE_BYTES / time_ps(from_schedule(made, where, models=models)) * 1e3


def fit_skew(rows: Iterable[Row], quiet_ps: float) -> Skew:
    """From median and 90th percentile of the trace, beyond the time without skew."""
    found = {r.stat.split()[0]: r for r in rows if TRACE.search(r.stat)}
    if not {"median", "p90"} <= set(found):
        raise InputError("no trace of all-reduces with its median and p90", operand="stat")
    late = [_us(found[name]) * 1e6 - quiet_ps for name in ("median", "p90")]
    ranks = found["median"].ranks
    assert ranks is not None
    return fitted(late[0], late[1], 0.9, ranks)


# -- comparison --------------------------------------------------------------------------------------------------------


def compare(row: Row, system: str) -> tuple[float, float, str, int, Prediction]:
    """Measured, predicted, unit, bytes, and how the prediction is known."""
    assert row.ranks is not None
    if row.op == "p2p write":
        assert row.gigabytes_per_second is not None
        what = Prediction(
            collective="permute", ranks=row.ranks, nbytes=WRITE_BYTES, time_ps=0, algorithm="write", protocol="",
            support="calibrated", reason="one efficiency for both published writes", error_percent=None,
        )  # fmt: skip
        return row.gigabytes_per_second, _write_gb_per_second(row), "GB/s", WRITE_BYTES, what
    assert row.nbytes is not None
    assert row.nodes is not None
    found = predict(group(system, row.ranks, systems=row.nodes), row.collective, row.nbytes)
    if not (traced := TRACE.search(row.stat)):
        return _us(row), found.time_ps / 1e6, "us", row.nbytes, found
    late = _late_ps(row.stat.split()[0], int(traced[1]), row.ranks)
    return _us(row), (found.time_ps + late) / 1e6, "us", row.nbytes, found


def _late_ps(stat: str, count: int, ranks: int) -> float:
    """The wait for the last rank: by simulation with the published skew and a fixed seed."""
    waits = np.sort(published().waits(ranks, DRAWS, SEED))
    share = {"median": 0.5, "p90": 0.9, "min": 1 / (count + 1), "max": count / (count + 1)}[stat]
    return float(np.quantile(waits, share))


def targets(cases: Iterable[tuple[str, str, int, float, float]]) -> list[tuple[str, float, float, float, str]]:
    """``(name, value, low, high, unit)`` from cases ``(id, stat, nodes, measured, predicted)``."""
    found: list[tuple[str, float, float, float, str]] = []
    for name, stat, _, measured, predicted in cases:
        error = abs(predicted / measured - 1)
        if name == PROFILER:
            found.append(("all_gather of 512 KiB, 32 ranks of trn1: error", error, 0, LIMITS["gather"], ""))
        elif TRACE.search(stat) and stat.split()[0] in ("median", "p90"):
            if stat.startswith("median"):
                quiet = predict(group("trn2.48xlarge", 64), "all_reduce", 8192).time_ps / 1e6
                found.append(("all_reduce of 8 KiB, 64 ranks of trn2, no skew", quiet, *QUIET, "us"))
            text = f"all_reduce of 8 KiB with skew, {stat.split()[0]}: error"
            found.append((text, error, 0, LIMITS["skew"], ""))
        elif stat.startswith("sustained"):
            found.append((f"EFA write ({name}): error", error, 0, LIMITS["write"], ""))
    return found
