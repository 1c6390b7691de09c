"""Mixers of tokens with a state of fixed size: gated delta rule, Mamba-2, lightning attention, gated linear recurrence.

Prefill runs over chunks in products, decoding updates the state once; both move and multiply what the recurrence does,
counted here as ``passes`` over a state of [size, value size] a head and token.
"""

from __future__ import annotations

from dataclasses import dataclass

from trnsim.workloads.operators import Pass, Step, Use
from trnsim.workloads.parts.base import Kept, norm, product
from trnsim.workloads.weights import COLUMN, ROW, Count, Weight, ceil_div, vector

STATE_BYTES = 4  # states are float32 in the public implementations (mamba_ssm_dtype, A_log and states of transformers)
CHUNK = 64  # tokens between the states that a backward pass keeps


@dataclass(frozen=True)
class _Linear:
    """What the mixers share: products in and out, a convolution a channel, and the recurrence.

    ``channels`` pass a convolution of ``taps``; a state has ``heads`` of [size, value_size].
    """

    hidden: int

    name = "attention"

    @property
    def weights(self) -> tuple[Weight, ...]:
        raise NotImplementedError

    @property
    def _state(self) -> tuple[int, int, int]:
        """(heads, size, value size)."""
        raise NotImplementedError

    @property
    def _conv(self) -> tuple[int, int]:
        """(channels, taps)."""
        return 0, 0

    passes = 2

    def forward(self, p: Pass) -> Step:
        matrices = [w for w in self.weights if w.kind == "matmul"]
        into = [w for w in matrices if w.shard != ROW]
        step: Step = [product(w, p) for w in into]
        heads, size, value = self._state
        local = ceil_div(heads, p.tp)
        channels, taps = self._conv
        if channels:
            sizes = {"tokens": p.tokens, "channels": ceil_div(channels, p.tp), "taps": taps}
            step.append(Use("conv", sizes, p.dtype, "attention.conv"))
        sizes = {
            "tokens": p.tokens,
            "sequences": p.sequences,
            "heads": local,
            "depth": size,
            "width": value,
            "passes": self.passes,
        }
        step.append(Use("linear_attention", sizes, p.dtype, "attention.core"))
        step.append(norm("rms", p.tokens * local, value, p, "attention.norm"))
        step.append(Use("gated_activation", {"rows": p.tokens, "width": local * value}, p.dtype, "attention.gated"))
        step += [product(w, p) for w in matrices if w.shard == ROW]
        return step

    def kept(self, p: Pass) -> list[Kept]:
        heads, size, value = self._state
        local = ceil_div(heads, p.tp)
        channels, _ = self._conv
        wide = sum(w.n for w in self.weights if w.kind == "matmul" and w.shard != ROW)
        return [
            Kept("attention.projections", p.tokens * ceil_div(wide + channels, p.tp) * p.itemsize),
            Kept("attention.result", p.tokens * 2 * local * value * p.itemsize),
            Kept("attention.states", p.tokens / CHUNK * local * size * value * STATE_BYTES, core=True),
        ]

    def cache_elements(self, keys: Count, tp: Count) -> Count:
        return 0 * keys * tp

    def state_bytes(self, tp: Count) -> Count:
        heads, size, value = self._state
        channels, taps = self._conv
        kept = ceil_div(channels, tp) * max(taps - 1, 0) * 2  # the convolution's last inputs, bfloat16
        return ceil_div(heads, tp) * size * value * STATE_BYTES + kept

    def pairs(self, queries: Count, keys: Count) -> Count:
        heads, size, value = self._state
        return 2 * self.passes * queries * heads * size * value + 0 * keys


