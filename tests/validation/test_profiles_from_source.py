"""Ten published profiles of attention on trn2, predicted from the kernels' sources under the ``tensorizer`` schedule.

``TRNSIM_FUSION`` names a checkout of allenkchau/trainium-kernel-fusion, ``TRNSIM_DATA`` a folder that has
``profiles_trn2/``.
"""

import gzip
import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import trnsim
from trnsim.hardware import load_chip
from trnsim.hardware.timing_constants import load_timing
from trnsim.timing.executed import executed_counts

FUSION, DATA = os.environ.get("TRNSIM_FUSION"), os.environ.get("TRNSIM_DATA")
pytestmark = pytest.mark.skipif(
    not (FUSION and DATA), reason="TRNSIM_FUSION (a checkout of trainium-kernel-fusion) and TRNSIM_DATA are not set"
)
CASES = [
    (f"{kind}_{dtype}_s{length}", kind, np.float32 if dtype == "fp32" else ml_dtypes.bfloat16, length)
    for kind in ("baseline", "fused")
    for dtype in ("fp32", "bf16")
    for length in (512, 1024)
]
CASES += [(f"{kind}_attention", kind, np.float32, 512) for kind in ("baseline", "fused")]
# Our opcodes by the profiler's. Casts are copies to another format.
NAMES = {"DMA_TRIGGER": "DMA_DIRECT2D", "CAST": "COPY"}
ENGINES = {"TensorMatrix": "tensor", "Tensor": "tensor", "Vector": "vector", "Scalar": "scalar", "GpSimd": "gpsimd"}
# Not of the kernel: semaphores between engines, and what the runtime adds.
BOOKKEEPING = {"EVENT_SEMAPHORE", "NOP", "EVENT_SEMAPHORE_RANGE_CLEAR"}


def predicted(kind, dtype, length):
    sys.path.insert(0, FUSION)
    try:
        trnsim.install()
        module = importlib.import_module(f"kernels.{kind}.attention")
    finally:
        sys.path.remove(FUSION)
    arguments = [np.zeros((128, length), dtype) for _ in range(3)]
    options = trnsim.SimulationOptions(chip="trn2", numeric=False, clock="span")
    return trnsim.profile(getattr(module, f"{kind}_attention"), *arguments, options=options).timeline


def measured(name):
    with gzip.open(Path(DATA) / "profiles_trn2" / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def counts_of(profile):
    found = Counter(
        (ENGINES.get(i["label"], i["label"].lower()), NAMES.get(i["opcode"], i["opcode"]))
        for i in profile["instruction"]
        if i.get("bir_instruction_name") and i["opcode"] not in BOOKKEEPING
    )
    return found


@pytest.mark.parametrize(("name", "kind", "dtype", "length"), CASES, ids=[c[0] for c in CASES])
def test_span_and_counts(name, kind, dtype, length):
    profile = measured(name)
    timeline = predicted(kind, dtype, length)
    fixed = load_timing(load_chip("trn2"))
    offset = fixed.clock_offset_ps + fixed.clock_tail_ps
    span = profile["summary"][0]["total_time"] * 1e12 - offset
    assert (timeline.total_ps - offset) / span == pytest.approx(1, abs=0.15)
    ours = Counter()
    for (engine, opcode), count in executed_counts(timeline, load_chip("trn2")).items():
        if opcode not in BOOKKEEPING:
            ours[engine, NAMES.get(opcode, opcode)] += count
    theirs = counts_of(profile)
    for engine, opcode in {*ours, *theirs}:
        if opcode != "COPY":  # which engine copies from PSUM is told apart below
            close(ours[engine, opcode], theirs[engine, opcode], (engine, opcode))
    close(*(sum(c[e, "COPY"] for e in ("vector", "scalar")) for c in (ours, theirs)), "copies")


def close(found, wanted, what):
    """Within 15 %, or one instruction."""
    assert abs(found - wanted) <= max(1, 0.15 * wanted), (what, found, wanted)
