"""Pipeline schedules: which rank computes what in which order, and how long one step takes.

A model is cut into ``stages * chunks`` pieces; piece i runs on rank i % stages, as its chunk i // stages. A micro-batch
goes forward through all pieces and back. Sending activations from a piece to the next takes time but keeps no rank
busy; what waits for it, waits.

Schedules:

- ``gpipe``: all forward passes, then all backward passes (Huang et al., "GPipe").
- ``1f1b``: rank s does stages - s forward passes before its first backward pass, then one of each in turn (Narayanan
  et al., "Memory-efficient pipeline-parallel DNN training", PipeDream-Flush).
- ``interleaved``: 1F1B over several chunks a rank, micro-batches in groups of ``stages`` (Narayanan et al., "Efficient
  large-scale language model training on GPU clusters using Megatron-LM").
- ``zb-h1``: 1F1B whose backward passes are split: gradients of inputs first, those of weights s micro-batches later on
  rank s, which fills the gaps and holds no more than ``1f1b`` does on its first rank (Qi et al., "Zero bubble pipeline
  parallelism").

``simulate`` replays the order of operations and is exact. It takes one plan or arrays of plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from trnsim.errors import InputError, InternalError

Floats: TypeAlias = npt.NDArray[np.float64]
SCHEDULES: Final = ("gpipe", "1f1b", "interleaved", "zb-h1")
FORWARD, BACKWARD, WEIGHT = range(3)
_BLOCK: Final = 2048  # plans that are replayed together: their columns stay in a core's cache


@dataclass(frozen=True)
class Schedule:
    """A schedule for ``stages`` ranks with ``chunks`` pieces each and ``microbatches`` a step."""

    name: str
    stages: int
    microbatches: int
    chunks: int = 1

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise InputError("unknown pipeline schedule", value=repr(self.name), limit=", ".join(SCHEDULES))
        for field in ("stages", "microbatches", "chunks"):
            if getattr(self, field) < 1:
                raise InputError(f"pipeline: {field} must be at least 1", value=getattr(self, field))
        if self.name != "interleaved" and self.chunks != 1:
            raise InputError(f"the schedule {self.name!r} has one chunk a rank", value=self.chunks, limit=1)
        if self.name == "interleaved" and self.microbatches % self.stages:
            raise InputError(
                "the schedule 'interleaved' needs micro-batches that are a multiple of the stages",
                value=self.microbatches,
                limit=self.stages,
            )

    @property
    def pieces(self) -> int:
        """Pieces of the model."""
        return self.stages * self.chunks

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are passes of their own."""
        return self.name == "zb-h1"


@cache
def order(schedule: Schedule, rank: int) -> tuple[tuple[int, int, int], ...]:
    """What ``rank`` does in a step: (kind, micro-batch, chunk) in order."""
    stages, count = schedule.stages, schedule.microbatches
    if schedule.name == "gpipe":
        return tuple((kind, m, 0) for kind in (FORWARD, BACKWARD) for m in range(count))
    if schedule.name == "interleaved":
        return _interleaved(schedule, rank)
    ahead = min(stages - rank, count)
    ops: list[tuple[int, int, int]] = [(FORWARD, m, 0) for m in range(ahead)]
    lag = rank if schedule.splits_backward else count
    for m in range(count):
        ops.append((BACKWARD, m, 0))
        if m >= lag:
            ops.append((WEIGHT, m - lag, 0))
        if m + ahead < count:
            ops.append((FORWARD, m + ahead, 0))
    if schedule.splits_backward:
        ops += [(WEIGHT, m, 0) for m in range(max(0, count - lag), count)]
    return tuple(ops)


def _interleaved(schedule: Schedule, rank: int) -> tuple[tuple[int, int, int], ...]:
    stages, chunks = schedule.stages, schedule.chunks
    total = schedule.microbatches * chunks

    def at(k: int, kind: int) -> tuple[int, int, int]:
        group, within = divmod(k, stages * chunks)
        chunk, m = divmod(within, stages)
        return kind, group * stages + m, chunk if kind == FORWARD else chunks - 1 - chunk

    ahead = total
    if schedule.microbatches > stages or chunks == 1:
        ahead = min(total, (stages - rank - 1) * (2 if chunks > 1 else 1) + (chunks - 1) * stages + 1)
    ops = [at(k, FORWARD) for k in range(ahead)]
    for k in range(total):
        ops.append(at(k, BACKWARD))
        if k + ahead < total:
            ops.append(at(k + ahead, FORWARD))
    return tuple(ops)


