"""What a step of a replica that serves costs: operators and exchanges, one after the other, as a graph runs them.

Products run over all tokens of the step together, attention of each chunk of a prompt and of the sequences that decode
apart. Kernels are joined as serving engines join them: a residual is added in the norm that follows, queries and keys
are rotated in one, inputs of products are cast where they are made, and heads of latent attention are expanded in one
batched product.

Weights are multiplied in the format that they are stored in where the chip has it; 4-bit formats that it lacks, and
integers, are widened to 16 bits on their way (``computed``): the product then takes as long as in 16 bits, less what
the smaller weights save of HBM's time, and not less than its multiplications at the peak.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import UnsupportedError
from trnsim.hardware import load_system
from trnsim.planner.groups import ExchangeCosts, stride
from trnsim.planner.pricing import logical_cores
from trnsim.planner.training import peak_flops, ranks_per_chip
from trnsim.planner.uses import IMPLEMENTATIONS, UseCosts
from trnsim.workloads.layout import Layout
from trnsim.workloads.operators import PRODUCTS, Exchange, Use, elements, format_bytes
from trnsim.workloads.parts import LatentAttention
from trnsim.workloads.serving import decode, prefill

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trnsim.hardware.model import Chip, System
    from trnsim.planner.serving import ServingPlan
    from trnsim.serving.cost import Floats, Integers, Step
    from trnsim.workloads.operators import Step as Items

# What stands after the layers: computed for the tokens that are sampled, not for all.
_HEAD = ("final_norm", "head", "head.input")
# Parts whose products keep 16 bits, however weights are stored.
_WIDE_PARTS = ("head", "router", "embedding", "indexer", "compressor")
_WIDE = ("bfloat16", "float16", "float32")
_NARROWED = ("matmul", "grouped_matmul", "gated_mlp", "mlp")
# Contexts between which decode attention is interpolated grow by this factor.
_FINE = 2**0.25


@dataclass(frozen=True)
class Parts:
    """Microseconds of operators' work, of what an operator takes however small it is, and of exchanges; or factors."""

    work: float = 0.0
    fixed: float = 0.0
    exchange: float = 0.0

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.work + other.work, self.fixed + other.fixed, self.exchange + other.exchange)

    @property
    def total(self) -> float:
        return self.work + self.fixed + self.exchange


@dataclass(frozen=True)
class _Priced:
    """Microseconds of a use, of which ``least`` however small it is; (support, reason) of how that is known."""

    total: float
    least: float
    known: tuple[tuple[str, str], ...]


_ONE = Parts(1.0, 1.0, 1.0)


def computed(chip: Chip, stored: str) -> tuple[str, bool]:
    """The format that weights of format ``stored`` are multiplied in, and whether they are widened for it."""
    from trnsim.operators.gpu import gpu_format

    if stored in ("bfloat16", "float16", "float32"):
        return stored, False
    if stored.startswith("float8_e4m3"):
        stored = "fp8"
    if chip.core is None:
        names = {"fp8": "float8", "nvfp4": "float4"}
        has = names.get(stored) in chip.flops or (stored in ("mxfp8", "mxfp4") and gpu_format(stored) in chip.flops)
    else:
        has = bool(chip.core.tensor.flops("float8" if stored == "fp8" else stored))
    return (stored, False) if has else ("bfloat16", True)


def implementations(system: System, asked: str = "", *, best: bool = False) -> tuple[str, ...]:
    """Implementations that operators are priced by: the one asked for, the chip's usual (""), or the best of all."""
    if asked or not best:
        return (asked,)
    return IMPLEMENTATIONS["nvidia" if system.chip.core is None else "neuron"]


