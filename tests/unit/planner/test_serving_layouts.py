"""Serving plans over pipelines, with drafts, shared prefixes, shared experts and pools; what explains them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trnsim.commands.plan_serve import serve
from trnsim.errors import InputError
from trnsim.planner.serving import ServingCase, ServingPlan
from trnsim.planner.serving_disaggregated import PooledCase, frontier_pools, search_pools
from trnsim.planner.serving_explain import explain, step_parts
from trnsim.planner.serving_padding import padded
from trnsim.planner.serving_run import run_pools
from trnsim.planner.serving_search import Load, evaluate, frontier, search, undominated
from trnsim.serving import Step, closed_loop, lengths, simulate
from trnsim.serving.settings import Speculation
from trnsim.workloads import Layout, load_model

LLAMA, SMALL, MIXTURE = "llama-3.1-8b", "llama-3.2-1b", "gpt-oss-120b"
LOAD = Load(users=16, input_tokens=256, output_tokens=128)


def plan(model: str = LLAMA, system: str = "dgx-h100", **more: object) -> ServingPlan:
    layout = Layout(**{name: int(more.pop(name)) for name in ("tp", "pp", "dp", "ep") if name in more})  # type: ignore[call-overload,arg-type]
    given = {"formats": {"default": "bfloat16"}, "max_model_len": 512, **more}
    return ServingPlan(model=load_model(model), system=system, layout=layout, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "one",
    [
        plan(tp=2, pp=2),
        plan(tp=1, pp=4),
        plan(tp=1, speculation=Speculation(length=3, acceptance=0.7), draft=load_model(SMALL)),
        plan(system="trn2.48xlarge", tp=4, pp=2, max_num_seqs=16),
        plan(system="trn2.48xlarge", tp=4, stack="ideal"),
    ],
    ids=lambda p: f"{p.system} tp{p.layout.tp} pp{p.layout.pp} {p.stack or (p.draft and p.draft.name)}",
)
def test_runs_of_steps_equal_single_steps_and_the_engine(one: ServingPlan):
    case = ServingCase(one)
    tokens = case.settings.decode_tokens
    contexts = np.array([[100, 300, 280], [101, 301, 281]], np.int64)
    runs = case.costs.decode_steps_ps(3, tokens, contexts.sum(axis=1), contexts.max(axis=1))
    assert runs.tolist() == [case.costs.step_ps(Step(decode_context=c, decode_tokens=tokens)) for c in contexts]
    state = case.estimate(8, 256, 128).state
    run = simulate(closed_loop(8, lengths(256, 64), lengths(128, 64)), case.pool())
    assert run.steady_output_tokens_per_second() == pytest.approx(state.output_tokens_per_second, rel=0.12)
    assert float(np.median(run.tpot)) == pytest.approx(state.tpot, rel=0.12)


def test_stages_share_weights_and_cache_and_wait_for_each_other():
    whole, split = (ServingCase(plan(tp=1, pp=pp)) for pp in (1, 4))
    assert float(split.memory.weights) < 0.45 * float(whole.memory.weights)
    assert split.chips == 4
    one = Step(decode_context=np.full(1, 256, np.int64))
    # One sequence passes all stages, one after the other: never sooner than the model on one rank, less its padding.
    assert split.costs.step_ps(one) > 0.95 * whole.costs.step_ps(one)
    many = Step(decode_context=np.full(64, 256, np.int64))
    assert split.costs.step_ps(many) < 4 * whole.costs.step_ps(many)
    assert ServingCase(plan(tp=2, pp=2)).slots(512) == pytest.approx(ServingCase(plan(tp=4)).slots(512), rel=0.1)


def test_a_model_that_fits_no_system_gets_a_pipeline():
    found = search(plan("llama-3.1-405b"), LOAD)
    assert {one.plan.layout.pp for one in found.best} == {2}
    assert min(one.chips for one in found.best) > 8
    with pytest.raises(InputError, match="smallest system that it fits"):
        search(plan("llama-3.1-405b"), LOAD, 8)


def test_drafts_take_time_and_memory():
    base = plan(tp=1)
    free = replace(base, speculation=Speculation(length=3, acceptance=0.7))
    paid = replace(free, draft=load_model(SMALL))
    cases = [ServingCase(one) for one in (base, free, paid)]
    tpot = [case.estimate(4, 256, 128).state.tpot for case in cases]
    assert tpot[1] < tpot[2] < tpot[0]
    assert float(cases[2].memory.weights) > float(cases[1].memory.weights) == float(cases[0].memory.weights)


def test_experts_over_all_replicas():
    alone, shared = plan(MIXTURE, tp=1, dp=8, ep=1), plan(MIXTURE, tp=1, dp=8, ep=8)
    assert float(ServingCase(shared).memory.weights) < 0.4 * float(ServingCase(alone).memory.weights)
    load = Load(users=256, input_tokens=256, output_tokens=128)
    layouts = {
        (one.plan.layout.tp, one.plan.layout.dp, one.plan.layout.ep) for one in search(plan(MIXTURE), load, 8).best
    }
    assert {(1, 8, 8), (2, 4, 8), (4, 2, 4)} <= layouts


def test_shared_prefixes_need_not_be_computed():
    whole, cached = (evaluate(plan(tp=1), replace(LOAD, cached_tokens=n)) for n in (0, 192))
    assert cached.output_tokens_per_second > whole.output_tokens_per_second
    # Tokens that are not computed count no FLOPs.
    rates = cached.output_tokens_per_second / whole.output_tokens_per_second
    assert cached.mfu < whole.mfu * rates
    with pytest.raises(InputError, match="does not reuse"):
        evaluate(plan(system="trn2.48xlarge", tp=4), replace(LOAD, cached_tokens=192))


def test_frontiers_have_no_plan_that_another_beats():
    plans = frontier(plan(), LOAD)
    assert len(plans) > 2
    assert {one.users for one in plans} >= {1, 16}
    rates = [one.output_tokens_per_second_per_chip for one in plans]
    assert rates == sorted(rates, reverse=True)
    assert undominated(plans) == plans
    found = search(plan(), LOAD)
    assert found.best[0] in found.pareto


def test_explanations_add_up():
    limit = search(plan(), LOAD).best[0].state.tpot * 0.8
    asked = replace(LOAD, tpot=limit)
    found = search(plan(), asked)
    told = explain(found, asked, plan())
    assert told.limit == "TPOT"
    assert told.without_limits is not None
    case = ServingCase(found.best[0].plan)
    parts = step_parts(case, found.best[0])
    middle = Step(decode_context=np.full(found.best[0].state.batch, 256 + 64, np.int64))
    whole = (case.costs.step_ps(middle) + case.settings.host.step_ps) / 1e9
    assert sum(parts.values()) == pytest.approx(whole, rel=0.03)
    assert told.bytes_ms < sum(parts.values())
    assert told.more_users is not None
    assert told.more_users > 1


def test_pools_are_near_the_engine_and_move_the_cache():
    case = PooledCase.of(plan(tp=1, dp=2), plan(tp=2, dp=2))
    move, size, _, _ = case.transfer(256)
    # Keys and values of 32 layers, 8 heads of 128, in 16 bits.
    assert size == 256 * 32 * 2 * 8 * 128 * 2
    assert move.ps(256, case.decode.settings.cache) > 0
    state = case.estimate(16, 256, 128).state
    load = closed_loop(16, lengths(256, 320), lengths(128, 320))
    run = run_pools(case.prefill.plan, case.decode.plan, load)
    assert run.steady_output_tokens_per_second() == pytest.approx(state.output_tokens_per_second, rel=0.1)
    assert float(np.median(run.tpot)) == pytest.approx(state.tpot, rel=0.1)


def test_searches_of_pools_fill_the_chips():
    found = search_pools(plan(), LOAD, 8, {}, {})
    assert {one.chips for one in found.best} == {8}
    rates = [one.output_tokens_per_second_per_chip for one in found.best]
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(InputError, match="holds the limits"):
        search_pools(plan(), replace(LOAD, tpot=1e-6), 8, {}, {})


def test_pools_have_stages_and_share_experts():
    mixture = plan(MIXTURE, formats={"default": "bfloat16", "experts": "mxfp4"})
    found = search_pools(mixture, LOAD, 8, {"tp": 2}, {"tp": 2})
    shares = {(one.prefill.layout.ep, one.decode.layout.ep) for one in found.best}
    # Of a replica, of all replicas of the pool, or whole.
    assert {(1, 1), (2, 2), (1, 4), (4, 2)} <= shares
    fixed = search_pools(mixture, LOAD, 8, {"tp": 2, "ep": 2}, {"tp": 4, "ep": 1, "pp": 1})
    assert {(one.prefill.layout.ep, one.decode.layout.ep) for one in fixed.best} == {(2, 1)}
    staged = search_pools(plan(), LOAD, 8, {"tp": 1, "pp": 2}, {"tp": 2})
    assert {one.prefill.layout.pp for one in staged.best} == {2}
    assert all(2 * one.prefill.layout.dp + 2 * one.decode.layout.dp == 8 for one in staged.best)


def test_pools_of_a_model_that_fits_no_system_have_stages():
    large = plan("llama-3.1-405b", formats={"default": "bfloat16"})
    found = search_pools(large, replace(LOAD, users=4), 32, {}, {})
    assert {one.decode.layout.pp for one in found.best} == {2}


def test_frontiers_of_pools_and_the_command(tmp_path: Path):
    points = frontier_pools(plan(), LOAD, 4, {"tp": 1}, {})
    rates = [one.output_tokens_per_second_per_chip for one in points]
    assert rates == sorted(rates, reverse=True)
    assert len({one.users for one in points}) > 1
    file = tmp_path / "pools.json"
    given = {"system": "dgx-h100", "concurrency": 16, "isl": 256, "osl": 128, "chips": 4, "disaggregated": True}
    serve(model=LLAMA, **given, prefill_tp=1, plot=tmp_path / "pools.svg", json=str(file))  # type: ignore[arg-type]
    told = json.loads(file.read_text())
    assert [one["tokens_per_s_per_chip"] for one in told["frontier"]] == pytest.approx(rates)
    assert (tmp_path / "pools.svg").read_text().count("<svg") == 1
    with pytest.raises(InputError, match="--disaggregated"):
        serve(model=LLAMA, system="dgx-h100", prefill_ep=2)


@pytest.mark.parametrize(
    ("model", "tp", "heads", "kv"),
    [
        ("llama-2-70b", 24, 72, 24),  # 8 heads of keys, 24 ranks: each has one
        ("llama-2-13b", 24, 48, 48),  # as many heads of keys as of queries
        ("llama-4-scout", 64, 64, 64),
        ("llama-3.1-8b", 12, 36, 36),  # 8 heads of keys do not repeat over 12 ranks
        ("llama-3.1-8b", 8, 32, 8),
    ],
)
def test_padded_heads(model: str, tp: int, heads: int, kv: int):
    part = padded(load_model(model), tp).layers[0].parts[0]
    assert (part.heads, part.kv_heads) == (heads, kv)  # type: ignore[attr-defined]
    assert len({id(layer) for layer in padded(load_model(model), tp).layers}) <= 3


def test_the_ideal_stack_bounds_the_usual_one():
    load = Load(users=8, input_tokens=256, output_tokens=128)
    times = [evaluate(plan(system="trn2.48xlarge", tp=8, stack=stack), load).state.tpot for stack in ("ideal", "nxdi")]
    assert times[0] < times[1]


@pytest.mark.parametrize(
    ("system", "implementation", "support", "known"),
    [
        ("trn1.32xlarge", "", "interpolated", True),
        ("trn2.48xlarge", "", "interpolated", True),
        ("trn3-ultraserver-gen2", "", "extrapolated", False),  # carried from trn2
        ("trn2.48xlarge", "kernel", None, False),  # fits are of compiled graphs
    ],
)
def test_how_neuron_stacks_are_known(system: str, implementation: str, support: str | None, known: bool):
    found = evaluate(plan(system=system, tp=8, implementation=implementation), LOAD)
    assert support in (None, found.support)
    assert (found.error_percent is not None) == known


def test_command_tells_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target, plot = tmp_path / "plans.json", tmp_path / "frontier.svg"
    serve(model=LLAMA, system="dgx-h100", concurrency=8, isl=256, osl=64, explain=True, frontier=True, plot=plot,
          draft_tokens=2, acceptance=0.6, json=str(target))  # fmt: skip
    shown = capsys.readouterr().out
    for text in ("A decode step of", "binds:", "Throughput against latency", "MFU"):
        assert text in shown
    found = json.loads(target.read_text())
    assert found["plans"][0]["mfu"] > 0
    assert found["explanation"]["largest"] in found["explanation"]["step_ms"]
    assert found["frontier"]
    assert "</svg>" in plot.read_text()


def test_command_for_pools(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "plans.json"
    serve(model=LLAMA, system="dgx-h100", concurrency=8, isl=256, osl=64, tp=2, prefill_tp=2, chips=8,
          disaggregated=True, rate=4.0, requests=20, json=str(target))  # fmt: skip
    assert "over the fabric" in capsys.readouterr().out
    found = json.loads(target.read_text())
    assert found["simulated"]["requests"] == 20
    assert {"layout", "ttft_ms", "tpot_ms", "tokens_per_s", "memory", "cost", "support"} <= set(found["plans"][0])


NXDI = {"tp_degree": 8, "batch_size": 4, "seq_len": 512, "max_context_length": 256, "enable_bucketing": True}
VLLM = "vllm serve m -tp 2 --max-num-seqs 3 --max-model-len 512 --kv-cache-dtype fp8 --max-num-batched-tokens 128"


@pytest.mark.parametrize(
    ("system", "text", "tp", "batch", "cache"),
    [
        ("trn2.48xlarge", json.dumps(NXDI), 8, 4, "bfloat16"),
        ("trn2.48xlarge", json.dumps({**NXDI, "kv_cache_quant": True, "batch_size": 2}), 8, 2, "float8_e4m3fn"),
        ("dgx-h100", VLLM, 2, 3, "float8_e4m3fn"),
    ],
)
def test_configurations_of_other_tools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], system: str, text: str, tp: int, batch: int, cache: str
):
    target, file = tmp_path / "plans.json", tmp_path / "neuron_config.json"
    file.write_text(text)
    serve(model=LLAMA, system=system, concurrency=8, isl=256, osl=64, json=str(target),
          like=str(file) if text.startswith("{") else text)  # fmt: skip
    (one,) = json.loads(target.read_text())["plans"]
    assert (one["layout"]["tp"], one["batch"], one["layout"]["cache"]) == (tp, batch, cache)
    assert one["layout"]["max_model_len"] == 512
    assert "not read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"like": "vllm serve m --speculative-config '{\"num_speculative_tokens\": 3}'"}, "--draft-tokens and"),
        ({"draft_tokens": 3}, "--draft-tokens and --acceptance"),
        ({"prefill_tp": 2}, "for --disaggregated"),
        ({"disaggregated": True, "ep": 2}, "there are no experts"),
        ({"disaggregated": True, "explain": True}, "--explain does not go"),
        ({"draft_tokens": 3, "acceptance": 1.5}, "out of range"),
    ],
)
def test_bad_options(options: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        serve(model=LLAMA, system="dgx-h100", **options)  # type: ignore[arg-type]
