"""The best layouts of a training run on so many chips: every layout of a space, under memory.

The space: degrees of tensor, pipeline and context parallelism that multiply, with data parallelism, to all ranks;
chunks of stages that divide the layers; expert parallelism that divides the experts; micro-batches of a few sequences;
recomputation as little as fits, since more is never faster; optimiser states shared, or weights too without a pipeline.
Nothing else is left out: the search is exhaustive.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError, UnsupportedError
from trnsim.planner import many
from trnsim.planner.stack import TrainingStack, load_training_stack
from trnsim.planner.training import (
    TrainingEstimate,
    TrainingPlan,
    default_stack,
    estimate,
    prices_of,
    ranks_per_chip,
)
from trnsim.workloads.layout import RECOMPUTATION, Layout

if TYPE_CHECKING:
    from trnsim.hardware.model import System
    from trnsim.planner.pricing import Prices
    from trnsim.workloads.memory import Memory
    from trnsim.workloads.model import Model

# Degrees that may be fixed.
DEGREES = ("tp", "pp", "vpp", "cp", "ep", "dp", "micro_batch", "recompute", "zero")
_MICRO_BATCHES = (1, 2, 4, 8)
_DOUBLED = 20


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is searched for.

    Attributes:
        system, chips: where. ``global_batch`` sequences of ``sequence`` tokens a step.
        fixed: degrees by name (``DEGREES``) that stay as given.
        base: of all layouts: formats and what is not searched.
    """

    model: Model
    system: str | System
    chips: int
    sequence: int
    global_batch: int
    fixed: Mapping[str, int | str] = field(default_factory=dict)
    base: Layout = field(default_factory=Layout)
    implementation: str = ""
    stack: str = ""
    lnc: int | None = None

    def plan(self, layout: Layout) -> TrainingPlan:
        """The plan with a layout."""
        return TrainingPlan(
            model=self.model, system=self.system, layout=layout, sequence=self.sequence,
            implementation=self.implementation, stack=self.stack, lnc=self.lnc,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layout that fits, with the time of a step and the bytes of its fullest rank."""

    layout: Layout
    step_us: float
    memory: float


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        best: estimates, the fastest first. ``candidates``: all layouts that fit, the fastest first.
        evaluated: layouts whose step was computed; ``pruned``: others, by reason.
    """

    wanted: Wanted
    best: tuple[TrainingEstimate, ...]
    candidates: tuple[Candidate, ...]
    evaluated: int
    pruned: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, eq=False)
class Part:
    """What was found in a part of a space, in the order of its layouts.

    ``least``: the layout that needs the least memory, and its bytes; ``unknown``: why layouts have no time.
    """

    candidates: list[Candidate]
    pruned: Counter[str]
    least: tuple[Layout, float] | None
    unknown: UnsupportedError | None


# How parts are searched: all here, one after the other, or elsewhere (``planner.spread``); parts come back in order.
Spread = Callable[[Callable[[Wanted], Part], Sequence[Wanted]], Sequence[Part]]


def search(wanted: Wanted, top: int = 10, spread: Spread | None = None) -> Found:
    """The ``top`` fastest layouts. ``spread``: how the space's parts are searched; the result is the same.

    Raises:
        InputError: chips that are no whole ranks, no layout at all, or none that fits (by how much, and on how many
            chips one would).
        UnsupportedError: an operator or exchange that nothing is known of.
    """
    begin = time.perf_counter()
    system, stack, prices = _parts(wanted)
    found = [part(wanted)] if spread is None else spread(part, split(wanted))
    pruned = sum((one.pruned for one in found), Counter[str]())
    candidates = [candidate for one in found for candidate in one.candidates]
    if not candidates:
        unknown = next((one.unknown for one in found if one.unknown is not None), None)
        if unknown is not None:
            raise unknown
        smallest = min((one.least for one in found if one.least is not None), key=lambda least: least[1], default=None)
        raise _no_plan(wanted, _memory(prices, smallest, stack.reserve_bytes), capacity(system, wanted.lnc), pruned)
    candidates.sort(key=lambda c: (c.step_us, c.memory))
    best = tuple(estimate(wanted.plan(c.layout), stack, prices) for c in candidates[:top])
    return Found(wanted, best, tuple(candidates), len(candidates), dict(pruned), time.perf_counter() - begin)


