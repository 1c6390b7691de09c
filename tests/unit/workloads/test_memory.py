"""Memory by kind: the published points of activation recomputation, and what must hold of any layout."""

from __future__ import annotations

import pytest

from trnsim.errors import InputError
from trnsim.workloads import Layout, load_model, serving_memory, training_memory
from trnsim.workloads.layout import stage_layers
from trnsim.workloads.memory import in_flight, layer_activations, serving_cache, serving_weights, states
from trnsim.workloads.training import local_parameters

GIB = 2**30

# Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), figure 1, as
# kept in calculon-ai/calculon, calculon/llm/validation.py (seqsel_fig1): model, pp, vpp, micro-batch, GiB of
# parameters and
# optimiser, of activations without and with sequence parallelism and selective recomputation. Tensor parallelism 8.
FIGURE_1 = [
    ("megatron-gpt-22b", 1, 1, 4, 45.5625, 59.25, 9.5625),
    ("megatron-gpt-175b", 8, 3, 1, 45.5625, 66.84375, 12.3515625),
    ("megatron-gpt-530b", 35, 3, 1, 31.640625, 114.0234375, 23.076171875),
    ("megatron-gpt-1t", 64, 1, 1, 32.958984375, 131.25, 26.5625),
]
# The same, figure 7 (seqsel_fig7): percent of the activations without anything.
FIGURE_7 = {
    "megatron-gpt-22b": (66.84, 49.42, 16.18, 7.64),
    "megatron-gpt-175b": (62.04, 56.53, 18.49, 8.71),
    "megatron-gpt-530b": (58.31, 62.04, 20.27, 9.42),
    "megatron-gpt-1t": (58.31, 62.04, 20.27, 9.42),
}


def korthikanti(pp, vpp, micro_batch, **chosen):
    batches = 8 * pp if pp > 1 else 1
    common = {"tp": 8, "pp": pp, "vpp": vpp, "micro_batch": micro_batch, "flash": False, "dtype": "float16"}
    return Layout(**common, global_batch=batches * micro_batch, **chosen)


@pytest.mark.parametrize("mode", ["none", "seqsel"])
@pytest.mark.parametrize("case", FIGURE_1, ids=lambda case: case[0])
def test_published_memory_of_sequence_parallelism(case, mode):
    name, pp, vpp, micro_batch, kept, plain, selective = case
    model = load_model(name)
    chosen = {"sequence_parallel": False} if mode == "none" else {"recompute": "selective"}
    layout = korthikanti(pp, vpp, micro_batch, **chosen)
    # The published points count layers, neither embedding nor head.
    layers = tuple(w for layer in model.layers[: len(model.layers) // pp] for w in layer.weights)
    assert states(*local_parameters(layers, layout), layout).total / GIB == pytest.approx(kept, rel=0.05)
    expected = plain if mode == "none" else selective
    assert layer_activations(model, layout, 2048) / GIB == pytest.approx(expected, rel=0.05)
    first = training_memory(model, layout, 2048)[0]
    assert first.activations / GIB == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", FIGURE_7)
def test_published_shares_of_activations(name):
    pp, vpp, micro_batch = next(case[1:4] for case in FIGURE_1 if case[0] == name)
    model = load_model(name)

    def kept(recompute, shared):
        layout = korthikanti(pp, vpp, micro_batch, recompute=recompute, sequence_parallel=shared)
        return layer_activations(model, layout, 2048)

    modes = [("none", True), ("selective", False), ("selective", True), ("full", False)]
    shares = [100 * kept(*mode) / kept("none", False) for mode in modes]
    assert shares == pytest.approx(FIGURE_7[name], rel=0.02)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v3", "gpt-oss-120b", "qwen3.5-397b-a17b", "gpt-3-175b"])
def test_more_recomputation_and_sharing_never_needs_more(name):
    model = load_model(name)
    common = {"dp": 16, "tp": 8 if name != "qwen3.5-397b-a17b" else 2, "ep": 16 if model.mixture else 1, "zero": 1}

    def memory(**chosen):
        return training_memory(model, Layout(**(common | chosen)), 4096)[0]

    none, selective, full = (memory(recompute=r).activations for r in ("none", "selective", "full"))
    assert none >= selective > full
    stages = [memory(zero=zero) for zero in range(4)]
    for kind in ("weights", "gradients", "optimizer"):
        values = [getattr(stage, kind) for stage in stages]
        assert values == sorted(values, reverse=True)
    assert stages[0].optimizer > stages[1].optimizer
    assert stages[1].gradients > stages[2].gradients
    assert stages[2].weights > stages[3].weights
    assert memory(flash=False).activations > none


def test_states_of_mixed_precision_are_eighteen_bytes_a_parameter():
    model = load_model("llama-3.1-8b")
    (memory,) = training_memory(model, Layout(), 2048)
    assert (memory.weights, memory.gradients, memory.optimizer) == tuple(n * model.parameters for n in (2, 4, 12))


@pytest.mark.parametrize(
    ("pp", "vpp", "stage", "batches", "expected"),
    [(1, 1, 0, 8, 1), (4, 1, 0, 8, 4), (4, 1, 3, 8, 1), (4, 1, 0, 2, 2), (4, 2, 0, 8, 11), (4, 2, 3, 8, 5)],
)
def test_micro_batches_in_flight(pp, vpp, stage, batches, expected):
    assert in_flight(Layout(pp=pp, vpp=vpp, global_batch=batches), stage) == expected


@pytest.mark.parametrize(
    ("count", "chunks", "expected"),
    [
        (32, 4, (8, 8, 8, 8)),
        (126, 8, (15, 16, 16, 16, 16, 16, 16, 15)),
        (31, 4, (8, 8, 8, 7)),
        (30, 32, (0, *(1,) * 30, 0)),
        (61, 9, (6, 7, 7, 7, 7, 7, 7, 7, 6)),
        (10, 4, (2, 3, 3, 2)),
    ],
)
def test_layers_of_stages(count, chunks, expected):
    found = stage_layers(count, chunks)
    assert (sum(found), len(found)) == (count, chunks)
    assert found == expected


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("llama-3.1-8b", {"tp": 3}, "tp 3 does not divide 32 heads"),
        ("qwen3.5-35b-a3b", {"tp": 3}, "tp 3 and 16 heads of keys do not divide one another"),
        ("llama-3.1-8b", {"ep": 2}, "there are no experts"),
        ("llama-3.1-8b", {"pp": 36, "global_batch": 36}, "is more than 32 layers"),
        ("llama-3.1-8b", {"cp": 3}, "2 x cp divides"),
        ("llama-3.1-8b", {"dp": 4, "global_batch": 6}, "no multiple of dp x micro_batch, 4"),
        ("llama-3.1-8b", {"vpp": 2}, "without a pipeline"),
        ("llama-3.1-8b", {"pp": 4, "vpp": 2, "global_batch": 6}, "no multiple of pp 4"),
        ("llama-3.1-8b", {"pp": 2, "stages": (16, 15)}, "are not 2 chunks of 32 layers"),
        ("qwen3-30b-a3b", {"dp": 3, "ep": 3}, "ep 3 does not divide 128 experts"),
        ("qwen3-30b-a3b", {"dp": 4, "ep": 8}, "does not divide dp x cp x tp, 4"),
        ("qwen3-30b-a3b", {"tp": 4, "dp": 2, "ep": 8, "sequence_parallel": False}, "need sequence parallelism"),
        ("qwen3-30b-a3b", {"tp": 4, "expert_tp": 5}, "expert_tp 5 does not divide 768"),
    ],
)
def test_what_does_not_divide_is_said(name, chosen, message):
    with pytest.raises(InputError, match=message):
        training_memory(load_model(name), Layout(**chosen), 2048)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"tp": 0}, "tp must be at least 1"),
        ({"recompute": "some"}, "no such"),
        ({"zero": 4}, "zero is"),
        ({"dtype": "x"}, "x"),
    ],
)
def test_choices_that_there_are_not(chosen, message):
    with pytest.raises(InputError, match=message):
        Layout(**chosen)


