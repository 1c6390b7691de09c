"""An explanation for a terminal, and as JSON."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from rich.text import Text

from trnsim.explain.path import SPILL_LINE, text_of
from trnsim.report.terminal import describe_arguments, wrap
from trnsim.units import format_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from trnsim.errors import Location
    from trnsim.explain.explanation import Change, Explanation
    from trnsim.explain.path import Share
    from trnsim.report.call import KernelCall

SCHEMA = "trnsim.explain/1"
SHARES_SHOWN, LINES_SHOWN = 10, 3
NAME_SHOWN = 16  # letters of a file's name


def explain_json(call: KernelCall, found: Explanation, top: int) -> dict[str, Any]:
    """The explanation as plain values: schema ``trnsim.explain/1``. Times are microseconds."""
    path = found.path
    helpful = _helpful(found)[:top]
    return {
        "schema": SCHEMA,
        "kernel": call.kernel,
        "chip": call.chip,
        "cores": call.cores,
        "arguments": list(call.arguments),
        "schedule": call.schedule,
        "support": call.support,
        "time_us": found.total_ps / 1e6,
        "path": {
            "time_us": path.total_ps / 1e6,
            "reasons": [_share(s, path.total_ps) for s in path.reasons],
            "lines": [_share(s, path.total_ps) for s in path.lines],
            "held_up_by": path.links,
            "pieces": [
                {
                    "engine": p.engine, "core": p.core, "what": p.what, **_line(p.line), "link": p.link,
                    "start_us": p.start_ps / 1e6, "end_us": p.end_ps / 1e6,
                }
                for p in path.pieces
            ],
        },
        "best": [c.relaxation.name for c in helpful],
        "together": {"changes": found.combined, "time_us": found.together_ps / 1e6} if found.together_ps else None,
        "changes": [
            {
                "name": c.relaxation.name,
                "advice": c.relaxation.advice,
                "meaning": c.relaxation.meaning,
                "applies": c.time_ps is not None,
                "attempt": c.label,
                "time_us": None if c.time_ps is None else c.time_ps / 1e6,
                "saved_us": None if c.time_ps is None else c.saved_ps(found.total_ps) / 1e6,
                "attempts": {label: time / 1e6 for label, time in c.attempts},
                "lines": [{**_line(line), "instructions": count} for line, count in c.lines],
            }
            for c in found.changes
        ],
    }  # fmt: skip


def render_explanation(call: KernelCall, found: Explanation, top: int, console: Console) -> None:
    """Print the explanation; lines are at most as wide as the console, and 100 columns."""
    width = min(console.width, 100)

    def show(*parts: str | tuple[str, str]) -> None:
        line = Text.assemble(*parts)
        line.rstrip()
        line.truncate(width)
        console.print(line, soft_wrap=True, highlight=False)

    cores = f"{call.cores} core" + ("s" if call.cores != 1 else "")
    what = f"{call.chip}, {cores}, {describe_arguments(call.arguments)}".removesuffix(", ")
    show((call.kernel, "bold"), f"   {what}   ", (format_time(found.total_ps), "bold"), f"  ({call.support})")
    _show_path(found, show)
    show()
    helpful = _helpful(found)[:top]
    show(("  what would help most" if helpful else "  nothing that was tried helps", "bold"))
    for number, change in enumerate(helpful, 1):
        saved = change.saved_ps(found.total_ps)
        time = format_time(change.time_ps or 0)
        show(
            f"  {number}  ", (f"{change.relaxation.name:<22}", "bold"),
            f"{format_time(saved):>9} less (-{saved / found.total_ps:.1%}): {time}",
        )  # fmt: skip
        for part in wrap(f"{change.relaxation.advice} (tried: {change.label})", width - 5):
            show(f"     {part}")
        for line, count in change.lines[:LINES_SHOWN]:
            plural = "s" if count != 1 else ""
            show(f"     {_where(line):<21} {count:>6,} instruction{plural:<1}  ", (text_of(line), "dim"))
        if len(change.lines) > LINES_SHOWN:
            show(f"     and {len(change.lines) - LINES_SHOWN} more lines")
    if found.together_ps is not None:
        saved = found.total_ps - found.together_ps
        text = f"{' + '.join(found.combined)}: {format_time(found.together_ps)} ({-saved / found.total_ps:+.1%})"
        show(("  together  ", "dim"), text)
    for number, part in enumerate(wrap(_others(found, helpful), width - 14)):
        show((f"  {'' if number else 'also tried':<12}", "dim"), part)


def _show_path(found: Explanation, show: Any) -> None:
    path = found.path
    show()
    show(("  critical path", "bold"), f", {format_time(path.total_ps)} from the first instruction to the last result")
    show((f"  {'%':>5} {'time':>9}  {'engine':<9}{'what':<22}{'line':<21}", "dim"))
    for share in path.lines[:SHARES_SHOWN]:
        show(
            f"  {100 * share.time_ps / path.total_ps:>5.1f} {format_time(share.time_ps):>9}  {share.engine:<9}"
            f"{share.what:<22}{_where(share.line):<21} ",
            (text_of(share.line) if share.line else "", "dim"),
        )
    rest = sum(s.time_ps for s in path.lines[SHARES_SHOWN:])
    if rest:
        show(f"  {100 * rest / path.total_ps:>5.1f} {format_time(rest):>9}  {len(path.lines) - SHARES_SHOWN} others")
    if path.links:
        held = ", ".join(f"{name} {f'{count:,} times' if count > 1 else 'once'}" for name, count in path.links.items())
        show(("  held up by  ", "dim"), held)
    show()
    show(("  from the end to the start", "bold"))
    for low, high, shares in path.windows:
        parts = [
            f"{_doing(s)} {_where(s.line)} {100 * s.time_ps / (high - low):.0f} %"
            for s in shares[:3]
            if s.time_ps >= 0.1 * (high - low)
        ]
        begin = format_time(low) if low else "0"
        for number, part in enumerate(wrap(", ".join(parts), 74)):
            span = "" if number else f"{format_time(high):>9} .. {begin:<9}"
            show(f"  {span:<22} {part}")


def _others(found: Explanation, helpful: Sequence[Change]) -> str:
    """What did not get among the best, with its effect."""
    parts = []
    for change in found.changes:
        if change in helpful:
            continue
        if change.time_ps is None:
            parts.append(f"{change.relaxation.name} (does not apply)")
        else:
            effect = -change.saved_ps(found.total_ps) / found.total_ps
            parts.append(f"{change.relaxation.name} ({f'{effect:+.1%}' if abs(effect) >= 5e-4 else 'no effect'})")
    return ", ".join(parts)


def _helpful(found: Explanation) -> list[Change]:
    return [c for c in found.changes if c.saved_ps(found.total_ps) > 0]


def _share(share: Share, total: int) -> dict[str, Any]:
    line = _line(share.line) if share.line is not None else {}
    return {
        "engine": share.engine, "what": share.what, **line, "time_us": share.time_ps / 1e6,
        "fraction": share.time_ps / total if total else 0.0, "pieces": share.pieces,
    }  # fmt: skip


def _line(line: Location) -> dict[str, Any]:
    return {"file": line.file, "line": line.line, "function": line.function, "text": text_of(line)}


def _where(line: Location | None) -> str:
    if line is None:
        return ""
    if line == SPILL_LINE:
        return "spill"
    name = FilePath(line.file).name
    return f"{name if len(name) <= NAME_SHOWN else '...' + name[3 - NAME_SHOWN :]}:{line.line}"


def _doing(share: Share) -> str:
    return share.what if share.what.startswith(share.engine) else f"{share.engine} {share.what}"
