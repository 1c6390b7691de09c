"""``trnsim validate kernels``: published kernels timed here, beside their published times."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.errors import InputError

if TYPE_CHECKING:
    from trnsim.validation.cases import Case


def kernels(
    sdk: Annotated[Path | None, typer.Option("--sdk", help="aws-neuron-sdk; default TRNSIM_SDK.")] = None,
    samples: Annotated[Path | None, typer.Option("--samples", help="nki-samples; default TRNSIM_SAMPLES.")] = None,
    library: Annotated[Path | None, typer.Option("--library", help="nki-library; default TRNSIM_LIBRARY.")] = None,
    fusion: Annotated[
        Path | None, typer.Option("--fusion", help="trainium-kernel-fusion; default TRNSIM_FUSION.")
    ] = None,
    course: Annotated[Path | None, typer.Option("--course", help="asst4-trainium2; default TRNSIM_COURSE.")] = None,
    course_trn1: Annotated[
        Path | None, typer.Option("--course-trn1", help="asst4-trainium; default TRNSIM_COURSE_TRN1.")
    ] = None,
    accelopt: Annotated[Path | None, typer.Option("--accelopt", help="AccelOpt; default TRNSIM_ACCELOPT.")] = None,
    autocomp: Annotated[Path | None, typer.Option("--autocomp", help="autocomp; default TRNSIM_AUTOCOMP.")] = None,
    autotune: Annotated[Path | None, typer.Option("--autotune", help="nki-autotune; default TRNSIM_AUTOTUNE.")] = None,
    tilebench: Annotated[Path | None, typer.Option("--tilebench", help="Tilebench; default TRNSIM_TILEBENCH.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Measurements of your own, as kernel_latency.csv.")
    ] = None,
    family: Annotated[str | None, typer.Option("--family", help="Only families that contain this text.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    cross_validate: Annotated[
        bool, typer.Option("--cross-validate", help="Also refit without each family and each source (twice the time).")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="A pass of the compiler stage to leave out. Repeat.")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Write the comparison to FILE, or - for output.")] = None,
) -> None:
    """Time published kernels from local checkouts and compare with their published times.

    Exit status 1 if a kernel could not be timed.

    Example: trnsim validate kernels --sdk ~/aws-neuron-sdk --family matmul --workers 4
    """
    from rich.console import Console

    from trnsim.timing.options import ON_REQUEST, PASSES
    from trnsim.validation import checkouts, report
    from trnsim.validation.cases import Selection, of_family, select
    from trnsim.validation.fit import STEP, VARIED
    from trnsim.validation.fit import cross_validate as refit
    from trnsim.validation.rows import read_rows
    from trnsim.validation.run import run_cases
    from trnsim.validation.table import render, render_fit

    unknown = sorted(set(without or ()) - {*PASSES, *ON_REQUEST})
    if unknown:
        raise InputError(f"no pass {', '.join(unknown)}", operand="--without", value=unknown, limit=PASSES + ON_REQUEST)
    if without and cross_validate:
        raise InputError("--cross-validate refits the whole compiler stage: leave out --without")
    started = time.perf_counter()
    given = {"sdk": sdk, "samples": samples, "library": library, "fusion": fusion, "course": course}
    given["course-trn1"] = course_trn1
    given.update(accelopt=accelopt, autocomp=autocomp, autotune=autotune, tilebench=tilebench)
    roots = checkouts.roots(given)
    selection = select(read_rows(data))
    if family is not None:
        chosen = of_family(selection.cases, family)
        if not chosen:
            known = "\n".join(f"  {name}" for name in sorted({c.family for c in selection.cases}))
            raise InputError(f"no family contains {family!r}; there are\n{known}")
        selection = Selection(tuple(chosen), selection.excluded)
    ready, not_run = report.runnable(selection, roots)
    if not ready:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in not_run)) or "no row is a run of a known kernel"
        raise InputError(f"nothing to validate: {reasons}")
    results = run_cases(
        ready,
        roots,
        workers,
        _progress,
        dict.fromkeys(VARIED, STEP) if cross_validate else None,
        frozenset(without or ()),
    )
    found = report.validation(selection, not_run, results, time.perf_counter() - started)
    fitted = refit(found.compared) if cross_validate else None
    if json is not None:
        value = report.to_json(found)
        if fitted is not None:
            value["cross_validation"] = {"fit": fitted[0], "families": fitted[1]}
        _write(value, json)
    if json != "-":
        console = Console()
        console = console if console.is_terminal else Console(width=180)
        render(found, console)
        if fitted is not None:
            render_fit(*fitted, console)
    raise typer.Exit(int(bool(found.failed)))


def _progress(done: int, total: int, case: Case) -> None:
    if sys.stderr.isatty():
        end = "\r\x1b[K" if done == total else ""
        sys.stderr.write(f"\r{done} of {total} kernels, last {case.name[:60]}\x1b[K{end}")
        sys.stderr.flush()


def _write(value: Any, target: str) -> None:
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    from trnsim.report.files import write_text_atomic

    write_text_atomic(Path(target), text)


def register(app: typer.Typer) -> None:
    """Add ``kernels`` to ``trnsim validate``."""
    app.command()(kernels)
