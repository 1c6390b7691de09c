"""Steps of training: what computation hides, memory, search, cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware import load_chip, load_system
from trnsim.planner.economics import break_even, cost_of, energy_of, run_of
from trnsim.planner.pricing import KIND, KINDS
from trnsim.planner.search import Wanted, describe, layouts, search
from trnsim.planner.stack import architecture, load_training_stack, strain, training_stack_names
from trnsim.planner.training import Pieces, TrainingPlan, end_line, estimate, prices_of, step_line
from trnsim.workloads import Layout, load_model, training_memory
from trnsim.workloads.layout import RECOMPUTATION

MODEL = load_model("llama-3.1-8b")


def _plan(system="dgx-h100", **layout):
    return TrainingPlan(model=MODEL, system=system, layout=Layout(zero=1, **layout), sequence=4096)


def _pieces(forward=None, ends=None, **kinds):
    times = np.zeros((1, 3, len(KINDS)))
    for name, value in (forward or kinds).items():
        times[0, 0, KIND[name]] = value
    end = np.zeros((1, 3, len(KINDS)))
    for (row, name), value in (ends or {}).items():
        end[0, row, KIND[name]] = value
    return Pieces(times, end, 0.0, 0.0, frozenset({"calibrated"}), ())


def _weights(**given):
    found = np.ones(len(KINDS))
    for name, value in ({"host": 0.0} | given).items():
        found[KIND[name]] = value
    return found


@pytest.mark.parametrize(
    ("pieces", "weights", "expected"),
    [
        # A quarter of the exchange cannot be hidden.
        (_pieces(products=100, tp=40), _weights(tp=0.25), 110),
        # Products hide as much as they last: 100 of 160.
        (_pieces(products=100, tp=160), _weights(tp=0.25), 160),
        # Nothing hides what is beside nothing.
        (_pieces(products=100, tp_alone=40), _weights(tp_alone=1.1), 144),
        # Slower products hide more.
        (_pieces(products=100, tp=160), _weights(tp=0.25, products=1.5), 190),
        # Context parallelism hides behind attention, not behind products.
        (_pieces(products=100, attention=10, cp=50), _weights(cp=0.0), 150),
        (_pieces(products=100, experts=50, ep=40), _weights(ep=0.5), 170),
        # Gradients hide behind the backward pass, of which there is none here; weights behind the forward pass.
        (_pieces(forward={"products": 100}, ends={(0, "dp"): 30, (1, "dp"): 30}), _weights(dp=0.1), 133),
        (_pieces(forward={"products": 100}, ends={(0, "dp"): 30, (1, "dp"): 30}), _weights(dp=0.1, late=0.8), 127),
        (_pieces(forward={"products": 100}, ends={(2, "optimizer"): 7}), _weights(), 107),
        # Milliseconds of a host.
        (_pieces(products=100), _weights(host=0.02), 120),
        # Of three experts' products, 5 microseconds each.
        (_pieces(products=100, groups=3), _weights(groups=5.0), 115),
    ],
)
def test_what_computation_hides(pieces, weights, expected):
    line, _ = step_line(pieces, Layout(), weights)
    assert line[:-1] @ weights + line[-1] == pytest.approx(expected)


def test_sends_beside_passes():
    one, two = (replace(_pieces(products=10), times=np.repeat(_pieces(products=10).times, 2 * v, 0), send=3.0,
                        ends=np.zeros((2, 3, len(KINDS)))) for v in (1, 2))  # fmt: skip
    shares = _weights(sends=0.25, pp=0.0)
    layouts_ = (Layout(pp=2, global_batch=4), Layout(pp=2, vpp=2, global_batch=4))
    lines_ = [step_line(p, where, shares)[0] for p, where in zip((one, two), layouts_, strict=True)]
    # Of four micro-batches, forth and back, of two chunks.
    assert [line[KIND["sends"]] for line in lines_] == [0.0, 4 * 2 * 2 * 3.0]


@pytest.mark.parametrize(("dtype", "kind"), [("fp8", "tp"), ("nvfp4", "tp_alone")])
def test_products_in_nvfp4_hide_no_exchange(dtype, kind):
    plan = _plan(system="gb300-nvl72", tp=2, product_dtype=dtype)
    times = prices_of(plan).layer(MODEL.layers[0], plan.layout).times
    assert [name for name in ("tp", "tp_alone") if times[:, KIND[name]].any()] == [kind]


def test_a_loss_of_several_kernels_moves_logits_often():
    fused, apart = (prices_of(p).ends(p.layout)[1].times for p in (_plan(), _plan(fused_loss=False)))
    assert fused[:, KIND["loss"]].any()
    assert not apart[:, KIND["loss"]].any()
    more = (apart - fused)[:, KIND["moves"]].sum()
    # 52 bytes a logit, of which at most 3.35 TB/s cross HBM.
    assert more > 52 * 4096 * MODEL.vocabulary / 3.35e12 * 1e6


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        # Two chunks of a stage: own pass, and a group of two through the other, 30 in all, hide both chunks' gradients.
        (50, 20),
        # The gradients of the last chunk hide behind its own pass alone.
        (24, 2),
        (18, 0.9),
    ],
)
def test_gradients_of_chunks_hide_behind_those_below(gradients, expected):
    passes = np.zeros((4, 3, len(KINDS) + 1))
    passes[:, 1, KIND["products"]] = 10
    ends = np.zeros((2, 3, len(KINDS)))
    ends[0, 0, KIND["dp"]] = gradients
    pieces = Pieces(np.zeros((4, 3, len(KINDS))), ends, 0.0, 0.0, frozenset(), ())
    weights = _weights(dp=0.05)
    line = end_line(pieces, passes, weights, Layout(pp=2, vpp=2, global_batch=4))
    assert line @ np.append(weights, 1.0) == pytest.approx(expected)


def test_power_limits_products():
    b200, gb200, gb300, trn2 = (load_chip(name) for name in ("b200", "gb200", "gb300", "trn2"))
    assert strain(gb200) == 1.0
    assert strain(trn2) == 1.0
    # The same operations with more watts, or fewer.
    assert strain(gb300) == pytest.approx(1200 / 1400)
    assert strain(b200) == pytest.approx(2250 / 1000 / (2500 / 1200))
    assert architecture(gb300) == architecture(b200) == "blackwell"
    products = {
        chip.name: load_training_stack("megatron-core").weights(chip)[KIND["products"]] for chip in (gb200, gb300)
    }
    assert products["gb300"] / products["gb200"] == pytest.approx(1200 / 1400)


def test_step_adds_up_and_counts_flops():
    found = estimate(_plan(dp=8, global_batch=64))
    assert sum(v for k, v in found.parts.items() if k != "bubble") == pytest.approx(found.step_us)
    assert found.tokens == 64 * 4096
    assert found.model_flops == pytest.approx(64 * MODEL.training_flops(4096))
    assert found.mfu == pytest.approx(found.model_flops / (found.step_us / 1e6) / (8 * 989.5e12), rel=1e-3)
    assert 0.2 < found.mfu < 0.7
    # Attention computes all pairs that its tiles hold; nothing is computed again.
    assert found.hfu == pytest.approx(found.mfu, rel=0.1)


def test_recomputation_adds_a_forward_pass():
    plain, again = (estimate(_plan(dp=8, global_batch=64, recompute=how)) for how in ("none", "full"))
    assert again.mfu < plain.mfu
    assert again.hardware_flops / plain.hardware_flops == pytest.approx(4 / 3, rel=0.05)
    assert again.largest_memory.activations < plain.largest_memory.activations


@pytest.mark.parametrize(
    "layout",
    [
        Layout(tp=2, pp=4, vpp=2, dp=2, zero=1, global_batch=64),
        Layout(tp=4, cp=2, dp=2, zero=3, global_batch=8, recompute="full"),
        Layout(tp=1, pp=3, dp=2, zero=1, global_batch=12),
    ],
)
def test_memory_of_prices_is_that_of_workloads(layout):
    plan = replace(_plan(), layout=layout)
    whole = max(m.total for m in training_memory(MODEL, layout, 4096, 5))
    assert max(m.total for m in prices_of(plan).memory(layout, 5)) == pytest.approx(whole, rel=1e-12)


def test_search_is_exhaustive_and_agrees_with_single_plans():
    wanted = Wanted(model=MODEL, system="dgx-h100", chips=8, sequence=4096, global_batch=32, base=Layout(zero=1))
    found = search(wanted, top=3)
    assert found.evaluated == len(found.candidates)
    from collections import Counter

    # All layouts, one by one.
    pruned: Counter[str] = Counter()
    room = load_system("dgx-h100").chip.hbm.capacity_bytes
    reserve = load_training_stack("megatron-core").reserve_bytes
    times = []
    for layout in layouts(wanted, pruned):
        for how in RECOMPUTATION:
            one = replace(layout, recompute=how)
            if max(m.total for m in training_memory(MODEL, one, 4096, reserve)) <= room:
                times.append(estimate(wanted.plan(one)).step_us)
    assert found.best[0].step_us == pytest.approx(min(times), rel=1e-9)
    assert [c.step_us for c in found.candidates[:3]] == pytest.approx([e.step_us for e in found.best], rel=1e-9)


def test_fixed_degrees_stay():
    wanted = Wanted(
        model=MODEL, system="trn2.48xlarge", chips=16, sequence=4096, global_batch=64, fixed={"tp": 8, "pp": 2}
    )
    found = search(wanted, top=2)
    assert {(e.plan.layout.tp, e.plan.layout.pp) for e in found.best} == {(8, 2)}
    # 16 chips of four logical cores.
    assert found.best[0].plan.layout.ranks == 64
    assert describe(found.best[0].plan.layout).startswith("tp8 pp2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chips": 24}, "no whole systems"),
        ({"fixed": {"tp": 3}}, "no layout"),
        ({"fixed": {"tp": 8, "dp": 5}}, "do not multiply"),
        ({"model": load_model("llama-3.1-405b"), "chips": 16}, r"needs [\d.]+ GiB more .* that holds it is \d+"),
    ],
)
def test_impossible_plans_say_why(change, message):
    given = {"model": MODEL, "system": "trn2.48xlarge", "chips": 16, "sequence": 4096, "global_batch": 512} | change
    with pytest.raises(InputError, match=message):
        search(Wanted(**given))


def test_a_stack_is_for_its_chips():
    with pytest.raises(InputError, match="for chips of nvidia"):
        estimate(replace(_plan("trn2.48xlarge", dp=64, global_batch=64), stack="megatron-core"))
    with pytest.raises(InputError, match="no training stack"):
        estimate(replace(_plan(dp=8, global_batch=8), stack="none"))


def test_every_stack_has_all_factors():
    for name in training_stack_names():
        stack = load_training_stack(name)
        for system in ("dgx-a100", "dgx-h100", "dgx-b200", "trn1.32xlarge", "trn2.48xlarge"):
            chip = load_system(system).chip
            if stack.family in ("", chip.family):
                assert stack.weights(chip).shape == (len(KINDS),)
                assert (stack.weights(chip) >= 0).all()


def test_other_generations_are_extrapolated():
    support, why = load_training_stack("neuronx-distributed").known(load_system("trn2.48xlarge").chip)
    assert support == "extrapolated"
    assert "gen2" in why


def test_cost_energy_and_failures():
    found = estimate(_plan("trn2.48xlarge", dp=64, global_batch=256, recompute="full"))
    run = run_of(found, 1e9)
    assert run.steps == 954  # 1e9 / (256 x 4,096), rounded up
    cost = cost_of(found, run, "capacity-block", "2026-10-03")
    assert cost.usd == pytest.approx(35.7608 * run.seconds / 3600)
    assert break_even(found, run, cost.usd_per_million_tokens) == pytest.approx(35.7608)
    energy = energy_of(found, run)
    assert energy is not None
    assert energy.kwh == pytest.approx(16 * energy.watts_per_chip * run.seconds / 3.6e6)
    slow = run_of(found, 1e9, mtbf_hours=1000, checkpoint_seconds=60)
    assert slow.long is not None
    assert slow.wall_seconds == pytest.approx(run.seconds / slow.long.goodput)


def test_a_price_that_does_not_exist():
    found = estimate(_plan("trn2u.48xlarge", dp=64, global_batch=256, recompute="full"))
    with pytest.raises(UnsupportedError, match=r"trn2u.48xlarge has no public price"):
        cost_of(found, run_of(found, 1e9))