class StepCosts:
    """The time of a replica's step: a ``serving.RunCost``.

    ``supports`` and ``reasons``: how what was asked so far is known.
    """

    def __init__(
        self,
        plan: ServingPlan,
        system: System | None = None,
        factors: Parts = _ONE,
        *,
        best: bool = False,
        stage: int = 0,
    ) -> None:
        """``factors``: of the stack, on operators and exchanges; ``best``: see ``implementations``; ``stage``: of the
        pipeline, whose time alone it is.

        Raises:
            InputError: the layout does not fit the model or the system.
            UnsupportedError: formats that nothing is known of.
        """
        self.plan, self.factors, self.stage = plan, factors, stage
        self.system = system or load_system(plan.system)
        chip = self.system.chip
        lnc = logical_cores(self.system, plan.lnc)
        names = implementations(self.system, plan.implementation, best=best)
        self._uses = [UseCosts(chip.name, name, lnc, casts_apart=False) for name in names]
        self._exchanges = ExchangeCosts(self.system, plan.lnc)
        self._used = self._exchanges.used(plan.layout.tp * plan.layout.dp * plan.layout.pp)
        latent = [p for layer, _ in plan.model.kinds() for p in layer.parts if isinstance(p, LatentAttention)]
        self._latent_heads = latent[0].heads // plan.layout.tp if latent else 1
        self._bandwidth = chip.hbm.bytes_per_second / ranks_per_chip(self.system, plan.lnc) / 1e6
        self._least: dict[tuple[int, str, str], float] = {}
        self.supports: set[str] = set()
        self.reasons: dict[str, None] = {}
        self._body: dict[int, Parts] = {}
        self._heads: dict[int, Parts] = {}
        self._chunks: dict[tuple[int, int], Parts] = {}
        self._decode: dict[tuple[int, int, int], float] = {}

    def with_factors(self, factors: Parts) -> StepCosts:
        """The same plan with other factors, which shares what operators and exchanges are known to cost."""
        other = copy(self)
        other.factors = factors
        other._body, other._heads, other._chunks, other._decode = {}, {}, {}, {}
        return other

    def step_ps(self, step: Step) -> int:
        """Picoseconds of device time of ``step``."""
        sequences = int(step.decode_context.size)
        rows = sequences * step.decode_tokens + int(step.prefill_tokens.size)
        found = self.rest(step.total_tokens, rows).total
        for tokens, before in zip(step.prefill_tokens.tolist(), step.prefill_context.tolist(), strict=True):
            found += self.chunk(tokens, before).total
        if sequences:
            found += float(self.attention(sequences, step.decode_tokens, step.decode_context.sum(keepdims=True))[0])
        return round(found * 1e6)

    def decode_steps_ps(self, sequences: int, tokens: int, context_sum: Integers, context_max: Integers) -> Integers:
        """Picoseconds of successive decode steps."""
        del context_max
        rest = self.rest(sequences * tokens, sequences * tokens).total
        return np.asarray(np.rint((rest + self.attention(sequences, tokens, context_sum)) * 1e6), np.int64)

    def rest(self, tokens: int, rows: int) -> Parts:
        """All but attention over the cache, of ``tokens`` of which ``rows`` are sampled."""
        if tokens not in self._body:
            step = prefill(self.plan.model, self.plan.layout, 1, tokens, stage=self.stage)
            self._body[tokens] = self._time(i for i in step if i.where not in _HEAD and not _is_core(i.where))
        if rows not in self._heads:
            step = decode(self.plan.model, self.plan.layout, rows, 1, self.stage)
            self._heads[rows] = self._time(i for i in step if i.where in _HEAD)
        return self._body[tokens] + self._heads[rows]

    def chunk(self, tokens: int, before: int) -> Parts:
        """Attention of a chunk of a prompt."""
        key = (tokens, before)
        if key not in self._chunks:
            step = prefill(self.plan.model, self.plan.layout, 1, tokens, before, self.stage)
            self._chunks[key] = self._time(i for i in step if _is_core(i.where))
        return self._chunks[key]

    def attention(self, sequences: int, tokens: int, context_sum: Integers) -> Floats:
        """Microseconds of attention of sequences that decode, between contexts of a geometric row, which are priced."""
        context = np.maximum(context_sum / sequences + tokens, 1.0)
        low = np.floor(np.log(context) / np.log(_FINE)).astype(np.int64)
        found = {n: self._at(sequences, tokens, n) for n in np.unique(np.concatenate((low, low + 1))).tolist()}
        begin, end = np.rint(_FINE ** low.astype(float)), np.rint(_FINE ** (low + 1.0))
        a = np.array([found[n] for n in low.tolist()])
        b = np.array([found[n + 1] for n in low.tolist()])
        share = np.where(end > begin, (context - begin) / np.maximum(end - begin, 1.0), 0.0)
        return np.asarray(a + (b - a) * np.clip(share, 0.0, 1.0))

    def _at(self, sequences: int, tokens: int, knot: int) -> float:
        key = (sequences, tokens, knot)
        if key not in self._decode:
            context = max(round(_FINE**knot), 1)
            plan = self.plan
            step = decode(
                plan.model, plan.layout, sequences, context, self.stage, new=tokens, cache_dtype=plan.cache_dtype
            )
            self._decode[key] = self._time(i for i in step if _is_core(i.where)).total
        return self._decode[key]

    def _time(self, step: Iterable[Use | Exchange]) -> Parts:
        work = fixed = exchange = 0.0
        for item in self._joined(step):
            if isinstance(item, Exchange):
                apart = stride(self.plan.layout, item.group)
                told = self._exchanges.cost(item.operation, int(item.ranks), apart, float(item.bytes), self._used)
                exchange += told.microseconds * float(item.count)
                self._note(told.support, told.reason)
            else:
                total, least = self._use(item)
                work += total - least
                fixed += least
        by = self.factors
        return Parts(work * by.work, fixed * by.fixed, exchange * by.exchange)

    def _joined(self, step: Iterable[Use | Exchange]) -> Items:
        """The step with kernels joined (see the module)."""
        found: Items = []
        for item in step:
            one = self._join(item) if isinstance(item, Use) else item
            if one is not None:
                found.append(one)
        return found

    def _join(self, use: Use) -> Use | None:
        where, sizes = use.where, use.sizes
        if where.endswith("key_rope") or (use.operator == "elementwise" and where.endswith(".residual")):
            return None
        if where.endswith("query_rope"):
            return replace(use, sizes={**sizes, "heads": sizes["heads"] + 1})
        if use.operator == "rmsnorm" and where.endswith("layer_norm"):
            # Reads what is added too, and writes the sum beside the norm: twice the bytes.
            return replace(use, sizes={**sizes, "rows": 2 * sizes["rows"]})
        if ".expansion_" in where and self._latent_heads > 1:
            heads = self._latent_heads
            return replace(use, sizes={**sizes, "n": sizes["n"] * heads}, count=use.count / heads)
        return use

    def _use(self, use: Use) -> tuple[float, float]:
        """Microseconds of a use, and of what it takes however small it is, by the implementation that takes least.

        Raises:
            UnsupportedError: no implementation has it.
        """
        found: list[_Priced] = []
        refused: UnsupportedError | None = None
        for number in range(len(self._uses)):
            try:
                found.append(self._priced(number, use))
            except UnsupportedError as error:
                refused = error
        if not found:
            assert refused is not None
            raise refused
        by = self.factors
        best = min(found, key=lambda one: (one.total - one.least) * by.work + one.least * by.fixed)
        for support, reason in best.known:
            self._note(support, reason)
        return best.total, best.least

    def _priced(self, number: int, use: Use) -> _Priced:
        """``_use`` by one implementation."""
        stored = self._stored(use)
        dtype, widened = computed(self.system.chip, stored)
        if stored != use.dtype:
            use = replace(use, dtype=dtype)
        cost = self._uses[number].cost(use)
        known = [(cost.support, cost.reason)]
        fixed = self._fixed(number, use)
        total = cost.microseconds
        if use.dtype not in _WIDE and use.operator in _NARROWED:
            # Measured products cast their left operand themselves; here the kernel before has done that.
            wide = self._fixed(number, replace(use, dtype="bfloat16"))
            total -= max(fixed - wide, 0.0)
            fixed = min(fixed, wide)
        if widened:
            saved = float(elements(use)[2]) * float(use.count) * (2 - format_bytes(stored)) / self._bandwidth
            known.append(("extrapolated", f"{stored} weights, widened to 16 bits by {self.system.chip.name}"))
            total = max(total - saved, float(use.flops) / self._peak(), fixed)
        return _Priced(total, min(fixed, total), tuple(known))

    def _fixed(self, number: int, use: Use) -> float:
        """Microseconds of a use whose sizes are as small as can be."""
        key = (number, use.operator, use.dtype)
        if key not in self._least:
            options = {k: v for k, v in use.sizes.items() if k in ("causal", "latent") or isinstance(v, str)}
            tiny = replace(use, sizes={**dict.fromkeys(use.sizes, 1), **options}, count=1)
            self._least[key] = self._uses[number].cost(tiny).microseconds
        return self._least[key] * float(use.count)

    def _stored(self, use: Use) -> str:
        """The format that an operator's weights are stored in, or that of its inputs where it has none."""
        part = "experts" if use.operator == "grouped_matmul" else use.where.split(".")[0]
        plain = use.operator not in PRODUCTS or use.operator == "router" or _is_core(use.where)
        if plain or part in _WIDE_PARTS or ".expansion_" in use.where:
            return use.dtype
        formats: Mapping[str, str] = self.plan.formats
        return formats.get(part, formats.get("default", use.dtype))

    def _peak(self) -> float:
        """FLOPs a microsecond of a rank in 16 bits."""
        return peak_flops(self.system, Layout()) / ranks_per_chip(self.system, self.plan.lnc) / 1e6

    def _note(self, support: str, reason: str) -> None:
        self.supports.add(support)
        if reason and support != "calibrated":
            self.reasons[reason] = None


def _is_core(where: str) -> bool:
    return where.endswith(".core") or where == "indexer.scores"
