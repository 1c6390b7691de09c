"""``trnsim replay``: a measured profile run through our machine again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, microseconds, percent, table, write_json

if TYPE_CHECKING:
    from trnsim.profiles.replay import Compared, Replay

_WORST = 10


def replay(
    profile: Annotated[str, typer.Argument(help="A profile: neuron-profile JSON, Neuron Explorer's Parquet folder.")],
    chip: Annotated[str, typer.Option("--chip", help="The chip whose constants are used.")] = "trn2",
    json: Annotated[
        str | None, typer.Option("--json", help="Write the replay to FILE, or - for standard output.")
    ] = None,
) -> None:
    """Give the measured streams of each engine our durations, latencies and contention, and compare.

    The profile's instructions, their order, semaphores and transfers are kept, and the phase of the throttle's windows;
    all times are predicted. What differs is the machine's error alone, without the compiler's.

    Example: trnsim replay fused_attention.json.gz --json replay.json
    """
    from trnsim.hardware import load_chip, load_timing
    from trnsim.profiles.read import read
    from trnsim.profiles.replay import replay as run

    found = run(read(profile), load_timing(load_chip(chip)))
    if json is not None:
        write_json(replay_json(found, chip), json)
    if json != "-":
        _show(found, chip)


def replay_json(found: Replay, chip: str) -> dict[str, Any]:
    """The replay as JSON: docs/reference/profiles.md says what each field is."""
    from trnsim.profiles.own import REPLAY_SCHEMA
    from trnsim.profiles.profile import ENGINES

    profile, rows = found.profile, found.rows.tolist()
    instructions = profile.instructions
    return {
        "schema": REPLAY_SCHEMA,
        "profile": profile.path,
        "chip": chip,
        "throttle_phase_us": found.phase_ps / 1e6,
        "span": _compared(found.span),
        "engines": [_compared(e) for e in found.engines],
        "classes": [_compared(c) for c in found.classes],
        "instructions": [
            {
                "engine": ENGINES[int(instructions.engine[row])],
                "opcode": profile.opcode_of(row),
                "operands": profile.operands_of(row),
                "line": profile.line_of(row),
                "pc": int(instructions.pc[row]),
                "bytes": int(instructions.bytes[row]),
                "measured_start_us": int(instructions.start_ps[row]) / 1e6,
                "measured_us": int(instructions.duration_ps[row]) / 1e6,
                "predicted_start_us": start / 1e6,
                "predicted_us": duration / 1e6,
            }
            for row, start, duration in zip(rows, found.start_ps.tolist(), found.duration_ps.tolist(), strict=True)
        ],
    }


def _compared(item: Compared) -> dict[str, Any]:
    return {
        "name": item.name,
        "measured_us": item.measured_ps / 1e6,
        "predicted_us": item.predicted_ps / 1e6,
        "error": item.error,
        "count": item.count,
    }


def _row(item: Compared) -> list[str]:
    measured, predicted = microseconds(item.measured_ps), microseconds(item.predicted_ps)
    return [item.name, f"{item.count:,}", measured, predicted, percent(item.error)]


def _show(found: Replay, chip: str) -> None:
    out = console()
    columns = ["", "count", "measured us", "predicted us", "error"]
    out.print(f"{found.profile.path}, replayed on {chip}", highlight=False, markup=False)
    out.print(table("Span, and busy time of each engine", columns, [
        _row(found.span), *(_row(e) for e in found.engines)
    ]))  # fmt: skip
    out.print(table("Instructions that differ most, durations summed", columns, map(_row, found.classes[:_WORST])))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)
