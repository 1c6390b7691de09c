"""Serving stacks: what surrounds a model on its chips, as facts with sources in ``stacks/*.toml``.

A stack says how long the host and the launch of a graph take, how steps are made up, how the KV cache is laid out,
which sizes graphs are compiled for, and how much memory the runtime keeps. What no source says is marked ``assumed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

from .document import ROOT, Document, find, names_in, read
from .model import Fact, Table
from .quantity import DURATION, SIZE
from .rules import Rule, Schema

_SIZES: Final = ("exact", "largest", "powers-of-two", "listed")


def _text(*choices: str) -> Rule:
    return Rule(kind="text", choices=choices)


def _count(low: int = 0, high: int = 2**24, *, required: bool = True) -> Rule:
    return Rule(kind="count", low=low, high=high, required=required)


_TIME: Final = Rule(kind=DURATION, low=0, high=1e12)
_SHARE: Final = Rule(kind="ratio", low=0, high=1)
_LIST: Final = Rule(kind="counts", low=1, high=2**24, required=False)

RULES: Final[dict[str, Rule]] = {
    "host.step_time": _TIME,
    "host.overlap": _text("none", "steady-decode", "always"),
    "launch.floor": _TIME,
    "scheduler.policy": _text("mixed", "prefill-first"),
    "scheduler.chunks": _text("yes", "no"),
    "scheduler.max_prefills": _count(),
    "scheduler.max_num_seqs": _count(1),
    "scheduler.max_num_batched_tokens": _count(1, required=False),
    "scheduler.preemption": _text("recompute", "swap", "never"),
    "scheduler.watermark": _SHARE,
    "cache.layout": _text("paged", "contiguous"),
    "cache.block_tokens": _count(1),
    "cache.prefix_reuse": _text("yes", "no"),
    "shapes.prefill": _text(*_SIZES),
    "shapes.prefill_smallest": _count(1, required=False),
    "shapes.prefill_sizes": _LIST,
    "shapes.decode_batch": _text(*_SIZES),
    "shapes.decode_batch_sizes": _LIST,
    "shapes.decode_context": _text(*_SIZES),
    "shapes.decode_context_smallest": _count(1, required=False),
    "shapes.decode_context_sizes": _LIST,
    "operators.implementation": Rule(kind="text", choices=("usual", "best"), required=False),
    "operators.back_to_back": Rule(kind="text", choices=("yes", "no"), required=False),
    "operators.heads": Rule(kind="text", choices=("divided", "padded"), required=False),
    **{f"fit.{key}": Rule(kind="ratio", low=0, high=100) for key in ("work", "fixed", "exchanges", "error")},
    "fit.host_time": Rule(kind=DURATION, low=0, high=1e12, required=False),
    "fit.cases": _count(1),
    "memory.utilization": _SHARE,
    "memory.cache_share": _SHARE,
    "memory.free_share": _SHARE,
    "memory.core": Rule(kind=SIZE, low=0, high=2**40, required=False),
    "memory.reserve": Rule(kind=SIZE, low=0, high=2**40),
    "memory.graph": Rule(kind=SIZE, low=0, high=2**40),
}
STACK_SCHEMA: Final = Schema(
    what="stack",
    folder="stacks",
    rules=RULES,
    names=("base", "name", "title", "aliases"),
    required_names=("name", "title"),
    tables=("host", "launch", "scheduler", "cache", "shapes", "memory"),
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of one dimension that graphs are compiled for.

    ``exact``: any size, not padded; ``largest``: one graph, of the largest; ``powers-of-two``: from ``smallest`` to the
    largest; ``listed``: ``sizes``, and the largest.
    """

    rule: str
    smallest: int = 1
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Constants of a stack that were fitted on measurements (``trnsim calibrate``).

    Factors of operators' work, of what each takes however small it is, and of exchanges; host time a step in
    picoseconds, None: as the stack says; the mean absolute relative error of TPOT over ``cases`` that were left out.
    """

    work: float
    fixed: float
    exchanges: float
    host_ps: int | None
    cases: int
    error: float


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A serving stack. Times in picoseconds, sizes in bytes of one rank's memory; ``facts`` has the provenance by key.

    ``memory_utilization``: share of memory that the stack uses; ``cache_share``: bound on the KV cache as a share of
    that, and ``free_share`` as a share of what is left; ``reserve_bytes`` are kept beside it, ``core_bytes`` for each
    physical core, and ``graph_bytes`` for each compiled graph. ``best_operators``: of each operator, the implementation
    that takes least; ``back_to_back``: what an operator takes however small it is (its first loads and last stores) is
    hidden behind its neighbours; ``pads_heads``: attention heads are padded to what the ranks divide.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    host_step_ps: int
    host_overlap: str
    launch_floor_ps: int
    policy: str
    chunks: bool
    max_prefills: int
    max_num_seqs: int
    max_num_batched_tokens: int | None
    preemption: str
    watermark: float
    cache_layout: str
    block_tokens: int
    prefix_reuse: bool
    prefill: Sizes
    decode_batch: Sizes
    decode_context: Sizes
    best_operators: bool
    back_to_back: bool
    pads_heads: bool
    fit: Fit | None
    memory_utilization: float
    cache_share: float
    free_share: float
    reserve_bytes: int
    core_bytes: int
    graph_bytes: int
    path: str
    facts: Table[Fact]

    @property
    def assumed(self) -> tuple[str, ...]:
        """Keys whose values no source gives."""
        return tuple(key for key, fact in self.facts.items() if fact.confidence == "assumed")

    def kept_bytes(self, graphs: int, cores: int) -> int:
        """Bytes that the runtime keeps of the memory of a rank of so many physical cores."""
        return self.reserve_bytes + cores * self.core_bytes + graphs * self.graph_bytes

    def cache_bytes(self, memory_bytes: int, used_bytes: int, graphs: int, cores: int = 1) -> int:
        """Bytes left for the KV cache in a rank's memory beside ``used_bytes`` and ``graphs`` graphs; below 0: none."""
        budget = memory_bytes * self.memory_utilization
        left = budget - used_bytes - self.kept_bytes(graphs, cores)
        return int(min(left * self.free_share if left > 0 else left, budget * self.cache_share))


