"""Operators that are not PyTorch's own, such as those that libraries register: computed as the calls that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Inner(TorchDispatchMode):  # type: ignore[misc, unused-ignore]  # of no type without PyTorch
    """Sends calls to an executor, and the call that it was made for to its implementation."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return self.run(func, args, kwargs or {})


def run_inside(run: Callable[..., Any], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func``'s CPU implementation, its own calls given to ``run``."""
    with _Inner(run):
        return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
