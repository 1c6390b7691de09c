"""The report of a model that fits a screen. Bars and colours on a terminal, plain ASCII in pipes and files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from trnsim.frameworks.torch.generate import generations
from trnsim.frameworks.torch.reporting.tables import (
    ENGINE_NAMES,
    ENGINES,
    KIND_ORDER,
    grouped,
    module_tree,
    operators,
    percent,
    plain,
    rows,
    short_line,
    short_time,
    steps_by_name,
    supports,
)
from trnsim.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from trnsim.frameworks.torch.report import Report

WIDTH = 100
WIDE = 96  # columns from which on tables have all that they can show
MODULE_ROWS = 24
OPERATOR_ROWS = 14
FALLBACK_ROWS = 12
HOLDER_ROWS = 6
LEAST_SHARE = 0.005  # modules with less of the time and of the memory are not listed
LABEL = 11
LEAST = {"time": 7, "alone": 7, "%": 5, "HBM": 9, "forward": 7, "support": 12}  # columns' widths: nothing is cut
SUPPORT_STYLES = {"calibrated": "green", "interpolated": "cyan", "extrapolated": "yellow", "assumed": "yellow"}


def render_terminal(report: Report, console: Console, *, depth: int = 5) -> None:
    """Print ``report``; the tree of modules down to ``depth`` names."""
    page = _Page(report, console, min(console.width, WIDTH))
    page.headline()
    page.modules(depth)
    page.operators()
    page.engines()
    page.memory()
    page.fallbacks()
    page.notes()


class _Page:
    def __init__(self, report: Report, console: Console, width: int) -> None:
        self.report = report
        self.console = console
        self.width = width
        self.plain = not console.is_terminal
        self.total = report.total_ps or 1.0

    def _print(self, what: Text | Table) -> None:
        self.console.print(what, width=self.width, highlight=False)

    def _fact(self, label: str, value: str, style: str = "") -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=LABEL, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(f"  {label}", "dim"), Text(value, style))
        self._print(grid)

    def _table(self, title: str, *columns: str) -> Table:
        """A table whose first column is text, cut where there is no room, and whose others are numbers."""
        table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
        table.add_column(f"  {title}", no_wrap=True, overflow="ellipsis", ratio=1, min_width=20)
        for column in columns:
            least = LEAST.get(column, len(column))
            table.add_column(column, justify="right", no_wrap=True, min_width=least)
        return table

    def _percent(self, time: float) -> str:
        return f"{100 * time / self.total:.1f}"

    def headline(self) -> None:
        report = self.report
        cores = f"{report.lnc} physical cores" if report.lnc > 1 else "1 physical core"
        left = f"{report.chip}, 1 logical core ({cores}), {report.format}, depth {report.depth}"
        time = short_time(report.total_ps)
        line = Text(left, "bold")
        line.append(" " * max(self.width - len(left) - len(time), 2))
        line.append(time)
        self._print(line)
        for step in steps_by_name(report):
            spread = "" if step.count == 1 or step.low_ps == step.high_ps else (
                f" ({short_time(step.low_ps)} to {short_time(step.high_ps)})"
            )  # fmt: skip
            runs = f"{step.count:,} x " if step.count > 1 else ""
            self._fact(step.name, f"{runs}{short_time(step.mean_ps)}{spread}")
        answers = generations(report)
        if answers:
            first = sum(a.ttft_ps for a in answers) / len(answers)
            further = [a.tpot_ps for a in answers if a.tpot_ps is not None]
            rest = f", TPOT {short_time(sum(further) / len(further))}" if further else ""
            many = f" (means of {len(answers):,} answers)" if len(answers) > 1 else ""
            self._fact("answers", f"TTFT {short_time(first)}{rest}{many}")
        fused = 1 - report.total_ps / report.unfused_ps if report.unfused_ps else 0.0
        what = f"fusion saves {100 * fused:.0f} %"
        self._fact("unfused", f"{short_time(report.unfused_ps)} with every operator on its own; {what}")
        phases = report.times("phase")
        self._fact("phases", ", ".join(f"{name} {self._percent(t)} %" for name, t in phases.items()))
        shares = ", ".join(f"{label} {percent(share)}" for label, share in supports(report).items())
        self._fact("support", f"{shares} of the time ({report.implementation})")

    def modules(self, depth: int) -> None:
        tree = grouped(module_tree(self.report))
        listed = rows(tree, depth, LEAST_SHARE)
        phases = [p for p in ("forward", "backward", "optimizer") if tree.phases.get(p)]
        show = phases if len(phases) > 1 and self.width >= WIDE else []
        held = tree.nbytes > 0
        table = self._table("module", "time", "%", *show, *(["HBM at peak"] if held else []))
        for level, node in listed[:MODULE_ROWS]:
            name = node.name + (f" ({node.alike} alike)" if node.alike > 1 else "")
            cells = [short_time(node.phases[p]) if node.phases.get(p) else "" for p in show]
            memory = [format_bytes(node.nbytes) if node.nbytes else ""] if held else []
            time = short_time(node.time_ps) if node.time_ps else ""
            table.add_row(f"  {'  ' * level}{name}", time, self._percent(node.time_ps) if time else "", *cells, *memory)
        if tree.own_ps > LEAST_SHARE * self.total:
            table.add_row("  (outside of modules)", short_time(tree.own_ps), self._percent(tree.own_ps))
        self.console.print()
        self._print(table)
        if len(listed) > MODULE_ROWS:
            self._print(Text(f"  and {len(listed) - MODULE_ROWS} more", "dim"))

    def operators(self) -> None:
        wide = self.width >= WIDE
        more = ["alone", "HBM"] if wide else []
        table = self._table("operator", "runs", "time", "%", *more, "bound by", "support")
        listed = operators(self.report)
        for one in listed[:OPERATOR_ROWS]:
            bound = ENGINE_NAMES.get(one.bound_by, one.bound_by)
            support = Text(one.support, SUPPORT_STYLES.get(one.support, ""))
            cells = [short_time(one.unfused_ps), format_bytes(one.hbm_bytes)] if wide else []
            table.add_row(
                f"  {one.name}",
                f"{one.count:,}",
                short_time(one.time_ps),
                self._percent(one.time_ps),
                *cells,
                bound,
                support,
            )
        self.console.print()
        self._print(table)
        if len(listed) > OPERATOR_ROWS:
            self._print(Text(f"  and {len(listed) - OPERATOR_ROWS} more", "dim"))

    def engines(self) -> None:
        busy = self.report.times("engine")
        self.console.print()
        bar = 30
        self._print(Text(f"  {'engine':<{LABEL}}{'busy':<{bar}}     %", "dim"))
        for engine in [e for e in ENGINES if e in busy] + [e for e in busy if e not in ENGINES]:
            share = min(busy[engine] / self.total, 1.0)
            full = round(share * bar)
            bars = ("#" * full, "." * (bar - full)) if self.plain else ("━" * full, "─" * (bar - full))
            style = "green" if share >= 0.5 else "cyan"
            name = f"  {ENGINE_NAMES.get(engine, engine):<{LABEL}}"
            self._print(Text.assemble(name, (bars[0], style), (bars[1], "dim"), f" {100 * share:5.1f}"))

    def memory(self) -> None:
        memory = self.report.memory
        self.console.print()
        share = 100 * memory.peak_bytes / memory.capacity_bytes if memory.capacity_bytes else 0.0
        over = f", {format_bytes(memory.over_bytes)} more than there is" if memory.over_bytes else ""
        text = f"{format_bytes(memory.peak_bytes)} of {format_bytes(memory.capacity_bytes)} ({memory.scope}) at peak"
        self._fact("HBM", f"{text}, {share:.1f} %{over}", "bold red" if memory.over_bytes else "")
        kinds = [k for k in KIND_ORDER if memory.at_peak.get(k)]
        kinds += [k for k in memory.at_peak if k not in KIND_ORDER and memory.at_peak[k]]
        if kinds:
            self._fact("", ", ".join(f"{k} {format_bytes(memory.at_peak[k])}" for k in kinds))
        largest = sorted(memory.holders, key=lambda h: -h.nbytes)
        if memory.over_bytes:
            for holder in largest[:HOLDER_ROWS]:
                where = f" of {holder.module}" if holder.module else ""
                times = f" ({holder.count:,} tensors)" if holder.count > 1 else ""
                made = f", made by {plain(holder.operator)}" if holder.operator else ""
                self._fact("", f"{format_bytes(holder.nbytes)}: {holder.kind}{where}{times}{made}")

    def fallbacks(self) -> None:
        fallbacks = sorted(self.report.fallbacks, key=lambda f: -f.time_ps)
        if not fallbacks:
            return
        table = self._table("without a kernel", "runs", "time", "%", "on")
        for one in fallbacks[:FALLBACK_ROWS]:
            cells = (f"{one.count:,}", short_time(one.time_ps), self._percent(one.time_ps), one.place)
            table.add_row(f"  {one.operator}", *cells)
        self.console.print()
        self._print(table)
        if len(fallbacks) > FALLBACK_ROWS:
            self._print(Text(f"  and {len(fallbacks) - FALLBACK_ROWS} more", "dim"))
        for reason in dict.fromkeys(f.reason for f in fallbacks):
            where = [f for f in fallbacks if f.reason == reason]
            line = f" ({short_line(where[0].line)})" if where[0].line else ""
            self._fact("why", f"{reason}{line}")

    def notes(self) -> None:
        for note in self.report.notes:
            self._fact("note", note)