def stack_names() -> tuple[str, ...]:
    """The stacks of the catalogue."""
    return names_in(STACK_SCHEMA.folder)


def load_stack(name_or_path: str | Path) -> Stack:
    """A stack by name or alias (case does not matter) or from a user's TOML file; as ``load_chip``.

    Raises ``InputError`` for an unknown name, or a file that does not hold, with file, key, value and limit.
    """
    path = find(name_or_path, STACK_SCHEMA)
    return _built_in(path) if ROOT in path.parents else _stack(read(path, STACK_SCHEMA))


@cache
def _built_in(path: Path) -> Stack:
    return _stack(read(path, STACK_SCHEMA))


def _sizes(document: Document, key: str) -> Sizes:
    from trnsim.errors import InputError

    v = document.values
    rule = v[f"shapes.{key}"]
    sizes = v.get(f"shapes.{key}_sizes", ())
    if (rule == "listed") != bool(sizes):
        raise InputError(
            f"{document.path}: shapes.{key}_sizes: goes with the rule 'listed', and only with it", value=rule
        )
    if any(b <= a for a, b in pairwise(sizes)):
        raise InputError(f"{document.path}: shapes.{key}_sizes: must ascend", value=sizes)
    return Sizes(rule=rule, smallest=v.get(f"shapes.{key}_smallest", 1), sizes=sizes)


def _fit(document: Document) -> Fit | None:
    v = document.values
    if "fit.work" not in v:
        return None
    return Fit(
        work=v["fit.work"],
        fixed=v["fit.fixed"],
        exchanges=v["fit.exchanges"],
        host_ps=v.get("fit.host_time"),
        cases=v["fit.cases"],
        error=v["fit.error"],
    )


def _stack(document: Document) -> Stack:
    v, names = document.values, document.names
    return Stack(
        name=names["name"],
        title=names["title"],
        aliases=tuple(names.get("aliases", ())),
        host_step_ps=v["host.step_time"],
        host_overlap=v["host.overlap"],
        launch_floor_ps=v["launch.floor"],
        policy=v["scheduler.policy"],
        chunks=v["scheduler.chunks"] == "yes",
        max_prefills=v["scheduler.max_prefills"],
        max_num_seqs=v["scheduler.max_num_seqs"],
        max_num_batched_tokens=v.get("scheduler.max_num_batched_tokens"),
        preemption=v["scheduler.preemption"],
        watermark=v["scheduler.watermark"],
        cache_layout=v["cache.layout"],
        block_tokens=v["cache.block_tokens"],
        prefix_reuse=v["cache.prefix_reuse"] == "yes",
        prefill=_sizes(document, "prefill"),
        decode_batch=_sizes(document, "decode_batch"),
        decode_context=_sizes(document, "decode_context"),
        best_operators=v.get("operators.implementation") == "best",
        back_to_back=v.get("operators.back_to_back") == "yes",
        pads_heads=v.get("operators.heads") == "padded",
        fit=_fit(document),
        memory_utilization=v["memory.utilization"],
        cache_share=v["memory.cache_share"],
        free_share=v["memory.free_share"],
        reserve_bytes=v["memory.reserve"],
        core_bytes=v.get("memory.core", 0),
        graph_bytes=v["memory.graph"],
        path=str(document.path),
        facts=Table(document.facts),
    )
