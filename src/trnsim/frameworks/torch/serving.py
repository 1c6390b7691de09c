"""Several requests served on a simulated chip with real tokens: continuous batching of a causal model.

The scheduler is that of ``trnsim.serving``. What it decides is computed: a prompt at a time, and a decode step of all
slots together, with the shapes that graphs are compiled for on the device: prompts padded to a bucket, a fixed number
of slots of the KV cache, which a decode step reads up to a bucket of context. A step takes what the chip predicts.
Tokens are the likeliest ones, those of ``model.generate`` in the same formats, or drawn from the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers.cache_utils import Cache, CacheLayerMixin

from trnsim.errors import InputError
from trnsim.frameworks.torch.capture import kinds
from trnsim.frameworks.torch.device import Chip, device
from trnsim.frameworks.torch.generate import DECODE, PREFILL
from trnsim.frameworks.torch.report import Report
from trnsim.serving import (
    CacheSettings,
    HostSettings,
    Pool,
    ReplicaSettings,
    SchedulerSettings,
    ServingResult,
    StaticShapes,
    Step,
    Workload,
    powers_of_two,
    simulate,
)

_LEAST_BUCKET = 16


@dataclass(frozen=True, kw_only=True)
class Served:
    """What was served: the new tokens of each request, times in ``result`` (TTFT, TPOT, steps), the chip's report."""

    tokens: tuple[tuple[int, ...], ...]
    result: ServingResult
    report: Report

    @property
    def ttft(self) -> npt.NDArray[np.float64]:
        """Seconds from the arrival of each request to its first token."""
        return np.asarray((self.result.first_token_ps - self.result.arrival_ps) * 1e-12, np.float64)

    @property
    def tpot(self) -> npt.NDArray[np.float64]:
        """Seconds per token after the first, by request; NaN for answers of one token."""
        after = (self.result.finish_ps - self.result.first_token_ps) * 1e-12
        count = self.result.output_tokens - 1
        found: npt.NDArray[np.float64] = np.full(len(count), np.nan)
        found[count > 0] = after[count > 0] / count[count > 0]
        return found


def serve(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    *,
    chip: str = "trn2",
    format: str = "bf16",
    slots: int = 4,
    max_model_len: int | None = None,
    arrival_seconds: Sequence[float] | None = None,
    eos_token_id: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    host: HostSettings | None = None,
    **options: Any,
) -> Served:
    """Serve ``prompts`` (token numbers) with a causal model of ``transformers`` on one logical core of ``chip``.

    Args:
        model: a causal language model that takes ``past_key_values`` and ``position_ids``.
        prompts: token numbers of each request, in order of arrival.
        max_new_tokens: tokens to answer with, of all or of each.
        slots: sequences that are decoded together.
        max_model_len: tokens of prompt and answer that a slot holds; None: as many as the longest request needs.
        arrival_seconds: when requests arrive, ascending; None: all at once.
        eos_token_id: an answer ends with this token; None: each is as long as was asked for.
        temperature: tokens are drawn from the softmax of the logits over it, with ``seed``; 0: the likeliest ones.
        host: what a step takes beside the chip's time; None: nothing.
        options: of ``trnsim.torch.device``.

    Raises:
        InputError: no prompts, an empty one, one that does not fit ``max_model_len``; the depth ``shape``, which has
            no tokens.
    """
    if options.get("depth") == "shape":
        raise InputError("the depth 'shape' computes no tokens", operand="depth", value="shape", limit="fast, exact")
    wanted = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if not prompts or len(wanted) != len(prompts):
        raise InputError("one or more prompts, and a number of tokens for each", value=len(wanted), limit=len(prompts))
    work = Workload(
        input_tokens=np.array([len(p) for p in prompts]),
        output_tokens=np.array(wanted),
        arrival_ps=np.rint(np.array(arrival_seconds or [0.0] * len(prompts)) * 1e12).astype(np.int64),
    )
    needed = int((work.input_tokens + work.output_tokens).max())
    longest = max_model_len or needed
    buckets = powers_of_two(min(_LEAST_BUCKET, longest), longest)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    elements = 2 * config.num_hidden_layers * heads * width
    itemsize = next(model.parameters()).dtype.itemsize
    settings = ReplicaSettings(
        cache=CacheSettings(
            capacity_bytes=slots * longest * elements * itemsize,
            elements_per_token=elements,
            dtype={4: "float32", 2: "bfloat16"}[itemsize],
            layout="contiguous",
        ),
        scheduler=SchedulerSettings(
            policy="prefill-first",
            chunks=False,
            max_prefills=1,
            preemption="never",
            max_num_seqs=slots,
            max_model_len=longest,
            max_num_batched_tokens=longest,
        ),
        host=host or HostSettings(),
        shapes=StaticShapes(prefill=buckets, decode_batch=(slots,), decode_context=buckets),
    )
    was_training = model.training
    model.eval()
    try:
        with device(chip, format=format, **options) as entered, torch.no_grad():
            runner = Runner(model, entered, prompts, wanted, slots, longest, eos_token_id, temperature, seed)
            result = simulate(work, Pool(cost=runner, settings=settings))
    finally:
        model.train(was_training)
    tokens = tuple(tuple(t[: int(n)]) for t, n in zip(runner.tokens, result.output_tokens, strict=True))
    return Served(tokens=tokens, result=result, report=entered.report())


def _read(tokens: torch.Tensor) -> list[int]:
    """Numbers that the host reads beside the chip's work; what that takes is the host's (``HostSettings``)."""
    with _disable_current_modes():
        return [int(token) for token in tokens.tolist()]


