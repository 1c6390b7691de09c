"""The ``trnsim`` command.

Conventions of every command: ``--json FILE`` or ``-`` (standard output); exit status 0 fine, 1 findings or a failed
validation, 2 bad input or usage, 3 our own bug; ``--help`` shows an example; no colours or progress bars into pipes.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands import (
    calibrate,
    chakra,
    collective,
    common,
    compare,
    diff,
    explain,
    fabric,
    migrate,
    models,
    operators,
    plan,
    replay,
    sweep,
    validate,
    validate_collectives,
    validate_instructions,
    validate_serving,
    validate_training,
)
from trnsim.commands import time as time_command
from trnsim.commands.validate_app import validate_app
from trnsim.errors import TrnsimError

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    name="trnsim",
    help="Simulate Trainium systems, from one instruction to a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from trnsim import __version__

        typer.echo(f"trnsim {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options of trnsim itself."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def run(
    context: typer.Context,
    script: Annotated[str, typer.Argument(help="A Python script that calls NKI kernels.")],
    chip: common.Chip = None,
    set: common.Set = None,
    time_only: common.TimeOnly = False,
    json: common.Json = None,
    perfetto: common.Perfetto = None,
    html: common.Html = None,
    schedule: common.Schedule = None,
    clock: common.Clock = "kernel",
    strict_capacity: common.Strict = False,
    seed: common.Seed = 0,
    assume: common.Assume = None,
    lnc: common.Lnc = None,
    nki_version: common.NkiVersion = None,
    trace: common.Trace = None,
    baseline: common.Baseline = None,
    fail_if_slower: common.FailIfSlower = None,
) -> None:
    """Run a Python script in which `import nki` is trnsim's, and report each kernel call.

    Example: trnsim run --chip trn2 --html report.html my_kernels.py --size 2048
    """
    from trnsim.script import run_script

    expected = common.read_baseline(baseline, fail_if_slower)
    chip = common.changed_chip(chip, set)
    session = common.make_session(chip, time_only, schedule, clock, strict_capacity, seed, assume, lnc)
    try:
        with common.progress(session), session.active():
            code = run_script(script, list(context.args), nki_version)
    finally:
        if session.calls and sys.exc_info()[0] is not None:
            common.error_console().print(
                f"{len(session.calls)} kernel calls ran before the error; no report was written"
            )
    common.report(session.calls, json, perfetto, html, trace, chip)
    if not session.calls:
        common.error_console().print(f"{script} called no kernel")
    raise typer.Exit(code or common.status_of(session.calls, expected))


@app.command()
def profile(
    target: Annotated[
        str, typer.Argument(metavar="FILE.py:KERNEL", help="The kernel to profile; KERNEL[2,4] on a grid.")
    ],
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", help="f32[2048,2048], file.npy or a literal; NAME=... gives it by name. Repeat."),
    ] = None,
    chip: common.Chip = None,
    set: common.Set = None,
    numeric: Annotated[bool, typer.Option("--numeric", help="Also compute results (arguments need data).")] = False,
    json: common.Json = None,
    perfetto: common.Perfetto = None,
    html: common.Html = None,
    schedule: common.Schedule = None,
    clock: common.Clock = "kernel",
    strict_capacity: common.Strict = False,
    seed: common.Seed = 0,
    assume: common.Assume = None,
    lnc: common.Lnc = None,
    nki_version: common.NkiVersion = None,
    trace: common.Trace = None,
    baseline: common.Baseline = None,
    fail_if_slower: common.FailIfSlower = None,
) -> None:
    """Predict the time of one kernel without a script.

    Example: trnsim profile matmul.py:nki_matmul_tiled_ --arg 'f32[2048,2048]' --arg 'f32[2048,2048]'
    """
    from trnsim.script import profile_kernel

    expected = common.read_baseline(baseline, fail_if_slower)
    chip = common.changed_chip(chip, set)
    session = common.make_session(chip, not numeric, schedule, clock, strict_capacity, seed, assume, lnc)
    with common.progress(session), session.active():
        profile_kernel(target, arg or [], session, nki_version)
    common.report(session.calls, json, perfetto, html, trace, chip)
    raise typer.Exit(common.status_of(session.calls, expected))


@app.command()
def chips(
    name: Annotated[str | None, typer.Argument(help="A chip's name or TOML file; none compares all.")] = None,
    json: common.Json = None,
) -> None:
    """List and compare chips, or show one with the source of each fact.

    Example: trnsim chips trn2
    """
    from trnsim.hardware import load_chip
    from trnsim.report.chips import chip_details, chips_json, chips_table

    if json is not None:
        common.write_json_value(chips_json([name] if name else None), json)
        return
    common.console().print(chip_details(load_chip(name)) if name else chips_table())


time_command.register(app)
sweep.register(app)
explain.register(app)
replay.register(app)
diff.register(app)
operators.register(app)
models.register(app)
plan.register(app)
fabric.register(app)
collective.register(app)
calibrate.register(app)
compare.register(app)
migrate.register(app)
chakra.register(app)
validate.register(validate_app)
validate_instructions.register(validate_app)
validate_collectives.register(validate_app)
validate_training.register(validate_app)
validate_serving.register(validate_app)
app.add_typer(validate_app)


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