@cache
def peak_activations(schedule: Schedule) -> tuple[int, ...]:
    """By rank, the most pieces' activations held at a time: from a forward pass to its (last) backward pass.

    Activations of a piece of the model for one micro-batch count 1, so with v chunks each is 1 / v of a rank's layers.
    """
    last = WEIGHT if schedule.splits_backward else BACKWARD
    peaks = []
    for rank in range(schedule.stages):
        held = peak = 0
        for kind, _, _ in order(schedule, rank):
            held += (kind == FORWARD) - (kind == last)
            # A backward pass still needs what it frees.
            peak = max(peak, held + (kind == last))
        peaks.append(peak)
    return tuple(peaks)


@dataclass(frozen=True, eq=False)
class Times:
    """Times of the pieces for one micro-batch, in any one unit: arrays [..., pieces], leading axes are plans.

    ``backward`` is the whole backward pass, or that for inputs alone where ``weight`` gives that for weights.
    ``send`` [..., pieces - 1]: from a piece to the next, and of gradients back.
    """

    forward: Floats
    backward: Floats
    weight: Floats | None = None
    send: Floats | float = 0.0

    def checked(self, schedule: Schedule) -> tuple[Floats, Floats, Floats, Floats]:
        """Forward, backward, weight and send as float64 [..., pieces], ``send`` with a 0 at its end.

        For a schedule that does not split backward passes, ``weight`` is part of ``backward``.
        """
        pieces = schedule.pieces
        forward, backward = (np.asarray(x, np.float64) for x in (self.forward, self.backward))
        if schedule.splits_backward and self.weight is None:
            raise InputError("the schedule 'zb-h1' needs the time of weight gradients", value="weight=None")
        weight = np.asarray(0.0 if self.weight is None else self.weight, np.float64)
        send = np.asarray(self.send, np.float64)
        if send.ndim == 0:
            send = np.full(max(0, pieces - 1), float(send))
        for name, values, size in (
            ("forward", forward, pieces),
            ("backward", backward, pieces),
            ("send", send, pieces - 1),
        ):
            if values.ndim == 0 or values.shape[-1] != size:
                raise InputError(f"pipeline times: {name} must have one value a piece", value=values.shape, limit=size)
        if self.weight is not None and (weight.ndim == 0 or weight.shape[-1] != pieces):
            raise InputError("pipeline times: weight must have one value a piece", value=weight.shape, limit=pieces)
        for name, values in (("forward", forward), ("backward", backward), ("weight", weight), ("send", send)):
            if not np.all(np.isfinite(values) & (values >= 0)):
                raise InputError(f"pipeline times: {name} must be finite and 0 or more")
        send = np.concatenate([send, np.zeros((*send.shape[:-1], 1))], axis=-1)
        weight = np.broadcast_to(weight, forward.shape)
        if not schedule.splits_backward:
            backward, weight = backward + weight, np.zeros_like(weight)
        return forward, backward, weight, send


@cache
def _program(schedule: Schedule) -> tuple[tuple[int, int, int, int, int, int, int], ...]:
    """All operations, each after those that it waits for.

    (rank, kind, micro-batch, chunk, piece, position of what it waits for, piece whose sending it waits for; -1: none).
    """
    stages, pieces = schedule.stages, schedule.pieces
    orders = [order(schedule, rank) for rank in range(stages)]
    at = [0] * stages
    position: dict[tuple[int, int, int], int] = {}
    found: list[tuple[int, int, int, int, int, int, int]] = []
    left = sum(map(len, orders))
    while len(found) < left:
        before = len(found)
        for rank in range(stages):
            while at[rank] < len(orders[rank]):
                kind, m, chunk = orders[rank][at[rank]]
                piece = chunk * stages + rank
                needs, sent = _needs(kind, m, piece, pieces)
                if needs is not None and needs not in position:
                    break
                position[kind, m, piece] = len(found)
                found.append((rank, kind, m, chunk, piece, -1 if needs is None else position[needs], sent))
                at[rank] += 1
        if len(found) == before:
            raise InternalError(f"the pipeline schedule {schedule} deadlocks")
    return tuple(found)


