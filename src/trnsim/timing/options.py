"""What a caller may choose about time: the schedule, the passes of the compiler stage, the clock."""

from __future__ import annotations

from dataclasses import dataclass

from trnsim.errors import InputError

SCHEDULES = ("program", "nki", "tensorizer")
CLOCKS = ("kernel", "span")

REMOVE_REPEATED_LOADS = "remove-repeated-loads"
BALANCE_ENGINES = "balance-engines"
REORDER = "reorder"
REMOVE_FILLS = "remove-fills"
KEEP_LOADS = "keep-loads"
RENAME_TILES = "rename-tiles"
KEEP_VALUES = "keep-values"
FUSE_LOOPS = "fuse-loops"
PROPAGATE_COPIES = "propagate-copies"
MERGE_COPIES = "merge-copies"
MERGE_ITERATIONS = "merge-iterations"
PRELOAD_TABLE = "preload-table"
ONE_RING = "one-ring"
COALESCE_DMA = "coalesce-dma"
CHOOSE_DESCRIPTORS = "choose-descriptors"
_NKI = (REMOVE_REPEATED_LOADS, REMOVE_FILLS, BALANCE_ENGINES, REORDER)
_TENSORIZER = (
    KEEP_LOADS, RENAME_TILES, FUSE_LOOPS, KEEP_VALUES, MERGE_ITERATIONS, PROPAGATE_COPIES, MERGE_COPIES, COALESCE_DMA,
    CHOOSE_DESCRIPTORS, PRELOAD_TABLE,
)  # fmt: skip
_REWRITING = (
    RENAME_TILES, FUSE_LOOPS, KEEP_VALUES, MERGE_ITERATIONS, PROPAGATE_COPIES, MERGE_COPIES, COALESCE_DMA,
    CHOOSE_DESCRIPTORS, PRELOAD_TABLE,
)  # fmt: skip
# What ``nki.compiler.skip_middle_end_transformations`` leaves out.
MIDDLE_END = frozenset(
    {KEEP_LOADS, FUSE_LOOPS, KEEP_VALUES, MERGE_ITERATIONS, PROPAGATE_COPIES, MERGE_COPIES, COALESCE_DMA}
)
PASSES = (*_NKI, *_TENSORIZER)
"""The freedoms that the compiler stage takes, each one a pass that can be left out."""
ON_REQUEST = (ONE_RING,)
"""Passes that no schedule has by itself: ``one-ring`` is what the compiler of NKI 0.7 does (``nki`` only)."""

_OF_SCHEDULE = {
    "program": frozenset[str](),
    "nki": frozenset(_NKI),
    "tensorizer": frozenset(PASSES) - {REMOVE_FILLS, ONE_RING},
}


def passes_of(schedule: str) -> frozenset[str]:
    """All passes of ``schedule``."""
    return _OF_SCHEDULE[schedule]


def kept_passes(schedule: str) -> frozenset[str]:
    """The passes of ``schedule`` that may run again on traces whose instructions it has changed already."""
    return _OF_SCHEDULE[schedule] - set(_REWRITING)


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """Options of ``simulate``.

    ``schedule``: ``program`` keeps each engine's queue in program order; ``nki`` (default) does what the compiler of
    NKI 0.2 and later is known to do; ``tensorizer`` what neuronx-cc does with sources of NKI 0.1. ``passes`` replaces
    the passes that the schedule implies. ``clock``: ``kernel``
    counts from the first instruction to the last DMA; ``span`` adds the fixed parts of a profiler's total time.
    ``strict_capacity`` makes live bytes over capacity an error instead of a spill. ``throttle_phases`` is over how
    many phases of TensorE's throttle the time is averaged. ``hbm_sharers`` is how many cores of the chip share HBM's
    bandwidth, those that are traced included (None: only those). ``fresh_tiles`` asks what if every write went to bytes
    of its own: nothing waits until what it overwrites has been used, and no memory is full. ``look_ahead`` is how many
    instructions ahead the list scheduler looks (None: as far as the compiler is known to).
    """

    schedule: str = "nki"
    passes: frozenset[str] | None = None
    clock: str = "kernel"
    strict_capacity: bool = False
    throttle_phases: int = 4
    hbm_sharers: int | None = None
    fresh_tiles: bool = False
    look_ahead: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {self.schedule!r}: known are {', '.join(SCHEDULES)}")
        if self.clock not in CLOCKS:
            raise InputError(f"unknown clock {self.clock!r}: known are {', '.join(CLOCKS)}")
        unknown = (self.passes or frozenset()) - {*PASSES, *ON_REQUEST}
        if unknown:
            raise InputError(f"unknown passes {', '.join(sorted(unknown))}: known are {', '.join(PASSES + ON_REQUEST)}")
        if self.look_ahead is not None and self.look_ahead < 1:
            raise InputError("look_ahead must be at least 1", value=self.look_ahead)
        rewriting = (self.passes or frozenset()) & set(_REWRITING)
        rewriting -= {RENAME_TILES} if self.schedule == "nki" else set()
        if rewriting and self.schedule != "tensorizer":
            raise InputError(f"only the schedule tensorizer has the passes {', '.join(sorted(rewriting))}")
        if ONE_RING in (self.passes or frozenset()) and self.schedule != "nki":
            raise InputError(f"only the schedule nki has the pass {ONE_RING}")
        if self.throttle_phases < 1:
            raise InputError("throttle_phases must be at least 1", value=self.throttle_phases)

    @property
    def active_passes(self) -> frozenset[str]:
        return _OF_SCHEDULE[self.schedule] if self.passes is None else self.passes
