"""The ``compiler`` implementation: operators as the vendor's graph compiler makes them.

Its code is not public, so a class of operators has three constants, fitted on published compiled operators
(``scripts/fit_compiler.py``): a fixed part, and the shares of TensorE's and of HBM's rate that it reaches. The times of
computing and of moving add up as squares: they overlap, but not wholly. Only matrix products have been published; other
operators take their constants, and say so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trnsim.errors import InputError
from trnsim.hardware import chip_names, load_chip
from trnsim.operators.cost import OperatorCost, OperatorCosts
from trnsim.operators.work import Operator, arrays, itemsize, many, operator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE = Path(__file__).with_name("compiled.toml")
# Costs that are remembered as they are.
_KNOWN = 100_000


@dataclass(frozen=True)
class Rates:
    """Peak rates of a logical core: operations and bytes of HBM a second."""

    flops: float
    bytes_per_second: float

    @classmethod
    def of(cls, chip: str, cores: int, dtype: str) -> Rates:
        """Of ``cores`` cores of ``chip``, which share its HBM evenly.

        Raises:
            InputError: no NeuronCore, or no such format on its TensorE.
        """
        loaded = load_chip(chip)
        if loaded.core is None:
            having = [name for name in chip_names() if load_chip(name).core is not None]
            raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip, limit=having)
        flops = loaded.core.tensor.flops(dtype)
        if not flops:
            formats = sorted(loaded.core.tensor.products)
            raise InputError(f"TensorE of {chip} has no {dtype}", operand="dtype", value=dtype, limit=formats)
        return cls(flops * cores, loaded.hbm.bytes_per_second * cores / loaded.core_count)


@dataclass(frozen=True)
class Fit:
    """Microseconds of the fixed part; shares of the peak rates of TensorE and HBM."""

    fixed_us: float
    compute: float
    memory: float


def predict(fit: Fit, rates: Rates, flops: Any, moved: Any) -> Any:
    """Microseconds; ``flops`` and ``moved`` are numbers, or arrays of many uses."""
    compute, memory = flops / (fit.compute * rates.flops), moved / (fit.memory * rates.bytes_per_second)
    return fit.fixed_us + np.hypot(compute, memory) * 1e6


class CompilerCosts:
    """Costs on one chip, on logical cores of ``cores`` cores."""

    def __init__(self, chip: str, cores: int = 1) -> None:
        Rates.of(chip, cores, "bfloat16")
        settings = load_chip(chip).logical_core.settings
        if cores not in settings:
            raise InputError(f"{chip} has no logical cores of {cores}", operand="cores", value=cores, limit=settings)
        self.chip, self.cores = chip, cores
        self._known: dict[tuple[Any, ...], OperatorCost] = {}
        self._rates: dict[str, Rates] = {}
        self._loaded = load_chip(chip)
        self._same = self._loaded == load_chip(_table()["chip"])

    def cost(self, name: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs. ``given``: sizes of the operator.

        Raises:
            InputError: no such operator, size or format.
        """
        use = (name, dtype, *given.items())
        found = self._known.get(use)
        if found is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            found = self._known[use] = self._cost(operator(name), dtype, given)
        return found

    def costs(self, name: str, dtype: str, **given: Any) -> OperatorCosts:
        """What many uses cost: as ``cost``, where sizes are arrays of one length, or numbers for all of them."""
        found = operator(name)
        sizes = found.use(arrays(found, given))
        return many(found, dtype, sizes, "compiler", self._time(found, dtype, sizes), self._busy(found, dtype, sizes))

    def _busy(self, found: Operator, dtype: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Picoseconds at the peak rates of TensorE and of HBM."""
        rate = self._rate(found, dtype)
        busy = {"dma": found.bytes(sizes, dtype) / rate.bytes_per_second * 1e12}
        if found.products:
            busy["tensor"] = found.flops(sizes) / rate.flops * 1e12
        return busy

    def _time(self, found: Operator, dtype: str, sizes: Mapping[str, Any]) -> Any:
        # What multiplies nothing leaves TensorE alone.
        flops = found.flops(sizes) if found.products else 0
        return predict(_fit(), self._rate(found, dtype), flops, found.bytes(sizes, dtype))

    def _rate(self, found: Operator, dtype: str) -> Rates:
        itemsize(dtype)
        key = dtype if found.products else "bfloat16"
        if key not in self._rates:
            self._rates[key] = Rates.of(self.chip, self.cores, key)
        return self._rates[key]

    def _cost(self, found: Operator, dtype: str, given: Mapping[str, Any]) -> OperatorCost:
        table = _table()
        sizes = found.use(given)
        time = float(self._time(found, dtype, sizes))
        chip, same = self._loaded, self._same
        here = same and (self.cores, dtype) == (table["cores"], table["dtype"])
        support, reason, error = "calibrated", table["source"], table["error_percent"]
        if found.name != "matmul":
            support, error = "assumed", None
            reason = f"no compiled {found.name} has been published: the constants of matmul on {table['chip']}"
        elif not here:
            support, error = "extrapolated", None
            reason = f"carried from {table['chip']} ({table['dtype']}) by peak rates"
            for check in table["carried"]:
                reason += f"; {check['points']} {check['dtype']} on {check['chip']}: ±{check['error_percent']:.0f} %"
        if chip.changes:
            support, reason, error = "what-if", f"set by the user: {chip.changed}; {reason}", None
        return OperatorCost(
            operator=found.name,
            implementation="compiler",
            time_ps=time * 1e6,
            hbm_bytes=round(float(found.bytes(sizes, dtype))),
            flops=round(float(found.flops(sizes))),
            sbuf_bytes=0,
            support=support,
            reason=reason,
            how="fit",
            error_percent=error,
            busy_ps={n: float(b) for n, b in self._busy(found, dtype, sizes).items()},
        )


def _fit() -> Fit:
    table = _table()
    return Fit(table["fixed_us"], table["compute"], table["memory"])


@cache
def _table() -> dict[str, Any]:
    with _FILE.open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["matmul"]
    return found
