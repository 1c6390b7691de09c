"""What the rules of an instruction saw, as plain values that a file can hold, and back.

A saved trace keeps it with each class of instructions, so that the rules can be asked again for another generation.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError
from trnsim.isa import constants
from trnsim.isa.alu import ACTIVATIONS, ALU, Activation, AluOp
from trnsim.machine.form import Form

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TYPES = {"int": int, "float": float}


def pack(seen: Mapping[str, Any], forms: Mapping[int, int]) -> dict[str, list[Any]]:
    """``seen`` with every value as ``[kind, plain value]``; ``forms`` numbers the forms in the file by their id."""
    return {name: _pack(value, forms) for name, value in seen.items()}


def unpack(saved: Mapping[str, Sequence[Any]], forms: Sequence[Form]) -> dict[str, Any]:
    """What ``pack`` packed.

    Raises:
        InputError: it names an operator or constant that this version does not have.
    """
    return {name: _unpack(kind, value, forms) for name, (kind, value) in saved.items()}


def _pack(value: Any, forms: Mapping[int, int]) -> list[Any]:
    if isinstance(value, Form):
        return ["form", forms[value.id]]
    if isinstance(value, tuple) and value and all(isinstance(v, Form) for v in value):
        return ["forms", [forms[v.id] for v in value]]
    if value is int or value is float:
        return ["type", value.__name__]
    if isinstance(value, AluOp):
        return ["alu", value.name]
    if isinstance(value, Activation):
        return ["activation", value.name]
    if isinstance(value, Enum) and getattr(constants, type(value).__name__, None) is type(value):
        return ["enum", [type(value).__name__, value.name]]
    if value is ...:
        return ["ellipsis", None]
    return ["value", _plain(value)]


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else float(value)
    return str(getattr(value, "name", value))


def _unpack(kind: str, value: Any, forms: Sequence[Form]) -> Any:
    try:
        if kind == "form":
            return forms[value]
        if kind == "forms":
            return tuple(forms[v] for v in value)
        if kind == "type":
            return _TYPES[value]
        if kind == "alu":
            return ALU[value]
        if kind == "activation":
            return ACTIVATIONS[value]
        if kind == "enum":
            return getattr(constants, value[0])[value[1]]
    except (KeyError, IndexError, AttributeError) as error:
        raise InputError(f"a saved trace names a {kind} that this version does not have", value=value) from error
    if kind == "ellipsis":
        return ...
    return tuple(value) if isinstance(value, list) else value
