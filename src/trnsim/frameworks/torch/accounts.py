"""From a stream to a report: each graph is fused and priced once, steps add up."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from trnsim.frameworks.torch.fusion import Region, fuse
from trnsim.frameworks.torch.memory import Lives, lives, memory
from trnsim.frameworks.torch.pricing import Pricer
from trnsim.frameworks.torch.report import Fallback, MemoryUse, RegionCost, StepTime
from trnsim.frameworks.torch.stream import Graph, Stream

SETUP = "setup"


@dataclass(slots=True, eq=False)
class Account:
    """One graph: its regions, when each of its calls is done, and the lives of its storages."""

    regions: list[Region]
    ends_ps: list[float]
    lives: Lives

    @property
    def total_ps(self) -> float:
        return self.ends_ps[-1]


class Accounts:
    """Of all graphs of a stream, made when asked for."""

    def __init__(self, stream: Stream, pricer: Pricer) -> None:
        self.stream, self.pricer = stream, pricer
        self._known: list[Account] = []

    def of(self, number: int) -> Account:
        """That of a graph."""
        while len(self._known) <= number:
            self._known.append(account(self.stream.graphs[len(self._known)], self.pricer))
            self.pricer.save()
        return self._known[number]

    def step_ps(self, step: int) -> float:
        """How long a step took; what came before the first model is no step of the chip."""
        if self.stream.steps[step].name == SETUP:
            return 0.0
        return self.of(self.stream.steps[step].graph).total_ps

    def starts_ps(self) -> list[float]:
        """When each step started."""
        found, now = [], 0.0
        for number in range(len(self.stream.steps)):
            found.append(now)
            now += self.step_ps(number)
        return found

    def steps(self) -> tuple[StepTime, ...]:
        starts = self.starts_ps()
        return tuple(
            StepTime(step.name, step.graph, starts[number], self.step_ps(number))
            for number, step in enumerate(self.stream.steps)
            if step.name != SETUP
        )

    def regions(self) -> tuple[tuple[RegionCost, ...], ...]:
        runs = self.runs()
        return tuple(_costs(self.of(number)) if runs[number] else () for number in range(len(self.stream.graphs)))

    def runs(self) -> tuple[int, ...]:
        counted = Counter(step.graph for step in self.stream.steps if step.name != SETUP)
        return tuple(counted[number] for number in range(len(self.stream.graphs)))

    def fallbacks(self) -> tuple[Fallback, ...]:
        runs = self.runs()
        found: dict[tuple[str, str, str], list[Region]] = defaultdict(list)
        counts: dict[tuple[str, str, str], int] = defaultdict(int)
        times: dict[tuple[str, str, str], float] = defaultdict(float)
        for number in range(len(self.stream.graphs)):
            for region in self.of(number).regions:
                if not region.fallback or not runs[number]:
                    continue
                key = (region.pieces[0].first.operator, region.fallback, region.why)
                found[key].append(region)
                counts[key] += runs[number]
                times[key] += region.price.time_ps * runs[number]
        return tuple(
            Fallback(operator, place, counts[key], times[key], why, regions[0].module, regions[0].pieces[0].first.line)
            for key, regions in found.items()
            for operator, place, why in [key]
        )

    def memory(self, capacity: int, scope: str) -> MemoryUse:
        known = [self.of(number) for number in range(len(self.stream.graphs))]
        return memory(
            self.stream, [a.lives for a in known], [a.ends_ps for a in known], self.starts_ps(), capacity, scope
        )


def account(graph: Graph, pricer: Pricer) -> Account:
    """Fuse and price a graph."""
    regions, pieces = fuse(graph, pricer)
    ends = [0.0] * (len(graph.calls) + 1)
    now = 0.0
    for region in regions:
        now += region.price.time_ps
        for call in region.calls:
            ends[call.index + 1] = now
    for place in range(1, len(ends)):
        ends[place] = max(ends[place], ends[place - 1])
    return Account(regions, ends, lives(graph, regions, pieces))


def _costs(found: Account) -> tuple[RegionCost, ...]:
    costs, now = [], 0.0
    for region in found.regions:
        price = region.price
        costs.append(
            RegionCost(
                kind=region.kind,
                operators=tuple(used.text for used in region.uses),
                aten=tuple(call.operator for call in region.calls),
                module=region.module,
                phase=region.pieces[0].first.phase,
                line=region.pieces[0].first.line,
                start_ps=now,
                time_ps=price.time_ps,
                unfused_ps=region.unfused_ps,
                hbm_bytes=round(price.hbm_bytes),
                flops=round(price.flops),
                busy_ps=price.busy_ps,
                support=price.support,
                reason=price.reason,
            )
        )
        now += price.time_ps
    return tuple(costs)
