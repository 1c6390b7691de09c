"""GPT-2 and what came before rotary positions and RMS norms were common, BERT among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.errors import InputError
from trnsim.workloads.families.common import attention, model, plain
from trnsim.workloads.parts import Attention, Dense
from trnsim.workloads.weights import Weight, vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from trnsim.workloads.config import Fields
    from trnsim.workloads.model import Model


def _positions(rows: int, width: int) -> Weight:
    """A table of learned positions, whole on every rank."""
    return Weight("positions", rows, width, "table")


def _heads(f: Fields, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise InputError(f"{f.source}: heads do not divide the width", operand="heads", value=heads, limit=hidden)
    return hidden // heads


def gpt2(f: Fields, name: str) -> Model:
    """GPT-2, GPT-3 and Megatron's GPT: learned positions, biases everywhere, head and embedding the same."""
    hidden, heads, rows = f.integer("n_embd"), f.integer("n_head"), f.integer("n_positions", "n_ctx")
    size = _heads(f, hidden, heads)
    kv_heads = 1 if f.get("model_type") == "gpt_bigcode" and f.flag("multi_query", True) else heads
    mixer = Attention(hidden, heads, kv_heads, size, size, bias=True, output_bias=True)
    network = Dense(hidden, f.optional("n_inner") or 4 * hidden, gated=False, bias=True)
    layer = plain((mixer, network), hidden, norm_kind="layer", norm_bias=True)
    return model(
        f,
        name,
        [layer] * f.integer("n_layer"),
        tied=True,
        norm_kind="layer",
        norm_bias=True,
        outer=[_positions(rows, hidden)],
        positions=rows,
        dropout=float(f.get("resid_pdrop", 0.1)) > 0,
    )


def bert(f: Fields, name: str) -> Model:
    """An encoder with the head that predicts masked tokens; norms come after the parts."""
    hidden, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    size = _heads(f, hidden, heads)
    mixer = Attention(hidden, heads, heads, size, size, bias=True, output_bias=True, causal=False)
    network = Dense(hidden, f.integer("intermediate_size"), gated=False, bias=True)
    layer = plain((mixer, network), hidden, norm_kind="layer", norm_bias=True)
    outer = [
        _positions(f.integer("max_position_embeddings"), hidden),
        Weight("segments", f.integer("type_vocab_size"), hidden, "table"),
        vector("embedding_norm", hidden),
        vector("embedding_norm_bias", hidden),
        Weight("transform", hidden, hidden, bias=True),
        vector("transform_norm", hidden),
        vector("transform_norm_bias", hidden),
    ]
    return model(
        f,
        name,
        [layer] * f.integer("num_hidden_layers"),
        tied=True,
        final_norm=False,
        norm_kind="layer",
        outer=outer,
        head_bias=True,
        causal=False,
        dropout=float(f.get("hidden_dropout_prob", 0.1)) > 0,
    )


def gpt_neox(f: Fields, name: str) -> Model:
    """GPT-NeoX and Pythia: part of a head is turned, both parts side by side."""
    hidden = f.integer("hidden_size")
    bias = f.flag("attention_bias", True)
    heads = f.integer("num_attention_heads")
    rotary = int(_heads(f, hidden, heads) * float(f.get("rotary_pct", 0.25)))
    mixer = attention(f, kv_heads=heads, bias=bias, output_bias=bias, rotary=rotary)
    network = Dense(hidden, f.integer("intermediate_size"), gated=False, bias=True)
    parallel = f.flag("use_parallel_residual", True)
    layer = plain((mixer, network), hidden, norm_kind="layer", norm_bias=True, parallel=parallel)
    layers = [layer] * f.integer("num_hidden_layers")
    return model(f, name, layers, tied=False, norm_kind="layer", norm_bias=True)


