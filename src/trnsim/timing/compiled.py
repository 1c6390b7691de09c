"""Loops over columns, compiled by Numba above a size.

A loop is a plain function over sequences of integers. Small traces run it as it stands, on lists (importing Numba costs
more than the loop); large ones run the same source compiled, on arrays. Both give the same integers.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

# Rows from which compiling pays: below, importing Numba (0.6 s) and loading the cached loops costs more than it saves.
COMPILE_FROM = 6_000
# The same once Numba is loaded.
COMPILE_FROM_LOADED = 60

_compiled: dict[str, Any] = {}
_many = False


def expect_many() -> None:
    """Compile for small traces too from now on: this process will time so many that importing Numba pays."""
    global _many
    _many = True


def use_compiled(rows: int) -> bool:
    """Whether a trace of ``rows`` instructions should run compiled loops."""
    return rows >= (COMPILE_FROM_LOADED if _many or ("numba" in sys.modules and _compiled) else COMPILE_FROM)


def run(
    function: Callable[..., int], compiled: bool, *arguments: Any, helpers: tuple[Callable[..., Any], ...] = ()
) -> int:
    """Call ``function`` with columns (``int64`` arrays, changed in place) and integers.

    ``helpers`` are the functions of the same module that it calls.
    """
    if compiled:
        return int(_jit(function, helpers)(*arguments))
    columns = [a.tolist() if isinstance(a, np.ndarray) else a for a in arguments]
    result = function(*columns)
    for array, column in zip(arguments, columns, strict=True):
        if isinstance(array, np.ndarray):
            array[:] = column
    return int(result)


def _jit(function: Callable[..., int], helpers: tuple[Callable[..., Any], ...]) -> Any:
    name = f"{function.__module__}.{function.__qualname__}"
    found = _compiled.get(name)
    if found is None:
        import numba

        assert isinstance(function, types.FunctionType)
        scope = dict(function.__globals__)
        for helper in helpers:
            assert isinstance(helper, types.FunctionType)
            clone = types.FunctionType(helper.__code__, scope, helper.__name__, helper.__defaults__)
            clone.__module__, clone.__qualname__ = helper.__module__, helper.__qualname__
            scope[helper.__name__] = numba.njit(cache=True, nogil=True)(clone)
        clone = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
        clone.__module__, clone.__qualname__ = function.__module__, function.__qualname__
        found = _compiled[name] = numba.njit(cache=True, nogil=True)(clone)
    return found