@dataclass(frozen=True)
class GatedDelta(_Linear):
    """Gated delta rule (Qwen3-Next, Qwen3.5; arXiv 2412.06464): the state is corrected by what it already answers."""

    key_heads: int
    value_heads: int
    size: int
    value_size: int
    taps: int

    passes = 3

    @property
    def weights(self) -> tuple[Weight, ...]:
        keys, values, h = self.key_heads * self.size, self.value_heads * self.value_size, self.hidden
        units = self.key_heads
        return (
            Weight("attention.mixed", h, 2 * keys + 2 * values, shard=COLUMN, units=units),
            Weight("attention.rates", h, 2 * self.value_heads, shard=COLUMN, units=units),
            Weight("attention.conv", self.taps, 2 * keys + values, "conv", COLUMN, units),
            vector("attention.step_bias", self.value_heads, COLUMN, self.value_heads),
            vector("attention.decay", self.value_heads, COLUMN, self.value_heads),
            vector("attention.norm", self.value_size),
            Weight("attention.output", values, h, shard=ROW, units=units),
        )

    @property
    def _state(self) -> tuple[int, int, int]:
        return self.value_heads, self.size, self.value_size

    @property
    def _conv(self) -> tuple[int, int]:
        return 2 * self.key_heads * self.size + self.value_heads * self.value_size, self.taps


@dataclass(frozen=True)
class Mamba2(_Linear):
    """Mamba-2 (arXiv 2405.21060): ``heads`` of ``value_size`` with a state of ``size``, in ``groups``."""

    heads: int
    value_size: int
    groups: int
    size: int
    taps: int
    bias: bool = False
    conv_bias: bool = True
    norm: bool = True
    output_bias: bool = False

    @property
    def weights(self) -> tuple[Weight, ...]:
        inner, h = self.heads * self.value_size, self.hidden
        mixed = inner + 2 * self.groups * self.size
        found = [
            Weight("attention.mixed", h, inner + mixed + self.heads, shard=COLUMN, bias=self.bias),
            Weight("attention.conv", self.taps, mixed, "conv", COLUMN, bias=self.conv_bias),
            *(vector(f"attention.{n}", self.heads, COLUMN, self.heads) for n in ("step_bias", "decay", "skip")),
            Weight("attention.output", inner, h, shard=ROW, units=self.heads, bias=self.output_bias),
        ]
        if self.norm:
            found.append(vector("attention.norm", inner, COLUMN, self.heads))
        return tuple(found)

    @property
    def _state(self) -> tuple[int, int, int]:
        return self.heads, self.size, self.value_size

    @property
    def _conv(self) -> tuple[int, int]:
        return self.heads * self.value_size + 2 * self.groups * self.size, self.taps


@dataclass(frozen=True)
class Lightning(_Linear):
    """Lightning attention (MiniMax-Text-01 and M1; arXiv 2501.08313): decayed linear attention with an output gate."""

    heads: int
    size: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        width, h = self.heads * self.size, self.hidden
        return (
            Weight("attention.mixed", h, 3 * width, shard=COLUMN, units=self.heads),
            Weight("attention.gate", h, width, shard=COLUMN, units=self.heads),
            vector("attention.norm", width, COLUMN, self.heads),
            Weight("attention.output", width, h, shard=ROW, units=self.heads),
        )

    @property
    def _state(self) -> tuple[int, int, int]:
        return self.heads, self.size, self.size


@dataclass(frozen=True)
class RecurrentUnit(_Linear):
    """Real-gated linear recurrent unit (RecurrentGemma; arXiv 2402.19427): ``width`` states of one number."""

    width: int
    heads: int
    taps: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        w, h, block = self.width, self.hidden, self.width // self.heads
        gates = [
            Weight(f"attention.{n}_gate", block, w, shard=COLUMN, units=self.heads, bias=True)
            for n in ("input", "decay")
        ]
        return (
            *(Weight(f"attention.{n}", h, w, shard=COLUMN, units=self.heads, bias=True) for n in ("gate", "mixed")),
            *gates,
            Weight("attention.conv", self.taps, w, "conv", COLUMN, self.heads, bias=True),
            vector("attention.decay", w, COLUMN, self.heads),
            Weight("attention.output", w, h, shard=ROW, units=self.heads, bias=True),
        )

    @property
    def _state(self) -> tuple[int, int, int]:
        return self.width, 1, 1

    @property
    def _conv(self) -> tuple[int, int]:
        return self.width, self.taps
