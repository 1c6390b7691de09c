"""What commands share: their options, the session these ask for, and how reports go out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.report.baseline import Baseline as BaselineReport
    from trnsim.report.call import KernelCall
    from trnsim.session import Session, SimulationOptions

Chip = Annotated[str | None, typer.Option("--chip", help="trn1, trn2, trn3, inf2, or a chip's TOML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="What if: PATH=VALUE of the chip, such as trn3.hbm.bandwidth=6TB/s. Repeat."),
]
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
Trace = Annotated[Path | None, typer.Option("--trace", help="Save the calls' traces, for trnsim time.")]
Baseline = Annotated[Path | None, typer.Option("--baseline", help="An earlier JSON report to compare with.")]
FailIfSlower = Annotated[
    str | None, typer.Option("--fail-if-slower", help="Status 1 if a call is slower than the baseline by more: 5%.")
]
Lnc = Annotated[int | None, typer.Option("--lnc", help="Cores of a logical core, for kernels launched without [lnc].")]


def make_session(
    chip: str | None,
    time_only: bool,
    schedule: str | None,
    clock: str,
    strict_capacity: bool,
    seed: int,
    assume: Sequence[str] | None,
    lnc: int | None,
) -> Session:
    """The session that a command's options ask for."""
    from trnsim.hardware import load_chip
    from trnsim.session import Session, SimulationOptions

    values: dict[str, int] = {}
    for item in assume or []:
        name, _, text = item.partition("=")
        try:
            values[name] = int(text, 0)
        except ValueError:
            raise InputError(f"--assume {item!r}: write NAME=INTEGER") from None
    check_choices(schedule, clock)
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


def changed_chip(chip: str | None, settings: Sequence[str] | None, default: str | None = None) -> str | None:
    """The chip that ``--chip`` and ``--set`` ask for. What is set without effect on kernels is said.

    Raises:
        InputError: a setting that does not hold.
    """
    if not settings:
        return chip if chip is not None else default
    from trnsim.hardware import load_chip
    from trnsim.hardware.whatif import choose, without_effect

    name = choose(chip, settings, default)
    assert name is not None
    for path in without_effect(load_chip(name)):
        error_console().print(f"no kernel's time depends on {path}", highlight=False)
    return name


def check_choices(schedule: str | None, clock: str | None) -> None:
    """Raise InputError for a schedule or clock that does not exist; None is a default."""
    from trnsim.timing.options import CLOCKS, SCHEDULES

    for option, value, known in (("schedule", schedule, SCHEDULES), ("clock", clock, CLOCKS)):
        if value is not None and value not in known:
            raise InputError(
                f"unknown {option} {value!r}: known are {', '.join(known)}", operand=f"--{option}", value=value
            )


def read_baseline(path: Path | None, fail_if_slower: str | None) -> BaselineReport | None:
    """The report to compare with, read before anything runs.

    Raises:
        InputError: it is not a report, or one of the two options is given without the other.
    """
    from trnsim.report.baseline import Baseline as Report
    from trnsim.report.baseline import parse_percent

    if path is None and fail_if_slower is None:
        return None
    if path is None or fail_if_slower is None:
        raise InputError("--baseline FILE and --fail-if-slower PERCENT are given together")
    return Report.read(path, parse_percent(fail_if_slower))


class progress:
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


def report(
    calls: Sequence[KernelCall],
    json: str | None,
    perfetto: Path | None,
    html: Path | None,
    trace: Path | None = None,
    chip: str | None = None,
) -> None:
    """Write the reports that were asked for, and one to the terminal unless JSON goes there.

    ``trace``: also save the calls' traces; ``chip`` is what the chip was asked for by.
    """
    if perfetto is not None:
        from trnsim.report.perfetto_report import write_perfetto

        write_perfetto(calls, perfetto)
    if html is not None:
        from trnsim.report.html_report import write_html

        write_html(calls, html)
    if trace is not None:
        from trnsim.recording import save_recording

        save_recording(calls, trace, chip)
    if json is not None:
        from trnsim.report.json_report import write_json

        write_json(calls, json)
    if json != "-":
        from trnsim.report.terminal import render_terminal

        render_terminal(calls, console())
    for path in (perfetto, html, trace, json):
        if path is not None and path != "-":
            error_console().print(f"wrote {path}", highlight=False)


def status_of(calls: Sequence[KernelCall], baseline: BaselineReport | None = None) -> int:
    """1 if a call has findings that are warnings or worse, or fails the comparison with ``baseline``, which is said."""
    failures = baseline.failures(calls) if baseline is not None else []
    for failure in failures:
        error_console().print(f"slower: {failure}" if " was " in failure else failure, highlight=False, markup=False)
    if baseline is not None and not failures:
        error_console().print(f"no call is slower than in {baseline.path} by more than {baseline.tolerance:.1%}")
    return int(bool(failures) or any(f.severity != "info" for call in calls for f in call.findings))


def console() -> Any:
    """Standard output; 100 columns into pipes and files."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=100)


def write_json_value(value: Any, target: str) -> None:
    """``value`` as JSON to a file, or to standard output for ``-``."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    from trnsim.report.files import write_text_atomic

    write_text_atomic(Path(target), text)


def error_console() -> Any:
    """Standard error, for what is not the command's output."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)
