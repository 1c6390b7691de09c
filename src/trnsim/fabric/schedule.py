"""A collective as a schedule: the transfers of each step, in columns. The same schedule moves data and is timed.

Each rank has one work buffer; what lies where in it depends on the collective:

===============  ===============================  ==================================================
collective       before                           after
===============  ===============================  ==================================================
all_reduce       the rank's input                 the reduction
reduce_scatter   the rank's input, all shares     its own share (others are partial)
all_gather       its share, at its place          all shares, in the order of ranks
broadcast        the root's data, at the root     the root's data
all_to_all       shares to send | room to receive (| room for what is passed on)
permute          data to send | room to receive
===============  ===============================  ==================================================

Sizes count as the documentation of nccom-test and of NCCL's tests counts them: the buffer of an all_reduce, broadcast
or permute; all shares together of an all_gather or reduce_scatter; what one rank sends (itself included) of an
all_to_all.

Within a step all transfers read what their sources held when the step began. Several contributions to one place are
added in ascending order of rank, the receiver's own at its place in that order; the sum is rounded to the format of the
buffer when the step ends, so between two steps, and between two ranks, data always has that format.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError

Ints = NDArray[np.int64]
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "permute")


@dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """The transfers of a collective, one row each, sorted by step, receiver, place and sender. Offsets in bytes."""

    collective: str
    algorithm: str
    ranks: int
    nbytes: int
    """The size of the collective, as it is counted above."""
    itemsize: int
    """Bytes of an element: transfers never divide one."""
    step: Ints
    source: Ints
    """The rank (of the group) that sends, ``target`` the one that receives."""
    target: Ints
    source_offset: Ints
    target_offset: Ints
    bytes: Ints
    reduce: NDArray[np.bool_]
    """Whether the receiver adds what it gets to what it has, or overwrites it."""
    buffer_bytes: int
    """Of the work buffer of a rank."""
    shares: tuple[Ints, Ints] | None = None
    """Offset and size of each rank's share (all_gather, reduce_scatter)."""
    counts: Ints | None = None
    """all_to_all: bytes from rank ``i`` (row) to rank ``j``."""
    root: int = 0
    """broadcast: the rank that has the data."""
    pairs: tuple[tuple[int, int], ...] = ()
    """permute: source and target."""

    def __len__(self) -> int:
        return len(self.step)

    @cached_property
    def steps(self) -> int:
        """How many steps move data."""
        return len(self.starts) - 1

    @cached_property
    def starts(self) -> Ints:
        """Where the rows of each step begin, and the end."""
        edges = np.flatnonzero(np.diff(self.step)) + 1
        return np.concatenate([[0], edges, [len(self.step)]]) if len(self.step) else np.zeros(1, np.int64)

    @property
    def moved_bytes(self) -> int:
        """Payload that leaves a rank, over all steps and ranks."""
        return int(self.bytes[self.source != self.target].sum())


def build(
    rows: tuple[Ints, ...],
    *,
    collective: str,
    algorithm: str,
    ranks: int,
    nbytes: int,
    itemsize: int,
    buffer_bytes: int,
    shares: tuple[Ints, Ints] | None = None,
    counts: Ints | None = None,
    root: int = 0,
    pairs: tuple[tuple[int, int], ...] = (),
) -> Schedule:
    """A schedule of ``(step, source, target, source offset, target offset, bytes, reduce)``.

    Rows of no bytes fall away; rows that continue each other become one.
    """
    step, source, target, at, to, size, reduce = (np.asarray(x).reshape(-1) for x in rows)
    keep = size > 0
    step, source, target, at, to, size, reduce = (x[keep] for x in (step, source, target, at, to, size, reduce))
    # Neighbouring pieces between the same ranks in the same step are one transfer.
    order = _order(step, target, source, reduce, to)
    step, source, target, at, to, size, reduce = (x[order] for x in (step, source, target, at, to, size, reduce))
    if len(step):
        joined = np.zeros(len(step), bool)
        joined[1:] = (
            (step[1:] == step[:-1]) & (source[1:] == source[:-1]) & (target[1:] == target[:-1])
            & (reduce[1:] == reduce[:-1]) & (to[1:] == to[:-1] + size[:-1]) & (at[1:] == at[:-1] + size[:-1])
        )  # fmt: skip
        first = np.flatnonzero(~joined)
        size = np.add.reduceat(size, first)
        step, source, target, at, to, reduce = (x[first] for x in (step, source, target, at, to, reduce))
    order = _order(step, target, to, source)
    columns = [x[order] for x in (step, source, target, at, to, size, reduce)]
    return Schedule(
        collective=collective,
        algorithm=algorithm,
        ranks=ranks,
        nbytes=nbytes,
        itemsize=itemsize,
        step=columns[0].astype(np.int64),
        source=columns[1].astype(np.int64),
        target=columns[2].astype(np.int64),
        source_offset=columns[3].astype(np.int64),
        target_offset=columns[4].astype(np.int64),
        bytes=columns[5].astype(np.int64),
        reduce=columns[6].astype(bool),
        buffer_bytes=buffer_bytes,
        shares=shares,
        counts=counts,
        root=root,
        pairs=pairs,
    )


def _order(*columns: Ints) -> Ints:
    """Rows sorted by the first column, then the second, and so on."""
    columns = tuple(np.asarray(c, np.int64) for c in columns)
    bits = [int(c.max(initial=0)).bit_length() for c in columns]
    if sum(bits) > 62:
        return np.lexsort(columns[::-1])
    key = columns[0].copy()
    for column, width in zip(columns[1:], bits[1:], strict=True):
        key = (key << width) | column
    return np.argsort(key, kind="stable")


def split(elements: int, parts: int, itemsize: int = 1) -> tuple[Ints, Ints]:
    """Offsets and sizes in bytes of ``parts`` parts of ``elements`` elements: the first are one element larger."""
    sizes = np.full(parts, elements // parts, np.int64)
    sizes[: elements % parts] += 1
    return (np.cumsum(sizes) - sizes) * itemsize, sizes * itemsize


def whole_elements(nbytes: int, itemsize: int, what: str) -> int:
    """``nbytes`` in elements.

    Raises:
        InputError: it is negative or divides an element.
    """
    if itemsize < 1:
        raise InputError("an element has at least one byte", operand="itemsize", value=itemsize, limit=1)
    if nbytes < 0 or nbytes % itemsize:
        raise InputError(
            f"{what} is not a whole number of elements of {itemsize} bytes", operand="nbytes", value=nbytes
        )
    return nbytes // itemsize
