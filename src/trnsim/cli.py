"""The ``trnsim`` command.

Conventions of every command: ``--json FILE`` or ``-`` (standard output); exit status 0 fine, 1 findings or a failed
validation, 2 bad input or usage, 3 our own bug; ``--help`` shows an example; no colours or progress bars into pipes.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands import diff, operators, replay, validate, validate_instructions
from trnsim.commands.validate_app import validate_app
from trnsim.errors import InputError, TrnsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trnsim.report.call import KernelCall
    from trnsim.session import Session, SimulationOptions

app = typer.Typer(
    name="trnsim",
    help="Simulate Trainium systems, from one instruction to a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Chip = Annotated[str | None, typer.Option("--chip", help="trn1, trn2, trn3, inf2, or a chip's TOML file.")]
TimeOnly = Annotated[bool, typer.Option("--time-only", help="Predict time; compute only what control flow needs.")]
Json = Annotated[str | None, typer.Option("--json", help="Write the report as JSON to FILE, or - for standard output.")]
Perfetto = Annotated[Path | None, typer.Option("--perfetto", help="Write a trace for ui.perfetto.dev.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as one self-contained HTML file.")]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", help="program (as written), nki or tensorizer; default: that of the kernel's NKI."),
]
Clock = Annotated[str, typer.Option("--clock", help="kernel (first instruction to last DMA) or span (profiler total).")]
Strict = Annotated[bool, typer.Option("--strict-capacity", help="Live bytes over a memory's capacity are an error.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the random generators.")]
Assume = Annotated[
    list[str] | None, typer.Option("--assume", help="NAME=VALUE for a value that a run without data needs.")
]
NkiVersion = Annotated[
    str | None,
    typer.Option("--nki-version", help="Release of NKI, 0.2 to 0.6; default: what the source can only be, or 0.6."),
]
Lnc = Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core, for kernels launched without [lnc].")]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def run(
    context: typer.Context,
    script: Annotated[str, typer.Argument(help="A Python script that calls NKI kernels.")],
    chip: Chip = None,
    time_only: TimeOnly = False,
    json: Json = None,
    perfetto: Perfetto = None,
    html: Html = None,
    schedule: Schedule = None,
    clock: Clock = "kernel",
    strict_capacity: Strict = False,
    seed: Seed = 0,
    assume: Assume = None,
    lnc: Lnc = None,
    nki_version: NkiVersion = None,
) -> None:
    """Run a Python script in which `import nki` is trnsim's, and report each kernel call.

    Example: trnsim run --chip trn2 --html report.html my_kernels.py --size 2048
    """
    from trnsim.script import run_script

    session = _session(chip, time_only, schedule, clock, strict_capacity, seed, assume, lnc)
    try:
        with _progress(session), session.active():
            code = run_script(script, list(context.args), nki_version)
    finally:
        if session.calls and sys.exc_info()[0] is not None:
            _error_console().print(f"{len(session.calls)} kernel calls ran before the error; no report was written")
    _report(session.calls, json, perfetto, html)
    if not session.calls:
        _error_console().print(f"{script} called no kernel")
    raise typer.Exit(code or _status(session.calls))


@app.command()
def profile(
    target: Annotated[
        str, typer.Argument(metavar="FILE.py:KERNEL", help="The kernel to profile; KERNEL[2,4] on a grid.")
    ],
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", help="f32[2048,2048], file.npy or a literal; NAME=... gives it by name. Repeat."),
    ] = None,
    chip: Chip = None,
    numeric: Annotated[bool, typer.Option("--numeric", help="Also compute results (arguments need data).")] = False,
    json: Json = None,
    perfetto: Perfetto = None,
    html: Html = None,
    schedule: Schedule = None,
    clock: Clock = "kernel",
    strict_capacity: Strict = False,
    seed: Seed = 0,
    assume: Assume = None,
    lnc: Lnc = None,
    nki_version: NkiVersion = None,
) -> None:
    """Predict the time of one kernel without a script.

    Example: trnsim profile matmul.py:nki_matmul_tiled_ --arg 'f32[2048,2048]' --arg 'f32[2048,2048]'
    """
    from trnsim.script import profile_kernel

    session = _session(chip, not numeric, schedule, clock, strict_capacity, seed, assume, lnc)
    with _progress(session), session.active():
        profile_kernel(target, arg or [], session, nki_version)
    _report(session.calls, json, perfetto, html)
    raise typer.Exit(_status(session.calls))


@app.command()
def chips(
    name: Annotated[str | None, typer.Argument(help="A chip's name or TOML file; none compares all.")] = None,
    json: Json = None,
) -> None:
    """List and compare chips, or show one with the source of each fact.

    Example: trnsim chips trn2
    """
    from trnsim.hardware import load_chip
    from trnsim.report.chips import chip_details, chips_json, chips_table

    if json is not None:
        _write_json(chips_json([name] if name else None), json)
        return
    from rich.console import Console

    console = Console(soft_wrap=False)
    if console.width < 100 and not console.is_terminal:
        console = Console(width=100)
    console.print(chip_details(load_chip(name)) if name else chips_table())


replay.register(app)
operators.register(app)
diff.register(app)
validate_instructions.register(validate_app)
validate.register(validate_app)
app.add_typer(validate_app)


def _session(
    chip: str | None,
    time_only: bool,
    schedule: str | None,
    clock: str,
    strict_capacity: bool,
    seed: int,
    assume: Sequence[str] | None,
    lnc: int | None,
) -> Session:
    from trnsim.hardware import load_chip
    from trnsim.session import Session, SimulationOptions
    from trnsim.timing.options import SCHEDULES

    values: dict[str, int] = {}
    for item in assume or []:
        name, _, text = item.partition("=")
        try:
            values[name] = int(text, 0)
        except ValueError:
            raise InputError(f"--assume {item!r}: write NAME=INTEGER") from None
    if schedule is not None and schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise InputError(f"unknown schedule {schedule!r}: {known}", operand="--schedule", value=schedule)
    if clock not in ("kernel", "span"):
        raise InputError(f"unknown clock {clock!r}: kernel or span", operand="--clock", value=clock)
    if chip is not None:
        load_chip(chip)
    options: SimulationOptions = SimulationOptions(
        chip=chip,
        numeric=not time_only,
        schedule=schedule,
        clock=clock,
        strict_capacity=strict_capacity,
        seed=seed,
        assume=values,
        lnc=lnc,
    )
    return Session(options)


class _progress:
    """A progress line on a terminal, for runs that take longer than a second; nothing into pipes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.shown = False

    def __enter__(self) -> None:
        if not sys.stderr.isatty():
            return
        import time

        started = last = time.perf_counter()

        def show(kernel: str, where: str, row: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - started > 1 and now - last > 0.2:
                last = now
                self.shown = True
                sys.stderr.write(f"\r{kernel}: {where}, {row:,} instructions, {now - started:.0f} s\x1b[K")
                sys.stderr.flush()

        self.session.progress = show

    def __exit__(self, *_: object) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")


def _report(calls: Sequence[KernelCall], json: str | None, perfetto: Path | None, html: Path | None) -> None:
    from rich.console import Console

    if perfetto is not None:
        from trnsim.report.perfetto_report import write_perfetto

        write_perfetto(calls, perfetto)
    if html is not None:
        from trnsim.report.html_report import write_html

        write_html(calls, html)
    if json is not None:
        from trnsim.report.json_report import write_json

        write_json(calls, json)
    if json != "-":
        from trnsim.report.terminal import render_terminal

        console = Console()
        if not console.is_terminal:
            console = Console(width=100)
        render_terminal(calls, console)
    for path in (perfetto, html, json):
        if path is not None and path != "-":
            _error_console().print(f"wrote {path}", highlight=False)


def _status(calls: Sequence[KernelCall]) -> int:
    """1 if a call has findings that are warnings or worse."""
    return int(any(f.severity != "info" for call in calls for f in call.findings))


def _write_json(value: Any, target: str) -> None:
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    from trnsim.report.files import write_text_atomic

    write_text_atomic(Path(target), text)


def _error_console() -> Any:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def _guarded(command: Callable[[], Any]) -> int:
    """Run ``command`` and turn what it raises into an exit status and one clear message."""
    from trnsim.errors import InternalError
    from trnsim.script import ScriptError

    try:
        command()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except ScriptError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    except InternalError as error:
        return _bug(error)
    except TrnsimError as error:
        sys.stderr.write(f"error ({error.kind}): {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        sys.stderr.write(f"error (input): {error}\n")
        return 2
    except Exception as error:
        return _bug(error)
    return 0


def _bug(error: BaseException) -> int:
    from trnsim import __version__

    sys.stderr.write("".join(traceback.format_exception(error)))
    sys.stderr.write(
        f"\nThis is a bug in trnsim {__version__}. Please report it with the text above and the kernel that\n"
        "caused it.\n"
    )
    return 3


def main() -> None:
    """Entry point of the ``trnsim`` command."""
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


if __name__ == "__main__":
    main()
