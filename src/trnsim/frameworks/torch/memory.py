"""HBM over time, from when storages come and go.

A value that only its own region reads stays in SBUF and takes no HBM. So does one that the backward pass needs where
the kernel of the gradient computes it again (norms, activations, attention): then what it is computed from is kept
instead, until that gradient is done. Everything else is there from the call that makes it until PyTorch lets it go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trnsim.frameworks.torch.fusion import Region
from trnsim.frameworks.torch.operators import RANDOM, plain
from trnsim.frameworks.torch.patterns import Pieces, outside
from trnsim.frameworks.torch.report import Holder, MemoryUse
from trnsim.frameworks.torch.stream import KINDS, Graph, Storage, Stream

# Pieces whose gradient computes again what is inside.
_AGAIN = frozenset(
    ["rmsnorm", "layernorm", "elementwise", "rope", "attention", "cross_entropy", "softmax", "log_softmax"]
)  # fmt: skip
_POINTS = 256  # of the curve of a step, at most
_ALL_POINTS = 50_000  # of all steps together; a step has 4 at least


@dataclass(slots=True, eq=False)
class Lives:
    """Of one graph: storages that come and go within it, each with its first and last call."""

    transient: list[tuple[int, int, Storage]] = field(default_factory=list)
    inside: set[int] = field(default_factory=set)
    """Storages that take no HBM."""
    longer: dict[int, int] = field(default_factory=dict)
    """Storages that are kept longer than PyTorch holds them, and until which call."""


def lives(graph: Graph, regions: Iterable[Region], pieces: Pieces) -> Lives:
    """When the storages of a graph are in HBM."""
    found = Lives()
    end = graph.first + len(graph.calls)
    region_of = {call.index: region for region in regions for call in region.calls}
    last_of: dict[int, int] = {}
    for piece in pieces.all:
        if piece.forward is not None:
            last_of[id(piece.forward)] = max(last_of.get(id(piece.forward), 0), piece.calls[-1].index)
    written: dict[int, Storage] = {}
    outlives: set[int] = set()
    for call in graph.calls:
        own, region = pieces.of[call.index], region_of.get(call.index)
        for value in call.outputs:
            written[value.storage.id] = value.storage
        alone = region is not None and own is not None
        again = False
        for user in pieces.users[call.index] if alone else ():
            if region_of.get(user) is region:
                continue
            other = pieces.of[user]
            by_gradient = other is not None and other.forward is own and own is not None and own.kind in _AGAIN
            if by_gradient and plain(call.operator) not in RANDOM:
                again = True
                continue
            alone = False
            break
        if not alone or not pieces.users[call.index]:
            outlives.update(value.storage.id for value in call.outputs)
        elif again and own is not None:
            until = last_of.get(id(own), call.index)
            for value in outside(own.calls)[0]:
                number = value.storage.id
                found.longer[number] = max(found.longer.get(number, 0), until + 1)
    for number, storage in written.items():
        within = storage.born >= graph.first and storage.died is not None and storage.died <= end
        if within and number not in outlives:
            found.inside.add(number)
    for number, storage in written.items():
        if number in found.inside or storage.born < graph.first or storage.died is None or storage.died > end:
            continue
        until = max(storage.died - graph.first, found.longer.get(number, 0))
        found.transient.append((storage.born - graph.first, min(until, len(graph.calls)), storage))
    return found


@dataclass(frozen=True, slots=True)
class Profile:
    """What a graph adds to what is held before it, by kind: points (call, bytes by kind)."""

    points: tuple[tuple[int, tuple[int, ...]], ...]


def profile(found: Lives, calls: int, most: int = _POINTS) -> Profile:
    """The curve of a graph's own storages, of ``most`` points."""
    changes: dict[int, list[int]] = {}
    for born, died, storage in found.transient:
        kind = KINDS.index(storage.kind)
        changes.setdefault(born, [0] * len(KINDS))[kind] += storage.nbytes
        changes.setdefault(max(died, born + 1), [0] * len(KINDS))[kind] -= storage.nbytes
    held = [0] * len(KINDS)
    points: list[tuple[int, tuple[int, ...]]] = []
    for call in sorted(changes):
        held = [a + b for a, b in zip(held, changes[call], strict=True)]
        points.append((min(call, calls), tuple(held)))
    return Profile(tuple(_thinned(points, most)))


