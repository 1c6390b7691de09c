"""What computes an aten call on real tensors, one class a depth."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from trnsim.errors import InputError
from trnsim.frameworks.torch.fast import FastExecutor
from trnsim.frameworks.torch.formats import Policy
from trnsim.hardware import load_chip

DEPTHS = ("exact", "fast", "shape")


class Executor(Protocol):
    """Computes one aten call on CPU tensors in the chip's formats.

    ``run`` gets what ``__torch_dispatch__`` got and returns what ``func(*args, **kwargs)`` would: the same types,
    shapes and dtypes; what is in place changes its argument and returns it.
    """

    def run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def forget(self) -> None:
        """Drop what is kept of tensors, which may have been changed outside of ``run`` since."""


class NativeExecutor:
    """PyTorch's own CPU kernels. Under FakeTensorMode (``shape``) they compute shapes only."""

    def run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def forget(self) -> None:
        """Nothing is kept."""


def make_executor(depth: str, chip: str, lnc: int, format: str, *, stochastic_rounding: bool, seed: int) -> Executor:
    """The executor of a depth.

    Raises:
        InputError: no such depth or format.
        HardwareError: the chip lacks the format.
    """
    if depth not in DEPTHS:
        raise InputError(f"no depth {depth!r}", operand="depth", value=depth, limit=DEPTHS)
    core = load_chip(chip).core
    if core is None:
        raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip)
    policy = Policy.of(format)
    policy.check(core.version)
    if depth == "fast":
        return FastExecutor(policy, core.version, stochastic_rounding=stochastic_rounding, seed=seed)
    return NativeExecutor()
