"""One model and one load on several systems: the best plan of each, and what its tokens cost beside the others'.

Prices compare only within one type and date. Where a system has none of that type and date its cost is refused, and
the price at which its tokens would cost what they cost on each of the others is told instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.planner.economics import PRICE_TYPES
from trnsim.planner.serving import chip_price
from trnsim.planner.serving_search import search

if TYPE_CHECKING:
    from trnsim.hardware.model import Price, System
    from trnsim.planner.serving import ServingEstimate, ServingPlan
    from trnsim.planner.serving_search import Load


@dataclass(frozen=True)
class Basis:
    """The type and date that prices are compared in; date "": no price of this type."""

    type: str
    date: str


@dataclass(frozen=True)
class Compared:
    """A system with its best plan, or why it has none.

    ``usd_per_million``: of output tokens, None without a price of the basis; ``break_even``: dollars an hour of the
    system at which its tokens cost what they do on each system that has one, by name.
    """

    system: str
    best: ServingEstimate | None
    why: str = ""
    price: Price | None = None
    usd_per_million: float | None = None
    break_even: Mapping[str, float] | None = None


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
    plan: ServingPlan, systems: Sequence[str], load: Load, chips: float | None = None, kind: str = "", date: str = ""
) -> tuple[list[Compared], Basis]:
    """The best plan of each system, in the order of ``systems``; a system without one says why.

    Raises:
        InputError: an unknown system, fewer than two, or no price of the type and date that are asked for.
    """
    if len(set(systems)) < 2:
        raise InputError("a comparison is of at least two systems", operand="--systems", value=list(systems))
    loaded = [load_system(name) for name in systems]
    basis = basis_of(loaded, kind, date)
    rows = [_one(plan, system, load, chips, basis) for system in loaded]
    costs = {row.system: row.usd_per_million for row in rows if row.usd_per_million is not None}
    return [_with_break_even(row, costs) for row in rows], basis


def _one(plan: ServingPlan, system: System, load: Load, chips: float | None, basis: Basis) -> Compared:
    mine = replace(plan, system=system.name)
    try:
        best = search(mine, load, chips).best[0]
    except TrnsimError as error:
        return Compared(system.name, None, str(error))
    found = chip_price(system, basis.type, basis.date) if basis.date else None
    if found is None:
        return Compared(system.name, best)
    price, hourly = found
    per_million = hourly / 3600 / best.output_tokens_per_second_per_chip * 1e6
    return Compared(system.name, best, "", price, per_million)


def _with_break_even(row: Compared, costs: Mapping[str, float]) -> Compared:
    if row.best is None or row.usd_per_million is not None or not costs:
        return row
    hourly = row.best.output_tokens_per_second_per_chip * 3600 / 1e6 * load_system(row.system).chip_count
    return replace(row, break_even={name: cost * hourly for name, cost in costs.items()})