def _needs(kind: int, m: int, piece: int, pieces: int) -> tuple[tuple[int, int, int] | None, int]:
    """The operation of another kind or piece that an operation waits for, and the piece whose sending lies between."""
    if kind == FORWARD:
        return (None, -1) if piece == 0 else ((FORWARD, m, piece - 1), piece - 1)
    if kind == WEIGHT:
        return (BACKWARD, m, piece), -1
    if piece == pieces - 1:
        return (FORWARD, m, piece), -1
    return (BACKWARD, m, piece + 1), piece


@dataclass(frozen=True, eq=False)
class Step:
    """One simulated step: its length [...], and busy time of each rank [..., stages]."""

    total: Floats
    busy: Floats
    events: tuple[tuple[int, int, int, int, float, float], ...] = ()
    """(rank, kind, micro-batch, chunk, start, end), where they were asked for."""

    @property
    def bubble(self) -> Floats:
        """Share of the ranks' time that they wait."""
        return np.asarray(1 - self.busy.mean(axis=-1) / self.total)


def simulate(schedule: Schedule, times: Times, *, events: bool = False) -> Step:
    """One step, operation by operation. ``events`` asks for each operation of a single plan.

    Raises ``InputError`` for times of the wrong shape or sign.
    """
    forward, backward, weight, send = times.checked(schedule)
    shape = np.broadcast_shapes(*(x.shape[:-1] for x in (forward, backward, weight, send)))
    columns = [np.broadcast_to(x, (*shape, schedule.pieces)) for x in (forward, backward, weight, send)]
    per_piece = schedule.microbatches * (columns[0] + columns[1] + columns[2])
    busy = per_piece.reshape(*shape, schedule.chunks, schedule.stages).sum(axis=-2)
    if not shape or np.prod(shape) == 1:
        rows = [x.ravel().tolist() for x in columns]
        total, found = _replay_one(schedule, rows, events=events)
        return Step(np.full(shape, total), busy, found)
    if events:
        raise InputError("events are of a single plan", value=shape)
    flat = [x.reshape(-1, schedule.pieces) for x in columns]
    totals = [
        _replay_many(schedule, [np.ascontiguousarray(x[i : i + _BLOCK].T) for x in flat])
        for i in range(0, flat[0].shape[0], _BLOCK)
    ]
    return Step(np.concatenate(totals).reshape(shape), busy)


def _replay_one(
    schedule: Schedule, times: list[list[float]], *, events: bool
) -> tuple[float, tuple[tuple[int, int, int, int, float, float], ...]]:
    free = [0.0] * schedule.stages
    done: list[float] = []
    found = []
    send = times[3]
    for rank, kind, m, chunk, piece, needs, sent in _program(schedule):
        start = free[rank]
        if needs >= 0:
            ready = done[needs] + send[sent] if sent >= 0 else done[needs]
            start = max(start, ready)
        end = start + times[kind][piece]
        free[rank] = end
        done.append(end)
        if events:
            found.append((rank, kind, m, chunk, start, end))
    return max(free), tuple(found)


def _replay_many(schedule: Schedule, times: list[Floats]) -> Floats:
    """Lengths of the steps of plans, from times [pieces, plans]."""
    program = _program(schedule)
    last_use = {needs: i for i, (*_, needs, _) in enumerate(program)}
    free = [np.zeros(times[0].shape[1]) for _ in range(schedule.stages)]
    done: dict[int, Floats] = {}
    send = times[3]
    for i, (rank, kind, _, _, piece, needs, sent) in enumerate(program):
        start = free[rank]
        if needs >= 0:
            start = np.maximum(start, done[needs] + send[sent] if sent >= 0 else done[needs])
            if last_use[needs] == i:
                del done[needs]
        free[rank] = start + times[kind][piece]
        if i in last_use:
            done[i] = free[rank]
    return np.asarray(np.max(free, axis=0))
