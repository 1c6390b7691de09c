"""Constants of serving stacks that were fitted on published runs (``serving_stacks.toml``)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trnsim.planner.serving_costs import Parts, computed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from trnsim.hardware.model import Chip
    from trnsim.hardware.stack import Stack
    from trnsim.planner.serving import ServingPlan

FILE = Path(__file__).with_name("serving_stacks.toml")


@dataclass(frozen=True, kw_only=True)
class StackFit:
    """Factors of operators' work, of their fixed times and of exchanges; host time a step; how well that is known.

    ``error_percent``: mean absolute error of TPOT over ``cases`` published configurations, each left out of the fit.
    ``kind``, ``format`` and ``generation`` (of the chip) say what it is for; "": any. ``host_ms`` None: what the stack
    of the catalogue says, since the fit is to times of the device. ``carried``: from an older generation; then no error
    is known.
    """

    stack: str
    kind: str
    format: str
    work: float
    fixed: float
    exchanges: float
    host_ms: float | None
    cases: int
    error_percent: float | None
    generation: str = ""
    carried: bool = False

    @property
    def factors(self) -> Parts:
        return Parts(self.work, self.fixed, self.exchanges)


@cache
def stack_fits() -> tuple[StackFit, ...]:
    """All that were fitted."""
    with FILE.open("rb") as file:
        return tuple(StackFit(**{"host_ms": None, **values}) for values in tomllib.load(file)["fits"])


def product_format(plan: ServingPlan, chip: Chip) -> str:
    """What most products are computed in, and from which stored format if from another."""
    formats = plan.formats
    stored = formats.get("experts" if plan.model.mixture else "mlp", formats.get("default", "bfloat16"))
    dtype, widened = computed(chip, stored)
    return f"{stored} in {dtype}" if widened else dtype


def stack_fit(stack: Stack, plan: ServingPlan, chip: Chip) -> StackFit | None:
    """The stack's own fit; else that of its kind of model and format, or of what contains it; None: there is none."""
    own = stack.fit
    if own is not None:
        host = None if own.host_ps is None else own.host_ps / 1e9
        return StackFit(
            stack=stack.name, kind="", format="", work=own.work, fixed=own.fixed, exchanges=own.exchanges, host_ms=host,
            cases=own.cases, error_percent=100 * own.error,
        )  # fmt: skip
    kind = "experts" if plan.model.mixture else "dense"
    every = [one for one in stack_fits() if one.stack == stack.name]
    mine = [one for one in every if one.generation in ("", chip.generation)]
    if not mine and chip.core is not None:
        older = sorted(one.generation for one in every if one.generation < chip.generation)
        mine = [
            replace(one, carried=True, error_percent=None) for one in every if older and one.generation == older[-1]
        ]
    for wanted in ((kind, product_format(plan, chip)), (kind, ""), ("", "")):
        for one in mine:
            if (one.kind, one.format) == wanted:
                return one
    return None
