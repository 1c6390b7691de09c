"""Moving a served model from one system to others: what its tokens cost there, within one price type and date.

Each pair of systems is compared on a basis of its own, since few prices of the Inferentia and Trainium lines share one:
the first type of ``PREFERRED`` that both have a price of on the same day. Where they share none, costs are refused and
the price is told at which a token would cost on the target what it does on the source, for each price of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trnsim.errors import InputError, TrnsimError
from trnsim.hardware import load_system
from trnsim.planner.comparison import Basis
from trnsim.planner.serving_search import search

if TYPE_CHECKING:
    from trnsim.hardware.model import System
    from trnsim.planner.serving import ServingEstimate, ServingPlan
    from trnsim.planner.serving_search import Load

PREFERRED = ("on-demand", "capacity-block", "spot", "reserved-3y")
TARGETS = ("trn1.32xlarge", "trn2.48xlarge", "trn2u.48xlarge", "trn3-ultraserver-gen2")


@dataclass(frozen=True)
class Money:
    """Dollars an hour of a system, and of a million output tokens, on the source and on the target."""

    basis: Basis
    source_hourly: float
    target_hourly: float
    source_million: float
    target_million: float


@dataclass(frozen=True)
class Move:
    """A target with its best plan, or why it has none.

    Attributes:
        money: None where the two share no price type and date; ``others``: further bases that they share.
        break_even: without money: dollars an hour of the target at which its tokens cost as much as on the source at
            each of the source's newest prices, by type.
    """

    system: str
    best: ServingEstimate | None
    why: str = ""
    money: Money | None = None
    others: tuple[Basis, ...] = ()
    break_even: Mapping[Basis, float] | None = None


@dataclass(frozen=True)
class Migration:
    """The source with its best plan, and the moves."""

    source: str
    best: ServingEstimate
    moves: tuple[Move, ...]


def shared_bases(source: System, target: System, kind: str = "") -> list[Basis]:
    """The price types and dates that both have, the preferred first, the newest of each.

    ``kind``: only this type.
    """
    found = []
    for wanted in (kind,) if kind else PREFERRED:
        dates = {p.date for p in source.prices if p.type == wanted} & {
            p.date for p in target.prices if p.type == wanted
        }
        if dates:
            found.append(Basis(wanted, max(dates)))
    return found


def migrate(plan: ServingPlan, source: str, targets: Sequence[str], load: Load, kind: str = "") -> Migration:
    """The best plan on ``source`` and on each of ``targets``, and what their tokens cost.

    Raises:
        InputError: unknown systems; no plan of the source, or no price of it.
    """
    here = load_system(source)
    if not here.prices:
        raise InputError(
            f"{here.name} has no public price: what it costs now is not known", operand="--from", value=source
        )
    if kind and here.price(kind) is None:
        known = sorted({price.type for price in here.prices})
        raise InputError(f"{here.name} has no {kind} price", operand="--price", value=kind, limit=known)
    best = search(replace(plan, system=here.name), load).best[0]
    return Migration(here.name, best, tuple(_move(plan, here, best, name, load, kind) for name in targets))


def _move(plan: ServingPlan, here: System, best: ServingEstimate, target: str, load: Load, kind: str) -> Move:
    there = load_system(target)
    try:
        found = search(replace(plan, system=there.name), load).best[0]
    except TrnsimError as error:
        return Move(there.name, None, str(error))
    bases = shared_bases(here, there, kind)
    if bases:
        basis = bases[0]
        hourly = _hourly(here, basis), _hourly(there, basis)
        costs = _million(here, best, hourly[0]), _million(there, found, hourly[1])
        return Move(there.name, found, "", Money(basis, *hourly, *costs), tuple(bases[1:]))
    even = {}
    for type_ in (kind,) if kind else PREFERRED:
        price = here.price(type_)
        if price is not None:
            cost = _million(here, best, price.usd_per_hour)
            even[Basis(type_, price.date)] = (
                cost * 3600 / 1e6 * found.output_tokens_per_second_per_chip * there.chip_count
            )
    return Move(there.name, found, break_even=even)


def _hourly(system: System, basis: Basis) -> float:
    price = system.price(basis.type, date=basis.date)
    assert price is not None
    return price.usd_per_hour


def _million(system: System, best: ServingEstimate, hourly: float) -> float:
    """Dollars of a million output tokens; replicas pay their share of a system's chips."""
    return hourly / system.chip_count / 3600 / best.output_tokens_per_second_per_chip * 1e6
