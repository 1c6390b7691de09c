"""What the operators of a workload cost on one rank, by implementation.

A workload names its operators and their sizes as the kernels' contracts do (``workloads.operators``), and so do the
costs of operators (``operators.work``). This module stands between: which costs an implementation has, and what stands
for operators that no implementation knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from trnsim.errors import InputError, InternalError, UnsupportedError
from trnsim.hardware import load_chip
from trnsim.operators.cost import OperatorCost
from trnsim.workloads.operators import PRODUCTS, Use

if TYPE_CHECKING:
    from trnsim.operators.gpu import GpuCosts

SUPPORT = ("calibrated", "interpolated", "extrapolated", "assumed", "what-if")
IMPLEMENTATIONS = {"nvidia": ("gpu",), "neuron": ("compiler", "kernel")}
# What may be asked for: these, and variants (``kernel_uses``): the best of each operator, and kernels whose missing
# sizes are simulated.
CHOICES = {"nvidia": ("gpu", "best"), "neuron": ("compiler", "kernel", "kernel-simulated", "best")}
# Formats of products by the name that costs have for them.
_FORMATS = {"fp8": "float8", "nvfp4": "float4", "int8": "int8"}
_WIDE = ("bfloat16", "float16", "float32")
_Known = dict[tuple[Any, ...], tuple[float, str, str]]
_Turn = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


class Costs(Protocol):
    """Costs of operators on one chip."""

    def cost(self, name: str, dtype: str, **given: Any) -> OperatorCost: ...


@dataclass(frozen=True)
class UseCost:
    """Time of a use, all its repetitions; ``product``: TensorE or the tensor cores do most of it."""

    microseconds: float
    product: bool
    support: str
    reason: str


class UseCosts:
    """Costs of uses on one rank of ``chip``: a GPU, or a logical core of ``lnc`` NeuronCores."""

    def __init__(self, chip: str, implementation: str = "", lnc: int = 1, *, casts_apart: bool = True) -> None:
        """Costs by an implementation: ``gpu`` on GPUs; ``compiler``, ``kernel`` ... (``CHOICES``) on Neuron devices.

        ``casts_apart``: casts of a product's operands to narrow formats are operators of their own, as in training.

        Raises:
            InputError: an implementation that the chip does not have.
        """
        family = load_chip(chip).family
        known = CHOICES["nvidia" if family == "nvidia" else "neuron"]
        self.implementation = implementation or known[0]
        if (family, implementation) == ("nvidia", "best"):
            self.implementation = "gpu"  # there is no other
        if self.implementation not in known:
            raise InputError(
                f"{chip} has no implementation {implementation!r}", operand="implementation", value=implementation,
                limit=known,
            )  # fmt: skip
        self.chip, self.lnc, self._casts_apart = chip, lnc, casts_apart
        self._costs = _costs(chip, self.implementation, lnc)
        self._known = _known(chip, self.implementation, lnc, casts_apart)

    def cost(self, use: Use) -> UseCost:
        """What a use takes.

        Raises:
            UnsupportedError: the implementation has no such operator or shape.
        """
        product = use.operator in PRODUCTS
        key = (use.operator, use.dtype, self._lies(use), *use.sizes.items())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._one(use)
        return UseCost(found[0] * use.count, product, found[1], found[2])

    def _lies(self, use: Use) -> str:
        """Which dimension a product contracts, where its cost depends on it: kernels'."""
        if use.operator != "matmul" or self.implementation in ("gpu", "compiler"):
            return ""
        return "weight" if use.where.endswith(".weight") else "input" if use.where.endswith(".input") else "forward"

    @property
    def _casts(self) -> GpuCosts:
        from trnsim.operators.gpu import GpuCosts

        assert isinstance(self._costs, GpuCosts)
        return self._costs

    def _one(self, use: Use) -> tuple[float, str, str]:
        turn = _TURNS.get(use.operator)
        if use.operator in _MOVING:
            # No costs of their own: the bytes that they must move, as an element-wise operator moves them.
            name, given = "elementwise", {"rows": use.hbm_bytes / use.count / 4, "width": 1}
        else:
            name, given = turn(use.sizes) if turn is not None else (use.operator, dict(use.sizes))
        sizes = {k: v if isinstance(v, str) else max(round(v), 0 if k in _MAYBE else 1) for k, v in given.items()}
        dtype = use.dtype if use.operator not in _MOVING else "bfloat16"
        format_ = _FORMATS.get(dtype, dtype)
        if use.operator not in _NARROW and format_ not in _WIDE:
            format_ = "bfloat16"
        lies = self._lies(use) if name == "matmul" else ""
        if lies:
            sizes |= _LIES[lies]
        try:
            cost = self._costs.cost(name, format_, **sizes)
        except InputError as error:
            raise UnsupportedError(f"{use.where} ({use.operator}) on {self.chip}: {error}") from error
        time = cost.microseconds
        if use.operator == "matmul" and self.implementation == "gpu" and self._casts_apart:
            # Training casts an operand once for all its products, in an operator of its own.
            time -= self._casts.cast_us(format_, float(sizes["m"]), float(sizes["k"]))
        return time, cost.support, cost.reason


