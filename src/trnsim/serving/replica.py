"""One replica: a continuous-batching scheduler that makes up one step after another.

``plan`` decides what is done next and how long it takes; ``commit`` does it. Where the next steps only decode, with the
same sequences, a plan is a *run* of many steps. A request that arrives during a run cuts it short (``cut``), so the
result is that of single steps, exactly.

Order is first come, first served: requests are admitted in the order in which they arrived, and the one admitted last
is preempted first. A preempted request goes back to the front of the queue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from trnsim.errors import InternalError

from .cache import BlockKeys, KvCache
from .cost import NONE, EndingCost, Integers, RunCost, Step, StepCost
from .log import STEP_COLUMNS, Columns, Emissions
from .records import Records
from .settings import ReplicaSettings

# Rows of the table of running sequences: request; tokens in the cache; tokens that its prompt (or what is computed
# again) has; output tokens left; units held; decode steps it has done; first decode step of its present range.
REQUEST, CONTEXT, GOAL, LEFT, UNITS, DONE, SINCE = range(7)
_LONGEST_RUN = 4096
_SECOND = 10**12


@dataclass
class _Plan:
    """What happens next: a run of decode steps, or one step of any kind."""

    start: int
    ends: Integers
    decoding: int  # sequences that decode: the first of the table
    chunks: Integers  # prompt tokens of the sequences that compute some, which are the last of the table
    context_sum: Integers
    growth: Integers | None  # [sequences, steps]: tokens each step yields, None: always 1
    decodes: bool


class Replica:
    """State of one replica.

    ``step_limit`` bounds the steps of a run (1: never skip ahead).
    """

    def __init__(
        self,
        number: int,
        cost: StepCost,
        settings: ReplicaSettings,
        records: Records,
        *,
        keys: BlockKeys | None = None,
        step_limit: int = _LONGEST_RUN,
    ) -> None:
        self.number = number
        self.settings = settings
        self.records = records
        self.cost = cost
        self._ending = cost if isinstance(cost, EndingCost) else None
        self._runs = cost if isinstance(cost, RunCost) and self._ending is None else None
        self.step_limit = step_limit if self._runs is not None else 1
        scheduler, cache = settings.scheduler, settings.cache
        longest = scheduler.max_model_len
        self.cache = KvCache(cache.units(longest), cache.unit_tokens(longest))
        self.reserve = int(scheduler.watermark * self.cache.total)
        self.keys = keys
        self.waiting: deque[int] = deque()
        self.n = 0
        self.table: Integers = np.zeros((7, scheduler.max_num_seqs), np.int64)
        self.log = Columns(len(STEP_COLUMNS))
        self.emissions = Emissions()
        self.pending: _Plan | None = None
        self._shared: dict[int, int] = {}  # request -> shared blocks it holds
        self._steady = False  # the last step decoded the very sequences that run now
        self._preempted = False  # in this plan
        self._new: list[int] = []  # requests that are scheduled for the first time in this plan
        self._moved_tokens = 0  # tokens swapped out or in since the last step

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return self.n + len(self.waiting)

    def deliver(self, request: int, now: int) -> int | None:
        """A request arrives. If it cuts a run short, the new end of the plan is returned."""
        plan = self.pending
        # Where others wait already, or no more may run, the newcomer changes nothing before the run ends anyway.
        blocked = bool(self.waiting) or self.n == self.settings.scheduler.max_num_seqs
        self.waiting.append(request)
        if plan is None or blocked or plan.ends.size == 1:
            return None
        steps = int(np.searchsorted(plan.ends, now)) + 1
        if steps >= plan.ends.size:
            return None
        plan.ends = plan.ends[:steps]
        return int(plan.ends[-1])

    # -- planning ------------------------------------------------------------------------------------------------

    def plan(self, now: int) -> int | None:
        """Decide what is done from ``now`` on and return when it ends; None if there is nothing to do."""
        if self.pending is not None:
            raise InternalError("a replica was planned twice")
        if not self.outstanding:
            return None
        self._preempted = False
        if self.settings.scheduler.policy == "mixed":
            chunks, decodes = self._mixed()
        else:
            chunks, decodes = self._prefill_first()
        for request in self._new:
            self.records.scheduled[request], self.records.replica[request] = now, self.number
        self._new.clear()
        moved = self._move_ps()
        decoding = self.n - chunks.size
        if not chunks.size and not moved and decodes:
            # After a preemption the one that gave way may be admitted again after a single step.
            self.pending = self._run(now, 1 if self._preempted else self.step_limit)
        else:
            self.pending = self._one(now, chunks, decoding, moved, decodes=decodes)
        return int(self.pending.ends[-1])

    def _mixed(self) -> tuple[Integers, bool]:
        """Decode for all that can, then chunks of prompts while the budget of tokens lasts."""
        decoding = self._decoding()
        prefilling = self.n - decoding
        self._make_room(decoding)
        decoding, prefilling = min(decoding, self.n), max(0, self.n - decoding)
        budget = self.settings.scheduler.max_num_batched_tokens - decoding * self.settings.decode_tokens
        chunks: list[int] = []
        for i in range(decoding, decoding + prefilling):
            size = min(int(self.table[GOAL, i] - self.table[CONTEXT, i]), budget)
            needed = max(0, self.cache.units(int(self.table[CONTEXT, i]) + size) - int(self.table[UNITS, i]))
            if needed > self.cache.available:
                # It is the one admitted last, so it is the one to give way.
                self._preempt()
                break
            self._grow(i, needed)
            chunks.append(size)
            budget -= size
        swapped = 0
        while not self._preempted and self.waiting and budget > 0 and self.n < self.settings.scheduler.max_num_seqs:
            if self.records.kept[self.waiting[0]] and budget < self.settings.decode_tokens:
                break
            admitted = self._admit(budget, whole=False)
            if admitted is None:
                break
            if admitted:
                chunks.append(admitted)
                budget -= admitted
            else:
                swapped += 1
                budget -= self.settings.decode_tokens
        if swapped:
            self._order()
        return np.array(chunks, np.int64), self.n > len(chunks)

    def _prefill_first(self) -> tuple[Integers, bool]:
        """Prompts while any can be admitted, otherwise decode."""
        scheduler = self.settings.scheduler
        budget = scheduler.max_num_batched_tokens
        most = scheduler.max_prefills or scheduler.max_num_seqs
        chunks: list[int] = []
        for i in range(self._decoding(), self.n):
            chunks.append(min(int(self.table[GOAL, i] - self.table[CONTEXT, i]), budget))
            budget -= chunks[-1]
        swapped = False
        while self.waiting and self.n < scheduler.max_num_seqs and budget > 0 and len(chunks) < most:
            size = self._admit(budget, whole=True, first=not chunks)
            if size is None:
                break
            swapped = swapped or not size
            if size:
                chunks.append(size)
                budget -= size
        if swapped:
            self._order()
        if chunks:
            return np.array(chunks, np.int64), False
        self._make_room(self.n)
        return NONE, True

    def _admit(self, budget: int, *, whole: bool, first: bool = False) -> int | None:
        """Admit the first that waits: its prompt tokens in this step, 0 if it goes on decoding; None if it must wait.

        ``whole`` reserves room for the whole prompt; unless prompts are cut in chunks, one that is longer than the
        budget (it is computed again, with what it has put out) goes alone, as the ``first``.
        """
        request = self.waiting[0]
        records, cache = self.records, self.cache
        kept = int(records.kept[request])
        goal = int(records.input[request] + records.emitted[request])
        free = cache.available - (self.reserve if self.n else 0)
        if kept:
            units = cache.units(self._reserved(request, min(kept + self.settings.decode_tokens, self._longest)))
            if units > free:
                return None
            self._seat(request, kept, kept, units, 0)
            return 0
        keys = self.keys[request] if self.keys is not None else []
        # At least one token is computed, so that there is something to sample from.
        usable = keys[: (goal - 1) // cache.unit_tokens]
        hits, unused = cache.matching(usable) if usable else (0, 0)
        start = hits * cache.unit_tokens
        size = min(goal - start, budget)
        if not self.settings.scheduler.chunks and size < goal - start:
            if not first or goal <= self.settings.scheduler.max_num_batched_tokens:
                return None
            size = goal - start
        needed = cache.units(self._reserved(request, goal if whole else start + size)) - hits
        if needed + unused > free:
            return None
        cache.hold(usable[:hits])
        self._seat(request, start, goal, needed + hits, hits)
        records.cached[request] += start
        return size

    def _reserved(self, request: int, tokens: int) -> int:
        """Tokens that must have room when a request is admitted: ``tokens``, or all there will be."""
        if self.settings.scheduler.preemption != "never":
            return tokens
        prompt, target = int(self.records.input[request]), int(self.records.target[request])
        return min(prompt + (target - 2 + self.settings.decode_tokens if target > 1 else 0), self._longest)

    def _seat(self, request: int, context: int, goal: int, units: int, shared: int) -> None:
        self.waiting.popleft()
        self.cache.take(units - shared)
        records = self.records
        left = int(records.target[request] - records.emitted[request])
        done = int(records.decoded[request])
        self.table[:, self.n] = (request, context, goal, left, units, done, self.emissions.ends.rows)
        self.n += 1
        if self.keys is not None:
            self._shared[request] = shared
        if records.swapped[request]:
            records.swapped[request] = False
            self._moved_tokens += context
        records.kept[request] = 0
        self._steady = False
        if records.scheduled[request] < 0:
            self._new.append(request)

    def _order(self) -> None:
        """Sequences that decode first, each kind in order of admission."""
        live = self.table[:, : self.n]
        order = np.argsort(live[CONTEXT] < live[GOAL], kind="stable")
        self.table[:, : self.n] = live[:, order]

    def _decoding(self) -> int:
        """How many sequences decode: those whose prompt is computed, the first of the table."""
        n = self.n
        while n and self.table[CONTEXT, n - 1] < self.table[GOAL, n - 1]:
            n -= 1
        return n

    def _needs(self, count: int) -> Integers:
        """Units that each of the first ``count`` sequences needs for a decode step beyond what it holds."""
        unit, context, units = self.cache.unit_tokens, self.table[CONTEXT, :count], self.table[UNITS, :count]
        if self.settings.speculation is None:
            return (units * unit <= context).astype(np.int64)
        needed = np.minimum(context + self.settings.decode_tokens, self._longest)
        return np.maximum(-(-needed // unit) - units, 0)

    @property
    def _longest(self) -> int:
        return self.settings.scheduler.max_model_len

    def _make_room(self, decoding: int) -> None:
        """Preempt the last until the others can decode, and take what these need for it."""
        if not decoding:
            return
        needs = self._needs(decoding)
        total = int(needs.sum())
        while total > self.cache.available:
            if self.n <= decoding:
                total -= int(needs[self.n - 1])
            self._preempt()
        if total:
            self.cache.take(total)
            rest = min(decoding, self.n)
            self.table[UNITS, :rest] += needs[:rest]

    def _preempt(self) -> None:
        last = self.n - 1
        row = self.table[:, last]
        request, records = int(row[REQUEST]), self.records
        if row[CONTEXT] >= row[GOAL]:
            self._leave_range(row)
            records.decoded[request] = row[DONE]
            if self.settings.scheduler.preemption == "swap":
                records.kept[request] = row[CONTEXT]
                records.swapped[request] = True
                self._moved_tokens += int(row[CONTEXT])
        self._drop(row)
        records.preemptions[request] += 1
        if self.n == 1:
            raise InternalError("a sequence alone does not fit the cache", value=int(row[CONTEXT]))
        self.n = last
        self._steady = False
        self._preempted = True
        self.waiting.appendleft(request)

    def _leave_range(self, row: Integers) -> None:
        rows = self.emissions.ends.rows
        if row[SINCE] < rows:
            self.emissions.ranges.append(int(row[REQUEST]), int(row[SINCE]), rows)

    def _drop(self, row: Integers) -> None:
        """Give back what a sequence holds, and note what it has put out."""
        shared, request = 0, int(row[REQUEST])
        self.records.emitted[request] = self.records.target[request] - row[LEFT]
        if self.keys is not None:
            shared = self._shared.pop(request)
            self.cache.release(self.keys[request][:shared])
        self.cache.give(int(row[UNITS]) - shared)

    def _grow(self, i: int, units: int) -> None:
        self.cache.take(units)
        self.table[UNITS, i] += units

    def _move_ps(self) -> int:
        """Time of the cache contents that preemption moved since the last step."""
        tokens, self._moved_tokens = self._moved_tokens, 0
        if not tokens:
            return 0
        size = tokens * self.settings.cache.bytes_per_token
        return round(size / self.settings.swap_bytes_per_second * _SECOND)

    # -- one step of any kind ------------------------------------------------------------------------------------

    def _one(self, now: int, chunks: Integers, decoding: int, moved: int, *, decodes: bool) -> _Plan:
        settings = self.settings
        context = self.table[CONTEXT, : self.n]
        step = Step(
            prefill_tokens=chunks,
            prefill_context=context[decoding:].copy(),
            decode_context=context[:decoding].copy() if decodes else NONE,
            decode_tokens=settings.decode_tokens,
            prefill_requests=self.table[REQUEST, decoding : self.n].copy(),
            decode_requests=self.table[REQUEST, :decoding].copy() if decodes else NONE,
        )
        device = int(self.cost.step_ps(settings.shapes.pad(step)))
        if device < 0:
            raise InternalError("a step cost is negative", value=device)
        device += settings.host.launch_ps
        host = settings.host.step_ps
        end = now + moved + (max(device, host) if settings.host.overlap == "always" else device + host)
        growth = self._growth(decoding, 1) if decodes and decoding else None
        yielded = int((context[decoding:] + chunks >= self.table[GOAL, decoding : self.n]).sum()) if chunks.size else 0
        if decodes:
            yielded += decoding if growth is None else int(growth.sum())
        row = self.log.extend(1)[:, 0]
        used, sequences = self.cache.used, decoding if decodes else 0
        row[:] = (
            *(now, end, int(chunks.sum()), chunks.size),
            *(sequences, int(step.decode_context.sum()), used, yielded),
        )
        return _Plan(now, np.array([end], np.int64), decoding, chunks, NONE, growth, decodes and decoding > 0)

    def _growth(self, count: int, steps: int) -> Integers | None:
        speculation = self.settings.speculation
        if speculation is None:
            return None
        live = self.table[:, :count]
        yields = speculation.yields(live[REQUEST], live[DONE], steps)
        # A sequence that ends takes no more than it is to put out.
        total = np.minimum(np.cumsum(yields, axis=1), live[LEFT][:, None])
        return np.asarray(np.diff(total, axis=1, prepend=0), np.int64)

    def _take_for_decode(self, count: int, grown: Integers | int) -> None:
        """Take the units for a decode step of the first ``count`` sequences, which have ``grown`` since the plan."""
        unit = self.cache.unit_tokens
        context = self.table[CONTEXT, :count] + grown
        needed = -(-np.minimum(context + self.settings.decode_tokens, self._longest) // unit)
        needed = np.maximum(needed, self.table[UNITS, :count])
        self.cache.take(int(needed.sum() - self.table[UNITS, :count].sum()))
        self.table[UNITS, :count] = needed

    # -- a run of decode steps -----------------------------------------------------------------------------------

    def _run(self, now: int, most: int) -> _Plan:
        n, settings = self.n, self.settings
        live = self.table[:, :n]
        tokens = settings.decode_tokens
        steps = min(-(-int(live[LEFT].min()) // tokens), most)
        steps = self._steps_that_fit(steps)
        context, growth = live[CONTEXT], self._growth(n, steps)
        index = np.arange(steps, dtype=np.int64)
        total, longest = int(context.sum()), int(context.max())
        if growth is None:
            context_sum, context_max = total + n * index, longest + index
        else:
            before = np.cumsum(growth, axis=1) - growth
            context_sum, context_max = total + before.sum(axis=0), (context[:, None] + before).max(axis=0)
        if self._runs is not None:
            batch, padded_sum, padded_max = settings.shapes.pad_decode(n, tokens, context_sum, context_max)
            device = np.asarray(self._runs.decode_steps_ps(batch, tokens, padded_sum, padded_max), np.int64)
        else:
            step = Step(decode_context=context.copy(), decode_tokens=tokens, decode_requests=live[REQUEST].copy())
            device = np.array([self.cost.step_ps(settings.shapes.pad(step))], np.int64)
        if device.shape != (steps,) or device.min() < 0:
            raise InternalError("a step cost gave a wrong number of times, or a negative one", value=device.shape)
        host = settings.host
        device = device + host.launch_ps
        if host.overlap == "none":
            duration = device + host.step_ps
        else:
            duration = np.maximum(device, host.step_ps)
            if host.overlap == "steady-decode" and not self._steady:
                duration[0] = device[0] + host.step_ps
        return _Plan(now, now + np.cumsum(duration), n, NONE, context_sum, growth, decodes=True)

    def _steps_that_fit(self, steps: int) -> int:
        """Steps up to ``steps`` for which the cache has room, however much is accepted; at least 1."""
        live, unit = self.table[:, : self.n], self.cache.unit_tokens
        tokens, available = self.settings.decode_tokens, self.cache.available

        if self.n * (steps * tokens // unit + 1) <= available:
            return max(1, steps)

        def fits(count: int) -> bool:
            needed = -(-np.minimum(live[CONTEXT] + count * tokens, self._longest) // unit)
            return int(np.maximum(needed - live[UNITS], 0).sum()) <= available

        if steps <= 1 or fits(steps):
            return max(1, steps)
        low, high = 1, steps
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    # -- doing it ------------------------------------------------------------------------------------------------

    def commit(self) -> list[int]:
        """Do what was planned; the requests that are answered now."""
        plan = self.pending
        assert plan is not None
        self.pending = None
        if plan.context_sum.size:
            self._log_run(plan)
        now = int(plan.ends[-1])
        finished: list[int] = []
        self._steady = plan.decodes and not plan.chunks.size
        if plan.decodes:
            self._decode(plan)
        if plan.chunks.size:
            self._prefill(plan, now)
        live = self.table[:, : self.n]
        if self._ending is not None:
            self._end()
        over = live[LEFT] <= 0
        if over.any():
            for i in np.flatnonzero(over):
                row = live[:, i].copy()
                self._leave_range(row)
                self._drop(row)
                finished.append(int(row[REQUEST]))
                if self.keys is not None:
                    self.keys.forget(finished[-1])
            keep = live[:, ~over]
            self.n = keep.shape[1]
            self.table[:, : self.n] = keep
            done = np.array(finished, np.int64)
            self.records.finish[done] = now
            self._steady = False
        return finished

    def _end(self) -> None:
        """Those whose answers end here are to put out what they have, and no more."""
        assert self._ending is not None
        rows = np.flatnonzero(self.table[CONTEXT, : self.n] >= self.table[GOAL, : self.n])
        request = self.table[REQUEST, rows]
        over = self._ending.ended(request)
        rows, request = rows[over], request[over]
        emitted = self.records.target[request] - self.table[LEFT, rows]
        self.records.target[request] = self.records.output[request] = emitted
        self.table[LEFT, rows] = 0

    def _decode(self, plan: _Plan) -> None:
        count, steps = plan.decoding, plan.ends.size
        live = self.table[:, :count]
        self.emissions.ends.extend(steps)[0] = plan.ends
        grown = steps if plan.growth is None else plan.growth[:, :steps].sum(axis=1)
        live[CONTEXT] += grown
        live[LEFT] -= grown
        live[DONE] += steps

    def _prefill(self, plan: _Plan, now: int) -> None:
        records = self.records
        rows = self.emissions.ends.rows
        for i, size in enumerate(plan.chunks, start=plan.decoding):
            row = self.table[:, i]
            request = int(row[REQUEST])
            row[CONTEXT] += size
            if self.keys is not None:
                full = min(int(row[CONTEXT]) // self.cache.unit_tokens, len(self.keys[request]))
                held = self._shared[request]
                if full > held:
                    self.cache.publish(self.keys[request][held:full])
                    self._shared[request] = full
            if row[CONTEXT] < row[GOAL]:
                continue
            row[LEFT] -= 1
            row[SINCE] = rows
            self.emissions.single.append(request, now)
            if records.first_token[request] < 0:
                records.first_token[request] = now

    def _log_run(self, plan: _Plan) -> None:
        steps, n, unit = plan.ends.size, self.n, self.cache.unit_tokens
        context, units = self.table[CONTEXT, :n], self.table[UNITS, :n]
        used = self.cache.used
        if plan.growth is None and steps == 1:
            occupied: Integers = np.full(1, used, np.int64)  # what one step takes was taken when it was planned
            last: Integers | int = 0
        elif plan.growth is None:
            # A sequence takes a unit in the step whose token does not fit those it holds, and every ``unit`` later.
            first = np.bincount(np.minimum(units * unit - context, steps), minlength=steps + 1)[:steps]
            if unit < steps:
                rows = np.append(first, np.zeros(-steps % unit, np.int64)).reshape(-1, unit)
                first = rows.cumsum(axis=0).ravel()[:steps]
            occupied = used + np.cumsum(first)
            last = steps - 1
        else:
            before = np.cumsum(plan.growth[:, :steps], axis=1) - plan.growth[:, :steps]
            ends = np.minimum(context[:, None] + before + self.settings.decode_tokens, self._longest)
            held = np.maximum.accumulate(np.maximum(-(-ends // unit), units[:, None]), axis=1)
            occupied = used - int(units.sum()) + held.sum(axis=0)
            last = before[:, -1]
        view = self.log.extend(steps)
        view[0, 0], view[0, 1:] = plan.start, plan.ends[:-1]
        view[1] = plan.ends
        view[2:4] = 0
        view[4], view[5], view[6] = n, plan.context_sum[:steps], occupied
        view[7] = n if plan.growth is None else plan.growth[:, :steps].sum(axis=0)
        if occupied[-1] > used:
            self._take_for_decode(n, last)
        if self.cache.used != occupied[-1]:
            raise InternalError("the log of the cache went wrong", value=int(occupied[-1]), limit=self.cache.used)
