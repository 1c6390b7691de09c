"""One model and one load on several systems: the best plan of each, and what its tokens cost beside the others'.

Each system is shown twice: *as shipped*, with the vendor's operators (compiled code on Trainium) and the stack that
surrounds them, and with the *best kernel* of each operator, nothing waiting for a host. The truth of tomorrow lies
between.

Prices compare only within one type and date. Where a system has none of that type and date its cost is refused, and
the price at which its tokens would cost what they cost on each of the others is told instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.planner import search as training_search
from trnsim.planner.economics import PRICE_TYPES
from trnsim.planner.serving import ServingEstimate, chip_price
from trnsim.planner.serving_search import search
from trnsim.planner.stack import load_training_stack
from trnsim.planner.training import TrainingEstimate, default_stack

if TYPE_CHECKING:
    from trnsim.hardware.model import Price, System
    from trnsim.planner.search import Wanted
    from trnsim.planner.serving import ServingPlan
    from trnsim.planner.serving_search import Load

Plan = ServingEstimate | TrainingEstimate

# (implementation of operators, stack) by the name of a variant; "": the chip's usual.
VARIANTS = {"as-shipped": ("", ""), "best-kernel": ("best", "ideal")}
SHIPPED = ("as-shipped",)


@dataclass(frozen=True)
class Basis:
    """The type and date that prices are compared in; date "": no price of this type."""

    type: str
    date: str


@dataclass(frozen=True)
class Compared:
    """A system with its best plan, or why it has none.

    ``usd_per_million``: of output tokens when serving, of all when training, None without a price of the basis;
    ``break_even``: dollars an hour of the system at which its tokens cost what they do on each system that has one, by
    name. ``curve``: plans under other loads of which none is both slower and gives less, fastest
    first.
    """

    system: str
    best: Plan | None
    why: str = ""
    price: Price | None = None
    usd_per_million: float | None = None
    break_even: Mapping[str, float] | None = None
    variant: str = "as-shipped"
    curve: tuple[ServingEstimate, ...] = ()

    @property
    def tokens_per_second_per_chip(self) -> float:
        """Of output when serving, of all when training."""
        if isinstance(self.best, TrainingEstimate):
            return self.best.tokens_per_second_per_chip
        return 0.0 if self.best is None else self.best.output_tokens_per_second_per_chip

    @property
    def error_percent(self) -> float | None:
        """Of its time, on published runs that its stack was not fitted on; None: there are none."""
        return None if self.best is None else self.best.error_percent

    @property
    def systems(self) -> float:
        """Whole systems that are paid: all that training fills, what replicas have a share of."""
        assert self.best is not None
        share = self.best.chips / load_system(self.system).chip_count
        return ceil(share) if isinstance(self.best, TrainingEstimate) else share


def basis_of(systems: Sequence[System], kind: str = "", date: str = "") -> Basis:
    """The type and date that most of the systems have a price of; of several the newest.

    Raises:
        InputError: none has a price of the type and date that are asked for.
    """
    votes: dict[tuple[str, str], set[str]] = {}
    for system in systems:
        for price in (*system.prices, *system.chip.prices):
            asked = (kind and price.type != kind) or (date and str(price.date) != date)
            if price.type in PRICE_TYPES and not asked:
                votes.setdefault((price.type, str(price.date)), set()).add(system.name)
    if not votes:
        if kind or date:
            raise InputError(
                f"none of these systems has a price of type {kind or 'any'} and date {date or 'any'}",
                operand="--price", limit=PRICE_TYPES,
            )  # fmt: skip
        return Basis("", "")
    best = max(votes, key=lambda key: (len(votes[key]), key[1], -PRICE_TYPES.index(key[0])))
    return Basis(*best)


def compare(
    plan: ServingPlan,
    systems: Sequence[str],
    load: Load,
    chips: float | None = None,
    kind: str = "",
    date: str = "",
    variants: Sequence[str] = SHIPPED,
    curve: Sequence[int] = (),
) -> tuple[list[Compared], Basis]:
    """The best serving plan of each system, in the order of ``systems``; a system without one says why.

    ``curve``: numbers of users among whose plans the frontier of throughput and latency is told too.

    Raises:
        InputError: an unknown system, fewer than two, or no price of the type and date that are asked for.
    """
    loaded = _loaded(systems)
    basis = basis_of(loaded, kind, date)
    rows = []
    for system in loaded:
        shipped = None
        for variant in variants:
            implementation, stack = VARIANTS[variant]
            mine = replace(plan, system=system.name, stack=stack or plan.stack)
            mine = replace(mine, implementation=implementation or plan.implementation)
            row = replace(_served(mine, system, load, chips, basis), variant=variant)
            row = _no_slower(replace(row, curve=_curve(mine, load, chips, curve)), shipped)
            shipped = row if variant == "as-shipped" else shipped
            rows.append(row)
    return _even(rows), basis


def compare_training(
    wanted: Wanted, systems: Sequence[str], kind: str = "", date: str = "", variants: Sequence[str] = SHIPPED
) -> tuple[list[Compared], Basis]:
    """The fastest layout of each system, on as many chips as ``wanted`` has, in whole systems.

    Raises:
        InputError: an unknown system, fewer than two, or no price of the type and date that are asked for.
    """
    loaded = _loaded(systems)
    basis = basis_of(loaded, kind, date)
    rows = []
    for system in loaded:
        shipped = None
        for variant in variants:
            row = _no_slower(replace(_trained(wanted, system, VARIANTS[variant], basis), variant=variant), shipped)
            shipped = row if variant == "as-shipped" else shipped
            rows.append(row)
    return _even(rows), basis


def _no_slower(row: Compared, shipped: Compared | None) -> Compared:
    """What is shipped is possible: where operators were fitted faster than their kernels alone, it is the best too."""
    if shipped is None:
        return row
    curve = _frontier([*row.curve, *shipped.curve])
    if shipped.tokens_per_second_per_chip <= row.tokens_per_second_per_chip:
        return replace(row, curve=curve)
    return replace(shipped, variant=row.variant, curve=curve)


def _loaded(systems: Sequence[str]) -> list[System]:
    if len(set(systems)) < 2:
        raise InputError("a comparison is of at least two systems", operand="--systems", value=list(systems))
    return [load_system(name) for name in systems]


def _served(mine: ServingPlan, system: System, load: Load, chips: float | None, basis: Basis) -> Compared:
    try:
        best = search(mine, load, chips).best[0]
    except TrnsimError as error:
        return Compared(system.name, None, str(error))
    return _priced(Compared(system.name, best), system, basis)


def _curve(mine: ServingPlan, load: Load, chips: float | None, users: Sequence[int]) -> tuple[ServingEstimate, ...]:
    """The plans, of all layouts and numbers of users, that no other one beats in both TPOT and throughput."""
    found: list[ServingEstimate] = []
    for count in users:
        try:
            found += search(mine, replace(load, users=count, ttft=None, tpot=None), chips).best
        except TrnsimError:
            continue
    return _frontier(found)


def _frontier(found: list[ServingEstimate]) -> tuple[ServingEstimate, ...]:
    """Those that no other one beats in both TPOT and throughput, the shortest TPOT first."""
    ordered = sorted(found, key=lambda e: (e.state.tpot, -e.output_tokens_per_second_per_chip))
    best: list[ServingEstimate] = []
    for one in ordered:
        if not best or one.output_tokens_per_second_per_chip > best[-1].output_tokens_per_second_per_chip:
            best.append(one)
    return tuple(best)


def _trained(wanted: Wanted, system: System, variant: tuple[str, str], basis: Basis) -> Compared:
    implementation, stack = variant
    try:
        surround = load_training_stack(stack or default_stack(system))
        count = max(round(wanted.chips / system.chip_count), 1) * system.chip_count
        if wanted.chips < system.chip_count:
            count = wanted.chips
        mine = replace(
            wanted, system=system.name, chips=count, base=replace(wanted.base, gradient_dtype=surround.gradient_dtype),
            implementation=implementation or wanted.implementation, stack=surround.name,
        )  # fmt: skip
        best = training_search.search(mine, 1).best[0]
    except TrnsimError as error:
        return Compared(system.name, None, str(error))
    return _priced(Compared(system.name, best), system, basis)


def _priced(row: Compared, system: System, basis: Basis) -> Compared:
    found = chip_price(system, basis.type, basis.date) if basis.date else None
    if found is None:
        return row
    price, hourly = found
    assert row.best is not None
    paid = row.systems * system.chip_count / row.best.chips
    return replace(row, price=price, usd_per_million=paid * hourly / 3600 / row.tokens_per_second_per_chip * 1e6)


def _even(rows: Sequence[Compared]) -> list[Compared]:
    """Break-even prices, of each variant against the same of the others."""
    found = []
    for row in rows:
        costs = {
            r.system: r.usd_per_million for r in rows if r.variant == row.variant and r.usd_per_million is not None
        }
        if row.best is None or row.usd_per_million is not None or not costs:
            found.append(row)
            continue
        hourly = row.tokens_per_second_per_chip * row.best.chips * 3600 / 1e6 / row.systems
        found.append(replace(row, break_even={name: cost * hourly for name, cost in costs.items()}))
    return found
