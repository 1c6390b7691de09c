"""Reductions across iterations of loops and across programs of a grid: ``nl.loop_reduce``, ``nl.all_reduce``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.isa import control
from trnsim.isa.alu import AluOp, as_alu_op
from trnsim.machine import core as machine
from trnsim.machine.form import SBUF
from trnsim.nki.versions.beta1.access import cut
from trnsim.nki.versions.beta1.functions import two_tiles
from trnsim.nki.versions.beta1.loops import starts
from trnsim.nki.versions.beta1.moves import boxes, copy_to, dtype_of, in_sbuf, result, source, wrap
from trnsim.nki.versions.beta1.tensor import Result, Tensor, flush
from trnsim.numerics import DType, as_dtype

if TYPE_CHECKING:
    from trnsim.nki.versions.beta1.index import Box
    from trnsim.nki.versions.beta1.programs import Meeting, Program

_REDUCES = {
    "add", "multiply", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or",
    "logical_xor",
}  # fmt: skip
_PIPE = 0  # programs of NKI 0.1 have no sendrecv of their own


def loop_reduce(x: Any, op: Any, loop_indices: Any, *, dtype: Any = None, mask: Any = None, **_: Any) -> Any:
    """``x`` reduced over the iterations of loops: what it is assigned to accumulates, from their first iteration on."""
    current = flush()
    tile, alu = source(x, "x"), as_alu_op(op)
    first = starts(loop_indices)
    places = boxes(mask, tile.shape)
    key = machine.current().caller_line()

    def emit(dst: Tensor) -> None:
        for box in places:
            part, out = cut(tile, box), cut(dst, box)
            if first:
                copy_to(out, part)
            else:
                two_tiles(out, alu, out, part)

    class _Accumulated(Result):
        __slots__ = ()

        def materialize(self, kind: Any = None) -> None:
            kept = None if first else current.reductions.get(key)
            if kept is None:
                super().materialize(kind)
                current.reductions[key] = wrap(self.tile)
                return
            self.record(self.emit, kept)

    return _Accumulated(tile.shape, dtype_of(dtype, tile.kind), emit)


def all_reduce(
    x: Any,
    op: Any,
    program_axes: Any,
    *,
    dtype: Any = None,
    mask: Any = None,
    parallel_reduce: bool = True,
    asynchronous: bool = False,
    **_: Any,
) -> Any:
    """A tile reduced over the programs along axes of the grid; each of them gets the same tile.

    Floats are reduced in float32, in the order of programs. ``parallel_reduce`` and ``asynchronous`` choose how the
    compiler does it and change nothing here: the result is complete.

    Args:
        x: a tile.
        op: an associative operator: add, multiply, maximum, minimum, bitwise or logical.
        program_axes: one axis or several.
        dtype: of the result; default: that of ``x``.

    Raises:
        CompilerError: the grid has no such axis, or programs call it with different operators, shapes, masks or dtypes.
        DeadlockError: a program along these axes never comes.
    """
    del parallel_reduce, asynchronous
    current = flush()
    tile, alu = source(x, "x"), as_alu_op(op)
    if alu.name not in _REDUCES:
        raise CompilerError(
            f"{alu.name} is no reduction", instruction="nl.all_reduce", operand="op", value=alu.name,
            limit=sorted(_REDUCES),
        )  # fmt: skip
    kind = dtype_of(dtype, tile.kind)
    axes = tuple(int(a) for a in (program_axes if isinstance(program_axes, (tuple, list)) else (program_axes,)))
    grid, program = current.grid, current.program
    for axis in axes:
        if not 0 <= axis < max(1, len(grid)):
            raise CompilerError(
                "the launch grid has no such axis", instruction="nl.all_reduce", operand="program_axes", value=axis,
                limit=len(grid),
            )  # fmt: skip
    places = boxes(mask, tile.shape)
    members: tuple[int, ...] = (0,)
    if program is not None:
        numbers = np.arange(int(np.prod(grid))).reshape(grid)
        chosen = tuple(slice(None) if axis in axes else at for axis, at in enumerate(current.ids))
        members = tuple(numbers[chosen].ravel().tolist())
    if program is None or len(members) == 1:
        if kind == tile.kind:
            return x
        return result(tile.shape, kind, lambda dst, box: copy_to(dst, cut(tile, box)), where=places)
    call = program.calls.get(axes, 0)
    program.calls[axes] = call + 1
    terms = {"op": alu.name, "shape": tile.shape, "dtype": str(kind), "mask": tuple(places)}
    meeting = program.group.meet(program, (axes, members, call), members, terms, tile)
    total = meeting.totals.get(program.core.index)
    if total is None:
        total = meeting.totals[program.core.index] = _total(meeting, program, alu, kind, places)
    return result(tile.shape, kind, lambda dst, box: copy_to(dst, cut(total, box)), where=places)


def _total(meeting: Meeting, program: Program, alu: AluOp, kind: DType, places: Sequence[Box | None]) -> Tensor:
    """The reduction, once a core: of the tiles of its own programs, then of both cores' through an exchange."""
    core = program.core
    core_of = program.group.core_of
    cores = sorted({core_of[n] for n in meeting.members})
    tiles = [meeting.brought[n] for n in meeting.members if core_of[n] == core.index]
    floats = tiles[0].kind.kind == "float" or kind.kind == "float"
    working = as_dtype("float32") if floats else tiles[0].kind
    total = wrap(core.ndarray(tiles[0].shape, working, SBUF))
    theirs = wrap(core.ndarray(total.shape, working, SBUF)) if len(cores) > 1 else None
    for box in places:
        out = cut(total, box)
        parts = [cut(tile, box) for tile in tiles]
        if len(parts) == 1:
            copy_to(out, parts[0])
        for number, part in enumerate(parts[1:]):
            two_tiles(out, alu, out if number else in_sbuf(parts[0]), part)
        if theirs is not None:
            control.sendrecv(out, cut(theirs, box), 1 - core.index, 1 - core.index, _PIPE)
            two_tiles(out, alu, out, cut(theirs, box))
    return total
