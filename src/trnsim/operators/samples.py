"""Samples that surfaces are made from: what a use of an operator takes, simulated in full.

A sample is a trace and its time. The trace does not depend on the rates of a chip: where a store has it, it is timed
again, for another chip of the generation, for changed rates or for another timing model, and gives what a fresh run
would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np

from trnsim.hardware import load_chip
from trnsim.hardware.timing_constants import load_timing
from trnsim.operators.cost import ENGINES
from trnsim.operators.decides import time_key, trace_key
from trnsim.session import Session, SimulationOptions, compared, default_schedule
from trnsim.timing.measure import measure as measure_traces
from trnsim.timing.options import TimingOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.machine.trace import Trace
    from trnsim.operators.store import Store
    from trnsim.report.call import KernelCall
    from trnsim.timing.timeline import Timeline

# What a sample holds, in order. The last is a peak, the others grow with every iteration.
QUANTITIES = ("time_ps", "hbm_bytes", "instructions", *(f"busy {name}" for name in ENGINES), "sbuf_bytes")
PEAK = len(QUANTITIES) - 1


class _Measured(msgspec.Struct, array_like=True):
    values: list[float]
    support: str
    reason: str


class Sampler:
    """Samples on one chip: ``chip`` as ``load_chip`` takes it, so one with changes too.

    ``traced`` and ``timed`` count what was not in the store. Support and reason are those without the changes: chips
    of the same rates share samples, however these came about.
    """

    def __init__(self, chip: str, store: Store | None = None) -> None:
        self.name, self.store = chip, store
        self.chip = load_chip(chip)
        self._plain = replace(self.chip, changes=())
        self.traced = self.timed = 0

    def __call__(self, contract: Contract, problem: Problem) -> tuple[NDArray[np.float64], str, str]:
        """The quantities, the support of the time and its reason.

        Raises:
            TrnsimError: the kernel cannot run so.
        """
        if self.store is None:
            return self._measured(self._fresh(contract, problem))
        trace, time = trace_key(contract, problem, self.chip), time_key(self.chip)
        known = self.store.sample(trace, time)
        if known is not None:
            found = msgspec.msgpack.decode(known, type=_Measured)
            return np.array(found.values), found.support, found.reason
        saved = self.store.trace(trace)
        if saved is not None:
            self.timed += 1
            measured = self._timed(*saved)
        else:
            call = self._fresh(contract, problem)
            self.store.add_trace(trace, cast("tuple[Trace, ...]", call.traces), call.nki_version)
            measured = self._measured(call)
        values, support, reason = measured
        self.store.add_sample(trace, time, msgspec.msgpack.encode(_Measured(values.tolist(), support, reason)))
        return measured

    def _fresh(self, contract: Contract, problem: Problem) -> KernelCall:
        self.traced += 1
        self.timed += 1
        options = SimulationOptions(chip=self.name, numeric=False)
        session = Session(options)
        with session.active():
            contract.kernel[problem.cores].launch(contract.arguments(problem), {}, options)
        return session.calls[-1]

    def _measured(self, call: KernelCall) -> tuple[NDArray[np.float64], str, str]:
        if self.chip.changes:
            return self._timed(cast("tuple[Trace, ...]", call.traces), call.nki_version)
        return measure(cast("Timeline", call.timeline)), call.support, call.support_reason

    def _timed(self, traces: tuple[Trace, ...], release: str) -> tuple[NDArray[np.float64], str, str]:
        options = TimingOptions(schedule=default_schedule(release))
        found = measure_traces(traces, self._plain, options)
        totals = found.totals
        moved = totals.hbm_read_bytes + totals.hbm_write_bytes
        busy = {**found.busy_ps, "dma": found.dma_busy_ps}
        values = [found.total_ps, moved, totals.instructions, *(busy[name] for name in ENGINES), found.sbuf_bytes]
        support, reason, _ = compared(
            found.support, found.reason, options.schedule, totals.flops, load_timing(self._plain)
        )
        return np.array(values, np.float64), support, reason


def run(contract: Contract, problem: Problem, chip: str) -> tuple[NDArray[np.float64], str, str]:
    """Simulate without a store. As ``Sampler``."""
    return Sampler(chip)(contract, problem)


def measure(timeline: Timeline) -> NDArray[np.float64]:
    """The quantities of a timeline."""
    busy = dict.fromkeys(ENGINES, 0)
    cores = {t.core for t in timeline.tracks}
    for item in timeline.engine_summary():
        busy[item.name] = max(busy[item.name], item.busy_ps)
    busy["dma"] = max((timeline.dma_busy_ps(core) for core in cores), default=0)
    sbuf = max((m.peak for m in timeline.memory if m.memory == "sbuf"), default=0)
    totals = timeline.totals
    moved = totals.hbm_read_bytes + totals.hbm_write_bytes
    return np.array([timeline.total_ps, moved, totals.instructions, *busy.values(), sbuf], np.float64)
