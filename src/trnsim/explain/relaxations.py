"""The changes that are tried: each a pure function from a case to changed cases, which are timed like any other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.explain.case import Attempt, Case, Derived, Lines, Relaxation, lines_of, select, with_class_changes
from trnsim.explain.merging import Group, merged, merged_class
from trnsim.explain.operands import narrowed
from trnsim.isa.retarget import rules_of
from trnsim.isa.work import Transfer
from trnsim.machine.form import HBM, PSUM, Form
from trnsim.machine.trace import READ
from trnsim.timing.accesses import find_accesses
from trnsim.timing.compiled import use_compiled
from trnsim.timing.dependences import PSUM_SPACE, SBUF_SPACE, WAR, WAW
from trnsim.timing.loads import REPEAT_WINDOW, find_repeated_loads
from trnsim.timing.options import BALANCE_ENGINES, REMOVE_REPEATED_LOADS, REORDER
from trnsim.timing.tables import ClassTables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.core import Core
    from trnsim.machine.trace import InstructionClass, Trace

# Bytes of a DMA that neighbouring ones are merged into; the vendor's compiler goes so far on old sources (TIMING.md).
MERGED_DMA_BYTES = 512 * 1024
STATIONARY_COLUMNS = 128


def _narrow(case: Case) -> Iterator[Attempt]:
    """float32 tensors in HBM and SBUF hold bfloat16: half the bytes to move, TensorE in one pass of one cycle a row
    instead of two of two, and VectorE's faster modes. PSUM still sums in float32; tiles that are updated in place,
    columns of numbers, and what an instruction takes in float32 only, stay as they are.
    """
    changed, lines = narrowed(case)
    if lines:
        yield Attempt("float32 tensors in bfloat16", changed, lines)


def _balance(case: Case) -> Iterator[Attempt]:
    """Instructions that the kernel gives to one engine go to whichever of the engines that can run them has least to
    do so far.
    """
    with rules_of(case.chip, case.traces[0], case.release) as core:

        def free(klass: InstructionClass) -> InstructionClass | None:
            if not klass.seen or klass.instruction.engines == ("dma",):
                return None
            found: InstructionClass = klass.instruction.again(core, klass, any_engine=True)
            return found if found.engines != klass.engines else None

        changed, lines = with_class_changes(case, free, case.using(BALANCE_ENGINES))
    already = BALANCE_ENGINES in case.options.active_passes
    if lines or not already:
        yield Attempt("the least busy engine each", changed, lines)


def _swap(case: Case) -> Iterator[Attempt]:
    """The operands of nc_matmul change places: what was stationary streams, what was moving is loaded in parts of 128
    columns, an nc_matmul each, and the result comes out transposed. What reads it is taken to cost the same on the
    transpose.
    """
    made: dict[int, list[InstructionClass]] = {}

    def swapped(klass: InstructionClass) -> list[InstructionClass]:
        if id(klass) not in made:
            made[id(klass)] = _swapped(klass)
        return made[id(klass)]

    traces: list[Trace] = []
    lines: Lines = Counter()
    for trace in case.traces:
        changed, rows = _expanded(trace, swapped)
        traces.append(changed)
        lines += lines_of(trace, rows)
    if lines:
        yield Attempt("every nc_matmul", replace(case, traces=tuple(traces)), lines)


def _swapped(klass: InstructionClass) -> list[InstructionClass]:
    """What stands for an nc_matmul with its operands swapped: one class for each 128 columns that were moving."""
    plain = klass.name.startswith("nki.isa.nc_matmul") and "_mx" not in klass.name and klass.seen
    if not plain or klass.attributes["is_transpose"] or klass.attributes["tile_size"]:
        return []
    if not str(klass.attributes["perf_mode"]).endswith("none"):
        return []
    stationary, moving = klass.operand("stationary"), klass.operand("moving")
    found = []
    for at in range(0, moving.elements, STATIONARY_COLUMNS):
        width = min(STATIONARY_COLUMNS, moving.elements - at)
        forms = {"stationary": _columns(moving, width), "moving": _columns(stationary, stationary.elements)}
        part = replace(klass, operands=tuple(replace(o, form=forms.get(o.name, o.form)) for o in klass.operands))
        found.append(replace(klass, instruction=_costing(part), seen={}))
    return found


def _costing(klass: InstructionClass) -> Derived:
    """What costs as much as ``klass``."""

    def cost(t: Timing, _: InstructionClass, engine: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] = klass.instruction.cost(t, klass, engine)
        return found

    return Derived(klass.name, cost, is_matmul=klass.is_matmul)


def _expanded(
    trace: Trace, pieces: Callable[[InstructionClass], list[InstructionClass]]
) -> tuple[Trace, NDArray[np.int64]]:
    """``trace`` with several instructions in place of those whose class has ``pieces``; the rows that were."""
    columns = trace.instructions
    used, inverse = np.unique(columns["klass"], return_inverse=True)
    parts = [pieces(trace.classes[int(c)]) for c in used]
    inverse = inverse.ravel()
    many = np.array([len(p) for p in parts], np.int64)
    copies = np.maximum(many, 1)[inverse]
    rows = np.repeat(np.arange(len(trace)), copies)
    part = np.arange(len(rows)) - np.repeat(np.cumsum(copies) - copies, copies)
    counts = np.array([len(trace.classes[int(c)].operands) for c in used], np.int64)[inverse][rows]
    first = np.repeat(columns["operand"][rows], counts)
    within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    classes = [c for n, found in enumerate(parts) for c in found or [trace.classes[int(used[n])]]]
    start = np.cumsum(np.maximum(many, 1)) - np.maximum(many, 1)
    changed = select(trace, rows, first + within, counts)
    changed.set_column("klass", start[inverse[rows]] + part)
    # An edge to an instruction is one to its first part, one from it one from its last.
    end = np.cumsum(copies)
    edges = [(int(end[a] - copies[a]), int(end[b] - 1)) for a, b in trace.edges]
    changed = replace(changed, classes=classes, edges=edges, names={n: int(end[r] - 1) for n, r in trace.names.items()})
    return changed, np.flatnonzero(many[inverse] > 0)


def _columns(form: Form, columns: int) -> Form:
    return Form.of(form.memory, form.dtype, (form.partitions, columns), (1, 1), form.start, form.phase)


def _keep(case: Case) -> Iterator[Attempt]:
    """A box of HBM that is loaded into a tile again and again is loaded once, and the tile kept in SBUF until its last
    use, as far as SBUF's capacity allows: what does not fit is spilled, and the spills are timed.
    """
    changed, lines = without_repeated_loads(case, window=1 << 62)
    done, _ = without_repeated_loads(case, window=None)
    if lines and sum(map(len, changed.traces)) < sum(map(len, done.traces)):
        yield Attempt("every box of HBM once", changed, lines)


def _descriptors(case: Case) -> Iterator[Attempt]:
    """Tensors in HBM are laid out so that what goes to or from a partition is contiguous: DMAs move the same bytes in
    the longest descriptors there are.
    """
    dma = case.timing.dma

    def contiguous(klass: InstructionClass) -> InstructionClass | None:
        if not klass.name.startswith("nki.isa.dma_copy") or any(o.form.indirect for o in klass.operands):
            return None
        transfer = _transfer(klass, case.timing)
        if transfer is None or not klass.in_hbm:
            return None
        chip = [o.form for o in klass.operands if o.form.memory != HBM]
        row = min((f.elements * f.dtype.itemsize for f in chip), default=dma.packet_bytes)
        size = min(dma.packet_bytes, max(1, row))
        count = -(-transfer.bytes // size)
        if count >= sum(c for _, c in transfer.descriptors):
            return None

        def cost(t: Timing, _: InstructionClass, engine: str) -> tuple[Any, ...]:
            (now,) = klass.instruction.cost(t, klass, engine)
            found = t.dma.split(size, count)
            return (replace(now, descriptors=found, engine_ps=tuple(t.dma.packet(s) for s, _ in found)),)

        return replace(klass, instruction=Derived(klass.name, cost), seen={})

    changed, lines = with_class_changes(case, contiguous)
    if lines:
        yield Attempt(f"descriptors of up to {dma.packet_bytes} bytes", changed, lines)


def _coalesce(case: Case) -> Iterator[Attempt]:
    """DMAs of neighbouring iterations are one: one trigger, one semaphore, and where the boxes lie side by side in HBM
    longer descriptors. All its tiles are there only when the whole transfer is.
    """
    single, _ = without_repeated_loads(case, window=None)
    sizes: dict[int, int] = {}

    def bytes_of(klass: InstructionClass) -> int:
        if id(klass) not in sizes:
            transfer = _transfer(klass, case.timing)
            plain = klass.in_hbm and not any(o.form.indirect for o in klass.operands)
            sizes[id(klass)] = transfer.bytes if transfer is not None and plain else 0
        return sizes[id(klass)]

    def keys(klass: InstructionClass) -> list[str] | None:
        return [] if 0 < 2 * bytes_of(klass) <= MERGED_DMA_BYTES else None

    made: dict[tuple[int, int, bool], InstructionClass] = {}

    def merge(group: Group) -> InstructionClass:
        key = (id(group.klass), len(group.rows), _side_by_side(group))
        if key not in made:
            made[key] = _merged_transfer(group.klass, len(group.rows), wide=key[2])
        return made[key]

    for most in (2, 4, 8, 16):

        def limit(klass: InstructionClass, most: int = most) -> int:
            return min(most, MERGED_DMA_BYTES // bytes_of(klass)) if bytes_of(klass) else 0

        changed, lines = merged(single, limit, keys, merge)
        if lines:
            yield Attempt(f"up to {most} of a line in one", changed, lines)


def _combine(case: Case) -> Iterator[Attempt]:
    """Instructions of neighbouring iterations are one over a tile several times as long, as far as the rules, a PSUM
    bank and the longest moving tile allow: the fixed part of an instruction is paid once.
    """
    single, _ = without_repeated_loads(case, window=None)
    bank = case.core.psum.bytes_per_bank
    made: dict[tuple[int, int], InstructionClass | None] = {}

    def wide(klass: InstructionClass, count: int) -> InstructionClass | None:
        key = (id(klass), count)
        if key not in made:
            with rules_of(case.chip, case.traces[0], case.release) as core:
                made[key] = _wide(core, klass, count, bank)
        return made[key]

    for most in (2, 4, 8):

        def limit(klass: InstructionClass, most: int = most) -> int:
            if _same_operands(klass) is None:
                return 0
            return next((n for n in range(most, 1, -1) if wide(klass, n) is not None), 0)

        changed, lines = merged(single, limit, _same_operands, lambda group: wide(group.klass, len(group.rows)))
        if lines:
            yield Attempt(f"up to {most} of a line in one", changed, lines)


def _interleave(case: Case) -> Iterator[Attempt]:
    """Independent instructions of later iterations are issued while those of earlier ones wait for each other, as in a
    software pipeline: the order looks further ahead than the compiler's own.
    """
    options = case.using(REORDER)
    for ahead in (128, 256):
        changed = replace(case, options=replace(options, look_ahead=ahead))
        lines: Lines = Counter()
        for trace, program, other in zip(case.traces, case.stages.programs, changed.stages.programs, strict=True):
            moved = np.flatnonzero(program.order != other.order)
            lines += lines_of(trace, other.rows[other.order[moved]])
        if lines:
            yield Attempt(f"looking {ahead} instructions ahead", changed, lines)


def _fresh(case: Case) -> Iterator[Attempt]:
    """Every tile gets bytes of its own: nothing waits until the tile that lay there before has been used. Two or three
    buffers used in turn come close to it where the loop is long enough.
    """
    stages = case.stages
    run, linked = stages.typical, stages.linked
    waited = np.isin(run.cause_kind, (WAR, WAW, SBUF_SPACE, PSUM_SPACE)) & (run.ready > run.idle_from)
    lines: Lines = Counter()
    for number, trace in enumerate(case.traces):
        rows = linked.row[waited & (linked.core == number)]
        lines += lines_of(trace, rows[rows >= 0])
    if lines or linked.spills:
        yield Attempt(
            "no wait for a tile in use", replace(case, options=replace(case.options, fresh_tiles=True)), lines
        )


RELAXATIONS = (
    Relaxation("bfloat16", "hold float32 tensors in bfloat16", _narrow),
    Relaxation("engine balance", "leave the choice of the engine open, or spread the work over engines", _balance),
    Relaxation("swap operands", "swap stationary and moving operands", _swap),
    Relaxation("keep tiles", "block the loops so that a loaded tile is kept until its last use", _keep),
    Relaxation("longer descriptors", "lay tensors out so that DMAs move long contiguous runs", _descriptors),
    Relaxation("larger DMAs", "load or store several tiles with one DMA", _coalesce),
    Relaxation("combine instructions", "work on several tiles with one instruction", _combine),
    Relaxation("interleave", "interleave independent iterations (software pipelining)", _interleave),
    Relaxation("more buffers", "use several buffers in turn (double buffering)", _fresh),
)


def without_repeated_loads(case: Case, window: int | None) -> tuple[Case, Lines]:
    """``case`` with loads left out that repeat one at most ``window`` instructions before, and the pass that would.

    ``window`` None: those that the compiler's pass leaves out, so that the result takes the time that ``case`` takes.
    """
    if window is None and REMOVE_REPEATED_LOADS not in case.options.active_passes:
        return case, Counter()
    traces: list[Trace] = []
    lines: Lines = Counter()
    for trace in case.traces:
        tables = ClassTables()
        used, inverse = np.unique(trace.instructions["klass"], return_inverse=True)
        numbers = np.array([tables.add(trace.classes[int(c)], case.timing) for c in used], np.int64)
        klass = numbers[inverse.ravel()]
        compiled, storages = use_compiled(len(trace)), trace.storage_columns
        removed, alias = find_repeated_loads(
            find_accesses(trace, klass, tables, compiled),
            np.array(tables.is_load, np.int64)[klass],
            storages["row_bytes"],
            storages["partitions"],
            trace.instructions["line"],
            compiled,
            REPEAT_WINDOW if window is None else window,
        )
        removed = np.sort(removed)
        kept = np.setdiff1d(np.arange(len(trace)), removed)
        counts = np.array([len(c.operands) for c in trace.classes], np.int64)[trace.instructions["klass"][kept]]
        first = np.repeat(trace.instructions["operand"][kept], counts)
        within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        changed = select(trace, kept, first + within, counts)
        operands = changed.operands
        operands["storage"] = alias[operands["storage"]]
        changed = changed.with_columns(changed.instructions, operands)
        place = np.full(len(trace), -1, np.int64)
        place[kept] = np.arange(len(kept))
        edges = [(int(place[a]), int(place[b])) for a, b in trace.edges if place[a] >= 0 and place[b] >= 0]
        names = {n: int(place[r]) for n, r in trace.names.items() if place[r] >= 0}
        traces.append(replace(changed, edges=edges, names=names))
        lines += lines_of(trace, removed)
    return replace(case, traces=tuple(traces), options=case.without(REMOVE_REPEATED_LOADS)), lines


def _transfer(klass: InstructionClass, timing: Timing) -> Transfer | None:
    """The transfer that an instruction of ``klass`` is, if it is one and nothing else."""
    if klass.engines[0] in ("tensor", "vector", "scalar", "gpsimd") and getattr(
        klass.instruction, "engines", ("",)
    ) != ("dma",):
        return None
    pieces = klass.instruction.cost(timing, klass, klass.engines[0])
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], Transfer) else None


def _side_by_side(group: Group) -> bool:
    """Whether the boxes of HBM lie side by side, so that their runs join."""
    operands = group.klass.operands
    index, form = next((i, o.form) for i, o in enumerate(operands) if o.form.memory == HBM)
    run = form.levels[-1][1]
    at = sorted((boxes[index][0], boxes[index][2]) for boxes in group.boxes)
    joined = all(b[0] == a[0] and b[1] - a[1] == run for a, b in pairwise(at))
    room = min((s for s, _ in form.levels[:-1]), default=1 << 62) >= run * len(at)
    return joined and room and all(o.form.contiguous for o in operands if o.form.memory != HBM)


def _merged_transfer(klass: InstructionClass, count: int, *, wide: bool) -> InstructionClass:
    def cost(t: Timing, _: InstructionClass, engine: str) -> tuple[Any, ...]:
        (one,) = klass.instruction.cost(t, klass, engine)
        if wide:
            sizes = [(size * count, number) for size, number in one.descriptors]
            longer = [
                round(ps * t.dma.packet(size * count) / t.dma.packet(size))
                for ps, (size, _) in zip(one.engine_ps, one.descriptors, strict=True)
            ]
        else:
            sizes, longer = [(size, number * count) for size, number in one.descriptors], list(one.engine_ps)
        # Reads and writes tell which memories are touched, which those of the first tile do.
        return (replace(one, bytes=one.bytes * count, descriptors=tuple(sizes), engine_ps=tuple(longer)),)

    return merged_class(klass, count, Derived(klass.name, cost), klass.engines)


def _same_operands(klass: InstructionClass) -> list[str] | None:
    """Operands that merged instructions share: the stationary matrix, and columns of numbers beside tiles."""
    definition = klass.instruction
    if not klass.seen or klass.in_hbm or klass.state or any(o.form.indirect or o.form.reach for o in klass.operands):
        return None
    if "sync" in klass.engines or "Immediate" in definition.kinds.values():
        return None
    if klass.is_matmul:
        return [o.name for o in klass.operands if o.name.startswith("stationary")]
    longest = max((o.form.elements for o in klass.operands), default=0)
    return [o.name for o in klass.operands if o.role == READ and o.form.elements == 1 < longest]


def _wide(core: Core, klass: InstructionClass, count: int, bank: int) -> InstructionClass | None:
    """The class of ``count`` instructions of ``klass`` as one over longer tiles; None if there is none."""
    shared = _same_operands(klass) or []
    forms = {}
    for operand in klass.operands:
        form = operand.form
        if operand.name in shared:
            continue
        if form.memory == PSUM and count * form.span > bank:
            return None
        step = form.span // form.dtype.itemsize
        shape: tuple[int, ...]
        strides: tuple[int, ...]
        if klass.is_matmul:
            shape, strides = (form.shape[0], count * form.elements), (form.strides[0], 1)
        else:
            shape, strides = (form.shape[0], count, *form.shape[1:]), (form.strides[0], step, *form.strides[1:])
        forms[operand.name] = Form.of(form.memory, form.dtype, shape, strides, form.start)
    try:
        wide: InstructionClass = klass.instruction.again(core, klass, forms)
    except TrnsimError:
        return None
    return merged_class(klass, count, _costing(wide), wide.engines)
