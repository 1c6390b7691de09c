"""The ``compiler`` implementation: operators as the vendor's graph compiler makes them.

Its code is not public, so a class of operators has three constants, fitted on published compiled operators
(``scripts/fit_compiler.py``): a fixed part, and the shares of TensorE's and of HBM's rate that it reaches. The times of
computing and of moving add up as squares: they overlap, but not wholly.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware import load_chip
from trnsim.kernels.contract import Contract, Problem
from trnsim.operators.cost import OperatorCost
from trnsim.operators.kernel_costs import contracts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE = Path(__file__).with_name("compiled.toml")


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
            raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip)
        flops = loaded.core.tensor.flops(dtype)
        if not flops:
            raise InputError(f"TensorE of {chip} has no {dtype}", operand="dtype", value=dtype)
        return cls(flops * cores, loaded.hbm.bytes_per_second * cores / loaded.core_count)


@dataclass(frozen=True)
class Fit:
    """Microseconds of the fixed part; shares of the peak rates of TensorE and HBM."""

    fixed_us: float
    compute: float
    memory: float


def predict(fit: Fit, rates: Rates, flops: float, moved: float) -> float:
    """Microseconds."""
    compute, memory = flops / (fit.compute * rates.flops), moved / (fit.memory * rates.bytes_per_second)
    return fit.fixed_us + math.hypot(compute, memory) * 1e6


class CompilerCosts:
    """Costs on one chip, on logical cores of ``cores`` cores."""

    def __init__(self, chip: str, cores: int = 1) -> None:
        Rates.of(chip, cores, "bfloat16")
        self.chip, self.cores = chip, cores

    def cost(self, operator: str, dtype: str, **given: int | str) -> OperatorCost:
        """What one use costs. ``given``: sizes of the operator.

        Raises:
            InputError: what the operator's contract forbids.
            UnsupportedError: no compiled operator of this class has been published.
        """
        table = _tables().get(operator)
        contract: Contract | None = contracts().get(operator)
        if table is None or contract is None:
            raise UnsupportedError(
                f"no measurements of compiled {operator}", operand="operator", value=operator, limit=sorted(_tables())
            )
        problem: Problem = contract.problem(dtype, self.cores, given)
        fit = Fit(table["fixed_us"], table["compute"], table["memory"])
        flops, moved = contract.flops(problem), contract.bytes(problem)
        time = predict(fit, Rates.of(self.chip, self.cores, dtype), flops, moved)
        chip = load_chip(self.chip)
        here = (chip.name, self.cores, dtype) == (table["chip"], table["cores"], table["dtype"])
        carried = table["source"] if here else f"carried from {table['chip']} ({table['dtype']}) by peak rates"
        return OperatorCost(
            operator=operator,
            implementation="compiler",
            time_ps=time * 1e6,
            hbm_bytes=moved,
            flops=flops,
            sbuf_bytes=0,
            support="what-if" if chip.changes else "calibrated" if here else "extrapolated",
            reason=f"set by the user: {chip.changed}; {carried}" if chip.changes else carried,
            how="fit",
            error_percent=table["error_percent"] if here else None,
        )


@cache
def _tables() -> dict[str, dict[str, Any]]:
    with _FILE.open("rb") as file:
        return tomllib.load(file)
