"""What a sweep found: the ranking as a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table
from rich.text import Text

from trnsim.report.summary import ENGINE_NAMES
from trnsim.report.terminal import describe_arguments
from trnsim.sweep.store import SCHEMA, Result
from trnsim.units import format_bytes, format_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from trnsim.sweep.parameters import Parameter

SHOWN = 4  # variants that failed in the same way


def ranked(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """Those that were timed, the fastest first, and those that failed, in the order given."""
    timed = [r for r in results if r.time_us is not None]
    return sorted(timed, key=lambda r: r.time_us or 0.0), [r for r in results if r.time_us is None]


def sweep_json(kernel: str, parameters: Sequence[Parameter], results: Sequence[Result], top: int | None) -> Any:
    """The ranking as plain values: schema ``trnsim.sweep/1``."""
    timed, failed = ranked(results)
    best = timed[0].time_us if timed else None
    rows = []
    for rank, result in enumerate(timed[:top], 1):
        row = msgspec.to_builtins(result)
        del row["error"]
        rows.append({"rank": rank, "slower": (result.time_us or 0) / best if best else None, **row})
    return {
        "schema": SCHEMA,
        "kernel": kernel,
        "parameters": {p.name: {"kind": p.kind, "values": list(p.values)} for p in parameters},
        "variants": len(results),
        "timed": len(timed),
        "ranking": rows,
        "failed": [{"params": r.params, "error": r.error} for r in failed],
    }


def render_sweep(
    kernel: str, parameters: Sequence[Parameter], results: Sequence[Result], top: int | None, console: Console
) -> None:
    """Print the ranking, then what failed."""
    timed, failed = ranked(results)
    head = Text(kernel, "bold")
    if timed:
        cores = f"{timed[0].cores} core" + ("s" if timed[0].cores != 1 else "")
        every = [a for a in timed[0].arguments if all(a in r.arguments for r in timed)]
        head.append(f"   {timed[0].chip}, {cores}, {describe_arguments(every)}".removesuffix(", "), "not bold")
    console.print(head, soft_wrap=True, highlight=False)
    for parameter in parameters:
        console.print(
            f"  {parameter.name}: {parameter.kind}; {', '.join(parameter.values)}", soft_wrap=True, highlight=False
        )
    counted = f"{len(results)} variants, {len(timed)} timed" + (f", {len(failed)} failed" if failed else "")
    console.print(f"  {counted}\n", highlight=False)
    if timed:
        console.print(_table(parameters, timed, top))
        console.print("\n  HBM: bytes moved; SBUF: peak of a partition", style="dim", highlight=False)
    if top is not None and len(timed) > top:
        console.print(f"  and {len(timed) - top} slower ones", highlight=False)
    errors: dict[str, list[Result]] = {}
    for result in failed:
        errors.setdefault(result.error, []).append(result)
    for error, group in errors.items():
        which = [", ".join(f"{k}={v}" for k, v in r.params.items()) for r in group]
        more = f" and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
        text = f"failed  {'; '.join(which[:SHOWN])}{more}\n" + "\n".join(f"    {t}" for t in error.splitlines()[:4])
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _table(parameters: Sequence[Parameter], timed: Sequence[Result], top: int | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("rank", justify="right")
    for parameter in parameters:
        table.add_column(parameter.name, justify="right", overflow="fold")
    for name in ("time", "slower", "MFU %", "HBM", "SBUF"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    notes = any(r.spills or r.findings for r in timed)
    if notes:
        table.add_column("notes")
    best = timed[0].time_us or 0.0
    for rank, result in enumerate(timed[:top], 1):
        now = result.time_us or 0.0
        said = [f"{result.spills} spills"] if result.spills else []
        said += [kind for kind in result.findings if not (kind == "capacity" and result.spills)]
        table.add_row(
            str(rank),
            *(result.params[p.name] for p in parameters),
            format_time(round(now * 1e6)),
            f"{now / best - 1:+.1%}" if rank > 1 and best else "",
            f"{100 * result.mfu:.1f}" if result.mfu is not None else "",
            format_bytes(result.hbm_read_bytes + result.hbm_write_bytes),
            format_bytes(result.sbuf_peak_bytes // 128),
            ENGINE_NAMES.get(result.bound_by, result.bound_by),
            *([", ".join(said)] if notes else []),
        )
    return table
