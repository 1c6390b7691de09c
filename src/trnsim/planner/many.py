"""Many training layouts at once, in arrays: memory of the fullest rank, and the time of a step.

As ``Prices.memory`` and ``training.step_line``, of which a test holds both within 1e-9. Layouts that cut a layer alike
share its price; those with as many stages and chunks are put together in one array.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import UnsupportedError
from trnsim.planner.pricing import KIND, KINDS
from trnsim.planner.schedules import counts
from trnsim.planner.training import WIDTH, Pieces, end_line, lines, sends_beside
from trnsim.workloads.memory import stage_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.planner.pricing import Prices
    from trnsim.workloads.layout import Layout

    Floats = NDArray[np.float64]

# Passes of pieces that are held at once.
_AT_ONCE = 200_000


def made(layout: Layout, **changes: Any) -> Layout:
    """``layout`` with other degrees, which are known to be valid: as ``dataclasses.replace`` without its checks."""
    new: Layout = object.__new__(type(layout))
    new.__dict__.update(layout.__dict__, **changes)
    return new


def _grouped(
    layouts: Sequence[Layout], key: Callable[[Layout], Hashable]
) -> list[tuple[NDArray[np.int64], list[Layout]]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number, layout in enumerate(layouts):
        groups[key(layout)].append(number)
    return [(np.array(chosen), [layouts[i] for i in chosen]) for chosen in groups.values()]


def memories(prices: Prices, layouts: Sequence[Layout], reserve: float = 0.0) -> Floats:
    """Bytes of the fullest rank of each layout."""
    found = np.empty(len(layouts))
    for chosen, some in _grouped(layouts, _memory_key):
        found[chosen] = _fullest(prices, some, reserve)
    return found


def _memory_key(one: Layout) -> tuple[Any, ...]:
    """What memory branches on; degrees of data and context parallelism and micro-batches may differ."""
    return (one.tp, one.pp, one.vpp, one.ep, one.zero, one.recompute, one.stages)


def _fullest(prices: Prices, some: Sequence[Layout], reserve: float) -> Floats:
    first = some[0]
    together = made(
        first,
        cp=np.array([one.cp for one in some]),
        dp=np.array([one.dp for one in some]),
        micro_batch=np.array([one.micro_batch for one in some]),
    )
    held = [prices.held(one) for one in some]
    kept, whole, sums = (np.stack([one[part] for one in held]) for part in range(3))
    stages = prices.fullest_stages(first)
    has = prices.stage_layers(first)
    fullest = np.zeros(len(some))
    for stage in stages:
        there = has[stage] > 0
        memory = stage_memory(
            prices.model, together, prices.sequence, stage, reserve,
            parameters=prices.parameters(first, stage),
            kept=kept @ has[stage],
            largest=whole[:, there].max(axis=1, initial=0.0),
            gathered=sums[:, there].max(axis=1, initial=0.0),
        )  # fmt: skip
        fullest = np.maximum(fullest, memory.total)
    return fullest


@dataclass(frozen=True, eq=False)
class Steps:
    """Microseconds of a step of each layout; not a number where an operator or exchange is not known (``unknown``)."""

    step_us: Floats
    unknown: UnsupportedError | None


def steps(prices: Prices, layouts: Sequence[Layout], weights: Floats, schedule: str = "1f1b") -> Steps:
    """The time of a step of each layout.

    Raises:
        InputError: no such schedule.
    """
    found = np.full(len(layouts), np.nan)
    unknown: UnsupportedError | None = None
    for chosen, some in _grouped(layouts, lambda one: (one.pp, one.vpp, one.stages)):
        rows = max(_AT_ONCE // (some[0].pp * some[0].vpp), 1)
        for begin in range(0, len(some), rows):
            part = slice(begin, begin + rows)
            found[chosen[part]], error = _steps(prices, some[part], weights, schedule)
            unknown = error or unknown
    return Steps(found, unknown)


def _steps(
    prices: Prices, some: Sequence[Layout], weights: Floats, schedule: str
) -> tuple[Floats, UnsupportedError | None]:
    found = np.full(len(some), np.nan)
    unknown = None
    priced = []
    for number, layout in enumerate(some):
        try:
            layers, (before, after) = prices.layers(layout), prices.ends(layout)
            send = prices.send(layout)[0] if layout.pp > 1 else 0.0
            priced.append((number, layers, before, after, send, _ends(prices, layout)))
        except UnsupportedError as error:
            unknown = error
    if not priced:
        return found, unknown
    kept = [some[number] for number, *_ in priced]
    chunks = prices.chunks(kept[0])
    each = np.stack([np.stack([cost.times for cost in one[1]]) for one in priced])
    times = np.tensordot(each, chunks, axes=(1, 1)).transpose(0, 3, 1, 2)
    times[:, 0] += np.stack([one[2].times for one in priced])
    times[:, -1] += np.stack([one[3].times for one in priced])
    pieces = times.shape[1]
    passes = _lines(times.reshape(-1, 3, len(KINDS)), weights).reshape(len(kept), pieces, 3, WIDTH)
    full = np.append(weights, 1.0)
    lengths = passes @ full
    for place, (layout, one) in enumerate(zip(kept, priced, strict=True)):
        send = weights[KIND["pp"]] * one[4]
        waits = counts(lengths[place], send, layout.pp, layout.vpp, layout.micro_batches, schedule)
        ends = Pieces(times[place], one[5], one[4], 0.0, frozenset(), ())
        last = end_line(ends, passes[place], weights, layout)
        beside = weights[KIND["sends"]] * one[4] * sends_beside(layout)
        found[one[0]] = (waits.passes * lengths[place]).sum() + waits.sends * send + beside + last @ full
    return found, unknown


def _lines(times: Floats, weights: Floats) -> Floats:
    """``training.lines`` of the pieces of several layouts."""
    return lines(Pieces(times, np.zeros((0, 3, len(KINDS))), 0.0, 0.0, frozenset(), ()), weights)


def _ends(prices: Prices, layout: Layout) -> Floats:
    """[stages, 3, kinds] of what happens once a step."""
    one = layout
    key = (
        "step ends", one.pp, one.vpp, one.stages, one.next_token, one.tp, one.cp, one.dp, one.ep, one.expert_ranks,
        one.zero, one.micro_batches if one.zero >= 2 else 1, one.dtype, one.gradient_dtype, one.master_dtype,
    )  # fmt: skip
    return prices.remembered(key, lambda: prices.step_ends(layout)[0])


def fitting(
    prices: Prices, layouts: Sequence[Layout], order: Sequence[str], room: float, reserve: float
) -> tuple[list[Layout], Floats, int, int, tuple[Layout, float] | None]:
    """Each layout with the least recomputation of ``order`` with which it fits in ``room`` bytes, if it does.

    Returns:
        layouts that fit, their bytes, how many did not fit, how many recompute more than they need to, and the layout
        that needs the least with its bytes.
    """
    if not layouts:
        return [], np.empty(0), 0, 0, None
    tried = [[made(one, recompute=how) for one in layouts] for how in order]
    bytes_ = np.stack([memories(prices, some, reserve) for some in tried])
    fits = bytes_ <= room
    first = np.argmax(fits, axis=0)
    holds: NDArray[np.bool_] = np.any(fits, axis=0)
    chosen = [tried[int(first[i])][i] for i in np.flatnonzero(holds).tolist()]
    used = bytes_[first, np.arange(len(layouts))][holds]
    without = int(first[holds].sum() + len(order) * (~holds).sum())
    more = int((len(order) - 1 - first)[holds].sum())
    least = np.unravel_index(int(np.argmin(bytes_)), bytes_.shape)
    return chosen, used, without, more, (tried[least[0]][least[1]], float(bytes_[least]))
