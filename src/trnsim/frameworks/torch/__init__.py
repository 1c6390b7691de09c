"""PyTorch models on a simulated chip: captured, computed in the chip's formats, fused, timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.frameworks.torch.backend import register, step
from trnsim.frameworks.torch.device import Chip, OperatorError, autocast, current, device
from trnsim.frameworks.torch.generate import Generation, generations
from trnsim.frameworks.torch.nki_calls import end_graphs, install
from trnsim.frameworks.torch.report import Report
from trnsim.frameworks.torch.settings import default_chip, report, running_chip
from trnsim.frameworks.torch.shares import share

if TYPE_CHECKING:
    from trnsim.frameworks.torch.serving import Served, serve

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

register()
install(running_chip)
end_graphs()


def __getattr__(name: str) -> Any:
    if name in {"Served", "serve"}:  # they need transformers
        from trnsim.frameworks.torch import serving

        return getattr(serving, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
