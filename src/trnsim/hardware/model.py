"""What the hardware is: chips, their cores, engines and memories, and the servers and racks they stand in.

The values come from the TOML files beside this module (``chips/``, ``chips/cores/``, ``systems/``), which give source
and date for each; ``facts`` of a chip or system keeps that provenance by key. Everything is frozen, hashable and in
base units (Hz, bytes, bytes a second, operations a second, watts, picoseconds). Rates are peak rates; what a kernel
reaches is the timing model's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync")


class Table(Mapping[str, T], Generic[T]):
    """An immutable mapping that can be hashed and pickled: a chip can be a key of a cache and go to a worker."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, T] | None = None) -> None:
        self._items: dict[str, T] = dict(items or {})

    def __getitem__(self, key: str) -> T:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """What another source says about the same fact."""

    value: str
    source: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A value as its file writes it, with where it was read and when.

    ``confidence`` is ``published``, or why the value deserves less trust: ``derived`` (computed from published values),
    ``reported`` (press, analysts), ``assumed``, ``unsourced``, ``what-if`` (a user's own file).
    """

    value: str
    source: str
    date: str
    alternatives: tuple[Alternative, ...] = ()
    why: str = ""
    confidence: str = "published"


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One engine of a core. Widths are elements a cycle through its data path; 0 where the engine has none (SyncE)."""

    name: str
    clock_hz: int
    lanes: int = 0
    elements_per_cycle: int = 0
    elements_per_cycle_narrow: int = 0
    """Of the narrow formats (16 bits; on NeuronCore-v4 also FP8), at best."""
    float32_flops: float | None = None
    """As published. None: not published."""


@dataclass(frozen=True, kw_only=True)
class TensorEngineSpec(EngineSpec):
    """The systolic array. ``products`` is how many products each processing element makes a cycle, by number format."""

    rows: int
    columns: int
    products: Table[float]

    def flops(self, dtype: str) -> float | None:
        """Peak of a dense matrix multiplication: two operations a product. None if it does not multiply this format."""
        products = self.products.get(flops_key(dtype))
        return None if products is None else 2.0 * self.rows * self.columns * products * self.clock_hz


@dataclass(frozen=True, kw_only=True)
class GpSimdSpec(EngineSpec):
    """GpSimdE: a few programmable vector processors."""

    processors: int
    bits_per_processor: int
    local_bytes_per_processor: int | None = None
    dma_bytes_per_second: int | None = None
    """Of the DMA engines inside its processors together, reading and writing; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class OnChipMemory:
    """SBUF: two-dimensional, ``partitions`` by ``bytes_per_partition``, of which a program may use the usable ones."""

    partitions: int
    bytes_per_partition: int
    usable_bytes_per_partition: int

    @property
    def capacity_bytes(self) -> int:
        return self.partitions * self.bytes_per_partition


@dataclass(frozen=True, kw_only=True)
class PsumMemory:
    """PSUM, where TensorE accumulates: each partition is divided into banks."""

    partitions: int
    banks: int
    bytes_per_bank: int

    @property
    def bytes_per_partition(self) -> int:
        return self.banks * self.bytes_per_bank

    @property
    def capacity_bytes(self) -> int:
        return self.partitions * self.bytes_per_partition


@dataclass(frozen=True, kw_only=True)
class DmaSpec:
    """The DMA engines that serve one core."""

    engines: int
    bytes_per_second_per_engine: int
    """Sustained, with large packets."""
    peak_bytes_per_second_per_engine: int
    descriptor_generators: int
    """Hardware descriptor generators (DGE); 0 on NeuronCore-v2."""

    @property
    def bytes_per_second(self) -> int:
        return self.engines * self.bytes_per_second_per_engine


@dataclass(frozen=True, kw_only=True)
class Core:
    """A NeuronCore."""

    name: str
    version: str
    """``v2``, ``v3`` or ``v4``."""
    engines: Table[EngineSpec]
    sbuf: OnChipMemory
    psum: PsumMemory
    dma: DmaSpec

    @property
    def nc_version(self) -> int:
        return int(self.version[1:])

    @property
    def tensor(self) -> TensorEngineSpec:
        """TensorE."""
        engine = self.engines["tensor"]
        assert isinstance(engine, TensorEngineSpec)
        return engine

    @property
    def gpsimd(self) -> GpSimdSpec:
        """GpSimdE."""
        engine = self.engines["gpsimd"]
        assert isinstance(engine, GpSimdSpec)
        return engine


@dataclass(frozen=True, kw_only=True)
class Hbm:
    """The memory of a chip (DRAM on Inferentia, HBM on all others)."""

    kind: str
    capacity_bytes: int
    bytes_per_second: int
    stacks: int | None = None

    @property
    def bytes_per_stack(self) -> int | None:
        return None if self.stacks is None else self.capacity_bytes // self.stacks


@dataclass(frozen=True, kw_only=True)
class LinkLevel:
    """A chip's links to one neighbourhood: its own server, the servers of its rack, other racks."""

    bytes_per_second: int
    links: int | None = None
    direction: str | None = None
    """What ``bytes_per_second`` counts; None: as the chip's links together."""


@dataclass(frozen=True, kw_only=True)
class ScaleUp:
    """The chip-to-chip links (NeuronLink, NVLink). ``levels`` are keyed by what they span, nearest first."""

    name: str
    bytes_per_second: int
    direction: str
    """``one way``, ``both ways``, or ``not stated``: what ``bytes_per_second`` counts."""
    links: int | None = None
    hop_latency_ps: int | None = None
    """Of one step between neighbouring chips, software included; None: no source."""
    levels: Table[LinkLevel] = field(default_factory=Table)


@dataclass(frozen=True, kw_only=True)
class Power:
    """Watts a chip; ``all_in`` counts its share of host, network and cooling."""

    tdp_watts: float | None = None
    all_in_watts: float | None = None


@dataclass(frozen=True, kw_only=True)
class LogicalCoreSettings:
    """How many physical cores may form one logical core (LNC)."""

    default: int = 1
    settings: tuple[int, ...] = (1,)


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars an hour for the whole (chip or system) of one type on one day."""

    type: str
    """``on-demand``, ``capacity-block``, ``spot``, ``reserved-3y``, ``rental-3y``, ``ownership-hyperscaler``, ..."""
    usd_per_hour: float
    regions: tuple[str, ...]
    date: str
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a user set on a chip: a fact or a timing constant, by its dotted path, with the texts of both values."""

    path: str
    value: str
    before: str


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator chip.

    Nvidia's chips and Inferentia (NeuronCore-v1) have no ``core``: they are compared, not simulated.
    """

    name: str
    title: str
    vendor: str
    family: str
    """``inferentia``, ``trainium`` or ``nvidia``."""
    generation: str
    aliases: tuple[str, ...]
    core_count: int
    """NeuronCores, or streaming multiprocessors of a GPU (0: not known)."""
    core: Core | None
    logical_core: LogicalCoreSettings
    hbm: Hbm
    flops: Table[float]
    """Dense peak of the chip as its vendor states it, by number format; see ``matmul_flops``."""
    sparse_flops: float | None
    scale_up: ScaleUp
    power: Power
    dma_engines: int | None
    dma_bytes_per_second: int | None
    collective_cores: int | None
    clock_hz: int | None
    """Boost clock of a GPU; a NeuronCore's engines have their own."""
    cache_bytes: int | None
    """L2 of a GPU; a NeuronCore has SBUF and PSUM instead."""
    prices: tuple[Price, ...]
    path: str = field(compare=False)
    facts: Table[Fact] = field(compare=False, repr=False)
    changes: tuple[Change, ...] = ()
    """What a user set (``whatif.py``); empty for what the catalogue or a file says."""
    constants: Table[float] = field(default_factory=Table)
    """Timing constants among the changes, in the unit of their file."""

    @property
    def changed(self) -> str:
        """The changes as text; empty where there are none."""
        return ", ".join(f"{c.path} = {c.value} (was {c.before})" for c in self.changes)

    @property
    def nc_version(self) -> int | None:
        """Generation of its NeuronCores (2, 3, 4); None where there is no core to simulate."""
        return None if self.core is None else self.core.nc_version

    @property
    def default_lnc(self) -> int:
        return self.logical_core.default

    @property
    def cores_per_hbm_stack(self) -> int | None:
        return self.core_count // self.hbm.stacks if self.core is not None and self.hbm.stacks else None

    @property
    def on_chip_bytes(self) -> int | None:
        """SBUF of all cores, or the GPU's L2 cache."""
        return self.cache_bytes if self.core is None else self.core_count * self.core.sbuf.capacity_bytes

    def peak_flops(self, dtype: str) -> float | None:
        """Dense peak as the vendor states it for the chip. None if the format is not listed."""
        return self.flops.get(flops_key(dtype))

    def matmul_flops(self, dtype: str) -> float | None:
        """Dense peak of what its tensor engines can do: the base of utilisation (MFU).

        For NeuronCores it is array size times clock times cores (78.64 TFLOPS of bfloat16 a core on trn2 and trn3, as
        every published MFU assumes), a few per cent below the vendor's figure; elsewhere it is ``peak_flops``.
        """
        if self.core is None:
            return self.peak_flops(dtype)
        one = self.core.tensor.flops(dtype)
        return None if one is None else one * self.core_count


@dataclass(frozen=True, kw_only=True)
class Server:
    """One host and its chips; a system has one or several. Empty (None) where the source does not say."""

    chip_count: int
    vcpus: int | None = None
    host_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Topology:
    """How the chips of a system are linked: ``2d-torus`` of ``shape`` (4, 4), ``3d-torus``, ``ring``, ``switched``, ...

    ``domain`` is how many chips the links join; ``bytes_per_second`` is what one chip has there (None: as the chip
    says).
    """

    kind: str
    domain: int
    shape: tuple[int, ...] = ()
    bytes_per_second: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScaleOut:
    """The network out of one system (EFA), all its adapters together."""

    name: str
    bytes_per_second: int | None = None
    adapters: int | None = None
    latency_ps: int | None = None
    """From point to point, software included; None: no source."""


@dataclass(frozen=True, kw_only=True)
class System:
    """What can be rented or bought as one: an instance, an UltraServer, a rack."""

    name: str
    title: str
    vendor: str
    kind: str
    """``instance``, ``ultraserver`` or ``rack``."""
    aliases: tuple[str, ...]
    chip: Chip
    server: Server
    server_count: int
    topology: Topology
    scale_out: ScaleOut
    prices: tuple[Price, ...]
    path: str = field(compare=False)
    facts: Table[Fact] = field(compare=False, repr=False)

    @property
    def chip_count(self) -> int:
        return self.server_count * self.server.chip_count

    @property
    def hbm_bytes(self) -> int:
        return self.chip_count * self.chip.hbm.capacity_bytes

    @property
    def scale_up_bytes_per_second(self) -> int:
        """Of one chip, within this system; 0 if it is alone."""
        if self.topology.domain == 1:
            return 0
        return self.topology.bytes_per_second or self.chip.scale_up.bytes_per_second

    @property
    def scale_out_bytes_per_second_per_chip(self) -> float | None:
        whole = self.scale_out.bytes_per_second
        return None if whole is None else whole / self.chip_count

    def price(self, type: str, *, region: str = "", date: str = "") -> Price | None:
        """The newest price of this type (of this region, of this date); the cheapest where several regions differ.

        To compare systems ask for one date: few types and dates are known of all.
        """
        found = [
            p
            for p in self.prices
            if p.type == type and (not region or region in p.regions) and (not date or date == p.date)
        ]
        if not found:
            return None
        newest = max(p.date for p in found)
        return min((p for p in found if p.date == newest), key=lambda p: p.usd_per_hour)


def flops_key(dtype: str) -> str:
    """The row of a table of peak rates for a number format: ``float8`` for ``float8_e4m3``, ``mxfp8`` for its x4."""
    if dtype.endswith("_x4"):
        return "mxfp4" if dtype.startswith("float4") else "mxfp8"
    return dtype.split("_", 1)[0] if dtype.startswith(("float8", "float4")) else dtype
