"""The report that fits a screen. Colours and block characters only on a terminal; plain ASCII in pipes and files."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from trnsim.report.summary import ENGINE_NAMES, summarize
from trnsim.units import format_bytes, format_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from trnsim.report.call import KernelCall
    from trnsim.report.summary import EngineUse, MemoryPeak, Summary

MAX_WIDTH = 100
LINES_SHOWN = 10
FINDINGS_SHOWN = 6
HOLDERS_SHOWN = 3
LABEL = 12  # columns of the label at the left, with the indent
GLUE = "\x1f"  # a space at which no line is broken

SUPPORT_STYLES = {
    "calibrated": "green",
    "interpolated": "cyan",
    "extrapolated": "yellow",
    "assumed": "yellow",
    "what-if": "magenta",
}
SEVERITY_STYLES = {"error": "bold red", "warning": "yellow"}


def render_terminal(calls: Sequence[KernelCall], console: Console) -> None:
    """Print a report of each call to ``console``; no line is longer than its width (at most 100 columns are used)."""
    for i, call in enumerate(calls):
        if i:
            console.print()
        for line in _Page(summarize(call), min(console.width, MAX_WIDTH), plain=not console.is_terminal).lines():
            line.rstrip()
            line.truncate(console.width)
            console.print(line, soft_wrap=True, highlight=False)


class _Page:
    """The lines of one call's report, for one width."""

    def __init__(self, summary: Summary, width: int, *, plain: bool) -> None:
        self.summary = summary
        self.call = summary.call
        self.width = width
        self.plain = plain

    def lines(self) -> list[Text]:
        return [
            *self._headline(),
            *self._facts(),
            Text(),
            *self._engines(),
            *self._memory(),
            *self._source_lines(),
            *self._findings(),
            *self._footer(),
        ]

    def _text(self, value: str) -> str:
        """``value`` as the stream can show it: names in sources may be anything, a pipe's encoding may be ASCII."""
        return value.encode("ascii", "replace").decode() if self.plain else value

    def _fit(self, value: str, width: int) -> str:
        value = " ".join(self._text(value).split())
        return value if len(value) <= width else value[: max(width - 3, 0)] + "..."[: max(width, 0)]

    def _row(self, label: str, value: str, style: str = "") -> list[Text]:
        """A labelled value, wrapped under itself."""
        room = self.width - LABEL
        rows = []
        for i, part in enumerate(wrap(self._text(value), room)):
            rows.append(Text.assemble((f"  {label if not i else '':<{LABEL - 2}}", "dim"), (part, style)))
        return rows

    def _headline(self) -> list[Text]:
        call = self.call
        error = f", +-{call.error_percent:.0f} %" if call.error_percent is not None else ""
        time = f"{format_time(self.summary.total_ps)}  "
        support = f"({call.support}{error})"
        cores = f"{call.cores} core" + ("s" if call.cores != 1 else "")
        room = self.width - len(time) - len(support) - 2
        whole = f"{call.chip}, {cores}, {describe_arguments(call.arguments)}".removesuffix(", ")
        kernel = self._fit(call.kernel, max(room - 12, 12))
        what = self._fit(whole, max(room - len(kernel) - 3, 0))
        left = f"{kernel}   {what}"
        style = SUPPORT_STYLES.get(call.support, "")
        gap = " " * max(self.width - len(left) - len(time) - len(support), 1)
        rows = [Text.assemble((kernel, "bold"), f"   {what}{gap}", (time, "bold"), (support, style))]
        return rows if what == self._text(whole) else rows + self._row("arguments", describe_arguments(call.arguments))

    def _facts(self) -> list[Text]:
        summary, call = self.summary, self.call
        rows = self._row("bound by", summary.bound.text, "bold")
        spread = int(call.timeline.spread_ps)
        if spread:
            rows += self._row("spread", f"+-{format_time(spread)} from the unknown phase of the TensorE throttle")
        if call.support_reason:
            rows += self._row("support", call.support_reason)
        compute = []
        if summary.mfu is not None:
            compute.append(f"MFU {100 * summary.mfu:.1f} % of {call.peak_flops / 1e12:,.1f} TFLOP/s")
        if summary.flops:
            compute.append(f"{summary.flops / 1e9:,.2f} GFLOP")
        compute.append(f"{int(call.timeline.totals.instructions):,} instructions")
        rows += self._row("compute", ", ".join(compute))
        rate = f"{summary.hbm_bytes_per_second / 1e9:,.1f} GB/s"
        if summary.hbm_utilization is not None:
            rate += f", {100 * summary.hbm_utilization:.0f} % of peak"
        traffic = f"{format_bytes(summary.hbm_read_bytes)} read, {format_bytes(summary.hbm_write_bytes)} written"
        return rows + self._row("HBM", f"{traffic} ({rate})")

    def _engines(self) -> list[Text]:
        if not self.summary.engines:
            return []
        bar = 20 if self.width < 90 else 26
        header = f"  {'':<{LABEL - 2}}{'busy':<{bar}} {'%':>5}  waiting"
        return [Text(header, "dim"), *(self._engine(use, bar) for use in self.summary.engines)]

    def _engine(self, use: EngineUse, bar: int) -> Text:
        total = self.summary.total_ps or 1
        busy = use.busy_ps / total
        reasons = [f"{r} {100 * t / total:.0f} %" for r, t in use.waiting_ps.items() if t >= 0.005 * total]
        if not use.busy_ps:
            reasons = ["not used"]
        left = f"  {use.display:<{LABEL - 2}}"
        percent = f" {100 * busy:5.1f}  "
        waiting = self._fit(", ".join(reasons), self.width - len(left) - bar - len(percent))
        full, empty = _bar(busy, bar, plain=self.plain)
        style = "green" if busy >= 0.5 else "cyan"
        return Text.assemble((left, ""), (full, style), (empty, "dim"), percent, (waiting, "dim"))

    def _memory(self) -> list[Text]:
        """The fullest core of each memory."""
        fullest: dict[str, MemoryPeak] = {}
        for use in self.summary.memory:
            if use.memory not in fullest or use.peak > fullest[use.memory].peak:
                fullest[use.memory] = use
        rows = []
        for name, use in fullest.items():
            share = f" ({100 * use.peak / use.capacity:.0f} %)" if use.capacity else ""
            text = f"{format_bytes(use.peak)} of {format_bytes(use.capacity)} a partition at peak{share}"
            holders = [f"{n} {format_bytes(size)}".replace(" ", GLUE) for n, size, _ in use.holders]
            if holders:
                more = f", {len(holders) - HOLDERS_SHOWN} more" if len(holders) > HOLDERS_SHOWN else ""
                text += ": " + ", ".join(holders[:HOLDERS_SHOWN]) + more
            over = use.capacity and use.peak > use.capacity
            rows += self._row(name.upper(), text, "bold red" if over else "")
        return [Text(), *rows] if rows else []

    def _source_lines(self) -> list[Text]:
        costs = self.summary.lines[:LINES_SHOWN]
        if not costs:
            return []
        total = self.summary.total_ps or 1
        where_width = min(max(len(c.line.short) for c in costs), 28)
        times = [format_time(c.active_ps) for c in costs]
        time_width = max(len(t) for t in times)
        rows = [Text(), Text(f"  {'costliest lines':<{where_width}}  {'time':>{time_width}}      %", "dim")]
        for cost, time in zip(costs, times, strict=True):
            where = cost.line.short
            where = where if len(where) <= where_width else "..." + where[3 - where_width :]
            left = f"  {self._text(where):<{where_width}}  {time:>{time_width}}  {100 * cost.active_ps / total:5.1f}  "
            engines = "/".join(ENGINE_NAMES.get(n, n) for n in cost.engines)
            text = cost.line.text or f"({engines})"
            rows.append(Text.assemble(left, (self._fit(text, self.width - len(left)), "cyan")))
        hidden = len(self.summary.lines) - len(costs)
        if hidden:
            rows.append(Text(f"  and {hidden} more", "dim"))
        return rows

    def _findings(self) -> list[Text]:
        findings = self.call.findings
        if not findings:
            return []
        rows = [Text()]
        worst_first = sorted(findings, key=lambda f: f.severity != "error")
        for finding in worst_first[:FINDINGS_SHOWN]:
            where = f"{finding.location.file}:{finding.location.line}: " if finding.location else ""
            times = f" ({finding.count:,} times)" if finding.count > 1 else ""
            text = f"{where}{finding.message} [{finding.kind}]{times}"
            rows += self._row(finding.severity, text, SEVERITY_STYLES.get(finding.severity, ""))
        hidden = len(findings) - FINDINGS_SHOWN
        if hidden > 0:
            rows += self._row("", f"and {hidden} more findings")
        return rows

    def _footer(self) -> list[Text]:
        call = self.call
        parts = [f"schedule {call.schedule}" if call.schedule else ""]
        parts.append(f"clock {call.clock}" if call.clock else "")
        parts.append("numbers computed" if call.numeric else "time only, no numbers computed")
        parts.append(f"seed {call.seed}" if call.seed is not None else "")
        shown = call.nki_version and call.nki_version_source != "default"
        parts.append(f"NKI {call.nki_version} ({call.nki_version_source})" if shown else "")
        parts.append(f"{int(call.timeline.totals.spills):,} spills" if int(call.timeline.totals.spills) else "")
        parts.append(f"simulated in {call.wall_seconds:.1f} s" if call.wall_seconds else "")
        text = ", ".join(p for p in parts if p)
        return [Text(), *(Text(f"  {part}", "dim") for part in wrap(self._text(text), self.width - 2))]


def describe_arguments(arguments: Sequence[str]) -> str:
    """Arguments in few words: repeats are counted and a dtype is said once.

    ``["float32 2x4", "float32 2x4", "float32 4"]`` becomes ``2 x float32 2x4, 4``.
    """
    result: list[str] = []
    dtype = ""
    for argument, repeats in groupby(arguments):
        count = len(list(repeats))
        first, _, shape = argument.partition(" ")
        text = shape if shape and first == dtype else argument
        dtype = first
        result.append(f"{count} x {text}" if count > 1 else text)
    return ", ".join(result)


def _bar(fraction: float, width: int, *, plain: bool) -> tuple[str, str]:
    full = min(max(round(fraction * width), 1 if fraction > 0.001 else 0), width)
    if plain:
        return "#" * full, "." * (width - full)
    return "━" * full, "─" * (width - full)


def wrap(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` characters, broken at spaces where it can be."""
    lines: list[str] = []
    line = ""
    for given in filter(None, text.replace("\n", " ").split(" ")):
        word = given
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = ""
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        line = f"{line} {word}".strip()
    return [part.replace(GLUE, " ") for part in (*lines, line)]
