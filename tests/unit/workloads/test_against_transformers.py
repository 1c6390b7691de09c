"""Random small models: parameters and FLOPs equal those of transformers' classes on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import count, reference

from trnsim.errors import InputError
from trnsim.workloads import build
from trnsim.workloads.parts import Attention, LatentAttention

SIZES = st.integers(1, 4)


def common(draw, **more):
    kv = draw(SIZES)
    heads = kv * draw(SIZES)
    return {
        "hidden_size": 8 * heads,
        "intermediate_size": 8 * draw(st.integers(1, 9)),
        "num_hidden_layers": draw(st.integers(1, 5)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": 2 * draw(st.integers(1, 8)),
        "vocab_size": draw(st.integers(4, 99)),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
        **more,
    }


def experts(draw):
    number = draw(st.integers(2, 8))
    return {
        "num_experts": number,
        "num_experts_per_tok": draw(st.integers(1, number)),
        "moe_intermediate_size": 4 * draw(SIZES),
    }


@st.composite
def llama(draw):
    return common(draw, model_type="llama", attention_bias=draw(st.booleans()), mlp_bias=draw(st.booleans()))


@st.composite
def qwen3_moe(draw):
    config = common(draw, model_type="qwen3_moe", attention_bias=draw(st.booleans()), **experts(draw))
    return config | {
        "decoder_sparse_step": draw(st.integers(1, 3)),
        "mlp_only_layers": draw(st.lists(st.integers(0, 4))),
    }


@st.composite
def gpt_oss(draw):
    config = common(draw, model_type="gpt_oss", **experts(draw), sliding_window=4)
    config["num_local_experts"] = config.pop("num_experts")
    return config


@st.composite
def gpt2(draw):
    heads = draw(SIZES)
    return {
        "model_type": "gpt2",
        "n_embd": 4 * heads * draw(SIZES),
        "n_head": heads,
        "n_layer": draw(st.integers(1, 5)),
        "n_positions": draw(st.integers(1, 50)),
        "n_inner": draw(st.none() | st.integers(1, 40)),
        "vocab_size": draw(st.integers(4, 99)),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def deepseek_v3(draw):
    config = common(draw, model_type="deepseek_v3", **experts(draw))
    for name in ("head_dim", "num_key_value_heads"):
        del config[name]
    return config | {
        "num_key_value_heads": config["num_attention_heads"],
        "n_routed_experts": 2 * config.pop("num_experts"),
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": draw(SIZES),
        "first_k_dense_replace": draw(st.integers(0, 5)),
        "q_lora_rank": draw(st.none() | st.integers(1, 20)),
        "kv_lora_rank": draw(st.integers(1, 20)),
        "qk_nope_head_dim": draw(st.integers(1, 9)),
        "qk_rope_head_dim": 2 * draw(SIZES),
        "v_head_dim": draw(st.integers(1, 9)),
        "attention_bias": draw(st.booleans()),
    }


@st.composite
def glm_moe_dsa(draw):
    return draw(deepseek_v3()) | {
        "model_type": "glm_moe_dsa",
        "q_lora_rank": draw(st.integers(1, 20)),
        "index_topk": 4,
        "index_n_heads": draw(SIZES),
        "index_head_dim": 16,
        "index_topk_freq": draw(SIZES),
        "index_skip_topk_offset": draw(SIZES),
    }


@st.composite
def gemma3(draw):
    return common(draw, model_type="gemma3_text", sliding_window=4, query_pre_attn_scalar=8)


@st.composite
def gemma4(draw):
    config = common(draw, model_type="gemma4_text", sliding_window=4, **experts(draw))
    mixed = draw(st.booleans())
    return config | {
        "enable_moe_block": mixed,
        "top_k_experts": config.pop("num_experts_per_tok"),
        "global_head_dim": 2 * draw(SIZES),
        "attention_k_eq_v": draw(st.booleans()),
        "num_global_key_value_heads": config["num_key_value_heads"],
        "hidden_size_per_layer_input": draw(st.sampled_from([0, 4])),
        "vocab_size_per_layer_input": config["vocab_size"],
        "num_kv_shared_layers": 0,
    }


@st.composite
def qwen3_next(draw):
    return common(draw, model_type="qwen3_next", **experts(draw)) | {
        "head_dim": 16,
        "shared_expert_intermediate_size": 4 * draw(SIZES),
        "linear_num_key_heads": (keys := draw(SIZES)),
        "linear_num_value_heads": keys * draw(SIZES),
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": draw(st.integers(2, 5)),
    }


@st.composite
def nemotron_h(draw):
    config = common(draw, model_type="nemotron_h", **experts(draw))
    heads = 2 * draw(SIZES)
    kinds = draw(st.lists(st.sampled_from("M*-E"), min_size=1, max_size=6))
    return config | {
        "num_hidden_layers": len(kinds),
        "tie_word_embeddings": False,  # transformers' class never ties them
        "hybrid_override_pattern": "".join(kinds),
        "n_routed_experts": config.pop("num_experts"),
        "moe_shared_expert_intermediate_size": 4 * draw(SIZES),
        "moe_latent_size": draw(st.none() | st.integers(1, 9)),
        "mamba_num_heads": heads,
        "mamba_head_dim": 4,
        "n_groups": 2,
        "ssm_state_size": 8,
        "conv_kernel": 4,
        "use_conv_bias": draw(st.booleans()),
    }


@pytest.mark.parametrize(
    "configs",
    [llama, qwen3_moe, gpt_oss, gpt2, deepseek_v3, glm_moe_dsa, gemma3, gemma4, qwen3_next, nemotron_h],
    ids=lambda strategy: strategy.__name__,
)
def test_parameters_of_random_models(configs):
    @settings(max_examples=15, deadline=None, database=None, derandomize=True)
    @given(configs())
    def equal(config):
        assert build(config, "random").parameters == count(config)

    equal()


SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96, "num_attention_heads": 4, "pad_token_id": 0}
COUNTED = {
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 32, "vocab_size": 96},
    "llama": SMALL | {"model_type": "llama", "intermediate_size": 160, "num_key_value_heads": 2},
    "qwen3": SMALL | {"model_type": "qwen3", "intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 32},
    "falcon": SMALL | {"model_type": "falcon", "ffn_hidden_size": 256, "multi_query": True},
    "deepseek_v3": SMALL
    | {
        "model_type": "deepseek_v3",
        "intermediate_size": 160,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 3,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 20,
    },
}


def _seeing_all(part):
    """Torch counts whole rectangles of scores: the same attention without its mask."""
    if isinstance(part, Attention):
        return replace(part, causal=False, window=0, chunk=0).pairs
    assert isinstance(part, LatentAttention)
    return lambda queries, keys: 2 * part.heads * queries * keys * (part.size + part.rotary + part.value_size)


@pytest.mark.parametrize("name", COUNTED)
def test_flops_equal_those_that_torch_counts(name):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    config, sequence, batch = COUNTED[name], 32, 2
    ours, theirs = build(config, name), reference(config, attn_implementation="eager")
    pairs = sum(_seeing_all(layer.parts[0])(sequence, sequence) for layer in ours.layers)
    forward = batch * (2 * ours.products * sequence + pairs)
    # transformers finds the angles of rotary positions by a product: half a head by a sequence.
    angles = 2 * sequence * (layer_rotary(ours) // 2) * (1 if name != "gpt2" else 0)
    numbers = torch.zeros((batch, sequence), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = theirs(input_ids=numbers).logits
        after_forward = counter.get_total_flops()
        logits.sum().backward()
    assert after_forward - forward in (0, angles, batch * angles)
    assert counter.get_total_flops() - after_forward == 2 * forward


def layer_rotary(model):
    return model.layers[0].parts[0].rotary


BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


def variant(kind, **change):
    """A small model; a field given as "-" is left out."""
    return {name: value for name, value in (BASE | {"model_type": kind} | change).items() if value != "-"}


# Choices that configs make seldom, and fields left to what their class has.
VARIANTS = [
    variant("cohere", use_qk_norm=True),
    variant("cohere"),
    variant("cohere2", layer_types="-", sliding_window=8, attention_bias=True),
    variant("falcon", intermediate_size="-", num_key_value_heads="-", new_decoder_architecture=True, num_kv_heads=2),
    variant(
        "falcon",
        intermediate_size="-",
        num_key_value_heads="-",
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
    ),
    variant("falcon", intermediate_size="-", num_key_value_heads="-", bias=True, multi_query=False),
    variant("falcon", intermediate_size="-", num_key_value_heads="-", parallel_attn=False, alibi=True),
    variant("gpt_neox", attention_bias=False),
    variant("gpt_neox", use_parallel_residual=False),
    variant("gpt_neox", tie_word_embeddings=True),
    variant("persimmon", qk_layernorm=False),
    variant("starcoder2", use_bias=False, tie_word_embeddings=True),
    variant("starcoder2"),
    {
        "model_type": "gpt_bigcode",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 30,
        "vocab_size": 90,
        "multi_query": False,
    },
    variant(
        "opt",
        intermediate_size="-",
        ffn_dim=96,
        word_embed_proj_dim=64,
        max_position_embeddings=40,
        enable_bias=False,
        num_key_value_heads="-",
        tie_word_embeddings=True,
    ),
    variant(
        "opt",
        intermediate_size="-",
        ffn_dim=96,
        word_embed_proj_dim=64,
        max_position_embeddings=40,
        num_key_value_heads="-",
        tie_word_embeddings=False,
    ),
    variant(
        "nemotron",
        attention_bias=True,
        mlp_bias=True,
        head_dim=16,
        partial_rotary_factor=0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    variant(
        "glm4_moe",
        head_dim=16,
        use_qk_norm=True,
        attention_bias=True,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=2,
        first_k_dense_replace=2,
    ),
    variant("glm4"),
    variant("glm"),
    variant("glm", attention_bias=False),
    variant("ernie4_5", use_bias=True, tie_word_embeddings=True),
    variant("ernie4_5"),
    variant("hunyuan_v1_dense", head_dim=16, attention_bias=True),
    variant("internlm3", qkv_bias=True, bias=True),
    variant("granite", attention_bias=True, mlp_bias=True),
    variant("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    variant("qwen3", attention_bias=True, head_dim=32),
    variant(
        "qwen2_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        decoder_sparse_step=2,
    ),
    variant(
        "qwen2_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        qkv_bias=False,
    ),
    variant(
        "llama4_text",
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_bias=True,
    ),
    variant("minimax", num_local_experts=4, num_experts_per_tok=2, head_dim=16),
    variant("mixtral", num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=True),
    variant("phimoe", num_local_experts=4, num_experts_per_tok=2, attention_bias=True),
    variant(
        "recurrent_gemma",
        num_hidden_layers=4,
        lru_width=32,
        attention_window_size=16,
        conv1d_width=4,
        intermediate_size=192,
        head_dim=16,
    ),
    variant(
        "falcon_h1",
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_rms_norm=True,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        mlp_bias=True,
        attention_bias=True,
    ),
    variant(
        "falcon_h1",
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_d_conv=4,
        projectors_bias=True,
    ),
    variant("gemma2", head_dim=16, sliding_window=8, attention_bias=True),
    variant("gemma", head_dim=16, attention_bias=True),
    variant("vaultgemma", head_dim=16, sliding_window=8),
    variant(
        "gemma4_text",
        head_dim=16,
        global_head_dim=32,
        num_hidden_layers=12,
        num_kv_shared_layers=5,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=100,
        sliding_window=8,
        attention_bias=True,
    ),
    variant(
        "deepseek_v3",
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        q_lora_rank=12,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        attention_bias=True,
    ),
    variant(
        "afmoe",
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_shared_experts=1,
        num_dense_layers=1,
        sliding_window=8,
        attention_bias=True,
    ),
    variant("minimax_m2", head_dim=16, num_local_experts=4, num_experts_per_tok=2, rotary_dim=8),
    variant("gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=8, attention_bias=False),
    variant("smollm3", attention_bias=True, mlp_bias=True),
    variant("apertus", attention_bias=True),
    variant("arcee", mlp_bias=True, attention_bias=True),
    variant("phi", intermediate_size=96),
    variant("phi3", partial_rotary_factor=1.0),
    variant("olmo2", attention_bias=True),
    variant("ministral3", head_dim=16),
    variant(
        "qwen3_next",
        num_experts=0,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
    ),
    variant(
        "qwen3_5_text",
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        attention_bias=True,
    ),
    {
        "model_type": "bert",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 90,
        "max_position_embeddings": 30,
        "type_vocab_size": 2,
    },
    variant(
        "nemotron_h",
        layers_block_type=["mamba", "attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        ssm_state_size=8,
        conv_kernel=4,
        mamba_proj_bias=True,
        mlp_bias=True,
        attention_bias=True,
        use_bias=True,
        head_dim=16,
    ),
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c['model_type']}-{len(c)}")
def test_choices_of_configs(config):
    assert build(config, "variant").parameters == count(config)


def test_text_models_of_larger_ones_leave_out_what_their_class_has():
    inner = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "sliding_window": 4}
    whole = {"model_type": "gemma3", "text_config": inner, "vision_config": {}}
    assert build(whole, "nested").parameters == count(inner | {"tie_word_embeddings": True})
    with pytest.raises(InputError, match="has no field"):
        build(inner, "alone")
