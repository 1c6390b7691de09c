"""The report of a model as JSON: the regions as they are, and the sums that the other reports show."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.frameworks.torch.generate import generations
from trnsim.frameworks.torch.reporting.tables import module_tree, operators, rows, steps_by_name, supports
from trnsim.report.files import write_text_atomic
from trnsim.report.json_report import versions

if TYPE_CHECKING:
    import os

    from trnsim.frameworks.torch.report import Report

SCHEMA = "trnsim-model-1"
EVERY_LEVEL = 1 << 20


def report_json(report: Report) -> dict[str, Any]:
    """The report as plain dicts and lists: times in picoseconds, sizes in bytes; docs/reference/torch_report.md."""
    memory = report.memory
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "chip": report.chip,
        "lnc": report.lnc,
        "depth": report.depth,
        "format": report.format,
        "implementation": report.implementation,
        "total_ps": report.total_ps,
        "unfused_ps": report.unfused_ps,
        "support": supports(report),
        "phases_ps": report.times("phase"),
        "engines_ps": report.times("engine"),
        "steps": [asdict(step) for step in report.steps],
        "steps_by_name": [asdict(one) | {"mean_ps": one.mean_ps} for one in steps_by_name(report)],
        "answers": [
            {"ttft_ps": one.ttft_ps, "tpot_ps": one.tpot_ps, "tokens": one.tokens} for one in generations(report)
        ],
        "operators": [
            {
                "operator": one.name,
                "runs": one.count,
                "time_ps": one.time_ps,
                "unfused_ps": one.unfused_ps,
                "hbm_bytes": one.hbm_bytes,
                "flops": one.flops,
                "bound_by": one.bound_by,
                "support": one.support,
            }
            for one in operators(report)
        ],
        "modules": [
            {
                "module": node.path,
                "time_ps": node.time_ps,
                "own_ps": node.own_ps,
                "unfused_ps": node.unfused_ps,
                "phases_ps": node.phases,
                "bytes_at_peak": node.bytes,
            }
            for _, node in rows(module_tree(report), EVERY_LEVEL)
        ],
        "graphs": [
            {"runs": runs, "regions": [asdict(region) | {"bound_by": region.bound} for region in regions]}
            for regions, runs in zip(report.regions, report.runs, strict=True)
        ],
        "fallbacks": [asdict(one) for one in report.fallbacks],
        "memory": asdict(memory) | {"over_bytes": memory.over_bytes},
        "notes": list(report.notes),
    }


def write_json(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the report to ``path``, whole or not at all; ``-`` is standard output."""
    text = msgspec.json.format(msgspec.json.encode(report_json(report)), indent=1).decode() + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text_atomic(path, text)
