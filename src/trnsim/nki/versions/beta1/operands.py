"""Operands of instructions beside their tiles: numbers, one element a partition, truth values."""

from __future__ import annotations

from typing import Any

from trnsim.machine.tensor import NkiTensor
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.functions import constant
from trnsim.nki.versions.beta1.index import Box
from trnsim.nki.versions.beta1.moves import (
    scalar_operand,
    source,
)
from trnsim.nki.versions.beta1.tensor import Tensor


def span(x: Any, box: Box | None) -> NkiTensor:
    """A tile with one element a partition, restricted to the partitions of a box."""
    return cut(x, None if box is None else box[:1])


def number_or_column(x: Any, box: Box | None, partitions: int) -> Any:
    """A number, or one float32 a partition."""
    if x is None or not isinstance(x, Tensor):
        return constant(x)
    return scalar_operand(span(source(x), box), partitions)


def step_operand(op: Any, operand: Any, box: Box | None, data: NkiTensor) -> Any:
    if op.kind == "bitvec" and isinstance(operand, Tensor):
        return span(source(operand), box)
    value = number_or_column(operand, box, data.shape[0])
    if op.unary:
        return None
    return value if isinstance(value, NkiTensor) or op.kind == "bitvec" or value is None else float(value)


def truth_bytes(predicate: NkiTensor) -> NkiTensor:
    """Truth values as the bytes that they are."""
    return predicate.view("uint8") if predicate.dtype == "bool" else predicate
