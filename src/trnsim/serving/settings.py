"""What a serving engine is configured with: scheduler, cache, speculation, host and compiled shapes of one replica.

Names follow vLLM where it has one (``max_num_seqs``, ``max_num_batched_tokens``, ``max_model_len``). Each class checks
its own fields; what they mean together is checked by ``ReplicaSettings``.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from trnsim.errors import InputError
from trnsim.numerics import as_dtype

from .cost import Integers, Step

POLICIES: Final = ("mixed", "prefill-first")
PREEMPTIONS: Final = ("recompute", "swap", "never")
OVERLAPS: Final = ("none", "steady-decode", "always")
LAYOUTS: Final = ("paged", "contiguous")


def at_least(owner: str, least: float, /, **values: float | None) -> None:
    """Raise ``InputError`` for any value that is below ``least`` (None: not given)."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{owner}.{name} is out of range", value=value, limit=f"{least:g} or more")


def one_of(owner: str, choices: tuple[str, ...], **values: str) -> None:
    """Raise ``InputError`` for any value that is not one of ``choices``."""
    for name, value in values.items():
        if value not in choices:
            raise InputError(f"{owner}.{name}: unknown value", value=repr(value), limit=", ".join(choices))


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """How steps are made up.

    ``mixed`` puts decode and prompts in the same step, decode first, as vLLM's V1 scheduler does.
    ``prefill-first`` computes prompts in steps of their own while any can be admitted, as vLLM's V0 scheduler and
    engines with a context-encoding graph do. Prompts are computed whole, or with ``chunks`` in pieces that fill
    ``max_num_batched_tokens``; at most ``max_prefills`` prompts a step (0: no limit of its own). When the cache is
    full, the sequence admitted last gives way (``recompute``, ``swap``), or none is admitted for which there is no room
    to its end (``never``).
    """

    policy: str = "mixed"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192
    max_prefills: int = 0
    chunks: bool = True
    preemption: str = "recompute"
    watermark: float = 0.0
    """Share of the cache that admission leaves free."""

    def __post_init__(self) -> None:
        one_of("SchedulerSettings", POLICIES, policy=self.policy)
        one_of("SchedulerSettings", PREEMPTIONS, preemption=self.preemption)
        at_least("SchedulerSettings", 1, max_num_seqs=self.max_num_seqs, max_model_len=self.max_model_len)
        at_least("SchedulerSettings", 1, max_num_batched_tokens=self.max_num_batched_tokens)
        at_least("SchedulerSettings", 0, max_prefills=self.max_prefills, watermark=self.watermark)
        if self.watermark >= 1:
            raise InputError("SchedulerSettings.watermark leaves no cache", value=self.watermark, limit="below 1")
        if self.policy == "mixed" and not self.chunks and self.preemption != "never":
            raise InputError(
                "SchedulerSettings.chunks: whole prompts in mixed steps need the preemption 'never'",
                value=self.preemption,
            )


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """The KV cache of one replica.

    ``elements_per_token`` numbers of format ``dtype`` are kept for a token over all layers and ranks of the replica;
    ``scale_bytes_per_token`` are added for formats with scales. ``paged``: blocks of ``block_tokens``, taken as
    sequences grow. ``contiguous``: one slot of ``max_model_len`` tokens a sequence.
    """

    capacity_bytes: int
    elements_per_token: float
    dtype: str = "bfloat16"
    scale_bytes_per_token: float = 0.0
    layout: str = "paged"
    block_tokens: int = 16
    prefix_reuse: bool = False

    def __post_init__(self) -> None:
        one_of("CacheSettings", LAYOUTS, layout=self.layout)
        at_least("CacheSettings", 1, capacity_bytes=self.capacity_bytes, block_tokens=self.block_tokens)
        at_least("CacheSettings", 0, scale_bytes_per_token=self.scale_bytes_per_token)
        if not self.elements_per_token > 0:
            raise InputError("CacheSettings.elements_per_token must be positive", value=self.elements_per_token)
        as_dtype(self.dtype)
        if self.prefix_reuse and self.layout != "paged":
            raise InputError("CacheSettings.prefix_reuse needs the layout 'paged'", value=self.layout)

    @property
    def bytes_per_token(self) -> float:
        """Bytes that one token takes."""
        dtype = as_dtype(self.dtype)
        return self.elements_per_token * dtype.itemsize / dtype.elements + self.scale_bytes_per_token

    def unit_tokens(self, max_model_len: int) -> int:
        """Tokens of what the cache hands out: a block, or a sequence's whole slot."""
        return self.block_tokens if self.layout == "paged" else max_model_len

    def units(self, max_model_len: int) -> int:
        """How many blocks or slots there are. Raises ``InputError`` if not even one fits."""
        size = self.unit_tokens(max_model_len)
        count = int(self.capacity_bytes // (self.bytes_per_token * size))
        if count < 1:
            raise InputError(
                f"the KV cache holds no {'block' if self.layout == 'paged' else 'sequence'} of {size} tokens",
                value=f"{self.bytes_per_token * size:,.0f} bytes",
                limit=f"capacity_bytes {self.capacity_bytes:,}",
            )
        return count


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """Drafts of ``length`` tokens, each accepted with probability ``acceptance`` if all before it were.

    A step yields one token more than it accepts, so its mean is (1 - a^(k+1)) / (1 - a) (Leviathan et al., "Fast
    inference from transformers via speculative decoding", equation 1). The cost of drafting is part of the step cost.
    """

    length: int
    acceptance: float
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("Speculation", 1, length=self.length)
        if not 0 <= self.acceptance <= 1:
            raise InputError("Speculation.acceptance is out of range", value=self.acceptance, limit="0 to 1")

    @property
    def mean_tokens(self) -> float:
        """Mean tokens a step yields for a sequence."""
        a, k = self.acceptance, self.length
        return float(k + 1) if a == 1 else (1 - a ** (k + 1)) / (1 - a)

    def yields(self, request: Integers, first: Integers, steps: int) -> Integers:
        """Tokens of decode steps ``first[i]`` ... of ``request[i]``, int64 [requests, steps].

        A draw depends on seed, request and the request's own step only, so it is the same however steps are grouped.
        """
        at = first[:, None] + np.arange(steps, dtype=np.int64)[None, :]
        with np.errstate(over="ignore"):
            key = (request[:, None].astype(np.uint64) << np.uint64(32)) + at.astype(np.uint64)
            bits = _splitmix(_splitmix(key) ^ _splitmix(np.full(1, self.seed % 2**64, np.uint64)))
        uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        # A draft of k is accepted up to token j with probability a^j: count the thresholds above the draw.
        thresholds = self.acceptance ** np.arange(1, self.length + 1)
        accepted = (uniform[..., None] < thresholds).sum(axis=-1)
        return np.asarray(accepted + 1, np.int64)


def _splitmix(x: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """SplitMix64's output function (Steele, Lea, Flood: "Fast splittable pseudorandom number generators")."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, kw_only=True)
class HostSettings:
    """What a step takes beside the device: picoseconds of host work, and of launching a graph.

    ``overlap`` says in which steps the host prepares the next one while the device works, so that the longer of the
    two counts and not their sum: in ``none``, in ``steady-decode`` (the same sequences decode as in the step before),
    or ``always``.
    """

    step_ps: int = 0
    launch_ps: int = 0
    overlap: str = "none"

    def __post_init__(self) -> None:
        one_of("HostSettings", OVERLAPS, overlap=self.overlap)
        at_least("HostSettings", 0, step_ps=self.step_ps, launch_ps=self.launch_ps)


@dataclass(frozen=True)
class StaticShapes:
    """The sizes that graphs are compiled for; a step is padded to the smallest that holds it.

    ``prefill``: tokens of a prompt or chunk. ``decode_batch``: sequences. ``decode_context``: tokens of context that
    a decode graph reads for every sequence, whatever it holds. Each ascending. An empty tuple: that size is not padded.
    """

    prefill: tuple[int, ...] = ()
    decode_batch: tuple[int, ...] = ()
    decode_context: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("prefill", "decode_batch", "decode_context"):
            sizes = getattr(self, name)
            if any(b <= a for a, b in zip((0, *sizes), sizes, strict=False)):
                raise InputError(f"StaticShapes.{name}: sizes must be positive and ascend", value=sizes)

    @property
    def graphs(self) -> int:
        """Compiled graphs: one a prefill size, one a pair of decode batch and context."""
        decode = max(1, len(self.decode_batch)) * max(1, len(self.decode_context))
        padded = self.decode_batch or self.decode_context
        return len(self.prefill) + (decode if padded else 0)

    def pad(self, step: Step) -> Step:
        """The step as it is executed."""
        tokens, context = step.prefill_tokens, step.decode_context
        if self.prefill and tokens.size:
            tokens = fit(self.prefill, tokens, "a prefill bucket")
        if context.size and self.decode_context:
            context = np.full(context.size, self._context(context.max(keepdims=True), step.decode_tokens)[0], np.int64)
        if context.size and self.decode_batch:
            batch = int(fit(self.decode_batch, np.array([context.size]), "a decode batch bucket")[0])
            # Sequences that pad the batch read what the graph reads for any, or nothing where contexts are not padded.
            filler = context[0] if self.decode_context else 0
            context = np.concatenate([context, np.full(batch - context.size, filler, np.int64)])
        return replace(step, prefill_tokens=tokens, decode_context=context)

    def pad_decode(
        self, sequences: int, tokens: int, context_sum: Integers, context_max: Integers
    ) -> tuple[int, Integers, Integers]:
        """``pad`` of successive decode steps: sequences, sum and maximum of contexts."""
        batch = sequences
        if self.decode_batch:
            batch = int(fit(self.decode_batch, np.array([sequences]), "a decode batch bucket")[0])
        if self.decode_context:
            context_max = self._context(context_max, tokens)
            context_sum = context_max * batch
        return batch, context_sum, context_max

    def _context(self, longest: Integers, tokens: int) -> Integers:
        """The context that is read where the longest in the cache is ``longest``.

        The tokens that are computed have places in it too; drafts beyond the last size are not made.
        """
        needed = np.where(
            longest < self.decode_context[-1], np.minimum(longest + tokens, self.decode_context[-1]), longest
        )
        return fit(self.decode_context, needed, "a decode context bucket")


def fit(sizes: tuple[int, ...], needed: Integers, what: str) -> Integers:
    """The smallest of ``sizes`` that holds each of ``needed``."""
    table = np.array(sizes, np.int64)
    at = np.searchsorted(table, needed)
    if at.size and at.max() >= table.size:
        raise InputError(f"{what} is too small", value=int(needed.max()), limit=f"largest {sizes[-1]}")
    return np.asarray(table[at], np.int64)


def powers_of_two(low: int, high: int) -> tuple[int, ...]:
    """``low``, doubled up to ``high``, which is always the last."""
    at_least("buckets", 1, low=low, high=high)
    sizes = [low]
    while sizes[-1] < high:
        sizes.append(sizes[-1] * 2)
    return (*sizes[: bisect_left(sizes, high)], high)


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """Everything that one replica is configured with."""

    cache: CacheSettings
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    host: HostSettings = field(default_factory=HostSettings)
    shapes: StaticShapes = field(default_factory=StaticShapes)
    speculation: Speculation | None = None
    swap_bytes_per_second: float = 0.0
    """Rate of moving cache to host memory and back, for the preemption 'swap'."""

    def __post_init__(self) -> None:
        scheduler, shapes = self.scheduler, self.shapes
        if scheduler.preemption == "swap" and not self.swap_bytes_per_second > 0:
            raise InputError("the preemption 'swap' needs swap_bytes_per_second", value=self.swap_bytes_per_second)
        needed = scheduler.max_num_seqs * self.decode_tokens
        if scheduler.policy == "mixed" and scheduler.max_num_batched_tokens < needed:
            raise InputError(
                "max_num_batched_tokens is smaller than a decode step of max_num_seqs",
                value=scheduler.max_num_batched_tokens,
                limit=f"{needed} tokens",
            )
        if shapes.prefill and scheduler.policy == "mixed":
            raise InputError(
                "prefill buckets need the policy 'prefill-first': a graph computes a prompt or decodes", value="mixed"
            )
        longest = scheduler.max_model_len
        if scheduler.chunks or self.cache.layout == "contiguous":
            # Otherwise a preempted sequence is computed again in one piece, with what it has put out.
            longest = min(longest, scheduler.max_num_batched_tokens)
        for name, sizes, need in (
            ("prefill", shapes.prefill, longest),
            ("decode_batch", shapes.decode_batch, scheduler.max_num_seqs),
            ("decode_context", shapes.decode_context, scheduler.max_model_len),
        ):
            if sizes and sizes[-1] < need:
                raise InputError(f"StaticShapes.{name}: the largest size is too small", value=sizes[-1], limit=need)
        self.cache.units(scheduler.max_model_len)

    @property
    def decode_tokens(self) -> int:
        """Tokens that a sequence computes in a decode step."""
        return 1 if self.speculation is None else 1 + self.speculation.length


RouterPolicy = Literal["round-robin", "least-requests", "prefix"]
