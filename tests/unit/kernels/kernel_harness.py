"""Running kernels where they have to run, and comparing what they return with PyTorch in float64.

Cases are drawn, the same ones each time. ``TRNSIM_KERNEL_EXAMPLES=20`` draws twenty times as many, and the run ends
with a table of what was compared (``conftest.py``).
"""

import os
from collections import defaultdict

import ml_dtypes
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

import trnsim
from trnsim.hardware import load_chip

BF16 = ml_dtypes.bfloat16
# Half a step of each format at 1.
ROUNDING = {np.dtype(np.float32): 2**-24, np.dtype(BF16): 2**-8, np.dtype(np.float16): 2**-11}
PLACES = [("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 1), ("trn3", 2)]
TIMES = int(os.environ.get("TRNSIM_KERNEL_EXAMPLES", "1"))
dtypes = st.sampled_from(list(ROUNDING))
places = st.sampled_from(PLACES)

# (kernel, format) -> chips and cores, results compared, largest error over what is allowed, and over the size.
compared = defaultdict(lambda: [set(), 0, 0.0, 0.0])
_case = ["", None, ""]


def drawn(examples):
    """Settings of a test of drawn cases."""
    return settings(max_examples=examples * TIMES, deadline=None, derandomize=True)


def normal(seed, shape, dtype):
    """Standard normal numbers of a format."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(kernel, where, *arguments, label="", **named):
    """The results of a kernel on (chip, cores of a logical core); ``label``: its format, where results have another."""
    chip, cores = where
    _case[:] = kernel.__name__, where, label
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    return trnsim.simulate(kernel[cores], *arguments, options=options, **named)


def assert_close(found, wanted, dtype, roundings, size=None, sums=4e-6):
    """At most ``roundings`` half steps of the format from ``wanted``, of ``size``, its largest magnitude by default.

    float32 arithmetic in between may differ by the order of sums, and by what exponentials are good for: ``sums`` of
    that size besides.
    """
    found, wanted = np.asarray(found), np.asarray(wanted, np.float64)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    size = np.abs(wanted).max() if size is None else size
    limit = (roundings * ROUNDING[np.dtype(dtype)] + sums) * size
    error = np.abs(found.astype(np.float64) - wanted).max()
    record(dtype, error / limit if size else 0, error / size if size else 0)
    assert error <= limit


def assert_same(found, wanted):
    """Bit for bit."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype
    record(wanted.dtype, 0, 0)
    assert np.array_equal(found, wanted)


def record(dtype, share, error):
    """Count a result of the last run: its largest error, and the share of what is allowed that this is."""
    kernel, where, label = _case
    row = compared[kernel, label or np.dtype(dtype).name]
    row[0].add(where)
    row[1] += 1
    row[2:] = max(row[2], share), max(row[3], error)


def share_of_peak(kernel, where, dtype, flops, *arguments, **named):
    """The part of TensorE's rate for a format at which a kernel does ``flops``, by our own timing."""
    chip, cores = where
    options = trnsim.SimulationOptions(chip=chip, numeric=False)
    timeline = trnsim.profile(kernel[cores], *arguments, options=options, **named).timeline
    return flops / (timeline.total_ps * 1e-12) / (load_chip(chip).core.tensor.flops(dtype) * cores)


def share_of_bandwidth(kernel, where, moved, *arguments, **named):
    """The part of what DMA or HBM allows at which a kernel moves ``moved`` bytes, by our own timing."""
    name, cores = where
    options = trnsim.SimulationOptions(chip=name, numeric=False)
    timeline = trnsim.profile(kernel[cores], *arguments, options=options, **named).timeline
    chip = load_chip(name)
    allowed = min(chip.core.dma.bytes_per_second, chip.hbm.bytes_per_second / chip.core_count) * cores
    return moved / (timeline.total_ps * 1e-12) / allowed
