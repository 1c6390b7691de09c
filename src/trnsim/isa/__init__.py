"""The instructions of a NeuronCore, each written down once: operands, limits, meaning and cost."""

from __future__ import annotations

from typing import Any

from trnsim.machine import tensor as _tensor
from trnsim.machine.form import HBM
from trnsim.machine.tensor import NkiTensor


def _assign(target: NkiTensor, value: Any) -> None:
    """``tensor[key] = value``: a DMA to or from HBM, a memset for a number, an engine's copy on chip."""
    from trnsim.isa import dma, vector

    if not isinstance(value, NkiTensor):
        vector.memset(target, value)
    elif HBM in (target.memory, value.memory):
        dma.dma_copy(target, value)
    else:
        vector.tensor_copy(target, value)


_tensor.assign = _assign