@dataclass
class _Place:
    """Where the layers of the cache write next: one slot from its start on, or one position of every slot."""

    slot: int = -1
    positions: Any = None
    context: int = 0


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, tokens, width], as static graphs keep them."""

    def __init__(self, slots: int, longest: int, place: _Place) -> None:
        super().__init__()
        self.slots, self.longest, self.place = slots, longest, place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the slots, as the first keys and values are."""
        shape = (self.slots, key_states.shape[1], self.longest)
        self.keys = key_states.new_zeros((*shape, key_states.shape[-1]))
        self.values = value_states.new_zeros((*shape, value_states.shape[-1]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write what was computed, and give what attention reads."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        if place.slot >= 0:
            tokens = key_states.shape[2]
            self.keys[place.slot : place.slot + 1, :, :tokens] = key_states
            self.values[place.slot : place.slot + 1, :, :tokens] = value_states
            return key_states, value_states
        rows = torch.arange(self.slots)
        self.keys[rows, :, place.positions] = key_states[:, :, 0]
        self.values[rows, :, place.positions] = value_states[:, :, 0]
        return self.keys[:, :, : place.context], self.values[:, :, : place.context]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that attention sees, and where they begin."""
        return (query_length if self.place.slot >= 0 else self.place.context), 0

    def get_seq_length(self) -> int:
        """Tokens before those that are computed; positions are given, so only a prompt asks."""
        return 0

    def get_max_length(self) -> int:
        """Tokens of a slot."""
        return self.longest


@dataclass
class Runner:
    """Computes the steps that the scheduler decides, and says how long they take on the chip.

    ``tokens[i]`` are the new tokens of request i.
    """

    model: torch.nn.Module
    chip: Chip
    prompts: Sequence[Sequence[int]]
    wanted: Sequence[int]
    slots: int
    longest: int
    eos: int | None = None
    temperature: float = 0.0
    seed: int = 0
    tokens: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = [[] for _ in self.prompts]
        self._place = _Place()
        layers = [SlotLayer(self.slots, self.longest, self._place) for _ in range(self.model.config.num_hidden_layers)]
        self._layers, self._cache = layers, Cache(layers=layers)
        self._slot: dict[int, int] = {}

    def step_ps(self, step: Step) -> int:
        """Compute a step; picoseconds that it takes on the chip."""
        for request in list(self._slot):
            if self._over(request):
                del self._slot[request]
        total = 0.0
        for request, padded in zip(step.prefill_requests.tolist(), step.prefill_tokens.tolist(), strict=True):
            total += self._prefill(request, padded)
        if step.decode_requests.size:
            total += self._decode(step.decode_requests.tolist(), int(step.decode_context.max()))
        return round(total)

    def ended(self, requests: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which answers end with the token that ends a text."""
        return np.array([self._over(request) for request in requests.tolist()], np.bool_)

    def _over(self, request: int) -> bool:
        tokens = self.tokens[request]
        return len(tokens) >= self.wanted[request] or (bool(tokens) and tokens[-1] == self.eos)

    def _prefill(self, request: int, padded: int) -> float:
        prompt = list(self.prompts[request])
        self._slot[request] = self._place.slot = min(set(range(self.slots)) - set(self._slot.values()))
        with self.chip.step(PREFILL):
            last = len(prompt) - 1
            inputs = torch.tensor([prompt + [0] * (padded - len(prompt))])
            token = self._next(inputs, torch.arange(padded)[None], None, torch.tensor([last]), [request])
        self.tokens[request].append(_read(token)[0])
        self._mark_cache()
        return self.chip.accounts.step_ps(len(self.chip.capture.stream.steps) - 1)

    def _decode(self, requests: list[int], context: int) -> float:
        place = self._place
        place.slot, place.context = -1, context
        inputs, positions = [0] * self.slots, [0] * self.slots
        for request in requests:
            inputs[self._slot[request]] = self.tokens[request][-1]
            positions[self._slot[request]] = len(self.prompts[request]) + len(self.tokens[request]) - 1
        with self.chip.step(DECODE):
            place.positions = torch.tensor(positions)
            mask = torch.arange(context)[None] <= place.positions[:, None]
            held = {slot: request for request, slot in self._slot.items()}
            rows = [held.get(slot, -1) for slot in range(self.slots)]
            token = self._next(torch.tensor(inputs)[:, None], place.positions[:, None], mask[:, None, None], 1, rows)
        read = _read(token)
        for request in requests:
            self.tokens[request].append(read[self._slot[request]])
        return self.chip.accounts.step_ps(len(self.chip.capture.stream.steps) - 1)

    def _next(
        self, inputs: torch.Tensor, positions: torch.Tensor, mask: Any, keep: Any, requests: Sequence[int]
    ) -> torch.Tensor:
        """The next tokens [sequences] of ``requests`` (-1: of a slot that is free)."""
        given = {} if mask is None else {"attention_mask": mask}
        result = self.model(
            input_ids=inputs,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
            **given,
        )
        logits = result.logits[:, -1]
        if self.temperature > 0:
            logits = logits.float() / self.temperature + self._noise(requests, logits.shape[-1])
        return logits.argmax(-1)

    def _noise(self, requests: Sequence[int], vocabulary: int) -> torch.Tensor:
        """Gumbel noise [requests, vocabulary]: the largest sum with it is a draw from the softmax.

        It depends on the request and its token alone, so that a draw is the same however requests are batched.
        """
        rows = [
            np.random.default_rng((self.seed, r, len(self.tokens[r]))).gumbel(size=vocabulary)
            if r >= 0
            else np.zeros(vocabulary)
            for r in requests
        ]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def _mark_cache(self) -> None:
        kinds([t for layer in self._layers for t in (layer.keys, layer.values)], self.chip.capture, "cache")
