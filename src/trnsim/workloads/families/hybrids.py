"""Models that mix attention with states of fixed size: Qwen3-Next, Qwen3.5, Nemotron-H, Falcon-H1, RecurrentGemma."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.errors import InputError
from trnsim.workloads.families.common import attention, model, partial_rotary, plain
from trnsim.workloads.parts import Dense, Experts, GatedDelta, Mamba2, RecurrentUnit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trnsim.workloads.config import Fields
    from trnsim.workloads.model import Model
    from trnsim.workloads.parts import Attention, Part


def _gated_attention(f: Fields) -> Attention:
    """Half of the query product's outputs are a gate; a quarter of a head is turned unless the config says more."""
    bias = f.flag("attention_bias")
    rotary = int(f.integer("head_dim") * partial_rotary(f, 0.25))
    return attention(f, bias=bias, output_bias=bias, norm="head", gate="element", rotary=rotary)


def _delta(f: Fields) -> GatedDelta:
    return GatedDelta(
        f.integer("hidden_size"),
        f.integer("linear_num_key_heads"),
        f.integer("linear_num_value_heads"),
        f.integer("linear_key_head_dim"),
        f.integer("linear_value_head_dim"),
        f.integer("linear_conv_kernel_dim"),
    )


def qwen_hybrid(f: Fields, name: str) -> Model:
    """Gated delta rule, and attention every ``full_attention_interval`` layers; dense or with experts."""
    count, hidden = f.integer("num_hidden_layers"), f.integer("hidden_size")
    every = f.optional("full_attention_interval", 4)
    kinds = f.kinds("layer_types", count) or [
        "linear_attention" if (i + 1) % every else "full_attention" for i in range(count)
    ]
    full, linear = _gated_attention(f), _delta(f)
    network: Part = Dense(hidden, f.integer("intermediate_size")) if not f.optional("num_experts") else _mixture(f)
    dense = set(f.get("mlp_only_layers") or ())
    step = f.optional("decoder_sparse_step", 1)
    layers = []
    for i, kind in enumerate(kinds):
        plain_network = i in dense or (i + 1) % step != 0
        part = Dense(hidden, f.integer("intermediate_size")) if plain_network else network
        layers.append(plain((full if kind == "full_attention" else linear, part), hidden))
    return model(f, name, layers, tied=False, next_token=f.optional("mtp_num_hidden_layers"))


def _mixture(f: Fields) -> Experts:
    return Experts(
        f.integer("hidden_size"),
        f.integer("num_experts"),
        f.integer("num_experts_per_tok"),
        f.integer("moe_intermediate_size"),
        shared=f.integer("shared_expert_intermediate_size"),
        shared_gate=True,
    )


def _mamba(f: Fields) -> Mamba2:
    return Mamba2(
        f.integer("hidden_size"),
        f.integer("mamba_num_heads"),
        f.integer("mamba_head_dim"),
        f.integer("n_groups", "mamba_n_groups"),
        f.integer("ssm_state_size"),
        f.integer("conv_kernel", "mamba_d_conv"),
        f.flag("use_bias"),
        f.flag("use_conv_bias", True),
        output_bias=f.flag("use_bias"),
    )


def nemotron_h(f: Fields, name: str) -> Model:
    """One part a layer, as a pattern says: M Mamba-2, * attention, - a network, E experts."""
    hidden = f.integer("hidden_size")
    kinds = f.get("layers_block_type") or f.get("layer_types")
    pattern = str(f.need("hybrid_override_pattern", "layers_block_type")) if kinds is None else _letters(kinds)
    further = f.optional("num_nextn_predict_layers")
    ahead = f.get("mtp_layers_block_type")
    ahead_pattern = str(f.get("mtp_hybrid_override_pattern", "*E")) if ahead is None else _letters(ahead)
    used = pattern + (ahead_pattern if further else "")
    unknown = sorted(set(used) - set("M*-E"))
    if unknown:
        raise InputError(
            f"{f.source}: layers of an unknown kind in {used!r}", operand="hybrid_override_pattern", value=unknown
        )
    known = {letter: plain((_nemotron_part(f, letter, hidden),), hidden, 1) for letter in sorted(set(used))}
    layers = [known[letter] for letter in pattern]
    following = tuple(known[letter] for letter in ahead_pattern) if further else ()
    return model(f, name, layers, tied=False, next_token=further, next_layers=following)


_LETTERS = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "mlp": "-", "moe": "E"}


def _letters(kinds: Sequence[str]) -> str:
    return "".join(_LETTERS.get(kind, "?") for kind in kinds)


def _nemotron_part(f: Fields, letter: str, hidden: int) -> Part:
    if letter == "M":
        return _mamba(f)
    if letter == "*":
        size = f.optional("head_dim") or f.optional("attention_head_dim") or None
        return attention(f, rotary=0, **({"size": size} if size else {}))
    if letter == "-":
        return Dense(hidden, f.integer("intermediate_size"), gated=False, bias=f.flag("mlp_bias"))
    return Experts(
        hidden,
        f.integer("n_routed_experts"),
        f.integer("num_experts_per_tok"),
        f.integer("moe_intermediate_size"),
        gated=False,
        shared=f.integer("moe_shared_expert_intermediate_size") * f.optional("n_shared_experts", 1),
        latent=f.optional("moe_latent_size"),
    )


def falcon_h1(f: Fields, name: str) -> Model:
    """Attention and Mamba-2 side by side in every layer, then a network."""
    hidden, heads = f.integer("hidden_size"), f.integer("mamba_n_heads")
    inner = f.optional("mamba_d_ssm") or f.integer("mamba_expand") * hidden
    bias = f.flag("attention_bias")
    mamba = Mamba2(
        hidden,
        heads,
        inner // heads,
        f.integer("mamba_n_groups"),
        f.integer("mamba_d_state"),
        f.integer("mamba_d_conv"),
        f.flag("mamba_proj_bias"),
        f.flag("mamba_conv_bias", True),
        f.flag("mamba_rms_norm"),
        f.flag("projectors_bias"),
    )
    mixer = attention(f, bias=bias, output_bias=bias)
    network = Dense(hidden, f.integer("intermediate_size"), bias=f.flag("mlp_bias"))
    layer = plain((mamba, mixer, network), hidden)
    return model(f, name, [layer] * f.integer("num_hidden_layers"), tied=False)


def recurrent_gemma(f: Fields, name: str) -> Model:
    count, hidden = f.integer("num_hidden_layers"), f.integer("hidden_size")
    types = f.get("block_types") or f.get("_block_types") or ["recurrent", "recurrent", "attention"]
    heads = f.integer("num_attention_heads")
    unit = RecurrentUnit(hidden, f.optional("lru_width") or hidden, heads, f.integer("conv1d_width"))
    bias = f.flag("attention_bias")
    mixer = attention(
        f,
        window=f.integer("attention_window_size", "sliding_window"),
        bias=bias,
        output_bias=True,
        rotary=hidden // heads // 2,
    )
    # The config gives the width of gate and up together.
    network = Dense(hidden, f.integer("intermediate_size") // 2, bias=True)
    layers = [plain((mixer if types[i % len(types)] == "attention" else unit, network), hidden) for i in range(count)]
    return model(f, name, layers, tied=True)


BUILDERS: dict[str, Callable[[Fields, str], Model]] = {
    "falcon_h1": falcon_h1,
    "nemotron_h": nemotron_h,
    "qwen3_5_moe_text": qwen_hybrid,
    "qwen3_5_text": qwen_hybrid,
    "qwen3_next": qwen_hybrid,
    "recurrent_gemma": recurrent_gemma,
}