def _thinned(points: list[tuple[int, tuple[int, ...]]], most: int) -> list[tuple[int, tuple[int, ...]]]:
    """As many points as a curve needs: of each stretch the highest and the last."""
    if len(points) <= most:
        return points
    stretch = -(-len(points) // (most // 2))
    found = []
    for start in range(0, len(points), stretch):
        some = points[start : start + stretch]
        highest = max(some, key=lambda p: sum(p[1]))
        found += [highest] if highest is some[-1] else [highest, some[-1]]
    return found


def memory(
    stream: Stream,
    graphs: Sequence[Lives],
    ends_ps: Sequence[Sequence[float]],
    starts_ps: Sequence[float],
    capacity: int,
    scope: str,
) -> MemoryUse:
    """Memory of a run.

    Args:
        ends_ps: of each graph, when each call is done, from the start of the step; its length is calls + 1.
        starts_ps: of each step.
        capacity: bytes; ``scope`` says whose.
    """
    inside = {number for found in graphs for number in found.inside}
    within = {storage.id for found in graphs for _, _, storage in found.transient}
    most = min(_POINTS, max(_ALL_POINTS // max(len(stream.steps), 1), 4))
    profiles = [profile(found, len(ends) - 1, most) for found, ends in zip(graphs, ends_ps, strict=True)]
    events: list[tuple[float, tuple[int, ...]]] = []
    lasting = [s for s in stream.storages if s.id not in inside and s.id not in within]

    def moment(clock: int, last: float) -> float:
        low, high = 0, len(stream.steps)
        while low < high:  # the step that runs at this clock
            middle = (low + high) // 2
            if stream.steps[middle].start <= clock:
                low = middle + 1
            else:
                high = middle
        if not low:
            return 0.0
        step = stream.steps[low - 1]
        ends = ends_ps[step.graph]
        return min(starts_ps[low - 1] + ends[min(clock - step.start, len(ends) - 1)], last)

    total = starts_ps[-1] + ends_ps[stream.steps[-1].graph][-1] if stream.steps else 0.0
    spans: list[tuple[float, float | None, Storage]] = []
    for storage in lasting:
        born = moment(storage.born, total)
        died = None if storage.died is None else moment(storage.died, total)
        spans.append((born, died, storage))
        change = [0] * len(KINDS)
        change[KINDS.index(storage.kind)] = storage.nbytes
        events.append((born, tuple(change)))
        if died is not None:
            events.append((died, tuple(-c for c in change)))
    for step, start in zip(stream.steps, starts_ps, strict=True):
        ends, before = ends_ps[step.graph], (0,) * len(KINDS)
        for call, held in profiles[step.graph].points:
            change = [a - b for a, b in zip(held, before, strict=True)]
            events.append((start + ends[min(call, len(ends) - 1)], tuple(change)))
            before = held
    # At one moment what comes is there before what goes is gone.
    events.sort(key=lambda e: (e[0], -sum(e[1])))
    return _curve(events, spans, graphs, stream, starts_ps, ends_ps, capacity, scope)


def _curve(
    events: list[tuple[float, tuple[int, ...]]],
    spans: list[tuple[float, float | None, Storage]],
    graphs: Sequence[Lives],
    stream: Stream,
    starts_ps: Sequence[float],
    ends_ps: Sequence[Sequence[float]],
    capacity: int,
    scope: str,
) -> MemoryUse:
    held = [0] * len(KINDS)
    times: list[float] = []
    curve: list[tuple[int, ...]] = []
    peak, peak_at, at_peak = 0, 0.0, tuple(held)
    for when, change in events:
        held = [a + b for a, b in zip(held, change, strict=True)]
        if times and times[-1] == when:
            curve[-1] = tuple(held)
        else:
            times.append(when)
            curve.append(tuple(held))
        if sum(held) > peak:
            peak, peak_at, at_peak = sum(held), when, tuple(held)
    holders = _holders(peak_at, spans, graphs, stream, starts_ps, ends_ps)
    return MemoryUse(
        capacity_bytes=capacity,
        scope=scope,
        times_ps=tuple(times),
        bytes={kind: tuple(point[place] for point in curve) for place, kind in enumerate(KINDS)},
        peak_bytes=peak,
        peak_ps=peak_at,
        at_peak=dict(zip(KINDS, at_peak, strict=True)),
        holders=holders,
    )


def _holders(
    when: float,
    spans: list[tuple[float, float | None, Storage]],
    graphs: Sequence[Lives],
    stream: Stream,
    starts_ps: Sequence[float],
    ends_ps: Sequence[Sequence[float]],
) -> tuple[Holder, ...]:
    there = [s for born, died, s in spans if born <= when and (died is None or died >= when)]
    step = max((n for n, start in enumerate(starts_ps) if start <= when), default=None)
    if step is not None:
        graph, ends = stream.steps[step].graph, ends_ps[stream.steps[step].graph]
        for born, died, storage in graphs[graph].transient:
            if (
                starts_ps[step] + ends[min(born, len(ends) - 1)]
                <= when
                <= starts_ps[step] + ends[min(died, len(ends) - 1)]
            ):
                there.append(storage)
    sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for storage in there:
        entry = sums[storage.kind, storage.module, storage.operator]
        entry[0] += storage.nbytes
        entry[1] += 1
    largest = sorted(sums.items(), key=lambda item: -item[1][0])
    return tuple(Holder(*key, nbytes, count) for key, (nbytes, count) in largest)
