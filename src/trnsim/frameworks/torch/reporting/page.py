"""The report of a model as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from trnsim.frameworks.torch.reporting.drawing import memory_chart, step_chart, steps_chart
from trnsim.frameworks.torch.reporting.tables import (
    ENGINE_NAMES,
    KIND_ORDER,
    Node,
    graphs_to_draw,
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
from trnsim.report.files import write_text_atomic
from trnsim.units import format_bytes

if TYPE_CHECKING:
    import os

    from trnsim.frameworks.torch.report import Fallback, Report

GRAPHS_DRAWN = 3
TREE_DEPTH = 12
OPEN_ROWS = 30  # the tree is unfolded at first as far as it has no more rows than these
HOLDERS = 12


def write_html(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page to ``path``, whole or not at all."""
    write_text_atomic(path, render_html(report))


def render_html(report: Report) -> str:
    """The page as text."""
    what = f"{report.chip}, {report.format}"
    kernel_style = (resources.files("trnsim.report") / "assets" / "style.css").read_text(encoding="utf-8")
    style = kernel_style + _asset("model.css")
    sections = [
        _headline(report),
        _notes(report),
        _panel("Steps", _steps(report) if report.steps else "<p>No step was taken.</p>"),
        *_timelines(report),
        _panel("HBM over time", _memory_line(report) + memory_chart(report.memory, report.total_ps)),
        _panel("Time by module", _modules(report), '<button id="open-all" type="button">Unfold all</button>'),
        _panel("Time by operator", _operators(report)),
        '<div class="two">' + _panel("What holds HBM at its peak", _holders(report)),
        _panel("Operators without a kernel", _fallbacks(report)) + "</div>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(what)} - trnsim</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n"
        f'<header><span class="brand">trnsim</span><span class="muted">{escape(what)}</span></header>\n'
        f'<main class="model">\n{"".join(sections)}\n</main>\n<script>\n{_asset("model.js")}</script>\n'
        "</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return (resources.files("trnsim.frameworks.torch.reporting") / "assets" / name).read_text(encoding="utf-8")


def _panel(title: str, content: str, tools: str = "") -> str:
    head = f'<div class="toolbar"><h2>{escape(title)}</h2><span class="spring"></span>{tools}</div>'
    return f'<section class="panel" aria-label="{escape(title)}">{head}{content}</section>'


def _card(name: str, value: str, more: str = "", gauge: float | None = None, *, over: bool = False) -> str:
    bar = ""
    if gauge is not None:
        share = 100 * min(max(gauge, 0), 1)
        bar = f'<div class="gauge{" over" if over else ""}"><i style="width:{share:.1f}%"></i></div>'
    return (
        f'<div class="card"><div class="name">{escape(name)}</div><div class="value{" over" if over else ""}">'
        f'{escape(value)}</div><div class="more">{escape(more)}</div>{bar}</div>'
    )


def _headline(report: Report) -> str:
    total = report.total_ps or 1.0
    cards = []
    for step in steps_by_name(report)[:3]:
        times = f"{step.count:,} steps, {short_time(step.total_ps)} together" if step.count > 1 else "one step"
        cards.append(_card(step.name, short_time(step.mean_ps), times))
    saved = 1 - report.total_ps / report.unfused_ps if report.unfused_ps else 0.0
    cards.append(_card("every operator on its own", short_time(report.unfused_ps), f"fusion saves {100 * saved:.0f} %"))
    memory = report.memory
    share = memory.peak_bytes / memory.capacity_bytes if memory.capacity_bytes else 0.0
    of = f"of {format_bytes(memory.capacity_bytes)} ({memory.scope})"
    if memory.over_bytes:
        of = f"{format_bytes(memory.over_bytes)} more than {format_bytes(memory.capacity_bytes)} ({memory.scope})"
    cards.append(_card("HBM at its peak", format_bytes(memory.peak_bytes), of, share, over=memory.over_bytes > 0))
    for engine, busy in list(report.times("engine").items())[:2]:
        share = busy / total
        name = f"{ENGINE_NAMES.get(engine, engine)} busy"
        cards.append(_card(name, f"{100 * share:.1f} %", short_time(busy), share))
    fallback = sum(one.time_ps for one in report.fallbacks)
    kinds = (
        f"{len(report.fallbacks)} operators, {100 * fallback / total:.1f} % of the time" if report.fallbacks else "none"
    )
    cards.append(_card("without a kernel", f"{sum(f.count for f in report.fallbacks):,} runs", kinds))
    badges = "".join(
        f'<span class="badge {escape(label)}">{escape(label)} {percent(part)}</span> '
        for label, part in supports(report).items()
    )
    phases = ", ".join(f"{name} {100 * t / total:.0f} %" for name, t in report.times("phase").items())
    cores = f"{report.lnc} physical cores" if report.lnc > 1 else "1 physical core"
    return (
        f'<div class="headline"><h1>{escape(report.chip)}</h1><span>1 logical core ({cores}), {escape(report.format)}, '
        f"depth {escape(report.depth)}, {escape(report.implementation)}</span><span>{badges}</span>"
        f'<span class="time">{short_time(report.total_ps)}</span></div>'
        f'<p class="bound">{escape(phases)}</p><div class="cards">{"".join(cards)}</div>'
    )


def _table(head: Sequence[tuple[str, bool]], body: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; a column is (title, whether it holds numbers)."""
    top = "".join(f"<th{' class=number' if number else ''}>{escape(title)}</th>" for title, number in head)
    lines = []
    for cells in body:
        line = "".join(
            cell if cell.startswith("<td") else f"<td{' class=number' if number else ''}>{cell}</td>"
            for cell, (_, number) in zip(cells, head, strict=True)
        )
        lines.append(f"<tr>{line}</tr>")
    return (
        f"<table{f' class={kind}' if kind else ''}><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _bar(share: float) -> str:
    return f'<td class="bar"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></td>'


def _support(label: str) -> str:
    return f'<span class="support {escape(label)}">{escape(label)}</span>'


def _steps(report: Report) -> str:
    body = [
        [escape(s.name), f"{s.count:,}", *map(short_time, (s.mean_ps, s.low_ps, s.high_ps, s.total_ps))]
        for s in steps_by_name(report)
    ]
    names = ("mean", "shortest", "longest", "together")
    table = _table([("steps", False), ("count", True), *((name, True) for name in names)], body)
    return table + (steps_chart(report) if len(report.steps) > 1 else "")


def _timelines(report: Report) -> list[str]:
    return [
        _panel(
            f"A step: {name} ({runs:,} like this, {short_time(time)} each)" if runs > 1 else f"A step: {name}",
            step_chart(report.regions[graph], time),
        )
        for graph, name, time, runs in graphs_to_draw(report)[:GRAPHS_DRAWN]
        if report.regions[graph]
    ]


def _memory_line(report: Report) -> str:
    memory = report.memory
    kinds = [k for k in KIND_ORDER if memory.at_peak.get(k)]
    held = ", ".join(f"{k} {format_bytes(memory.at_peak[k])}" for k in kinds)
    over = f' <span class="over">{format_bytes(memory.over_bytes)} do not fit.</span>' if memory.over_bytes else ""
    return f"<p>At the peak, {short_time(memory.peak_ps)} into the run: {escape(held)}.{over}</p>"


def _modules(report: Report) -> str:
    tree = module_tree(report)
    total = report.total_ps or 1.0
    phases = [p for p in ("forward", "backward", "optimizer") if tree.phases.get(p)]
    shown = phases if len(phases) > 1 else []
    held = tree.nbytes > 0
    heads = ["module", "time", "%", "", "own", *shown, *(["HBM at peak"] if held else [])]
    top = "".join(f"<th{' class=number' if i and h else ''}>{escape(h)}</th>" for i, h in enumerate(heads))
    lines = []
    listed = rows(tree, TREE_DEPTH)
    levels = max([1, *(d for d in range(1, TREE_DEPTH) if sum(level < d for level, _ in listed) <= OPEN_ROWS)])
    for level, node in listed:
        cells = [
            _module_name(node, level, is_open=level < levels - 1),
            _number(short_time(node.time_ps)),
            _number(f"{100 * node.time_ps / total:.1f}"),
        ]
        cells += [_bar(node.time_ps / total), _number(short_time(node.own_ps) if node.own_ps else "")]
        cells += [_number(short_time(node.phases[p]) if node.phases.get(p) else "") for p in shown]
        cells += [_number(format_bytes(node.nbytes) if node.nbytes else "")] if held else []
        lines.append(f'<tr data-level="{level}">{"".join(cells)}</tr>')
    if tree.own_ps:
        cells = ["<td><span class=leaf></span>(outside of modules)</td>", _number(short_time(tree.own_ps))]
        cells += [
            _number(f"{100 * tree.own_ps / total:.1f}"),
            _bar(tree.own_ps / total),
            _number(short_time(tree.own_ps)),
        ]
        cells += [_number("") for _ in range(len(heads) - len(cells))]
        lines.append(f'<tr data-level="0">{"".join(cells)}</tr>')
    return f'<table class="tree"><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _number(text: str) -> str:
    return f'<td class="number">{text}</td>'


def _module_name(node: Node, level: int, *, is_open: bool) -> str:
    name = escape(node.name)
    fold = '<span class="leaf"></span>'
    if node.children:
        sign = "&#9662;" if is_open else "&#9656;"
        fold = f'<button type="button" aria-expanded="{str(is_open).lower()}" aria-label="{name}">{sign}</button>'
    return f'<td style="padding-left:{8 + 16 * level}px" title="{escape(node.path)}">{fold}{name}</td>'


def _operators(report: Report) -> str:
    total = report.total_ps or 1.0
    body = []
    for one in operators(report):
        seconds = one.time_ps * 1e-12
        rate = f"{one.flops / seconds / 1e12:,.1f}" if seconds and one.flops else ""
        moved = f"{one.hbm_bytes / seconds / 1e9:,.0f}" if seconds and one.hbm_bytes else ""
        body.append([
            escape(one.name), f"{one.count:,}", short_time(one.time_ps), f"{100 * one.time_ps / total:.1f}",
            _bar(one.time_ps / total), short_time(one.unfused_ps), format_bytes(one.hbm_bytes), rate, moved,
            escape(ENGINE_NAMES.get(one.bound_by, one.bound_by)), _support(one.support),
        ])  # fmt: skip
    heads = [("operator", False), ("runs", True), ("time", True), ("%", True), ("", False), ("unfused", True),
             ("HBM", True), ("TFLOP/s", True), ("GB/s", True), ("bound by", False), ("support", False)]  # fmt: skip
    return _table(heads, body)


def _holders(report: Report) -> str:
    largest = sorted(report.memory.holders, key=lambda h: -h.nbytes)[:HOLDERS]
    if not largest:
        return "<p>Nothing.</p>"
    body = [
        [escape(h.kind), _wrapped(h.module), _wrapped(plain(h.operator)), f"{h.count:,}", format_bytes(h.nbytes)]
        for h in largest
    ]
    heads = [("kind", False), ("module", False), ("made by", False), ("tensors", True), ("size", True)]
    return _table(heads, body)


def _wrapped(text: str) -> str:
    return f'<td class="why">{escape(text)}</td>'


def _fallbacks(report: Report) -> str:
    if not report.fallbacks:
        return "<p>None: every operator ran as a kernel.</p>"
    body = [
        [
            _where(one),
            f"{one.count:,}",
            short_time(one.time_ps),
            escape(one.place),
            f'<td class="why">{escape(one.reason)}</td>',
        ]
        for one in sorted(report.fallbacks, key=lambda f: -f.time_ps)
    ]
    return _table([("operator", False), ("runs", True), ("time", True), ("on", False), ("why", False)], body)


def _where(one: Fallback) -> str:
    place = escape(one.module or short_line(one.line))
    return f'<td title="{escape(one.line)}">{escape(one.operator)}<br><span class="muted">{place}</span></td>'


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f'<section class="panel"><ul class="notes">{items}</ul></section>'
