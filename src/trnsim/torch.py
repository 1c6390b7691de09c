"""PyTorch models on a simulated chip: ``with trnsim.torch.device("trn2") as chip:``. Needs PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trnsim.frameworks import torch as _torch

if TYPE_CHECKING:
    from trnsim.frameworks.torch import *  # noqa: F403

__all__ = _torch.__all__


def __getattr__(name: str) -> Any:
    return getattr(_torch, name)


def __dir__() -> list[str]:
    return _torch.__all__
