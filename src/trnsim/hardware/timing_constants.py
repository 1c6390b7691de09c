"""The constants of the timing model, one frozen dataclass an engine, read from ``timing/<version>.toml``.

Each constant stands in its TOML file with unit, source or fit, residual and how it is known. Here it becomes an integer
number of picoseconds (a float where it is a rate or a fraction) that cost functions combine with the shape of an
instruction. The forms of the formulas are those of the NKI documentation; see the method docstrings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trnsim.errors import InputError
from trnsim.units import Picoseconds, cycles_to_ps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from trnsim.hardware.model import Chip

_DIRECTORY = Path(__file__).parent / "timing"
_UNITS = {"ps": 1, "ns": 1_000, "us": 1_000_000}
SET_BY_USER = "set by the user"

T = TypeVar("T", bound="EngineTiming")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Where a constant comes from, and how well it is known."""

    name: str
    value: float
    unit: str
    source: str
    residual: str = ""
    support: str = "calibrated"


@dataclass(frozen=True, kw_only=True)
class EngineTiming:
    """What all engines have: a clock, and the time a semaphore takes to reach them from a compute engine."""

    clock_hz: int
    semaphore_ps: int
    """From the end of the producer on another (or the same) compute engine to the start here."""
    minimum_cycles: int
    """Shortest initiation interval of an instruction that streams data."""

    def cycles(self, count: float) -> Picoseconds:
        """``count`` cycles of this engine in picoseconds."""
        return cycles_to_ps(count, self.clock_hz)


@dataclass(frozen=True, kw_only=True)
class TensorTiming(EngineTiming):
    """TensorE. A matmul is LoadStationary and MultiplyMoving; the next load runs behind the current multiply."""

    row_cycles: float
    """Cycles a moving row of a 16-bit product takes."""
    issue_ps: int
    """Between two multiplies, beyond the rows they stream."""
    tail_ps: int
    """Fill and drain: from the last row streamed to the result being visible in PSUM."""
    tail_streamed_ps: int
    """The part of the tail that the throttle slows down too."""
    load_cycles_per_column: float
    """LoadStationary: cycles a column of a 16-bit stationary matrix."""
    load_float32: int
    """How many times longer it takes for a pass of a float32 product, and (``_transpose``) of a float32 transpose."""
    load_float32_transpose: int
    load_tail_ps: int
    """Fill and drain: duration of a load beyond its columns."""
    load_lead_ps: int
    """How long before the end of its columns the multiply of a load may start."""
    float32_passes: int
    float32_cycles_per_row: int
    float32_transpose_passes: int
    throttled: int
    """1 if the activity throttle exists on this generation."""
    throttle_window_ps: int
    throttle_rise: float
    """A window at the low limit busy at least this much raises the next one to full rate."""
    throttle_fall: float
    """A window at full rate busy less than this much lowers the next one."""
    throttle_slowdown: int
    """How many times longer a multiply takes at the low limit."""
    throttle_burst_ps: int
    """Work beyond the low limit's share that TensorE may do after it has been idle."""

    def multiply(self, rows: int, *, cycles_per_row: int = 1, passes: int = 1) -> Picoseconds:
        """Initiation interval of multiplying ``rows`` moving rows: those of max(rows, 64) a pass, and the issue."""
        streamed = max(rows, self.minimum_cycles) * cycles_per_row * self.row_cycles
        return Picoseconds(passes * (self.cycles(streamed) + self.issue_ps))

    def load(self, columns: int, times: int = 1) -> Picoseconds:
        """LoadStationary of ``columns`` stationary columns, ``times`` as long as of a 16-bit matrix."""
        return self.cycles(columns * times * self.load_cycles_per_column)


