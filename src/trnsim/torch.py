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
    default_chip,
    device,
    generations,
    report,
    share,
    step,
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
    "default_chip",
    "device",
    "generations",
    "report",
    "serve",
    "share",
    "step",
]


def __getattr__(name: str) -> Any:
    return getattr(_torch, name)
