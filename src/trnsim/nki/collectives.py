"""``nki.collectives``: communication between ranks, as NKI 0.6 documents it.

Ranks run in one process (``trnsim.simulate_ranks``); a kernel that is called otherwise is the only rank. Sums are made
by the schedule that the runtime documents for the system that the ranks sit in (``fabric/``); if none is named, in
float32 in the order of the group, rounded once. The hardware's order within a step is not public.
In a ring each rank sends to the next of its group, on every channel. Under LNC=2 core ``c`` of a rank communicates with
core ``c`` of the others; tensors that both cores share are read once both have called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim import releases
from trnsim.errors import CompilerError, HardwareError
from trnsim.fabric.algorithms import schedule
from trnsim.fabric.data import execute
from trnsim.fabric.schedule import Schedule
from trnsim.isa.alu import AluOp, as_alu_op
from trnsim.isa.collectives import INSTRUCTIONS
from trnsim.machine import core as machine
from trnsim.machine.core import Core
from trnsim.machine.form import HBM, SBUF
from trnsim.machine.ranks import Meeting
from trnsim.machine.registers import Cell, VirtualRegister
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.versions.calls import guard as _guard
from trnsim.numerics import DType, as_dtype, from_float32

_OPERATORS = ("add", "minimum", "maximum")
_CHANNELS = 4


class ReplicaGroup:
    """Groups of ranks that communicate: a list of lists of ranks, none in two of them."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self.groups = [[int(rank) for rank in group] for group in groups]
        ranks = [rank for group in self.groups for rank in group]
        if not ranks or len(set(ranks)) != len(ranks) or min(ranks) < 0:
            raise CompilerError(
                "the groups of a ReplicaGroup must be lists of ranks, none in two places",
                operand="groups",
                value=self.groups,
            )

    def __repr__(self) -> str:
        return f"ReplicaGroup({self.groups})"


