"""Kernels of NKI 0.1 and what launches them: ``jit``, ``baremetal``, ``benchmark``, ``simulate_kernel``.

The programs of a grid run one after another on one core, each with its own ``program_id``; the tensors that they make
in shared HBM are the same ones. Time is that of one core that runs them all.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trnsim.errors import CompilerError, InputError
from trnsim.machine import core as machine
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.versions.beta1.blocks import BlockTensor
from trnsim.nki.versions.beta1.tensor import Tensor, flush, state
from trnsim.releases import Release
from trnsim.session import Session, SimulationOptions, current_session, run_kernel

MODES = ("auto", "baremetal", "benchmark", "simulation", "trace", "jax", "torchxla")


class Kernel:
    """A kernel of NKI 0.1.

    Attributes:
        func: the function as written.
        grid: sizes of the launch grid.
    """

    def __init__(self, func: Callable[..., Any], mode: str = "auto", **options: Any) -> None:
        if mode not in MODES:
            raise CompilerError(f"nki.jit has no mode {mode!r}", operand="mode", value=mode, limit=MODES)
        self.func, self.mode, self.options = func, mode, options
        self.grid: tuple[int, ...] = ()
        functools.update_wrapper(self, func)
        del self.__dict__["__wrapped__"]  # pytest takes a wrapped function called test_... for a test
        self.__signature__ = inspect.signature(func)

    def _copy(self) -> Kernel:
        copy = type(self)(self.func, self.mode, **self.options)
        copy.grid = self.grid
        return copy

    def __getitem__(self, grid: Any) -> Kernel:
        copy = self._copy()
        copy.grid = tuple(int(n) for n in (grid if isinstance(grid, tuple) else (grid,)))
        if not copy.grid or min(copy.grid) < 1:
            raise CompilerError("every dimension of a launch grid is at least 1", operand="grid", value=copy.grid)
        return copy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if machine.running():
            return self.func(*args, **kwargs)
        return self.launch(args, kwargs)

    def launch(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: SimulationOptions | None = None) -> Any:
        """Run it under ``options`` (default: the active session's)."""
        target = self.options.get("platform_target")
        return run_kernel(
            self._programs(),
            tuple(_narrowed(a) for a in args),
            {k: _narrowed(a) for k, a in kwargs.items()},
            name=getattr(self.func, "__name__", "kernel"),
            platform_target=target,
            options=options,
            release=Release("0.1", "import neuronxcc.nki"),
        )

    def _programs(self) -> Callable[..., Any]:
        @functools.wraps(self.func)
        def run(*args: Any, **kwargs: Any) -> Any:
            current = state()
            current.grid = self.grid
            result: Any = None
            for number in range(math.prod(self.grid)):
                current.ids = tuple(int(i) for i in np.unravel_index(number, self.grid)) if self.grid else ()
                current.shared_count = 0
                bound = [_tensors(a) for a in args]
                named = {k: _tensors(a) for k, a in kwargs.items()}
                returned = self.func(*bound, **named)
                flush()
                if number == 0:
                    result = returned
            return _views(result)

        return run

    def __repr__(self) -> str:
        return f"<nki 0.1 kernel {getattr(self.func, '__name__', '?')}{list(self.grid) if self.grid else ''}>"


def _narrowed(value: Any) -> Any:
    """NumPy's 64-bit arrays as the 32-bit ones that hardware has."""
    if isinstance(value, np.ndarray) and value.dtype.itemsize == 8 and value.dtype.kind in "fiu":
        return value.astype({"f": np.float32, "i": np.int32, "u": np.uint32}[value.dtype.kind])
    return value


def _tensors(value: Any) -> Any:
    """What the kernel sees of its arguments: tensors of NKI 0.1."""
    if isinstance(value, NkiTensor):
        tensor = Tensor(value, value.shape, value.dtype)
        tensor.parameter = True
        return tensor
    if isinstance(value, (tuple, list)) and any(isinstance(v, NkiTensor) for v in value):
        return type(value)(_tensors(v) for v in value)
    return value


def _views(value: Any) -> Any:
    """What the kernel returned, as tensors of the machine."""
    if isinstance(value, (tuple, list)):
        return type(value)(_views(v) for v in value)
    if isinstance(value, BlockTensor):
        raise CompilerError("a kernel cannot return a tensor with block dimensions on chip", value=repr(value))
    return value.checked() if isinstance(value, Tensor) else value


# -- decorators --------------------------------------------------------------------------------------------------------


def peel(kernel: Any) -> Kernel:
    """The kernel inside a wrapper, or made of a plain function; its grid is kept."""
    if isinstance(kernel, Kernel):
        if type(kernel) is Kernel:
            return kernel
        plain = Kernel(kernel.func, "auto", **_jit_options(kernel.options))
        plain.grid = kernel.grid
        return plain
    func = getattr(kernel, "func", kernel)
    if not callable(func):
        raise InputError(f"{type(kernel).__name__} is no kernel")
    return Kernel(func)


def _jit_options(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k == "platform_target"}


def jit(func: Any = None, mode: str = "auto", **options: Any) -> Any:
    """Make a kernel of a function (or of a kernel, with other options). Every mode simulates."""
    if func is None:
        return lambda f: jit(f, mode, **options)
    if mode in ("benchmark", "baremetal"):
        return {"benchmark": benchmark, "baremetal": baremetal}[mode](func, **options)
    inner = peel(func)
    kernel = Kernel(inner.func, mode, **{**inner.options, **options})
    kernel.grid = inner.grid
    return kernel


def trace(func: Any = None, **options: Any) -> Any:
    """``nki.trace``: as ``nki.jit``."""
    return jit(func, "trace", **options)


def baremetal(kernel: Any = None, **options: Any) -> Any:
    """``nki.baremetal``: the kernel, run on simulated cores."""
    if kernel is None:
        return lambda k: baremetal(k, **options)
    inner = peel(kernel)
    result = Kernel(inner.func, "baremetal", **{**inner.options, **options})
    result.grid = inner.grid
    return result


class Latency:
    """Predicted latency of a kernel. The prediction is one number: every percentile is the same.

    Attributes:
        clock: which clock it is measured with (``kernel``: from the first instruction to the last).
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.clock = call.clock
        self.microseconds: float = call.timeline.total_ps / 1e6

    def get_latency_percentile(self, percentile: float) -> float:
        """Microseconds."""
        if not 0 <= percentile <= 100:
            raise InputError("a percentile is between 0 and 100", value=percentile)
        return self.microseconds


class BenchmarkResult:
    """What ``kernel.benchmark_result`` is after a call."""

    def __init__(self, call: Any) -> None:
        self.nc_latency = Latency(call)


class Benchmark(Kernel):
    """A kernel whose calls predict its time; nothing is computed that the time does not depend on."""

    benchmark_result: BenchmarkResult | None = None

    def launch(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: SimulationOptions | None = None) -> Any:
        """Time the kernel; returns nothing, as the vendor's does."""
        outer = current_session()
        base = options or (outer.options if outer else SimulationOptions(numeric=False))
        session = outer if outer is not None and base.timed else Session(replace(base, timed=True))
        with session.active():
            super().launch(args, kwargs, session.options)
        call = session.calls[-1]
        self.benchmark_result = BenchmarkResult(call)
        self._write_files(call)

    def _write_files(self, call: Any) -> None:
        """The trace file that was asked for holds what trnsim recorded; there is no program compiled for hardware."""
        name = self.options.get("save_trace_name")
        if name:
            folder = Path(self.options.get("working_directory") or os.curdir)
            folder.mkdir(parents=True, exist_ok=True)
            call.traces[0].save(folder / str(name))


def benchmark(kernel: Any = None, **options: Any) -> Any:
    """``nki.benchmark``: calls predict the latency, ``.benchmark_result.nc_latency.get_latency_percentile(p)``."""
    if kernel is None:
        return lambda k: benchmark(k, **options)
    inner = peel(kernel)
    result = Benchmark(inner.func, "benchmark", **{**inner.options, **options})
    result.grid = inner.grid
    return result


def profile(func: Any = None, **options: Any) -> Any:
    """``nki.profile``: as ``nki.benchmark``."""
    return benchmark(func, **options)


def simulate_kernel(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """Run ``kernel`` (``kernel[grid]``, or a wrapper of one) with numbers and return what it returns."""
    inner = peel(kernel)
    session = current_session()
    options = session.options if session is not None else SimulationOptions(timed=False)
    return inner.launch(args, kwargs, options)
