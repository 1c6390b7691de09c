"""The HTML report: one file that needs nothing else, with the timeline, the memory and the costs of each call.

The page is ``assets/template.html`` with the style, the scripts and, for each call, a description (JSON) and its
columns (``packing``) put in. It opens from a file:// address and asks for nothing from anywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trnsim.report.files import write_text_atomic
from trnsim.report.intervals import rate
from trnsim.report.json_report import call_report, versions
from trnsim.report.packing import Packer
from trnsim.report.summary import ENGINE_NAMES, summarize
from trnsim.report.terminal import describe_arguments
from trnsim.report.view import form_bytes, form_partitions

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from trnsim.report.call import KernelCall
    from trnsim.report.summary import Summary
    from trnsim.report.view import TraceView, View

MAX_EVENTS = 1_000_000  # a page with more would be slow to open; the page says how many it leaves out
BANDWIDTH_BINS = 4096
SCRIPTS = ("data.js", "paint.js", "timeline.js", "panels.js", "main.js")


def write_html(calls: Sequence[KernelCall], path: str | os.PathLike[str]) -> None:
    """Write the report of ``calls`` to ``path``, whole or not at all."""
    write_text_atomic(path, render_html(calls))


def render_html(calls: Sequence[KernelCall], *, max_events: int = MAX_EVENTS) -> str:
    """The page as text. Of a call with more than ``max_events`` intervals the first are shown, and the page says so."""
    pages = [_page(summarize(call), max_events) for call in calls]
    title = ", ".join(dict.fromkeys(call.kernel for call in calls)) or "no kernel calls"
    description = {"calls": [p.description for p in pages], "versions": versions(), "engineNames": ENGINE_NAMES}
    # Inside a script element only "<" could end it early; JSON may write it as an escape.
    description_text = json.dumps(description, separators=(",", ":")).replace("<", "\\u003c")
    data = "\n".join(f'<script type="text/plain" id="data-{i}">{p.data}</script>' for i, p in enumerate(pages))
    parts = {
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "style": _asset("style.css"),
        "script": "\n".join(_asset(name) for name in SCRIPTS),
        "description": description_text,
        "data": data,
    }
    head, *rest = _asset("template.html").split("{{")
    return head + "".join(parts[name] + text for name, text in (piece.split("}}", 1) for piece in rest))


def _asset(name: str) -> str:
    return (resources.files("trnsim.report") / "assets" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Page:
    description: dict[str, Any]
    data: str


def _page(summary: Summary, max_events: int) -> _Page:
    view, call = summary.view, summary.call
    packer = Packer()
    position, shown = _add_events(packer, summary, max_events)
    wait_counts = _add_waits(packer, view, position, shown)
    event_counts = np.bincount(view.events.track[:shown], minlength=len(view.tracks))
    tables = [_add_trace(packer, i, trace) for i, trace in enumerate(view.traces)]
    for i, use in enumerate(call.timeline.memory):
        packer.add(f"memory{i}.time", use.times, delta=True)
        packer.add(f"memory{i}.bytes", use.bytes)
    moving = view.touches_hbm()
    events = view.events
    _, flow = rate(events.start[moving], events.end[moving], events.bytes[moving], view.total, BANDWIDTH_BINS)
    packer.add("bandwidth", np.round(flow))
    description = {
        "report": msgspec.to_builtins(call_report(summary)),
        "argumentsText": describe_arguments(call.arguments),
        "totalPs": view.total,
        "peakFlops": call.peak_flops,
        "hbmPeak": call.hbm_bytes_per_second,
        "tracks": [
            {
                "core": t.core,
                "name": t.name,
                "kind": t.kind,
                "events": int(event_counts[i]),
                "waits": int(wait_counts[i]),
            }
            for i, t in enumerate(view.tracks)
        ],
        "opcodes": list(call.timeline.opcodes),
        "reasons": list(call.wait_reasons),
        "traces": tables,
        "leftOut": len(view.events.start) - shown,
        "columns": packer.manifest(),
    }
    return _Page(description, packer.text())


def _add_events(packer: Packer, summary: Summary, limit: int) -> tuple[Any, int]:
    """Events by track, then start. Returns the position each event got (last entry: of -1) and how many are shown."""
    view = summary.view
    events = view.events
    shown = min(len(events.start), limit)
    order = np.lexsort((events.start[:shown], events.track[:shown]))
    position = np.full(len(events.start) + 1, -1, np.int64)
    position[order] = np.arange(shown)
    rank = np.full(len(view.lines) + 1, -1, np.int64)
    for i, cost in enumerate(summary.lines):
        rank[cost.number] = i
    columns = {
        "start": events.start[order],
        "length": (events.end - events.start)[order],
        "latency": np.maximum(events.done - events.end, 0)[order],
        "opcode": events.opcode[order],
        "line": rank[view.line[order]] + 1,  # its place in the report's lines, 0 none
        "instruction": events.instruction[order] + 1,
        "bytes": events.bytes[order],
    }
    packer.add_all("events", columns, ("start", "instruction"))
    return position, shown


def _add_waits(packer: Packer, view: View, position: Any, shown: int) -> Any:
    """Waits by track, then start, with events by their new positions (0: none). Returns how many each track has."""
    waits = view.waits
    horizon = view.events.start[shown - 1] if shown < len(view.events.start) else view.total
    kept = np.flatnonzero(waits.start <= horizon)
    order = kept[np.lexsort((waits.start[kept], waits.track[kept]))]
    columns = {
        "start": waits.start[order],
        "length": (waits.end - waits.start)[order],
        "reason": waits.reason[order],
        "before": position[waits.before[order]] + 1,
        "released": position[waits.released_by[order]] + 1,
    }
    packer.add_all("waits", columns, ("start", "before", "released"))
    return np.bincount(waits.track[order], minlength=len(view.tracks))


def _add_trace(packer: Packer, number: int, view: TraceView) -> dict[str, Any]:
    """A trace's instructions and operands, with only those classes, forms and storages that it uses."""
    instructions, operands, trace = view.instructions, view.operands, view.trace
    classes, klass = np.unique(instructions.klass, return_inverse=True)
    forms, form = np.unique(operands.form, return_inverse=True)
    packer.add_all(
        f"trace{number}",
        {
            "class": klass,
            "operand": instructions.operand,
            "storage": operands.storage + 1,
            "partition": operands.start,
            "offset": operands.offset,
            "form": form,
        },
        ("operand",),
    )
    return {
        "classes": [
            {"name": str(c.instruction.name), "operands": [[o.name, o.role] for o in c.operands]}
            for c in (trace.classes[int(i)] for i in classes)
        ],
        "forms": [
            {
                "memory": str(f.memory),
                "dtype": str(f.dtype),
                "shape": [int(n) for n in f.shape],
                "partitions": form_partitions(f),
                "bytes": form_bytes(f),
            }
            for f in (trace.forms[int(i)] for i in forms)
        ],
        "storages": [str(s.name) for s in trace.storages],
    }
