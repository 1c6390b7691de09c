"""``trnsim sweep``: variants of a kernel, ranked."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trnsim.commands import common
from trnsim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trnsim.session import SimulationOptions
    from trnsim.sweep.parameters import Parameter
    from trnsim.sweep.store import Store
    from trnsim.sweep.workers import Task


def register(app: typer.Typer) -> None:
    """Add ``sweep``."""
    app.command()(sweep)


def sweep(
    target: Annotated[str, typer.Argument(metavar="FILE.py:KERNEL", help="The kernel; KERNEL[2,4] on a grid.")],
    param: Annotated[
        list[str],
        typer.Option(
            "--param", help="NAME=1,2,4: a keyword argument of the kernel, or a constant of its file. Repeat."
        ),
    ],
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", help="f32[2048,2048], file.npy or a literal; NAME=... gives it by name. Repeat."),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one a CPU.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Keep results in FILE.jsonl as they come; a later sweep goes on from it."),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Show only so many of the fastest.")] = None,
    json: common.Json = None,
    chip: common.Chip = None,
    schedule: common.Schedule = None,
    clock: common.Clock = "kernel",
    strict_capacity: common.Strict = False,
    seed: common.Seed = 0,
    assume: common.Assume = None,
    lnc: common.Lnc = None,
    nki_version: common.NkiVersion = None,
) -> None:
    """Predict the time of each variant of a kernel, and rank them: all combinations of the parameters' values.

    A constant is a name that the file, or the kernel's body, assigns once; what is computed from it follows. A variant
    that fails is reported with its error; the status is 1 only if all fail.

    Example: trnsim sweep matmul.py:nki_matmul_fully_optimized_ --param TILES_IN_BLOCK_M=4,8,16 \
--param TILES_IN_BLOCK_N=1,2 --arg 'bf16[2048,2048]' --arg 'bf16[2048,2048]' --out sweep.jsonl
    """
    from trnsim.script import split_target
    from trnsim.sweep.parameters import KernelFile, parse_parameters
    from trnsim.sweep.store import Store
    from trnsim.sweep.table import render_sweep, sweep_json

    session = common.make_session(chip, True, schedule, clock, strict_capacity, seed, assume, lnc)
    path, kernel, _ = split_target(target)
    parameters = parse_parameters(param, KernelFile(path, kernel))
    tasks = _tasks(target, Path(path), arg or [], parameters, session.options, nki_version)
    count = min(workers or _processors(), len(tasks))
    with closing(Store(out)) as store:
        results = _run(tasks, store, count)
    if json is not None:
        common.write_json_value(sweep_json(target, parameters, results, top), json)
    if json != "-":
        render_sweep(target, parameters, results, top, common.console())
    if json is not None and json != "-":
        common.error_console().print(f"wrote {json}", highlight=False)
    raise typer.Exit(int(all(r.time_us is None for r in results)))


def _processors() -> int:
    """CPUs that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(
    target: str,
    path: Path,
    arguments: Sequence[str],
    parameters: Sequence[Parameter],
    options: SimulationOptions,
    nki_version: str | None,
) -> list[Task]:
    """One task a variant, each with its key."""
    from trnsim.sweep.parameters import KEYWORD, variants
    from trnsim.sweep.store import key_of, source_digests, trnsim_digest
    from trnsim.sweep.workers import Task

    constants = tuple(p.name for p in parameters if p.kind != KEYWORD)
    facts: dict[str, Any] = {
        "trnsim": trnsim_digest(),
        "sources": source_digests(path),
        "kernel": target.rpartition(":")[2],
        "arguments": [_with_content(a) for a in arguments],
        "nki_version": nki_version or os.environ.get("TRNSIM_NKI_VERSION"),
        "target": os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE"),
        "options": {**asdict(options), "arguments": None, "passes": None},
        "chip": _with_content(options.chip or ""),
    }
    return [
        Task(
            key_of({**facts, "params": {n: _with_content(v) for n, v in params.items()}}),
            target, tuple(arguments), params, constants, options, nki_version,
        )
        for params in variants(parameters)
    ]  # fmt: skip


def _with_content(text: str) -> list[str]:
    """``text``, and a digest of the file that it names, if it names one."""
    file = Path(text.rpartition("=")[2])
    is_file = file.suffix in (".npy", ".toml") and file.is_file()
    return [text, hashlib.sha256(file.read_bytes()).hexdigest()] if is_file else [text]


def _run(tasks: Sequence[Task], store: Store, workers: int) -> list[Any]:
    """Results of all tasks, those in the store taken from there."""
    from trnsim.sweep.workers import run_tasks

    left = [t for t in tasks if t.key not in store.results]
    known = len(tasks) - len(left)
    if known:
        common.error_console().print(f"{known} of {len(tasks)} variants are in {store.path} already", highlight=False)
    deaths: dict[str, Any] = {}
    started = time.perf_counter()
    shown = sys.stderr.isatty()
    by_params = {tuple(t.params.items()): t.key for t in tasks}
    try:
        for done, result in enumerate(run_tasks(left, workers), 1):
            if result.key:
                store.add(result)
            else:
                deaths[by_params[tuple(result.params.items())]] = result
            if shown:
                seconds = time.perf_counter() - started
                rest = seconds / done * (len(left) - done)
                sys.stderr.write(
                    f"\r{known + done} of {len(tasks)} variants, {seconds:.0f} s, {rest:.0f} s to go\x1b[K"
                )
                sys.stderr.flush()
    except KeyboardInterrupt:
        again = f"; the same command goes on from {store.path}" if store.path else "; with --out it could be continued"
        raise InputError(f"interrupted after {len(store.results)} of {len(tasks)} variants{again}") from None
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
    return [store.results.get(t.key) or deaths[t.key] for t in tasks]
