"""PyTorch models on a simulated chip: ``with trnsim.torch.device("trn2") as chip:``. Needs PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.frameworks import torch as _torch
from trnsim.frameworks.torch import (
    Chip,
    Generation,
    OperatorError,
    Report,
    autocast,
    current,
    device,
    generations,
)

if TYPE_CHECKING:
    from trnsim.frameworks.torch import Served, serve

__all__ = [
    "Chip",
    "Generation",
    "OperatorError",
    "Report",
    "Served",
    "autocast",
    "current",
    "device",
    "generations",
    "serve",
]


def __getattr__(name: str) -> Any:
    return getattr(_torch, name)
