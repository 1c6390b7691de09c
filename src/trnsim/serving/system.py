"""A serving system: replicas behind a router, or a pool that computes prompts and one that decodes.

``simulate`` is an event loop over two kinds of events, the end of a replica's plan and the arrival of a request. At one
time, ends come before arrivals and both before planning, and ties go by number: results depend on nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import numpy as np

from trnsim.errors import InputError, InternalError

from .cache import BlockKeys
from .cost import StepCost
from .records import Records
from .replica import Replica
from .result import ServingResult, collect
from .settings import CacheSettings, ReplicaSettings, at_least, one_of
from .workload import PS, Workload

ROUTERS: Final = ("round-robin", "least-requests", "prefix")
TOO_LONG: Final = ("error", "reject")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """``replicas`` alike, ``chips`` in each (a fraction if several share one)."""

    cost: StepCost
    settings: ReplicaSettings
    replicas: int = 1
    chips: float = 1.0

    def __post_init__(self) -> None:
        at_least("Pool", 1, replicas=self.replicas)
        if not self.chips > 0:
            raise InputError("Pool.chips must be positive", value=self.chips)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How the cache of a prompt gets from one pool to the other: a latency, then bytes at a rate.

    Transfers do not slow each other down. The prefill pool's copy is free as soon as the prompt is computed.
    """

    bytes_per_second: float
    latency_ps: int = 0

    def __post_init__(self) -> None:
        at_least("Transfer", 0, latency_ps=self.latency_ps)
        if not self.bytes_per_second > 0:
            raise InputError("Transfer.bytes_per_second must be positive", value=self.bytes_per_second)

    def ps(self, tokens: int, cache: CacheSettings) -> int:
        """Time for the cache of ``tokens``."""
        return self.latency_ps + round(tokens * cache.bytes_per_token / self.bytes_per_second * PS)


def simulate(
    workload: Workload,
    pool: Pool,
    *,
    prefill: Pool | None = None,
    transfer: Transfer | None = None,
    router: str = "least-requests",
    too_long: str = "error",
    skip_ahead: bool = True,
) -> ServingResult:
    """Serve ``workload`` and return what happened.

    With ``prefill`` and ``transfer``, prompts and their first tokens are computed by that pool and ``pool`` decodes.
    ``router``: ``least-requests`` (fewest that wait or run), ``round-robin``, or ``prefix`` (prompts that begin with
    the same shared block go to the same replica). ``too_long``: requests that ``max_model_len`` or the cache cannot
    hold are an ``InputError`` or are rejected and reported. ``skip_ahead=False`` takes one step at a time; the result
    is the same.
    """
    one_of("simulate", ROUTERS, router=router)
    one_of("simulate", TOO_LONG, too_long=too_long)
    if (prefill is None) != (transfer is None):
        raise InputError("disaggregated serving needs both a prefill pool and a transfer")
    served = _servable(workload, pool, prefill, error=too_long == "error")
    system = _System(workload, pool, prefill, transfer, router, served=served, skip_ahead=skip_ahead)
    system.run()
    return collect(system.records, served, system.pools, [p for p in (prefill, pool) if p is not None])