# Published sizes of weights: gpt-oss model card (arXiv 2508.10925, table 1: 60.8 and 12.8 GiB), DeepSeek-V3 in FP8
# 671 GB.
@pytest.mark.parametrize(
    ("name", "size", "unit"), [("gpt-oss-120b", 60.8, GIB), ("gpt-oss-20b", 12.8, GIB), ("deepseek-v3", 671, 1e9)]
)
def test_published_sizes_of_weights(name, size, unit):
    from trnsim.workloads import entry

    assert serving_weights(load_model(name), entry(name).formats) / unit == pytest.approx(size, rel=0.01)


# Bytes of a token in the cache: DeepSeek-V3 70.272 KB (arXiv 2505.09343, table 1), Llama-3.1 405B 516.096 KB, Qwen2.5
# 72B 327.680 KB (the same table), bfloat16.
@pytest.mark.parametrize(
    ("name", "size"), [("deepseek-v3", 70272), ("llama-3.1-405b", 516096), ("qwen2.5-72b", 327680)]
)
def test_published_bytes_of_a_cached_token(name, size):
    model = load_model(name)
    assert serving_cache(model, 1000, 3) == 3000 * size


def test_windows_bound_the_cache():
    model = load_model("gpt-oss-20b")
    full, window = 12 * 2 * 8 * 64, 12 * 2 * 8 * 64
    assert model.cache_elements(100) == 100 * (full + window)
    assert model.cache_elements(10_000) == 10_000 * full + 128 * window


def test_states_do_not_grow():
    model = load_model("nemotron-3-nano")
    assert serving_cache(model, 2000, 1) - serving_cache(model, 1000, 1) == 1000 * 6 * 2 * 2 * 128 * 2
    assert model.state_bytes() > 23 * 64 * 64 * 128 * 4


def test_serving_on_more_ranks_needs_less():
    model = load_model("gpt-oss-120b")
    formats = {"default": "bfloat16", "experts": "mxfp4"}

    def memory(**chosen):
        return serving_memory(model, formats, tokens=4096, sequences=32, prefill_tokens=2048, **chosen)

    one, eight, spread = memory(), memory(tp=8), memory(tp=8, ep=8)
    assert one.weights / 8 < eight.weights < one.weights / 7
    assert eight.cache == one.cache / 8
    assert spread.weights == pytest.approx(eight.weights, rel=0.01)
    assert memory(reserve=GIB).total == one.total + GIB