@dataclass(frozen=True, kw_only=True)
class StreamTiming(EngineTiming):
    """An engine that streams a tensor, a partition a lane: a fixed part and cycles in proportion to the elements."""

    fixed_ps: int
    """Fill and drain of a copy: duration beyond the streaming time."""
    overlap_ps: int
    """How much of the duration back-to-back instructions overlap: duration less initiation interval."""
    arithmetic_ps: int
    """What arithmetic with operands adds to the fixed part of a copy."""
    wide_step_bytes: int
    """Elements further apart than this in the free dimension come at half the rate."""

    def duration(self, cycles: float, *, arithmetic: bool = False) -> Picoseconds:
        """From start to visible result of an instruction that streams for ``cycles``."""
        fixed = self.fixed_ps + (self.arithmetic_ps if arithmetic else 0)
        return Picoseconds(self.cycles(cycles) + fixed)

    def interval(self, cycles: float, *, arithmetic: bool = False) -> Picoseconds:
        """Initiation interval of the same instruction: its duration less what the next one overlaps."""
        duration = self.duration(cycles, arithmetic=arithmetic)
        return Picoseconds(max(self.cycles(self.minimum_cycles), duration - self.overlap_ps))

    def strided(self, elements: float, step_bytes: int) -> float:
        """``elements`` as seen by a port that reads every ``step_bytes``: twice as many where the step is wide."""
        return elements * 2 if step_bytes > self.wide_step_bytes else elements


@dataclass(frozen=True, kw_only=True)
class VectorTiming(StreamTiming):
    """VectorE. Speed modes by dtype, memory and contiguity exist from NeuronCore-v3 on."""

    float32_sbuf_mode: int
    """Elements a cycle of copies and tensor-scalar arithmetic, float32, SBUF to SBUF."""
    narrow_mode: int
    """The same for 16-bit formats that are contiguous in SBUF."""
    narrow_mixed_mode: int
    """The same for 16-bit formats where a side is in PSUM or not contiguous."""
    narrow_pair_mode: int
    """Elements a cycle of tensor-tensor arithmetic on 16-bit formats in SBUF."""
    two_input_streams: int
    """Cycles an element with two inputs through one port."""
    reciprocal_cycles: float
    """Cycles an element of reciprocal."""


@dataclass(frozen=True, kw_only=True)
class ScalarTiming(StreamTiming):
    """ScalarE: an element a cycle, and a table load when the activation function changes."""

    activate_ps: int
    """What ACTIVATE adds to the fixed part of a copy."""
    table_load_ps: int
    narrow_mode: int
    """Elements a cycle of 16-bit and 8-bit formats."""
    accumulate_cycles: int
    """Reading the accumulator after an activation that reduces."""


@dataclass(frozen=True, kw_only=True)
class GpsimdTiming(StreamTiming):
    """GpSimdE: eight programmable processors, slow to start."""

    start_cycles: int
    special_function_cycles: int
    """Cycles an element of rsqrt and the like."""


@dataclass(frozen=True, kw_only=True)
class SyncTiming(EngineTiming):
    """SyncE, which only synchronises and triggers DMAs."""

    barrier_ps: int
    """core_barrier, once both cores have arrived."""
    register_move_ps: int
    register_load_ps: int
    """An element of memory into a register of the sequencer, or back."""


@dataclass(frozen=True, kw_only=True)
class SequencerTiming:
    """What an engine's sequencer needs for a wait that is an instruction of its own, beyond the semaphore's arrival."""

    tensor_ps: int
    vector_ps: int
    scalar_ps: int
    gpsimd_ps: int
    sync_ps: int
    depth: int
    """How many instructions it dispatches ahead of its engine; a DMA trigger needs no more than to be dispatched."""


