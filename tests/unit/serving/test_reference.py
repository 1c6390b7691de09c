"""The engine against a plain scheduler: objects, one step at a time, written from vLLM's description of each policy."""

import dataclasses
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.serving import (
    AffineCost,
    CacheSettings,
    Pool,
    ReplicaSettings,
    SchedulerSettings,
    Step,
    Workload,
    simulate,
)

BLOCK, LONGEST = 4, 104
COST = AffineCost(fixed_ps=100, per_token_ps=3, per_context_ps=0.5, per_pair_ps=0.25)


@dataclasses.dataclass
class Sequence:
    number: int
    prompt: int  # tokens to compute before it decodes: the prompt, and what was put out before a preemption
    output: int
    computed: int = 0
    tokens: list = dataclasses.field(default_factory=list)

    @property
    def prefilling(self):
        return self.computed < self.prompt

    def blocks(self, new=0):
        return math.ceil((self.computed + new) / BLOCK)


def plain(requests, total_blocks, policy, max_seqs, budget, max_prefills):
    """Times of each request's tokens. ``requests``: (arrival, prompt, output), by arrival."""
    future = [Sequence(i, prompt, output) for i, (_, prompt, output) in enumerate(requests)]
    waiting, running, finished = [], [], []
    held = {}  # blocks by sequence
    scheduled = []  # (sequence, tokens) of a step
    left, preempted, now = 0, False, 0

    def free():
        return total_blocks - sum(held.values())

    def preempt():
        victim = running.pop()
        del held[victim.number]
        victim.prompt = requests[victim.number][1] + len(victim.tokens)
        victim.computed = 0
        waiting.insert(0, victim)
        return victim

    def decode_all():
        nonlocal left, preempted
        for sequence in [s for s in running if not s.prefilling]:
            if sequence not in running:
                continue
            while sequence in running and sequence.blocks(1) - held[sequence.number] > free():
                preempt()
                preempted = True
            if sequence in running:
                held[sequence.number] = max(held[sequence.number], sequence.blocks(1))
                scheduled.append((sequence, 1))
                left -= 1

    def admit(whole):
        nonlocal left
        sequence = waiting[0]
        size = min(sequence.prompt, left)
        need = math.ceil((sequence.prompt if whole else size) / BLOCK)
        if need > free():
            return False
        waiting.pop(0)
        running.append(sequence)
        held[sequence.number] = need
        scheduled.append((sequence, size))
        left -= size
        return True

    while len(finished) < len(requests):
        while future and requests[future[0].number][0] <= now:
            waiting.append(future.pop(0))
        if not waiting and not running:
            now = requests[future[0].number][0]
            continue
        scheduled.clear()
        left, preempted = budget, False

        begun = [s for s in running if s.prefilling]
        if policy == "mixed":
            decode_all()
            for sequence in begun:
                if sequence not in running:
                    continue
                size = min(sequence.prompt - sequence.computed, left)
                if sequence.blocks(size) - held[sequence.number] > free():
                    preempt()
                    preempted = True
                    continue
                held[sequence.number] = sequence.blocks(size)
                scheduled.append((sequence, size))
                left -= size
            while not preempted and waiting and len(running) < max_seqs and left > 0 and admit(whole=False):
                pass
        else:
            for sequence in begun:
                size = min(sequence.prompt - sequence.computed, left)
                scheduled.append((sequence, size))
                left -= size
            while (
                waiting
                and len(running) < max_seqs
                and left > 0
                and len(scheduled) < (max_prefills or max_seqs)
                and admit(whole=True)
            ):
                pass
            if not scheduled:
                decode_all()

        prefills = [(s, n) for s, n in scheduled if s.prefilling]
        decodes = [s for s, _ in scheduled if not s.prefilling]
        now += COST.step_ps(
            Step(
                np.array([n for _, n in prefills], np.int64),
                np.array([s.computed for s, _ in prefills], np.int64),
                np.array([s.computed for s in decodes], np.int64),
            )
        )
        for sequence, size in scheduled:
            sequence.computed += size
            if sequence.computed >= sequence.prompt:
                sequence.tokens.append(now)
            if len(sequence.tokens) == sequence.output:
                running.remove(sequence)
                del held[sequence.number]
                finished.append(sequence)
    return [s.tokens for s in sorted(finished, key=lambda s: s.number)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=20),
    st.integers(26, 60),
    st.sampled_from(["mixed", "prefill-first"]),
    st.integers(1, 8),
    st.integers(8, 100),
    st.integers(0, 2),
)
def test_any_load_is_served_as_the_plain_scheduler_does(requests, blocks, policy, seqs, budget, prefills):
    times = np.cumsum([r[0] for r in requests])
    requests = [(int(t), p, o) for t, (_, p, o) in zip(times, requests, strict=True)]
    prefills = prefills if policy == "prefill-first" else 0
    spec = ReplicaSettings(
        cache=CacheSettings(
            capacity_bytes=blocks * BLOCK, elements_per_token=1, dtype="float8_e4m3", block_tokens=BLOCK
        ),
        scheduler=SchedulerSettings(
            policy=policy,
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            max_model_len=LONGEST,
            max_prefills=prefills,
        ),
    )
    load = Workload(
        input_tokens=np.array([r[1] for r in requests]),
        output_tokens=np.array([r[2] for r in requests]),
        arrival_ps=times,
    )
    request, time = simulate(load, Pool(cost=COST, settings=spec)).emissions
    expected = plain(requests, blocks, policy, seqs, budget, prefills)
    for i, tokens in enumerate(expected):
        assert time[request == i].tolist() == tokens
