"""What the compiler of NKI 0.1 refused although hardware could do it: parameters, scopes, memories.

The rules and their names are those of the error pages of SDK 2.26 (``nki.errors``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trnsim.errors import CompilerError, Location
from trnsim.machine import core as machine
from trnsim.machine.form import HBM
from trnsim.nki.typing import _Annotation
from trnsim.nki.versions.beta1.tensor import Tensor, state

if TYPE_CHECKING:
    from types import FrameType

    from trnsim.machine.tensor import NkiTensor

_PACKAGE = os.path.dirname(os.path.abspath(machine.__file__)).removesuffix("machine")


# -- parameters --------------------------------------------------------------------------------------------------------


class Parameters:
    """The tensors that a kernel was given: which of them it may write, and where it wrote which.

    Parameters are immutable unless annotated ``nt.mutable_tensor``, and what is mutable and written must be returned.
    Kernels of the older style, which return nothing, write into their arguments.
    """

    def __init__(self, func: Callable[..., Any], flags: str = "") -> None:
        self.annotations = getattr(func, "__annotations__", {})
        self.must_return = "skip-mutable-return" not in flags
        self.names: dict[int, str] = {}
        self.mutable: set[int] = set()
        self.written: dict[int, Location] = {}

    def add(self, name: str, view: NkiTensor) -> None:
        """A tensor given as parameter ``name``."""
        number = view.storage.id
        self.names[number] = name
        if _is_mutable(self.annotations.get(name)):
            self.mutable.add(number)

    def check(self, returned: Any) -> None:
        """Raise CompilerError if a kernel that returns something wrote what it may not, or does not return it."""
        if returned is None:
            return
        found = {v.checked().storage.id for v in _flat(returned) if isinstance(v, Tensor)}
        for number, where in self.written.items():
            name = self.names[number]
            if number not in self.mutable:
                raise CompilerError(
                    f"Cannot update immutable parameter `{name}`: annotate it as nt.mutable_tensor and return it, or "
                    "write a copy",
                    operand=name,
                    location=where,
                )
            if number not in found and self.must_return:
                raise CompilerError(
                    f"Mutable kernel parameter `{name}` not returned by `return` statement",
                    operand=name,
                    location=where,
                )


def _is_mutable(annotation: Any) -> bool:
    """``nt.mutable_tensor``, ``nt.tensor[nt.mutable]``, or the text of one."""
    if isinstance(annotation, _Annotation):
        return annotation.name.startswith("mutable") or _is_mutable(annotation.shape)
    return isinstance(annotation, str) and "mutable" in annotation.replace("immutable", "")


def _flat(value: Any) -> list[Any]:
    return [v for item in value for v in _flat(item)] if isinstance(value, (tuple, list)) else [value]


def writes(view: NkiTensor) -> None:
    """Note that the kernel writes ``view``, if it is a parameter."""
    if view.storage.memory != HBM:
        return
    current = state()
    parameters = current.parameters
    number = view.storage.id
    if parameters is not None and number in parameters.names and number not in parameters.written:
        core = current.core
        parameters.written[number] = core.launch.lines.locations[core.caller_line()]


# -- memories ----------------------------------------------------------------------------------------------------------


def wrong_memory(operand: str, wanted: str, x: Tensor, hint: str = "") -> CompilerError:
    """The error of an operand that is in another memory than the function takes."""
    function = _called()
    return CompilerError(
        f"Expected operand '{operand}' of '{function}' to be in address space '{wanted}', but got a tile in "
        f"'{x.memory}' instead.{hint}",
        instruction=function,
        operand=operand,
        value=x.name,
    )


def _called() -> str:
    """The function of NKI that the kernel called: the outermost frame of this package above the kernel's."""
    frame: FrameType | None = sys._getframe(1)
    name = ""
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        name = frame.f_code.co_name
        frame = frame.f_back
    return name


def named(function: Any, name: str) -> Any:
    """``function`` under a name that errors and tracebacks show."""
    function.__name__ = function.__qualname__ = name
    function.__code__ = function.__code__.replace(co_name=name)
    return function


# -- scopes ------------------------------------------------------------------------------------------------------------


def top_level() -> None:
    """Raise CompilerError unless the kernel itself, outside its loops, makes a shared HBM tensor."""
    current = state()
    if current.code is None:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    where = ""
    if frame is None or frame.f_code is not current.code:
        where = "in another function"
    elif any(begin < frame.f_lasti < end for begin, end in current.loops):
        where = "in a loop"
    if where:
        raise CompilerError(
            f"shared_hbm buffer can only be created top level kernel scope; this one is created {where}",
            instruction="nl.ndarray",
            operand="buffer",
        )
