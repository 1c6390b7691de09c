"""``trnsim explain``: the critical path of a kernel, and what would help."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trnsim.commands import common


def register(app: typer.Typer) -> None:
    """Add ``explain``."""
    app.command()(explain)


def explain(
    target: Annotated[str, typer.Argument(metavar="FILE.py:KERNEL", help="The kernel; KERNEL[2,4] on a grid.")],
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", help="f32[2048,2048], file.npy or a literal; NAME=... gives it by name. Repeat."),
    ] = None,
    chip: common.Chip = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of the most helpful changes to show.")] = 3,
    json: common.Json = None,
    schedule: common.Schedule = None,
    seed: common.Seed = 0,
    assume: common.Assume = None,
    lnc: common.Lnc = None,
    nki_version: common.NkiVersion = None,
) -> None:
    """Show why a kernel takes its time, and the changes that would help most, with the time that each would save.

    The critical path is the chain of work and latencies from the first instruction to the last result. Each change is
    tried on the recorded trace, which is then timed like any other: float32 tensors in bfloat16, engine balance,
    stationary and moving operands swapped, tiles kept in SBUF, longer descriptors, larger DMAs, instructions combined
    over several tiles, more buffers.

    Example: trnsim explain matmul.py:nki_matmul_tiled_ --arg 'f32[2048,2048]' --arg 'f32[2048,2048]'
    """
    from trnsim.explain.case import Case
    from trnsim.explain.explanation import explain as find
    from trnsim.explain.render import explain_json, render_explanation
    from trnsim.hardware import load_chip
    from trnsim.releases import Release
    from trnsim.script import profile_kernel
    from trnsim.timing import TimingOptions
    from trnsim.timing.options import kept_passes

    session = common.make_session(chip, True, schedule, "kernel", False, seed, assume, lnc)
    with common.progress(session), session.active():
        profile_kernel(target, arg or [], session, nki_version)
    call = session.calls[-1]
    case = Case(
        # What the compiler stage made of the program is what is explained, and changed.
        tuple(call.timeline.traces),  # type: ignore[attr-defined]
        load_chip(chip or call.chip),
        TimingOptions(schedule=call.schedule, passes=kept_passes(call.schedule)),
        Release(call.nki_version, call.nki_version_source),
    )
    shown = sys.stderr.isatty()

    def progress(what: str) -> None:
        if shown:
            sys.stderr.write(f"\r{call.kernel}: {what}\x1b[K")
            sys.stderr.flush()

    found = find(case, top=top, progress=progress)
    if shown:
        sys.stderr.write("\r\x1b[K")
    if json is not None:
        common.write_json_value(explain_json(call, found, top), json)
    if json != "-":
        render_explanation(call, found, top, common.console())
    if json is not None and json != "-":
        common.error_console().print(f"wrote {json}", highlight=False)
