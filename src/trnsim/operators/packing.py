"""Surfaces as bytes: frozen dataclasses of numbers, texts, tuples, mappings and arrays, by their fields."""

from __future__ import annotations

import importlib
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np

from trnsim.errors import InputError

# Where the classes are that a surface consists of.
_MODULES = ("trnsim.operators.surface", "trnsim.operators.basis", "trnsim.kernels.contract")
_ARRAY, _TABLE = "array", "table"


def pack(value: Any) -> bytes:
    """``value`` as MessagePack. Whole numbers in arrays are written as such: they compress better."""
    return msgspec.msgpack.encode(_plain(value))


def unpack(data: bytes | msgspec.Raw) -> Any:
    """What was packed; sequences come back as tuples.

    Raises:
        InputError: it is not what ``pack`` writes, or of classes that have changed since.
    """
    try:
        return _restored(msgspec.msgpack.decode(data))
    except (msgspec.DecodeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"a saved surface is damaged or of another version: {error}") from error


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        own = [_plain(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")]
        return {type(value).__name__: own}
    if isinstance(value, np.ndarray):
        flat = value.ravel().tolist()
        return {_ARRAY: [list(value.shape), [int(x) if x == int(x) else x for x in flat]]}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {_TABLE: [[_plain(k), _plain(v)] for k, v in value.items()]}


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == _ARRAY:
        return np.array(content[1], np.float64).reshape(content[0])
    if name == _TABLE:
        return {_restored(k): _restored(v) for k, v in content}
    return _class(name)(*(_restored(item) for item in content))


@cache
def _class(name: str) -> Any:
    for module in _MODULES:
        found = getattr(importlib.import_module(module), name, None)
        if found is not None and is_dataclass(found):
            return found
    raise KeyError(name)
