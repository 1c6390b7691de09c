"""What computes an aten call on real tensors, one class a depth."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from trnsim.errors import InputError
from trnsim.frameworks.torch.exact import ExactExecutor
from trnsim.frameworks.torch.fast import FastExecutor, refused
from trnsim.frameworks.torch.formats import Policy
from trnsim.frameworks.torch.plans import COMPUTE, PRODUCT, Plan, plan_of
from trnsim.hardware import load_chip

DEPTHS = ("exact", "fast", "shape")


class Executor(Protocol):
    """Computes one aten call on CPU tensors in the chip's formats.

    ``run`` gets what ``__torch_dispatch__`` got and returns what ``func(*args, **kwargs)`` would: the same types,
    shapes and dtypes; what is in place changes its argument and returns it.
    """

    def run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def forget(self, tensors: list[Any] | None = None) -> None:
        """Drop what is kept of tensors (None: of all), which may have been changed outside of ``run`` since."""

    def notes(self) -> tuple[str, ...]:
        """What a report says of how numbers were computed."""
        ...


class ShapeExecutor:
    """Shapes only: FakeTensorMode, and what it does not know of tensors on a CPU."""

    def __init__(self) -> None:
        self._plans: dict[Any, Plan] = {}

    def run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            return _grouped(*args, **kwargs)
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = plan_of(func)
        if plan.kind in {COMPUTE, PRODUCT}:
            refused(plan, args, kwargs)
        return func(*args, **kwargs)

    def forget(self, tensors: list[Any] | None = None) -> None:
        """Nothing is kept."""

    def notes(self) -> tuple[str, ...]:
        return ()


def _grouped(left: Any, right: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """Rows of each group by the matrix of the group; of two matrices, the groups are parts of the contraction."""
    groups = right.shape[0] if right.dim() == 3 else offs.shape[0]
    shape = [left.shape[0], right.shape[-1]]
    if left.dim() == right.dim():
        shape = [groups, left.shape[-2], right.shape[-1]]
    return left.new_empty(shape, dtype=out_dtype or left.dtype)


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
    if depth == "exact":
        return ExactExecutor(chip, lnc, policy, stochastic_rounding=stochastic_rounding, seed=seed)
    return ShapeExecutor()
