"""Worker processes: each times one variant after another; one that dies takes only its own variant with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from trnsim.sweep.store import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from trnsim.session import SimulationOptions


@dataclass(frozen=True)
class Task:
    """One variant: the kernel, its arguments as text, and the parameters by kind."""

    key: str
    target: str
    arguments: tuple[str, ...]
    params: dict[str, str]
    constants: tuple[str, ...]
    """Names of ``params`` that are constants of the file; the others are keyword arguments."""
    options: SimulationOptions
    nki_version: str | None


def time_variant(task: Task) -> Result:
    """Run one variant; what goes wrong with it becomes its ``error``."""
    from trnsim.script import ScriptError, profile_kernel
    from trnsim.session import Session
    from trnsim.sweep.parameters import KernelFile

    result = Result(key=task.key, params=task.params)
    try:
        path, _, kernel = task.target.rpartition(":")
        constants = {n: task.params[n] for n in task.constants}
        code = KernelFile(path, kernel.partition("[")[0]).compile(constants)
        keywords = [f"{n}={v}" for n, v in task.params.items() if n not in constants]
        session = Session(task.options)
        with session.active():
            profile_kernel(task.target, [*task.arguments, *keywords], session, task.nki_version, code)
        _fill(result, session.calls[-1])
    except ScriptError as error:
        result.error = str(error)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
    return result


def _fill(result: Result, call: Any) -> None:
    from trnsim.report.json_report import call_report
    from trnsim.report.summary import summarize

    report = call_report(summarize(call))
    for name in Result.__struct_fields__:
        if name not in ("key", "params", "error", "findings"):
            setattr(result, name, getattr(report, name))
    result.findings = {}
    for finding in report.findings:
        result.findings[finding.kind] = result.findings.get(finding.kind, 0) + finding.count


def run_tasks(tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Results as they come, from at most ``workers`` processes.

    A variant whose process dies has an ``error`` that says so and an empty key: it is not known to fail again.
    """
    context = multiprocessing.get_context("spawn")
    pending = list(reversed(tasks))
    running: dict[Connection, tuple[SpawnProcess, Task]] = {}
    try:
        while pending or running:
            while pending and len(running) < workers:
                _start(context, running, pending.pop())
            for ready in wait(list(running)):
                connection: Connection = ready  # type: ignore[assignment]
                process, task = running.pop(connection)
                try:
                    yield connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    yield Result(key="", params=task.params, error=_death(process.exitcode))
                    continue
                if pending:
                    running[connection] = (process, pending[-1])
                    connection.send(pending.pop())
                else:
                    _stop(process, connection)
    finally:
        for connection, (process, _) in running.items():
            process.terminate()
            _stop(process, connection)


def _start(context: Any, running: dict[Connection, tuple[SpawnProcess, Task]], task: Task) -> None:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    ours.send(task)
    running[ours] = (process, task)


def _stop(process: SpawnProcess, connection: Connection) -> None:
    connection.close()
    process.join()


def _work(connection: Connection) -> None:
    """A worker: tasks in, results out, until the other end is closed. What kernels print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(time_variant(connection.recv()))


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return (
            f"its process was killed by {signal.Signals(-code).name}; killed for memory, perhaps: use fewer --workers"
        )
    return f"its process ended with exit status {code}"
