"""Timing cases: each in a process of its pool, time-only, under the schedule of its API."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError, TrnsimError
from trnsim.validation.cases import Call, Case, Made, Name, Tensor, Value
from trnsim.validation.recipes import OLD_API

if TYPE_CHECKING:
    from trnsim.hardware import Chip

_WORST = ("calibrated", "interpolated", "extrapolated", "assumed", "what-if")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What running a case gave. Times in microseconds from the first instruction to the last DMA, launches added."""

    span_us: float
    spread_us: float
    busiest_us: float
    sum_us: float
    schedule: str
    support: str
    support_reason: str
    bound_by: str
    launches: int
    instructions: int
    spills: int
    findings: int
    seconds: float
    slopes: tuple[tuple[str, float], ...] = ()
    """Microseconds that the span changes with each constant that was varied, for a constant twice as large."""


@dataclass(frozen=True)
class Failure:
    """Why a case could not be timed."""

    reason: str


def schedule_of(case: Case) -> str:
    """``tensorizer`` for kernels of the old API where it exists, else ``nki``."""
    from trnsim.timing import SCHEDULES

    old = case.recipe.group == OLD_API
    return "tensorizer" if old and "tensorizer" in SCHEDULES else "nki"


def run_case(
    case: Case,
    roots: Mapping[str, Path],
    vary: Mapping[str, float] | None = None,
    without: frozenset[str] = frozenset(),
) -> Prediction | Failure:
    """Time one case in this process, passes of the compiler stage left out that are in ``without``.

    ``vary``: constants to time it again with, and by which share larger.
    """
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet():
            calls = [_launch(case, call, roots, without) for call in case.recipe.calls]
    except TrnsimError as error:
        return Failure(f"{error.kind}: {' '.join(str(error).split())}")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
    from trnsim.hardware import load_chip
    from trnsim.validation.naive import naive

    chip = load_chip(case.chip)
    plain = [naive(call.traces, chip) for call in calls]
    worst = max(calls, key=lambda c: _WORST.index(c.support))
    return Prediction(
        span_us=sum(c.timeline.total_ps for c in calls) / 1e6,
        spread_us=sum(c.timeline.spread_ps for c in calls) / 1e6,
        busiest_us=sum(n.busiest_us for n in plain),
        sum_us=sum(n.sum_us for n in plain),
        schedule=calls[0].schedule,
        support=worst.support,
        support_reason=worst.support_reason,
        bound_by="; ".join(c.timeline.bound_by() for c in calls),
        launches=len(calls),
        instructions=sum(c.timeline.totals.instructions for c in calls),
        spills=sum(c.timeline.totals.spills for c in calls),
        findings=sum(len(c.findings) for c in calls),
        slopes=_slopes(calls, chip, vary or {}),
        seconds=time.perf_counter() - started,
    )


def _slopes(calls: Sequence[Any], chip: Chip, vary: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """How the times of ``calls`` change with constants; none where the constants are not of this generation."""
    from trnsim.hardware import load_timing
    from trnsim.hardware.timing_constants import scaled
    from trnsim.timing import TimingOptions, simulate

    if load_timing(chip).support != "calibrated":
        return ()
    found = []
    for name, share in vary.items():
        with scaled({name: 1 + share}):
            again = [simulate(c.traces, chip, TimingOptions(schedule=c.schedule)).total_ps for c in calls]
        change = sum(again) - sum(c.timeline.total_ps for c in calls)
        found.append((name, change / share / 1e6))
    return tuple(found)


def run_cases(
    cases: Sequence[Case],
    roots: Mapping[str, Path],
    workers: int,
    progress: Callable[[int, int, Case], None],
    vary: Mapping[str, float] | None = None,
    without: frozenset[str] = frozenset(),
) -> dict[Case, Prediction | Failure]:
    """Time all ``cases`` with ``workers`` processes, the largest first.

    Cases that need other modules in place run in processes of their own.
    """
    found: dict[Case, Prediction | Failure] = {}
    context = multiprocessing.get_context("spawn")
    for environment in sorted({_environment(c) for c in cases}):
        mine = sorted((c for c in cases if _environment(c) == environment), key=lambda c: -c.size)
        with ProcessPoolExecutor(min(workers, len(mine)), context, _start) as pool:
            waiting = {pool.submit(run_case, case, roots, vary, without): case for case in mine}
            for done in as_completed(waiting):
                case = waiting[done]
                found[case] = done.result()
                progress(len(found), len(cases), case)
    return found


def _start() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _environment(case: Case) -> str:
    return case.recipe.calls[0].source.environment


def _launch(case: Case, call: Call, roots: Mapping[str, Path], without: frozenset[str]) -> Any:
    from trnsim import SimulationOptions, profile
    from trnsim.timing.options import passes_of
    from trnsim.validation.checkouts import load

    kernel = load(call.source, call.kernel, roots)
    if call.compile_options:
        kernel = importlib.import_module("neuronxcc.nki").baremetal(kernel, additional_compile_opt=call.compile_options)
    schedule = schedule_of(case)
    flags = case.recipe.passes
    passes = None
    if without or flags:
        added = {f for f in flags if not f.startswith("-")}
        passes = (passes_of(schedule) | added) - without - {f[1:] for f in flags if f.startswith("-")}
    setting = case.recipe.setting
    chip = f"{case.chip}[{setting}]" if setting else case.chip
    options = SimulationOptions(chip=chip, numeric=False, schedule=schedule, passes=passes, lnc=call.lnc)
    arguments = [_value(v) for v in call.arguments]
    return profile(kernel, *arguments, options=options, **{k: _value(v) for k, v in call.named})


def _value(value: Value) -> Any:
    if isinstance(value, Tensor):
        return str(value) if value.filled is None else np.full(value.shape, value.filled, np.int32)
    if isinstance(value, Name):
        found: Any = importlib.import_module(value.module)
        for part in value.path.split("."):
            if not hasattr(found, part):
                raise InputError(f"{value.module} has no {value.path}")
            found = getattr(found, part)
        return found
    if isinstance(value, Made):
        return _value(value.maker)(**{k: _value(v) for k, v in value.named})
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Kernels log and warn while they are traced; that is no part of a comparison."""
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
