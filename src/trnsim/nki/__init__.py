"""``nki``: the Neuron Kernel Interface, version 0.6, on simulated NeuronCores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trnsim import releases
from trnsim.nki.kernel import Kernel, simulate
from trnsim.nki.launchers import baremetal, benchmark, profile, simulate_kernel
from trnsim.numerics import DType

__version__ = "0.6.0"


def jit(fn: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """Make a kernel of a function: called with arrays it runs on simulated cores and returns arrays of the same kind.

    ``kernel[lnc]`` chooses the cores of a logical core (1 or 2). Inside another kernel a call is inlined.

    Raises:
        CompilerError: an option that no NKI version has.
    """
    if fn is None:
        return lambda function: jit(function, **kwargs)
    if isinstance(fn, Kernel):
        return fn
    return Kernel(fn, **kwargs)


from trnsim.nki import collectives, isa, typing  # noqa: E402
from trnsim.nki import language as language  # noqa: E402

dtype = DType  # public kernels annotate with it; no documentation has it


def __getattr__(name: str) -> Any:
    raise releases.no_attribute("nki", name)


# The four launchers of NKI 0.1 are not part of 0.6; see launchers.py.
__all__ = [
    "baremetal", "benchmark", "collectives", "isa", "jit", "language", "profile", "simulate", "simulate_kernel",
    "typing",
]  # fmt: skip
