"""bfloat16 in place of float32: which tensors can change, and the trace in which they have."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import TrnsimError
from trnsim.explain.case import Case, Lines, lines_of
from trnsim.isa.retarget import rules_of
from trnsim.machine.form import PSUM, Form
from trnsim.machine.trace import READ, UPDATE
from trnsim.numerics import as_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.core import Core
    from trnsim.machine.trace import InstructionClass, Trace

WIDE, NARROW = "float32", "bfloat16"


def narrowed(case: Case) -> tuple[Case, Lines]:
    """``case`` with bfloat16 tensors in place of float32 wherever the rules of every instruction allow it."""
    traces: list[Trace] = []
    lines: Lines = Counter()
    for trace in case.traces:
        with rules_of(case.chip, trace, case.release) as core:
            changed, touched = _narrow(trace, core)
        traces.append(changed)
        lines += touched
    return replace(case, traces=tuple(traces)), lines


def _narrow(trace: Trace, core: Core) -> tuple[Trace, Lines]:
    columns, operands = trace.instructions, trace.operands
    counts = np.array([len(c.operands) for c in trace.classes], np.int64)[columns["klass"]]
    owner = np.repeat(np.arange(len(trace)), counts)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = columns["operand"][owner] + position
    storage = operands["storage"][row]
    chosen = _candidates(trace, columns["klass"][owner], position, storage, operands["form"][row])
    while chosen.any():
        # Each instruction by its class and by which of its operands change.
        bits = np.zeros(len(trace), np.int64)
        np.bitwise_or.at(bits, owner, chosen[storage].astype(np.int64) << np.minimum(position, 40))
        kinds, inverse = np.unique(np.stack((columns["klass"], bits)), axis=1, return_inverse=True)
        classes = [_class(core, trace.classes[k], b) if b else trace.classes[k] for k, b in kinds.T.tolist()]
        refused = np.array([c is None for c in classes])[inverse.ravel()]
        if not refused.any():
            return _rewritten(trace, chosen, inverse.ravel(), classes), lines_of(trace, np.flatnonzero(bits > 0))
        chosen[storage[refused[owner]]] = False
    return trace, Counter()


def _candidates(
    trace: Trace, klass: NDArray[np.int64], position: NDArray[np.int64], storage: NDArray[np.int64], form: Any
) -> NDArray[np.bool_]:
    """Storages of float32 tensors, but columns of numbers, what is updated in place, and sums in PSUM."""
    chosen = np.array(
        [s.dtype == WIDE and (s.memory == "hbm" or s.row_bytes > 4) for s in trace.storages] or [False], bool
    )
    other = np.array([f.dtype != WIDE for f in trace.forms] or [False])
    chosen[storage[other[form]]] = False
    psum = np.array([s.memory == PSUM for s in trace.storages] or [False])
    for number in np.unique(klass).tolist():
        item = trace.classes[number]
        sums = not (item.name.endswith("nc_transpose") or item.attributes.get("is_transpose"))
        for index, operand in enumerate(item.operands):
            touched = np.unique(storage[(klass == number) & (position == index)])
            if operand.role == UPDATE:
                chosen[touched] = False
            elif operand.role != READ and sums:
                chosen[touched[psum[touched]]] = False
    return chosen


def _class(core: Core, klass: InstructionClass, bits: int) -> InstructionClass | None:
    """``klass`` with the operands of ``bits`` in bfloat16; None if an instruction has no such form."""
    if not klass.seen:
        return None
    forms = {o.name: _form(o.form) for i, o in enumerate(klass.operands) if bits >> min(i, 40) & 1}
    try:
        found: InstructionClass = klass.instruction.again(core, klass, forms)
    except TrnsimError:
        return None
    return found


def _form(form: Form) -> Form:
    return Form.of(
        form.memory, as_dtype(NARROW), form.shape, form.strides, form.start, form.phase // 2, form.indirect, form.reach
    )


def _rewritten(trace: Trace, chosen: NDArray[np.bool_], klass: NDArray[np.int64], classes: list[Any]) -> Trace:
    operands = trace.operands
    narrow = chosen[operands["storage"]]
    used, inverse = np.unique(np.stack((operands["form"], narrow.astype(np.int64))), axis=1, return_inverse=True)
    forms = [_form(trace.forms[f]) if n else trace.forms[f] for f, n in used.T.tolist()]
    storages = [
        replace(s, dtype=NARROW, row_bytes=s.row_bytes // 2) if chosen[i] else s for i, s in enumerate(trace.storages)
    ]
    operands = {**operands, "form": inverse.ravel(), "offset": operands["offset"] >> narrow}
    instructions = {**trace.instructions, "klass": klass}
    changed = trace.with_columns(
        {n: c.astype(np.int64) for n, c in instructions.items()}, {n: c.astype(np.int64) for n, c in operands.items()}
    )
    return replace(changed, classes=classes, forms=forms, storages=storages)
