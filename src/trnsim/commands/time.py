"""``trnsim time``: time a recording again, on another chip or with other options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trnsim.commands import common


def register(app: typer.Typer) -> None:
    """Add ``time``."""
    app.command()(time)


def time(
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="What --trace FILE of run or profile wrote.")],
    chip: common.Chip = None,
    set: common.Set = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="As for run; default: the recorded one.")] = None,
    clock: Annotated[str | None, typer.Option("--clock", help="As for run; default: the recorded one.")] = None,
    strict_capacity: common.Strict = False,
    json: common.Json = None,
    perfetto: common.Perfetto = None,
    html: common.Html = None,
    baseline: common.Baseline = None,
    fail_if_slower: common.FailIfSlower = None,
) -> None:
    """Time recorded kernel calls again: what the run would report on another chip or with other options.

    The program is the recorded one: a kernel that itself asks for the chip must be run on it.

    Example: trnsim run --trace kernels.trace my_kernels.py && trnsim time kernels.trace --chip trn3
    """
    from trnsim.hardware import load_chip
    from trnsim.recording import load_recording, time_again

    common.check_choices(schedule, clock)
    expected = common.read_baseline(baseline, fail_if_slower)
    saved = load_recording(recording)
    if set:
        recorded = {c.chip_file or c.chip for c in saved.calls}
        chip = common.changed_chip(chip, set, recorded.pop() if len(recorded) == 1 else None)
    target = load_chip(chip) if chip is not None else None
    for source in sorted({c.source for c in saved.calls if c.source_changed}):
        common.error_console().print(
            f"{source} has changed since it was recorded: lines shown are those of the recording", highlight=False
        )
    here = target.name.partition("[")[0] if target is not None else ""
    others = sorted({c.chip for c in saved.calls if here and c.chip.partition("[")[0] != here})
    if others:
        common.error_console().print(
            f"the programs are those recorded on {', '.join(others)}; a kernel that asks for its chip must run there",
            highlight=False,
        )
    calls = [
        time_again(call, chip=target, schedule=schedule, clock=clock, strict_capacity=strict_capacity)
        for call in saved.calls
    ]
    common.report(calls, json, perfetto, html)
    raise typer.Exit(common.status_of(calls, expected))
