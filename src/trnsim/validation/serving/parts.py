"""What a TPOT is made of: the columns that stacks and null models are fitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trnsim.planner.serving_costs import Parts
from trnsim.planner.training import peak_flops
from trnsim.serving.closed_form import steady_state
from trnsim.workloads import Layout
from trnsim.workloads.memory import serving_cache

if TYPE_CHECKING:
    from trnsim.planner.serving import ServingCase


def tpot_parts(
    case: ServingCase, users: int, input_tokens: int, output_tokens: int
) -> tuple[tuple[float, float, float, float], float]:
    """((milliseconds of TPOT of operators' work, their fixed times, exchanges, and of one millisecond of host time a
    step), TTFT in milliseconds with all of them but host time).
    """
    each = -(-users // case.plan.layout.dp)
    # Host time of a millisecond a step stands beside each part, since no step takes no time.
    host = replace(case.settings.host, step_ps=10**9, launch_ps=0, overlap="none")
    settings = replace(case.settings, host=host)
    times = []
    for factors in (Parts(), Parts(work=1.0), Parts(fixed=1.0), Parts(exchange=1.0), Parts(1.0, 1.0, 1.0)):
        costs = case.costs.with_factors(factors)
        times.append(steady_state(costs, settings, users=each, input_tokens=input_tokens, output_tokens=output_tokens))
    beside = times[0].tpot
    work, fixed, exchange = ((one.tpot - beside) * 1e3 for one in times[1:4])
    return (work, fixed, exchange, beside * 1e3), times[4].ttft * 1e3


def null_parts(case: ServingCase, users: int, input_tokens: int, output_tokens: int) -> tuple[float, float, float]:
    """Milliseconds of a rank's bytes at HBM's rate and of its FLOPs at the peak, a token of each user, and 1."""
    plan, chip = case.plan, case.system.chip
    each = -(-users // plan.layout.dp)
    context = input_tokens + output_tokens / 2
    cache = float(serving_cache(case.run.model, round(context), each, plan.cache_dtype, plan.layout.tp))
    read = float(case.memory.weights) + cache
    dtype = {"fp8": "float8_e4m3", "nvfp4": "nvfp4"}.get(plan.formats.get("default", ""), "")
    try:
        peak = peak_flops(case.system, Layout(product_dtype=dtype))
    except KeyError:
        peak = peak_flops(case.system, Layout())
    tokens = users * (1 + input_tokens / output_tokens)
    flops = 2 * float(plan.model.active_parameters) * tokens / (plan.layout.tp * plan.layout.dp)
    rate = chip.hbm.bytes_per_second * case.rank_bytes / chip.hbm.capacity_bytes
    return read / rate * 1e3, flops / peak * 1e3, 1.0
