"""PyTorch models on a simulated chip: captured, computed in the chip's formats, fused, timed."""

from __future__ import annotations

from trnsim.frameworks.torch.backend import register, step
from trnsim.frameworks.torch.device import Chip, OperatorError, autocast, current, device
from trnsim.frameworks.torch.nki_calls import install as _install
from trnsim.frameworks.torch.report import Report
from trnsim.frameworks.torch.settings import default_chip, report
from trnsim.frameworks.torch.shares import share

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

register()
_install(current)
