"""Runs a function on tiles inside a simulated kernel, for the tests of ``nki.language`` beside this file."""

from types import SimpleNamespace

import numpy as np

from trnsim.hardware import load_chip
from trnsim.machine.launch import Program
from trnsim.machine.tensor import NkiTensor
from trnsim.machine.trace import CLASSES
from trnsim.nki import language as nl
from trnsim.numerics import as_dtype, from_float32

CHIPS = {"v2": "trn1", "v3": "trn2", "v4": "trn3"}


def as_stored(values, dtype):
    """Float32 values in the storage of ``dtype``."""
    return from_float32(np.asarray(values, np.float32), as_dtype(dtype))


def run(function, *arrays, generation="v3", load=True, **options):
    """Call ``function`` with the arrays as tiles (or, without ``load``, as HBM tensors).

    Returns the values of its result (a tensor or a tuple of them), the result itself, the instructions that it issued
    and the kinds of findings.
    """
    program = Program(load_chip(CHIPS[generation]), **options)
    core = program.cores[0]

    def kernel():
        inputs = [core.input(a, f"in{i}") for i, a in enumerate(arrays)]
        tiles = [nl.load(t) for t in inputs] if load else inputs
        before = len(core.trace)
        return before, function(*tiles)

    before, result = program.run(kernel, (), {})[0]
    issued = core.trace.instruction_rows[6 * before :: 6]
    return SimpleNamespace(
        values=_values(result),
        tensor=result,
        instructions=[CLASSES[k].name.removeprefix("nki.isa.") for k in issued],
        findings=[f.kind for f in program.findings.values()],
        program=program,
    )


def _values(result):
    if isinstance(result, tuple):
        return tuple(_values(r) for r in result)
    return np.array(result.array()) if isinstance(result, NkiTensor) else result
