"""Serving plans: costs of steps, memory, searches and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trnsim.commands.plan_serve import make_plan, serve
from trnsim.errors import InputError
from trnsim.hardware import load_chip, load_system
from trnsim.planner.serving import ServingCase, ServingPlan, chip_price, weight_parts
from trnsim.planner.serving_costs import Parts, StepCosts, computed
from trnsim.planner.serving_search import Load, evaluate, search
from trnsim.serving import Step, closed_loop, lengths, simulate
from trnsim.workloads import Layout, load_model
from trnsim.workloads.memory import serving_weights

LLAMA = "llama-3.1-8b"


def plan(system: str = "dgx-h100", tp: int = 1, dp: int = 1, model: str = LLAMA, **more: object) -> ServingPlan:
    formats = more.pop("formats", {"default": "bfloat16"})
    layout = Layout(tp=tp, dp=dp, ep=int(more.pop("ep", 1)))  # type: ignore[call-overload]
    return ServingPlan(model=load_model(model), system=system, layout=layout, formats=formats, **more)  # type: ignore[arg-type]


def test_runs_of_decode_steps_equal_single_steps():
    costs = StepCosts(plan())
    contexts = np.array([[100, 300], [101, 301], [900, 1100]], np.int64)
    runs = costs.decode_steps_ps(2, 1, contexts.sum(axis=1), contexts.max(axis=1))
    assert runs.tolist() == [costs.step_ps(Step(decode_context=c)) for c in contexts]


@pytest.mark.parametrize("system", ["dgx-h100", "dgx-b200", "trn2.48xlarge", "trn3-ultraserver-gen2"])
def test_a_decode_step_is_no_faster_than_its_bytes(system: str):
    one = plan(system, tp=4)
    case = ServingCase(one)
    rank = case.system.chip.hbm.bytes_per_second * case.rank_bytes / case.system.chip.hbm.capacity_bytes
    read = float(serving_weights(one.model, one.formats, 4)) - one.model.vocabulary * one.model.hidden * 2 / 4
    seconds = case.costs.step_ps(Step(decode_context=np.full(1, 128, np.int64))) / 1e12
    assert read / rank < seconds < 12 * read / rank + 0.02


@pytest.mark.parametrize(
    ("chip", "stored", "expected"),
    [
        ("h100", "fp8", ("fp8", False)),
        ("h100", "mxfp4", ("bfloat16", True)),
        ("h100", "nvfp4", ("bfloat16", True)),
        ("b200", "nvfp4", ("nvfp4", False)),
        ("b200", "int4", ("bfloat16", True)),
        ("trn2", "fp8", ("fp8", False)),
        ("trn2", "mxfp4", ("bfloat16", True)),
        ("trn3", "mxfp4", ("mxfp4", False)),
        ("trn2", "bfloat16", ("bfloat16", False)),
    ],
)
def test_format_of_products(chip: str, stored: str, expected: tuple[str, bool]):
    assert computed(load_chip(chip), stored) == expected


def test_narrow_weights_and_caches_save_time_and_memory():
    wide, narrow = plan(), plan(formats=weight_parts("fp8", {}))
    assert float(ServingCase(narrow).memory.weights) < 0.6 * float(ServingCase(wide).memory.weights)
    step = Step(decode_context=np.full(64, 4096, np.int64))
    halved = StepCosts(plan(cache_dtype="float8_e4m3"))
    assert halved.step_ps(step) < StepCosts(plan()).step_ps(step)


def test_factors_scale_operators_and_exchanges():
    one = plan(tp=4)
    step = Step(decode_context=np.full(8, 512, np.int64))
    both = StepCosts(one, factors=Parts(2.0, 2.0, 2.0)).step_ps(step)
    parts = [
        StepCosts(one, factors=Parts(*f)).step_ps(step) for f in ((2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 2.0))
    ]
    assert sum(parts) == pytest.approx(both, abs=4)
    assert both == pytest.approx(2 * StepCosts(one).step_ps(step), abs=4)
    assert StepCosts(plan(tp=1), factors=Parts(exchange=1.0)).step_ps(step) == 0


def test_the_closed_form_is_near_the_engine():
    case = ServingCase(plan(max_model_len=512))
    state = case.estimate(8, 256, 128).state
    run = simulate(closed_loop(8, lengths(256, 64), lengths(128, 64)), case.pool())
    assert run.steady_output_tokens_per_second() == pytest.approx(state.output_tokens_per_second, rel=0.05)
    assert float(np.median(run.tpot)) == pytest.approx(state.tpot, rel=0.05)


def test_replicas_multiply_throughput_and_chips():
    one, two = (ServingCase(plan(dp=n)).estimate(8 * n, 256, 128) for n in (1, 2))
    assert two.output_tokens_per_second == pytest.approx(2 * one.output_tokens_per_second)
    assert (one.chips, two.chips) == (1, 2)
    assert two.state.tpot == one.state.tpot


def test_search_sorts_by_throughput_a_chip_and_keeps_limits():
    load = Load(users=16, input_tokens=256, output_tokens=128)
    found = search(plan(max_model_len=384), load)
    figures = [one.output_tokens_per_second_per_chip for one in found.best]
    assert figures == sorted(figures, reverse=True)
    alone = evaluate(found.best[0].plan, load)
    assert alone.output_tokens_per_second_per_chip == figures[0]
    limit = found.best[0].state.tpot * 0.7
    limited = search(plan(max_model_len=384), Load(users=16, input_tokens=256, output_tokens=128, tpot=limit))
    assert all(one.state.tpot <= limit for one in limited.best)
    assert limited.pruned["TPOT over its limit"]


@pytest.mark.parametrize(
    ("model", "system", "load", "words"),
    [
        ("llama-3.1-405b", "dgx-h100", {}, "GiB more than vllm-gpu leaves .* smallest system that it fits is"),
        (LLAMA, "dgx-h100", {"tpot": 1e-6}, "the shortest TPOT"),
    ],
)
def test_nothing_fits(model: str, system: str, load: dict[str, float], words: str):
    with pytest.raises(InputError, match=words):
        search(
            plan(system, model=model, max_model_len=384), Load(users=1, input_tokens=256, output_tokens=128, **load), 8
        )


def test_the_batch_of_compiled_graphs_is_that_of_the_load():
    found = evaluate(
        plan("trn2.48xlarge", tp=4, max_model_len=384), Load(users=12, input_tokens=256, output_tokens=128)
    )
    assert found.plan.max_num_seqs == 12
    assert found.state.batch == 12


def test_prices_are_of_one_type_and_of_a_chip():
    system = load_system("trn2.48xlarge")
    price, hourly = chip_price(system, "capacity-block") or pytest.fail("no price")
    assert hourly == price.usd_per_hour / 16
    assert chip_price(load_system("trn3-ultraserver-gen2")) is None


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "plans.json"
    serve(model=LLAMA, system="trn3-ultraserver-gen2", concurrency=4, isl=256, osl=64, tp=4, rate=2.0, requests=20,
          against="p5.48xlarge", json=str(target))  # fmt: skip
    shown = capsys.readouterr().out
    assert "no cost" in shown
    assert "break-even" in shown
    found = json.loads(target.read_text())
    (one,) = found["plans"]
    assert one["cost"] is None
    assert one["energy"] is None or one["energy"]["support"] == "assumed"
    assert one["layout"]["tp"] == 4
    assert one["tokens_per_s"] == pytest.approx(one["tokens_per_s_per_chip"] * one["chips"])
    assert found["simulated"]["requests"] == 20
    assert found["break_even"]["price_type"]


def test_bad_options():
    with pytest.raises(InputError, match="no format 'fp3'"):
        make_plan(LLAMA, "dgx-h100", dtype="fp3")
    with pytest.raises(InputError, match="keys and values"):
        make_plan(LLAMA, "dgx-h100", kv_dtype="int2")
    with pytest.raises(InputError, match="two kinds of arrivals"):
        serve(model=LLAMA, system="dgx-h100", rate=1.0, trace=Path("x"))
