"""What the operators of a workload cost on one rank, by implementation.

A workload names its operators and their sizes as the mathematics has them (``workloads.operators``); an implementation
knows costs of operators (``operators``). This module stands between: which operator of the implementation a use is,
and in which number format its products run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from trnsim.errors import InputError, InternalError, UnsupportedError
from trnsim.hardware import load_chip
from trnsim.operators.cost import OperatorCost
from trnsim.workloads.operators import PRODUCTS, Use, weight_bytes

SUPPORT = ("calibrated", "interpolated", "extrapolated", "assumed", "what-if")
# Formats of weights by the name that the costs of products have for them.
_FORMATS = {"fp8": "float8", "nvfp4": "float4", "int8": "int8"}
_Turn = Callable[[Mapping[str, Any]], tuple[str, Mapping[str, Any]]]


class Costs(Protocol):
    """Costs of operators on one chip."""

    def cost(self, name: str, dtype: str, **given: int) -> OperatorCost: ...


@dataclass(frozen=True)
class UseCost:
    """Time of a use, all its repetitions; ``product``: TensorE or the tensor cores do most of it."""

    microseconds: float
    product: bool
    support: str
    reason: str


class UseCosts:
    """Costs of uses on one rank of ``chip``: a GPU, or a logical core of ``lnc`` NeuronCores."""

    def __init__(self, chip: str, implementation: str = "", lnc: int = 1) -> None:
        """Costs by an implementation: ``gpu`` on GPUs; ``compiler`` or ``kernel`` on Neuron devices.

        Raises:
            InputError: an implementation that the chip does not have.
        """
        family = load_chip(chip).family
        known = ("gpu",) if family == "nvidia" else ("compiler", "kernel")
        self.implementation = implementation or known[0]
        if self.implementation not in known:
            raise InputError(
                f"{chip} has no implementation {implementation!r}", operand="implementation", value=implementation,
                limit=known,
            )  # fmt: skip
        self.chip, self.lnc = chip, lnc
        self._costs = _costs(chip, self.implementation, lnc)
        self._known: dict[tuple[Any, ...], tuple[float, str, str]] = {}

    def cost(self, use: Use) -> UseCost:
        """What a use takes.

        Raises:
            UnsupportedError: the implementation has no such operator or shape.
        """
        product = use.operator in PRODUCTS
        dtype = use.weight_dtype or use.dtype
        key = (use.operator, dtype, use.dtype, *use.sizes.items())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._one(use, dtype if product else use.dtype)
        return UseCost(found[0] * use.count, product, found[1], found[2])

    def casts(self, use: Use) -> float:
        """Microseconds in which a narrow product's activations are cast."""
        narrow = use.weight_dtype and use.weight_dtype != use.dtype
        if not narrow or use.operator not in ("matmul", "grouped_matmul") or use.where.endswith(".weight"):
            return 0.0
        elements = use.sizes["m"] * use.sizes["k"]
        width = 2 + 2 * weight_bytes(use.weight_dtype)
        moved = Use("add", {"rows": elements * width / 6, "width": 1}, use.dtype, use.where, use.count, use.phase)
        return self.cost(moved).microseconds

    def _one(self, use: Use, dtype: str) -> tuple[float, str, str]:
        turn = _TURNS.get(use.operator)
        if turn is None:
            once = use.hbm_bytes / use.count
            name, sizes = "move", {"bytes": max(int(once), 1)}
            dtype = "bfloat16"
        else:
            name, sizes = turn(use.sizes)
        if not all(float(v).is_integer() for v in sizes.values()):
            sizes = {k: max(round(v), 1) for k, v in sizes.items()}
        sizes = {k: int(v) for k, v in sizes.items()}
        format_ = _FORMATS.get(dtype, dtype)
        if name in ("attention", "attention_backward") and format_ not in ("bfloat16", "float16", "float32"):
            format_ = "bfloat16"
        try:
            cost = self._costs.cost(name, format_, **sizes)
        except InputError as error:
            raise UnsupportedError(f"{use.where} ({use.operator}) on {self.chip}: {error}") from error
        return cost.microseconds, cost.support, cost.reason


def _attention(name: str) -> _Turn:
    def turn(s: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        return name, {
            "heads": s["heads"],
            "key_heads": s["kv_heads"],
            "queries": s["queries"],
            "keys": s["keys"],
            "depth": s["size"],
            "value_depth": s["value_size"] or s["size"],
            "causal": s.get("causal", 0),
            "window": s.get("window", 0),
        }

    return turn


def _decode(s: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    return "decode_attention", {
        "sequences": s["sequences"],
        "heads": s["heads"],
        "key_heads": s["kv_heads"],
        "keys": s["keys"],
        "depth": s["size"],
        "value_depth": s["value_size"] or s["size"],
        "latent": s.get("latent", 0),
    }


def _grouped(s: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    met = max(round(s.get("hit", s["experts"])), 1)
    return "grouped_matmul", {"tokens": max(s["m"], 1), "k": s["k"], "n": s["n"], "experts": met}


def _plain(name: str, **sizes: str) -> _Turn:
    return lambda s: (name, {theirs: s[ours] for theirs, ours in sizes.items()})


# The operator of an implementation that stands for one of a workload; what is missing moves its bytes and no more.
_TURNS: dict[str, _Turn] = {
    "matmul": _plain("matmul", m="m", k="k", n="n"),
    "router": _plain("matmul", m="tokens", k="width", n="experts"),
    "grouped_matmul": _grouped,
    "gated_mlp": _plain("gated_mlp", tokens="m", width="k", hidden="n"),
    "mlp": _plain("mlp", tokens="m", width="k", hidden="n"),
    "attention": _attention("attention"),
    "attention_backward": _attention("attention_backward"),
    "decode_attention": _decode,
}


@cache
def _costs(chip: str, implementation: str, lnc: int) -> Costs:
    if implementation == "gpu":
        from trnsim.operators.gpu import GpuCosts

        return GpuCosts(chip)
    if implementation == "compiler":
        from trnsim.operators.compiled import CompilerCosts

        return CompilerCosts(chip, lnc)
    if implementation == "kernel":
        raise UnsupportedError("the implementation 'kernel' is not available for plans yet; use 'compiler'")
    raise InternalError(f"no implementation {implementation}")


def worst(supports: set[str]) -> str:
    """The least that is known among ``supports``."""
    return max(supports, key=SUPPORT.index, default="calibrated")