class _Call:
    """One rank's call of a collective: what it checks, brings and records."""

    def __init__(self, name: str, replica_group: Any, priority: Any, label: str | None) -> None:
        self.core = machine.current()
        self.name, self.label = name, label
        launch: Any = self.core.launch
        self.rank, self.world = int(launch.rank), launch.world
        if not isinstance(replica_group, ReplicaGroup):
            raise self.error(CompilerError, "replica_group must be a ReplicaGroup", "replica_group",
                             type(replica_group).__name__, "ReplicaGroup")  # fmt: skip
        self.group = self._group(replica_group)
        self.terms: dict[str, Any] = {"replica_group": replica_group.groups}
        self.found: dict[int, Any] = {}
        self.time_ps: int | None = None
        if priority is not None:
            allowed = self.core.generation == "v4" and isinstance(priority, int) and 0 <= priority <= 3
            self.require(allowed, "priority needs NeuronCore-v4 and a class 0 to 3", "priority", priority, "0 to 3, v4")

    def error(self, kind: type[Any], message: str, operand: str, value: Any, limit: Any) -> Any:
        return kind(
            message, instruction=self.name, operand=operand, value=value, limit=limit, generation=self.core.generation
        )

    def require(self, condition: bool, message: str, operand: str, value: Any, limit: Any) -> None:
        if not condition:
            raise self.error(HardwareError, message, operand, value, limit)

    def _group(self, replica_group: ReplicaGroup) -> tuple[int, ...]:
        size = 1 if self.world is None else self.world.size
        for group in replica_group.groups:
            if max(group) >= size:
                raise self.error(
                    CompilerError, f"the group names rank {max(group)}, but {size} run: use trnsim.simulate_ranks",
                    "replica_group", replica_group.groups, f"ranks 0 to {size - 1}",
                )  # fmt: skip
        for group in replica_group.groups:
            if self.rank in group:
                return tuple(group)
        raise self.error(
            CompilerError, f"rank {self.rank} is in no group", "replica_group", replica_group.groups, self.rank
        )

    def tensors(self, name: str, value: Any, memories: tuple[str, ...], *, single: bool = False) -> list[NkiTensor]:
        """The tensors of a list argument, all in one memory; several only in HBM."""
        if not isinstance(value, (list, tuple)) or not value or not all(isinstance(t, NkiTensor) for t in value):
            raise self.error(CompilerError, f"{name} must be a list of tensors", name, type(value).__name__, "a list")
        found = list(value)
        for tensor in found:
            self.require(tensor.memory in memories, f"{name} lies in another memory", name, tensor.memory, memories)
            self.require(tensor.memory == found[0].memory, f"{name} mixes memories", name, tensor.memory,
                         found[0].memory)  # fmt: skip
        most = 1 if single or found[0].memory != HBM else None
        self.require(most is None or len(found) == 1, "only one tensor is supported here", name, len(found), most)
        return found

    def pairs(
        self, srcs: Any, dsts: Any, memories: tuple[str, ...], *, single: bool = False
    ) -> list[tuple[NkiTensor, NkiTensor]]:
        """Sources with their destinations, of equal memory and dtype."""
        sources, targets = (self.tensors(n, v, memories, single=single) for n, v in (("srcs", srcs), ("dsts", dsts)))
        self.require(len(sources) == len(targets), "srcs and dsts differ in length", "dsts", len(targets), len(sources))
        for src, dst in zip(sources, targets, strict=True):
            self.require(src.memory == dst.memory, "srcs and dsts must lie in one memory", "dsts", dst.memory,
                         src.memory)  # fmt: skip
            self.require(src.dtype == dst.dtype, "srcs and dsts differ in dtype", "dsts", dst.dtype, src.dtype)
        self.terms["srcs"] = [(str(s.dtype), s.shape) for s in sources]
        self.terms["dsts"] = [(str(d.dtype), d.shape) for d in targets]
        return list(zip(sources, targets, strict=True))

    def shape(self, src: NkiTensor, dst: NkiTensor, dim: int, *, by: int = 1, of: int = 1) -> None:
        """``dst`` has ``by / of`` times the size of ``src`` in dimension ``dim`` and equals it elsewhere."""
        expected = list(src.shape)
        self.require(
            expected[dim] * by % of == 0, f"dimension {dim} does not divide by the ranks", "srcs", src.shape, of
        )
        expected[dim] = expected[dim] * by // of
        self.require(dst.shape == tuple(expected), "dst has another shape", "dsts", dst.shape, tuple(expected))

    def dimension(self, value: Any, memory: str, *, sbuf: tuple[int, ...] = (0,)) -> int:
        allowed = (0,) if memory == HBM else sbuf
        self.require(value in allowed, "collectives do not work along this dimension", "collective_dim", value, allowed)
        self.terms["collective_dim"] = value
        return int(value)

    def operator(self, op: Any) -> AluOp:
        found = as_alu_op(op)
        self.require(found.name in _OPERATORS, "collectives do not reduce with this operator", "op", found, _OPERATORS)
        self.terms["op"] = found.name
        return found

    def exchange(self, tensors: Sequence[NkiTensor], given: Any = None) -> list[Any] | None:
        """What each member of the group brings, in its order; None in a run without numbers.

        ``given`` makes what this rank brings (default: copies of ``tensors``).
        """
        core = self.core
        shared = core.launch.lnc > 1 and any(core.launch.infos[t.storage.id].shared for t in tensors)
        if shared:
            self._both("enters")
        for tensor in tensors:
            core.settle(tensor, f"nki.collectives.{self.name}")
        brought = (given or (lambda: [np.array(t.array()) for t in tensors]))() if core.numeric else None
        if shared:
            self._both("is ready")
        if self.world is not None and len(self.group) > 1:
            meeting = Meeting(
                f"nki.collectives.{self.name}", self.rank, core.index, self.group, self.terms, brought,
                core.launch.lines.locations[core.caller_line()],
            )  # fmt: skip
            found = self.world.arrive(core, meeting)
        else:
            found = {self.rank: brought}
        self.found = found
        return [found[rank] for rank in self.group] if core.numeric else None

    def once(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns to the first member of the group that asks."""
        if -1 not in self.found:
            self.found[-1] = make()
        return self.found[-1]

    def take(self, nbytes: int, dtype: DType, groups: Any = None, pairs: Any = None) -> None:
        """Say how large the collective is, and so how long it takes, if it is known where the ranks sit."""
        if self.world is not None and self.world.placement is not None:
            every = groups or self.terms["replica_group"]
            self.time_ps = self.world.placement.time_ps(self.name, every, self.group, nbytes, dtype.itemsize, pairs)

    def _both(self, step: str) -> None:
        core = self.core
        count = core.pipes["collective"] = core.pipes.get("collective", 0) + 1
        assert core.launch.exchange is not None
        core.launch.exchange.rendezvous(core, ("collective", count), f"nki.collectives.{self.name} ({step})")

    def record(self, dst: NkiTensor, src: NkiTensor, values: Any, other: Any = None, metadata: Any = None,
               counts: Any = None) -> None:  # fmt: skip
        """The row of one tensor that this rank receives."""
        INSTRUCTIONS[self.name](dst, src, other, metadata, counts, values, self.time_ps, self.label)
        self.label = None


def _reduced(op: AluOp, parts: Sequence[NDArray[Any]], dst: NkiTensor) -> NDArray[Any]:
    """The parts of all ranks, in the order of their group, in one."""
    whole = dst.dtype.kind in ("int", "uint")
    total = parts[0].astype(np.int64 if whole else np.float32)
    with np.errstate(all="ignore"):
        for part in parts[1:]:
            total = op(total, part.astype(total.dtype))
    result: NDArray[Any] = total.astype(dst.dtype.numpy) if whole else from_float32(total, dst.dtype)
    return result


def _sums(
    call: _Call, collective: str, op: AluOp, parts: Sequence[Sequence[NDArray[Any]]] | None,
    pairs: Sequence[tuple[NkiTensor, NkiTensor]],
) -> list[NDArray[Any]] | None:  # fmt: skip
    """What this rank receives of the reduction of all ranks' sources, tensor by tensor; None without numbers."""
    if parts is None:
        return None
    place, size = call.group.index(call.rank), len(call.group)
    results = []
    for i, (src, dst) in enumerate(pairs):
        given = [p[i] for p in parts]
        if op.name != "add" or as_dtype(given[0].dtype) != dst.dtype:
            # No order: the least and the greatest; or a format that NumPy has no name for.
            rows = slice(place * dst.shape[0], (place + 1) * dst.shape[0]) if collective == "reduce_scatter" else ...
            results.append(_reduced(op, [g[rows] for g in given], dst))
            continue
        made = _schedule(call, collective, size, src.size * src.dtype.itemsize, src.dtype.itemsize)
        flat = [np.ascontiguousarray(g).reshape(-1) for g in given]
        whole = call.once(dict)
        if i not in whole:
            with np.errstate(all="ignore"):
                whole[i] = execute(made, flat)
        results.append(whole[i][place].reshape(dst.shape))
    return results


def _schedule(call: _Call, collective: str, ranks: int, nbytes: int, itemsize: int) -> Schedule:
    if call.world is not None and call.world.placement is not None:
        return call.world.placement.schedule(collective, call.group, nbytes, itemsize)  # type: ignore[no-any-return]
    algorithm = "single_step_mesh" if collective == "all_reduce" else "mesh"
    return schedule(collective, algorithm, ranks, nbytes, itemsize=itemsize)


def _bytes(tensors: Sequence[NkiTensor]) -> int:
    return sum(t.size * t.dtype.itemsize for t in tensors)


def all_reduce(
    srcs: Any, dsts: Any, replica_group: Any, op: Any, priority: int | None = None, name: str | None = None
) -> None:
    """Each rank's ``dsts`` receive the sum (or minimum, maximum) of all ranks' ``srcs``."""
    call = _Call("all_reduce", replica_group, priority, name)
    pairs = call.pairs(srcs, dsts, (HBM, SBUF))
    operator = call.operator(op)
    for src, dst in pairs:
        call.shape(src, dst, 0)
    call.take(_bytes([src for src, _ in pairs]), pairs[0][0].dtype)
    sums = _sums(call, "all_reduce", operator, call.exchange([src for src, _ in pairs]), pairs)
    for i, (src, dst) in enumerate(pairs):
        call.record(dst, src, sums and [sums[i]])


def all_gather(
    srcs: Any, dsts: Any, replica_group: Any, collective_dim: int, priority: int | None = None, name: str | None = None
) -> None:
    """Each rank's ``dsts`` receive all ranks' ``srcs``, joined along ``collective_dim`` in the order of the group."""
    call = _Call("all_gather", replica_group, priority, name)
    pairs = call.pairs(srcs, dsts, (HBM, SBUF))
    for src, dst in pairs:
        if src.memory == SBUF:
            call.require(src.ndim == 2, "SBUF tensors must have two dimensions", "srcs", src.shape, 2)
        call.shape(src, dst, call.dimension(collective_dim, src.memory, sbuf=(0, 1)), by=len(call.group))
    call.take(_bytes([dst for _, dst in pairs]), pairs[0][0].dtype)
    parts = call.exchange([src for src, _ in pairs])
    for i, (src, dst) in enumerate(pairs):
        call.record(dst, src, parts and [np.concatenate([p[i] for p in parts], axis=collective_dim)])


def reduce_scatter(
    srcs: Any, dsts: Any, replica_group: Any, collective_dim: int, op: Any, priority: int | None = None,
    name: str | None = None,
) -> None:  # fmt: skip
    """Each rank's ``dsts`` receive its share along ``collective_dim`` of the reduction of all ranks' ``srcs``."""
    call = _Call("reduce_scatter", replica_group, priority, name)
    pairs = call.pairs(srcs, dsts, (HBM, SBUF))
    operator = call.operator(op)
    for src, dst in pairs:
        call.shape(src, dst, call.dimension(collective_dim, src.memory), of=len(call.group))
    call.take(_bytes([src for src, _ in pairs]), pairs[0][0].dtype)
    sums = _sums(call, "reduce_scatter", operator, call.exchange([src for src, _ in pairs]), pairs)
    for i, (src, dst) in enumerate(pairs):
        call.record(dst, src, sums and [sums[i]])


def all_to_all(
    srcs: Any, dsts: Any, replica_group: Any, collective_dim: int, priority: int | None = None, name: str | None = None
) -> None:
    """Part ``j`` of rank ``i``'s ``srcs`` along ``collective_dim`` becomes part ``i`` of rank ``j``'s ``dsts``."""
    call = _Call("all_to_all", replica_group, priority, name)
    pairs = call.pairs(srcs, dsts, (HBM,))
    size = len(call.group)
    for src, dst in pairs:
        call.shape(src, dst, call.dimension(collective_dim, src.memory))
        call.require(src.shape[0] % size == 0, "dimension 0 does not divide by the ranks", "srcs", src.shape, size)
    call.take(_bytes([src for src, _ in pairs]), pairs[0][0].dtype)
    parts = call.exchange([src for src, _ in pairs])
    place = call.group.index(call.rank)
    for i, (src, dst) in enumerate(pairs):
        rows = src.shape[0] // size
        share = slice(place * rows, (place + 1) * rows)
        call.record(dst, src, parts and [np.concatenate([p[i][share] for p in parts])])


# -- lengths known at run time -----------------------------------------------------------------------------------------


def all_gather_v(
    srcs: Any, dsts: Any, replica_group: Any, metadata_tensor: Any, recv_counts_known: bool = False,
    has_rdispls: bool = False, priority: int | None = None, name: str | None = None,
) -> None:  # fmt: skip
    """Each rank sends one chunk of its flat ``src`` to all; chunk ``r`` starts slot ``r`` of the flat ``dst``.

    ``metadata_tensor`` holds the chunk's count and displacement, and receives the counts of all ranks unless
    ``recv_counts_known``. NKI 0.6 has it with LNC=2 and groups of 4 ranks only, and without ``has_rdispls``.
    """
    call = _Call("all_gather_v", replica_group, priority, name)
    call.require(not has_rdispls, "has_rdispls is not supported here", "has_rdispls", True, False)
    call.require(call.core.launch.lnc == 2, "all_gather_v needs LNC=2", "lnc", call.core.launch.lnc, 2)
    call.require(len(call.group) == 4, "a group must have 4 ranks", "replica_group", len(call.group), 4)
    _variable(call, srcs, dsts, metadata_tensor, recv_counts_known, has_rdispls, uniform=True)


def all_to_all_v(
    srcs: Any, dsts: Any, replica_group: Any, metadata_tensor: Any, recv_counts_known: bool = False,
    has_rdispls: bool = False, priority: int | None = None, name: str | None = None,
) -> None:  # fmt: skip
    """Each rank sends each other a chunk of its flat ``src``; lengths and places come from ``metadata_tensor``.

    Its rows: counts and displacements sent, counts received (written unless ``recv_counts_known``), and with
    ``has_rdispls`` (trn3) where the chunks are written; without, chunk ``r`` starts slot ``r`` of the flat ``dst``.
    """
    call = _Call("all_to_all_v", replica_group, priority, name)
    call.require(not has_rdispls or call.core.generation == "v4", "has_rdispls needs a NeuronSwitch fabric (trn3)",
                 "has_rdispls", True, False)  # fmt: skip
    _variable(call, srcs, dsts, metadata_tensor, recv_counts_known, has_rdispls)


def _variable(
    call: _Call, srcs: Any, dsts: Any, metadata: Any, known: bool, placed: bool, *, uniform: bool = False
) -> None:
    """What the two have in common; if ``uniform`` the first column tells what goes to every rank."""
    sources, targets = (call.tensors(n, v, (HBM,), single=True) for n, v in (("srcs", srcs), ("dsts", dsts)))
    src, dst = sources[0], targets[0]
    call.require(src.dtype == dst.dtype, "srcs and dsts differ in dtype", "dsts", dst.dtype, src.dtype)
    size, rows = len(call.group), 4 if placed else 3
    if not isinstance(metadata, NkiTensor) or metadata.dtype != "uint32" or metadata.memory not in (HBM, SBUF):
        raise call.error(CompilerError, "metadata_tensor must be uint32 in HBM or SBUF", "metadata_tensor",
                         repr(metadata), "uint32")  # fmt: skip
    expected = (rows, size) if metadata.memory == HBM else (1, rows, size)
    call.require(metadata.shape == expected, "metadata_tensor has another shape", "metadata_tensor", metadata.shape,
                 expected)  # fmt: skip
    lead: tuple[Any, ...] = () if metadata.memory == HBM else (slice(None),)
    sent = metadata[(*lead, slice(0, 2))]
    received = None if known else metadata[(*lead, slice(2, 3))]
    call.terms.update(dtype=str(src.dtype), has_rdispls=placed)

    def give() -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
        counts, displacements = sent.array().reshape(2, size).astype(np.int64)
        flat = np.array(src.array()).reshape(-1)
        for place in range(size):
            column = 0 if uniform else place
            at, count = int(displacements[column]), int(counts[column])
            inside = at + count <= len(flat)
            call.require(inside, "a chunk that is sent leaves src", "metadata_tensor", f"{at} + {count}", len(flat))
        return flat, counts, displacements

    parts = call.exchange([src, metadata], give)
    values = None
    if parts is not None:
        column = 0 if uniform else call.group.index(call.rank)
        out = np.array(dst.array()).reshape(-1)
        slot = len(out) // size
        places = metadata.array().reshape(rows, size)[3].astype(np.int64) if placed else np.arange(size) * slot
        lengths = np.zeros(size, np.uint32)
        for place, (flat, counts, displacements) in enumerate(parts):
            at, count, to = int(displacements[column]), int(counts[column]), int(places[place])
            room = len(out) - to if placed else slot
            call.require(count <= room, f"the chunk from rank {call.group[place]} does not fit", "dsts", count, room)
            out[to : to + count] = flat[at : at + count]
            lengths[place] = count
        values = [out.reshape(dst.shape), lengths]
    places_given = metadata[(*lead, slice(3, 4))] if placed else None
    call.record(dst, src, values, other=places_given, metadata=sent, counts=received)


# -- permutations ------------------------------------------------------------------------------------------------------


def collective_permute(
    srcs: Any, dsts: Any, source_target_pairs: Any, priority: int | None = None, name: str | None = None
) -> None:
    """For each pair ``(source, target)`` the target's ``dst`` receives the source's ``src``; other ranks' stay."""
    pairs = [(int(s), int(t)) for s, t in source_target_pairs]
    ranks = sorted({rank for pair in pairs for rank in pair})
    core = machine.current()
    launch: Any = core.launch
    rank = int(launch.rank)
    call = _Call("collective_permute", ReplicaGroup([ranks if rank in ranks else [rank]]), priority, name)
    src, dst = call.pairs(srcs, dsts, (HBM,), single=True)[0]
    call.shape(src, dst, 0)
    for side, found in (("source", [s for s, _ in pairs]), ("target", [t for _, t in pairs])):
        call.require(len(set(found)) == len(found), f"a rank is {side} twice", "source_target_pairs", pairs, "once")
    call.terms["source_target_pairs"] = sorted(pairs)
    if rank not in ranks:
        return
    places = tuple((call.group.index(s), call.group.index(t)) for s, t in pairs)
    call.take(_bytes([src]), src.dtype, [ranks], places)
    parts = call.exchange([src])
    origin = {target: source for source, target in pairs}.get(rank)
    if origin is not None:
        call.record(dst, src, parts and [parts[call.group.index(origin)][0]])


def collective_permute_implicit(
    srcs_by_channel: Any, dsts_by_channel: Any, replica_group: Any, channel_ids: Sequence[int] = (0,),
    priority: int | None = None, name: str | None = None,
) -> None:  # fmt: skip
    """Each rank sends its sources to the next rank of its group's ring, one tensor a channel."""
    call = _Call("collective_permute_implicit", replica_group, priority, name)
    channels = _channels(call, channel_ids, srcs_by_channel, dsts_by_channel)
    call.take(_bytes([src for src, _ in channels]), channels[0][0].dtype)
    parts = call.exchange([src for src, _ in channels])
    before = _neighbour(call.group, call.rank, 1)
    for i, (src, dst) in enumerate(channels):
        call.record(dst, src, parts and [parts[call.group.index(before)][i]])


def collective_permute_implicit_reduce(
    srcs0_by_channel: Any, srcs1_by_channel: Any, dsts_by_channel: Any, replica_group: Any, op: Any,
    channel_ids: Sequence[int] = (0,), priority: int | None = None, name: str | None = None,
) -> None:  # fmt: skip
    """As ``collective_permute_implicit``, of ``op(srcs0, srcs1)``, which each rank computes before it sends."""
    call = _Call("collective_permute_implicit_reduce", replica_group, priority, name)
    operator = call.operator(op)
    seconds = [src for src, _ in _channels(call, channel_ids, srcs1_by_channel, dsts_by_channel)]
    channels = _channels(call, channel_ids, srcs0_by_channel, dsts_by_channel)
    firsts = [src for src, _ in channels]

    def give() -> list[NDArray[Any]]:
        return [
            _reduced(operator, (a.array(), b.array()), dst)
            for a, b, (_, dst) in zip(firsts, seconds, channels, strict=True)
        ]

    call.take(_bytes(firsts), firsts[0].dtype)
    parts = call.exchange([*firsts, *seconds], give)
    before = _neighbour(call.group, call.rank, 1)
    for i, (src, dst) in enumerate(channels):
        call.record(dst, src, parts and [parts[call.group.index(before)][i]], other=seconds[i])


def _channels(call: _Call, channel_ids: Any, sources: Any, targets: Any) -> list[tuple[NkiTensor, NkiTensor]]:
    ids = list(channel_ids)
    call.require(ids == list(range(len(ids))) and 1 <= len(ids) <= _CHANNELS,
                 "channel_ids must be 0, 1, ... without gaps", "channel_ids", ids, f"at most {_CHANNELS}")  # fmt: skip
    for label, lists in (("srcs_by_channel", sources), ("dsts_by_channel", targets)):
        call.require(isinstance(lists, (list, tuple)) and len(lists) == len(ids), f"{label} needs a list a channel",
                     label, lists if not isinstance(lists, (list, tuple)) else len(lists), len(ids))  # fmt: skip
    found = []
    shapes = []
    for src, dst in zip(sources, targets, strict=True):
        pair = call.pairs(src, dst, (HBM, SBUF), single=True)[0]
        call.shape(*pair, 0)
        shapes.append(call.terms.pop("srcs"))
        found.append(pair)
    call.terms.update(channels=shapes)
    return found


def _neighbour(group: tuple[int, ...], rank: int, steps: int) -> int:
    """The rank ``steps`` places before ``rank`` in the ring."""
    return group[(group.index(rank) - steps) % len(group)]


def collective_permute_implicit_current_processing_rank_id(
    iteration_id: Any, replica_group: Any, channel_id: int = 0, name: str | None = None
) -> VirtualRegister:
    """A register with the rank whose data a ring has brought here after ``iteration_id`` steps."""
    call = _Call("collective_permute_implicit_current_processing_rank_id", replica_group, None, name)
    call.require(0 <= int(channel_id) < _CHANNELS, "no such channel", "channel_id", channel_id, _CHANNELS)
    return VirtualRegister(Cell(_neighbour(call.group, call.rank, int(iteration_id))))


def rank_id(name: str | None = None) -> VirtualRegister:
    """A register with the number of this rank."""
    del name
    core: Core = machine.current()
    launch: Any = core.launch
    return VirtualRegister(Cell(int(launch.rank)))


__all__ = [
    "ReplicaGroup", "all_gather", "all_gather_v", "all_reduce", "all_to_all", "all_to_all_v", "collective_permute",
    "collective_permute_implicit", "collective_permute_implicit_current_processing_rank_id",
    "collective_permute_implicit_reduce", "rank_id", "reduce_scatter",
]  # fmt: skip

_guard(globals(), "nki.collectives", __all__)


def __getattr__(name: str) -> Any:
    raise releases.no_attribute("nki.collectives", name)
