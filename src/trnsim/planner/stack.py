"""Training stacks: what surrounds kernels and exchanges in a training framework, fitted on published steps.

A stack has a factor for each kind of computation: how much longer it takes than its kernels alone (clocks under
sustained load, launches, casts); and for each kind of exchange the share that computation cannot hide. Fitted for a
framework on published training steps (``scripts/fit_training.py``), with the errors on models that the fit did not see;
products by generation of chips, the rest for all; never by model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError
from trnsim.planner.pricing import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.model import Chip

FILE = Path(__file__).with_name("training_stacks.toml")
BY_GENERATION = ("products", "narrow")


@dataclass(frozen=True)
class TrainingStack:
    """Factors of a framework; see the module.

    Attributes:
        family: of the chips that it is for: ``nvidia``, ``trainium``, or ``""`` for all.
        factors: by kind; ``generations``: those of products by generation of chips, which go before.
        errors: percent, on models that the fit did not see, by generation; ``errors_experts``: on those with experts.
        gradient_dtype: of the gradients, as its recipes have them.
        reserve_bytes: of a rank's memory, that the runtime takes.
    """

    name: str
    title: str
    family: str
    support: str
    reason: str
    factors: Mapping[str, float]
    generations: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, float]
    errors_experts: Mapping[str, float]
    gradient_dtype: str
    reserve_bytes: int

    def weights(self, chip: Chip) -> NDArray[np.float64]:
        """Factors by ``pricing.KINDS``.

        Raises:
            InputError: the stack is for other chips.
        """
        if self.family and self.family != chip.family:
            raise InputError(
                f"the stack {self.name} is for chips of {self.family}, not {chip.name}", operand="stack",
                value=self.name,
                limit=[name for name in training_stack_names() if load_training_stack(name).family == chip.family],
            )  # fmt: skip
        return weights(self.factors, self.generations, chip.generation)

    def known(self, chip: Chip) -> tuple[str, str]:
        """How the factors are known for a chip, and why."""
        if self.support == "assumed" or not self.generations or chip.generation in self.generations:
            return self.support, self.reason
        held = ", ".join(self.generations)
        return "extrapolated", f"{self.reason}; factors of products as on {held}"

    def error_percent(self, chip: Chip, experts: bool = False) -> float | None:
        """Mean error on models (with experts, or without) that the fit did not see, on chips of this generation."""
        return (self.errors_experts if experts else self.errors).get(chip.generation)


def weights(
    factors: Mapping[str, float], generations: Mapping[str, Mapping[str, float]], generation: str
) -> NDArray[np.float64]:
    """Factors by ``pricing.KINDS``; a generation without its own has the mean of the others."""
    found = dict(factors)
    for kind in BY_GENERATION:
        held = generations.get(generation, {}).get(kind)
        if held is None and (others := [g[kind] for g in generations.values() if kind in g]):
            held = float(np.mean(others))
        if held is not None:
            found[kind] = held
    return np.array([float(found[kind]) for kind in KINDS])


@cache
def _file() -> dict[str, Any]:
    with FILE.open("rb") as file:
        return tomllib.load(file)


def training_stack_names() -> tuple[str, ...]:
    """All stacks."""
    return tuple(_file())


@cache
def load_training_stack(name: str) -> TrainingStack:
    """A training stack by name.

    Raises:
        InputError: there is none.
    """
    held = _file().get(name)
    if held is None:
        raise InputError(f"no training stack {name!r}", operand="stack", value=name, limit=sorted(_file()))
    return TrainingStack(
        name=name,
        title=held["title"],
        family=held["family"],
        support=held["support"],
        reason=held["reason"],
        factors=held["factors"],
        generations=held.get("generations", {}),
        errors=held.get("error_percent", {}),
        errors_experts=held.get("error_experts_percent", {}),
        gradient_dtype=held["gradient_dtype"],
        reserve_bytes=int(held["reserve_bytes"]),
    )
