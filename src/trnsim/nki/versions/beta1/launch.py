"""Kernels of NKI 0.1 and what launches them: ``jit``, ``baremetal``, ``benchmark``, ``simulate_kernel``.

The programs of a grid run on one core, or where the grid has ``nl.nc(2)`` on the two of a logical core
(``programs.py``); the tensors that they make in shared HBM are the same ones.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from trnsim.errors import CompilerError, InputError
from trnsim.machine import core as machine
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import SKIP_MIDDLE_END, STATIC_DESCRIPTORS
from trnsim.nki import launchers
from trnsim.nki.kernel import OPTIONS
from trnsim.nki.kernel import Kernel as TodaysKernel
from trnsim.nki.launchers import Measured, checked
from trnsim.nki.versions.beta1.blocks import BlockTensor
from trnsim.nki.versions.beta1.grid import cores_of
from trnsim.nki.versions.beta1.loops import report_ranges
from trnsim.nki.versions.beta1.programs import Programs
from trnsim.nki.versions.beta1.rules import Parameters
from trnsim.nki.versions.beta1.tensor import Tensor, flush, state
from trnsim.releases import Release
from trnsim.session import SimulationOptions, current_session, run_kernel

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
        self.grid: tuple[Any, ...] = ()
        functools.update_wrapper(self, func)
        del self.__dict__["__wrapped__"]  # pytest takes a wrapped function called test_... for a test
        self.__signature__ = inspect.signature(func)

    def _copy(self) -> Kernel:
        copy = type(self)(self.func, self.mode, **self.options)
        copy.grid = self.grid
        return copy

    def __getitem__(self, grid: Any) -> Kernel:
        copy = self._copy()
        copy.grid = grid if isinstance(grid, tuple) else (grid,)
        sizes = tuple(int(n) for n in copy.grid)
        if not sizes or min(sizes) < 1:
            raise CompilerError("every dimension of a launch grid is at least 1", operand="grid", value=sizes)
        cores = max(cores_of(copy.grid, 1)) + 1
        if cores > 2:
            raise CompilerError(
                "a logical core has at most 2 cores", instruction="nl.nc", operand="grid", value=cores, limit=2
            )
        return copy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if machine.running():
            if self.grid:
                call = f"{getattr(self.func, '__name__', 'kernel')}[{', '.join(str(int(n)) for n in self.grid)}]"
                raise CompilerError(f"Calling kernel with spmd grid ({call}) inside another kernel is not supported")
            return self.func(*args, **kwargs)
        return self.launch(args, kwargs)

    def launch(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: SimulationOptions | None = None) -> Any:
        """Run it under ``options`` (default: the active session's)."""
        target = self.options.get("platform_target")
        cores = self._cores(options)
        return run_kernel(
            self._programs(cores),
            tuple(_narrowed(a) for a in args),
            {k: _narrowed(a) for k, a in kwargs.items()},
            name=getattr(self.func, "__name__", "kernel"),
            grid=cores,
            platform_target=target,
            options=options,
            release=Release("0.1", "import neuronxcc.nki"),
            any_lnc=True,
        )

    def _cores(self, options: SimulationOptions | None) -> int:
        """Cores of the launch: those of ``nl.nc``, else what the options ask for where there are programs for them."""
        named = max(cores_of(self.grid, 1)) + 1
        if named > 1:
            return named
        session = current_session()
        chosen = options or (session.options if session is not None else None)
        wanted = (chosen.lnc if chosen is not None else None) or _lnc_of_environment()
        return wanted if math.prod(int(n) for n in self.grid) >= wanted else 1

    def _programs(self, cores: int) -> Callable[..., Any]:
        programs = Programs(tuple(int(n) for n in self.grid), cores_of(self.grid, cores))

        @functools.wraps(self.func)
        def run(*args: Any, **kwargs: Any) -> Any:
            def body() -> Any:
                current = state()
                written = _as_written(self.func)
                parameters = Parameters(written, str(self.options.get("experimental_flags", "")))
                current.parameters, current.code = parameters, getattr(written, "__code__", None)
                for name, value in (*zip(self.__signature__.parameters, args, strict=False), *kwargs.items()):
                    for item in value if isinstance(value, (tuple, list)) else (value,):
                        if isinstance(item, NkiTensor):
                            parameters.add(name, item)
                if current.code is not None and not any(current.ids):
                    report_ranges(current.code)
                bound = [_tensors(a) for a in args]
                returned = self.func(*bound, **{k: _tensors(a) for k, a in kwargs.items()})
                flush()
                parameters.check(returned)
                return returned

            return _views(programs.run(body))

        run.directives = self._directives()  # type: ignore[attr-defined]
        return run

    def _directives(self) -> tuple[str, ...]:
        """What the source and the options of the call ask of the compiler (``Trace.directives``)."""
        found = []
        if getattr(_as_written(self.func), "skips_middle_end", False):
            found.append(SKIP_MIDDLE_END)
        if "--disable-dge" in str(self.options.get("additional_compile_opt") or "").split():
            found.append(STATIC_DESCRIPTORS)
        return tuple(found)

    def __repr__(self) -> str:
        grid = [int(n) for n in self.grid]
        return f"<nki 0.1 kernel {getattr(self.func, '__name__', '?')}{grid or ''}>"


def _as_written(func: Any) -> Any:
    """The kernel as written, below wrappers of ``functools``."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.unwrap(func)


def _lnc_of_environment() -> int:
    """Cores of a logical core that ``NEURON_LOGICAL_NC_CONFIG`` says, 1 without it."""
    text = os.environ.get("NEURON_LOGICAL_NC_CONFIG") or "1"
    if text not in ("1", "2"):
        raise InputError("NEURON_LOGICAL_NC_CONFIG is 1 or 2", value=text)
    return int(text)


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
    func = kernel if isinstance(kernel, functools.partial) else getattr(kernel, "func", kernel)
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
    checked("baremetal", options, OPTIONS)
    if kernel is None:
        return lambda k: baremetal(k, **options)
    if isinstance(kernel, TodaysKernel):
        return launchers.baremetal(kernel, **options)
    inner = peel(kernel)
    result = Kernel(inner.func, "baremetal", **{**inner.options, **options})
    result.grid = inner.grid
    return result


class Benchmark(Measured, Kernel):
    """A kernel whose calls predict its time; nothing is computed that the time does not depend on."""


def benchmark(kernel: Any = None, **options: Any) -> Any:
    """``nki.benchmark``: calls predict the latency, ``.benchmark_result.nc_latency.get_latency_percentile(p)``."""
    checked("benchmark", options, OPTIONS)
    if kernel is None:
        return lambda k: benchmark(k, **options)
    if isinstance(kernel, TodaysKernel):
        return launchers.benchmark(kernel, **options)
    inner = peel(kernel)
    result = Benchmark(inner.func, "benchmark", **{**inner.options, **options})
    result.grid = inner.grid
    return result


def profile(func: Any = None, **options: Any) -> Any:
    """``nki.profile``: as ``nki.benchmark``."""
    return benchmark(func, **options)


def simulate_kernel(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """Run ``kernel`` (``kernel[grid]``, or a wrapper of one) with numbers and return what it returns."""
    if isinstance(kernel, TodaysKernel):
        return launchers.simulate_kernel(kernel, *args, **kwargs)
    inner = peel(kernel)
    session = current_session()
    options = session.options if session is not None else SimulationOptions(timed=False)
    return inner.launch(args, kwargs, options)
