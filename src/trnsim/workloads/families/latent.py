"""Multi-head latent attention with mixtures of experts: DeepSeek-V3 and its relatives, GLM-5, Kimi K2; DeepSeek-V4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.workloads.families.common import model, plain
from trnsim.workloads.parts import CompressedAttention, Dense, Experts, Indexer, LatentAttention
from trnsim.workloads.weights import Weight, vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from trnsim.workloads.config import Fields
    from trnsim.workloads.model import Model


def _latent(f: Fields, indexed: str = "") -> LatentAttention:
    """``indexed``: ``full`` (an indexer of its own), ``shared`` (an earlier layer's), or none."""
    hidden, rank = f.integer("hidden_size"), f.optional("q_lora_rank")
    indexer, chosen = None, 0
    if indexed:
        chosen = f.integer("index_topk")
        if indexed == "full":
            indexer = Indexer(hidden, rank or hidden, f.integer("index_n_heads"), f.integer("index_head_dim"), chosen)
    return LatentAttention(
        hidden,
        f.integer("num_attention_heads"),
        rank,
        f.integer("kv_lora_rank"),
        f.integer("qk_nope_head_dim"),
        f.integer("qk_rope_head_dim"),
        f.integer("v_head_dim"),
        indexer,
        chosen,
        f.flag("attention_bias"),
    )


def deepseek(f: Fields, name: str) -> Model:
    count, hidden = f.integer("num_hidden_layers"), f.integer("hidden_size")
    inner = f.integer("moe_intermediate_size")
    mixture = Experts(
        hidden,
        f.integer("n_routed_experts"),
        f.integer("num_experts_per_tok"),
        inner,
        shared=inner * f.optional("n_shared_experts"),
    )
    dense, every = f.optional("first_k_dense_replace"), f.optional("moe_layer_freq", 1)
    network = Dense(hidden, f.integer("intermediate_size"))
    layers = [
        plain((_latent(f, kind), mixture if i >= dense and i % every == 0 else network), hidden)
        for i, kind in enumerate(_indexed(f, count))
    ]
    return model(f, name, layers, tied=False, next_token=f.optional("num_nextn_predict_layers"))


def _indexed(f: Fields, count: int) -> list[str]:
    """Which layers have an indexer of their own, as GLM-5.2's fields say; all where they say nothing."""
    if f.get("index_topk") is None:
        return [""] * count
    kinds = f.kinds("indexer_types", count)
    if kinds is not None:
        return [str(kind) for kind in kinds]
    every, offset = max(f.optional("index_topk_freq", 1), 1), f.optional("index_skip_topk_offset", 2)
    return ["shared" if max(i - offset + 1, 0) % every else "full" for i in range(count)]


def deepseek_v4(f: Fields, name: str) -> Model:
    count, hidden = f.integer("num_hidden_layers"), f.integer("hidden_size")
    inner, size = f.integer("moe_intermediate_size"), f.integer("head_dim")
    streams = f.integer("hc_mult")
    mixture = Experts(
        hidden,
        f.integer("n_routed_experts"),
        f.integer("num_experts_per_tok"),
        inner,
        shared=inner * f.optional("n_shared_experts"),
    )
    ratios = f.need("compress_ratios")[:count]
    layers = [
        plain(
            (
                CompressedAttention(
                    hidden,
                    f.integer("num_attention_heads"),
                    size,
                    f.integer("qk_rope_head_dim"),
                    f.integer("q_lora_rank"),
                    f.integer("sliding_window"),
                    f.integer("o_groups"),
                    f.integer("o_lora_rank"),
                    ratio,
                    # Only the finer compression is searched: the other leaves few keys.
                    f.integer("index_n_heads") if ratio == 4 else 0,
                    f.integer("index_head_dim"),
                    f.integer("index_topk"),
                ),
                mixture,
            ),
            hidden,
            streams=streams,
        )
        for ratio in ratios
    ]
    outer = (Weight("final_mix", streams * hidden, streams), vector("final_mix_bias", streams + 1))
    return model(f, name, layers, tied=False, outer=outer, next_token=f.optional("num_nextn_predict_layers"))


BUILDERS: dict[str, Callable[[Fields, str], Model]] = {
    "deepseek_v3": deepseek,
    "deepseek_v32": deepseek,
    "deepseek_v4": deepseek_v4,
    "glm_moe_dsa": deepseek,
    "kimi_k2": deepseek,
}
