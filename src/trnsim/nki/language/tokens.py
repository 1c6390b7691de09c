"""Operators by name: functions that may be called on tiles and may also be passed to an instruction as its ``op``.

``isa.alu`` finds the operator of a function by its attribute ``__trnsim_op__``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from trnsim.errors import CompilerError

F = TypeVar("F", bound=Callable[..., Any])


def names_op(name: str) -> Callable[[F], F]:
    """Mark a function as standing for operator or activation function ``name``."""

    def mark(function: F) -> F:
        function.__dict__["__trnsim_op__"] = name
        return function

    return mark


class Operator:
    """An operator that exists only as ``op`` of an instruction."""

    def __init__(self, name: str, where: str) -> None:
        self.__name__ = self.__trnsim_op__ = name
        self._where = where

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raise CompilerError: it is no function on tiles."""
        raise CompilerError(f"nl.{self.__name__} is not a function on tiles; pass it as op of {self._where}")

    def __repr__(self) -> str:
        return f"nl.{self.__name__}"


average = Operator("average", "nisa.tensor_partition_reduce")
bypass = Operator("bypass", "nisa.activate2")
prelu = Operator("prelu", "nisa.activate2")
