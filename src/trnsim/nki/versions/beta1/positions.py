"""``iota`` and ``affine_select`` of NKI 0.1, which take index expressions."""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim.errors import CompilerError, UnsupportedError
from trnsim.isa import gpsimd, vector
from trnsim.isa.alu import ALU
from trnsim.machine.form import SBUF
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.functions import constant
from trnsim.nki.versions.beta1.index import Box, Index, Predicate
from trnsim.nki.versions.beta1.moves import (
    copy_to,
    dtype_of,
    in_sbuf,
    number_for,
    result,
    source,
)
from trnsim.nki.versions.beta1.tensor import flush, state
from trnsim.numerics import as_dtype


def _pattern(expression: Index, shape: tuple[int, ...], box: Box | None) -> tuple[list[list[int]], int, int]:
    """Pattern, offset and channel multiplier of an index expression over (a box of) a tile."""
    more = len(shape) - expression.ndim
    steps = expression.steps + (0,) * more if more > 0 else expression.steps
    sizes = [n if box is None else box[d][1] - box[d][0] for d, n in enumerate(shape)]
    base = expression.base + (0 if box is None else sum(s * b[0] for s, b in zip(steps, box, strict=True)))
    return [[s, n] for s, n in zip(steps[1:], sizes[1:], strict=True)] or [[0, 1]], base, steps[0]


def iota(expr: Any, dtype: Any, *, mask: Any = None, **_: Any) -> Any:
    """The values of an index expression as a tile."""
    flush()
    expression = expr if isinstance(expr, Index) else Index(int(expr), (0, 0), (1, 1))
    shape = expression.shape if expression.ndim > 1 else (*expression.shape, 1)
    fitted = Index(expression.base, expression.steps + (0,) * (len(shape) - expression.ndim), shape)

    def run(dst: NkiTensor, box: Box | None) -> None:
        pattern, offset, channel = _pattern(fitted, shape, box)
        out = dst if dst.storage.memory == SBUF else state().core.ndarray(dst.shape, dst.dtype, SBUF)
        gpsimd.iota(out, pattern, offset, channel)
        if out is not dst:
            copy_to(dst, out)

    return result(shape, dtype_of(dtype, as_dtype("int32")), run, mask)


def affine_select(
    pred: Any, on_true_tile: Any, on_false_value: Any, *, mask: Any = None, dtype: Any = None, **_: Any
) -> Any:
    """``on_true_tile`` where a comparison of index expressions holds, else a number."""
    flush()
    tile = source(on_true_tile, "on_true_tile")
    value = constant(on_false_value)
    if value is None:
        raise CompilerError("on_false_value must be a number", operand="on_false_value")

    def run(dst: NkiTensor, box: Box | None) -> None:
        part = cut(tile, box)
        if isinstance(pred, (bool, np.bool_)):
            if pred:
                copy_to(dst, part)
            else:
                vector.memset(dst, number_for(value, dst.dtype))
            return
        if not isinstance(pred, Predicate) or not pred.terms:
            raise UnsupportedError("affine_select takes comparisons joined with &", operand="pred")
        out = dst if dst.storage.memory == SBUF else state().core.ndarray(dst.shape, dst.dtype, SBUF)
        part = in_sbuf(part)
        for expression, operator in pred.terms:
            pattern, offset, channel = _pattern(expression, tile.shape, box)
            gpsimd.affine_select(out, pattern, channel, part, float(value), ALU[operator], offset)
            part = out
        if out is not dst:
            copy_to(dst, out)

    return result(tile.shape, dtype_of(dtype, tile.kind), run, mask)
