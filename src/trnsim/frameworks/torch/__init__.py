"""PyTorch models on a simulated chip: captured, computed in the chip's formats, fused, timed."""

from __future__ import annotations

from trnsim.frameworks.torch.device import Chip, OperatorError, autocast, current, device
from trnsim.frameworks.torch.report import Report

__all__ = ["Chip", "OperatorError", "Report", "autocast", "current", "device"]