def part(wanted: Wanted) -> Part:
    """All layouts of a space, or of a part of it, with their times.

    Raises:
        InputError: chips that are no whole ranks.
    """
    system, stack, prices = _parts(wanted)
    pruned: Counter[str] = Counter()
    every = list(layouts(wanted, pruned))
    room = capacity(system, wanted.lnc)
    fit, used, without, more, smallest = many.fitting(prices, every, _order(wanted), room, stack.reserve_bytes)
    told = many.steps(prices, fit, stack.weights(system.chip))
    known = ~np.isnan(told.step_us)
    for reason, count in (
        ("do not fit in memory", without),
        ("recompute more than they need to", more),
        ("use an operator or exchange that nothing is known of", int((~known).sum())),
    ):
        if count:
            pruned[reason] += count
    steps, sizes = told.step_us.tolist(), used.tolist()
    candidates = [Candidate(fit[i], steps[i], sizes[i]) for i in np.flatnonzero(known).tolist()]
    return Part(candidates, pruned, smallest, told.unknown)


def split(wanted: Wanted) -> list[Wanted]:
    """The space in parts, one a degree of tensor parallelism, in order."""
    return [replace(wanted, fixed={**wanted.fixed, "tp": tp}) for tp in _tensor_degrees(wanted)]


def _parts(wanted: Wanted) -> tuple[System, TrainingStack, Prices]:
    plan = wanted.plan(wanted.base)
    system = plan.on
    stack = load_training_stack(wanted.stack or default_stack(system))
    return system, stack, prices_of(plan)


def capacity(system: System, lnc: int | None = None) -> float:
    """Bytes of HBM of a rank."""
    return system.chip.hbm.capacity_bytes / ranks_per_chip(system, lnc)


def ranks_of(system: System, chips: int, lnc: int | None = None) -> int:
    """Ranks of so many chips.

    Raises:
        InputError: no whole number of systems, or of ranks.
    """
    ranks = chips * ranks_per_chip(system, lnc)
    if chips < 1 or ranks != int(ranks):
        raise InputError(f"{chips} chips have no whole number of ranks", operand="--chips", value=chips)
    if chips > system.chip_count and chips % system.chip_count:
        raise InputError(
            f"{system.name} has {system.chip_count} chips; {chips} are no whole systems", operand="--chips",
            value=chips, limit=system.chip_count,
        )  # fmt: skip
    return int(ranks)


def _memory(prices: Prices, smallest: tuple[Layout, float] | None, reserve: float) -> tuple[Layout, Memory] | None:
    """The layout that needs the least memory, and that of its fullest rank."""
    if smallest is None:
        return None
    return smallest[0], max(prices.memory(smallest[0], reserve), key=lambda memory: float(memory.total))


def _order(wanted: Wanted) -> tuple[str, ...]:
    """Recomputations to try, the least first: more than fits is never faster."""
    return (str(wanted.fixed["recompute"]),) if "recompute" in wanted.fixed else RECOMPUTATION


