"""Loops, the place of a program in its launch, and ``no_reorder``.

``affine_range``, ``sequential_range`` and ``static_range`` are Python's ``range`` since NKI 0.2. The loops that a core
runs by itself (``fori_loop``, ``while_loop``, ``dynamic_range``) hand out registers; here each iteration is executed
and recorded as the registers decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.machine import core as machine
from trnsim.machine.registers import VirtualRegister
from trnsim.machine.tensor import DynamicSlice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ds = DynamicSlice
"""``ds(start, size)``: the slice ``start : start + size``, where ``start`` may be a register."""


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``: the loop is unrolled."""
    return range(start) if stop is None else range(start, stop, step)


def sequential_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``: the loop is unrolled."""
    return range(start) if stop is None else range(start, stop, step)


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``: the loop is unrolled."""
    return range(start) if stop is None else range(start, stop, step)


def _bound(value: Any, name: str, instruction: str) -> int:
    if isinstance(value, (int, np.integer, VirtualRegister)) and not isinstance(value, bool):
        return int(value)
    raise CompilerError(
        f"{name} must be an integer or a register", instruction=instruction, operand=name, value=type(value).__name__
    )


def _check_loop(instruction: str) -> None:
    if machine.current().region:
        raise CompilerError(
            "a loop with run-time bounds cannot be inside no_reorder; unroll it with range", instruction=instruction
        )


def _counts(lower: Any, upper: Any, step: Any, instruction: str) -> range:
    """The iterations of a counted loop; its bounds are read once, before the first."""
    _check_loop(instruction)
    if not isinstance(step, (int, np.integer)) or isinstance(step, bool) or step < 1:
        shown = step if isinstance(step, (int, float)) else type(step).__name__
        raise CompilerError("step must be a positive constant", instruction=instruction, operand="step", value=shown)
    return range(_bound(lower, "lower", instruction), _bound(upper, "upper", instruction), int(step))


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[VirtualRegister]:
    """A loop that the core runs by itself; yields its index as a register that cannot be written.

    Args:
        start, stop: integers or registers, as for ``range``.
        step: a positive constant.

    Raises:
        CompilerError: another kind of bound or step, or the loop is inside ``no_reorder``.
    """
    lower, upper = (0, start) if stop is None else (start, stop)
    counts = _counts(lower, upper, step, "nl.dynamic_range")
    return (VirtualRegister(i, frozen=True) for i in counts)


def fori_loop(lower: Any, upper: Any, body_fun: Callable[[VirtualRegister], Any], step: int = 1) -> None:
    """Call ``body_fun(i)`` for ``i`` from ``lower`` to ``upper`` (exclusive).

    ``i`` is a register that cannot be written; state is carried in SBUF or HBM.

    Args:
        lower, upper: integers or registers, read before the first iteration.
        body_fun: returns None.
        step: a positive constant.

    Raises:
        CompilerError: another kind of bound or step, a body that returns a value, or a loop inside ``no_reorder``.
    """
    for i in _counts(lower, upper, step, "nl.fori_loop"):
        result: Any = body_fun(VirtualRegister(i, frozen=True))
        if result is not None:
            raise CompilerError(
                "the body of a fori_loop cannot return a value; carry it in SBUF or HBM",
                instruction="nl.fori_loop",
                operand="body_fun",
                value=type(result).__name__,
            )


def while_loop(init: VirtualRegister, body_fun: Callable[[VirtualRegister], VirtualRegister]) -> None:
    """Call ``register = body_fun(register)`` while the register is not 0, beginning with ``init``.

    The body gets a register of its own that holds the condition; what it returns is the next condition.

    Raises:
        CompilerError: ``init`` or the body's result is no register, or the loop is inside ``no_reorder``.
    """
    _check_loop("nl.while_loop")
    register = _condition(init, "init")
    while register:
        register = _condition(body_fun(VirtualRegister(register.cell)), "the result of body_fun")


def _condition(value: Any, operand: str) -> VirtualRegister:
    if not isinstance(value, VirtualRegister):
        raise CompilerError(
            f"{operand} must be a register", instruction="nl.while_loop", operand=operand, value=type(value).__name__
        )
    return value


def no_reorder() -> AbstractContextManager[None]:
    """A context in which instructions run in program order.

    Raises:
        CompilerError: outside a kernel.
    """
    return machine.current().no_reorder()


# -- the launch --------------------------------------------------------------------------------------------------------


def _grid() -> tuple[int, ...]:
    """The launch grid: ``()`` without one, ``(n,)`` under ``kernel[n]``."""
    launch = machine.current().launch
    grid = launch.grid
    if grid is None:
        return (launch.lnc,) if launch.lnc > 1 else ()
    return (grid,)


def program_ndim() -> int:
    """Dimensions of the launch grid: 0 without one, 1 under ``kernel[n]``."""
    return len(_grid())


def program_id(axis: int = 0) -> int:
    """The index of this program in the launch grid; 0 without one.

    Raises:
        CompilerError: outside a kernel, or the grid has no such axis.
    """
    core = machine.current()
    if axis != 0:
        raise _no_axis(axis)
    return core.index


def num_programs(axes: Any = 0) -> int:
    """The programs along ``axes`` (one, several, or None for all) of the launch grid; 1 without one.

    Raises:
        CompilerError: outside a kernel, or the grid has no such axis.
    """
    grid = _grid() or (1,)
    if axes == 0 or axes is None:
        return grid[0]
    given = tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)
    if any(a != 0 for a in given):
        raise _no_axis(axes)
    return grid[0] if given else 1


def _no_axis(axis: Any) -> CompilerError:
    return CompilerError("the launch grid has one axis, 0", operand="axis", value=axis, limit=0)
