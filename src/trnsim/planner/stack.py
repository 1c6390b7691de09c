"""Training stacks: what surrounds kernels and exchanges in a training framework, fitted on published steps.

One factor for each kind of work: how much longer products and moves take than their kernels alone (clocks under
sustained load, casts, launches), and how much of an exchange is not hidden. Fitted by generation of chips on published
training steps (``scripts/fit_training.py``), with cross-validated errors; never by model.
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

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.hardware.model import Chip
    from trnsim.workloads.layout import Layout

_FILE = Path(__file__).with_name("training_stacks.toml")


@dataclass(frozen=True)
class TrainingStack:
    """Factors by generation of chips; see the module."""

    name: str
    title: str
    reserve_bytes: int
    generations: Mapping[str, Mapping[str, Any]]

    def _of(self, chip: Chip) -> Mapping[str, Any]:
        found = self.generations.get(chip.generation) or self.generations.get("default")
        if found is None:
            raise InputError(
                f"the stack {self.name} is not for {chip.name}", operand="stack", value=self.name,
                limit=sorted(self.generations),
            )  # fmt: skip
        return found

    def weights(self, chip: Chip, layout: Layout) -> NDArray[np.float64]:
        """Factors by ``KINDS`` of ``training.py``."""
        from trnsim.planner.training import KINDS

        held = self._of(chip)["factors"]
        narrow = bool(layout.weight_dtype) and layout.weight_dtype != layout.dtype
        factors = {**held, "products": held.get("products_narrow", held["products"]) if narrow else held["products"]}
        return np.array([float(factors[kind]) for kind in KINDS])

    def support(self, chip: Chip) -> str:
        return str(self._of(chip)["support"])

    def reasons(self, chip: Chip) -> tuple[str, ...]:
        return (str(self._of(chip)["reason"]),)

    def error_percent(self, chip: Chip) -> float | None:
        found = self._of(chip).get("error_percent")
        return None if found is None else float(found)


@cache
def _file() -> dict[str, Any]:
    with _FILE.open("rb") as file:
        return tomllib.load(file)


def training_stack_names() -> tuple[str, ...]:
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
    return TrainingStack(name, held["title"], int(held["reserve_bytes"]), held["generations"])
