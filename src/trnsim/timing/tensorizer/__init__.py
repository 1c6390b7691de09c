"""The ``tensorizer`` schedule: what neuronx-cc does with sources of NKI 0.1 before it orders them.

Each pass is a freedom that ten public profiles of neuronx-cc 2.23 show (``docs/reference/schedules.md``). A pass
changes the rows of a trace, never their values: it may drop a copy, join instructions of independent iterations, join
DMAs, and choose who makes a DMA's descriptors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trnsim.machine.trace import SKIP_MIDDLE_END, STATIC_DESCRIPTORS
from trnsim.timing.options import (
    BALANCE_ENGINES,
    CHOOSE_DESCRIPTORS,
    COALESCE_DMA,
    FUSE_LOOPS,
    KEEP_VALUES,
    MERGE_COPIES,
    MERGE_ITERATIONS,
    MIDDLE_END,
    PRELOAD_TABLE,
    PROPAGATE_COPIES,
    RENAME_TILES,
)
from trnsim.timing.tensorizer.copies import merge_copies, propagate_copies
from trnsim.timing.tensorizer.loops import fuse_loops
from trnsim.timing.tensorizer.renaming import rename_tiles
from trnsim.timing.tensorizer.rows import Rows
from trnsim.timing.tensorizer.tables import preload_table
from trnsim.timing.tensorizer.transfers import choose_descriptors, coalesce, load_identities
from trnsim.timing.tensorizer.values import keep_values
from trnsim.timing.tensorizer.vectors import merge_iterations

if TYPE_CHECKING:
    from trnsim.hardware.model import Core
    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.trace import Trace


def tensorize(trace: Trace, core: Core, timing: Timing, passes: frozenset[str]) -> Trace:
    """``trace`` after the passes of the tensorizer that are among ``passes`` and that its directives allow."""
    rows = Rows.of(trace)
    if SKIP_MIDDLE_END in trace.directives:
        passes -= MIDDLE_END
    load_identities(rows)
    _leave_gpsimd(rows)
    if BALANCE_ENGINES in passes and core.version == "v2":
        _prefer_scalar(rows)
    if RENAME_TILES in passes:
        rename_tiles(rows)
    if FUSE_LOOPS in passes:
        fuse_loops(rows, core, timing)
    if KEEP_VALUES in passes:
        keep_values(rows, core)
    if MERGE_ITERATIONS in passes:
        merge_iterations(rows, core, timing)
    if PROPAGATE_COPIES in passes:
        propagate_copies(rows, core)
    if MERGE_COPIES in passes:
        merge_copies(rows, core)
    if core.version != "v2":  # there descriptors are static: there is no generator whose time joined DMAs save
        if COALESCE_DMA in passes:
            coalesce(rows)
        if CHOOSE_DESCRIPTORS in passes:
            choose_descriptors(rows, static=STATIC_DESCRIPTORS in trace.directives)
    if PRELOAD_TABLE in passes:
        preload_table(rows, timing)
    return rows.build()


def renamed(trace: Trace) -> Trace:
    """``trace`` with tiles that are filled anew as tiles of their own, and nothing else changed."""
    rows = Rows.of(trace)
    rename_tiles(rows)
    return rows.build()


def _leave_gpsimd(rows: Rows) -> None:
    """Nothing that another engine can do goes to GpSimdE: in the public profiles it makes descriptors, no more."""
    for row in rows.rows:
        if "gpsimd" in row.klass.engines and len(row.klass.engines) > 1:
            engines = tuple(e for e in row.klass.engines if e != "gpsimd")
            row.klass = rows.changed(row.klass, row.operands, engines=engines)


_SCALED_SUMS = (
    ("multiply", None), ("add", None), ("subtract", None), ("multiply", "add"), ("multiply", "subtract"),
)  # fmt: skip


def _prefer_scalar(rows: Rows) -> None:
    """On NeuronCore-v2, whose ScalarE has the faster clock, copies and scaled sums may go to it as to VectorE.

    Which of the two is done first gets them (``balance_by_time``). In the published profiles of fourteen kernels on
    trn1 (zhang677/AccelOpt) VectorE is not active at all where a kernel has copies only, far apart; where copies stand
    beside as many exponentials (attention, ucb-bar/autocomp) kernels take the time of the two engines evenly loaded.
    """
    for row in rows.rows:
        if "vector" not in row.klass.engines or row.klass.indirect or row.region:
            continue
        if row.name == "nki.isa.tensor_scalar":
            if tuple(row.klass.attributes.get(k) for k in ("op0", "op1")) not in _SCALED_SUMS:
                continue
        elif row.name != "nki.isa.tensor_copy":
            continue
        row.klass = rows.changed(row.klass, row.operands, engines=("scalar", "vector"))
