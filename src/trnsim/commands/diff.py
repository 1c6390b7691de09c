"""``trnsim diff``: what differs most between two profiles, measured or predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands.output import console, microseconds, table, write_json

if TYPE_CHECKING:
    from trnsim.profiles.diff import Difference, Pair
    from trnsim.profiles.profile import Profile

_SHOWN = 10
_FORMS = "neuron-profile JSON, a folder of Neuron Explorer's Parquet tables, a report or a replay of trnsim."


def diff(
    a: Annotated[str, typer.Argument(help=f"A profile: {_FORMS}")],
    b: Annotated[str, typer.Argument(help="Another, in any of these forms.")],
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Align two profiles and name what differs most: time, counts and waits.

    Example: trnsim diff measured.json.gz replay.json
    """
    from trnsim.profiles.diff import diff as compare
    from trnsim.profiles.read import read

    found = compare(read(a), read(b))
    if json is not None:
        write_json(diff_json(found), json)
    if json != "-":
        _show(found)


def diff_json(found: Difference) -> dict[str, Any]:
    """The comparison as JSON: docs/reference/profiles.md says what each field is."""
    return {
        "schema": "trnsim-diff-1",
        "a": found.a.path,
        "b": found.b.path,
        "aligned_by": found.aligned,
        "span": _pair(found.span),
        "engines": [_pair(p) for p in found.engines],
        "opcodes": [_pair(p) for p in found.opcodes],
        "lines": [_pair(p) for p in found.lines],
        "classes": [_pair(p) for p in found.classes],
        "instructions": [
            {"name": m.name, "a": _instruction(found.a, m.a_row), "b": _instruction(found.b, m.b_row),
             "change_us": m.change_ps / 1e6} for m in found.instructions
        ],
        "unmatched_a": found.unmatched_a,
        "unmatched_b": found.unmatched_b,
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "name": pair.name,
        "a_us": pair.a_ps / 1e6,
        "b_us": pair.b_ps / 1e6,
        "change_us": pair.change_ps / 1e6,
        "a_count": pair.a_count,
        "b_count": pair.b_count,
        "a_waited_us": pair.a_waited_ps / 1e6 if pair.a_waited_ps >= 0 else None,
        "b_waited_us": pair.b_waited_ps / 1e6 if pair.b_waited_ps >= 0 else None,
    }


def _instruction(profile: Profile, row: int) -> dict[str, Any]:
    rows = profile.instructions
    return {"start_us": int(rows.start_ps[row]) / 1e6, "us": int(rows.duration_ps[row]) / 1e6}


def _show(found: Difference) -> None:
    out = console()
    out.print(f"a  {found.a.path} ({found.a.kind})\nb  {found.b.path} ({found.b.kind})", highlight=False, markup=False)
    out.print(f"aligned by {found.aligned}", highlight=False)
    columns = ["", "a us", "b us", "change us", "a count", "b count"]
    waits = [*columns, "a waits us", "b waits us"]
    out.print(
        table("Span, and busy time of each engine", waits, [_row(p, waits=True) for p in (found.span, *found.engines)])
    )
    for title, pairs in (("By opcode", found.opcodes), ("By source line", found.lines), ("By class", found.classes)):
        if pairs:
            out.print(table(title, columns, (_row(p) for p in pairs[:_SHOWN])))
    if found.instructions:
        single = found.instructions[:_SHOWN]
        out.print(table("Single instructions", ["", "a start us", "a us", "b start us", "b us"], [
            [m.name, *_times(found.a, m.a_row), *_times(found.b, m.b_row)] for m in single
        ]))  # fmt: skip
    if found.unmatched_a or found.unmatched_b:
        out.print(f"without a counterpart: {found.unmatched_a:,} of a, {found.unmatched_b:,} of b", highlight=False)


def _times(profile: Profile, row: int) -> list[str]:
    rows = profile.instructions
    return [microseconds(int(rows.start_ps[row])), microseconds(int(rows.duration_ps[row]))]


def _row(pair: Pair, *, waits: bool = False) -> list[str]:
    found = [
        pair.name, microseconds(pair.a_ps), microseconds(pair.b_ps), f"{pair.change_ps / 1e6:+,.2f}",
        f"{pair.a_count:,}", f"{pair.b_count:,}",
    ]  # fmt: skip
    if waits:
        found += [microseconds(w) if w >= 0 else "" for w in (pair.a_waited_ps, pair.b_waited_ps)]
    return found


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(diff)