def _grouped(s: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    met = max(round(s.get("hit", s["experts"])), 1)
    return "grouped_matmul", {"tokens": s["tokens"], "k": s["k"], "n": s["n"], "experts": met}


def _indices(s: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Scores of an indexer, one product of all heads with half of the keys."""
    return "matmul", {"m": s["heads"] * s["queries"], "k": s["depth"], "n": s["keys"] / (2 if s.get("causal") else 1)}


# Sizes that may be 0: options, and what is then something else.
_MAYBE = frozenset(
    ("causal", "window", "residual", "scaled", "latent", "width", "with_lse", "bias", "contract", "inverse")
)
# Activations lie [tokens, width], weights [inputs, outputs]. A gradient of weights contracts tokens; one of inputs,
# outputs.
_LIES = {
    "forward": {"contract_lhs": 1, "contract_rhs": 0},
    "input": {"contract_lhs": 1, "contract_rhs": 1},
    "weight": {"contract_lhs": 0, "contract_rhs": 0},
}
_NARROW = frozenset(("matmul", "grouped_matmul", "gated_mlp", "mlp", "decode_attention"))
_MOVING = frozenset(
    ("permute", "combine", "conv", "conv_backward", "linear_attention", "linear_attention_backward")
)  # fmt: skip
_TURNS: dict[str, _Turn] = {
    "grouped_matmul": _grouped,
    "index_scores": _indices,
    "index_scores_backward": _indices,
}


@cache
def _known(
    _chip: str, _implementation: str, _lnc: int, _casts_apart: bool
) -> dict[tuple[Any, ...], tuple[float, str, str]]:
    """What was asked for: (microseconds, support, reason) by use. All plans of a process share it."""
    return {}


@cache
def _costs(chip: str, implementation: str, lnc: int) -> Costs:
    if implementation == "gpu":
        from trnsim.operators.gpu import GpuCosts

        return GpuCosts(chip)
    if implementation == "compiler":
        from trnsim.operators.compiled import CompilerCosts

        return CompilerCosts(chip, lnc)
    if implementation in ("kernel", "kernel-simulated", "best"):
        from trnsim.operators.store import default_store
        from trnsim.planner.kernel_uses import KernelUses

        store, _ = default_store()
        simulate = implementation == "kernel-simulated"
        return KernelUses(chip, lnc, store, simulate=simulate, best=implementation == "best")
    raise InternalError(f"no implementation {implementation}")


def worst(supports: set[str]) -> str:
    """The least that is known among ``supports``."""
    return max(supports, key=SUPPORT.index, default="calibrated")
