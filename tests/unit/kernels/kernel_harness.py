"""Running kernels where they have to run, and comparing what they return with PyTorch in float64."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import trnsim
from trnsim.hardware import load_chip

BF16 = ml_dtypes.bfloat16
# Half a step of each format at 1.
ROUNDING = {np.dtype(np.float32): 2**-24, np.dtype(BF16): 2**-8, np.dtype(np.float16): 2**-11}
dtypes = st.sampled_from(list(ROUNDING))
places = st.sampled_from([("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 2)])


def normal(seed, shape, dtype):
    """Standard normal numbers of a format."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(kernel, where, *arguments, **named):
    """The results of a kernel on (chip, cores of a logical core)."""
    chip, cores = where
    options = trnsim.SimulationOptions(chip=chip, timed=False)
    return trnsim.simulate(kernel[cores], *arguments, options=options, **named)


def assert_close(found, wanted, dtype, roundings, size=None):
    """At most ``roundings`` half steps of the format from ``wanted``, of ``size``, its largest magnitude by default.

    float32 arithmetic in between may differ by the order of sums: 4e-6 of that size besides.
    """
    found, wanted = np.asarray(found), np.asarray(wanted, np.float64)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    size = np.abs(wanted).max() if size is None else size
    limit = (roundings * ROUNDING[np.dtype(dtype)] + 4e-6) * size
    assert np.abs(found.astype(np.float64) - wanted).max() <= limit


def share_of_bandwidth(kernel, where, moved, *arguments, **named):
    """The part of what DMA or HBM allows at which a kernel moves ``moved`` bytes, by our own timing."""
    name, cores = where
    options = trnsim.SimulationOptions(chip=name, numeric=False)
    timeline = trnsim.profile(kernel[cores], *arguments, options=options, **named).timeline
    chip = load_chip(name)
    allowed = min(chip.core.dma.bytes_per_second, chip.hbm.bytes_per_second / chip.core_count) * cores
    return moved / (timeline.total_ps * 1e-12) / allowed
