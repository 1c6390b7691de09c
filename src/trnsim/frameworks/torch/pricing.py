"""What operators and regions take: costs of our kernels or of the compiler, and how they add up inside a region.

Inside a region intermediate results stay in SBUF. Its products run one after the other, each as its kernel does; other
work runs beside them on other engines. So a region takes as long as its products together, or as its busiest engine,
whichever is longer; a region without products as long as its longest member or its busiest engine.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.errors import InputError, UnsupportedError
from trnsim.frameworks.torch.kept_prices import KeptPrices
from trnsim.frameworks.torch.uses import Used
from trnsim.operators.cost import OperatorCost
from trnsim.operators.store import cache_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUPPORT = ("calibrated", "interpolated", "extrapolated", "assumed", "what-if")
_PRODUCTS = frozenset(
    (
        "matmul",
        "matmul_fp8",
        "matmul_mx",
        "grouped_matmul",
        "gated_mlp",
        "mlp",
        "attention",
        "attention_backward",
        "decode_attention",
        "router",
    )
)
_WIDE = ("bfloat16", "float16", "float32")
# A tensor of a chain as the element-wise kernel takes it, which its shipped surfaces have.
_WIDTH = 4096
# Contexts between which the time of decoding is taken as linear.
_CONTEXT = 128


@dataclass(frozen=True, slots=True)
class Price:
    """Picoseconds, bytes, operations and busy picoseconds by engine, with how they are known."""

    time_ps: float = 0.0
    hbm_bytes: float = 0.0
    flops: float = 0.0
    busy_ps: Mapping[str, float] = field(default_factory=dict)
    support: str = "calibrated"
    reason: str = ""
    product: bool = False

    def times(self, count: float) -> Price:
        """So often, one after the other."""
        if count == 1:
            return self
        busy = {name: value * count for name, value in self.busy_ps.items()}
        return Price(
            self.time_ps * count, self.hbm_bytes * count, self.flops * count, busy, self.support, self.reason,
            self.product,
        )  # fmt: skip


@cache
def _known(chip: str, lnc: int, implementation: str, folder: str) -> tuple[dict[Any, Price], list[Any]]:
    """Prices, and the costs behind once they are there, of one process; ``folder`` is that of the user's store."""
    return {}, []


