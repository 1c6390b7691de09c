"""Models as Neuron stacks run them: attention heads padded until the ranks of tensor parallelism divide them.

Heads of queries are rounded up to a multiple of the ranks. Heads of keys are repeated until each rank has one where
the ranks are a multiple of them, and otherwise for every head of queries: ``REPLICATE_TO_TP_DEGREE`` and
``CONVERT_TO_MHA`` of NeuronX Distributed Inference. Padded heads take memory and time as real ones do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trnsim.workloads.parts import Attention, LatentAttention

if TYPE_CHECKING:
    from trnsim.workloads import Model
    from trnsim.workloads.model import Layer
    from trnsim.workloads.parts import Part


def padded(model: Model, tp: int) -> Model:
    """``model`` with heads that ``tp`` ranks divide; itself where they do already."""
    made: dict[int, Layer] = {}
    for layer, _ in model.kinds():
        parts = tuple(_part(part, tp) for part in layer.parts)
        made[id(layer)] = layer if parts == layer.parts else replace(layer, parts=parts)
    if all(made[id(layer)] is layer for layer in model.layers):
        return model
    return replace(model, layers=tuple(made[id(layer)] for layer in model.layers))


def _part(part: Part, tp: int) -> Part:
    if isinstance(part, LatentAttention):
        return replace(part, heads=_up(part.heads, tp))
    if not isinstance(part, Attention):
        return part
    heads, kv = _up(part.heads, tp), part.kv_heads
    if kv == part.heads or (kv % tp and tp % kv):
        kv = heads
    elif kv < tp:
        kv = tp
    # Every head of keys serves as many of queries.
    heads = -(-heads // kv) * kv
    return part if (heads, kv) == (part.heads, part.kv_heads) else replace(part, heads=heads, kv_heads=kv)


def _up(count: int, tp: int) -> int:
    return -(-count // tp) * tp
