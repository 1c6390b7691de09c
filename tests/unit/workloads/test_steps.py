"""Steps: shares of ranks make the whole, FLOPs agree with the model's, exchanges stand where they must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError
from trnsim.workloads import Exchange, Layout, Use, build, decode, load_model, prefill, training
from trnsim.workloads.operators import BACKWARD, FORWARD, OPTIMIZER, PRODUCTS, RECOMPUTE, Pass, seen
from trnsim.workloads.steps import layer_forward, layer_kept
from trnsim.workloads.training import hardware_flops, stage_parameters

SEQUENCE = 2048
DECODERS = [
    "llama-3.1-8b",
    "gpt-2",
    "gpt-oss-20b",
    "deepseek-v3",
    "qwen3.5-35b-a3b",
    "nemotron-3-nano",
    "gemma-4-e4b",
    "llama-4-scout",
]


def flops(step, phase=None):
    uses = [u for u in step if isinstance(u, Use) and u.operator in PRODUCTS and phase in (None, u.phase)]
    return sum(u.flops for u in uses)


def exchanged(step):
    return [(item.operation, item.group, item.where) for item in step if isinstance(item, Exchange)]


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (7, 19), (1, 40)])
@pytest.mark.parametrize("window", [0, 1, 3, 16, 100])
@pytest.mark.parametrize("causal", [0, 1])
def test_pairs_that_see_each_other(queries, keys, window, causal):
    position = np.arange(keys - queries, keys)[:, None]
    other = np.arange(keys)[None]
    if causal:
        mask = (other <= position) & ((other > position - window) if window else True)
        expected = mask.sum()
    else:
        expected = queries * (min(keys, window) if window else keys)
    assert seen({"queries": queries, "keys": keys, "window": window, "causal": causal}) == expected


@pytest.mark.parametrize("sequence", [100, 8192, 3 * 8192])
def test_chunks_see_themselves_only(sequence):
    model = load_model("llama-4-scout")
    chunked, full = model.layers[0].parts[0], model.layers[3].parts[0]
    assert (chunked.chunk, full.chunk) == (8192, 0)
    position = np.arange(sequence)
    assert full.pairs(sequence, sequence) == 2 * 40 * 256 * (position + 1).sum()
    assert chunked.pairs(sequence, sequence) == 2 * 40 * 256 * (position % 8192 + 1).sum()
    core = [u for u in prefill(model, Layout(), 2, sequence) if u.where == "attention.core"]
    assert sum(u.flops for u in core) == 2 * (
        36 * chunked.pairs(sequence, sequence) + 12 * full.pairs(sequence, sequence)
    )
    assert chunked.pairs(1, 50_000) == 2 * 40 * 256 * 4096.5


@pytest.mark.parametrize("name", [*DECODERS, "bert-large"])
def test_products_of_a_training_step_are_those_of_the_model(name):
    model = load_model(name)
    sequence = 512 if name == "bert-large" else SEQUENCE
    (stage,) = training(model, Layout(), sequence)
    ((ahead, after),) = stage.chunks
    # Weights cost what they multiply, attention what it sees; small means of blocks (gated recurrences) are the same.
    assert flops(ahead) == pytest.approx(model.forward_flops(sequence), rel=2e-4)
    # Products have two gradients each; attention computes its scores once more.
    assert model.forward_flops(sequence) * 2 <= flops(after) * 1.001 <= model.forward_flops(sequence) * 2.6
    assert {u.phase for u in after} == {BACKWARD}


@pytest.mark.parametrize("name", DECODERS)
def test_products_of_serving_are_those_of_the_model(name):
    model = load_model(name)
    head = 2 * model.head.products * (SEQUENCE - 1)
    assert flops(prefill(model, Layout(), 3, SEQUENCE)) == pytest.approx(
        3 * (model.forward_flops(SEQUENCE) - head), rel=1e-3
    )
    if name != "deepseek-v3":  # which multiplies queries with the expansion of the keys instead
        assert flops(decode(model, Layout(), 5, 3000)) == pytest.approx(5 * model.decode_flops(3000), rel=1e-3)


def test_latent_attention_decodes_on_latents():
    model = load_model("deepseek-v3")
    (core,) = {u.where: u for u in decode(model, Layout(tp=8), 4, 1000) if u.where == "attention.core"}.values()
    assert core.operator == "decode_attention"
    assert (core.sizes["heads"], core.sizes["kv_heads"]) == (128 / 8, 1)
    assert (core.sizes["depth"], core.sizes["width"]) == (576, 512)


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 4]),
    ep=st.sampled_from([1, 2, 4]),
    dp=st.sampled_from([4, 8]),
    name=st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3"]),
    recompute=st.sampled_from(["none", "selective", "full"]),
)
def test_shares_of_ranks_make_the_whole(tp, pp, ep, dp, name, recompute):
    model = load_model(name, layers=8)
    ep = ep if model.mixture else 1
    layout = Layout(tp=tp, pp=pp, ep=ep, dp=dp, recompute=recompute, global_batch=64, zero=1)
    alone = Layout(dp=1, recompute=recompute)
    whole = sum(hardware_flops(stage) for stage in training(model, alone, SEQUENCE))
    shares = sum(hardware_flops(stage) for stage in training(model, layout, SEQUENCE)) * tp
    # Every rank of tp makes the latents of DeepSeek, and those beyond the heads of keys copy them; the router's tokens
    # are shared.
    repeated = [
        w.products * ((tp if w.shard == "replicated" else max(tp / (w.units or tp), 1)) - 1)
        for layer in model.layers
        for w in layer.weights
        if w.kind == "matmul" and not w.experts and w.name != "router"
    ]
    passes = 8 if recompute == "full" else 6
    assert shares == pytest.approx(whole + passes * SEQUENCE * sum(repeated), rel=1e-4)
    held = [stage_parameters(model, layout, number) for number in range(pp)]
    dense, experts = (sum(stage[i] for stage in held) for i in (0, 1))
    weights = [w for layer in model.layers for w in layer.weights]
    # A bias after a sum over ranks is on all of them.
    biases = [w.n * max(w.experts, 1) for w in weights if w.shard == "row" and w.bias]
    every = sum(w.parameters for w in weights if w.experts)
    assert every <= experts * ep * layout.expert_ranks <= every + sum(biases) * (layout.expert_ranks - 1)
    cut = sum(w.parameters / min(tp, w.units or tp) for w in weights if not w.experts and w.shard != "replicated")
    copies = sum(w.parameters for w in weights if not w.experts and w.shard == "replicated")
    outer = model.parameters - sum(layer.parameters for layer in model.layers)
    padding = 3 * model.hidden  # of the vocabulary, and the final norm
    assert cut + copies <= dense <= cut + outer / tp + copies + sum(biases) + padding


def test_exchanges_of_a_layer_stand_where_they_must():
    model = load_model("llama-3.1-8b", layers=1)
    (stage,) = training(model, Layout(tp=4), SEQUENCE)
    ((ahead, after),) = stage.chunks
    whole = SEQUENCE * 4096 * 2
    assert exchanged(ahead) == [
        ("reduce_scatter", "tp", "embedding"),
        ("all_gather", "tp", "attention.input"),
        ("reduce_scatter", "tp", "attention.output"),
        ("all_gather", "tp", "mlp.input"),
        ("reduce_scatter", "tp", "mlp.output"),
        ("all_gather", "tp", "head.input"),
        ("all_reduce", "tp", "loss"),
    ]
    assert {item.bytes for item in ahead if isinstance(item, Exchange) and item.where != "loss"} == {whole}
    # Going back, what was gathered is gathered again, and the gradients are scattered.
    assert exchanged(after)[-6:-1] == [
        ("all_gather", "tp", "mlp.input"),
        ("reduce_scatter", "tp", "mlp.input"),
        ("all_gather", "tp", "attention.output"),
        ("all_gather", "tp", "attention.input"),
        ("reduce_scatter", "tp", "attention.input"),
    ]
    names = [item.operator if isinstance(item, Use) else item.operation for item in ahead]
    assert names[2:6] == ["rmsnorm", "all_gather", "matmul", "rope"]
    (without,) = training(model, Layout(tp=4, sequence_parallel=False), SEQUENCE)
    assert exchanged(without.chunks[0][0])[1:3] == [
        ("all_reduce", "tp", "attention.output"),
        ("all_reduce", "tp", "mlp.output"),
    ]


def test_parallel_parts_share_their_exchanges():
    model = load_model("command-r7b", layers=1)
    (stage,) = training(model, Layout(tp=4), SEQUENCE)
    assert [where for _, _, where in exchanged(stage.chunks[0][0])][1:3] == ["attention.input", "attention.output"]


def test_experts_exchange_tokens():
    model = load_model("qwen3-30b-a3b", layers=1)
    (stage,) = training(model, Layout(dp=8, ep=8), SEQUENCE)
    ((ahead, _),) = stage.chunks
    sent = [item for item in ahead if isinstance(item, Exchange) and item.operation == "all_to_all"]
    assert [item.where for item in sent] == ["experts.dispatch", "experts.combine"]
    assert all(item.bytes == SEQUENCE * 8 * 2048 * 2 and item.ranks == 8 for item in sent)
    (up,) = [u for u in ahead if u.where == "experts.up"]
    assert (up.sizes["tokens"], up.sizes["experts"]) == (SEQUENCE * 8, 128 / 8)
    # Serving on ranks that all have the same tokens needs no dispatch: a sum at the end.
    served = decode(model, Layout(tp=4, ep=4), 16, 100)
    assert "all_to_all" not in {operation for operation, _, _ in exchanged(served)}
    (up,) = [u for u in served if u.where == "experts.up"]
    assert (up.sizes["tokens"], up.sizes["experts"]) == (16 * 8 / 4, 32)
    assert 0 < up.sizes["hit"] < 32


@pytest.mark.parametrize(("tp", "dp", "ep"), [(1, 8, 8), (4, 4, 16), (8, 2, 2)])
def test_experts_beyond_the_ranks_of_tp_take_tokens_from_all(tp, dp, ep):
    model = load_model("deepseek-v3", layers=4)
    layout = Layout(tp=tp, dp=dp, ep=ep, expert_tp=tp * dp // ep if ep < tp else 1)
    step = decode(model, layout, 64, 1000)
    sent = [item for item in step if isinstance(item, Exchange) and item.operation == "all_to_all"]
    assert {item.where for item in sent} == {"experts.dispatch", "experts.combine"}
    # All ranks together send each token to its eight experts once.
    assert sent[0].bytes == 64 // tp * 8 * 7168 * 2
    (up,) = {u.where: u for u in step if u.where == "experts.up"}.values()
    assert up.sizes["tokens"] == 64 // tp * 8 * layout.expert_ranks
    assert up.sizes["experts"] == 256 / ep


def test_context_parallelism_shares_attention_equally():
    model = load_model("llama-3.1-8b", layers=1)

    def core(cp):
        (stage,) = training(model, Layout(cp=cp), 8192)
        return [item for item in stage.chunks[0][0] if item.where == "attention.core"]

    alone = sum(u.flops for u in core(1))
    shared = [u for u in core(4) if isinstance(u, Use)]
    assert sum(u.flops for u in shared) * 4 == alone
    (gathered,) = [item for item in core(4) if isinstance(item, Exchange)]
    assert gathered.bytes == 8192 * 8 * 256 * 2


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (0, ["all_reduce"]),
        (1, ["reduce_scatter", "all_gather"]),
        (2, ["reduce_scatter", "all_gather"]),
        (3, ["reduce_scatter"]),
    ],
)
def test_gradients_are_summed_as_zero_says(zero, expected):
    model = load_model("llama-3.1-8b")
    (stage,) = training(model, Layout(dp=8, zero=zero, global_batch=32), SEQUENCE)
    assert [operation for operation, _, _ in exchanged(stage.update)] == expected
    (adam,) = [u for u in stage.update if isinstance(u, Use)]
    assert adam.sizes["elements"] * (8 if zero else 1) == model.parameters
    assert adam.phase == OPTIMIZER
    first = next(item for item in stage.update if isinstance(item, Exchange))
    assert first.count == (4 if zero >= 2 else 1)
    assert first.bytes == model.parameters * 4
    weights = [item for item in stage.chunks[0][0] if isinstance(item, Exchange) and item.where == "weights"]
    assert sum(item.count for item in weights) == (32 if zero == 3 else 0)


@pytest.mark.parametrize(
    ("recompute", "flash", "again"),
    [("none", True, 0), ("selective", False, 32), ("selective", True, 0), ("full", True, 32)],
)
def test_what_is_computed_again(recompute, flash, again):
    model = load_model("llama-3.1-8b")
    (stage,) = training(model, Layout(recompute=recompute, flash=flash), SEQUENCE)
    ((ahead, after),) = stage.chunks
    cores = [u for u in after if u.where == "attention.core" and u.phase == RECOMPUTE]
    assert sum(u.count for u in cores) == again
    if recompute == "selective" and flash:
        # No scores are kept: norms and activations are computed again, and no products.
        cheap = {u.operator: u.count for u in after if u.phase == RECOMPUTE}
        assert cheap == {"rmsnorm": 32, "gated_activation": 32}
    if recompute == "full":
        layers = model.forward_flops(SEQUENCE) - 2 * model.head.products * SEQUENCE
        assert flops(after, RECOMPUTE) == pytest.approx(layers, rel=1e-6)
    assert flops(ahead) == flops(ahead, FORWARD)


def test_stages_send_to_one_another():
    model = load_model("llama-3.1-8b")
    stages = training(model, Layout(pp=4, tp=2, vpp=2, global_batch=8), SEQUENCE)
    for stage in stages:
        for place, (ahead, after) in enumerate(stage.chunks):
            first, last = stage.number == place == 0, (stage.number, place) == (3, 1)
            assert ("send_receive" in {o for o, _, _ in exchanged(ahead)}) == (not last)
            assert ("send_receive" in {o for o, _, _ in exchanged(after)}) == (not first)
            assert any(item.where == "embedding" for item in ahead) == first
            assert any(item.where == "loss" for item in ahead) == last
    sent = [i for i in stages[1].chunks[0][0] if isinstance(i, Exchange) and i.operation == "send_receive"]
    assert [item.bytes for item in sent] == [SEQUENCE // 2 * 4096 * 2]


def test_a_tied_embedding_is_summed_between_the_ends():
    stages = training(load_model("gpt-3-6.7b"), Layout(pp=4, global_batch=4), SEQUENCE)
    shared = [[w for _, g, w in exchanged(s.update) if g == "embedding"] for s in stages]
    assert shared == [["gradients.embedding"], [], [], ["gradients.embedding"]]


@pytest.mark.parametrize("name", ["deepseek-v3", "nemotron-3-super", "qwen3.5-35b-a3b"])
def test_multi_token_prediction_is_trained_on_the_last_stage(name):
    model = load_model(name)
    plain, further = (training(model, Layout(pp=4, global_batch=4, next_token=n), SEQUENCE) for n in (0, 1))
    assert [s.chunks for s in plain[:3]] == [s.chunks for s in further[:3]]
    more = flops(further[3].chunks[0][0]) - flops(plain[3].chunks[0][0])
    assert more == pytest.approx(model.forward_flops(SEQUENCE, 1) - model.forward_flops(SEQUENCE), rel=1e-3)
    with pytest.raises(InputError, match="modules of multi-token prediction"):
        training(model, Layout(next_token=model.next_token + 1), SEQUENCE)


def test_arrays_of_sizes_give_arrays_of_flops():
    model = load_model("gpt-oss-20b")
    sequences, context = np.array([1, 8, 64]), np.array([100, 1000, 5000])
    together = flops(decode(model, Layout(tp=2, ep=2), sequences, context))
    alone = [flops(decode(model, Layout(tp=2, ep=2), int(b), int(c))) for b, c in zip(sequences, context, strict=True)]
    assert together == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", [*DECODERS, "deepseek-v4-flash", "minimax-m3", "falcon-h1-0.5b", "bert-large"])
def test_arrays_of_ranks_give_what_each_number_gives(name):
    ranks = np.array([1, 2, 4, 8])
    for layer, _ in load_model(name).kinds():
        common = {"sequences": 2, "queries": 512, "keys": 512, "sequence_parallel": True}
        together = layer_forward(layer, Pass(tp=ranks, **common))
        kept = sum(item.bytes for item in layer_kept(layer, Pass(tp=ranks, **common), "none"))
        for i, tp in enumerate(ranks.tolist()):
            p = Pass(tp=tp, **common)
            alone = layer_forward(layer, p)
            assert np.broadcast_to(flops(together), 4)[i] == flops(alone)
            assert kept[i] == sum(item.bytes for item in layer_kept(layer, p, "none"))
            if tp > 1:
                mine = [
                    (item.operation, np.broadcast_to(item.bytes, 4)[i])
                    for item in together
                    if isinstance(item, Exchange)
                ]
                assert mine == [(item.operation, item.bytes) for item in alone if isinstance(item, Exchange)]


def test_an_encoder_does_not_decode():
    with pytest.raises(InputError, match="is an encoder"):
        decode(load_model("bert-base"), Layout(), 1, 10)


def test_every_shipped_decoder_has_steps():
    from trnsim.workloads import model_names

    for name in model_names():
        model = load_model(name)
        steps = [prefill(model, Layout(), 1, 256), decode(model, Layout(), 4, 256)] if model.causal else []
        (stage,) = training(model, Layout(), 256)
        steps += [*stage.chunks[0], stage.update]
        for step in steps:
            assert all(item.flops >= 0 and item.hbm_bytes > 0 for item in step if isinstance(item, Use)), name


def test_bytes_of_decoding_are_weights_and_cache():
    model = load_model("llama-3.1-8b")
    step = decode(model, Layout(), 1, 8192)
    read = sum(u.hbm_bytes for u in step)
    weights = 2 * (model.parameters - model.embedding_parameters)
    assert read == pytest.approx(weights + model.cache_elements(8192) * 2, rel=0.01)


@pytest.mark.parametrize("dtype", ["float8_e4m3", "mxfp8"])
def test_products_of_eight_bits(dtype):
    model = load_model("qwen3-30b-a3b", layers=1)
    (plain,) = training(model, Layout(), SEQUENCE)
    (narrow,) = training(model, Layout(product_dtype=dtype), SEQUENCE)
    assert hardware_flops(narrow) == hardware_flops(plain)
    ((ahead, after),) = narrow.chunks
    narrow_ones = [u.where for u in ahead if isinstance(u, Use) and u.dtype == dtype]
    assert narrow_ones == ["attention.query_key_value", "attention.output", "experts.up", "experts.down"]
    before = [u.where for u in ahead if isinstance(u, Use) and u.operator.startswith("quantize")]
    assert before == [f"{where}.quantized" for where in narrow_ones]
    # Each gradient is quantised once for its two products.
    assert len([u for u in after if isinstance(u, Use) and u.operator.startswith("quantize")]) == 4
    assert len([u for u in after if isinstance(u, Use) and u.dtype == dtype]) == 8
    (up,) = [u for u in ahead if u.where == "attention.output"]
    scale = 33 / 32 if dtype == "mxfp8" else 1
    assert up.hbm_bytes == (SEQUENCE * 4096 + 4096 * 2048) * scale + SEQUENCE * 2048 * 2


def test_weights_of_a_format_are_read_in_it():
    model = build(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "vocab_size": 64,
        },
        "small",
    )
    (down,) = [u for u in decode(model, Layout(weight_dtype="mxfp4"), 1, 8, fused=False) if u.where == "mlp.down"]
    assert down.hbm_bytes == (128 + 64) * 2 + 128 * 64 * (1 / 2 + 1 / 32)