@dataclass(frozen=True, kw_only=True)
class DmaTiming:
    """The DMA engines of a core, their rings and how transfers are triggered."""

    engines: int
    packet_ps: int
    """Fixed part of a packet."""
    bytes_per_ns: float
    """Slope of a packet's time over its bytes."""
    sustained_bytes_per_ns: float
    """What an engine sustains over many packets, or over many transfers (``sustained_over``)."""
    sustained_over: str
    """``packets``: a transfer takes its fixed part and its packets at this rate. ``transfers``: the fixed part counts,
    and is nothing more where a transfer's packets alone leave time for it."""
    packet_bytes: int
    """Longest packet: longer elements are split."""
    transfer_ps: int
    """What each transfer costs each engine that works on it: fetching its descriptors, writing its semaphore."""
    static_transfer_ps: int
    """The same of one with static descriptors, which the engine has at hand before the transfer begins."""
    completion_ps: int
    """Last packet to the start of the instruction that waits."""
    default_dge: str
    hardware_issue_ps: int
    hardware_issue_descriptor: float
    """Nanoseconds that each descriptor adds to a trigger of the hardware's."""
    hardware_interval_ps: int
    """Between two triggers on one ring: the second lasts until the hardware has made the descriptors of the first."""
    hardware_first_packet_ps: int
    """From the end of a trigger to the first packet, out of SBUF; the same for software."""
    ring_descriptors: int
    """Descriptors that a ring holds for each DMA engine; a trigger waits until its own fit."""
    ring_store_weight: int
    """How many descriptors of a load one of a store (out of SBUF into HBM) counts for in a ring."""
    software_issue_ps: int
    software_issue_pending_ps: int
    """What each earlier software DMA that is still under way adds to a trigger."""
    software_interval_ps: int
    software_interval_descriptor: float
    """Nanoseconds that each descriptor adds to the distance of two triggers."""
    software_service_ps: int
    """Between the descriptors of two software DMAs being ready: of one of ``software_service_bytes`` or more, and of a
    smaller one in proportion."""
    software_service_bytes: int
    software_prepare_ps: int
    """GpSimdE writing the descriptors of a software DMA, before its trigger; the next one's are begun meanwhile."""
    software_first_packet_ps: int
    static_first_packet_ps: int
    """From the start of a transfer whose descriptors are known before, whatever its source."""
    read_latency_ps: int
    """What the first packet waits for HBM, where that is the source."""
    read_start_ps: int
    """A read of HBM on an engine that was idle: what its first packet takes longer, and for each byte of it."""
    read_start_bytes_per_ns: float
    transpose_hbm: float
    """Share of the copy rate that a DMA transpose reaches from HBM; ``transpose_sbuf`` from SBUF."""
    transpose_sbuf: float

    def hardware_issue(self, descriptors: int) -> Picoseconds:
        """How long a trigger keeps its engine when hardware makes the descriptors."""
        return Picoseconds(self.hardware_issue_ps + round(1000 * self.hardware_issue_descriptor * descriptors))

    def software_interval(self, descriptors: int) -> Picoseconds:
        """Between the triggers of a software DMA of ``descriptors`` and of the one before."""
        return Picoseconds(self.software_interval_ps + round(1000 * self.software_interval_descriptor * descriptors))

    def software_service(self, size: int) -> Picoseconds:
        """Between the descriptors of a software DMA of ``size`` bytes being ready and of those before it."""
        return Picoseconds(
            self.software_service_ps * min(size, self.software_service_bytes) // self.software_service_bytes
        )

    def ring_use(self, descriptors: int, *, store: bool) -> int:
        """What a transfer of ``descriptors`` takes of its ring on each engine: its share and the semaphore's write."""
        return (-(-descriptors // self.engines) + 1) * (self.ring_store_weight if store else 1)

    def first_packet(self, dge: str, issue: int, *, from_hbm: bool) -> Picoseconds:
        """From the start of a trigger that lasts ``issue`` to the first packet."""
        if dge == "static":
            return Picoseconds(self.static_first_packet_ps)
        after = self.hardware_first_packet_ps if dge == "hwdge" else self.software_first_packet_ps
        return Picoseconds(issue + after + (self.read_latency_ps if from_hbm else 0))

    def read_start(self, element_bytes: int) -> Picoseconds:
        """What an idle engine's first packet takes longer when it comes from HBM."""
        size = min(element_bytes, self.packet_bytes)
        return Picoseconds(self.read_start_ps + round(1000 * size / self.read_start_bytes_per_ns))

    def packet(self, element_bytes: int, efficiency: float = 1.0) -> Picoseconds:
        """Time of one descriptor of ``element_bytes`` on one DMA engine, among others like it."""
        if self.sustained_over == "transfers":
            return Picoseconds(round(self.packet_alone(element_bytes) / efficiency))
        sustained = max(element_bytes, 1) * 1_000 / self.sustained_bytes_per_ns
        return Picoseconds(round(max(self.packet_alone(element_bytes), sustained) / efficiency))

    def transfer(self, packets_ps: int, size: int, *, static: bool) -> int:
        """Time of one engine's part of a transfer: ``size`` bytes, whose packets take ``packets_ps``."""
        found = packets_ps + (self.static_transfer_ps if static else self.transfer_ps)
        if self.sustained_over == "transfers":
            return max(found, round(1_000 * size / self.sustained_bytes_per_ns))
        return found

    def packet_alone(self, element_bytes: int) -> Picoseconds:
        """Time of one descriptor of ``element_bytes`` on one DMA engine, as long as HBM keeps up."""
        size = max(element_bytes, 1)
        split = -(-size // self.packet_bytes)
        return Picoseconds(round(split * self.packet_ps + size * 1_000 / self.bytes_per_ns))

    def split(self, element_bytes: int, count: int) -> tuple[tuple[int, int], ...]:
        """Descriptors of ``count`` runs of ``element_bytes``: a few long runs are cut so that all engines get a
        share.
        """
        if count < self.engines and element_bytes * count > self.engines * 512:
            pieces = -(-self.engines // count)
            return ((-(-element_bytes // pieces), pieces * count),)
        return ((element_bytes, count),)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Constants of one generation at one chip's clocks."""

    version: str
    tensor: TensorTiming
    vector: VectorTiming
    scalar: ScalarTiming
    gpsimd: GpsimdTiming
    sync: SyncTiming
    sequencer: SequencerTiming
    dma: DmaTiming
    exclusive_ports: bool
    """VectorE excludes GpSimdE on SBUF and ScalarE on PSUM (NeuronCore-v2)."""
    bank_conflicts: bool
    """Two engines that touch one PSUM bank collide (NeuronCore-v3 and later)."""
    clock_offset_ps: int
    """Before the first instruction and after the last DMA in a profiler's total time."""
    clock_tail_ps: int
    clock_parts: tuple[tuple[str, int], ...]
    """Of each other way to measure a kernel: what it shows beyond a profiler's total time, picoseconds."""
    error_percent: float | None
    """Mean absolute error of kernels of NKI 0.2 and later on published measurements, families weighing the same; None
    where there are none for this generation."""
    tensorizer_error_percent: float | None
    """The same of kernels of NKI 0.1 under the ``tensorizer`` schedule."""
    constants: tuple[Constant, ...]

    def engine(self, name: str) -> EngineTiming:
        """Constants of the engine called ``name``."""
        found = getattr(self, name)
        assert isinstance(found, EngineTiming)
        return found

    def sequencer_ps(self, engine: str) -> Picoseconds:
        """What a wait of the sequencer's own adds to the arrival of its semaphore on ``engine``."""
        return Picoseconds(getattr(self.sequencer, f"{engine}_ps"))

    @property
    def clocks(self) -> dict[str, int]:
        """What each way to measure a kernel shows beside the kernel itself, picoseconds."""
        total = self.clock_offset_ps + self.clock_tail_ps
        return {"profiler_total": total, **{name: total + part for name, part in self.clock_parts}}

    @property
    def support(self) -> str:
        """``calibrated`` if the rates of TensorE and of DMA were fitted to this generation, else ``assumed``."""
        known = {c.name: c.support for c in self.constants}
        return "calibrated" if known["tensor.issue"] == known["dma.packet"] == "calibrated" else "assumed"


def load_timing(chip: Chip) -> Timing:
    """Timing constants of ``chip``'s cores at its clocks.

    Raises:
        InputError: the chip has no NeuronCore, or its generation has no constants.
    """
    if chip.core is None:
        raise InputError(f"{chip.name} has no NeuronCore to time")
    clocks = tuple(sorted((name, engine.clock_hz) for name, engine in chip.core.engines.items()))
    changes = tuple(sorted(chip.constants.items()))
    return _load(chip.core.version, clocks, chip.core.dma.engines, tuple(sorted(_factors.items())), changes)


def constants_file(version: str) -> dict[str, Any]:
    """The file of a generation as it stands: sections of ``{ value, unit, source, residual, support }`` by name.

    Raises:
        InputError: there is none.
    """
    path = _DIRECTORY / f"{version}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _DIRECTORY.glob("*.toml")))
        raise InputError(f"no timing constants for NeuronCore-{version}: known are {known}")
    with path.open("rb") as file:
        return tomllib.load(file)


_factors: dict[str, float] = {}


@contextmanager
def scaled(factors: Mapping[str, float]) -> Iterator[None]:
    """Multiply constants (``section.name``) while this is active: how much a time depends on each.

    Raises:
        InputError: at the next ``load_timing``, if the generation has no such constant.
    """
    before = dict(_factors)
    _factors.update(factors)
    try:
        yield
    finally:
        _factors.clear()
        _factors.update(before)


@lru_cache(maxsize=32)
def _load(
    version: str,
    clocks: tuple[tuple[str, int], ...],
    dma_engines: int,
    factors: tuple[tuple[str, float], ...] = (),
    changes: tuple[tuple[str, float], ...] = (),
) -> Timing:
    file, tables = f"{version}.toml", constants_file(version)
    for name, value in changes:
        section, _, key = name.partition(".")
        tables[section][key].update(value=value, source=SET_BY_USER)
    for name, factor in factors:
        section, _, key = name.partition(".")
        if key not in tables.get(section, {}):
            raise InputError(f"{file} has no constant {name}")
        tables[section][key]["value"] *= factor
    constants: list[Constant] = []
    values = {name: _values(name, table, constants) for name, table in tables.items()}
    clock = dict(clocks)

    def engine(kind: type[T], name: str) -> T:
        wanted = {f.name for f in fields(kind)} - {"clock_hz"}
        found = values[name]
        if set(found) != wanted:
            missing, unknown = sorted(wanted - set(found)), sorted(set(found) - wanted)
            raise InputError(f"{file}: [{name}] lacks {missing}, has unknown {unknown}")
        return kind(clock_hz=clock[name], **found)

    machine = values["machine"]
    return Timing(
        version=version,
        tensor=engine(TensorTiming, "tensor"),
        vector=engine(VectorTiming, "vector"),
        scalar=engine(ScalarTiming, "scalar"),
        gpsimd=engine(GpsimdTiming, "gpsimd"),
        sync=engine(SyncTiming, "sync"),
        sequencer=SequencerTiming(**values["sequencer"]),
        dma=DmaTiming(engines=dma_engines, **values["dma"]),
        exclusive_ports=bool(machine["exclusive_ports"]),
        bank_conflicts=bool(machine["bank_conflicts"]),
        clock_offset_ps=machine["clock_offset"],
        clock_tail_ps=machine["clock_tail"],
        clock_parts=tuple((name.removesuffix("_ps"), part) for name, part in values.get("clocks", {}).items()),
        error_percent=machine.get("error"),
        tensorizer_error_percent=machine.get("tensorizer_error"),
        constants=tuple(constants),
    )


def _values(section: str, table: dict[str, Any], constants: list[Constant]) -> dict[str, Any]:
    """Field values of a section: times in picoseconds under ``<name>_ps``, everything else under its own name."""
    found: dict[str, Any] = {}
    for name, entry in table.items():
        unit = entry["unit"]
        value = entry["value"]
        if section == "machine":
            found[name] = round(value * _UNITS[unit]) if unit in _UNITS else value
        elif unit in _UNITS:
            found[f"{name}_ps"] = round(value * _UNITS[unit])
        else:
            found[name] = value
        constants.append(
            Constant(
                name=f"{section}.{name}",
                value=value if isinstance(value, (int, float)) else float("nan"),
                unit=unit,
                source=entry["source"],
                residual=entry.get("residual", ""),
                support=entry.get("support", "calibrated"),
            )
        )
    return found
