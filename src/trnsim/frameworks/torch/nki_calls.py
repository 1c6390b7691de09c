"""Kernels of the user inside models: what ``nki.jit`` made, called with tensors while a chip is entered.

The kernel runs in place on the simulated chip, with numbers in the depths ``fast`` and ``exact`` and without in
``shape``, where its trace gives the shapes of its results. Its time is that of its own instructions, and stands in the
stream as one call ``nki.NAME``. Graphs of ``torch.compile`` end before a kernel and go on after it.

As on hardware, a kernel has no derivative of its own: it is given one by a ``torch.autograd.Function`` around it, and
asking autograd for one that it does not have is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes

from trnsim.errors import InputError, TrnsimError, UnsupportedError
from trnsim.frameworks.torch.formats import Tensor
from trnsim.machine import core as machine
from trnsim.nki.kernel import Kernel
from trnsim.nki.versions.beta1.launch import Kernel as OldKernel
from trnsim.numerics import as_dtype
from trnsim.operators.cost import ENGINES, OperatorCost
from trnsim.session import LazyArray, Session, ShapeOnly, SimulationOptions

if TYPE_CHECKING:
    from trnsim.frameworks.torch.device import Chip
    from trnsim.report.call import KernelCall

_installed = False


def install(current: Callable[[], Chip | None]) -> None:
    """Have kernels ask for the chip that is entered when they are called with tensors. Done once."""
    global _installed
    if _installed:
        return
    _installed = True
    for kind in (Kernel, OldKernel):
        vars_of: Any = kind
        vars_of.__call__ = _asking(kind.__call__, current)


def end_graphs() -> None:
    """Have ``torch.compile`` end a graph where a kernel is called, and not look inside. Done once."""
    for kind in (Kernel, OldKernel):
        vars_of: Any = kind
        if not hasattr(kind.__call__, "ends_graphs"):
            vars_of.__call__ = _ending(kind.__call__)


def _ending(plain: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo

    disabled = torch._dynamo.disable(plain, reason="an NKI kernel is no part of a graph")

    @functools.wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Elsewhere PyTorch's own frames would stand between a kernel and the line that called it.
        return disabled(self, *args, **kwargs) if torch.compiler.is_compiling() else plain(self, *args, **kwargs)

    vars(call)["ends_graphs"] = True
    return call


def _asking(plain: Callable[..., Any], current: Callable[[], Chip | None]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        chip = None if machine.running() else current()
        tensors = _tensors((args, kwargs))
        if chip is None or not tensors:
            return plain(self, *args, **kwargs)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return _without_gradient(chip, self, args, kwargs, tensors)
        return run(chip, self, args, kwargs)

    return call


def run(chip: Chip, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a kernel on a chip and record it.

    Raises:
        TrnsimError: what the kernel did wrong, or what cannot be known without data; module and kernel are named.
    """
    name = getattr(kernel.func, "__name__", "kernel")
    where = f"{chip.places.here()[0] or 'outside of modules'}: kernel {name}"
    _check_cores(chip, kernel, where)
    numeric, tensors = chip.depth != "shape", _tensors((args, kwargs))
    session = Session(SimulationOptions(chip=chip.chip, numeric=numeric, timed=True, seed=chip.seed))
    try:
        with session.active():
            if numeric:
                chip.executor.forget(tensors)  # a kernel may change its arguments
                with _disable_current_modes():
                    result = kernel.launch(args, kwargs)
            else:
                result = kernel.launch(_shapes(args), _shapes(kwargs))
    except TrnsimError as error:
        error.message = f"{where}: {error.message}"
        error.args = (error.message,)
        raise
    except AssertionError as error:
        raise InputError(f"{where}: {error or 'an assertion of the kernel failed'}") from error
    if not numeric:
        mode = detect_fake_mode(tensors)
        with _disable_current_modes(), mode if mode is not None else nullcontext():
            result = _made(result)
    chip.record_kernel(name, tensors, _tensors(result), cost_of(session.calls[-1]))
    return result


def cost_of(call: KernelCall) -> OperatorCost:
    """The cost of a kernel call that was timed."""
    timeline: Any = call.timeline
    cores = {t.core for t in timeline.tracks}
    busy = dict.fromkeys(ENGINES, 0.0)
    for item in timeline.engine_summary():
        busy[item.name] = max(busy[item.name], float(item.busy_ps))
    busy["dma"] = max((float(timeline.dma_busy_ps(core)) for core in cores), default=0.0)
    totals = timeline.totals
    return OperatorCost(
        operator=f"nki.{call.kernel}",
        implementation="nki",
        time_ps=float(timeline.total_ps),
        hbm_bytes=totals.hbm_read_bytes + totals.hbm_write_bytes,
        flops=totals.flops,
        sbuf_bytes=max((m.peak for m in timeline.memory if m.memory == "sbuf"), default=0),
        support=call.support,
        reason=call.support_reason,
        how="simulated",
        error_percent=call.error_percent,
        busy_ps=busy,
    )


def _check_cores(chip: Chip, kernel: Any, where: str) -> None:
    cores = getattr(kernel, "lnc", None)
    if cores is not None and cores > chip.lnc:
        raise InputError(
            f"{where} is launched on {cores} cores; a logical core of this chip has {chip.lnc}",
            operand="lnc",
            value=cores,
            limit=chip.lnc,
        )


class _Refusing(torch.autograd.Function):
    """Results of a kernel that need a gradient, and have none."""

    @staticmethod
    def forward(context: Any, made: Callable[[], Any], name: str, *tensors: Tensor) -> Any:  # noqa: ARG004
        context.name = name
        return made()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:  # noqa: ARG004
        raise UnsupportedError(
            f"kernel {context.name} has no gradient: call it from a torch.autograd.Function that has a backward",
            instruction=context.name,
        )


def _without_gradient(
    chip: Chip, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> Any:
    name = getattr(kernel.func, "__name__", "kernel")
    kinds: list[type] = []

    def made() -> Any:
        result = run(chip, kernel, args, kwargs)
        kinds.append(type(result))
        return tuple(result) if isinstance(result, list) else result

    result = _Refusing.apply(made, name, *tensors)
    return list(result) if kinds[0] is list else result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _tensors(v)]
    return []


def _shapes(value: Any) -> Any:
    """Arguments without data; the same tensor stays one."""
    known: dict[int, ShapeOnly] = {}

    def one(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if id(item) not in known:
                known[id(item)] = ShapeOnly(tuple(item.shape), as_dtype(item.dtype))
            return known[id(item)]
        if isinstance(item, dict):
            return {k: one(v) for k, v in item.items()}
        if isinstance(item, (tuple, list)):
            return type(item)([one(v) for v in item])
        return item

    return one(value)


def _made(value: Any) -> Any:
    """Results without data, as tensors of the mode that is active, which has none either."""
    if isinstance(value, (tuple, list)):
        return type(value)([_made(v) for v in value])
    if isinstance(value, LazyArray):
        dtype = getattr(torch, str(value.tensor.dtype), None)
        if dtype is None:
            raise UnsupportedError(f"PyTorch has no {value.tensor.dtype}", operand="dtype", value=value.tensor.dtype)
        return torch.empty(value.shape, dtype=dtype)
    return value.copy() if isinstance(value, np.ndarray) else value