def layouts(wanted: Wanted, pruned: Counter[str]) -> Iterator[Layout]:
    """Layouts that the model allows, recomputation aside; counts what it does not."""
    model, fixed = wanted.model, wanted.fixed
    system = wanted.plan(wanted.base).on
    ranks = ranks_of(system, wanted.chips, wanted.lnc)
    count = len(model.layers)
    experts = next((layer.experts.experts for layer in model.layers if layer.experts), 1)
    for tp in _tensor_degrees(wanted):
        for pp in _choices(fixed, "pp", _divisors(ranks // tp if ranks % tp == 0 else 1)):
            for cp in _choices(fixed, "cp", _powers(min(ranks, wanted.sequence))):
                dp = int(fixed.get("dp", ranks // (tp * pp * cp)))
                if tp * pp * cp * dp != ranks or pp > count:
                    continue
                for vpp in _choices(
                    fixed, "vpp", [1, *(v for v in range(2, count // pp + 1) if count % (pp * v) == 0)]
                ):
                    if vpp > 1 and pp == 1:
                        continue
                    for ep in _choices(fixed, "ep", _powers(experts) if experts > 1 else [1]):
                        for size in _choices(fixed, "micro_batch", _MICRO_BATCHES):
                            for zero in _choices(fixed, "zero", [1, 3] if dp * cp > 1 and pp == 1 else [1]):
                                one = many.made(
                                    wanted.base, tp=tp, pp=pp, cp=cp, dp=dp, vpp=vpp, ep=ep, micro_batch=size,
                                    zero=zero, global_batch=wanted.global_batch,
                                )  # fmt: skip
                                try:
                                    one.check(model, wanted.sequence)
                                except InputError:
                                    pruned["do not divide the model or the batch"] += 1
                                    continue
                                yield one


def _tensor_degrees(wanted: Wanted) -> list[int]:
    """Those within a system."""
    system = wanted.plan(wanted.base).on
    ranks = ranks_of(system, wanted.chips, wanted.lnc)
    near = int(min(ranks, system.chip_count * ranks_per_chip(system, wanted.lnc)))
    return _choices(wanted.fixed, "tp", _divisors(near))


def _choices(fixed: Mapping[str, int | str], name: str, otherwise: list[int] | tuple[int, ...]) -> list[int]:
    return [int(fixed[name])] if name in fixed else list(otherwise)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _powers(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def _no_plan(wanted: Wanted, least: tuple[Layout, Memory] | None, room: float, pruned: Mapping[str, int]) -> InputError:
    system = wanted.plan(wanted.base).on
    if least is None:
        reasons = f"{sum(pruned.values()):,} were tried" if pruned else "their degrees do not multiply to its ranks"
        return InputError(
            f"no layout of {wanted.model.name} on {wanted.chips} chips of {system.name} divides model and batch: "
            f"{reasons}", operand="layout",
        )  # fmt: skip
    layout, memory = least
    over = (float(memory.total) - room) / 2**30
    more = _smallest(wanted)
    hint = f"the smallest number of its chips that holds it is {more:,}" if more else "no number of its chips holds it"
    return InputError(
        f"{wanted.model.name} does not fit on {wanted.chips} chips of {system.name}: the smallest layout "
        f"({describe(layout)}) needs {over:,.1f} GiB more than the {room / 2**30:,.1f} GiB of a rank; {hint}",
        operand="--chips",
        value=wanted.chips,
    )


def _smallest(wanted: Wanted) -> int | None:
    """The first doubling of chips on which a layout fits."""
    system, stack, prices = _parts(wanted)
    room = capacity(system, wanted.lnc)
    chips = wanted.chips
    for _ in range(_DOUBLED):
        chips = chips * 2 if chips < system.chip_count else -(-chips // system.chip_count) * system.chip_count * 2
        if wanted.global_batch % 2 == 0 and chips > wanted.global_batch * system.chip_count * 64:
            return None
        every = list(layouts(replace(wanted, chips=chips), Counter()))
        if many.fitting(prices, every, _order(wanted)[-1:], room, stack.reserve_bytes)[0]:
            return chips
    return None


def describe(layout: Layout) -> str:
    """A layout in words: degrees above 1, micro-batch, recomputation, ZeRO."""
    named = [f"{name}{value}" for name in ("tp", "pp", "vpp", "cp", "ep", "dp") if (value := getattr(layout, name)) > 1]
    more = [f"mb{layout.micro_batch}"]
    more += [] if layout.recompute == "none" else [f"recompute {layout.recompute}"]
    more += ["zero3"] if layout.zero == 3 else []
    return " ".join((*named, *more))
