"""The explanation of a kernel call: its path, and the changes that were tried, timed and ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trnsim.explain.path import Path, explain_path
from trnsim.explain.relaxations import RELAXATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trnsim.errors import Location
    from trnsim.explain.case import Attempt, Case, Relaxation


@dataclass(frozen=True)
class Change:
    """A change that was tried: the time of each attempt, and the lines that the best one touches, costliest first.

    ``time_ps`` None: it does not apply to this kernel.
    """

    relaxation: Relaxation
    attempts: list[tuple[str, int]]
    label: str
    time_ps: int | None
    lines: list[tuple[Location, int]]

    def saved_ps(self, before: int) -> int:
        """How much shorter the kernel is with it; negative if it is longer."""
        return before - self.time_ps if self.time_ps is not None else 0


@dataclass(frozen=True)
class Explanation:
    """``changes``: all that were tried, the most helpful first; ``together_ps``: the time with ``combined`` of them."""

    total_ps: int
    path: Path
    changes: list[Change]
    combined: list[str]
    together_ps: int | None


def explain(
    case: Case,
    *,
    top: int = 3,
    relaxations: Sequence[Relaxation] = RELAXATIONS,
    progress: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """Find the path of ``case`` and time it again under each relaxation, then under the ``top`` helpful ones together.

    ``progress`` is told what is tried. Raises what timing raises.
    """
    progress("the critical path")
    path = explain_path(case)
    before = case.total_ps
    on_path: dict[Location, int] = {}
    for share in path.lines:
        if share.line is not None:
            on_path[share.line] = on_path.get(share.line, 0) + share.time_ps
    changes = []
    for relaxation in relaxations:
        progress(relaxation.name)
        changes.append(_tried(case, relaxation, on_path))
    changes.sort(key=lambda c: -c.saved_ps(before))
    helpful = [c for c in changes if c.saved_ps(before) > 0][:top]
    combined: list[str] = []
    changed = case
    if len(helpful) > 1:
        progress("the best together")
        for relaxation in relaxations:
            for change in helpful:
                if change.relaxation is relaxation:
                    found = [a for a in relaxation.attempts(changed) if a.label == change.label]
                    if found:
                        changed = found[0].case
                        combined.append(relaxation.name)
    return Explanation(before, path, changes, combined, changed.total_ps if len(combined) > 1 else None)


def _tried(case: Case, relaxation: Relaxation, on_path: dict[Location, int]) -> Change:
    best: Attempt | None = None
    best_ps = 0
    times = []
    for attempt in relaxation.attempts(case):
        time = attempt.case.total_ps
        times.append((attempt.label, time))
        if best is None or time < best_ps:
            best, best_ps = attempt, time
    if best is None:
        return Change(relaxation, [], "", None, [])
    counts: dict[Location, int] = {}
    for (core, line), count in best.lines.items():
        trace = next(t for t in case.traces if t.core == core)
        counts[trace.lines[line]] = counts.get(trace.lines[line], 0) + count
    lines = sorted(counts.items(), key=lambda item: (-on_path.get(item[0], 0), -item[1], str(item[0])))
    return Change(relaxation, times, best.label, best_ps, lines)
