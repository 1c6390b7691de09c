"""Decoders with grouped-query attention and mixtures of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.workloads.families.common import attention, model, partial_rotary, plain, windows
from trnsim.workloads.parts import Dense, Experts, Lightning
from trnsim.workloads.parts.attention import IndexedAttention

if TYPE_CHECKING:
    from collections.abc import Callable

    from trnsim.workloads.config import Fields
    from trnsim.workloads.model import Model
    from trnsim.workloads.parts import Part


def _experts(f: Fields, **chosen: Any) -> Experts:
    experts = f.integer("num_experts", "num_local_experts", "n_routed_experts")
    return Experts(f.integer("hidden_size"), experts, f.integer("num_experts_per_tok"), **chosen)


def mixtral(f: Fields, name: str) -> Model:
    mixture = _experts(f, inner=f.integer("intermediate_size"))
    layer = plain((attention(f, window=f.optional("sliding_window")), mixture), mixture.hidden)
    return model(f, name, [layer] * f.integer("num_hidden_layers"), tied=False)


def phimoe(f: Fields, name: str) -> Model:
    mixture = _experts(f, inner=f.integer("intermediate_size"))
    bias = f.flag("attention_bias")
    mixer = attention(f, window=f.optional("sliding_window"), bias=bias, output_bias=bias)
    layer = plain((mixer, mixture), mixture.hidden, norm_kind="layer", norm_bias=True)
    layers = [layer] * f.integer("num_hidden_layers")
    head = f.flag("lm_head_bias")
    return model(f, name, layers, tied=False, norm_kind="layer", norm_bias=True, head_bias=head)


def grok(f: Fields, name: str) -> Model:
    """Grok-1: four norms a layer, gated experts."""
    mixture = _experts(f, inner=f.integer("intermediate_size"))
    layer = plain((attention(f), mixture), mixture.hidden, 4)
    return model(f, name, [layer] * f.integer("num_hidden_layers"), tied=True)


def qwen_moe(f: Fields, name: str) -> Model:
    """Qwen2-MoE (biases, a shared expert with a gate) and Qwen3-MoE (norms of heads)."""
    second = f.get("model_type") == "qwen2_moe"
    mixture = _experts(
        f,
        inner=f.integer("moe_intermediate_size"),
        shared=f.optional("shared_expert_intermediate_size") if second else 0,
        shared_gate=second,
    )
    bias = f.flag("qkv_bias", True) if second else f.flag("attention_bias")
    mixer = attention(f, bias=bias, output_bias=bias and not second, norm="" if second else "head")
    dense = set(f.get("mlp_only_layers") or ())
    step = f.optional("decoder_sparse_step", 1)
    layers = [
        plain((mixer, _dense(f) if i in dense or (i + 1) % step else mixture), mixture.hidden)
        for i in range(f.integer("num_hidden_layers"))
    ]
    return model(f, name, layers, tied=False)


def _dense(f: Fields, *names: str) -> Dense:
    return Dense(f.integer("hidden_size"), f.integer(*(names or ("intermediate_size",))))


def gpt_oss(f: Fields, name: str) -> Model:
    count = f.integer("num_hidden_layers")
    mixture = _experts(f, inner=f.integer("intermediate_size"), bias=True)
    bias = f.flag("attention_bias", True)
    alternate = ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
    layers = [
        plain((attention(f, window=w, bias=bias, output_bias=bias, sinks=True), mixture), mixture.hidden)
        for w in windows(f, count, alternate)
    ]
    return model(f, name, layers, tied=False)


def glm4_moe(f: Fields, name: str) -> Model:
    inner = f.integer("moe_intermediate_size")
    mixture = _experts(f, inner=inner, shared=inner * f.optional("n_shared_experts"))
    rotary = partial_rotary(f, 0.5)
    mixer = attention(f, bias=f.flag("attention_bias"), norm="head" if f.flag("use_qk_norm") else "")
    mixer = attention(f, bias=mixer.bias, norm=mixer.norm, rotary=int(mixer.size * rotary))
    dense = f.optional("first_k_dense_replace")
    layers = [
        plain((mixer, _dense(f) if i < dense else mixture), mixture.hidden)
        for i in range(f.integer("num_hidden_layers"))
    ]
    return model(f, name, layers, tied=False, next_token=f.optional("num_nextn_predict_layers"))


def llama4(f: Fields, name: str) -> Model:
    """Full attention without positions every fourth layer, chunks elsewhere; one shared expert."""
    count, inner = f.integer("num_hidden_layers"), f.integer("intermediate_size")
    mixture = _experts(f, inner=inner, shared=inner)
    every = f.integer("interleave_moe_layer_step")
    experts = f.get("moe_layers") or range(every - 1, count, every)
    bias, chunk = f.flag("attention_bias"), f.optional("attention_chunk_size")
    full = attention(f, bias=bias, output_bias=bias, rotary=0)
    local = attention(f, bias=bias, output_bias=bias, chunk=chunk)
    turned = f.kinds("no_rope_layers", count) or [int((i + 1) % 4 != 0) for i in range(count)]
    layers = [
        plain(
            (local if turned[i] else full, mixture if i in set(experts) else _dense(f, "intermediate_size_mlp")),
            mixture.hidden,
        )
        for i in range(count)
    ]
    return model(f, name, layers, tied=False)


def minimax(f: Fields, name: str) -> Model:
    """MiniMax-Text-01 and M1: lightning attention, softmax attention every eighth layer."""
    count = f.integer("num_hidden_layers")
    mixture = _experts(f, inner=f.integer("intermediate_size"))
    full = attention(f)
    linear = Lightning(full.hidden, full.heads, full.size)
    kinds = f.kinds("layer_types", count)
    if kinds is None:
        # The published configs say 0 (lightning) and 1 (softmax); without a word they alternate.
        numbers = f.kinds("attn_type_list", count) or [(i + 1) % 2 for i in range(count)]
        kinds = ["full_attention" if n else "linear_attention" for n in numbers]
    layers = [plain((linear if k == "linear_attention" else full, mixture), full.hidden) for k in kinds]
    return model(f, name, layers, tied=False)


def minimax_m2(f: Fields, name: str) -> Model:
    size = f.integer("head_dim")
    mixture = _experts(f, inner=f.integer("intermediate_size"))
    mixer = attention(f, norm="all", rotary=f.optional("rotary_dim", size))
    layers = [plain((mixer, mixture), mixture.hidden)] * f.integer("num_hidden_layers")
    modules = f.optional("num_mtp_modules") if f.flag("use_mtp", True) else 0
    return model(f, name, layers, tied=False, next_token=modules)


def minimax_m3(f: Fields, name: str) -> Model:
    """The first layers are dense and see everything; elsewhere an indexer chooses blocks of tokens."""
    count, size = f.integer("num_hidden_layers"), f.integer("head_dim")
    mixture = _experts(f, inner=f.integer("intermediate_size"), shared=f.optional("shared_intermediate_size"))
    sparse = f.get("sparse_attention_config") or {}
    picks = (sparse.get("sparse_attention_freq") or [0] * count)[:count]
    kinds = f.kinds("layer_types", count)
    if kinds is not None:
        picks = [int(kind == "minimax_m3_sparse") for kind in kinds]
    numbers = f.kinds("moe_layer_freq", count) or [1] * count
    mixed = [kind == "sparse" for kind in f.kinds("mlp_layer_types", count) or ()] or [bool(n) for n in numbers]
    full = attention(f, norm="head", rotary=f.optional("rotary_dim", size))
    layers = []
    for chosen, routed in zip(picks, mixed, strict=True):
        network: Part = mixture if routed else _dense(f, "dense_intermediate_size")
        mixer: Part = _sparse(f, sparse) if chosen else full
        layers.append(plain((mixer, network), mixture.hidden))
    return model(f, name, layers, tied=False, next_token=f.optional("num_nextn_predict_layers"))


def _sparse(f: Fields, sparse: Any) -> IndexedAttention:
    heads = int(sparse.get("sparse_num_index_heads") or f.integer("index_n_heads"))
    size = int(sparse.get("sparse_index_dim") or f.integer("index_head_dim"))
    block = int(sparse.get("sparse_block_size") or f.integer("index_block_size"))
    blocks = int(sparse.get("sparse_topk_blocks") or f.integer("index_topk_blocks"))
    base = attention(f, norm="head", rotary=f.optional("rotary_dim", f.integer("head_dim")))
    chosen = {
        name: getattr(base, name) for name in ("hidden", "heads", "kv_heads", "size", "value_size", "norm", "rotary")
    }
    return IndexedAttention(**chosen, index_heads=heads, index_size=size, chosen=block * blocks)


def mimo_v2_flash(f: Fields, name: str) -> Model:
    """Windows with heads and sinks of their own, full attention every sixth layer."""
    count = f.integer("num_hidden_layers")
    mixture = _experts(f, inner=f.integer("moe_intermediate_size"))
    size, value = f.integer("head_dim"), f.integer("v_head_dim")
    rotary = int(size * partial_rotary(f, 0.334)) // 2 * 2
    common: dict[str, Any] = {"size": size, "value_size": value, "rotary": rotary}
    full = attention(f, **common)
    local = attention(
        f,
        **common,
        kv_heads=f.integer("swa_num_key_value_heads"),
        window=f.integer("sliding_window"),
        sinks=f.flag("add_swa_attention_sink_bias", True),
    )
    pattern = f.need("hybrid_layer_pattern")[:count]
    routed = f.need("moe_layer_freq")[:count]
    layers = [
        plain((local if w else full, mixture if r else _dense(f)), mixture.hidden)
        for w, r in zip(pattern, routed, strict=True)
    ]
    return model(f, name, layers, tied=False)


def afmoe(f: Fields, name: str) -> Model:
    """Trinity: a gate of attention's output, norms before and after both parts."""
    count, inner = f.integer("num_hidden_layers"), f.integer("moe_intermediate_size")
    mixture = _experts(f, inner=inner, shared=inner * f.optional("num_shared_experts"), score_bias=True)
    every = f.optional("global_attn_every_n_layers", 4)
    default = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    dense, bias = f.optional("num_dense_layers"), f.flag("attention_bias")
    layers = []
    for i, window in enumerate(windows(f, count, default)):
        # Only layers with a window turn their queries and keys.
        turned = {} if window else {"rotary": 0}
        mixer = attention(
            f, window=window, bias=bias, output_bias=bias, norm="head", gate="element", gate_bias=False, **turned
        )
        layers.append(plain((mixer, _dense(f) if i < dense else mixture), mixture.hidden, 4))
    return model(f, name, layers, tied=False)


BUILDERS: dict[str, Callable[[Fields, str], Model]] = {
    "afmoe": afmoe,
    "glm4_moe": glm4_moe,
    "gpt_oss": gpt_oss,
    "grok-1": grok,
    "llama4_text": llama4,
    "mimo_v2_flash": mimo_v2_flash,
    "minimax": minimax,
    "minimax_m1": minimax,
    "minimax_m2": minimax_m2,
    "minimax_m3_vl_text": minimax_m3,
    "minimax_text_01": minimax,
    "mixtral": mixtral,
    "phimoe": phimoe,
    "qwen2_moe": qwen_moe,
    "qwen3_moe": qwen_moe,
}
