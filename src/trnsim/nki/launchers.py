"""Launchers that NKI 0.1 had beside ``nki.jit``: ``benchmark``, ``profile``, ``baremetal``, ``simulate_kernel``.

NKI has not had them since 0.2, but public files use them with ``import nki`` too, so here they also work there. A
benchmark predicts: nothing is compiled and nothing runs on a device.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from trnsim.errors import CompilerError, InputError
from trnsim.nki.kernel import OPTIONS, Kernel, as_kernel
from trnsim.session import Session, SimulationOptions, current_session

# What the launchers of NKI 0.1 take. Of these save_trace_name and working_directory choose where a file goes; the
# others are about runs on a device (a prediction needs no repetitions), or about the vendor's compiler and its files.
LAUNCHER_OPTIONS = {
    "warmup", "iters", "n_iterations", "save_neff_name", "save_trace_name", "additional_compile_opt", "artifacts_dir",
    "working_directory", "overwrite", "profile_nth",
}  # fmt: skip


class Latency:
    """Predicted latency of a kernel. The prediction is one number: every percentile is the same.

    Attributes:
        microseconds: the latency.
        clock: which clock it is measured with (``kernel``: from the first instruction to the last).
        schedule: the compiler stage that it was predicted with.
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.clock = call.clock
        self.schedule = call.schedule
        self.microseconds: float = call.timeline.total_ps / 1e6

    def get_latency_percentile(self, percentile: float) -> float:
        """Microseconds."""
        if not 0 <= percentile <= 100:
            raise InputError("a percentile is between 0 and 100", value=percentile)
        return self.microseconds

    def __repr__(self) -> str:
        return f"{self.microseconds:,.2f} us predicted (clock {self.clock}, schedule {self.schedule})"


class BenchmarkResult:
    """What ``kernel.benchmark_result`` is after a call."""

    def __init__(self, call: Any) -> None:
        self.nc_latency = Latency(call)


class Measured:
    """What a benchmarked kernel has over a kernel: calls predict its time, and compute only what that depends on."""

    options: dict[str, Any]
    benchmark_result: BenchmarkResult | None = None

    def launch(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: SimulationOptions | None = None, **more: Any
    ) -> None:
        """Time the kernel; returns nothing, as the vendor's does. Without a session the latency is printed."""
        outer = current_session()
        base = options or (outer.options if outer else SimulationOptions(numeric=False))
        session = outer if outer is not None and base.timed else Session(replace(base, timed=True))
        with session.active():
            super().launch(args, kwargs, session.options, **more)  # type: ignore[misc]
        call = session.calls[-1]
        self.benchmark_result = BenchmarkResult(call)
        self._write_files(call)
        if outer is None:
            print(f"{call.kernel}: {self.benchmark_result.nc_latency}")

    def _write_files(self, call: Any) -> None:
        """The trace file that was asked for holds what trnsim recorded; there is no program compiled for hardware."""
        name = self.options.get("save_trace_name")
        if not name:
            return
        folder = Path(self.options.get("working_directory") or os.curdir)
        folder.mkdir(parents=True, exist_ok=True)
        for core, trace in enumerate(call.traces):
            trace.save(folder / (f"{name}.core{core}" if core else str(name)))


def checked(launcher: str, options: dict[str, Any], more: set[str]) -> dict[str, Any]:
    """``options``; raises CompilerError for one that the launcher does not have."""
    unknown = set(options) - LAUNCHER_OPTIONS - more
    if unknown:
        raise CompilerError(
            f"nki.{launcher} has no option {', '.join(sorted(unknown))}", instruction=f"nki.{launcher}",
            limit=sorted(LAUNCHER_OPTIONS | more),
        )  # fmt: skip
    return options


# -- the same with today's NKI -----------------------------------------------------------------------------------------


class Benchmark(Measured, Kernel):
    """A kernel of NKI 0.2 or later whose calls predict its time."""

    def _copy(self) -> Benchmark:
        copy = Benchmark(self.func)
        copy.options, copy.lnc, copy.schedule = self.options, self.lnc, self.schedule
        return copy


def benchmark(kernel: Any = None, **options: Any) -> Any:
    """Calls predict the latency: ``.benchmark_result.nc_latency.get_latency_percentile(p)`` in microseconds.

    Not part of NKI since 0.2; public code uses it. Options as in NKI 0.1: ``warmup``, ``iters``, ``save_neff_name``,
    ``save_trace_name``, ``additional_compile_opt``.

    Raises:
        CompilerError: another option.
    """
    checked("benchmark", options, OPTIONS)
    if kernel is None:
        return lambda k: benchmark(k, **options)
    inner = as_kernel(kernel)
    if not isinstance(inner, Kernel):
        return _older().benchmark(inner, **options)
    result = Benchmark(inner.func)
    result.options = {**inner.options, **options}
    result.lnc, result.schedule = inner.lnc, inner.schedule
    return result


def profile(func: Any = None, **options: Any) -> Any:
    """As ``benchmark``. Not part of NKI since 0.2."""
    return benchmark(func, **options)


def baremetal(kernel: Any = None, **options: Any) -> Any:
    """The kernel, run on simulated cores. Not part of NKI since 0.2."""
    checked("baremetal", options, OPTIONS)
    if kernel is None:
        return lambda k: baremetal(k, **options)
    return as_kernel(kernel)


def simulate_kernel(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """Run ``kernel`` (or ``kernel[lnc]``, or a wrapper) with numbers. Not part of NKI since 0.2: ``nki.simulate``."""
    inner = as_kernel(kernel)
    if not isinstance(inner, Kernel):
        return _older().simulate_kernel(inner, *args, **kwargs)
    if isinstance(inner, Benchmark):
        plain = Kernel(inner.func, release=inner.release)
        plain.lnc, plain.schedule = inner.lnc, inner.schedule
        inner = plain
    session = current_session()
    options = session.options if session is not None else SimulationOptions(timed=False)
    return inner.launch(args, kwargs, options)


def _older() -> Any:
    """The launchers of NKI 0.1, for kernels that its ``nki.jit`` made."""
    from trnsim.nki.versions import beta1

    return beta1
