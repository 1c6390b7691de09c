"""What aten operators are to the chip: products, norms, element-wise work, movement, or nothing of the kind."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

with Path(__file__).with_suffix(".toml").open("rb") as _file:
    _TABLE: dict[str, list[str]] = tomllib.load(_file)

RANDOM = frozenset(_TABLE["random"])
_KINDS = {name: kind for kind, names in _TABLE.items() for name in names}
_KINDS.update(dict.fromkeys(RANDOM, "elementwise"))
_KINDS.update({name: name.strip("_") for name in _TABLE["alone"]})
# Activations by the name that kernels have for them.
ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "erf": "gelu",
}


@cache
def plain(operator: str) -> str:
    """The operator of a call without namespace, overload, and the underscore of what is in place: ``add``."""
    parts = operator.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name.removeprefix("_foreach_")


@cache
def kind(operator: str) -> str:
    """The kind of an operator.

    ``product``, ``attention``, ``norm``, ``softmax``, ``elementwise``, ``move``, ``reduction``, ``gather``,
    ``scatter``, ``made`` (of no data), ``host``, ``kernel`` (the user's), its own name where a pattern knows it, or
    ``other``: no kernel stands for it.
    """
    return "kernel" if operator.startswith("nki.") else _KINDS.get(plain(operator), "other")