def opt(f: Fields, name: str) -> Model:
    hidden, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    bias, rows = f.flag("enable_bias", True), f.integer("max_position_embeddings")
    if f.optional("word_embed_proj_dim", hidden) != hidden or not f.flag("do_layer_norm_before", True):
        raise InputError(f"{f.source}: OPT with projected embeddings or norms after the parts is not supported")
    size = _heads(f, hidden, heads)
    mixer = Attention(hidden, heads, heads, size, size, bias=bias, output_bias=bias)
    network = Dense(hidden, f.integer("ffn_dim"), gated=False, bias=bias)
    layer = plain((mixer, network), hidden, norm_kind="layer", norm_bias=True)
    layers = [layer] * f.integer("num_hidden_layers")
    # The first two rows of its positions are for padding.
    return model(f, name, layers, tied=True, norm_kind="layer", norm_bias=True, outer=[_positions(rows + 2, hidden)])


def xglm(f: Fields, name: str) -> Model:
    """Positions are sines: no weights."""
    hidden, heads = f.integer("d_model"), f.integer("attention_heads")
    size = _heads(f, hidden, heads)
    mixer = Attention(hidden, heads, heads, size, size, bias=True, output_bias=True)
    network = Dense(hidden, f.integer("ffn_dim"), gated=False, bias=True)
    layer = plain((mixer, network), hidden, norm_kind="layer", norm_bias=True)
    return model(f, name, [layer] * f.integer("num_layers"), tied=True, norm_kind="layer", norm_bias=True)


def phi(f: Fields, name: str) -> Model:
    """Phi-1.5 and 2: one norm, both parts side by side, biases everywhere."""
    hidden = f.integer("hidden_size")
    if f.flag("qk_layernorm"):
        raise InputError(f"{f.source}: qk_layernorm of phi is not supported", operand="qk_layernorm")
    mixer = attention(f, bias=True, output_bias=True)
    network = Dense(hidden, f.integer("intermediate_size"), gated=False, bias=True)
    layer = plain((mixer, network), hidden, 1, norm_kind="layer", norm_bias=True, parallel=True)
    layers = [layer] * f.integer("num_hidden_layers")
    return model(f, name, layers, tied=False, norm_kind="layer", norm_bias=True, head_bias=True)


def persimmon(f: Fields, name: str) -> Model:
    hidden = f.integer("hidden_size")
    norm = "head" if f.flag("qk_layernorm", True) else ""
    heads = f.integer("num_attention_heads")
    mixer = attention(f, kv_heads=heads, bias=True, output_bias=True, norm=norm, norm_bias=True, norm_kind="layer")
    network = Dense(hidden, f.integer("intermediate_size"), gated=False, bias=True)
    layer = plain((mixer, network), hidden, norm_kind="layer", norm_bias=True)
    layers = [layer] * f.integer("num_hidden_layers")
    return model(f, name, layers, tied=False, norm_kind="layer", norm_bias=True)


def falcon(f: Fields, name: str) -> Model:
    """Falcon: one key head (7B) or a few (new decoder architecture), both parts side by side."""
    hidden, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    newer = f.flag("new_decoder_architecture")
    kv_heads = f.optional("num_kv_heads", heads) if newer else 1 if f.flag("multi_query", True) else heads
    bias, parallel = f.flag("bias"), f.flag("parallel_attn", True)
    size = _heads(f, hidden, heads)
    rotary = 0 if f.flag("alibi") else size
    mixer = Attention(hidden, heads, kv_heads, size, size, bias=bias, output_bias=bias, rotary=rotary)
    inner = f.optional("ffn_hidden_size") or 4 * hidden
    network = Dense(hidden, inner, gated=False, bias=bias)
    norms = 2 if (newer and f.optional("num_ln_in_parallel_attn", 2) == 2) or not parallel else 1
    layer = plain((mixer, network), hidden, norms, norm_kind="layer", norm_bias=True, parallel=newer or parallel)
    layers = [layer] * f.integer("num_hidden_layers")
    return model(f, name, layers, tied=True, norm_kind="layer", norm_bias=True)


BUILDERS: dict[str, Callable[[Fields, str], Model]] = {
    "bert": bert,
    "falcon": falcon,
    "gpt2": gpt2,
    "gpt_bigcode": gpt2,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "persimmon": persimmon,
    "phi": phi,
    "xglm": xglm,
}
