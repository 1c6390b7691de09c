"""``torch_xla``, as thin as device scripts around NKI kernels need it: tensors stay PyTorch's own, on the CPU.

``torch_xla.device()`` is ``torch.device("cpu")``; operations run at once, so there is nothing to synchronise; there is
one process. PyTorch is imported when a function is called.
"""

from __future__ import annotations

from typing import Any

from trnsim.compat import xla_model, xla_runtime

__version__ = "0+trnsim"
__path__: list[str] = []
runtime = xla_runtime


def device(index: int | None = None) -> Any:
    """``torch.device("cpu")``."""
    return xla_model.xla_device(index)


def devices() -> list[Any]:
    """The one device."""
    return [device()]


real_devices = devices


def device_count() -> int:
    """1."""
    return 1


def sync(wait: bool = False, reset_scope: bool = True) -> None:
    """Nothing: every operation has run when it returns."""


def launch(fn: Any, args: tuple[Any, ...] = (), **_: Any) -> None:
    """``fn(0, *args)``: one process, in this one."""
    fn(0, *args)


def manual_seed(seed: int, device: Any = None) -> None:
    """``torch.manual_seed``."""
    import torch

    del device
    torch.manual_seed(seed)
