"""Plans a second: one estimate, a search, many plans in arrays; beside them aiconfigurator's time for a plan.

``python bench/run.py plans``. Times are those of the processor, so that others on the machine do not
count. ``TRNSIM_BENCH_PLANS`` is how many plans are evaluated in arrays (100,000). The peer is the package
``aiconfigurator-core`` (Python 3.11 and later), skipped visibly where it cannot be imported: both estimate the same
model under the same load, for several degrees of tensor parallelism and batches.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from trnsim.commands.plan_serve import make_plan
from trnsim.planner import many
from trnsim.planner.search import Wanted, part, search
from trnsim.planner.serving_search import Load, evaluate
from trnsim.planner.stack import load_training_stack
from trnsim.planner.training import TrainingPlan, default_stack, estimate, prices_of
from trnsim.workloads import Layout, load_model

MODEL = "llama-3.1-70b"
_MODEL = load_model(MODEL)
CHIPS = (32, 64, 128, 256, 512)
SYSTEMS = ("dgx-h100", "trn2.48xlarge", "dgx-b200", "trn2u.48xlarge", "dgx-h200", "dgx-b300")
COUNT = int(os.environ.get("TRNSIM_BENCH_PLANS", "100000"))
PROCESSES = 2
GRID = [(tp, batch) for tp in (4, 8) for batch in (1, 2, 4, 8, 16, 32, 64)]


def wanted(system, chips, batch=1024):
    """A search for the model."""
    return Wanted(model=_MODEL, system=system, chips=chips, sequence=8192, global_batch=batch)


def bench_plans(row):
    """``row`` prints a line: name, value, unit, peer, ratio, the most that the ratio may be."""
    one_estimate(row)
    from_the_shell(row)
    for system in ("dgx-h100", "trn2.48xlarge"):
        begin, plans, pruned = time.process_time(), 0, 0
        for chips in CHIPS:
            found = search(wanted(system, chips), 3)
            plans, pruned = plans + found.evaluated, pruned + sum(found.pruned.values())
        spent = time.process_time() - begin
        row(f"search {MODEL}, {system}, {CHIPS[0]} to {CHIPS[-1]} chips", spent, "s", None, spent / 5, 1.0)
        print(f"  {plans:,} plans evaluated, {pruned:,} pruned; {spent / plans * 1e3:.2f} ms a plan evaluated")
    beside_aiconfigurator(row)
    in_arrays(row)


def warm(function, repeats=20):
    """Milliseconds of a call, after one that does not count."""
    function()
    begin = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - begin) / repeats * 1e3


def one_estimate(row):
    layout = Layout(tp=8, pp=8, vpp=10, dp=32, zero=1, global_batch=1024)
    plan = TrainingPlan(model=_MODEL, system="trn2.48xlarge", layout=layout, sequence=8192)
    took = warm(lambda: estimate(plan))
    row("one estimate of training, 512 chips, warm", took, "ms", None, took / 5, 1.0)
    serving = replace(make_plan("llama-3.3-70b", "trn2.48xlarge", "bf16", "bf16", 2048), layout=Layout(tp=16))
    load = Load(users=64, input_tokens=1024, output_tokens=1024)
    took = warm(lambda: evaluate(serving, load))
    row("one estimate of serving, warm", took, "ms", None, took / 5, 1.0)


def from_the_shell(row):
    command = [sys.executable, "-m", "trnsim.cli", "plan", "serve", "--model", MODEL, "--system", "trn2.48xlarge"]
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--tp", "16"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    row("one estimate from the shell", min(times), "s", None, min(times) / 1.0, 1.0)


def beside_aiconfigurator(row):
    """Milliseconds of a serving plan on H100, warm, ours and theirs."""
    plan = make_plan(MODEL, "dgx-h100", "bf16", "bf16", 2048)

    def ours():
        for tp, batch in GRID:
            one = replace(plan, layout=Layout(tp=tp), max_num_seqs=batch)
            evaluate(one, Load(users=batch, input_tokens=1024, output_tokens=1024))

    mine = warm(ours, 3) / len(GRID)
    theirs = aiconfigurator()
    if theirs is None:
        print("aiconfigurator: skipped, aiconfigurator-core is not installed (pip install aiconfigurator-core)")
        row(f"a serving plan of {MODEL}, {len(GRID)} in turn, warm", mine, "ms", None)
        return
    row(f"a serving plan of {MODEL}, {len(GRID)} in turn, warm", mine, "ms", theirs, mine / theirs)


def aiconfigurator():
    """Milliseconds of one of their static estimates, warm; None: it cannot be imported."""
    try:
        from aiconfigurator_core.sdk import common, config
        from aiconfigurator_core.sdk.backends.factory import get_backend
        from aiconfigurator_core.sdk.models import get_model
        from aiconfigurator_core.sdk.perf_database import get_database, get_latest_database_version
    except ImportError:
        return None
    database = get_database("h100_sxm", "vllm", get_latest_database_version("h100_sxm", "vllm"))
    backend = get_backend("vllm")

    def theirs():
        for tp, batch in GRID:
            form = config.ModelConfig(
                tp_size=tp,
                gemm_quant_mode=common.GEMMQuantMode.bfloat16,
                kvcache_quant_mode=common.KVCacheQuantMode.bfloat16,
                fmha_quant_mode=common.FMHAQuantMode.bfloat16,
            )
            model = get_model("meta-llama/Meta-Llama-3.1-70B", form, "vllm")
            load = config.RuntimeConfig(batch_size=batch, isl=1024, osl=1024)
            backend.run_static(model, database, load, mode="static")

    return warm(theirs, 3) / len(GRID)


def in_arrays(row):
    """Many plans over two processes, each of which searches for one system after the other."""
    begin, children = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with ProcessPoolExecutor(PROCESSES) as pool:
        found = list(pool.map(counted, SYSTEMS, [COUNT // len(SYSTEMS)] * len(SYSTEMS)))
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), (time.perf_counter() - begin) / 60
    spent = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    plans = sum(evaluated for evaluated, _ in found)
    row(f"{plans:,} plans evaluated on {PROCESSES} processes", wall, "min", None)
    million = spent / 60 / PROCESSES * 1e6 / plans
    row(f"a million of them, processor time on {PROCESSES} cores", million, "min", None, million / 10, 1.0)
    print(f"  {sum(judged for _, judged in found):,} more that memory or divisors rule out")
    agree(row)


def counted(system, least):
    """(plans evaluated, plans pruned) of searches for one system, until there are so many plans."""
    plans = pruned = 0
    for batch in (1024, 2048, 4096, 512, 8192, 256, 16384, 3072, 6144, 12288, 1536, 5120, 10240, 24576, 32768):
        for chips in (*CHIPS, 1024, 2048, 4096):
            found = part(wanted(system, chips, batch))
            plans, pruned = plans + len(found.candidates), pruned + sum(found.pruned.values())
            if plans >= least:
                return plans, pruned
    return plans, pruned


def agree(row):
    """In arrays and one at a time: the same, and how much faster."""
    task = wanted("trn2.48xlarge", 128)
    found = part(task).candidates[::10]
    plan = task.plan(task.base)
    prices, stack = prices_of(plan), load_training_stack(default_stack(plan.on))
    layouts = [one.layout for one in found]
    together = warm(lambda: many.steps(prices, layouts, stack.weights(plan.on.chip)), 3) / len(found)
    alone = warm(lambda: [estimate(task.plan(one), stack, prices) for one in layouts], 1) / len(found)
    steps = [estimate(task.plan(one.layout), stack, prices).step_us for one in found]
    assert all(abs(one.step_us / step - 1) < 1e-9 for one, step in zip(found, steps, strict=True))
    row("a plan in arrays, prices known", together, "ms", alone, together / alone)
