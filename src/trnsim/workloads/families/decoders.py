"""Dense decoders with rotary positions and RMS norms, and their relatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trnsim.workloads.families.common import attention, model, plain, windows
from trnsim.workloads.parts import Dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from trnsim.workloads.config import Fields
    from trnsim.workloads.model import Model


@dataclass(frozen=True)
class Style:
    """How an architecture differs from Llama.

    Attributes:
        bias, output_bias, mlp_bias: of query, key and value products, of the output's, of the network's: yes, no, or
            the name of the field that says so.
        norm: of queries and keys, as ``Attention`` has it.
        norms: vectors of a layer; ``norm_kind``, ``norm_bias`` theirs.
        gated: the network has a gate.
        parallel: attention and network side by side.
        tied: the head's weights are the embedding's, unless the config says otherwise.
        period: every so many layers one has full attention, the others a window, unless ``layer_types`` says otherwise.
        trained_activation: parameters of the activation.
    """

    bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    norm: str = ""
    norms: int = 2
    norm_kind: str = "rms"
    norm_bias: bool = False
    gated: bool = True
    parallel: bool = False
    tied: bool = False
    period: int = 0
    trained_activation: int = 0

    def says(self, f: Fields, what: bool | str) -> bool:
        return f.flag(what) if isinstance(what, str) else what


BY_FIELD = "attention_bias"
STYLES = {
    "llama": Style(BY_FIELD, BY_FIELD, "mlp_bias"),
    "apertus": Style(BY_FIELD, BY_FIELD, norm="head", gated=False, trained_activation=2),
    "arcee": Style(BY_FIELD, BY_FIELD, "mlp_bias", gated=False),
    "cohere": Style(BY_FIELD, BY_FIELD, norms=1, parallel=True, tied=True),
    "cohere2": Style(BY_FIELD, BY_FIELD, norms=1, parallel=True, tied=True, period=4),
    "ernie4_5": Style("use_bias", "use_bias", "use_bias", tied=True),
    "gemma": Style(BY_FIELD, BY_FIELD, tied=True),
    "glm": Style("attention_bias"),
    "glm4": Style("attention_bias", norms=4),
    "granite": Style(BY_FIELD, BY_FIELD, "mlp_bias"),
    "hunyuan_v1_dense": Style(BY_FIELD, BY_FIELD, norm="head"),
    "internlm3": Style("qkv_bias", "bias", "bias"),
    "mimo": Style(BY_FIELD),
    "minicpm": Style(BY_FIELD, BY_FIELD),
    "ministral": Style(period=4),
    "ministral3": Style(),
    "mistral": Style(),
    "nemotron": Style(BY_FIELD, BY_FIELD, "mlp_bias", gated=False, norm_kind="layer", norm_bias=True),
    "olmo2": Style(BY_FIELD, BY_FIELD, norm="all"),
    "olmo3": Style(BY_FIELD, BY_FIELD, norm="all", period=4),
    "orion": Style(norm_kind="layer", norm_bias=True),
    "phi3": Style(),
    "qwen2": Style(bias=True),
    "qwen3": Style(BY_FIELD, BY_FIELD, norm="head"),
    "smollm3": Style(BY_FIELD, BY_FIELD, "mlp_bias", tied=True),
    "starcoder2": Style("use_bias", "use_bias", "use_bias", gated=False, norm_kind="layer", norm_bias=True, tied=True),
}


def decoder(style: Style) -> Callable[[Fields, str], Model]:
    """A reader for an architecture of this style."""

    def build(f: Fields, name: str) -> Model:
        count, hidden = f.integer("num_hidden_layers"), f.integer("hidden_size")
        network = Dense(
            hidden,
            f.integer("intermediate_size"),
            style.gated,
            style.says(f, style.mlp_bias),
            style.trained_activation,
        )
        layers = [
            plain(
                (
                    attention(
                        f,
                        window=window,
                        bias=style.says(f, style.bias),
                        output_bias=style.says(f, style.output_bias),
                        norm="all" if f.flag("use_qk_norm") and style.parallel else style.norm,
                    ),
                    network,
                ),
                hidden,
                style.norms,
                norm_kind=style.norm_kind,
                norm_bias=style.norm_bias,
                parallel=style.parallel,
            )
            for window in _windows(f, count, style.period)
        ]
        return model(f, name, layers, tied=style.tied, norm_kind=style.norm_kind, norm_bias=style.norm_bias)

    return build


def _windows(f: Fields, count: int, period: int) -> list[int]:
    if f.get("layer_types") is not None or period:
        period = f.optional("sliding_window_pattern", period)
        default = (
            ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)] if period else None
        )
        return windows(f, count, default)
    if f.get("use_sliding_window") is False:
        return [0] * count
    return [f.optional("sliding_window")] * count


BUILDERS: dict[str, Callable[[Fields, str], Model]] = {kind: decoder(style) for kind, style in STYLES.items()}
