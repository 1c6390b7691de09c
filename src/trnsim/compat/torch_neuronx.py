"""``torch_neuronx``: ``nki_jit``, which scripts of the time of NKI 0.1 make kernels with. Compiling models is not done.

Other names of the package can be imported; using one raises ``UnsupportedError``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from trnsim.errors import UnsupportedError
from trnsim.nki.versions.stubs import Stub

__path__: list[str] = []
_BETA1 = "trnsim.nki.versions.beta1"


def nki_jit(func: Any = None, **options: Any) -> Any:
    """``nki.jit`` of the NKI that the function's module imports: ``neuronxcc.nki`` or today's ``nki``."""
    if func is None:
        return lambda f: nki_jit(f, **options)
    if _is_beta1(func):
        from trnsim.nki.versions import beta1

        return beta1.jit(func, **options)
    from trnsim import nki

    return nki.jit(func, **options)


def _is_beta1(func: Any) -> bool:
    if isinstance(func, Stub) or type(func).__module__.startswith(_BETA1):
        return True
    names = getattr(getattr(func, "func", func), "__globals__", {})
    return any(isinstance(v, ModuleType) and v.__name__.startswith(_BETA1) for v in names.values())


def trace(*args: Any, **kwargs: Any) -> Any:
    """``torch_neuronx.trace`` compiles a model for hardware: unsupported."""
    del args, kwargs
    raise UnsupportedError(
        "torch_neuronx.trace compiles a PyTorch model for hardware; trnsim runs the NKI kernels of a script, called "
        "directly",
        instruction="torch_neuronx.trace",
    )


def __getattr__(name: str) -> Stub:
    if name.startswith("__"):
        raise AttributeError(f"module 'torch_neuronx' has no attribute {name!r}")
    return Stub(f"torch_neuronx.{name}", "is not part of trnsim's stand-in for torch_neuronx, which has nki_jit only")
