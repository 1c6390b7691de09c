"""Training stacks: what surrounds kernels and exchanges in a training framework, fitted on published steps.

A stack has a factor for each kind of computation: how much longer it takes than its kernels alone (clocks under
sustained load, launches, casts); for each kind of exchange the share that computation cannot hide (``late``: how long
the rest of it takes beside its time alone); and what a host does once a step. Fitted for a framework on published
training steps (``scripts/fit_training.py``), with the errors on models that the fit did not see; products by
architecture of chips, the rest for all; never by model.

Products run as fast as power lets them: chips of one architecture need the same energy for an operation, so that under
sustained load their factor goes with operations a second and watt (``strain``).
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
from trnsim.hardware import load_chip
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
# What power limits, and the chip of each architecture that factors are of.
STRAINED = ("products", "narrow")
REFERENCE = {"ampere": "a100", "hopper": "h100", "blackwell": "gb200"}


def architecture(chip: Chip) -> str:
    """Of a chip: its generation, less what its later versions add (``blackwell ultra``)."""
    return (chip.generation or chip.name).split()[0]


def strain(chip: Chip) -> float:
    """Operations a second and watt beside those of the reference of the architecture; 1 where power is not known."""
    reference = REFERENCE.get(architecture(chip))
    watts = chip.power.tdp_watts
    if reference is None or not watts or "bfloat16" not in chip.flops:
        return 1.0
    other = load_chip(reference)
    return chip.flops["bfloat16"] / watts / (other.flops["bfloat16"] / (other.power.tdp_watts or watts))


@dataclass(frozen=True)
class TrainingStack:
    """Factors of a framework; see the module.

    Attributes:
        family: of the chips that it is for: ``nvidia``, ``trainium``, or ``""`` for all.
        factors: by kind; ``generations``: those of products by architecture of chips, which go before.
        errors: percent, on models that the fit did not see, by architecture; ``errors_experts``: on those with experts.
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
        return weights(self.factors, self.generations, architecture(chip), strain(chip))

    def known(self, chip: Chip) -> tuple[str, str]:
        """How the factors are known for a chip, and why."""
        if self.support == "assumed" or not self.generations or architecture(chip) in self.generations:
            return self.support, self.reason
        held = ", ".join(self.generations)
        return "extrapolated", f"{self.reason}; factors of products as on {held}"

    def error_percent(self, chip: Chip, experts: bool = False) -> float | None:
        """Mean error on models (with experts, or without) that the fit did not see, on chips of this architecture."""
        return (self.errors_experts if experts else self.errors).get(architecture(chip))


def weights(
    factors: Mapping[str, float], generations: Mapping[str, Mapping[str, float]], generation: str, strained: float = 1.0
) -> NDArray[np.float64]:
    """Factors by ``pricing.KINDS``; an architecture without its own has the mean of the others."""
    found = dict(factors)
    for kind in BY_GENERATION:
        held = generations.get(generation, {}).get(kind)
        if held is None and (others := [g[kind] for g in generations.values() if kind in g]):
            held = float(np.mean(others))
        if held is not None:
            found[kind] = held
    return np.array([float(found[kind]) for kind in KINDS]) * strains(strained)


def strains(strained: float) -> NDArray[np.float64]:
    """``strained`` for what power limits, 1 for other kinds."""
    return np.array([strained if kind in STRAINED else 1.0 for kind in KINDS])


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
