"""A recorded trace on another generation: the same program, its instructions asked again for their rules and engines.

The program is what was recorded: a kernel that itself asks for the generation, or whose ``nki.language`` calls become
other instructions there, would record another one.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import TrnsimError, UnsupportedError
from trnsim.machine import core as machine
from trnsim.machine.core import Core, Launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trnsim.hardware import Chip
    from trnsim.machine.trace import InstructionClass, Trace
    from trnsim.releases import Release


@contextmanager
def rules_of(chip: Chip, trace: Trace, release: Release) -> Iterator[Core]:
    """A core of ``chip`` that the rules of instructions ask, as when a kernel of ``release`` runs there."""
    launch = Launch(chip, kernel=trace.kernel, lnc=trace.lnc, numeric=False, release=release)
    core = launch.cores[trace.core]
    core.legalizes = release.version == "0.1"
    before = machine.set_current(core)
    try:
        yield core
    finally:
        machine.set_current(before)


def retarget(trace: Trace, chip: Chip, release: Release) -> Trace:
    """``trace`` as it would run on ``chip``; the trace itself if that has the generation it was recorded on.

    Raises:
        TrnsimError: an instruction of it would be rejected there: which, why, and the first line that has it.
    """
    assert chip.core is not None
    if chip.core.version == trace.generation:
        return trace
    columns = trace.instructions
    used, first, inverse = np.unique(columns["klass"], return_index=True, return_inverse=True)
    classes: list[InstructionClass] = []
    with rules_of(chip, trace, release) as core:
        for number, row in sorted(zip(used.tolist(), first.tolist(), strict=True), key=lambda pair: pair[1]):
            klass = trace.classes[number]
            if not klass.seen:
                raise UnsupportedError(
                    f"the trace does not say what {klass.name} was called with, so that its rules on "
                    f"NeuronCore-{core.generation} cannot be asked; record the kernel again",
                    instruction=klass.name,
                )
            try:
                classes.append(klass.instruction.again(core, klass))
            except TrnsimError as error:
                error.location = error.location or trace.lines[int(columns["line"][row])]
                raise
    # In the order in which the classes first appear, as np.unique numbers them by their old number.
    place = np.empty(len(used), np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(used))
    changed = replace(trace, classes=classes, generation=chip.core.version, chip=chip.name)
    changed.set_column("klass", place[inverse.ravel()])
    return changed
