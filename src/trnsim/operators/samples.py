"""Runs of a kernel that surfaces are made from: what a use of an operator takes, simulated in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from trnsim.operators.cost import ENGINES
from trnsim.session import Session, SimulationOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.timing.timeline import Timeline

# What a sample holds, in order. The last is a peak, the others grow with every iteration.
QUANTITIES = ("time_ps", "hbm_bytes", "instructions", *(f"busy {name}" for name in ENGINES), "sbuf_bytes")
PEAK = len(QUANTITIES) - 1


def run(contract: Contract, problem: Problem, chip: str) -> tuple[NDArray[np.float64], str, str]:
    """Simulate; the quantities, the support of the time and its reason.

    Raises:
        TrnsimError: the kernel cannot run so.
    """
    options = SimulationOptions(chip=chip, numeric=False)
    session = Session(options)
    with session.active():
        contract.kernel[problem.cores].launch(contract.arguments(problem), {}, options)
    call = session.calls[-1]
    return measure(cast("Timeline", call.timeline)), call.support, call.support_reason


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
