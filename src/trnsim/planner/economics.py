"""What a training run costs: money by the catalogue's prices, energy, and time with failures.

A price is of one type on one day; there is none to compare with another. Whole systems are paid. Energy is power times
time, which nobody measured: assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from trnsim.errors import InputError, UnsupportedError
from trnsim.planner.goodput import LongRun, long_run, system_mtbf

if TYPE_CHECKING:
    from trnsim.hardware.model import Price, System
    from trnsim.planner.training import TrainingEstimate

PRICE_TYPES = ("capacity-block", "on-demand", "reserved-3y", "spot", "rental-3y")
HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Cost:
    """Of a training run. ``of``: ``system`` or ``chip``, which ``price`` is of; ``units`` of these are paid."""

    usd: float
    usd_per_million_tokens: float
    price: Price
    of: str
    units: float


@dataclass(frozen=True)
class Energy:
    """Of a training run: power of the chips alone, or with their share of the servers (``all_in``)."""

    kwh: float
    watts_per_chip: float
    all_in: bool


@dataclass(frozen=True)
class Run:
    """A whole run: steps, seconds without failures, and with them (None: not asked for)."""

    tokens: float
    steps: int
    seconds: float
    long: LongRun | None

    @property
    def wall_seconds(self) -> float:
        return self.seconds if self.long is None else self.long.wall


def run_of(
    found: TrainingEstimate, tokens: float, mtbf_hours: float | None = None, checkpoint_seconds: float = 0.0,
    restart_seconds: float = 0.0,
) -> Run:  # fmt: skip
    """A run of so many tokens; ``mtbf_hours``: between failures of one chip.

    Raises:
        InputError: no tokens, or failures leave no time to work.
    """
    if tokens <= 0:
        raise InputError("a run trains on tokens", operand="--tokens", value=tokens)
    steps = ceil(tokens / found.tokens)
    seconds = steps * found.step_us / 1e6
    long = None
    if mtbf_hours is not None:
        between = float(system_mtbf(found.chips, mtbf_hours * HOUR))
        long = long_run(seconds, checkpoint_seconds, between, restart_seconds)
    return Run(tokens, steps, seconds, long)


def price_of(system: System, type: str | None = None, date: str = "") -> tuple[Price, str]:
    """(the newest price of a type, ``system`` or ``chip``); without a type, the first of ``PRICE_TYPES`` that there is.

    Raises:
        UnsupportedError: there is none.
    """
    for wanted in (type,) if type else PRICE_TYPES:
        price = system.price(wanted, date=date)
        if price is not None:
            return price, "system"
        held = [p for p in system.chip.prices if p.type == wanted and (not date or p.date == date)]
        if held:
            return max(held, key=lambda p: (p.date, -p.usd_per_hour)), "chip"
    known = sorted({f"{p.type} ({p.date})" for p in (*system.prices, *system.chip.prices)})
    what = f"{type} price" if type else "public price"
    raise UnsupportedError(
        f"{system.name} has no {what}{f' of {date}' if date else ''}: its cost is not known", operand="--price",
        limit=known or None,
    )  # fmt: skip


def cost_of(found: TrainingEstimate, run: Run, type: str | None = None, date: str = "") -> Cost:
    """What a run costs.

    Raises:
        UnsupportedError: the system has no such price.
    """
    system = found.plan.on
    price, of = price_of(system, type, date)
    units = float(ceil(found.chips / system.chip_count)) if of == "system" else found.chips
    usd = price.usd_per_hour * units * run.wall_seconds / HOUR
    return Cost(usd, usd / run.tokens * 1e6, price, of, units)


def break_even(found: TrainingEstimate, run: Run, usd_per_million_tokens: float) -> float:
    """Dollars an hour of one system at which a run costs so much a million tokens."""
    system = found.plan.on
    units = ceil(found.chips / system.chip_count)
    return usd_per_million_tokens * run.tokens / 1e6 / (units * run.wall_seconds / HOUR)


def energy_of(found: TrainingEstimate, run: Run) -> Energy | None:
    """Power times time; None: the catalogue has no power of the chip."""
    power = found.plan.on.chip.power
    watts = power.all_in_watts or power.tdp_watts
    if watts is None:
        return None
    return Energy(watts * found.chips * run.wall_seconds / HOUR / 1e3, watts, power.all_in_watts is not None)
