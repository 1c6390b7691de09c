"""What the reports are made of: one ``KernelCall`` for each kernel call that ran.

The timeline and the traces come from ``trnsim.timing`` and ``trnsim.machine``. The reports read only what the protocols
below name, so that they can be built and tested without a simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from trnsim.errors import Finding, Location

    Column = npt.NDArray[np.int64]
else:
    Column = Any


class TrackLike(Protocol):
    """An engine, or a DMA ring, of one core."""

    @property
    def index(self) -> int: ...
    @property
    def core(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...


class EventsLike(Protocol):
    """Columns, sorted by ``start``; ``start`` to ``end`` the track is busy, at ``done`` results are visible."""

    @property
    def track(self) -> Column: ...
    @property
    def opcode(self) -> Column: ...
    @property
    def instruction(self) -> Column: ...
    @property
    def start(self) -> Column: ...
    @property
    def end(self) -> Column: ...
    @property
    def done(self) -> Column: ...
    @property
    def bytes(self) -> Column: ...


class WaitsLike(Protocol):
    """Columns, one row an interval in which a track was idle, with the event that ended it."""

    @property
    def track(self) -> Column: ...
    @property
    def start(self) -> Column: ...
    @property
    def end(self) -> Column: ...
    @property
    def reason(self) -> Column: ...
    @property
    def before(self) -> Column: ...
    @property
    def released_by(self) -> Column: ...


class MemoryUseLike(Protocol):
    """Bytes live in a partition of one memory of one core, from each of ``times`` on."""

    @property
    def core(self) -> int: ...
    @property
    def memory(self) -> str: ...
    @property
    def times(self) -> Column: ...
    @property
    def bytes(self) -> Column: ...
    @property
    def capacity(self) -> int: ...
    @property
    def peak(self) -> int: ...
    @property
    def holders(self) -> Sequence[tuple[str, int, Any]]: ...


class TotalsLike(Protocol):
    """Sums over the call."""

    @property
    def hbm_read_bytes(self) -> int: ...
    @property
    def hbm_write_bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def instructions(self) -> int: ...
    @property
    def spills(self) -> int: ...


class TimelineLike(Protocol):
    """The part of ``trnsim.timing.timeline.Timeline`` that reports read. Times are picoseconds."""

    @property
    def total_ps(self) -> int: ...
    @property
    def spread_ps(self) -> int: ...
    @property
    def tracks(self) -> Sequence[Any]: ...
    @property
    def events(self) -> Any: ...
    @property
    def waits(self) -> Any: ...
    @property
    def opcodes(self) -> Sequence[str]: ...
    @property
    def memory(self) -> Sequence[Any]: ...
    @property
    def totals(self) -> Any: ...


class TraceLike(Protocol):
    """The part of ``trnsim.machine``'s ``Trace`` that reports read: source lines and operands of instructions."""

    @property
    def instructions(self) -> Any: ...  # columns klass, line, operand
    @property
    def operands(self) -> Any: ...  # columns storage, start, offset, form
    @property
    def lines(self) -> Sequence[Location]: ...
    @property
    def classes(self) -> Sequence[Any]: ...
    @property
    def storages(self) -> Sequence[Any]: ...
    @property
    def forms(self) -> Sequence[Any]: ...


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One kernel call that ran: what was asked, what was predicted, and how well that is known.

    ``traces[i]`` is the trace of core ``i`` of the timeline; without traces a report has no source lines and operands.
    ``wait_reasons`` names the values of ``timeline.waits.reason``. ``clock`` says what the time spans (the total of a
    profiler has fixed parts that the span of the kernel has not). ``error_percent`` is the error on the nearest
    published measurements, None where there are none. ``nki_version`` is the release that the kernel is written for,
    ``nki_version_source`` how that was decided. ``source``: the file that holds the kernel, and the
    SHA-256 of its content, where known.
    """

    kernel: str
    chip: str
    generation: str
    timeline: TimelineLike
    wait_reasons: Sequence[str]
    cores: int = 1
    schedule: str = ""
    clock: str = ""
    arguments: Sequence[str] = ()
    traces: Sequence[TraceLike] = ()
    findings: Sequence[Finding] = ()
    support: str = "assumed"
    support_reason: str = ""
    error_percent: float | None = None
    numeric: bool = True
    wall_seconds: float = 0.0
    seed: int | None = None
    nki_version: str = ""
    nki_version_source: str = ""
    flops: int = 0
    peak_flops: float = 0.0
    hbm_bytes_per_second: float = 0.0
    memory_partitions: int = 128
    source: tuple[str, str] = ("", "")