class Pricer:
    """Costs on one logical core of ``lnc`` cores of ``chip``, remembered by use.

    ``implementation``: ``kernel`` or ``compiler``. Uses without a surface are simulated when first asked for, and kept
    in the user's store; ``simulated`` counts them.
    """

    def __init__(self, chip: str, lnc: int, implementation: str = "kernel") -> None:
        self.chip, self.lnc, self.implementation = chip, lnc, implementation
        # What is known of a chip is known to all that run on it.
        self._known, self._held = _known(chip, lnc, implementation, str(cache_folder()))
        # A chip of the user's own file may change under its name.
        plain = implementation == "kernel" and not Path(chip).exists()
        self._kept = KeptPrices(cache_folder(), f"{chip} {lnc}", Price) if plain else None
        self.simulated = 0
        self.alone: dict[Any, float] = {}
        """Picoseconds of single calls, by operator, format and shapes."""

    def use(self, used: Used) -> Price:
        """What a use takes.

        Raises:
            UnsupportedError: no kernel takes these sizes or this format.
        """
        key = (used.operator, used.dtype, tuple(used.sizes.items()), used.moved, used.work)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._one(used)
        return found.times(used.times)

    def moving(self, moved: float, dtype: str = "bfloat16") -> Price:
        """Bytes over HBM and back, as element-wise work takes them."""
        return self._chain(dtype, moved, 0)

    def host(self, moved: float) -> Price:
        """A stop for the host, with bytes that go there and back."""
        table = _host()
        time = table["round_trip"]["microseconds"] * 1e6 + moved / table["link"]["bytes_per_second"] * 1e12
        return Price(time, 0.0, 0.0, {}, "assumed", "a round trip to the host over PCIe")

    def costs(self) -> Any:
        """The costs behind: ``KernelCosts`` or ``CompilerCosts``."""
        if not self._held:
            if self.implementation == "compiler":
                from trnsim.operators.compiled import CompilerCosts

                self._held.append(CompilerCosts(self.chip, self.lnc))
            elif self.implementation == "kernel":
                from trnsim.operators.kernel_costs import KernelCosts
                from trnsim.operators.store import default_store

                store, _ = default_store()
                self._held.append(KernelCosts(self.chip, self.lnc, store))
            else:
                raise InputError(
                    f"no implementation {self.implementation!r}", operand="implementation", limit=("kernel", "compiler")
                )
        return self._held[0]

    def _one(self, used: Used) -> Price:
        if used.operator == "chain":
            return self._chain(used.dtype, used.moved, used.work)
        if used.operator == "decode_attention" and used.sizes["context"] % _CONTEXT and self.implementation == "kernel":
            return self._between(used)
        return self._formatted(used)

    def _between(self, used: Used) -> Price:
        """Decoding at a context between two whole blocks: the time is linear there."""
        context = used.sizes["context"]
        low = max(context // _CONTEXT * _CONTEXT, 1)
        high = (context // _CONTEXT + 1) * _CONTEXT
        first = self._asked(used.operator, used.dtype, {**used.sizes, "context": low})
        last = self._asked(used.operator, used.dtype, {**used.sizes, "context": high})
        share = (context - low) / (high - low)
        return combined([(first, 1 - share), (last, share)])

    def _formatted(self, used: Used) -> Price:
        """A product whose format this generation has no kernel for takes as long as one in 16 bits."""
        if used.operator != "matmul" or self.implementation != "kernel" or used.dtype in _WIDE:
            return self._asked(used.operator, used.dtype, dict(used.sizes))
        costs = self.costs()
        if used.dtype in costs.contract("matmul", used.dtype).dtypes[costs.generation]:
            return self._asked(used.operator, used.dtype, dict(used.sizes))
        found = self._asked("matmul", _WIDE[0], {**used.sizes, "contract_lhs": 1})
        return replace(found, support="assumed", reason=f"no {used.dtype} kernel on {self.chip}: as {_WIDE[0]}")

    def _asked(self, operator: str, dtype: str, sizes: dict[str, Any]) -> Price:
        key = (operator, dtype, tuple(sizes.items()))
        found = self._known.get(key)
        if found is None and self._kept is not None:
            found = self._kept.get(repr(key))
            if found is not None:
                self._known[key] = found
        if found is None:
            costs = self.costs()
            try:
                ask = costs.once if self.implementation == "kernel" else costs.cost
                cost: OperatorCost = ask(operator, dtype, **self._given(operator, sizes))
            except InputError as error:
                raise UnsupportedError(str(error)) from error
            self.simulated += cost.how == "simulated"
            found = self._known[key] = Price(
                cost.time_ps, cost.hbm_bytes, cost.flops, dict(cost.busy_ps), cost.support, cost.reason,
                operator in _PRODUCTS,
            )  # fmt: skip
            if self._kept is not None:
                self._kept.put(repr(key), found)
        return found

    def save(self) -> None:
        """Keep what was found for other runs."""
        if self._kept is not None:
            self._kept.save()

    def _given(self, operator: str, sizes: dict[str, Any]) -> dict[str, Any]:
        """Sizes as the implementation takes them: the compiler's operators know no ``width`` of their own depth."""
        if self.implementation == "kernel" and "width" in sizes and "depth" in sizes and operator != "rope":
            return {**sizes, "width": 0 if sizes["width"] == sizes["depth"] else sizes["width"]}
        return sizes

    def _chain(self, dtype: str, moved: float, work: float) -> Price:
        """Element-wise work: as long as its bytes take, or its operations on VectorE and ScalarE together."""
        key = ("chain", dtype, moved, work)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._moved(dtype, moved, work)
        return found

    def _moved(self, dtype: str, moved: float, work: float) -> Price:
        itemsize = 4 if dtype == "float32" else 2
        elements = max(moved / (3 * itemsize), 1.0)  # the kernel reads two tensors and writes one
        width = _WIDTH if elements >= _WIDTH else max(round(elements), 1)
        rows = max(round(elements / width), 1)
        one = self._asked("elementwise", dtype, {"rows": rows, "width": width, "residual": 1})
        found = one.times(elements / (rows * width)) if elements > rows * width else one
        each = max(one.busy_ps.get("vector", 0.0), one.busy_ps.get("scalar", 0.0)) / (rows * width)
        engines = _host()["chain"]["engines"]
        busy = dict(found.busy_ps)
        if "vector" in busy and work:
            busy["vector"] = busy["scalar"] = work * each / engines
        time = max(found.time_ps, *busy.values()) if busy else found.time_ps
        reason = "element-wise work by bytes and operations, at the rates of the element-wise kernel"
        return Price(time, moved, work, busy, worst((one.support, "interpolated")), reason)


def combined(shares: list[tuple[Price, float]]) -> Price:
    """A weighted sum of prices."""
    busy: dict[str, float] = {}
    for price, share in shares:
        for name, value in price.busy_ps.items():
            busy[name] = busy.get(name, 0.0) + value * share
    support = worst(tuple(price.support for price, _ in shares))
    reason = next((price.reason for price, _ in shares if price.support == support), "")
    return Price(
        sum(p.time_ps * s for p, s in shares),
        sum(p.hbm_bytes * s for p, s in shares),
        sum(p.flops * s for p, s in shares),
        busy,
        support,
        reason,
        any(p.product for p, _ in shares),
    )


def together(prices: list[Price], saved: float) -> Price:
    """A region of several operators; ``saved``: bytes that stay in SBUF instead of crossing HBM."""
    if len(prices) == 1 and not saved:
        return prices[0]
    total = combined([(price, 1.0) for price in prices])
    busy = dict(total.busy_ps)
    moved = max(total.hbm_bytes - saved, 0.0)
    if total.hbm_bytes and "dma" in busy:
        busy["dma"] *= moved / total.hbm_bytes
    products = sum(price.time_ps for price in prices if price.product)
    rest = [price.time_ps for price in prices if not price.product]
    if products:
        time = max(products, *busy.values()) if busy else products
    elif busy:
        # The longest member without the part of its transfers that is saved.
        whole = max(total.busy_ps.values())
        time = max(*busy.values(), max(rest) * (max(busy.values()) / whole if whole else 1.0))
    else:
        time = max(rest, default=0.0)
    time = min(time, total.time_ps)
    reason = "engines overlap inside a region, and what is between stays in SBUF"
    if total.support != "calibrated" and total.reason:
        reason += f"; {total.reason}"
    return Price(time, moved, total.flops, busy, worst((total.support, "interpolated")), reason, bool(products))


def worst(supports: tuple[str, ...]) -> str:
    """The least that is known."""
    return max((s for s in supports if s in SUPPORT), key=SUPPORT.index, default="calibrated")


@cache
def _host() -> dict[str, Any]:
    with Path(__file__).with_name("host.toml").open("rb") as file:
        return tomllib.load(file)


__all__ = ["Price", "Pricer", "combined", "together", "worst"]