def _servable(
    workload: Workload, pool: Pool, prefill: Pool | None, *, error: bool
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which requests can be served at all."""
    fits = np.ones(len(workload), np.bool_)
    prompt, output = workload.input_tokens, workload.output_tokens
    for one, decodes in ((pool, True), (prefill, False)):
        if one is None:
            continue
        settings = one.settings
        scheduler, cache = settings.scheduler, settings.cache
        total = prompt + (output if decodes else 1)
        held = prompt + (np.maximum(output - 2, 0) + settings.decode_tokens * (output > 1) if decodes else 0)
        held = np.minimum(held, scheduler.max_model_len)
        unit = cache.unit_tokens(scheduler.max_model_len)
        checks = [
            (total, scheduler.max_model_len, "tokens of prompt and output are more than max_model_len"),
            (held, cache.units(scheduler.max_model_len) * unit, "tokens are more than the KV cache holds"),
        ]
        if not scheduler.chunks:
            limit = scheduler.max_num_batched_tokens
            checks.append(
                (prompt, limit, "tokens of a prompt that is not cut in chunks are more than max_num_batched_tokens")
            )
        for tokens, limit, what in checks:
            wrong = tokens > limit
            if error and wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                raise InputError(f"request {at}: its {what}", value=int(tokens[at]), limit=limit)
            fits &= ~wrong
    return fits


def _block_keys(workload: Workload, settings: ReplicaSettings) -> BlockKeys | None:
    """Keys of the cache's blocks, from those of the workload's blocks."""
    cache = settings.cache
    if not cache.prefix_reuse or workload.prefix_keys is None:
        return None
    theirs, ours = workload.prefix_block_tokens, cache.block_tokens
    if theirs % ours == 0 or ours % theirs == 0:
        return BlockKeys(workload.prefix_keys, max(1, theirs // ours), max(1, ours // theirs))
    raise InputError(
        "the blocks of the cache and of the workload's prefixes do not divide each other", value=ours, limit=theirs
    )


class _System:
    """The event loop."""

    def __init__(
        self,
        workload: Workload,
        pool: Pool,
        prefill: Pool | None,
        transfer: Transfer | None,
        router: str,
        *,
        served: np.ndarray[tuple[int], np.dtype[np.bool_]],
        skip_ahead: bool,
    ) -> None:
        self.workload = workload
        self.transfer = transfer
        self.router = router
        self.records = Records(workload.input_tokens, workload.output_tokens)
        self.order = [int(i) for i in np.flatnonzero(served)]
        self.pools: list[list[Replica]] = []
        self.specs = [one for one in (prefill, pool) if one is not None]
        number = 0
        for one in self.specs:
            keys = _block_keys(workload, one.settings)
            replicas = []
            for _ in range(one.replicas):
                limit = {} if skip_ahead else {"step_limit": 1}
                replicas.append(Replica(number, one.cost, one.settings, self.records, keys=keys, **limit))
                number += 1
            self.pools.append(replicas)
        self.replicas = [replica for replicas in self.pools for replica in replicas]
        self.turns = [0] * len(self.pools)
        # (time, kind, number, what): kind 0 the end of replica's plan (what: the version of it), 1 an arrival (what:
        # the pool it arrives at).
        self.events: list[tuple[int, int, int, int]] = []
        self.versions = [0] * len(self.replicas)
        self.next = 0

    def run(self) -> None:
        """Serve everything."""
        workload = self.workload
        if workload.arrival_ps is not None:
            self.events = [(int(workload.arrival_ps[i]), 1, i, 0) for i in self.order]
            self.next = len(self.order)
        else:
            for _ in range(workload.concurrency):
                self._send(0)
        heapq.heapify(self.events)
        if self.transfer is not None:
            self.records.target[:] = 1
        while self.events:
            now = self.events[0][0]
            touched: set[int] = set()
            while self.events and self.events[0][0] == now:
                _, kind, number, what = heapq.heappop(self.events)
                if kind:
                    touched.add(self._arrive(number, what, now))
                elif what == self.versions[number]:
                    self._finish(self.replicas[number], now)
                    touched.add(number)
            for number in sorted(touched):
                replica = self.replicas[number]
                if replica.pending is None:
                    end = replica.plan(now)
                    if end is not None:
                        self._push_end(number, end)
        done = self.records.finish[self.order] >= 0
        if not done.all():
            raise InternalError("requests were never answered", value=int((~done).sum()))

    def _push_end(self, number: int, end: int) -> None:
        self.versions[number] += 1
        heapq.heappush(self.events, (end, 0, number, self.versions[number]))

    def _send(self, time: int) -> None:
        """A user of the closed loop sends the next request."""
        if self.next < len(self.order):
            heapq.heappush(self.events, (time, 1, self.order[self.next], 0))
            self.next += 1

    def _arrive(self, request: int, pool: int, now: int) -> int:
        records = self.records
        if records.arrival[request] < 0:
            records.arrival[request] = now
        replica = self._choose(request, pool)
        end = replica.deliver(request, now)
        if end is not None:
            self._push_end(replica.number, end)
        return replica.number

    def _choose(self, request: int, pool: int) -> Replica:
        replicas = self.pools[pool]
        if len(replicas) == 1:
            return replicas[0]
        keys = self.workload.prefix_keys
        if self.router == "prefix" and keys is not None and keys[request]:
            return replicas[_stable_hash(keys[request][0]) % len(replicas)]
        if self.router == "least-requests":
            return min(replicas, key=lambda replica: (replica.outstanding, replica.number))
        turn = self.turns[pool]
        self.turns[pool] = turn + 1
        return replicas[turn % len(replicas)]

    def _finish(self, replica: Replica, now: int) -> None:
        records = self.records
        for request in replica.commit():
            if self.transfer is not None and records.emitted[request] < records.output[request]:
                # The prefill pool is done with it: the other pool has its cache after the transfer.
                records.target[request] = records.output[request]
                records.finish[request] = -1
                prompt = int(records.input[request])
                records.kept[request] = prompt
                later = now + self.transfer.ps(prompt, self.specs[-1].settings.cache)
                heapq.heappush(self.events, (later, 1, request, 1))
            elif self.workload.arrival_ps is None:
                self._send(now + self.workload.think_ps)


def _stable_hash(key: Hashable) -> int:
    """A number for a key that is the same in every process."""
    import zlib

    return zlib.crc32(repr(key).encode())
