"""PyTorch models on a simulated chip: ``with trnsim.torch.device("trn2") as chip:``. Needs PyTorch."""

from __future__ import annotations

from trnsim.frameworks.torch import (
    Chip,
    OperatorError,
    Report,
    autocast,
    current,
    default_chip,
    device,
    report,
    share,
    step,
)

__all__ = [
    "Chip",
    "OperatorError",
    "Report",
    "autocast",
    "current",
    "default_chip",
    "device",
    "report",
    "share",
    "step",
]
