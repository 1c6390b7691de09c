"""Which keys a file of the hardware catalogue may have, in which unit, between which limits.

The limits only catch slips of unit or digit (a clock of 2.4 THz): a what-if file may describe hardware that nobody
builds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .quantity import DURATION, FREQUENCY, OPERATIONS, POWER, RATE, SIZE, Dimension

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMATS: Final = ("bfloat16", "float16", "tfloat32", "float32", "float8", "float4", "mxfp8", "mxfp4", "int8")
"""The rows of a table of peak rates: see ``model.flops_key``."""
LEVELS: Final = ("server", "ultraserver", "rack", "racks")
"""What the links of a chip may span, nearest first."""
DIRECTIONS: Final = ("not stated", "one way", "both ways")
"""What the rate of a chip's links counts."""
CONFIDENCES: Final = ("published", "derived", "reported", "assumed", "unsourced", "what-if")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one key holds: a dimension (text with a unit), or ``count``, ``counts`` (a list), ``ratio``, ``text``."""

    kind: Dimension | str
    low: float = 0.0
    high: float = float("inf")
    required: bool = True
    choices: tuple[str, ...] = ()


def _count(low: int = 1, high: int = 1024, *, required: bool = True) -> Rule:
    return Rule(kind="count", low=low, high=high, required=required)


def _rate(*, required: bool = True) -> Rule:
    return Rule(kind=RATE, low=1e6, high=1e15, required=required)


def _flops(*, required: bool = False) -> Rule:
    return Rule(kind=OPERATIONS, low=1e9, high=1e18, required=required)


def _size(low: float, high: float, *, required: bool = True) -> Rule:
    return Rule(kind=SIZE, low=low, high=high, required=required)


def _under(prefix: str, rules: dict[str, Rule]) -> dict[str, Rule]:
    return {f"{prefix}.{key}": rule for key, rule in rules.items()}


_CLOCK: Final = Rule(kind=FREQUENCY, low=1e6, high=2e10)
_TEXT: Final = Rule(kind="text")
_LATENCY: Final = Rule(kind=DURATION, low=1e3, high=1e12, required=False)
_OPTIONAL_TEXT: Final = Rule(kind="text", required=False)
_KIB, _MIB, _TIB = 2.0**10, 2.0**20, 2.0**40

_WIDTHS: Final = {"lanes": _count(high=4096), "elements_per_cycle": _count(high=65536)} | {
    "elements_per_cycle_narrow": _count(high=65536)
}
CORE: Final[dict[str, Rule]] = {
    **_under("engines.tensor", {"clock": _CLOCK, "rows": _count(high=4096), "columns": _count(high=4096)}),
    **_under("engines.tensor.products", {f: Rule(kind="ratio", low=0.01, high=64.0, required=False) for f in FORMATS}),
    **_under("engines.vector", {"clock": _CLOCK, **_WIDTHS, "float32_flops": _flops()}),
    **_under("engines.scalar", {"clock": _CLOCK, **_WIDTHS, "float32_flops": _flops()}),
    **_under("engines.gpsimd", {"clock": _CLOCK, **_WIDTHS}),
    "engines.gpsimd.processors": _count(),
    "engines.gpsimd.bits_per_processor": _count(8, 65536),
    "engines.gpsimd.local_bytes_per_processor": _size(1, _TIB, required=False),
    "engines.gpsimd.dma_bandwidth": _rate(required=False),
    "engines.sync.clock": _CLOCK,
    "sbuf.partitions": _count(),
    "sbuf.bytes_per_partition": _size(_KIB, 1024 * _MIB),
    "sbuf.reserved_bytes_per_partition": _size(0, 1024 * _MIB),
    "psum.partitions": _count(),
    "psum.banks": _count(),
    "psum.bytes_per_bank": _size(4, _MIB),
    "dma.engines": _count(),
    "dma.bandwidth_per_engine": _rate(),
    "dma.peak_bandwidth_per_engine": _rate(),
    "dma.descriptor_generators": _count(0),
}

CHIP: Final[dict[str, Rule]] = {
    "core_count": _count(required=False),
    "clock": Rule(kind=FREQUENCY, low=1e6, high=2e10, required=False),
    "cache": _size(_KIB, _TIB, required=False),
    "dma_engines": _count(high=65536, required=False),
    "dma_bandwidth": _rate(required=False),
    "collective_cores": _count(required=False),
    "sparse_flops": _flops(),
    "logical_core.default": _count(high=2),
    "logical_core.settings": Rule(kind="counts", low=1, high=2),
    "hbm.kind": _TEXT,
    "hbm.stacks": _count(high=64, required=False),
    "hbm.capacity": _size(_MIB, 64 * _TIB),
    "hbm.bandwidth": _rate(),
    **_under("flops", {f: _flops(required=f == "bfloat16") for f in FORMATS}),
    "scale_up.name": _TEXT,
    "scale_up.links": _count(required=False),
    "scale_up.bandwidth": _rate(),
    "scale_up.hop_latency": _LATENCY,
    "scale_up.direction": Rule(kind="text", choices=DIRECTIONS),
    **{f"scale_up.levels.{level}.bandwidth": _rate() for level in LEVELS},
    **{f"scale_up.levels.{level}.links": _count(required=False) for level in LEVELS},
    **{f"scale_up.levels.{level}.direction": Rule(kind="text", required=False, choices=DIRECTIONS) for level in LEVELS},
    "power.tdp": Rule(kind=POWER, low=1, high=1e5, required=False),
    "power.all_in": Rule(kind=POWER, low=1, high=1e5, required=False),
    **_under("core", CORE),
}

SYSTEM: Final[dict[str, Rule]] = {
    "no_price": _OPTIONAL_TEXT,
    "server_count": _count(high=65536),
    "server.chip_count": _count(),
    "server.vcpus": _count(high=65536, required=False),
    "server.host_memory": _size(_MIB, 1024 * _TIB, required=False),
    "topology.kind": Rule(kind="text", choices=("none", "chain", "ring", "2d-torus", "3d-torus", "switched")),
    "topology.shape": Rule(kind="counts", low=1, high=65536, required=False),
    "topology.domain": _count(high=1048576),
    "topology.bandwidth": _rate(required=False),
    "scale_out.name": _TEXT,
    "scale_out.bandwidth": _rate(required=False),
    "scale_out.latency": _LATENCY,
    "scale_out.adapters": _count(required=False),
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A kind of file: its rules, its plain strings (names that need no source) and the tables it cannot do without."""

    what: str
    folder: str
    rules: dict[str, Rule]
    names: tuple[str, ...]
    required_names: tuple[str, ...]
    tables: tuple[str, ...]

    def children(self, table: str) -> Iterable[str]:
        """The keys that may stand in ``table`` ('' for the top of the file)."""
        start = f"{table}." if table else ""
        rows = (*self.rules, *self.names)
        return dict.fromkeys(key[len(start) :].split(".", 1)[0] for key in rows if key.startswith(start))


_ENGINE_TABLES: Final = tuple(f"engines.{e}" for e in ("tensor", "vector", "scalar", "gpsimd", "sync"))
CORE_SCHEMA: Final = Schema(
    what="core",
    folder="chips/cores",
    rules=CORE,
    names=("base", "name", "title", "version"),
    required_names=("name", "title", "version"),
    tables=(*_ENGINE_TABLES, "engines.tensor.products", "sbuf", "psum", "dma"),
)
CHIP_SCHEMA: Final = Schema(
    what="chip",
    folder="chips",
    rules=CHIP,
    names=(
        *("base", "name", "title", "vendor", "family", "generation", "aliases", "prices"),
        *(f"core.{name}" for name in CORE_SCHEMA.names),
    ),
    required_names=("name", "title", "vendor", "family", "generation"),
    tables=("hbm", "flops", "scale_up"),
)
SYSTEM_SCHEMA: Final = Schema(
    what="system",
    folder="systems",
    rules=SYSTEM,
    names=("base", "name", "title", "vendor", "kind", "chip", "aliases", "prices"),
    required_names=("name", "title", "vendor", "kind", "chip"),
    tables=("server", "topology", "scale_out"),
)
